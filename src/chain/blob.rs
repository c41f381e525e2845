//! Blobs that are held open.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::os::raw::{c_int, c_void};
use std::ptr::{self, NonNull};

use spdk_sys as sys;

use crate::base::error::{Error, Result, check};
use crate::base::task::{self, Callback, Rests, at_once, status, status_callback};

/// A blob's id.
pub type BlobId = sys::spdk_blob_id;

/// What a blob reads through where it owns no cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parent {
    /// Nothing: it reads zeroes.
    None,
    /// A snapshot in the same blobstore.
    Snapshot(BlobId),
    /// A bdev outside the blobstore (esnap).
    External,
}

/// A loaded blobstore.
///
/// # Invariants
///
/// - `0` is loaded and stays so while the value is used.
/// - The current SPDK thread is its metadata thread. The value is not `Send`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blobstore(NonNull<sys::spdk_blob_store>);

impl Blobstore {
    /// # Safety
    ///
    /// `bs` is loaded and stays so while the value, and what is opened through it, is used; and
    /// the value is used on the current SPDK thread only.
    pub unsafe fn new(bs: *mut sys::spdk_blob_store) -> Result<Blobstore> {
        let Some(bs) = NonNull::new(bs) else {
            return Err(Error::new(libc::EINVAL, "no blobstore"));
        };
        // SAFETY: the blobstore is loaded, by the caller's word; its thread never changes.
        if unsafe { (*bs.as_ptr()).md_thread != sys::spdk_get_thread() } {
            return Err(Error::new(libc::EPERM, "this is not the metadata thread of the lvstore"));
        }
        Ok(Blobstore(bs))
    }

    /// For the modules that know the blobstore's fields.
    pub(crate) fn as_ptr(self) -> *mut sys::spdk_blob_store {
        self.0.as_ptr()
    }

    /// Whether somebody has the blob open.
    pub fn has_open(self, id: BlobId) -> bool {
        // SAFETY: the blobstore is loaded and this is its thread (the type's invariants). A blob's id
        // without its upper half is its bit there (`blob_lookup`).
        unsafe { sys::spdk_bit_array_get((*self.as_ptr()).open_blobids, id as u32) }
    }

    /// Opens a blob. One that is open already is not read again, and the future is done at once.
    pub async fn open(self, id: BlobId) -> Result<OpenBlob> {
        let (callback, opened) = Callback::<(*mut sys::spdk_blob, c_int)>::new();
        // SAFETY: the blobstore is loaded and this is its thread (the type's invariants).
        unsafe {
            sys::spdk_bs_open_blob(self.as_ptr(), id, Some(opened_callback), callback.into_ctx());
        }
        let (raw, rc) = opened.await.unwrap_or((ptr::null_mut(), -libc::ECANCELED));
        match NonNull::new(raw) {
            // SAFETY: SPDK has given the reference to us, on this thread.
            Some(raw) if rc == 0 => Ok(unsafe { OpenBlob::from_raw(raw) }),
            _ => Err(Error::new(rc, format!("could not open blob {id:#x}"))),
        }
    }

    /// A blob that somebody has open. Nothing is read, and nothing is waited for: `spdk_bs_open_blob`
    /// of a blob that is in its tree of open blobs calls back before it returns.
    pub fn get_open(self, id: BlobId) -> Option<OpenBlob> {
        self.has_open(id).then(|| at_once(self.open(id)))??.ok()
    }
}

/// `spdk_blob_op_with_handle_complete`
unsafe extern "C" fn opened_callback(ctx: *mut c_void, blob: *mut sys::spdk_blob, rc: c_int) {
    // SAFETY: SPDK gives the context of `Blobstore::open` back, once.
    unsafe { Callback::complete(ctx, (blob, rc)) }
}

thread_local! {
    /// How many `OpenBlob`s there are of each blob: what of its `open_ref` is ours.
    static HELD: RefCell<HashMap<NonNull<sys::spdk_blob>, u32>> = RefCell::default();
}

/// A blob that is held open.
///
/// # Invariants
///
/// - `0` is open, and one of its references (`open_ref`) belongs to the value: it stays in memory.
/// - The current SPDK thread is the metadata thread of its blobstore (see [`Blobstore`]): nobody
///   else changes its metadata before the next await.
#[derive(Debug)]
pub struct OpenBlob(NonNull<sys::spdk_blob>);

