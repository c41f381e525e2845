//! Plays sequences on SPDK's blobstore and on the model, and compares them after each step.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::ops::AddAssign;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use spdk_lvol_detach::internals::blob::{BlobId, OpenBlob};
use spdk_lvol_detach::internals::error::{Error, Result};
use spdk_lvol_detach::internals::memory_dev::Image;

use crate::model::Model;
use crate::ops::{CHECKSUM, Name, Op, Pick, Step};
use crate::store::{self, Description, Store};

/// So few that operations run out of clusters now and then, but not of metadata pages.
const CLUSTERS: usize = 40;

/// More rounds of the thread than it takes to write a blob's metadata and to close it.
const CLOSING_ROUNDS: u32 = 50;

/// More than a detach takes that needn't wait.
const OPERATION_ROUNDS: u32 = 200;

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
                steps.push(step.clone());
                game.play(&step).await?;
            }
        }
        game.end().await
    };
    result.await.map_err(|what| Failure { steps, what })
}

/// Plays steps on a new store, without those that make no sense there.
pub async fn replay(steps: &[Step]) -> std::result::Result<Tally, Failure> {
    let mut played = Vec::new();
    let result = async {
        let mut game = Game::start().await?;
        for step in steps {
            if game.can_play(&step.op) {
                played.push(step.clone());
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

/// A step, and how it ended: with the id of the new blob, if it made one.
struct Played {
    step: Step,
    result: Result<Option<BlobId>>,
}

struct Game {
    image: Image,
    /// None only while it is loaded anew, and if that has failed.
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
        let Some(op) = op.named(&|pick| self.model.pick(pick)) else { return Vec::new() };
        if self.model.avoids(&op) {
            return Vec::new();
        }
        let creates = op.creates().then(|| {
            self.names += 1;
            Name(self.names)
        });
        let before = self.model.prepare(&op).into_iter().map(|op| Step { op, creates: None });
        before.chain([Step { op, creates }]).collect()
    }

    /// Whether an operation that was planned in another game makes sense in this one.
    fn can_play(&self, op: &Op<Name>) -> bool {
        let there = op.named(&|&name| self.model.has(name).then_some(name)).is_some();
        there && !self.model.avoids(op) && self.model.prepare(op).is_empty()
    }

    async fn play(&mut self, step: &Step) -> Outcome {
        let results = self.perform(step).await;
        let Some(store) = &self.store else {
            let error = results.into_iter().find_map(|played| played.result.err());
            return Err(error.map_or_else(String::new, |error| error.to_string()));
        };
        let state = look(store).await.map_err(|error| error.to_string())?;
        self.model = self.explain(&results, &state)?;
        let before = std::mem::replace(&mut self.state, state);
        self.compare_with_before(&results, &before)
    }

    fn store(&self) -> &Store {
        self.store.as_ref().expect("the store is loaded")
    }

    /// Plays a step on the store.
    async fn perform(&mut self, step: &Step) -> Vec<Played> {
        let results = match &step.op {
            Op::DetachDuring { blob, other, delay } => {
                let other = Step { op: (**other).clone(), creates: step.creates };
                let detach = Step { op: Op::Detach(*blob), creates: None };
                let (first, second) = join(
                    self.act_after(u8::try_from(-delay).unwrap_or(0), &other.op),
                    self.act_after(u8::try_from(*delay).unwrap_or(0), &detach.op),
                )
                .await;
                // A detach that is refused answers before its blobs are closed.
                for _ in 0..CLOSING_ROUNDS {
                    store::next_round().await;
                }
                vec![(other, first), (detach, second)]
            }
            op => {
                let result = match op {
                    Op::Open(_) | Op::Close(_) | Op::Reload | Op::Crash => {
                        self.hold_or_load(op).await.map(|()| None)
                    }
                    op => self.act(op).await,
                };
                vec![(step.clone(), result)]
            }
        };
        let hold = |(step, result): (Step, Result<Option<OpenBlob>>)| {
            let result = result.map(|created| {
                let id = created.as_ref().map(OpenBlob::id);
                self.held.extend(step.creates.zip(created));
                id
            });
            Played { step, result }
        };
        results.into_iter().map(hold).collect()
    }

    /// Changes who holds a blob, or starts the store anew.
    async fn hold_or_load(&mut self, op: &Op<Name>) -> Result<()> {
        match op {
            Op::Open(name) => {
                let blob = self.store().open(self.model.id(*name)).await?;
                self.held.insert(*name, blob);
                Ok(())
            }
            Op::Close(name) => match self.held.remove(name) {
                Some(blob) => blob.close().await,
                None => Ok(()),
            },
            Op::Crash => {
                let image = Rc::new(RefCell::new(self.image.borrow().clone()));
                // What this still writes, it writes to the other image.
                self.unload().await?;
                self.image = image;
                self.load().await
            }
            _ => {
                self.unload().await?;
                self.load().await
            }
        }
    }

    /// Does an operation in the store, so many rounds of the thread from now.
    async fn act_after(&self, rounds: u8, op: &Op<Name>) -> Result<Option<OpenBlob>> {
        for _ in 0..rounds {
            store::next_round().await;
        }
        self.act(op).await
    }

    /// Does an operation in the store. If it makes a blob, returns that.
    async fn act(&self, op: &Op<Name>) -> Result<Option<OpenBlob>> {
        let store = self.store();
        let id = |name| self.model.id(name);
        let created = match *op {
            Op::Create { clusters, thin } => store.create_blob(clusters, thin).await?,
            Op::Snapshot { blob, checksum } => {
                store.snapshot_with_xattr(id(blob), CHECKSUM.0, &checksum.to_le_bytes()).await?
            }
            Op::Clone(snapshot) => store.clone_of(id(snapshot)).await?,
            Op::Write { blob, .. }
            | Op::Touch { blob, .. }
            | Op::Unmap { blob, .. }
            | Op::SetXattr { blob, .. }
            | Op::RemoveXattr { blob, .. }
            | Op::Resize { blob, .. } => {
                let opened = store.open(id(blob)).await?;
                let result = self.act_on(op, &opened).await;
                opened.close().await?;
                return result.map(|()| None);
            }
            _ => return self.act_on_closed(op).await.map(|()| None),
        };
        store.open(created).await.map(Some)
    }

    /// Does an operation that wants its blob open.
    async fn act_on(&self, op: &Op<Name>, blob: &OpenBlob) -> Result<()> {
        let store = self.store();
        match *op {
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
            _ => unreachable!("{op:?} opens its blob itself"),
        }
    }

    /// Does an operation that opens its blobs itself.
    async fn act_on_closed(&self, op: &Op<Name>) -> Result<()> {
        let store = self.store();
        let id = |name| self.model.id(name);
        match *op {
            Op::Delete { blob, .. } => store.delete(id(blob)).await,
            Op::Inflate(blob) => store.inflate(id(blob)).await,
            Op::Decouple(blob) => store.decouple(id(blob)).await,
            #[cfg(spdk_blob_set_parent)]
            Op::SetParent { blob, snapshot } => store.set_parent(id(blob), id(snapshot)).await,
            Op::Detach(blob) => store.detach(id(blob)).await.map(drop),
            Op::DetachWhileLocked { blob, locked } => {
                let opened = store.open(id(locked)).await?;
                let lock = Cell::new(opened.lock());
                let detach = async {
                    let result = store.detach(id(blob)).await;
                    (result, lock.take().is_some())
                };
                let operation = async {
                    for _ in 0..OPERATION_ROUNDS {
                        store::next_round().await;
                    }
                    drop(lock.take());
                };
                let ((result, is_locked), ()) = join(detach, operation).await;
                opened.close().await?;
                if result.is_ok() && is_locked && self.model.descends(locked, blob) {
                    let what = format!("{blob:?} was detached while {locked:?} was locked");
                    return Err(Error::new(libc::EBUSY, what));
                }
                result.map(drop)
            }
            _ => unreachable!("{op:?} is done elsewhere"),
        }
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

    /// The model after what was played, if there is an order in which it comes to this state.
    fn explain(&self, results: &[Played], state: &State) -> std::result::Result<Model, String> {
        let may_be_busy = match results {
            [other, detach] => self.model.are_related(&other.step.op, &detach.step.op),
            _ => false,
        };
        let in_order = |results: &mut dyn Iterator<Item = &Played>| {
            let mut model = self.model.clone();
            for played in results {
                expect(&mut model, played, may_be_busy)?;
            }
            compare(&model, state).map(|()| model)
        };
        match results {
            [_] => in_order(&mut results.iter()),
            _ => in_order(&mut results.iter()).or_else(|what| {
                let reversed = in_order(&mut results.iter().rev());
                reversed.map_err(|other| format!("{what}\nand in the other order: {other}"))
            }),
        }
    }

    /// What the model doesn't know.
    fn compare_with_before(&mut self, results: &[Played], before: &State) -> Outcome {
        if results.iter().all(|played| played.result.is_err()) && self.state != *before {
            return Err(format!("it was refused, but\n{before:x?} became\n{:x?}", self.state));
        }
        for played in results {
            let (detach, done) = (played.is_detach(), played.result.is_ok());
            if detach && results.len() == 1 && self.state.places() != before.places() {
                return Err(format!("clusters moved:\n{before:x?} became\n{:x?}", self.state));
            }
            self.tally += Tally {
                operations: 1,
                refused: (!done).into(),
                detaches: (detach && done).into(),
                refused_detaches: (detach && !done).into(),
            };
        }
        Ok(())
    }
}

impl Played {
    fn is_detach(&self) -> bool {
        matches!(self.step.op, Op::Detach(_) | Op::DetachWhileLocked { .. })
    }
}

/// Lets the model play a step, and compares the result. If it `may_be_busy`, a detach that was under way
/// at the same time may have refused it. A detach is never refused so: it waits.
fn expect(model: &mut Model, played: &Played, may_be_busy: bool) -> Outcome {
    let Played { step, result } = played;
    let (op, may_be_busy) = (&step.op, may_be_busy && !played.is_detach());
    match (result, model.refusal(op)) {
        (&Ok(id), None) => model.apply(step, id),
        (Err(error), Some(errno)) if error.code() == -errno => {}
        (Err(error), _) if may_be_busy && error.code() == -libc::EBUSY => {}
        (Err(error), _) => return Err(format!("{op:?}: {error}")),
        (Ok(_), Some(errno)) => {
            return Err(format!("{op:?} was done, expected {}", errno::Errno(errno)));
        }
    }
    Ok(())
}

fn compare(model: &Model, state: &State) -> Outcome {
    let mut expected: Vec<BlobId> = model.names().map(|name| model.id(name)).collect();
    expected.sort_unstable();
    if !state.blobs.keys().eq(&expected) {
        let found: Vec<_> = state.blobs.keys().collect();
        return Err(format!("the store has the blobs {found:x?}, expected {expected:x?}"));
    }
    for name in model.names() {
        let blob = &state.blobs[&model.id(name)];
        let expected = model.describe(name, blob);
        if *blob != expected {
            return Err(format!("{name:?} is\n{blob:x?}, expected\n{expected:x?}"));
        }
    }
    Ok(())
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

/// Runs both at a time.
async fn join<A, B>(one: impl Future<Output = A>, other: impl Future<Output = B>) -> (A, B) {
    let (mut one, mut other) = (pin!(one), pin!(other));
    let (mut a, mut b) = (None, None);
    poll_fn(move |context| {
        if a.is_none()
            && let Poll::Ready(value) = one.as_mut().poll(context)
        {
            a = Some(value);
        }
        if b.is_none()
            && let Poll::Ready(value) = other.as_mut().poll(context)
        {
            b = Some(value);
        }
        if a.is_none() || b.is_none() {
            return Poll::Pending;
        }
        a.take().zip(b.take()).map_or(Poll::Pending, Poll::Ready)
    })
    .await
}
