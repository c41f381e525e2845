//! States that SPDK leaves behind when one of its operations fails half-way, or passes through while an
//! lvstore loads: its lists of clones and of lvols don't agree with what an lvol reads through.
//! A detach works, or is refused and changes nothing; the target survives, and after a restart
//! nothing is lost.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use common::lvstore::{Lvstore, MIB};
use common::metadata;
use common::rpc::{EBUSY, RpcError, RpcResult, request};
use common::target::Target;
use serde_json::{Value, json};

const DETACH: &str = "bdev_lvol_detach_parent";
const SNAPSHOT: &str = "bdev_lvol_snapshot";
const DELETE: &str = "bdev_lvol_delete";

/// "Structure needs cleaning."
const EUCLEAN: i64 = -(libc::EUCLEAN as i64);

/// Only a target that hangs makes a test wait so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// Every lvol has four clusters.
const CLUSTERS: u64 = 4;

/// A target with an lvstore that can fail and be slow, whose super block says already that it is in
/// use: the writes of an operation are those of the blobs.
fn start() -> Target {
    let mut target = Target::start();
    target
        .create_lvstore("lvs", Lvstore { can_fail: true, can_be_slow: true, ..Lvstore::default() });
    target.create_thin("lvs/hole", CLUSTERS);
    target.create_thin("lvs/vol", CLUSTERS);
    target
}

/// Makes a snapshot of `lvs/vol` whose `nth` write fails.
///
/// Its metadata page is one before that of vol, where the lvol `hole` was. With one behind it SPDK
/// itself, without a detach, would crash whenever it loads what is left on the device after the
/// second or third write: it deletes the half-made snapshot, which it takes for a listed clone of vol's
/// parent as soon as that has another (`bs_blob_list_remove`; 26.01).
#[track_caller]
fn fail_snapshot(target: &Target, nth: u64) {
    target.delete("lvs/hole");
    let params = json!({"lvol_name": "lvs/vol", "snapshot_name": "n"});
    target.call_with_failing_write("lvs", nth, SNAPSHOT, params).unwrap_err();
}

/// Takes a snapshot of `lvs/vol` that owns one cluster, which is full of this byte.
fn snapshot(target: &Target, name: &str, cluster: u64, byte: u8) {
    target.write("lvs/vol", &[(cluster, byte)]);
    target.snapshot("lvs/vol", name);
}

/// p <- r <- vol, of which the first two own a cluster each.
fn start_with_chain() -> Target {
    let target = start();
    snapshot(&target, "lvs/p", 0, 0x11);
    snapshot(&target, "lvs/r", 1, 0x22);
    target
}

/// What is refused changes nothing: no write reaches the device, and memory stays as it is.
#[track_caller]
fn expect_inconsistent(target: &mut Target, detached: &str, named: &str) {
    let writes = target.iostat(&target.base_bdev("lvs")).writes;
    let lvols = target.lvols();

    let error = refused(target, detached);

    assert_eq!(error.code, EUCLEAN, "{error}");
    assert!(error.message.contains(named), "{named} is not named: {error}");
    assert_eq!(target.iostat(&target.base_bdev("lvs")).writes, writes, "{error}");
    assert_eq!(target.lvols(), lvols, "{error}");
    // Nothing of it holds anything.
    assert_eq!(refused(target, detached), error);
}

#[track_caller]
fn refused(target: &mut Target, detached: &str) -> RpcError {
    let mut pending = target.start_call(DETACH, json!({"name": detached}));
    let started = Instant::now();
    while !pending.is_answered() {
        target.check_alive();
        assert!(started.elapsed() < PATIENCE, "the detach of {detached} is not answered");
        thread::sleep(Duration::from_millis(2));
    }
    let answer = pending.wait();
    target.check_alive();
    answer.expect_err("it is not refused")
}

/// A snapshot is the clone of its own clone.
#[cfg(spdk_blob_set_parent)]
fn start_with_cycle() -> Target {
    let target = start();
    snapshot(&target, "lvs/p", 0, 0x11);
    snapshot(&target, "lvs/r", 1, 0x22);
    snapshot(&target, "lvs/s", 2, 0x33);
    target.write("lvs/vol", &[(3, 0x44)]);
    target.must("bdev_lvol_set_parent", json!({"lvol_name": "lvs/r", "parent_name": "lvs/s"}));
    assert_eq!(target.parent("lvs/r"), Some("s".to_owned()));
    assert_eq!(target.parent("lvs/s"), Some("r".to_owned()));
    target
}

