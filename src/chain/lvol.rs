//! Logical volumes: the bdevs through which blobs get their I/O.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::os::raw::{c_char, c_int, c_void};
use std::ptr::{self, NonNull};

use spdk_sys as sys;

use crate::base::error::{Error, Result, check};
use crate::base::task::Callback;
use crate::chain::blob::{BlobId, Blobstore, OpenBlob};

/// The bdev module of lvols.
const MODULE: &CStr = c"lvol";

/// An lvol whose bdev is held open, for reading, so that it can't be unregistered.
///
/// # Invariants
///
/// - `desc` is an open descriptor of `bdev`, and belongs to the value.
/// - `bdev` belongs to SPDK's module `lvol`, so that its context is its `struct spdk_lvol`, `lvol`;
///   both stay while `desc` is open: an lvol is closed only by its bdev's destructor
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
        registered(name)?;
        Lvol::open(name)
    }

    /// As [`Lvol::find`], but a clone of an external snapshot is refused without opening its bdev.
    ///
    /// Up to SPDK 25.05 opening looks at the external snapshot's device (`bdev_desc_alloc`, lib/bdev/bdev.c), of
    /// which a `bdev_lvol_set_parent_bdev` that has failed half-way leaves the address although it has been freed
    /// (`lvol_set_external_parent_cb`, lib/lvol/lvol.c).
    pub fn find_internal(name: &CStr) -> Result<Lvol> {
        let lvol = registered(name)?.as_ptr();
        // SAFETY: the bdev, and so the lvol with its store, is there until this thread, where bdevs are
        // unregistered, goes on to something else. The blob of an lvol that has a bdev is open.
        unsafe {
            let blob = (*lvol).blob;
            if !blob.is_null()
                && (*blob).parent_id == sys::SPDK_BLOBID_EXTERNAL_SNAPSHOT
                && !(*blob).locked_operation_in_progress
            {
                let (store, name) =
                    (text(&raw const (*(*lvol).lvol_store).name), text(&raw const (*lvol).name));
                return Err(external_parent(&format!("{store}/{name}")));
            }
        }
        Lvol::open(name)
    }

    /// The name of this lvol's bdev, by which it can be found as long as it is there: its UUID, or what an
    /// lvol of a very old lvstore has instead.
    ///
    /// # Safety
    ///
    /// `lvol` is in memory, an lvol of a loaded lvstore.
    pub unsafe fn bdev_name(lvol: NonNull<sys::spdk_lvol>) -> Result<CString> {
        // SAFETY: what the caller says. `unique_id` is set when the lvol comes, and ends in NUL.
        let name = unsafe { CStr::from_ptr((&raw const (*lvol.as_ptr()).unique_id).cast()) };
        if registered(name)? == lvol {
            Ok(name.to_owned())
        } else {
            let what = format!("the bdev {} is not that of this lvol", name.to_string_lossy());
            Err(Error::new(libc::ENODEV, what))
        }
    }

    /// Opens the lvol with this UUID or alias.
    fn open(name: &CStr) -> Result<Lvol> {
        let mut desc = ptr::null_mut();
        // SAFETY: the name and the place for the descriptor are valid during the call.
        let rc = unsafe {
            let context = ptr::null_mut();
            sys::spdk_bdev_open_ext(name.as_ptr(), false, Some(bdev_event), context, &mut desc)
        };
        check(rc, || format!("could not open the bdev {}", name.to_string_lossy()))?;
        let desc = NonNull::new(desc).ok_or_else(|| no_lvol(name))?;
        // SAFETY: the descriptor is open, and so the bdev is registered.
        let (bdev, lvol) = unsafe {
            let bdev = sys::spdk_bdev_desc_get_bdev(desc.as_ptr());
            (bdev, lvol_of(bdev))
        };
        match (NonNull::new(bdev), lvol) {
            (Some(bdev), Some(lvol)) => Ok(Lvol { desc, bdev, lvol }),
            _ => {
                // SAFETY: the descriptor was opened above, on this thread.
                unsafe { sys::spdk_bdev_close(desc.as_ptr()) };
                Err(no_lvol(name))
            }
        }
    }

    /// The lvol of another blob in the same store, if it has a bdev: nobody does I/O on it otherwise.
    ///
    /// Its bdev is named by its UUID, and `lvs/lvol` is an alias of it (`_create_lvol_disk`,
    /// `module/bdev/lvol/vbdev_lvol.c`). An lvol of a very old lvstore has no UUID in its metadata.
    pub fn of_relative(&self, blob: &OpenBlob) -> Option<Lvol> {
        let alias = || CString::new(format!("{}/{}", self.store_name(), blob.name())).ok();
        let name = blob.uuid().or_else(alias)?;
        // To look first, as `find` does, would cost as much again, for each of a thousand clones. A name that
        // no bdev has is a NOTICE of SPDK's, in a state that is refused in any case.
        Lvol::open(&name).ok().filter(|lvol| lvol.has(blob))
    }

    /// Its bdev.
    pub(crate) fn bdev(&self) -> *mut sys::spdk_bdev {
        self.bdev.as_ptr()
    }

    /// Whether the blob is its, and open for it.
    fn has(&self, blob: &OpenBlob) -> bool {
        // SAFETY: the lvol is in memory (invariant).
        unsafe { (*self.lvol.as_ptr()).blob == blob.as_ptr() }
    }

    /// The name of its lvstore.
    pub fn store_name(&self) -> String {
        // SAFETY: the lvol's store is in memory (invariant), with a name that ends in NUL.
        unsafe { text(&raw const (*(*self.lvol.as_ptr()).lvol_store).name) }
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
    /// The result, and what is opened through it, is used only while an lvol of it is open.
    pub unsafe fn blobstore(&self) -> Result<Blobstore> {
        // SAFETY: a blobstore stays loaded while one of its lvols is open (`_vbdev_lvs_remove`
        // unloads it when the last is closed), and the caller uses it only so long.
        unsafe { Blobstore::new((*(*self.lvol.as_ptr()).lvol_store).blobstore) }
    }

    /// What to call the lvol of this blob, if the same store has one in any of its lists, or is about
    /// to: while one is being created (as a snapshot or a clone, too) its blob may be there already.
    pub fn in_store(&self, id: BlobId) -> Option<String> {
        // SAFETY: the lvol's store is in memory (invariant), with lists of its lvols that change on
        // this thread, and whose names end in NUL.
        unsafe {
            let store = (*self.lvol.as_ptr()).lvol_store;
            let lists = [(*store).lvols.tqh_first, (*store).retry_open_lvols.tqh_first];
            let mut lvols = lists.into_iter().flat_map(|first| {
                let next =
                    |lvol: &NonNull<sys::spdk_lvol>| NonNull::new((*lvol.as_ptr()).link.tqe_next);
                std::iter::successors(NonNull::new(first), next)
            });
            match lvols.find(|lvol| (*lvol.as_ptr()).blob_id == id) {
                Some(lvol) => {
                    let name = text(&raw const (*lvol.as_ptr()).name);
                    Some(format!("{}/{name}", self.store_name()))
                }
                None if (*store).pending_lvols.tqh_first.is_null() => None,
                None => Some(format!("the lvol of blob {id:#x}")),
            }
        }
    }

    /// The I/Os to the lvol that are in flight, by the addresses of their `struct spdk_bdev_io`. `None`
    /// if they could not be looked at for want of memory. It starts at once, so that many can go at
    /// the same time.
    pub fn io_in_flight(&self) -> impl Future<Output = Option<HashSet<*mut c_void>>> + use<> {
        struct Search {
            found: HashSet<*mut c_void>,
            callback: Callback<Option<HashSet<*mut c_void>>>,
        }
        unsafe extern "C" fn found(search: *mut c_void, io: *mut sys::spdk_bdev_io) -> c_int {
            // SAFETY: it is the box from below, and SPDK visits one channel after the other.
            unsafe { (*search.cast::<Search>()).found.insert(io.cast()) };
            0
        }
        unsafe extern "C" fn visited(search: *mut c_void, rc: c_int) {
            // SAFETY: it is the box from below, and comes back once.
            let Search { found, callback } = *unsafe { Box::from_raw(search.cast::<Search>()) };
            // SAFETY: as above.
            unsafe { Callback::complete(callback.into_ctx(), (rc == 0).then_some(found)) };
        }
        let (callback, done) = Callback::new();
        let search = Box::into_raw(Box::new(Search { found: HashSet::new(), callback })).cast();
        // SAFETY: the bdev is registered (invariant). It calls back also if it fails.
        unsafe {
            let bdev = self.bdev.as_ptr();
            sys::spdk_bdev_for_each_bdev_io(bdev, search, Some(found), Some(visited));
        }
        async move { done.await.flatten() }
    }
}

