//! `bdev_lvol_check_detach_parent`: a detach then does what the check has said, and the check changes nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

use common::iscsi;
use common::lvstore::{Lvstore, MIB};
use common::metadata;
use common::rpc::{EBUSY, EINVAL, ENODEV, INVALID_PARAMS, RpcError};
use common::target::{Options, Target};
use serde_json::{Value, json};

const DETACH: &str = "bdev_lvol_detach_parent";
const CHECK: &str = "bdev_lvol_check_detach_parent";
const EUCLEAN: i64 = -(libc::EUCLEAN as i64);
const EILSEQ: i64 = -(libc::EILSEQ as i64);

fn chain() -> Target {
    let target = Target::with_lvstore(Lvstore::default());
    target.create_chain();
    target
}

#[track_caller]
fn check(target: &Target, lvol: &str) -> Value {
    target.must(CHECK, json!({"name": lvol, "ranges": true}))
}

/// The error of a detach, and what the check says of it before.
#[track_caller]
fn expect_same_refusal(target: &Target, lvol: &str) -> RpcError {
    let said = check(target, lvol)["refusal"].take();
    let error = target.call(DETACH, json!({"name": lvol})).expect_err("the detach is refused");
    assert_eq!(said, json!({"code": error.code, "message": error.message}), "{lvol}");
    error
}

/// What it warns of.
fn abouts(said: &Value) -> Vec<&str> {
    let warnings = said["warnings"].as_array().unwrap();
    warnings.iter().map(|warning| warning["about"].as_str().unwrap()).collect()
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|entry| entry["name"].as_str().unwrap()).collect()
}

/// The clusters of `[[first, count], ...]`.
fn clusters(ranges: &Value) -> BTreeSet<u64> {
    let ranges = ranges.as_array().unwrap().iter();
    ranges
        .flat_map(|range| {
            let [first, count] = [0, 1].map(|index| range[index].as_u64().unwrap());
            first..first + count
        })
        .collect()
}

#[test]
fn it_says_what_the_lvol_and_its_readers_show_of_whom() {
    let target = chain();
    let uuid = |lvol: &str| target.lvol(lvol).uuid;

    // SPDK before 24.05 doesn't unmap files, and has no set_parent.
    let as_later = |mut said: Value| {
        if cfg!(not(spdk_blob_set_parent)) {
            assert_eq!(abouts(&said), ["unmap"]);
            said["warnings"] = json!([]);
            assert_eq!(said["undo"].take()["why_not"], "this SPDK has no bdev_lvol_set_parent");
        }
        said
    };
    let said = as_later(check(&target, "lvs/snap3"));

    let idle = json!({
        "open": false, "claimed": false, "num_io_channels": 0, "num_io_in_flight": 0,
    });
    let with_idle = |mut value: Value| {
        value.as_object_mut().unwrap().extend(idle.as_object().unwrap().clone());
        value
    };
    let expected = with_idle(json!({
        "name": "lvs/snap3", "uuid": uuid("lvs/snap3"), "cluster_size": MIB, "parent": "lvs/snap2",
        "read_only": true, "num_clusters": 8, "num_allocated_clusters": 2,
        "num_lost_clusters": 4, "lost_ranges": [[0, 2], [3, 2]],
        "ancestors": [
            {
                "kind": "lvol", "name": "lvs/snap2", "uuid": uuid("lvs/snap2"),
                "num_clusters": 8, "num_shown_clusters": 2,
            },
            {
                "kind": "lvol", "name": "lvs/snap1", "uuid": uuid("lvs/snap1"),
                "num_clusters": 8, "num_shown_clusters": 2,
            },
        ],
        "cycle": false,
        "readers": [with_idle(json!({
            "name": "lvs/vol", "uuid": uuid("lvs/vol"), "parent": "lvs/snap3",
            "read_only": false, "num_clusters": 8, "num_allocated_clusters": 2,
            "num_lost_clusters": 3, "lost_ranges": [[0, 2], [4, 1]],
        }))],
        "refusal": null,
        "undo": cfg!(spdk_blob_set_parent).then(|| json!({
            "possible": true,
            "as_long_as": "lvs/snap2 is there and nothing that reads through lvs/snap3 is written to or \
                           resized; after a restart of the target lvs/snap2 needs a clone first",
        })),
        "warnings": [],
    }));
    assert_eq!(said, expected);

    // By UUID, and without ranges.
    let brief = target.must(CHECK, json!({"name": uuid("lvs/snap3")}));
    let mut expected = expected;
    expected.as_object_mut().unwrap().remove("lost_ranges");
    expected["readers"][0].as_object_mut().unwrap().remove("lost_ranges");
    assert_eq!(as_later(brief), expected);
    let unasked = target.must(CHECK, json!({"name": "lvs/snap3", "ranges": false}));
    assert_eq!(as_later(unasked), expected);
}

