//! The load on one bdev: a worker on each core, with a channel of its own.

use std::ffi::{CString, c_int, c_void};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::json;
use spdk_sys as sys;

use crate::locked;
use crate::model::{BLOCK, Image, Kind, Model, Options, Plan, fill, word_of};
use crate::rpc::Request;

pub struct Job {
    options: Options,
    desc: *mut sys::spdk_bdev_desc,
    /// The thread that has opened the bdev and must close it.
    owner: *mut sys::spdk_thread,
    workers: AtomicUsize,
    stopping: AtomicBool,
    /// The request that is answered when the workers have started, are quiet, or have ended.
    waiting: Mutex<Option<Request>>,
    pub model: Mutex<Model>,
}

// SAFETY: SPDK's threads may share a descriptor; it is opened and closed on `owner` only.
unsafe impl Send for Job {}
// SAFETY: as above.
unsafe impl Sync for Job {}

/// SPDK's threads, one on each core.
struct Threads(Vec<*mut sys::spdk_thread>);

// SAFETY: a thread may be sent messages from anywhere, and these are there until the target ends.
unsafe impl Send for Threads {}
// SAFETY: as above.
unsafe impl Sync for Threads {}

fn threads() -> &'static [*mut sys::spdk_thread] {
    static THREADS: OnceLock<Threads> = OnceLock::new();
    let threads = THREADS.get_or_init(|| {
        let mut threads = Vec::new();
        // SAFETY: called by a RPC, so the environment and the reactors are there. SPDK copies the
        // mask and the name.
        unsafe {
            let mut core = sys::spdk_env_get_first_core();
            while core != u32::MAX {
                let mask = sys::spdk_cpuset_alloc();
                sys::spdk_cpuset_set_cpu(mask, core, true);
                let thread = sys::spdk_thread_create(c"lvol_load".as_ptr(), mask);
                sys::spdk_cpuset_free(mask);
                assert!(!thread.is_null(), "no memory for a thread");
                threads.push(thread);
                core = sys::spdk_env_get_next_core(core);
            }
        }
        Threads(threads)
    });
    &threads.0
}

static STALLED: AtomicBool = AtomicBool::new(false);

/// Keeps the last core busy until [`release`]: whatever an SPDK thread there is in the middle of stays
/// so. The request is answered when it has come to that.
pub fn stall(request: Request) -> Result<(), (Request, String)> {
    unsafe extern "C" fn wait(ctx: *mut c_void) {
        // SAFETY: the context is the box from below, once.
        let request = unsafe { Box::from_raw(ctx.cast::<Request>()) };
        request.reply(Ok(json!(true)));
        while STALLED.load(Ordering::SeqCst) {
            sleep(Duration::from_millis(1));
        }
    }
    let [_, .., last] = *threads() else {
        return Err((request, "there is but one core, which answers requests".to_owned()));
    };
    STALLED.store(true, Ordering::SeqCst);
    let ctx = Box::into_raw(Box::new(request)).cast();
    // SAFETY: the thread is there; `wait` takes the box over.
    let rc = unsafe { sys::spdk_thread_send_msg(last, Some(wait), ctx) };
    assert_eq!(rc, 0, "no memory for a message");
    Ok(())
}

/// Lets the core go on.
pub fn release() {
    STALLED.store(false, Ordering::SeqCst);
}

impl Job {
    /// Opens the bdev.
    ///
    /// # Safety
    ///
    /// The current thread is the one that serves RPCs.
    pub unsafe fn open(options: Options, image: Option<&Image>) -> Result<Arc<Job>, String> {
        unsafe extern "C" fn ignore_event(
            _: sys::spdk_bdev_event_type,
            _: *mut sys::spdk_bdev,
            _: *mut c_void,
        ) {
        }
        let name = CString::new(options.name.as_str()).map_err(|error| error.to_string())?;
        let write = options.writes + options.write_zeroes + options.unmaps > 0;
        let mut desc = null_mut();
        // SAFETY: the name is a C string; the events don't use the null context.
        let rc = unsafe {
            sys::spdk_bdev_open_ext(name.as_ptr(), write, Some(ignore_event), null_mut(), &mut desc)
        };
        if rc != 0 {
            return Err(format!("{} can't be opened: {rc}", options.name));
        }
        // SAFETY: the bdev is open.
        let (num_blocks, owner) = unsafe {
            let bdev = sys::spdk_bdev_desc_get_bdev(desc);
            assert_eq!(sys::spdk_bdev_get_block_size(bdev) as usize, BLOCK);
            (sys::spdk_bdev_get_num_blocks(bdev) as usize, sys::spdk_get_thread())
        };
        Ok(Arc::new(Job {
            model: Mutex::new(Model::new(options.clone(), num_blocks, image)),
            options,
            desc,
            owner,
            workers: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            waiting: Mutex::new(None),
        }))
    }