#[cfg(spdk_blob_set_parent)]
#[track_caller]
fn detach_in_cycle(target: &Target, lvol: &str) {
    let answer = target.call_within_memory(DETACH, json!({"name": lvol}), 256);
    assert_eq!(answer, Ok(json!(true)), "the detach of {lvol}");
}

#[test]
#[cfg(spdk_blob_set_parent)]
fn a_cycle_is_broken() {
    let mut target = start_with_cycle();
    detach_in_cycle(&target, "lvs/r");

    for restarted in [false, true] {
        if restarted {
            target.restart();
        }
        assert_eq!(target.parent("lvs/r"), None);
        assert_eq!(target.lvol("lvs/r").clones, ["s"]);
        assert_eq!(target.parent("lvs/s"), Some("r".to_owned()));
        assert_eq!(target.lvol("lvs/s").clones, ["vol"]);
        assert_eq!(target.parent("lvs/vol"), Some("s".to_owned()));
        target.expect_data("lvs/r", &[0, 0x22, 0, 0]);
        target.expect_data("lvs/s", &[0, 0x22, 0x33, 0]);
        target.expect_data("lvs/vol", &[0, 0x22, 0x33, 0x44]);
    }
    // What it was before the cycle. A snapshot without a clone is none for SPDK after a restart.
    target.clone_of("lvs/p", "lvs/clone");
    target.must("bdev_lvol_set_parent", json!({"lvol_name": "lvs/r", "parent_name": "lvs/p"}));
    target.expect_data("lvs/vol", &[0x11, 0x22, 0x33, 0x44]);
    target.stop();
}

#[test]
#[cfg(spdk_blob_set_parent)]
fn a_cycle_is_broken_at_its_other_end() {
    let mut target = start_with_cycle();
    detach_in_cycle(&target, "lvs/s");

    for restarted in [false, true] {
        if restarted {
            target.restart();
        }
        assert_eq!(target.parent("lvs/s"), None);
        assert_eq!(target.lvol("lvs/s").clones, ["r", "vol"]);
        assert_eq!(target.parent("lvs/r"), Some("s".to_owned()));
        assert_eq!(target.lvol("lvs/r").clones, [""; 0]);
        target.expect_data("lvs/s", &[0, 0, 0x33, 0]);
        target.expect_data("lvs/r", &[0, 0x22, 0x33, 0]);
        target.expect_data("lvs/vol", &[0, 0, 0x33, 0x44]);
    }
    target.stop();
}

#[test]
#[cfg(spdk_blob_set_parent)]
fn a_lvol_that_reads_through_a_cycle_is_detached() {
    let mut target = start_with_cycle();
    detach_in_cycle(&target, "lvs/vol");
    assert_eq!(target.parent("lvs/vol"), None);
    target.expect_data("lvs/vol", &[0, 0, 0, 0x44]);
    assert_eq!(target.lvol("lvs/s").clones, ["r"]);
    // SPDK can't load a cycle.
    detach_in_cycle(&target, "lvs/r");
    target.restart();
    target.expect_data("lvs/vol", &[0, 0, 0, 0x44]);
    target.expect_data("lvs/s", &[0, 0x22, 0x33, 0]);
    target.stop();
}

/// The third write of a snapshot is that of its original, which from then on reads through the new
/// blob, and is in nobody's list of clones.
#[test]
fn a_clone_that_is_in_no_list_is_found() {
    let mut target = start_with_chain();
    fail_snapshot(&target, 3);
    // So far SPDK itself.
    assert_eq!(target.bdev("lvs/n"), None);
    target.expect_data("lvs/vol", &[0x11, 0x22, 0, 0]);

    for detached in ["lvs/r", "lvs/vol"] {
        expect_inconsistent(&mut target, detached, "vol");
    }
    target.expect_data("lvs/vol", &[0x11, 0x22, 0, 0]);

    expect_whole_after_a_crash(&mut target);
}

