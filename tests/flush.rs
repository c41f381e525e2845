//! The volatile cache of the device is flushed before the reply: how each device is flushed, and what happens
//! if a flush fails or is slow.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use common::lvstore::{BLOCK, Lvstore, MIB};
use common::preload;
use common::rpc::request;
use common::target::{Options, Program, Target};
use serde_json::json;

const DETACH: &str = "bdev_lvol_detach_parent";
const EIO: i64 = -libc::EIO as i64;
const IN_DOUBT: i64 = -libc::ENOTRECOVERABLE as i64;

/// A target whose `fsync` does what `folder` says (`tests/fsync.c`), and an lvstore on a file.
fn target_with_fsync(folder: &Path, flush: Option<&str>) -> Target {
    let program = Program::With(vec![preload::build("fsync", folder)]);
    let mut options = Options { program, ..Options::default() };
    options.environment.push(("FSYNC_CONTROL".into(), folder.into()));
    options.environment.extend(flush.map(|flush| ("LVOL_DETACH_FLUSH".into(), flush.into())));
    Target::start_with(options)
}

/// `lvs/vol0`, `lvs/vol1`, ... each a clone of `lvs/parent`.
fn create_clones(target: &Target, count: usize) {
    target.create_thin("lvs/origin", 1);
    target.write("lvs/origin", &[(0, 0x11)]);
    target.snapshot("lvs/origin", "lvs/parent");
    for number in 0..count {
        target.clone_of("lvs/parent", &format!("lvs/vol{number}"));
    }
}

fn detach_error(target: &Target, lvol: &str) -> i64 {
    target.call(DETACH, json!({"name": lvol})).unwrap_err().code
}

/// The names of the threads that have called `fsync`.
fn calls(folder: &Path) -> Vec<String> {
    let calls = fs::read_to_string(folder.join("calls")).unwrap_or_default();
    calls.lines().map(str::to_owned).collect()
}

#[test]
#[cfg_attr(not(spdk_shared_libraries), ignore = "nothing can be loaded into this SPDK's target")]
fn a_file_is_synced_on_a_thread_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let mut target = target_with_fsync(folder.path(), None);
    target.create_lvstore("lvs", Lvstore::default());
    create_clones(&target, 1);
    assert_eq!(calls(folder.path()), [""; 0], "SPDK itself flushes nothing");

    // While it syncs, the reactor goes on.
    fs::write(folder.path().join("ms"), "3000").unwrap();
    let mut detach = target.start_call(DETACH, json!({"name": "lvs/vol0"}));
    while calls(folder.path()).is_empty() && !detach.is_answered() {
        thread::sleep(Duration::from_millis(5));
    }
    // The parent is still there: memory follows the flush.
    assert_eq!(target.parent("lvs/vol0").as_deref(), Some("parent"));
    assert!(!detach.is_answered(), "the reactor stood still, or the sync was not waited for");
    assert_eq!(detach.wait(), Ok(json!(true)));

    let calls = calls(folder.path());
    assert_eq!(calls.len(), 1);
    assert!(!calls[0].starts_with("reactor"), "{calls:?}");
    assert_eq!(target.parent("lvs/vol0"), None);
    target.stop();
}

#[test]
#[cfg_attr(not(spdk_shared_libraries), ignore = "nothing can be loaded into this SPDK's target")]
fn one_flush_serves_all_that_wait() {
    const CLONES: usize = 100;
    let folder = tempfile::tempdir().unwrap();
    let mut target = target_with_fsync(folder.path(), None);
    target.create_lvstore("lvs", Lvstore::default());
    create_clones(&target, CLONES);
    // Long enough that all have written when the second begins.
    fs::write(folder.path().join("ms"), "700").unwrap();
    let detaches: Vec<_> = (0..CLONES)
        .map(|number| request(DETACH, json!({"name": format!("lvs/vol{number}")})))
        .collect();
    let mut connection = target.connect();
    connection.send_all(&detaches);
    for detach in &detaches {
        assert_eq!(connection.receive(detach).unwrap(), json!(true));
    }
    let calls = calls(folder.path()).len();
    println!("{CLONES} detaches at a time: {calls} flushes");
    assert!((1..=CLONES / 10).contains(&calls), "{calls} flushes");
    target.stop();
}

#[test]
#[cfg_attr(not(spdk_shared_libraries), ignore = "nothing can be loaded into this SPDK's target")]
fn a_sync_that_fails_is_a_write_that_failed() {
    let folder = tempfile::tempdir().unwrap();
    let mut target = target_with_fsync(folder.path(), None);
    target.create_lvstore("lvs", Lvstore::default());
    create_clones(&target, 1);
    let before = target.lvols();

    fs::write(folder.path().join("fail"), "1").unwrap();
    assert_eq!(detach_error(&target, "lvs/vol0"), EIO);
    assert_eq!(calls(folder.path()).len(), 2, "the old page is flushed as well");
    assert_eq!(target.lvols(), before);
    target.crash();
    assert_eq!(target.parent("lvs/vol0").as_deref(), Some("parent"));
    target.expect_data("lvs/vol0", &[0x11]);

    fs::write(folder.path().join("fail"), "1000").unwrap();
    assert_eq!(detach_error(&target, "lvs/vol0"), IN_DOUBT);
    assert_eq!(target.parent("lvs/vol0").as_deref(), Some("parent"));
    fs::write(folder.path().join("fail"), "0").unwrap();
    target.detach("lvs/vol0");
    target.crash();
    assert_eq!(target.parent("lvs/vol0"), None);
    target.expect_data("lvs/vol0", &[0]);
    target.stop();
}

