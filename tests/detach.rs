//! What `bdev_lvol_detach_parent` does, shown on a real target from the outside: by its RPCs, by
//! what the base bdev is asked to do, and by the data that an iSCSI client reads.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use common::iostat::Iostat;
use common::iscsi;
use common::lvol::Lvol;
use common::lvstore::{Lvstore, MIB};
use common::metadata;
use common::rpc::{
    EBUSY, EINVAL, EIO, ENODEV, INVALID_PARAMS, Pending, RpcError, RpcResult, request,
};
use common::target::Target;
use serde_json::{Value, json};

const DETACH: &str = "bdev_lvol_detach_parent";
const ENOTRECOVERABLE: i64 = -(libc::ENOTRECOVERABLE as i64);

// The chain that most tests start with: snap1 <- snap2 <- snap3 <- vol, eight clusters each. The
// byte that each cluster is full of says who wrote it:
//
//     snap1 owns 0 1 2 3     snap2 owns 1 2 4     snap3 owns 2 5     vol owns 3 6

const SNAP1: [u8; 8] = [0x11, 0x11, 0x11, 0x11, 0, 0, 0, 0];
const SNAP2: [u8; 8] = [0x11, 0x22, 0x22, 0x11, 0x22, 0, 0, 0];
const SNAP3: [u8; 8] = [0x11, 0x22, 0x33, 0x11, 0x22, 0x33, 0, 0];
const VOL: [u8; 8] = [0x11, 0x22, 0x33, 0x44, 0x22, 0x33, 0x44, 0];

/// snap2, and snap3, and vol with nothing behind them.
const SNAP2_ALONE: [u8; 8] = [0, 0x22, 0x22, 0, 0x22, 0, 0, 0];
const SNAP3_ALONE: [u8; 8] = [0, 0, 0x33, 0, 0, 0x33, 0, 0];
const VOL_ALONE: [u8; 8] = [0, 0, 0, 0x44, 0, 0, 0x44, 0];
/// vol with only snap3 behind it.
const VOL_ON_SNAP3: [u8; 8] = [0, 0, 0x33, 0x44, 0, 0x33, 0x44, 0];

fn target_with_chain(lvstore: Lvstore) -> Target {
    let target = Target::with_lvstore(lvstore);
    target.create_chain();
    target
}

fn chain() -> Target {
    target_with_chain(Lvstore::default())
}

#[track_caller]
fn expect_untouched_chain_data(target: &Target) {
    target.expect_data("lvs/snap1", &SNAP1);
    target.expect_data("lvs/snap2", &SNAP2);
    target.expect_data("lvs/snap3", &SNAP3);
    target.expect_data("lvs/vol", &VOL);
}

/// What a detach asks of the device. A flush isn't counted.
const ONE_PAGE: Iostat = Iostat {
    reads: 1,
    bytes_read: 4096,
    writes: 1,
    bytes_written: 4096,
    unmaps: 0,
    bytes_unmapped: 0,
};

type Lvols = BTreeMap<String, Lvol>;

/// What `lvols` should be once `lvol` is detached: it has no parent, the former parent doesn't
/// list it, and everything else about every lvol is as it was.
fn detached(lvols: &Lvols, lvol: &str) -> Lvols {
    let mut lvols = lvols.clone();
    let lvstore = lvol.split('/').next().unwrap();
    let detached = lvols.get_mut(lvol).unwrap();
    let parent = format!("{lvstore}/{}", detached.parent.take().unwrap());
    detached.clone = false;
    let clones = &mut lvols.get_mut(&parent).unwrap().clones;
    clones.retain(|clone| format!("{lvstore}/{clone}") != lvol);
    lvols
}

/// What `lvols` should be after a restart: SPDK calls an lvol a snapshot as long as it has clones,
/// and one that has lost them until the restart.
fn reloaded(mut lvols: Lvols) -> Lvols {
    for lvol in lvols.values_mut() {
        lvol.snapshot = !lvol.clones.is_empty();
    }
    lvols
}

#[track_caller]
fn detach_error(target: &Target, lvol: &str) -> RpcError {
    match target.call(DETACH, json!({"name": lvol})) {
        Err(error) => error,
        Ok(result) => panic!("{lvol} is detached ({result}), which must fail"),
    }
}

/// An error's code, and its message: the errno's text, a colon, and words about the lvol.
#[track_caller]
fn expect_error(error: &RpcError, code: i64, errno: &str, lvol: &str) {
    assert_eq!(error.code, code, "{error}");
    assert!(error.message.starts_with(&format!("{errno}: ")), "{error}");
    assert!(error.message.contains(lvol), "{error} does not name {lvol}");
}

// --- What a detach does ---

#[test]
fn the_lvol_has_no_parent_afterwards_not_even_the_grandparent() {
    let target = chain();
    assert_eq!(target.parent("lvs/snap3").as_deref(), Some("snap2"));
    assert_eq!(target.parent("lvs/snap2").as_deref(), Some("snap1"));

    target.detach("lvs/snap3");

    assert_eq!(target.parent("lvs/snap3"), None);
    assert!(!target.lvol("lvs/snap3").clone);
    assert_eq!(target.lvol("lvs/snap2").clones, [""; 0]);
    assert_eq!(target.lvol("lvs/snap1").clones, ["snap2"]);
}

#[test]
fn no_cluster_is_allocated_or_freed_in_any_lvol() {
    let target = chain();
    let expect_as_created = || {
        for (lvol, clusters) in [("snap1", 4), ("snap2", 3), ("snap3", 2), ("vol", 2)] {
            target.expect_allocated(&format!("lvs/{lvol}"), clusters);
        }
    };
    let free = target.free_clusters("lvs");
    expect_as_created();

    target.detach("lvs/snap3");

    expect_as_created();
    assert_eq!(target.free_clusters("lvs"), free);
}

#[test]
fn its_own_clusters_read_as_before_and_the_others_as_zeroes() {
    let target = chain();
    expect_untouched_chain_data(&target);

    target.detach("lvs/snap3");

    target.expect_data("lvs/snap3", &SNAP3_ALONE);
    target.expect_data("lvs/vol", &VOL_ON_SNAP3);
    target.expect_data("lvs/snap2", &SNAP2);
    target.expect_data("lvs/snap1", &SNAP1);
}

