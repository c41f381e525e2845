//! The SPDK subsystem `lvol_detach`, which starts with the target and depends on `bdev`. It is
//! registered by `c_shim/shim.c`.

use std::sync::atomic::{AtomicBool, Ordering};

use async_lock::{Semaphore, SemaphoreGuard};
use spdk_sys as sys;

use crate::error::{Error, Result};
use crate::{guard, log, rpc, task, version};

const MAX_OPERATIONS: usize = 256;

/// A detach that is under way has one of these; the others wait. The metadata channel of a lvstore
/// has 512 request sets (`SPDK_LVOL_BLOB_OPTS_CHANNEL_OPS`) for everybody, and whoever finds none
/// gets ENOMEM.
static OPERATIONS: Semaphore = Semaphore::new(MAX_OPERATIONS);
static STOPPING: AtomicBool = AtomicBool::new(false);

/// Waits for a turn. The target doesn't stop before it is dropped.
pub async fn begin_operation() -> Result<SemaphoreGuard<'static>> {
    let turn = OPERATIONS.acquire().await;
    if STOPPING.load(Ordering::Relaxed) {
        return Err(Error::new(libc::ESHUTDOWN, "the target is about to stop"));
    }
    Ok(turn)
}

/// Called by SPDK, once, when the subsystems that this one depends on are there.
#[unsafe(no_mangle)]
extern "C" fn lvol_detach_init() {
    log::init();
    // SAFETY: subsystems start on the thread that serves RPCs, and what a lvstore in memory
    // has to report it reports there.
    unsafe {
        task::spawn(async {
            match guard::prove().await {
                Ok(zeroes) => rpc::register(zeroes),
                Err(error) => refuse(&error),
            }
            log::flush();
            // The target serves its volumes either way.
            sys::spdk_subsystem_init_next(0);
        });
    }
}

fn refuse(error: &Error) {
    let built_for = version::built_for();
    let running = version::running().unwrap_or_else(|| "of unknown version".to_owned());
    tracing::error!(
        "bdev_lvol_detach_parent is not registered, as this extension does not fit the target: it \
         is built for SPDK {built_for}, the target is SPDK {running}, and {error}. Build it again \
         with the SPDK tree that the target is built from"
    );
}

/// Called by SPDK when the target stops, before the bdevs go. It goes on when no detach is under
/// way, and refuses those that come.
#[unsafe(no_mangle)]
extern "C" fn lvol_detach_fini() {
    // SAFETY: subsystems stop on the thread that serves RPCs, where operations end.
    unsafe {
        task::spawn(async {
            STOPPING.store(true, Ordering::Relaxed);
            let mut turns = Vec::with_capacity(MAX_OPERATIONS);
            while turns.len() < MAX_OPERATIONS {
                turns.push(OPERATIONS.acquire().await);
            }
            drop(turns);
            log::flush();
            sys::spdk_subsystem_fini_next();
        });
    }
}
