//! Detaches combined with everything else that can be done to a chain: each operation in progress when a
//! detach arrives, and the other way round; many siblings at once; wide and deep families.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::thread;
use std::time::{Duration, Instant};

use common::iscsi::{self, Work};
use common::lvstore::{Lvstore, MIB};
use common::rpc::{Connection, EBUSY, EINVAL, ENODEV, RpcError, RpcResult, request};
use common::target::Target;
use serde_json::{Value, json};

const DETACH: &str = "bdev_lvol_detach_parent";

/// Only a target that never gets done with something makes a test wait so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// The lvols of one chain, base <- snap <- deep <- vol, four clusters each. Each owns the clusters
/// that are full of its byte:
///
///     base 0x11 has 0 1     snap 0x22 has 1     deep 0x33 has 2     vol 0x44 has 3
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Base,
    Snap,
    Deep,
    Vol,
}
use Place::{Base, Deep, Snap, Vol};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Inflate,
    Decouple,
    ShallowCopy,
    Snapshot,
    MakeClone,
    Resize,
    Delete,
    SetParentToBase,
    Rename,
    SetReadOnly,
}
use Operation::{
    Decouple, Delete, Inflate, MakeClone, Rename, Resize, SetParentToBase, SetReadOnly,
    ShallowCopy, Snapshot,
};

/// What a detach is told that comes while the operation is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// What is true when the operation has ended, for which it waits. The other way round the
    /// operation is told that the lvol is busy.
    Waits,
    /// It works: the operation doesn't conflict.
    Works,
    /// The lvol, or its parent, is about to go: whatever it is told, it is true.
    WhatIsTrue,
}
use Told::{Waits, WhatIsTrue, Works};

#[derive(Debug)]
struct Row {
    operation: Operation,
    /// What the operation is done to.
    subject: Place,
    /// What is detached. It is the subject, or what the subject reads through or is the parent of.
    detached: Place,
    told: Told,
    /// What vol reads in the end if the operation came first, and if the detach did. An operation
    /// that is told that something is busy comes again afterwards. Empty: vol is no more.
    operation_first: &'static [u8],
    detach_first: &'static [u8],
}

const fn row(
    operation: Operation,
    subject: Place,
    detached: Place,
    told: Told,
    operation_first: &'static [u8],
    detach_first: &'static [u8],
) -> Row {
    Row { operation, subject, detached, told, operation_first, detach_first }
}

const WHOLE: &[u8] = &[0x11, 0x22, 0x33, 0x44];
const ON_SNAP: &[u8] = &[0, 0x22, 0x33, 0x44];
const ON_DEEP: &[u8] = &[0, 0, 0x33, 0x44];
const ALONE: &[u8] = &[0, 0, 0, 0x44];
const ON_BASE: &[u8] = &[0x11, 0x11, 0, 0x44];
const NOTHING: &[u8] = &[0; 4];
const GONE: &[u8] = &[];