/// After the restart the chain is p <- r <- vol with or without n between the last two, and nothing is
/// lost. Then r can be detached.
#[track_caller]
fn expect_whole_after_a_crash(target: &mut Target) {
    target.crash();
    let parent = target.parent("lvs/vol");
    assert!(["r", "n"].map(|name| Some(name.to_owned())).contains(&parent), "{parent:?}");
    target.expect_data("lvs/vol", &[0x11, 0x22, 0, 0]);
    target.expect_data("lvs/r", &[0x11, 0x22, 0, 0]);
    target.expect_data("lvs/p", &[0x11, 0, 0, 0]);

    target.detach("lvs/r");
    target.expect_data("lvs/r", &[0, 0x22, 0, 0]);
    target.expect_data("lvs/vol", &[0, 0x22, 0, 0]);
    target.delete("lvs/p");
    target.restart();
    assert_eq!(target.parent("lvs/r"), None);
    target.expect_data("lvs/vol", &[0, 0x22, 0, 0]);
    target.stop();
}

/// If the last write of a snapshot fails it is marked as half-made, and a restart looks at whether its
/// original reads through it: if not, it is deleted.
#[test]
fn a_half_made_snapshot_is_not_parted_from() {
    let mut target = start();
    target.write("lvs/vol", &[(0, 0x11)]);
    fail_snapshot(&target, 4);
    let before = target.lvol("lvs/vol");
    assert!(before.clone, "{before:?}");

    expect_inconsistent(&mut target, "lvs/vol", "vol");

    target.crash();
    assert_eq!(target.parent("lvs/vol"), Some("n".to_owned()));
    target.expect_data("lvs/vol", &[0x11, 0, 0, 0]);
    target.detach("lvs/vol");
    target.expect_data("lvs/vol", &[0; 4]);
    target.restart();
    // The former parent has its data.
    assert_eq!(target.parent("lvs/vol"), None);
    target.expect_data("lvs/n", &[0x11, 0, 0, 0]);
    target.expect_data("lvs/vol", &[0; 4]);
    target.stop();
}

/// The deletion of a snapshot fails at the write of its clone, which is left with a backing device
/// that is gone: any I/O of it may end the target.
#[test]
fn a_parent_whose_deletion_has_failed_is_refused() {
    let mut target = start_with_chain();
    let params = json!({"name": "lvs/r"});
    target.call_with_failing_write("lvs", 2, DELETE, params).unwrap_err();
    assert_eq!(target.bdev("lvs/r"), None);

    expect_inconsistent(&mut target, "lvs/vol", "vol");

    target.crash();
    assert_eq!(target.parent("lvs/vol"), Some("r".to_owned()));
    target.expect_data("lvs/vol", &[0x11, 0x22, 0, 0]);
    target.detach("lvs/vol");
    target.expect_data("lvs/vol", &[0; 4]);
    target.expect_data("lvs/r", &[0x11, 0x22, 0, 0]);
    target.stop();
}

/// The second write of a snapshot is the first of the new blob that has its original's clusters. The
/// new blob is let go, and with it the backing device of the original, whose I/O may end the target
/// from then on. Every list looks right.
#[test]
fn a_clone_whose_backing_device_is_gone_is_refused() {
    for siblings in [0, 1] {
        let mut target = start_with_chain();
        if siblings > 0 {
            target.clone_of("lvs/r", "lvs/sibling");
        }
        fail_snapshot(&target, 2);
        assert_eq!(target.parent("lvs/vol"), Some("r".to_owned()));

        // Which of several clones it is nobody can tell.
        for (detached, named) in [("lvs/vol", "lvs/vol"), ("lvs/r", "a clone of lvs/r")] {
            expect_inconsistent(&mut target, detached, named);
        }

        expect_whole_after_a_crash(&mut target);
    }
}

/// Only the super block can't be written. It says that the lvstore was unloaded cleanly, and a detach
/// has no reason to change that.
#[test]
fn a_super_block_that_can_not_be_written_is_no_matter() {
    let mut target = Target::start();
    let files = ["super", "rest"].map(|name| target.dir().join(name));
    for (file, size) in files.iter().zip([4096, 64 * MIB]) {
        File::create(file).and_then(|file| file.set_len(size)).unwrap();
    }
    attach_split(&target, &files);
    target.must("bdev_lvol_create_lvstore", json!({"bdev_name": "split", "lvs_name": "lvs"}));
    target.create_thin("lvs/vol", CLUSTERS);
    target.snapshot("lvs/vol", "lvs/p");
    target.clone_of("lvs/p", "lvs/clone");

    target.stop();
    target.start_again();
    attach_split(&target, &files);
    target.must("bdev_wait_for_examine", Value::Null);
    let super_block = read_page(&files[0]);
    target.must(
        "bdev_error_inject_error",
        json!({"name": "EE_super", "io_type": "write", "error_type": "failure", "num": 1000}),
    );

    target.detach("lvs/vol");
    assert_eq!(target.parent("lvs/vol"), None);
    assert!(read_page(&files[0]) == super_block, "the super block was written");

    // Whether it is found to be unloaded cleanly, as now, or not.
    target.kill9();
    for file_says_clean in [true, false] {
        target.start_again();
        attach_split(&target, &files);
        target.must("bdev_wait_for_examine", Value::Null);
        assert_eq!(target.parent("lvs/vol"), None);
        assert_eq!(target.parent("lvs/clone"), Some("p".to_owned()));
        if file_says_clean {
            // Any other change of the metadata writes it.
            target.must("bdev_lvol_rename", json!({"old_name": "lvs/clone", "new_name": "c"}));
            target.must("bdev_lvol_rename", json!({"old_name": "lvs/c", "new_name": "clone"}));
            assert!(read_page(&files[0]) != super_block, "the super block was not written");
        }
        target.kill9();
    }
}

