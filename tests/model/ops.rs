//! What is played, and how it is chosen.

use std::cell::RefCell;
use std::ffi::CStr;
use std::fmt;

use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::sample::Index;

/// How long a sequence is, without the blob that it begins with. A failing one shrinks to the least.
const LENGTH: std::ops::RangeInclusive<usize> = 1..=100;

/// One operation. `B` is what its blobs are named by: a [`Pick`] as long as it is only planned, a
/// [`Name`] when it is played.
#[derive(Debug, Clone)]
pub enum Op<B> {
    Create {
        clusters: u64,
        thin: bool,
    },
    /// From now on the blob is held open, as the lvol library holds every blob.
    Open(B),
    /// From now on the blob is only opened for single operations.
    Close(B),
    /// Fills a whole cluster.
    Write {
        blob: B,
        cluster: u64,
        fill: u8,
    },
    /// Writes to the first part of a cluster what it has there already. It reads as before, and SPDK
    /// has to fill the rest of it if the blob doesn't own it yet.
    Touch {
        blob: B,
        cluster: u64,
    },
    /// Unmaps a whole cluster.
    Unmap {
        blob: B,
        cluster: u64,
    },
    SetXattr {
        blob: B,
        xattr: Xattr,
        len: usize,
        fill: u8,
    },
    RemoveXattr {
        blob: B,
        xattr: Xattr,
    },
    /// A snapshot with its own checksum.
    Snapshot {
        blob: B,
        checksum: u64,
    },
    Clone(B),
    /// Deletes the blob, which may be `closed` before.
    Delete {
        blob: B,
        closed: bool,
    },
    Inflate(B),
    Decouple(B),
    Resize {
        blob: B,
        clusters: u64,
    },
    SetParent {
        blob: B,
        snapshot: B,
    },
    Detach(B),
    /// Detaches a blob while another operation is in progress on `locked`, which ends soon.
    DetachWhileLocked {
        blob: B,
        locked: B,
    },
    /// Detaches a blob while `other` is under way. The detach starts so many rounds of the thread
    /// after the other; before, if `delay` is negative.
    DetachDuring {
        blob: B,
        other: Box<Op<B>>,
        delay: i8,
    },
    /// Unloads the store and loads it again.
    Reload,
    /// Loads the store from what the device holds, as after a crash.
    Crash,
}

impl<B> Op<B> {
    /// The same with its blobs named by something else; `None` if one of them has no such name.
    pub fn named<C>(&self, name: &dyn Fn(&B) -> Option<C>) -> Option<Op<C>> {
        Some(match *self {
            Op::Create { clusters, thin } => Op::Create { clusters, thin },
            Op::Open(ref blob) => Op::Open(name(blob)?),
            Op::Close(ref blob) => Op::Close(name(blob)?),
            Op::Write { ref blob, cluster, fill } => Op::Write { blob: name(blob)?, cluster, fill },
            Op::Touch { ref blob, cluster } => Op::Touch { blob: name(blob)?, cluster },
            Op::Unmap { ref blob, cluster } => Op::Unmap { blob: name(blob)?, cluster },
            Op::SetXattr { ref blob, xattr, len, fill } => {
                Op::SetXattr { blob: name(blob)?, xattr, len, fill }
            }
            Op::RemoveXattr { ref blob, xattr } => Op::RemoveXattr { blob: name(blob)?, xattr },
            Op::Snapshot { ref blob, checksum } => Op::Snapshot { blob: name(blob)?, checksum },
            Op::Clone(ref blob) => Op::Clone(name(blob)?),
            Op::Delete { ref blob, closed } => Op::Delete { blob: name(blob)?, closed },
            Op::Inflate(ref blob) => Op::Inflate(name(blob)?),
            Op::Decouple(ref blob) => Op::Decouple(name(blob)?),
            Op::Resize { ref blob, clusters } => Op::Resize { blob: name(blob)?, clusters },
            Op::SetParent { ref blob, ref snapshot } => {
                Op::SetParent { blob: name(blob)?, snapshot: name(snapshot)? }
            }
            Op::Detach(ref blob) => Op::Detach(name(blob)?),
            Op::DetachWhileLocked { ref blob, ref locked } => {
                Op::DetachWhileLocked { blob: name(blob)?, locked: name(locked)? }
            }
            Op::DetachDuring { ref blob, ref other, delay } => {
                let other = Box::new(other.named(name)?);
                Op::DetachDuring { blob: name(blob)?, other, delay }
            }
            Op::Reload => Op::Reload,
            Op::Crash => Op::Crash,
        })
    }

    /// The blobs that it names.
    pub fn blobs(&self) -> Vec<B>
    where
        B: Copy,
    {
        let blobs = RefCell::new(Vec::new());
        self.named(&|&blob| {
            blobs.borrow_mut().push(blob);
            Some(())
        });
        blobs.into_inner()
    }

    /// Whether it makes a blob.
    pub fn creates(&self) -> bool {
        match self {
            Op::Create { .. } | Op::Snapshot { .. } | Op::Clone(_) => true,
            Op::DetachDuring { other, .. } => other.creates(),
            _ => false,
        }
    }
}

/// A blob of the game: the n-th that was made.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name(pub u32);

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b{}", self.0)
    }
}

