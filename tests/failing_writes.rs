//! Every write that a detach makes fails, once and for good: after an error nothing has changed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod store;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use spdk_lvol_detach::blob::{BlobId, OpenBlob};
use spdk_lvol_detach::error::Error;
use spdk_lvol_detach::memory_dev::Image;
use spdk_sys as sys;
use store::faulty_dev::{Effect, FOR_GOOD, Fault, FaultyDev};
use store::scenarios::{
    Name, Op, SCENARIOS, Scenario, State, World, add_concurrent_xattr, on_each_scenario,
    remove_concurrent_xattr, summary,
};
use store::{next_round, run, start};

/// What follows the first detach that failed, on a device that works again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// The same detach, and the rest of the scenario.
    Retry,
    /// A clean unload.
    Unload,
}

#[test]
fn after_a_failed_write_nothing_has_changed() {
    let results = on_each_scenario(fail_everywhere);
    println!(
        "failing writes: {}; and crashes after one: {}",
        summary(results.iter().map(|result| result.tried)),
        results.iter().map(|result| result.crashes).sum::<usize>(),
    );
    let failures: Vec<_> = results.iter().flat_map(|result| &result.failures).collect();
    assert!(
        failures.is_empty(),
        "{} failures, of which the first is {}",
        failures.len(),
        failures[0]
    );
}

/// SPDK's own operations lose the error of every page but the last one when the metadata takes more
/// than two (`bs_batch_completion`): then the root page refers to one that is not there. A detach
/// notices; but a crash before it has put the old metadata back would find the store like this.
#[test]
fn spdk_itself_takes_a_failed_write_of_a_page_for_done() {
    run(async {
        let (image, names) = scenario("three pages").prepare().await;
        // The superblock is the first write, then come the two new pages.
        let fault = Fault { first: 1, times: 1, effect: Effect::Nothing };
        let (dev, hook) = FaultyDev::new(&image, fault);
        let mut world = World::load(&image, Some(hook), &names).await.unwrap();
        dev.borrow_mut().on = true;
        world.play(Op::SetXattr("vol", "name", 20)).await.unwrap();
        assert!(dev.borrow().fired);
        let state = reload(&copy(&image), &names).await;
        assert!(!state.is_ok_and(|state| state.contains_key(&names["vol"])));
        world.unload().await.unwrap();
    });
}

#[test]
fn without_a_free_metadata_page_nothing_changes() {
    for free in 0..2 {
        run(async move {
            let (image, names) = scenario("three pages").prepare().await;
            let mut world = World::load(&image, None, &names).await.unwrap();
            let mut fillers = world.use_up_md_pages().await;
            for _ in 0..free {
                world.delete_filler(&mut fillers).await.unwrap();
            }
            let before = world.whole_state().await.unwrap();
            let error = world.play(Op::Detach("vol")).await.unwrap_err();
            assert_eq!(error.code(), -libc::ENOMEM);
            assert_eq!(world.whole_state().await.as_ref(), Ok(&before));
            assert_eq!(reload(&copy(&image), &names).await.as_ref(), Ok(&before));
            for _ in free..2 {
                world.delete_filler(&mut fillers).await.unwrap();
            }
            world.play(Op::Detach("vol")).await.unwrap();
            let after = world.whole_state().await.unwrap();
            world.unload().await.unwrap();
            assert_eq!(reload(&image, &names).await, Ok(after));
        });
    }
}

/// As many operations run as there are request sets: a detach can start none of its own.
#[test]
fn without_a_free_request_set_nothing_changes() {
    for name in ["vol", "snap2"] {
        run(async move {
            let (image, names) = scenario("leaf").prepare().await;
            let mut world = World::load(&image, None, &names).await.unwrap();
            world.close("other").await.unwrap();
            let before = world.whole_state().await.unwrap();
            let opening = open_too_often(&world, "other");
            let detach = start(world.store.detach(names[name]));
            wait_and_close(&world, opening).await;
            assert_eq!(detach.await.unwrap_err().code(), -libc::ENOMEM);
            assert_eq!(world.whole_state().await.as_ref(), Ok(&before));
            world.play(Op::Detach(name)).await.unwrap();
            let after = world.whole_state().await.unwrap();
            assert_eq!(after[&names[name]].parent, sys::SPDK_BLOBID_INVALID);
            world.unload().await.unwrap();
        });
    }
}

