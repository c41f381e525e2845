//! Parts an SPDK logical volume from its parent snapshot by rewriting metadata alone.
//!
//! Built as a library to be loaded into, or linked into, an SPDK target, the crate adds the JSON-RPC method
//! `bdev_lvol_detach_parent`. A program of one's own, in Rust, that is linked with SPDK calls [`detach_parent`];
//! one in C or C++ has the same in `include/spdk_lvol_detach.h`.
//!
//! ```no_run
//! # unsafe {
//! // On SPDK's app thread, when the app has started.
//! spdk_lvol_detach::spawn(async {
//!     match spdk_lvol_detach::detach_parent(c"lvs/lvol").await {
//!         Ok(()) => println!("lvs/lvol has no parent any more"),
//!         Err(error) => eprintln!("{error} ({})", error.code()),
//!     }
//! });
//! # }
//! ```
//!
//! `examples/own_app.rs` is a whole program.
//!
//! # Threads
//!
//! All operations run on one SPDK thread: the one on which SPDK's subsystems are started, the app thread. It is
//! the metadata thread of each lvstore that the bdev layer has loaded. On another thread they are refused.
//!
//! # The guard
//!
//! The crate is linked into the program as an SPDK subsystem, `lvol_detach`. When the subsystems start, it proves
//! on an lvstore in memory that the crate was built for the SPDK that runs. Until it has, and for good if it
//! can't, each operation is refused with `-ENOTSUP`. A program that starts no subsystems has no bdevs either.
//!
//! # How it works
//!
//! The design is in `docs/design.md`, and the way of a call is in the list of source files: `rpc`, `api` and
//! `c_api` take it, `detach` is the operation from top to bottom, of which `turns` lets so many go at a time.
//! `check` says what it would do, and `answer` how that is written.
//! `chain` knows who reads through whom, `md` what is on the device, `io` the I/O that goes on meanwhile, `start`
//! what happens once, when the target starts; `base` is what everything stands on.

mod answer;
mod api;
mod base;
mod c_api;
mod chain;
mod check;
mod detach;
mod io;
mod md;
mod rpc;
mod start;
mod turns;

/// SPDK's lvol. A program with bindings of its own casts its pointers to it.
#[doc(no_inline)]
pub use spdk_sys::spdk_lvol;

pub use api::{detach_parent, detach_parent_of};
pub use base::error::Error;
pub use base::task::spawn;

/// What the project's own tests need of the inside. It isn't part of the API: it changes without notice.
#[doc(hidden)]
pub mod internals {
    pub use crate::base::{error, log, steps, task};
    pub use crate::chain::blob;
    pub use crate::detach::{Detached, detach};
    pub use crate::io::backing;
    pub use crate::rpc::{decode_check, decode_name};
    pub use crate::start::{guard, memory_dev};
}
