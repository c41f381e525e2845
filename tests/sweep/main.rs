//! SPDK's operations on a chain of lvols, each with its n-th write failing, and then a detach of each
//! lvol; compared with the same without a detach: what SPDK alone survives, it survives with a detach.
//!
//! After each failed write all lvols are detached one after the other, and on another lvstore one alone:
//! they take turns. `make sweep SWEEP=TEXT` does that with each of them, for the operations whose name has
//! that text, and prints what happens; `make sweep` does it for all operations.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod client;
#[path = "../common/mod.rs"]
mod common;
mod ops;
mod state;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Mutex;
use std::thread;

use common::preload;
use ops::Op;
use worker::Worker;

/// As many targets as run at the same time.
const WORKERS: usize = 2;

/// What fails while an operation runs.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    /// The first write that fails, from 1.
    pub first: u64,
    /// How many fail.
    pub count: u64,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.count {
            1 => write!(f, "write {} fails", self.first),
            _ => write!(f, "writes fail from {} on", self.first),
        }
    }
}

/// What was seen.
#[derive(Debug, Default)]
pub struct Report {
    /// Failed writes, each with one detach or several after it.
    pub combinations: usize,
    /// Operations of SPDK's with a failed write.
    pub faults: usize,
    /// How often the detach had this answer.
    pub answers: BTreeMap<String, usize>,
    /// What SPDK alone does not survive.
    pub left_out: BTreeSet<String>,
    /// What a detach has broken.
    pub findings: Vec<String>,
    /// How many targets were started.
    pub starts: usize,
}

impl Report {
    fn add(&mut self, other: Report) {
        self.combinations += other.combinations;
        self.faults += other.faults;
        for (answer, count) in other.answers {
            *self.answers.entry(answer).or_default() += count;
        }
        self.left_out.extend(other.left_out);
        self.findings.extend(other.findings);
        self.starts += other.starts;
    }
}

#[test]
fn what_spdk_survives_it_survives_with_a_detach() {
    let only = std::env::var("SWEEP").ok();
    let ops = ops::all().into_iter().filter(|op| only.as_ref().is_none_or(|o| op.name.contains(o)));
    let ops: Mutex<Vec<Op>> = Mutex::new(ops.collect());
    let folder = tempfile::Builder::new().prefix("spdk-lvol-detach-test-").tempdir().unwrap();
    let helper = preload::build("sweep", folder.path());
    let report = Mutex::new(Report::default());
    thread::scope(|scope| {
        for number in 0..WORKERS {
            let folder = folder.path().join(number.to_string());
            let (ops, helper, report) = (&ops, &helper, &report);
            scope.spawn(move || {
                let mut worker = Worker::start(&folder, helper);
                loop {
                    let Some(op) = ops.lock().unwrap().pop() else { break };
                    worker.sweep(&op);
                }
                report.lock().unwrap().add(worker.finish());
            });
        }
    });
    let report = report.into_inner().unwrap();
    println!("sweep: left out, because SPDK alone does not survive it:");
    for what in &report.left_out {
        println!("  {what}");
    }
    println!(
        "sweep: {} combinations of a failed write and a detach, after {} failed writes; answers: {}; \
         {} targets; {} left out",
        report.combinations,
        report.faults,
        report
            .answers
            .iter()
            .map(|(answer, count)| format!("{answer} {count}"))
            .collect::<Vec<_>>()
            .join(", "),
        report.starts,
        report.left_out.len(),
    );
    for finding in &report.findings {
        println!("sweep: finding: {finding}");
    }
    assert!(report.findings.is_empty(), "{} findings", report.findings.len());
}
