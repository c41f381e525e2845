//! `tests/lvol_detach.sh`, the script that an operator runs against a live target.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::path::Path;
use std::process::{Command, ExitStatus};

use common::lvstore::Lvstore;
use common::target::{Options, Program, Target};
use serde_json::Value;

/// Runs the script against the target: its exit status and what it printed.
fn run_script(target: &Target) -> (ExitStatus, String) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lvol_detach.sh");
    for (command, package) in [("spdk-rpc", "the Python package spdk"), ("jq", "jq")] {
        let there = Command::new(command).arg("--help").output();
        assert!(there.is_ok(), "{command} is missing: install {package}, or run `make test`");
    }
    let output = Command::new("bash")
        .arg(&script)
        .env("RPC", "spdk-rpc")
        .env("SPDK_RPC_SOCK", target.rpc().socket())
        .output()
        .expect("bash can be started");
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    (output.status, text)
}

/// What is left behind would show here.
fn bdevs_and_lvstores(target: &Target) -> [Value; 2] {
    [target.must("bdev_get_bdevs", Value::Null), target.must("bdev_lvol_get_lvstores", Value::Null)]
}

/// A target with volumes of its own, which are not the script's business.
fn used_target(program: Program) -> Target {
    let mut target = Target::start_with(Options { program, ..Options::default() });
    target.create_lvstore("lvs", Lvstore::default());
    target.create_thin("lvs/vol", 8);
    target.snapshot("lvs/vol", "lvs/snap");
    target
}

#[test]
fn all_its_steps_pass_and_it_leaves_nothing_behind() {
    let target = used_target(Program::Launcher);
    let before = bdevs_and_lvstores(&target);

    let (status, text) = run_script(&target);

    assert!(status.success(), "{status}:\n{text}");
    let last = text.lines().last().unwrap_or_default();
    let passed: Option<u32> =
        last.strip_suffix(" passed, 0 failed").and_then(|passed| passed.parse().ok());
    assert!(passed.is_some_and(|passed| passed > 10), "the last line is {last:?}:\n{text}");
    assert_eq!(bdevs_and_lvstores(&target), before, "{text}");
}

#[test]
fn it_fails_and_leaves_nothing_behind_where_the_method_is_missing() {
    let target = used_target(Program::Stock);
    let before = bdevs_and_lvstores(&target);

    let (status, text) = run_script(&target);

    assert!(!status.success(), "it passed without the method:\n{text}");
    assert_eq!(bdevs_and_lvstores(&target), before, "{text}");
}

#[test]
fn it_says_how_it_is_used() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lvol_detach.sh");
    for (argument, code) in [("--help", 0), ("-h", 0), ("--nonsense", 2)] {
        let output = Command::new("bash").arg(&script).arg(argument).output().unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert_eq!(output.status.code(), Some(code), "{argument}: {text}");
        assert!(text.contains("SPDK_RPC_SOCK=/var/tmp/spdk.sock ./lvol_detach.sh"), "{text}");
        assert!(text.contains("Exit status: 0 all passed"), "{text}");
        assert!(!text.contains("set -euo"), "{text}");
    }
}
