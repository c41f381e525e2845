//! The JSON-RPC method `bdev_lvol_detach_parent`: a request becomes a call of
//! [`crate::detach::detach_lvol`], and what that says becomes the reply.

use std::ffi::{CStr, CString, c_char};
use std::ptr::NonNull;

use spdk_sys as sys;

use crate::base::error::Result;
use crate::base::task;
use crate::detach::detach_lvol;
use crate::md::flush;
use crate::start::{ready, version};

const METHOD: &CStr = c"bdev_lvol_detach_parent";

/// Registers the method, for the state RUNTIME. A target that has one of that name keeps its own.
///
/// # Safety
///
/// The current thread is the one that serves RPCs.
pub unsafe fn register() {
    let mut state_mask = 0;
    // SAFETY: the name is a C string; the thread is the one that uses SPDK's list of methods.
    unsafe {
        // A second registration of a name would make `spdk_rpc_verify_methods` fail.
        if sys::spdk_rpc_get_method_state_mask(METHOD.as_ptr(), &mut state_mask) == 0 {
            tracing::info!("the target has a {} of its own, which stays", METHOD.to_string_lossy());
            return;
        }
        sys::spdk_rpc_register_method(METHOD.as_ptr(), Some(handle), sys::SPDK_RPC_RUNTIME);
    }
    let flushing = if flush::is_off() {
        format!("{}=off: no device is flushed", flush::SWITCH)
    } else {
        "devices are flushed".to_owned()
    };
    tracing::info!(
        "{} is registered (version {}, built for SPDK {}; {flushing})",
        METHOD.to_string_lossy(),
        env!("CARGO_PKG_VERSION"),
        version::built_for()
    );
}

/// A request that has not been answered.
///
/// # Invariants
///
/// SPDK keeps the request until it is answered, even if the connection is gone, and that is done
/// once: each way of answering consumes the value.
struct Request(NonNull<sys::spdk_jsonrpc_request>);

impl Request {
    fn reply(self, outcome: Result<()>) {
        match outcome {
            // SAFETY: the request waits for its answer (invariant).
            Ok(()) => unsafe { sys::spdk_jsonrpc_send_bool_response(self.0.as_ptr(), true) },
            Err(error) => self.fail(error.code(), &error.to_string()),
        }
    }

    fn fail(self, code: i32, message: &str) {
        let message = CString::new(message.replace('\0', "\\0")).unwrap_or_default();
        // SAFETY: the request waits for its answer (invariant); the message is copied.
        unsafe {
            sys::spdk_jsonrpc_send_error_response(self.0.as_ptr(), code, message.as_ptr());
        }
    }
}

/// `spdk_rpc_method_handler`
unsafe extern "C" fn handle(
    request: *mut sys::spdk_jsonrpc_request,
    params: *const sys::spdk_json_val,
) {
    let Some(request) = NonNull::new(request).map(Request) else { return };
    let zeroes = match ready::check() {
        Ok(zeroes) => zeroes,
        Err(error) => return request.reply(Err(error)),
    };
    // SAFETY: SPDK passes null or parsed JSON.
    let Some(name) = (unsafe { decode_name(params) }) else {
        let what = "Invalid parameters: name (a string: UUID or alias of the lvol) is required, \
                    and nothing else is known";
        return request.fail(sys::SPDK_JSONRPC_ERROR_INVALID_PARAMS, what);
    };
    // SAFETY: RPCs are served by one SPDK thread; what the operation waits for calls back on the
    // thread that asked for it.
    unsafe {
        task::spawn(async move { request.reply(detach_lvol(&name, zeroes).await) });
    }
}

/// The parameter `name`. `None` if `params` is anything but an object with just that.
///
/// # Safety
///
/// `params` is null or parsed JSON.
pub unsafe fn decode_name(params: *const sys::spdk_json_val) -> Option<CString> {
    if params.is_null() {
        return None;
    }
    let mut name: *mut c_char = std::ptr::null_mut();
    let decoder = sys::spdk_json_object_decoder {
        name: c"name".as_ptr(),
        offset: 0,
        decode_func: Some(sys::spdk_json_decode_string),
        optional: false,
    };
    // SAFETY: the one decoder writes a string from malloc, or nothing, to the pointer at offset 0.
    unsafe {
        let rc = sys::spdk_json_decode_object(params, &decoder, 1, (&raw mut name).cast());
        let decoded = NonNull::new(name).map(|name| CStr::from_ptr(name.as_ptr()).to_owned());
        libc::free(name.cast());
        decoded.filter(|_| rc == 0)
    }
}
