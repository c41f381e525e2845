//! The functions that `include/spdk_lvol_detach.h` declares and documents.
//!
//! No panic leaves them: an `extern "C"` function aborts the process instead.

use std::ffi::{c_char, c_int, c_void};
use std::ptr::NonNull;

use spdk_sys as sys;

use crate::api;
use crate::base::error::{Error, Result};
use crate::chain::lvol::Lvol;

/// The callback that is told the outcome of an operation.
///
/// # Invariants
///
/// `function` may be called with `argument`, once, on the thread that the operation was asked for on: calling it
/// consumes the value.
struct Caller {
    function: unsafe extern "C" fn(*mut c_void, c_int),
    argument: *mut c_void,
}

impl Caller {
    fn tell(self, outcome: Result<()>) {
        let lvolerrno = outcome.map_or_else(|error| error.code(), |()| 0);
        // SAFETY: it is called once, as it was asked for (invariant).
        unsafe { (self.function)(self.argument, lvolerrno) };
    }
}

/// # Safety
///
/// `lvol` is null, or, if this is the app thread, an lvol of a loaded lvstore; `cb_fn` may be called with `cb_arg`.
#[unsafe(no_mangle)]
unsafe extern "C" fn lvol_detach_from_parent(
    lvol: *mut sys::spdk_lvol,
    cb_fn: sys::spdk_lvol_op_complete,
    cb_arg: *mut c_void,
) {
    let Some(function) = cb_fn else {
        tracing::error!("lvol_detach_from_parent without a callback: nothing is done");
        return;
    };
    let caller = Caller { function, argument: cb_arg };
    let name = move || match NonNull::new(lvol) {
        // SAFETY: what the caller says; it is asked for on the app thread only.
        Some(lvol) => unsafe { Lvol::bdev_name(lvol) },
        None => Err(Error::new(libc::EINVAL, "no lvol")),
    };
    api::start(name, move |outcome| caller.tell(outcome));
}

#[unsafe(no_mangle)]
extern "C" fn lvol_detach_version() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}