/// As before, while the blob's metadata is being written: to wait for that takes no request set.
#[test]
fn without_a_free_request_set_a_detach_waits_for_a_sync() {
    run(async {
        let (image, names) = scenario("leaf").prepare().await;
        let mut world = World::load(&image, None, &names).await.unwrap();
        world.close("other").await.unwrap();
        let sync = start(world.store.set_xattr(world.blob("vol"), c"name", b"x"));
        let opening = open_too_often(&world, "other");
        let detach = start(world.store.detach(names["vol"]));
        wait_and_close(&world, opening).await;
        sync.await.unwrap();
        let result = detach.await;
        let state = world.whole_state().await.unwrap();
        assert_eq!(state[&names["vol"]].parent == sys::SPDK_BLOBID_INVALID, result.is_ok());
        world.unload().await.unwrap();
    });
}

/// The same, when a write has failed and the old metadata is to be written again.
#[test]
fn without_a_free_request_set_the_old_metadata_is_written_later() {
    run(async {
        let (image, names) = scenario("leaf").prepare().await;
        // The device has the new metadata all the same.
        let fault = Fault { first: 0, times: 1, effect: Effect::All };
        let (dev, hook) = FaultyDev::new(&image, fault);
        let mut world = World::load(&image, Some(hook), &names).await.unwrap();
        world.close("other").await.unwrap();
        // The first metadata write would write the superblock as well.
        world.play(Op::SetXattr("vol", "name", 20)).await.unwrap();
        let before = world.whole_state().await.unwrap();
        let loaded_before = reload(&copy(&image), &names).await.unwrap();
        dev.borrow_mut().on = true;
        let detach = start(world.store.detach(names["vol"]));
        while !dev.borrow().fired {
            next_round().await;
        }
        next_round().await;
        let opening = open_too_often(&world, "other");
        // On to the second write, as nobody has asked it since.
        let detach = start(detach);
        wait_and_close(&world, opening).await;
        assert_eq!(detach.await.unwrap_err().code(), -libc::EIO);
        assert_eq!(world.whole_state().await.as_ref(), Ok(&before));
        assert_eq!(reload(&copy(&image), &names).await, Ok(loaded_before));
        world.play(Op::Detach("vol")).await.unwrap();
        world.unload().await.unwrap();
    });
}

/// Starts to load a closed blob more often than there are request sets.
fn open_too_often(
    world: &World,
    name: Name,
) -> Vec<impl Future<Output = Result<OpenBlob, Error>> + use<'_>> {
    (0..1000).map(|_| start(world.store.open(world.names[name]))).collect()
}

async fn wait_and_close(
    world: &World,
    opening: Vec<impl Future<Output = Result<OpenBlob, Error>>>,
) {
    let mut refused = 0;
    for opened in opening {
        match opened.await {
            Ok(blob) => world.store.close(blob).await.unwrap(),
            Err(error) => {
                assert_eq!(error.code(), -libc::ENOMEM);
                refused += 1;
            }
        }
    }
    assert!(refused > 0, "there were request sets for all");
}

fn scenario(name: Name) -> &'static Scenario {
    SCENARIOS.iter().find(|scenario| scenario.name == name).expect("a scenario")
}

#[derive(Default)]
struct Tried {
    tried: usize,
    crashes: usize,
    failures: Vec<String>,
}

async fn fail_everywhere(scenario: &'static Scenario) -> Tried {
    let (image, names) = scenario.prepare().await;
    let states = play_without_faults(scenario, &image, &names).await;
    let mut tried = Tried::default();
    for effect in [Effect::Nothing, Effect::Half, Effect::All] {
        for times in [1, 2, FOR_GOOD] {
            for first in 0.. {
                let fault = Fault { first, times, effect };
                let play = Play { scenario, names: &names, states: &states, fault };
                if !tried.add(&play, &image).await {
                    break;
                }
            }
        }
    }
    tried
}

