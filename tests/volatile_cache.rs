//! A power cut on a device with a volatile write cache (`store/power_cut.rs`): after a detach has
//! returned true its lvol is detached and intact, whatever the cache has lost; before, it is attached or
//! detached, and intact.
//!
//! SPDK's own operations are never flushed, and break by themselves when their writes are lost in the
//! wrong order. Where some of their writes are open as well, each kind of breakage is told apart by the
//! same operations on a store where the detach is long done, played without any detach: what it finds
//! there as well is SPDK's own, and printed; anything else fails the test.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod store;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::thread;

use spdk_lvol_detach::internals::blob::BlobId;
use spdk_lvol_detach::internals::memory_dev::Image;
use spdk_sys as sys;
use store::journal::Journal;
use store::power_cut::{Outcome, PowerCut};
use store::recording::{Recording, Start, Step};
use store::run;
use store::scenarios::{
    CHAIN, Name, Op, SCENARIOS, Scenario, State, THREE_PAGES, TWO_PAGES, World, differences,
};

const NO_TWIN: &[Op] = &[Op::Delete("twin")];
const SNAP3: &[Op] = &[Op::SnapshotWithXattr("vol", "snap3", 4000), Op::Write("vol", 5, 0x55)];

/// A detach, and then the deletion of the former parent.
const DELETIONS: &[Scenario] = &[
    Scenario {
        name: "one page, then the parent deleted",
        setup: &[CHAIN, NO_TWIN],
        play: &[Op::Detach("vol"), Op::Delete("snap2")],
    },
    Scenario {
        name: "two pages, then the parent deleted",
        setup: &[CHAIN, NO_TWIN, TWO_PAGES],
        play: &[Op::Detach("vol"), Op::Delete("snap2")],
    },
    Scenario {
        name: "three pages, then the parent deleted",
        setup: &[CHAIN, NO_TWIN, THREE_PAGES],
        play: &[Op::Detach("vol"), Op::Delete("snap2")],
    },
    Scenario {
        name: "mid-chain, then the parent deleted",
        setup: &[CHAIN],
        play: &[Op::Detach("snap2"), Op::Delete("snap1")],
    },
    Scenario {
        name: "mid-chain of two pages, then the parent deleted",
        setup: &[CHAIN, NO_TWIN, SNAP3],
        play: &[Op::Detach("snap3"), Op::Delete("snap2")],
    },
];

/// Deletions of a snapshot whose clone SPDK itself has parted from it, and no detach anywhere.
const DELETIONS_BY_SPDK_ALONE: &[Scenario] = &[
    Scenario {
        name: "inflated, then the parent deleted",
        setup: &[CHAIN, NO_TWIN, &[Op::Inflate("vol")]],
        play: &[Op::Delete("snap2")],
    },
    Scenario {
        name: "decoupled, then the parent deleted",
        setup: &[CHAIN, NO_TWIN, &[Op::Decouple("vol"), Op::Decouple("vol")]],
        play: &[Op::Delete("snap2")],
    },
];

#[test]
fn after_true_a_power_cut_leaves_the_lvol_detached_and_whole() {
    let cases = || SCENARIOS.iter().chain(DELETIONS);
    let found: Vec<Found> = thread::scope(|scope| {
        let threads: Vec<_> = cases()
            .flat_map(|case| starts(case).iter().map(move |&start| (case, start)))
            .map(|(case, start)| scope.spawn(move || run(cut_everywhere(case, start))))
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let mut total = Found::default();
    for found in found {
        println!("power cuts: {}", found.summary());
        total.add(found);
    }
    total.name = "all".to_owned();
    println!("power cuts: {}", total.summary());
    assert!(
        total.bad.is_empty(),
        "{} bad outcomes, of which the first is {}",
        total.bad.len(),
        total.bad[0]
    );
}

/// What SPDK writes on a store that is clean breaks by itself, with the superblock's write lost.
fn starts(scenario: &Scenario) -> &'static [Start] {
    let is_detach = |op: &Op| op.detaches().is_some();
    let all = &[Start::InUse, Start::Clean];
    if scenario.play.iter().all(is_detach) { all } else { &all[..1] }
}

/// How SPDK's deletion of a former parent breaks a store is how its deletion of any snapshot does.
#[test]
fn the_deletion_of_a_former_parent_breaks_as_that_of_any_snapshot() {
    let kinds = |scenarios: &'static [Scenario]| -> BTreeSet<String> {
        let found = scenarios.iter().map(|case| run(cut_everywhere(case, Start::InUse)));
        found.flat_map(|found| found.spdks_own.into_keys()).collect()
    };
    let (after_detach, alone) = (kinds(DELETIONS), kinds(DELETIONS_BY_SPDK_ALONE));
    println!("power cuts: the deletion of a snapshot alone breaks by: {alone:?}");
    assert!(after_detach.is_subset(&alone), "{after_detach:?} after a detach, {alone:?} alone");
}

