//! What the tests of durability play: operations on blobs that have names, and what a store says
//! when they are done.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;

use spdk_lvol_detach::internals::blob::{BlobId, OpenBlob};
use spdk_lvol_detach::internals::error::Result;
use spdk_lvol_detach::internals::memory_dev::Image;

use super::hooked_dev::Hook;
use super::{Description, Layout, Store, image, run, start};

/// How a scenario calls a blob.
pub type Name = &'static str;

/// What is played. Each is awaited before the next one starts.
#[derive(Debug, Clone, Copy)]
pub enum Op {
    /// Makes a blob of so many clusters.
    Create(Name, u64),
    /// Fills a cluster with one byte.
    Write(Name, u64, u8),
    Unmap(Name, u64),
    /// Sets an xattr of so many bytes, and writes the metadata. A rename of an lvol is no more.
    SetXattr(Name, &'static str, usize),
    Resize(Name, u64),
    /// Makes a snapshot of the first; the second is what to call it.
    Snapshot(Name, Name),
    /// As [`Op::Snapshot`], of a snapshot that has an xattr of so many bytes.
    SnapshotWithXattr(Name, Name, usize),
    /// Makes a clone of the first; the second is what to call it.
    Clone(Name, Name),
    Delete(Name),
    /// SPDK's own way to part a blob from its parent: it copies all that the parent has.
    Inflate(Name),
    /// As [`Op::Inflate`], but the parent's own parent is the blob's then.
    Decouple(Name),
    Detach(Name),
    /// Detaches the first while the xattr [`CONCURRENT`] of the second is being written.
    DetachDuringSync(Name, Name),
}

/// The xattr that [`Op::DetachDuringSync`] sets.
const CONCURRENT: &str = "concurrent";
const CONCURRENT_LEN: usize = 20;

impl Op {
    /// The blob that it detaches, if that is what it does.
    pub fn detaches(self) -> Option<Name> {
        match self {
            Op::Detach(name) | Op::DetachDuringSync(name, _) => Some(name),
            _ => None,
        }
    }
}

pub struct Scenario {
    pub name: &'static str,
    pub setup: &'static [&'static [Op]],
    /// What is played with writes that are torn, lost, or fail.
    pub play: &'static [Op],
}

/// ```text
/// snap1 <- snap2 <- vol      each owns clusters that the next one doesn't
///               \-- twin
/// other                      has nothing to do with them
/// ```
pub const CHAIN: &[Op] = &[
    Op::Create("other", 3),
    Op::Write("other", 1, 0xee),
    Op::Create("vol", 6),
    Op::Write("vol", 0, 0x11),
    Op::Write("vol", 1, 0x11),
    Op::Snapshot("vol", "snap1"),
    Op::Write("vol", 1, 0x22),
    Op::Write("vol", 2, 0x22),
    Op::Snapshot("vol", "snap2"),
    Op::Write("vol", 3, 0x33),
    Op::Clone("snap2", "twin"),
    Op::Write("twin", 4, 0x44),
];

/// The metadata of `vol` takes three pages, with its parent and without it.
pub const THREE_PAGES: &[Op] = &[
    Op::SetXattr("vol", "a", 3000),
    Op::SetXattr("vol", "b", 3000),
    Op::SetXattr("vol", "c", 3000),
];

/// The metadata of `vol` takes a second page for no more than the name of its parent and what
/// comes after that.
pub const TWO_PAGES: &[Op] = &[Op::SetXattr("vol", "a", 4000)];

/// The last cluster of an lvol that is longer than its parent, where SPDK can read such an lvol.
const LAST: u64 = if cfg!(spdk_reads_beyond_parent) { 8 } else { 5 };

