//! A load generator with verification that runs inside `spdk_tgt`, on all its cores: random reads,
//! writes, write-zeroes and unmaps, and each block that is read is checked.
//!
//! It is preloaded beside the extension and driven by JSON-RPC: see `rpc.rs`.

mod histogram;
mod job;
mod model;
mod rpc;

use std::sync::{Mutex, MutexGuard};

/// A lock that is held for a moment only. What a panicking thread leaves behind doesn't matter: a
/// panic in a callback ends the target.
fn locked<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
