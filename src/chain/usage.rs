//! Whether an lvol is in use, as far as SPDK shows it.

use std::ffi::{CStr, CString};
use std::os::raw::{c_int, c_void};

use spdk_sys as sys;

use crate::base::task::Callback;
use crate::chain::lvol::Lvol;

/// A limit of an lvol's I/O, by SPDK's name for it.
pub type RateLimit = (String, u64);

/// What can be seen while the lvol is held open.
#[derive(Debug, Default)]
pub struct Traffic {
    /// The threads that have a channel to do I/O on it.
    pub channels: u64,
    /// Its I/Os in flight.
    pub io: u64,
    /// Its QoS limits, if it has any.
    pub limits: Vec<RateLimit>,
}

impl Traffic {
    /// What goes on now.
    pub async fn of(lvol: &Lvol) -> Traffic {
        let io = lvol.io_in_flight().await.map_or(0, |io| io.len() as u64);
        Traffic { channels: channels(lvol).await, io, limits: limits(lvol) }
    }
}

/// What can be seen once the check itself no longer holds it open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Openers {
    /// Whether its bdev is open.
    pub is_open: bool,
    /// Whether a bdev module has claimed it, for a bdev on top of it.
    pub is_claimed: bool,
}

impl Openers {
    /// Those of the bdev of this name. One that isn't there has none.
    pub fn of(bdev: &CStr) -> Openers {
        // SAFETY: the name is valid during the call. A bdev that is found is there until this thread, the
        // one that registers and unregisters lvols, goes on to something else; others open it only here
        // (`spdk_bdev_open_ext` refuses every other thread but the one of its own).
        unsafe {
            let bdev = sys::spdk_bdev_get_by_name(bdev.as_ptr());
            if bdev.is_null() {
                return Openers::default();
            }
            Openers {
                is_open: !(*bdev).internal.open_descs.tqh_first.is_null(),
                is_claimed: (*bdev).internal.claim_type != sys::SPDK_BDEV_CLAIM_NONE,
            }
        }
    }
}

fn limits(lvol: &Lvol) -> Vec<RateLimit> {
    let mut limits = [0; sys::SPDK_BDEV_QOS_NUM_RATE_LIMIT_TYPES as usize];
    // SAFETY: the lvol's bdev is registered (invariant of `Lvol`), and there is a place for each limit.
    unsafe { sys::spdk_bdev_get_qos_rate_limits(lvol.bdev(), limits.as_mut_ptr()) };
    let limits = limits.into_iter().zip(0..).filter(|&(limit, _)| limit != 0);
    // SAFETY: the type is one of those that have a limit; its name is a constant.
    let name = |kind| unsafe { CStr::from_ptr(sys::spdk_bdev_get_qos_rpc_type(kind)) };
    limits.map(|(limit, kind)| (name(kind).to_string_lossy().into_owned(), limit)).collect()
}

async fn channels(lvol: &Lvol) -> u64 {
    struct Count {
        channels: u64,
        callback: Callback<u64>,
    }
    unsafe extern "C" fn count(
        iter: *mut sys::spdk_bdev_channel_iter,
        _: *mut sys::spdk_bdev,
        _: *mut sys::spdk_io_channel,
        ctx: *mut c_void,
    ) {
        // SAFETY: it is the box from below, and SPDK visits one channel after the other.
        unsafe {
            (*ctx.cast::<Count>()).channels += 1;
            sys::spdk_bdev_for_each_channel_continue(iter, 0);
        }
    }
    unsafe extern "C" fn counted(_: *mut sys::spdk_bdev, ctx: *mut c_void, _: c_int) {
        // SAFETY: it is the box from below, and comes back once.
        unsafe {
            let Count { channels, callback } = *Box::from_raw(ctx.cast::<Count>());
            Callback::complete(callback.into_ctx(), channels);
        }
    }
    let (callback, done) = Callback::new();
    let ctx = Box::into_raw(Box::new(Count { channels: 0, callback })).cast();
    // SAFETY: the lvol's bdev is registered as long as it is held (invariant of `Lvol`).
    unsafe { sys::spdk_bdev_for_each_channel(lvol.bdev(), Some(count), ctx, Some(counted)) };
    done.await.unwrap_or_default()
}

/// What [`Openers::of`] finds the lvol's bdev by.
pub fn bdev_name(lvol: &Lvol) -> CString {
    // SAFETY: the lvol's bdev is registered (invariant of `Lvol`), and has a name.
    unsafe { CStr::from_ptr(sys::spdk_bdev_get_name(lvol.bdev())) }.to_owned()
}