impl Tried {
    /// Tries a fault, unless the scenario is over before it.
    async fn add(&mut self, play: &Play<'_>, image: &Image) -> bool {
        let mut crashes = 0;
        for ending in [Ending::Retry, Ending::Unload] {
            match play.play(&copy(image), ending).await {
                Ok(Played { fired: false, .. }) => return false,
                Ok(played) => crashes = played.crashes,
                Err(failure) => {
                    let Play { scenario, fault, .. } = play;
                    self.failures
                        .push(format!("{}, {fault:?}, {ending:?}: {failure}", scenario.name));
                }
            }
        }
        self.tried += 1;
        self.crashes += crashes;
        true
    }
}

fn copy(image: &Image) -> Image {
    Rc::new(RefCell::new(image.borrow().clone()))
}

/// The states after each operation.
async fn play_without_faults(
    scenario: &Scenario,
    image: &Image,
    names: &BTreeMap<Name, BlobId>,
) -> Vec<State> {
    let mut world = World::load(&copy(image), None, names).await.unwrap();
    let mut states = Vec::new();
    for &op in scenario.play {
        world.play(op).await.unwrap();
        states.push(world.whole_state().await.unwrap());
    }
    world.unload().await.unwrap();
    states
}

/// A scenario that is played on a device whose writes fail.
struct Play<'a> {
    scenario: &'a Scenario,
    names: &'a BTreeMap<Name, BlobId>,
    /// What there would be after each operation if none failed.
    states: &'a [State],
    fault: Fault,
}

#[derive(Default)]
struct Played {
    fired: bool,
    crashes: usize,
}

impl Play<'_> {
    async fn play(&self, image: &Image, ending: Ending) -> Result<Played, String> {
        let (dev, hook) = FaultyDev::new(image, self.fault);
        let mut world = World::load(image, Some(hook), self.names).await.map_err(text)?;
        let mut plays = self.scenario.play.iter().zip(self.states);
        let mut failure = None;
        for (&op, after) in plays.by_ref() {
            let before = world.whole_state().await?;
            dev.borrow_mut().on = op.detaches().is_some();
            let result = world.play(op).await;
            dev.borrow_mut().on = false;
            match result {
                Ok(()) => same(&world.whole_state().await?, after)?,
                Err(error) => {
                    failure = Some(Failure { op, before, after, error, names: self.names });
                    break;
                }
            }
        }
        let fired = dev.borrow().fired;
        if world.lost_xattr {
            // What becomes of SPDK's own write is up to SPDK. The detach has been seen in memory.
            if let Some(failure) = failure {
                failure.check_memory(&world).await?;
            }
            // Not possible with a torn superblock.
            let _ = world.unload().await;
            return Ok(Played { fired, crashes: 0 });
        }
        let Some(failure) = failure else {
            self.check_end(world, image).await?;
            return Ok(Played { fired, crashes: 0 });
        };
        if !fired {
            return Err(format!("no write failed, but: {}", failure.error));
        }
        failure.check_memory(&world).await?;
        let crashes = dev.borrow_mut().take_crashes();
        let played = Played { fired, crashes: crashes.len() };
        failure.check_crashes(crashes).await?;
        if dev.borrow().superblock_is_torn() {
            check_that_spdk_is_stuck(world, image).await?;
            return Ok(played);
        }
        failure.check_reply(self.fault)?;
        if failure.put_back() {
            same(&reload(&copy(image), self.names).await?, &failure.unchanged())?;
        }
        match ending {
            Ending::Unload => {
                world.unload().await.map_err(text)?;
                let is_whole = dev.borrow().is_whole();
                failure.check_unloaded(image, is_whole).await?;
            }
            Ending::Retry => {
                world.play(Op::Detach(failure.name())).await.map_err(text)?;
                same(&world.state().await?, failure.after)?;
                for (&op, _) in plays {
                    world.play(op).await.map_err(text)?;
                }
                self.check_end(world, image).await?;
            }
        }
        Ok(played)
    }

    /// In the end there is what would be there without a fault, also after a crash and after an
    /// unload.
    async fn check_end(&self, world: World, image: &Image) -> Result<(), String> {
        let end = self.states.last().expect("a scenario has operations");
        same(&world.state().await?, end)?;
        same(&reload(&copy(image), self.names).await?, end)?;
        world.unload().await.map_err(text)?;
        same(&reload(image, self.names).await?, end)
    }
}

/// A detach that has returned an error.
struct Failure<'a> {
    op: Op,
    before: State,
    after: &'a State,
    error: Error,
    names: &'a BTreeMap<Name, BlobId>,
}

