//! What a detach of an lvol would do, without doing it. Nothing is written, and nothing stays locked;
//! while it runs, the lvols of the chain can't be deleted.

use std::ffi::{CStr, CString};

use spdk_sys as sys;

use crate::base::error::{Error, Result};
use crate::base::task::Slices;
use crate::chain::ancestry::{self, Ancestry, End};
use crate::chain::blob::{Blobstore, OpenBlob, Parent};
use crate::chain::clusters::{self, Chain, Count, Counts, Stopped};
use crate::chain::family::{Member, find_readers, name_of};
use crate::chain::lineage::{self, Listed, Reader};
use crate::chain::lvol::Lvol;
use crate::chain::usage::{Openers, Traffic, bdev_name};
use crate::detach::{Named, in_turn, unreadable};
use crate::md::flush;
use crate::md::metadata::check_parent;
use crate::md::unmap;

/// How many times a chain is examined if it changes meanwhile.
const ATTEMPTS: usize = 3;

/// What a check finds.
#[derive(Debug)]
pub struct Findings {
    /// The lvol.
    pub lvol: Volume,
    /// In bytes.
    pub cluster_size: u64,
    /// `None` if it can't be determined.
    pub relatives: Option<Relatives>,
    /// The error of a detach, if it would fail.
    pub refusal: Option<Error>,
    /// `None` if there is no parent to return to.
    pub undo: Option<Undo>,
    /// What else an operator should know.
    pub warnings: Vec<Warning>,
}

/// The lvol, or one that reads through it.
#[derive(Debug)]
pub struct Volume {
    /// What it is called.
    pub named: Named,
    /// What it reads through, if that is an lvol.
    pub parent: Option<String>,
    /// Whether it can't be written to.
    pub is_read_only: bool,
    /// Its size.
    pub num_clusters: u64,
    /// What it owns and would lose.
    pub count: Count,
    /// The activity on it.
    pub traffic: Traffic,
    /// Whether it is open or claimed.
    pub openers: Openers,
    bdev: CString,
}

/// What the lvol reads through, and what reads through it.
#[derive(Debug)]
pub struct Relatives {
    /// The nearest first.
    pub ancestors: Vec<Ancestor>,
    /// Where the chain ends.
    pub end: End,
    /// How many clusters of the external snapshot the lvol shows.
    pub shown_of_external: u64,
    /// Each after what it reads through.
    pub readers: Vec<Volume>,
}

/// What the lvol reads through.
#[derive(Debug)]
pub struct Ancestor {
    /// What it is called.
    pub named: Named,
    /// Its size.
    pub num_clusters: u64,
    /// How many of its clusters the lvol shows.
    pub shown: u64,
}

/// Whether `bdev_lvol_set_parent` can undo a detach.
#[derive(Debug)]
pub enum Undo {
    /// As long as this is so.
    AsLongAs(String),
    /// For this reason it doesn't.
    Never(String),
}

/// What an operator should know.
#[derive(Debug)]
pub struct Warning {
    /// For programs.
    pub about: &'static str,
    /// For people.
    pub message: String,
}

/// Checks the lvol with this UUID or alias; `with_ranges` also collects which clusters are lost.
pub async fn check_lvol(name: &CStr, with_ranges: bool) -> Result<Findings> {
    let (lvol, bs, _turn) = in_turn(|| Lvol::find(name)).await?;
    let root = Member { blob: bs.open(lvol.blob_id()).await?, lvol: Some(lvol) };
    let mut findings = None;
    for _ in 0..ATTEMPTS {
        findings = look(bs, &root, with_ranges).await?;
        if findings.is_some() {
            break;
        }
    }
    let name = name_of(&root, &root.blob);
    let Some(mut findings) = findings else {
        let what = format!("the chain of {name} has changed each time that it was looked at");
        return Err(Error::new(libc::EBUSY, what));
    };
    // None of it is held open from here on, so any opener is someone else.
    drop(root);
    let readers = findings.relatives.iter_mut().flat_map(|relatives| &mut relatives.readers);
    for volume in std::iter::once(&mut findings.lvol).chain(readers) {
        volume.openers = Openers::of(&volume.bdev);
    }
    Ok(findings)
}

