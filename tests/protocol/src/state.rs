//! What the model remembers: the fields of SPDK's that matter, where each I/O is, what has been seen.

/// Threads that do I/O. The first is the one that owns the metadata, and the detach runs there.
pub const MAX_THREADS: usize = 3;
/// The number of the thread that owns the metadata (`md_thread`).
pub const MD_THREAD: usize = 0;

/// The lvol that is detached, which may be a snapshot itself.
pub const ROOT: usize = 0;
/// A clone of it, and so its descendant. Only a snapshot has one.
pub const CLONE: usize = 1;
/// An lvol of the same lvstore that has nothing to do with the other two.
pub const NEIGHBOUR: usize = 2;

/// What one case of the model has, and what is done in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// What differs between releases of SPDK.
    pub release: Release,
    /// What the parent has where the I/O goes.
    pub parent_has: ParentHas,
    /// Whether the base bdev can copy (`bs->dev->copy`), which saves a copy-on-write the read.
    pub offload: bool,
    /// The I/Os. Each is submitted at any time, in any order.
    pub ios: Vec<Submission>,
}

impl Case {
    /// The threads that there are.
    pub fn threads(&self) -> impl Iterator<Item = usize> + use<> {
        0..self.ios.iter().map(|io| io.thread + 1).max().unwrap_or(1)
    }
}

/// Releases of SPDK that differ in the steps that are modelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// Without `is_range_valid` in `struct spdk_bs_dev`.
    V24_01,
    /// With it: 24.09, 25.05, 26.01 and 26.05.
    Since24_09,
}

/// What the parent has at the cluster that the I/O goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParentHas {
    /// A cluster with data.
    Data,
    /// No cluster, and nothing behind it.
    Nothing,
    /// It ends before that cluster: the lvol has grown since.
    Ended,
}

/// An I/O as a user submits it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Submission {
    /// To this lvol.
    pub blob: usize,
    /// What it does.
    pub kind: Kind,
    /// By this thread.
    pub thread: usize,
}

/// Kinds of I/O. The model follows one block. Writes go to another of the same cluster, so what the
/// block has in a new cluster is what the copy-on-write has put there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Of the block.
    Read,
    /// Beside the block, into its cluster.
    Write,
    /// Of the whole cluster, which gives it back if nothing is behind it (24.09 and later).
    Unmap,
}

/// What a block may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Byte {
    /// The parent's data.
    Parents,
    /// Zeroes.
    Zero,
    /// Data of whoever got the cluster after the parent was deleted.
    Tenants,
    /// What was in the memory before: zeroes were filled in for a part only.
    Garbage,
}

/// A `struct spdk_bs_dev` that is the root's `back_bs_dev`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Device {
    /// It reads through the parent (`bs_create_blob_bs_dev`). Its `blocklen` is 4,096 here.
    Former,
    /// `g_zeroes_bs_dev`. Its `blocklen` is 512.
    Zeroes,
}

/// A function of a `struct spdk_bs_dev`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Function {
    IsRangeValid,
    TranslateLba,
    IsZeroes,
    /// Into one buffer: what a copy-on-write uses.
    Read,
    /// Into iovs, `readv` and `readv_ext`: what a user's read uses.
    Readv,
}

/// What a pointer to a function points to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// The function of `blob_bs_dev.c`.
    Blobs,
    /// The function of `zeroes.c`.
    Zeroes,
    /// What the detach has put there: zeroes, whatever device it is called with.
    Stopped,
}

/// What an expression in C loads from the root's `back_bs_dev`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Load {
    /// The device whose function is called.
    Callee,
    /// The device that is passed to it.
    This,
    /// The device by whose `blocklen` the lba is computed.
    Lba,
    /// The device by whose `blocklen` the count is computed.
    Count,
}