#[test]
fn on_the_device_it_is_one_read_and_one_write_of_a_metadata_page_and_nothing_else() {
    let mut target = chain();
    let base = target.base_bdev("lvs");
    // With a clone, writable, and without a clone.
    for lvol in ["lvs/snap3", "lvs/vol", "lvs/snap2"] {
        let before = target.iostat(&base);
        target.detach(lvol);
        assert_eq!(target.iostat(&base) - before, ONE_PAGE, "detaching {lvol}");
    }

    // The same if it is the first change of metadata after a clean start, which SPDK's own would mark
    // in the super block.
    target.clone_of("lvs/snap1", "lvs/clone");
    target.restart();
    let before = target.iostat(&base);
    target.detach("lvs/clone");
    assert_eq!(target.iostat(&base) - before, ONE_PAGE);
}

#[test]
fn it_is_found_by_uuid_and_by_alias() {
    let target = chain();
    let uuid = target.lvol("lvs/snap3").uuid;
    let result = target.must(DETACH, json!({"name": uuid}));
    assert_eq!(result, json!(true));
    assert_eq!(target.parent("lvs/snap3"), None);

    let result = target.must(DETACH, json!({"name": "lvs/snap2"}));
    assert_eq!(result, json!(true));
    assert_eq!(target.parent("lvs/snap2"), None);
}

// --- On what it works ---

#[test]
fn a_writable_lvol_stays_writable() {
    let target = chain();
    let before = target.lvols();
    // Somebody uses it meanwhile.
    let export = target.export("lvs/vol");

    target.detach("lvs/vol");

    assert_eq!(target.lvols(), detached(&before, "lvs/vol"));
    export.check(&VOL_ALONE).unwrap();
    // What a first write to a cluster leaves of it is zeroes now, not what the parent has there.
    export.must([
        iscsi::write(4096, 4096, 0x55),
        iscsi::read(0, 4096, 0),
        iscsi::read(4096, 4096, 0x55),
        iscsi::read(8192, MIB - 8192, 0),
    ]);
    target.expect_allocated("lvs/vol", 3);
    drop(export);
    target.expect_data("lvs/snap3", &SNAP3);
}

#[test]
fn a_snapshot_without_clones_stays_read_only() {
    let target = chain();
    // The last clone of a snapshot takes its clusters along if the snapshot is what is deleted.
    target.delete("lvs/vol");
    let before = target.lvols();

    target.detach("lvs/snap3");

    assert_eq!(target.lvols(), detached(&before, "lvs/snap3"));
    assert!(target.lvol("lvs/snap3").read_only);
    target.expect_data("lvs/snap3", &SNAP3_ALONE);
}

#[test]
fn the_clones_of_a_detached_snapshot_stay_its_clones_and_see_the_change() {
    let mut target = chain();
    // snap3 has three clones: vol; one that owns nothing; and a snapshot with a clone of its own.
    target.clone_of("lvs/snap3", "lvs/empty");
    target.clone_of("lvs/snap3", "lvs/deep");
    target.write("lvs/deep", &[(0, 0x55)]);
    target.snapshot("lvs/deep", "lvs/below");
    target.write("lvs/deep", &[(7, 0x66)]);
    target.expect_data("lvs/deep", &[0x55, 0x22, 0x33, 0x11, 0x22, 0x33, 0, 0x66]);
    let before = target.lvols();
    assert_eq!(before["lvs/snap3"].clones, ["below", "empty", "vol"]);

    target.detach("lvs/snap3");

    let after = detached(&before, "lvs/snap3");
    assert_eq!(target.lvols(), after);
    let expect_data = |target: &Target| {
        target.expect_data("lvs/vol", &VOL_ON_SNAP3);
        target.expect_data("lvs/empty", &SNAP3_ALONE);
        target.expect_data("lvs/below", &[0x55, 0, 0x33, 0, 0, 0x33, 0, 0]);
        target.expect_data("lvs/deep", &[0x55, 0, 0x33, 0, 0, 0x33, 0, 0x66]);
    };
    expect_data(&target);
    target.crash();
    assert_eq!(target.lvols(), reloaded(after));
    expect_data(&target);
}

#[test]
fn it_works_at_any_depth_from_the_top_down_and_from_the_bottom_up() {
    const DEPTH: u8 = 8;
    let own = |level: u8| -> Vec<u8> {
        (1..=DEPTH).map(|cluster| if cluster == level { level } else { 0 }).collect()
    };
    let mut target = Target::with_lvstore(Lvstore::default());
    for chain in ["down", "up"] {
        let top = format!("lvs/{chain}{DEPTH}");
        target.create_thin(&top, DEPTH.into());
        for level in 1..DEPTH {
            target.write(&top, &[(u64::from(level) - 1, level)]);
            target.snapshot(&top, &format!("lvs/{chain}{level}"));
        }
        target.write(&top, &[(u64::from(DEPTH) - 1, DEPTH)]);
        let whole: Vec<u8> = (1..=DEPTH).collect();
        target.expect_data(&top, &whole);
    }

    for level in 2..=DEPTH {
        target.detach(&format!("lvs/down{level}"));
    }
    for level in (2..=DEPTH).rev() {
        target.detach(&format!("lvs/up{level}"));
    }

    let expect_all_alone = |target: &Target| {
        for chain in ["down", "up"] {
            for level in 1..=DEPTH {
                let lvol = format!("lvs/{chain}{level}");
                assert_eq!(target.parent(&lvol), None, "{lvol}");
                target.expect_allocated(&lvol, 1);
                target.expect_data(&lvol, &own(level));
            }
        }
    };
    expect_all_alone(&target);
    target.crash();
    expect_all_alone(&target);
}

