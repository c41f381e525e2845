//! Logical volumes: the bdevs through which blobs get their I/O.

use std::ffi::CStr;
use std::os::raw::{c_char, c_int, c_void};
use std::ptr::{self, NonNull};

use spdk_sys as sys;

use crate::blob::{BlobId, Blobstore};
use crate::error::{Error, Result, check};
use crate::task::{Callback, status_callback};

/// The bdev module of lvols, which alone may quiesce its bdevs.
const MODULE: &CStr = c"lvol";

/// A lvol whose bdev is held open, for reading, so that it can't be unregistered.
///
/// # Invariants
///
/// - `desc` is an open descriptor of `bdev`, and belongs to the value.
/// - `bdev` belongs to SPDK's module `lvol`, so that its context is its `struct spdk_lvol`, `lvol`;
///   both stay while `desc` is open: a lvol is closed only by its bdev's destructor
///   (`vbdev_lvol_unregister`, `module/bdev/lvol/vbdev_lvol.c`).
/// - The current SPDK thread is the one that opened it.
#[derive(Debug)]
pub struct Lvol {
    desc: NonNull<sys::spdk_bdev_desc>,
    bdev: NonNull<sys::spdk_bdev>,
    lvol: NonNull<sys::spdk_lvol>,
}

impl Lvol {
    /// Opens the lvol with this UUID or alias (`lvs/lvol`), which may be anything.
    pub fn find(name: &CStr) -> Result<Lvol> {
        // `spdk_bdev_open_ext` would log a name that it doesn't know, of any length, as it is.
        // SAFETY: the name is valid during the call.
        if unsafe { sys::spdk_bdev_get_by_name(name.as_ptr()) }.is_null() {
            let shown = name.to_string_lossy();
            return Err(Error::new(libc::ENODEV, format!("there is no bdev {shown}")));
        }
        Lvol::open(name)
    }

    /// Opens the lvol with this UUID or alias.
    pub fn open(name: &CStr) -> Result<Lvol> {
        let shown = || name.to_string_lossy();
        let mut desc = ptr::null_mut();
        // SAFETY: the name and the place for the descriptor are valid during the call.
        let rc = unsafe {
            let context = ptr::null_mut();
            sys::spdk_bdev_open_ext(name.as_ptr(), false, Some(bdev_event), context, &mut desc)
        };
        check(rc, || format!("could not open the bdev {}", shown()))?;
        let no_lvol = || Error::new(libc::ENODEV, format!("the bdev {} is no lvol", shown()));
        let desc = NonNull::new(desc).ok_or_else(no_lvol)?;
        // SAFETY: the descriptor is open, and so the bdev is registered, by a module with a name.
        // The module `lvol` keeps its `struct spdk_lvol` as the context.
        let (bdev, lvol) = unsafe {
            let bdev = sys::spdk_bdev_desc_get_bdev(desc.as_ptr());
            let is_lvol = CStr::from_ptr(sys::spdk_bdev_get_module_name(bdev)) == MODULE;
            (bdev, if is_lvol { (*bdev).ctxt.cast() } else { ptr::null_mut() })
        };
        match (NonNull::new(bdev), NonNull::new(lvol)) {
            (Some(bdev), Some(lvol)) => Ok(Lvol { desc, bdev, lvol }),
            _ => {
                // SAFETY: the descriptor was opened above, on this thread.
                unsafe { sys::spdk_bdev_close(desc.as_ptr()) };
                Err(no_lvol())
            }
        }
    }

    /// The name of its lvstore.
    pub fn store_name(&self) -> String {
        // SAFETY: the lvol's store is in memory (invariant), with a name that ends in NUL.
        unsafe { text(&raw const (*(*self.lvol.as_ptr()).lvol_store).name) }
    }

    /// Its name, `lvs/lvol`.
    pub fn name(&self) -> String {
        // SAFETY: the lvol is in memory (invariant), with a name that ends in NUL.
        let name = unsafe { text(&raw const (*self.lvol.as_ptr()).name) };
        format!("{}/{name}", self.store_name())
    }

    /// The lvol's blob.
    pub fn blob_id(&self) -> BlobId {
        // SAFETY: the lvol is in memory (invariant).
        unsafe { (*self.lvol.as_ptr()).blob_id }
    }

    /// The blobstore that has the lvol's blob.
    ///
    /// # Safety
    ///
    /// The result, and what is opened through it, is used only while the lvol is open.
    pub unsafe fn blobstore(&self) -> Result<Blobstore> {
        // SAFETY: a blobstore stays loaded while one of its lvols is open (`_vbdev_lvs_remove`
        // unloads it when the last is closed), and the caller uses it only so long.
        unsafe { Blobstore::new((*(*self.lvol.as_ptr()).lvol_store).blobstore) }
    }

