//! The operation: an lvol is detached from its parent snapshot by rewriting its metadata.

use std::ffi::{CStr, CString};
use std::fmt;

use crate::base::error::{Error, Result};
use crate::base::steps::Steps;
use crate::chain::blob::{BlobId, Blobstore};
use crate::chain::family::Family;
use crate::chain::lvol::Lvol;
use crate::io::backing::{ZeroesDev, stop_copies, take_parent};
use crate::io::grace::{self, copies_in_flight, reads_in_flight};
use crate::md::flush;
use crate::md::metadata::{WriteError, erase_parent};
use crate::md::page::Unreadable;
use crate::md::unmap;
use crate::turns::{self, Turn};

/// Detaches the lvol with this UUID or alias from its parent snapshot.
///
/// After `Ok` the lvol has no parent, on the device and in memory, and the former parent may be
/// deleted. After an error nothing has changed, except for [`libc::ENOTRECOVERABLE`]: then the device may
/// hold either version.
pub async fn detach_lvol(name: &CStr, zeroes: ZeroesDev) -> Result<()> {
    let mut steps = Steps::start();
    let outcome = async {
        let (lvol, bs, _turn) = in_turn(|| Lvol::find_internal(name)).await?;
        let id = lvol.blob_id();
        detach(bs, id, Some(lvol), zeroes, &mut steps).await
    }
    .await;
    match outcome {
        Ok(Detached { lvol, parent }) => {
            tracing::info!("{lvol} is detached from its parent {parent}");
            tracing::debug!("{}: {steps}", lvol.name);
            Ok(())
        }
        Err(error) => {
            // A refusal concerns the caller. What an operator must look into is an error.
            if error.is_refusal() {
                tracing::warn!("{error}");
            } else {
                tracing::error!("{error}");
            }
            Err(error)
        }
    }
}

/// The lvol that is found, once its store has a free turn.
pub async fn in_turn(find: impl Fn() -> Result<Lvol>) -> Result<(Lvol, Blobstore, Turn)> {
    loop {
        let lvol = find()?;
        // SAFETY: `detach` keeps an lvol open as long as it uses the blobstore, and `turns` only looks at
        // its address.
        let bs = unsafe { lvol.blobstore()? };
        if let Some(turn) = turns::try_take(bs) {
            return Ok((lvol, bs, turn));
        }
        // An lvol that is held open while it waits for its turn could not be deleted.
        drop(lvol);
        turns::wait(bs).await?;
    }
}

/// What was detached from what.
#[derive(Debug)]
pub struct Detached {
    /// The lvol.
    pub lvol: Named,
    /// Its former parent.
    pub parent: Named,
}

/// An lvol, for the log.
#[derive(Debug)]
pub struct Named {
    /// `lvs/lvol`
    pub name: String,
    /// An lvol of a very old lvstore has none.
    pub uuid: Option<CString>,
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        match &self.uuid {
            Some(uuid) => write!(f, " ({})", uuid.to_string_lossy()),
            None => Ok(()),
        }
    }
}

/// Detaches the blob `id`, which is that of `lvol`, or of none in a blobstore without lvols,
/// and notes how long each step takes.
///
/// No I/O is held back at any time. Copies from the parent are ended first, so that none brings the parent's
/// data into an lvol where a read has already found zeroes; reads through it are ended after that.
pub async fn detach(
    bs: Blobstore,
    id: BlobId,
    lvol: Option<Lvol>,
    zeroes: ZeroesDev,
    steps: &mut Steps,
) -> Result<Detached> {
    let (family, listed) = Family::lock(bs, id, lvol).await?;
    steps.done("open");
    let blob = family.root();
    let detached = Detached {
        lvol: Named { name: family.name(), uuid: blob.uuid() },
        parent: Named { name: family.parent_name(), uuid: family.parent.blob.uuid() },
    };
    let name = &detached.lvol.name;
    flush::check(blob)?;
    erase_parent(blob).await.map_err(|error| write_error(&error, name, &detached.parent.name))?;
    steps.done("write");

    // From here on nothing can fail.
    unmap::warn(blob, name);
    // SAFETY: a blob that has a parent is a thin clone; the family is locked, and was found whole.
    unsafe { stop_copies(blob) };
    let has_ended = copies_in_flight(bs, &family).await.end(name).await;
    steps.done("copies");
    if !has_ended {
        // The target is stopping. What is in memory is left as it is, including the device.
        return Ok(detached);
    }
    // A read may have looked its cluster up before the last of those copies put it into the lvol's map,
    // and not have used the device yet. It would find zeroes, and the next read the copy.
    grace::pass(bs).await;
    // SAFETY: as above. Every thread has seen that there is nothing to copy, and those copies that had
    // begun are done.
    let former = unsafe { take_parent(blob, listed, zeroes) };
    let reads = reads_in_flight(bs, &family).await;
    // The lvol and its readers are unlocked while the last reads complete: SPDK's operations on
    // them can't reach the former parent any more. The parent's lvol stays open for that time.
    let parent = family.part();
    reads.end(name).await;
    // SAFETY: every thread has seen the zeroes device since.
    let former_parent = unsafe { former.into_parent() };
    steps.done("reads");
    // A deletion that follows the reply finds the parent unused.
    for blob in [former_parent, parent.blob] {
        if let Err(error) = blob.close().await {
            tracing::error!("{error}");
        }
    }
    drop(parent.lvol);
    steps.done("release");
    Ok(detached)
}

/// The error of a detach whose lvol has such metadata.
pub fn unreadable(why: &Unreadable, name: &str) -> Error {
    let what = "could not be read, or is not what it should be";
    Error::new(why.errno(), format!("the metadata of {name} {what}: {why}. Nothing was written"))
}

fn write_error(error: &WriteError, name: &str, parent: &str) -> Error {
    match error {
        WriteError::Unreadable(why) => unreadable(why, name),
        WriteError::PutBack(errno) => Error::new(
            *errno,
            format!("the metadata write of {name} failed; it still has its parent {parent}"),
        ),
        WriteError::Unknown(errno) => Error::new(
            libc::ENOTRECOVERABLE,
            format!(
                "the metadata write of {name} failed ({}), and so did writing the old metadata again: \
                 {name} still has its parent {parent}, but may come up without it after a restart. Mend \
                 the base bdev, then detach {name} again",
                errno::Errno(*errno)
            ),
        ),
    }
}