/// A device whose first block, where the super block is, is on a bdev of its own that can fail.
#[track_caller]
fn attach_split(target: &Target, files: &[impl AsRef<Path>; 2]) {
    for (name, file) in ["super", "rest"].into_iter().zip(files) {
        let file = file.as_ref();
        let aio = json!({"name": name, "filename": file, "block_size": 4096});
        target.must("bdev_aio_create", aio);
    }
    target.must("bdev_error_create", json!({"base_name": "super"}));
    target.must(
        "bdev_raid_create",
        json!({
            "name": "split", "raid_level": "concat", "strip_size_kb": 4,
            "base_bdevs": ["EE_super", "rest"],
        }),
    );
}

fn read_page(file: &Path) -> Vec<u8> {
    let mut page = vec![0; 4096];
    File::open(file).and_then(|file| file.read_exact_at(&mut page, 0)).unwrap();
    page
}

/// More detaches than the target has turns wait for one device.
#[test]
fn detaches_that_wait_for_a_dead_device_hold_up_nobody_else() {
    const CLONES: usize = 300;
    // Short enough for the target to stop: SPDK writes to the device when it unloads the lvstore.
    const LATENCY: Duration = Duration::from_secs(5);
    let mut target = Target::start();
    for lvstore in ["dead", "alive"] {
        // A metadata page for each clone: without, SPDK 26.01 crashes.
        let options =
            Lvstore { can_be_slow: true, md_pages_per_100_clusters: 400, ..Lvstore::default() };
        target.create_lvstore(lvstore, options);
        target.create_thin(&format!("{lvstore}/vol"), CLUSTERS);
        target.write(&format!("{lvstore}/vol"), &[(0, 0x11)]);
        target.snapshot(&format!("{lvstore}/vol"), &format!("{lvstore}/p"));
    }
    for clone in 0..CLONES {
        target.clone_of("dead/p", &format!("dead/c{clone}"));
    }
    target.slow_down("dead", LATENCY.as_micros().try_into().unwrap());
    let mut connection = target.connect();
    let requests: Vec<_> = (0..CLONES)
        .map(|clone| request(DETACH, json!({"name": format!("dead/c{clone}")})))
        .collect();
    connection.send_all(&requests);

    target.detach("alive/vol");
    let answered = requests.iter().filter(|request| connection.is_answered(request)).count();
    assert_eq!(answered, 0, "the detach has waited for those of the other lvstore");
    target.expect_data("alive/vol", &[0; 4]);

    // Those that wait need not each wait for the device before the target ends.
    target.stop();
    target.start_again();
    assert_eq!(target.parent("alive/vol"), None);
    let lvols = target.lvols();
    let mut attached = 0;
    for clone in 0..CLONES {
        match &lvols[&format!("dead/c{clone}")].parent {
            None => {}
            Some(parent) => {
                assert_eq!(parent, "p");
                attached += 1;
            }
        }
    }
    eprintln!("{} of {CLONES} were detached before the target ended", CLONES - attached);
    assert_eq!(lvols["dead/p"].clones.len(), attached + 1);
    for clone in [0, CLONES - 1] {
        let lvol = format!("dead/c{clone}");
        let first = if lvols[&lvol].parent.is_some() { 0x11 } else { 0 };
        target.expect_data(&lvol, &[first, 0, 0, 0]);
    }
    target.stop();
}

