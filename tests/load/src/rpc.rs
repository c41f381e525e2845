//! The JSON-RPC methods, and what the control side says by them.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, CString, c_int, c_void};
use std::sync::{Arc, LazyLock, Mutex};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use spdk_sys as sys;

use crate::job::{self, Job};
use crate::locked;
use crate::model::{Image, Options};

static JOBS: LazyLock<Mutex<HashMap<String, Arc<Job>>>> = LazyLock::new(Mutex::default);
static IMAGES: LazyLock<Mutex<HashMap<String, Image>>> = LazyLock::new(Mutex::default);

/// A request that has not been answered. SPDK takes the answer from any thread.
pub struct Request(*mut sys::spdk_jsonrpc_request);

// SAFETY: answers are put into a queue under a lock (`jsonrpc_server_send_response`).
unsafe impl Send for Request {}

impl Request {
    pub fn reply(self, result: Result<Value, String>) {
        match result {
            Ok(value) => {
                let text = value.to_string();
                // SAFETY: SPDK keeps the request until it is answered; the text is copied.
                unsafe {
                    let writer = sys::spdk_jsonrpc_begin_result(self.0);
                    sys::spdk_json_write_val_raw(writer, text.as_ptr().cast(), text.len());
                    sys::spdk_jsonrpc_end_result(self.0, writer);
                }
            }
            Err(message) => {
                let code = sys::SPDK_JSONRPC_ERROR_INTERNAL_ERROR;
                let message = CString::new(message).unwrap_or_default();
                // SAFETY: as above.
                unsafe { sys::spdk_jsonrpc_send_error_response(self.0, code, message.as_ptr()) };
            }
        }
    }
}

type Handler = unsafe extern "C" fn(*mut sys::spdk_jsonrpc_request, *const sys::spdk_json_val);

const METHODS: &[(&CStr, Handler)] = &[
    (c"load_open", open),
    (c"load_hold", hold),
    (c"load_snapshot", snapshot),
    (c"load_detach", detach),
    (c"load_status", status),
    (c"load_longest_writes", longest_writes),
    (c"load_close", close),
    (c"load_stall", stall),
    (c"load_release", release),
];

/// Run by the dynamic linker when the library is loaded, as what SPDK's `SPDK_RPC_REGISTER` makes.
#[used]
#[unsafe(link_section = ".init_array")]
static REGISTER: extern "C" fn() = {
    extern "C" fn register() {
        for &(name, handler) in METHODS {
            // SAFETY: SPDK's list of methods is static; nothing else runs yet.
            unsafe {
                sys::spdk_rpc_register_method(name.as_ptr(), Some(handler), sys::SPDK_RPC_RUNTIME)
            };
        }
    }
    register
};

/// # Safety
///
/// `params` is null or parsed JSON.
unsafe fn decode<T: DeserializeOwned>(params: *const sys::spdk_json_val) -> Result<T, String> {
    unsafe extern "C" fn append(text: *mut c_void, data: *const c_void, size: usize) -> c_int {
        // SAFETY: `text` is the one below, and `data` so long.
        unsafe {
            let data = std::slice::from_raw_parts(data.cast::<u8>(), size);
            (*text.cast::<Vec<u8>>()).extend_from_slice(data);
        }
        0
    }
    if params.is_null() {
        return Err("params are required".to_owned());
    }
    let mut text: Vec<u8> = Vec::new();
    // SAFETY: the text outlives the writer; `params` is parsed JSON, as the caller says.
    unsafe {
        let writer = sys::spdk_json_write_begin(Some(append), (&raw mut text).cast(), 0);
        sys::spdk_json_write_val(writer, params);
        sys::spdk_json_write_end(writer);
    }
    serde_json::from_slice(&text).map_err(|error| error.to_string())
}

fn job(name: &str) -> Result<Arc<Job>, String> {
    locked(&JOBS).get(name).cloned().ok_or_else(|| format!("there is no load on {name}"))
}

/// Starts a load: see [`Options`].
unsafe extern "C" fn open(
    request: *mut sys::spdk_jsonrpc_request,
    params: *const sys::spdk_json_val,
) {
    let request = Request(request);
    let opened = (|| {
        // SAFETY: SPDK passes null or parsed JSON.
        let options: Options = unsafe { decode(params) }?;
        let images = locked(&IMAGES);
        let image = options
            .image
            .as_ref()
            .map(|image| images.get(image).ok_or_else(|| format!("there is no image {image}")));
        let name = options.name.clone();
        // SAFETY: RPCs are served by one SPDK thread.
        let job = unsafe { Job::open(options, image.transpose()?) }?;
        locked(&JOBS).insert(name, Arc::clone(&job));
        Ok(job)
    })();
    match opened {
        // SAFETY: it is not started yet.
        Ok(job) => unsafe { Job::start(&job, request) },
        Err(error) => request.reply(Err(error)),
    }
}

