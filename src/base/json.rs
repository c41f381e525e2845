//! Writing JSON by SPDK's own writer.

use spdk_sys as sys;

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