/// Everything that there is at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    /// The number of the case.
    pub case: u16,
    /// `back_bs_dev` of the root.
    pub back_bs_dev: Device,
    /// `parent_id` of the root is that of the parent.
    pub has_parent: bool,
    /// `locked_operation_in_progress` of the root.
    pub locked: bool,
    /// Which functions of the former device the detach has replaced.
    pub stopped: [bool; 5],
    /// The former device is freed.
    pub device_freed: bool,
    /// The parent's blob is freed.
    pub parent_freed: bool,
    /// The parent's cluster belongs to somebody else.
    pub cluster_reused: bool,
    /// What the block holds in the cluster that the root, or the clone, has of its own
    /// (`active.clusters`), if it has one.
    pub own: [Option<Byte>; 2],
    /// Where the detach is.
    pub detach: Detach,
    /// Where each I/O is.
    pub ios: Vec<Io>,
    /// What each thread does.
    pub threads: [Thread; MAX_THREADS],
    /// A read of the root, or the clone, has seen zeroes, or would have.
    pub seen_zeroes: [bool; 2],
    /// The detach has been answered.
    pub replied: bool,
    /// What must not be has happened.
    pub wrong: Option<Wrong>,
}

impl State {
    /// Something must not be that is. What came first stays.
    pub fn fail(&mut self, wrong: Wrong) {
        self.wrong.get_or_insert(wrong);
    }
}

/// The progress of the detach.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Detach {
    /// The next of its steps.
    pub step: usize,
    /// Threads that a walk has visited, as bits.
    pub visited: u8,
    /// I/Os that a walk has found, as bits.
    pub found: u8,
}

/// An SPDK thread.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Thread {
    /// The event that the thread is in the middle of.
    pub event: Event,
    /// `need_cluster_alloc` of the blobstore's channel.
    pub need_cluster_alloc: Vec<u8>,
    /// I/Os that are executed again before the event ends.
    pub again: Vec<u8>,
}

/// What a thread may be in the middle of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Event {
    /// Nothing: it is between events.
    #[default]
    None,
    /// Steps of an I/O.
    Io(u8),
    /// Steps of the detach.
    Detach,
}

/// An I/O.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Io {
    /// Where it is.
    pub at: At,
    /// It was submitted after a read of the lvol had seen zeroes, or would have.
    pub after_zeroes: bool,
}

/// Where an I/O is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum At {
    /// It has not been submitted.
    #[default]
    NotSubmitted,
    /// In the middle of an event of its thread.
    Running(Running),
    /// In `need_cluster_alloc`, behind another I/O that copies.
    Queued,
    /// A user's read that the device works on, from the parent's cluster.
    Reading,
    /// A copy-on-write that the device works on: it reads, or copies, the parent's cluster.
    Copying,
    /// A copy-on-write that has the new cluster's content and has not been inserted.
    Inserting(Byte),
    /// A copy-on-write that waits for the message that it has been inserted, or was too late.
    Inserted,
    /// A neighbour's copy-on-write, wherever it is.
    NeighbourCopies,
    /// An unmap whose cluster is to be given back on the metadata thread.
    GivingBack,
    /// Completed.
    Done,
}

impl At {
    /// A copy-on-write is under way: it is the first in `need_cluster_alloc` of its thread.
    pub fn is_copy(&self) -> bool {
        matches!(self, At::Copying | At::Inserting(_) | At::Inserted | At::NeighbourCopies)
    }

    /// A user's read is under way that has a request set for the parent's blob.
    pub fn is_read(&self) -> bool {
        matches!(self, At::Reading)
    }
}

/// The progress through a program of [`crate::spdk`], and what SPDK's local variables hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Running {
    /// The next instruction.
    pub next: usize,
    /// How far that one is.
    pub stage: Stage,
    /// What has been loaded from `back_bs_dev`: callee, this, lba, count.
    pub loaded: [Option<Device>; 4],
    /// `is_valid_range`
    pub is_valid_range: bool,
    /// `can_copy`
    pub can_copy: bool,
    /// `is_zeroes`
    pub is_zeroes: bool,
    /// `ctx->buf` is not NULL.
    pub has_buffer: bool,
    /// The new cluster is to be filled from the parent.
    pub copies: bool,
}

/// How far an instruction is that loads from `back_bs_dev`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Nothing has been loaded.
    Start,
    /// The first of several loads has been done, and found the former device.
    Began,
    /// All have been done.
    Loaded,
    /// What the devices hold has been fetched: the function, and their `blocklen`.
    Fetched(Code),
}

/// What must not happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Wrong {
    FunctionOfAnotherDevice,
    BeyondTheParentsClusters,
    LbaOrCountOfAnotherDevice,
    ReadIntoNull,
    DeviceAfterFree,
    ParentAfterFree,
    ParentsByteAfterReply,
    TenantsByte,
    ParentsByteAfterZeroes,
    Garbage,
}
