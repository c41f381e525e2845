//! An lvstore in memory, made when the target starts: [`crate::start::guard`] checks what SPDK does there
//! before anything relies on it.

use std::cell::RefCell;
use std::ffi::CStr;
use std::os::raw::{c_char, c_int, c_void};
use std::ptr;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};

use spdk_sys as sys;

use crate::base::error::{Result, check};
use crate::base::task::{Callback, status, status_callback};
use crate::start::memory_dev::{self, Image};

/// Bytes of a cluster.
pub const CLUSTER_LEN: u32 = 32 * 1024;
const NUM_CLUSTERS: usize = 32;

/// An lvstore in memory.
///
/// # Invariants
///
/// `lvs` is loaded, by the current SPDK thread, on a device with the content `image`. `lvols` are all
/// lvols that were made in it, and open.
pub struct Scratch {
    lvs: *mut sys::spdk_lvol_store,
    dev: *mut sys::spdk_bs_dev,
    name: String,
    image: Image,
    lvols: RefCell<Vec<*mut sys::spdk_lvol>>,
}

/// `struct spdk_lvs_opts` has no size of its own when SPDK initializes it, and another release's
/// may be larger.
#[repr(C)]
#[derive(Default)]
struct RoomyOpts {
    opts: sys::spdk_lvs_opts,
    room: [[u64; 32]; 4],
}

impl Scratch {
    /// Makes one. The current thread must be an SPDK thread.
    pub async fn create() -> Result<Scratch> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("lvol_detach_scratch_{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let image = Rc::new(RefCell::new(vec![0; NUM_CLUSTERS * CLUSTER_LEN as usize]));
        let dev = memory_dev::create(Rc::clone(&image));
        let mut roomy = RoomyOpts::default();
        let (callback, done) = Callback::<(*mut sys::spdk_lvol_store, c_int)>::new();
        let ctx = callback.into_ctx();
        // SAFETY: the options are initialized, and copied. The device belongs to SPDK from here
        // on. If the call fails it doesn't call back, and the context is ours again.
        unsafe {
            sys::spdk_lvs_opts_init(&mut roomy.opts);
            roomy.opts.cluster_sz = CLUSTER_LEN;
            let target = (&raw mut roomy.opts.name).cast::<u8>();
            ptr::copy_nonoverlapping(name.as_ptr(), target, name.len());
            let rc = sys::spdk_lvs_init(dev, &mut roomy.opts, Some(handle_callback), ctx);
            if rc != 0 {
                Callback::complete(ctx, (ptr::null_mut::<sys::spdk_lvol_store>(), rc));
            }
        }
        let (lvs, rc) = done.await.unwrap_or((ptr::null_mut(), -libc::ECANCELED));
        check(rc, || "could not make an lvstore in memory".to_owned())?;
        Ok(Scratch { lvs, dev, name, image, lvols: RefCell::default() })
    }

    /// The lvstore.
    pub fn lvs(&self) -> *mut sys::spdk_lvol_store {
        self.lvs
    }

    /// The device that it is on.
    pub fn dev(&self) -> *mut sys::spdk_bs_dev {
        self.dev
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether these bytes are anywhere on the device.
    pub fn device_has(&self, bytes: &[u8]) -> bool {
        self.image.borrow().windows(bytes.len()).any(|window| window == bytes)
    }

    /// A thin lvol of one cluster.
    pub async fn create_lvol(&self, name: &CStr) -> Result<*mut sys::spdk_lvol> {
        let (callback, done) = Callback::<(*mut sys::spdk_lvol, c_int)>::new();
        let ctx = callback.into_ctx();
        // SAFETY: the lvstore is loaded (invariant). If the call fails it doesn't call back.
        unsafe {
            let (size, clear) = (CLUSTER_LEN.into(), sys::LVOL_CLEAR_WITH_DEFAULT);
            let rc = sys::spdk_lvol_create(
                self.lvs,
                name.as_ptr(),
                size,
                true,
                clear,
                Some(handle_callback),
                ctx,
            );
            if rc != 0 {
                Callback::complete(ctx, (ptr::null_mut::<sys::spdk_lvol>(), rc));
            }
        }
        self.opened(done.await)
    }

    /// A snapshot of an lvol.
    ///
    /// # Safety
    ///
    /// `lvol` is an open lvol of this store.
    pub async unsafe fn snapshot(
        &self,
        lvol: *mut sys::spdk_lvol,
        name: &CStr,
    ) -> Result<*mut sys::spdk_lvol> {
        let (callback, done) = Callback::<(*mut sys::spdk_lvol, c_int)>::new();
        let name: *const c_char = name.as_ptr();
        // SAFETY: the lvol is open, as the caller says.
        unsafe {
            let ctx = callback.into_ctx();
            sys::spdk_lvol_create_snapshot(lvol, name, Some(handle_callback), ctx);
        }
        self.opened(done.await)
    }

    /// Closes all lvols and unloads it. It relies on no layout of SPDK's.
    pub async fn destroy(self) -> Result<()> {
        for lvol in self.lvols.into_inner() {
            // SAFETY: the lvol was made in this store, which is loaded (invariant).
            let rc =
                status(|ctx| unsafe { sys::spdk_lvol_close(lvol, Some(status_callback), ctx) })
                    .await;
            check(rc, || "could not close an lvol in memory".to_owned())?;
        }
        // SAFETY: the lvstore is loaded (invariant), and the value is gone. It calls back also if
        // it fails, except for lack of memory.
        let rc = status(|ctx| unsafe {
            sys::spdk_lvs_unload(self.lvs, Some(status_callback), ctx);
        })
        .await;
        check(rc, || "could not unload the lvstore in memory".to_owned())
    }

    fn opened(&self, outcome: Option<(*mut sys::spdk_lvol, c_int)>) -> Result<*mut sys::spdk_lvol> {
        let (lvol, rc) = outcome.unwrap_or((ptr::null_mut(), -libc::ECANCELED));
        check(rc, || "could not make an lvol in memory".to_owned())?;
        self.lvols.borrow_mut().push(lvol);
        Ok(lvol)
    }
}

/// `spdk_lvs_op_with_handle_complete`, `spdk_lvol_op_with_handle_complete`
unsafe extern "C" fn handle_callback<T>(ctx: *mut c_void, handle: *mut T, rc: c_int) {
    // SAFETY: SPDK gives the context of one of the functions above back, once.
    unsafe { Callback::complete(ctx, (handle, rc)) }
}
