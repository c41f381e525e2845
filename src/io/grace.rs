//! Waiting for other I/O without holding any back: walks through the channels of a blobstore.
//!
//! SPDK's threads run each message to completion. So once a function has run on every thread that
//! does I/O to a blobstore, none of them is in the middle of something that it started earlier, and
//! whatever it starts later sees what was stored before the walk: a grace period. I/O that is waiting for the
//! device holds request sets of its channel; a walk records them, and later walks check
//! whether they are still there.

use std::collections::HashMap;
use std::mem::offset_of;
use std::os::raw::{c_int, c_void};
use std::ptr;
use std::time::Duration;

use spdk_sys as sys;

use crate::base::task::{Callback, Rests};
use crate::chain::blob::{Blobstore, OpenBlob};
use crate::chain::family::Family;
use crate::chain::lvol::Lvol;
use crate::io::channel::Channel;
use crate::turns;

/// After this time the log says what is being waited for.
const LONG: Duration = Duration::from_secs(5);

/// An I/O in flight: its request set, and for whom that is. The pair comes again only if the set was
/// freed, and taken for the same caller again, between two walks; then it is waited for once more.
type InFlight = (*mut sys::spdk_bs_request_set, *mut c_void);

/// What was in flight when a grace period ended, each with the name of the lvol whose I/O it is.
#[must_use = "it is to be waited for"]
pub struct Awaited {
    bs: Blobstore,
    look: Look,
    io: HashMap<InFlight, String>,
}

/// A grace period. What a thread has looked up before is done with.
pub async fn pass(bs: Blobstore) {
    walk(bs, nothing).await;
}

/// A grace period. Gives the copy-on-writes of the family's blobs that began before and go on.
pub async fn copies_in_flight(bs: Blobstore, family: &Family) -> Awaited {
    let whose = |blob: *mut c_void| {
        let member = family.members().find(|member| member.blob.as_ptr().cast() == blob)?;
        Some(family.name_of(member))
    };
    let found = walk(bs, copies).await.into_iter();
    let io = found.filter_map(|(io, blob)| Some((io, whose(blob)?))).collect();
    Awaited { bs, look: copies, io }
}

/// A grace period. Gives the reads of the family's lvols that go through a snapshot, began before and
/// go on.
pub async fn reads_in_flight(bs: Blobstore, family: &Family) -> Awaited {
    let found = walk(bs, reads).await;
    let io = if found.is_empty() { HashMap::new() } else { of_family(found, family).await };
    Awaited { bs, look: reads, io }
}

/// Of I/O that came in flight by these callers, what came by the bdevs of the family's lvols. If that
/// can't be told, all of it. An I/O that has ended meanwhile may be missing.
async fn of_family(
    found: Vec<(InFlight, *mut c_void)>,
    family: &Family,
) -> HashMap<InFlight, String> {
    // All of them start before the first is waited for.
    let searches: Vec<_> = family
        .members()
        .map(|member| (family.name_of(member), member.lvol.as_ref().map(Lvol::io_in_flight)))
        .collect();
    let mut callers = HashMap::new();
    let mut all = None;
    for (name, search) in searches {
        let io = match search {
            Some(search) => search.await,
            None => None,
        };
        match io {
            Some(io) => callers.extend(io.into_iter().map(|io| (io, name.clone()))),
            None => all = Some(name),
        }
    }
    let name_of = |caller| callers.get(&caller).or(all.as_ref()).cloned();
    found.into_iter().filter_map(|(io, caller)| Some((io, name_of(caller)?))).collect()
}

impl Awaited {
    /// Waits until all of it has ended; false if the target is about to stop before. `name` is what has
    /// no parent any more.
    pub async fn end(self, name: &str) -> bool {
        let Awaited { bs, look, mut io } = self;
        let rests = Rests::start();
        // Whose I/O the log says is waited for.
        let mut said: Option<String> = None;
        while !io.is_empty() {
            if turns::are_over() {
                tracing::warn!(
                    "{name} is detached, but the target stops before I/O that went through its former \
                     parent has ended"
                );
                return false;
            }
            rests.rest().await;
            let still: Vec<InFlight> = walk(bs, look).await.into_iter().map(|(io, _)| io).collect();
            io.retain(|io, _| still.contains(io));
            if said.is_none() && rests.waited() > LONG {
                let seconds = rests.waited().as_secs();
                let whose = io.values().next().cloned().unwrap_or_default();
                tracing::warn!(
                    "the detach of {name} waits for I/O of {whose} that began {seconds} s ago and goes \
                     through the former parent"
                );
                said = Some(whose);
            }
        }
        if let Some(whose) = said {
            let seconds = rests.waited().as_secs();
            tracing::warn!(
                "the detach of {name} has waited {seconds} s for I/O of {whose}: it is over"
            );
        }
        true
    }
}

