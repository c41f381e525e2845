//! `scripts/setup.sh`, before it installs anything.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

/// What it says, in one line, where `rustc` says that it is of this version.
fn setup_with_rust(version: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    for (name, says) in [("rustc", format!("rustc {version} (0 2022-12-15)")), ("cargo", "".into())]
    {
        let file = folder.path().join(name);
        fs::write(&file, format!("#!/bin/sh\necho '{says}'\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let output = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/setup.sh"))
        // The first thing after the check that fails: nothing is installed or built.
        .env("PATH", format!("{}:/usr/bin:/bin", folder.path().display()))
        .env("SPDK_LVOL_DETACH_CACHE", folder.path())
        .env("SPDK_ROOT_DIR", "/nonexistent")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn it_says_that_rust_is_too_old() {
    for version in ["1.63.0", "1.9.0", "1.87.3"] {
        let said = setup_with_rust(version);
        let sentence = format!("setup: Rust {version} is too old: install 1.88 or later ");
        assert!(said.starts_with(&sentence), "{said}");
    }
}