/// A write or a flush that fails: after the error the lvol is attached and whole for good, whether the
/// write has reached the cache or not; until then it is either.
#[test]
fn after_an_error_a_power_cut_leaves_the_old_page() {
    for name in ["vol", "snap2"] {
        for works in 0.. {
            let Some(tried) = run(cut_after_failure(name, works)) else {
                // The write, and the flush.
                assert_eq!(works, 2);
                break;
            };
            println!("power cuts: {name}, the change after {works} fails: {tried}");
        }
    }
}

async fn cut_after_failure(name: Name, works: usize) -> Option<usize> {
    let scenario = Scenario { name: "failure", setup: &[CHAIN], play: &[] };
    let (image, names) = scenario.prepare().await;
    let (journal, hook) = Journal::start(&image);
    let mut world = World::load(&image, Some(hook), &names).await.unwrap();
    let before = world.whole_state().await.unwrap();
    journal.fail_after(works);
    let result = world.play(Op::Detach(name)).await;
    let data_start = world.store.data_start();
    let end = journal.now();
    journal.close();
    if !journal.has_failed() {
        world.unload().await.unwrap();
        return None;
    }
    assert_eq!(result.unwrap_err().code(), -libc::EIO);
    assert_eq!(world.whole_state().await.as_ref(), Ok(&before));
    // What it would have come to.
    world.play(Op::Detach(name)).await.unwrap();
    let after = world.whole_state().await.unwrap();
    world.unload().await.unwrap();
    let mut tried = 0;
    for at in 0..=end {
        let cut = PowerCut::new(&journal, at, data_start);
        for outcome in cut.outcomes() {
            let state = load(cut.image(&outcome), &names).await;
            let is_right =
                state.as_ref() == Ok(&before) || at < end && state.as_ref() == Ok(&after);
            assert!(is_right, "after {at} of {end} events, {}: {state:?}", cut.describe(&outcome));
            tried += 1;
        }
    }
    Some(tried)
}

/// What power cuts have left.
#[derive(Default)]
struct Found {
    name: String,
    /// Outcomes before a reply, and after it; and after that with SPDK's own writes open as well.
    before: usize,
    after: usize,
    with_spdk: usize,
    /// What SPDK breaks by itself, and how often.
    spdks_own: BTreeMap<String, usize>,
    bad: Vec<String>,
}

impl Found {
    fn add(&mut self, other: Found) {
        self.before += other.before;
        self.after += other.after;
        self.with_spdk += other.with_spdk;
        for (kind, count) in other.spdks_own {
            *self.spdks_own.entry(kind).or_default() += count;
        }
        self.bad.extend(other.bad);
    }

    fn summary(&self) -> String {
        let Found { name, before, after, with_spdk, spdks_own, bad } = self;
        format!(
            "{name}: {before} before a reply, {after} after it, {with_spdk} with SPDK's own writes lost \
             as well; {} bad; SPDK's own: {spdks_own:?}",
            bad.len()
        )
    }
}

