//! What the device says of a blob's parent: one internal xattr, `SNAP`, in its metadata.
//!
//! It is taken out of the one page that has it, in place: the page is read, written without it, and
//! flushed out of the device's volatile cache. Memory follows when that is done. SPDK's own writes of
//! the blob's metadata wait meanwhile ([`Held`]), and leave the xattr out when they go on.
//!
//! `spdk_blob_sync_md` would do more, and prove less: it writes all of the blob's pages anew, needs
//! free ones and a request set, and its status is 0 for a write that failed if another sync was under
//! way (`blob_persist_complete_cb`, lib/blob/blobstore.c).
//!
//! What an earlier sync of SPDK's failed to write is not written as a side effect: it is not on the device,
//! whose page is taken as it is, and it is left to SPDK's next sync to write it.

use std::ffi::CStr;
use std::ops::Range;
use std::os::raw::{c_int, c_void};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use spdk_sys as sys;

use crate::base::tailq::{elements, tailq_remove};
use crate::base::task::{self, Rests};
use crate::chain::blob::{BlobId, OpenBlob};
use crate::md::flush::flush;
use crate::md::page::{MdPage, Unreadable};

/// Why the parent could not be erased. In memory nothing has changed. On the device neither, but for
/// `Unknown`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriteError {
    /// The metadata could not be read, or is not what memory says it is: nothing was written.
    Unreadable(Unreadable),
    /// The write or the flush failed with this errno; then the old page was written again.
    PutBack(c_int),
    /// The write or the flush failed with this errno, and so did writing the old page again: the
    /// device may hold either.
    Unknown(c_int),
}

impl From<Unreadable> for WriteError {
    fn from(why: Unreadable) -> WriteError {
        WriteError::Unreadable(why)
    }
}

/// Erases the blob's parent from its metadata: on the device, then in memory.
///
/// The blob must be locked against operations that change its parent. Its I/O may go on: what it
/// allocates meanwhile goes to other pages, or waits.
pub async fn erase_parent(blob: &OpenBlob) -> Result<(), WriteError> {
    let held = Held::hold(blob).await;
    let erased = erase_on_device(blob).await;
    if erased.is_ok() {
        erase_in_memory(blob);
    }
    held.release();
    erased
}

/// Whether [`erase_parent`] would find the metadata on the device as memory says it is. Nothing is
/// written, and SPDK's own writes of it wait as long as it is read.
pub async fn check_parent(blob: &OpenBlob) -> Result<(), Unreadable> {
    let held = Held::hold(blob).await;
    let found = find_on_device(blob).await;
    held.release();
    found.map(drop)
}

/// Where the device names the parent.
struct Found {
    page: MdPage,
    sequence_num: u32,
    descriptor: Range<usize>,
}

/// `None` if the device names no parent.
async fn find_on_device(blob: &OpenBlob) -> Result<Option<Found>, Unreadable> {
    let mut page = MdPage::read_root(blob).await?;
    let mut sequence_num = 0;
    let (descriptor, parent) = loop {
        if let Some(found) = page.find_parent() {
            break found;
        }
        sequence_num += 1;
        match page.read_next(blob, sequence_num).await? {
            Some(next) => page = next,
            None => return Ok(None),
        }
    };
    let known = parent_id(blob);
    if parent != known {
        return Err(Unreadable::Wrong(format!(
            "it names blob {parent:#x} as the parent and should name blob {known:#x}"
        )));
    }
    Ok(Some(Found { page, sequence_num, descriptor }))
}

async fn erase_on_device(blob: &OpenBlob) -> Result<(), WriteError> {
    let Some(Found { mut page, sequence_num, descriptor }) = find_on_device(blob).await? else {
        // It has been written already, unnoticed: its flush and the write of the old page failed.
        return flush(blob).await.map_err(WriteError::Unknown);
    };
    // The flag is in the root page. It may stay set without an xattr: SPDK never asks for it.
    let is_last =
        sequence_num == 0 && page.has_one_internal_xattr() && has_one_internal_xattr(blob);
    let erased = page.erase(descriptor, if is_last { INTERNAL_XATTR } else { 0 });
    let Err(errno) = write_through(blob, &page).await else { return Ok(()) };
    page.restore(&erased);
    Err(match write_through(blob, &page).await {
        Ok(()) => WriteError::PutBack(errno),
        Err(_) => WriteError::Unknown(errno),
    })
}

async fn write_through(blob: &OpenBlob, page: &MdPage) -> Result<(), c_int> {
    page.write(blob).await?;
    flush(blob).await
}

fn parent_id(blob: &OpenBlob) -> BlobId {
    // SAFETY: the blob is in memory, and this thread owns its metadata (`OpenBlob`).
    unsafe { (*blob.as_ptr()).parent_id }
}