// --- It is exact ---

const CLUSTER: u64 = 64 << 10;
const EXTERNAL: u8 = 0xee;

/// A store with random lvols, in which each byte says who wrote it.
struct Random {
    target: Target,
    random: fastrand::Rng,
    /// What each writable lvol writes now, and what its clusters are full of in each snapshot.
    bytes: BTreeMap<String, u8>,
    writable: Vec<String>,
    next: u8,
}

impl Random {
    fn new(seed: u64, external: bool) -> Random {
        let target = Target::with_lvstore(Lvstore { cluster_size: CLUSTER, ..Lvstore::default() });
        if external {
            target.create_malloc("outside", 1);
            let bytes = EXTERNAL;
            target.export("outside").must([iscsi::write(0, MIB, bytes)]);
            target.clone_of_bdev("outside", "lvs/lvol0");
        } else {
            target.create_thin("lvs/lvol0", 2);
        }
        let mut this = Random {
            target,
            random: fastrand::Rng::with_seed(seed),
            bytes: BTreeMap::new(),
            writable: vec!["lvs/lvol0".to_owned()],
            next: 1,
        };
        this.renew("lvs/lvol0");
        this.step_until(11);
        this
    }

    fn renew(&mut self, lvol: &str) {
        self.bytes.insert(lvol.to_owned(), self.next);
        self.next += 1;
    }

    fn step_until(&mut self, lvols: usize) {
        while self.bytes.len() < lvols {
            let lvol = self.writable[self.random.usize(..self.writable.len())].clone();
            self.write(&lvol);
            if self.random.u8(..4) == 0 {
                let size = self.target.lvol(&lvol).size / MIB + 1;
                let resize = json!({"name": lvol, "size_in_mib": size});
                self.target.must("bdev_lvol_resize", resize);
                self.write(&lvol);
            }
            let snapshot = format!("lvs/snap{}", self.bytes.len());
            self.target.snapshot(&lvol, &snapshot);
            self.bytes.insert(snapshot.clone(), self.bytes[&lvol]);
            self.renew(&lvol);
            if self.random.u8(..3) == 0 {
                let clone = format!("lvs/lvol{}", self.bytes.len());
                self.target.clone_of(&snapshot, &clone);
                self.renew(&clone);
                self.writable.push(clone);
            }
        }
        for lvol in self.writable.clone() {
            self.write(&lvol);
        }
    }

    fn write(&mut self, lvol: &str) {
        let count = self.target.lvol(lvol).size / CLUSTER;
        let byte = self.bytes[lvol];
        let mut commands = Vec::new();
        for _ in 0..self.random.usize(..5) {
            let first = self.random.u64(..count);
            let length = self.random.u64(1..=(count - first).min(6));
            commands.push(iscsi::write(first * CLUSTER, length * CLUSTER, byte));
        }
        self.target.export(lvol).must(commands);
    }

    /// The byte that each cluster is full of.
    fn read(&self, lvol: &str) -> Vec<u8> {
        let data = self.target.export(lvol).read_all();
        let clusters = data.chunks(CLUSTER as usize);
        clusters
            .map(|cluster| {
                assert!(cluster.iter().all(|byte| *byte == cluster[0]), "{lvol}");
                cluster[0]
            })
            .collect()
    }