/// `None` if the chain has changed meanwhile.
async fn look(bs: Blobstore, root: &Member, with_ranges: bool) -> Result<Option<Findings>> {
    let blob = &root.blob;
    let name = name_of(root, blob);
    let found = find_readers(bs, root).await;
    let (listed, parent) = (lineage::readers(bs, blob), blob.parent());
    let (readers, mut refusal) = match found {
        Ok(readers) => (Ok(readers), None),
        Err(error) if error.is_inconsistent() => (Err(error.to_string()), Some(error)),
        Err(error) => (readers_despite(bs, root, &listed), Some(error)),
    };
    refusal = refusal.or(flush::check(blob).err());
    if refusal.is_none()
        && let Err(why) = check_parent(blob).await
    {
        if blob.is_locked() || blob.parent() != parent {
            return Ok(None);
        }
        refusal = Some(unreadable(&why, &name));
    }

    let mut slices = Slices::start().await;
    let relatives = match readers {
        Err(why) => Err(why),
        Ok(readers) => match ancestry::find(bs, root, &mut slices).await {
            Ancestry { end: End::Unknown(why), .. } => Err(why),
            ancestry => Ok((ancestry, readers)),
        },
    };
    let mut warnings = warnings(blob, &name);
    let (ancestry, readers) = relatives.unwrap_or_else(|why| {
        let message = format!("what {name} shows, and who reads through it, can't be told: {why}");
        warnings.push(Warning { about: "chain", message });
        (Ancestry { ancestors: Vec::new(), end: End::Unknown(why) }, Vec::new())
    });
    let cluster_size = cluster_size(bs);
    let chain = Chain {
        root: blob,
        ancestors: ancestry.ancestors.iter().map(|member| &member.blob).collect(),
        external: match &ancestry.end {
            End::External(external) => external.size.div_ceil(cluster_size),
            End::None | End::Cycle | End::Unknown(_) => 0,
        },
        readers: readers.iter().map(|member| &member.blob).collect(),
    };
    let walked = clusters::walk(&chain, with_ranges, &mut slices).await;
    let done = slices.end();
    tracing::debug!("{name}: check of {done}");
    let counts = match walked {
        Ok(counts) => counts,
        Err(Stopped::ChainChanged) => return Ok(None),
        Err(Stopped::TargetStops) => {
            return Err(Error::new(libc::ESHUTDOWN, "the target is about to stop"));
        }
    };
    if lineage::readers(bs, blob) != listed || blob.parent() != parent {
        return Ok(None);
    }
    let undo = undo(bs, root, &ancestry, &readers);
    if counts.has_grown {
        let message = format!(
            "{name} or what reads through it got clusters while they were counted: some that are counted \
             as lost may have been written to since"
        );
        warnings.push(Warning { about: "writes", message });
    }
    let Counts { root: count, readers: of_readers, shown, shown_of_external, .. } = counts;
    let mut volumes = Vec::with_capacity(readers.len());
    for (reader, count) in readers.iter().zip(of_readers) {
        volumes.push(volume(bs, root, reader, count).await);
    }
    let ancestors = ancestry.ancestors.iter().zip(shown).map(|(member, shown)| Ancestor {
        named: named(root, &member.blob),
        num_clusters: member.blob.num_clusters(),
        shown,
    });
    let relatives = match ancestry.end.clone() {
        End::Unknown(_) => None,
        end => Some(Relatives {
            ancestors: ancestors.collect(),
            end,
            shown_of_external,
            readers: volumes,
        }),
    };
    let lvol = volume(bs, root, root, count).await;
    Ok(Some(Findings { lvol, cluster_size, relatives, refusal, undo, warnings }))
}

