//! Every read, write and flush of a detach fails, once or permanently: after an error nothing has changed,
//! in memory and, unless the reply says that it may have, on the device.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod store;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use spdk_lvol_detach::internals::blob::{BlobId, OpenBlob};
use spdk_lvol_detach::internals::error::Error;
use spdk_lvol_detach::internals::memory_dev::Image;
use spdk_sys as sys;
use store::faulty_dev::{Effect, FOR_GOOD, Fault, FaultyDev, Io};
use store::scenarios::{
    Name, Op, SCENARIOS, Scenario, State, World, add_concurrent_xattr, differences,
    on_each_scenario, remove_concurrent_xattr, summary,
};
use store::{run, start};

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

/// Old metadata that could not be written again leaves half a page only if the device does less than a
/// whole write and says so twice. The next detach then sees it, and leaves it as it is.
#[test]
fn a_torn_page_is_refused() {
    run(async {
        let (image, names) = scenario("leaf").prepare().await;
        // The page is written, its flush fails, and half of the old one is written.
        let fault = Fault { io: Io::Any, first: 2, times: 2, effect: Effect::Half };
        let (dev, hook) = FaultyDev::new(&image, fault);
        let mut world = World::load(&image, Some(hook), &names).await.unwrap();
        let before = world.whole_state().await.unwrap();
        dev.borrow_mut().turn(true);
        let error = world.play(Op::Detach("vol")).await.unwrap_err();
        assert_eq!(error.code(), -libc::ENOTRECOVERABLE);
        assert!(!dev.borrow().is_whole());
        let torn = image.borrow().clone();
        let error = world.play(Op::Detach("vol")).await.unwrap_err();
        assert_eq!(error.code(), -libc::EILSEQ);
        assert!(torn == *image.borrow());
        assert_eq!(world.whole_state().await.as_ref(), Ok(&before));
        // SPDK's own write of the page mends it.
        world.play(Op::SetXattr("vol", "name", 20)).await.unwrap();
        world.play(Op::Detach("vol")).await.unwrap();
        let after = world.whole_state().await.unwrap();
        world.unload().await.unwrap();
        assert_eq!(reload(&image, &names).await, Ok(after));
    });
}

/// As many operations run as there are request sets, and every metadata page is in use: a detach needs
/// none of either.
#[test]
fn nothing_needs_to_be_free() {
    for (setup, name) in [("leaf", "vol"), ("leaf", "snap2"), ("three pages", "vol")] {
        run(async move {
            let (image, names) = scenario(setup).prepare().await;
            let mut world = World::load(&image, None, &names).await.unwrap();
            world.close("other").await.unwrap();
            world.use_up_md_pages().await;
            let opening = open_too_often(&world, "other");
            let detach = start(world.store.detach(names[name]));
            wait_and_close(&world, opening).await;
            detach.await.unwrap();
            let after = world.whole_state().await.unwrap()[&names[name]].clone();
            assert_eq!(after.parent, sys::SPDK_BLOBID_INVALID);
            assert_eq!(reload(&copy(&image), &names).await.unwrap()[&names[name]], after);
            world.unload().await.unwrap();
        });
    }
}

/// Without a request set a sync that has waited for a detach can't be written. It is done later.
#[test]
fn without_a_free_request_set_what_has_waited_is_written_later() {
    run(async {
        let (image, names) = scenario("leaf").prepare().await;
        let mut world = World::load(&image, None, &names).await.unwrap();
        world.close("other").await.unwrap();
        let detach = start(world.store.detach(names["vol"]));
        let sync = start(world.store.set_xattr(world.blob("vol"), c"name", b"x"));
        let opening = open_too_often(&world, "other");
        wait_and_close(&world, opening).await;
        detach.await.unwrap();
        sync.await.unwrap();
        let after = world.whole_state().await.unwrap()[&names["vol"]].clone();
        assert_eq!(after.parent, sys::SPDK_BLOBID_INVALID);
        assert_eq!(after.xattrs["name"], b"x");
        assert_eq!(reload(&copy(&image), &names).await.unwrap()[&names["vol"]], after);
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
    let effects = [Effect::Nothing, Effect::Half, Effect::All];
    let faults = effects.map(|effect| (Io::Any, effect)).into_iter();
    for (io, effect) in faults.chain([(Io::Flush, Effect::Nothing), (Io::Write, Effect::Half)]) {
        for times in [1, 2, FOR_GOOD] {
            for first in 0.. {
                let fault = Fault { io, first, times, effect };
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
    /// Tries a fault, unless the scenario is over before it, or enough is known of what fails.
    async fn add(&mut self, play: &Play<'_>, image: &Image) -> bool {
        if self.failures.len() > 5 {
            return false;
        }
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
            let image_before = image.borrow().clone();
            dev.borrow_mut().turn(op.detaches().is_some());
            let result = world.play(op).await;
            let is_unflushed = dev.borrow().is_unflushed;
            dev.borrow_mut().turn(false);
            match result {
                Ok(()) => {
                    if is_unflushed && matches!(op, Op::Detach(_)) {
                        return Err("the write was not flushed".to_owned());
                    }
                    same(&world.whole_state().await?, after)?;
                }
                Err(error) => {
                    let failure_of_op = Failure { op, before, after, error, names: self.names };
                    if failure_of_op.put_back() && matches!(op, Op::Detach(_)) {
                        if is_unflushed {
                            return Err("the old page was not flushed".to_owned());
                        }
                        if *image.borrow() != image_before {
                            return Err("the device is not what it was".to_owned());
                        }
                    }
                    failure = Some(failure_of_op);
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
            // Not possible if half of the superblock was written.
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
        failure.check_reply(dev.borrow().failed_changes)?;
        if failure.put_back() {
            same(&reload(&copy(image), self.names).await?, &failure.unchanged())?;
        }
        match ending {
            Ending::Unload => {
                world.unload().await.map_err(text)?;
                let is_whole = dev.borrow().is_whole();
                failure.check_unloaded(image, is_whole).await?;
            }
            Ending::Retry if !dev.borrow().is_whole() => {
                // See `a_torn_page_is_refused`.
                world.unload().await.map_err(text)?;
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
        self.error.code() != -libc::ENOTRECOVERABLE
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

    /// If it was only the write that failed, or the flush, the old page was written and flushed.
    fn check_reply(&self, failed_changes: usize) -> Result<(), String> {
        let error = &self.error;
        let code = if failed_changes > 1 { libc::ENOTRECOVERABLE } else { libc::EIO };
        let names_the_blob = error.to_string().contains(&format!("{:#x}", self.names[self.name()]));
        if names_the_blob && error.code() == -code {
            return Ok(());
        }
        Err(format!("the reply is wrong after {failed_changes} failures: {error}"))
    }

    async fn check_memory(&self, world: &World) -> Result<(), String> {
        same(&world.whole_state().await?, &self.unchanged())
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

fn text(error: impl ToString) -> String {
    error.to_string()
}