    fn lose_what_was_said(&self, lvol: &str) -> u64 {
        let said = check(&self.target, lvol);
        let lvols: Vec<&Value> =
            std::iter::once(&said).chain(said["readers"].as_array().unwrap()).collect();
        let read = || -> Vec<Vec<u8>> {
            lvols.iter().map(|lvol| self.read(lvol["name"].as_str().unwrap())).collect()
        };
        let before = read();
        // What each ancestor is shown of is what it has written.
        let lost: Vec<u8> = clusters(&said["lost_ranges"])
            .into_iter()
            .map(|cluster| before[0][usize::try_from(cluster).unwrap()])
            .collect();
        for ancestor in said["ancestors"].as_array().unwrap() {
            let name = ancestor["name"].as_str().unwrap();
            let byte = self.bytes.get(name).copied().unwrap_or(EXTERNAL);
            let shown = lost.iter().filter(|&&lost| lost == byte).count();
            assert_eq!(ancestor["num_shown_clusters"], shown, "{name} in {said}");
        }

        self.target.detach(lvol);

        for ((lvol, before), after) in lvols.iter().zip(&before).zip(read()) {
            let changed: BTreeSet<u64> = (0..)
                .zip(before.iter().zip(&after))
                .filter(|(_, (before, after))| before != after)
                .map(|(cluster, (_, after))| {
                    assert_eq!(*after, 0);
                    cluster
                })
                .collect();
            assert_eq!(clusters(&lvol["lost_ranges"]), changed, "{lvol}");
            assert_eq!(lvol["num_lost_clusters"], changed.len(), "{lvol}");
            assert_eq!(lvol["num_clusters"], before.len(), "{lvol}");
            let allocated = self.target.lvol(lvol["name"].as_str().unwrap());
            if let Some(allocated) = allocated.num_allocated_clusters {
                assert_eq!(lvol["num_allocated_clusters"], allocated, "{lvol}");
            }
        }
        lvols.iter().map(|lvol| lvol["num_lost_clusters"].as_u64().unwrap()).sum()
    }
}

#[test]
#[cfg_attr(not(spdk_reads_beyond_parent), ignore = "this SPDK can't read beyond a parent's end")]
fn of_random_chains_it_says_exactly_what_a_client_then_finds_lost() {
    let mut lost = 0;
    for seed in 0..4 {
        println!("seed {seed}");
        let mut random = Random::new(seed, seed % 2 == 1);
        // Those that have a parent in the store, in a random order.
        let mut lvols: Vec<String> = random.bytes.keys().cloned().collect();
        random.random.shuffle(&mut lvols);
        for lvol in lvols {
            if random.target.parent(&lvol).is_some() {
                lost += random.lose_what_was_said(&lvol);
            }
        }
    }
    assert!(lost > 50, "only {lost} clusters were lost in all");
}

#[test]
fn of_too_many_ranges_it_says_where_they_end() {
    const CLUSTER: u64 = 4096;
    const MOST: u64 = 65_536;
    const COUNT: u64 = MOST + 100;
    let target = Target::with_lvstore(Lvstore {
        size_mib: 1024,
        cluster_size: CLUSTER,
        md_pages_per_100_clusters: 1,
        ..Lvstore::default()
    });
    target.create_thin("lvs/vol", 600);
    // Every other cluster.
    let writes = (0..COUNT).map(|number| iscsi::write(number * 2 * CLUSTER, CLUSTER, 0x11));
    target.export("lvs/vol").must_all(writes);
    target.snapshot("lvs/vol", "lvs/snap");

    let said = check(&target, "lvs/vol");

    assert_eq!(said["num_lost_clusters"], COUNT);
    let ranges = said["lost_ranges"].as_array().unwrap();
    assert_eq!(ranges.len() as u64, MOST);
    assert!((0..).zip(ranges).all(|(number, range): (u64, _)| *range == json!([number * 2, 1])));
    assert_eq!(said["lost_ranges_end"], MOST * 2);
    // A row is one range, however long.
    target.create_thin("lvs/row", 40);
    target.export("lvs/row").must([iscsi::write(0, 40 * MIB, 0x11)]);
    target.snapshot("lvs/row", "lvs/row-snap");
    let said = check(&target, "lvs/row");
    assert_eq!(said["lost_ranges"], json!([[0, 40 * MIB / CLUSTER]]));
    assert_eq!(said.get("lost_ranges_end"), None);
}

#[test]
#[cfg_attr(not(spdk_reads_beyond_parent), ignore = "this SPDK can't read beyond a parent's end")]
fn a_short_snapshot_hides_what_its_parent_has_beyond() {
    let target = Target::with_lvstore(Lvstore::default());
    let resize = |size: u64| {
        target.must("bdev_lvol_resize", json!({"name": "lvs/vol", "size_in_mib": size}));
    };
    target.create_thin("lvs/vol", 8);
    target.export("lvs/vol").must([iscsi::write(0, 8 * MIB, 0x11)]);
    target.snapshot("lvs/vol", "lvs/long");
    resize(3);
    target.snapshot("lvs/vol", "lvs/short");
    resize(8);
    target.expect_data("lvs/vol", &[0x11, 0x11, 0x11, 0, 0, 0, 0, 0]);

    let said = check(&target, "lvs/vol");

    assert_eq!(said["lost_ranges"], json!([[0, 3]]));
    assert_eq!(said["ancestors"][1]["num_shown_clusters"], 3);
}

