//! The volatile write cache of the device that a blobstore is on, which SPDK's blobstore never flushes.
//!
//! Whether there is one can't be determined: many bdevs report that they have none, whatever is below
//! (`spdk_bdev_has_write_cache`). So everything that can be flushed is, unless the operator says that no device
//! has a cache, with the environment variable [`SWITCH`]. `docs/operations.md` has a table of the modules.

use std::ffi::CStr;
use std::os::raw::{c_int, c_void};
use std::ptr::{self, NonNull};
use std::sync::OnceLock;

use spdk_sys as sys;

use crate::base::batch::{self, Batches};
use crate::base::error::{Error, Result};
use crate::base::json::Text;
use crate::base::task::{Callback, Rests, status, status_callback};
use crate::chain::blob::OpenBlob;
use crate::io::channel::Channel;
use crate::md::base_bdev::{BaseBdev, is_news};
use crate::md::file_sync;

/// `off`, when the target starts, for devices without a volatile cache: nothing is flushed.
pub const SWITCH: &str = "LVOL_DETACH_FLUSH";

/// Whether the operator has switched flushing off.
pub fn is_off() -> bool {
    static OFF: OnceLock<bool> = OnceLock::new();
    *OFF.get_or_init(|| std::env::var_os(SWITCH).is_some_and(|value| value == "off"))
}

thread_local! {
    static FLUSHES: Batches<*mut sys::spdk_bs_dev, c_int> = Batches::default();
}

/// When this is done, everything that the device has reported as written is durable. One flush serves all
/// who wait when it starts.
pub async fn flush(blob: &OpenBlob) -> std::result::Result<(), c_int> {
    if is_off() {
        return Ok(());
    }
    let dev = Dev::below(blob);
    let done = batch::join(&FLUSHES, dev.dev, async move || dev.flush().await).await;
    match done.unwrap_or(-libc::ECANCELED) {
        0 => Ok(()),
        rc => Err(rc.abs()),
    }
}

/// Why [`flush`] would fail whatever the device does, if it would.
pub fn check(blob: &OpenBlob) -> Result<()> {
    let dev = Dev::below(blob);
    // SAFETY: the blob, and so its blobstore's device, is in memory (`OpenBlob`).
    if is_off() || unsafe { (*dev.dev).flush }.is_some() {
        return Ok(());
    }
    dev.flushable().map(drop).map_err(|rc| match -rc {
        libc::ENOTSUP => Error::new(
            libc::ENOTSUP,
            "struct blob_bdev of the running SPDK is not the one that this was built for",
        ),
        // To a caller that would be a missing lvol.
        libc::ENODEV => Error::new(libc::EIO, "the base bdev is being removed"),
        _ => Error::new(rc, "the base bdev could not be opened"),
    })
}

/// Why [`flush`] does nothing, if it does nothing.
pub fn why_not(blob: &OpenBlob) -> Option<String> {
    if is_off() {
        return Some(format!("{SWITCH}=off"));
    }
    let dev = Dev::below(blob);
    // SAFETY: the blob, and so its blobstore's device, is in memory (`OpenBlob`).
    if unsafe { (*dev.dev).flush }.is_some() {
        return None;
    }
    let bdev = dev.flushable().ok().flatten()?;
    bdev.way().is_none().then(|| format!("the base bdev {} can't be flushed", bdev.base.name()))
}

/// A blobstore's device.
///
/// # Invariants
///
/// `dev` and its channel are there: it is used only while somebody waits, who has a blob open.
struct Dev {
    dev: *mut sys::spdk_bs_dev,
    channel: Channel,
}

impl Dev {
    fn below(blob: &OpenBlob) -> Dev {
        // SAFETY: the blob, and so its blobstore, is in memory, and this is the metadata thread
        // (`OpenBlob`).
        unsafe {
            let bs = (*blob.as_ptr()).bs;
            Dev { dev: (*bs).dev, channel: Channel::of_metadata(bs) }
        }
    }

    async fn flush(&self) -> c_int {
        // SAFETY: the device is there (invariant).
        if let Some(flush) = unsafe { (*self.dev).flush } {
            // SAFETY: as above.
            return unsafe { self.flush_by(flush) }.await;
        }
        match self.flushable() {
            Ok(Some(bdev)) => bdev.flush().await,
            Ok(None) => 0,
            Err(rc) => rc,
        }
    }

