//! The interface for programs in Rust; `c_api.rs` is the one for C.

use std::ffi::{CStr, CString};
use std::ptr::NonNull;

use spdk_sys as sys;

use crate::base::error::{Error, Result};
use crate::base::task;
use crate::chain::lvol::Lvol;
use crate::detach::detach_lvol;
use crate::start::ready;

/// Detaches the lvol with this UUID or alias (`lvs/lvol`) from its parent snapshot.
///
/// After `Ok` the lvol has no parent, in memory and on the device, flushed if the device can be flushed, and the
/// former parent may be deleted. After an error nothing has changed, unless [`Error::code`] is
/// `-ENOTRECOVERABLE`: then the lvol still has its parent, but may come up without it after a restart.
///
/// The operation starts with the call, and continues if the future is dropped. The future may be awaited on any
/// thread, by any executor that doesn't block the app thread; [`spawn`](crate::spawn) is one.
///
/// # Errors
///
/// Those of the JSON-RPC method, with the same codes, and
///
/// - `-ENOTSUP`: SPDK's subsystems have not started in this process, or the guard has found that the crate
///   was built for an SPDK other than the running one;
/// - `-EPERM`: the current thread is not SPDK's app thread, or the lvol's lvstore has another metadata thread.
pub fn detach_parent(name: &CStr) -> impl Future<Output = Result<()>> + Send + use<> {
    let name = name.to_owned();
    begin(|| Ok(name))
}

/// [`detach_parent`] for an lvol given by SPDK's pointer to it (`spdk_lvol_get_by_names`). An lvol without
/// a bdev is refused with `-ENODEV`.
///
/// # Safety
///
/// If the current thread is SPDK's app thread, `lvol` is an lvol of a loaded lvstore. It need not stay one until
/// the operation is done.
pub unsafe fn detach_parent_of(
    lvol: NonNull<sys::spdk_lvol>,
) -> impl Future<Output = Result<()>> + Send + use<> {
    // SAFETY: what the caller says. It is called at once, if this is the app thread.
    begin(move || unsafe { Lvol::bdev_name(lvol) })
}

fn begin<N>(name: N) -> impl Future<Output = Result<()>> + Send + use<N>
where
    N: FnOnce() -> Result<CString>,
{
    let (sender, outcome) = oneshot::channel();
    // An error means that the receiver is gone.
    start(name, move |result| drop(sender.send(result)));
    async move {
        let is_lost = |_| Err(Error::new(libc::ECANCELED, "the app thread is gone"));
        outcome.await.unwrap_or_else(is_lost)
    }
}

/// Starts a detach of the lvol that `name` returns, which is only called if operations may start here. `done` is
/// called once, on the current thread: before this returns, or from a message of the SPDK thread.
pub(crate) fn start(
    name: impl FnOnce() -> Result<CString>,
    done: impl FnOnce(Result<()>) + 'static,
) {
    let found = ready::check().and_then(|zeroes| Ok((zeroes, name()?)));
    match found {
        // SAFETY: the current thread is an SPDK thread, and what the operation waits for calls back on
        // the thread that asked for it.
        Ok((zeroes, name)) => unsafe {
            task::spawn(async move { done(detach_lvol(&name, zeroes).await) });
        },
        Err(error) => {
            tracing::warn!("{error}");
            done(Err(error));
        }
    }
}
