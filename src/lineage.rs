//! Who reads through whom: the blobstore's list of snapshots and their clones, and the device
//! behind a blob. All of this is in memory only; what the device says is in `metadata.rs`.

use std::collections::HashMap;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, Ordering};

use spdk_sys as sys;

use crate::blob::{BlobId, Blobstore, OpenBlob};

/// SPDK's zeroes device, which backs every thin blob that has no parent. Its address counts
/// (`blob_backed_with_zeroes_dev`, `lib/blob/zeroes.c`): with another one behind a blob, an unmap
/// gives no cluster back.
///
/// # Invariants
///
/// `0` is the address of `g_zeroes_bs_dev` of the SPDK that this process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ZeroesDev(NonNull<sys::spdk_bs_dev>);

// SAFETY: it is the address of a static that never changes.
unsafe impl Send for ZeroesDev {}
// SAFETY: as for Send.
unsafe impl Sync for ZeroesDev {}

impl ZeroesDev {
    /// What backs a thin blob without a parent. `libspdk_blob.so` hides `bs_create_zeroes_dev`,
    /// so this is how to get at it.
    ///
    /// # Safety
    ///
    /// `blob` is thin-provisioned and was made without a parent.
    pub(crate) unsafe fn behind(blob: &OpenBlob) -> Option<ZeroesDev> {
        // SAFETY: the blob is in memory (invariant of `OpenBlob`).
        NonNull::new(unsafe { (*blob.as_ptr()).back_bs_dev }).map(ZeroesDev)
    }

    /// Whether it is what backs the blob.
    pub fn is_behind(self, blob: &OpenBlob) -> bool {
        // SAFETY: the blob is in memory (invariant of `OpenBlob`).
        unsafe { (*blob.as_ptr()).back_bs_dev == self.0.as_ptr() }
    }
}

/// The elements of a `TAILQ`.
fn elements<T>(first: *mut T, next: impl Fn(*mut T) -> *mut T) -> impl Iterator<Item = *mut T> {
    std::iter::successors(NonNull::new(first), move |element| NonNull::new(next(element.as_ptr())))
        .map(NonNull::as_ptr)
}

/// The list `bs->snapshots`. It must not be held across an await.
fn snapshots(bs: Blobstore) -> impl Iterator<Item = *mut sys::spdk_blob_list> {
    // SAFETY: the blobstore is loaded, and only its metadata thread, which this is (invariants of
    // `Blobstore`), changes the list.
    let first = unsafe { (*bs.as_ptr()).snapshots.tqh_first };
    // SAFETY: as above.
    elements(first, |entry| unsafe { (*entry).link.tqe_next })
}

/// The list of a snapshot's clones. It must not be held across an await.
///
/// # Safety
///
/// `snapshot` is an element of [`snapshots`].
unsafe fn clones(
    snapshot: *mut sys::spdk_blob_list,
) -> impl Iterator<Item = *mut sys::spdk_blob_list> {
    // SAFETY: the snapshot's entry is in the list, as the caller says; the rest as in `snapshots`.
    let first = unsafe { (*snapshot).clones.tqh_first };
    // SAFETY: as above.
    elements(first, |entry| unsafe { (*entry).link.tqe_next })
}

/// The blob, then every blob that reads through it: its clones, and theirs.
pub fn with_descendants(bs: Blobstore, blob: &OpenBlob) -> Vec<BlobId> {
    let mut ids = vec![blob.id()];
    // Only a read-only blob can have clones (`bs_clone_origblob_open_cpl`): a writable one needs
    // no walk through all of the store's snapshots.
    if !blob.is_read_only() {
        return ids;
    }
    // SAFETY: the entries are in the list.
    let entries: HashMap<BlobId, _> =
        snapshots(bs).map(|entry| (unsafe { (*entry).id }, entry)).collect();
    let mut next = 0;
    while let Some(id) = ids.get(next) {
        if let Some(&entry) = entries.get(id) {
            // SAFETY: the entries are in the lists.
            ids.extend(unsafe { clones(entry) }.map(|clone| unsafe { (*clone).id }));
        }
        next += 1;
    }
    ids
}

/// Makes memory say what the device says since [`crate::metadata::erase_parent`]: `blob` has no
/// parent. What read through the parent is given back, for the caller to let go.
///
/// The end of `bs_inflate_blob_done` does the same, for the last clone in a chain.
///
/// # Safety
///
/// `blob` is a thin-provisioned clone of a snapshot, and locked.
pub unsafe fn forget_parent(bs: Blobstore, blob: &OpenBlob, zeroes: ZeroesDev) -> FormerBackingDev {
    let raw = blob.as_ptr();
    // SAFETY: the blob is in memory and this is the thread that owns its metadata and the lists
    // (invariants of `OpenBlob` and `Blobstore`). A list's entries come from calloc
    // (`bs_blob_list_add`).
    unsafe {
        let parent_id = (*raw).parent_id;
        if let Some(entry) = snapshots(bs).find(|&entry| (*entry).id == parent_id)
            && let Some(clone) = clones(entry).find(|&clone| (*clone).id == (*raw).id)
        {
            let (next, prev) = ((*clone).link.tqe_next, (*clone).link.tqe_prev);
            match NonNull::new(next) {
                Some(next) => (*next.as_ptr()).link.tqe_prev = prev,
                None => (*entry).clones.tqh_last = prev,
            }
            *prev = next;
            libc::free(clone.cast());
            (*entry).clone_count -= 1;
        }
        (*raw).parent_id = sys::SPDK_BLOBID_INVALID;
        // A read that has slipped through (`Family::wait_for_slipped`) may load it on another thread.
        let back_bs_dev = AtomicPtr::from_ptr(&raw mut (*raw).back_bs_dev);
        FormerBackingDev(back_bs_dev.swap(zeroes.0.as_ptr(), Ordering::AcqRel).cast())
    }
}

/// A device that read through a snapshot, for a blob that no longer does.
///
/// # Invariants
///
/// `0` is from `bs_create_blob_bs_dev` (`lib/blob/blob_bs_dev.c`), and belongs to the value: no blob
/// has it any more. Its `blob` is the former parent's, open for it. The current SPDK thread is the
/// metadata thread.
#[must_use = "it holds a reference on the former parent"]
#[derive(Debug)]
pub struct FormerBackingDev(*mut sys::spdk_blob_bs_dev);

impl FormerBackingDev {
    /// Frees it. What is left is its reference on the former parent, for the caller to close: the
    /// device's own destructor (`blob_bs_dev_destroy`) loses it when no request set is free.
    ///
    /// # Safety
    ///
    /// No I/O that came to it while it was a blob's is in flight any more.
    pub unsafe fn into_parent(self) -> OpenBlob {
        // SAFETY: the device is the value's, from calloc, and so is its reference on a blob
        // (invariants); nobody is about to use it, as the caller says.
        unsafe {
            let parent = OpenBlob::from_raw(NonNull::new_unchecked((*self.0).blob));
            libc::free(self.0.cast());
            parent
        }
    }
}
