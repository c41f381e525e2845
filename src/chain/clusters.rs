//! Which blob owns the clusters that a blob shows: a walk along the cluster maps of all blobs of its chain.
//!
//! It goes through the clusters in chunks, and for each chunk down the chain and then through the
//! readers, each after its parent: so each map is read once, however many blobs read through
//! it. Only the metadata thread, which this is, changes a map, and only between two slices.

use std::collections::HashMap;

use crate::base::task::Slices;
use crate::chain::blob::{BlobId, OpenBlob, Parent};
use crate::turns;

/// Clusters of one blob that are examined before the clock is checked: a few microseconds.
const CHUNK: u64 = 4096;
const WORDS: usize = CHUNK as usize / 64;

/// How many ranges are kept, for all blobs together: this bounds the memory of a walk and the length of an
/// answer.
const MOST_RANGES: usize = 65_536;

/// Clusters of a chunk.
#[derive(Debug, Clone, Copy)]
struct Set([u64; WORDS]);

impl Set {
    const EMPTY: Set = Set([0; WORDS]);

    /// Of the chunk that begins with the cluster `first`, those below `limit`.
    fn below(limit: u64, first: u64) -> Set {
        let mut left = limit.saturating_sub(first);
        let mut set = Set::EMPTY;
        for word in &mut set.0 {
            *word = if left >= 64 { u64::MAX } else { (1 << left) - 1 };
            left = left.saturating_sub(64);
        }
        set
    }

    /// Those that the blob owns.
    fn owned(blob: &OpenBlob, first: u64) -> Set {
        let mut set = Set::EMPTY;
        let clusters = blob.clusters(first, CHUNK);
        for (word, lbas) in set.0.iter_mut().zip(clusters.chunks(64)) {
            // An LBA of 0 stands for no cluster.
            let bits = lbas.iter().zip(0..).map(|(&lba, bit)| u64::from(lba != 0) << bit);
            *word = bits.fold(0, |word, bit| word | bit);
        }
        set
    }

    fn and(self, other: Set) -> Set {
        self.with(other, |a, b| a & b)
    }

    fn or(self, other: Set) -> Set {
        self.with(other, |a, b| a | b)
    }

    fn without(self, other: Set) -> Set {
        self.with(other, |a, b| a & !b)
    }

    fn with(mut self, other: Set, operator: impl Fn(u64, u64) -> u64) -> Set {
        for (word, other) in self.0.iter_mut().zip(other.0) {
            *word = operator(*word, other);
        }
        self
    }

    fn count(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    fn is_empty(&self) -> bool {
        self.0 == [0; WORDS]
    }
}

/// A row of clusters: the first, and how many.
pub type Range = (u64, u64);

/// Clusters of a blob, as far as there was room for them.
#[derive(Debug, Default)]
pub struct Ranges {
    /// In ascending order.
    pub list: Vec<Range>,
    /// The first cluster that the list doesn't cover, if there was no room.
    pub end: Option<u64>,
}

impl Ranges {
    fn add(&mut self, set: &Set, first: u64, room: &mut usize) {
        if self.end.is_some() || set.is_empty() {
            return;
        }
        if *room == 0 {
            self.end = Some(first);
            return;
        }
        let before = self.list.len();
        for (&word, start) in set.0.iter().zip((first..).step_by(64)) {
            let mut left = word;
            while left != 0 {
                let skipped = left.trailing_zeros();
                let count = (!(left >> skipped)).trailing_zeros();
                self.push(start + u64::from(skipped), count.into());
                left &= u64::MAX.checked_shl(skipped + count).unwrap_or_default();
            }
        }
        *room = room.saturating_sub(self.list.len() - before);
    }

    fn push(&mut self, first: u64, count: u64) {
        match self.list.last_mut() {
            Some((last, length)) if *last + *length == first => *length += count,
            _ => self.list.push((first, count)),
        }
    }
}

/// Blobs that are held open, and what each shows.
#[derive(Debug)]
pub struct Chain<'a> {
    /// The blob that is to be detached from the ancestors.
    pub root: &'a OpenBlob,
    /// What it reads through, the nearest first.
    pub ancestors: Vec<&'a OpenBlob>,
    /// How many clusters the external snapshot has that the last of them reads through; 0 if there is
    /// none.
    pub external: u64,
    /// What reads through the root, each after what it reads through.
    pub readers: Vec<&'a OpenBlob>,
}

/// What one blob owns and would lose.
#[derive(Debug, Default)]
pub struct Count {
    /// The clusters that it owns.
    pub owned: u64,
    /// Those that it shows of the root's ancestors.
    pub lost: u64,
    /// The latter, if they were asked for.
    pub ranges: Ranges,
}

/// What a walk has found.
#[derive(Debug)]
pub struct Counts {
    /// Of the root.
    pub root: Count,
    /// Of each reader.
    pub readers: Vec<Count>,
    /// How many clusters of each ancestor the root shows.
    pub shown: Vec<u64>,
    /// The same of the external snapshot.
    pub shown_of_external: u64,
    /// Whether a blob allocated clusters meanwhile: those that were examined before that are counted as
    /// lost, although they no longer would be.
    pub has_grown: bool,
}

