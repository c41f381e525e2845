//! The SPDK subsystem `lvol_detach`, which starts with the target and depends on `bdev`. It is
//! registered by `c_shim/shim.c`.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use spdk_sys as sys;

use crate::{log, rpc, scratch, task};

/// Detaches that are under way.
static OPERATIONS: AtomicUsize = AtomicUsize::new(0);
/// The target stops, and waits for them.
static STOPPING: AtomicBool = AtomicBool::new(false);

/// Keeps the target from stopping until it is dropped.
#[derive(Debug)]
pub struct Operation(());

/// Says that an operation is under way.
pub fn operation_starts() -> Operation {
    OPERATIONS.fetch_add(1, Ordering::Relaxed);
    Operation(())
}

impl Drop for Operation {
    fn drop(&mut self) {
        let others = OPERATIONS.fetch_sub(1, Ordering::Relaxed) - 1;
        if others == 0 && STOPPING.swap(false, Ordering::Relaxed) {
            // SAFETY: `lvol_detach_fini` was called, and has left this to the last operation.
            unsafe { sys::spdk_subsystem_fini_next() };
        }
    }
}

/// Called by SPDK, once, when the subsystems that this one depends on are there.
#[unsafe(no_mangle)]
extern "C" fn lvol_detach_init() {
    log::init();
    // SAFETY: subsystems start on the thread that serves RPCs, and what a blobstore in memory has
    // to report it reports there.
    unsafe {
        task::spawn(async {
            match scratch::zeroes_dev().await {
                Ok(zeroes) => rpc::register(zeroes),
                Err(error) => tracing::error!("bdev_lvol_detach_parent is not registered: {error}"),
            }
            // The target serves its volumes either way.
            sys::spdk_subsystem_init_next(0);
        });
    }
}

/// Called by SPDK when the target stops, before the bdevs go.
#[unsafe(no_mangle)]
extern "C" fn lvol_detach_fini() {
    if OPERATIONS.load(Ordering::Relaxed) > 0 {
        STOPPING.store(true, Ordering::Relaxed);
    } else {
        // SAFETY: it is this subsystem's turn, as SPDK has called it.
        unsafe { sys::spdk_subsystem_fini_next() };
    }
}
