//! SPDK's own blobstore on a device in memory, without a target: what the tests of durability
//! play on. Nothing of it is simulated but the device.

#![allow(dead_code, reason = "each test crate uses its part")]

pub mod faulty_dev;
pub mod hooked_dev;
pub mod journal;
pub mod power_cut;
pub mod recording;
pub mod scenarios;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::c_int;
use std::os::raw::{c_char, c_void};
use std::ptr::{self, NonNull};
use std::rc::Rc;
use std::sync::{Once, OnceLock};
use std::task::{Context, Poll, Waker};

use spdk_lvol_detach::internals::backing::ZeroesDev;
use spdk_lvol_detach::internals::blob::{BlobId, Blobstore, OpenBlob};
use spdk_lvol_detach::internals::error::{Error, Result, check};
use spdk_lvol_detach::internals::guard;
use spdk_lvol_detach::internals::log;
use spdk_lvol_detach::internals::memory_dev::{self, Image};
use spdk_lvol_detach::internals::steps::Steps;
use spdk_lvol_detach::internals::task::{self, Callback, status, status_callback};
use spdk_lvol_detach::internals::{Detached, detach};
use spdk_sys as sys;

use hooked_dev::Hook;

/// Bytes of a cluster, unless a [`Layout`] says otherwise.
pub const CLUSTER_LEN: usize = 16 * 1024;
/// Bytes of an io unit, the smallest I/O.
pub const IO_UNIT_LEN: usize = memory_dev::BLOCK_LEN;
/// Bytes of a metadata page, unless a [`Layout`] says that it takes more room.
pub const MD_PAGE_LEN: usize = size_of::<sys::spdk_blob_md_page>();

/// Runs a test on an SPDK thread of its own. Tests may run side by side.
pub fn run<T: 'static>(test: impl Future<Output = T> + 'static) -> T {
    static ENV: Once = Once::new();
    // SAFETY: the options are initialized, and the name outlives the call.
    ENV.call_once(|| unsafe {
        let mut opts = sys::spdk_env_opts::default();
        #[cfg(spdk_env_opts_size)]
        {
            opts.opts_size = size_of::<sys::spdk_env_opts>();
        }
        sys::spdk_env_opts_init(&mut opts);
        opts.name = c"lvol_detach_test".as_ptr();
        opts.core_mask = c"0x1".as_ptr();
        opts.no_pci = true;
        opts.no_huge = true;
        opts.mem_size = 512;
        opts.shm_id = -1;
        assert_eq!(sys::spdk_env_init(&opts), 0, "SPDK's environment did not start");
        assert_eq!(sys::spdk_thread_lib_init(None, 0), 0, "SPDK's threads did not start");
        sys::spdk_log_set_print_level(sys::SPDK_LOG_DISABLED);
    });
    // SAFETY: the thread is polled by this OS thread alone, and gone when this returns.
    unsafe {
        let thread = sys::spdk_thread_create(c"test".as_ptr(), ptr::null());
        assert!(!thread.is_null());
        sys::spdk_set_thread(thread);
        log::init();
        let result = Rc::new(RefCell::new(None));
        let slot = Rc::clone(&result);
        task::spawn(async move {
            let value = test.await;
            *slot.borrow_mut() = Some(value);
        });
        while result.borrow().is_none() {
            sys::spdk_thread_poll(thread, 0, 0);
        }
        sys::spdk_thread_exit(thread);
        while !sys::spdk_thread_is_exited(thread) {
            sys::spdk_thread_poll(thread, 0, 0);
        }
        sys::spdk_thread_destroy(thread);
        sys::spdk_set_thread(ptr::null_mut());
        result.take().expect("the test has ended")
    }
}

/// SPDK's zeroes device, as the guard finds it: once is enough.
async fn zeroes_dev() -> Result<ZeroesDev> {
    static ZEROES: OnceLock<ZeroesDev> = OnceLock::new();
    if let Some(&zeroes) = ZEROES.get() {
        return Ok(zeroes);
    }
    let zeroes = guard::prove().await?;
    Ok(*ZEROES.get_or_init(|| zeroes))
}

/// An image of so many clusters.
pub fn image(clusters: usize) -> Image {
    Rc::new(RefCell::new(vec![0; clusters * CLUSTER_LEN]))
}

