//! The guard against the wrong SPDK.
//!
//! The layouts of SPDK's private structs change between releases without a change of soname, and
//! an extension built for one would write to the wrong places of another. So before the method is
//! registered, each private field that the extension uses is checked in an lvstore in memory,
//! where its value is known; then a detach is performed there, and checked as well.
//!
//! A field at the wrong place may hold anything. Numbers and addresses are compared first, and a
//! pointer is followed only after its neighbours have been found right. An empty `TAILQ` helps: it
//! points to itself.

use std::ffi::CStr;

use spdk_sys as sys;

use crate::base::error::{Error, Result, check};
use crate::base::steps::Steps;
use crate::base::task::{Callback, status, status_callback};
use crate::chain::blob::{Blobstore, OpenBlob};
use crate::detach::detach;
use crate::io::backing::ZeroesDev;
use crate::io::channel::Channel;
use crate::io::in_flight::{callers_of_reads, is_copied};
use crate::md::page::MdPage;
use crate::start::memory_dev::BLOCK_LEN;
use crate::start::scratch::{CLUSTER_LEN, Scratch};

/// Verifies that the layouts fit the running SPDK. Returns its zeroes device, which is found on the
/// way. The current thread must be an SPDK thread.
pub async fn prove() -> Result<ZeroesDev> {
    let scratch = Scratch::create().await?;
    let proved = prove_on(&scratch).await;
    let destroyed = scratch.destroy().await;
    let zeroes = proved?;
    destroyed.map(|()| zeroes)
}

async fn prove_on(scratch: &Scratch) -> Result<ZeroesDev> {
    let bs = check_stores(scratch)?;
    let lvol = scratch.create_lvol(c"lvol").await?;
    // SAFETY: the lvol was just made, and is open until the lvstore is destroyed.
    let blob = unsafe { check_lvol(scratch, lvol)? };
    // SAFETY: as above; an lvol's id is the one that its blob says.
    let blob = bs.open(unsafe { sys::spdk_blob_get_id(blob) }).await?;
    // SAFETY: the lvol is open, and the fields around its id were found right.
    unsafe { check_unique_id(lvol, &blob)? };
    check_blob(bs, &blob)?;
    check_channel(bs, scratch)?;
    check_page(bs, &blob).await?;
    fits(blob.clusters(0, 1) == [0], "spdk_blob_mut_data.clusters of an empty blob")?;
    write_block(bs, &blob).await?;
    check_owns_first(&blob)?;
    // SAFETY: it is thin, and was made without a parent.
    let zeroes = unsafe { ZeroesDev::behind(&blob) };
    let Some(zeroes) = zeroes else { return misfit("spdk_blob.back_bs_dev") };

    // SAFETY: the lvol is open.
    let snapshot = unsafe { (*scratch.snapshot(lvol, c"snapshot").await?).blob };
    // SAFETY: the snapshot is open until the lvstore is destroyed.
    let snapshot = bs.open(unsafe { sys::spdk_blob_get_id(snapshot) }).await?;
    check_clone(bs, &blob, &snapshot, zeroes)?;
    check_owns_first(&snapshot)?;
    fits(blob.clusters(0, 1) == [0], "spdk_blob_mut_data.clusters of a clone")?;
    check_lock(bs, &blob).await?;
    check_read(bs, &blob).await?;
    check_copy(bs, &blob).await?;

    detach(bs, blob.id(), None, zeroes, &mut Steps::start()).await?;
    check_detached(scratch, bs, &blob, &snapshot, zeroes)
}

/// One field, or what follows from several.
fn fits(right: bool, what: &str) -> Result<()> {
    if right { Ok(()) } else { misfit(what) }
}

fn misfit<T>(what: &str) -> Result<T> {
    Err(Error::new(libc::ENOTSUP, format!("{what} is not what it should be")))
}

/// Whether a `TAILQ` is empty: it points to itself.
macro_rules! is_empty_tailq {
    ($head:expr) => {{
        let head = &raw const $head;
        (*head).tqh_first.is_null()
            && (*head).tqh_last.cast_const().cast() == &raw const (*head).tqh_first
    }};
}

