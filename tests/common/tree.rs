//! SPDK trees that a test can change.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// Makes `target` look like the tree `source`, with copies of `files` that can be changed.
pub fn overlay(source: &Path, target: &Path, files: &[&str]) {
    for entry in fs::read_dir(source).unwrap() {
        let name = entry.unwrap().file_name();
        let inside: Vec<_> = files
            .iter()
            .filter_map(|file| Path::new(file).strip_prefix(&name).ok()?.to_str())
            .collect();
        let (from, to) = (source.join(&name), target.join(&name));
        match inside.as_slice() {
            [] => symlink(from, to).unwrap(),
            [""] => {
                fs::copy(from, to).unwrap();
            }
            _ => {
                fs::create_dir(&to).unwrap();
                overlay(&from, &to, &inside);
            }
        }
    }
}

/// Cargo's target folder for what is built with such trees. What doesn't depend on the tree is built once.
pub fn target_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/guard")
}