/// How a blobstore is laid out.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    pub cluster_len: usize,
    /// Bytes that a metadata page takes.
    pub md_page_len: usize,
    /// Whether blobs have an extent table, as those of lvols do. SPDK's default is that they don't.
    pub extent_table: bool,
}

impl Layout {
    pub const DEFAULT: Layout =
        Layout { cluster_len: CLUSTER_LEN, md_page_len: MD_PAGE_LEN, extent_table: true };
}

/// A loaded blobstore, and what the extension needs to detach in it.
pub struct Store {
    raw: *mut sys::spdk_blob_store,
    bs: Blobstore,
    zeroes: ZeroesDev,
    channel: NonNull<sys::spdk_io_channel>,
    cluster_len: usize,
    extent_table: bool,
}

unsafe extern "C" fn store_callback(ctx: *mut c_void, bs: *mut sys::spdk_blob_store, rc: c_int) {
    // SAFETY: SPDK gives the context back, once.
    unsafe { Callback::complete(ctx, (bs, rc)) }
}

unsafe extern "C" fn id_callback(ctx: *mut c_void, id: BlobId, rc: c_int) {
    // SAFETY: SPDK gives the context back, once.
    unsafe { Callback::complete(ctx, (id, rc)) }
}

impl Store {
    /// Makes a blobstore on an empty image.
    pub async fn create(image: &Image, hook: Option<Hook>) -> Result<Store> {
        Store::start(image, hook, Some(Layout::DEFAULT)).await
    }

    /// As [`Store::create`], laid out otherwise.
    pub async fn create_with(image: &Image, layout: Layout) -> Result<Store> {
        let store = Store::start(image, None, Some(layout)).await?;
        Ok(Store { extent_table: layout.extent_table, ..store })
    }

    /// Loads the blobstore that an image has.
    pub async fn load(image: &Image, hook: Option<Hook>) -> Result<Store> {
        Store::start(image, hook, None).await
    }

    async fn start(image: &Image, hook: Option<Hook>, create: Option<Layout>) -> Result<Store> {
        let zeroes = zeroes_dev().await?;
        let dev = hooked_dev::create(Rc::clone(image), hook);
        let mut opts = sys::spdk_bs_opts::default();
        let (callback, done) = Callback::<(*mut sys::spdk_blob_store, c_int)>::new();
        // SAFETY: the device belongs to SPDK from here on; the options are copied.
        unsafe {
            sys::spdk_bs_opts_init(&mut opts, size_of::<sys::spdk_bs_opts>());
            let ctx = callback.into_ctx();
            let layout = create.unwrap_or(Layout::DEFAULT);
            // A load takes what is on the device, but refuses one with no room for a cluster of that size.
            opts.cluster_sz = layout.cluster_len as u32;
            if create.is_some() {
                #[cfg(spdk_md_page_size)]
                {
                    opts.md_page_size = layout.md_page_len as u32;
                }
                sys::spdk_bs_init(dev, &mut opts, Some(store_callback), ctx);
            } else {
                sys::spdk_bs_load(dev, &mut opts, Some(store_callback), ctx);
            }
        }
        let (raw, rc) = done.await.expect("SPDK calls back");
        check(rc, || "could not start the blobstore".to_owned())?;
        // SAFETY: the blobstore is loaded, by this thread, until `unload` consumes the store.
        unsafe {
            let bs = Blobstore::new(raw)?;
            let channel = NonNull::new(sys::spdk_bs_alloc_io_channel(raw)).expect("a channel");
            let cluster_len = sys::spdk_bs_get_cluster_size(raw) as usize;
            Ok(Store { raw, bs, zeroes, channel, cluster_len, extent_table: true })
        }
    }

    /// Unloads it cleanly. Everything must be closed.
    pub async fn unload(self) -> Result<()> {
        // SAFETY: the store is loaded, and consumed.
        let rc = status(|ctx| unsafe {
            sys::spdk_bs_free_io_channel(self.channel.as_ptr());
            sys::spdk_bs_unload(self.raw, Some(status_callback), ctx);
        })
        .await;
        check(rc, || "unload".to_owned())
    }