// --- Refusals ---

#[test]
fn refusals_are_in_the_words_of_the_detach() {
    let target = chain();
    target.create_malloc("outside", 8);
    target.clone_of_bdev("outside", "lvs/esnap");
    target.write("lvs/esnap", &[(1, 0x55)]);
    assert_eq!(expect_same_refusal(&target, "lvs/snap1").code, EINVAL);
    assert_eq!(expect_same_refusal(&target, "lvs/esnap").code, EINVAL);

    let said = check(&target, "lvs/snap1");
    assert_eq!((&said["parent"], &said["num_lost_clusters"]), (&Value::Null, &json!(0)));
    assert_eq!(said["ancestors"], json!([]));
    assert_eq!(names(&said["readers"]), ["lvs/snap2", "lvs/snap3", "lvs/vol"]);
    assert_eq!(said.get("undo"), None);
    let said = check(&target, "lvs/esnap");
    assert_eq!(said["lost_ranges"], json!([[0, 1], [2, 6]]));
    assert_eq!(
        said["ancestors"],
        json!([{
            "kind": "external_snapshot", "name": "outside", "size": 8 * MIB, "num_shown_clusters": 7,
        }])
    );

    // What can't be checked is an error of the check itself, and that of the detach.
    for name in ["lvs/nothing", "outside"] {
        let [check, detach] =
            [CHECK, DETACH].map(|method| target.call(method, json!({"name": name})).unwrap_err());
        assert_eq!(check, detach);
        assert_eq!(check.code, ENODEV);
    }
    for params in [
        Value::Null,
        json!({}),
        json!([]),
        json!({"name": 5}),
        json!({"ranges": true}),
        json!({"name": "lvs/vol", "ranges": 1}),
        json!({"name": "lvs/vol", "ranges": null}),
        json!({"name": "lvs/vol", "force": true}),
    ] {
        let error = target.call(CHECK, params.clone()).unwrap_err();
        assert_eq!(error.code, INVALID_PARAMS, "{params}: {error}");
    }
}

#[test]
fn the_end_of_the_chain_may_be_an_external_snapshot() {
    let target = Target::with_lvstore(Lvstore::default());
    target.create_malloc("outside", 4);
    target.clone_of_bdev("outside", "lvs/vol");
    target.write("lvs/vol", &[(1, 0x11)]);
    target.snapshot("lvs/vol", "lvs/snap");
    target.write("lvs/vol", &[(2, 0x22)]);
    // Beyond the end of both there are zeroes already.
    target.must("bdev_lvol_resize", json!({"name": "lvs/vol", "size_in_mib": 6}));
    target.clone_of_bdev("outside", "lvs/long");
    target.must("bdev_lvol_resize", json!({"name": "lvs/long", "size_in_mib": 6}));
    target.snapshot("lvs/long", "lvs/long-snap");
    assert_eq!(check(&target, "lvs/long")["lost_ranges"], json!([[0, 4]]));

    let said = check(&target, "lvs/vol");

    assert_eq!(said["lost_ranges"], json!([[0, 2], [3, 1]]));
    assert_eq!(names(&said["ancestors"]), ["lvs/snap", "outside"]);
    assert_eq!(said["ancestors"][0]["num_shown_clusters"], 1);
    assert_eq!(said["ancestors"][1]["num_shown_clusters"], 2);
    assert_eq!(said["refusal"], Value::Null);
    if cfg!(spdk_blob_set_parent) {
        let why = "bdev_lvol_set_parent wants lvs/vol to be as large as lvs/snap";
        assert_eq!(said["undo"], json!({"possible": false, "why_not": why}));
        let again = json!({"lvol_name": "lvs/vol", "parent_name": "lvs/snap"});
        target.detach("lvs/vol");
        target.call("bdev_lvol_set_parent", again).unwrap_err();
    }
}

