//! What a target loads for a test: what was built with the tests, and libraries in C.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use super::target::spdk_root;

/// What was built with the tests. It must not be older than its sources: `cargo test` alone doesn't
/// build again what a target loads, and what was changed would seem to be tested.
#[track_caller]
pub fn built(file: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a process has a file");
    let folder = test.ancestors().nth(2).expect("a test is in a folder of the target folder");
    let file = folder.join(file);
    assert!(file.exists(), "{} is not there: run `make`", file.display());
    if let Some(source) = newer_source(&file) {
        panic!(
            "{} is older than {}, which it was built from: run `make`, or `cargo build --release`",
            file.display(),
            source.display()
        );
    }
    file
}

/// A source that has changed since the file was built from it. Cargo notes beside what it builds from
/// which files it was, in the way of make.
#[track_caller]
pub fn newer_source(file: &Path) -> Option<PathBuf> {
    let rule = file.with_extension("d");
    let Ok(text) = fs::read_to_string(&rule) else {
        panic!(
            "{} does not say what {} was built from: run `make`",
            rule.display(),
            file.display()
        );
    };
    let (_, sources) = text.split_once(": ").expect("a rule is `file: sources`");
    let changed = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified());
    let built = changed(file).unwrap_or(SystemTime::UNIX_EPOCH);
    // A space in a name has a backslash before it.
    let sources = sources.lines().next().unwrap_or_default().replace("\\ ", "\0");
    let mut sources = sources.split_whitespace().map(|name| PathBuf::from(name.replace('\0', " ")));
    sources.find(|source| changed(source).is_ok_and(|changed| changed > built))
}

/// The load generator, which is built if it isn't there.
pub fn load_generator() -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--release", "--quiet", "--package", "lvol-load", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .status();
    assert!(status.expect("cargo can be started").success(), "the load generator is not built");
    built("liblvol_load.so")
}

/// Compiles `tests/NAME.c` to a library in `folder`.
#[track_caller]
pub fn build(name: &str, folder: &Path) -> PathBuf {
    let library = folder.join(name).with_extension("so");
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-D_GNU_SOURCE", "-o"])
        .arg(&library)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name).with_extension("c"))
        .args(["-I".as_ref(), spdk_root().join("include").as_os_str()])
        .args(["-I".as_ref(), spdk_root().join("lib/blob").as_os_str()])
        .args(["-I", concat!(env!("CARGO_MANIFEST_DIR"), "/include")])
        .status()
        .expect("cc can be started");
    assert!(status.success(), "tests/{name}.c can be compiled");
    library
}

/// Puts a copy of one of SPDK's shared libraries in `folder`, in which a function has another name.
#[track_caller]
pub fn hide(function: &str, library: &str, folder: &Path) {
    let file = fs::canonicalize(spdk_root().join("build/lib").join(library)).unwrap();
    let mut bytes = fs::read(&file).unwrap();
    let name = format!("\0{function}\0").into_bytes();
    let places: Vec<_> =
        (0..bytes.len() - name.len()).filter(|&at| bytes[at..at + name.len()] == name).collect();
    assert!(!places.is_empty(), "{library} has a {function}");
    for at in places {
        bytes[at + 1] = b'X';
    }
    fs::write(folder.join(file.file_name().unwrap()), bytes).unwrap();
}
