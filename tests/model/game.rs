//! Plays sequences on SPDK's blobstore and on the model, and compares them after each step.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::AddAssign;
use std::rc::Rc;

use spdk_lvol_detach::blob::{BlobId, OpenBlob};
use spdk_lvol_detach::error::{Error, Result};
use spdk_lvol_detach::memory_dev::Image;

use crate::model::Model;
use crate::ops::{CHECKSUM, Name, Op, Pick, Step};
use crate::store::{self, Description, Store};

/// So few that operations run out of clusters now and then, but not of metadata pages.
const CLUSTERS: usize = 40;

/// How many operations were played.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tally {
    pub operations: u64,
    pub refused: u64,
    pub detaches: u64,
    pub refused_detaches: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, more: Tally) {
        self.operations += more.operations;
        self.refused += more.refused;
        self.detaches += more.detaches;
        self.refused_detaches += more.refused_detaches;
    }
}

/// The store isn't as the model says after the last of these steps.
#[derive(Debug)]
pub struct Failure {
    pub steps: Vec<Step>,
    pub what: String,
}

type Outcome = std::result::Result<(), String>;

/// Plays a sequence on a new store.
pub async fn play(ops: &[Op<Pick>], verbose: bool) -> std::result::Result<Tally, Failure> {
    let mut steps = Vec::new();
    let result = async {
        let mut game = Game::start().await?;
        for op in ops {
            for step in game.plan(op) {
                if verbose {
                    eprintln!("{step:?}");
                }
                steps.push(step);
                game.play(step).await?;
            }
        }
        game.end().await
    };
    result.await.map_err(|what| Failure { steps, what })
}

/// Plays steps on a new store, without those that make no sense there.
pub async fn replay(steps: impl Iterator<Item = Step>) -> std::result::Result<Tally, Failure> {
    let mut played = Vec::new();
    let result = async {
        let mut game = Game::start().await?;
        for step in steps {
            let there = step.op.named(|&name| game.model.has(name).then_some(name)).is_some();
            if there && !game.model.avoids(step.op) {
                played.push(step);
                game.play(step).await?;
            }
        }
        game.end().await
    };
    result.await.map_err(|what| Failure { steps: played, what })
}

/// What the store says of itself.
#[derive(Debug, PartialEq, Eq)]
struct State {
    blobs: BTreeMap<BlobId, Description>,
    free_clusters: u64,
    md_pages: u32,
}

struct Game {
    image: Image,
    /// It is gone only in the middle of a load.
    store: Option<Store>,
    held: BTreeMap<Name, OpenBlob>,
    model: Model,
    state: State,
    names: u32,
    tally: Tally,
}

impl Game {
    async fn start() -> std::result::Result<Game, String> {
        let start = async {
            let image = store::image(CLUSTERS);
            let store = Store::create(&image, None).await?;
            let model = Model::new(store.data_clusters());
            let state = look(&store).await?;
            Ok::<_, Error>(Game {
                image,
                store: Some(store),
                held: BTreeMap::new(),
                model,
                state,
                names: 0,
                tally: Tally::default(),
            })
        };
        start.await.map_err(|error| format!("at the start: {error}"))
    }

    async fn end(mut self) -> std::result::Result<Tally, String> {
        self.unload().await.map_err(|error| format!("at the end: {error}"))?;
        Ok(self.tally)
    }

    /// The steps that an operation comes to.
    fn plan(&mut self, op: &Op<Pick>) -> Vec<Step> {
        let op = op.named(|pick| self.model.pick(pick)).filter(|&op| !self.model.avoids(op));
        let Some(op) = op else { return Vec::new() };
        let creates = op.creates().then(|| {
            self.names += 1;
            Name(self.names)
        });
        let step = Step { op, creates };
        match op {
            Op::Delete { blob, closed: true } if self.model.is_held(blob) => {
                vec![Step { op: Op::Close(blob), creates: None }, step]
            }
            _ => vec![step],
        }
    }