#[test]
#[cfg_attr(not(spdk_blob_set_parent), ignore = "this SPDK can't set a parent")]
fn a_cycle_has_an_end() {
    let target = Target::with_lvstore(Lvstore::default());
    target.create_thin("lvs/vol", 4);
    target.write("lvs/vol", &[(0, 0x11)]);
    target.snapshot("lvs/vol", "lvs/below");
    target.write("lvs/vol", &[(1, 0x22)]);
    target.snapshot("lvs/vol", "lvs/middle");
    target.write("lvs/vol", &[(2, 0x33)]);
    target.snapshot("lvs/vol", "lvs/above");
    target.must(
        "bdev_lvol_set_parent",
        json!({"lvol_name": "lvs/middle", "parent_name": "lvs/above"}),
    );

    // One of the cycle, and one that reads through it.
    let said = check(&target, "lvs/middle");
    assert_eq!((names(&said["ancestors"]), &said["cycle"]), (vec!["lvs/above"], &json!(true)));
    assert_eq!(names(&said["readers"]), ["lvs/above", "lvs/vol"]);
    assert_eq!(said["lost_ranges"], json!([[2, 1]]));
    // They have it of above, which they go on reading.
    assert_eq!(said["readers"][0]["num_lost_clusters"], 0);
    assert_eq!(said["readers"][1]["num_lost_clusters"], 0);
    assert_eq!(said["refusal"], Value::Null);
    assert_eq!(said["undo"]["possible"], false, "{said}");
    let said = check(&target, "lvs/vol");
    assert_eq!(names(&said["ancestors"]), ["lvs/above", "lvs/middle"]);
    assert_eq!((&said["cycle"], &said["num_lost_clusters"]), (&json!(true), &json!(2)));

    target.detach("lvs/middle");
    let said = check(&target, "lvs/vol");
    assert_eq!(
        (names(&said["ancestors"]), &said["cycle"]),
        (vec!["lvs/above", "lvs/middle"], &json!(false))
    );
}

#[test]
fn what_can_not_be_right_is_said_and_nothing_that_follows_from_it() {
    let target =
        Target::with_lvstore(Lvstore { can_fail: true, can_be_slow: true, ..Lvstore::default() });
    target.create_thin("lvs/vol", 4);
    target.write("lvs/vol", &[(0, 0x11)]);
    target.snapshot("lvs/vol", "lvs/snap");
    let params = json!({"lvol_name": "lvs/vol", "snapshot_name": "half"});
    target.call_with_failing_write("lvs", 3, "bdev_lvol_snapshot", params).unwrap_err();

    assert_eq!(expect_same_refusal(&target, "lvs/vol").code, EUCLEAN);

    let said = check(&target, "lvs/vol");
    for unknown in ["ancestors", "readers", "num_lost_clusters", "lost_ranges", "undo"] {
        assert_eq!(said.get(unknown), None, "{said}");
    }
    assert!(abouts(&said).contains(&"chain"), "{said}");
    assert_eq!(said["num_clusters"], 4);
}

#[test]
fn metadata_that_the_device_has_not_is_said() {
    let target = chain();
    let mend = metadata::spoil(target.file("lvs"), &target.lvol("lvs/snap3").uuid);

    assert_eq!(expect_same_refusal(&target, "lvs/snap3").code, EILSEQ);
    // The chain is known all the same.
    assert_eq!(names(&check(&target, "lvs/snap3")["ancestors"]), ["lvs/snap2", "lvs/snap1"]);

    mend();
    target.detach("lvs/snap3");
}

#[test]
fn what_is_busy_is_said_after_the_wait_of_the_detach() {
    let target = Target::with_lvstore(Lvstore { can_be_slow: true, ..Lvstore::default() });
    target.create_thin("lvs/vol", 4);
    target.write("lvs/vol", &[(0, 0x11), (1, 0x11), (2, 0x11)]);
    target.snapshot("lvs/vol", "lvs/snap");
    target.slow_down("lvs", 2_000_000);
    let inflate = target.start_call("bdev_lvol_inflate", json!({"name": "lvs/vol"}));

    let said = check(&target, "lvs/vol");

    assert_eq!(said["refusal"]["code"], EBUSY, "{said}");
    let message = "Device or resource busy: another operation is in progress on lvs/vol";
    assert_eq!(said["refusal"]["message"], message);
    assert_eq!(names(&said["ancestors"]), ["lvs/snap"]);
    target.slow_down("lvs", 0);
    inflate.wait().unwrap();
    let said = check(&target, "lvs/vol");
    assert_eq!((&said["parent"], &said["num_allocated_clusters"]), (&Value::Null, &json!(4)));
}

// --- What it leaves ---

