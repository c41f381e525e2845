//! A blob, its parent, and all its readers, held open for one operation.

use std::collections::HashMap;
use std::time::Duration;

use spdk_sys as sys;

use crate::base::error::{Error, Result};
use crate::base::task::Rests;
use crate::chain::blob::{BlobId, Blobstore, Lock, OpenBlob, Parent};
use crate::chain::lineage::{self, Listed, Reader};
use crate::chain::lvol::{Lvol, external_parent};

/// How long to wait for an SPDK operation on one of the family: a snapshot, a clone or a
/// deletion takes a moment, and a refused detach aborts a rebuild of Longhorn's engine, which
/// never retries it.
const PATIENCE: Duration = Duration::from_secs(3);

/// A blob that is open, and the lvol that does I/O on it if there is one. While its lvol is held open
/// the blob can't be deleted: SPDK's deletion of a blob that is still open elsewhere fails half-way, and
/// leaves it without an lvol (`lvol_delete_blob_cb`, lib/lvol/lvol.c). So the blob is closed first.
#[derive(Debug)]
pub struct Member {
    /// The blob.
    pub blob: OpenBlob,
    /// Its lvol. A blobstore without lvols has none.
    pub lvol: Option<Lvol>,
}

/// A blob that has a parent, the parent, and the blob's readers.
#[derive(Debug)]
pub struct Family {
    // Locks go before the blobs that they are on.
    _locks: Vec<Lock>,
    root: Member,
    readers: Vec<Member>,
    /// What the root reads through.
    pub parent: Member,
}

impl Family {
    /// Finds the family of the blob `id`, and locks all of it but the parent against SPDK's long
    /// operations: while it is locked it doesn't change, and nothing copies through it. `lvol` is
    /// the blob's lvol; a blobstore without lvols has none. Also returns the blob's entry in the
    /// list of its parent's clones, which stays valid as long.
    pub async fn lock(bs: Blobstore, id: BlobId, lvol: Option<Lvol>) -> Result<(Family, Listed)> {
        let root = Member { blob: bs.open(id).await?, lvol };
        let Found { parent, listed, readers, locks } = find(bs, &root).await?;
        Ok((Family { _locks: locks, root, readers, parent }, listed))
    }

    /// The blob that the others descend from.
    pub fn root(&self) -> &OpenBlob {
        &self.root.blob
    }

    /// What to call the root in a message.
    pub fn name(&self) -> String {
        name_of(&self.root, &self.root.blob)
    }

    /// What to call the parent in a message.
    pub fn parent_name(&self) -> String {
        name_of(&self.root, &self.parent.blob)
    }

    /// The root and its readers.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        std::iter::once(&self.root).chain(&self.readers)
    }

    /// What to call one of them in a message.
    pub fn name_of(&self, member: &Member) -> String {
        name_of(&self.root, &member.blob)
    }

    /// Releases all but the parent.
    pub fn part(self) -> Member {
        self.parent
    }
}

/// The readers of `root`, if [`Family::lock`] would find nothing to refuse; the error is what it would
/// refuse with. Nothing stays locked.
pub async fn find_readers(bs: Blobstore, root: &Member) -> Result<Vec<Member>> {
    find(bs, root).await.map(|found| found.readers)
}

async fn find(bs: Blobstore, root: &Member) -> Result<Found> {
    let rests = Rests::start();
    loop {
        match (Survey { bs, root }).find_and_lock() {
            Err(error) if error.is_busy() && rests.waited() <= PATIENCE => rests.rest().await,
            outcome => return outcome,
        }
    }
}

/// What to call a blob of `root`'s store in a message.
pub fn name_of(root: &Member, blob: &OpenBlob) -> String {
    let name = blob.name();
    match &root.lvol {
        Some(lvol) => format!("{}/{name}", lvol.store_name()),
        None => name,
    }
}

/// A look at the chain of one blob. Nothing in it is awaited, so what it finds holds until it is done,
/// and nothing is followed that has not been found among the open blobs.
struct Survey<'a> {
    bs: Blobstore,
    root: &'a Member,
}

/// What a survey finds.
struct Found {
    parent: Member,
    listed: Listed,
    readers: Vec<Member>,
    locks: Vec<Lock>,
}

