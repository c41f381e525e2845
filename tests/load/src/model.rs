//! What each block of an lvol may read as.
//!
//! A block that was written is full of one word, which says by whom, where and when it was written;
//! 0 is a block of zeroes. Reads and writes of one load never overlap on a block, as nothing says
//! what such a read sees; so a block has one value, until a detach makes it two: a block whose
//! cluster is not owned by the lvol that is detached, or by one below it, may read as before or as
//! zeroes while the detach is under way, and only as zeroes after it.
//!
//! Who owns a cluster is told by its level: a load writes at a level, which rises with each
//! snapshot of its lvol, and an lvol that is detached at level N keeps the clusters of level N and
//! above.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::histogram::Histogram;

pub const BLOCK: usize = 4096;
/// What is read from a block that is not full of one word.
const TORN: u64 = u64::MAX;
const MAX_COMPLAINTS: usize = 10;

/// What a load is to do.
#[derive(Debug, Clone, Deserialize)]
pub struct Options {
    pub name: String,
    /// Part of each word that is written.
    pub tag: u64,
    /// On each core.
    pub queue_depth: usize,
    pub seed: u64,
    pub cluster_blocks: usize,
    pub max_blocks: usize,
    /// How often each kind of I/O is done in relation to the others. Without a kind that writes the
    /// lvol is opened for reading.
    pub reads: u32,
    pub writes: u32,
    pub write_zeroes: u32,
    pub unmaps: u32,
    /// Of so many clusters one is written at each level; the others stay as they are.
    pub sparseness: u64,
    /// The name of the image that the lvol begins with. Otherwise it is all zeroes.
    pub image: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Read,
    Write,
    WriteZeroes,
    Unmap,
}

#[derive(Clone, Copy, Default)]
struct Block {
    value: u64,
    /// It may read as zeroes as well.
    maybe_zero: bool,
    readers: u32,
    written: bool,
}

#[derive(Clone, Copy, Default)]
struct Cluster {
    level: u64,
    /// The writes of any kind that are in flight.
    writers: u32,
}

/// What an lvol reads as when it is made, as snapshot or as clone.
#[derive(Clone)]
pub struct Image {
    blocks: Vec<(u64, bool)>,
    levels: Vec<u64>,
    level: u64,
}

/// What was known of a block when a read of it began.
#[derive(Clone, Copy)]
struct Expected {
    value: u64,
    maybe_zero: bool,
    /// A detach was under way that takes it away, unless a write makes the cluster the lvol's before.
    changing: bool,
    detaches: u64,
}

/// An I/O to be done.
pub struct Plan {
    pub kind: Kind,
    pub blocks: Range<usize>,
    /// Counts what is written.
    pub generation: u64,
    /// For a read: what it may find. For an unmap: what the blocks may be when it is done.
    expected: Vec<Expected>,
}

#[derive(Default)]
struct Counters {
    reads: u64,
    writes: u64,
    write_zeroes: u64,
    unmaps: u64,
    blocks: u64,
    errors: u64,
    torn: u64,
    stale: u64,
    /// Blocks that a detach was about to change, read while it was under way: as before, as zeroes.
    seen_before: u64,
    seen_after: u64,
    /// Clusters that were just about to become the lvol's when a detach was answered.
    copied: u64,
}

pub struct Model {
    options: Options,
    blocks: Vec<Block>,
    clusters: Vec<Cluster>,
    /// The level of what is written now.
    level: u64,
    generation: u64,
    /// Clusters below this level are about to become zeroes.
    detaching: Option<u64>,
    /// How often one was begun or answered.
    detaches: u64,
    held: bool,
    writes_in_flight: usize,
    random: fastrand::Rng,
    counters: Counters,
    complaints: Vec<String>,
    read_latency: Histogram,
    write_latency: Histogram,
    /// The longest write on each core since that was asked for, in nanoseconds.
    longest_writes: BTreeMap<u32, u64>,
}

