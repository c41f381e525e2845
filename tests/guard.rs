//! A library that was built with other headers than the target's is refused when the target starts,
//! and the target keeps serving as if it were not there.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::target::{Options, Program, Target, spdk_define, spdk_root};
use common::tree::{overlay, target_folder};

/// An SPDK release in which one field that the extension uses has moved.
struct Moved {
    header: &'static str,
    /// The field's declaration, before which there is a new one.
    field: &'static str,
    /// What the guard says is not what it should be.
    says: &'static str,
}

const MOVED: [Moved; 6] = [
    Moved {
        header: "lib/blob/blobstore.h",
        field: "struct spdk_bs_dev *back_bs_dev;",
        says: "spdk_blob.",
    },
    Moved {
        header: "lib/blob/blobstore.h",
        field: "TAILQ_HEAD(, spdk_blob_list)\tsnapshots;",
        says: "spdk_blob_store.snapshots",
    },
    Moved {
        header: "lib/blob/blobstore.h",
        field: "TAILQ_HEAD(, spdk_bs_request_set) need_cluster_alloc;",
        says: "spdk_bs_channel.need_cluster_alloc",
    },
    Moved {
        header: "lib/blob/request.h",
        field: "struct spdk_bs_dev_cb_args\tcb_args;",
        says: "spdk_bs_request_set.",
    },
    Moved { header: "lib/blob/blobstore.h", field: "char\t\t*name;", says: "spdk_xattr." },
    Moved {
        header: "include/spdk_internal/lvolstore.h",
        field: "char\t\t\t\tname[SPDK_LVOL_NAME_MAX];\n\tstruct spdk_uuid",
        says: "spdk_lvol.",
    },
];

#[test]
#[cfg_attr(not(spdk_shared_libraries), ignore = "nothing can be loaded into this SPDK's target")]
fn a_library_whose_headers_differ_is_refused() {
    for moved in &MOVED {
        let tree = tempfile::tempdir().unwrap();
        overlay(&spdk_root(), tree.path(), &[moved.header, "include/spdk/version.h"]);
        edit(
            &tree.path().join(moved.header),
            moved.field,
            &format!("uint64_t moved;\n{}", moved.field),
        );
        make_release(tree.path(), 99);

        let library = build(tree.path());
        let options = Options { program: Program::StockWith(vec![library]), ..Options::default() };
        let mut target = Target::start_with(options);
        let log = target.log();
        let line = log.lines().find(|line| line.contains("is not registered"));
        let line = line.unwrap_or_else(|| panic!("{}: no such line in\n{log}", moved.field));
        assert!(line.contains("*ERROR*"), "{line}");
        assert!(line.contains("built for SPDK v99."), "{line}");
        assert!(line.contains(&format!("the target is SPDK {}", running())), "{line}");
        assert!(line.contains(moved.says), "{}: {line}", moved.field);

        assert!(!target.has_method("bdev_lvol_detach_parent"));
        assert!(target.has_method("bdev_lvol_decouple_parent"));
        target.stop();
    }
}

#[test]
fn a_release_that_nobody_has_tried_is_not_built_unasked() {
    for major in [23, 27] {
        let tree = tempfile::tempdir().unwrap();
        overlay(&spdk_root(), tree.path(), &["include/spdk/version.h"]);
        make_release(tree.path(), major);
        let output = cargo_build(tree.path()).output().unwrap();
        assert!(!output.status.success());
        let said = String::from_utf8(output.stderr).unwrap();
        let sentence = said.lines().find(|line| line.contains(" is SPDK ")).expect(&said);
        assert!(sentence.contains(&format!("SPDK {major}.")), "{sentence}");
        assert!(sentence.contains("24.01 to 26.05 are known to work"), "{sentence}");
        assert!(sentence.contains("LVOL_DETACH_ANY_SPDK=1"), "{sentence}");
    }
}

/// Makes the headers of a tree say that it is of another year.
fn make_release(tree: &Path, major: u32) {
    edit(
        &tree.join("include/spdk/version.h"),
        "#define SPDK_VERSION_MAJOR\t",
        &format!("#define SPDK_VERSION_MAJOR\t{major} //"),
    );
}

/// The version of the tree that the tests run on, as "v26.01".
fn running() -> String {
    let number = |name| -> u32 { spdk_define("include/spdk/version.h", name).parse().unwrap() };
    format!("v{}.{:02}", number("SPDK_VERSION_MAJOR"), number("SPDK_VERSION_MINOR"))
}

fn edit(file: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(file).unwrap();
    assert_eq!(text.matches(from).count(), 1, "{from:?} in {}", file.display());
    fs::write(file, text.replace(from, to)).unwrap();
}

/// The library, built for a tree. What doesn't depend on the tree is built once.
fn build(tree: &Path) -> PathBuf {
    let status = cargo_build(tree).env("LVOL_DETACH_ANY_SPDK", "1").status().unwrap();
    assert!(status.success(), "the library could not be built for {}", tree.display());
    target_folder().join("release/libspdk_lvol_detach.so")
}

fn cargo_build(tree: &Path) -> Command {
    let mut command = Command::new(env!("CARGO"));
    command
        .args(["build", "--release", "--lib", "--quiet", "--locked", "--target-dir"])
        .arg(target_folder())
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("SPDK_ROOT_DIR", tree)
        .env_remove("LVOL_DETACH_ANY_SPDK");
    command
}
