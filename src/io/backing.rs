//! The device that a blob reads through, `back_bs_dev`: how it is removed from a blob while I/O
//! continues. The order, and why it is safe, is in `docs/design.md`.

use std::os::raw::c_void;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use spdk_sys as sys;

use crate::chain::blob::OpenBlob;
use crate::chain::lineage::Listed;

/// SPDK's zeroes device, which backs every thin blob that has no parent. Its address matters
/// (`blob_backed_with_zeroes_dev`, `lib/blob/zeroes.c`): if a blob is backed by another device, unmap
/// releases no cluster.
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

/// Keeps every copy-on-write that starts from here on from taking data through the blob's backing device, which
/// now answers like the zeroes device. Reads continue through it.
///
/// The functions do the same whichever device they are called with, because SPDK loads `back_bs_dev`
/// once for a function and once more for its argument.
///
/// # Safety
///
/// `blob` is a clone of a snapshot, its device is its own, and it is locked.
pub unsafe fn stop_copies(blob: &OpenBlob) {
    unsafe extern "C" fn is_zeroes(_: *mut sys::spdk_bs_dev, _: u64, _: u64) -> bool {
        true
    }
    unsafe extern "C" fn translate_lba(_: *mut sys::spdk_bs_dev, _: u64, _: *mut u64) -> bool {
        false
    }
    /// SPDK calls it before the other two, which it doesn't call if this says no: the snapshot's own
    /// must not be asked about what is beyond its end. Who has seen this one sees the others.
    #[cfg(spdk_reads_beyond_parent)]
    unsafe extern "C" fn is_range_valid(_: *mut sys::spdk_bs_dev, _: u64, _: u64) -> bool {
        std::sync::atomic::fence(Ordering::Acquire);
        true
    }
    let store = |place: *mut c_void, function: *const c_void| {
        // SAFETY: the place is a pointer to a function in the device, which is the blob's.
        unsafe { AtomicPtr::from_ptr(place.cast()) }.store(function.cast_mut(), Ordering::Release);
    };
    // SAFETY: the blob is in memory (invariant of `OpenBlob`), and its device its own (`calloc` in
    // `bs_create_blob_bs_dev`), as the caller says.
    unsafe {
        let dev = (*blob.as_ptr()).back_bs_dev;
        store((&raw mut (*dev).is_zeroes).cast(), is_zeroes as *const c_void);
        store((&raw mut (*dev).translate_lba).cast(), translate_lba as *const c_void);
        #[cfg(spdk_reads_beyond_parent)]
        store((&raw mut (*dev).is_range_valid).cast(), is_range_valid as *const c_void);
    }
}

/// Makes memory say what the device says since `erase_parent`: `blob` has no
/// parent. What it read through is given back, for the caller to free.
///
/// The end of `bs_inflate_blob_done` does the same, for the last clone in a chain.
///
/// # Safety
///
/// `blob` is a thin-provisioned clone of a snapshot, the one that `listed` is of, and locked. Every thread has seen what
/// [`stop_copies`] has stored, and no copy through the device that began before is under way.
pub unsafe fn take_parent(blob: &OpenBlob, listed: Listed, zeroes: ZeroesDev) -> FormerBackingDev {
    let raw = blob.as_ptr();
    // SAFETY: the blob is in memory and this is the thread that owns its metadata (invariants of
    // `OpenBlob`). Other threads load both fields.
    unsafe {
        listed.remove();
        AtomicU64::from_ptr(&raw mut (*raw).parent_id)
            .store(sys::SPDK_BLOBID_INVALID, Ordering::Release);
        let back_bs_dev = AtomicPtr::from_ptr(&raw mut (*raw).back_bs_dev);
        let dev = back_bs_dev.swap(zeroes.0.as_ptr(), Ordering::AcqRel);
        let dev = dev.cast::<sys::spdk_blob_bs_dev>();
        FormerBackingDev { dev, parent: OpenBlob::from_raw(NonNull::new_unchecked((*dev).blob)) }
    }
}

/// A device that read through a snapshot, for a blob that no longer does.
///
/// # Invariants
///
/// `dev` is from `bs_create_blob_bs_dev` (`lib/blob/blob_bs_dev.c`), and belongs to the value: no blob
/// has it any more. Its reference on the former parent is `parent`.
#[must_use = "it holds a reference on the former parent"]
#[derive(Debug)]
pub struct FormerBackingDev {
    dev: *mut sys::spdk_blob_bs_dev,
    parent: OpenBlob,
}

impl FormerBackingDev {
    /// Frees it. What is left is its reference on the former parent, for the caller to close: the
    /// device's own destructor (`blob_bs_dev_destroy`) loses it when no request set is free.
    ///
    /// # Safety
    ///
    /// Every thread has seen that it is no blob's any more.
    pub unsafe fn into_parent(self) -> OpenBlob {
        // SAFETY: the device is the value's, from calloc (invariant), and nobody is about to use it, as
        // the caller says. A read that is in flight does not come back to it
        // (`blob_bs_dev_read_cpl`).
        unsafe { libc::free(self.dev.cast()) };
        self.parent
    }
}