async fn cut_everywhere(scenario: &'static Scenario, start: Start) -> Found {
    let recording = Recording::of(scenario, start).await;
    let mut found = Found { name: format!("{}, {start:?}", scenario.name), ..Found::default() };
    // A write that is open at one point is open at the next one as well, unless a flush was completed or
    // something was promised in between.
    let steps = recording.steps.iter();
    let mut points: BTreeSet<usize> = steps
        .flat_map(|step| [Some(step.start), Some(step.end), step.detached])
        .flatten()
        .collect();
    points.extend(recording.journal.flushes());
    for at in points {
        let cut = PowerCut::new(&recording.journal, at, recording.data_start);
        if recording.is_strict(&cut, at) {
            recording.check(&cut, at, &mut found).await;
        } else if !recording.ends_a_load(&cut, at) {
            recording.compare(&cut, at, &mut found).await;
        }
    }
    found
}

impl Recording {
    /// The steps of which something is open, or whose end has just been.
    fn open_steps(&self, cut: &PowerCut, at: usize) -> impl Iterator<Item = &Step> {
        let since = cut.first_open.unwrap_or(at);
        let has_begun = move |step: &&Step| step.start < at || step.start == 0;
        self.steps.iter().filter(has_begun).filter(move |step| step.end >= since)
    }

    /// Whether nothing is open but of operations that are safe: a detach, and an xattr of a blob whose
    /// metadata is one page.
    fn is_strict(&self, cut: &PowerCut, at: usize) -> bool {
        let is_safe = |op: Op| op.detaches().is_some() || matches!(op, Op::SetXattr(..));
        cut.first_open.is_none() || self.open_steps(cut, at).all(|step| is_safe(step.op))
    }

    /// Whether an assertion of SPDK's ends what loads the store, if it is built with them: an extent page
    /// of another length than the blob has (`blob_parse_page`), which a lost write of a resize leaves.
    fn ends_a_load(&self, cut: &PowerCut, at: usize) -> bool {
        let is_resize = |step: &Step| matches!(step.op, Op::Resize(..));
        cfg!(spdk_asserts) && self.open_steps(cut, at).any(is_resize)
    }

    /// All that may be left.
    fn allowed(&self, cut: &PowerCut, at: usize) -> Vec<State> {
        let mut allowed = Vec::new();
        for step in self.open_steps(cut, at) {
            let possible = step.possible(step.start.min(step.end.saturating_sub(1)), &self.names);
            match step.promised(at) {
                Some(name) => {
                    let is_detached =
                        |state: &State| state[&self.names[name]].parent == sys::SPDK_BLOBID_INVALID;
                    allowed = possible.into_iter().filter(is_detached).collect();
                }
                None => allowed.extend(possible),
            }
        }
        allowed
    }

    async fn check(&self, cut: &PowerCut, at: usize, found: &mut Found) {
        let allowed = self.allowed(cut, at);
        let is_promised = self.steps.iter().any(|step| step.promised(at).is_some());
        for outcome in cut.outcomes() {
            let state = load(cut.image(&outcome), &self.names).await;
            if !state.as_ref().is_ok_and(|state| allowed.contains(state)) {
                let what = match state {
                    Ok(state) => {
                        let each = allowed.iter().map(|allowed| differences(&state, allowed));
                        each.collect::<Vec<_>>().join("; or ")
                    }
                    Err(what) => what,
                };
                found.bad.push(self.message(cut, at, &outcome, &what));
            }
            *if is_promised { &mut found.after } else { &mut found.before } += 1;
        }
    }

    async fn compare(&self, cut: &PowerCut, at: usize, found: &mut Found) {
        let detached = self.detached(at);
        let own = self.spdks_own_kinds(at, &detached).await;
        for outcome in cut.outcomes() {
            for kind in self.kinds(cut.image(&outcome), at, &detached).await {
                if own.contains(&kind) {
                    *found.spdks_own.entry(kind).or_default() += 1;
                } else {
                    found.bad.push(self.message(cut, at, &outcome, &kind));
                }
            }
            found.with_spdk += 1;
        }
    }