impl Survey<'_> {
    fn find_and_lock(&self) -> Result<Found> {
        self.check_unlocked(&self.root.blob)?;
        let (parent, listed) = self.find_parent()?;
        let all = lineage::readers(self.bs, &self.root.blob);
        let mut readers = Vec::with_capacity(all.len());
        for reader in all {
            readers.extend(self.find_reader(reader)?);
        }
        if self.root.lvol.is_some() {
            self.check_references(&readers)?;
        }
        let blobs = std::iter::once(self.root).chain(&readers).map(|member| &member.blob);
        let locks: Option<Vec<Lock>> = blobs.map(OpenBlob::lock).collect();
        // Each was found unlocked, above.
        let locks = locks.ok_or_else(|| self.busy(&self.root.blob))?;
        Ok(Found { parent, listed, readers, locks })
    }

    fn find_parent(&self) -> Result<(Member, Listed)> {
        let name = || self.name(&self.root.blob);
        let id = match self.root.blob.parent() {
            Parent::Snapshot(id) => id,
            Parent::None => {
                return Err(Error::new(libc::EINVAL, format!("{} has no parent", name())));
            }
            Parent::External => return Err(external_parent(&name())),
        };
        let Some(blob) = self.bs.get_open(id) else {
            let what = "is not open, as after its deletion failed half-way";
            return Err(inconsistent(format!("the parent of {} {what}", name())));
        };
        let Some(listed) = Listed::find(self.bs, id, self.root.blob.id()) else {
            let (name, parent) = (name(), self.name(&blob));
            return Err(inconsistent(format!(
                "{name} reads through {parent}, but is not listed as a clone of it, as after a snapshot \
                 of {name} or a deletion of its parent failed half-way"
            )));
        };
        let parent = self.member(blob)?;
        if parent.lvol.is_some() {
            self.check_device(&parent.blob, listed.count())?;
        }
        Ok((parent, listed))
    }

    /// Whether the root's `back_bs_dev` is there. It has one of the references on the parent, of which
    /// SPDK lists so many clones.
    fn check_device(&self, parent: &OpenBlob, listed: usize) -> Result<()> {
        let references = parent.foreign_references() as usize;
        // Mostly all clones are open.
        if references == LVOL_REFERENCE + listed {
            return self.check_device_is_on(parent);
        }
        let needed = LVOL_REFERENCE + lineage::open_readers(self.bs, parent.id()).len();
        // An operation of SPDK's on the parent, which may go on, has it open as well.
        let bearable = needed + usize::from(parent.is_locked());
        if references < needed {
            let name = self.name(&self.root.blob);
            return Err(inconsistent(format!(
                "what {name} reads through {} by may be gone, as after a snapshot or a set parent of it \
                 failed half-way: there are fewer references than readers",
                self.name(parent)
            )));
        }
        if references > bearable {
            return Err(self.busy(parent));
        }
        self.check_device_is_on(parent)
    }

    /// To be asked when the device was found to be there.
    fn check_device_is_on(&self, parent: &OpenBlob) -> Result<()> {
        // SAFETY: the root is in memory (`OpenBlob`), and says that it reads through a snapshot. Its device
        // is there, as the caller has found, and so is one of those.
        let blob = unsafe {
            (*(*self.root.blob.as_ptr()).back_bs_dev.cast::<sys::spdk_blob_bs_dev>()).blob
        };
        if blob == parent.as_ptr() {
            return Ok(());
        }
        let (name, parent) = (self.name(&self.root.blob), self.name(parent));
        Err(inconsistent(format!("{name} says that it reads through {parent}, but does not")))
    }

    /// `None` for one that doesn't read, and can't begin to.
    fn find_reader(&self, listed: Reader) -> Result<Option<Member>> {
        let Some(blob) = self.bs.get_open(listed.id) else {
            let lvol = self.root.lvol.as_ref();
            if let Some(reader) = lvol.and_then(|lvol| lvol.in_store(listed.id)) {
                let name = self.name(&self.root.blob);
                return Err(busy(format!(
                    "{reader}, which reads through {name}, is being opened, created or deleted, or \
                     could not be opened"
                )));
            }
            return Ok(None);
        };
        self.check_unlocked(&blob)?;
        if blob.parent() != Parent::Snapshot(listed.parent) {
            let (reader, name) = (self.name(&blob), self.name(&self.root.blob));
            return Err(inconsistent(format!(
                "{reader} is listed as reading through {name}, but does not, as after an operation on \
                 {reader} failed half-way"
            )));
        }
        self.member(blob).map(Some)
    }

    /// Whether those that read through the root, or through its readers, are those that are listed.
    fn check_references(&self, readers: &[Member]) -> Result<()> {
        let mut open_clones: HashMap<BlobId, usize> = HashMap::new();
        let parents = readers.iter().chain([self.root]).map(|member| member.blob.parent());
        for parent in parents {
            if let Parent::Snapshot(id) = parent {
                *open_clones.entry(id).or_default() += 1;
            }
        }
        for Member { blob, .. } in readers.iter().chain([self.root]) {
            let open = open_clones.get(&blob.id()).copied().unwrap_or_default();
            if blob.foreign_references() as usize != LVOL_REFERENCE + open {
                return Err(self.explain_references(blob, open));
            }
        }
        Ok(())
    }

    fn explain_references(&self, blob: &OpenBlob, open: usize) -> Error {
        let references = blob.foreign_references() as usize;
        let name = self.name(blob);
        let readers = lineage::open_readers(self.bs, blob.id());
        let is_unlisted =
            |reader: &&OpenBlob| Listed::find(self.bs, blob.id(), reader.id()).is_none();
        if let Some(unlisted) = readers.iter().find(is_unlisted) {
            if unlisted.is_locked() {
                return self.busy(unlisted);
            }
            let unlisted = self.name(unlisted);
            return inconsistent(format!(
                "{unlisted} reads through {name}, but is not listed as a clone of it, as after a \
                 snapshot of {unlisted} failed half-way"
            ));
        }
        if references < LVOL_REFERENCE + open {
            return inconsistent(format!(
                "what a clone of {name} reads through it by may be gone, as after a snapshot or a set \
                 parent of the clone failed half-way: there are fewer references than readers"
            ));
        }
        self.busy(blob)
    }

    /// A blob of the family with its lvol, which it must have where there are lvols.
    fn member(&self, blob: OpenBlob) -> Result<Member> {
        let Some(root) = &self.root.lvol else { return Ok(Member { blob, lvol: None }) };
        if let Some(lvol) = root.of_relative(&blob) {
            return Ok(Member { blob, lvol: Some(lvol) });
        }
        let (relative, name) = (self.name(&blob), self.name(&self.root.blob));
        Err(if root.in_store(blob.id()).is_some() {
            busy(format!(
                "{relative}, in the chain of {name}, has no bdev: it is being opened, created or \
                 deleted, or could not be opened"
            ))
        } else {
            inconsistent(format!(
                "{relative}, in the chain of {name}, is not an lvol, as after a snapshot, a clone or a \
                 deletion failed half-way"
            ))
        })
    }

    fn check_unlocked(&self, blob: &OpenBlob) -> Result<()> {
        if blob.is_locked() { Err(self.busy(blob)) } else { Ok(()) }
    }

    fn busy(&self, blob: &OpenBlob) -> Error {
        let (id, root) = (blob.id(), &self.root.blob);
        let (it, name) = (self.name(blob), self.name(root));
        busy(if id == root.id() {
            format!("another operation is in progress on {name}")
        } else if root.parent() == Parent::Snapshot(id) {
            format!("another operation is in progress on {it}, the parent of {name}")
        } else {
            format!("another operation is in progress on {it}, which reads through {name}")
        })
    }

    fn name(&self, blob: &OpenBlob) -> String {
        name_of(self.root, blob)
    }
}

/// An lvol has its blob open once (`spdk_lvol_open`).
const LVOL_REFERENCE: usize = 1;

fn busy(what: String) -> Error {
    Error::new(libc::EBUSY, what)
}

/// What the store has in memory can't be right.
fn inconsistent(what: String) -> Error {
    Error::new(
        libc::EUCLEAN,
        format!(
            "{what}. Nothing was changed. Copy what can be read before the target is restarted, then look \
             at the chain again"
        ),
    )
}