#[test]
fn the_clone_of_a_clone_of_an_external_snapshot_no_longer_sees_that() {
    let target = Target::with_lvstore(Lvstore::default());
    target.create_malloc("outside", 4);
    target.write("outside", &[(0, 0x77), (1, 0x77), (2, 0x77), (3, 0x77)]);
    target.clone_of_bdev("outside", "lvs/vol");
    target.write("lvs/vol", &[(1, 0x11)]);
    target.snapshot("lvs/vol", "lvs/snap");
    target.write("lvs/vol", &[(2, 0x22)]);
    target.expect_data("lvs/vol", &[0x77, 0x11, 0x22, 0x77]);

    target.detach("lvs/vol");

    assert_eq!(target.parent("lvs/vol"), None);
    assert!(!target.lvol("lvs/vol").esnap_clone);
    target.expect_data("lvs/vol", &[0, 0, 0x22, 0]);
    assert!(target.lvol("lvs/snap").esnap_clone);
    target.expect_data("lvs/snap", &[0x77, 0x11, 0x77, 0x77]);
    target.unmap("lvs/vol", &[2]);
    target.expect_allocated("lvs/vol", 0);
}

#[test]
fn of_metadata_of_several_pages_one_is_written() {
    // An entry of 8 bytes in a blob's metadata stands for 512 clusters in a row: with clusters of
    // 8 KiB there is one for every 4 MiB that has data, and a page has room for about 500.
    const ENTRIES: u64 = 560;
    const STEP: u64 = 4 * MIB;
    const CLUSTER: u64 = 8192;
    let mut target = Target::with_lvstore(Lvstore {
        size_mib: 2560,
        cluster_size: CLUSTER,
        md_pages_per_100_clusters: 1,
        can_fail: true,
        ..Lvstore::default()
    });
    target.create_thin("lvs/vol", ENTRIES * STEP / MIB);
    target.export("lvs/vol").must([iscsi::write(0, CLUSTER * 2, 0x11)]);
    target.snapshot("lvs/vol", "lvs/snap");
    let own = |entry: u64| entry * STEP + CLUSTER;
    target.export("lvs/vol").must((0..ENTRIES).map(|i| iscsi::write(own(i), CLUSTER, 0x22)));
    let before = target.lvols();
    target.expect_allocated("lvs/vol", ENTRIES);

    target.fail_writes("lvs", 1);
    expect_error(&detach_error(&target, "lvs/vol"), EIO, "Input/output error", "vol");
    target.stop_failing("lvs");
    assert_eq!(target.lvols(), before);
    target.export("lvs/vol").must([iscsi::read(0, CLUSTER, 0x11)]);

    let base = target.base_bdev("lvs");
    let device = target.iostat(&base);
    target.detach("lvs/vol");
    assert_eq!(target.iostat(&base) - device, ONE_PAGE);

    let after = detached(&before, "lvs/vol");
    let expect_data = |target: &Target| {
        let owned = (0..ENTRIES).map(|i| iscsi::read(own(i), CLUSTER, 0x22));
        let zeroes = (0..ENTRIES).map(|i| iscsi::read(i * STEP, CLUSTER, 0));
        target.export("lvs/vol").must(owned.chain(zeroes));
    };
    assert_eq!(target.lvols(), after);
    expect_data(&target);
    target.crash();
    assert_eq!(target.lvols(), reloaded(after));
    expect_data(&target);
    target.stop();
    let on_disk = metadata::read(target.file("lvs"), &before["lvs/vol"].uuid);
    assert_ne!(on_disk.next, u32::MAX, "the metadata of this lvol should take more than a page");
    assert!(on_disk.internal_xattrs.is_empty());
}

// --- What stays ---

#[test]
fn everything_else_that_the_target_says_of_it_stays() {
    let target = chain();
    for lvol in ["lvs/snap3", "lvs/vol"] {
        let mut before = target.bdev(lvol).unwrap();
        target.detach(lvol);
        let said = before["driver_specific"]["lvol"].as_object_mut().unwrap();
        said.remove("base_snapshot");
        said.insert("clone".to_owned(), json!(false));
        assert_eq!(target.bdev(lvol).unwrap(), before, "{lvol}");
    }
    let lvols = target.lvols();
    assert!(lvols["lvs/snap3"].thin_provision && lvols["lvs/vol"].thin_provision);
}

#[test]
fn on_the_device_only_the_parents_id_and_its_flag_go() {
    let mut target = chain();
    let uuid = target.lvol("lvs/snap3").uuid;
    // Longhorn keeps the checksum of a snapshot in an xattr.
    target.stop();
    metadata::add_xattr(target.file("lvs"), &uuid, "snapshot_checksum", b"6f1d");
    let before = metadata::read(target.file("lvs"), &uuid);
    target.start_again();

    target.detach("lvs/snap3");

    target.kill9();
    let after = metadata::read(target.file("lvs"), &uuid);
    assert_eq!(after.xattrs["snapshot_checksum"], b"6f1d");
    let mut expected = before;
    assert!(expected.internal_xattrs.remove("SNAP").is_some());
    expected.flags[0] &= !metadata::INTERNAL_XATTR_FLAG;
    assert_eq!(after, expected);
    target.start_again();
    target.expect_data("lvs/snap3", &SNAP3_ALONE);
}

// --- Afterwards ---

#[test]
#[cfg_attr(not(spdk_unmap_frees_clusters), ignore = "no unmap frees clusters in this SPDK")]
fn an_unmap_gives_clusters_back() {
    let mut target = chain();
    target.detach("lvs/vol");
    let free = target.free_clusters("lvs");
    target.expect_allocated("lvs/vol", 2);

    target.unmap("lvs/vol", &[3]);

    target.expect_allocated("lvs/vol", 1);
    assert_eq!(target.free_clusters("lvs"), free + 1);
    target.expect_data("lvs/vol", &[0, 0, 0, 0, 0, 0, 0x44, 0]);

    target.crash();
    target.expect_allocated("lvs/vol", 1);
    target.unmap("lvs/vol", &[6]);
    target.expect_allocated("lvs/vol", 0);
    assert_eq!(target.free_clusters("lvs"), free + 2);
    target.expect_data("lvs/vol", &[0; 8]);
}

#[test]
fn it_is_a_thin_lvol_like_any_other() {
    detached_lvols_are_like_any_other(|_| {});
}

#[test]
fn it_is_a_thin_lvol_like_any_other_after_a_crash() {
    detached_lvols_are_like_any_other(Target::crash);
}

#[test]
fn it_is_a_thin_lvol_like_any_other_after_a_clean_restart() {
    detached_lvols_are_like_any_other(Target::restart);
}

