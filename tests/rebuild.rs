//! `examples/rebuild/`, which rebuilds a replica as a storage engine would do it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use tempfile::TempDir;

/// The size of the volume, in clusters of 1 MiB.
const CLUSTERS: usize = 48;

/// Starts it with a temporary folder of its own.
fn start(folder: &TempDir) -> Child {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/rebuild/rebuild.py");
    Command::new("python3")
        .arg("-B")
        .arg(script)
        .args(["--clusters", &CLUSTERS.to_string()])
        .env("PYTHONPATH", concat!(env!("CARGO_MANIFEST_DIR"), "/python"))
        .env("TMPDIR", folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("python3 can be started")
}

/// The files and processes that it has left behind: each process has the folder in its arguments.
fn left_behind(folder: &TempDir) -> Vec<String> {
    let files = fs::read_dir(folder.path()).unwrap();
    let files = files.map(|file| file.unwrap().path().display().to_string());
    let folder = folder.path().to_str().unwrap();
    let processes = fs::read_dir("/proc").unwrap().filter_map(|process| {
        // One that has ended meanwhile has no command line any more.
        let arguments = fs::read(process.ok()?.path().join("cmdline")).ok()?;
        let arguments = String::from_utf8_lossy(&arguments).replace('\0', " ");
        arguments.contains(folder).then_some(arguments)
    });
    files.chain(processes).collect()
}

/// The bytes that a way has sent, as it is printed.
fn sent<'a>(text: &'a str, way: &str) -> Option<&'a str> {
    let row = text.lines().find(|line| line.starts_with(way) && line.contains("MiB"))?;
    row.strip_prefix(way)?.split("MiB").next().map(str::trim)
}

#[test]
#[cfg_attr(not(spdk_marks_esnap_parent), ignore = "the head loses data in this SPDK on a write")]
fn every_way_ends_with_a_replica_like_the_healthy_one() {
    let folder = tempfile::tempdir().unwrap();

    let Output { status, stdout, stderr } = start(&folder).wait_with_output().unwrap();

    let text = String::from_utf8_lossy(&stdout);
    let error = String::from_utf8_lossy(&stderr);
    assert!(status.success(), "{status}:\n{text}{error}");
    assert_eq!(text.lines().last(), Some("Every byte verified."), "{text}");
    let verified = text.lines().filter(|line| line.trim_start().starts_with("all the same"));
    assert_eq!(verified.count(), 3, "{text}");
    // snap2 alone; snap2 and snap3; all of snap1, snap2, snap3 and the head.
    for (way, parts) in [
        ("bdev_lvol_detach_parent", 4),
        ("bdev_lvol_decouple_parent", 4 + 6),
        ("full rebuild", 12 + 4 + 6 + 2),
    ] {
        let expected = format!("{}.0", CLUSTERS * parts / 16);
        assert_eq!(sent(&text, way), Some(expected.as_str()), "{way}:\n{text}");
    }
    assert!(error.contains("snap2: 100%"), "no progress bar:\n{error}");
    assert_eq!(left_behind(&folder), [""; 0]);
}

#[test]
#[cfg_attr(not(spdk_blob_set_parent), ignore = "no lvol gets another parent in this SPDK")]
fn it_leaves_nothing_behind_when_it_is_interrupted() {
    let folder = tempfile::tempdir().unwrap();
    let mut script = start(&folder);
    let lines = BufReader::new(script.stdout.take().unwrap()).lines();
    let mut lines = lines.map(Result::unwrap);
    assert!(lines.any(|line| line.contains("takes writes from here on")), "it has ended early");

    let pid = libc::pid_t::try_from(script.id()).unwrap();
    // SAFETY: the process is our own child, which has not been waited for.
    unsafe { libc::kill(pid, libc::SIGINT) };

    // What it still prints.
    for _ in lines {}
    let mut error = String::new();
    script.stderr.take().unwrap().read_to_string(&mut error).unwrap();
    assert_eq!(script.wait().unwrap().code(), Some(128 + libc::SIGINT), "{error}");
    assert!(error.contains("interrupted while"), "{error}");
    assert_eq!(left_behind(&folder), [""; 0]);
}
