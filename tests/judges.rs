//! A detach holds back no I/O, and waits for I/O that started earlier and goes through the parent: copy-on-writes
//! of the lvol and of its readers, and reads. Delay bdevs stretch each stage of that I/O
//! to seconds, during which the reply must not be sent, or must have been sent already.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::iostat::Iostat;
use common::iscsi::{self, Export};
use common::lvstore::{BLOCK, Lvstore, MIB};
use common::preload::load_generator;
use common::rpc::Pending;
use common::target::{Options, Program, Target};
use serde_json::{Value, json};

const DETACH: &str = "bdev_lvol_detach_parent";

/// How long an I/O takes that is in flight at the time of a detach. All that happens meanwhile is done
/// in less.
const LONG_US: u64 = 4_000_000;

/// Only a target that hangs makes a test wait so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// What every lvol is full of at first. It belongs to the parent.
const OLD: u8 = 0x11;
/// What is written while a detach is under way, to one block of cluster 1.
const NEW: u8 = 0x22;
const WRITTEN: u64 = MIB + 2 * BLOCK;
/// Another block of that cluster.
const BESIDE: u64 = MIB + 5 * BLOCK;

/// Which lvol is detached, and which one does I/O through its parent: the same, its clone, or a clone
/// of that.
const CASES: [(&str, &str); 3] =
    [("lvs/vol", "lvs/vol"), ("lvs/snap", "lvs/vol"), ("lvs/snap", "lvs/far")];

/// A target with an lvstore that can be slow. I/O of several connections is on several cores, if there
/// are so many.
fn start(cores: usize) -> Target {
    let mut target = Target::start_with(Options::on_cores(cores));
    target.create_lvstore("lvs", Lvstore { can_be_slow: true, ..Lvstore::default() });
    target
}

/// Makes `parent <- vol`, or `parent <- snap <- vol` with `snap <- other` and `snap <- mid <- far`.
/// All data is the parent's.
fn create_chain(target: &Target, detached: &str) {
    create_chain_from(target, detached, &["lvs/parent"]);
}

/// The same with these above the rest.
fn create_chain_from(target: &Target, detached: &str, parents: &[&str]) {
    target.create_thin("lvs/vol", 4);
    for parent in parents {
        target.write("lvs/vol", &[(0, OLD), (1, OLD), (2, OLD), (3, OLD)]);
        target.snapshot("lvs/vol", parent);
    }
    if detached == "lvs/snap" {
        target.snapshot("lvs/vol", "lvs/snap");
        target.clone_of("lvs/snap", "lvs/other");
        target.clone_of("lvs/snap", "lvs/far");
        target.snapshot("lvs/far", "lvs/mid");
    }
}

fn delete_all(target: &Target) {
    for lvol in ["late", "far", "mid", "other", "vol", "snap", "parent"] {
        let lvol = format!("lvs/{lvol}");
        if target.bdev(&lvol).is_some() {
            target.delete(&lvol);
        }
    }
}

#[track_caller]
fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < PATIENCE, "{what}: it does not happen");
        thread::sleep(Duration::from_millis(5));
    }
}

/// What the target knows of one lvol's reads, or writes, and of the device's writes.
struct Counts<'a> {
    target: &'a Target,
    lvol: String,
    base: String,
    ended: fn(&Iostat) -> u64,
}