/// Does to detached lvols, one each, all that can be done to an lvol. `between` comes between the
/// detach and that.
fn detached_lvols_are_like_any_other(between: impl Fn(&mut Target)) {
    const OWN: [u8; 4] = [0, 0x22, 0, 0];
    let mut target = Target::with_lvstore(Lvstore::default());
    target.create_thin("lvs/origin", 4);
    target.write("lvs/origin", &[(0, 0x11), (1, 0x11)]);
    target.snapshot("lvs/origin", "lvs/parent");
    let lvols =
        ["snapshot", "inflate", "decouple", "resize", "rename", "set_parent", "export", "delete"];
    for name in lvols {
        let lvol = format!("lvs/{name}");
        target.clone_of("lvs/parent", &lvol);
        target.write(&lvol, &[(1, 0x22)]);
        target.detach(&lvol);
    }
    between(&mut target);
    assert_eq!(target.lvol("lvs/parent").clones, ["origin"]);

    target.snapshot("lvs/snapshot", "lvs/its_snapshot");
    target.clone_of("lvs/its_snapshot", "lvs/its_clone");
    assert_eq!(target.parent("lvs/snapshot").as_deref(), Some("its_snapshot"));
    assert_eq!(target.parent("lvs/its_snapshot"), None);
    target.write("lvs/snapshot", &[(2, 0x33)]);
    target.expect_data("lvs/snapshot", &[0, 0x22, 0x33, 0]);
    target.expect_data("lvs/its_clone", &OWN);

    target.must("bdev_lvol_inflate", json!({"name": "lvs/inflate"}));
    target.expect_allocated("lvs/inflate", 4);
    assert!(!target.lvol("lvs/inflate").thin_provision);
    target.expect_data("lvs/inflate", &OWN);

    // What has no parent can't be decoupled from it.
    let decouple = |lvol: &str| target.call("bdev_lvol_decouple_parent", json!({"name": lvol}));
    target.create_thin("lvs/never_had_a_parent", 4);
    let refused = decouple("lvs/decouple");
    assert!(refused.is_err());
    assert_eq!(refused, decouple("lvs/never_had_a_parent"));
    target.expect_data("lvs/decouple", &OWN);

    target.must("bdev_lvol_resize", json!({"name": "lvs/resize", "size_in_mib": 6}));
    target.expect_data("lvs/resize", &[0, 0x22, 0, 0, 0, 0]);
    target.must("bdev_lvol_resize", json!({"name": "lvs/resize", "size_in_mib": 2}));
    target.expect_data("lvs/resize", &[0, 0x22]);

    target.must("bdev_lvol_rename", json!({"old_name": "lvs/rename", "new_name": "renamed"}));
    target.expect_data("lvs/renamed", &OWN);

    if cfg!(spdk_blob_set_parent) {
        let again = json!({"lvol_name": "lvs/set_parent", "parent_name": "lvs/parent"});
        target.must("bdev_lvol_set_parent", again);
        assert_eq!(target.parent("lvs/set_parent").as_deref(), Some("parent"));
        assert_eq!(target.lvol("lvs/parent").clones, ["origin", "set_parent"]);
        target.expect_data("lvs/set_parent", &[0x11, 0x22, 0, 0]);
        target.detach("lvs/set_parent");
        target.expect_data("lvs/set_parent", &OWN);
    }

    target.write("lvs/export", &[(0, 0x55), (3, 0x55)]);
    target.expect_data("lvs/export", &[0x55, 0x22, 0, 0x55]);
    if cfg!(spdk_unmap_frees_clusters) {
        target.unmap("lvs/export", &[1]);
        target.expect_data("lvs/export", &[0x55, 0, 0, 0x55]);
        target.expect_allocated("lvs/export", 2);
    }

    let free = target.free_clusters("lvs");
    target.delete("lvs/delete");
    assert!(target.bdev("lvs/delete").is_none());
    assert_eq!(target.free_clusters("lvs"), free + 1);

    // Nothing of this touched the former parent, nor its other clone.
    target.expect_data("lvs/parent", &[0x11, 0x11, 0, 0]);
    target.expect_data("lvs/origin", &[0x11, 0x11, 0, 0]);
    // The device has all of it.
    let lvols = reloaded(target.lvols());
    target.crash();
    assert_eq!(target.lvols(), lvols);
}

#[test]
#[cfg_attr(not(spdk_blob_set_parent), ignore = "this SPDK has no shallow copy")]
fn a_detached_snapshot_is_a_snapshot_like_any_other() {
    let target = chain();
    target.detach("lvs/snap3");
    target.delete("lvs/snap2");

    target.clone_of("lvs/snap3", "lvs/clone");
    target.expect_data("lvs/clone", &SNAP3_ALONE);
    target.delete("lvs/clone");

    target.create_malloc("copy", 8);
    target.write("copy", &(0..8).map(|cluster| (cluster, 0)).collect::<Vec<_>>());
    let copy = json!({"src_lvol_name": "lvs/snap3", "dst_bdev_name": "copy"});
    let copy = target.must("bdev_lvol_start_shallow_copy", copy);
    while target.must("bdev_lvol_check_shallow_copy", copy.clone())["state"] == "in progress" {
        thread::sleep(Duration::from_millis(10));
    }
    target.export("copy").check(&SNAP3_ALONE).unwrap();

    let set_parent = json!({"lvol_name": "lvs/snap3", "parent_name": "lvs/snap1"});
    // snap1 has lost its only clone, and so can be made a parent only as long as SPDK knows it.
    target.must("bdev_lvol_set_parent", set_parent);
    target.expect_data("lvs/vol", &[0x11, 0x11, 0x33, 0x44, 0, 0x33, 0x44, 0]);
    target.detach("lvs/snap3");
    target.expect_data("lvs/vol", &VOL_ON_SNAP3);

    // A snapshot that is deleted leaves its clusters to its only clone.
    target.delete("lvs/snap3");
    assert_eq!(target.parent("lvs/vol"), None);
    target.expect_allocated("lvs/vol", 4);
    target.expect_data("lvs/vol", &VOL_ON_SNAP3);
    target.expect_data("lvs/snap1", &SNAP1);
}

