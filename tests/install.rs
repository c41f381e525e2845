//! `make install` and `make uninstall`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::target::{Options, Program, Target};

/// Runs make with a target, for a system whose root is this folder.
fn make(target: &str, root: &Path) {
    let output = Command::new("make")
        .args([target, "PREFIX=/usr"])
        .arg(format!("DESTDIR={}", root.display()))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        // From the make that runs the tests, if one does.
        .env_remove("MAKEFLAGS")
        .output()
        .expect("make can be started");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn files(folder: &Path) -> BTreeSet<PathBuf> {
    let mut files = BTreeSet::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            files.extend(self::files(&entry.path()));
        } else {
            files.insert(entry.path());
        }
    }
    files
}

#[test]
fn what_is_installed_works_and_can_be_taken_away() {
    let root = tempfile::tempdir().unwrap();
    let usr = root.path().join("usr");
    make("install", root.path());

    for file in [
        "bin/spdk_tgt-lvol-detach",
        "lib/spdk-lvol-detach/libspdk_lvol_detach.so",
        "lib/spdk-lvol-detach/libspdk_lvol_detach.a",
        "lib/spdk-lvol-detach/spdk_tgt",
        "share/spdk-lvol-detach/lvol_detach.sh",
        "share/spdk-lvol-detach/spdk_lvol_detach.py",
        "share/man/man8/spdk_tgt-lvol-detach.8",
        "share/doc/spdk-lvol-detach/LICENSE",
        "share/doc/spdk-lvol-detach/docs/performance.md",
        "share/doc/spdk-lvol-detach/docs/performance/steps.svg",
    ] {
        assert!(usr.join(file).is_file(), "{file} is not there");
    }

    let program = Program::At(usr.join("bin/spdk_tgt-lvol-detach"));
    let mut target = Target::start_with(Options { program, ..Options::default() });
    assert!(target.has_method("bdev_lvol_detach_parent"));
    let help = Command::new("spdk-rpc")
        .args(["--plugin", "spdk_lvol_detach", "bdev_lvol_detach_parent", "--help"])
        .env("PYTHONPATH", usr.join("share/spdk-lvol-detach"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .expect("spdk-rpc is there: run `make test`");
    assert!(String::from_utf8_lossy(&help.stdout).contains("without copying"));
    target.stop();

    make("uninstall", root.path());
    assert_eq!(files(root.path()), BTreeSet::new());
}
