//! A target that already has a `bdev_lvol_detach_parent` keeps its own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::preload;
use common::target::{Options, Program, Target};
use serde_json::json;

#[test]
fn a_method_that_the_target_has_stays() {
    let folder = tempfile::tempdir().unwrap();
    let own = preload::build("own_method", folder.path());
    let program = Program::With(vec![own]);
    let mut target = Target::start_with(Options { program, ..Options::default() });

    let params = json!({"name": "lvs/any"});
    assert_eq!(target.must("bdev_lvol_detach_parent", params), json!(false));
    let log = target.log();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("_detach_parent")).collect();
    let [line] = lines[..] else { panic!("{lines:?}") };
    assert!(line.contains("*NOTICE*"), "{line}");
    assert!(
        line.contains("the target has a bdev_lvol_detach_parent of its own, which stays"),
        "{line}"
    );
    target.stop();
}