/// A target that loads an lvstore: p <- r <- s, of which p, r and s own a cluster each. r has its bdev;
/// s has none, because it waits for a request set to be opened with. Reads are slow.
///
/// An lvol whose opening finds no request set is put off, and is not among the store's lvols meanwhile
/// (`retry_open_lvols`, module/bdev/lvol/vbdev_lvol.c). As many as there are request sets are opened at
/// a time, in the order of their metadata pages.
fn start_while_loading() -> Target {
    // Request sets: `SPDK_LVOL_BLOB_OPTS_CHANNEL_OPS`, 512.
    const FILLERS: u64 = 3 * 512;
    let mut target = Target::start();
    target.create_lvstore(
        "lvs",
        Lvstore { size_mib: 128, cluster_size: 65536, can_be_slow: true, ..Lvstore::default() },
    );
    target.create_thin("lvs/vol", 1);
    snapshot(&target, "lvs/p", 0, 0x11);
    snapshot(&target, "lvs/r", 1, 0x22);
    target.delete("lvs/vol");
    // To be opened they need a second request set, for their parent, and find none: those that they had
    // are free then, so that a detach may find one.
    for clone in 0..20 {
        target.clone_of("lvs/p", &format!("lvs/clone{clone}"));
    }
    let mut connection = target.connect();
    let fillers: Vec<_> = (0..FILLERS)
        .map(|filler| {
            let name = format!("filler{filler}");
            let thin = json!({
                "lvs_name": "lvs", "lvol_name": name, "size_in_mib": 1, "thin_provision": true,
            });
            request("bdev_lvol_create", thin)
        })
        .collect();
    for some in fillers.chunks(50) {
        connection.send_all(some);
        for request in some {
            connection.receive(request).unwrap();
        }
    }
    target.clone_of("lvs/r", "lvs/s");
    target.write("lvs/s", &[(2, 0x33)]);
    target.restart();
    let base = target.base_bdev("lvs");
    let reads = target.iostat(&base).reads;

    // If s is opened before anybody has seen that r is, then again on a slower device.
    for opening_ms in [400, 1000, 2500] {
        target.stop();
        // First every blob is read, one after the other, with some reads of the device for each; then
        // all lvols are opened, with one read for each of the fillers. The last reads before that are
        // slowed down more and more, so that a busy machine isn't too late.
        let _loaded = target.start_again_slowly(2_000);
        for (left, latency_ms) in [(150, 20), (20, opening_ms)] {
            let near = reads - FILLERS - left;
            wait_until("most blobs are read", || target.iostat(&base).reads > near);
            target.slow_down_reads("lvs", latency_ms * 1000);
        }
        wait_until("r has a bdev", || target.bdev("lvs/r").is_some());
        if target.bdev("lvs/s").is_none() {
            return target;
        }
        target.slow_down_reads("lvs", 0);
        target.must("bdev_wait_for_examine", Value::Null);
    }
    panic!("the lvstore was loaded too fast");
}

#[track_caller]
fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < PATIENCE, "{what}: that does not happen");
        thread::sleep(Duration::from_millis(2));
    }
}

/// The end of those: s is there, and r is detached if it was not before.
#[track_caller]
fn expect_detached_after_loading(mut target: Target, answer: RpcResult) {
    target.slow_down("lvs", 0);
    wait_until("s has a bdev", || target.bdev("lvs/s").is_some());
    match answer {
        Ok(answer) => assert_eq!(answer, json!(true)),
        Err(error) => {
            assert_eq!(error.code, EBUSY, "{error}");
            assert!(error.message.contains("lvs/s"), "it does not say what it waits for: {error}");
            assert_eq!(target.parent("lvs/r"), Some("p".to_owned()));
            target.detach("lvs/r");
        }
    }
    for restarted in [false, true] {
        if restarted {
            target.restart();
        }
        assert_eq!(target.parent("lvs/r"), None);
        assert_eq!(target.parent("lvs/s"), Some("r".to_owned()));
        for (lvol, clusters) in [("lvs/r", [0, 0x22, 0]), ("lvs/s", [0, 0x22, 0x33])] {
            target.export(lvol).check(&clusters).unwrap();
        }
    }
    target.delete("lvs/s");
    target.restart();
    assert_eq!(target.bdev("lvs/s"), None);
    target.stop();
}

