//! What a power cut leaves on a device with a volatile write cache.
//!
//! Such a cache holds lines, and writes them to the medium when and in whatever order it likes. A later
//! write of a line that it holds takes the place of the earlier one. So after a power cut a line is as
//! it was at some time since the last flush, from the flush itself to the last write: of the writes to
//! one line a prefix has survived, as a later one can't be there with an earlier one missing that
//! nobody would see. What one line lost says nothing of another, whichever was written first, or even
//! by the same write.
//!
//! A line is one metadata page. What becomes of half a page is tried in `crash_points`; half a write of
//! several pages is tried here. In the part that has the data it is a cluster, as whether what a user
//! writes is torn is up to the user.
//!
//! A flush covers what was completed before it began, from when it is completed itself. What it does
//! to the medium until then may be any part of it.

use std::collections::BTreeMap;

use super::journal::Journal;
use super::{CLUSTER_LEN, MD_PAGE_LEN};

/// As many outcomes are all tried.
const MAX_FOR_ALL: usize = 1 << 12;
/// If there are more, so many are.
const SAMPLE: usize = 10_000;

/// What is open at one time.
pub struct PowerCut {
    /// What is on the device for good.
    durable: Vec<u8>,
    lines: Vec<Line>,
    /// The first write that may be lost, as an event of the journal.
    pub first_open: Option<usize>,
}

struct Line {
    start: usize,
    /// What it may be, from the oldest to the newest; at least two.
    versions: Vec<Vec<u8>>,
}

/// Which of its versions each line has.
pub type Outcome = Vec<usize>;

impl PowerCut {
    /// A power cut after so many events. The data starts at `data_start`.
    pub fn new(journal: &Journal, at: usize, data_start: usize) -> PowerCut {
        let (mut durable, writes) = journal.writes(at);
        let first_open = writes.iter().find(|write| !write.3).map(|write| write.0);
        let mut parts = BTreeMap::<_, Vec<_>>::new();
        for (_, offset, bytes, is_durable) in &writes {
            let end = offset + bytes.len();
            let mut at = *offset;
            while at < end {
                let line_len = if at < data_start { MD_PAGE_LEN } else { CLUSTER_LEN };
                let start = at / line_len * line_len;
                let next = end.min(start + line_len);
                let part = (at, &bytes[at - offset..next - offset], *is_durable);
                parts.entry((start, line_len)).or_default().push(part);
                at = next;
            }
        }
        let mut lines = Vec::new();
        for ((start, len), parts) in parts {
            let covered = parts.iter().rposition(|part| part.2).map_or(0, |last| last + 1);
            let mut versions = Vec::new();
            let mut line = durable[start..start + len].to_vec();
            for (index, (at, bytes, _)) in parts.iter().enumerate() {
                if index >= covered {
                    versions.push(line.clone());
                }
                line[at - start..at - start + bytes.len()].copy_from_slice(bytes);
            }
            versions.push(line);
            versions.dedup();
            durable[start..start + len].copy_from_slice(&versions[0]);
            if versions.len() > 1 {
                lines.push(Line { start, versions });
            }
        }
        PowerCut { durable, lines, first_open }
    }

    /// All that it may leave, or a sample.
    pub fn outcomes(&self) -> Vec<Outcome> {
        let sizes: Vec<_> = self.lines.iter().map(|line| line.versions.len()).collect();
        let count = sizes.iter().try_fold(1_usize, |count, size| {
            count.checked_mul(*size).filter(|&count| count <= MAX_FOR_ALL)
        });
        match count {
            Some(count) => (0..count).map(|number| digits(number, &sizes)).collect(),
            None => sample(&sizes),
        }
    }

    /// What is on the device then.
    pub fn image(&self, outcome: &Outcome) -> Vec<u8> {
        let mut image = self.durable.clone();
        for (line, &version) in self.lines.iter().zip(outcome) {
            let bytes = &line.versions[version];
            image[line.start..line.start + bytes.len()].copy_from_slice(bytes);
        }
        image
    }

    /// What it is, for a message: each open line with the version that it has.
    pub fn describe(&self, outcome: &Outcome) -> String {
        let lines = self.lines.iter().zip(outcome).map(|(line, version)| {
            format!("{:#x}: {version} of {}", line.start, line.versions.len() - 1)
        });
        lines.collect::<Vec<_>>().join(", ")
    }
}

/// The number, as one digit for each base.
fn digits(number: usize, bases: &[usize]) -> Outcome {
    let mut rest = number;
    let digit = |&base: &usize| {
        let digit = rest % base;
        rest /= base;
        digit
    };
    bases.iter().map(digit).collect()
}

/// First those where one line is the only one that is lost, or the only one that is there; then some
/// at random, in which few, half or most are lost. The same each time.
fn sample(sizes: &[usize]) -> Vec<Outcome> {
    let oldest = vec![0; sizes.len()];
    let newest: Vec<_> = sizes.iter().map(|size| size - 1).collect();
    let mut outcomes = vec![oldest.clone(), newest.clone()];
    for (line, &size) in sizes.iter().enumerate() {
        for others in [&oldest, &newest] {
            for version in 0..size {
                let mut outcome = others.clone();
                outcome[line] = version;
                outcomes.push(outcome);
            }
        }
    }
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as usize % below
    };
    while outcomes.len() < SAMPLE {
        let newest_of_8 = [1, 4, 7][outcomes.len() % 3];
        let outcome = sizes
            .iter()
            .map(|&size| if random(8) < newest_of_8 { size - 1 } else { random(size - 1) });
        outcomes.push(outcome.collect());
    }
    outcomes
}
