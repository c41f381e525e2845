//! The functions that `include/spdk_lvol_detach.h` declares and documents.
//!
//! No panic leaves them: an `extern "C"` function aborts the process instead.

use std::ffi::{CString, c_char, c_int, c_void};
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
struct Caller<F> {
    function: F,
    argument: *mut c_void,
}

type DetachComplete = unsafe extern "C" fn(*mut c_void, c_int);
type CheckComplete = unsafe extern "C" fn(*mut c_void, *const c_char, c_int);

impl Caller<DetachComplete> {
    fn tell(self, outcome: Result<()>) {
        let lvolerrno = outcome.map_or_else(|error| error.code(), |()| 0);
        // SAFETY: it is called once, as it was asked for (invariant).
        unsafe { (self.function)(self.argument, lvolerrno) };
    }
}

impl Caller<CheckComplete> {
    fn tell(self, outcome: Result<String>) {
        // JSON has no NUL in it: it is escaped.
        let text = outcome.map(|text| CString::new(text).unwrap_or_default());
        let (json, lvolerrno) = match &text {
            Ok(text) => (text.as_ptr(), 0),
            Err(error) => (std::ptr::null(), error.code()),
        };
        // SAFETY: it is called once, as it was asked for (invariant). The text is there until it returns.
        unsafe { (self.function)(self.argument, json, lvolerrno) };
    }
}

/// What to call the lvol of a caller's.
///
/// # Safety
///
/// `lvol` is null, or an lvol of a loaded lvstore, if the result is asked for on the app thread.
unsafe fn name_of(lvol: *mut sys::spdk_lvol) -> impl FnOnce() -> Result<CString> {
    move || match NonNull::new(lvol) {
        // SAFETY: what the caller says; it is asked for on the app thread only.
        Some(lvol) => unsafe { Lvol::bdev_name(lvol) },
        None => Err(Error::new(libc::EINVAL, "no lvol")),
    }
}

/// # Safety
///
/// `lvol` is null, or, if this is the app thread, an lvol of a loaded lvstore; `cb_fn` may be called with `cb_arg`.
#[unsafe(no_mangle)]
unsafe extern "C" fn lvol_detach_from_parent(
    lvol: *mut sys::spdk_lvol,
    cb_fn: Option<DetachComplete>,
    cb_arg: *mut c_void,
) {
    let Some(function) = cb_fn else {
        tracing::error!("lvol_detach_from_parent without a callback: nothing is done");
        return;
    };
    let caller = Caller { function, argument: cb_arg };
    // SAFETY: what the caller says.
    let name = unsafe { name_of(lvol) };
    api::start(name, api::detach, move |outcome| caller.tell(outcome));
}

/// # Safety
///
/// As for [`lvol_detach_from_parent`].
#[unsafe(no_mangle)]
unsafe extern "C" fn lvol_detach_check(
    lvol: *mut sys::spdk_lvol,
    with_ranges: bool,
    cb_fn: Option<CheckComplete>,
    cb_arg: *mut c_void,
) {
    let Some(function) = cb_fn else {
        tracing::error!("lvol_detach_check without a callback: nothing is done");
        return;
    };
    let caller = Caller { function, argument: cb_arg };
    // SAFETY: what the caller says.
    let name = unsafe { name_of(lvol) };
    let operation = move |name, _| api::check(name, with_ranges);
    api::start(name, operation, move |outcome| caller.tell(outcome));
}

#[unsafe(no_mangle)]
extern "C" fn lvol_detach_version() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}