    /// A blob of so many clusters.
    pub async fn create_blob(&self, clusters: u64, thin: bool) -> Result<BlobId> {
        let mut opts = sys::spdk_blob_opts::default();
        // SAFETY: the options are initialized.
        unsafe { sys::spdk_blob_opts_init(&mut opts, size_of::<sys::spdk_blob_opts>()) };
        opts.thin_provision = thin;
        opts.num_clusters = clusters;
        opts.use_extent_table = self.extent_table;
        self.id("create", |ctx| {
            // SAFETY: the store is loaded; the options are copied.
            unsafe { sys::spdk_bs_create_blob_ext(self.raw, &opts, Some(id_callback), ctx) }
        })
        .await
    }

    pub async fn snapshot(&self, id: BlobId) -> Result<BlobId> {
        // SAFETY: the store is loaded.
        self.id("snapshot", |ctx| unsafe {
            sys::spdk_bs_create_snapshot(self.raw, id, ptr::null(), Some(id_callback), ctx);
        })
        .await
    }

    /// A snapshot that has an xattr from the start: later it is read-only.
    pub async fn snapshot_with_xattr(
        &self,
        id: BlobId,
        name: &'static std::ffi::CStr,
        value: &[u8],
    ) -> Result<BlobId> {
        unsafe extern "C" fn get_value(
            value: *mut c_void,
            _: *const c_char,
            bytes: *mut *const c_void,
            length: *mut usize,
        ) {
            // SAFETY: `value` is the slice below; SPDK copies its bytes.
            unsafe {
                let value = &*value.cast::<&[u8]>();
                *bytes = value.as_ptr().cast();
                *length = value.len();
            }
        }
        let mut names = [name.as_ptr().cast_mut()];
        let xattrs = sys::spdk_blob_xattr_opts {
            count: 1,
            names: names.as_mut_ptr(),
            ctx: (&raw const value).cast_mut().cast(),
            get_value: Some(get_value),
        };
        // SAFETY: the store is loaded; the options live until the snapshot is there.
        self.id("snapshot", |ctx| unsafe {
            sys::spdk_bs_create_snapshot(self.raw, id, &xattrs, Some(id_callback), ctx);
        })
        .await
    }

    pub async fn clone_of(&self, id: BlobId) -> Result<BlobId> {
        // SAFETY: the store is loaded.
        self.id("clone", |ctx| unsafe {
            sys::spdk_bs_create_clone(self.raw, id, ptr::null(), Some(id_callback), ctx);
        })
        .await
    }

    pub async fn delete(&self, id: BlobId) -> Result<()> {
        // SAFETY: the store is loaded.
        let rc = status(|ctx| unsafe {
            sys::spdk_bs_delete_blob(self.raw, id, Some(status_callback), ctx);
        })
        .await;
        check(rc, || format!("delete {id:#x}"))
    }

    pub async fn inflate(&self, id: BlobId) -> Result<()> {
        // SAFETY: the store is loaded, and the channel its own.
        let rc = status(|ctx| unsafe {
            let channel = self.channel.as_ptr();
            sys::spdk_bs_inflate_blob(self.raw, channel, id, Some(status_callback), ctx);
        })
        .await;
        check(rc, || format!("inflate {id:#x}"))
    }

    pub async fn decouple(&self, id: BlobId) -> Result<()> {
        // SAFETY: the store is loaded, and the channel its own.
        let rc = status(|ctx| unsafe {
            let channel = self.channel.as_ptr();
            sys::spdk_bs_blob_decouple_parent(self.raw, channel, id, Some(status_callback), ctx);
        })
        .await;
        check(rc, || format!("decouple {id:#x}"))
    }

    #[cfg(spdk_blob_set_parent)]
    pub async fn set_parent(&self, id: BlobId, snapshot: BlobId) -> Result<()> {
        // SAFETY: the store is loaded.
        let rc = status(|ctx| unsafe {
            sys::spdk_bs_blob_set_parent(self.raw, id, snapshot, Some(status_callback), ctx);
        })
        .await;
        check(rc, || format!("set parent of {id:#x}"))
    }

    /// Resizes a blob, and writes its metadata.
    pub async fn resize(&self, blob: &OpenBlob, clusters: u64) -> Result<()> {
        let raw = raw(blob);
        // SAFETY: the blob is open.
        let rc = status(|ctx| unsafe {
            sys::spdk_blob_resize(raw, clusters, Some(status_callback), ctx);
        })
        .await;
        check(rc, || "resize".to_owned())?;
        self.sync(blob).await
    }