/// Whether `$first` is the one element of a `TAILQ`. Follows no pointer.
macro_rules! is_only_element {
    ($head:expr, $first:expr) => {{
        let (head, first) = (&raw const $head, $first);
        !first.is_null()
            && (*head).tqh_last.cast_const().cast() == &raw const (*first).link.tqe_next
    }};
}

fn check_stores(scratch: &Scratch) -> Result<Blobstore> {
    let lvs = scratch.lvs();
    // SAFETY: the lvstore is loaded. Its struct is at least as large as what is looked at before
    // a misfit is found: the fields are taken in their order.
    unsafe {
        fits((*lvs).bs_dev == scratch.dev(), "spdk_lvol_store.bs_dev")?;
        fits(is_empty_tailq!((*lvs).lvols), "spdk_lvol_store.lvols")?;
        fits(is_empty_tailq!((*lvs).pending_lvols), "spdk_lvol_store.pending_lvols")?;
        fits(is_empty_tailq!((*lvs).retry_open_lvols), "spdk_lvol_store.retry_open_lvols")?;
        let name = CStr::from_ptr((&raw const (*lvs).name).cast());
        fits(name.to_bytes() == scratch.name().as_bytes(), "spdk_lvol_store.name")?;

        let bs = (*lvs).blobstore;
        // The super block is the first page, and the masks of used pages follow.
        fits((1..64).contains(&(*bs).md_start), "spdk_blob_store.md_start")?;
        fits((1..4096).contains(&(*bs).md_len), "spdk_blob_store.md_len")?;
        let max_channel_ops = (*bs).max_channel_ops;
        fits((1..=65536).contains(&max_channel_ops), "spdk_blob_store.max_channel_ops")?;
        fits((*bs).md_thread == sys::spdk_get_thread(), "spdk_blob_store.md_thread")?;
        fits((*bs).dev == scratch.dev(), "spdk_blob_store.dev")?;
        // These two stand behind `used_md_pages`, `open_blobids` and `used_lock`.
        fits((*bs).cluster_sz == CLUSTER_LEN, "spdk_blob_store.cluster_sz")?;
        let data_clusters = sys::spdk_bs_total_data_cluster_count(bs);
        fits((*bs).total_data_clusters == data_clusters, "spdk_blob_store.total_data_clusters")?;
        fits(is_empty_tailq!((*bs).snapshots), "spdk_blob_store.snapshots")?;
        Blobstore::new(bs)
    }
}

/// # Safety
///
/// `lvol` is an open lvol of the store.
unsafe fn check_lvol(scratch: &Scratch, lvol: *mut sys::spdk_lvol) -> Result<*mut sys::spdk_blob> {
    // SAFETY: the lvol is open, as the caller says; the fields are taken in their order.
    unsafe {
        fits((*lvol).lvol_store == scratch.lvs(), "spdk_lvol.lvol_store")?;
        fits((*scratch.lvs()).lvols.tqh_first == lvol, "spdk_lvol_store.lvols")?;
        fits(is_only_element!((*scratch.lvs()).lvols, lvol), "spdk_lvol.link")?;
        fits(CStr::from_ptr((&raw const (*lvol).name).cast()) == c"lvol", "spdk_lvol.name")?;
        let blob = (*lvol).blob;
        fits((*blob).bs == (*scratch.lvs()).blobstore, "spdk_lvol.blob")?;
        fits((*lvol).blob_id == sys::spdk_blob_get_id(blob), "spdk_lvol.blob_id")?;
        Ok(blob)
    }
}

/// What the lvol's bdev would be named after.
///
/// # Safety
///
/// `lvol` is open, and `blob` is its blob.
unsafe fn check_unique_id(lvol: *mut sys::spdk_lvol, blob: &OpenBlob) -> Result<()> {
    // SAFETY: the lvol is in memory, as the caller says; the name, which ends in NUL, is behind it.
    let unique_id = unsafe { CStr::from_ptr((&raw const (*lvol).unique_id).cast()) };
    fits(blob.uuid().as_deref() == Some(unique_id), "spdk_lvol.unique_id")
}