#[test]
#[cfg_attr(not(spdk_shared_libraries), ignore = "nothing can be loaded into this SPDK's target")]
fn it_can_be_switched_off() {
    let folder = tempfile::tempdir().unwrap();
    let mut target = target_with_fsync(folder.path(), Some("off"));
    target.wait_for_log(|log| {
        log.lines().any(|line| line.contains("is registered") && line.contains("=off"))
    });
    target.create_lvstore("lvs", Lvstore::default());
    create_clones(&target, 1);
    target.detach("lvs/vol0");
    assert_eq!(calls(folder.path()), [""; 0]);
    target.stop();
}

/// A bdev on others passes a flush on.
#[test]
fn a_flush_that_a_bdev_fails_is_a_write_that_failed() {
    let mut target = Target::start();
    target.create_lvstore("lvs", Lvstore { can_fail: true, ..Lvstore::default() });
    create_clones(&target, 1);
    let before = target.lvols();

    target.inject("lvs", "flush", "failure", 1);
    assert_eq!(detach_error(&target, "lvs/vol0"), EIO);
    assert_eq!(target.lvols(), before);
    target.inject("lvs", "flush", "failure", 1000);
    assert_eq!(detach_error(&target, "lvs/vol0"), IN_DOUBT);
    assert_eq!(target.lvols(), before);
    target.stop_failing("lvs");
    target.detach("lvs/vol0");
    target.crash();
    assert_eq!(target.parent("lvs/vol0"), None);
    target.stop();
}

/// `bdev_nvme` doesn't send a flush unless it is told to, and up to 25.05 never: the command goes by
/// itself. The drive is another target's, over TCP.
#[test]
fn an_nvme_drive_gets_a_flush_command() {
    const NQN: &str = "nqn.2024-01.io.spdk:lvol-detach";
    let mut drive = Target::start();
    drive.create_malloc("disk", 64);
    drive.must("bdev_error_create", json!({"base_name": "disk"}));
    drive.must("nvmf_create_transport", json!({"trtype": "TCP"}));
    drive.must("nvmf_create_subsystem", json!({"nqn": NQN, "allow_any_host": true}));
    let namespace = json!({"bdev_name": "EE_disk"});
    drive.must("nvmf_subsystem_add_ns", json!({"nqn": NQN, "namespace": namespace}));
    let address = |port: u32| json!({"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": port.to_string()});
    let first = 20_000 + std::process::id() % 10_000;
    let port = (first..first + 1000)
        .find(|&port| {
            let listen = json!({"nqn": NQN, "listen_address": address(port)});
            drive.call("nvmf_subsystem_add_listener", listen).is_ok()
        })
        .expect("a port is free");

    let mut target = Target::start();
    let mut controller = address(port);
    controller["name"] = json!("remote");
    controller["subnqn"] = json!(NQN);
    let drives = target.must("bdev_nvme_attach_controller", controller);
    assert_eq!(drives, json!(["remoten1"]));
    target.must("bdev_lvol_create_lvstore", json!({"bdev_name": "remoten1", "lvs_name": "lvs"}));
    create_clones_without_data(&target);

    let inject = |io_type: &str, num: u32| {
        drive.must(
            "bdev_error_inject_error",
            json!({"name": "EE_disk", "io_type": io_type, "error_type": "failure", "num": num}),
        );
    };
    // More than `bdev_nvme` tries again.
    inject("flush", 1000);
    assert_eq!(detach_error(&target, "lvs/vol"), IN_DOUBT);
    inject("clear", 0);
    target.detach("lvs/vol");
    assert_eq!(target.parent("lvs/vol"), None);
    target.stop();
    drive.stop();
}

fn create_clones_without_data(target: &Target) {
    let create = json!({
        "lvs_name": "lvs", "lvol_name": "vol", "size_in_mib": 8, "thin_provision": true,
    });
    target.must("bdev_lvol_create", create);
    target.must("bdev_lvol_snapshot", json!({"lvol_name": "lvs/vol", "snapshot_name": "parent"}));
}

/// An lvol as the base bdev of another lvstore: lvols have no flush.
#[test]
fn of_a_bdev_that_can_not_be_flushed_the_log_says_so_once() {
    let mut target = Target::start();
    target.create_malloc("disk", 128);
    target.must("bdev_lvol_create_lvstore", json!({"bdev_name": "disk", "lvs_name": "outer"}));
    let mib = 96;
    target.must(
        "bdev_lvol_create",
        json!({"lvs_name": "outer", "lvol_name": "base", "size_in_mib": mib, "thin_provision": false}),
    );
    assert_eq!(target.bdev("outer/base").unwrap()["num_blocks"], json!(mib * MIB / BLOCK));
    target.must(
        "bdev_lvol_create_lvstore",
        json!({"bdev_name": "outer/base", "lvs_name": "lvs", "cluster_sz": MIB}),
    );
    create_clones_without_data(&target);
    target.must("bdev_lvol_snapshot", json!({"lvol_name": "lvs/vol", "snapshot_name": "second"}));

    target.detach("lvs/vol");
    target.detach("lvs/second");

    let says = |line: &&str| line.contains("*WARNING*") && line.contains("can't be flushed");
    target.wait_for_log(|log| log.lines().any(|line| says(&line)));
    assert_eq!(target.log().lines().filter(says).count(), 1);
    target.stop();
}
