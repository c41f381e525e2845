//! `tracing` events go to SPDK's own log, so that `log_set_print_level` and
//! `log_set_flag lvol_detach` apply to them.

use std::ffi::CString;
use std::fmt::{self, Write};
use std::os::raw::{c_char, c_int};
use std::sync::Once;

use spdk_sys as sys;
use tracing::field::{Field, Visit};
use tracing::span;
use tracing::{Event, Level, Metadata, Subscriber};

unsafe extern "C" {
    /// Made by `SPDK_LOG_REGISTER_COMPONENT` in `c_shim/shim.c`.
    static SPDK_LOG_lvol_detach: sys::spdk_log_flag;
}

/// Sends this crate's events to SPDK's log from now on.
pub fn init() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // An error means that somebody else takes the events, which is as well.
        let _ = tracing::subscriber::set_global_default(SpdkLog);
    });
}

struct SpdkLog;

/// SPDK has a level that tracing has not, NOTICE: what an operator should see without asking. It
/// is tracing's INFO. SPDK's INFO, shown where the component's flag is set, is tracing's DEBUG.
fn spdk_level(level: &Level) -> sys::spdk_log_level {
    match *level {
        Level::ERROR => sys::SPDK_LOG_ERROR,
        Level::WARN => sys::SPDK_LOG_WARN,
        Level::INFO => sys::SPDK_LOG_NOTICE,
        Level::DEBUG => sys::SPDK_LOG_INFO,
        Level::TRACE => sys::SPDK_LOG_DEBUG,
    }
}

impl Subscriber for SpdkLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // SAFETY: the flag is a static of the shim; `log_set_flag` writes the bool on the thread
        // that serves RPCs, and SPDK's own macros read it like this.
        *metadata.level() <= Level::INFO || unsafe { SPDK_LOG_lvol_detach.enabled }
    }

    fn event(&self, event: &Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        let metadata = event.metadata();
        let c = |text: &str| CString::new(one_line(text)).unwrap_or_default();
        let file = c(metadata.file().unwrap_or_default());
        let function = c(metadata.target());
        let message = c(&text.0);
        let line = metadata.line().unwrap_or_default() as c_int;
        const FORMAT: *const c_char = c"%s\n".as_ptr();
        // SAFETY: all pointers are to strings that live until the call returns, and the format
        // takes the one string that follows it.
        unsafe {
            sys::spdk_log(
                spdk_level(metadata.level()),
                file.as_ptr(),
                line,
                function.as_ptr(),
                FORMAT,
                message.as_ptr(),
            );
        }
    }

    // The crate makes no spans.
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}

    fn register_callsite(&self, _: &'static Metadata<'static>) -> tracing::subscriber::Interest {
        // The flag can be set at any time, so each event asks.
        tracing::subscriber::Interest::sometimes()
    }
}

/// A name in a request may hold anything. What is in the log looks like no other line, and has no NUL.
fn one_line(text: &str) -> String {
    let escaped = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.into() };
    text.chars().map(escaped).collect()
}

/// The message, then each field as `name=value`.
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.0, "{value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}