/// A thin blob without a parent, open twice: by its lvol and by us.
fn check_blob(bs: Blobstore, blob: &OpenBlob) -> Result<()> {
    let raw = blob.as_ptr();
    // SAFETY: the blob is open; the fields are taken in their order.
    unsafe {
        fits((*raw).bs == bs.as_ptr(), "spdk_blob.bs")?;
        fits((*raw).open_ref == 2, "spdk_blob.open_ref")?;
        fits((*raw).id == sys::spdk_blob_get_id(raw), "spdk_blob.id")?;
        fits((*raw).parent_id == sys::SPDK_BLOBID_INVALID, "spdk_blob.parent_id")?;
        fits((*raw).state == sys::SPDK_BLOB_STATE_CLEAN, "spdk_blob.state")?;
        let num_clusters = sys::spdk_blob_get_num_clusters(raw);
        for data in [&raw const (*raw).clean, &raw const (*raw).active] {
            fits((*data).num_clusters == num_clusters, "spdk_blob_mut_data.num_clusters")?;
            fits((*data).num_pages == 1, "spdk_blob_mut_data.num_pages")?;
            fits(!(*data).pages.is_null(), "spdk_blob_mut_data.pages")?;
        }
        fits((*raw).clean.pages != (*raw).active.pages, "spdk_blob.active")?;
        fits(!(*raw).data_ro && !(*raw).md_ro, "spdk_blob.data_ro")?;
        fits((*raw).invalid_flags == THIN, "spdk_blob.invalid_flags")?;
        fits(!(*raw).back_bs_dev.is_null(), "spdk_blob.back_bs_dev")?;
        fits(is_empty_tailq!((*raw).xattrs_internal), "spdk_blob.xattrs_internal")?;
        fits(!(*raw).locked_operation_in_progress, "spdk_blob.locked_operation_in_progress")?;
        fits((*raw).use_extent_table, "spdk_blob.use_extent_table")?;
        fits(is_empty_tailq!((*raw).pending_persists), "spdk_blob.pending_persists")?;
        fits(is_empty_tailq!((*raw).persists_to_complete), "spdk_blob.persists_to_complete")
    }
}

fn check_owns_first(blob: &OpenBlob) -> Result<()> {
    let first = blob.clusters(0, 1).first().copied().unwrap_or_default();
    // In units of blocks, and behind the metadata.
    let is_lba = first != 0 && first.is_multiple_of(u64::from(CLUSTER_LEN) / BLOCK_LEN as u64);
    fits(is_lba, "spdk_blob_mut_data.clusters")
}

/// What walks through the channels look at: this thread's channel, whose request sets are all free.
fn check_channel(bs: Blobstore, scratch: &Scratch) -> Result<()> {
    // SAFETY: the blobstore is loaded, and this is its thread, which has a channel of it; each pointer is
    // followed only after its neighbours have been found right.
    unsafe {
        let io_channel = sys::spdk_bs_alloc_io_channel(bs.as_ptr());
        fits(!io_channel.is_null(), "the channel of a blobstore in memory")?;
        sys::spdk_bs_free_io_channel(io_channel);
        fits((*bs.as_ptr()).md_channel == io_channel, "spdk_blob_store.md_channel")?;
        let channel = Channel::new(io_channel).as_ptr();
        fits((*channel).bs == bs.as_ptr(), "spdk_bs_channel.bs")?;
        fits((*channel).dev == scratch.dev(), "spdk_bs_channel.dev")?;
        let dev_channel = sys::spdk_get_io_channel(scratch.dev().cast());
        fits(!dev_channel.is_null(), "the channel of a device in memory")?;
        sys::spdk_put_io_channel(dev_channel);
        fits((*channel).dev_channel == dev_channel, "spdk_bs_channel.dev_channel")?;
        fits(is_empty_tailq!((*channel).need_cluster_alloc), "spdk_bs_channel.need_cluster_alloc")?;
        let sets = (*channel).req_mem;
        let mut free = vec![false; (*bs.as_ptr()).max_channel_ops as usize];
        let mut place = &raw mut (*channel).reqs.tqh_first;
        while !(*place).is_null() {
            let set = *place;
            let offset = (set as usize).wrapping_sub(sets as usize);
            let len = size_of::<sys::spdk_bs_request_set>();
            let is_new = offset.is_multiple_of(len)
                && free.get_mut(offset / len).is_some_and(|free| !std::mem::replace(free, true));
            fits(is_new && (*set).link.tqe_prev == place, "spdk_bs_request_set.link")?;
            place = &raw mut (*set).link.tqe_next;
        }
        fits(free.into_iter().all(|free| free), "spdk_bs_channel.reqs")
    }
}

