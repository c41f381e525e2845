//! Futures on an SPDK thread: SPDK's callbacks become values that can be awaited.
//!
//! A task runs on the SPDK thread that spawned it, from that thread's messages: never inside the
//! callback that wakes it, whose caller may not be done yet.

use std::future::poll_fn;
use std::marker::PhantomData;
use std::os::raw::{c_int, c_void};
use std::ptr::NonNull;
use std::task::Poll;

use async_task::Runnable;
use spdk_sys as sys;

/// Runs `future` on the current SPDK thread: until it waits for the first time at once, and on from
/// there each time that what it waits for is done.
///
/// # Safety
///
/// The current thread is an SPDK thread, and every callback that `future` waits for is called on
/// it.
pub unsafe fn spawn(future: impl Future<Output = ()> + 'static) {
    // SAFETY: the current thread is an SPDK thread, as the caller says.
    let thread = unsafe { sys::spdk_get_thread() };
    let schedule = move |runnable: Runnable| {
        let ctx = runnable.into_raw().as_ptr().cast();
        // SAFETY: the thread is there as long as it has callbacks to make; `run` gets the task that
        // was turned into a pointer, once. Without memory for a message it runs here, which is
        // the same thread.
        unsafe {
            if sys::spdk_thread_send_msg(thread, Some(run), ctx) != 0 {
                run(ctx);
            }
        }
    };
    // SAFETY: the future and its wakers stay on this SPDK thread: wakers are held by what the
    // future waits for, whose callbacks come on it, as the caller says. SPDK runs a thread on one
    // core at a time, and orders what it does on the next after what it did before.
    let (runnable, task) = unsafe { async_task::spawn_unchecked(future, schedule) };
    task.detach();
    runnable.run();
}

/// `spdk_msg_fn`
unsafe extern "C" fn run(ctx: *mut c_void) {
    if let Some(task) = NonNull::new(ctx) {
        // SAFETY: it is from `schedule`, which has given the task away.
        let runnable: Runnable = unsafe { Runnable::from_raw(task.cast()) };
        runnable.run();
    }
}

/// What a C callback is given as its context, to be called once with a `T`.
///
/// # Invariants
///
/// `0` is an `oneshot::Sender<T>` that was turned into a pointer, and nobody else has it.
pub struct Callback<T>(*mut (), PhantomData<T>);

impl<T> Callback<T> {
    /// A context for one call of a C callback, and the future that the call completes.
    pub fn new() -> (Callback<T>, impl Future<Output = Option<T>>) {
        let (sender, receiver) = oneshot::channel();
        (Callback(sender.into_raw(), PhantomData), async move { receiver.await.ok() })
    }

    /// The context pointer for C. It must come back in exactly one `complete`.
    pub fn into_ctx(self) -> *mut c_void {
        self.0.cast()
    }

    /// Completes the future.
    ///
    /// # Safety
    ///
    /// `ctx` is from `into_ctx` of a `Callback<T>` with the same `T`, and comes back for the
    /// first time.
    pub unsafe fn complete(ctx: *mut c_void, value: T) {
        // SAFETY: by the invariant and the caller's word this is the only owner of the sender.
        let sender = unsafe { oneshot::Sender::<T>::from_raw(ctx.cast()) };
        // Nobody waits if the future was dropped, which is its owner's choice.
        let _ = sender.send(value);
    }
}

/// A C callback that reports a status: `spdk_blob_op_complete`, `spdk_bs_op_complete`,
/// `spdk_bdev_quiesce_cb`.
///
/// # Safety
///
/// `ctx` is from `Callback::<c_int>::into_ctx`.
pub unsafe extern "C" fn status_callback(ctx: *mut c_void, status: c_int) {
    // SAFETY: what the caller vouches for.
    unsafe { Callback::complete(ctx, status) }
}

/// Calls a C function that reports its status through [`status_callback`], and waits for it.
pub async fn status(start: impl FnOnce(*mut c_void)) -> c_int {
    let (callback, done) = Callback::<c_int>::new();
    start(callback.into_ctx());
    done.await.unwrap_or(-libc::ECANCELED)
}

/// Waits until the messages that the thread has now have run: the task goes on by one of its own.
pub async fn next_round() {
    let mut has_waited = false;
    poll_fn(|context| {
        if std::mem::replace(&mut has_waited, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
