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
use std::os::raw::{c_int, c_void};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use spdk_sys as sys;

use crate::blob::{BlobId, OpenBlob};
use crate::task::{Callback, next_round, status, status_callback};

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
/// The blob must be locked against operations that change its parent. Its I/O may go on: what it
/// allocates meanwhile is written without the xattr too, or in pages that don't hold any.
pub async fn erase_parent(blob: &OpenBlob) -> std::result::Result<ParentXattr, WriteError> {
    blob.wait_until_idle().await;
    let Some(xattr) = ParentXattr::take(blob) else {
        return Err(WriteError::NoParent);
    };
    let Err(failed) = write(blob).await else {
        return Ok(xattr);
    };
    if failed.cause != Cause::Device {
        xattr.put_back(blob);
        return Err(WriteError::PutBack(failed.errno));
    }
    restore_parent(blob, xattr).await.map_err(|_| WriteError::Unknown(failed.errno))?;
    // Not before: until now the device's root page may have pointed to them.
    release_pages(blob, &failed.lost_pages);
    Err(WriteError::PutBack(failed.errno))
}

/// Writes the blob's metadata with its parent again. If that fails, the device may hold either.
pub async fn restore_parent(blob: &OpenBlob, xattr: ParentXattr) -> std::result::Result<(), c_int> {
    xattr.put_back(blob);
    loop {
        blob.wait_until_idle().await;
        match write(blob).await {
            // The next round may find a request set.
            Err(FailedWrite { cause: Cause::NoRequestSet, .. }) => next_round().await,
            outcome => return outcome.map_err(|failed| failed.errno),
        }
    }
}

/// How a sync ended.
struct Synced {
    rc: c_int,
    /// `clean.pages` when it ended. It is looked at at once, because a later write may put an array
    /// of its own to where the one before this write was; a good write would count as failed then.
    clean_pages: *mut u32,
}

/// What `spdk_blob_sync_md` gets as its context.
struct Syncing {
    blob: *mut sys::spdk_blob,
    callback: Callback<Synced>,
}

/// `spdk_blob_op_complete`
unsafe extern "C" fn synced(ctx: *mut c_void, rc: c_int) {
    // SAFETY: the context is from `sync`, which keeps the blob open until this is called, once.
    unsafe {
        let Syncing { blob, callback } = *Box::from_raw(ctx.cast::<Syncing>());
        forget_released_pages(blob);
        let clean_pages = (*blob).clean.pages;
        Callback::complete(callback.into_ctx(), Synced { rc, clean_pages });
    }
}

/// `spdk_blob_sync_md`, also for a snapshot: it has `md_ro` set, which makes that function return
/// without a write. SPDK's own operations clear the flag until they are done; it is looked at
/// before the call returns, so here nobody else sees it cleared.
async fn sync(blob: &OpenBlob) -> Synced {
    let raw = blob.as_ptr();
    let (callback, done) = Callback::new();
    let ctx = Box::into_raw(Box::new(Syncing { blob: raw, callback }));
    // SAFETY: the blob is in memory, and this thread owns its metadata (`OpenBlob`).
    unsafe {
        let md_ro = (*raw).md_ro;
        (*raw).md_ro = false;
        sys::spdk_blob_sync_md(raw, Some(synced), ctx.cast());
        (*raw).md_ro |= md_ro;
    }
    let canceled = Synced { rc: -libc::ECANCELED, clean_pages: std::ptr::null_mut() };
    done.await.unwrap_or(canceled)
}

struct FailedWrite {
    errno: c_int,
    cause: Cause,
    /// Metadata pages that the write claimed (`blob_persist_generate_new_md`). SPDK forgets them,
    /// and the next clean unload would put their loss on the device.
    lost_pages: Vec<u32>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// No request set was free (`blob_sync_md`), which passes. The device is as it was.
    NoRequestSet,
    /// Memory, or free metadata pages, ran out before the first write. The device is as it was.
    NoRoom,
    /// The device may hold anything between the old metadata and the new.
    Device,
}

impl FailedWrite {
    fn on_device(errno: c_int, lost_pages: Vec<u32>) -> FailedWrite {
        FailedWrite { errno, cause: Cause::Device, lost_pages }
    }
}