// --- The former parent ---

#[test]
fn the_former_parent_stays_the_parent_of_its_other_clones() {
    let mut target = chain();
    target.clone_of("lvs/snap2", "lvs/other");
    target.clone_of("lvs/snap2", "lvs/another");
    target.write("lvs/other", &[(0, 0x55)]);
    let before = target.lvols();
    assert_eq!(before["lvs/snap2"].clones, ["another", "other", "snap3"]);

    target.detach("lvs/snap3");

    let after = detached(&before, "lvs/snap3");
    assert_eq!(target.lvols(), after);
    assert_eq!(target.lvol("lvs/snap2").clones, ["another", "other"]);
    target.expect_data("lvs/other", &[0x55, 0x22, 0x22, 0x11, 0x22, 0, 0, 0]);
    target.expect_data("lvs/another", &SNAP2);
    target.crash();
    assert_eq!(target.lvols(), reloaded(after));
    target.expect_data("lvs/other", &[0x55, 0x22, 0x22, 0x11, 0x22, 0, 0, 0]);
}

#[test]
fn the_former_parent_can_be_deleted_right_after_the_reply_every_time() {
    let target = chain();
    let mut connection = target.connect();
    let mut must = |method: &str, params: Value| {
        let result = connection.call(method, params.clone());
        result.unwrap_or_else(|error| panic!("{method} {params} failed: {error}"));
    };
    for round in 0..60 {
        // snap3 <- damaged <- lvol
        let damaged = format!("damaged{round}");
        must("bdev_lvol_clone", json!({"snapshot_name": "lvs/snap3", "clone_name": "lvol"}));
        must("bdev_lvol_snapshot", json!({"lvol_name": "lvs/lvol", "snapshot_name": damaged}));
        // Every other time the detached one is a snapshot itself, with a clone.
        let deepest = round % 2 == 0;
        if !deepest {
            must("bdev_lvol_snapshot", json!({"lvol_name": "lvs/lvol", "snapshot_name": "intact"}));
        }
        let lvol = if deepest { "lvs/lvol" } else { "lvs/intact" };

        must(DETACH, json!({"name": lvol}));
        must("bdev_lvol_delete", json!({"name": format!("lvs/{damaged}")}));

        must("bdev_lvol_delete", json!({"name": "lvs/lvol"}));
        if !deepest {
            must("bdev_lvol_delete", json!({"name": "lvs/intact"}));
        }
    }
    expect_untouched_chain_data(&target);
}

#[test]
fn deleting_the_former_parent_frees_its_clusters_and_changes_no_other_lvol() {
    let mut target = chain();
    let free = target.free_clusters("lvs");

    target.detach("lvs/snap3");
    target.delete("lvs/snap2");

    assert!(target.bdev("lvs/snap2").is_none());
    assert_eq!(target.free_clusters("lvs"), free + 3);
    assert_eq!(target.lvol("lvs/snap1").clones, [""; 0]);
    // snap2 was snap1's only clone, and could have left its clusters to snap3.
    let expect_chain = |target: &Target| {
        target.expect_allocated("lvs/snap1", 4);
        target.expect_allocated("lvs/snap3", 2);
        target.expect_allocated("lvs/vol", 2);
        target.expect_data("lvs/snap1", &SNAP1);
        target.expect_data("lvs/snap3", &SNAP3_ALONE);
        target.expect_data("lvs/vol", &VOL_ON_SNAP3);
    };
    expect_chain(&target);
    target.crash();
    expect_chain(&target);
}

// --- Restarts ---

#[test]
fn it_is_on_the_device_when_the_reply_comes() {
    still_detached_after(Target::crash);
}

#[test]
fn it_survives_a_clean_restart() {
    still_detached_after(Target::restart);
}

fn still_detached_after(restart: impl Fn(&mut Target)) {
    let mut target = chain();
    let mut lvols = target.lvols();
    for lvol in ["lvs/snap3", "lvs/vol", "lvs/snap2"] {
        target.detach(lvol);
        restart(&mut target);
        lvols = reloaded(detached(&lvols, lvol));
        assert_eq!(target.lvols(), lvols, "after detaching {lvol}");
    }
    target.expect_data("lvs/snap1", &SNAP1);
    target.expect_data("lvs/snap2", &SNAP2_ALONE);
    target.expect_data("lvs/snap3", &SNAP3_ALONE);
    target.expect_data("lvs/vol", &VOL_ALONE);
    target.expect_allocated("lvs/vol", 2);
}

// --- Errors ---

#[test]
fn wrong_params_are_refused() {
    let target = chain();
    let before = target.lvols();
    let all_params = [
        Value::Null,
        json!({}),
        json!([]),
        json!(["lvs/vol"]),
        json!({"name": null}),
        json!({"name": 5}),
        json!({"name": true}),
        json!({"name": ["lvs/vol"]}),
        json!({"name": {"name": "lvs/vol"}}),
        json!({"Name": "lvs/vol"}),
        json!({"lvol_name": "lvs/vol"}),
        json!({"name": "lvs/vol", "force": true}),
        json!({"uuid": target.lvol("lvs/vol").uuid, "name": "lvs/vol"}),
    ];
    for params in all_params {
        let error = target.call(DETACH, params.clone()).expect_err("wrong params");
        assert_eq!(error.code, INVALID_PARAMS, "{params}: {error}");
        assert!(error.message.contains("name"), "{params}: {error}");
    }
    let mut null_params = request(DETACH, Value::Null);
    null_params["params"] = Value::Null;
    let error = target.rpc().send(null_params).wait().expect_err("wrong params");
    assert_eq!(error.code, INVALID_PARAMS, "{error}");
    assert_eq!(target.lvols(), before);
    expect_untouched_chain_data(&target);
}