    /// Sets an xattr, and writes the metadata.
    pub async fn set_xattr(
        &self,
        blob: &OpenBlob,
        name: &std::ffi::CStr,
        value: &[u8],
    ) -> Result<()> {
        self.set_xattr_in_memory(blob, name, value)?;
        self.sync(blob).await
    }

    /// Removes an xattr, and writes the metadata.
    pub async fn remove_xattr(&self, blob: &OpenBlob, name: &std::ffi::CStr) -> Result<()> {
        // SAFETY: the blob is open.
        let rc = unsafe { sys::spdk_blob_remove_xattr(raw(blob), name.as_ptr()) };
        check(rc, || "remove an xattr".to_owned())?;
        self.sync(blob).await
    }

    /// Sets an xattr, and leaves its metadata as it is on the device.
    pub fn set_xattr_in_memory(
        &self,
        blob: &OpenBlob,
        name: &std::ffi::CStr,
        value: &[u8],
    ) -> Result<()> {
        let (value, len) = (value.as_ptr().cast(), value.len() as u16);
        // SAFETY: the blob is open, and the value copied.
        let rc = unsafe { sys::spdk_blob_set_xattr(raw(blob), name.as_ptr(), value, len) };
        check(rc, || "set an xattr".to_owned())
    }

    /// As [`Store::set_xattr`], but one that only SPDK itself sets: there is no function for it.
    pub async fn set_internal_xattr(
        &self,
        blob: &OpenBlob,
        name: &std::ffi::CStr,
        value: &[u8],
    ) -> Result<()> {
        self.set_xattr_in_memory(blob, name, value)?;
        let blob_raw = raw(blob);
        // SAFETY: the blob is open, and this thread owns its metadata. A new xattr is the last one in its
        // list; it goes to the end of the other list, whose elements are alike.
        unsafe {
            let from = &raw mut (*blob_raw).xattrs;
            let to = &raw mut (*blob_raw).xattrs_internal;
            let xattr = last_of(from);
            *(*xattr).link.tqe_prev = ptr::null_mut();
            (*from).tqh_last = (*xattr).link.tqe_prev;
            (*xattr).link.tqe_prev = (*to).tqh_last;
            *(*to).tqh_last = xattr;
            (*to).tqh_last = &raw mut (*xattr).link.tqe_next;
            (*blob_raw).invalid_flags |= u64::from(sys::SPDK_BLOB_INTERNAL_XATTR);
        }
        self.sync(blob).await
    }

    /// Writes a blob's metadata if it has changed.
    pub async fn sync(&self, blob: &OpenBlob) -> Result<()> {
        let raw = raw(blob);
        // SAFETY: the blob is open.
        let rc =
            status(|ctx| unsafe { sys::spdk_blob_sync_md(raw, Some(status_callback), ctx) }).await;
        check(rc, || "sync".to_owned())
    }

    /// What this project is about.
    pub async fn detach(&self, id: BlobId) -> Result<Detached> {
        detach(self.bs, id, None, self.zeroes, &mut Steps::start()).await
    }

    pub async fn open(&self, id: BlobId) -> Result<OpenBlob> {
        self.bs.open(id).await
    }

    /// Reads a whole cluster.
    pub async fn read_cluster(&self, blob: &OpenBlob, cluster: u64) -> Result<Vec<u8>> {
        let mut buffer = DmaBuffer::new(self.cluster_len);
        let raw = raw(blob);
        let (offset, length) = self.io_units(cluster);
        // SAFETY: the blob is open, the channel its store's, and the buffer lives until the end.
        let rc = status(|ctx| unsafe {
            let (channel, payload) = (self.channel.as_ptr(), buffer.0.cast());
            sys::spdk_blob_io_read(
                raw,
                channel,
                payload,
                offset,
                length,
                Some(status_callback),
                ctx,
            );
        })
        .await;
        check(rc, || "read".to_owned())?;
        Ok(buffer.bytes().to_vec())
    }