    async fn play(&mut self, step: Step) -> Outcome {
        let played = async {
            let expected = self.model.refusal(step.op);
            let outcome = self.perform(step).await;
            match (&outcome, expected) {
                (&Ok(id), None) => self.model.apply(step, id),
                (Err(error), Some(errno)) if error.code() == -errno => {}
                (Err(error), _) => return Err(error.to_string()),
                (Ok(_), Some(errno)) => {
                    return Err(format!("it was done, expected {}", errno::Errno(errno)));
                }
            }
            let state = look(self.store()).await.map_err(|error| error.to_string())?;
            self.compare(&state)?;
            let before = std::mem::replace(&mut self.state, state);
            self.compare_with_before(step.op, &before, outcome.is_ok())
        };
        played.await.map_err(|what| format!("{step:?}: {what}"))
    }

    fn store(&self) -> &Store {
        self.store.as_ref().expect("the store is loaded")
    }

    /// Plays a step on the store. If it makes a blob, returns its id.
    async fn perform(&mut self, step: Step) -> Result<Option<BlobId>> {
        let store = self.store();
        let id = match step.op {
            Op::Create { clusters, thin } => store.create_blob(clusters, thin).await?,
            Op::Snapshot { blob, checksum } => {
                let (id, checksum) = (self.model.id(blob), checksum.to_le_bytes());
                store.snapshot_with_xattr(id, CHECKSUM.0, &checksum).await?
            }
            Op::Clone(snapshot) => store.clone_of(self.model.id(snapshot)).await?,
            op => {
                self.change(op).await?;
                return Ok(None);
            }
        };
        if let Some(name) = step.creates {
            let blob = store.open(id).await?;
            self.held.insert(name, blob);
        }
        Ok(Some(id))
    }

    /// Does an operation that makes no blob.
    async fn change(&mut self, op: Op<Name>) -> Result<()> {
        let store = self.store();
        let id = |name| self.model.id(name);
        match op {
            Op::Create { .. } | Op::Snapshot { .. } | Op::Clone(_) => Ok(()),
            Op::Open(blob) => {
                let opened = store.open(id(blob)).await?;
                self.held.insert(blob, opened);
                Ok(())
            }
            Op::Close(blob) => match self.held.remove(&blob) {
                Some(blob) => blob.close().await,
                None => Ok(()),
            },
            Op::Delete { blob, .. } => store.delete(id(blob)).await,
            Op::Inflate(blob) => store.inflate(id(blob)).await,
            Op::Decouple(blob) => store.decouple(id(blob)).await,
            Op::SetParent { blob, snapshot } => store.set_parent(id(blob), id(snapshot)).await,
            Op::Detach(blob) => self.detach(blob).await,
            Op::DetachWhileLocked { blob, locked } => {
                let locked = store.open(id(locked)).await?;
                let lock = locked.lock();
                let result = self.detach(blob).await;
                drop(lock);
                locked.close().await?;
                result
            }
            Op::Reload => {
                self.unload().await?;
                self.load().await
            }
            Op::Crash => {
                let image = Rc::new(RefCell::new(self.image.borrow().clone()));
                // What this still writes, it writes to the other image.
                self.unload().await?;
                self.image = image;
                self.load().await
            }
            Op::Write { blob, .. }
            | Op::Touch { blob, .. }
            | Op::Unmap { blob, .. }
            | Op::SetXattr { blob, .. }
            | Op::RemoveXattr { blob, .. }
            | Op::Resize { blob, .. } => {
                let opened = store.open(id(blob)).await?;
                let result = self.change_open(op, &opened).await;
                opened.close().await?;
                result
            }
        }
    }

    /// Does an operation that wants its blob open.
    async fn change_open(&self, op: Op<Name>, blob: &OpenBlob) -> Result<()> {
        let store = self.store();
        match op {
            Op::Write { cluster, fill, .. } => store.write_cluster(blob, cluster, fill).await,
            Op::Touch { blob: name, cluster } => {
                let fill = self.model.read(name, cluster);
                store.write_io_unit(blob, cluster, fill).await
            }
            Op::Unmap { cluster, .. } => store.unmap_cluster(blob, cluster).await,
            Op::SetXattr { xattr, len, fill, .. } => {
                store.set_xattr(blob, xattr.0, &vec![fill; len]).await
            }
            Op::RemoveXattr { xattr, .. } => store.remove_xattr(blob, xattr.0).await,
            Op::Resize { clusters, .. } => store.resize(blob, clusters).await,
            _ => Ok(()),
        }
    }

