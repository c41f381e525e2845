//! What the device says of a blob's parent: one internal xattr, `SNAP`, in its metadata.
//!
//! # When a page is known to be on the device
//!
//! Neither the status of `spdk_blob_sync_md` nor `blob->state` is proof by itself
//! (`lib/blob/blobstore.c`):
//! - A sync that starts while another runs is queued, and all that are queued complete together
//!   with the one that writes for them, which alone learns of an error
//!   (`blob_persist_complete_cb` passes 0 to each; the error is in the writer's sequence).
//! - An allocation that fails before the write is not in any sequence, so its status is 0 as well.
//! - The state is set to CLEAN before the write starts (`blob_persist_generate_new_md`).
//!
//! So a write here starts only while no other runs, which makes its sequence the one that learns
//! of I/O errors; and it counts only if the blob's clean copy was replaced, which
//! `blob_persist_complete` does (`blob_mark_clean`) for a write that worked and never otherwise.

use std::ffi::CStr;
use std::os::raw::c_int;
use std::ptr::NonNull;

use spdk_sys as sys;

use crate::blob::OpenBlob;
use crate::task::{status, status_callback};

/// The blob still has its parent in memory. What of the device?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteError {
    /// The xattr that names the parent is not there: nothing was written.
    NoParent,
    /// The write failed with this errno; then the old metadata was written again.
    PutBack(c_int),
    /// The write failed with this errno, and so did writing the old metadata again: the device
    /// may hold either.
    Unknown(c_int),
}

/// Writes the blob's metadata without its parent. In memory the parent stays.
///
/// On the device that is one write of the blob's root page; a blob whose metadata takes more
/// pages gets the others anew before, and the old ones zeroed after (`blob_persist_write_*`).
///
/// The blob must be locked against operations that change its parent.
pub async fn erase_parent(blob: &OpenBlob) -> std::result::Result<(), WriteError> {
    wait_until_idle(blob).await;
    let Some(xattr) = ParentXattr::take(blob) else {
        return Err(WriteError::NoParent);
    };
    let Err(failed) = write(blob).await else {
        xattr.free();
        return Ok(());
    };
    xattr.put_back(blob);
    wait_until_idle(blob).await;
    if write(blob).await.is_err() {
        return Err(WriteError::Unknown(failed.errno));
    }
    // Not before: until now the device's root page may have pointed to them.
    release_pages(blob, &failed.lost_pages);
    Err(WriteError::PutBack(failed.errno))
}

/// Waits until nobody writes the blob's metadata. It stays so until the next await.
pub async fn wait_until_idle(blob: &OpenBlob) {
    while !is_idle(blob) {
        sync(blob).await;
    }
}

fn is_idle(blob: &OpenBlob) -> bool {
    // SAFETY: the blob is in memory, and this thread owns its metadata (`OpenBlob`).
    unsafe { (*blob.as_ptr()).persists_to_complete.tqh_first.is_null() }
}

/// `spdk_blob_sync_md`, also for a snapshot: it has `md_ro` set, which makes that function return
/// without a write. SPDK's own operations clear the flag until they are done; it is looked at
/// before the call returns, so here nobody else sees it cleared.
async fn sync(blob: &OpenBlob) -> c_int {
    status(|ctx| {
        let raw = blob.as_ptr();
        // SAFETY: the blob is in memory, and this thread owns its metadata (`OpenBlob`).
        unsafe {
            let md_ro = (*raw).md_ro;
            (*raw).md_ro = false;
            sys::spdk_blob_sync_md(raw, Some(status_callback), ctx);
            (*raw).md_ro |= md_ro;
        }
    })
    .await
}

struct FailedWrite {
    errno: c_int,
    /// Metadata pages that the write claimed (`blob_persist_generate_new_md`). SPDK forgets them,
    /// and the next clean unload would put their loss on the device.
    lost_pages: Vec<u32>,
}

/// Writes the blob's metadata as it is in memory. No other write of it may run.
async fn write(blob: &OpenBlob) -> std::result::Result<(), FailedWrite> {
    let raw = blob.as_ptr();
    // SAFETY: the blob is in memory, and this thread owns its metadata (`OpenBlob`).
    let (clean_pages, num_pages) = unsafe {
        (*raw).state = sys::SPDK_BLOB_STATE_DIRTY;
        ((*raw).clean.pages, (*raw).active.num_pages)
    };
    let rc = sync(blob).await;
    if rc != 0 && !is_idle(blob) {
        // The next write has begun, and `active` has its pages.
        return Err(FailedWrite { errno: rc.abs(), lost_pages: Vec::new() });
    }
    // SAFETY: as above. When an I/O fails, `active` has the pages that were claimed for it, or, if
    // it didn't come to that, a copy of those in `clean`.
    unsafe {
        if rc != 0 {
            let clean = md_pages(&raw const (*raw).clean);
            let claimed = md_pages(&raw const (*raw).active).into_iter();
            let lost_pages = claimed.filter(|page| !clean.contains(page)).collect();
            return Err(FailedWrite { errno: rc.abs(), lost_pages });
        }
        if (*raw).clean.pages == clean_pages {
            // An allocation failed. If it was in `blob_serialize`, it has left a count of pages
            // that doesn't fit them; 0 would even have the blob deleted (`blob_persist_start`).
            (*raw).active.num_pages = num_pages;
            return Err(FailedWrite { errno: libc::ENOMEM, lost_pages: Vec::new() });
        }
    }
    Ok(())
}

