//! `bdev_lvol_detach_parent` for an unmodified SPDK target: parts a logical volume from its parent
//! snapshot by rewriting metadata alone.
//!
//! The way of a call: [`rpc`] takes the request, [`detach`] is the operation from top to bottom, of which
//! [`turns`] lets so many go at a time. [`check`] says what it would do, and [`answer`] how that is
//! written.
//!
//! - [`chain`]: who reads through whom.
//! - [`md`]: what is on the device.
//! - [`io`]: the I/O that goes on meanwhile.
//! - [`start`]: what happens once, when the target starts.
//! - [`base`]: what everything stands on.
//!
//! Everything runs on the SPDK thread that serves RPCs, which is the metadata thread of every lvstore;
//! [`base::task`] turns SPDK's callbacks there into futures.

pub mod answer;
pub mod base;
pub mod chain;
pub mod check;
pub mod detach;
pub mod io;
pub mod md;
pub mod rpc;
pub mod start;
pub mod turns;