    async fn detach(&self, blob: Name) -> Result<()> {
        let called = |name| format!("blob {:#x}", self.model.id(name));
        let detached = self.store().detach(self.model.id(blob)).await?;
        let parent = self.model.parent(blob).map(called);
        if detached.lvol != called(blob) || Some(&detached.parent) != parent.as_ref() {
            return Err(Error::new(libc::EBADMSG, format!("it says {detached:?}")));
        }
        Ok(())
    }

    async fn unload(&mut self) -> Result<()> {
        for (_, blob) in std::mem::take(&mut self.held) {
            blob.close().await?;
        }
        match self.store.take() {
            Some(store) => store.unload().await,
            None => Ok(()),
        }
    }

    async fn load(&mut self) -> Result<()> {
        let store = self.store.insert(Store::load(&self.image, None).await?);
        for name in self.model.names().filter(|&name| self.model.is_held(name)) {
            self.held.insert(name, store.open(self.model.id(name)).await?);
        }
        Ok(())
    }

    fn compare(&self, state: &State) -> Outcome {
        let mut expected: Vec<BlobId> =
            self.model.names().map(|name| self.model.id(name)).collect();
        expected.sort_unstable();
        if !state.blobs.keys().eq(&expected) {
            let found: Vec<_> = state.blobs.keys().collect();
            return Err(format!("the store has the blobs {found:#x?}, expected {expected:#x?}"));
        }
        for name in self.model.names() {
            let blob = &state.blobs[&self.model.id(name)];
            let expected = self.model.describe(name, blob);
            if *blob != expected {
                return Err(format!("{name:?} is\n{blob:x?}, expected\n{expected:x?}"));
            }
        }
        let (free, expected) = (state.free_clusters, self.model.free_clusters());
        if free != expected {
            return Err(format!("{free} clusters are free, expected {expected}"));
        }
        Ok(())
    }

    /// What the model doesn't know.
    fn compare_with_before(&mut self, op: Op<Name>, before: &State, done: bool) -> Outcome {
        let detach = matches!(op, Op::Detach(_) | Op::DetachWhileLocked { .. });
        if !done && self.state != *before {
            return Err(format!("it was refused, but\n{before:x?} became\n{:x?}", self.state));
        }
        if detach && self.state.places() != before.places() {
            return Err(format!("clusters have moved:\n{before:x?} became\n{:x?}", self.state));
        }
        self.tally += Tally {
            operations: 1,
            refused: (!done).into(),
            detaches: (detach && done).into(),
            refused_detaches: (detach && !done).into(),
        };
        Ok(())
    }
}

impl State {
    /// Where each blob's clusters are.
    fn places(&self) -> Vec<&[u64]> {
        self.blobs.values().map(|blob| &blob.clusters[..]).collect()
    }
}

/// Looks at the whole store, and whether it is sound: no cluster and no metadata page is lost or
/// owned twice.
async fn look(store: &Store) -> Result<State> {
    let unsound = |what| Err(Error::new(libc::EUCLEAN, what));
    let mut blobs = BTreeMap::new();
    let mut md_pages = 0;
    let mut owners = BTreeMap::new();
    for id in store.blob_ids().await? {
        let description = store.describe(id).await?;
        md_pages += description.num_md_pages;
        for &place in description.clusters.iter().filter(|&&place| place != 0) {
            if let Some(other) = owners.insert(place, id) {
                return unsound(format!("{other:#x} and {id:#x} both own the cluster at {place}"));
            }
        }
        blobs.insert(id, description);
    }
    if owners.len() as u64 + store.free_clusters() != store.data_clusters() {
        return unsound(format!(
            "of {} clusters {} are owned, {} free",
            store.data_clusters(),
            owners.len(),
            store.free_clusters()
        ));
    }
    if md_pages != store.used_md_pages() {
        let used = store.used_md_pages();
        return unsound(format!("{used} metadata pages are in use, the blobs have {md_pages}"));
    }
    Ok(State { blobs, free_clusters: store.free_clusters(), md_pages })
}
