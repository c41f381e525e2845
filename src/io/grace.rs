//! Waiting for other I/O without holding any back: walks through the channels of a blobstore.
//!
//! SPDK's threads run each message to completion. So once a function has run on every thread that
//! does I/O to a blobstore, none of them is in the middle of something that it started earlier, and
//! whatever it starts later sees what was stored before the walk: a grace period. I/O that is waiting for the
//! device is found by a walk, and later walks check whether it is still there.
//!
//! All who wait for a walk when it begins share it.

use std::collections::{HashMap, HashSet};
use std::os::raw::{c_int, c_void};
use std::rc::Rc;
use std::time::Duration;

use spdk_sys as sys;

use crate::base::batch::{self, Batches};
use crate::base::task::{Callback, Rests};
use crate::chain::blob::Blobstore;
use crate::chain::family::Family;
use crate::chain::lvol::Lvol;
use crate::io::channel::Channel;
use crate::io::in_flight::{InFlight, Look};
use crate::turns;

/// After this time the log says what is being waited for.
const LONG: Duration = Duration::from_secs(5);

/// What was in flight when a grace period ended, each with the name of the lvol whose I/O it is.
#[must_use = "it is to be waited for"]
pub struct Awaited {
    bs: Blobstore,
    look: Look,
    io: Vec<(InFlight, String)>,
}

/// A grace period. What a thread has looked up before is done with.
pub async fn pass(bs: Blobstore) {
    walk(bs, Look::Nothing).await;
}

/// A grace period. Gives the copy-on-writes of the family's blobs that began before and go on.
pub async fn copies_in_flight(bs: Blobstore, family: &Family) -> Awaited {
    let whose = |blob: *mut c_void| {
        let member = family.members().find(|member| member.blob.as_ptr().cast() == blob)?;
        Some(family.name_of(member))
    };
    let found = walk(bs, Look::Copies).await;
    let io = found.iter().filter_map(|&(io, blob)| Some((io, whose(blob)?))).collect();
    Awaited { bs, look: Look::Copies, io }
}

/// A grace period. Gives the reads of the family's lvols that go through a snapshot, began before and
/// go on.
pub async fn reads_in_flight(bs: Blobstore, family: &Family) -> Awaited {
    let found = walk(bs, Look::Reads).await;
    let io = if found.is_empty() { Vec::new() } else { of_family(&found, family).await };
    Awaited { bs, look: Look::Reads, io }
}

/// Of I/O that came in flight by these callers, what came by the bdevs of the family's lvols. If that
/// can't be told, all of it. An I/O that has ended meanwhile may be missing.
async fn of_family(found: &Found, family: &Family) -> Vec<(InFlight, String)> {
    // All of them start before the first is waited for.
    let searches: Vec<_> = family
        .members()
        .map(|member| (family.name_of(member), member.lvol.as_ref().map(Lvol::io_in_flight)))
        .collect();
    let mut callers = HashMap::new();
    let mut all = None;
    for (name, search) in searches {
        let io = match search {
            Some(search) => search.await,
            None => None,
        };
        match io {
            Some(io) => callers.extend(io.into_iter().map(|io| (io, name.clone()))),
            None => all = Some(name),
        }
    }
    let name_of = |caller| callers.get(&caller).or(all.as_ref()).cloned();
    found.iter().filter_map(|&(io, caller)| Some((io, name_of(caller)?))).collect()
}

