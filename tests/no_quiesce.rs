//! The I/O can't be held back, after the metadata has been written: then the old metadata is written
//! again, and nothing has changed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::lvstore::Lvstore;
use common::preload;
use common::target::{Options, Program, Target};
use serde_json::json;

const DETACH: &str = "bdev_lvol_detach_parent";

#[test]
#[cfg_attr(not(spdk_shared_libraries), ignore = "no function of this SPDK can be replaced")]
fn a_detach_that_can_not_hold_back_the_io_puts_the_parent_back() {
    let folder = tempfile::tempdir().unwrap();
    let program = Program::With(vec![preload::build("no_quiesce", folder.path())]);
    let mut target = Target::start_with(Options { program, ..Options::default() });
    target.create_lvstore("lvs", Lvstore::default());
    target.create_thin("lvs/vol", 1);
    target.write("lvs/vol", &[(0, 0x11)]);
    target.snapshot("lvs/vol", "lvs/parent");

    let writes = target.iostat(&target.base_bdev("lvs")).writes;
    let error = target.call(DETACH, json!({"name": "lvs/vol"})).unwrap_err();

    assert_eq!(error.code, i64::from(-libc::ENOMEM), "{error}");
    assert!(error.message.contains("could not hold back the I/O of lvs/vol"), "{error}");
    let writes = target.iostat(&target.base_bdev("lvs")).writes - writes;
    assert_eq!(writes, 2, "once without the parent, once with it");
    assert_eq!(target.parent("lvs/vol"), Some("parent".to_owned()));
    target.expect_data("lvs/vol", &[0x11]);

    // On the device as well. What is not written again is lost when the target is killed.
    target.kill9();
    target.start_again();
    assert_eq!(target.parent("lvs/vol"), Some("parent".to_owned()));
    target.expect_data("lvs/vol", &[0x11]);

    // The target that has started failed once more.
    target.call(DETACH, json!({"name": "lvs/vol"})).unwrap_err();
    target.detach("lvs/vol");
    assert_eq!(target.parent("lvs/vol"), None);
    target.delete("lvs/parent");
    target.restart();
    assert_eq!(target.parent("lvs/vol"), None);
    target.expect_data("lvs/vol", &[0]);
    target.stop();
}