pub const SCENARIOS: &[Scenario] = &[
    Scenario { name: "leaf", setup: &[CHAIN], play: &[Op::Detach("vol")] },
    Scenario { name: "mid-chain", setup: &[CHAIN], play: &[Op::Detach("snap2")] },
    Scenario { name: "three pages", setup: &[CHAIN, THREE_PAGES], play: &[Op::Detach("vol")] },
    Scenario { name: "two pages", setup: &[CHAIN, TWO_PAGES], play: &[Op::Detach("vol")] },
    Scenario {
        name: "mid-chain of two pages",
        setup: &[CHAIN, &[Op::SnapshotWithXattr("vol", "snap3", 4000), Op::Write("vol", 5, 0x55)]],
        play: &[Op::Detach("snap3")],
    },
    Scenario {
        name: "several",
        setup: &[CHAIN],
        play: &[Op::Detach("vol"), Op::Detach("snap2"), Op::Detach("twin")],
    },
    Scenario {
        name: "between",
        // To lengthen a blob isn't played: SPDK overwrites its last extent page before its root page
        // says that it is longer, and a load of what is there in between fails an assertion of SPDK's
        // own (`blob_parse_page`), where those are on.
        setup: &[CHAIN, &[Op::Resize("vol", LAST + 1)]],
        play: &[
            Op::SetXattr("vol", "name", 20),
            Op::Detach("vol"),
            Op::Delete("twin"),
            // The former parent. If it still had a clone, SPDK's own deletion would leave clusters
            // owned twice after a crash (`delete_snapshot_update_extent_pages` overwrites the
            // clone's extent page before anything says that the snapshot goes).
            Op::Delete("snap2"),
            Op::Write("vol", LAST, 0x55),
            Op::Unmap("vol", 3),
            Op::Snapshot("vol", "snap3"),
            Op::SetXattr("vol", "name", 30),
            Op::Write("vol", 0, 0x66),
            Op::Detach("vol"),
            Op::Delete("snap3"),
            Op::Resize("vol", 4),
        ],
    },
    Scenario {
        name: "during a sync",
        setup: &[CHAIN],
        play: &[Op::DetachDuringSync("vol", "vol")],
    },
    Scenario {
        name: "during a sync of a clone",
        setup: &[CHAIN],
        play: &[Op::DetachDuringSync("snap2", "vol")],
    },
];

