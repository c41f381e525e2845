//! Blobs that are held open.

use std::ffi::{CStr, CString};
use std::os::raw::{c_int, c_void};
use std::ptr::{self, NonNull};

use spdk_sys as sys;

use crate::error::{Error, Result, check};
use crate::task::{self, Callback, next_round, status, status_callback};

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
#[derive(Debug, Clone, Copy)]
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
            return Err(Error::new(
                libc::EINVAL,
                "the thread that serves RPCs is not the blobstore's metadata thread",
            ));
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
            Some(raw) if rc == 0 => Ok(OpenBlob(raw)),
            _ => Err(Error::new(rc, format!("could not open blob {id:#x}"))),
        }
    }
}

/// `spdk_blob_op_with_handle_complete`
unsafe extern "C" fn opened_callback(ctx: *mut c_void, blob: *mut sys::spdk_blob, rc: c_int) {
    // SAFETY: SPDK gives the context of `Blobstore::open` back, once.
    unsafe { Callback::complete(ctx, (blob, rc)) }
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

    /// Whether it can't be written to. Snapshots can't.
    pub fn is_read_only(&self) -> bool {
        // SAFETY: the blob is in memory, and this thread owns its metadata (invariants).
        unsafe { (*self.as_ptr()).data_ro }
    }

    /// What to call it in a message: its lvol's name if it has one.
    pub fn name(&self) -> String {
        match self.lvol_xattr(c"name") {
            Some(name) => name.to_string_lossy().into_owned(),
            None => format!("blob {:#x}", self.id()),
        }
    }

    /// The UUID of its lvol, if it has one.
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

    /// Keeps SPDK's long operations (snapshot, clone, inflate, decouple, resize, shallow copy,
    /// set parent, delete) off the blob until the lock is dropped. `None` if one of them runs.
    pub fn lock(&self) -> Option<Lock> {
        // SAFETY: the blob is in memory, and this thread owns the flag (invariants).
        unsafe {
            if (*self.as_ptr()).locked_operation_in_progress {
                return None;
            }
            (*self.as_ptr()).locked_operation_in_progress = true;
        }
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
        while !self.is_idle() {
            next_round().await;
        }
    }

    /// Takes over a reference on an open blob.
    ///
    /// # Safety
    ///
    /// The reference belongs to the caller, and the current SPDK thread is the metadata thread.
    pub(crate) unsafe fn from_raw(blob: NonNull<sys::spdk_blob>) -> OpenBlob {
        OpenBlob(blob)
    }

    /// As [`OpenBlob::close`], for those who can't do anything about a failure.
    pub async fn close_or_say(self) {
        if let Err(error) = self.close().await {
            tracing::error!("{error}");
        }
    }

    /// Closes it, and waits until its reference is gone.
    pub async fn close(self) -> Result<()> {
        let id = self.id();
        loop {
            // A close while the metadata is being written queues one more write.
            self.wait_until_idle().await;
            let raw = self.as_ptr();
            // SAFETY: the reference is the value's, and goes but if there is no memory.
            let rc = status(|ctx| unsafe { sys::spdk_blob_close(raw, Some(status_callback), ctx) })
                .await;
            // No request set is free: the blob is still open.
            if rc == -libc::ENOMEM {
                next_round().await;
                continue;
            }
            std::mem::forget(self);
            return check(rc, || format!("could not close blob {id:#x}"));
        }
    }
}

impl Drop for OpenBlob {
    fn drop(&mut self) {
        let blob = OpenBlob(self.0);
        // SAFETY: this is the blobstore's metadata thread (invariant), where closing has its callbacks.
        unsafe { task::spawn(blob.close_or_say()) };
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