    /// Fills a whole cluster with one byte.
    pub async fn write_cluster(&self, blob: &OpenBlob, cluster: u64, fill: u8) -> Result<()> {
        let (offset, length) = self.io_units(cluster);
        self.write(blob, offset, length, fill).await
    }

    /// Fills the first io unit of a cluster with one byte.
    pub async fn write_io_unit(&self, blob: &OpenBlob, cluster: u64, fill: u8) -> Result<()> {
        self.write(blob, self.io_units(cluster).0, 1, fill).await
    }

    async fn write(&self, blob: &OpenBlob, offset: u64, length: u64, fill: u8) -> Result<()> {
        let mut buffer = DmaBuffer::new(self.cluster_len);
        buffer.bytes().fill(fill);
        let raw = raw(blob);
        // SAFETY: the blob is open, the channel its store's, and the buffer lives until the end.
        let rc = status(|ctx| unsafe {
            let (channel, payload) = (self.channel.as_ptr(), buffer.0.cast());
            sys::spdk_blob_io_write(
                raw,
                channel,
                payload,
                offset,
                length,
                Some(status_callback),
                ctx,
            );
        })
        .await;
        check(rc, || "write".to_owned())
    }

    /// Unmaps a whole cluster.
    pub async fn unmap_cluster(&self, blob: &OpenBlob, cluster: u64) -> Result<()> {
        let raw = raw(blob);
        let (offset, length) = self.io_units(cluster);
        // SAFETY: the blob is open, and the channel its store's.
        let rc = status(|ctx| unsafe {
            let channel = self.channel.as_ptr();
            sys::spdk_blob_io_unmap(raw, channel, offset, length, Some(status_callback), ctx);
        })
        .await;
        check(rc, || "unmap".to_owned())
    }

    /// Where a cluster starts, and how long it is.
    fn io_units(&self, cluster: u64) -> (u64, u64) {
        let length = (self.cluster_len / IO_UNIT_LEN) as u64;
        (cluster * length, length)
    }

    /// Waits until nobody writes the blob's metadata, nor waits to close it.
    pub async fn settle(&self, blob: &OpenBlob) {
        // SAFETY: the blob is open, and this thread owns its metadata.
        while unsafe { !(*raw(blob)).persists_to_complete.tqh_first.is_null() } {
            next_round().await;
        }
        // Who waited for a write learns of its end in a message.
        next_round().await;
    }

    /// Closes a blob by SPDK's own function alone, as the lvol library does.
    pub async fn close(&self, blob: OpenBlob) -> Result<()> {
        let raw = raw(&blob);
        std::mem::forget(blob);
        // SAFETY: the reference was the value's.
        let rc =
            status(|ctx| unsafe { sys::spdk_blob_close(raw, Some(status_callback), ctx) }).await;
        check(rc, || "close".to_owned())
    }

    /// The ids of all blobs.
    pub async fn blob_ids(&self) -> Result<Vec<BlobId>> {
        unsafe extern "C" fn next(ctx: *mut c_void, blob: *mut sys::spdk_blob, rc: c_int) {
            // SAFETY: SPDK gives the context back, once.
            unsafe { Callback::complete(ctx, (blob, rc)) }
        }
        let mut ids = Vec::new();
        let (callback, done) = Callback::<(*mut sys::spdk_blob, c_int)>::new();
        // SAFETY: the store is loaded.
        unsafe { sys::spdk_bs_iter_first(self.raw, Some(next), callback.into_ctx()) };
        let (mut blob, mut rc) = done.await.expect("SPDK calls back");
        while rc == 0 {
            let (callback, done) = Callback::<(*mut sys::spdk_blob, c_int)>::new();
            // SAFETY: the iteration has opened the blob, and closes it with the next step.
            unsafe {
                ids.push(sys::spdk_blob_get_id(blob));
                sys::spdk_bs_iter_next(self.raw, blob, Some(next), callback.into_ctx());
            }
            (blob, rc) = done.await.expect("SPDK calls back");
        }
        if rc == -libc::ENOENT { Ok(ids) } else { Err(Error::new(rc, "iterate")) }
    }

    /// How many clusters are free.
    pub fn free_clusters(&self) -> u64 {
        // SAFETY: the store is loaded.
        unsafe { sys::spdk_bs_free_cluster_count(self.raw) }
    }

