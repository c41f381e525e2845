//! Whether the data of deleted lvols is gone. SPDK doesn't zero the new clusters of a thin lvol without a
//! parent: it unmaps the clusters of an lvol that is deleted, if the base bdev can. `docs/operations.md` describes
//! the consequences.

use std::cell::RefCell;
use std::collections::HashSet;
use std::ffi::CStr;

use spdk_sys as sys;

use crate::chain::blob::OpenBlob;

thread_local! {
    /// The base bdevs of which the log says that they have no unmap.
    static SAID: RefCell<HashSet<String>> = RefCell::default();
}

/// The base bdev of the blob's store, if it has no unmap.
pub fn base_without_unmap(blob: &OpenBlob) -> Option<String> {
    // SAFETY: the blob, and so its blobstore with the device, is in memory (`OpenBlob`); the bdev of a
    // loaded blobstore is open, and has a name.
    unsafe {
        let dev = (*(*blob.as_ptr()).bs).dev;
        let bdev = (*dev).get_base_bdev?(dev);
        if bdev.is_null() || sys::spdk_bdev_io_type_supported(bdev, sys::SPDK_BDEV_IO_TYPE_UNMAP) {
            return None;
        }
        Some(CStr::from_ptr(sys::spdk_bdev_get_name(bdev)).to_string_lossy().into_owned())
    }
}

/// Logs, once for each base bdev, that `name`, which is being detached, may expose
/// deleted data.
pub fn warn(blob: &OpenBlob, name: &str) {
    let Some(bdev) = base_without_unmap(blob) else { return };
    if SAID.with_borrow_mut(|said| said.insert(bdev.clone())) {
        tracing::warn!(
            "the bdev {bdev} has no unmap, and SPDK doesn't zero new clusters: where {name} and what \
             reads through it get clusters from now on, they may show what deleted lvols had there"
        );
    }
}
