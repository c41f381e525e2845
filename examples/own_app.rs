//! An SPDK application of its own, in Rust, that detaches the lvol `lvs/vol` from its parent snapshot
//! `lvs/snap`. SPDK makes both from `chain.json`, on a malloc bdev.
//!
//! `cargo run --release --example own_app`

use std::error::Error;
use std::ffi::c_void;
use std::ptr::{NonNull, null_mut};

use spdk_sys as spdk;

/// Starts the application, which ends by itself.
pub fn main() -> Result<(), Box<dyn Error>> {
    let mut opts = spdk::spdk_app_opts::default();
    // SAFETY: the options and the strings in them are there until the application has ended; `started` is called
    // on the app thread.
    let rc = unsafe {
        spdk::spdk_app_opts_init(&mut opts, size_of_val(&opts));
        opts.name = c"own_app".as_ptr();
        opts.json_config_file = CONFIG.as_ptr().cast();
        opts.rpc_addr = null_mut();
        opts.no_huge = true;
        opts.no_pci = true;
        opts.mem_size = 1024;
        let rc = spdk::spdk_app_start(&mut opts, Some(started), null_mut());
        spdk::spdk_app_fini();
        rc
    };
    if rc == 0 { Ok(()) } else { Err(format!("the application has ended with {rc}").into()) }
}

const CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/chain.json\0");

unsafe extern "C" fn started(_: *mut c_void) {
    // SAFETY: this is the app thread, and what is waited for comes on it.
    unsafe {
        spdk_lvol_detach::spawn(async {
            let outcome = detach().await;
            if let Err(error) = &outcome {
                eprintln!("{error}");
            }
            spdk::spdk_app_stop(i32::from(outcome.is_err()));
        });
    }
}

async fn detach() -> Result<(), Box<dyn Error>> {
    spdk_lvol_detach::detach_parent(c"lvs/vol").await?;
    println!("lvs/vol is detached from lvs/snap");

    // Once more, by SPDK's pointer: it has no parent any more, which is an error.
    // SAFETY: this is the app thread; what SPDK gives out is an lvol of a loaded lvstore.
    let again = unsafe {
        let lvol = spdk::spdk_lvol_get_by_names(c"lvs".as_ptr(), c"vol".as_ptr());
        spdk_lvol_detach::detach_parent_of(NonNull::new(lvol).ok_or("there is no lvs/vol")?)
    };
    match again.await {
        Err(error) if error.code() == -libc::EINVAL => Ok(()),
        outcome => Err(format!("once more: {outcome:?}").into()),
    }
}
