//! The preloaded library is harmless in processes that are not an SPDK target, and in a target that it
//! doesn't fit.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::preload;
use common::preload::{built, hide};
use common::target::{Options, Program, Target, spdk_root};
use serde_json::{Value, json};

const METHOD: &str = "bdev_lvol_detach_parent";

fn extension() -> PathBuf {
    built("libspdk_lvol_detach.so")
}

/// Runs a command that must end well and say nothing but what it is to say.
#[track_caller]
fn quiet(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&stderr);
    assert!(status.success(), "{command:?}: {status}: {stderr}");
    assert_eq!(stderr, "", "{command:?}");
    String::from_utf8(stdout).unwrap()
}

#[test]
fn a_process_that_is_no_target_is_not_disturbed() {
    let entry = extension();
    assert_eq!(quiet(Command::new("/bin/true").env("LD_PRELOAD", &entry)), "");
    // Every symbol is bound when the process starts.
    assert_eq!(
        quiet(Command::new("/bin/true").env("LD_PRELOAD", &entry).env("LD_BIND_NOW", "1")),
        ""
    );
    // What it starts may be the target, so the environment is as it was.
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", "printf %s \"$LD_PRELOAD\"; /bin/true"]).env("LD_PRELOAD", &entry);
    assert_eq!(quiet(&mut shell), entry.to_str().unwrap());
}

/// SPDK's other programs have parts of it, and none of lvols.
#[test]
#[cfg_attr(not(spdk_shared_libraries), ignore = "nothing can be loaded into this SPDK's programs")]
fn a_program_of_spdk_s_without_lvols_is_not_disturbed() {
    for program in ["spdk_nvme_perf", "spdk_trace_record"] {
        let says = |preload: &Path| {
            let output = Command::new(spdk_root().join("build/bin").join(program))
                .arg("--help")
                .env("LD_LIBRARY_PATH", library_path())
                .env("LD_PRELOAD", preload)
                .output()
                .unwrap();
            (
                output.status.code(),
                String::from_utf8(output.stdout),
                String::from_utf8(output.stderr),
            )
        };
        assert_eq!(says(&extension()), says(Path::new("")), "{program}");
    }
}

/// A custom application that has subsystems but no bdevs starts as it does without the library.
#[test]
#[cfg_attr(not(spdk_shared_libraries), ignore = "nothing can be loaded into such an application")]
fn an_application_without_lvols_is_not_disturbed() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("no_bdevs");
    let root = spdk_root();
    let libraries = quiet(
        Command::new("pkg-config")
            .args(["--libs", "spdk_event", "spdk_env_dpdk"])
            .env("PKG_CONFIG_PATH", root.join("build/lib/pkgconfig")),
    );
    let config = fs::read_to_string(root.join("mk/config.mk")).unwrap();
    quiet(
        Command::new("cc")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/no_bdevs.c"))
            .arg("-I")
            .arg(root.join("include"))
            .arg("-o")
            .arg(&program)
            .args(config.contains("CONFIG_ASAN?=y").then_some("-fsanitize=address"))
            // SPDK's libraries don't name what they need.
            .arg("-Wl,--no-as-needed")
            .args(libraries.split_whitespace())
            .arg(format!("-L{}/isa-l/.libs", root.display()))
            .args(["-lisal", "-lcrypto", "-lssl"])
            .arg(format!("-Wl,-rpath-link,{}/dpdk/build/lib", root.display())),
    );
    let says = |preload: &Path| {
        let output = Command::new(&program)
            .args(["--no-huge", "-s", "256", "--no-pci", "--num-trace-entries", "0"])
            .arg("--disable-cpumask-locks")
            .env("LD_LIBRARY_PATH", format!("{}:{}/isa-l/.libs", library_path(), root.display()))
            .env("LD_PRELOAD", preload)
            .output()
            .unwrap();
        let lines = String::from_utf8_lossy(&output.stderr).lines().count();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        lines
    };
    assert_eq!(says(&extension()), says(Path::new("")), "lines in the log");
}

#[test]
#[cfg_attr(not(spdk_shared_libraries), ignore = "nothing can be loaded into this SPDK's target")]
fn a_wrapper_starts_a_target_with_the_extension() {
    let folder = tempfile::tempdir().unwrap();
    let start = format!(
        "export LD_LIBRARY_PATH={} LD_PRELOAD={}\nexec /bin/sh -c 'exec \"$0\" \"$@\"' {} \"$@\"",
        library_path(),
        extension().display(),
        stock()
    );
    let mut target = start_with(&start, folder.path());
    assert!(target.has_method(METHOD));
    target.stop();
}

/// A target's children get what else is preloaded, and not the extension.
#[test]
#[cfg_attr(not(spdk_shared_libraries), ignore = "nothing can be loaded into this SPDK's target")]
fn a_target_s_children_are_without_it() {
    let folder = tempfile::tempdir().unwrap();
    let extension = extension();
    let release = extension.parent().unwrap().display();
    let extension = extension.display();
    let rpc = preload::build("environment", folder.path());
    let rpc = rpc.display();
    for (entries, left) in [
        (format!("{extension}:{rpc}"), format!("{rpc}")),
        (
            format!("libm.so.6 {release}/../release/libspdk_lvol_detach.so {rpc}"),
            format!("libm.so.6:{rpc}"),
        ),
        // Found in a folder of the dynamic linker's.
        (format!("{rpc}:libspdk_lvol_detach.so"), format!("{rpc}")),
    ] {
        let start = format!(
            "export LD_LIBRARY_PATH={}:{release} LD_PRELOAD='{entries}'\nexec {} \"$@\"",
            library_path(),
            stock()
        );
        let mut target = start_with(&start, folder.path());
        assert_eq!(target.must("get_preload", Value::Null), json!(left), "LD_PRELOAD={entries}");
        assert!(target.has_method(METHOD), "LD_PRELOAD={entries}");
        target.stop();
    }
}

/// A function that no module of SPDK's calls, and the extension does.
const FUNCTION: &str = "spdk_bdev_for_each_bdev_io";

#[test]
#[cfg_attr(not(spdk_shared_libraries), ignore = "nothing can be loaded into this SPDK's target")]
fn a_target_that_lacks_a_function_says_which_and_serves_on() {
    let folder = tempfile::tempdir().unwrap();
    hide(FUNCTION, "libspdk_bdev.so", folder.path());
    let start = format!(
        "export LD_LIBRARY_PATH={}:{} LD_PRELOAD={}\nexec {} \"$@\"",
        folder.path().display(),
        library_path(),
        extension().display(),
        stock()
    );
    let mut target = start_with(&start, folder.path());

    assert!(!target.has_method(METHOD));
    assert!(target.has_method("bdev_lvol_decouple_parent"));
    let log = target.log();
    let line = log.lines().find(|line| line.contains("is not registered"));
    let line = line.unwrap_or_else(|| panic!("no such line in\n{log}"));
    assert!(line.contains("*ERROR*"), "{line}");
    assert!(line.contains(&format!("the target has no {FUNCTION}. ")), "{line}");
    assert!(line.contains("it is built for SPDK v"), "{line}");
    target.stop();
}

/// Starts a target by a shell script.
fn start_with(script: &str, folder: &Path) -> Target {
    let file = folder.join("start");
    fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    Target::start_with(Options { program: Program::At(file), ..Options::default() })
}

fn stock() -> String {
    spdk_root().join("build/bin/spdk_tgt").display().to_string()
}

fn library_path() -> String {
    format!("{0}/build/lib:{0}/dpdk/build/lib", spdk_root().display())
}
