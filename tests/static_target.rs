//! Apart from the extension, the target that has it linked in is the same as the stock target.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeSet;

use common::preload::built;
use common::target::{Options, Program, Target};
use serde_json::{Value, json};

/// The methods of a target, its subsystems, and the modules that do I/O for it.
fn features(target: &Target) -> BTreeSet<String> {
    let methods = target.must("rpc_get_methods", json!({"include_aliases": true}));
    let subsystems = target.must("framework_get_subsystems", Value::Null);
    let subsystems: Vec<_> =
        subsystems.as_array().unwrap().iter().map(|item| item["subsystem"].clone()).collect();
    let accel = target.must("accel_get_module_info", Value::Null);
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    [methods.as_array().unwrap(), &subsystems, accel.as_array().unwrap()]
        .into_iter()
        .flatten()
        .map(text)
        .collect()
}

/// The words of what the target's `--help` says, without its own name.
fn help(program: &Program) -> BTreeSet<String> {
    let help = program.command().arg("--help").output().unwrap();
    let text = String::from_utf8(help.stdout).unwrap();
    text.split_whitespace().skip(1).map(str::to_owned).collect()
}

/// What of the first there isn't in the second.
fn more<'a>(these: &'a BTreeSet<String>, those: &'a BTreeSet<String>) -> Vec<&'a str> {
    these.difference(those).map(String::as_str).collect()
}

#[test]
fn it_has_all_that_the_stock_target_has() {
    let programs = [Program::At(built("spdk_tgt")), Program::Stock];
    let [linked, stock] = programs.each_ref().map(help);
    assert_eq!(more(&linked, &stock), ["lvol_detach,"], "a log flag");
    assert_eq!(more(&stock, &linked), [""; 0]);

    let [linked, stock] = programs.map(|program| {
        let mut target = Target::start_with(Options { program, ..Options::default() });
        let features = features(&target);
        target.stop();
        features
    });
    let ours = ["bdev_lvol_check_detach_parent", "bdev_lvol_detach_parent", "lvol_detach"];
    assert_eq!(more(&linked, &stock), ours);
    assert_eq!(more(&stock, &linked), [""; 0]);
}
