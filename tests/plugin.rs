//! The plugin for rpc.py: what it prints of a check, and its help.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::path::Path;
use std::process::{Command, Output};

use common::lvstore::Lvstore;
use common::target::Target;
use serde_json::{Value, json};

const CHECK: &str = "bdev_lvol_check_detach_parent";

fn rpc(target: &Target, arguments: &[&str]) -> Output {
    Command::new("spdk-rpc")
        .arg("-s")
        .arg(target.rpc().socket())
        .args(["--plugin", "spdk_lvol_detach"])
        .args(arguments)
        .env("PYTHONPATH", Path::new(env!("CARGO_MANIFEST_DIR")).join("python"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("LC_ALL", "C")
        .output()
        .expect("spdk-rpc is there: run `make test`, which installs it")
}

#[track_caller]
fn printed(target: &Target, arguments: &[&str]) -> String {
    let output = rpc(target, arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn tree(target: &Target, lvol: &str) -> String {
    printed(target, &[CHECK, lvol, "--tree"])
}

fn target() -> Target {
    let mut target = Target::start();
    target.create_lvstore("lvs", Lvstore::default());
    target
}

#[test]
fn json_is_what_the_target_answers() {
    let target = target();
    target.create_thin("lvs/vol", 4);
    target.write("lvs/vol", &[(1, 0x11)]);
    target.snapshot("lvs/vol", "lvs/snap");
    for (arguments, params) in [
        (vec![CHECK, "lvs/vol"], json!({"name": "lvs/vol"})),
        (vec![CHECK, "lvs/vol", "--ranges"], json!({"name": "lvs/vol", "ranges": true})),
    ] {
        let said: Value = serde_json::from_str(&printed(&target, &arguments)).unwrap();
        assert_eq!(said, target.must(CHECK, params));
    }
}

#[test]
fn the_picture_says_what_is_lost_where_and_what_to_type_next() {
    let target = target();
    target.create_malloc("outside", 8);
    target.clone_of_bdev("outside", "lvs/vol");
    target.write("lvs/vol", &[(0, 0x11)]);
    target.snapshot("lvs/vol", "lvs/snap1");
    target.write("lvs/vol", &[(1, 0x22)]);
    target.snapshot("lvs/vol", "lvs/snap2");
    target.write("lvs/vol", &[(2, 0x33)]);
    target.snapshot("lvs/vol", "lvs/below");
    target.clone_of("lvs/snap2", "lvs/other");
    target.write("lvs/other", &[(7, 0x44)]);
    target.must("bdev_set_qos_limit", json!({"name": "lvs/other", "rw_ios_per_sec": 30_000}));
    let _export = target.export("lvs/vol");

    let expected = r"  outside            lvs/snap2 shows 6 clusters (6 MiB) of it; an external snapshot
    |
  lvs/snap1          lvs/snap2 shows 1 cluster (1 MiB) of it
    X                <-- a detach parts the chain here
  lvs/snap2          WOULD LOSE 7 clusters (7 MiB); owns 1 of 8; read-only
    +- lvs/below     WOULD LOSE 6 clusters (6 MiB); owns 1 of 8; read-only
        +- lvs/vol   WOULD LOSE 6 clusters (6 MiB); owns 0 of 8; writable; IN USE: open
    +- lvs/other     WOULD LOSE 6 clusters (6 MiB); owns 1 of 8; writable; rw_ios_per_sec 30000

Would be lost to view by a detach (reads data of an ancestor now, and zeroes then):
  lvs/snap2: 7 clusters (7 MiB)
  lvs/below: 6 clusters (6 MiB)
  lvs/other: 6 clusters (6 MiB)
  lvs/vol: 6 clusters (6 MiB)

Stop whoever uses lvs/vol first: they would see data turn into zeroes, and what they
write meanwhile makes the loss permanent.

A detach would be done now. What to type next:
  spdk-rpc --plugin spdk_lvol_detach bdev_lvol_detach_parent lvs/snap2
";
    let picture = tree(&target, "lvs/snap2");
    assert!(picture.starts_with(expected), "{picture}\ninstead of\n{expected}");

    let refused = tree(&target, "lvs/snap1");
    let words =
        "A detach would be refused now, with -22:\n  Invalid argument: the parent of lvs/snap1";
    assert!(refused.contains(words), "{refused}");
    assert!(!refused.contains("What to type next"), "{refused}");
}

#[test]
fn of_many_ancestors_those_that_nothing_is_shown_of_are_left_out() {
    let target = target();
    target.create_thin("lvs/vol", 4);
    for level in 0..30 {
        if level == 10 {
            target.write("lvs/vol", &[(1, 0x11)]);
        }
        target.snapshot("lvs/vol", &format!("lvs/snap{level}"));
    }
    let picture = tree(&target, "lvs/vol");
    let shown: Vec<_> = picture
        .lines()
        .filter_map(|line| line.strip_prefix("  lvs/snap")?.split_whitespace().next())
        .collect();
    assert_eq!(shown, ["0", "10", "29"], "{picture}");
    assert_eq!(picture.matches("more ancestors, of which lvs/vol shows nothing").count(), 2);
}

#[test]
fn what_is_no_lvol_is_an_error() {
    let target = target();
    let output = rpc(&target, &[CHECK, "lvs/nothing", "--tree"]);
    assert!(!output.status.success());
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(said.contains("-19") && said.contains("there is no bdev lvs/nothing"), "{said}");
}