#[test]
fn what_is_not_an_lvol_is_refused() {
    let target = chain();
    target.create_malloc("Malloc0", 8);
    let before = target.lvols();
    let base = target.base_bdev("lvs");
    let nobody = "5a1e8c3b-6d0f-4f0a-9e61-0c1d2e3f4a5b";
    // No bdev at all, and bdevs that are not an lvol.
    for name in ["lvs/nothing", "nothing/vol", "lvs", "vol", nobody, "", "Malloc0", &base] {
        expect_error(&detach_error(&target, name), ENODEV, "No such device", name);
    }
    // The two are told apart.
    assert_ne!(
        detach_error(&target, "Malloc0").message.replace("Malloc0", ""),
        detach_error(&target, "nothing").message.replace("nothing", ""),
    );
    assert_eq!(target.lvols(), before);
    expect_untouched_chain_data(&target);
}

#[test]
fn what_has_no_parent_is_refused_and_the_message_says_which_kind_of_none() {
    let target = chain();
    target.create_thin("lvs/thin", 4);
    target.create_thick("lvs/thick", 4);
    target.clone_of("lvs/snap1", "lvs/inflated");
    target.must("bdev_lvol_inflate", json!({"name": "lvs/inflated"}));
    target.create_malloc("outside", 8);
    target.write("outside", &[(0, 0x77), (7, 0x77)]);
    target.clone_of_bdev("outside", "lvs/esnap");
    let before = target.lvols();

    for lvol in ["lvs/snap1", "lvs/thin", "lvs/thick", "lvs/inflated"] {
        let error = detach_error(&target, lvol);
        expect_error(&error, EINVAL, "Invalid argument", lvol);
        assert!(error.message.contains("no parent"), "{error}");
        assert!(!error.message.contains("external"), "{error}");
    }
    let error = detach_error(&target, "lvs/esnap");
    expect_error(&error, EINVAL, "Invalid argument", "lvs/esnap");
    assert!(error.message.contains("external snapshot"), "{error}");
    assert!(!error.message.contains("no parent"), "{error}");

    assert_eq!(target.lvols(), before);
    expect_untouched_chain_data(&target);
    let export = target.export("lvs/esnap");
    export.must([iscsi::read(0, MIB, 0x77), iscsi::read(7 * MIB, MIB, 0x77)]);
}

#[test]
fn the_second_detach_of_a_lvol_finds_no_parent() {
    let target = chain();
    target.detach("lvs/snap3");
    let lvols = target.lvols();

    let error = detach_error(&target, "lvs/snap3");

    expect_error(&error, EINVAL, "Invalid argument", "lvs/snap3");
    assert_eq!(target.lvols(), lvols);
}

// --- Other operations ---

#[test]
fn a_long_inflate_of_it_is_waited_for_and_then_it_is_busy() {
    refused_in_the_middle_of("bdev_lvol_inflate", &["lvs/vol"]);
}

#[test]
fn a_long_decouple_of_it_is_waited_for_and_then_it_is_busy() {
    refused_in_the_middle_of("bdev_lvol_decouple_parent", &["lvs/vol"]);
}

#[test]
fn a_long_inflate_of_a_clone_or_of_a_clones_clone_is_waited_for_and_then_it_is_busy() {
    // It copies what its ancestors have: all of that, or it would be a mixture.
    refused_in_the_middle_of("bdev_lvol_inflate", &["lvs/snap3", "lvs/snap2"]);
}

/// Starts an operation on vol that copies cluster by cluster, on a device that takes so long for each
/// I/O, and returns when a cluster is about to be copied.
fn start_copying(target: &Target, method: &str, latency_us: u64) -> Pending {
    let free = target.free_clusters("lvs");
    target.slow_down("lvs", latency_us);
    let mut operation = target.start_call(method, json!({"name": "lvs/vol"}));
    while target.free_clusters("lvs") == free {
        assert!(!operation.is_answered(), "{method} ended without having copied anything");
        thread::sleep(Duration::from_millis(10));
    }
    operation
}

fn refused_in_the_middle_of(method: &str, refused: &[&str]) {
    let target = target_with_chain(Lvstore { can_be_slow: true, ..Lvstore::default() });
    let before = target.lvols();
    // A cluster takes a read and two writes at least.
    let mut operation = start_copying(&target, method, 2_000_000);

    let detaches = refused.iter().map(|lvol| target.start_call(DETACH, json!({"name": lvol})));
    let detaches: Vec<_> = detaches.collect();
    let errors: Vec<_> = detaches.into_iter().map(Pending::wait).collect();

    assert!(!operation.is_answered(), "{method} was over before it was in anybody's way");
    for (lvol, error) in refused.iter().zip(errors) {
        let error = error.expect_err("it can't be detached in the middle of that");
        expect_error(&error, EBUSY, "Device or resource busy", lvol);
        assert!(error.message.contains("in progress on lvs/vol"), "{error}");
        assert_eq!(target.lvol(lvol).parent, before[*lvol].parent);
    }
    target.slow_down("lvs", 0);
    assert_eq!(operation.wait(), Ok(json!(true)));
    expect_untouched_chain_data(&target);
    // Nothing is left of the refused ones.
    for lvol in refused {
        if target.parent(lvol).is_some() {
            target.detach(lvol);
        } else {
            assert_eq!(detach_error(&target, lvol).code, EINVAL);
        }
    }
}

#[test]
fn a_short_inflate_of_it_is_waited_for_and_then_there_is_no_parent() {
    let (target, told) = told_after("bdev_lvol_inflate", "lvs/vol");
    let error = told.expect_err("an inflate leaves no parent");
    expect_error(&error, EINVAL, "Invalid argument", "lvs/vol has no parent");
    expect_untouched_chain_data(&target);
}

#[test]
fn a_short_decouple_of_it_is_waited_for_and_then_the_grandparent_is_the_parent() {
    let (target, told) = told_after("bdev_lvol_decouple_parent", "lvs/vol");
    assert_eq!(told, Ok(json!(true)));
    target.expect_data("lvs/vol", &[0, 0, 0x33, 0x44, 0, 0x33, 0x44, 0]);
    assert_eq!(target.parent("lvs/vol"), None);
    assert_eq!(target.lvol("lvs/snap2").clones, ["snap3"]);
    target.expect_data("lvs/snap3", &SNAP3);
}

#[test]
fn a_short_inflate_of_a_clones_clone_is_waited_for_and_copies_all_of_the_chain() {
    let (target, told) = told_after("bdev_lvol_inflate", "lvs/snap2");
    assert_eq!(told, Ok(json!(true)));
    assert_eq!(target.parent("lvs/snap2"), None);
    target.expect_data("lvs/snap2", &SNAP2_ALONE);
    target.expect_data("lvs/vol", &VOL);
}

