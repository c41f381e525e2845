//! A blobstore device in memory, with what SPDK's blobstore needs of one.

use std::cell::RefCell;
use std::os::raw::{c_int, c_void};
use std::ptr;
use std::rc::Rc;

use spdk_sys as sys;

/// Bytes of a block. A write of one block is whole or not at all; larger ones may be torn.
pub const BLOCK_LEN: usize = 512;

/// The device's content. It outlives the device.
pub type Image = Rc<RefCell<Vec<u8>>>;

/// # Invariants
///
/// It is on the heap, at an address that is registered as an io_device, and `dev` is its first
/// field, so that a pointer to `dev` is one to the whole. It is used on one SPDK thread.
#[repr(C)]
struct MemoryDev {
    dev: sys::spdk_bs_dev,
    image: Image,
}

/// Makes a device. The blobstore that it is given to destroys it.
pub fn create(image: Image) -> *mut sys::spdk_bs_dev {
    let blocks = image.borrow().len() / BLOCK_LEN;
    let dev = sys::spdk_bs_dev {
        create_channel: Some(create_channel),
        destroy_channel: Some(destroy_channel),
        destroy: Some(destroy),
        read: Some(read),
        write: Some(write),
        write_zeroes: Some(write_zeroes),
        unmap: Some(write_zeroes),
        blockcnt: blocks as u64,
        blocklen: BLOCK_LEN as u32,
        ..Default::default()
    };
    let this = Box::into_raw(Box::new(MemoryDev { dev, image }));
    // SAFETY: the address is unique, and stays valid until `destroy` has unregistered it.
    unsafe {
        sys::spdk_io_device_register(
            this.cast(),
            Some(channel_created),
            Some(channel_destroyed),
            0,
            c"lvol_detach_memory".as_ptr(),
        );
        &raw mut (*this).dev
    }
}

unsafe extern "C" fn channel_created(_: *mut c_void, _: *mut c_void) -> c_int {
    0
}
unsafe extern "C" fn channel_destroyed(_: *mut c_void, _: *mut c_void) {}

unsafe extern "C" fn create_channel(dev: *mut sys::spdk_bs_dev) -> *mut sys::spdk_io_channel {
    // SAFETY: the device is a registered io_device (invariant).
    unsafe { sys::spdk_get_io_channel(dev.cast()) }
}

unsafe extern "C" fn destroy_channel(_: *mut sys::spdk_bs_dev, channel: *mut sys::spdk_io_channel) {
    // SAFETY: the channel is from `create_channel`.
    unsafe { sys::spdk_put_io_channel(channel) }
}

unsafe extern "C" fn destroy(dev: *mut sys::spdk_bs_dev) {
    unsafe extern "C" fn unregistered(dev: *mut c_void) {
        // SAFETY: it is the box of `create`, and nobody uses it any more.
        drop(unsafe { Box::from_raw(dev.cast::<MemoryDev>()) });
    }
    // SAFETY: the device is a registered io_device (invariant), and SPDK destroys it once.
    unsafe { sys::spdk_io_device_unregister(dev.cast(), Some(unregistered)) }
}

/// Completes an I/O from the thread's next round, as a device does.
pub fn complete(cb_args: *mut sys::spdk_bs_dev_cb_args, status: c_int) {
    struct Done(*mut sys::spdk_bs_dev_cb_args, c_int);
    unsafe extern "C" fn done(ctx: *mut c_void) {
        // SAFETY: the box is from below. SPDK keeps the arguments until the callback is called,
        // which is done once.
        unsafe {
            let Done(args, status) = *Box::from_raw(ctx.cast::<Done>());
            if let Some(callback) = (*args).cb_fn {
                callback((*args).channel, (*args).cb_arg, status);
            }
        }
    }
    let ctx = Box::into_raw(Box::new(Done(cb_args, status))).cast();
    // SAFETY: the current thread is an SPDK thread, as it does I/O.
    unsafe {
        if sys::spdk_thread_send_msg(sys::spdk_get_thread(), Some(done), ctx) != 0 {
            done(ctx);
        }
    }
}

/// Where an I/O starts and ends in the image, if it is within.
fn range(dev: &MemoryDev, lba: u64, lba_count: u64) -> Option<std::ops::Range<usize>> {
    let start = usize::try_from(lba).ok()?.checked_mul(BLOCK_LEN)?;
    let end = usize::try_from(lba_count).ok()?.checked_mul(BLOCK_LEN)?.checked_add(start)?;
    (end <= dev.image.borrow().len()).then_some(start..end)
}

/// The device behind SPDK's pointer to it.
///
/// # Safety
///
/// `dev` is from `create`, and not destroyed.
unsafe fn this<'a>(dev: *mut sys::spdk_bs_dev) -> &'a MemoryDev {
    // SAFETY: the device is the first field of a `MemoryDev` (invariant).
    unsafe { &*dev.cast::<MemoryDev>() }
}

unsafe extern "C" fn read(
    dev: *mut sys::spdk_bs_dev,
    _: *mut sys::spdk_io_channel,
    payload: *mut c_void,
    lba: u64,
    lba_count: u32,
    cb_args: *mut sys::spdk_bs_dev_cb_args,
) {
    // SAFETY: SPDK passes its device.
    let this = unsafe { this(dev) };
    let status = match range(this, lba, lba_count.into()) {
        Some(range) => {
            let image = this.image.borrow();
            let bytes = image.get(range).unwrap_or_default();
            // SAFETY: SPDK passes a buffer of that many blocks.
            unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), payload.cast(), bytes.len()) };
            0
        }
        None => -libc::EIO,
    };
    complete(cb_args, status);
}

unsafe extern "C" fn write(
    dev: *mut sys::spdk_bs_dev,
    _: *mut sys::spdk_io_channel,
    payload: *mut c_void,
    lba: u64,
    lba_count: u32,
    cb_args: *mut sys::spdk_bs_dev_cb_args,
) {
    let len = lba_count as usize * BLOCK_LEN;
    // SAFETY: SPDK passes its device, and a buffer of that many blocks.
    let (this, bytes) = unsafe { (this(dev), std::slice::from_raw_parts(payload.cast(), len)) };
    complete(cb_args, put(this, lba, bytes));
}

/// Also unmaps.
unsafe extern "C" fn write_zeroes(
    dev: *mut sys::spdk_bs_dev,
    _: *mut sys::spdk_io_channel,
    lba: u64,
    lba_count: u64,
    cb_args: *mut sys::spdk_bs_dev_cb_args,
) {
    let zeroes = vec![0; usize::try_from(lba_count).unwrap_or_default() * BLOCK_LEN];
    // SAFETY: SPDK passes its device.
    complete(cb_args, put(unsafe { this(dev) }, lba, &zeroes));
}

fn put(dev: &MemoryDev, lba: u64, bytes: &[u8]) -> c_int {
    let range = range(dev, lba, (bytes.len() / BLOCK_LEN) as u64);
    let mut image = dev.image.borrow_mut();
    match range.and_then(|range| image.get_mut(range)) {
        Some(target) => {
            target.copy_from_slice(bytes);
            0
        }
        None => -libc::EIO,
    }
}