/// The blobs that are listed as reading through `root`, if a detach would be refused. The error says why
/// they can't all be determined.
fn readers_despite(
    bs: Blobstore,
    root: &Member,
    listed: &[Reader],
) -> std::result::Result<Vec<Member>, String> {
    let find = |reader: &Reader| {
        let blob = bs.get_open(reader.id)?;
        let lvol = root.lvol.as_ref()?.of_relative(&blob)?;
        let is_reader = blob.parent() == Parent::Snapshot(reader.parent);
        is_reader.then_some(Member { blob, lvol: Some(lvol) })
    };
    let readers: Option<Vec<Member>> = listed.iter().map(find).collect();
    readers
        .ok_or_else(|| format!("not all that reads through {} is there", name_of(root, &root.blob)))
}

async fn volume(bs: Blobstore, root: &Member, member: &Member, count: Count) -> Volume {
    let Member { blob, lvol } = member;
    let parent = match blob.parent() {
        Parent::Snapshot(id) => bs.get_open(id).map(|parent| name_of(root, &parent)),
        Parent::None | Parent::External => None,
    };
    Volume {
        named: named(root, blob),
        parent,
        is_read_only: blob.is_read_only(),
        num_clusters: blob.num_clusters(),
        count,
        traffic: match lvol {
            Some(lvol) => Traffic::of(lvol).await,
            None => Traffic::default(),
        },
        openers: Openers::default(),
        bdev: lvol.as_ref().map(bdev_name).unwrap_or_default(),
    }
}

fn named(root: &Member, blob: &OpenBlob) -> Named {
    Named { name: name_of(root, blob), uuid: blob.uuid() }
}

fn cluster_size(bs: Blobstore) -> u64 {
    // SAFETY: the blobstore is loaded (invariant of `Blobstore`).
    unsafe { sys::spdk_bs_get_cluster_size(bs.as_ptr()) }
}

fn warnings(blob: &OpenBlob, name: &str) -> Vec<Warning> {
    let mut warnings = Vec::new();
    if let Some(bdev) = unmap::base_without_unmap(blob) {
        let message = format!(
            "the base bdev {bdev} has no unmap, and SPDK doesn't zero new clusters: where {name} and what \
             reads through it get clusters after a detach, they may show what deleted lvols had there"
        );
        warnings.push(Warning { about: "unmap", message });
    }
    if let Some(why) = flush::why_not(blob) {
        let message = format!(
            "a detach will not be flushed ({why}): if the device has a volatile write cache, a power cut \
             may undo it"
        );
        warnings.push(Warning { about: "flush", message });
    }
    warnings
}

fn undo(bs: Blobstore, root: &Member, ancestry: &Ancestry, readers: &[Member]) -> Option<Undo> {
    let parent = &ancestry.ancestors.first()?.blob;
    let (name, parent_name) = (name_of(root, &root.blob), name_of(root, parent));
    let mut state_mask = 0;
    // SAFETY: the name is a C string; this is the thread that uses SPDK's list of methods.
    let rc = unsafe {
        sys::spdk_rpc_get_method_state_mask(c"bdev_lvol_set_parent".as_ptr(), &mut state_mask)
    };
    if rc != 0 {
        return Some(Undo::Never("this SPDK has no bdev_lvol_set_parent".to_owned()));
    }
    // `bs_set_parent_snapshot_open_cpl` refuses it.
    if parent.num_clusters() != root.blob.num_clusters() {
        let why = format!("bdev_lvol_set_parent wants {name} to be as large as {parent_name}");
        return Some(Undo::Never(why));
    }
    if readers.iter().any(|reader| reader.blob.id() == parent.id()) {
        let why = format!("{parent_name} reads through {name}: it would make the cycle again");
        return Some(Undo::Never(why));
    }
    let mut condition = if root.blob.is_read_only() {
        format!(
            "{parent_name} is there and nothing that reads through {name} is written to or resized"
        )
    } else {
        format!("{parent_name} is there and {name} is neither written to nor resized")
    };
    // SPDK doesn't recognise a snapshot that had no clone when the target was started.
    let listed = Listed::find(bs, parent.id(), root.blob.id());
    if listed.is_some_and(|listed| listed.count() == 1) {
        condition += &format!("; after a restart of the target {parent_name} needs a clone first");
    }
    Some(Undo::AsLongAs(condition))
}