/// Finds I/O in flight on a channel with so many request sets, and with each what tells whose it is.
type Look = unsafe fn(Channel, usize, &mut dyn FnMut(InFlight, *mut c_void));

struct Walk {
    look: Look,
    num_sets: usize,
    found: Vec<(InFlight, *mut c_void)>,
    callback: Callback<Vec<(InFlight, *mut c_void)>>,
}

/// One walk.
async fn walk(bs: Blobstore, look: Look) -> Vec<(InFlight, *mut c_void)> {
    has_memory().await;
    let (callback, done) = Callback::new();
    // SAFETY: the blobstore is loaded (invariant of `Blobstore`).
    let num_sets = unsafe { (*bs.as_ptr()).max_channel_ops } as usize;
    let walk = Box::new(Walk { look, num_sets, found: Vec::new(), callback });
    // SAFETY: the blobstore is an io_device as long as it is loaded. Its channels are visited one
    // after the other, so the walk has one user at a time.
    unsafe {
        let ctx = Box::into_raw(walk).cast();
        sys::spdk_for_each_channel(bs.as_ptr().cast(), Some(visit), ctx, Some(visited));
    }
    done.await.unwrap_or_default()
}

/// `spdk_for_each_channel` doesn't call back if it finds no memory for the less than a hundred bytes of
/// its own. So it is called when there is more than that.
async fn has_memory() {
    const PLENTY: usize = 4096;
    let rests = Rests::start();
    loop {
        // SAFETY: what was got is given back.
        let got = unsafe {
            let memory = libc::malloc(PLENTY);
            // The compiler must not leave both out.
            std::hint::black_box(memory);
            libc::free(memory);
            !memory.is_null()
        };
        if got {
            return;
        }
        rests.rest().await;
    }
}

/// `spdk_channel_msg`
unsafe extern "C" fn visit(iter: *mut sys::spdk_io_channel_iter) {
    // SAFETY: the context is from `walk`; the channel is the blobstore's for the current thread.
    unsafe {
        let walk = &mut *sys::spdk_io_channel_iter_get_ctx(iter).cast::<Walk>();
        let channel = Channel::new(sys::spdk_io_channel_iter_get_channel(iter));
        let Walk { look, num_sets, found, .. } = walk;
        look(channel, *num_sets, &mut |io, whose| found.push((io, whose)));
        sys::spdk_for_each_channel_continue(iter, 0);
    }
}

/// `spdk_channel_for_each_cpl`
unsafe extern "C" fn visited(iter: *mut sys::spdk_io_channel_iter, _: c_int) {
    // SAFETY: the context is from `walk`, and comes back once.
    unsafe {
        let walk = Box::from_raw(sys::spdk_io_channel_iter_get_ctx(iter).cast::<Walk>());
        let Walk { found, callback, .. } = *walk;
        Callback::complete(callback.into_ctx(), found);
    }
}

/// # Safety
///
/// None.
unsafe fn nothing(_: Channel, _: usize, _: &mut dyn FnMut(InFlight, *mut c_void)) {}

/// A channel copies one cluster at a time; the I/O that needs it waits in a queue, and the first
/// in there stays until the copy is done (`bs_allocate_and_copy_cluster`). Its blob tells whose it is.
///
/// # Safety
///
/// The channel is the current thread's.
unsafe fn copies(channel: Channel, _: usize, found: &mut dyn FnMut(InFlight, *mut c_void)) {
    // SAFETY: only the channel's thread, which this is, changes the queue, whose elements are operations
    // of a user's.
    unsafe {
        let first = (*channel.as_ptr()).need_cluster_alloc.tqh_first;
        if !first.is_null() {
            found((first, (*first).cpl.u.blob_basic.cb_arg), (*first).u.user_op.blob.cast());
        }
    }
}