/// A blob's metadata pages without the first, whose place follows from the blob's id.
///
/// # Safety
///
/// `data.pages` has `data.num_pages` elements.
unsafe fn md_pages(data: *const sys::spdk_blob_mut_data) -> Vec<u32> {
    // SAFETY: what the caller says.
    unsafe { (1..(*data).num_pages as usize).map(|i| *(*data).pages.add(i)).collect() }
}

fn release_pages(blob: &OpenBlob, pages: &[u32]) {
    // SAFETY: the blob, and so its blobstore, is in memory (`OpenBlob`); `used_md_pages` is
    // protected by `used_lock`.
    unsafe {
        let bs = (*blob.as_ptr()).bs;
        sys::spdk_spin_lock(&raw mut (*bs).used_lock);
        for &page in pages {
            sys::spdk_bit_array_clear((*bs).used_md_pages, page);
        }
        sys::spdk_spin_unlock(&raw mut (*bs).used_lock);
    }
}

/// The internal xattr that names the parent, taken out of its blob.
///
/// # Invariants
///
/// `node` was allocated by SPDK (`blob_set_xattr`, `blob_deserialize_xattr`) and is in no list.
/// `invalid_flags` are those that the blob had with it.
struct ParentXattr {
    node: NonNull<sys::spdk_xattr>,
    invalid_flags: u64,
}

impl ParentXattr {
    /// As `blob_remove_xattr`. `None` if there is none, or it doesn't name the blob's parent.
    fn take(blob: &OpenBlob) -> Option<ParentXattr> {
        const NAME: &CStr = match CStr::from_bytes_with_nul(sys::BLOB_SNAPSHOT) {
            Ok(name) => name,
            Err(_) => c"",
        };
        let raw = blob.as_ptr();
        // SAFETY: the blob is in memory, and this thread owns its metadata (`OpenBlob`). The list
        // is a TAILQ whose elements have a name that ends in NUL and `value_len` bytes of value.
        unsafe {
            let mut element = (*raw).xattrs_internal.tqh_first;
            let node = loop {
                let node = NonNull::new(element)?;
                if CStr::from_ptr((*element).name) == NAME {
                    break node;
                }
                element = (*element).link.tqe_next;
            };
            let id_len = size_of::<sys::spdk_blob_id>();
            if usize::from((*element).value_len) != id_len
                || (*element).value.cast::<sys::spdk_blob_id>().read_unaligned() != (*raw).parent_id
            {
                return None;
            }
            let (next, prev) = ((*element).link.tqe_next, (*element).link.tqe_prev);
            match NonNull::new(next) {
                Some(next) => (*next.as_ptr()).link.tqe_prev = prev,
                None => (*raw).xattrs_internal.tqh_last = prev,
            }
            *prev = next;
            let invalid_flags = (*raw).invalid_flags;
            if (*raw).xattrs_internal.tqh_first.is_null() {
                (*raw).invalid_flags &= !u64::from(sys::SPDK_BLOB_INTERNAL_XATTR);
            }
            Some(ParentXattr { node, invalid_flags })
        }
    }

    fn put_back(self, blob: &OpenBlob) {
        let raw = blob.as_ptr();
        let node = self.node.as_ptr();
        // SAFETY: the blob is in memory, and this thread owns its metadata (`OpenBlob`); the node
        // is in no list (invariant), and goes to the head of this one.
        unsafe {
            let head = &raw mut (*raw).xattrs_internal;
            (*node).link.tqe_next = (*head).tqh_first;
            (*node).link.tqe_prev = &raw mut (*head).tqh_first;
            match NonNull::new((*head).tqh_first) {
                Some(first) => (*first.as_ptr()).link.tqe_prev = &raw mut (*node).link.tqe_next,
                None => (*head).tqh_last = &raw mut (*node).link.tqe_next,
            }
            (*head).tqh_first = node;
            (*raw).invalid_flags = self.invalid_flags;
        }
    }

    fn free(self) {
        let node = self.node.as_ptr();
        // SAFETY: nobody has the node (invariant); SPDK frees its parts like this.
        unsafe {
            libc::free((*node).value);
            libc::free((*node).name.cast());
            libc::free(node.cast());
        }
    }
}
