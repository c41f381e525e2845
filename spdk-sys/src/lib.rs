//! Raw bindings to SPDK, made by bindgen from the tree that `SPDK_ROOT_DIR` names: the public
//! headers, and the private `lib/blob/blobstore.h` and `module/bdev/lvol/vbdev_lvol.h`, whose
//! layouts change between releases without a change of soname.
//!
//! The crate links nothing: an extension that is loaded into `spdk_tgt` finds SPDK there.

#![allow(non_camel_case_types, non_snake_case, non_upper_case_globals, missing_docs)]
#![allow(clippy::all, unnecessary_transmutes, unsafe_op_in_unsafe_fn)]

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));

/// `spdk/blob.h`; `wrapper.h` checks the value.
pub const SPDK_BLOBID_INVALID: spdk_blob_id = u64::MAX;
/// `spdk/blob.h`; `wrapper.h` checks the value.
pub const SPDK_BLOBID_EXTERNAL_SNAPSHOT: spdk_blob_id = u64::MAX - 1;
