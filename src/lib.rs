//! `bdev_lvol_detach_parent` for an unmodified SPDK target: parts a logical volume from its parent
//! snapshot by rewriting metadata alone.
//!
//! The way of a call, one module each: [`rpc`] takes the request, [`detach`] is the operation from
//! top to bottom, [`lvol`] is the bdev and its I/O, [`family`] all that reads through it, [`blob`]
//! an open blob, [`metadata`] what is on the device, [`lineage`] what is in memory;
//! [`steps`] is how long it takes.
//!
//! Everything runs on the SPDK thread that serves RPCs, which is the metadata thread of every
//! lvstore; [`task`] turns SPDK's callbacks there into futures. [`subsystem`] starts with the
//! target.

pub mod blob;
pub mod detach;
pub mod error;
pub mod family;
pub mod guard;
pub mod lineage;
pub mod log;
pub mod lvol;
pub mod memory_dev;
pub mod metadata;
pub mod rpc;
pub mod scratch;
pub mod steps;
pub mod subsystem;
pub mod task;
pub mod version;