#[test]
fn it_changes_nothing() {
    let mut target = chain();
    let lvols = target.lvols();
    let base = target.base_bdev("lvs");
    let device = target.iostat(&base);
    let file = fs::read(target.file("lvs")).unwrap();

    for lvol in ["lvs/snap1", "lvs/snap2", "lvs/snap3", "lvs/vol"] {
        check(&target, lvol);
    }

    assert_eq!(target.lvols(), lvols);
    let asked = target.iostat(&base) - device;
    // The metadata page of each that has a parent is read, as a detach does.
    assert_eq!((asked.reads, asked.bytes_read), (3, 3 * 4096));
    assert_eq!((asked.writes, asked.unmaps), (0, 0));
    assert!(fs::read(target.file("lvs")).unwrap() == file, "the file has changed");
    // Nothing is locked or held.
    for lvol in ["lvs/snap3", "lvs/vol"] {
        target.snapshot("lvs/vol", &format!("{lvol}-again"));
    }
    target.detach("lvs/snap3");
    target.delete("lvs/snap2");
    target.stop();
}

// --- What an operator should know ---

#[test]
fn it_says_who_uses_what_reads_through_it() {
    let target = chain();
    let limits = json!({"name": "lvs/vol", "rw_ios_per_sec": 20_000, "r_mbytes_per_sec": 100});
    target.must("bdev_set_qos_limit", limits);
    target.clone_of("lvs/snap3", "lvs/disk");
    let export = target.export("lvs/vol");
    target.must(
        "bdev_lvol_create_lvstore",
        json!({"bdev_name": "lvs/disk", "lvs_name": "inner", "cluster_sz": 65536}),
    );

    let said = check(&target, "lvs/snap3");

    let reader = |name: &str| -> &Value {
        said["readers"].as_array().unwrap().iter().find(|reader| reader["name"] == name).unwrap()
    };
    let vol = reader("lvs/vol");
    assert_eq!((&vol["open"], &vol["claimed"]), (&json!(true), &json!(false)), "{vol}");
    assert_eq!(
        vol["assigned_rate_limits"],
        json!({"rw_ios_per_sec": 20_000, "r_mbytes_per_sec": 100})
    );
    let disk = reader("lvs/disk");
    assert_eq!((&disk["open"], &disk["claimed"]), (&json!(true), &json!(true)), "{disk}");
    assert!(disk["num_io_channels"].as_u64().unwrap() > 0, "{disk}");
    assert_eq!(disk.get("assigned_rate_limits"), None);
    assert_eq!(said["open"], false);
    drop(export);
    target.must("bdev_lvol_delete_lvstore", json!({"lvs_name": "inner"}));
    let said = check(&target, "lvs/snap3");
    for reader in said["readers"].as_array().unwrap() {
        assert_eq!(
            (&reader["open"], &reader["claimed"]),
            (&json!(false), &json!(false)),
            "{reader}"
        );
    }
}

#[test]
fn it_warns_of_what_was_deleted_and_of_what_is_not_flushed_and_so_does_the_detach_once() {
    let environment = vec![("LVOL_DETACH_FLUSH".into(), "off".into())];
    let mut target = Target::start_with(Options { environment, ..Options::default() });
    target.create_lvstore("plain", Lvstore { without_unmap: true, ..Lvstore::default() });
    target.create_thin("plain/vol", 4);
    target.snapshot("plain/vol", "plain/snap1");
    target.snapshot("plain/vol", "plain/snap2");

    let said = target.must(CHECK, json!({"name": "plain/vol"}));

    assert_eq!(abouts(&said), ["unmap", "flush"]);
    let message = |index: usize| said["warnings"][index]["message"].as_str().unwrap();
    assert!(message(0).contains("the base bdev plain-base has no unmap"), "{said}");
    assert!(message(1).contains("LVOL_DETACH_FLUSH=off"), "{said}");
    assert!(!target.log().contains("has no unmap"), "the check itself logs nothing");

    target.detach("plain/vol");
    target.detach("plain/snap2");
    target.wait_for_log(|log| log.contains("plain/snap2") && log.contains("is detached from"));
    let line =
        "the bdev plain-base has no unmap, and SPDK doesn't zero new clusters: where plain/vol and";
    target.wait_for_log(|log| log.contains(line));
    assert_eq!(target.log().matches("has no unmap").count(), 1);
}

