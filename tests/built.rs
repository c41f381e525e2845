//! No test uses a library that is older than its sources.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use common::preload::{built, newer_source};
use common::target::Program;

fn change(file: &Path, when: SystemTime) {
    File::options().write(true).open(file).unwrap().set_modified(when).unwrap();
}

#[test]
fn a_library_that_is_older_than_a_source_is_found_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (library, detach, shim) = (path("lib.so"), path("detach.rs"), path("c shim.c"));
    for file in [&library, &detach, &shim] {
        fs::write(file, "").unwrap();
    }
    let escaped = shim.display().to_string().replace(' ', "\\ ");
    let gone = path("gone.rs");
    let rule =
        format!("{}: {} {} {escaped}\n", library.display(), gone.display(), detach.display());
    fs::write(path("lib.d"), rule).unwrap();

    let built = SystemTime::now();
    let (earlier, later) = (built - Duration::from_secs(1), built + Duration::from_secs(1));
    change(&library, built);
    change(&detach, earlier);
    change(&shim, earlier);
    assert_eq!(newer_source(&library), None);
    change(&shim, later);
    assert_eq!(newer_source(&library), Some(shim.clone()));
    change(&shim, earlier);
    change(&detach, later);
    assert_eq!(newer_source(&library), Some(detach.clone()));
}

/// What is looked at when a target is started is the list that cargo keeps, and that has every source.
#[test]
fn cargo_notes_every_source_of_what_a_target_loads() {
    // It would not come so far if anything were older than its sources.
    Program::Launcher.command();
    for file in ["libspdk_lvol_detach.so", "spdk_tgt"] {
        // clang names a header beside another one `./compat.h`.
        let rule = fs::read_to_string(built(file).with_extension("d")).unwrap().replace("/./", "/");
        let mut sources = vec!["build.rs".to_owned()];
        // The library is not made of src/bin.
        let mut folders = ["src", "c_shim", "spdk-sys", "spdk-sys/src"].map(PathBuf::from).to_vec();
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() && folder == Path::new("src") && !path.ends_with("bin") {
                    folders.push(path);
                } else if path
                    .extension()
                    .is_some_and(|end| end == "rs" || end == "c" || end == "h")
                {
                    sources.push(path.display().to_string());
                }
            }
        }
        for source in sources {
            assert!(rule.contains(&format!("/{source}")), "{source} is not in {rule}");
        }
    }
}
