//! Detaches an SPDK logical volume from its parent snapshot by rewriting only metadata.
//!
//! Built as a library to be loaded into, or linked into, an SPDK target, the crate adds the JSON-RPC method
//! `bdev_lvol_detach_parent`. A Rust program that is linked with SPDK can call [`detach_parent`]; for C and C++
//! the same is declared in `include/spdk_lvol_detach.h`.
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
//! `examples/own_app.rs` is a complete program.
//!
//! # Threads
//!
//! All operations run on one SPDK thread: the one on which SPDK's subsystems are started, the app thread. It is
//! the metadata thread of every lvstore that the bdev layer has loaded. On any other thread they are refused.
//!
//! # The guard
//!
//! The crate is linked into the program as an SPDK subsystem, `lvol_detach`. When the subsystems start, it verifies
//! on an lvstore in memory that the crate was built for the running SPDK. Until it has, and permanently if that
//! fails, every operation is refused with `-ENOTSUP`. A program that starts no subsystems has no bdevs either.
//!
//! # How it works
//!
//! The design is in `docs/design.md`, with a picture of it. A call passes through the source files like this:
//! `rpc`, `api` and `c_api` receive it, and `detach` is the operation from top to bottom; `turns` limits how many
//! run at a time.
//! `check` determines what a detach would do, and `answer` writes the result.
//! `chain` knows which blob reads through which, `md` what is on the device, `io` the I/O in flight, and `start`
//! what happens once, when the target starts; `base` is the foundation for all of these.

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

/// SPDK's lvol. A program that has its own bindings casts its pointers to this type.
#[doc(no_inline)]
pub use spdk_sys::spdk_lvol;

pub use api::{check_detach_parent, check_detach_parent_of, detach_parent, detach_parent_of};
pub use base::error::Error;
pub use base::task::spawn;

/// Internals that the project's own tests need. Not part of the API: they change without notice.
#[doc(hidden)]
pub mod internals {
    pub use crate::base::{batch, error, log, steps, task};
    pub use crate::chain::blob;
    pub use crate::detach::{Detached, detach};
    pub use crate::io::backing;
    pub use crate::rpc::{decode_check, decode_name};
    pub use crate::start::{guard, memory_dev};
}
