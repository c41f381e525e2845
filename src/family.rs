//! A blob, its parent, and all that read through it, held for one operation.

use std::collections::HashMap;
use std::time::Duration;

use crate::blob::{BlobId, Blobstore, Lock, OpenBlob, Parent};
use crate::error::{Error, Result};
use crate::lineage::{self, Clones, Reader};
use crate::lvol::Lvol;
use crate::task::Rests;

/// How long an operation of SPDK's on one of the family is waited for: a snapshot, a clone or a
/// deletion takes a moment, and a detach that is refused ends a rebuild of Longhorn's engine, which
/// never repeats it.
const PATIENCE: Duration = Duration::from_secs(3);

/// A blob that is open, and the lvol that does I/O on it if there is one. While its lvol is held
/// nobody deletes the blob: SPDK's deletion of a blob that somebody else has open fails half-way, and
/// leaves it without an lvol (`lvol_delete_blob_cb`, lib/lvol/lvol.c). So the blob is let go first.
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
    /// operations: as long as it is locked it stays as it is, and nobody copies through it. `lvol` is
    /// the one of the blob; a blobstore without lvols has none.
    pub async fn lock(bs: Blobstore, id: BlobId, lvol: Option<Lvol>) -> Result<Family> {
        let root = Member { blob: bs.open(id).await?, lvol };
        let rests = Rests::start();
        loop {
            match (Survey { bs, root: &root }).find_and_lock() {
                Ok((parent, readers, locks)) => {
                    return Ok(Family { _locks: locks, root, readers, parent });
                }
                Err(error) if !error.is_busy() || rests.waited() > PATIENCE => return Err(error),
                Err(_) => rests.rest().await,
            }
        }
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
    pub fn members(&self) -> impl Iterator<Item = (String, &Member)> {
        let all = std::iter::once(&self.root).chain(&self.readers);
        all.map(|member| (name_of(&self.root, &member.blob), member))
    }

    /// Lets go of all but the parent.
    pub fn part(self) -> Member {
        self.parent
    }
}

