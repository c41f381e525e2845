//! Writing JSON by SPDK's own writer.

use std::ffi::{c_int, c_void};

use spdk_sys as sys;

use crate::base::error::{Error, Result};

/// Where JSON is written to.
///
/// # Invariants
///
/// `0` is a writer whose text has been begun and not ended, and the current thread is the one that uses
/// it.
#[derive(Debug)]
pub struct Json(*mut sys::spdk_json_write_ctx);

impl Json {
    /// # Safety
    ///
    /// The writer's text has been begun, and is ended after the last use of the value, on this thread.
    pub unsafe fn new(writer: *mut sys::spdk_json_write_ctx) -> Json {
        Json(writer)
    }

    /// SPDK's writer, for a function of SPDK's that writes. It is valid as long as the value.
    pub fn as_ptr(&self) -> *mut sys::spdk_json_write_ctx {
        self.0
    }

    /// The name of the member that follows.
    pub fn name(&self, name: &str) -> &Json {
        // SAFETY: the writer is in use (invariant); the name is copied.
        unsafe { sys::spdk_json_write_name_raw(self.0, name.as_ptr().cast(), name.len()) };
        self
    }

    /// A string.
    pub fn string(&self, text: &str) {
        // SAFETY: as above.
        unsafe { sys::spdk_json_write_string_raw(self.0, text.as_ptr().cast(), text.len()) };
    }

    /// A string, or null.
    pub fn optional(&self, text: Option<&str>) {
        match text {
            Some(text) => self.string(text),
            // SAFETY: the writer is in use (invariant).
            None => drop(unsafe { sys::spdk_json_write_null(self.0) }),
        }
    }

    /// A number.
    pub fn number(&self, number: u64) {
        // SAFETY: the writer is in use (invariant).
        unsafe { sys::spdk_json_write_uint64(self.0, number) };
    }

    /// A number with a sign.
    pub fn code(&self, code: i32) {
        // SAFETY: as above.
        unsafe { sys::spdk_json_write_int32(self.0, code) };
    }

    /// A bool.
    pub fn boolean(&self, value: bool) {
        // SAFETY: as above.
        unsafe { sys::spdk_json_write_bool(self.0, value) };
    }

    /// Begins an object.
    pub fn begin_object(&self) {
        // SAFETY: as above.
        unsafe { sys::spdk_json_write_object_begin(self.0) };
    }

    /// Ends it.
    pub fn end_object(&self) {
        // SAFETY: as above.
        unsafe { sys::spdk_json_write_object_end(self.0) };
    }

    /// Begins an array.
    pub fn begin_array(&self) {
        // SAFETY: as above.
        unsafe { sys::spdk_json_write_array_begin(self.0) };
    }

    /// Ends it.
    pub fn end_array(&self) {
        // SAFETY: as above.
        unsafe { sys::spdk_json_write_array_end(self.0) };
    }
}

/// A text that is being written.
///
/// # Invariants
///
/// `writer` was begun, with `bytes` for its context, and is ended when the value goes. Nobody else uses either
/// of them.
#[derive(Debug)]
pub struct Text {
    writer: *mut sys::spdk_json_write_ctx,
    bytes: *mut Vec<u8>,
}

impl Text {
    /// Begins one.
    pub fn begin() -> Result<Text> {
        let bytes: *mut Vec<u8> = Box::into_raw(Box::default());
        // SAFETY: `append` takes what the context is; it stays until the value goes, which ends the text first.
        let writer = unsafe { sys::spdk_json_write_begin(Some(append), bytes.cast(), 0) };
        let text = Text { writer, bytes };
        if writer.is_null() {
            Err(Error::new(libc::ENOMEM, "no text could be begun"))
        } else {
            Ok(text)
        }
    }

    /// Where it is written to, until it ends.
    pub fn json(&self) -> Json {
        // SAFETY: the text has been begun (invariant). It is not ended before `end`, and the value that
        // writes to it is used on this thread, as neither is `Send`.
        unsafe { Json::new(self.writer) }
    }

    /// Ends it. What was written must be one whole value.
    pub fn end(mut self) -> Result<String> {
        if self.end_writer() != 0 {
            return Err(Error::new(libc::ENOMEM, "the text could not be written"));
        }
        // SAFETY: the bytes are the value's (invariant), and the writer is ended.
        let bytes = std::mem::take(unsafe { &mut *self.bytes });
        String::from_utf8(bytes).map_err(|_| Error::new(libc::EILSEQ, "a name is not UTF-8"))
    }

    fn end_writer(&mut self) -> c_int {
        let writer = std::mem::replace(&mut self.writer, std::ptr::null_mut());
        if writer.is_null() {
            return 0;
        }
        // SAFETY: the text has been begun, and is ended once (invariant).
        unsafe { sys::spdk_json_write_end(writer) }
    }
}

impl Drop for Text {
    fn drop(&mut self) {
        self.end_writer();
        // SAFETY: it is from `begin`, and the value's (invariant).
        drop(unsafe { Box::from_raw(self.bytes) });
    }
}

/// `spdk_json_write_cb`
unsafe extern "C" fn append(bytes: *mut c_void, data: *const c_void, len: usize) -> c_int {
    // SAFETY: the context is that of `Text::begin`, and SPDK passes so much data.
    unsafe {
        let data = std::slice::from_raw_parts(data.cast::<u8>(), len);
        (*bytes.cast::<Vec<u8>>()).extend_from_slice(data);
    }
    0
}