/// What the blobstore keeps of its open blobs, and the blob's page on the device, which is the only one.
async fn check_page(bs: Blobstore, blob: &OpenBlob) -> Result<()> {
    fits(bs.has_open(blob.id()), "spdk_blob_store.open_blobids")?;
    let Ok(root) = MdPage::read_root(blob).await else { return misfit("spdk_blob_md_page") };
    fits(matches!(root.read_next(blob, 1).await, Ok(None)), "spdk_blob_md_page.next")?;
    fits(root.find_parent().is_none(), "spdk_blob_md_page.descriptors")
}

/// Gives the blob its first cluster.
async fn write_block(bs: Blobstore, blob: &OpenBlob) -> Result<()> {
    let mut block = [1u8; BLOCK_LEN];
    let payload = (&raw mut block).cast();
    // SAFETY: the blob is open, and the channel its blobstore's; the block is there until the write is
    // done.
    let rc = status(|ctx| unsafe {
        let channel = (*bs.as_ptr()).md_channel;
        sys::spdk_blob_io_write(blob.as_ptr(), channel, payload, 0, 1, Some(status_callback), ctx);
    })
    .await;
    check(rc, || "could not write to a blob in memory".to_owned())
}

/// A read through the snapshot, which is in flight until this thread's next round, as the device in
/// memory completes nothing at once.
async fn check_read(bs: Blobstore, blob: &OpenBlob) -> Result<()> {
    let mut block = [0u8; BLOCK_LEN];
    let (payload, raw) = ((&raw mut block).cast(), blob.as_ptr());
    let (callback, done) = Callback::<i32>::new();
    let ctx = callback.into_ctx();
    // SAFETY: as in `write_block`.
    let callers = unsafe {
        let channel = (*bs.as_ptr()).md_channel;
        sys::spdk_blob_io_read(raw, channel, payload, 0, 1, Some(status_callback), ctx);
        callers_of_reads(bs, Channel::new(channel))
    };
    let rc = done.await.unwrap_or_default();
    check(rc, || "could not read a blob in memory".to_owned())?;
    fits(callers == [ctx], "spdk_bs_request_set.cb_args")?;
    // SAFETY: the channel is this thread's.
    let callers = unsafe { callers_of_reads(bs, Channel::of_metadata(bs.as_ptr())) };
    fits(callers.is_empty(), "spdk_bs_request_set.cpl")
}

/// A write that copies a cluster of the snapshot, likewise.
async fn check_copy(bs: Blobstore, blob: &OpenBlob) -> Result<()> {
    let mut write = Box::pin(write_block(bs, blob));
    let has_ended = std::future::poll_fn(|context| {
        std::task::Poll::Ready(write.as_mut().poll(context).is_ready())
    })
    .await;
    // SAFETY: the channel is this thread's.
    let (is_copied, reads) = unsafe {
        let channel = Channel::of_metadata(bs.as_ptr());
        (is_copied(channel, blob), callers_of_reads(bs, channel).len())
    };
    fits(!has_ended && is_copied, "spdk_bs_request_set.u.user_op.blob")?;
    fits(reads == 1, "the reads of a copy")?;
    write.await
}

/// The flags of a thin lvol.
const THIN: u64 = (sys::SPDK_BLOB_THIN_PROV | sys::SPDK_BLOB_EXTENT_TABLE) as u64;
const INTERNAL_XATTR: u64 = sys::SPDK_BLOB_INTERNAL_XATTR as u64;

