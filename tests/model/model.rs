//! A blobstore as it should be: what SPDK does (`lib/blob/blobstore.c`), and what a detach is to do.

use std::collections::BTreeMap;
use std::os::raw::c_int;

use spdk_lvol_detach::internals::blob::BlobId;
use spdk_sys as sys;

use crate::ops::{Among, CHECKSUM, Name, Op, Pick, Step};
use crate::store::Description;

/// More blobs make it slow, and may need more metadata pages than there are.
const MAX_BLOBS: usize = 12;
/// A longer xattr fits no metadata page.
const MAX_XATTR_LEN: usize = 4000;

// A blob's flags (`lib/blob/blobstore.h`). Every lvol has an extent table.
const INVALID_THIN_PROV: u64 = 1 << 0;
const INVALID_INTERNAL_XATTR: u64 = 1 << 1;
const INVALID_EXTENT_TABLE: u64 = 1 << 2;
const DATA_RO_READ_ONLY: u64 = 1 << 0;

#[derive(Debug, Clone)]
struct Blob {
    id: BlobId,
    /// What each cluster is full of, if the blob owns it.
    clusters: Vec<Option<u8>>,
    thin: bool,
    parent: Option<Name>,
    snapshot: bool,
    /// Whether the store has it in its list of snapshots: from its first clone on, also when it
    /// has none any more, but then not after the next load.
    listed: bool,
    held: bool,
    xattrs: BTreeMap<String, Vec<u8>>,
    /// Whether it was detached when its metadata took several pages. Then the flag for internal xattrs,
    /// which is in the first, may stay on the device.
    may_keep_flag: bool,
}

impl Blob {
    fn new(id: BlobId, size: usize, thin: bool, parent: Option<Name>) -> Blob {
        Blob {
            id,
            clusters: vec![if thin { None } else { Some(0) }; size],
            thin,
            parent,
            snapshot: false,
            listed: false,
            held: true,
            xattrs: BTreeMap::new(),
            may_keep_flag: false,
        }
    }

    fn size(&self) -> u64 {
        self.clusters.len() as u64
    }

    fn owned(&self) -> u64 {
        self.clusters.iter().flatten().count() as u64
    }
}

/// A whole store.
#[derive(Debug, Clone)]
pub struct Model {
    blobs: BTreeMap<Name, Blob>,
    data_clusters: u64,
}

impl Model {
    pub fn new(data_clusters: u64) -> Model {
        Model { blobs: BTreeMap::new(), data_clusters }
    }

    pub fn names(&self) -> impl Iterator<Item = Name> {
        self.blobs.keys().copied()
    }

    pub fn has(&self, name: Name) -> bool {
        self.blobs.contains_key(&name)
    }

    pub fn id(&self, name: Name) -> BlobId {
        self.blobs[&name].id
    }

    pub fn is_held(&self, name: Name) -> bool {
        self.blobs[&name].held
    }

    pub fn parent(&self, name: Name) -> Option<Name> {
        self.blobs[&name].parent
    }

    /// The blob that is meant; `None` if there are no blobs.
    pub fn pick(&self, pick: &Pick) -> Option<Name> {
        let meant = |blob: &Blob| match pick.among {
            Among::Any => true,
            Among::Writable => !blob.snapshot,
            Among::Snapshots => blob.snapshot,
            Among::Clones => blob.parent.is_some(),
        };
        let mut found: Vec<Name> = self.names().filter(|name| meant(&self.blobs[name])).collect();
        if found.is_empty() {
            found = self.names().collect();
        }
        (!found.is_empty()).then(|| found[pick.index.index(found.len())])
    }

    fn free_clusters(&self) -> u64 {
        self.data_clusters - self.blobs.values().map(Blob::owned).sum::<u64>()
    }

    fn clones(&self, name: Name) -> impl Iterator<Item = Name> {
        self.names().filter(move |&clone| self.parent(clone) == Some(name))
    }

    /// Whether `name` is `ancestor`, or reads through it.
    pub fn descends(&self, name: Name, ancestor: Name) -> bool {
        std::iter::successors(Some(name), |&name| self.parent(name)).any(|name| name == ancestor)
    }

    /// A blob is in memory as long as somebody holds it, or a clone of it is.
    fn in_memory(&self, name: Name) -> bool {
        self.is_held(name) || self.clones(name).any(|clone| self.in_memory(clone))
    }

    /// What a cluster reads as.
    pub fn read(&self, name: Name, cluster: u64) -> u8 {
        let blob = &self.blobs[&name];
        match blob.clusters.get(cluster as usize) {
            Some(&Some(fill)) => fill,
            Some(None) => blob.parent.map_or(0, |parent| self.read(parent, cluster)),
            // Past the end of a parent.
            None => 0,
        }
    }

