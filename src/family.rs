//! A blob and all that read through it, held for one operation.

use crate::blob::{BlobId, Blobstore, Lock, OpenBlob};
use crate::error::{Error, Result};
use crate::lineage::with_descendants;
use crate::lvol::{Lvol, Quiesced};
use crate::task;

/// A blob and its descendants, all open.
pub struct Family {
    root: Member,
    descendants: Vec<Member>,
}

/// A blob that is open, and the lvol that does I/O on it if there is one. While its lvol is held
/// nobody deletes the blob, so the lvol is let go last: SPDK's deletion of a blob that is open
/// fails half-way, and leaves it without a lvol (`lvol_delete_blob_cb`, lib/lvol/lvol.c).
pub struct Member {
    blob: OpenBlob,
    lvol: Option<Lvol>,
}

impl Member {
    /// The blob.
    pub fn blob(&self) -> &OpenBlob {
        &self.blob
    }

    /// Closes the blob and waits until its reference is gone; then the lvol.
    pub async fn close(self) {
        self.blob.close_or_say().await;
    }
}

impl Family {
    /// Opens the blob `id` and its descendants, and locks them against SPDK's long operations: as
    /// long as the locks are held the family stays as it is, nobody copies through it, and none of
    /// its lvols is resized. `lvol` is the one of the blob; a blobstore without lvols has none.
    pub async fn lock(
        bs: Blobstore,
        id: BlobId,
        lvol: Option<Lvol>,
    ) -> Result<(Family, Vec<Lock>)> {
        let root = Member { blob: bs.open(id).await?, lvol };
        let mut family = Family { root, descendants: Vec::new() };
        match family.open_and_lock_descendants(bs).await {
            Ok(locks) => Ok((family, locks)),
            Err(error) => {
                // A blob is closed when nobody writes its metadata. Who is busy with it may take a
                // while, which the answer need not wait for.
                // SAFETY: tasks run on the metadata thread, where closing has its callbacks.
                unsafe { task::spawn(family.close()) };
                Err(error)
            }
        }
    }

    async fn open_and_lock_descendants(&mut self, bs: Blobstore) -> Result<Vec<Lock>> {
        let ids = with_descendants(bs, self.root());
        for &id in ids.iter().skip(1) {
            let member = self.open_relative(bs, id).await?;
            self.descendants.push(member);
        }
        // From here to the return nothing is awaited: what is found stays so.
        if with_descendants(bs, self.root()) != ids {
            return Err(self.changing());
        }
        self.lock_members()
    }

    /// Opens another blob of the same store, and its lvol.
    ///
    /// The blob of a lvol that has no bdev yet, or any more, must not be held open ([`Member`]), and
    /// its I/O can't be held back. If such a blob is closed, it stays so; one that is open already
    /// is opened, and closed if need be, before anybody else does anything.
    pub async fn open_relative(&self, bs: Blobstore, id: BlobId) -> Result<Member> {
        let root = self.root.lvol.as_ref();
        let may_have_lvol = || root.is_some_and(|root| root.store_may_have(id));
        if !bs.has_open(id) && may_have_lvol() {
            return Err(self.changing());
        }
        let blob = bs.open(id).await?;
        // A lvol's bdev is named by the UUID (`_create_lvol_disk`, module/bdev/lvol).
        let uuid = if root.is_some() { blob.uuid() } else { None };
        let lvol = uuid.and_then(|uuid| Lvol::open(&uuid).ok());
        if lvol.is_none() && may_have_lvol() {
            return Err(self.changing());
        }
        Ok(Member { blob, lvol })
    }

    fn lock_members(&self) -> Result<Vec<Lock>> {
        let busy = |what: String| Error::new(libc::EBUSY, what);
        let name = self.name();
        let lock = self.root().lock();
        let mut locks =
            vec![lock.ok_or_else(|| busy(format!("another operation is in progress on {name}")))?];
        for Member { blob, .. } in &self.descendants {
            locks.push(blob.lock().ok_or_else(|| {
                let clone = self.name_of(blob);
                busy(format!(
                    "another operation is in progress on {clone}, which reads through {name}"
                ))
            })?);
        }
        Ok(locks)
    }

    fn changing(&self) -> Error {
        let name = self.name();
        Error::new(libc::EBUSY, format!("a lvol in the chain of {name} comes or goes just now"))
    }

