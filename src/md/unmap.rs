//! Whether the data of deleted lvols is gone. SPDK doesn't zero the new clusters of a thin lvol without a
//! parent: it unmaps the clusters of an lvol that is deleted, if the base bdev can. `docs/operations.md` describes
//! the consequences.

use spdk_sys as sys;

use crate::chain::blob::OpenBlob;
use crate::md::base_bdev;

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
        Some(base_bdev::name(bdev))
    }
}

/// Logs, once for each base bdev, that `name`, which is being detached, may expose
/// deleted data.
pub fn warn(blob: &OpenBlob, name: &str) {
    let Some(bdev) = base_without_unmap(blob) else { return };
    if base_bdev::is_news("unmap", &bdev) {
        tracing::warn!(
            "the bdev {bdev} has no unmap, and SPDK doesn't zero new clusters: where {name} and what \
             reads through it get clusters from now on, they may show what deleted lvols had there"
        );
    }
}