    /// The clusters that the blob's parent owns, and the blob doesn't.
    fn owned_by_parent_alone(&self, name: Name) -> Vec<usize> {
        let Some(parent) = self.parent(name) else { return Vec::new() };
        let pairs = self.blobs[&name].clusters.iter().zip(&self.blobs[&parent].clusters);
        let theirs = pairs.enumerate().filter(|(_, (own, its))| own.is_none() && its.is_some());
        theirs.map(|(cluster, _)| cluster).collect()
    }

    /// Whether to leave an operation out.
    pub fn avoids(&self, op: &Op<Name>) -> bool {
        let size = |name| self.blobs[&name].size();
        match *op {
            _ if op.creates() && self.blobs.len() == MAX_BLOBS => true,
            // They do nothing.
            Op::Open(name) => self.is_held(name),
            Op::Close(name) => !self.is_held(name),
            // `bs_set_parent_blob_open_cpl` doesn't look whether the snapshot reads through the
            // blob. In such a ring a read never ends.
            Op::SetParent { blob, snapshot } => blob != snapshot && self.descends(snapshot, blob),
            // `bs_cluster_needs_allocation` looks up each of the blob's clusters in the parent's
            // array, also those past its end.
            Op::Decouple(name) => self.parent(name).is_some_and(|parent| size(name) > size(parent)),
            // `delete_snapshot_update_extent_pages` hands the snapshot's extent page on to a clone
            // that has none just as it is, with the snapshot's size in it: with the next load the
            // clone gets that size.
            Op::Delete { blob, .. } => self
                .clones(blob)
                .any(|clone| self.blobs[&clone].owned() == 0 && size(clone) != size(blob)),
            Op::DetachDuring { blob, ref other, .. } => {
                let mut detached = self.clone();
                detached.blob(blob).parent = None;
                self.avoids(other) || detached.avoids(other) || self.rules_out(blob, other)
            }
            _ => false,
        }
    }

    /// Whether nobody lets `other` be under way while a blob is detached.
    fn rules_out(&self, blob: Name, other: &Op<Name>) -> bool {
        match *other {
            // The I/O of all that read through an lvol is held back while it is detached.
            Op::Write { blob: other, .. }
            | Op::Touch { blob: other, .. }
            | Op::Unmap { blob: other, .. }
            // And none of them is deleted, because they are held open.
            | Op::Delete { blob: other, .. } => self.descends(other, blob),
            Op::DetachWhileLocked { .. } => true,
            // There would be nothing to see.
            _ => self.parent(blob).is_none(),
        }
    }