impl Failure<'_> {
    fn name(&self) -> Name {
        self.op.detaches().expect("only detaches fail")
    }

    /// Whether the device has what it had.
    fn put_back(&self) -> bool {
        !self.error.to_string().contains("so did writing the old metadata again")
    }

    /// What there must be: nothing has changed, but by the operation that ran at the same time.
    fn unchanged(&self) -> State {
        let mut state = self.before.clone();
        if let Op::DetachDuringSync(_, synced) = self.op {
            add_concurrent_xattr(&mut state, self.names[synced]);
        }
        state
    }

    /// What may be on the device as long as no answer was given.
    fn possible(&self) -> Vec<State> {
        let mut detached = self.after.clone();
        if let Op::DetachDuringSync(_, synced) = self.op {
            remove_concurrent_xattr(&mut detached, self.names[synced]);
        }
        vec![self.before.clone(), self.unchanged(), self.after.clone(), detached]
    }

    fn check_reply(&self, fault: Fault) -> Result<(), String> {
        let error = &self.error;
        let right = match fault.times {
            1 => self.put_back(),
            FOR_GOOD => !self.put_back(),
            _ => true,
        };
        let names_the_blob = error.to_string().contains(&format!("{:#x}", self.names[self.name()]));
        if right && names_the_blob && error.code() == -libc::EIO {
            return Ok(());
        }
        Err(format!("the reply is wrong: {error}"))
    }

    async fn check_memory(&self, world: &World) -> Result<(), String> {
        let state = if self.put_back() {
            world.whole_state().await?
        } else {
            // The device may refer to the pages that were claimed for a write that failed, so they
            // are not free before the store is recovered.
            world.state().await?
        };
        same(&state, &self.unchanged())
    }

    /// After an unload, with nothing done for the blob.
    async fn check_unloaded(&self, image: &Image, is_whole: bool) -> Result<(), String> {
        if self.put_back() {
            same(&reload(image, self.names).await?, &self.unchanged())
        } else if is_whole {
            one_of(&reload(image, self.names).await?, &self.possible())
        } else {
            // This is what the reply warns of.
            Ok(())
        }
    }

    /// After a crash between the first write that failed and the reply.
    async fn check_crashes(&self, crashes: Vec<Vec<u8>>) -> Result<(), String> {
        for image in crashes {
            one_of(&reload(&Rc::new(RefCell::new(image)), self.names).await?, &self.possible())
                .map_err(|what| format!("after a crash: {what}"))?;
        }
        Ok(())
    }
}

/// With a superblock that is torn SPDK can't write any metadata any more, and doesn't say so.
async fn check_that_spdk_is_stuck(mut world: World, image: &Image) -> Result<(), String> {
    let before = image.borrow().clone();
    world.play(Op::SetXattr("other", "name", 20)).await.map_err(text)?;
    if *image.borrow() != before {
        return Err("SPDK has written metadata with a torn superblock".to_owned());
    }
    Ok(())
}

/// What there is after a crash, or an unload, that has left this image.
async fn reload(image: &Image, names: &BTreeMap<Name, BlobId>) -> Result<State, String> {
    let world = World::load(image, None, names).await.map_err(text)?;
    let state = world.state().await;
    world.unload().await.map_err(text)?;
    state
}

fn same(is: &State, should_be: &State) -> Result<(), String> {
    one_of(is, std::slice::from_ref(should_be))
}

fn one_of(is: &State, possible: &[State]) -> Result<(), String> {
    if possible.contains(is) {
        return Ok(());
    }
    let all: Vec<_> = possible.iter().map(|state| differences(is, state)).collect();
    Err(all.join("; or "))
}

fn differences(is: &State, should_be: &State) -> String {
    let ids: BTreeSet<_> = is.keys().chain(should_be.keys()).collect();
    let differ = ids.into_iter().filter(|id| is.get(id) != should_be.get(id));
    let list = differ.map(|id| match (is.get(id), should_be.get(id)) {
        (Some(is), Some(should_be)) => format!("{id:#x} is {is:?} instead of {should_be:?}"),
        (None, _) => format!("{id:#x} is missing"),
        (_, None) => format!("{id:#x} is there"),
    });
    list.collect::<Vec<_>>().join(", ")
}

fn text(error: impl ToString) -> String {
    error.to_string()
}