/// Why a walk has no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// A blob has another parent or another size than when the walk began.
    ChainChanged,
    /// The target is about to stop.
    TargetStops,
}

/// Walks along the chain. With `with_ranges` it keeps which clusters are lost.
pub async fn walk(
    chain: &Chain<'_>,
    with_ranges: bool,
    slices: &mut Slices,
) -> Result<Counts, Stopped> {
    let root = Map::new(chain.root);
    let ancestors: Vec<Map> = chain.ancestors.iter().copied().map(Map::new).collect();
    let readers: Vec<Map> = chain.readers.iter().copied().map(Map::new).collect();
    let parents = parents(&chain.readers);
    let mut counts = Counts {
        root: Count::default(),
        readers: readers.iter().map(|_| Count::default()).collect(),
        shown: vec![0; ancestors.len()],
        shown_of_external: 0,
        has_grown: false,
    };
    let mut room = if with_ranges { MOST_RANGES } else { 0 };
    // What each reader loses of the chunk.
    let mut lost_of = vec![Set::EMPTY; readers.len()];
    let longest = readers.iter().map(|map| map.len).fold(root.len, u64::max);
    for first in (0..longest).step_by(CHUNK as usize) {
        if turns::are_over() {
            return Err(Stopped::TargetStops);
        }
        let owned = root.owned(first, slices).await?;
        // What no blob on the way to an ancestor owns, nor has its end before.
        let mut unowned = Set::below(root.len, first).without(owned);
        let mut lost = Set::EMPTY;
        for (ancestor, shown) in ancestors.iter().zip(&mut counts.shown) {
            unowned = unowned.and(Set::below(ancestor.len, first));
            if unowned.is_empty() {
                break;
            }
            let found = ancestor.owned(first, slices).await?.and(unowned);
            *shown += found.count();
            lost = lost.or(found);
            unowned = unowned.without(found);
        }
        let found = unowned.and(Set::below(chain.external, first));
        counts.shown_of_external += found.count();
        lost = lost.or(found);
        counts.root.add(&owned, &lost, first, with_ranges, &mut room);

        for (index, (reader, count)) in readers.iter().zip(&mut counts.readers).enumerate() {
            let owned = reader.owned(first, slices).await?;
            let of_parent = match parents.get(index).copied().flatten() {
                Some(parent) => lost_of.get(parent).copied().unwrap_or(Set::EMPTY),
                None => lost,
            };
            let lost = of_parent.and(Set::below(reader.len, first)).without(owned);
            count.add(&owned, &lost, first, with_ranges, &mut room);
            if let Some(place) = lost_of.get_mut(index) {
                *place = lost;
            }
        }
    }
    // A blob that has a parent never releases a cluster. So if each has as many as were counted, there
    // was a moment between the two walks when everything was as counted.
    let counted = std::iter::once(&counts.root).chain(&counts.readers);
    for (map, count) in std::iter::once(&root).chain(&readers).zip(counted) {
        // An inflate or a decouple gives clusters to a snapshot too.
        let may_grow = !map.blob.is_read_only() || map.blob.is_locked();
        counts.has_grown |= may_grow && map.count(slices).await? != count.owned;
    }
    // What was looked at first may have changed last.
    let mut maps = std::iter::once(&root).chain(&ancestors).chain(&readers);
    if maps.all(Map::is_unchanged) { Ok(counts) } else { Err(Stopped::ChainChanged) }
}

/// For each reader the index of the one that it reads through. That of a clone of the root is none of
/// them.
fn parents(readers: &[&OpenBlob]) -> Vec<Option<usize>> {
    let indexes: HashMap<BlobId, usize> = readers.iter().map(|blob| blob.id()).zip(0..).collect();
    let parent = |blob: &&OpenBlob| match blob.parent() {
        Parent::Snapshot(id) => indexes.get(&id).copied(),
        Parent::None | Parent::External => None,
    };
    readers.iter().map(parent).collect()
}

impl Count {
    fn add(&mut self, owned: &Set, lost: &Set, first: u64, with_ranges: bool, room: &mut usize) {
        self.owned += owned.count();
        self.lost += lost.count();
        if with_ranges {
            self.ranges.add(lost, first, room);
        }
    }
}

/// A blob as it was when the walk began.
#[derive(Debug, Clone, Copy)]
struct Map<'a> {
    blob: &'a OpenBlob,
    parent: Parent,
    len: u64,
}

impl<'a> Map<'a> {
    fn new(blob: &'a OpenBlob) -> Map<'a> {
        Map { blob, parent: blob.parent(), len: blob.num_clusters() }
    }

    fn is_unchanged(&self) -> bool {
        self.blob.parent() == self.parent && self.blob.num_clusters() == self.len
    }

    async fn owned(&self, first: u64, slices: &mut Slices) -> Result<Set, Stopped> {
        slices.pause().await;
        if self.is_unchanged() {
            Ok(Set::owned(self.blob, first))
        } else {
            Err(Stopped::ChainChanged)
        }
    }

    async fn count(&self, slices: &mut Slices) -> Result<u64, Stopped> {
        let mut count = 0;
        for first in (0..self.len).step_by(CHUNK as usize) {
            count += self.owned(first, slices).await?.count();
        }
        Ok(count)
    }
}
