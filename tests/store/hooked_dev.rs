//! The device in memory, with somebody who sees what it is asked to do, and may let it fail.

use std::cell::RefCell;
use std::collections::HashMap;
use std::os::raw::{c_int, c_void};
use std::rc::Rc;

use spdk_lvol_detach::internals::memory_dev::{self, BLOCK_LEN, Image};
use spdk_sys as sys;

/// What the device is asked to do. Offsets and lengths are in bytes.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    Read {
        offset: u64,
        len: usize,
    },
    /// Unmaps are writes of zeroes.
    Write {
        offset: u64,
        bytes: &'a [u8],
    },
    /// Of the device's write cache.
    Flush,
}

/// Sees each event before it is done. What it returns, 0 or a negated errno, is the status; what
/// fails isn't done.
pub type Hook = Box<dyn FnMut(Event<'_>) -> c_int>;

struct Hooked {
    hook: Rc<RefCell<Hook>>,
    /// What the device does without the hook.
    plain: sys::spdk_bs_dev,
}

thread_local! {
    static HOOKED: RefCell<HashMap<*mut sys::spdk_bs_dev, Hooked>> = RefCell::default();
}

/// Makes a device. The blobstore that it is given to destroys it.
pub fn create(image: Image, hook: Option<Hook>) -> *mut sys::spdk_bs_dev {
    let dev = memory_dev::create(image);
    let hook = hook.unwrap_or_else(|| Box::new(|_| 0));
    // SAFETY: the device was just made, and is used by nobody yet.
    let plain = unsafe { *dev };
    HOOKED.with_borrow_mut(|all| {
        all.insert(dev, Hooked { hook: Rc::new(RefCell::new(hook)), plain });
    });
    // SAFETY: as above.
    unsafe {
        (*dev).read = Some(read);
        (*dev).write = Some(write);
        (*dev).write_zeroes = Some(write_zeroes);
        (*dev).unmap = Some(write_zeroes);
        (*dev).flush = Some(flush);
        (*dev).destroy = Some(destroy);
    }
    dev
}

/// What does it, unless the hook says that it fails: then that is its end.
fn ask(
    dev: *mut sys::spdk_bs_dev,
    event: Event<'_>,
    cb_args: *mut sys::spdk_bs_dev_cb_args,
) -> Option<sys::spdk_bs_dev> {
    let (hook, plain) = HOOKED.with_borrow(|all| {
        let hooked = &all[&dev];
        (Rc::clone(&hooked.hook), hooked.plain)
    });
    let status = (hook.borrow_mut())(event);
    if status != 0 {
        memory_dev::complete(cb_args, status);
        return None;
    }
    Some(plain)
}

unsafe extern "C" fn read(
    dev: *mut sys::spdk_bs_dev,
    channel: *mut sys::spdk_io_channel,
    payload: *mut c_void,
    lba: u64,
    lba_count: u32,
    cb_args: *mut sys::spdk_bs_dev_cb_args,
) {
    let len = lba_count as usize * BLOCK_LEN;
    if let Some(plain) = ask(dev, Event::Read { offset: lba * BLOCK_LEN as u64, len }, cb_args) {
        // SAFETY: SPDK's arguments are passed on.
        unsafe { plain.read.unwrap()(dev, channel, payload, lba, lba_count, cb_args) }
    }
}

unsafe extern "C" fn write(
    dev: *mut sys::spdk_bs_dev,
    channel: *mut sys::spdk_io_channel,
    payload: *mut c_void,
    lba: u64,
    lba_count: u32,
    cb_args: *mut sys::spdk_bs_dev_cb_args,
) {
    let len = lba_count as usize * BLOCK_LEN;
    // SAFETY: SPDK passes a buffer of that many blocks.
    let bytes = unsafe { std::slice::from_raw_parts(payload.cast(), len) };
    if let Some(plain) = ask(dev, Event::Write { offset: lba * BLOCK_LEN as u64, bytes }, cb_args) {
        // SAFETY: SPDK's arguments are passed on.
        unsafe { plain.write.unwrap()(dev, channel, payload, lba, lba_count, cb_args) }
    }
}

/// Also unmaps.
unsafe extern "C" fn write_zeroes(
    dev: *mut sys::spdk_bs_dev,
    channel: *mut sys::spdk_io_channel,
    lba: u64,
    lba_count: u64,
    cb_args: *mut sys::spdk_bs_dev_cb_args,
) {
    let zeroes = vec![0; lba_count as usize * BLOCK_LEN];
    if let Some(plain) =
        ask(dev, Event::Write { offset: lba * BLOCK_LEN as u64, bytes: &zeroes }, cb_args)
    {
        // SAFETY: SPDK's arguments are passed on.
        unsafe { plain.write_zeroes.unwrap()(dev, channel, lba, lba_count, cb_args) }
    }
}

/// What is written is in the image at once.
unsafe extern "C" fn flush(
    dev: *mut sys::spdk_bs_dev,
    _: *mut sys::spdk_io_channel,
    cb_args: *mut sys::spdk_bs_dev_cb_args,
) {
    if ask(dev, Event::Flush, cb_args).is_some() {
        memory_dev::complete(cb_args, 0);
    }
}

unsafe extern "C" fn destroy(dev: *mut sys::spdk_bs_dev) {
    let hooked = HOOKED.with_borrow_mut(|all| all.remove(&dev)).expect("it is destroyed once");
    // SAFETY: SPDK's argument is passed on.
    unsafe { hooked.plain.destroy.unwrap()(dev) }
}