impl<'a> Counts<'a> {
    fn reads_of(target: &'a Target, lvol: &str) -> Counts<'a> {
        let (lvol, base) = (target.lvol(lvol).uuid, target.base_bdev("lvs"));
        Counts { target, lvol, base, ended: |iostat| iostat.reads }
    }

    fn writes_of(target: &'a Target, lvol: &str) -> Counts<'a> {
        Counts { ended: |iostat| iostat.writes, ..Counts::reads_of(target, lvol) }
    }

    /// How many have ended.
    fn ended(&self) -> u64 {
        (self.ended)(&self.target.iostat(&self.lvol))
    }

    /// The writes that the device has done. What has asked for one may not know yet.
    fn written(&self) -> u64 {
        self.target.iostat(&self.base).writes
    }

    /// Whether more than so many have ended: soon, as the last step of an I/O may follow what it is
    /// waited for.
    fn ends_soon(&self, before: u64) -> bool {
        let started = Instant::now();
        while self.ended() == before && started.elapsed() < Duration::from_millis(500) {
            thread::sleep(Duration::from_millis(5));
        }
        self.ended() > before
    }
}

/// Time for a detach to come as far as it can.
fn let_it_go_on() {
    thread::sleep(Duration::from_millis(300));
}

/// A detach that is under way, and has written its page.
fn start_detach(target: &Target, lvol: &str) -> Pending {
    let base = target.base_bdev("lvs");
    let before = target.iostat(&base).writes;
    let detach = target.start_call(DETACH, json!({"name": lvol}));
    wait_until("the detach writes", || target.iostat(&base).writes > before);
    let_it_go_on();
    detach
}

/// The byte that a block reads as, of those that it may.
#[track_caller]
fn read_byte(export: &Export<'_>, offset: u64) -> u8 {
    let byte = [OLD, 0]
        .into_iter()
        .find(|&byte| export.qemu_io([iscsi::read(offset, BLOCK, byte)]).is_ok());
    byte.unwrap_or_else(|| {
        panic!("the block at {offset} has neither the parent's bytes nor zeroes")
    })
}

/// Checks that cluster 1 is the block that was written, and `rest`; and that all else is zeroes.
#[track_caller]
fn expect_whole(target: &Target, lvol: &str, rest: u8) {
    let (before, after) = (WRITTEN - MIB, 2 * MIB - WRITTEN - BLOCK);
    let commands = [
        iscsi::read(0, MIB, 0),
        iscsi::read(MIB, before, rest),
        iscsi::read(WRITTEN, BLOCK, NEW),
        iscsi::read(WRITTEN + BLOCK, after, rest),
        iscsi::read(2 * MIB, 2 * MIB, 0),
    ];
    if let Err(error) = target.export(lvol).qemu_io(commands) {
        panic!("{lvol} is not whole (the rest of the cluster has been {rest:#x}):\n{error}");
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slow {
    /// The read of the parent's cluster.
    Read,
    /// The write of the new one.
    Write,
    /// The metadata that says whose that is.
    Insert,
}

/// A copy-on-write that began before the detach, each step of which takes so long. Returns false if it
/// was done before the test had seen what it is for.
fn a_copy_in_flight(
    target: &Target,
    (detached, writer): (&str, &str),
    slow: Slow,
    long_us: u64,
) -> bool {
    let context = format!("{slow:?} of {writer} slow, {detached} detached");
    create_chain(target, detached);
    let counts = Counts::writes_of(target, writer);
    let export = target.export(writer);
    let beside = target.export(writer);
    let (ended, written) = (counts.ended(), counts.written());
    match slow {
        Slow::Read => target.slow_down_reads("lvs", long_us),
        Slow::Write => target.slow_down_writes("lvs", long_us),
        Slow::Insert => target.slow_down_writes("lvs", long_us / 4),
    }
    let rest = thread::scope(|scope| {
        let write = [iscsi::write(WRITTEN, BLOCK, NEW), iscsi::stay()];
        let write = scope.spawn(|| export.qemu_io(write));
        if slow == Slow::Read {
            target.wait_for_io(&counts.lvol);
            target.slow_down_reads("lvs", 0);
        } else {
            wait_until("the new cluster is written", || counts.written() > written);
        }
        if slow == Slow::Write {
            target.slow_down_writes("lvs", 0);
        }
        let detach = start_detach(target, detached);
        if slow == Slow::Insert {
            // The detach's page is done soon; what follows is the cluster's metadata.
            target.slow_down_writes("lvs", long_us);
            wait_until("the metadata is written", || counts.written() > written + 2);
            target.slow_down_writes("lvs", 0);
            let_it_go_on();
        }
        // What reads as zeroes once never has the parent's bytes again.
        let first = (slow != Slow::Read).then(|| read_byte(&beside, BESIDE));
        let too_late = counts.ended() > ended;
        assert_eq!(detach.wait(), Ok(json!(true)), "{context}");
        assert!(counts.ends_soon(ended), "{context}: answered before the copy was done");
        write.join().unwrap().expect("the write works");
        let rest = read_byte(&beside, BESIDE);
        if let Some(first) = first {
            assert_eq!(first, rest, "{context}: it was the one, and is the other");
        }
        (!too_late).then_some(rest)
    });
    drop((export, beside));
    let Some(rest) = rest else {
        delete_all(target);
        return false;
    };
    expect_whole(target, writer, rest);
    // Nor does anything that comes later change it.
    target.delete("lvs/parent");
    target.create_thick("lvs/late", 8);
    let clusters: Vec<_> = (0..8).map(|cluster| (cluster, 0x77)).collect();
    target.write("lvs/late", &clusters);
    expect_whole(target, writer, rest);
    delete_all(target);
    true
}

fn copies_in_flight(case: (&str, &str)) {
    let mut target = start(2);
    for slow in [Slow::Read, Slow::Write, Slow::Insert] {
        let tries = [LONG_US, 2 * LONG_US, 4 * LONG_US, 8 * LONG_US];
        let seen = tries.into_iter().any(|us| a_copy_in_flight(&target, case, slow, us));
        assert!(
            seen,
            "{slow:?} of {case:?}: the copy is always done before the detach waits for it"
        );
    }
    target.stop();
}

#[test]
fn a_copy_of_the_lvol_ends_before_the_reply() {
    copies_in_flight(CASES[0]);
}

#[test]
fn a_copy_of_a_clone_ends_before_the_reply() {
    copies_in_flight(CASES[1]);
}

#[test]
fn a_copy_of_a_clones_clone_ends_before_the_reply() {
    copies_in_flight(CASES[2]);
}

#[test]
fn a_read_through_the_parent_ends_before_the_reply() {
    let mut target = start(2);
    for (detached, reader) in CASES {
        create_chain(&target, detached);
        let counts = Counts::reads_of(&target, reader);
        let export = target.export(reader);
        let ended = counts.ended();
        target.slow_down_reads("lvs", LONG_US);
        thread::scope(|scope| {
            let read = [iscsi::read(0, BLOCK, OLD), iscsi::stay()];
            let read = scope.spawn(|| export.qemu_io(read));
            target.wait_for_io(&counts.lvol);
            target.slow_down_reads("lvs", 0);
            assert_eq!(counts.ended(), ended, "the test is too slow");
            target.detach(detached);
            assert!(counts.ends_soon(ended), "{reader}: answered before the read was done");
            read.join().unwrap().expect("it has what the parent has");
        });
        drop(export);
        target.expect_data(reader, &[0; 4]);
        delete_all(&target);
    }
    target.stop();
}

/// The reads wait in a queue of the parent's, as SPDK has frozen that: its own parent is deleted, which
/// is a write of its metadata, and one more.
#[test]
fn a_read_of_a_frozen_parent_ends_before_the_reply() {
    let mut target = start(1);
    for (detached, reader) in CASES {
        create_chain_from(&target, detached, &["lvs/grand", "lvs/parent"]);
        let counts = Counts::reads_of(&target, reader);
        let export = target.export(reader);
        let (ended, written) = (counts.ended(), counts.written());
        target.slow_down_writes("lvs", LONG_US / 2);
        thread::scope(|scope| {
            let delete = target.start_call("bdev_lvol_delete", json!({"name": "lvs/grand"}));
            wait_until("the deletion writes", || counts.written() > written);
            let read = [iscsi::read(0, BLOCK, OLD), iscsi::stay()];
            let read = scope.spawn(|| export.qemu_io(read));
            target.wait_for_io(&counts.lvol);
            let detach = start_detach(&target, detached);
            assert_eq!(counts.ended(), ended, "the parent is not frozen");
            // The detach's page is done before the deletion's second write is.
            assert_eq!(detach.wait(), Ok(json!(true)));
            target.slow_down_writes("lvs", 0);
            assert!(counts.ends_soon(ended), "{reader}: answered before the read was done");
            assert_eq!(delete.wait(), Ok(json!(true)));
            read.join().unwrap().expect("it has what the parent has");
        });
        drop(export);
        target.expect_data(reader, &[0; 4]);
        target.expect_data("lvs/parent", &[OLD; 4]);
        delete_all(&target);
    }
    target.stop();
}

/// Keeps so many writes in flight on each core; none at all if `writes` is 0.
#[track_caller]
fn open_load(target: &Target, lvol: &str, queue_depth: u64, writes: u64) {
    target.must(
        "load_open",
        json!({
            "name": lvol, "tag": 1, "seed": 1, "queue_depth": queue_depth,
            "cluster_blocks": MIB / BLOCK, "max_blocks": 64,
            "reads": 1 - writes, "writes": writes, "write_zeroes": 0, "unmaps": 0,
            "sparseness": 1, "image": null,
        }),
    );
}

/// A thread of SPDK's is in the middle of something for as long as it likes; it may be a read that has
/// found the parent, or a write that has found what to copy.
#[test]
fn a_thread_that_may_be_in_the_middle_of_it_is_waited_for() {
    let program = Program::With(vec![load_generator()]);
    let mut target = Target::start_with(Options { program, ..Options::on_cores(2) });
    target.create_lvstore("lvs", Lvstore::default());
    create_chain(&target, "lvs/snap");
    // A channel on each core, which is all that this is for.
    open_load(&target, "lvs/vol", 0, 0);
    // The second detach must ask as the first one did.
    target.detach("lvs/other");
    let written = || fs::metadata(target.file("lvs")).unwrap().modified().unwrap();
    let before = written();
    target.must("load_stall", Value::Null);
    let mut detach = target.start_call(DETACH, json!({"name": "lvs/snap"}));
    let started = Instant::now();
    while written() == before && started.elapsed() < Duration::from_secs(5) {
        thread::sleep(Duration::from_millis(5));
    }
    let_it_go_on();
    assert!(!detach.is_answered(), "nobody has asked the other core");
    assert_eq!(
        target.parent("lvs/snap"),
        Some("parent".to_owned()),
        "what is read has changed before the other core knew that it copies no more"
    );
    target.must("load_release", Value::Null);
    assert_eq!(detach.wait(), Ok(json!(true)));
    target.must("load_close", json!({"name": "lvs/vol"}));
    assert_eq!(target.parent("lvs/snap"), None);
    target.expect_data("lvs/vol", &[0; 4]);
    target.stop();
}

/// Another chain in the lvstore, on the same core: its read through its parent, and its copy, which
/// keeps a write of the lvol waiting.
#[test]
fn the_neighbours_io_is_not_waited_for() {
    let mut target = start(1);
    create_chain(&target, "lvs/vol");
    for neighbour in ["lvs/reader", "lvs/writer"] {
        target.create_thin(neighbour, 2);
        target.write(neighbour, &[(0, OLD)]);
        target.snapshot(neighbour, &format!("{neighbour}-parent"));
    }
    let lvols = ["lvs/reader", "lvs/writer", "lvs/vol"];
    let [reader, writer, vol] = lvols;
    let counts = [
        Counts::reads_of(&target, reader),
        Counts::writes_of(&target, writer),
        Counts::writes_of(&target, vol),
    ];
    let exports = lvols.map(|lvol| target.export(lvol));
    let commands = [
        iscsi::read(0, BLOCK, OLD),
        iscsi::write(0, BLOCK, NEW),
        // It begins when the neighbour's has ended, and so after the detach.
        iscsi::write(WRITTEN, BLOCK, NEW),
    ];
    let ended = counts.each_ref().map(Counts::ended);
    target.slow_down_reads("lvs", 2 * LONG_US);
    thread::scope(|scope| {
        let mut started = Vec::new();
        for ((export, command), counts) in exports.iter().zip(commands).zip(&counts) {
            let command = [command, iscsi::stay()];
            started.push(scope.spawn(|| export.qemu_io(command)));
            target.wait_for_io(&counts.lvol);
        }
        target.slow_down_reads("lvs", 0);
        target.detach("lvs/vol");
        let now = counts.each_ref().map(Counts::ended);
        assert_eq!(now, ended, "the reply came only after the neighbours' I/O");
        for io in started {
            io.join().unwrap().expect("it works");
        }
    });
    drop(exports);
    expect_whole(&target, "lvs/vol", 0);
    target.stop();
}

/// A clone's read through the parent hangs.
#[test]
fn while_a_detach_waits_all_other_io_goes_on() {
    let mut target = start(1);
    create_chain(&target, "lvs/snap");
    target.write("lvs/other", &[(0, 0x33)]);
    target.create_thin("lvs/neighbour", 4);
    target.write("lvs/neighbour", &[(1, 0x33)]);
    let counts = Counts::reads_of(&target, "lvs/vol");
    let export = target.export("lvs/vol");
    let writers = ["lvs/other", "lvs/far", "lvs/vol", "lvs/neighbour"];
    let exports = writers.map(|lvol| target.export(lvol));
    let ended = counts.ended();
    target.slow_down_reads("lvs", 3 * LONG_US);
    thread::scope(|scope| {
        let read = [iscsi::read(0, BLOCK, OLD), iscsi::stay()];
        let read = scope.spawn(|| export.qemu_io(read));
        target.wait_for_io(&counts.lvol);
        target.slow_down_reads("lvs", 0);
        let mut detach = start_detach(&target, "lvs/snap");
        for (lvol, export) in writers.iter().zip(&exports) {
            // To a cluster of its own, if it has one, and to one that is new.
            export.must([iscsi::write(0, BLOCK, 0x44), iscsi::write(WRITTEN, BLOCK, NEW)]);
            assert!(
                !detach.is_answered(),
                "{lvol}: its write was held, or the read not waited for"
            );
            assert_eq!(counts.ended(), ended, "{lvol}: its write ended after the read");
        }
        assert_eq!(detach.wait(), Ok(json!(true)));
        assert!(counts.ends_soon(ended), "answered before the read was done");
        read.join().unwrap().expect("it has what the parent has");
    });
    drop((export, exports));
    target.delete("lvs/parent");
    for (lvol, rest) in [("lvs/other", 0x33), ("lvs/far", 0), ("lvs/vol", 0)] {
        target.export(lvol).must([
            iscsi::read(0, BLOCK, 0x44),
            iscsi::read(BLOCK, MIB - BLOCK, rest),
            iscsi::read(MIB, WRITTEN - MIB, 0),
            iscsi::read(WRITTEN, BLOCK, NEW),
            iscsi::read(WRITTEN + BLOCK, 4 * MIB - WRITTEN - BLOCK, 0),
        ]);
    }
    target.stop();
}

/// A clone that may write 1 MiB a second has more in flight than that.
#[test]
fn a_clone_with_a_backlog_delays_nobody_elses_writes() {
    // About 10 s.
    const BACKLOG: u64 = 256;
    let program = Program::With(vec![load_generator()]);
    let mut target = Target::start_with(Options { program, ..Options::on_cores(1) });
    target.create_lvstore("lvs", Lvstore::default());
    target.create_thin("lvs/vol", 64);
    target.write("lvs/vol", &[(0, OLD)]);
    target.snapshot("lvs/vol", "lvs/parent");
    target.snapshot("lvs/vol", "lvs/snap");
    target.clone_of("lvs/snap", "lvs/other");
    target.write("lvs/other", &[(0, 0x33)]);
    target.create_thin("lvs/neighbour", 4);
    let exports = ["lvs/other", "lvs/neighbour"].map(|lvol| target.export(lvol));
    let limit = |limit: u64| json!({"name": "lvs/vol", "w_mbytes_per_sec": limit});
    target.must("bdev_set_qos_limit", limit(1));
    open_load(&target, "lvs/vol", BACKLOG, 1);
    let ended = || {
        let status = target.must("load_status", json!({"name": "lvs/vol"}));
        status["writes"].as_u64().unwrap()
    };
    let before = ended();
    let detach = start_detach(&target, "lvs/snap");
    for export in &exports {
        export.must([iscsi::write(0, BLOCK, 0x44), iscsi::write(WRITTEN, BLOCK, NEW)]);
        assert!(ended() < before + BACKLOG, "a write came only after the backlog");
    }
    target.must("bdev_set_qos_limit", limit(0));
    assert_eq!(detach.wait(), Ok(json!(true)));
    target.must("load_close", json!({"name": "lvs/vol"}));
    drop(exports);
    target.stop();
}

#[test]
fn whose_io_is_waited_for_is_said_after_5_s_and_when_it_is_over() {
    let mut target = start(1);
    create_chain(&target, "lvs/snap");
    let counts = Counts::reads_of(&target, "lvs/far");
    let export = target.export("lvs/far");
    let ended = counts.ended();
    let said = |log: &str| -> Vec<String> {
        let lines = log.lines().filter(|line| line.contains("*WARNING*") && line.contains("wait"));
        lines.filter(|line| line.contains("lvs/far")).map(str::to_owned).collect()
    };
    target.slow_down_reads("lvs", 3 * LONG_US);
    thread::scope(|scope| {
        let read = [iscsi::read(0, BLOCK, OLD), iscsi::stay()];
        let read = scope.spawn(|| export.qemu_io(read));
        target.wait_for_io(&counts.lvol);
        target.slow_down_reads("lvs", 0);
        let mut detach = target.start_call(DETACH, json!({"name": "lvs/snap"}));
        while !detach.is_answered() && said(&target.log()).is_empty() {
            thread::sleep(Duration::from_millis(20));
        }
        let lines = said(&target.log());
        assert!(!detach.is_answered() && counts.ended() == ended, "not said in time: {lines:?}");
        assert!(lines.len() == 1 && lines[0].contains("waits"), "{lines:?}");
        assert_eq!(detach.wait(), Ok(json!(true)));
        read.join().unwrap().expect("it has what the parent has");
    });
    target.wait_for_log(|log| said(log).len() > 1);
    let lines = said(&target.log());
    assert_eq!(lines.len(), 2, "{lines:?}");
    drop(export);
    target.stop();
}

#[test]
fn a_target_stops_while_a_detach_waits() {
    let mut target = start(1);
    create_chain(&target, "lvs/snap");
    let counts = Counts::reads_of(&target, "lvs/vol");
    target.slow_down_reads("lvs", 2 * LONG_US);
    let mut reader = start_reader(&target, "lvs/vol");
    target.wait_for_io(&counts.lvol);
    target.slow_down_reads("lvs", 0);
    let mut detach = start_detach(&target, "lvs/snap");
    assert!(!detach.is_answered(), "the read is not waited for");
    target.stop();
    // It may have been told of its read, or try to reach the target again for ever.
    reader.kill().unwrap();
    reader.wait().unwrap();
    target.start_again();
    assert_eq!(target.parent("lvs/snap"), None, "the device has known it before the wait");
    target.expect_data("lvs/vol", &[0; 4]);
    target.delete("lvs/parent");
    target.stop();
}

/// A client that reads from an lvol, which stays exposed.
fn start_reader(target: &Target, lvol: &str) -> Child {
    let url = target.export(lvol).leave_exposed();
    let child = Command::new("qemu-io")
        .args(["-f", "raw", "-t", "unsafe", "-c", &iscsi::read(0, BLOCK, OLD), &url])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    child.expect("qemu-io can be started")
}

/// How long the thread that detaches has been at work, in seconds.
fn seconds_of_app_thread(target: &Target) -> f64 {
    let stats = target.must("thread_get_stats", Value::Null);
    let threads = stats["threads"].as_array().unwrap();
    let app = threads.iter().find(|thread| thread["name"] == "app_thread").unwrap();
    let ticks = app["busy"].as_u64().unwrap() + app["idle"].as_u64().unwrap();
    ticks as f64 / stats["tick_rate"].as_f64().unwrap()
}

/// The read hangs in a bdev that needs no poller for that: any would keep the thread busy.
#[test]
fn in_interrupt_mode_a_waiting_detach_sleeps() {
    let arguments = vec!["--interrupt-mode".to_owned()];
    let mut target = Target::start_with(Options { arguments, ..Options::on_cores(1) });
    target.create_lvstore("lvs", Lvstore { can_fail: true, ..Lvstore::default() });
    create_chain(&target, "lvs/snap");
    let name = target.lvol("lvs/vol").uuid;
    target.inject("lvs", "read", "pending", 1);
    let mut reader = start_reader(&target, "lvs/vol");
    target.wait_for_io(&name);
    // What has looked for the I/O is a poller as well.
    target.must("bdev_set_qd_sampling_period", json!({"name": name, "period": 0}));
    let seconds_at_work = || {
        let before = seconds_of_app_thread(&target);
        thread::sleep(Duration::from_secs(2));
        seconds_of_app_thread(&target) - before
    };
    let without = seconds_at_work();
    let mut detach = start_detach(&target, "lvs/snap");
    let with = seconds_at_work();
    assert!(!detach.is_answered(), "the read is not waited for");
    eprintln!("at work for {without:.3} s of 2 without a detach that waits, {with:.3} s with one");
    if without > 0.5 {
        eprintln!("this SPDK does not sleep in its interrupt mode: nothing to compare with");
    } else {
        assert!(with < 2.0 * without + 0.1, "{with} s of 2 s, and {without} s without the detach");
    }
    // The read never ends, and so nothing else does.
    target.kill9();
    let _ = reader.kill();
    reader.wait().unwrap();
}