/// What to call a blob of `root`'s store in a message.
fn name_of(root: &Member, blob: &OpenBlob) -> String {
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

impl Survey<'_> {
    fn find_and_lock(&self) -> Result<(Member, Vec<Member>, Vec<Lock>)> {
        self.check_unlocked(&self.root.blob)?;
        let parent = self.find_parent()?;
        let (listed, clones) = lineage::readers(self.bs, &self.root.blob);
        let mut readers = Vec::with_capacity(listed.len());
        for reader in listed {
            readers.extend(self.find_reader(reader)?);
        }
        for member in std::iter::once(self.root).chain(&readers) {
            self.check_readers(&member.blob, &clones)?;
        }
        let blobs = std::iter::once(self.root).chain(&readers).map(|member| &member.blob);
        let locks: Option<Vec<Lock>> = blobs.map(OpenBlob::lock).collect();
        // Each was found unlocked, above.
        let locks = locks.ok_or_else(|| self.busy(&self.root.blob))?;
        Ok((parent, readers, locks))
    }

    fn find_parent(&self) -> Result<Member> {
        let name = self.name(&self.root.blob);
        let id = match self.root.blob.parent() {
            Parent::Snapshot(id) => id,
            Parent::None => return Err(Error::new(libc::EINVAL, format!("{name} has no parent"))),
            Parent::External => {
                let what = format!("the parent of {name} is an external snapshot");
                return Err(Error::new(libc::EINVAL, what));
            }
        };
        let Some(blob) = self.bs.get_open(id) else {
            return Err(inconsistent(format!(
                "the parent of {name} is not open, as after its deletion failed half-way"
            )));
        };
        let parent = self.name(&blob);
        let clones = Clones::of(self.bs, id);
        if !clones.contain(self.root.blob.id()) {
            return Err(inconsistent(format!(
                "{name} reads through {parent}, but is not listed as a clone of it, as after a snapshot \
                 of {name} or a deletion of its parent failed half-way"
            )));
        }
        let parent = self.member(blob)?;
        if parent.lvol.is_some() {
            self.check_device(&parent.blob, &clones)?;
        }
        Ok(parent)
    }

    /// Whether the root's `back_bs_dev` is there. It has one of the references on the parent.
    fn check_device(&self, parent: &OpenBlob, clones: &Clones) -> Result<()> {
        let references = parent.foreign_references();
        if references == LVOL_REFERENCE + clones.count_open(self.bs) {
            return Ok(());
        }
        let readers = lineage::open_readers(self.bs, parent.id());
        let needed = LVOL_REFERENCE + u32::try_from(readers.len()).unwrap_or(u32::MAX);
        // An operation of SPDK's on the parent, which may go on, has it open as well.
        let bearable = needed + u32::from(parent.is_locked());
        if references < needed {
            let (name, parent) = (self.name(&self.root.blob), self.name(parent));
            return Err(inconsistent(format!(
                "{parent}, the parent of {name}, has fewer references than open clones: a device that \
                 one of them reads through is gone, as after a snapshot of it failed half-way"
            )));
        }
        if references > bearable { Err(self.busy(parent)) } else { Ok(()) }
    }

    /// `None` for one that doesn't read, and can't begin to.
    fn find_reader(&self, listed: Reader) -> Result<Option<Member>> {
        let Some(blob) = self.bs.get_open(listed.id) else {
            let lvol = self.root.lvol.as_ref();
            if lvol.is_some_and(|lvol| lvol.store_may_have(listed.id)) {
                let (id, name) = (listed.id, self.name(&self.root.blob));
                return Err(busy(format!(
                    "the lvol of blob {id:#x}, which reads through {name}, is being opened, created or \
                     deleted, or could not be opened"
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

    /// Whether those that read through this one are those that are listed.
    fn check_readers(&self, blob: &OpenBlob, clones: &HashMap<BlobId, Clones>) -> Result<()> {
        let Some(clones) = clones.get(&blob.id()).filter(|_| self.root.lvol.is_some()) else {
            return Ok(());
        };
        let (references, open) = (blob.foreign_references(), clones.count_open(self.bs));
        if references == LVOL_REFERENCE + open {
            return Ok(());
        }
        let name = self.name(blob);
        let readers = lineage::open_readers(self.bs, blob.id());
        if let Some(unlisted) = readers.iter().find(|reader| !clones.contain(reader.id())) {
            self.check_unlocked(unlisted)?;
            let unlisted = self.name(unlisted);
            return Err(inconsistent(format!(
                "{unlisted} reads through {name}, but is not listed as a clone of it, as after a \
                 snapshot of {unlisted} failed half-way"
            )));
        }
        if references < LVOL_REFERENCE + open {
            return Err(inconsistent(format!(
                "{name} has fewer references than open clones: a device that one of them reads through \
                 is gone, as after a snapshot of it failed half-way"
            )));
        }
        Err(self.busy(blob))
    }

    /// A blob of the family with its lvol, which it must have where there are lvols.
    fn member(&self, blob: OpenBlob) -> Result<Member> {
        let Some(root) = &self.root.lvol else { return Ok(Member { blob, lvol: None }) };
        if let Some(lvol) = root.of_relative(&blob) {
            return Ok(Member { blob, lvol: Some(lvol) });
        }
        let (relative, name) = (self.name(&blob), self.name(&self.root.blob));
        Err(if root.store_may_have(blob.id()) {
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
const LVOL_REFERENCE: u32 = 1;

fn busy(what: String) -> Error {
    Error::new(libc::EBUSY, what)
}

/// What the store has in memory can't be right.
fn inconsistent(what: String) -> Error {
    Error::new(
        libc::EUCLEAN,
        format!("{what}. Nothing was changed: restart the target, then look at the chain again"),
    )
}
