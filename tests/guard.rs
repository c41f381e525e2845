//! A library that was built with other headers than the target's is refused when the target starts,
//! and the target keeps serving as if it were not there.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use common::lvstore::Lvstore;
use common::target::{Options, Program, Target, spdk_define, spdk_root};
use common::tree::{overlay, target_folder};
use serde_json::json;

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

/// In a target folder.
const LIBRARY: &str = "debug/libspdk_lvol_detach.so";

/// What is built goes to one folder.
static BUILDING: Mutex<()> = Mutex::new(());

#[test]
#[cfg_attr(not(spdk_shared_libraries), ignore = "nothing can be loaded into this SPDK's target")]
fn a_library_whose_headers_differ_is_refused() {
    let _building = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
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

/// No header has the struct: it is moved in the extension instead.
#[test]
#[cfg_attr(not(spdk_shared_libraries), ignore = "nothing can be loaded into this SPDK's target")]
fn a_library_that_knows_another_struct_blob_bdev_refuses_each_detach() {
    let _building = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    let sources = target_folder().join("moved");
    let _ = fs::remove_dir_all(&sources);
    fs::create_dir_all(&sources).unwrap();
    overlay(Path::new(env!("CARGO_MANIFEST_DIR")), &sources, &["src/md/base_bdev.rs"]);
    let file = sources.join("src/md/base_bdev.rs");
    let text = fs::read_to_string(&file).unwrap();
    for field in ["    bdev: *mut sys::spdk_bdev,\n", "    desc: *mut sys::spdk_bdev_desc,\n"] {
        let place = text.find(field).expect("the struct has the field");
        fs::write(&file, format!("{}    moved: usize,\n{}", &text[..place], &text[place..]))
            .unwrap();
        let status = cargo_build(&spdk_root()).current_dir(&sources).status();
        assert!(status.unwrap().success());

        let program = Program::StockWith(vec![target_folder().join(LIBRARY)]);
        let mut target = Target::start_with(Options { program, ..Options::default() });
        target.create_lvstore("lvs", Lvstore::default());
        target.create_chain();
        let lvol = json!({"name": "lvs/snap3"});
        for _ in 0..2 {
            let error = target.call("bdev_lvol_detach_parent", lvol.clone()).unwrap_err();
            assert_eq!(error.code, i64::from(-libc::ENOTSUP));
            assert!(error.message.contains("struct blob_bdev of the running SPDK"), "{error}");
            let said = target.must("bdev_lvol_check_detach_parent", lvol.clone());
            assert_eq!(said["refusal"]["message"], json!(error.message));
        }
        assert_eq!(target.parent("lvs/snap3").as_deref(), Some("snap2"));
        target.stop();
    }
}

#[test]
fn a_release_that_nobody_has_tried_is_not_built_unasked() {
    let _building = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
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

/// The library, built for a tree: not optimized, which takes a third of the time. What doesn't depend on the tree
/// is built once.
fn build(tree: &Path) -> PathBuf {
    let status = cargo_build(tree).env("LVOL_DETACH_ANY_SPDK", "1").status().unwrap();
    assert!(status.success(), "the library could not be built for {}", tree.display());
    target_folder().join(LIBRARY)
}

fn cargo_build(tree: &Path) -> Command {
    let mut command = Command::new(env!("CARGO"));
    command
        .args(["build", "--lib", "--quiet", "--locked"])
        .env("CARGO_TARGET_DIR", target_folder())
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("SPDK_ROOT_DIR", tree)
        .env_remove("LVOL_DETACH_ANY_SPDK");
    command
}