/// What `docs/operations.md` says of bytes of the deleted.
#[test]
fn a_clear_method_that_zeroes_leaves_nothing_of_the_deleted() {
    let options = Lvstore { size_mib: 64, without_unmap: true, ..Lvstore::default() };
    let mut target = Target::start();
    target.create_lvstore("plain", options);
    let shows = |clear_method: &str| {
        let create = |name: &str| {
            target.must(
                "bdev_lvol_create",
                json!({
                    "lvs_name": "plain", "lvol_name": name, "size_in_mib": 40,
                    "thin_provision": true, "clear_method": clear_method,
                }),
            );
        };
        create("old");
        target.export("plain/old").must([iscsi::write(0, 40 * MIB, 0x39)]);
        target.delete("plain/old");
        // A clone, whose parent owns nothing.
        create("new");
        target.snapshot("plain/new", "plain/parent");
        target.detach("plain/new");
        target.export("plain/new").must([iscsi::write(0, 4096, 0x11)]);
        let byte = target.export("plain/new").read_all()[8192];
        target.delete("plain/new");
        target.delete("plain/parent");
        byte
    };
    assert_eq!(shows("unmap"), 0x39);
    assert_eq!(shows("write_zeroes"), 0);
}

// --- While it goes on ---

/// An lvstore with more metadata pages than its device has clusters.
fn target_for_huge_lvols(cluster_size: u64) -> Target {
    Target::with_lvstore(Lvstore {
        size_mib: 32 << 10,
        cluster_size,
        md_pages_per_100_clusters: 1000,
        ..Lvstore::default()
    })
}

/// The log says of each check how it went along the chain.
fn log_walks(target: &Target) {
    target.must("log_set_flag", json!({"flag": "lvol_detach"}));
    target.must("log_set_print_level", json!({"level": "INFO"}));
}

#[test]
fn a_detach_and_a_deletion_that_come_meanwhile_are_done() {
    let target = target_for_huge_lvols(64 * MIB);
    const DEPTH: usize = 120;
    target.create_thin("lvs/vol", HUGE_MIB);
    for level in 0..DEPTH {
        target.snapshot("lvs/vol", &format!("lvs/snap{level}"));
    }
    log_walks(&target);
    let mut before = DEPTH;
    let levels = (10..DEPTH).step_by(10);
    let checks = levels.len();
    for (pause, level) in levels.enumerate() {
        let mut pending = target.start_call(CHECK, json!({"name": "lvs/vol"}));
        thread::sleep(Duration::from_millis(pause as u64));
        target.detach(&format!("lvs/snap{level}"));
        target.delete(&format!("lvs/snap{}", level - 1));
        println!("the check had ended: {}", pending.is_answered());
        let said = pending.wait().unwrap();
        let (ancestors, after) = (said["ancestors"].as_array().unwrap().len(), DEPTH - level);
        assert!([before, after].contains(&ancestors), "{ancestors} ancestors");
        before = after;
    }
    // One that finds the chain changed begins again.
    target.wait_for_log(|log| log.matches("lvs/vol: check of ").count() > checks);
    assert_eq!(check(&target, "lvs/vol")["ancestors"].as_array().unwrap().len(), before);
}

/// Each snapshot copies the map of the lvol, which takes minutes for some hundred where SPDK has its assertions, or
/// is older.
const HUGE_MIB: u64 =
    if cfg!(spdk_asserts) || cfg!(not(spdk_md_page_size)) { 4 << 20 } else { 64 << 20 };

/// 64 TiB and 200 ancestors: the target serves others meanwhile.
#[test]
fn a_huge_chain_is_walked_while_others_are_served() {
    const DEPTH: u64 = 200;
    const CLUSTER: u64 = 64 * MIB;
    let target = target_for_huge_lvols(CLUSTER);
    target.create_thin("lvs/vol", HUGE_MIB);
    target.create_thin("lvs/other", 64);
    let mut connection = target.connect();
    for level in 0..DEPTH {
        let snapshot = json!({"lvol_name": "lvs/vol", "snapshot_name": format!("snap{level}")});
        connection.call("bdev_lvol_snapshot", snapshot).unwrap();
        if level % 50 == 25 {
            // In the first, the last and one cluster in between.
            let place = [0, HUGE_MIB * MIB - CLUSTER, level * CLUSTER]
                [usize::try_from(level / 75).unwrap()];
            target.export("lvs/vol").must([iscsi::write(place, 4096, 0x11)]);
        }
    }
    log_walks(&target);
    let export = target.export("lvs/other");

    let started = Instant::now();
    let mut pending = target.start_call(CHECK, json!({"name": "lvs/vol", "ranges": true}));
    export.must([iscsi::write(0, 4096, 0x22), iscsi::read(0, 4096, 0x22)]);
    let mut answered = 0;
    let mut longest = Duration::ZERO;
    while !pending.is_answered() {
        let asked = Instant::now();
        connection.call("spdk_get_version", Value::Null).unwrap();
        longest = longest.max(asked.elapsed());
        answered += 1;
    }
    let took = started.elapsed();
    let said = pending.wait().unwrap();
    let is_short = HUGE_MIB < 64 << 20;
    assert!(is_short || answered > 3, "{answered} RPCs were answered in {took:?}");

    assert_eq!(said["ancestors"].as_array().unwrap().len() as u64, DEPTH);
    assert_eq!(said["num_clusters"], HUGE_MIB * MIB / CLUSTER);
    let lost = clusters(&said["lost_ranges"]);
    assert_eq!(said["num_lost_clusters"], lost.len());
    assert!(lost.contains(&0), "{lost:?}");
    target.wait_for_log(|log| log.contains("lvs/vol: check of "));
    let log = target.log();
    let slices = log.lines().find(|line| line.contains("lvs/vol: check of ")).unwrap();
    println!(
        "{HUGE_MIB} MiB in clusters of 64 MiB, {DEPTH} ancestors: {took:?} while an iSCSI client wrote and read, \
         and {answered} RPCs were answered, the slowest in {longest:?}\n{slices}"
    );
}