    /// Whether a lvol of the same store has this blob, open or not, or may be about to: while one is
    /// being created (as a snapshot or a clone, too) its blob may be there already.
    pub fn store_may_have(&self, id: BlobId) -> bool {
        // SAFETY: the lvol's store is in memory (invariant), with lists of its lvols that change on
        // this thread.
        unsafe {
            let store = (*self.lvol.as_ptr()).lvol_store;
            let mut lvol = (*store).lvols.tqh_first;
            while !lvol.is_null() && (*lvol).blob_id != id {
                lvol = (*lvol).link.tqe_next;
            }
            !lvol.is_null() || !(*store).pending_lvols.tqh_first.is_null()
        }
    }

    /// Whether I/O to the lvol is in flight, other than what is held back. It walks through all of
    /// the bdev's channels, and starts at once.
    pub fn has_io(&self) -> impl Future<Output = bool> + use<> {
        unsafe extern "C" fn found(_: *mut c_void, _: *mut sys::spdk_bdev_io) -> c_int {
            1
        }
        let (callback, done) = Callback::<c_int>::new();
        let (bdev, ctx) = (self.bdev.as_ptr(), callback.into_ctx());
        // SAFETY: the bdev is registered (invariant). It calls back also if it fails.
        unsafe { sys::spdk_bdev_for_each_bdev_io(bdev, ctx, Some(found), Some(status_callback)) };
        async move { done.await != Some(0) }
    }

    /// Holds back new I/O to the lvol, and, once the future is done, has waited for what was in
    /// flight. It starts at once, so that many can wait at the same time.
    pub fn quiesce(&self) -> impl Future<Output = Result<Quiesced<'_>>> {
        let (callback, done) = Callback::<c_int>::new();
        let ctx = callback.into_ctx();
        let bdev = self.bdev.as_ptr();
        // SAFETY: the bdev is registered (invariant). If the call fails it doesn't call back, and
        // the context is ours again.
        let num_blocks = unsafe {
            let num_blocks = sys::spdk_bdev_get_num_blocks(bdev);
            let module = sys::spdk_bdev_module_list_find(MODULE.as_ptr());
            let rc = sys::spdk_bdev_quiesce_range(
                bdev,
                module,
                0,
                num_blocks,
                Some(status_callback),
                ctx,
            );
            if rc != 0 {
                Callback::complete(ctx, rc);
            }
            num_blocks
        };
        async move {
            let rc = done.await.unwrap_or(-libc::ECANCELED);
            check(rc, || format!("could not hold back the I/O of {}", self.name()))?;
            Ok(Quiesced { lvol: self, num_blocks })
        }
    }
}

impl Drop for Lvol {
    fn drop(&mut self) {
        // SAFETY: the descriptor is open, by this thread (invariants).
        unsafe { sys::spdk_bdev_close(self.desc.as_ptr()) };
    }
}

/// The bdev is about to be removed: that waits until the descriptor is closed, which is soon.
unsafe extern "C" fn bdev_event(
    _: sys::spdk_bdev_event_type,
    _: *mut sys::spdk_bdev,
    _: *mut c_void,
) {
}

/// # Safety
///
/// `text` has a NUL.
unsafe fn text<const N: usize>(text: *const [c_char; N]) -> String {
    // SAFETY: what the caller says.
    unsafe { CStr::from_ptr(text.cast()) }.to_string_lossy().into_owned()
}

/// A lvol whose I/O is held back.
///
/// # Invariants
///
/// The first `num_blocks` blocks of the bdev are quiesced, which were all that it had. While the lvol
/// is open the bdev may grow, but not shrink (`spdk_bdev_notify_blockcnt_change`).
#[must_use = "its I/O is held back until `resume`"]
#[derive(Debug)]
pub struct Quiesced<'a> {
    lvol: &'a Lvol,
    num_blocks: u64,
}

impl<'a> Quiesced<'a> {
    /// The lvol.
    pub fn lvol(&self) -> &'a Lvol {
        self.lvol
    }

    /// Lets the I/O go on. It starts at once, so that many can go at the same time.
    pub fn resume(self) -> impl Future<Output = ()> + use<'a> {
        let lvol = self.lvol;
        let (callback, done) = Callback::<c_int>::new();
        let ctx = callback.into_ctx();
        let bdev = lvol.bdev.as_ptr();
        // SAFETY: the bdev is registered (invariant of `Lvol`), and the range quiesced (invariant).
        // If the call fails it doesn't call back, and the context is ours again.
        unsafe {
            let module = sys::spdk_bdev_module_list_find(MODULE.as_ptr());
            let length = self.num_blocks;
            let rc =
                sys::spdk_bdev_unquiesce_range(bdev, module, 0, length, Some(status_callback), ctx);
            if rc != 0 {
                Callback::complete(ctx, rc);
            }
        }
        async move {
            let rc = done.await.unwrap_or(-libc::ECANCELED);
            if rc != 0 {
                let (name, errno) = (lvol.name(), errno::Errno(rc.abs()));
                tracing::error!("{name}: its I/O could not be resumed: {errno}");
            }
        }
    }
}
