//! The SPDK subsystem `lvol_detach`, which starts with the target and depends on `bdev`. It is
//! registered by `c_shim/shim.c`.

use spdk_sys as sys;

use crate::base::error::Error;
use crate::base::log;
use crate::base::task;
use crate::rpc;
use crate::start::guard;
use crate::start::ready;
use crate::start::version;
use crate::turns;

/// Called by SPDK, once, when the subsystems that this one depends on are there.
#[unsafe(no_mangle)]
extern "C" fn lvol_detach_init() {
    log::init();
    // SAFETY: subsystems start on the thread that serves RPCs, and what an lvstore in memory
    // has to report it reports there.
    unsafe {
        task::spawn(async {
            match guard::prove().await {
                Ok(zeroes) => {
                    ready::set(zeroes);
                    rpc::register();
                }
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
    if error.is_misfit() {
        tracing::error!(
            "bdev_lvol_detach_parent is not registered, as this extension does not fit the target: it \
             is built for SPDK {built_for}, the target is SPDK {running}, and {error}. Build it again \
             with the SPDK tree that the target is built from"
        );
    } else {
        tracing::error!(
            "bdev_lvol_detach_parent is not registered, as it could not be found out whether this \
             extension fits the target: {error}. Start the target again, with more memory"
        );
    }
}

/// Called by SPDK when the target stops, before the bdevs go. It goes on when no detach is under
/// way, and refuses those that come.
#[unsafe(no_mangle)]
extern "C" fn lvol_detach_fini() {
    // SAFETY: subsystems stop on the thread that serves RPCs, where operations end.
    unsafe {
        task::spawn(async {
            turns::end().await;
            log::flush();
            sys::spdk_subsystem_fini_next();
        });
    }
}
