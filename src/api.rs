//! The interface for programs in Rust; `c_api.rs` is the one for C.

use std::ffi::{CStr, CString};
use std::ptr::NonNull;

use spdk_sys as sys;

use crate::answer;
use crate::base::error::{Error, Result};
use crate::base::task;
use crate::chain::lvol::Lvol;
use crate::check::check_lvol;
use crate::detach::detach_lvol;
use crate::io::backing::ZeroesDev;
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
    begin(|| Ok(name), detach)
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
    begin(move || unsafe { Lvol::bdev_name(lvol) }, detach)
}

/// Says what [`detach_parent`] would do to the lvol with this UUID or alias, and changes nothing. The text is
/// JSON, the result of the method `bdev_lvol_check_detach_parent` (`docs/jsonrpc.md`); `with_ranges` adds which
/// clusters would be lost.
///
/// It starts, goes on and may be awaited as a detach.
///
/// # Errors
///
/// Those of the JSON-RPC method, and `-ENOTSUP` and `-EPERM` as for a detach. What a detach would be refused with
/// is no error: the text says it.
pub fn check_detach_parent(
    name: &CStr,
    with_ranges: bool,
) -> impl Future<Output = Result<String>> + Send + use<> {
    let name = name.to_owned();
    begin(|| Ok(name), move |name, _| check(name, with_ranges))
}

/// [`check_detach_parent`] for an lvol given by SPDK's pointer to it.
///
/// # Safety
///
/// As for [`detach_parent_of`].
pub unsafe fn check_detach_parent_of(
    lvol: NonNull<sys::spdk_lvol>,
    with_ranges: bool,
) -> impl Future<Output = Result<String>> + Send + use<> {
    // SAFETY: what the caller says. It is called at once, if this is the app thread.
    begin(move || unsafe { Lvol::bdev_name(lvol) }, move |name, _| check(name, with_ranges))
}

/// An operation for [`start`].
pub(crate) async fn detach(name: CString, zeroes: ZeroesDev) -> Result<()> {
    detach_lvol(&name, zeroes).await
}

/// What an operation for [`start`] does with the name.
pub(crate) async fn check(name: CString, with_ranges: bool) -> Result<String> {
    let findings = check_lvol(&name, with_ranges).await?;
    answer::text(&findings, with_ranges).await
}

fn begin<N, O, T, F>(
    name: N,
    operation: O,
) -> impl Future<Output = Result<T>> + Send + use<N, O, T, F>
where
    N: FnOnce() -> Result<CString>,
    O: FnOnce(CString, ZeroesDev) -> F + 'static,
    T: Send + 'static,
    F: Future<Output = Result<T>> + 'static,
{
    let (sender, outcome) = oneshot::channel();
    // An error means that the receiver is gone.
    start(name, operation, move |result| drop(sender.send(result)));
    async move {
        let is_lost = |_| Err(Error::new(libc::ECANCELED, "the app thread is gone"));
        outcome.await.unwrap_or_else(is_lost)
    }
}

/// Starts an operation on the lvol that `name` returns, which is only called if operations may start here. `done`
/// is called once, on the current thread: before this returns, or from a message of the SPDK thread.
pub(crate) fn start<T, F>(
    name: impl FnOnce() -> Result<CString>,
    operation: impl FnOnce(CString, ZeroesDev) -> F + 'static,
    done: impl FnOnce(Result<T>) + 'static,
) where
    T: 'static,
    F: Future<Output = Result<T>> + 'static,
{
    let found = ready::check().and_then(|zeroes| Ok((zeroes, name()?)));
    match found {
        // SAFETY: the current thread is an SPDK thread, and what the operation waits for calls back on
        // the thread that asked for it.
        Ok((zeroes, name)) => unsafe {
            task::spawn(async move { done(operation(name, zeroes).await) });
        },
        Err(error) => {
            tracing::warn!("{error}");
            done(Err(error));
        }
    }
}
