//! Libraries in C that a target loads for a test.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::target::spdk_root;

/// Compiles `tests/NAME.c` to a library in `folder`.
#[track_caller]
pub fn build(name: &str, folder: &Path) -> PathBuf {
    let library = folder.join(name).with_extension("so");
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-D_GNU_SOURCE", "-o"])
        .arg(&library)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name).with_extension("c"))
        .arg("-I")
        .arg(spdk_root().join("include"))
        .status()
        .expect("cc can be started");
    assert!(status.success(), "tests/{name}.c can be compiled");
    library
}
