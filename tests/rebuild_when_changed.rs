//! The build follows the SPDK tree: if a header or library changes there, cargo rebuilds.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use common::target::spdk_root;
use common::tree::{overlay, target_folder};
use serde_json::Value;

/// Each is read or linked for another reason.
const FILES: [&str; 4] = [
    // By bindgen, the first because another header includes it.
    "include/spdk_internal/lvolstore.h",
    "include/spdk/blob.h",
    // By SPDK's spdk_tgt.c as well.
    "include/spdk/event.h",
    // By the linker, when it makes the target.
    "build/lib/libspdk_nvmf.a",
];

#[test]
fn a_change_in_spdk_is_seen() {
    let tree = tempfile::tempdir().unwrap();
    // What its Makefile is asked for is said of the tree that the Makefile is in.
    let own = [FILES.as_slice(), &["app/spdk_tgt/spdk_tgt.c"]].concat();
    overlay(&spdk_root(), tree.path(), &own);
    check(tree.path());
    assert!(check(tree.path()), "nothing has changed");
    for file in FILES {
        let file = tree.path().join(file);
        File::options().append(true).open(&file).unwrap().set_modified(SystemTime::now()).unwrap();
        assert!(!check(tree.path()), "{} has changed", file.display());
        assert!(check(tree.path()), "nothing has changed after {}", file.display());
    }
}

/// Whether the target is fresh, so that cargo does nothing. If not, it is checked: that is quicker than
/// building, and depends on the same files.
fn check(tree: &Path) -> bool {
    let output = Command::new(env!("CARGO"))
        .args(["check", "--bin", "spdk_tgt", "--locked", "--message-format", "json"])
        .arg("--target-dir")
        .arg(target_folder())
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("SPDK_ROOT_DIR", tree)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let mut messages = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let target = messages.find(|message| {
        message["reason"] == "compiler-artifact" && message["target"]["name"] == "spdk_tgt"
    });
    target.expect("cargo says what it did with the target")["fresh"].as_bool().unwrap()
}