    /// The blob that the family descends from.
    pub fn root(&self) -> &OpenBlob {
        &self.root.blob
    }

    /// What to call the root in a message.
    pub fn name(&self) -> String {
        self.name_of(self.root())
    }

    /// What to call a blob of the same store in a message.
    pub fn name_of(&self, blob: &OpenBlob) -> String {
        let name = blob.name();
        match &self.root.lvol {
            Some(lvol) => format!("{}/{name}", lvol.store_name()),
            None => name,
        }
    }

    fn lvols(&self) -> impl Iterator<Item = &Lvol> {
        let members = std::iter::once(&self.root).chain(&self.descendants);
        members.filter_map(|member| member.lvol.as_ref())
    }

    /// Holds back the I/O of every lvol in the family, and waits for what is in flight. The family
    /// must be locked.
    pub async fn quiesce(&self) -> Result<Vec<Quiesced<'_>>> {
        // A resize gives up its lock before the bdev has its new size, which it gets by a message that
        // is sent when the metadata has been written (`lvol_blob_resize_cb`, lib/lvol/lvol.c). The
        // root's has been written since by us.
        for Member { blob, .. } in &self.descendants {
            blob.wait_until_idle().await;
        }
        if !self.descendants.is_empty() {
            task::next_round().await;
        }
        // All of them start before the first is waited for.
        let started: Vec<_> = self.lvols().map(Lvol::quiesce).collect();
        let mut quiesced = Vec::with_capacity(started.len());
        let mut outcome = Ok(());
        for lvol in started {
            match lvol.await {
                Ok(lvol) => quiesced.push(lvol),
                Err(error) => outcome = Err(error),
            }
        }
        if outcome.is_err() {
            resume(std::mem::take(&mut quiesced)).await;
        }
        outcome.map(|()| quiesced)
    }

    /// Waits for the I/O that has slipped through a family that is quiesced, if there is any.
    ///
    /// A channel that is made while its bdev is quiesced takes over the range that is locked, but
    /// not that it is quiesced, and so lets reads through (`bdev_channel_create`, lib/bdev/bdev.c).
    /// A channel that was there before doesn't: to quiesce once more waits for all of them.
    pub async fn wait_for_slipped<'a>(&'a self, quiesced: Vec<Quiesced<'a>>) -> Vec<Quiesced<'a>> {
        if !any_has_io(self.lvols()).await {
            return quiesced;
        }
        resume(quiesced).await;
        loop {
            match self.quiesce().await {
                Ok(quiesced) => return quiesced,
                // For want of memory, as the family is locked and its bdevs are open.
                Err(error) => tracing::warn!("trying again: {error}"),
            }
            task::next_round().await;
        }
    }

    /// Closes all blobs and waits until their references are gone; then the lvols.
    ///
    /// A lvol that is let go before may be closed by SPDK, which waits for its blob to be written
    /// (`spdk_lvol_close`), and for ever if the device has gone.
    pub async fn close(self) {
        let mut lvols = Vec::with_capacity(1 + self.descendants.len());
        for Member { blob, lvol } in std::iter::once(self.root).chain(self.descendants) {
            Member { blob, lvol: None }.close().await;
            lvols.push(lvol);
        }
    }
}

async fn any_has_io(lvols: impl Iterator<Item = &Lvol>) -> bool {
    let started: Vec<_> = lvols.map(Lvol::has_io).collect();
    let mut any = false;
    for has_io in started {
        any |= has_io.await;
    }
    any
}

/// Lets the I/O of a family go on.
pub async fn resume(quiesced: Vec<Quiesced<'_>>) {
    let lvols: Vec<_> = quiesced.iter().map(Quiesced::lvol).collect();
    let started: Vec<_> = quiesced.into_iter().map(Quiesced::resume).collect();
    for lvol in started {
        lvol.await;
    }
    // If the removal of a bdev starts while its I/O is being resumed, SPDK goes on with the removal
    // twice (`bdev_unlock_lba_range_cb`, and the walk through the channels that
    // `spdk_bdev_unregister` has started). Only the second time may find the bdev without our
    // descriptor, so that has to stay until a walk that started later is done.
    any_has_io(lvols.into_iter()).await;
}
