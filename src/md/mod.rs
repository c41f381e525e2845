//! What is on the device: one metadata page, and how it is flushed out of the device's cache.

pub mod base_bdev;
pub mod file_sync;
pub mod flush;
pub mod metadata;
pub mod page;
pub mod unmap;