impl OpenBlob {
    /// Takes over a reference on an open blob.
    ///
    /// # Safety
    ///
    /// The reference belongs to the caller, and the current SPDK thread is the metadata thread.
    pub(crate) unsafe fn from_raw(blob: NonNull<sys::spdk_blob>) -> OpenBlob {
        HELD.with_borrow_mut(|held| *held.entry(blob).or_default() += 1);
        OpenBlob(blob)
    }

    /// One more reference.
    pub fn share(&self) -> OpenBlob {
        // SAFETY: the blob is open, and this thread owns the count (invariants). `spdk_bs_open_blob` does
        // no more for an open blob.
        unsafe {
            (*self.as_ptr()).open_ref += 1;
            OpenBlob::from_raw(self.0)
        }
    }

    /// For those who know the blob's fields. Never make a reference to the whole struct:
    /// I/O on other threads reads it too.
    pub fn as_ptr(&self) -> *mut sys::spdk_blob {
        self.0.as_ptr()
    }

    /// The blob's id.
    pub fn id(&self) -> BlobId {
        // SAFETY: the blob is in memory (invariant).
        unsafe { (*self.as_ptr()).id }
    }

    /// The blob's parent.
    pub fn parent(&self) -> Parent {
        // SAFETY: the blob is in memory, and this thread owns its metadata (invariants).
        match unsafe { (*self.as_ptr()).parent_id } {
            sys::SPDK_BLOBID_INVALID => Parent::None,
            sys::SPDK_BLOBID_EXTERNAL_SNAPSHOT => Parent::External,
            id => Parent::Snapshot(id),
        }
    }

    /// Its size.
    pub fn num_clusters(&self) -> u64 {
        // SAFETY: the blob is in memory, and this thread owns its metadata (invariants).
        unsafe { (*self.as_ptr()).active.num_clusters }
    }

    /// Where its clusters are, from `first` on, so many or as many as there are: the LBA of each, or 0
    /// if it doesn't own it. It must not be held across an await.
    pub fn clusters(&self, first: u64, count: u64) -> &[u64] {
        let count = self.num_clusters().saturating_sub(first).min(count) as usize;
        if count == 0 {
            return &[];
        }
        // SAFETY: the blob is in memory, and this thread owns its metadata (invariants): others only read
        // the map, which has an entry for each cluster, and this one doesn't change it before the next
        // await.
        unsafe {
            let clusters = (*self.as_ptr()).active.clusters;
            std::slice::from_raw_parts(clusters.add(first as usize), count)
        }
    }

    /// Whether it can't be written to. Snapshots can't.
    pub fn is_read_only(&self) -> bool {
        // SAFETY: the blob is in memory, and this thread owns its metadata (invariants).
        unsafe { (*self.as_ptr()).data_ro }
    }

    /// How many references others than this crate have on it.
    pub fn foreign_references(&self) -> u32 {
        let ours = HELD.with_borrow(|held| held.get(&self.0).copied().unwrap_or_default());
        // SAFETY: the blob is in memory, and this thread owns the count (invariants).
        unsafe { (*self.as_ptr()).open_ref }.saturating_sub(ours)
    }

    /// What to call it in a message: its lvol's name if it has one.
    pub fn name(&self) -> String {
        match self.lvol_xattr(c"name") {
            Some(name) => name.to_string_lossy().into_owned(),
            None => format!("blob {:#x}", self.id()),
        }
    }

    /// The UUID of its lvol. An lvol of a very old lvstore has none.
    pub fn uuid(&self) -> Option<CString> {
        self.lvol_xattr(c"uuid")
    }

    /// One of the texts that the lvol library keeps in the xattrs of its blobs.
    fn lvol_xattr(&self, name: &CStr) -> Option<CString> {
        let mut value = ptr::null();
        let mut len = 0;
        // SAFETY: the blob is open (invariant); the value stays until the xattr changes, which
        // can't happen before it is copied.
        let bytes = unsafe {
            let rc =
                sys::spdk_blob_get_xattr_value(self.as_ptr(), name.as_ptr(), &mut value, &mut len);
            if rc != 0 {
                return None;
            }
            std::slice::from_raw_parts(value.cast::<u8>(), len)
        };
        CStr::from_bytes_until_nul(bytes).ok().map(CStr::to_owned)
    }