    /// What to do before an operation.
    pub fn prepare(&self, op: &Op<Name>) -> Vec<Op<Name>> {
        match *op {
            Op::Delete { blob, closed: true } if self.is_held(blob) => vec![Op::Close(blob)],
            // SPDK doesn't open a blob and delete it at a time. The lvol library doesn't either, as
            // it holds all of them.
            Op::DetachDuring { ref other, .. } => {
                let target = match **other {
                    Op::Delete { blob, closed: true } => Some(blob),
                    _ => None,
                };
                let opens = self.names().filter(|&name| Some(name) != target);
                let opens = opens.filter(|&name| !self.is_held(name)).map(Op::Open);
                opens.chain(self.prepare(other)).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Whether a blob of the one operation reads through one of the other, or both through a third.
    pub fn are_related(&self, one: &Op<Name>, other: &Op<Name>) -> bool {
        let root = |name| std::iter::successors(Some(name), |&name| self.parent(name)).last();
        let roots: Vec<_> = other.blobs().into_iter().map(root).collect();
        one.blobs().into_iter().any(|name| roots.contains(&root(name)))
    }

    /// The errno that refuses an operation.
    pub fn refusal(&self, op: &Op<Name>) -> Option<c_int> {
        let get = |name| &self.blobs[&name];
        let free = self.free_clusters();
        let reasons: &[(bool, c_int)] = match *op {
            Op::Create { clusters, thin } => &[(!thin && clusters > free, libc::ENOSPC)],
            Op::Write { blob, cluster, .. } | Op::Touch { blob, cluster } => {
                let own = get(blob).clusters.get(cluster as usize);
                &[
                    (get(blob).snapshot, libc::EPERM),
                    (own.is_none(), libc::EINVAL),
                    (own == Some(&None) && free == 0, libc::ENOSPC),
                ]
            }
            Op::Unmap { blob, cluster } => {
                &[(get(blob).snapshot, libc::EPERM), (cluster >= get(blob).size(), libc::EINVAL)]
            }
            Op::SetXattr { blob, len, .. } => {
                &[(get(blob).snapshot, libc::EPERM), (len > MAX_XATTR_LEN, libc::ENOMEM)]
            }
            Op::RemoveXattr { blob, xattr } => &[
                (get(blob).snapshot, libc::EPERM),
                (!get(blob).xattrs.contains_key(&xattr.text()), libc::ENOENT),
            ],
            Op::Snapshot { blob, .. } => &[(get(blob).snapshot, libc::EINVAL)],
            Op::Clone(snapshot) => &[(!get(snapshot).snapshot, libc::EINVAL)],
            Op::Delete { blob, .. } => {
                &[(get(blob).held || self.clones(blob).count() > 1, libc::EBUSY)]
            }
            Op::Inflate(blob) => &[(get(blob).size() - get(blob).owned() > free, libc::ENOSPC)],
            Op::Decouple(blob) => &[
                (get(blob).parent.is_none(), libc::EINVAL),
                (self.owned_by_parent_alone(blob).len() as u64 > free, libc::ENOSPC),
            ],
            Op::Resize { blob, clusters } => {
                let more = clusters.saturating_sub(get(blob).size());
                &[(get(blob).snapshot, libc::EPERM), (!get(blob).thin && more > free, libc::ENOSPC)]
            }
            Op::SetParent { blob, snapshot } => &[
                (blob == snapshot, libc::EINVAL),
                (get(blob).parent == Some(snapshot), libc::EEXIST),
                (!get(blob).thin, libc::EINVAL),
                (!get(snapshot).listed, libc::EINVAL),
                (get(blob).size() != get(snapshot).size(), libc::EINVAL),
            ],
            Op::Detach(blob) | Op::DetachWhileLocked { blob, .. } => {
                &[(get(blob).parent.is_none(), libc::EINVAL)]
            }
            Op::Open(_) | Op::Close(_) | Op::Reload | Op::Crash | Op::DetachDuring { .. } => &[],
        };
        reasons.iter().find(|(refused, _)| *refused).map(|&(_, errno)| errno)
    }

    /// Plays a step that isn't refused. `id` is that of the new blob, if it makes one.
    pub fn apply(&mut self, step: &Step, id: Option<BlobId>) {
        if let (Some(name), Some(id)) = (step.creates, id) {
            let blob = self.create(&step.op, name, id);
            self.blobs.insert(name, blob);
            return;
        }
        match step.op {
            // The other is a step of its own.
            Op::DetachDuring { .. } => {}
            Op::Create { .. } | Op::Snapshot { .. } | Op::Clone(_) => {}
            Op::Open(blob) => self.blob(blob).held = true,
            Op::Close(blob) => self.blob(blob).held = false,
            Op::Write { blob, cluster, fill } => {
                self.blob(blob).clusters[cluster as usize] = Some(fill);
            }
            Op::Touch { blob, cluster } => {
                let fill = self.read(blob, cluster);
                self.blob(blob).clusters[cluster as usize] = Some(fill);
            }
            Op::Unmap { blob, cluster } => {
                let blob = self.blob(blob);
                let own = &mut blob.clusters[cluster as usize];
                if cfg!(spdk_unmap_frees_clusters) && blob.thin && blob.parent.is_none() {
                    *own = None;
                } else {
                    // What it reads from its parent stays, though that isn't zeroes.
                    *own = own.map(|_| 0);
                }
            }
            Op::SetXattr { blob, xattr, len, fill } => {
                self.blob(blob).xattrs.insert(xattr.text(), vec![fill; len]);
            }
            Op::RemoveXattr { blob, xattr } => {
                self.blob(blob).xattrs.remove(&xattr.text());
            }
            Op::Delete { blob, .. } => self.delete(blob),
            Op::Inflate(blob) => {
                let size = self.blobs[&blob].size();
                let read = (0..size).map(|cluster| Some(self.read(blob, cluster))).collect();
                let blob = self.blob(blob);
                blob.clusters = read;
                blob.thin = false;
                blob.parent = None;
            }
            Op::Decouple(blob) => {
                for cluster in self.owned_by_parent_alone(blob) {
                    let fill = self.read(blob, cluster as u64);
                    self.blob(blob).clusters[cluster] = Some(fill);
                }
                let grandparent = self.parent(blob).and_then(|parent| self.parent(parent));
                self.blob(blob).parent = grandparent;
            }
            Op::Resize { blob, clusters } => {
                let blob = self.blob(blob);
                let more = if blob.thin { None } else { Some(0) };
                blob.clusters.resize(clusters as usize, more);
            }
            Op::SetParent { blob, snapshot } => self.blob(blob).parent = Some(snapshot),
            Op::Detach(blob) | Op::DetachWhileLocked { blob, .. } => {
                let blob = self.blob(blob);
                blob.parent = None;
                blob.may_keep_flag |=
                    blob.xattrs.values().map(Vec::len).sum::<usize>() > MAX_XATTR_LEN;
            }
            Op::Reload | Op::Crash => {
                let parents: Vec<_> = self.blobs.values().filter_map(|blob| blob.parent).collect();
                for (name, blob) in &mut self.blobs {
                    blob.listed = parents.contains(name);
                }
            }
        }
    }

    fn blob(&mut self, name: Name) -> &mut Blob {
        self.blobs.get_mut(&name).expect("the blob is there")
    }

    fn create(&mut self, op: &Op<Name>, name: Name, id: BlobId) -> Blob {
        match *op {
            Op::Snapshot { blob, checksum } => {
                // It gets all that the blob had but the xattrs.
                let blob = self.blob(blob);
                let clone = Blob::new(blob.id, blob.clusters.len(), true, Some(name));
                let clone = Blob { held: blob.held, xattrs: blob.xattrs.clone(), ..clone };
                let snapshot = std::mem::replace(blob, clone);
                let checksum = checksum.to_le_bytes().to_vec();
                let xattrs = BTreeMap::from([(CHECKSUM.text(), checksum)]);
                Blob { id, snapshot: true, listed: true, held: true, xattrs, ..snapshot }
            }
            Op::Clone(parent) => {
                let snapshot = self.blob(parent);
                snapshot.listed = true;
                Blob::new(id, snapshot.clusters.len(), true, Some(parent))
            }
            Op::Create { clusters, thin } => Blob::new(id, clusters as usize, thin, None),
            _ => unreachable!("{op:?} makes no blob"),
        }
    }

    /// The clone, if there is one, gets what it read through the snapshot, and the snapshot's
    /// parent. If it is longer than the snapshot, and the parent is as well, it reads the parent
    /// from now on where it read zeroes.
    fn delete(&mut self, name: Name) {
        let clone = self.clones(name).next();
        let snapshot = self.blobs.remove(&name).expect("the blob is there");
        if let Some(clone) = clone {
            let clone = self.blob(clone);
            for (own, its) in clone.clusters.iter_mut().zip(snapshot.clusters) {
                *own = own.or(its);
            }
            clone.parent = snapshot.parent;
        }
    }

    /// What the store should say of a blob. Where its clusters are, of which the model only knows
    /// which it owns, and how much metadata it has is taken from `seen`.
    pub fn describe(&self, name: Name, seen: &Description) -> Description {
        let blob = &self.blobs[&name];
        let parent = blob.parent.map(|parent| self.id(parent));
        let places = blob.clusters.iter().enumerate().map(|(cluster, own)| match own {
            Some(_) => seen.clusters.get(cluster).map_or(u64::MAX, |&place| place.max(1)),
            None => 0,
        });
        let mut clones: Vec<BlobId> = self.clones(name).map(|clone| self.id(clone)).collect();
        clones.sort_unstable();
        let clones_in_memory = self.clones(name).filter(|&clone| self.in_memory(clone)).count();
        let flag = |set: bool, flag: u64| if set { flag } else { 0 };
        let keeps_flag = blob.may_keep_flag && seen.flags[0] & INVALID_INTERNAL_XATTR != 0;
        Description {
            parent: parent.unwrap_or(sys::SPDK_BLOBID_INVALID),
            clones,
            clusters: places.collect(),
            num_allocated_clusters: blob.owned(),
            num_md_pages: seen.num_md_pages,
            zeroes_backed: blob.thin && blob.parent.is_none(),
            locked: false,
            references: u32::from(blob.held) + clones_in_memory as u32,
            flags: [
                INVALID_EXTENT_TABLE
                    | flag(blob.thin, INVALID_THIN_PROV)
                    | flag(parent.is_some() || keeps_flag, INVALID_INTERNAL_XATTR),
                flag(blob.snapshot, DATA_RO_READ_ONLY),
                0,
            ],
            read_only: [blob.snapshot; 2],
            xattrs: blob.xattrs.clone(),
            internal_xattrs: parent
                .map(|parent| ("SNAP".to_owned(), parent.to_ne_bytes().to_vec()))
                .into_iter()
                .collect(),
            data: (0..blob.size()).map(|cluster| self.read(name, cluster)).collect(),
        }
    }
}