impl Model {
    pub fn new(options: Options, num_blocks: usize, image: Option<&Image>) -> Model {
        let num_clusters = num_blocks.div_ceil(options.cluster_blocks);
        let mut blocks = vec![Block::default(); num_blocks];
        let mut clusters = vec![Cluster::default(); num_clusters];
        if let Some(image) = image {
            for (block, &(value, maybe_zero)) in blocks.iter_mut().zip(&image.blocks) {
                (block.value, block.maybe_zero) = (value, maybe_zero);
            }
            for (cluster, &level) in clusters.iter_mut().zip(&image.levels) {
                cluster.level = level;
            }
        }
        Model {
            blocks,
            clusters,
            level: image.map_or(1, |image| image.level + 1),
            generation: 0,
            detaching: None,
            detaches: 0,
            held: false,
            writes_in_flight: 0,
            random: fastrand::Rng::with_seed(options.seed),
            counters: Counters::default(),
            complaints: Vec::new(),
            read_latency: Histogram::default(),
            write_latency: Histogram::default(),
            longest_writes: BTreeMap::new(),
            options,
        }
    }

    // --- What the control side says ---

    /// No write is begun until `release`.
    pub fn hold(&mut self) {
        self.held = true;
    }

    pub fn release(&mut self) {
        self.held = false;
    }

    pub fn is_quiet(&self) -> bool {
        self.held && self.writes_in_flight == 0
    }

    /// A snapshot was taken of the lvol, which has been quiet. Returns its level, and what the
    /// snapshot reads as.
    pub fn snapshot(&mut self) -> (u64, Image) {
        let level = self.level;
        self.level += 1;
        let image = Image {
            blocks: self.blocks.iter().map(|block| (block.value, block.maybe_zero)).collect(),
            levels: self.clusters.iter().map(|cluster| cluster.level).collect(),
            level,
        };
        (level, image)
    }

    /// The level at which the lvol itself would be detached.
    pub fn level(&self) -> u64 {
        self.level
    }

    /// A detach at this level is about to be sent. Writes that were held go on.
    pub fn detaching(&mut self, level: u64) {
        self.release();
        self.detaching = Some(level);
        self.detaches += 1;
        for index in self.clusters_below(level) {
            for block in self.blocks_of(index) {
                self.blocks[block].maybe_zero = self.blocks[block].value != 0;
            }
        }
    }

    /// The detach has been answered.
    pub fn detached(&mut self, level: u64) {
        self.detaching = None;
        self.detaches += 1;
        for index in self.clusters_below(level) {
            // A write in flight may have copied the cluster before.
            if self.clusters[index].writers == 0 {
                for block in self.blocks_of(index) {
                    (self.blocks[block].value, self.blocks[block].maybe_zero) = (0, false);
                }
            } else {
                self.counters.copied += 1;
            }
        }
    }

    /// The longest write on each core since the last call, in nanoseconds.
    pub fn take_longest_writes(&mut self) -> BTreeMap<u32, u64> {
        std::mem::take(&mut self.longest_writes)
    }

    /// The detach has failed: nothing has changed.
    pub fn not_detached(&mut self) {
        self.detaching = None;
    }

    fn clusters_below(&self, level: u64) -> Vec<usize> {
        (0..self.clusters.len()).filter(|&index| self.clusters[index].level < level).collect()
    }

    fn blocks_of(&self, cluster: usize) -> Range<usize> {
        let first = cluster * self.options.cluster_blocks;
        first..(first + self.options.cluster_blocks).min(self.blocks.len())
    }

    fn clusters_of(&self, blocks: &Range<usize>) -> Range<usize> {
        let size = self.options.cluster_blocks;
        blocks.start / size..(blocks.end - 1) / size + 1
    }

    // --- I/O ---

    /// Chooses an I/O that may be done now.
    pub fn begin(&mut self) -> Option<Plan> {
        (0..8).find_map(|_| {
            let kind = self.choose_kind();
            if self.held && kind != Kind::Read {
                return None;
            }
            let blocks = self.choose_blocks();
            match kind {
                Kind::Read => self.begin_read(blocks),
                _ => self.begin_write(kind, blocks),
            }
        })
    }

    fn choose_kind(&mut self) -> Kind {
        let Options { reads, writes, write_zeroes, unmaps, .. } = self.options;
        let choice = self.random.u32(0..reads + writes + write_zeroes + unmaps);
        if choice < reads {
            Kind::Read
        } else if choice < reads + writes {
            Kind::Write
        } else if choice < reads + writes + write_zeroes {
            Kind::WriteZeroes
        } else {
            Kind::Unmap
        }
    }

