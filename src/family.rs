//! A blob and all that read through it, held for one operation.

use crate::blob::{BlobId, Blobstore, Lock, OpenBlob};
use crate::error::{Error, Result};
use crate::lineage::with_descendants;
use crate::lvol::{Lvol, Quiesced};
use crate::metadata::wait_until_idle;

/// A blob and its descendants, all open.
pub struct Family {
    root: Member,
    descendants: Vec<Member>,
}

/// One blob of the family, and the lvol that does I/O on it if there is one.
struct Member {
    lvol: Option<Lvol>,
    blob: OpenBlob,
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
        let root = Member { lvol, blob: bs.open(id).await? };
        let mut family = Family { root, descendants: Vec::new() };
        let ids = with_descendants(bs, family.root());
        for &id in ids.iter().skip(1) {
            let blob = bs.open(id).await.map_err(|_| family.changing())?;
            // A lvol's bdev is named by the UUID (`_create_lvol_disk`, module/bdev/lvol).
            let lvol = blob.uuid().and_then(|uuid| Lvol::open(&uuid).ok());
            family.descendants.push(Member { lvol, blob });
        }
        // From here to the return nothing is awaited: what is found stays so.
        if with_descendants(bs, family.root()) != ids {
            return Err(family.changing());
        }
        let locks = family.lock_members()?;
        Ok((family, locks))
    }

    fn lock_members(&self) -> Result<Vec<Lock>> {
        let busy = |what: String| Error::new(libc::EBUSY, what);
        let name = self.name();
        let lock = self.root().lock();
        let mut locks =
            vec![lock.ok_or_else(|| busy(format!("another operation is in progress on {name}")))?];
        let creating = self.root.lvol.as_ref().is_some_and(Lvol::store_is_creating);
        for Member { lvol, blob } in &self.descendants {
            locks.push(blob.lock().ok_or_else(|| {
                let clone = self.name_of(blob);
                busy(format!(
                    "another operation is in progress on {clone}, which reads through {name}"
                ))
            })?);
            // The blob of a lvol whose bdev isn't there yet, or any more: if somebody has it open,
            // or may have it at once, then its I/O can't be held back.
            if lvol.is_none() && blob.uuid().is_some() && (creating || blob.is_shared()) {
                return Err(self.changing());
            }
        }
        Ok(locks)
    }

    fn changing(&self) -> Error {
        let name = self.name();
        Error::new(libc::EBUSY, format!("a lvol that reads through {name} comes or goes just now"))
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

    /// Holds back the I/O of every lvol in the family, and waits for what is in flight. The family
    /// must be locked.
    pub async fn quiesce(&self) -> Result<Vec<Quiesced<'_>>> {
        let members = || std::iter::once(&self.root).chain(&self.descendants);
        for member in members() {
            // A resize gives up its lock before the bdev has its new size, which it gets when the
            // metadata is written (`lvol_blob_resize_cb`, lib/lvol/lvol.c).
            wait_until_idle(&member.blob).await;
        }
        // All of them start before the first is waited for.
        let started: Vec<_> =
            members().filter_map(|member| member.lvol.as_ref()).map(Lvol::quiesce).collect();
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
}

/// Lets the I/O of a family go on.
pub async fn resume(quiesced: Vec<Quiesced<'_>>) {
    let started: Vec<_> = quiesced.into_iter().map(Quiesced::resume).collect();
    for lvol in started {
        lvol.await;
    }
}