/// An operation as it was played.
#[derive(Clone)]
pub struct Step {
    pub op: Op<Name>,
    /// What its new blob is called, if it makes one.
    pub creates: Option<Name>,
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.creates {
            Some(name) => write!(f, "{name:?} = {:?}", self.op),
            None => self.op.fmt(f),
        }
    }
}

/// An xattr's name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Xattr(pub &'static CStr);

impl Xattr {
    pub fn text(self) -> String {
        self.0.to_string_lossy().into_owned()
    }
}

/// The one that snapshots have.
pub const CHECKSUM: Xattr = Xattr(c"checksum");

impl fmt::Debug for Xattr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A blob that is there when the operation is played.
#[derive(Debug, Clone, Copy)]
pub struct Pick {
    pub among: Among,
    pub index: Index,
}

/// Which blobs an operation would rather have, so that most are not refused. Where there is none,
/// it takes any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Among {
    Any,
    Writable,
    Snapshots,
    Clones,
}

fn pick(among: Among) -> impl Strategy<Value = Pick> {
    let among = prop_oneof![7 => Just(among), 1 => Just(Among::Any)];
    (among, any::<Index>()).prop_map(|(among, index)| Pick { among, index })
}

/// A blob's size in clusters. Mostly the same, because a parent must have its clone's size.
fn size() -> impl Strategy<Value = u64> {
    prop_oneof![2 => Just(4u64), 1 => 1..=6u64]
}

fn create() -> impl Strategy<Value = Op<Pick>> {
    (size(), prop_oneof![3 => Just(true), 1 => Just(false)])
        .prop_map(|(clusters, thin)| Op::Create { clusters, thin })
}

fn xattr() -> impl Strategy<Value = Xattr> {
    prop_oneof![Just(Xattr(c"label")), Just(CHECKSUM)]
}

fn op() -> impl Strategy<Value = Op<Pick>> {
    let rest = prop_oneof![
        1 => pick(Among::Any).prop_map(Op::Close),
        1 => pick(Among::Any).prop_map(Op::Open),
        1 => Just(Op::Reload),
        1 => Just(Op::Crash),
    ];
    let during = (pick(Among::Clones), any_other(), -15..30i8)
        .prop_map(|(blob, other, delay)| Op::DetachDuring { blob, other: Box::new(other), delay });
    prop_oneof![20 => any_other(), 2 => rest, 3 => during]
}

/// What may run beside a detach.
fn any_other() -> impl Strategy<Value = Op<Pick>> {
    // Now and then a cluster past the end.
    let cluster = || prop_oneof![6 => 0..4u64, 1 => 4..=6u64];
    // Metadata of one page, of several, and an xattr that fits no page.
    let len = prop_oneof![4 => Just(8), 4 => Just(3000), 1 => Just(5000)];
    let data = prop_oneof![
        5 => (pick(Among::Writable), cluster(), any::<u8>())
            .prop_map(|(blob, cluster, fill)| Op::Write { blob, cluster, fill }),
        2 => (pick(Among::Writable), cluster())
            .prop_map(|(blob, cluster)| Op::Touch { blob, cluster }),
        u32::from(cfg!(spdk_unmap_clears_pages)) * 2 => (pick(Among::Writable), cluster())
            .prop_map(|(blob, cluster)| Op::Unmap { blob, cluster }),
    ];
    let blobs = prop_oneof![
        2 => create(),
        6 => (pick(Among::Writable), any::<u64>())
            .prop_map(|(blob, checksum)| Op::Snapshot { blob, checksum }),
        5 => pick(Among::Snapshots).prop_map(Op::Clone),
        4 => (pick(Among::Any), prop_oneof![4 => Just(true), 1 => Just(false)])
            .prop_map(|(blob, closed)| Op::Delete { blob, closed }),
        u32::from(cfg!(spdk_reads_beyond_parent)) * 2 => (pick(Among::Writable), size())
            .prop_map(|(blob, clusters)| Op::Resize { blob, clusters }),
    ];
    let parents = prop_oneof![
        7 => pick(Among::Clones).prop_map(Op::Detach),
        3 => (pick(Among::Clones), pick(Among::Any))
            .prop_map(|(blob, locked)| Op::DetachWhileLocked { blob, locked }),
        1 => pick(Among::Clones).prop_map(Op::Inflate),
        2 => pick(Among::Clones).prop_map(Op::Decouple),
        u32::from(cfg!(spdk_blob_set_parent)) * 4 => (pick(Among::Any), pick(Among::Snapshots))
            .prop_map(|(blob, snapshot)| Op::SetParent { blob, snapshot }),
    ];
    let xattrs = prop_oneof![
        3 => (pick(Among::Writable), xattr(), len, any::<u8>())
            .prop_map(|(blob, xattr, len, fill)| Op::SetXattr { blob, xattr, len, fill }),
        1 => (pick(Among::Writable), xattr())
            .prop_map(|(blob, xattr)| Op::RemoveXattr { blob, xattr }),
    ];
    prop_oneof![9 => data, 9 => blobs, 7 => parents, 2 => xattrs]
}

/// Sequences that begin with a blob.
pub fn sequences() -> impl Strategy<Value = Vec<Op<Pick>>> {
    (create(), vec(op(), LENGTH)).prop_map(|(first, mut ops)| {
        ops.insert(0, first);
        ops
    })
}
