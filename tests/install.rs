//! `make install` and `make uninstall`, and the Debian packages.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::target::{Options, Program, Target, spdk_define, spdk_root};
use serde_json::Value;

const METHOD: &str = "bdev_lvol_detach_parent";

/// What it takes to build with the library.
const DEVELOPMENT: [&str; 6] = [
    "lib/spdk-lvol-detach/libspdk_lvol_detach.a",
    "lib/pkgconfig/spdk_lvol_detach.pc",
    "include/spdk_lvol_detach.h",
    "share/doc/spdk-lvol-detach/examples/chain.json",
    "share/doc/spdk-lvol-detach/examples/c/detach.c",
    "share/doc/spdk-lvol-detach/examples/c/Makefile",
];

/// Runs make with a target, for a system whose root is this folder.
fn make(target: &str, prefix: &str, root: &Path) {
    let mut make = Command::new("make");
    make.args([target, &format!("PREFIX={prefix}"), &format!("DESTDIR={}", root.display())])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        // From the make that runs the tests, if one does.
        .env_remove("MAKEFLAGS");
    run(&mut make);
}

/// What a command that must end well says.
#[track_caller]
fn run(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    assert!(status.success(), "{command:?}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
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

/// The release of the tree that the tests run on, as "26.01".
fn spdk_release() -> String {
    let number = |name| spdk_define("include/spdk/version.h", name).parse::<u32>().unwrap();
    format!("{}.{:02}", number("SPDK_VERSION_MAJOR"), number("SPDK_VERSION_MINOR"))
}

/// Each link in the installed documents leads to something that is installed.
fn check_links(doc: &Path) {
    let documents = files(doc);
    let mut links = 0;
    for file in documents.iter().filter(|file| file.extension().is_some_and(|end| end == "md")) {
        let text = fs::read_to_string(file).unwrap();
        for link in text.split("](").skip(1) {
            let link = link.split([')', '#']).next().unwrap();
            if link.is_empty() || link.contains("://") {
                continue;
            }
            links += 1;
            assert!(
                file.parent().unwrap().join(link).exists(),
                "{}: {link} is not there",
                file.display()
            );
        }
    }
    assert!(links > 10, "{} has links", doc.display());
}

/// The fragment for SPDK's `schema/schema.json` has the methods that the target has got, in the form that
/// the file of the tree has, if the tree has one.
fn check_schema(file: &Path, target: &Target) {
    let read = |file: &Path| -> Value { serde_json::from_slice(&fs::read(file).unwrap()).unwrap() };
    let methods = target.must("rpc_get_methods", Value::Null);
    let ours =
        |method: &&str| method.starts_with("bdev_lvol_") && method.ends_with("detach_parent");
    let methods: BTreeSet<_> =
        methods.as_array().unwrap().iter().filter_map(Value::as_str).filter(ours).collect();
    let fragment = read(file);
    let fragment = fragment["methods"].as_array().unwrap();
    let names: BTreeSet<_> = fragment.iter().filter_map(|method| method["name"].as_str()).collect();
    assert_eq!(names, methods);

    let schema = spdk_root().join("schema/schema.json");
    if schema.exists() {
        let schema = read(&schema);
        let keys = |value: &Value| -> BTreeSet<String> {
            value.as_object().unwrap().keys().cloned().collect()
        };
        let params = |methods: &[Value]| -> BTreeSet<String> {
            let params = methods.iter().filter_map(|method| method["params"].as_array()).flatten();
            params.flat_map(keys).collect()
        };
        let known = schema["methods"].as_array().unwrap();
        assert!(params(fragment).is_subset(&params(known)));
        assert!(fragment.iter().flat_map(keys).all(|key| known.iter().any(|m| !m[&key].is_null())));
    }
}

/// The launcher that is installed below `usr`, on a system without an SPDK.
fn alone(usr: &Path, folder: &Path) -> Program {
    let file = folder.join("start");
    let script = format!(
        "#!/bin/sh\nunset SPDK_ROOT_DIR LVOL_DETACH_TGT\nPATH=/usr/bin:/bin exec {}/bin/spdk_tgt-lvol-detach \"$@\"\n",
        usr.display()
    );
    fs::write(&file, script).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    Program::At(file)
}

#[test]
fn the_static_target_needs_no_stock_one() {
    let root = tempfile::tempdir().unwrap();
    let folder = tempfile::tempdir().unwrap();
    make("install", "/usr", root.path());
    let usr = root.path().join("usr");
    let program = alone(&usr, folder.path());

    let shared = program.command().arg("--shared").output().unwrap();
    assert_eq!(shared.status.code(), Some(1));
    let said = String::from_utf8(shared.stderr).unwrap();
    assert_eq!(
        said,
        "spdk_tgt: there is no spdk_tgt in PATH, and SPDK_ROOT_DIR names no SPDK tree.\n"
    );

    // As it is started from a package, and with the option where SPDK_ROOT_DIR names nothing.
    let mut target = Target::start_with(Options { program: program.clone(), ..Options::default() });
    assert!(target.has_method(METHOD));
    target.stop();
    let mut launcher = Command::new(usr.join("bin/spdk_tgt-lvol-detach"));
    launcher.env("SPDK_ROOT_DIR", "/nonexistent").args(["--static", "--version"]);
    assert!(run(&mut launcher).contains("SPDK"));
}

#[test]
fn what_is_installed_names_the_prefix() {
    let root = tempfile::tempdir().unwrap();
    make("install", "/opt/lvol", root.path());
    let prefix = root.path().join("opt/lvol");
    for file in [
        "share/man/man8/spdk_tgt-lvol-detach.8",
        "share/doc/spdk-lvol-detach/examples/spdk-lvol-detach.service",
    ] {
        let text = fs::read_to_string(prefix.join(file)).unwrap();
        assert!(text.contains("/opt/lvol/"), "{file}");
        assert!(!text.contains("/usr/"), "{file}");
    }
    let page = fs::read_to_string(prefix.join("share/man/man8/spdk_tgt-lvol-detach.8")).unwrap();
    let version = concat!("spdk-lvol-detach ", env!("CARGO_PKG_VERSION"));
    assert!(page.contains(version), "the man page is of {version}");
    // What it names is there.
    for word in page.split_whitespace().map(|word| word.trim_end_matches('.')) {
        let file = word.replace("\\-", "-");
        let file = file.rsplit('=').next().unwrap();
        if file.starts_with("/opt/") {
            assert!(root.path().join(&file[1..]).exists(), "{file} is not there");
        }
    }
    let pc = prefix.join("lib/pkgconfig/spdk_lvol_detach.pc");
    let pkg_config = |arguments: &[&str]| {
        run(Command::new("pkg-config").args(arguments).arg(&pc)).trim().to_owned()
    };
    assert_eq!(pkg_config(&["--modversion"]), env!("CARGO_PKG_VERSION"));
    assert_eq!(pkg_config(&["--cflags"]), "-I/opt/lvol/include");
    assert!(pkg_config(&["--libs"]).contains("-L/opt/lvol/lib/spdk-lvol-detach "));
    make("uninstall", "/opt/lvol", root.path());
    assert_eq!(files(root.path()), BTreeSet::new());
}

#[test]
fn the_debian_packages_are_complete() {
    if Command::new("dpkg-deb").arg("--version").output().is_err() {
        eprintln!("no Debian: not tried");
        return;
    }
    let out = tempfile::tempdir().unwrap();
    let root = tempfile::tempdir().unwrap();
    let mut script = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/deb.sh"));
    let packages = run(script.arg(out.path()));
    let packages: Vec<_> = packages.lines().collect();
    let [package, dev, debug] = packages[..] else { panic!("{packages:?}") };
    let field =
        |package: &str, name: &str| run(Command::new("dpkg-deb").args(["-f", package, name]));
    for package in packages.iter() {
        let version = format!("{}+spdk{}-1\n", env!("CARGO_PKG_VERSION"), spdk_release());
        assert_eq!(field(package, "Version"), version);
    }
    for needed in ["libc6 ", "libgcc-s1 ", "libaio1"] {
        let depends = field(package, "Depends");
        assert!(depends.contains(needed), "{needed}: {depends}");
    }

    run(Command::new("dpkg-deb").args(["-x", package]).arg(root.path()));
    let usr = root.path().join("usr");
    let doc = usr.join("share/doc/spdk-lvol-detach");
    check_links(&doc);
    let copyright = fs::read_to_string(doc.join("copyright")).unwrap();
    for files in ["spdk/*", "dpdk/*", "isa-l/*", "isa-l-crypto/*", "crates/libc-", "rust-std/*"] {
        assert!(copyright.contains(&format!("\nFiles: {files}")), "{files}:\n{copyright}");
    }
    assert!(copyright.contains("\nLicense: BSD-3-Clause\n Redistribution"), "{copyright}");

    // What debuggers read is apart, and found by the id of the build.
    run(Command::new("dpkg-deb").args(["-x", debug]).arg(root.path()));
    for file in ["libspdk_lvol_detach.so", "spdk_tgt"] {
        let file = usr.join("lib/spdk-lvol-detach").join(file);
        let has = |section: &str, file: &Path| {
            run(Command::new("readelf").arg("-SW").arg(file)).contains(section)
        };
        assert!(!has(".debug_", &file), "{} is stripped", file.display());
        let notes = run(Command::new("readelf").arg("-n").arg(&file));
        let (_, id) = notes.split_once("Build ID: ").unwrap();
        let (first, rest) = id.split_whitespace().next().unwrap().split_at(2);
        let symbols = usr.join(format!("lib/debug/.build-id/{first}/{rest}.debug"));
        assert!(has(".debug_line", &symbols), "{}", symbols.display());
    }
    for file in DEVELOPMENT {
        assert!(!usr.join(file).exists(), "{file} is for developers");
    }
    run(Command::new("dpkg-deb").args(["-x", dev]).arg(root.path()));
    for file in DEVELOPMENT {
        assert!(usr.join(file).exists(), "{file} is not there");
    }

    let program = alone(&usr, out.path());
    let mut target = Target::start_with(Options { program, ..Options::default() });
    assert!(target.has_method(METHOD));
    target.stop();

    if Command::new("lintian").arg("--version").output().is_ok() {
        let mut lintian = Command::new("lintian");
        run(lintian.args(["--allow-root", "--fail-on", "error"]).args(&packages));
    }
}

#[test]
fn what_is_installed_works_and_can_be_taken_away() {
    let root = tempfile::tempdir().unwrap();
    let usr = root.path().join("usr");
    make("install", "/usr", root.path());

    for file in [
        "bin/spdk_tgt-lvol-detach",
        "lib/spdk-lvol-detach/libspdk_lvol_detach.so",
        "lib/spdk-lvol-detach/spdk_tgt",
        "share/spdk-lvol-detach/lvol_detach.sh",
        "share/spdk-lvol-detach/spdk_lvol_detach.py",
        "share/man/man8/spdk_tgt-lvol-detach.8",
        "share/doc/spdk-lvol-detach/LICENSE",
        "share/doc/spdk-lvol-detach/docs/performance.md",
        "share/doc/spdk-lvol-detach/docs/performance/steps.svg",
        "share/doc/spdk-lvol-detach/examples/spdk-lvol-detach.service",
    ]
    .iter()
    .chain(&DEVELOPMENT)
    {
        assert!(usr.join(file).is_file(), "{file} is not there");
    }

    let program = Program::At(usr.join("bin/spdk_tgt-lvol-detach"));
    let mut target = Target::start_with(Options { program, ..Options::default() });
    assert!(target.has_method("bdev_lvol_detach_parent"));
    let version = env!("CARGO_PKG_VERSION");
    let line =
        format!("{METHOD} is registered (version {version}, built for SPDK v{}", spdk_release());
    assert!(target.log().contains(&line), "{}", target.log());
    check_schema(&usr.join("share/doc/spdk-lvol-detach/docs/schema.json"), &target);
    check_links(&usr.join("share/doc/spdk-lvol-detach"));

    // The system's Python looks for modules here without being told.
    let modules = run(Command::new("/usr/bin/python3").args([
        "-c",
        "import sys; print(next(d for d in sys.path if d.startswith('/usr/lib/python3/')))",
    ]));
    let modules = root.path().join(modules.trim().strip_prefix('/').unwrap());
    for folder in [modules, usr.join("share/spdk-lvol-detach")] {
        let help = run(Command::new("spdk-rpc")
            .args(["--plugin", "spdk_lvol_detach", METHOD, "--help"])
            .env("PYTHONPATH", folder)
            .env("PYTHONDONTWRITEBYTECODE", "1"));
        assert!(help.contains("without copying"));
    }
    target.stop();

    make("uninstall", "/usr", root.path());
    assert_eq!(files(root.path()), BTreeSet::new());
}
