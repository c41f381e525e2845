//! Removals during a detach: the lvol, an lvol that reads through it, the parent,
//! the lvstore, the base bdev, the target. Whichever comes first, the target survives, nothing hangs, and
//! nothing is left behind.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use common::iscsi;
use common::lvstore::{Lvstore, MIB};
use common::rpc::{Connection, EBUSY, EINVAL, EIO, ENODEV, RpcResult, request};
use common::target::Target;
use serde_json::{Value, json};

const DETACH: &str = "bdev_lvol_detach_parent";
const DELETE: &str = "bdev_lvol_delete";

const ROUNDS: usize = 100;

/// Only a target that hangs makes a test wait so long.
const PATIENCE: Duration = Duration::from_secs(60);

// The chain that everything is done to: p <- s <- vol, and more clones c0 c1 ... of s. Only p owns
// clusters.

/// A target, with an lvstore in its memory that comes and goes.
struct Lab {
    target: Target,
    connection: Connection,
    /// Another one: what is sent through it comes after the rest, or in the middle of it.
    second: Connection,
    rng: fastrand::Rng,
    /// How many stores there were. Each has bdevs of other names: SPDK's delay and error bdevs
    /// remember the names of those that vanished beneath them.
    stores: usize,
    /// What the detaches were told, and how often.
    told: BTreeMap<String, usize>,
}

impl Lab {
    fn start() -> Lab {
        let seed = fastrand::u64(..);
        eprintln!("the seed of the delays is {seed}");
        let target = Target::start();
        Lab {
            connection: target.connect(),
            second: target.connect(),
            target,
            rng: fastrand::Rng::with_seed(seed),
            stores: 0,
            told: BTreeMap::new(),
        }
    }

    #[track_caller]
    fn must(&mut self, method: &str, params: Value) -> Value {
        match self.connection.call(method, params.clone()) {
            Ok(result) => result,
            Err(error) => panic!("{method} {params} failed: {error}"),
        }
    }

    fn base(&self) -> String {
        format!("base{}", self.stores)
    }

    fn slow(&self) -> String {
        format!("slow{}", self.stores)
    }

    /// Makes an lvstore on a device that can be slow, and that can fail too if it has to.
    fn create_store(&mut self, can_fail: bool) {
        self.stores += 1;
        let (base, slow) = (self.base(), self.slow());
        self.must(
            "bdev_malloc_create",
            json!({"name": base, "num_blocks": 32 * MIB / 4096, "block_size": 4096}),
        );
        let mut beneath = base;
        if can_fail {
            self.must("bdev_error_create", json!({"base_name": beneath}));
            beneath = format!("EE_{beneath}");
        }
        self.create_slow(&beneath, &slow);
        self.must(
            "bdev_lvol_create_lvstore",
            json!({"bdev_name": slow, "lvs_name": "lvs", "cluster_sz": 65536}),
        );
    }

    fn create_slow(&mut self, beneath: &str, slow: &str) {
        self.must(
            "bdev_delay_create",
            json!({
                "base_bdev_name": beneath, "name": slow,
                "avg_read_latency": 0, "p99_read_latency": 0,
                "avg_write_latency": 0, "p99_write_latency": 0,
            }),
        );
    }

    /// Makes writes to the device take so long.
    fn slow_down(&mut self, latency_us: u64) {
        let slow = self.slow();
        let updates = ["avg_write", "p99_write"].map(|latency_type| {
            let update = json!({
                "delay_bdev_name": slow, "latency_type": latency_type, "latency_us": latency_us,
            });
            request("bdev_delay_update_latency", update)
        });
        self.connection.send_all(&updates);
        for update in &updates {
            self.connection.receive(update).unwrap();
        }
    }