    /// `None` if it is on no bdev.
    fn flushable(&self) -> std::result::Result<Option<Flushable>, c_int> {
        // SAFETY: the device is there (invariant), and this is the metadata thread.
        let base = unsafe { BaseBdev::below(self.dev)? };
        Ok(base.map(|base| Flushable { base, channel: self.channel.dev_channel() }))
    }

    /// # Safety
    ///
    /// `flush` is the device's.
    async unsafe fn flush_by(
        &self,
        flush: unsafe extern "C" fn(
            *mut sys::spdk_bs_dev,
            *mut sys::spdk_io_channel,
            *mut sys::spdk_bs_dev_cb_args,
        ),
    ) -> c_int {
        unsafe extern "C" fn done(_: *mut sys::spdk_io_channel, ctx: *mut c_void, rc: c_int) {
            // SAFETY: the context is from `status`, and the device completes an I/O once.
            unsafe { status_callback(ctx, rc) }
        }
        let channel = self.channel.dev_channel();
        let mut args =
            sys::spdk_bs_dev_cb_args { cb_fn: Some(done), channel, ..Default::default() };
        let args = &raw mut args;
        // SAFETY: the arguments are there until the flush is done; the rest is what the caller says.
        status(|ctx| unsafe {
            (*args).cb_arg = ctx;
            flush(self.dev, channel, args);
        })
        .await
    }
}

/// The bdev below a blobstore.
///
/// # Invariants
///
/// `channel` is the current thread's of the bdev, and stays while the value is used.
struct Flushable {
    base: BaseBdev,
    channel: *mut sys::spdk_io_channel,
}

/// How a bdev is flushed.
enum Way {
    FileSync,
    NvmeCommand,
    Blocks,
}

impl Flushable {
    async fn flush(&self) -> c_int {
        match self.way() {
            Some(Way::FileSync) => match file_sync::sync(self.aio_filename()).await {
                Some(rc) => rc,
                None => self.flush_blocks().await,
            },
            Some(Way::NvmeCommand) => self.flush_nvme().await,
            Some(Way::Blocks) => self.flush_blocks().await,
            None => {
                self.say_unflushable();
                0
            }
        }
    }

    /// `None` if it can't be.
    fn way(&self) -> Option<Way> {
        // SAFETY: the bdev is open (invariant of `BaseBdev`), by a module with a name.
        let module = unsafe { CStr::from_ptr(sys::spdk_bdev_get_module_name(self.base.bdev)) };
        // `bdev_aio_flush` calls fsync on the reactor, which is then blocked for milliseconds.
        if module == c"aio" {
            return Some(Way::FileSync);
        }
        // Up to 25.05 `bdev_nvme` completes a flush without sending it, and later as well unless it is
        // told otherwise (`bdev_nvme_set_options --enable-flush`).
        if module == c"nvme" && self.supports(sys::SPDK_BDEV_IO_TYPE_NVME_IO) {
            return Some(Way::NvmeCommand);
        }
        // `bdev_virtio_scsi` says that it can, and fails each (`bdev_virtio_submit_request`).
        let can = module != c"virtio_scsi" && self.supports(sys::SPDK_BDEV_IO_TYPE_FLUSH);
        can.then_some(Way::Blocks)
    }

    fn supports(&self, io_type: sys::spdk_bdev_io_type) -> bool {
        // SAFETY: the bdev is open (invariant of `BaseBdev`).
        unsafe { sys::spdk_bdev_io_type_supported(self.base.bdev, io_type) }
    }

    async fn flush_blocks(&self) -> c_int {
        // SAFETY: the descriptor is open (invariant of `BaseBdev`), and the channel of its bdev (invariant).
        self.submit(|ctx| unsafe {
            let blocks = sys::spdk_bdev_get_num_blocks(self.base.bdev);
            sys::spdk_bdev_flush_blocks(self.base.desc, self.channel, 0, blocks, Some(io_done), ctx)
        })
        .await
    }