    /// Whether one of SPDK's long operations (snapshot, clone, inflate, decouple, resize, shallow
    /// copy, set parent, delete) runs on it, or a [`Lock`] is held.
    pub fn is_locked(&self) -> bool {
        // SAFETY: the blob is in memory, and this thread owns the flag (invariants).
        unsafe { (*self.as_ptr()).locked_operation_in_progress }
    }

    /// Keeps SPDK's long operations off the blob until the lock is dropped. `None` if one of them
    /// runs.
    pub fn lock(&self) -> Option<Lock> {
        if self.is_locked() {
            return None;
        }
        // SAFETY: as above.
        unsafe { (*self.as_ptr()).locked_operation_in_progress = true };
        Some(Lock(self.0))
    }

    /// Whether nobody writes its metadata.
    pub fn is_idle(&self) -> bool {
        // SAFETY: the blob is in memory, and this thread owns its metadata (invariants).
        unsafe { (*self.as_ptr()).persists_to_complete.tqh_first.is_null() }
    }

    /// Waits until nobody writes its metadata. It stays so until the next await.
    ///
    /// A sync of one's own would wait as well, but it would be one more write, behind the one that
    /// runs; and without a free request set it would fail at once, and not wait at all.
    ///
    /// A blob without an extent table, as no lvol has been for years, is written each time that it gets
    /// a cluster: under such writes from several cores this may wait until they pause.
    pub async fn wait_until_idle(&self) {
        let rests = Rests::start();
        while !self.is_idle() {
            rests.rest().await;
        }
    }

    /// Gives the reference back. If it is the last one, waits until the blob is closed.
    pub async fn close(self) -> Result<()> {
        if self.let_go() {
            let blob = self.0;
            std::mem::forget(self);
            // SAFETY: the last reference was the value's.
            return unsafe { close_last(blob) }.await;
        }
        std::mem::forget(self);
        Ok(())
    }

    /// Gives the reference back unless it is the last one, which only SPDK can: true if it is.
    ///
    /// `spdk_blob_close` does no more where others have references, but for a sync of the blob's
    /// metadata, which whoever has changed it does himself (`blob_close_cpl`).
    fn let_go(&self) -> bool {
        HELD.with_borrow_mut(|held| {
            if let Some(count) = held.get_mut(&self.0) {
                *count -= 1;
                if *count == 0 {
                    held.remove(&self.0);
                }
            }
        });
        // SAFETY: the blob is in memory, and this thread owns the count (invariants).
        unsafe {
            let is_last = (*self.as_ptr()).open_ref == 1;
            if !is_last {
                (*self.as_ptr()).open_ref -= 1;
            }
            is_last
        }
    }
}

impl Drop for OpenBlob {
    fn drop(&mut self) {
        if self.let_go() {
            let blob = self.0;
            // SAFETY: this is the blobstore's metadata thread (invariant), where closing has its
            // callbacks; the last reference was the value's.
            unsafe {
                task::spawn(async move {
                    if let Err(error) = close_last(blob).await {
                        tracing::error!("{error}");
                    }
                });
            }
        }
    }
}

/// # Safety
///
/// The blob is open, and its last reference the caller's, who gives it away. The current SPDK thread
/// is its metadata thread.
async unsafe fn close_last(blob: NonNull<sys::spdk_blob>) -> Result<()> {
    let raw = blob.as_ptr();
    // SAFETY: the blob is open, as the caller says.
    let id = unsafe { (*raw).id };
    let rests = Rests::start();
    loop {
        // SAFETY: the reference is ours, and goes but if there is no memory.
        let rc =
            status(|ctx| unsafe { sys::spdk_blob_close(raw, Some(status_callback), ctx) }).await;
        // No request set is free: the blob is still open.
        if rc != -libc::ENOMEM {
            return check(rc, || format!("could not close blob {id:#x}"));
        }
        rests.rest().await;
    }
}

/// Holds a blob's `locked_operation_in_progress`.
///
/// # Invariants
///
/// The flag is set, by this value; and the blob is in memory, because an [`OpenBlob`] of it
/// outlives the lock.
#[derive(Debug)]
pub struct Lock(NonNull<sys::spdk_blob>);

impl Drop for Lock {
    fn drop(&mut self) {
        // SAFETY: the blob is in memory (invariant).
        unsafe { (*self.0.as_ptr()).locked_operation_in_progress = false };
    }
}