/// Writes the blob's metadata as it is in memory. No other write of it may run.
async fn write(blob: &OpenBlob) -> std::result::Result<(), FailedWrite> {
    let raw = blob.as_ptr();
    // SAFETY: the blob is in memory, and this thread owns its metadata (`OpenBlob`).
    let (state, clean_pages, num_pages) = unsafe {
        let state = std::mem::replace(&mut (*raw).state, sys::SPDK_BLOB_STATE_DIRTY);
        (state, (*raw).clean.pages, (*raw).active.num_pages)
    };
    let Synced { rc, clean_pages: clean_pages_now } = sync(blob).await;
    let errno = if rc == 0 { libc::EIO } else { rc.abs() };
    // SAFETY: as above.
    unsafe {
        if rc == 0 && clean_pages_now != clean_pages {
            return match chain_is_written(blob).await {
                Ok(()) => Ok(()),
                Err(errno) => Err(FailedWrite::on_device(errno, Vec::new())),
            };
        }
        if (*raw).clean.pages != clean_pages || !blob.is_idle() {
            // The next write has begun, and `active` has its pages.
            return Err(FailedWrite::on_device(errno, Vec::new()));
        }
        if (*raw).state == sys::SPDK_BLOB_STATE_DIRTY && (rc == 0 || rc == -libc::ENOMEM) {
            // The state is CLEAN from when the write begins (`blob_persist_generate_new_md`). If
            // `blob_serialize` failed, it has left a count of pages that doesn't fit them; 0 would
            // even have the blob deleted (`blob_persist_start`).
            (*raw).active.num_pages = num_pages;
            (*raw).state = state;
            let cause = if rc == 0 { Cause::NoRoom } else { Cause::NoRequestSet };
            return Err(FailedWrite { errno: libc::ENOMEM, cause, lost_pages: Vec::new() });
        }
        // `active` has the pages that were claimed, or, if it didn't come to that, a copy of those
        // in `clean`.
        let clean = md_pages(&raw const (*raw).clean);
        let claimed = md_pages(&raw const (*raw).active).into_iter();
        let lost_pages = claimed.filter(|page| !clean.contains(page)).collect();
        Err(FailedWrite::on_device(errno, lost_pages))
    }
}

/// If the old pages could not all be zeroed, but the last of them could, they are free all the same
/// (`bs_batch_completion` passes on only the last status, `blob_persist_zero_pages_cpl`), while the
/// blob still has them in `clean`: the next write would zero them, which by then somebody may have
/// claimed. So this is looked at as soon as the write has ended.
///
/// # Safety
///
/// The blob is open, and this is its metadata thread.
unsafe fn forget_released_pages(raw: *mut sys::spdk_blob) {
    // SAFETY: the blob, and so its blobstore, is in memory, and this thread owns its metadata, as
    // the caller says.
    unsafe {
        let used = (*(*raw).bs).used_md_pages;
        let clean = md_pages(&raw const (*raw).clean);
        if clean.iter().any(|&page| !sys::spdk_bit_array_get(used, page)) {
            (*raw).clean.num_pages = 1;
        }
    }
}

/// Makes sure that the pages after the first are on the device, or says why not. If there are two
/// or more, SPDK doesn't know: they are written at the same time, and of their statuses it takes
/// only the last one for that of all (`bs_batch_completion`).
async fn chain_is_written(blob: &OpenBlob) -> std::result::Result<(), c_int> {
    let raw = blob.as_ptr();
    loop {
        blob.wait_until_idle().await;
        // SAFETY: the blob is in memory, and this thread owns its metadata (`OpenBlob`).
        let (clean, pages) = unsafe { ((*raw).clean.pages, md_pages(&raw const (*raw).clean)) };
        if pages.len() < 2 {
            return Ok(());
        }
        let mut outcome = Ok(());
        for (index, &page) in pages.iter().enumerate() {
            let next = pages.get(index + 1).copied().unwrap_or(NO_PAGE);
            let read = MdPage::read(blob, page).await;
            outcome = outcome.and(read.and_then(|page| page.check(blob.id(), index + 1, next)));
        }
        // SAFETY: as above. If somebody has written them elsewhere meanwhile, what was read is not
        // what counts.
        if unsafe { (*raw).clean.pages } == clean {
            return outcome;
        }
    }
}

/// Whether the first of the blob's pages is on the device, and has no other behind it.
pub(crate) async fn root_is_written(blob: &OpenBlob) -> std::result::Result<(), c_int> {
    // The lower half of a blob's id is its first page (`bs_blobid_to_page`).
    MdPage::read(blob, blob.id() as u32).await?.check(blob.id(), 0, NO_PAGE)
}

/// `SPDK_INVALID_MD_PAGE`
const NO_PAGE: u32 = u32::MAX;

