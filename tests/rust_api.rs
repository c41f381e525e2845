//! The interface for Rust: the example, and what is refused.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../examples/own_app.rs"]
mod own_app;

use std::pin::pin;
use std::ptr::NonNull;
use std::task::{Context, Poll, Waker};

use spdk_lvol_detach::{Error, detach_parent, detach_parent_of};

/// What an operation that is refused answers at once.
#[track_caller]
fn refusal(outcome: impl Future<Output = Result<(), Error>> + Send) -> i32 {
    match pin!(outcome).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Err(error)) => error.code(),
        outcome => panic!("{outcome:?}"),
    }
}

/// One test, as a process starts SPDK once.
#[test]
fn the_example_runs_and_other_threads_are_refused() {
    let no_lvol = NonNull::dangling();
    assert_eq!(refusal(detach_parent(c"lvs/vol")), -libc::ENOTSUP);
    // SAFETY: this is not the app thread.
    assert_eq!(refusal(unsafe { detach_parent_of(no_lvol) }), -libc::ENOTSUP);

    own_app::main().unwrap();

    // The guard has passed, but this is no thread of SPDK's.
    assert_eq!(refusal(detach_parent(c"lvs/vol")), -libc::EPERM);
    // SAFETY: this is not the app thread.
    assert_eq!(refusal(unsafe { detach_parent_of(no_lvol) }), -libc::EPERM);
}
