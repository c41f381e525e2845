//! The operation: a lvol is parted from its parent snapshot by rewriting its metadata.

use std::ffi::CStr;

use crate::blob::{BlobId, Blobstore, Lock, Parent};
use crate::error::{Error, Result};
use crate::family::{Family, resume};
use crate::lineage::{ZeroesDev, forget_parent};
use crate::lvol::Lvol;
use crate::metadata::{WriteError, erase_parent};
use crate::steps::Steps;

/// Detaches the lvol with this UUID or alias from its parent snapshot.
///
/// After `Ok` the lvol has no parent, on the device and in memory, and the former parent may be
/// deleted. After an error nothing has changed.
pub async fn detach_lvol(name: &CStr, zeroes: ZeroesDev) -> Result<()> {
    let mut steps = Steps::start();
    let outcome = async {
        let lvol = Lvol::open(name)?;
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
    let mut quiesced = family.quiesce().await?;
    steps.done("quiesce");
    let written = erase_parent(blob).await;
    steps.done("write");
    if written.is_ok() {
        // SAFETY: a blob that has a parent is a thin clone, and `locks` are held.
        let former = unsafe { forget_parent(bs, blob, zeroes) };
        quiesced = match family.wait_for_slipped(quiesced).await {
            Ok(quiesced) => {
                // SAFETY: I/O that reads through the former backing device came by a bdev of the
                // family, where what was in flight has been waited for, or was a copy by one of
                // the operations that `locks` keep off.
                unsafe { former.destroy() };
                quiesced
            }
            Err(error) => {
                tracing::error!(
                    "{parent_name} can't be deleted until the target restarts: {error}"
                );
                Vec::new()
            }
        };
    }
    steps.done("swap");
    // The locks go first: while one is held, an unmap doesn't give clusters back.
    drop(locks);
    resume(quiesced).await;
    // This reference is younger than the one that the lvol had, so that one is gone as well then:
    // a delete that follows the reply finds the parent unused.
    parent.close().await;

    written.map_err(|error| write_error(error, &name, &parent_name))?;
    Ok(Detached { lvol: name, parent: parent_name })
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
        WriteError::Unknown(errno) => Error::new(
            errno,
            format!(
                "the metadata write of {name} failed, and so did writing the old metadata again: \
                 it still has its parent {parent}, but may come up without it after a restart. Mend \
                 the base bdev, then detach {name} again"
            ),
        ),
    }
}