    /// The module fills in the namespace (`bdev_nvme_io_passthru`). A drive without a cache does
    /// nothing; one that doesn't know the command has none that it could be told to flush.
    async fn flush_nvme(&self) -> c_int {
        unsafe extern "C" fn done(io: *mut sys::spdk_bdev_io, success: bool, ctx: *mut c_void) {
            let (mut result, mut kind, mut code) = (0, 0, 0);
            // SAFETY: the bdev layer gives the I/O, which is one to an NVMe drive, and the context, once.
            unsafe {
                sys::spdk_bdev_io_get_nvme_status(io, &mut result, &mut kind, &mut code);
                sys::spdk_bdev_free_io(io);
                let is_unknown = (kind, code) == (0, INVALID_OPCODE);
                let rc = if is_unknown { -libc::ENOTSUP } else { -libc::EIO };
                Callback::complete(ctx, if success { 0 } else { rc });
            }
        }
        /// `SPDK_NVME_SC_INVALID_OPCODE`, of `SPDK_NVME_SCT_GENERIC`, which is 0.
        const INVALID_OPCODE: c_int = 1;
        // `SPDK_NVME_OPC_FLUSH` is 0, and so is all else.
        let command = sys::spdk_nvme_cmd::default();
        let command = &raw const command;
        // SAFETY: as above; the command is copied (`spdk_bdev_nvme_io_passthru`).
        let start = |ctx| unsafe {
            let (desc, channel, buffer) = (self.base.desc, self.channel, ptr::null_mut());
            sys::spdk_bdev_nvme_io_passthru(desc, channel, command, buffer, 0, Some(done), ctx)
        };
        match self.submit(start).await {
            rc if rc == -libc::ENOTSUP => {
                self.say_unflushable();
                0
            }
            rc => rc,
        }
    }

    /// `start` calls back only if it returns 0.
    async fn submit(&self, start: impl Fn(*mut c_void) -> c_int) -> c_int {
        let rests = Rests::start();
        loop {
            let (callback, done) = Callback::<c_int>::new();
            let ctx = callback.into_ctx();
            let rc = start(ctx);
            if rc == 0 {
                return done.await.unwrap_or(-libc::ECANCELED);
            }
            // SAFETY: it did not call back, and so the context is ours again.
            unsafe { Callback::complete(ctx, rc) };
            if rc != -libc::ENOMEM {
                return rc;
            }
            rests.rest().await;
        }
    }

    /// The name of the file that an AIO bdev is on, as `bdev_get_bdevs` shows it.
    fn aio_filename(&self) -> Option<String> {
        let text = Text::begin().ok()?;
        let json = text.json();
        json.begin_object();
        // SAFETY: the bdev is open (invariant of `BaseBdev`), and the writer in use.
        let rc = unsafe { sys::spdk_bdev_dump_info_json(self.base.bdev, json.as_ptr()) };
        json.end_object();
        let mut text = text.end().ok()?.into_bytes();
        if rc == 0 { filename_in(&mut text) } else { None }
    }

    fn say_unflushable(&self) {
        let name = self.base.name();
        if is_news("flush", &name) {
            tracing::warn!(
                "the bdev {name} can't be flushed: if its device has a volatile write cache, a detach \
                 may be undone by a power cut, and what is written later may survive without it"
            );
        }
    }
}

/// `spdk_bdev_io_completion_cb`
unsafe extern "C" fn io_done(io: *mut sys::spdk_bdev_io, success: bool, ctx: *mut c_void) {
    // SAFETY: the bdev layer gives the I/O and the context, once.
    unsafe {
        sys::spdk_bdev_free_io(io);
        Callback::complete(ctx, if success { 0 } else { -libc::EIO });
    }
}

/// `{"aio": {"filename": ...}}`
fn filename_in(json: &mut [u8]) -> Option<String> {
    let mut values =
        [const { sys::spdk_json_val { start: ptr::null_mut(), len: 0, type_: 0 } }; 64];
    let any = sys::SPDK_JSON_VAL_OBJECT_BEGIN;
    // SAFETY: the values point into the text, which stays as long; there is room for as many as is
    // said, and those that were found end the search. The copy of the string comes from malloc.
    unsafe {
        let (start, len) = (json.as_mut_ptr().cast(), json.len());
        let (count, flags) = (values.len(), sys::SPDK_JSON_PARSE_FLAG_DECODE_IN_PLACE);
        let found =
            sys::spdk_json_parse(start, len, values.as_mut_ptr(), count, ptr::null_mut(), flags);
        if found <= 0 || found as usize > count {
            return None;
        }
        let (mut aio, mut name, key) = (ptr::null_mut(), ptr::null_mut(), ptr::null_mut());
        if sys::spdk_json_find(values.as_mut_ptr(), c"aio".as_ptr(), key, &mut aio, any) != 0
            || sys::spdk_json_find_string(aio, c"filename".as_ptr(), key, &mut name) != 0
        {
            return None;
        }
        let copy = NonNull::new(sys::spdk_json_strdup(name))?;
        let text = CStr::from_ptr(copy.as_ptr()).to_str().ok().map(str::to_owned);
        libc::free(copy.as_ptr().cast());
        text
    }
}