    fn message(&self, cut: &PowerCut, at: usize, outcome: &Outcome, what: &str) -> String {
        format!("{}, after {at} events, {}: {what}", self.scenario, cut.describe(outcome))
    }

    /// The lvols that were said to be detached by then, each with the parent that it had.
    fn detached(&self, at: usize) -> Vec<(BlobId, BlobId)> {
        let former = |step: &Step| {
            let id = self.names[step.promised(at)?];
            Some((id, step.before[&id].parent))
        };
        self.steps.iter().filter_map(former).collect()
    }

    /// In which ways what a power cut has left at this point is broken.
    async fn kinds(
        &self,
        image: Vec<u8>,
        at: usize,
        detached: &[(BlobId, BlobId)],
    ) -> BTreeSet<String> {
        let state = match load(image, &self.names).await {
            Ok(state) => state,
            Err(what) => return BTreeSet::from([what]),
        };
        let begun = || self.steps.iter().filter(|step| step.start <= at);
        let mut kinds = BTreeSet::new();
        for &(id, former) in detached {
            let Some(blob) = state.get(&id) else {
                kinds.insert("a detached lvol is gone".to_owned());
                continue;
            };
            if blob.parent == former {
                kinds.insert("a detached lvol has its parent again".to_owned());
            }
            let since: Vec<_> = begun()
                .flat_map(|step| [&step.before, &step.after])
                .filter_map(|state| state.get(&id))
                .filter(|seen| seen.parent != former)
                .collect();
            let was = |cluster: usize, byte: u8| {
                since.iter().any(|seen| seen.data.get(cluster).is_some_and(|&was| was == byte))
            };
            if blob.data.iter().enumerate().any(|(cluster, &byte)| !was(cluster, byte)) {
                kinds.insert("a detached lvol has data that it never had".to_owned());
            }
        }
        kinds
    }

    /// In which ways SPDK's operations since the last detach break a store by themselves: they are
    /// played on one where that is long done, or, before there was one, on the store as it was.
    async fn spdks_own_kinds(&self, at: usize, detached: &[(BlobId, BlobId)]) -> BTreeSet<String> {
        let last = self.steps.iter().rposition(|step| step.promised(at).is_some());
        let begun = self.steps.iter().skip(last.map_or(0, |last| last + 1));
        let begun = begun.filter(|step| step.start < at).map(|step| step.op);
        let play: Vec<Op> = begun.filter(|op| op.detaches().is_none()).collect();
        if play.is_empty() {
            return BTreeSet::new();
        }
        let image = self.image_after(last.map_or(0, |last| self.steps[last].end));
        let alone =
            Recording::on(&image, self.names.clone(), self.start, self.scenario, &play).await;
        let end = alone.journal.now();
        let cut = PowerCut::new(&alone.journal, end, alone.data_start);
        let mut kinds = BTreeSet::new();
        for outcome in cut.outcomes() {
            kinds.extend(alone.kinds(cut.image(&outcome), end, detached).await);
        }
        kinds
    }

    /// What there would be if nothing were lost.
    fn image_after(&self, at: usize) -> Image {
        let (mut image, writes) = self.journal.writes(at);
        for (_, offset, bytes, _) in writes {
            image[offset..offset + bytes.len()].copy_from_slice(&bytes);
        }
        Rc::new(RefCell::new(image))
    }
}

/// What there is after a power cut, or in which way it is broken: without the numbers, which are
/// different each time.
async fn load(image: Vec<u8>, names: &BTreeMap<Name, BlobId>) -> Result<State, String> {
    let image = Rc::new(RefCell::new(image));
    let world = World::load(&image, None, names).await;
    let world = world.map_err(|error| format!("the store can't be loaded ({})", error.code()))?;
    let state = world.whole_state().await;
    // After an error a blob may be open still.
    let _ = world.unload().await;
    state.map_err(|what| {
        let what = what.split(':').next().unwrap_or_default();
        what.chars().map(|char| if char.is_ascii_digit() { '#' } else { char }).collect()
    })
}