const MATRIX: &[Row] = &[
    // What vol has copied from its ancestors it keeps.
    row(Inflate, Vol, Vol, Waits, WHOLE, ALONE),
    row(Inflate, Vol, Deep, Waits, WHOLE, ON_DEEP),
    row(Inflate, Vol, Snap, Waits, WHOLE, ON_SNAP),
    // The grandparent is vol's parent then.
    row(Decouple, Vol, Vol, Waits, ON_DEEP, ALONE),
    row(Decouple, Vol, Deep, Waits, WHOLE, ON_DEEP),
    row(Decouple, Vol, Snap, Waits, ON_SNAP, ON_SNAP),
    row(ShallowCopy, Snap, Snap, Waits, ON_SNAP, ON_SNAP),
    row(ShallowCopy, Deep, Snap, Waits, ON_SNAP, ON_SNAP),
    // If the snapshot comes first, vol's data is the snapshot's.
    row(Snapshot, Vol, Vol, Waits, NOTHING, ALONE),
    row(Snapshot, Vol, Deep, Waits, ON_DEEP, ON_DEEP),
    row(Snapshot, Vol, Snap, Waits, ON_SNAP, ON_SNAP),
    row(MakeClone, Snap, Snap, Waits, ON_SNAP, ON_SNAP),
    row(MakeClone, Deep, Snap, Waits, ON_SNAP, ON_SNAP),
    row(Resize, Vol, Vol, Waits, &[0, 0, 0, 0x44, 0], &[0, 0, 0, 0x44, 0]),
    row(Resize, Vol, Deep, Waits, &[0, 0, 0x33, 0x44, 0], &[0, 0, 0x33, 0x44, 0]),
    row(Delete, Vol, Vol, WhatIsTrue, GONE, GONE),
    row(Delete, Vol, Deep, WhatIsTrue, GONE, GONE),
    // A snapshot that is deleted leaves its clusters to its only clone.
    row(Delete, Deep, Snap, WhatIsTrue, ON_SNAP, ON_SNAP),
    row(Delete, Deep, Deep, WhatIsTrue, WHOLE, ON_DEEP),
    row(Delete, Base, Snap, WhatIsTrue, WHOLE, ON_SNAP),
    row(SetParentToBase, Vol, Vol, Waits, ALONE, ON_BASE),
    row(SetParentToBase, Vol, Deep, Waits, ON_BASE, ON_BASE),
    // A snapshot can't be renamed: SPDK changes its alias, and then finds its metadata read-only.
    row(Rename, Vol, Snap, Works, ON_SNAP, ON_SNAP),
    row(Rename, Vol, Vol, Works, ALONE, ALONE),
    row(Rename, Vol, Deep, Works, ON_DEEP, ON_DEEP),
    row(SetReadOnly, Vol, Vol, Works, ALONE, ALONE),
    row(SetReadOnly, Vol, Deep, Works, ON_DEEP, ON_DEEP),
];

/// A chain of its own for one row.
#[derive(Debug)]
struct Chain<'a> {
    row: &'a Row,
    number: usize,
}

impl Chain<'_> {
    /// The name of one of its lvols, without the lvstore's.
    fn name(&self, place: Place) -> String {
        let name = match place {
            Base => "base",
            Snap => "snap",
            Deep => "deep",
            Vol => "vol",
        };
        format!("{name}-{}", self.number)
    }

    fn alias(&self, place: Place) -> String {
        format!("lvs/{}", self.name(place))
    }

    /// Its alias when the row is done.
    fn new_alias(&self, place: Place) -> String {
        let renamed = self.row.operation == Rename && self.row.subject == place;
        if renamed { format!("lvs/new-{}", self.number) } else { self.alias(place) }
    }

    fn operation(&self) -> (&'static str, Value) {
        let subject = self.alias(self.row.subject);
        let new = format!("new-{}", self.number);
        match self.row.operation {
            Inflate => ("bdev_lvol_inflate", json!({"name": subject})),
            Decouple => ("bdev_lvol_decouple_parent", json!({"name": subject})),
            ShallowCopy => (
                "bdev_lvol_start_shallow_copy",
                json!({"src_lvol_name": subject, "dst_bdev_name": "copy"}),
            ),
            Snapshot => ("bdev_lvol_snapshot", json!({"lvol_name": subject, "snapshot_name": new})),
            MakeClone => ("bdev_lvol_clone", json!({"snapshot_name": subject, "clone_name": new})),
            Resize => ("bdev_lvol_resize", json!({"name": subject, "size_in_mib": 5})),
            Delete => ("bdev_lvol_delete", json!({"name": subject})),
            SetParentToBase => (
                "bdev_lvol_set_parent",
                json!({"lvol_name": subject, "parent_name": self.alias(Base)}),
            ),
            Rename => ("bdev_lvol_rename", json!({"old_name": subject, "new_name": new})),
            SetReadOnly => ("bdev_lvol_set_read_only", json!({"name": subject})),
        }
    }

    fn request(&self) -> Value {
        let (method, params) = self.operation();
        request(method, params)
    }

    /// The outcome of an operation that was answered: that of a shallow copy is known when it ends.
    fn outcome(&self, target: &Target, answer: RpcResult) -> RpcResult {
        if self.row.operation != ShallowCopy {
            return answer;
        }
        let copy = answer?;
        loop {
            let state = target.must("bdev_lvol_check_shallow_copy", copy.clone());
            match state["state"].as_str() {
                Some("complete") => return Ok(json!(true)),
                Some("in progress") => thread::sleep(Duration::from_millis(5)),
                _ => return Err(RpcError { code: 0, message: state["error"].to_string() }),
            }
        }
    }
}