/// A read through a snapshot has a set of its own for the snapshot's blob, whose caller is the set of
/// the blob that reads through it (`blob_bs_dev_readv_ext`); that is so for a read that waits because
/// the snapshot is frozen (`bs_user_op_alloc`) as well. The caller of the last set tells whose it is:
/// the I/O to an lvol's bdev. (The bdev layer splits I/O to lvols at clusters, `_create_lvol_disk`, so
/// the blobstore doesn't.)
///
/// # Safety
///
/// The channel is the current thread's, and has so many sets.
unsafe fn reads(channel: Channel, num_sets: usize, found: &mut dyn FnMut(InFlight, *mut c_void)) {
    const LEN: usize = size_of::<sys::spdk_bs_request_set>();
    // SAFETY: the channel has an array of so many sets, each of which is all zeroes or has been used.
    // A pointer in it is only compared.
    let sets = unsafe { std::slice::from_raw_parts((*channel.as_ptr()).req_mem, num_sets) };
    // SAFETY: all members of the union have a function and a pointer first.
    let caller = |set: &sys::spdk_bs_request_set| unsafe { set.cpl.u.blob_basic.cb_arg };
    let set_of = |caller: *mut c_void| {
        let offset = (caller as usize).checked_sub(sets.as_ptr() as usize)?;
        let (index, part) = (offset / LEN, offset % LEN);
        sets.get(index).filter(|_| part == offset_of!(sys::spdk_bs_request_set, cb_args))
    };
    for set in sets {
        let Some(mut outer) = set_of(caller(set)) else { continue };
        // Few get here, and most of them are free, with a caller of before.
        // SAFETY: the set is one of this channel's.
        if unsafe { is_free(channel, set) } {
            continue;
        }
        // Each set on the way is in use, by the one before.
        for _ in 0..num_sets {
            match set_of(caller(outer)) {
                Some(next) => outer = next,
                None => break,
            }
        }
        found((ptr::from_ref(set).cast_mut(), caller(set)), caller(outer));
    }
}

/// Whether a request set is in use. One that is free is in the list of those, where the one before
/// points to it. One that is in use was taken from the head of that list, and has the link of then:
/// the head points to another now (`bs_sequence_start`, `bs_batch_open`, lib/blob/request.c). One of a
/// user's operation that waits has its link in another list.
///
/// # Safety
///
/// The channel is the current thread's, and the set one of its.
unsafe fn is_free(channel: Channel, set: &sys::spdk_bs_request_set) -> bool {
    // SAFETY: only the channel's thread, which this is, changes the lists. Between two of its events the
    // link of each set points to one of them, or to another set.
    unsafe {
        let before = set.link.tqe_prev;
        let mut queued = (*channel.as_ptr()).queued_io.tqh_first;
        while !queued.is_null() && !ptr::eq(queued, set) {
            queued = (*queued).link.tqe_next;
        }
        !before.is_null() && ptr::eq(*before, set) && queued.is_null()
    }
}

/// What [`crate::start::guard`] looks at: reads through snapshots on the channel of the current thread.
///
/// # Safety
///
/// The channel is the current thread's.
pub unsafe fn callers_of_reads(bs: Blobstore, channel: Channel) -> Vec<*mut c_void> {
    let mut callers = Vec::new();
    // SAFETY: the blobstore is loaded (invariant of `Blobstore`); the rest is what the caller says.
    unsafe {
        let num_sets = (*bs.as_ptr()).max_channel_ops as usize;
        reads(channel, num_sets, &mut |_, caller| callers.push(caller));
    }
    callers
}

/// As [`callers_of_reads`], the blobs that a cluster is copied for.
///
/// # Safety
///
/// As there.
pub unsafe fn is_copied(channel: Channel, blob: &OpenBlob) -> bool {
    let mut is = false;
    // SAFETY: what the caller says.
    unsafe { copies(channel, 0, &mut |_, whose| is |= whose == blob.as_ptr().cast()) };
    is
}