/// The blob since it has a snapshot, and the snapshot.
fn check_clone(
    bs: Blobstore,
    blob: &OpenBlob,
    snapshot: &OpenBlob,
    zeroes: ZeroesDev,
) -> Result<()> {
    let (raw, parent) = (blob.as_ptr(), snapshot.as_ptr());
    // SAFETY: both are open; a pointer is followed after the list that has it was found right.
    unsafe {
        fits((*raw).parent_id == (*parent).id, "spdk_blob.parent_id")?;
        fits((*raw).invalid_flags == THIN | INTERNAL_XATTR, "spdk_blob.invalid_flags")?;
        fits(!zeroes.is_behind(blob), "spdk_blob.back_bs_dev")?;
        let back_bs_dev = (*raw).back_bs_dev.cast::<sys::spdk_blob_bs_dev>();
        fits((*back_bs_dev).blob == parent, "spdk_blob_bs_dev.blob")?;
        fits(zeroes.is_behind(snapshot), "spdk_blob.back_bs_dev of a snapshot")?;
        fits((*parent).data_ro && (*parent).md_ro, "spdk_blob.md_ro")?;

        let xattr = (*raw).xattrs_internal.tqh_first;
        fits(is_only_element!((*raw).xattrs_internal, xattr), "spdk_xattr.link")?;
        let id_len = size_of::<sys::spdk_blob_id>();
        fits(usize::from((*xattr).value_len) == id_len, "spdk_xattr.value_len")?;
        let name = CStr::from_ptr((*xattr).name);
        fits(name.to_bytes_with_nul() == sys::BLOB_SNAPSHOT, "spdk_xattr.name")?;
        let value = (*xattr).value.cast::<sys::spdk_blob_id>().read_unaligned();
        fits(value == (*parent).id, "spdk_xattr.value")?;

        let entry = (*bs.as_ptr()).snapshots.tqh_first;
        fits(is_only_element!((*bs.as_ptr()).snapshots, entry), "spdk_blob_list.link")?;
        fits((*entry).id == (*parent).id, "spdk_blob_list.id")?;
        fits((*entry).clone_count == 1, "spdk_blob_list.clone_count")?;
        let clone = (*entry).clones.tqh_first;
        fits(is_only_element!((*entry).clones, clone), "spdk_blob_list.clones")?;
        fits((*clone).id == (*raw).id, "spdk_blob_list.id of a clone")
    }
}

/// The lock keeps SPDK's own operations off.
async fn check_lock(bs: Blobstore, blob: &OpenBlob) -> Result<()> {
    let lock = blob.lock();
    let (callback, done) = Callback::<i32>::new();
    // SAFETY: the blob is open, and the blobstore loaded, by this thread. The size is another one,
    // or the function would have nothing to do.
    unsafe {
        let (raw, size) = (blob.as_ptr(), sys::spdk_blob_get_num_clusters(blob.as_ptr()) + 1);
        sys::spdk_blob_resize(raw, size, Some(status_callback), callback.into_ctx());
        fits((*raw).bs == bs.as_ptr(), "spdk_blob.bs")?;
    }
    let rc = done.await.unwrap_or_default();
    drop(lock);
    fits(rc == -libc::EBUSY, "spdk_blob.locked_operation_in_progress")
}

fn check_detached(
    scratch: &Scratch,
    bs: Blobstore,
    blob: &OpenBlob,
    snapshot: &OpenBlob,
    zeroes: ZeroesDev,
) -> Result<ZeroesDev> {
    let mut clones = [0; 1];
    let mut count = clones.len();
    // SAFETY: both blobs are open, and the blobstore loaded, by this thread.
    unsafe {
        let parent = sys::spdk_blob_get_parent_snapshot(bs.as_ptr(), blob.id());
        fits(parent == sys::SPDK_BLOBID_INVALID, "the parent after a detach")?;
        let (id, ids) = (snapshot.id(), clones.as_mut_ptr());
        let rc = sys::spdk_blob_get_clones(bs.as_ptr(), id, ids, &mut count);
        check(rc, || "could not count the clones of a snapshot in memory".to_owned())?;
        fits((*blob.as_ptr()).invalid_flags == THIN, "spdk_blob.invalid_flags after a detach")?;
        fits((*snapshot.as_ptr()).open_ref == 2, "spdk_blob.open_ref of a former parent")?;
    }
    fits(count == 0, "the number of clones after a detach")?;
    fits(zeroes.is_behind(blob), "spdk_blob.back_bs_dev after a detach")?;
    fits(
        !scratch.device_has(sys::BLOB_SNAPSHOT.split_last().map_or(&[], |(_, name)| name)),
        "the metadata on the device after a detach",
    )?;
    Ok(zeroes)
}