#[test]
fn clusters_that_are_allocated_meanwhile_are_told_of() {
    const CLUSTER: u64 = 4 * MIB;
    const ROUNDS: u64 = 5;
    const EACH: u64 = 60;
    const ALL: u64 = ROUNDS * EACH;
    let target = target_for_huge_lvols(CLUSTER);
    target.create_thin("lvs/vol", HUGE_MIB / 8);
    let writes = |places: Range<u64>| places.map(|place| iscsi::write(place * CLUSTER, 4096, 0x11));
    target.export("lvs/vol").must_all(writes(0..ALL));
    for level in 0..100 {
        target.snapshot("lvs/vol", &format!("lvs/snap{level}"));
    }
    let export = target.export("lvs/vol");
    let mut told = 0;
    for round in 0..ROUNDS {
        let mut pending = target.start_call(CHECK, json!({"name": "lvs/vol"}));
        // They are looked at first.
        export.must(writes(round * EACH..(round + 1) * EACH));
        let had_ended = pending.is_answered();
        let said = pending.wait().unwrap();
        let lost = said["num_lost_clusters"].as_u64().unwrap();
        let (least, most) = (ALL - (round + 1) * EACH, ALL - round * EACH);
        assert!((least..=most).contains(&lost), "{said}");
        let warned = abouts(&said).contains(&"writes");
        // What was counted is true, or it is said that it may not be.
        let owned = said["num_allocated_clusters"].as_u64().unwrap();
        assert!(warned || had_ended || owned == (round + 1) * EACH, "{said}");
        assert_eq!(lost + owned, ALL, "{said}");
        told += u64::from(warned);
    }
    println!("told {told} times");
    assert!(told > 0, "no cluster was allocated while they were counted");
}

#[test]
fn a_chain_that_changes_meanwhile_is_looked_at_again_or_busy() {
    let target = target_for_huge_lvols(64 * MIB);
    target.create_thin("lvs/vol", 16 << 20);
    for level in 0..50 {
        target.snapshot("lvs/vol", &format!("lvs/snap{level}"));
    }
    log_walks(&target);
    const CHECKS: usize = 10;
    let mut busy = 0;
    for round in 0..CHECKS {
        let mut pending = target.start_call(CHECK, json!({"name": "lvs/vol"}));
        let mut changes = 0;
        while !pending.is_answered() {
            let name = format!("extra{round}-{changes}");
            let snapshot = json!({"lvol_name": "lvs/vol", "snapshot_name": name});
            target.must("bdev_lvol_snapshot", snapshot);
            target.must("bdev_lvol_delete", json!({"name": format!("lvs/{name}")}));
            changes += 1;
        }
        match pending.wait() {
            Ok(said) if said["refusal"].is_null() => assert_eq!(said["num_lost_clusters"], 0),
            // It has come upon an operation each time that it has looked, for 3 s.
            Ok(said) => {
                assert_eq!(said["refusal"]["code"], EBUSY, "{said}");
                busy += 1;
            }
            Err(error) => {
                assert_eq!(error.code, EBUSY, "{error}");
                assert!(error.message.contains("has changed each time"), "{error}");
                busy += 1;
            }
        }
    }
    let walks = target.log().matches("lvs/vol: check of ").count();
    println!("{CHECKS} checks of a chain that changes: {walks} walks, {busy} times busy");
    assert!(walks > CHECKS, "none was looked at again");
    assert_eq!(check(&target, "lvs/vol")["refusal"], Value::Null);
}