    /// Of every size, small ones more often.
    fn choose_blocks(&mut self) -> Range<usize> {
        let most = self.options.max_blocks.min(self.blocks.len());
        let most = (1usize << self.random.u32(0..=most.ilog2())).min(most);
        let count = self.random.usize(1..=most);
        let mut first = self.random.usize(0..=self.blocks.len() - count);
        // Whole clusters are of interest: they can be freed, and are not copied.
        let size = self.options.cluster_blocks;
        if count == size && first + size <= self.blocks.len() {
            first -= first % size;
        }
        first..first + count
    }

    fn begin_read(&mut self, blocks: Range<usize>) -> Option<Plan> {
        if self.blocks[blocks.clone()].iter().any(|block| block.written) {
            return None;
        }
        let expected = blocks.clone().map(|index| {
            let Block { value, maybe_zero, .. } = self.blocks[index];
            let changing = self.is_changing(index);
            Expected { value, maybe_zero, changing, detaches: self.detaches }
        });
        let expected = expected.collect();
        self.blocks[blocks.clone()].iter_mut().for_each(|block| block.readers += 1);
        Some(Plan { kind: Kind::Read, blocks, generation: 0, expected })
    }

    fn begin_write(&mut self, kind: Kind, blocks: Range<usize>) -> Option<Plan> {
        let in_use = |block: &Block| block.written || block.readers > 0;
        let clusters = self.clusters_of(&blocks);
        if self.blocks[blocks.clone()].iter().any(in_use)
            || clusters.clone().any(|cluster| !self.is_hot(cluster))
        {
            return None;
        }
        let expected = match kind {
            Kind::Unmap => blocks.clone().map(|index| self.after_unmap(index)).collect(),
            _ => Vec::new(),
        };
        self.blocks[blocks.clone()].iter_mut().for_each(|block| block.written = true);
        for cluster in &mut self.clusters[clusters] {
            cluster.writers += 1;
        }
        self.writes_in_flight += 1;
        self.generation += 1;
        Some(Plan { kind, blocks, generation: self.generation, expected })
    }

    /// An unmap does nothing to a cluster that the lvol doesn't own, and a write in flight may make
    /// it the owner just before.
    fn after_unmap(&self, index: usize) -> Expected {
        let Block { value, .. } = self.blocks[index];
        let is_owned = self.clusters[index / self.options.cluster_blocks].level == self.level;
        let value = if is_owned { 0 } else { value };
        Expected { value, maybe_zero: true, changing: false, detaches: self.detaches }
    }

    /// Whether a detach is under way that takes away what the block reads as.
    fn is_changing(&self, block: usize) -> bool {
        let cluster = self.clusters[block / self.options.cluster_blocks];
        self.detaching.is_some_and(|level| cluster.level < level)
    }

    /// Whether the cluster is one of those that are written at this level.
    fn is_hot(&self, cluster: usize) -> bool {
        let of_this_level = fastrand::Rng::with_seed(
            self.options.seed ^ (self.level << 32) ^ (cluster as u64) << 8,
        )
        .u64(..);
        of_this_level.is_multiple_of(self.options.sparseness)
    }

    /// An I/O that could not be submitted.
    pub fn undo(&mut self, plan: &Plan) {
        self.end(plan);
        self.generation -= u64::from(plan.kind != Kind::Read);
    }

    fn end(&mut self, plan: &Plan) {
        if plan.kind == Kind::Read {
            self.blocks[plan.blocks.clone()].iter_mut().for_each(|block| block.readers -= 1);
            return;
        }
        self.blocks[plan.blocks.clone()].iter_mut().for_each(|block| block.written = false);
        let clusters = self.clusters_of(&plan.blocks);
        for cluster in &mut self.clusters[clusters] {
            cluster.writers -= 1;
        }
        self.writes_in_flight -= 1;
    }

    /// The word that a write fills a block with.
    pub fn word(tag: u64, block: usize, generation: u64) -> u64 {
        tag << 52 | (block as u64) << 36 | generation & 0xf_ffff_ffff
    }