/// What the detach of an lvol is told that comes while vol is copied, which ends soon.
fn told_after(method: &str, lvol: &str) -> (Target, RpcResult) {
    let target = target_with_chain(Lvstore { can_be_slow: true, ..Lvstore::default() });
    let operation = start_copying(&target, method, 500_000);
    let mut detach = target.start_call(DETACH, json!({"name": lvol}));
    // SPDK looks at every connection before it sends the next answer on any: now it has started.
    target.lvol(lvol);
    assert!(!detach.is_answered(), "the detach of {lvol} doesn't wait for {method}");
    target.slow_down("lvs", 0);
    let told = detach.wait();
    assert_eq!(operation.wait(), Ok(json!(true)));
    (target, told)
}

#[test]
#[cfg_attr(not(spdk_blob_set_parent), ignore = "this SPDK has no shallow copy")]
fn a_long_shallow_copy_of_it_is_waited_for_and_then_it_is_busy() {
    let target = target_with_chain(Lvstore { can_be_slow: true, ..Lvstore::default() });
    target.create_malloc("copy", 8);
    // It reads two clusters, one after the other.
    target.slow_down("lvs", 4_000_000);
    let copy = json!({"src_lvol_name": "lvs/snap3", "dst_bdev_name": "copy"});
    let copy = target.must("bdev_lvol_start_shallow_copy", copy);

    let error = detach_error(&target, "lvs/snap3");

    // A copy that has ended is told of once.
    let state = || target.must("bdev_lvol_check_shallow_copy", copy.clone())["state"].take();
    assert_eq!(state(), "in progress", "the copy was over too early");
    expect_error(&error, EBUSY, "Device or resource busy", "lvs/snap3");
    assert_eq!(target.parent("lvs/snap3").as_deref(), Some("snap2"));
    target.slow_down("lvs", 0);
    let ended = std::iter::repeat_with(state).find(|state| {
        thread::sleep(Duration::from_millis(10));
        state != "in progress"
    });
    assert_eq!(ended, Some(json!("complete")));
    target.detach("lvs/snap3");
    target.expect_data("lvs/snap3", &SNAP3_ALONE);
}

#[test]
fn while_a_detach_runs_other_operations_on_it_are_busy_and_other_detaches_wait() {
    let target = target_with_chain(Lvstore { can_be_slow: true, ..Lvstore::default() });
    let export = target.export("lvs/vol");
    target.slow_down("lvs", 500_000);
    let vol = json!({"name": "lvs/vol"});
    let detach = request(DETACH, json!({"name": "lvs/snap3"}));
    let again = request(DETACH, json!({"name": "lvs/snap3"}));
    let detach_of_clone = request(DETACH, vol.clone());
    let refused = [
        ("bdev_lvol_inflate", vol.clone()),
        ("bdev_lvol_decouple_parent", vol),
        ("bdev_lvol_snapshot", json!({"lvol_name": "lvs/vol", "snapshot_name": "new"})),
        ("bdev_lvol_set_parent", json!({"lvol_name": "lvs/vol", "parent_name": "lvs/snap1"})),
    ];
    let there = refused.into_iter().filter(|(method, _)| target.has_method(method));
    let refused: Vec<_> = there.map(|(method, params)| request(method, params)).collect();
    // SPDK closes the blob before it answers, and for that waits until its metadata is written.
    let clone = json!({"snapshot_name": "lvs/snap3", "clone_name": "new"});
    let refused_late = request("bdev_lvol_clone", clone);

    let mut connection = target.connect();
    connection.send_all(&[detach.clone(), again.clone(), detach_of_clone.clone()]);
    connection.send_all(&refused);
    connection.send(&refused_late);
    let errors: Vec<_> = refused.iter().map(|request| connection.receive(request)).collect();
    for detach in [&detach, &again, &detach_of_clone] {
        assert!(!connection.is_answered(detach), "{detach} is not under way");
    }

    // What is written meanwhile is not lost.
    thread::scope(|scope| {
        let writer = scope.spawn(move || export.write(&[(0, 0x55), (7, 0x55)]));
        assert_eq!(connection.receive(&detach), Ok(json!(true)));
        target.slow_down("lvs", 0);
        writer.join().expect("the write works");
    });
    let late = (&refused_late, connection.receive(&refused_late));
    for (request, error) in refused.iter().zip(errors).chain([late]) {
        let error = error.expect_err(&format!("{request} works while a detach runs"));
        assert!(error.message.contains("Device or resource busy"), "{request}: {error}");
    }
    let error = connection.receive(&again).expect_err("it is detached already");
    expect_error(&error, EINVAL, "Invalid argument", "lvs/snap3 has no parent");
    assert_eq!(connection.receive(&detach_of_clone), Ok(json!(true)));
    target.expect_data("lvs/snap3", &SNAP3_ALONE);
    target.expect_data("lvs/vol", &[0x55, 0, 0, 0x44, 0, 0, 0x44, 0x55]);
}

// --- A device that fails ---

#[test]
fn if_the_device_fails_one_write_the_parent_stays() {
    parent_stays_if_writes_fail(1, |error, lvol| {
        expect_error(error, EIO, "Input/output error", lvol);
        assert!(error.message.contains("it still has its parent lvs/"), "{error}");
    });
}

#[test]
fn if_the_device_fails_every_write_the_parent_stays_and_the_device_is_in_doubt() {
    parent_stays_if_writes_fail(1_000_000, expect_in_doubt);
}

/// The old metadata could not be written again: nobody knows what the device holds.
#[track_caller]
fn expect_in_doubt(error: &RpcError, lvol: &str) {
    expect_error(error, ENOTRECOVERABLE, "State not recoverable", lvol);
    for words in ["Input/output error", "still has its parent lvs/", "after a restart"] {
        assert!(error.message.contains(words), "{error}");
    }
}

