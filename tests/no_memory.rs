//! Out of memory: when the guard runs at the start of the target, and for the messages by which a
//! detach proceeds.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use common::lvstore::Lvstore;
use common::preload;
use common::target::{Options, Program, Target};
use serde_json::{Value, json};

const DETACH: &str = "bdev_lvol_detach_parent";

#[test]
#[cfg_attr(not(spdk_shared_libraries), ignore = "no function of this SPDK can be replaced")]
fn a_target_without_memory_for_the_guard_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let program = Program::With(vec![preload::build("no_memory", folder.path())]);
    let mut target = Target::start_with(Options { program, ..Options::default() });
    let log = target.log();
    let line = log.lines().find(|line| line.contains("is not registered")).expect(&log);
    assert!(line.contains("Cannot allocate memory"), "{line}");
    // Another build would not help.
    for wrong in ["does not fit", "Build it"] {
        assert!(!line.contains(wrong), "{line}");
    }
    assert!(!target.has_method(DETACH));
    target.stop();
}

#[test]
#[cfg_attr(not(spdk_shared_libraries), ignore = "no function of this SPDK can be replaced")]
fn a_detach_that_waits_without_memory_for_its_messages_goes_on_later() {
    let folder = tempfile::tempdir().unwrap();
    let program = Program::With(vec![preload::build("no_messages", folder.path())]);
    let mut target = Target::start_with(Options { program, ..Options::default() });
    target.create_lvstore("lvs", Lvstore { can_be_slow: true, ..Lvstore::default() });
    target.create_thin("lvs/vol", 1);
    target.write("lvs/vol", &[(0, 0x11)]);
    target.snapshot("lvs/vol", "lvs/parent");

    // The detach waits for this write of the lvol's metadata.
    target.slow_down_writes("lvs", 2_000_000);
    let base = target.base_bdev("lvs");
    let writes = target.iostat(&base).writes;
    let rename = json!({"old_name": "lvs/vol", "new_name": "renamed"});
    let rename = target.start_call("bdev_lvol_rename", rename);
    while target.iostat(&base).writes == writes {
        thread::sleep(Duration::from_millis(2));
    }
    let switch = folder.path().join("no_messages");
    fs::write(&switch, "").unwrap();
    let uuid = target.lvols().values().find(|lvol| !lvol.snapshot).unwrap().uuid.clone();
    let mut detach = target.start_call(DETACH, json!({"name": uuid}));
    thread::sleep(Duration::from_millis(500));
    // The target serves others.
    let mut other = target.start_call("spdk_get_version", Value::Null);
    let started = Instant::now();
    while !other.is_answered() {
        target.check_alive();
        assert!(started.elapsed() < Duration::from_secs(20), "the target answers nobody");
        thread::sleep(Duration::from_millis(2));
    }
    assert!(!detach.is_answered(), "the detach has not waited");
    fs::remove_file(&switch).unwrap();

    rename.wait().unwrap();
    assert_eq!(detach.wait(), Ok(json!(true)));
    target.slow_down_writes("lvs", 0);
    assert_eq!(target.parent("lvs/renamed"), None);
    target.expect_data("lvs/renamed", &[0]);
    target.stop();
}
