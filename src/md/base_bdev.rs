//! The bdev below a blobstore, and the blobstore's own descriptor of it: the only one that may write, and so the
//! only one that may flush.
//!
//! No header has the struct that holds it. Its layout can't be proved when the target starts: that takes a bdev,
//! and one that is registered for the proof would be examined by every bdev module, and announced to clients. So
//! it is proved before the first detach writes anything: what is at the descriptor's place must be among the
//! descriptors that the bdev itself lists.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::ffi::CStr;
use std::os::raw::c_int;
use std::ptr;

use spdk_sys as sys;

use crate::base::tailq::elements;
use crate::chain::lvol::bdev_event;

/// `struct blob_bdev`, module/blob/bdev/blob_bdev.c, the same from 24.01 to 26.05.
#[repr(C)]
struct BlobBdev {
    dev: sys::spdk_bs_dev,
    bdev: *mut sys::spdk_bdev,
    desc: *mut sys::spdk_bdev_desc,
}

/// The bdev below a blobstore.
///
/// # Invariants
///
/// `desc` is the blobstore's descriptor of `bdev`; both stay while the value is used.
#[derive(Clone, Copy)]
pub struct BaseBdev {
    /// The bdev.
    pub bdev: *mut sys::spdk_bdev,
    /// The descriptor.
    pub desc: *mut sys::spdk_bdev_desc,
}

thread_local! {
    /// Whether `BlobBdev` was found right.
    static IS_PROVED: Cell<bool> = const { Cell::new(false) };
    /// What the log says of which bdev.
    static SAID: RefCell<HashSet<(&'static str, String)>> = RefCell::default();
}

impl BaseBdev {
    /// `None` if the device is on no bdev; -ENOTSUP if `BlobBdev` doesn't fit the running SPDK; or why that
    /// can't be told just now.
    ///
    /// # Safety
    ///
    /// `dev` is a loaded blobstore's device, and stays so while the result is used. The current thread is the
    /// blobstore's metadata thread.
    pub unsafe fn below(dev: *mut sys::spdk_bs_dev) -> Result<Option<BaseBdev>, c_int> {
        // SAFETY: the device is there, as the caller says.
        let Some(get_base_bdev) = (unsafe { (*dev).get_base_bdev }) else { return Ok(None) };
        // SAFETY: as above. The only implementation of the function in SPDK is blob_bdev.c's, whose struct is
        // as long as this one, and longer.
        let found = unsafe {
            let blob_bdev = dev.cast::<BlobBdev>();
            let (bdev, desc) = ((*blob_bdev).bdev, (*blob_bdev).desc);
            (get_base_bdev(dev) == bdev && !bdev.is_null()).then_some(BaseBdev { bdev, desc })
        };
        let found = found.ok_or(-libc::ENOTSUP)?;
        if !IS_PROVED.get() {
            // SAFETY: the bdev of a loaded blobstore is open.
            let is_listed = unsafe { is_listed(found.bdev, found.desc)? };
            IS_PROVED.set(is_listed);
        }
        if IS_PROVED.get() { Ok(Some(found)) } else { Err(-libc::ENOTSUP) }
    }

    /// Its name.
    pub fn name(&self) -> String {
        // SAFETY: the bdev is open (invariant).
        unsafe { name(self.bdev) }
    }
}

/// Whether the bdev lists such a descriptor, which may be any address. The error is that of opening
/// one more, or -EBUSY if somebody else opened one meanwhile.
///
/// How the list is linked is private as well, but one that has just been opened is the last (`bdev_open`,
/// lib/bdev/bdev.c), and the end of the list is the address of its link.
///
/// # Safety
///
/// The bdev is open, and the current thread is an SPDK thread.
unsafe fn is_listed(
    bdev: *mut sys::spdk_bdev,
    desc: *mut sys::spdk_bdev_desc,
) -> Result<bool, c_int> {
    /// No descriptor is as long.
    const LEN: usize = 4096;
    let mut last = ptr::null_mut();
    // SAFETY: the bdev is open, and has a name. The list is a `TAILQ` in a public header, and changes under the
    // lock. What is looked at for a link is in the last descriptor; it is one if it points to what points to
    // that descriptor.
    unsafe {
        let name = sys::spdk_bdev_get_name(bdev);
        let rc = sys::spdk_bdev_open_ext(name, false, Some(bdev_event), ptr::null_mut(), &mut last);
        if rc != 0 {
            return Err(rc);
        }
        let internal = &raw mut (*bdev).internal;
        sys::spdk_spin_lock(&raw mut (*internal).spinlock);
        let list = &raw const (*internal).open_descs;
        let end = (*list).tqh_last;
        let link = (end as usize).checked_sub(last as usize).filter(|&at| at < LEN);
        let link = link.filter(|_| **end.add(1).cast::<*mut *mut sys::spdk_bdev_desc>() == last);
        let is_listed = link.map(|link| {
            let next = |desc: *mut sys::spdk_bdev_desc| *desc.byte_add(link).cast();
            elements((*list).tqh_first, next).any(|listed| listed == desc)
        });
        sys::spdk_spin_unlock(&raw mut (*internal).spinlock);
        sys::spdk_bdev_close(last);
        is_listed.ok_or(-libc::EBUSY)
    }
}

/// The bdev's name.
///
/// # Safety
///
/// The bdev is open.
pub unsafe fn name(bdev: *mut sys::spdk_bdev) -> String {
    // SAFETY: a bdev has a name.
    unsafe { CStr::from_ptr(sys::spdk_bdev_get_name(bdev)) }.to_string_lossy().into_owned()
}

/// Whether this is the first that the log says `about` the bdev of this name.
pub fn is_news(about: &'static str, bdev: &str) -> bool {
    SAID.with_borrow_mut(|said| said.insert((about, bdev.to_owned())))
}
