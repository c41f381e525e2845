//! The operation: a lvol is parted from its parent snapshot by rewriting its metadata.

use std::ffi::{CStr, c_int};

use crate::blob::{BlobId, Blobstore, Lock, OpenBlob, Parent};
use crate::error::{Error, Result};
use crate::family::{Family, resume};
use crate::lineage::{ZeroesDev, forget_parent};
use crate::lvol::{Lvol, Quiesced};
use crate::metadata::{WriteError, erase_parent, restore_parent};
use crate::steps::Steps;

/// Detaches the lvol with this UUID or alias from its parent snapshot.
///
/// After `Ok` the lvol has no parent, on the device and in memory, and the former parent may be
/// deleted. After an error nothing has changed.
pub async fn detach_lvol(name: &CStr, zeroes: ZeroesDev) -> Result<()> {
    let mut steps = Steps::start();
    let outcome = async {
        let lvol = Lvol::find(name)?;
        // SAFETY: `detach` keeps the lvol open as long as it uses the blobstore.
        let bs = unsafe { lvol.blobstore()? };
        let id = lvol.blob_id();
        detach(bs, id, Some(lvol), zeroes, &mut steps).await
    }
    .await;
    match outcome {
        Ok(Detached { lvol, parent }) => {
            tracing::info!("{lvol} is detached from its parent {parent}");
            tracing::debug!("{lvol}: {steps}");
            Ok(())
        }
        Err(error) => {
            tracing::error!("nothing is detached: {error}");
            Err(error)
        }
    }
}

/// What was parted from what.
#[derive(Debug)]
pub struct Detached {
    /// The name of the lvol.
    pub lvol: String,
    /// The name of its former parent.
    pub parent: String,
}

/// Detaches the blob `id`, which is that of `lvol`, or of none in a blobstore without lvols,
/// and notes how long each step takes.
pub async fn detach(
    bs: Blobstore,
    id: BlobId,
    lvol: Option<Lvol>,
    zeroes: ZeroesDev,
    steps: &mut Steps,
) -> Result<Detached> {
    let (family, locks) = Family::lock(bs, id, lvol).await?;
    let outcome = detach_locked(bs, &family, locks, zeroes, steps).await;
    family.close().await;
    steps.done("release");
    outcome
}

async fn detach_locked(
    bs: Blobstore,
    family: &Family,
    locks: Vec<Lock>,
    zeroes: ZeroesDev,
    steps: &mut Steps,
) -> Result<Detached> {
    let blob = family.root();
    let name = family.name();
    let parent = match blob.parent() {
        Parent::Snapshot(id) => family.open_relative(bs, id).await?,
        Parent::None => return Err(Error::new(libc::EINVAL, format!("{name} has no parent"))),
        Parent::External => {
            let what = format!("the parent of {name} is an external snapshot");
            return Err(Error::new(libc::EINVAL, what));
        }
    };
    let parent_name = family.name_of(parent.blob());

    steps.done("open");
    let parted = part(bs, family, &name, &parent_name, zeroes, steps).await;
    // The locks go first: while one is held, an unmap doesn't give clusters back.
    drop(locks);
    let outcome = match parted {
        Ok(Parted { quiesced, former_reference }) => {
            resume(quiesced).await;
            former_reference.close_or_say().await;
            Ok(Detached { lvol: name, parent: parent_name })
        }
        Err(error) => Err(error),
    };
    // A delete that follows the reply finds the parent unused.
    parent.close().await;
    outcome
}

/// What is left to be done when the lvol has no parent any more.
struct Parted<'a> {
    /// To be resumed.
    quiesced: Vec<Quiesced<'a>>,
    /// What the lvol had of its parent, to be closed.
    former_reference: OpenBlob,
}

/// First on the device, then in memory.
async fn part<'a>(
    bs: Blobstore,
    family: &'a Family,
    name: &str,
    parent_name: &str,
    zeroes: ZeroesDev,
    steps: &mut Steps,
) -> Result<Parted<'a>> {
    let blob = family.root();
    let erased = erase_parent(blob).await.map_err(|error| write_error(error, name, parent_name))?;
    steps.done("write");
    let quiesced = match family.quiesce().await {
        Ok(quiesced) => quiesced,
        Err(error) => {
            let failed = format!("holding back the I/O of {name} failed");
            let restored = restore_parent(blob, erased).await;
            return Err(match restored {
                Ok(()) => error,
                Err(errno) => in_doubt(errno, &failed, name, parent_name),
            });
        }
    };
    steps.done("quiesce");
    erased.free();
    // SAFETY: a blob that has a parent is a thin clone, and the family is locked.
    let former = unsafe { forget_parent(bs, blob, zeroes) };
    let quiesced = family.wait_for_slipped(quiesced).await;
    // SAFETY: I/O that reads through the former backing device came by a bdev of the family, where
    // what was in flight has been waited for, or was a copy by one of the operations that the
    // family's locks keep off.
    let former_reference = unsafe { former.into_parent() };
    steps.done("swap");
    Ok(Parted { quiesced, former_reference })
}

fn write_error(error: WriteError, name: &str, parent: &str) -> Error {
    match error {
        WriteError::NoParent => {
            Error::new(libc::EINVAL, format!("the metadata of {name} names no parent"))
        }
        WriteError::PutBack(errno) => Error::new(
            errno,
            format!("the metadata write of {name} failed; it still has its parent {parent}"),
        ),
        WriteError::Unknown(errno) => {
            in_doubt(errno, &format!("the metadata write of {name} failed"), name, parent)
        }
    }
}

/// The device may have the parent, or not; in memory it is still there.
fn in_doubt(errno: c_int, what: &str, name: &str, parent: &str) -> Error {
    Error::new(
        errno,
        format!(
            "{what}, and so did writing the old metadata again: {name} still has its parent \
             {parent}, but may come up without it after a restart. Mend the base bdev, then detach \
             {name} again"
        ),
    )
}