#[test]
#[cfg_attr(
    not(spdk_blob_set_parent),
    ignore = "24.01 does not list a bdev while its lvstore is loaded"
)]
fn a_lvol_that_is_opened_for_long_is_named() {
    let target = start_while_loading();
    target.slow_down_reads("lvs", 8_000_000);
    let answer = target.call(DETACH, json!({"name": "lvs/r"}));
    assert_eq!(target.bdev("lvs/s"), None, "s was opened too fast");
    eprintln!("the detach was told {answer:?}");
    expect_detached_after_loading(target, answer);
}

#[test]
#[cfg_attr(
    not(spdk_blob_set_parent),
    ignore = "24.01 does not list a bdev while its lvstore is loaded"
)]
fn a_read_of_a_lvol_that_is_opened_meanwhile_is_waited_for() {
    let target = start_while_loading();
    target.slow_down_writes("lvs", 3_000_000);
    let detach = target.start_call(DETACH, json!({"name": "lvs/r"}));
    wait_until("s has a bdev", || target.bdev("lvs/s").is_some());
    let export = target.export("lvs/s");
    target.slow_down_reads("lvs", 6_000_000);

    let (answer, answered, read, read_ended) = thread::scope(|scope| {
        let read = scope.spawn(|| (export.check(&[0x11]), Instant::now()));
        let answer = detach.wait();
        let answered = Instant::now();
        let (read, read_ended) = read.join().unwrap();
        (answer, answered, read, read_ended)
    });

    eprintln!("the detach was told {answer:?}, the read ended so: {read:?}");
    if answer.is_ok() && read.is_ok() {
        // qemu-io ends a little later than its read.
        let after = read_ended.saturating_duration_since(answered);
        assert!(after < Duration::from_secs(1), "old data was read {after:?} after the reply");
    }
    drop(export);
    expect_detached_after_loading(target, answer);
}

#[test]
#[cfg_attr(
    not(spdk_blob_set_parent),
    ignore = "24.01 does not list a bdev while its lvstore is loaded"
)]
fn a_lvol_that_is_opened_meanwhile_can_be_deleted() {
    let mut target = start_while_loading();
    target.slow_down_writes("lvs", 3_000_000);
    let detach = target.start_call(DETACH, json!({"name": "lvs/r"}));
    wait_until("s has a bdev", || target.bdev("lvs/s").is_some());
    let delete = target.start_call(DELETE, json!({"name": "lvs/s"}));
    let answer = detach.wait();
    let deleted = delete.wait();
    eprintln!("the detach was told {answer:?}, the deletion {deleted:?}");

    target.slow_down("lvs", 0);
    assert_eq!(deleted, Ok(json!(true)));
    assert_eq!(target.bdev("lvs/s"), None);
    target.restart();
    assert_eq!(target.bdev("lvs/s"), None, "it is back");
    let parent = answer.is_err().then(|| "p".to_owned());
    assert_eq!(target.parent("lvs/r"), parent);
    target.stop();
}

/// Lvols of very old lvstores have no UUID in their metadata.
#[test]
fn lvols_without_a_uuid_are_like_others() {
    // p <- r <- vol, and a clone of r.
    let all = ["lvs/p", "lvs/r", "lvs/vol", "lvs/clone"];
    for without in [&["lvs/p"][..], &["lvs/vol"], &["lvs/r"], &all] {
        let mut target = start_with_chain();
        target.clone_of("lvs/r", "lvs/clone");
        target.write("lvs/clone", &[(2, 0x33)]);
        let uuids: Vec<_> = without.iter().map(|lvol| target.lvol(lvol).uuid).collect();
        target.stop();
        for uuid in &uuids {
            metadata::rename_xattr(target.file("lvs"), uuid, "uuid", "UUID");
        }
        target.start_again();
        for (lvol, uuid) in without.iter().zip(&uuids) {
            assert_ne!(target.lvol(lvol).uuid, *uuid, "{lvol}");
        }

        target.detach("lvs/r");
        // Nothing holds them any more.
        target.delete("lvs/p");
        for restarted in [false, true] {
            if restarted {
                target.restart();
            }
            assert_eq!(target.parent("lvs/r"), None, "{without:?}");
            target.expect_data("lvs/r", &[0, 0x22, 0, 0]);
            target.expect_data("lvs/vol", &[0, 0x22, 0, 0]);
            target.expect_data("lvs/clone", &[0, 0x22, 0x33, 0]);
        }
        target.detach("lvs/clone");
        target.expect_data("lvs/clone", &[0, 0, 0x33, 0]);
        target.delete("lvs/clone");
        target.stop();
    }
}