const INTERNAL_XATTR: u64 = sys::SPDK_BLOB_INTERNAL_XATTR as u64;

fn has_one_internal_xattr(blob: &OpenBlob) -> bool {
    // SAFETY: the blob is in memory, and this thread owns its metadata (`OpenBlob`).
    unsafe {
        let first = (*blob.as_ptr()).xattrs_internal.tqh_first;
        !first.is_null() && (*first).link.tqe_next.is_null()
    }
}

/// As `blob_remove_xattr`.
fn erase_in_memory(blob: &OpenBlob) {
    let raw = blob.as_ptr();
    // SAFETY: the blob is in memory, and this thread owns its metadata (`OpenBlob`). The list is a
    // TAILQ whose elements have a name that ends in NUL, and come from malloc with their parts
    // (`blob_set_xattr`, `blob_deserialize_xattr`).
    unsafe {
        let list = &raw mut (*raw).xattrs_internal;
        let mut xattrs = elements((*list).tqh_first, |xattr| (*xattr).link.tqe_next);
        let name = |xattr: *mut sys::spdk_xattr| CStr::from_ptr((*xattr).name).to_bytes_with_nul();
        let Some(xattr) = xattrs.find(|&xattr| name(xattr) == sys::BLOB_SNAPSHOT) else { return };
        tailq_remove!((*list), xattr);
        libc::free((*xattr).value);
        libc::free((*xattr).name.cast());
        libc::free(xattr.cast());
        if (*list).tqh_first.is_null() {
            // I/O on other threads reads the flags at the same time. It looks at the one that says
            // thin-provisioned, which stays.
            AtomicU64::from_ptr(&raw mut (*raw).invalid_flags)
                .fetch_and(!INTERNAL_XATTR, Ordering::Relaxed);
        }
    }
}

/// SPDK's own writes of the blob's metadata wait: `blob_persist` queues them in `pending_persists` as
/// long as `persists_to_complete` is not empty, and nobody else looks at that list but
/// `blob_persist_complete`, which ends a write.
///
/// Nothing may wait for the blob's I/O meanwhile, which may wait for such a write.
///
/// # Invariants
///
/// No write of the blob's metadata is under way, and `persists_to_complete` has an element that is
/// none.
#[must_use = "the blob's metadata is never written again"]
struct Held<'a>(&'a OpenBlob);

impl<'a> Held<'a> {
    async fn hold(blob: &'a OpenBlob) -> Held<'a> {
        blob.wait_until_idle().await;
        // SAFETY: the blob is in memory, and this thread owns its metadata (`OpenBlob`). No write is
        // under way since the await, and none starts, so the element is not looked at.
        unsafe { (*blob.as_ptr()).persists_to_complete.tqh_first = NonNull::dangling().as_ptr() };
        Held(blob)
    }

    /// Those that wait are done by one more write, which takes them along when it ends. That there is
    /// no request set for it is no reason to wait here: who waits for the blob's metadata waits.
    fn release(self) {
        let raw = self.0.as_ptr();
        // SAFETY: as above. The end of the list has not changed, as nobody inserts into it while it is
        // not empty.
        unsafe { (*raw).persists_to_complete.tqh_first = std::ptr::null_mut() };
        if !start_pending(self.0) {
            let blob = self.0.share();
            // SAFETY: tasks run on the metadata thread (`OpenBlob`).
            unsafe {
                task::spawn(async move {
                    let rests = Rests::start();
                    while !start_pending(&blob) {
                        rests.rest().await;
                    }
                });
            }
        }
    }
}

/// Starts to write the blob's metadata, if anything waits for that. False if it must be tried again.
fn start_pending(blob: &OpenBlob) -> bool {
    unsafe extern "C" fn ignore(_: *mut c_void, _: c_int) {}
    let raw = blob.as_ptr();
    // SAFETY: the blob is in memory, and this thread owns its metadata (`OpenBlob`).
    unsafe {
        if (*raw).pending_persists.tqh_first.is_null() || !blob.is_idle() {
            return true;
        }
        // Both are looked at before the call returns: a sync does nothing for a clean blob, nor for a
        // snapshot, which has `md_ro` set.
        let state = std::mem::replace(&mut (*raw).state, sys::SPDK_BLOB_STATE_DIRTY);
        let md_ro = std::mem::replace(&mut (*raw).md_ro, false);
        sys::spdk_blob_sync_md(raw, Some(ignore), std::ptr::null_mut());
        (*raw).md_ro |= md_ro;
        let has_started = !blob.is_idle();
        if !has_started {
            // No request set was free (`blob_sync_md`).
            (*raw).state = state;
        }
        has_started
    }
}
