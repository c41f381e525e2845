//! Which blob reads through which, in memory: SPDK's list of snapshots and their clones, compared with what
//! the open blobs themselves say. After an SPDK operation that failed half-way the two differ,
//! and then neither can be trusted.
//!
//! A clone names in `parent_id` what it reads through, and its `back_bs_dev` holds a reference on that
//! blob (`open_ref`). So a snapshot has exactly one reference for each open clone, and one of
//! its lvol. If it has one more, a blob that is in no list reads through it; if it has one less, the device of a
//! clone has been freed, although the clone still has its address.

use std::collections::{HashMap, HashSet};

use spdk_sys as sys;

use crate::base::tailq::{elements, tailq_remove};
use crate::chain::blob::{BlobId, Blobstore, OpenBlob};

/// A snapshot's entry in `bs->snapshots`.
///
/// # Invariants
///
/// `0` is in the list. It must not be held across an await.
#[derive(Debug, Clone, Copy)]
struct Entry(*mut sys::spdk_blob_list);

impl Entry {
    fn all(bs: Blobstore) -> impl Iterator<Item = Entry> {
        // SAFETY: the blobstore is loaded, and only its metadata thread, which this is (invariants of
        // `Blobstore`), changes the list.
        let first = unsafe { (*bs.as_ptr()).snapshots.tqh_first };
        // SAFETY: as above.
        elements(first, |entry| unsafe { (*entry).link.tqe_next }).map(Entry)
    }

    fn find(bs: Blobstore, id: BlobId) -> Option<Entry> {
        Entry::all(bs).find(|entry| entry.id() == id)
    }

    fn id(self) -> BlobId {
        // SAFETY: the entry is in the list (invariant).
        unsafe { (*self.0).id }
    }

    fn clones(self) -> impl Iterator<Item = *mut sys::spdk_blob_list> {
        // SAFETY: as above, for the list of clones as well.
        let first = unsafe { (*self.0).clones.tqh_first };
        // SAFETY: as above.
        elements(first, |clone| unsafe { (*clone).link.tqe_next })
    }

    fn clone_ids(self) -> impl Iterator<Item = BlobId> {
        // SAFETY: as above.
        self.clones().map(|clone| unsafe { (*clone).id })
    }
}

/// A clone in SPDK's list of its snapshot's clones.
///
/// # Invariants
///
/// Both entries are in their lists. It is held across an await only while the snapshot is held open and the
/// clone is locked: so the one is not deleted, and the other neither deleted nor given another parent, and
/// nothing else takes an entry off its list (`bs_blob_list_remove`, lib/blob/blobstore.c).
#[derive(Debug)]
pub struct Listed {
    snapshot: Entry,
    clone: *mut sys::spdk_blob_list,
}

impl Listed {
    /// `None` if SPDK doesn't list `clone` as a clone of `snapshot`. A walk through the store's snapshots.
    pub fn find(bs: Blobstore, snapshot: BlobId, clone: BlobId) -> Option<Listed> {
        let snapshot = Entry::find(bs, snapshot)?;
        // SAFETY: the entries are in the list (invariant of `Entry`).
        let clone = snapshot.clones().find(|&listed| unsafe { (*listed).id == clone })?;
        Some(Listed { snapshot, clone })
    }

    /// How many clones SPDK lists of the snapshot, open or not.
    pub fn count(&self) -> usize {
        // SAFETY: the entry is in the list (invariant).
        unsafe { (*self.snapshot.0).clone_count }
    }

    /// Takes the clone off the list, as `bs_blob_list_remove`.
    ///
    /// # Safety
    ///
    /// The current thread is the one that changes the lists: the blobstore's metadata thread.
    pub unsafe fn remove(self) {
        // SAFETY: the entries are in their lists (invariant), and the caller may change those. They come
        // from calloc (`bs_blob_list_add`).
        unsafe {
            let Entry(snapshot) = self.snapshot;
            tailq_remove!((*snapshot).clones, self.clone);
            libc::free(self.clone.cast());
            (*snapshot).clone_count -= 1;
        }
    }
}

/// A blob that reads through another, as SPDK lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reader {
    /// The blob.
    pub id: BlobId,
    /// What it reads through.
    pub parent: BlobId,
}

/// The blobs that read through `root`, as SPDK lists them: its clones, theirs, and so on, each once.
///
/// `bdev_lvol_set_parent` (24.05 and later) makes a cycle of a blob and its own clone: `root` may be
/// among the clones of those that read through it.
pub fn readers(bs: Blobstore, root: &OpenBlob) -> Vec<Reader> {
    // Only a read-only blob can have clones (`bs_clone_origblob_open_cpl`): a writable one needs
    // no walk through all of the store's snapshots.
    if !root.is_read_only() {
        return Vec::new();
    }
    let entries: HashMap<BlobId, Entry> = Entry::all(bs).map(|entry| (entry.id(), entry)).collect();
    let mut seen = HashSet::from([root.id()]);
    let mut readers = Vec::new();
    let mut next = Some(root.id());
    let mut done = 0;
    while let Some(parent) = next {
        let clones = entries.get(&parent).into_iter().flat_map(|entry| entry.clone_ids());
        let new = clones.filter(|&id| seen.insert(id));
        readers.extend(new.map(|id| Reader { id, parent }));
        next = readers.get(done).map(|reader: &Reader| reader.id);
        done += 1;
    }
    readers
}

/// All open blobs that name `id` as their parent. Walks through all of the store's blobs, for
/// a message about one that is in no list.
pub fn open_readers(bs: Blobstore, id: BlobId) -> Vec<OpenBlob> {
    let next = |page: u32| {
        // SAFETY: the blobstore is loaded and this is its thread (invariants of `Blobstore`).
        let page = unsafe { sys::spdk_bit_array_find_first_set((*bs.as_ptr()).open_blobids, page) };
        (page != u32::MAX).then_some(page)
    };
    std::iter::successors(next(0), |page| next(page + 1))
        // A blob's id is its root page, and a bit above it (`bs_page_to_blobid`).
        .map(|page| u64::from(page) | sys::SPDK_BLOB_BLOBID_HIGH_BIT as BlobId)
        .filter_map(|blob| bs.get_open(blob))
        // SAFETY: the blob is in memory (invariant of `OpenBlob`).
        .filter(|blob| unsafe { (*blob.as_ptr()).parent_id } == id)
        .collect()
}