/// A metadata page as it is on the device.
///
/// # Invariants
///
/// `0` is memory of a page, from `spdk_dma_zmalloc`, that belongs to the value.
struct MdPage(NonNull<sys::spdk_blob_md_page>);

impl MdPage {
    async fn read(blob: &OpenBlob, page: u32) -> std::result::Result<MdPage, c_int> {
        unsafe extern "C" fn done(_: *mut sys::spdk_io_channel, ctx: *mut c_void, rc: c_int) {
            // SAFETY: the context is from `status`, and the device completes an I/O once.
            unsafe { status_callback(ctx, rc) }
        }
        // SAFETY: the blob, and so its blobstore and the device, is in memory (`OpenBlob`). The
        // buffer, the channel and the arguments are there until the read is done.
        unsafe {
            let bs = (*blob.as_ptr()).bs;
            let dev = (*bs).dev;
            let page_len = size_of::<sys::spdk_blob_md_page>();
            let buffer = sys::spdk_dma_zmalloc(page_len, 0, std::ptr::null_mut());
            let buffer = MdPage(NonNull::new(buffer.cast()).ok_or(libc::ENOMEM)?);
            let (Some(create_channel), Some(destroy_channel), Some(read)) =
                ((*dev).create_channel, (*dev).destroy_channel, (*dev).read)
            else {
                return Err(libc::ENOTSUP);
            };
            let channel = NonNull::new(create_channel(dev)).ok_or(libc::ENOMEM)?.as_ptr();
            let mut args =
                sys::spdk_bs_dev_cb_args { cb_fn: Some(done), channel, ..Default::default() };
            let args = &raw mut args;
            let blocks = page_len as u64 / u64::from((*dev).blocklen);
            // As `bs_md_page_to_lba`: a page may take more room than its content.
            let room = sys::spdk_bs_get_page_size(bs) / u64::from((*dev).blocklen);
            let lba = ((*bs).md_start + u64::from(page)) * room;
            let rc = status(|ctx| {
                (*args).cb_arg = ctx;
                read(dev, channel, buffer.0.as_ptr().cast(), lba, blocks as u32, args);
            })
            .await;
            destroy_channel(dev, channel);
            if rc == 0 { Ok(buffer) } else { Err(rc.abs()) }
        }
    }

    /// Whether it is this one of the blob's pages, and whole.
    fn check(&self, id: BlobId, sequence_num: usize, next: u32) -> std::result::Result<(), c_int> {
        let page = self.0.as_ptr();
        // SAFETY: the memory is a page's (invariant).
        unsafe {
            let len = size_of::<sys::spdk_blob_md_page>() - size_of::<u32>();
            let crc = sys::spdk_crc32c_update(page.cast(), len, u32::MAX) ^ u32::MAX;
            let is_whole = (*page).crc == crc;
            let is_it = (*page).id == id
                && (*page).sequence_num as usize == sequence_num
                && (*page).next == next;
            if is_whole && is_it { Ok(()) } else { Err(libc::EIO) }
        }
    }
}

impl Drop for MdPage {
    fn drop(&mut self) {
        // SAFETY: the memory is the value's.
        unsafe { sys::spdk_dma_free(self.0.as_ptr().cast()) }
    }
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

/// I/O on other threads reads the flags at the same time. It looks at the one that says
/// thin-provisioned, which stays.
fn set_flags(blob: &OpenBlob, invalid_flags: u64) {
    // SAFETY: the blob is in memory (`OpenBlob`), and the field is aligned like any of its type.
    let flags = unsafe { AtomicU64::from_ptr(&raw mut (*blob.as_ptr()).invalid_flags) };
    flags.store(invalid_flags, Ordering::Relaxed);
}

/// The internal xattr that names the parent, taken out of its blob.
///
/// # Invariants
///
/// `node` was allocated by SPDK (`blob_set_xattr`, `blob_deserialize_xattr`) and is in no list.
/// `invalid_flags` are those that the blob had with it.
#[must_use = "it is freed, or put back"]
#[derive(Debug)]
pub struct ParentXattr {
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
                set_flags(blob, invalid_flags & !u64::from(sys::SPDK_BLOB_INTERNAL_XATTR));
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
        }
        set_flags(blob, self.invalid_flags);
    }

    /// For good: the blob has no parent any more.
    pub fn free(self) {
        let node = self.node.as_ptr();
        // SAFETY: nobody has the node (invariant); SPDK frees its parts like this.
        unsafe {
            libc::free((*node).value);
            libc::free((*node).name.cast());
            libc::free(node.cast());
        }
    }
}