/// Tries something on every scenario, each on a thread of its own.
pub fn on_each_scenario<T, F>(test: impl Fn(&'static Scenario) -> F + Sync) -> Vec<T>
where
    T: Send + 'static,
    F: Future<Output = T> + 'static,
{
    let test = &test;
    thread::scope(|scope| {
        let started = |scenario| scope.spawn(move || run(test(scenario)));
        let threads: Vec<_> = SCENARIOS.iter().map(started).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    })
}

/// How many cases were tried: in all, and on each scenario.
pub fn summary(counts: impl IntoIterator<Item = usize> + Clone) -> String {
    let total: usize = counts.clone().into_iter().sum();
    let each: Vec<_> = SCENARIOS
        .iter()
        .zip(counts)
        .map(|(scenario, count)| format!("{} {count}", scenario.name))
        .collect();
    format!("{total} ({})", each.join(", "))
}

impl Scenario {
    /// An image after the setup, unloaded cleanly, and the names of its blobs.
    pub async fn prepare(&self) -> (Image, BTreeMap<Name, BlobId>) {
        prepare(Layout::DEFAULT, self.setup).await
    }
}

/// An image of 64 clusters after these operations, unloaded cleanly, and the names of its blobs.
pub async fn prepare(layout: Layout, setup: &[&[Op]]) -> (Image, BTreeMap<Name, BlobId>) {
    let image = image(64 * layout.cluster_len / super::CLUSTER_LEN);
    let mut world = World::create(&image, layout).await.unwrap();
    for &op in setup.iter().copied().flatten() {
        world.play(op).await.unwrap();
    }
    let names = world.names.clone();
    world.unload().await.unwrap();
    (image, names)
}

/// All that a store says of its blobs.
pub type State = BTreeMap<BlobId, Description>;

/// Makes a state what it is with the xattr that [`Op::DetachDuringSync`] sets.
pub fn add_concurrent_xattr(state: &mut State, synced: BlobId) {
    let blob = state.get_mut(&synced).expect("a blob");
    blob.xattrs.insert(CONCURRENT.to_owned(), xattr_value(CONCURRENT_LEN));
}

/// Makes a state what it is without that xattr.
pub fn remove_concurrent_xattr(state: &mut State, synced: BlobId) {
    state.get_mut(&synced).expect("a blob").xattrs.remove(CONCURRENT);
}

/// What is not as it should be, for a message.
pub fn differences(is: &State, should_be: &State) -> String {
    let ids: BTreeSet<_> = is.keys().chain(should_be.keys()).collect();
    let differ = ids.into_iter().filter(|id| is.get(id) != should_be.get(id));
    let list = differ.map(|id| match (is.get(id), should_be.get(id)) {
        (Some(is), Some(should_be)) => format!("{id:#x} is {is:?} instead of {should_be:?}"),
        (None, _) => format!("{id:#x} is missing"),
        (_, None) => format!("{id:#x} is there"),
    });
    list.collect::<Vec<_>>().join(", ")
}

/// A loaded store. All of its blobs are held open, as the lvol library does.
pub struct World {
    pub store: Store,
    pub names: BTreeMap<Name, BlobId>,
    open: BTreeMap<BlobId, OpenBlob>,
    /// SPDK could not write the xattr of [`Op::DetachDuringSync`]: what is in memory is not on the
    /// device, and a detach doesn't write it by the way.
    pub lost_xattr: bool,
}

impl World {
    pub async fn create(image: &Image, layout: Layout) -> Result<World> {
        let store = Store::create_with(image, layout).await?;
        Ok(World { store, names: BTreeMap::new(), open: BTreeMap::new(), lost_xattr: false })
    }

    /// Loads a store. `names` are those of its blobs that will be played with.
    pub async fn load(
        image: &Image,
        hook: Option<Hook>,
        names: &BTreeMap<Name, BlobId>,
    ) -> Result<World> {
        let store = Store::load(image, hook).await?;
        let open = BTreeMap::new();
        let mut world = World { store, names: names.clone(), open, lost_xattr: false };
        if let Err(error) = world.open_all().await {
            world.unload().await?;
            return Err(error);
        }
        Ok(world)
    }

    async fn open_all(&mut self) -> Result<()> {
        for id in self.store.blob_ids().await? {
            self.open.insert(id, self.store.open(id).await?);
        }
        Ok(())
    }

    /// Closes everything and unloads the store cleanly.
    pub async fn unload(self) -> Result<()> {
        for blob in self.open.into_values() {
            self.store.close(blob).await?;
        }
        self.store.unload().await
    }

    pub fn blob(&self, name: Name) -> &OpenBlob {
        &self.open[&self.names[name]]
    }

    /// Closes a blob: after that it is not held open any more.
    pub async fn close(&mut self, name: Name) -> Result<()> {
        let blob = self.open.remove(&self.names[name]).expect("an open blob");
        self.store.close(blob).await
    }

    /// Makes blobs until no metadata page is left.
    pub async fn use_up_md_pages(&mut self) -> Vec<BlobId> {
        let mut fillers = Vec::new();
        while let Ok(id) = self.store.create_blob(1, true).await {
            self.open.insert(id, self.store.open(id).await.expect("a new blob"));
            fillers.push(id);
        }
        fillers
    }

    /// Deletes the last one of the blobs.
    pub async fn delete_filler(&mut self, fillers: &mut Vec<BlobId>) -> Result<()> {
        let id = fillers.pop().expect("a filler");
        self.store.close(self.open.remove(&id).expect("an open blob")).await?;
        self.store.delete(id).await
    }

    /// Plays one operation. Of two at once the result is that of the detach.
    pub async fn play(&mut self, op: Op) -> Result<()> {
        self.play_watched(op, || ()).await
    }

    /// As [`World::play`]. `detached` is called when, of two operations at once, the detach is
    /// done and has changed something.
    pub async fn play_watched(&mut self, op: Op, detached: impl FnOnce()) -> Result<()> {
        let store = &self.store;
        match op {
            Op::Create(name, clusters) => {
                let id = store.create_blob(clusters, true).await?;
                self.opened(name, id).await
            }
            Op::Write(name, cluster, fill) => {
                store.write_cluster(self.blob(name), cluster, fill).await
            }
            Op::Unmap(name, cluster) => store.unmap_cluster(self.blob(name), cluster).await,
            Op::SetXattr(name, key, len) => self.set_xattr(name, key, len).await,
            Op::Resize(name, clusters) => store.resize(self.blob(name), clusters).await,
            Op::Snapshot(of, name) => {
                let id = store.snapshot(self.names[of]).await?;
                self.opened(name, id).await
            }
            Op::SnapshotWithXattr(of, name, len) => {
                let (id, value) = (self.names[of], xattr_value(len));
                let id = store.snapshot_with_xattr(id, c"a", &value).await?;
                self.opened(name, id).await
            }
            Op::Clone(of, name) => {
                let id = store.clone_of(self.names[of]).await?;
                self.opened(name, id).await
            }
            Op::Delete(name) => {
                self.close(name).await?;
                self.store.delete(self.names[name]).await
            }
            Op::Inflate(name) => store.inflate(self.names[name]).await,
            Op::Decouple(name) => store.decouple(self.names[name]).await,
            Op::Detach(name) => self.detach(name).await,
            Op::DetachDuringSync(name, synced) => {
                let detach = async {
                    let result = self.detach(name).await;
                    if result.is_ok() {
                        detached();
                    }
                    result
                };
                let sync = start(self.set_xattr(synced, CONCURRENT, CONCURRENT_LEN));
                let result = detach.await;
                self.lost_xattr = sync.await.is_err();
                result
            }
        }
    }

    async fn opened(&mut self, name: Name, id: BlobId) -> Result<()> {
        self.open.insert(id, self.store.open(id).await?);
        self.names.insert(name, id);
        Ok(())
    }

    async fn detach(&self, name: Name) -> Result<()> {
        self.store.detach(self.names[name]).await.map(|_| ())
    }

    async fn set_xattr(&self, name: Name, key: &str, len: usize) -> Result<()> {
        let key = std::ffi::CString::new(key).expect("no NUL");
        self.store.set_xattr(self.blob(name), &key, &xattr_value(len)).await
    }

    /// All that the store says, or what of it doesn't fit together: no cluster may be lost, and
    /// none owned twice.
    pub async fn state(&self) -> std::result::Result<State, String> {
        let mut state = State::new();
        for blob in self.open.values() {
            self.store.settle(blob).await;
        }
        for id in self.store.blob_ids().await.map_err(|error| error.to_string())? {
            let described = self.store.describe(id).await;
            state.insert(id, described.map_err(|error| error.to_string())?);
        }
        let owned: Vec<_> =
            state.values().flat_map(|blob| &blob.clusters).filter(|&&lba| lba != 0).collect();
        if owned.len() != owned.iter().collect::<BTreeSet<_>>().len() {
            return Err(format!("a cluster is owned twice: {state:?}"));
        }
        let (free, all) = (self.store.free_clusters(), self.store.data_clusters());
        if free + owned.len() as u64 != all {
            let owned = owned.len();
            return Err(format!("{free} clusters are free, {owned} owned, of {all}: {state:?}"));
        }
        Ok(state)
    }

    /// As [`World::state`], and no metadata page is lost either.
    pub async fn whole_state(&self) -> std::result::Result<State, String> {
        let state = self.state().await?;
        let owned: u32 = state.values().map(|blob| blob.num_md_pages).sum();
        match self.store.used_md_pages() {
            used if used == owned => Ok(state),
            used => Err(format!("{used} metadata pages are used, {owned} owned: {state:?}")),
        }
    }
}

/// The value of an xattr of so many bytes.
fn xattr_value(len: usize) -> Vec<u8> {
    vec![b'x'; len]
}
