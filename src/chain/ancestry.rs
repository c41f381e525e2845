//! What a blob reads through, up to the end of its chain.

use std::collections::HashSet;
use std::ffi::CStr;
use std::ptr;

use spdk_sys as sys;

use crate::base::task::Slices;
use crate::chain::blob::{Blobstore, OpenBlob, Parent};
use crate::chain::family::{Member, name_of};

/// Where a chain ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The last blob has no parent.
    None,
    /// The last blob reads through a bdev outside the blobstore.
    External(External),
    /// The last blob reads through one that was there before.
    Cycle,
    /// It can't be said what the last blob reads through, for this reason.
    Unknown(String),
}

/// An external snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct External {
    /// Its bdev's name, or if that isn't there the id that the clone knows it by, if it does.
    pub name: Option<String>,
    /// In bytes.
    pub size: u64,
}

/// What a blob reads through.
#[derive(Debug)]
pub struct Ancestry {
    /// The nearest first.
    pub ancestors: Vec<Member>,
    /// Where it ends.
    pub end: End,
}

/// Follows the parents of `root`. Each is held while its own is looked for; by the time that this is
/// done, the first may have another parent.
pub async fn find(bs: Blobstore, root: &Member, slices: &mut Slices) -> Ancestry {
    let mut ancestors: Vec<Member> = Vec::new();
    let mut seen = HashSet::from([root.blob.id()]);
    let end = loop {
        slices.pause().await;
        let blob = ancestors.last().map_or(&root.blob, |member| &member.blob);
        let id = match blob.parent() {
            Parent::Snapshot(id) => id,
            Parent::None => break End::None,
            Parent::External => break End::External(external(blob)),
        };
        if !seen.insert(id) {
            break End::Cycle;
        }
        let name = name_of(root, blob);
        let Some(parent) = bs.get_open(id) else {
            break End::Unknown(format!("the parent of {name} is not open"));
        };
        let parent_name = name_of(root, &parent);
        let lvol = root.lvol.as_ref().and_then(|lvol| lvol.of_relative(&parent));
        if root.lvol.is_some() && lvol.is_none() {
            break End::Unknown(format!("{parent_name}, the parent of {name}, has no bdev"));
        }
        ancestors.push(Member { blob: parent, lvol });
    };
    Ancestry { ancestors, end }
}

/// What the blob, which says that it reads through one, reads through.
fn external(blob: &OpenBlob) -> External {
    let raw = blob.as_ptr();
    // SAFETY: the blob is open (invariant of `OpenBlob`). One that is marked as an external snapshot's
    // clone has a device for it, which stays until this thread changes that; the id is copied.
    unsafe {
        if !sys::spdk_blob_is_esnap_clone(raw) {
            return External { name: None, size: 0 };
        }
        let dev = sys::spdk_blob_get_esnap_bs_dev(raw);
        let (mut id, mut len) = (ptr::null(), 0);
        let id = match sys::spdk_blob_get_esnap_id(raw, &mut id, &mut len) {
            0 if !id.is_null() => std::slice::from_raw_parts(id.cast::<u8>(), len),
            _ => &[],
        };
        let id = CStr::from_bytes_until_nul(id).ok().map(|id| id.to_string_lossy().into_owned());
        if dev.is_null() {
            return External { name: id, size: 0 };
        }
        let bdev = (*dev).get_base_bdev.map_or(ptr::null_mut(), |get| get(dev));
        let name = (!bdev.is_null()).then(|| CStr::from_ptr(sys::spdk_bdev_get_name(bdev)));
        let name = name.map(|name| name.to_string_lossy().into_owned());
        External { name: name.or(id), size: (*dev).blockcnt * u64::from((*dev).blocklen) }
    }
}