    fn create_chain(&mut self, clones: usize) {
        self.must(
            "bdev_lvol_create",
            json!({
                "lvs_name": "lvs", "lvol_name": "vol", "size_in_mib": 1, "thin_provision": false,
            }),
        );
        for snapshot in ["p", "s"] {
            let snapshot = json!({"lvol_name": "lvs/vol", "snapshot_name": snapshot});
            self.must("bdev_lvol_snapshot", snapshot);
        }
        for clone in 0..clones {
            let clone = json!({"snapshot_name": "lvs/s", "clone_name": format!("c{clone}")});
            self.must("bdev_lvol_clone", clone);
        }
    }

    /// Sends two requests, the second one shortly after the first or in one piece with it. The
    /// answers are those of the first and of the second.
    fn race(&mut self, requests: [Value; 2]) -> [RpcResult; 2] {
        let latency = [0, 0, 300, 2000, 4000][self.rng.usize(..5)];
        self.slow_down(latency);
        let answers = if self.rng.bool() {
            // Each request between the two is a step of the target's that the detach has meanwhile.
            let mut piece = vec![requests[0].clone()];
            let between = self.rng.usize(..12);
            piece.extend((0..between).map(|_| request("spdk_get_version", Value::Null)));
            piece.push(requests[1].clone());
            self.connection.send_all(&piece);
            for request in &piece[1..=between] {
                self.connection.receive(request).unwrap();
            }
            requests.each_ref().map(|request| self.connection.receive(request))
        } else {
            self.connection.send(&requests[0]);
            thread::sleep(Duration::from_micros(self.rng.u64(..8000)));
            self.second.send(&requests[1]);
            [self.connection.receive(&requests[0]), self.second.receive(&requests[1])]
        };
        self.target.check_alive();
        answers
    }

    /// A race of a detach and of what makes something vanish, in either order. The answers are
    /// those of the detach and of the other.
    fn race_detach(&mut self, lvol: &str, other: Value, detach_first: bool) -> [RpcResult; 2] {
        let detach = request(DETACH, json!({"name": lvol}));
        let [detach, other] = if detach_first {
            self.race([detach, other])
        } else {
            let [other, detach] = self.race([other, detach]);
            [detach, other]
        };
        let told = match &detach {
            Ok(result) => {
                assert_eq!(*result, json!(true));
                "done".to_owned()
            }
            Err(error) => {
                let in_doubt = -i64::from(libc::ENOTRECOVERABLE);
                let known = [EBUSY, ENODEV, EINVAL, EIO, in_doubt, -i64::from(libc::ECANCELED)];
                assert!(known.contains(&error.code), "{error}");
                error.code.to_string()
            }
        };
        let first = if detach_first { "detach first" } else { "detach second" };
        *self.told.entry(format!("{first}: {told}")).or_default() += 1;
        [detach, other]
    }

    fn has(&mut self, lvol: &str) -> bool {
        self.connection.call("bdev_get_bdevs", json!({"name": lvol})).is_ok()
    }

    fn free_clusters(&mut self) -> u64 {
        let stores = self.must("bdev_lvol_get_lvstores", json!({"lvs_name": "lvs"}));
        stores[0]["free_clusters"].as_u64().unwrap()
    }