fn parent_stays_if_writes_fail(count: u32, expect_failure: impl Fn(&RpcError, &str)) {
    for lvol in ["lvs/snap3", "lvs/vol"] {
        let mut target = target_with_chain(Lvstore { can_fail: true, ..Lvstore::default() });
        let before = target.lvols();

        target.fail_writes("lvs", count);
        let error = detach_error(&target, lvol);
        target.stop_failing("lvs");

        expect_failure(&error, lvol);
        assert_eq!(target.lvols(), before);
        expect_untouched_chain_data(&target);
        target.crash();
        assert_eq!(target.lvols(), reloaded(before.clone()));
        expect_untouched_chain_data(&target);

        // The same without a restart: a later detach works, and is on the device then.
        target.fail_writes("lvs", count);
        expect_failure(&detach_error(&target, lvol), lvol);
        target.stop_failing("lvs");
        target.detach(lvol);
        target.crash();
        assert_eq!(target.lvols(), reloaded(detached(&before, lvol)));
        let (snap3, vol) =
            if lvol == "lvs/vol" { (SNAP3, VOL_ALONE) } else { (SNAP3_ALONE, VOL_ON_SNAP3) };
        target.expect_data("lvs/snap3", &snap3);
        target.expect_data("lvs/vol", &vol);
    }
}

#[test]
fn after_a_failed_write_the_lvol_works_on_as_the_clone_that_it_is() {
    let mut target = target_with_chain(Lvstore { can_fail: true, ..Lvstore::default() });
    target.fail_writes("lvs", 1_000_000);
    expect_in_doubt(&detach_error(&target, "lvs/vol"), "lvs/vol");
    target.stop_failing("lvs");

    // What writes its metadata next writes that it has a parent.
    target.write("lvs/vol", &[(0, 0x55)]);
    target.must("bdev_lvol_rename", json!({"old_name": "lvs/vol", "new_name": "renamed"}));

    let expect_chain = |target: &Target| {
        assert_eq!(target.parent("lvs/renamed").as_deref(), Some("snap3"));
        assert_eq!(target.lvol("lvs/snap3").clones, ["renamed"]);
        target.expect_data("lvs/renamed", &[0x55, 0x22, 0x33, 0x44, 0x22, 0x33, 0x44, 0]);
    };
    expect_chain(&target);
    target.crash();
    expect_chain(&target);
    target.detach("lvs/renamed");
    target.restart();
    target.expect_data("lvs/renamed", &[0x55, 0, 0, 0x44, 0, 0, 0x44, 0]);
}

#[test]
fn a_device_that_is_out_of_resources_for_a_moment_only_delays_it() {
    let mut target = target_with_chain(Lvstore { can_fail: true, ..Lvstore::default() });
    let before = target.lvols();
    target.inject("lvs", "write", "nomem", 1);

    target.detach("lvs/snap3");

    let after = detached(&before, "lvs/snap3");
    assert_eq!(target.lvols(), after);
    target.crash();
    assert_eq!(target.lvols(), reloaded(after));
}

// --- The method in the target ---

#[test]
fn the_target_lists_the_method() {
    let target = Target::start();
    for params in [json!({}), json!({"current": true})] {
        let methods = target.must("rpc_get_methods", params.clone());
        assert!(
            methods.as_array().unwrap().contains(&json!(DETACH)),
            "rpc_get_methods {params} does not list {DETACH}"
        );
    }
}

#[test]
fn the_log_tells_of_the_registration_and_of_each_detach() {
    let target = Target::with_lvstore(Lvstore::default());
    target.create_thin("lvs/keeper", 4);
    target.snapshot("lvs/keeper", "lvs/damaged");
    target.clone_of("lvs/damaged", "lvs/quiet");
    let lines_with = |words: &[&str]| -> Vec<String> {
        let log = target.log();
        let lines = log.lines().filter(|line| words.iter().all(|word| line.contains(word)));
        lines.map(str::to_owned).collect()
    };

    // Written by a thread of their own, in their order.
    let one_line_with = |words: &[&str]| -> String {
        target.wait_for_log(|log| {
            log.lines().any(|line| words.iter().all(|word| line.contains(word)))
        });
        let [line] = &lines_with(words)[..] else { panic!("several lines with {words:?}") };
        line.clone()
    };

    let version = concat!("(version ", env!("CARGO_PKG_VERSION"), ", built for SPDK v");
    one_line_with(&["*NOTICE*", DETACH, version, "; devices are flushed)"]);

    assert_eq!(lines_with(&["*NOTICE*", "lvs/keeper"]), [""; 0]);
    target.detach("lvs/keeper");
    assert!(one_line_with(&["*NOTICE*", "lvs/keeper"]).contains("lvs/damaged"));

    // A refusal is a WARNING, in the words of the reply.
    let error = detach_error(&target, "lvs/keeper");
    let told = one_line_with(&["*WARNING*", "lvs/keeper has"]);
    assert!(told.contains(&error.message), "{told} does not say {error}");

    // Who wants no notices gets none.
    target.must("log_set_print_level", json!({"level": "WARNING"}));
    target.detach("lvs/quiet");
    detach_error(&target, "lvs/quiet");
    one_line_with(&["*WARNING*", "lvs/quiet"]);
    assert_eq!(lines_with(&["lvs/quiet"]).len(), 1);

    // How long each step took, for who asks for it.
    target.must("log_set_print_level", json!({"level": "INFO"}));
    target.clone_of("lvs/damaged", "lvs/unasked");
    target.clone_of("lvs/damaged", "lvs/asked");
    target.must("log_clear_flag", json!({"flag": "lvol_detach"}));
    target.detach("lvs/unasked");
    target.must("log_set_flag", json!({"flag": "lvol_detach"}));
    target.detach("lvs/asked");
    let steps = ["open ", ", write ", ", copies ", ", reads ", ", release "];
    one_line_with(&[&["*INFO*", "lvs/asked: "], &steps[..]].concat());
    assert_eq!(lines_with(&["*INFO*", "lvs/unasked"]), [""; 0]);
}

#[test]
fn the_log_component_can_be_set() {
    let target = Target::start();
    for (method, enabled) in [("log_set_flag", true), ("log_clear_flag", false)] {
        target.must(method, json!({"flag": "lvol_detach"}));
        assert_eq!(target.must("log_get_flags", Value::Null)["lvol_detach"], enabled);
    }
}
