//! The JSON-RPC methods: a request becomes a call of [`crate::detach::detach_lvol`] or
//! [`crate::check::check_lvol`], and its result becomes the reply.

use std::ffi::{CStr, CString, c_char};
use std::mem::offset_of;
use std::ptr::{self, NonNull};

use spdk_sys as sys;

use crate::answer;
use crate::base::error::Result;
use crate::base::json::Json;
use crate::base::task;
use crate::check::{Findings, check_lvol};
use crate::detach::detach_lvol;
use crate::md::flush;
use crate::start::{ready, version};

const DETACH: &CStr = c"bdev_lvol_detach_parent";
const CHECK: &CStr = c"bdev_lvol_check_detach_parent";

/// Registers the methods, for the state RUNTIME. A target that already has a method of that name keeps its own.
///
/// # Safety
///
/// The current thread is the one that serves RPCs.
pub unsafe fn register() {
    let flushing = if flush::is_off() {
        format!("{}=off: no device is flushed", flush::SWITCH)
    } else {
        "devices are flushed".to_owned()
    };
    for (method, handler) in [(DETACH, handle_detach as Handler), (CHECK, handle_check)] {
        let name = method.to_string_lossy();
        // SAFETY: the thread is the one that serves RPCs, as the caller says.
        if !unsafe { register_method(method, handler) } {
            tracing::info!("the target has a {name} of its own, which stays");
        } else if method == DETACH {
            tracing::info!(
                "{name} is registered (version {}, built for SPDK {}; {flushing})",
                env!("CARGO_PKG_VERSION"),
                version::built_for()
            );
        }
    }
}

type Handler = unsafe extern "C" fn(*mut sys::spdk_jsonrpc_request, *const sys::spdk_json_val);

/// False if the name is taken.
///
/// # Safety
///
/// The current thread is the one that serves RPCs.
unsafe fn register_method(name: &'static CStr, handler: Handler) -> bool {
    let mut state_mask = 0;
    // SAFETY: the name is a C string that stays; the thread is the one that uses SPDK's list of methods.
    unsafe {
        // A second registration of a name would make `spdk_rpc_verify_methods` fail.
        let is_taken = sys::spdk_rpc_get_method_state_mask(name.as_ptr(), &mut state_mask) == 0;
        if !is_taken {
            sys::spdk_rpc_register_method(name.as_ptr(), Some(handler), sys::SPDK_RPC_RUNTIME);
        }
        !is_taken
    }
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

    async fn reply_findings(self, outcome: Result<Findings>, with_ranges: bool) {
        let findings = match outcome {
            Ok(findings) => findings,
            Err(error) => return self.fail(error.code(), &error.to_string()),
        };
        // SAFETY: the request waits for its answer (invariant), which is begun here and ended below.
        let writer = unsafe { sys::spdk_jsonrpc_begin_result(self.0.as_ptr()) };
        // SAFETY: as above.
        answer::write(&findings, with_ranges, &unsafe { Json::new(writer) }).await;
        // SAFETY: as above.
        unsafe { sys::spdk_jsonrpc_end_result(self.0.as_ptr(), writer) };
    }

    fn invalid(self, known: &str) {
        let what = format!(
            "Invalid parameters: name (a string: UUID or alias of the lvol) is required, and {known}"
        );
        self.fail(sys::SPDK_JSONRPC_ERROR_INVALID_PARAMS, &what);
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
unsafe extern "C" fn handle_detach(
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
        return request.invalid("nothing else is known");
    };
    // SAFETY: RPCs are served by one SPDK thread; what the operation waits for calls back on the
    // thread that asked for it.
    unsafe {
        task::spawn(async move { request.reply(detach_lvol(&name, zeroes).await) });
    }
}

/// `spdk_rpc_method_handler`
unsafe extern "C" fn handle_check(
    request: *mut sys::spdk_jsonrpc_request,
    params: *const sys::spdk_json_val,
) {
    let Some(request) = NonNull::new(request).map(Request) else { return };
    if let Err(error) = ready::check() {
        return request.reply(Err(error));
    }
    // SAFETY: SPDK passes null or parsed JSON.
    let Some((name, with_ranges)) = (unsafe { decode_check(params) }) else {
        return request.invalid("nothing else is known but ranges (a bool)");
    };
    // SAFETY: as for a detach.
    unsafe {
        task::spawn(async move {
            let outcome = check_lvol(&name, with_ranges).await;
            request.reply_findings(outcome, with_ranges).await;
        });
    }
}

/// The parameter `name`. `None` if `params` is anything but an object with just that.
///
/// # Safety
///
/// `params` is null or parsed JSON.
pub unsafe fn decode_name(params: *const sys::spdk_json_val) -> Option<CString> {
    // SAFETY: what the caller says; the decoder is for the first field.
    unsafe { decode(params, &[NAME]).map(|(name, _)| name) }
}

/// The parameters `name` and `ranges`, of which the second may be left out.
///
/// # Safety
///
/// `params` is null or parsed JSON.
pub unsafe fn decode_check(params: *const sys::spdk_json_val) -> Option<(CString, bool)> {
    // SAFETY: what the caller says; each decoder is for its field.
    unsafe { decode(params, &[NAME, RANGES]) }
}

/// What the parameters are decoded into.
#[repr(C)]
struct Params {
    name: *mut c_char,
    ranges: bool,
}

const NAME: sys::spdk_json_object_decoder = sys::spdk_json_object_decoder {
    name: c"name".as_ptr(),
    offset: offset_of!(Params, name),
    decode_func: Some(sys::spdk_json_decode_string),
    optional: false,
};

const RANGES: sys::spdk_json_object_decoder = sys::spdk_json_object_decoder {
    name: c"ranges".as_ptr(),
    offset: offset_of!(Params, ranges),
    decode_func: Some(sys::spdk_json_decode_bool),
    optional: true,
};

/// # Safety
///
/// `params` is null or parsed JSON, and the decoders are for the fields of `Params`.
unsafe fn decode(
    params: *const sys::spdk_json_val,
    decoders: &[sys::spdk_json_object_decoder],
) -> Option<(CString, bool)> {
    if params.is_null() {
        return None;
    }
    let mut decoded = Params { name: ptr::null_mut(), ranges: false };
    // SAFETY: the decoders write a string from malloc, or nothing, and a bool to where the fields are.
    unsafe {
        let (first, count) = (decoders.as_ptr(), decoders.len());
        let rc = sys::spdk_json_decode_object(params, first, count, (&raw mut decoded).cast());
        let name = NonNull::new(decoded.name).map(|name| CStr::from_ptr(name.as_ptr()).to_owned());
        libc::free(decoded.name.cast());
        name.filter(|_| rc == 0).map(|name| (name, decoded.ranges))
    }
}