    /// Waits until something is so.
    fn wait_for(&mut self, what: &str, mut is_so: impl FnMut(&mut Lab) -> bool) {
        let started = Instant::now();
        while !is_so(self) {
            self.target.check_alive();
            if started.elapsed() > PATIENCE {
                let bdevs = self.must("bdev_get_bdevs", Value::Null);
                let stores = self.must("bdev_lvol_get_lvstores", Value::Null);
                panic!("{what}: it does not happen; the lvstores are {stores}, the bdevs {bdevs}");
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn delete_all(&mut self) {
        self.slow_down(0);
        // A snapshot can be deleted once it has no more than one clone.
        self.wait_for("every lvol can be deleted", |lab| {
            for lvol in ["c0", "c1", "vol", "s", "p"] {
                let _ = lab.connection.call(DELETE, json!({"name": format!("lvs/{lvol}")}));
            }
            lab.target.lvols().is_empty()
        });
    }

    /// Checks that no lvol is on the device that the target doesn't know: it finds those when it
    /// loads the lvstore.
    fn expect_empty_after_loading(&mut self) {
        let (base, slow) = (self.base(), self.slow());
        self.must("bdev_delay_delete", json!({"name": slow}));
        self.wait_for("the lvstore goes with its bdev", |lab| {
            lab.must("bdev_lvol_get_lvstores", Value::Null) == json!([])
        });
        self.create_slow(&base, &slow);
        self.must("bdev_wait_for_examine", Value::Null);
        self.wait_for("the lvstore comes back", |lab| {
            lab.must("bdev_lvol_get_lvstores", Value::Null) != json!([])
        });
        let lvols: Vec<_> = self.target.lvols().into_keys().collect();
        assert_eq!(lvols, [""; 0], "lvols that were deleted are on the device");
    }

    /// Stops the target, which must end well.
    fn finish(mut self) {
        eprintln!("the detaches were told: {:?}", self.told);
        self.target.stop();
    }
}

/// Races of a detach and the deletion of an lvol; `who` says which are which in each round.
fn races_with_delete(clones: usize, who: impl Fn(usize) -> (&'static str, &'static str)) {
    let mut lab = Lab::start();
    lab.create_store(false);
    let free = lab.free_clusters();
    for round in 0..ROUNDS {
        lab.create_chain(clones);
        let (detached, deleted) = who(round);
        let delete = request(DELETE, json!({"name": deleted}));
        let detach_first = lab.rng.bool();
        let [detach, delete] = lab.race_detach(detached, delete, detach_first);

        let context =
            format!("round {round}: detach {detached} ({detach:?}), delete {deleted} ({delete:?})");
        // What is answered is so.
        if delete.is_ok() {
            assert!(!lab.has(deleted), "{context}");
        }
        if detached != deleted {
            assert!(lab.has(detached), "{context}");
            if detach.is_ok() {
                assert_eq!(lab.target.parent(detached), None, "{context}");
            }
        }
        if detach.is_ok() && deleted == "lvs/p" && delete.is_ok() {
            // p's clusters are free, or s has inherited them.
            let owned = free - lab.free_clusters();
            assert!([0, 16].contains(&owned), "{context}");
            lab.target.expect_allocated("lvs/s", owned);
        }
        lab.delete_all();
        assert_eq!(lab.free_clusters(), free, "{context}");
    }
    lab.expect_empty_after_loading();
    lab.finish();
}

#[test]
fn the_lvol_is_deleted_meanwhile() {
    // With and without a clone.
    races_with_delete(0, |round| {
        let lvol = if round % 2 == 0 { "lvs/vol" } else { "lvs/s" };
        (lvol, lvol)
    });
}

#[test]
fn a_descendant_is_deleted_meanwhile() {
    races_with_delete(2, |round| ("lvs/s", ["lvs/c0", "lvs/c1", "lvs/vol"][round % 3]));
}

#[test]
fn the_parent_is_deleted_meanwhile() {
    races_with_delete(2, |_| ("lvs/s", "lvs/p"));
}

/// Races of a detach and what makes the whole store vanish.
fn races_with_removal(can_fail: bool, remove: impl Fn(&Lab, usize) -> Value) {
    let mut lab = Lab::start();
    for round in 0..ROUNDS {
        lab.create_store(can_fail);
        lab.create_chain(2);
        let remove = remove(&lab, round);
        let detached = if round % 4 == 0 { "lvs/vol" } else { "lvs/s" };
        if can_fail {
            let base = format!("EE_{}", lab.base());
            lab.must(
                "bdev_error_inject_error",
                json!({
                    "name": base, "io_type": "write", "error_type": "failure", "num": 1_000_000,
                }),
            );
        }
        let detach_first = round % 5 != 0;
        let [detach, removal] = lab.race_detach(detached, remove.clone(), detach_first);

        // An lvstore may be found in use.
        let context = format!("round {round}: {detach:?}, {remove} is told {removal:?}");
        if removal.is_err() {
            assert_eq!(remove["method"], "bdev_lvol_delete_lvstore", "{context}");
            lab.slow_down(0);
            lab.wait_for(&context, |lab| {
                lab.connection.call("bdev_lvol_delete_lvstore", remove["params"].clone()).is_ok()
            });
        }
        let (base, slow) = (lab.base(), lab.slow());
        let _ = lab.connection.call("bdev_delay_delete", json!({"name": slow}));
        let _ = lab.connection.call("bdev_malloc_delete", json!({"name": base}));
        lab.wait_for(&context, |lab| {
            lab.must("bdev_get_bdevs", Value::Null) == json!([])
                && lab.must("bdev_lvol_get_lvstores", Value::Null) == json!([])
        });
    }
    lab.finish();
}

#[test]
fn the_lvstore_is_deleted_meanwhile() {
    races_with_removal(false, |_, _| {
        request("bdev_lvol_delete_lvstore", json!({"lvs_name": "lvs"}))
    });
}

/// Removes the device of the lvstore, or the one beneath that.
fn hot_removal(lab: &Lab, round: usize) -> Value {
    if round.is_multiple_of(2) {
        request("bdev_delay_delete", json!({"name": lab.slow()}))
    } else {
        request("bdev_malloc_delete", json!({"name": lab.base()}))
    }
}

#[test]
fn the_base_bdev_is_removed_meanwhile() {
    races_with_removal(false, hot_removal);
}

#[test]
#[cfg_attr(not(spdk_unloads_after_eio), ignore = "this SPDK hangs then without a detach as well")]
fn the_base_bdev_fails_every_write_and_is_removed_meanwhile() {
    races_with_removal(true, hot_removal);
}

#[test]
fn the_target_is_told_to_stop_meanwhile() {
    const CLONES: usize = 10;
    let mut target = Target::start();
    target.create_lvstore("lvs", Lvstore { can_be_slow: true, ..Lvstore::default() });
    target.create_thin("lvs/vol", 1);
    target.write("lvs/vol", &[(0, 0x11)]);
    target.snapshot("lvs/vol", "lvs/s");
    let mut parent = "s".to_owned();
    for round in 0..10 {
        // The snapshot, which has clones, and its clones.
        let snapshot = format!("s{round}");
        target.snapshot("lvs/vol", &format!("lvs/{snapshot}"));
        let mut lvols = vec![(format!("lvs/{snapshot}"), parent)];
        for clone in 0..CLONES {
            let clone = format!("lvs/c{clone}");
            target.clone_of(&format!("lvs/{snapshot}"), &clone);
            lvols.push((clone, snapshot.clone()));
        }
        target.slow_down("lvs", 5000);
        let detaches: Vec<_> =
            lvols.iter().map(|(lvol, _)| request(DETACH, json!({"name": lvol}))).collect();
        let mut connection = target.connect();
        // Whether the snapshot or its clones come first decides what is refused.
        let mut order = detaches.clone();
        if round % 2 == 0 {
            order.reverse();
        }
        connection.send_all(&order);
        thread::sleep(Duration::from_micros(fastrand::u64(..40_000)));
        let mut done = Vec::new();
        for detach in &detaches {
            done.push(connection.is_answered(detach) && connection.receive(detach).is_ok());
        }

        target.restart();

        assert_eq!(target.lvols().len(), 3 + round + CLONES);
        for ((lvol, parent), done) in lvols.iter().zip(done) {
            let now = target.parent(lvol);
            if done {
                assert_eq!(now, None, "{lvol} was detached before the target stopped");
            }
            if let Some(now) = now {
                assert_eq!(now, *parent, "{lvol}");
                target.detach(lvol);
            }
        }
        for (clone, _) in &lvols[1..] {
            target.delete(clone);
        }
        parent = snapshot;
    }
    target.expect_data("lvs/s", &[0x11]);
    target.expect_data("lvs/vol", &[0]);
}

/// While the family waits for a read of one clone, somebody opens another, whose I/O is held back:
/// SPDK lets the reads of such a channel through.
#[test]
fn a_reader_that_comes_meanwhile_is_done_with_the_parent_before_the_reply() {
    const ROUNDS: usize = 2;
    let mut target = Target::start();
    target.create_lvstore("lvs", Lvstore { can_be_slow: true, ..Lvstore::default() });
    let mut slipped = 0;
    for _ in 0..ROUNDS {
        target.create_thin("lvs/vol", 1);
        target.write("lvs/vol", &[(0, 0x11)]);
        target.snapshot("lvs/vol", "lvs/parent");
        target.snapshot("lvs/vol", "lvs/snap");
        target.clone_of("lvs/snap", "lvs/other");
        let [vol, other] = ["lvs/vol", "lvs/other"].map(|lvol| target.lvol(lvol).uuid);
        let exports = ["lvs/vol", "lvs/other"].map(|lvol| target.export(lvol));
        target.slow_down_reads("lvs", 4_000_000);
        thread::scope(|scope| {
            let read = |index: usize| {
                exports[index].qemu_io([iscsi::read(0, 4096, 0x11), iscsi::stay()]).is_ok()
            };
            let before = scope.spawn(move || read(0));
            target.wait_for_io(&vol);
            let detach = target.start_call(DETACH, json!({"name": "lvs/snap"}));
            thread::sleep(Duration::from_millis(500));
            let meanwhile = scope.spawn(move || read(1));
            assert_eq!(detach.wait(), Ok(json!(true)));
            let reads = target.iostat(&other).reads;
            assert!(before.join().unwrap(), "it read what the parent has");
            if meanwhile.join().unwrap() {
                let done = settled(|| target.iostat(&other).reads);
                assert_eq!(reads, done, "a read of the parent's data was not done at the reply");
                slipped += 1;
            }
        });
        target.slow_down_reads("lvs", 0);
        drop(exports);
        target.delete("lvs/parent");
        for lvol in ["lvs/vol", "lvs/other", "lvs/snap"] {
            target.expect_data(lvol, &[0]);
            target.delete(lvol);
        }
    }
    eprintln!("{slipped} of {ROUNDS} reads began while a detach was under way");
    target.stop();
}

/// A counter after a connection was closed ([`iscsi::stay`]).
fn settled(count: impl Fn() -> u64) -> u64 {
    thread::sleep(Duration::from_millis(200));
    count()
}

/// A read through the parent that was in flight when the detach came: of the lvol, or of its clone.
#[test]
fn a_read_in_flight_is_done_before_the_reply() {
    let mut target = Target::start();
    target.create_lvstore("lvs", Lvstore { can_be_slow: true, ..Lvstore::default() });
    for detached in ["lvs/vol", "lvs/snap"] {
        target.create_thin("lvs/vol", 1);
        target.write("lvs/vol", &[(0, 0x11)]);
        target.snapshot("lvs/vol", "lvs/parent");
        target.snapshot("lvs/vol", "lvs/snap");
        if detached == "lvs/vol" {
            target.delete("lvs/snap");
        }
        let name = target.lvol("lvs/vol").uuid;
        let reads = || target.iostat(&name).reads;
        let export = target.export("lvs/vol");
        let before = reads();
        target.slow_down_reads("lvs", 3_000_000);
        thread::scope(|scope| {
            let commands = [iscsi::read(0, 4096, 0x11), iscsi::stay()];
            let reader = scope.spawn(|| export.qemu_io(commands));
            target.wait_for_io(&name);
            assert_eq!(reads(), before, "the read is done already");
            target.must(DETACH, json!({"name": detached}));
            let done = reads();
            reader.join().unwrap().expect("it read what the parent has");
            // SPDK's counters may miss a read whose channel has just been closed, but have none before.
            assert!(done > before && settled(reads) <= done, "the read was not done at the reply");
        });
        target.slow_down_reads("lvs", 0);
        drop(export);
        target.expect_data("lvs/vol", &[0]);
        for lvol in ["lvs/vol", "lvs/snap", "lvs/parent"] {
            if target.bdev(lvol).is_some() {
                target.delete(lvol);
            }
        }
    }
    target.stop();
}
