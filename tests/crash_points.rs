//! A crash at every point: afterwards the blobstore loads, the lvol is either fully attached or
//! fully detached, and it is detached if success had been reported.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod store;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use spdk_lvol_detach::internals::blob::BlobId;
use spdk_lvol_detach::internals::memory_dev::Image;
use spdk_sys as sys;
use store::journal::{Crash, Torn};
use store::recording::{Recording, Start, Step};
use store::scenarios::{CHAIN, Op, Scenario, World, on_each_scenario, summary};
use store::{Description, Store, run};

#[test]
fn a_crash_at_any_point_leaves_all_or_nothing() {
    let counts = on_each_scenario(crash_everywhere);
    println!(
        "crash points: {}; and with a live page torn: {}",
        summary(counts.iter().map(|count| count.all_or_nothing)),
        counts.iter().map(|count| count.live_page_torn).sum::<usize>(),
    );
}

/// A page that is overwritten in place can be torn, by any metadata write of SPDK's: it has one
/// CRC for its eight blocks. The blobstore then loads as if the page were not there, and all that a
/// detach adds to the danger is that it is one more such write.
#[test]
fn a_torn_page_is_lost_in_a_detach_as_in_any_metadata_write() {
    const SETUP: &[&[Op]] = &[CHAIN, &[Op::Delete("twin")]];
    const PAIRS: &[[&[Op]; 2]] = &[
        [&[Op::Detach("vol")], &[Op::SetXattr("vol", "name", 20)]],
        [&[Op::Detach("snap2")], &[Op::Delete("snap2")]],
    ];
    run(async {
        for pair in PAIRS {
            let [detach, spdk] = pair.map(|play| Scenario { name: "torn", setup: SETUP, play });
            let (detach, spdk) = (outcomes_of_torn(&detach).await, outcomes_of_torn(&spdk).await);
            // The root page.
            assert_eq!(detach.len(), 1);
            for (offset, outcomes) in detach {
                assert_eq!(outcomes.len(), 1, "all torn variants have the same outcome");
                assert_eq!(outcomes, spdk[&offset], "the page at {offset}");
            }
        }
    });
}

/// For each place on the device what becomes of the store if the first write to it is torn, where
/// that overwrites something.
async fn outcomes_of_torn(scenario: &Scenario) -> BTreeMap<usize, BTreeSet<String>> {
    // SPDK's own operations would write the superblock otherwise, which a detach leaves as it is.
    let crashes = record(scenario, Start::InUse).await;
    let mut outcomes = BTreeMap::<_, (usize, BTreeSet<_>)>::new();
    for crash in &crashes.all {
        let Some(torn) = crash.torn.as_ref().filter(|torn| torn.overwrites) else { continue };
        let (first, outcomes) = outcomes.entry(torn.offset).or_insert((crash.at, BTreeSet::new()));
        if *first == crash.at {
            let image = crashes.recording.journal.image(crash);
            outcomes.insert(format!("{:?}", outcome(image, &crashes.ids(crash)).await));
        }
    }
    outcomes.into_iter().map(|(offset, (_, outcomes))| (offset, outcomes)).collect()
}

#[derive(Default)]
struct Count {
    all_or_nothing: usize,
    live_page_torn: usize,
}

async fn crash_everywhere(scenario: &'static Scenario) -> Count {
    let crashes = record(scenario, Start::Clean).await;
    let mut count = Count::default();
    for crash in &crashes.all {
        match &crash.torn {
            Some(torn) if torn.overwrites => {
                crashes.check_as_if_page_was_gone(crash, torn).await;
                count.live_page_torn += 1;
            }
            _ => {
                crashes.check_all_or_nothing(crash).await;
                count.all_or_nothing += 1;
            }
        }
    }
    count
}

/// A recording, and what crashes leave of it.
struct Crashes {
    recording: Recording,
    all: Vec<Crash>,
}

async fn record(scenario: &Scenario, start: Start) -> Crashes {
    let recording = Recording::of(scenario, start).await;
    let steps = recording.steps.iter();
    let promised = steps.flat_map(|step| [Some(step.end), step.detached]).flatten().collect();
    let all = recording.journal.crashes(&promised, recording.data_start);
    Crashes { recording, all }
}

impl Crashes {
    fn step(&self, crash: &Crash) -> &Step {
        let started = |step: &&Step| step.start <= crash.at;
        self.recording.steps.iter().rev().find(started).expect("the first one starts at 0")
    }

    /// The blobs that there may be after a crash.
    fn ids(&self, crash: &Crash) -> BTreeSet<BlobId> {
        let step = self.step(crash);
        step.before.keys().chain(step.after.keys()).copied().collect()
    }

    async fn check_all_or_nothing(&self, crash: &Crash) {
        let step = self.step(crash);
        let context = format!("{}, {:?}, {crash:?}", self.recording.scenario, step.op);
        let image = Rc::new(RefCell::new(self.recording.journal.image(crash)));

        let mut world = self.load(&image, &context).await;
        if let Op::Snapshot(..) = step.op {
            // For a moment the snapshot and its origin name the same clusters, and SPDK's recovery
            // counts those as used twice (`bs_load_replay_md_parse_page`). The next load counts
            // the clusters themselves.
            world.unload().await.unwrap();
            world = self.load(&image, &context).await;
        }
        let state = world.whole_state().await.unwrap_or_else(|what| panic!("{context}: {what}"));
        let possible = step.possible(crash.at, &self.recording.names);
        assert!(possible.contains(&state), "{context}: {state:#?} is none of {possible:#?}");
        world.unload().await.unwrap();

        // The recovery has left a store that works.
        let mut world = self.load(&image, &context).await;
        assert_eq!(world.whole_state().await.as_ref(), Ok(&state), "{context}");
        if let Some(name) = step.op.detaches()
            && state[&self.recording.names[name]].parent != sys::SPDK_BLOBID_INVALID
        {
            world.play(Op::Detach(name)).await.unwrap_or_else(|error| panic!("{context}: {error}"));
            assert!(world.whole_state().await.is_ok(), "{context}");
        }
        world.unload().await.unwrap();
    }

    async fn load(&self, image: &Image, context: &str) -> World {
        let world = World::load(image, None, &self.recording.names).await;
        world.unwrap_or_else(|error| panic!("{context}: {error}"))
    }

    async fn check_as_if_page_was_gone(&self, crash: &Crash, torn: &Torn) {
        let image = self.recording.journal.image(crash);
        let mut without = image.clone();
        without[torn.offset..torn.offset + torn.len].fill(0);
        let ids = self.ids(crash);
        let outcomes = [outcome(image, &ids).await, outcome(without, &ids).await];
        assert_eq!(outcomes[0], outcomes[1], "{}, {crash:?}", self.recording.scenario);
    }
}

/// What becomes of a store, and of each of its blobs. Numbers are errnos.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    NotLoaded(i32),
    Loaded { free_clusters: u64, blobs: BTreeMap<BlobId, Result<Description, i32>> },
}

async fn outcome(image: Vec<u8>, ids: &BTreeSet<BlobId>) -> Outcome {
    let image = Rc::new(RefCell::new(image));
    let store = match Store::load(&image, None).await {
        Ok(store) => store,
        Err(error) => return Outcome::NotLoaded(error.code()),
    };
    let mut blobs = BTreeMap::new();
    for &id in ids {
        blobs.insert(id, store.describe(id).await.map_err(|error| error.code()));
    }
    let free_clusters = store.free_clusters();
    store.unload().await.unwrap();
    Outcome::Loaded { free_clusters, blobs }
}