    /// An I/O has ended. `words` is what a read has found in its blocks.
    pub fn complete(&mut self, plan: &Plan, success: bool, words: &[u64], ns: u64, core: u32) {
        self.end(plan);
        self.counters.blocks += plan.blocks.len() as u64;
        match plan.kind {
            Kind::Read => self.counters.reads += 1,
            Kind::Write => self.counters.writes += 1,
            Kind::WriteZeroes => self.counters.write_zeroes += 1,
            Kind::Unmap => self.counters.unmaps += 1,
        }
        match plan.kind {
            Kind::Read => self.read_latency.add(ns),
            Kind::Write => {
                self.write_latency.add(ns);
                let longest = self.longest_writes.entry(core).or_default();
                *longest = ns.max(*longest);
            }
            Kind::WriteZeroes | Kind::Unmap => {}
        }
        if !success {
            self.counters.errors += 1;
            self.complain(format!("{:?} of blocks {:?} failed", plan.kind, plan.blocks));
            return;
        }
        match plan.kind {
            Kind::Read => self.check(plan, words),
            Kind::Unmap => {
                for (index, expected) in plan.blocks.clone().zip(&plan.expected) {
                    let block = &mut self.blocks[index];
                    if expected.value == 0 {
                        block.value = 0;
                    }
                    block.maybe_zero = block.value != 0;
                }
            }
            Kind::Write | Kind::WriteZeroes => {
                for index in plan.blocks.clone() {
                    let value = match plan.kind {
                        Kind::Write => Model::word(self.options.tag, index, plan.generation),
                        _ => 0,
                    };
                    (self.blocks[index].value, self.blocks[index].maybe_zero) = (value, false);
                }
                for cluster in self.clusters_of(&plan.blocks) {
                    self.clusters[cluster].level = self.level;
                }
            }
        }
    }

    fn check(&mut self, plan: &Plan, words: &[u64]) {
        let size = self.options.cluster_blocks;
        for ((index, &expected), &word) in plan.blocks.clone().zip(&plan.expected).zip(words) {
            let Block { value, maybe_zero, .. } = self.blocks[index];
            let cluster = self.clusters[index / size];
            let changing = expected.changing || self.is_changing(index);
            let is_allowed = word == value
                || word == expected.value
                || word == 0 && (maybe_zero || expected.maybe_zero);
            if word == TORN {
                self.counters.torn += 1;
                self.complain(format!("block {index} is torn"));
            } else if !is_allowed {
                self.counters.stale += 1;
                self.complain(format!(
                    "block {index} reads {word:#x}, not {value:#x} (zeroes too: {maybe_zero}), and \
                     was {:#x} (zeroes too: {}) when the read began; level {} of {}, detaching {:?}",
                    expected.value,
                    expected.maybe_zero,
                    cluster.level,
                    self.level,
                    self.detaching
                ));
            }
            if changing && expected.value != 0 {
                match word {
                    0 => self.counters.seen_after += 1,
                    _ => self.counters.seen_before += 1,
                }
            }
            // What it is has been seen, and it stays so, whatever is written beside it: zeroes for good,
            // as no copy that is under way may bring back what was before; the other until a detach. A
            // read that began while the cluster was not the lvol's yet may have been through the parent,
            // and says nothing of what a copy has found.
            if maybe_zero && word == 0 {
                self.blocks[index].value = 0;
                self.blocks[index].maybe_zero = false;
            } else if maybe_zero && !changing && self.detaches == expected.detaches {
                self.blocks[index].maybe_zero = false;
            }
        }
    }

    fn complain(&mut self, complaint: String) {
        if self.complaints.len() < MAX_COMPLAINTS {
            self.complaints.push(format!("{}: {complaint}", self.options.name));
        }
    }

    pub fn report(&self) -> Value {
        let Counters { reads, writes, write_zeroes, unmaps, blocks, errors, torn, stale, .. } =
            self.counters;
        json!({
            "reads": reads, "writes": writes, "write_zeroes": write_zeroes, "unmaps": unmaps,
            "bytes": blocks * BLOCK as u64,
            "errors": errors, "torn": torn, "stale": stale,
            "seen_before": self.counters.seen_before, "seen_after": self.counters.seen_after,
            "copied": self.counters.copied, "complaints": self.complaints,
            "read_us": self.read_latency.report(), "write_us": self.write_latency.report(),
        })
    }
}

/// The word that a block is full of.
pub fn word_of(block: &[u8]) -> u64 {
    let (first, rest) = block.split_at(8);
    if block[..rest.len()] != *rest {
        return TORN;
    }
    first.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte))
}

pub fn fill(block: &mut [u8], word: u64) {
    block.chunks_exact_mut(8).for_each(|chunk| chunk.copy_from_slice(&word.to_le_bytes()));
}
