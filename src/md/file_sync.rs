//! `fsync` of a file that this process has open, on a thread that is not a reactor.

use std::fs::{self, File};
use std::os::fd::{BorrowedFd, RawFd};
use std::os::raw::{c_int, c_void};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use spdk_sys as sys;

use crate::base::log::leave_reactors;
use crate::base::task::Callback;

/// What the thread is asked for.
struct Request {
    filename: String,
    spdk_thread: *mut sys::spdk_thread,
    /// Of a `Callback<Option<c_int>>`.
    ctx: *mut c_void,
}

// SAFETY: the pointers are only given back, by a message to that SPDK thread.
unsafe impl Send for Request {}

/// An answer on its way to the SPDK thread that asked.
struct Answer {
    ctx: *mut c_void,
    rc: Option<c_int>,
}

/// What was written to this file is on its device when this is done with 0, and in no cache of it. A
/// negated errno if that failed; `None` if the process does not have the file open, or there is no
/// thread for it.
pub async fn sync(filename: Option<String>) -> Option<c_int> {
    static REQUESTS: OnceLock<Option<Sender<Request>>> = OnceLock::new();
    let filename = filename?;
    let requests = REQUESTS.get_or_init(start_thread).as_ref()?;
    let (callback, done) = Callback::<Option<c_int>>::new();
    let ctx = callback.into_ctx();
    // SAFETY: tasks run on an SPDK thread.
    let spdk_thread = unsafe { sys::spdk_get_thread() };
    let request = Request { filename, spdk_thread, ctx };
    requests.send(request).ok()?;
    done.await.flatten()
}

fn start_thread() -> Option<Sender<Request>> {
    let (sender, requests) = channel::<Request>();
    let body = move || {
        // If every core has a reactor, it shares one: it sleeps while the device is at work.
        leave_reactors();
        for Request { filename, spdk_thread, ctx } in requests {
            let rc = sync_open_file(Path::new(&filename));
            answer(spdk_thread, Answer { ctx, rc });
        }
    };
    thread::Builder::new().name("lvol_detach_sync".to_owned()).spawn(body).ok()?;
    Some(sender)
}

/// The same description of the open file that writes to it, so that errors of theirs are seen: a file
/// of that name that is opened now may be another.
fn sync_open_file(filename: &Path) -> Option<c_int> {
    let wanted = fs::metadata(filename).ok()?;
    let is_it = |fd: &RawFd| {
        fs::metadata(format!("/proc/self/fd/{fd}"))
            .is_ok_and(|file| (file.dev(), file.ino()) == (wanted.dev(), wanted.ino()))
    };
    let open = fs::read_dir("/proc/self/fd").ok()?;
    let mut fds = open.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<RawFd>().ok());
    let fd = fds.find(is_it)?;
    // SAFETY: the bdev has it open as long as its blobstore is loaded, which whoever waits for the flush
    // sees to.
    let file = File::from(unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned().ok()?);
    Some(match file.sync_all() {
        Ok(()) => 0,
        Err(error) => -error.raw_os_error().unwrap_or(libc::EIO),
    })
}

fn answer(spdk_thread: *mut sys::spdk_thread, answer: Answer) {
    unsafe extern "C" fn run(answer: *mut c_void) {
        // SAFETY: it is the box from below, and the context that `sync` waits for, once.
        unsafe {
            let Answer { ctx, rc } = *Box::from_raw(answer.cast::<Answer>());
            Callback::complete(ctx, rc);
        }
    }
    let answer = Box::into_raw(Box::new(answer)).cast();
    // SAFETY: the SPDK thread is there while somebody on it waits. Any thread may send to it.
    while unsafe { sys::spdk_thread_send_msg(spdk_thread, Some(run), answer) } != 0 {
        // All of SPDK's messages are on their way.
        thread::sleep(Duration::from_millis(1));
    }
}
