//! A blobstore device in memory: what `scratch` and the tests run SPDK's blobstore on.

use std::cell::RefCell;
use std::os::raw::{c_int, c_void};
use std::ptr;
use std::rc::Rc;

use spdk_sys as sys;

/// Bytes of a block. A write of one block is whole or not at all; larger ones may be torn.
pub const BLOCK_LEN: usize = 512;

/// The device's content. It outlives the device.
pub type Image = Rc<RefCell<Vec<u8>>>;

/// What the device is asked to do. Offsets and lengths are in bytes.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// A read.
    Read {
        /// Where it starts.
        offset: u64,
        /// How long it is.
        len: usize,
    },
    /// A write. Unmaps are writes of zeroes.
    Write {
        /// Where it starts.
        offset: u64,
        /// What is written.
        bytes: &'a [u8],
    },
    /// A flush of the device's write cache.
    Flush,
}

/// Sees each event before it is done. What it returns, 0 or a negated errno, is the status; what
/// fails isn't done.
pub type Hook = Box<dyn FnMut(Event<'_>) -> c_int>;

/// # Invariants
///
/// It is on the heap, at an address that is registered as an io_device, and `dev` is its first
/// field, so that a pointer to `dev` is one to the whole. It is used on one SPDK thread.
#[repr(C)]
struct MemoryDev {
    dev: sys::spdk_bs_dev,
    image: Image,
    hook: Option<Hook>,
}

/// Makes a device. The blobstore that it is given to destroys it.
pub fn create(image: Image, hook: Option<Hook>) -> *mut sys::spdk_bs_dev {
    let blocks = image.borrow().len() / BLOCK_LEN;
    let dev = sys::spdk_bs_dev {
        create_channel: Some(create_channel),
        destroy_channel: Some(destroy_channel),
        destroy: Some(destroy),
        read: Some(read),
        write: Some(write),
        readv: Some(readv),
        writev: Some(writev),
        readv_ext: Some(readv_ext),
        writev_ext: Some(writev_ext),
        write_zeroes: Some(write_zeroes),
        unmap: Some(write_zeroes),
        flush: Some(flush),
        blockcnt: blocks as u64,
        blocklen: BLOCK_LEN as u32,
        ..Default::default()
    };
    let this = Box::into_raw(Box::new(MemoryDev { dev, image, hook }));
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
fn complete(cb_args: *mut sys::spdk_bs_dev_cb_args, status: c_int) {
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

impl MemoryDev {
    fn ask(&mut self, event: Event<'_>) -> c_int {
        self.hook.as_mut().map_or(0, |hook| hook(event))
    }
}

/// Where an I/O starts and ends in the image, if it is within.
fn range(dev: &MemoryDev, lba: u64, lba_count: u64) -> Option<std::ops::Range<usize>> {
    let start = usize::try_from(lba).ok()?.checked_mul(BLOCK_LEN)?;
    let end = usize::try_from(lba_count).ok()?.checked_mul(BLOCK_LEN)?.checked_add(start)?;
    (end <= dev.image.borrow().len()).then_some(start..end)
}

/// # Safety
///
/// `dev` is from `create`, and the parts of `iov` can be written to.
unsafe fn read_into(
    dev: *mut sys::spdk_bs_dev,
    iov: &[sys::iovec],
    lba: u64,
    lba_count: u32,
) -> c_int {
    // SAFETY: the device is the first field of a `MemoryDev` (invariant), and is used by one
    // thread; the hook has no way to it.
    let this = unsafe { &mut *dev.cast::<MemoryDev>() };
    let Some(range) = range(this, lba, lba_count.into()) else {
        return -libc::EIO;
    };
    let status = this.ask(Event::Read { offset: range.start as u64, len: range.len() });
    if status != 0 {
        return status;
    }
    let image = this.image.borrow();
    let mut source = image.get(range).unwrap_or_default();
    for part in iov {
        let (now, later) = source.split_at(source.len().min(part.iov_len));
        // SAFETY: the part can be written to, as the caller says.
        unsafe { ptr::copy_nonoverlapping(now.as_ptr(), part.iov_base.cast(), now.len()) };
        source = later;
    }
    0
}

/// # Safety
///
/// `dev` is from `create`.
unsafe fn write_bytes(dev: *mut sys::spdk_bs_dev, lba: u64, bytes: &[u8]) -> c_int {
    // SAFETY: the device is the first field of a `MemoryDev` (invariant), and is used by one
    // thread; the hook has no way to it.
    let this = unsafe { &mut *dev.cast::<MemoryDev>() };
    let Some(range) = range(this, lba, (bytes.len() / BLOCK_LEN) as u64) else {
        return -libc::EIO;
    };
    let status = this.ask(Event::Write { offset: range.start as u64, bytes });
    if status == 0
        && let Some(target) = this.image.borrow_mut().get_mut(range)
    {
        target.copy_from_slice(bytes);
    }
    status
}

/// # Safety
///
/// `dev` is from `create`, and the parts of `iov` can be read.
unsafe fn write_from(
    dev: *mut sys::spdk_bs_dev,
    iov: &[sys::iovec],
    lba: u64,
    lba_count: u32,
) -> c_int {
    let mut bytes = Vec::with_capacity(lba_count as usize * BLOCK_LEN);
    for part in iov {
        // SAFETY: the part can be read, as the caller says.
        bytes.extend_from_slice(unsafe {
            std::slice::from_raw_parts(part.iov_base.cast(), part.iov_len)
        });
    }
    bytes.truncate(lba_count as usize * BLOCK_LEN);
    // SAFETY: as the caller says.
    unsafe { write_bytes(dev, lba, &bytes) }
}

/// # Safety
///
/// `iov` has `iovcnt` elements.
unsafe fn parts<'a>(iov: *mut sys::iovec, iovcnt: c_int) -> &'a [sys::iovec] {
    // SAFETY: as the caller says.
    unsafe { std::slice::from_raw_parts(iov, usize::try_from(iovcnt).unwrap_or_default()) }
}

fn one_part(payload: *mut c_void, lba_count: u32) -> [sys::iovec; 1] {
    [sys::iovec { iov_base: payload, iov_len: lba_count as usize * BLOCK_LEN }]
}

unsafe extern "C" fn read(
    dev: *mut sys::spdk_bs_dev,
    _: *mut sys::spdk_io_channel,
    payload: *mut c_void,
    lba: u64,
    lba_count: u32,
    cb_args: *mut sys::spdk_bs_dev_cb_args,
) {
    // SAFETY: SPDK passes its device and a buffer of that many blocks.
    complete(cb_args, unsafe { read_into(dev, &one_part(payload, lba_count), lba, lba_count) });
}

unsafe extern "C" fn write(
    dev: *mut sys::spdk_bs_dev,
    _: *mut sys::spdk_io_channel,
    payload: *mut c_void,
    lba: u64,
    lba_count: u32,
    cb_args: *mut sys::spdk_bs_dev_cb_args,
) {
    // SAFETY: SPDK passes its device and a buffer of that many blocks.
    complete(cb_args, unsafe { write_from(dev, &one_part(payload, lba_count), lba, lba_count) });
}

unsafe extern "C" fn readv(
    dev: *mut sys::spdk_bs_dev,
    _: *mut sys::spdk_io_channel,
    iov: *mut sys::iovec,
    iovcnt: c_int,
    lba: u64,
    lba_count: u32,
    cb_args: *mut sys::spdk_bs_dev_cb_args,
) {
    // SAFETY: SPDK passes its device and buffers of that many blocks together.
    complete(cb_args, unsafe { read_into(dev, parts(iov, iovcnt), lba, lba_count) });
}

unsafe extern "C" fn writev(
    dev: *mut sys::spdk_bs_dev,
    _: *mut sys::spdk_io_channel,
    iov: *mut sys::iovec,
    iovcnt: c_int,
    lba: u64,
    lba_count: u32,
    cb_args: *mut sys::spdk_bs_dev_cb_args,
) {
    // SAFETY: SPDK passes its device and buffers of that many blocks together.
    complete(cb_args, unsafe { write_from(dev, parts(iov, iovcnt), lba, lba_count) });
}

unsafe extern "C" fn readv_ext(
    dev: *mut sys::spdk_bs_dev,
    channel: *mut sys::spdk_io_channel,
    iov: *mut sys::iovec,
    iovcnt: c_int,
    lba: u64,
    lba_count: u32,
    cb_args: *mut sys::spdk_bs_dev_cb_args,
    _: *mut sys::spdk_blob_ext_io_opts,
) {
    // SAFETY: as for `readv`.
    unsafe { readv(dev, channel, iov, iovcnt, lba, lba_count, cb_args) }
}

unsafe extern "C" fn writev_ext(
    dev: *mut sys::spdk_bs_dev,
    channel: *mut sys::spdk_io_channel,
    iov: *mut sys::iovec,
    iovcnt: c_int,
    lba: u64,
    lba_count: u32,
    cb_args: *mut sys::spdk_bs_dev_cb_args,
    _: *mut sys::spdk_blob_ext_io_opts,
) {
    // SAFETY: as for `writev`.
    unsafe { writev(dev, channel, iov, iovcnt, lba, lba_count, cb_args) }
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
    complete(cb_args, unsafe { write_bytes(dev, lba, &zeroes) });
}

unsafe extern "C" fn flush(
    dev: *mut sys::spdk_bs_dev,
    _: *mut sys::spdk_io_channel,
    cb_args: *mut sys::spdk_bs_dev_cb_args,
) {
    // SAFETY: the device is the first field of a `MemoryDev` (invariant), and is used by one thread;
    // the hook has no way to it.
    let this = unsafe { &mut *dev.cast::<MemoryDev>() };
    complete(cb_args, this.ask(Event::Flush));
}
