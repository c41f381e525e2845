//! The C interface: the header, the functions when linked and when looked up, and the example.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::lvstore::Lvstore;
use common::preload::{self, built, hide};
use common::target::{Options, Program, Target, spdk_root};
use serde_json::{Value, json};

const HEADER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/include/spdk_lvol_detach.h");

/// What a command that must end well says.
#[track_caller]
fn run(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    assert!(status.success(), "{command:?}: {status}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

/// The functions that the header declares.
fn declared() -> BTreeSet<String> {
    let header = fs::read_to_string(HEADER).unwrap();
    // Each begins a line, with its type.
    let is_declaration = |line: &&str| {
        line.starts_with(char::is_alphabetic) && line.contains('(') && !line.starts_with("typedef")
    };
    let names = header.lines().filter(is_declaration);
    let name = |line: &str| {
        let (before, _) = line.split_once('(').unwrap();
        before.rsplit([' ', '*']).next().unwrap().to_owned()
    };
    names.map(name).collect()
}

#[test]
fn the_header_is_c_and_cplusplus_by_itself() {
    for (compiler, language, standard) in
        [("gcc", "c", "c99"), ("gcc", "c", "c17"), ("g++", "c++", "c++98"), ("g++", "c++", "c++20")]
    {
        let mut command = Command::new(compiler);
        command.args(["-fsyntax-only", "-Wall", "-Wextra", "-pedantic", "-Werror"]);
        run(command.arg(format!("-std={standard}")).args(["-x", language, HEADER]));
    }
    // The callback is SPDK's.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("same.c");
    let text = "#include <spdk/lvol.h>\n#include <spdk_lvol_detach.h>\n\
                spdk_lvol_op_complete spdk_s(lvol_detach_op_complete ours) { return ours; }\n\
                lvol_detach_op_complete ours(spdk_lvol_op_complete spdk_s) { return spdk_s; }\n";
    fs::write(&file, text).unwrap();
    let mut command = Command::new("gcc");
    command.args(["-fsyntax-only", "-Werror", "-I"]).arg(spdk_root().join("include"));
    run(command.arg("-I").arg(Path::new(HEADER).parent().unwrap()).arg(&file));
}

#[test]
fn the_header_is_of_this_version_and_names_each_error() {
    let header = fs::read_to_string(HEADER).unwrap();
    let version = env!("CARGO_PKG_VERSION");
    assert!(header.contains(&format!("#define LVOL_DETACH_VERSION \"{version}\"\n")));
    for (part, number) in ["MAJOR", "MINOR", "PATCH"].iter().zip(version.split('.')) {
        let define = format!("#define LVOL_DETACH_VERSION_{part} {number}\n");
        assert!(header.contains(&define), "{define}");
    }
    let manual = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/jsonrpc.md");
    let manual = fs::read_to_string(manual).unwrap();
    let errors = manual.lines().filter_map(|line| line.split('|').nth(1)).map(str::trim);
    let errors: Vec<_> = errors.filter(|name| name.starts_with('E') && *name != "Errno").collect();
    assert!(errors.len() > 8, "{errors:?}");
    for error in errors {
        assert!(
            header.contains(&format!(" * -{error} ")) || header.contains(&format!(" * -{error},")),
            "{error}"
        );
    }
}

#[test]
fn both_libraries_have_what_the_header_declares() {
    let declared = declared();
    assert_eq!(declared.len(), 3, "{declared:?}");
    for (file, kind) in [("libspdk_lvol_detach.so", "-D"), ("libspdk_lvol_detach.a", "-A")] {
        let symbols = run(Command::new("nm").arg("--defined-only").arg(kind).arg(built(file)));
        for name in &declared {
            assert!(symbols.contains(&format!(" T {name}\n")), "{name} in {file}");
        }
        // What a program that is linked with it asks for.
        if kind == "-D" {
            let dynamic = run(Command::new("readelf").arg("-d").arg(built(file)));
            assert!(dynamic.contains(&format!("Library soname: [{file}]")), "{dynamic}");
        }
        // SPDK's own names are left to SPDK and its forks.
        assert!(!symbols.contains(" T spdk_"), "{file}");
    }
}

/// `make install` in a folder of the test's own, and how to find SPDK and it with pkg-config.
fn install(prefix: &Path) -> String {
    let mut make = Command::new("make");
    make.args(["install", &format!("PREFIX={}", prefix.display()), "DESTDIR="]);
    run(make.current_dir(env!("CARGO_MANIFEST_DIR")).env_remove("MAKEFLAGS"));
    prefix.join("lib/pkgconfig").display().to_string()
}

/// Builds the example that is installed, as its Makefile says, and runs it.
fn run_example(is_static: bool) {
    built("libspdk_lvol_detach.so");
    let prefix = tempfile::tempdir().unwrap();
    let pkg_config_path = install(prefix.path());
    let examples = prefix.path().join("share/doc/spdk-lvol-detach/examples");
    let config = fs::read_to_string(spdk_root().join("mk/config.mk")).unwrap();
    let mut make = Command::new("make");
    make.arg("-C").arg(examples.join("c"));
    make.arg(format!("STATIC={}", u8::from(is_static)));
    make.env("PKG_CONFIG_PATH", pkg_config_path).env_remove("MAKEFLAGS").env(
        "CFLAGS",
        if config.contains("CONFIG_ASAN?=y") {
            "-Werror -fsanitize=address"
        } else {
            "-Wall -Werror"
        },
    );
    run(&mut make);

    let program = examples.join("c/detach");
    let needed = run(Command::new("readelf").arg("-d").arg(&program));
    assert_eq!(needed.contains("[libspdk_lvol_detach.so]"), !is_static, "{needed}");
    let mut detach = Command::new(program);
    detach.args(["--no-huge", "-s", "1024", "--no-pci", "--disable-cpumask-locks"]);
    let said = run(detach.arg("-c").arg(examples.join("chain.json")));
    let version = env!("CARGO_PKG_VERSION");
    let lines: Vec<_> = said.lines().collect();
    let [before, found, after] = lines[..] else { panic!("{said}") };
    assert_eq!(before, format!("spdk_lvol_detach {version}: lvs/snap has 1 clones"));
    let found: Value = serde_json::from_str(found).unwrap();
    assert_eq!((&found["name"], &found["refusal"]), (&json!("lvs/vol"), &Value::Null));
    assert_eq!(after, "lvs/vol is detached: lvs/snap has 0 clones");
}

#[test]
fn the_example_runs_with_the_static_library() {
    run_example(true);
}

#[test]
#[cfg_attr(not(spdk_shared_libraries), ignore = "this SPDK has no shared libraries")]
fn the_example_runs_with_the_shared_library() {
    run_example(false);
}

/// A library whose RPC calls the function, for a target to load.
fn caller(folder: &Path) -> PathBuf {
    preload::build("call_detach", folder)
}

fn start() -> (Target, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let program = Program::With(vec![caller(folder.path())]);
    let mut target = Target::start_with(Options { program, ..Options::default() });
    target.create_lvstore("lvs", Lvstore { can_fail: true, ..Lvstore::default() });
    target.create_thin("lvs/vol", 8);
    target.snapshot("lvs/vol", "lvs/snap");
    (target, folder)
}

const EPERM: i32 = -libc::EPERM;
const EINVAL: i32 = -libc::EINVAL;
const ENODEV: i32 = -libc::ENODEV;
const EIO: i32 = -libc::EIO;
const ENOTSUP: i32 = -libc::ENOTSUP;

/// What the callbacks of so many calls for an lvol in `lvs` were given.
#[track_caller]
fn call(target: &Target, lvol: &str, from: &str, times: u32) -> Value {
    target.must("call_detach", json!({"lvs": "lvs", "lvol": lvol, "from": from, "times": times}))
}

#[test]
fn an_lvol_is_detached_once() {
    let (mut target, _folder) = start();
    assert_eq!(call(&target, "vol", "app thread", 1), json!([0]));
    assert_eq!(target.parent("lvs/vol"), None);
    target.delete("lvs/snap");
    assert_eq!(call(&target, "vol", "app thread", 1), json!([EINVAL]));
    target.crash();
    assert_eq!(target.parent("lvs/vol"), None);
    target.stop();
}

#[test]
fn of_calls_at_the_same_time_one_detaches() {
    let (mut target, _folder) = start();
    let outcomes = call(&target, "vol", "app thread", 4);
    assert_eq!(outcomes, json!([0, EINVAL, EINVAL, EINVAL]));
    target.stop();
}

#[test]
fn what_is_called_wrongly_is_refused_and_changes_nothing() {
    let (mut target, _folder) = start();
    assert_eq!(target.must("get_early", Value::Null), json!(ENOTSUP));
    for from in ["another SPDK thread", "a thread that is not SPDK's"] {
        assert_eq!(call(&target, "vol", from, 2), json!([EPERM, EPERM]), "{from}");
        assert_eq!(call(&target, "none", from, 1), json!([EPERM]), "{from}");
    }
    let from = "app thread, but not the lvstore's";
    assert_eq!(call(&target, "vol", from, 2), json!([EPERM, EPERM]), "{from}");
    assert_eq!(call(&target, "none", "app thread", 2), json!([EINVAL, EINVAL]), "NULL");
    target.must("call_without_callback", Value::Null);
    target.wait_for_log(|log| log.contains("without a callback: nothing is done"));

    // One without a bdev, and one that claims another's.
    let vol = target.lvol("lvs/vol").uuid;
    for made_up in ["a5e2a1de-0000-4000-8000-000000000000", &vol, "", "lvs/vol"] {
        let params = json!({"made_up": made_up, "from": "app thread", "times": 1});
        assert_eq!(target.must("call_detach", params), json!([ENODEV]), "{made_up}");
    }
    assert_eq!(target.parent("lvs/vol").as_deref(), Some("snap"));
    assert_eq!(call(&target, "vol", "app thread", 1), json!([0]));
    target.stop();
}

#[test]
fn a_check_says_what_the_method_says() {
    let (mut target, _folder) = start();
    let call = |lvol: &str, from: &str, with_ranges: bool| {
        let times = u32::from(with_ranges);
        let params = json!({"lvs": "lvs", "lvol": lvol, "from": from, "times": times});
        target.call("call_check", params)
    };
    for with_ranges in [false, true] {
        let params = json!({"name": "lvs/vol", "ranges": with_ranges});
        let said = target.must("bdev_lvol_check_detach_parent", params);
        assert_eq!(call("vol", "app thread", with_ranges).unwrap(), said);
        assert_eq!(said.get("lost_ranges").is_some(), with_ranges);
    }
    let code = |lvol: &str, from: &str| call(lvol, from, false).unwrap_err().code;
    assert_eq!(code("vol", "another SPDK thread"), i64::from(EPERM));
    assert_eq!(code("none", "app thread"), i64::from(EINVAL));
    assert_eq!(target.parent("lvs/vol").as_deref(), Some("snap"));
    // A refusal is what it finds, and no error.
    target.detach("lvs/vol");
    assert_eq!(call("vol", "app thread", false).unwrap()["refusal"]["code"], EINVAL);
    target.stop();
}

#[test]
fn after_an_error_of_the_device_nothing_has_changed() {
    let (mut target, _folder) = start();
    target.fail_writes("lvs", 1);
    assert_eq!(call(&target, "vol", "app thread", 1), json!([EIO]));
    target.stop_failing("lvs");
    assert_eq!(target.parent("lvs/vol").as_deref(), Some("snap"));
    target.restart();
    assert_eq!(target.parent("lvs/vol").as_deref(), Some("snap"));
    target.stop();
}

/// The guard has not passed, and never will.
#[test]
#[cfg_attr(not(spdk_shared_libraries), ignore = "nothing can be loaded into this SPDK's target")]
fn in_a_target_that_it_does_not_fit_the_function_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    hide("spdk_bdev_for_each_bdev_io", "libspdk_bdev.so", folder.path());
    let libraries = [built("libspdk_lvol_detach.so"), caller(folder.path())];
    let program = Program::StockWith(libraries.to_vec());
    let path = format!(
        "{0}:{1}/build/lib:{1}/dpdk/build/lib",
        folder.path().display(),
        spdk_root().display()
    );
    let environment = vec![("LD_LIBRARY_PATH".into(), path.into())];
    let mut target = Target::start_with(Options { program, environment, ..Options::default() });
    assert_eq!(target.must("get_early", Value::Null), json!(ENOTSUP));
    for from in ["app thread", "another SPDK thread", "a thread that is not SPDK's"] {
        assert_eq!(call(&target, "none", from, 1), json!([ENOTSUP]), "{from}");
    }
    target.stop();
}