    /// How many clusters there are for data.
    pub fn data_clusters(&self) -> u64 {
        // SAFETY: the store is loaded.
        unsafe { sys::spdk_bs_total_data_cluster_count(self.raw) }
    }

    /// Where on the device the data starts: before it is metadata.
    pub fn data_start(&self) -> usize {
        // SAFETY: the store is loaded.
        unsafe {
            ((*self.raw).total_clusters - (*self.raw).total_data_clusters) as usize
                * self.cluster_len
        }
    }

    /// How many metadata pages are in use.
    pub fn used_md_pages(&self) -> u32 {
        // SAFETY: the store is loaded.
        unsafe { sys::spdk_bit_array_count_set((*self.raw).used_md_pages) }
    }

    /// Everything that the store says of a blob.
    pub async fn describe(&self, id: BlobId) -> Result<Description> {
        let blob = self.open(id).await?;
        let raw = raw(&blob);
        // SAFETY: the blob is open, and this thread owns its metadata.
        let mut description = unsafe {
            let clusters = (*raw).active.num_clusters as usize;
            Description {
                parent: (*raw).parent_id,
                clones: clones(self.raw, id),
                clusters: (0..clusters).map(|i| *(*raw).active.clusters.add(i)).collect(),
                num_allocated_clusters: num_allocated_clusters(raw),
                num_md_pages: (*raw).active.num_pages + num_extent_pages(raw),
                zeroes_backed: self.zeroes.is_behind(&blob),
                locked: (*raw).locked_operation_in_progress,
                references: (*raw).open_ref - 1,
                flags: [invalid_flags(raw), (*raw).data_ro_flags, (*raw).md_ro_flags],
                read_only: [(*raw).data_ro, (*raw).md_ro],
                xattrs: xattrs((*raw).xattrs.tqh_first),
                internal_xattrs: xattrs((*raw).xattrs_internal.tqh_first),
                data: Vec::new(),
            }
        };
        for cluster in 0..description.clusters.len() {
            let bytes = self.read_cluster(&blob, cluster as u64).await?;
            let first = bytes[0];
            if bytes.iter().any(|&byte| byte != first) {
                let what = format!("cluster {cluster} of {id:#x} is torn");
                return Err(Error::new(libc::EILSEQ, what));
            }
            description.data.push(first);
        }
        blob.close().await?;
        Ok(description)
    }

    async fn id(&self, what: &str, start: impl FnOnce(*mut c_void)) -> Result<BlobId> {
        let (callback, done) = Callback::<(BlobId, c_int)>::new();
        start(callback.into_ctx());
        let (id, rc) = done.await.expect("SPDK calls back");
        check(rc, || what.to_owned())?;
        Ok(id)
    }
}

/// Starts something, and leaves it to the caller when to wait for it.
pub fn start<T>(future: impl Future<Output = T>) -> impl Future<Output = T> {
    let mut future = Box::pin(future);
    let first = future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    async move {
        match first {
            Poll::Ready(value) => value,
            Poll::Pending => future.await,
        }
    }
}

/// Waits until the thread's messages that were sent before have run.
pub async fn next_round() {
    unsafe extern "C" fn run(ctx: *mut c_void) {
        // SAFETY: the message runs once.
        unsafe { status_callback(ctx, 0) }
    }
    // SAFETY: this is an SPDK thread.
    status(|ctx| unsafe {
        assert_eq!(sys::spdk_thread_send_msg(sys::spdk_get_thread(), Some(run), ctx), 0);
    })
    .await;
}

/// What a store says of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    pub parent: BlobId,
    pub clones: Vec<BlobId>,
    /// The place of each cluster on the device, 0 where it owns none.
    pub clusters: Vec<u64>,
    pub num_allocated_clusters: u64,
    /// Metadata pages that it owns, with those of its extent table.
    pub num_md_pages: u32,
    /// Backed by SPDK's own zeroes device: an unmap gives clusters back.
    pub zeroes_backed: bool,
    pub locked: bool,
    /// How often it was open before it was described.
    pub references: u32,
    pub flags: [u64; 3],
    pub read_only: [bool; 2],
    pub xattrs: BTreeMap<String, Vec<u8>>,
    pub internal_xattrs: BTreeMap<String, Vec<u8>>,
    /// The byte that each cluster is full of, as it reads.
    pub data: Vec<u8>,
}

