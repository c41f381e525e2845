//! Which cases are explored.

use crate::state::{
    CLONE, Case, Kind, MAX_THREADS, MD_THREAD, NEIGHBOUR, ParentHas, ROOT, Release, Submission,
};

/// Every pair of I/Os on every pair of threads, for each release and whatever the parent has.
pub fn pairs() -> Vec<Case> {
    let mut cases = Vec::new();
    for release in [Release::V24_01, Release::Since24_09] {
        for (parent_has, offload) in [
            (ParentHas::Data, false),
            (ParentHas::Data, true),
            (ParentHas::Nothing, true),
            (ParentHas::Ended, true),
        ] {
            // There 24.01 itself looks for clusters that the parent hasn't got.
            if release == Release::V24_01 && parent_has == ParentHas::Ended {
                continue;
            }
            cases.extend(of(release, parent_has, offload, 2));
        }
    }
    cases
}

/// Every three I/Os on every three threads, where the parent has data.
pub fn triples() -> Vec<Case> {
    of(Release::Since24_09, ParentHas::Data, false, 3)
}

fn of(release: Release, parent_has: ParentHas, offload: bool, count: usize) -> Vec<Case> {
    // The lvol is written to, and so has no clone.
    let mut leaf = vec![(ROOT, Kind::Read), (ROOT, Kind::Write), (NEIGHBOUR, Kind::Write)];
    if release != Release::V24_01 {
        leaf.push((ROOT, Kind::Unmap));
    }
    // The lvol is a snapshot itself, which can only be read. Its clone is written to.
    let snapshot =
        [(ROOT, Kind::Read), (CLONE, Kind::Read), (CLONE, Kind::Write), (NEIGHBOUR, Kind::Write)];
    let mut all = selections(&leaf, count);
    all.extend(selections(&snapshot, count));
    let case = |ios| Case { release, parent_has, offload, ios };
    all.into_iter().map(case).collect()
}

/// So many I/Os of any of these kinds, each on any thread. Which is the second thread and which the
/// third makes no difference.
fn selections(kinds: &[(usize, Kind)], count: usize) -> Vec<Vec<Submission>> {
    let all: Vec<_> = (0..MAX_THREADS)
        .flat_map(|thread| kinds.iter().map(move |&(blob, kind)| Submission { blob, kind, thread }))
        .collect();
    let mut found = vec![Vec::new()];
    for _ in 0..count {
        let longer = |ios: &Vec<Submission>| {
            let mut longer = Vec::new();
            for io in all.iter().filter(|io| ios.last().is_none_or(|last| last <= *io)) {
                longer.push(ios.iter().chain([io]).copied().collect());
            }
            longer
        };
        found = found.iter().flat_map(longer).collect();
    }
    found.retain(|ios| *ios <= with_threads_exchanged(ios) && reads_through(ios));
    found
}

fn with_threads_exchanged(ios: &[Submission]) -> Vec<Submission> {
    let mut exchanged = ios.to_vec();
    for io in &mut exchanged {
        if io.thread != MD_THREAD {
            io.thread = MAX_THREADS - io.thread;
        }
    }
    exchanged.sort();
    exchanged
}

/// An I/O is among them that the parent matters to.
fn reads_through(ios: &[Submission]) -> bool {
    ios.iter().any(|io| io.blob != NEIGHBOUR && io.kind != Kind::Unmap)
}
