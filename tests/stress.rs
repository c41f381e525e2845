//! Detaches under load: every core of the target reads, writes, unmaps and checks all the time,
//! while chains are built, parted and deleted underneath.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::ops::AddAssign;
use std::thread;
use std::time::{Duration, Instant};

use common::lvstore::{BLOCK, MIB};
use common::preload::load_generator;
use common::rpc::{Connection, EBUSY, request};
use common::target::{Options, Program, Target};
use serde_json::{Value, json};

const DETACHES: u64 = 1000;
const FAMILIES: u64 = 2;
const LVOL_MIB: u64 = 8;
const CLUSTER: u64 = MIB / 4;
const CORES: usize = if cfg!(spdk_clears_unused_copies) { 2 } else { 1 };
/// What a clone has unmapped reads as its parent again.
const UNMAP_SPOILS_CLONES: bool =
    cfg!(all(spdk_unmap_frees_clusters, not(spdk_unmap_spares_clones)));

/// What the loads have done and found.
#[derive(Debug, Default)]
struct Totals {
    detaches: u64,
    busy: u64,
    ios: u64,
    bytes: u64,
    errors: u64,
    torn: u64,
    stale: u64,
    /// Blocks that were about to change, read while a detach was under way.
    seen_before: u64,
    seen_after: u64,
    complaints: Vec<String>,
}

impl Totals {
    fn add_load(&mut self, counters: &Value) {
        let number = |name: &str| counters[name].as_u64().expect("the load counts");
        self.ios += ["reads", "writes", "write_zeroes", "unmaps"].map(number).iter().sum::<u64>();
        self.bytes += number("bytes");
        self.errors += number("errors");
        self.torn += number("torn");
        self.stale += number("stale");
        self.seen_before += number("seen_before");
        self.seen_after += number("seen_after");
        let complaints = counters["complaints"].as_array().into_iter().flatten();
        self.complaints.extend(complaints.map(ToString::to_string));
    }
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Totals) {
        self.detaches += other.detaches;
        self.busy += other.busy;
        self.ios += other.ios;
        self.bytes += other.bytes;
        self.errors += other.errors;
        self.torn += other.torn;
        self.stale += other.stale;
        self.seen_before += other.seen_before;
        self.seen_after += other.seen_after;
        self.complaints.extend(other.complaints);
    }
}

fn target_with_load() -> Target {
    let program = Program::With(vec![load_generator()]);
    let target = Target::start_with(Options { program, ..Options::on_cores(CORES) });
    // In memory, as that is fastest.
    target.create_malloc("disk", 256);
    target.must(
        "bdev_lvol_create_lvstore",
        json!({
            "bdev_name": "disk", "lvs_name": "lvs",
            "cluster_sz": CLUSTER, "num_md_pages_per_cluster_ratio": 100,
        }),
    );
    target
}

/// A connection whose calls must succeed.
struct Control(Connection);

impl Control {
    #[track_caller]
    fn must(&mut self, method: &str, params: Value) -> Value {
        match self.0.call(method, params.clone()) {
            Ok(result) => result,
            Err(error) => panic!("{method} {params} failed: {error}"),
        }
    }

    fn open_load(&mut self, lvol: &str, seed: u64, writes: bool, image: Option<&str>) {
        let (writes, write_zeroes, unmaps) = if writes { (6, 2, 2) } else { (0, 0, 0) };
        let unmaps = if UNMAP_SPOILS_CLONES { 0 } else { unmaps };
        self.must(
            "load_open",
            json!({
                "name": lvol, "tag": seed % 4000 + 1, "seed": seed, "queue_depth": 4,
                "cluster_blocks": CLUSTER / BLOCK, "max_blocks": MIB / BLOCK,
                "reads": 10, "writes": writes, "write_zeroes": write_zeroes, "unmaps": unmaps,
                "sparseness": 3, "image": image,
            }),
        );
    }

    fn close_load(&mut self, lvol: &str) -> Value {
        self.must("load_close", json!({"name": lvol}))
    }

    /// Takes a snapshot under the load. Returns its level.
    fn snapshot(&mut self, lvol: &str, snapshot: &str) -> u64 {
        let (_, name) = snapshot.split_once('/').unwrap();
        // So that it is known what belongs to the snapshot. Reads go on.
        self.must("load_hold", json!({"name": lvol}));
        self.must("bdev_lvol_snapshot", json!({"lvol_name": lvol, "snapshot_name": name}));
        let level = self.must("load_snapshot", json!({"name": lvol, "image": snapshot}));
        level.as_u64().expect("a level is a number")
    }

