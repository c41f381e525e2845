//! `bdev_lvol_detach_parent` for an unmodified SPDK target: parts a logical volume from its parent
//! snapshot by rewriting metadata alone.
//!
//! The way of a call, one module each: [`rpc`] takes the request, [`detach`] is the operation from
//! top to bottom. [`lvol`] is the bdev, [`family`] all that reads through it and what that is checked
//! for, [`lineage`] who reads through whom, [`blob`] an open blob. [`metadata`] is what is on the device,
//! in one [`page`]; [`flush`] gets it out of the device's cache. [`backing`] is the device that a blob
//! reads through, [`grace`] waits for the I/O that does. [`steps`] is how long it takes, [`turns`] how
//! many go at a time.
//!
//! Everything runs on the SPDK thread that serves RPCs, which is the metadata thread of every
//! lvstore; [`task`] turns SPDK's callbacks there into futures. [`subsystem`] starts with the
//! target, and [`guard`] proves that the SPDK that runs is the one that this is built for.

pub mod backing;
pub mod blob;
pub mod channel;
pub mod detach;
pub mod error;
pub mod family;
pub mod file_sync;
pub mod flush;
pub mod grace;
pub mod guard;
pub mod lineage;
pub mod log;
pub mod lvol;
pub mod memory_dev;
pub mod metadata;
pub mod page;
pub mod rpc;
pub mod scratch;
pub mod steps;
pub mod subsystem;
pub mod task;
pub mod turns;
pub mod version;