    /// Starts a worker on each core.
    ///
    /// # Safety
    ///
    /// As for `open`; once.
    pub unsafe fn start(job: &Arc<Job>, request: Request) {
        *locked(&job.waiting) = Some(request);
        job.workers.store(0, Ordering::SeqCst);
        for &thread in threads() {
            let ctx = Arc::into_raw(Arc::clone(job)).cast_mut().cast();
            // SAFETY: the thread is there; `start_worker` takes the reference over.
            let rc = unsafe { sys::spdk_thread_send_msg(thread, Some(start_worker), ctx) };
            assert_eq!(rc, 0, "no memory for a message");
        }
    }

    pub fn hold(&self, request: Request) {
        let mut model = locked(&self.model);
        model.hold();
        *locked(&self.waiting) = Some(request);
        self.answer_if_quiet(&model);
    }

    fn answer_if_quiet(&self, model: &Model) {
        if model.is_quiet() {
            self.answer();
        }
    }

    fn answer(&self) {
        if let Some(request) = locked(&self.waiting).take() {
            request.reply(Ok(json!(true)));
        }
    }

    pub fn close(&self, request: Request) {
        *locked(&self.waiting) = Some(request);
        self.stopping.store(true, Ordering::SeqCst);
    }
}

/// The load of one core on one bdev. It stays on its SPDK thread.
struct Worker {
    job: Arc<Job>,
    channel: *mut sys::spdk_io_channel,
    poller: *mut sys::spdk_poller,
    slots: Vec<Slot>,
    free: Vec<usize>,
}

/// Room for one I/O.
struct Slot {
    worker: *mut Worker,
    index: usize,
    buffer: *mut u8,
    /// The buffer in the pieces that the I/O has it in.
    iovs: Vec<sys::iovec>,
    /// What is under way.
    io: Option<(Plan, Instant)>,
}

/// `spdk_msg_fn`. The context is an `Arc<Job>` that was turned into a pointer.
unsafe extern "C" fn start_worker(ctx: *mut c_void) {
    // SAFETY: by what the context is. The worker and its slots stay where they are until the last
    // poll, and only this thread uses them.
    unsafe {
        let job = Arc::from_raw(ctx.cast::<Job>().cast_const());
        let worker = Box::into_raw(Box::new(Worker {
            channel: sys::spdk_bdev_get_io_channel(job.desc),
            poller: null_mut(),
            slots: Vec::new(),
            free: (0..job.options.queue_depth).collect(),
            job,
        }));
        let job = &(*worker).job;
        let size = job.options.max_blocks * BLOCK;
        for index in 0..job.options.queue_depth {
            let buffer = sys::spdk_dma_zmalloc(size, BLOCK, null_mut()).cast::<u8>();
            assert!(!buffer.is_null(), "no memory for a buffer");
            (*worker).slots.push(Slot { worker, index, buffer, iovs: Vec::new(), io: None });
        }
        assert!(!(*worker).channel.is_null(), "no channel for {}", job.options.name);
        (*worker).poller = sys::spdk_poller_register(Some(poll), worker.cast(), 0);
        if job.workers.fetch_add(1, Ordering::SeqCst) + 1 == threads().len() {
            job.answer();
        }
    }
}

/// `spdk_poller_fn`
unsafe extern "C" fn poll(ctx: *mut c_void) -> c_int {
    let worker = ctx.cast::<Worker>();
    // SAFETY: the worker is there until `end_worker`, and only this thread uses it. Callbacks don't
    // come from within a submission that worked, or find the slot filled in already.
    unsafe {
        let job: &Job = &(*worker).job;
        if job.stopping.load(Ordering::SeqCst) {
            if (*worker).free.len() == job.options.queue_depth {
                end_worker(worker);
            }
            return 1;
        }
        let mut begun = 0;
        while let Some(index) = (*worker).free.pop() {
            let plan = locked(&job.model).begin();
            let Some(plan) = plan else {
                (*worker).free.push(index);
                break;
            };
            submit(worker, index, plan);
            begun += 1;
        }
        c_int::from(begun > 0)
    }
}