/// # Safety
///
/// `list` is one of an open blob's, on this thread, and not empty.
unsafe fn last_of(list: *mut sys::spdk_xattr_tailq) -> *mut sys::spdk_xattr {
    // SAFETY: as the caller says.
    unsafe {
        let mut xattr = (*list).tqh_first;
        while !(*xattr).link.tqe_next.is_null() {
            xattr = (*xattr).link.tqe_next;
        }
        xattr
    }
}

fn raw(blob: &OpenBlob) -> *mut sys::spdk_blob {
    blob.as_ptr()
}

/// # Safety
///
/// `blob` is open, on this thread.
unsafe fn num_allocated_clusters(blob: *mut sys::spdk_blob) -> u64 {
    // SAFETY: as the caller says.
    unsafe {
        let active = &raw const (*blob).active;
        #[cfg(spdk_blob_counts_clusters)]
        return (*active).num_allocated_clusters;
        #[cfg(not(spdk_blob_counts_clusters))]
        {
            let count = (*active).num_clusters as usize;
            (0..count).filter(|&i| *(*active).clusters.add(i) != 0).count() as u64
        }
    }
}

/// Without the flag that says that there are internal xattrs where it may say so wrongly: if the last
/// one was in another page than the root, which has the flag, a detach leaves the root as it is.
///
/// # Safety
///
/// `blob` is open, on this thread.
unsafe fn invalid_flags(blob: *mut sys::spdk_blob) -> u64 {
    // SAFETY: as the caller says.
    unsafe {
        let has_none = (*blob).xattrs_internal.tqh_first.is_null();
        let may_be_left = has_none && (*blob).active.num_pages > 1;
        let left = if may_be_left { u64::from(sys::SPDK_BLOB_INTERNAL_XATTR) } else { 0 };
        (*blob).invalid_flags & !left
    }
}

/// # Safety
///
/// `blob` is open, on this thread.
unsafe fn num_extent_pages(blob: *mut sys::spdk_blob) -> u32 {
    // SAFETY: as the caller says.
    unsafe {
        let extents = &raw const (*blob).active;
        let count = (*extents).num_extent_pages as usize;
        (0..count).filter(|&i| *(*extents).extent_pages.add(i) != 0).count() as u32
    }
}

fn clones(bs: *mut sys::spdk_blob_store, id: BlobId) -> Vec<BlobId> {
    let mut count = 0;
    // SAFETY: the store is loaded; the second call has room for as many as the first one counted.
    unsafe {
        sys::spdk_blob_get_clones(bs, id, ptr::null_mut(), &mut count);
        let mut ids = vec![0; count];
        if count > 0 {
            assert_eq!(sys::spdk_blob_get_clones(bs, id, ids.as_mut_ptr(), &mut count), 0);
        }
        ids.sort_unstable();
        ids
    }
}

/// # Safety
///
/// `xattr` is null or an element of a blob's list.
unsafe fn xattrs(mut xattr: *mut sys::spdk_xattr) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    // SAFETY: as the caller says.
    unsafe {
        while !xattr.is_null() {
            let name = std::ffi::CStr::from_ptr((*xattr).name).to_string_lossy().into_owned();
            let value =
                std::slice::from_raw_parts((*xattr).value.cast::<u8>(), (*xattr).value_len.into());
            all.insert(name, value.to_vec());
            xattr = (*xattr).link.tqe_next;
        }
    }
    all
}

/// A cluster's worth of memory that SPDK can do I/O on.
struct DmaBuffer(*mut u8, usize);

impl DmaBuffer {
    fn new(len: usize) -> DmaBuffer {
        // SAFETY: SPDK's environment runs.
        let memory = unsafe { sys::spdk_dma_zmalloc(len, 4096, ptr::null_mut()) };
        assert!(!memory.is_null(), "no memory for I/O");
        DmaBuffer(memory.cast(), len)
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the memory has this length, and belongs to the value.
        unsafe { std::slice::from_raw_parts_mut(self.0, self.1) }
    }
}

impl Drop for DmaBuffer {
    fn drop(&mut self) {
        // SAFETY: the memory belongs to the value.
        unsafe { sys::spdk_dma_free(self.0.cast()) };
    }
}
