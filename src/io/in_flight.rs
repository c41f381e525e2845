//! The I/O that is in flight on a channel of a blobstore: copies of clusters, and reads through snapshots. It
//! holds request sets of the channel while it waits for the device.

use std::mem::offset_of;
use std::os::raw::c_void;
use std::ptr;

use spdk_sys as sys;

use crate::chain::blob::{Blobstore, OpenBlob};
use crate::io::channel::Channel;

/// An I/O in flight: its request set, and for whom that is. The pair comes again only if the set was
/// freed, and taken for the same caller again, between two looks.
pub type InFlight = (*mut sys::spdk_bs_request_set, *mut c_void);

/// What to look for on a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Look {
    /// Nothing.
    Nothing,
    /// Clusters that are copied, each with the blob that it is copied for.
    Copies,
    /// Reads through snapshots, each with what tells whose it is: the I/O to an lvol's bdev.
    Reads,
}

impl Look {
    /// Finds it on a channel, with whose it is.
    ///
    /// # Safety
    ///
    /// The channel is the current thread's, and has so many request sets.
    pub unsafe fn at(
        self,
        channel: Channel,
        num_sets: usize,
        found: &mut dyn FnMut(InFlight, *mut c_void),
    ) {
        // SAFETY: what the caller says.
        unsafe {
            match self {
                Look::Nothing => (),
                Look::Copies => copies(channel, found),
                Look::Reads => reads(channel, num_sets, found),
            }
        }
    }
}

/// A channel copies one cluster at a time; the I/O that needs it waits in a queue, and the first
/// in there stays until the copy is done (`bs_allocate_and_copy_cluster`). Its blob tells whose it is.
///
/// # Safety
///
/// The channel is the current thread's.
unsafe fn copies(channel: Channel, found: &mut dyn FnMut(InFlight, *mut c_void)) {
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
    unsafe { copies(channel, &mut |_, whose| is |= whose == blob.as_ptr().cast()) };
    is
}
