//! Futures on an SPDK thread: SPDK's callbacks become values that can be awaited.
//!
//! A task runs on the SPDK thread that spawned it, from that thread's messages: never inside the
//! callback that wakes it, whose caller may not be done yet.

use std::fmt;
use std::future::poll_fn;
use std::marker::PhantomData;
use std::os::raw::{c_int, c_void};
use std::pin::pin;
use std::process::abort;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use async_lock::{Semaphore, SemaphoreGuardArc};
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
        // was turned into a pointer, once. Wakers are called on this thread.
        unsafe {
            if sys::spdk_thread_send_msg(thread, Some(run), ctx) != 0 {
                Timer::start(NO_MESSAGE_PAUSE, move || run(ctx));
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
        // Nothing waits if the future was dropped, which is its owner's choice.
        let _ = sender.send(value);
    }
}

/// A C callback that reports a status: `spdk_blob_op_complete`, `spdk_bs_op_complete`.
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

/// What a future is done with, if it is done at once.
pub fn at_once<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

/// How long a task sleeps when SPDK has no message left to wake it with.
const NO_MESSAGE_PAUSE: Duration = Duration::from_millis(1);

/// Runs a function once, later, on the current SPDK thread, by a poller of its own.
struct Timer<F> {
    poller: *mut sys::spdk_poller,
    function: F,
}

impl<F: FnOnce() + 'static> Timer<F> {
    /// # Safety
    ///
    /// The current thread is an SPDK thread.
    unsafe fn start(pause: Duration, function: F) {
        let timer = Box::into_raw(Box::new(Timer { poller: ptr::null_mut(), function }));
        let us = pause.as_micros().try_into().unwrap_or(u64::MAX);
        // SAFETY: the current thread is an SPDK thread, which runs pollers when it is polled next,
        // and so not before `poller` is set.
        unsafe {
            let poller = sys::spdk_poller_register(Some(Self::expired), timer.cast(), us);
            if poller.is_null() {
                // Without a byte of memory Rust's own allocations end the process as well.
                abort();
            }
            (*timer).poller = poller;
        }
    }

    /// `spdk_poller_fn`
    unsafe extern "C" fn expired(timer: *mut c_void) -> c_int {
        // SAFETY: it is the box of `start`. The poller is unregistered here, so it runs once.
        let Timer { function, .. } = unsafe {
            let mut timer = Box::from_raw(timer.cast::<Timer<F>>());
            sys::spdk_poller_unregister(&mut timer.poller);
            *timer
        };
        function();
        // `SPDK_POLLER_BUSY`
        1
    }
}

/// Pauses between two polls of something that isn't reported. Each is an eighth of the time that has been
/// waited, within bounds: the end of a short wait is noticed soon, a long one costs no CPU.
#[derive(Debug)]
pub struct Rests {
    since: Instant,
}

impl Rests {
    const SHORTEST: Duration = Duration::from_micros(20);
    const LONGEST: Duration = Duration::from_millis(500);

    /// Starts to wait.
    pub fn start() -> Rests {
        Rests { since: Instant::now() }
    }

    /// How long it has been waited.
    pub fn waited(&self) -> Duration {
        self.since.elapsed()
    }

    /// Lets the current SPDK thread do other things for a while.
    pub async fn rest(&self) {
        let pause = (self.waited() / 8).clamp(Self::SHORTEST, Self::LONGEST);
        let (sender, expired) = oneshot::channel();
        // SAFETY: tasks run on an SPDK thread. An error means that nobody waits any more.
        unsafe { Timer::start(pause, move || drop(sender.send(()))) };
        // The sender is dropped only after it has sent.
        let _ = expired.await;
    }
}

thread_local! {
    static SLICE: Arc<Semaphore> = Arc::new(Semaphore::new(1));
}

/// Long work of a task, cut into slices: between two of them the SPDK thread does its other
/// work, and only one of all tasks with such work has a slice at a time.
#[derive(Debug)]
pub struct Slices {
    turn: Option<SemaphoreGuardArc>,
    since: Instant,
    count: u64,
    long: u64,
    longest: Duration,
}

impl Slices {
    /// A slice ends at the first [`Slices::pause`] after so long.
    const LENGTH: Duration = Duration::from_micros(50);
    /// Those that are longer are counted: the thread has lost its core meanwhile, or works too much without
    /// a pause.
    const LONG: Duration = Duration::from_micros(100);

    /// Begins the first slice.
    pub async fn start() -> Slices {
        let turn = SLICE.with(Arc::clone).acquire_arc().await;
        Slices {
            turn: Some(turn),
            since: Instant::now(),
            count: 0,
            long: 0,
            longest: Duration::ZERO,
        }
    }

    /// Lets others have the thread, if the slice has been long enough. To be called after each few
    /// microseconds of work.
    pub async fn pause(&mut self) {
        if self.since.elapsed() >= Self::LENGTH {
            self.note();
            self.turn = None;
            next_round().await;
            self.turn = Some(SLICE.with(Arc::clone).acquire_arc().await);
            self.since = Instant::now();
        }
    }

    fn note(&mut self) {
        let length = self.since.elapsed();
        self.count += 1;
        self.long += u64::from(length > Self::LONG);
        self.longest = self.longest.max(length);
    }

    /// Ends the last slice.
    pub fn end(mut self) -> SlicesDone {
        self.note();
        self.turn = None;
        SlicesDone(self)
    }
}

/// Work that was done in slices, for the log.
#[derive(Debug)]
pub struct SlicesDone(Slices);

/// `120 slices, 1 longer than 100 us, the longest 180 us`
impl fmt::Display for SlicesDone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Slices { count, long, longest, .. } = &self.0;
        let (limit, longest) = (Slices::LONG.as_micros(), longest.as_micros());
        write!(f, "{count} slices, {long} longer than {limit} us, the longest {longest} us")
    }
}