impl Awaited {
    /// Waits until all of it has ended; false if the target is about to stop before. `name` is what has
    /// no parent any more.
    pub async fn end(self, name: &str) -> bool {
        let Awaited { bs, look, mut io } = self;
        let rests = Rests::start();
        // Whose I/O the log says is waited for.
        let mut said: Option<String> = None;
        while !io.is_empty() {
            if turns::are_over() {
                tracing::warn!(
                    "{name} is detached, but the target stops before I/O that went through its former \
                     parent has ended"
                );
                return false;
            }
            rests.rest().await;
            let found = walk(bs, look).await;
            let still: HashSet<InFlight> = found.iter().map(|&(io, _)| io).collect();
            io.retain(|(io, _)| still.contains(io));
            if said.is_none() && rests.waited() > LONG {
                let seconds = rests.waited().as_secs();
                let whose = io.first().map(|(_, whose)| whose.clone()).unwrap_or_default();
                tracing::warn!(
                    "the detach of {name} waits for I/O of {whose} that began {seconds} s ago and goes \
                     through the former parent"
                );
                said = Some(whose);
            }
        }
        if let Some(whose) = said {
            let seconds = rests.waited().as_secs();
            tracing::warn!(
                "the detach of {name} has waited {seconds} s for I/O of {whose}: it is over"
            );
        }
        true
    }
}

/// What a walk finds: each I/O with whose it is.
type Found = Vec<(InFlight, *mut c_void)>;

thread_local! {
    static WALKS: Batches<(*mut sys::spdk_blob_store, Look), Rc<Found>> = Batches::default();
}

/// What a walk finds that begins after this call, and has been through all channels.
async fn walk(bs: Blobstore, look: Look) -> Rc<Found> {
    let work = async move || Rc::new(walk_alone(bs, look).await);
    batch::join(&WALKS, (bs.as_ptr(), look), work).await.unwrap_or_default()
}

struct Walk {
    look: Look,
    num_sets: usize,
    found: Found,
    callback: Callback<Found>,
}

async fn walk_alone(bs: Blobstore, look: Look) -> Found {
    has_memory().await;
    let (callback, done) = Callback::new();
    // SAFETY: the blobstore is loaded (invariant of `Blobstore`).
    let num_sets = unsafe { (*bs.as_ptr()).max_channel_ops } as usize;
    let walk = Box::new(Walk { look, num_sets, found: Vec::new(), callback });
    // SAFETY: the blobstore is an io_device as long as it is loaded. Its channels are visited one
    // after the other, so the walk has one user at a time.
    unsafe {
        let ctx = Box::into_raw(walk).cast();
        sys::spdk_for_each_channel(bs.as_ptr().cast(), Some(visit), ctx, Some(visited));
    }
    done.await.unwrap_or_default()
}

/// `spdk_for_each_channel` doesn't call back if it finds no memory for the less than a hundred bytes of
/// its own. So it is called when there is more than that.
async fn has_memory() {
    const PLENTY: usize = 4096;
    let rests = Rests::start();
    loop {
        // SAFETY: what was got is given back.
        let got = unsafe {
            let memory = libc::malloc(PLENTY);
            // The compiler must not leave both out.
            std::hint::black_box(memory);
            libc::free(memory);
            !memory.is_null()
        };
        if got {
            return;
        }
        rests.rest().await;
    }
}

/// `spdk_channel_msg`
unsafe extern "C" fn visit(iter: *mut sys::spdk_io_channel_iter) {
    // SAFETY: the context is from `walk`; the channel is the blobstore's for the current thread.
    unsafe {
        let walk = &mut *sys::spdk_io_channel_iter_get_ctx(iter).cast::<Walk>();
        let channel = Channel::new(sys::spdk_io_channel_iter_get_channel(iter));
        let Walk { look, num_sets, found, .. } = walk;
        look.at(channel, *num_sets, &mut |io, whose| found.push((io, whose)));
        sys::spdk_for_each_channel_continue(iter, 0);
    }
}

/// `spdk_channel_for_each_cpl`
unsafe extern "C" fn visited(iter: *mut sys::spdk_io_channel_iter, _: c_int) {
    // SAFETY: the context is from `walk`, and comes back once.
    unsafe {
        let walk = Box::from_raw(sys::spdk_io_channel_iter_get_ctx(iter).cast::<Walk>());
        let Walk { found, callback, .. } = *walk;
        Callback::complete(callback.into_ctx(), found);
    }
}