fn is_busy(error: &RpcError) -> bool {
    // SPDK's own methods have the errno only in the text of some errors.
    error.code == EBUSY || error.message.contains("Device or resource busy")
}

/// Does something until it isn't told any more that something is busy.
fn until_not_busy(what: &Value, mut call: impl FnMut() -> RpcResult) -> RpcResult {
    let started = Instant::now();
    loop {
        match call() {
            Err(error) if is_busy(&error) => {
                assert!(started.elapsed() < PATIENCE, "{what} is refused for ever: {error}");
                thread::sleep(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}

fn chains(target: &Target) -> Vec<Chain<'static>> {
    let chains: Vec<_> = MATRIX
        .iter()
        .enumerate()
        .map(|(number, row)| Chain { row, number })
        .filter(|chain| target.has_method(chain.operation().0))
        // It becomes longer than its parent.
        .filter(|chain| chain.row.operation != Resize || cfg!(spdk_reads_beyond_parent))
        .collect();
    let write = |clusters: &[u64], byte: u8| {
        let work = |chain: &Chain<'_>| Work {
            lvol: chain.alias(Vol),
            read_only: false,
            commands: clusters.iter().map(|n| iscsi::write(n * MIB, MIB, byte)).collect(),
        };
        target.qemu_io(&chains.iter().map(work).collect::<Vec<_>>()).unwrap();
    };
    for chain in &chains {
        target.create_thin(&chain.alias(Vol), 4);
    }
    for (clusters, byte, snapshot) in
        [(&[0, 1][..], 0x11, Base), (&[1], 0x22, Snap), (&[2], 0x33, Deep)]
    {
        write(clusters, byte);
        for chain in &chains {
            target.snapshot(&chain.alias(Vol), &chain.alias(snapshot));
        }
    }
    write(&[3], 0x44);
    chains
}

/// Runs the matrix. `run` does one row on its chain, up to the outcomes of the operation and of the
/// detach, which may be tried again then.
fn matrix(
    run: impl Fn(&Target, &mut Connection, &Chain<'_>),
    expected: impl Fn(&Row) -> &'static [u8],
    has_parent_again: impl Fn(&Row) -> bool,
) {
    let mut target = Target::start();
    let size_mib = 512;
    target.create_lvstore("lvs", Lvstore { can_be_slow: true, size_mib, ..Lvstore::default() });
    let chains = chains(&target);
    target.create_malloc("copy", 4);
    let mut connection = target.connect();
    // So slow that none is done before the next request of the same piece has been looked at.
    target.slow_down("lvs", 20_000);
    for chain in &chains {
        run(&target, &mut connection, chain);
        target.check_alive();
    }
    target.slow_down("lvs", 0);

    let check = |target: &Target, reloaded: bool| {
        let mut work = Vec::new();
        for chain in &chains {
            let (row, data) = (chain.row, expected(chain.row));
            let detached = target.bdev(&chain.new_alias(row.detached));
            assert_eq!(
                detached.is_none(),
                row.operation == Delete && row.subject == row.detached,
                "{row:?}"
            );
            if detached.is_some() && !has_parent_again(row) {
                assert_eq!(target.parent(&chain.new_alias(row.detached)), None, "{row:?}");
            }
            let vol = chain.new_alias(Vol);
            assert_eq!(target.bdev(&vol).is_none(), data.is_empty(), "{row:?}");
            if data.is_empty() {
                continue;
            }
            let lvol = target.lvol(&vol);
            assert_eq!(lvol.size, data.len() as u64 * MIB, "{row:?}");
            if reloaded {
                // Until then SPDK doesn't show it, also if nothing is detached.
                assert_eq!(lvol.read_only, row.operation == SetReadOnly, "{row:?}");
            }
            let commands = (0..).zip(data).map(|(n, byte)| iscsi::read(n * MIB, MIB, *byte));
            work.push((
                row,
                Work { lvol: vol, read_only: lvol.read_only, commands: commands.collect() },
            ));
        }
        let (rows, work): (Vec<_>, Vec<_>) = work.into_iter().unzip();
        if target.qemu_io(&work).is_err() {
            // Which one was it?
            for (row, work) in rows.iter().zip(work) {
                let read = target.qemu_io(&[work]);
                assert!(read.is_ok(), "vol does not read as it should: {read:?}, {row:?}");
            }
        }
    };
    check(&target, false);
    // All of it is on the device.
    target.crash();
    check(&target, true);
}

#[test]
fn each_operation_is_under_way_when_a_detach_comes() {
    let run = |target: &Target, connection: &mut Connection, chain: &Chain<'_>| {
        let row = chain.row;
        // A rename changes the alias before it does anything else.
        let operation = chain.request();
        let detach = detach_request(&chain.new_alias(row.detached));
        connection.send_all(&[operation.clone(), detach.clone()]);
        let told = connection.receive(&detach);
        // The operation may have parted them itself, or deleted the one or the other.
        let may_be: &[i64] = match row.operation {
            Inflate if row.subject == row.detached => &[EINVAL],
            Delete => &[ENODEV, EINVAL],
            _ => &[],
        };
        if let Err(error) = &told {
            assert!(may_be.contains(&error.code), "{row:?}: {error}");
            assert!(error.message.contains(&chain.alias(row.detached)), "{row:?}: {error}");
        }
        let done = connection.receive(&operation);
        let mut done = chain.outcome(target, done);
        // A delete may find its clone's or its parent's lvol in use by the detach.
        if row.told == WhatIsTrue && done.is_err() {
            done = until_not_busy(&operation, || connection.call_again(&operation));
        }
        assert!(done.is_ok(), "{row:?}: {done:?}");
    };
    matrix(run, |row| row.operation_first, |_| false);
}

#[test]
fn a_detach_is_under_way_when_each_operation_comes() {
    let run = |target: &Target, connection: &mut Connection, chain: &Chain<'_>| {
        let row = chain.row;
        let operation = chain.request();
        let detach = detach_request(&chain.alias(row.detached));
        connection.send_all(&[detach.clone(), operation.clone()]);
        let told = connection.receive(&operation);
        let mut done = chain.outcome(target, told);
        if row.told == Waits {
            let error = done.as_ref().expect_err("it should be refused while a detach runs");
            assert!(is_busy(error), "{row:?}: {error}");
        }
        assert_eq!(connection.receive(&detach), Ok(json!(true)), "{row:?}");
        if done.is_err() {
            done = until_not_busy(&operation, || {
                let told = connection.call_again(&operation);
                chain.outcome(target, told)
            });
        }
        // What has no parent any more can't be decoupled from it.
        if row.operation == Decouple && row.detached == row.subject {
            assert!(done.is_err(), "{row:?}");
        } else {
            assert!(done.is_ok(), "{row:?}: {done:?}");
        }
    };
    // The operation has given it another parent.
    let has_parent_again = |row: &Row| {
        matches!(row.operation, SetParentToBase | Snapshot) && row.detached == row.subject
    };
    matrix(run, |row| row.detach_first, has_parent_again);
}

trait CallAgain {
    /// Sends a request once more, as a new one.
    fn call_again(&mut self, request: &Value) -> RpcResult;
}

impl CallAgain for Connection {
    fn call_again(&mut self, request: &Value) -> RpcResult {
        let method = request["method"].as_str().unwrap();
        self.call(method, request["params"].clone())
    }
}

// --- Families ---

/// A target with a snapshot that has a parent and so many clones: parent <- snap <- c0 c1 ...
fn wide(clones: usize) -> Target {
    let mut target = Target::start();
    let md_pages_per_100_clusters = 1000;
    target.create_lvstore("lvs", Lvstore { md_pages_per_100_clusters, ..Lvstore::default() });
    target.create_thin("lvs/vol", 1);
    target.write("lvs/vol", &[(0, 0x11)]);
    target.snapshot("lvs/vol", "lvs/parent");
    target.snapshot("lvs/vol", "lvs/snap");
    let mut connection = target.connect();
    for clone in 0..clones {
        let params = json!({"snapshot_name": "lvs/snap", "clone_name": format!("c{clone}")});
        connection.call("bdev_lvol_clone", params).expect("a clone can be made");
    }
    target
}

fn detach_request(lvol: &str) -> Value {
    request(DETACH, json!({"name": lvol}))
}

/// Checks that no lvol has a parent but those that are listed.
#[track_caller]
fn expect_parents(target: &Target, expected: &[(&str, &str)]) {
    let lvols = target.lvols();
    let parents: Vec<_> = lvols
        .iter()
        .filter_map(|(lvol, about)| Some((lvol.as_str(), about.parent.as_deref()?)))
        .collect();
    assert_eq!(parents, expected);
}

#[test]
fn ten_clients_detach_two_hundred_siblings_at_once() {
    let mut target = wide(200);
    thread::scope(|scope| {
        for client in 0..10 {
            let mut connection = target.connect();
            scope.spawn(move || {
                for clone in (client..200).step_by(10) {
                    let detach = connection.call(DETACH, json!({"name": format!("lvs/c{clone}")}));
                    assert_eq!(detach, Ok(json!(true)), "c{clone}");
                }
            });
        }
    });
    let expected = [("lvs/snap", "parent"), ("lvs/vol", "snap")];
    expect_parents(&target, &expected);
    target.crash();
    expect_parents(&target, &expected);
    target.expect_data("lvs/vol", &[0x11]);
    target.expect_data("lvs/c199", &[0]);
}

#[test]
fn three_hundred_detaches_in_one_piece_all_work() {
    let target = wide(300);
    let mut connection = target.connect();
    let detaches: Vec<_> = (0..300).map(|clone| detach_request(&format!("lvs/c{clone}"))).collect();
    connection.send_all(&detaches);
    for detach in &detaches {
        assert_eq!(connection.receive(detach), Ok(json!(true)), "{detach}");
    }
    expect_parents(&target, &[("lvs/snap", "parent"), ("lvs/vol", "snap")]);
}

#[test]
fn a_snapshot_with_a_thousand_clones_is_detached() {
    let mut target = wide(1000);
    target.expect_data("lvs/c999", &[0x11]);

    target.detach("lvs/snap");

    let check = |target: &Target| {
        assert_eq!(target.parent("lvs/snap"), None);
        assert_eq!(target.lvol("lvs/snap").clones.len(), 1001);
        target.expect_data("lvs/c0", &[0]);
        target.expect_data("lvs/c999", &[0]);
    };
    check(&target);
    target.delete("lvs/parent");
    target.crash();
    check(&target);
}

#[test]
fn every_snapshot_of_a_chain_of_two_hundred_is_detached() {
    const DEPTH: usize = 200;
    let mut target = Target::start();
    target.create_lvstore("lvs", Lvstore { md_pages_per_100_clusters: 200, ..Lvstore::default() });
    target.create_thin("lvs/vol", 2);
    target.write("lvs/vol", &[(0, 0x11)]);
    for level in 1..DEPTH {
        target.snapshot("lvs/vol", &format!("lvs/s{level}"));
    }
    target.write("lvs/vol", &[(1, 0x22)]);
    target.expect_data("lvs/vol", &[0x11, 0x22]);

    // From the top down: each has all the others beneath it.
    let mut connection = target.connect();
    for level in 2..DEPTH {
        let detach = connection.call(DETACH, json!({"name": format!("lvs/s{level}")}));
        assert_eq!(detach, Ok(json!(true)), "level {level}");
    }
    target.detach("lvs/vol");

    expect_parents(&target, &[]);
    target.expect_data("lvs/vol", &[0, 0x22]);
    target.expect_data("lvs/s1", &[0x11, 0]);
    target.crash();
    expect_parents(&target, &[]);
    target.expect_data("lvs/vol", &[0, 0x22]);
}
