//! Whether operations may start: the guard has passed, and this is their thread.

use std::sync::OnceLock;

use spdk_sys as sys;

use crate::base::error::{Error, Result};
use crate::io::backing::ZeroesDev;

/// What the guard has found, and where it has run.
#[derive(Debug)]
struct Ready {
    zeroes: ZeroesDev,
    /// The address of SPDK's thread, which is only compared.
    thread: usize,
}

static READY: OnceLock<Ready> = OnceLock::new();

/// The guard has passed, on the current SPDK thread: operations may begin on it from now on.
pub fn set(zeroes: ZeroesDev) {
    READY.get_or_init(|| Ready { zeroes, thread: current_thread() });
}

/// SPDK's zeroes device, if an operation may begin here and now. Before the guard has passed, no function
/// of SPDK's is called: there may be none in this process.
pub fn check() -> Result<ZeroesDev> {
    let Some(ready) = READY.get() else {
        let why =
            "the subsystem lvol_detach has not started, or the extension does not fit this SPDK";
        return Err(Error::new(libc::ENOTSUP, why));
    };
    if current_thread() != ready.thread {
        let why = "this is not the SPDK thread that the subsystem lvol_detach was started on";
        return Err(Error::new(libc::EPERM, why));
    }
    Ok(ready.zeroes)
}

fn current_thread() -> usize {
    // SAFETY: any thread may ask. One that is not SPDK's gets null.
    unsafe { sys::spdk_get_thread() as usize }
}