    /// Detaches a lvol while all of `loads`, which are on it and on those that read through it, go
    /// on. Returns how often it was answered that the lvol is busy.
    fn detach(&mut self, lvol: &str, level: Option<u64>, loads: &[&str]) -> u64 {
        let params = |when: &str| json!({"names": loads, "level": level, "when": when});
        for busy in 0.. {
            let before = request("load_detach", params("before"));
            let detach = request("bdev_lvol_detach_parent", json!({"name": lvol}));
            // In one piece, so that the load expects it just before it starts.
            self.0.send_all(&[before.clone(), detach.clone()]);
            self.0.receive(&before).expect("the load takes what it is told");
            match self.0.receive(&detach) {
                Ok(_) => {
                    self.must("load_detach", params("after"));
                    return busy;
                }
                Err(error) if error.code == EBUSY && busy < 1000 => {
                    self.must("load_detach", params("failed"));
                }
                Err(error) => panic!("detaching {lvol} under load: {error}"),
            }
        }
        unreachable!()
    }
}

/// Builds a chain beneath a lvol, parts it and deletes it, again and again: old <- new <- head, and
/// a clone of new. All of them but old are under load.
fn family(mut control: Control, family: u64, detaches: u64) -> Totals {
    let [head, old, new, clone] =
        ["head", "old", "new", "clone"].map(|name| format!("lvs/{name}{family}"));
    let mut totals = Totals::default();
    control.open_load(&head, family, true, None);
    for cycle in 1.. {
        control.snapshot(&head, &old);
        let level = control.snapshot(&head, &new);
        control.must(
            "bdev_lvol_clone",
            json!({"snapshot_name": new, "clone_name": clone.split_once('/').unwrap().1}),
        );
        let seed = cycle * FAMILIES + family;
        control.open_load(&clone, seed + 1, true, Some(&new));
        control.open_load(&new, seed, false, Some(&new));

        // A snapshot, read by its clones; then those.
        totals.busy += control.detach(&new, Some(level), &[&new, &clone, &head]);
        control.must("bdev_lvol_delete", json!({"name": old}));
        totals.busy += control.detach(&clone, None, &[&clone]);
        totals.busy += control.detach(&head, None, &[&head]);
        totals.detaches += 3;

        for lvol in [&clone, &new] {
            totals.add_load(&control.close_load(lvol));
            control.must("bdev_lvol_delete", json!({"name": lvol}));
        }
        if totals.detaches >= detaches {
            break;
        }
    }
    totals.add_load(&control.close_load(&head));
    totals
}

#[test]
fn a_thousand_detaches_under_load() {
    let mut target = target_with_load();
    let neighbour = "lvs/neighbour";
    target.create_thin(neighbour, LVOL_MIB);
    for number in 0..FAMILIES {
        target.create_thin(&format!("lvs/head{number}"), LVOL_MIB);
    }
    let mut control = Control(target.connect());
    control.open_load(neighbour, 77, true, None);

    let started = Instant::now();
    let mut totals = Totals::default();
    thread::scope(|scope| {
        let families: Vec<_> = (0..FAMILIES)
            .map(|number| {
                let control = Control(target.connect());
                let detaches = DETACHES.div_ceil(FAMILIES);
                scope.spawn(move || family(control, number, detaches))
            })
            .collect();
        for family in families {
            totals += family.join().expect("the target does as it is told");
        }
    });
    totals.add_load(&control.close_load(neighbour));

    println!(
        "stress: {} detaches, {} I/Os, {:.1} GiB, {} torn, {} stale",
        totals.detaches,
        totals.ios,
        totals.bytes as f64 / (1u64 << 30) as f64,
        totals.torn,
        totals.stale,
    );
    println!(
        "stress: {:.0} s; blocks read during a detach that changed them: {} as before, {} as after; \
         {} times busy",
        started.elapsed().as_secs_f64(),
        totals.seen_before,
        totals.seen_after,
        totals.busy,
    );
    assert_eq!((totals.torn, totals.stale, totals.errors), (0, 0, 0), "{:#?}", totals.complaints);
    assert!(totals.detaches >= DETACHES);
    target.stop();
}

#[test]
fn the_load_finds_what_a_detach_would_leave_behind() {
    let target = target_with_load();
    target.create_thin("lvs/head", LVOL_MIB);
    let mut control = Control(target.connect());
    control.open_load("lvs/head", 1, true, None);
    let count = |name: &str| {
        let counters = target.must("load_status", json!({"name": "lvs/head"}));
        counters[name].as_u64().expect("the load counts")
    };
    while count("writes") < 1000 {
        thread::sleep(Duration::from_millis(10));
    }
    control.snapshot("lvs/head", "lvs/old");
    assert_eq!(count("stale"), 0);

    // It is told of a detach that there was not.
    for when in ["before", "after"] {
        control.must("load_detach", json!({"names": ["lvs/head"], "when": when}));
    }

    while count("stale") == 0 {
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(count("torn"), 0);
    control.close_load("lvs/head");
}