/// The lvol that has the bdev of this name.
fn registered(name: &CStr) -> Result<NonNull<sys::spdk_lvol>> {
    // SAFETY: the name is valid during the call.
    let bdev = unsafe { sys::spdk_bdev_get_by_name(name.as_ptr()) };
    if bdev.is_null() {
        let what = format!("there is no bdev {}", name.to_string_lossy());
        return Err(Error::new(libc::ENODEV, what));
    }
    // SAFETY: the bdev is registered.
    unsafe { lvol_of(bdev) }.ok_or_else(|| no_lvol(name))
}

fn no_lvol(name: &CStr) -> Error {
    Error::new(libc::ENODEV, format!("the bdev {} is not an lvol", name.to_string_lossy()))
}

/// # Safety
///
/// The bdev is registered.
unsafe fn lvol_of(bdev: *mut sys::spdk_bdev) -> Option<NonNull<sys::spdk_lvol>> {
    // SAFETY: a bdev that is registered has a module with a name. The module `lvol` keeps its
    // `struct spdk_lvol` as the context.
    unsafe {
        let is_lvol = CStr::from_ptr(sys::spdk_bdev_get_module_name(bdev)) == MODULE;
        if is_lvol { NonNull::new((*bdev).ctxt.cast()) } else { None }
    }
}

/// The refusal of an lvol that reads through an external snapshot.
pub fn external_parent(name: &str) -> Error {
    Error::new(libc::EINVAL, format!("the parent of {name} is an external snapshot"))
}

impl Drop for Lvol {
    fn drop(&mut self) {
        // SAFETY: the descriptor is open, by this thread (invariants).
        unsafe { sys::spdk_bdev_close(self.desc.as_ptr()) };
    }
}

/// The bdev is about to be removed: that waits until the descriptor is closed.
pub(crate) unsafe extern "C" fn bdev_event(
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
