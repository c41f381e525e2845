//! `tracing` events go to SPDK's own log, so that `log_set_print_level` and
//! `log_set_flag lvol_detach` apply to them.

use std::ffi::CString;
use std::fmt::{self, Write};
use std::os::raw::{c_char, c_int};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Once, OnceLock};
use std::thread;
use std::time::Duration;

use spdk_sys as sys;
use tracing::field::{Field, Visit};
use tracing::span;
use tracing::{Event, Level, Metadata, Subscriber};

unsafe extern "C" {
    /// Defined in `c_shim/shim.c`.
    static SPDK_LOG_lvol_detach: sys::spdk_log_flag;
}

/// Lines on their way to SPDK's log, if there is a core without a reactor to write them. Writing one
/// takes some 30 us, most of it in a call of syslog that finds no syslog: on the reactor, every
/// lvol there would wait for it.
static QUEUE: OnceLock<SyncSender<Entry>> = OnceLock::new();
/// A caller that finds this many lines waiting waits as well.
const QUEUE_LEN: usize = 1024;
/// How long lines are gathered.
const TOGETHER: Duration = Duration::from_millis(1);

enum Entry {
    Line(Line),
    /// Says when all lines before it are written.
    Flush(SyncSender<()>),
}

/// Sends this crate's events to SPDK's log from now on.
pub fn init() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if let Some(queue) = start_thread() {
            QUEUE.get_or_init(|| queue);
        }
        // An error means that the events already go elsewhere, which is fine.
        let _ = tracing::subscriber::set_global_default(SpdkLog);
    });
}

/// `None` if every core has a reactor, which a thread there would only interrupt.
fn start_thread() -> Option<SyncSender<Entry>> {
    let (queue, entries) = sync_channel(QUEUE_LEN);
    let (sender, has_core) = sync_channel(1);
    let body = move || {
        let has_left = leave_reactors();
        // The receiver waits for it.
        let _ = sender.send(has_left);
        if has_left {
            write_all(&entries);
        }
    };
    thread::Builder::new().name("lvol_detach_log".to_owned()).spawn(body).ok()?;
    (has_core.recv() == Ok(true)).then_some(queue)
}

fn write_all(entries: &Receiver<Entry>) {
    while let Ok(first) = entries.recv() {
        // To wake this thread costs the reactor some microseconds as well, so it is done once for
        // lines that come together.
        thread::sleep(TOGETHER);
        for entry in std::iter::once(first).chain(entries.try_iter()) {
            match entry {
                Entry::Line(line) => line.write(),
                // Nothing waits if the sender is gone.
                Entry::Flush(done) => drop(done.send(())),
            }
        }
    }
}

/// Lets the current thread run on the cores without a reactor only. A thread starts on the core of the
/// one that makes it, which is a reactor's. False if there is no such core. (Where the target's option
/// `--lcores` gives a reactor another CPU than its number, a reactor's may be among them.)
pub fn leave_reactors() -> bool {
    // SAFETY: the calls change the current thread, which is no reactor; the set belongs to the
    // caller, and is all zeroes or what the kernel says.
    unsafe {
        sys::spdk_unaffinitize_thread();
        let mut cores: libc::cpu_set_t = std::mem::zeroed();
        let len = size_of::<libc::cpu_set_t>();
        if libc::sched_getaffinity(0, len, &mut cores) != 0 {
            return false;
        }
        let mut core = sys::spdk_env_get_first_core();
        while core != u32::MAX {
            libc::CPU_CLR(core as usize, &mut cores);
            core = sys::spdk_env_get_next_core(core);
        }
        // An empty set is refused.
        libc::sched_setaffinity(0, len, &cores) == 0
    }
}

/// Waits until the lines so far are written.
pub fn flush() {
    let (sender, done) = sync_channel(1);
    if let Some(queue) = QUEUE.get()
        && queue.send(Entry::Flush(sender)).is_ok()
    {
        // An error means that the thread has gone, and there is nothing to wait for.
        let _ = done.recv();
    }
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
        let line = Line { metadata: event.metadata(), text: text.0 };
        let unsent = match QUEUE.get() {
            Some(queue) => queue.send(Entry::Line(line)).err().map(|unsent| unsent.0),
            None => Some(Entry::Line(line)),
        };
        // There is no thread.
        if let Some(Entry::Line(line)) = unsent {
            line.write();
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

struct Line {
    metadata: &'static Metadata<'static>,
    text: String,
}

impl Line {
    fn write(&self) {
        let c = |text: &str| CString::new(one_line(text)).unwrap_or_default();
        let file = c(self.metadata.file().unwrap_or_default());
        let function = c(self.metadata.target());
        let message = c(&self.text);
        let line = self.metadata.line().unwrap_or_default() as c_int;
        const FORMAT: *const c_char = c"%s\n".as_ptr();
        // SAFETY: all pointers are to strings that live until the call returns, and the format
        // takes the one string that follows it. Any thread may log.
        unsafe {
            sys::spdk_log(
                spdk_level(self.metadata.level()),
                file.as_ptr(),
                line,
                function.as_ptr(),
                FORMAT,
                message.as_ptr(),
            );
        }
    }
}

/// In bytes. SPDK 24.05 crashes on a line of more than 1 KiB (`spdk_vlog` uses its `va_list` twice).
const LONGEST_LINE: usize = 1000;

/// A name in a request may hold anything. What is in the log looks like no other line, has no NUL, and
/// ends somewhere.
fn one_line(text: &str) -> String {
    let mut line = String::new();
    for c in text.chars() {
        if line.len() > LONGEST_LINE {
            return line + "...";
        }
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    line
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