/// # Safety
///
/// The slot is free, and taken out of the list of free ones.
unsafe fn submit(worker: *mut Worker, index: usize, plan: Plan) {
    // SAFETY: as in `poll`. The buffer is large enough for what the model plans.
    unsafe {
        let slot = &raw mut (&mut (*worker).slots)[index];
        let job: &Job = &(*worker).job;
        let (desc, channel) = (job.desc, (*worker).channel);
        let (first, count) = (plan.blocks.start as u64, plan.blocks.len() as u64);
        let buffer = (*slot).buffer;
        if plan.kind == Kind::Write {
            let bytes = std::slice::from_raw_parts_mut(buffer, plan.blocks.len() * BLOCK);
            for (number, block) in plan.blocks.clone().zip(bytes.chunks_exact_mut(BLOCK)) {
                fill(block, Model::word(job.options.tag, number, plan.generation));
            }
        }
        let kind = plan.kind;
        // From one block to seven in each: one iovec for the whole, or many that clusters don't end with.
        let piece = BLOCK * (1 + plan.blocks.start % 7);
        let end = plan.blocks.len() * BLOCK;
        let iov =
            |at| sys::iovec { iov_base: buffer.add(at).cast(), iov_len: piece.min(end - at) as _ };
        (*slot).iovs = (0..end).step_by(piece).map(iov).collect();
        let (iovs, num_iovs) = ((*slot).iovs.as_mut_ptr(), (*slot).iovs.len() as c_int);
        (*slot).io = Some((plan, Instant::now()));
        let ctx = slot.cast();
        let rc = match kind {
            Kind::Read => sys::spdk_bdev_readv_blocks(
                desc,
                channel,
                iovs,
                num_iovs,
                first,
                count,
                Some(complete),
                ctx,
            ),
            Kind::Write => sys::spdk_bdev_writev_blocks(
                desc,
                channel,
                iovs,
                num_iovs,
                first,
                count,
                Some(complete),
                ctx,
            ),
            Kind::WriteZeroes => {
                sys::spdk_bdev_write_zeroes_blocks(desc, channel, first, count, Some(complete), ctx)
            }
            Kind::Unmap => {
                sys::spdk_bdev_unmap_blocks(desc, channel, first, count, Some(complete), ctx)
            }
        };
        // Without memory for it: another time.
        if rc != 0 {
            if let Some((plan, _)) = (*slot).io.take() {
                locked(&job.model).undo(&plan);
            }
            (*worker).free.push(index);
        }
    }
}

/// `spdk_bdev_io_completion_cb`
unsafe extern "C" fn complete(io: *mut sys::spdk_bdev_io, success: bool, ctx: *mut c_void) {
    let slot = ctx.cast::<Slot>();
    // SAFETY: the slot is that of `submit`, on the same thread.
    unsafe {
        sys::spdk_bdev_free_io(io);
        let worker = (*slot).worker;
        let Some((plan, begun)) = (*slot).io.take() else {
            return;
        };
        let ns = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let words: Vec<u64> = match plan.kind {
            Kind::Read => std::slice::from_raw_parts((*slot).buffer, plan.blocks.len() * BLOCK)
                .chunks_exact(BLOCK)
                .map(word_of)
                .collect(),
            _ => Vec::new(),
        };
        let job = &(*worker).job;
        let mut model = locked(&job.model);
        model.complete(&plan, success, &words, ns, sys::spdk_env_get_current_core());
        if plan.kind != Kind::Read {
            job.answer_if_quiet(&model);
        }
        drop(model);
        (*worker).free.push((*slot).index);
    }
}

/// # Safety
///
/// The worker has nothing under way, and is not used any more.
unsafe fn end_worker(worker: *mut Worker) {
    // SAFETY: by the caller's word. A poller may unregister itself.
    unsafe {
        let mut worker = Box::from_raw(worker);
        sys::spdk_poller_unregister(&mut worker.poller);
        sys::spdk_put_io_channel(worker.channel);
        for slot in &worker.slots {
            sys::spdk_dma_free(slot.buffer.cast());
        }
        let job = worker.job;
        if job.workers.fetch_sub(1, Ordering::SeqCst) == 1 {
            let owner = job.owner;
            let ctx = Arc::into_raw(job).cast_mut().cast();
            // The channels are let go by messages to their own threads, which `close_bdev` need
            // not wait for: SPDK does.
            let rc = sys::spdk_thread_send_msg(owner, Some(close_bdev), ctx);
            assert_eq!(rc, 0, "no memory for a message");
        }
    }
}

/// `spdk_msg_fn`. The context is an `Arc<Job>` that was turned into a pointer.
unsafe extern "C" fn close_bdev(ctx: *mut c_void) {
    // SAFETY: by what the context is; no worker uses the descriptor any more.
    unsafe {
        let job = Arc::from_raw(ctx.cast::<Job>().cast_const());
        sys::spdk_bdev_close(job.desc);
        let report = locked(&job.model).report();
        if let Some(request) = locked(&job.waiting).take() {
            request.reply(Ok(report));
        }
    }
}