#[derive(Deserialize)]
struct Name {
    name: String,
}

/// No more writes from now on; answered when those in flight are done.
unsafe extern "C" fn hold(
    request: *mut sys::spdk_jsonrpc_request,
    params: *const sys::spdk_json_val,
) {
    // SAFETY: SPDK passes null or parsed JSON.
    match unsafe { decode(params) }.and_then(|Name { name }| job(&name)) {
        Ok(job) => job.hold(Request(request)),
        Err(error) => Request(request).reply(Err(error)),
    }
}

#[derive(Deserialize)]
struct Snapshot {
    name: String,
    /// What to call what the snapshot reads as.
    image: String,
    /// Whether writes are still held, as the load is to end.
    held: bool,
}

/// A snapshot was taken while writes were held; they go on now, or not. The result is the snapshot's level.
unsafe extern "C" fn snapshot(
    request: *mut sys::spdk_jsonrpc_request,
    params: *const sys::spdk_json_val,
) {
    // SAFETY: SPDK passes null or parsed JSON.
    let result = unsafe { decode(params) }.and_then(|Snapshot { name, image, held }| {
        let job = job(&name)?;
        let mut model = locked(&job.model);
        let (level, content) = model.snapshot();
        if !held {
            model.release();
        }
        locked(&IMAGES).insert(image, content);
        Ok(json!(level))
    });
    Request(request).reply(result);
}

#[derive(Deserialize)]
struct Detach {
    /// The loads on the lvol and on those that read through it.
    names: Vec<String>,
    /// The level of the lvol; if it is not given, what the load on it writes at.
    level: Option<u64>,
    /// "before" the request is sent, "after" its answer, "failed" after an error.
    when: String,
}

unsafe extern "C" fn detach(
    request: *mut sys::spdk_jsonrpc_request,
    params: *const sys::spdk_json_val,
) {
    // SAFETY: SPDK passes null or parsed JSON.
    let result = unsafe { decode(params) }.and_then(|Detach { names, level, when }| {
        for name in names {
            let job = job(&name)?;
            let mut model = locked(&job.model);
            let level = level.unwrap_or(model.level());
            match when.as_str() {
                "before" => model.detaching(level),
                "after" => model.detached(level),
                _ => model.not_detached(),
            }
        }
        Ok(json!(true))
    });
    Request(request).reply(result);
}

/// The counters of a load.
unsafe extern "C" fn status(
    request: *mut sys::spdk_jsonrpc_request,
    params: *const sys::spdk_json_val,
) {
    // SAFETY: SPDK passes null or parsed JSON.
    let job = unsafe { decode(params) }.and_then(|Name { name }| job(&name));
    Request(request).reply(job.map(|job| locked(&job.model).report()));
}

#[derive(Deserialize)]
struct Names {
    names: Vec<String>,
}

/// For each load the longest write on each core that has ended since this was asked for last, in
/// nanoseconds.
unsafe extern "C" fn longest_writes(
    request: *mut sys::spdk_jsonrpc_request,
    params: *const sys::spdk_json_val,
) {
    // SAFETY: SPDK passes null or parsed JSON.
    let longest = unsafe { decode(params) }.and_then(|Names { names }| {
        let jobs = names.iter().map(|name| job(name));
        let longest = jobs.map(|job| Ok(locked(&job?.model).take_longest_writes()));
        longest.collect::<Result<Vec<BTreeMap<u32, u64>>, String>>()
    });
    Request(request).reply(longest.map(|longest| json!(longest)));
}

/// Ends a load. The result is its counters.
unsafe extern "C" fn close(
    request: *mut sys::spdk_jsonrpc_request,
    params: *const sys::spdk_json_val,
) {
    // SAFETY: SPDK passes null or parsed JSON.
    let job = unsafe { decode(params) }.and_then(|Name { name }| {
        locked(&JOBS).remove(&name).ok_or_else(|| format!("there is no load on {name}"))
    });
    match job {
        Ok(job) => job.close(Request(request)),
        Err(error) => Request(request).reply(Err(error)),
    }
}

/// Nothing runs on the last core until `load_release`.
unsafe extern "C" fn stall(request: *mut sys::spdk_jsonrpc_request, _: *const sys::spdk_json_val) {
    if let Err((request, error)) = job::stall(Request(request)) {
        request.reply(Err(error));
    }
}

unsafe extern "C" fn release(
    request: *mut sys::spdk_jsonrpc_request,
    _: *const sys::spdk_json_val,
) {
    job::release();
    Request(request).reply(Ok(json!(true)));
}
