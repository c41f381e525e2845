//! A blobstore in memory, made when the target starts: it shows what SPDK's own code does, before
//! anything of it is relied on.

use std::cell::RefCell;
use std::os::raw::{c_int, c_void};
use std::ptr;
use std::rc::Rc;

use spdk_sys as sys;

use crate::blob::{BlobId, Blobstore};
use crate::error::{Error, Result, check};
use crate::lineage::ZeroesDev;
use crate::memory_dev;
use crate::task::{Callback, status, status_callback};

const CLUSTER_LEN: u32 = 32 * 1024;
const NUM_CLUSTERS: usize = 32;

/// SPDK's zeroes device.
///
/// It must run on an SPDK thread.
pub async fn zeroes_dev() -> Result<ZeroesDev> {
    let raw = create_blobstore().await?;
    // SAFETY: the blobstore was just made by this thread, and is unloaded at the end.
    let bs = unsafe { Blobstore::new(raw)? };
    let zeroes = async {
        let blob = bs.open(create_thin_blob(bs).await?).await?;
        // SAFETY: the blob is thin, and was made without a parent.
        let zeroes = unsafe { ZeroesDev::behind(&blob) };
        blob.close().await?;
        zeroes.ok_or_else(|| Error::new(libc::ENOTSUP, "SPDK gives a thin blob no backing device"))
    }
    .await;
    // SAFETY: nothing of the blobstore is open or used any more.
    let rc = status(|ctx| unsafe { sys::spdk_bs_unload(raw, Some(status_callback), ctx) }).await;
    check(rc, || "could not unload the scratch blobstore".to_owned())?;
    zeroes
}

async fn create_blobstore() -> Result<*mut sys::spdk_blob_store> {
    unsafe extern "C" fn created(ctx: *mut c_void, bs: *mut sys::spdk_blob_store, rc: c_int) {
        // SAFETY: SPDK gives the context back, once.
        unsafe { Callback::complete(ctx, (bs, rc)) }
    }
    let image = Rc::new(RefCell::new(vec![0; NUM_CLUSTERS * CLUSTER_LEN as usize]));
    let dev = memory_dev::create(image, None);
    let mut opts = sys::spdk_bs_opts::default();
    let (callback, done) = Callback::<(*mut sys::spdk_blob_store, c_int)>::new();
    // SAFETY: the device belongs to SPDK from here on, also if this fails; the options are copied.
    unsafe {
        sys::spdk_bs_opts_init(&mut opts, size_of::<sys::spdk_bs_opts>());
        opts.cluster_sz = CLUSTER_LEN;
        sys::spdk_bs_init(dev, &mut opts, Some(created), callback.into_ctx());
    }
    let (bs, rc) = done.await.unwrap_or((ptr::null_mut(), -libc::ECANCELED));
    check(rc, || "could not make a scratch blobstore".to_owned())?;
    Ok(bs)
}

async fn create_thin_blob(bs: Blobstore) -> Result<BlobId> {
    unsafe extern "C" fn created(ctx: *mut c_void, id: BlobId, rc: c_int) {
        // SAFETY: SPDK gives the context back, once.
        unsafe { Callback::complete(ctx, (id, rc)) }
    }
    let mut opts = sys::spdk_blob_opts::default();
    let (callback, done) = Callback::<(BlobId, c_int)>::new();
    // SAFETY: the blobstore is loaded and this is its thread (invariants of `Blobstore`); the
    // options are copied.
    unsafe {
        sys::spdk_blob_opts_init(&mut opts, size_of::<sys::spdk_blob_opts>());
        opts.thin_provision = true;
        opts.num_clusters = 1;
        sys::spdk_bs_create_blob_ext(bs.as_ptr(), &opts, Some(created), callback.into_ctx());
    }
    let (id, rc) = done.await.unwrap_or((sys::SPDK_BLOBID_INVALID, -libc::ECANCELED));
    check(rc, || "could not make a scratch blob".to_owned())?;
    Ok(id)
}
