//! A real target is killed with SIGKILL at random moments, while a client makes it change metadata
//! as fast as it can, and started again on the same file: every change that had been answered is there, and
//! every other one was made fully or not at all.
//!
//! This shows what a crash of the process leaves. The page cache outlives it, so every write that
//! the kernel had taken is there, in its order; what a crash of the machine or of the device leaves
//! is the matter of `crash_points.rs`, which tries every prefix of the writes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::ops::AddAssign;
use std::os::unix::net::UnixStream;
use std::time::Duration;
use std::{array, fmt, thread};

use common::iscsi::{self, Work};
use common::lvstore::{Lvstore, MIB};
use common::target::Target;
use fastrand::Rng;
use serde_json::{Value, json};

/// How many kills, unless `KILLS` says otherwise: what is linked, or watched, how is no matter of their number.
const KILLS: u32 = 100;
/// Targets that run, and are killed, at the same time.
const TARGETS: u32 = 2;
/// Families on each target. Each of them has one request under way.
const FAMILIES: usize = 8;
/// A family gets no more lvols than this.
const MANY: usize = 7;
/// The target dies this long after the first request, at the latest.
const LONGEST_LIFE: Duration = Duration::from_millis(150);

/// Clusters of each lvol.
const CLUSTERS: usize = 8;
const CLUSTER_SIZE: u64 = MIB / CLUSTERS as u64;

// --- What the lvols must be ---

/// An lvol as it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Volume {
    parent: Option<String>,
    read_only: bool,
    /// The byte that each cluster is full of which the lvol owns.
    owns: [Option<u8>; CLUSTERS],
}

/// Lvols that may descend from each other, by name. What one request changes is in one family.
#[derive(Clone, PartialEq, Eq)]
struct Family {
    number: usize,
    /// How many names were given.
    named: usize,
    volumes: BTreeMap<String, Volume>,
}

impl fmt::Debug for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(&self.volumes).finish()
    }
}

/// A request that changes metadata.
#[derive(Debug, Clone)]
enum Operation {
    Detach(String),
    Create { name: String },
    Snapshot { of: String, name: String },
    Clone { of: String, name: String },
    SetParent { of: String, parent: String },
    Rename { from: String, to: String },
    Delete(String),
}

impl Operation {
    fn request(&self) -> (&'static str, Value) {
        let alias = |name: &str| format!("lvs/{name}");
        match self {
            Operation::Detach(name) => ("bdev_lvol_detach_parent", json!({"name": alias(name)})),
            Operation::Create { name } => (
                "bdev_lvol_create",
                json!({
                    "lvs_name": "lvs", "lvol_name": name,
                    "size_in_mib": 1, "thin_provision": true,
                }),
            ),
            Operation::Snapshot { of, name } => {
                ("bdev_lvol_snapshot", json!({"lvol_name": alias(of), "snapshot_name": name}))
            }
            Operation::Clone { of, name } => {
                ("bdev_lvol_clone", json!({"snapshot_name": alias(of), "clone_name": name}))
            }
            Operation::SetParent { of, parent } => (
                "bdev_lvol_set_parent",
                json!({"lvol_name": alias(of), "parent_name": alias(parent)}),
            ),
            Operation::Rename { from, to } => {
                ("bdev_lvol_rename", json!({"old_name": alias(from), "new_name": to}))
            }
            Operation::Delete(name) => ("bdev_lvol_delete", json!({"name": alias(name)})),
        }
    }
}

impl Family {
    fn new(number: usize) -> Family {
        Family { number, named: 0, volumes: BTreeMap::new() }
    }

    /// A name that no lvol has had.
    fn new_name(&mut self) -> String {
        self.named += 1;
        format!("family{}-{}", self.number, self.named)
    }

    /// The family that an lvol of this name is in.
    fn number_of(name: &str) -> Option<usize> {
        name.strip_prefix("family")?.split_once('-')?.0.parse().ok()
    }

    fn clones<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a String> {
        let is_clone = move |volume: &Volume| volume.parent.as_deref() == Some(name);
        self.volumes.iter().filter(move |(_, volume)| is_clone(volume)).map(|(name, _)| name)
    }

    fn ancestors<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        std::iter::successors(Some(name), |name| self.volumes[*name].parent.as_deref())
    }

    /// The byte that each cluster of an lvol is full of.
    fn data(&self, name: &str) -> [u8; CLUSTERS] {
        array::from_fn(|cluster| {
            self.ancestors(name).find_map(|name| self.volumes[name].owns[cluster]).unwrap_or(0)
        })
    }

    /// Any of its lvols of which something is true.
    fn any(&self, rng: &mut Rng, is_it: impl Fn(&str, &Volume) -> bool) -> Option<String> {
        let these = self.volumes.iter().filter(|(name, volume)| is_it(name, volume));
        rng.choice(these.map(|(name, _)| name.clone()).collect::<Vec<_>>())
    }

    /// Something that can be done while the target may be killed, mostly detaches.
    ///
    /// SPDK does all of these with one write that counts. Not so a snapshot and the deletion of an
    /// lvol that has a clone: killed in the middle of one of those, SPDK 26.01 alone loses clusters
    /// or even crashes when it loads the lvstore again (`bs_blob_list_remove`). They are left to
    /// [`Family::choose_at_rest`].
    fn choose(&mut self, rng: &mut Rng, can_set_parent: bool) -> Operation {
        let name = self.new_name();
        let few = self.volumes.len() < MANY;
        // Until there is one that can be done now.
        loop {
            let Some(of) = self.any(rng, |_, _| true) else {
                return Operation::Create { name };
            };
            let volume = &self.volumes[&of];
            match rng.u32(0..16) {
                0..8 if volume.parent.is_some() => return Operation::Detach(of),
                8 if few => return Operation::Create { name },
                9..12 if few && volume.read_only => return Operation::Clone { of, name },
                12 | 13 if can_set_parent => {
                    // SPDK takes an lvol for a snapshot only while it has clones.
                    let parent = self.any(rng, |parent, _| {
                        volume.parent.as_deref() != Some(parent)
                            && self.clones(parent).next().is_some()
                            && !self.ancestors(parent).any(|ancestor| ancestor == of)
                    });
                    if let Some(parent) = parent {
                        return Operation::SetParent { of, parent };
                    }
                }
                // SPDK renames no snapshots.
                14 if !volume.read_only => return Operation::Rename { from: of, to: name },
                15 if self.clones(&of).next().is_none() => return Operation::Delete(of),
                _ => {}
            }
        }
    }

    /// Something that can be done while nobody kills the target, so that there is more to detach.
    fn choose_at_rest(&mut self, rng: &mut Rng) -> Operation {
        let name = self.new_name();
        let Some(of) = self.any(rng, |_, volume| !volume.read_only) else {
            return Operation::Create { name };
        };
        let few = self.volumes.len() < MANY;
        // SPDK deletes no lvol that has several clones.
        match self.any(rng, |name, _| self.clones(name).count() == 1) {
            Some(parent) if !few || rng.u32(0..3) == 0 => Operation::Delete(parent),
            _ if few => Operation::Snapshot { of, name },
            _ => Operation::Delete(of),
        }
    }

    /// What the family is once this is done.
    fn apply(&mut self, operation: &Operation) {
        let volumes = &mut self.volumes;
        match operation.clone() {
            Operation::Detach(name) => volumes.get_mut(&name).unwrap().parent = None,
            Operation::Create { name } => {
                let new = Volume { parent: None, read_only: false, owns: [None; CLUSTERS] };
                volumes.insert(name, new);
            }
            Operation::Snapshot { of, name } => {
                let origin = volumes.get_mut(&of).unwrap();
                let snapshot = Volume { read_only: true, ..origin.clone() };
                origin.parent = Some(name.clone());
                origin.owns = [None; CLUSTERS];
                volumes.insert(name, snapshot);
            }
            Operation::Clone { of, name } => {
                let new = Volume { parent: Some(of), read_only: false, owns: [None; CLUSTERS] };
                volumes.insert(name, new);
            }
            Operation::SetParent { of, parent } => {
                volumes.get_mut(&of).unwrap().parent = Some(parent);
            }
            Operation::Rename { from, to } => {
                let volume = volumes.remove(&from).unwrap();
                volumes.insert(to, volume);
            }
            Operation::Delete(name) => {
                let deleted = volumes.remove(&name).unwrap();
                // Its clone, if it has one, gets what it owned and its parent.
                let is_clone = |volume: &&mut Volume| volume.parent.as_ref() == Some(&name);
                if let Some(clone) = volumes.values_mut().find(is_clone) {
                    clone.parent = deleted.parent;
                    clone.owns = array::from_fn(|i| clone.owns[i].or(deleted.owns[i]));
                }
            }
        }
    }

    /// What the target must say of the family.
    fn facts(&self) -> BTreeMap<String, Facts> {
        let facts = |name: &String, volume: &Volume| Facts {
            parent: volume.parent.clone(),
            clones: self.clones(name).cloned().collect(),
            read_only: volume.read_only,
            num_allocated_clusters: cfg!(spdk_blob_counts_clusters)
                .then(|| volume.owns.iter().flatten().count() as u64),
        };
        self.volumes.iter().map(|(name, volume)| (name.clone(), facts(name, volume))).collect()
    }
}

/// What matters here of what the target says of an lvol.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Facts {
    parent: Option<String>,
    clones: BTreeSet<String>,
    read_only: bool,
    num_allocated_clusters: Option<u64>,
}

// --- Until the target dies ---

/// A family, and what is asked of the target for it.
struct Player {
    family: Family,
    /// Sent, and not answered.
    in_doubt: Option<Operation>,
    /// Detaches that were answered with `true`.
    detached: u32,
}

impl Player {
    /// The next request. Its id is the family's number.
    fn next(&mut self, rng: &mut Rng, can_set_parent: bool) -> String {
        let operation = self.family.choose(rng, can_set_parent);
        let (method, params) = operation.request();
        self.in_doubt = Some(operation);
        let id = self.family.number;
        json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).to_string()
    }

    fn answered(&mut self, answer: &Value) {
        let operation = self.in_doubt.take().expect("an answer is one to a request");
        if let Some(error) = answer.get("error") {
            panic!("{operation:?} of {:?}: {error}", self.family);
        }
        if let Operation::Detach(_) = operation {
            assert_eq!(answer["result"], true, "{operation:?}");
            self.detached += 1;
        }
        self.family.apply(&operation);
    }
}

/// Sends requests, of all families at once and of each as soon as the last is answered, until the
/// target is gone.
fn play(mut socket: UnixStream, players: &mut [Player], rng: &mut Rng, can_set_parent: bool) {
    let mut lines = BufReader::new(socket.try_clone().expect("a socket can be shared")).lines();
    loop {
        let line = match lines.next() {
            None => return,
            Some(Err(error)) if error.kind() == ErrorKind::ConnectionReset => return,
            Some(Err(error)) => panic!("no answer: {error}"),
            Some(Ok(line)) => line,
        };
        // The target died while it wrote it.
        let Ok(answer) = serde_json::from_str::<Value>(&line) else { return };
        let id = answer["id"].as_u64().expect("an answer has the request's id");
        let player = &mut players[id as usize];
        player.answered(&answer);
        let request = player.next(rng, can_set_parent);
        // If that fails, what the target answered before it died is still to be read.
        let _ = socket.write_all(request.as_bytes());
    }
}

// --- And afterwards ---

/// What was seen, in numbers.
#[derive(Debug, Default)]
struct Figures {
    kills: u32,
    /// Detaches that were answered with `true`.
    detached: u32,
    /// Lvols that had a parent, and still had it.
    attached: u32,
    /// Detaches that were sent and not answered.
    in_doubt: u32,
    /// Those of them that were done.
    in_doubt_and_done: u32,
}

impl AddAssign for Figures {
    fn add_assign(&mut self, other: Figures) {
        self.kills += other.kills;
        self.detached += other.detached;
        self.attached += other.attached;
        self.in_doubt += other.in_doubt;
        self.in_doubt_and_done += other.in_doubt_and_done;
    }
}

/// What the target says of all lvols, by family.
fn seen(target: &Target) -> Vec<BTreeMap<String, Facts>> {
    let mut families = vec![BTreeMap::new(); FAMILIES];
    for (alias, lvol) in target.lvols() {
        let name = alias.strip_prefix("lvs/").unwrap_or_default();
        let Some(family) = Family::number_of(name).and_then(|number| families.get_mut(number))
        else {
            panic!("nobody has made an lvol {alias:?}");
        };
        assert_eq!(lvol.size, CLUSTERS as u64 * CLUSTER_SIZE, "the size of {alias}");
        assert!(lvol.thin_provision, "{alias} is thin");
        assert_eq!(lvol.clone, lvol.parent.is_some(), "{alias} is a clone if it has a parent");
        let facts = Facts {
            parent: lvol.parent,
            clones: lvol.clones.into_iter().collect(),
            read_only: lvol.read_only,
            num_allocated_clusters: lvol.num_allocated_clusters,
        };
        family.insert(name.to_owned(), facts);
    }
    families
}

/// Finds out which of the requests in doubt were done.
fn settle(target: &Target, players: &mut [Player]) -> Figures {
    let mut figures = Figures { kills: 1, ..Figures::default() };
    for (player, seen) in players.iter_mut().zip(seen(target)) {
        let Player { family, in_doubt, detached } = player;
        let in_doubt = in_doubt.take();
        let mut done = family.clone();
        if let Some(operation) = &in_doubt {
            done.apply(operation);
        }
        let is_done = seen == done.facts();
        assert!(
            is_done || seen == family.facts(),
            "neither done nor not done: {in_doubt:?}\nof {family:?}\nbut there is {seen:?}\n",
        );
        if is_done {
            *family = done;
        }
        if let Some(Operation::Detach(_)) = in_doubt {
            figures.in_doubt += 1;
            figures.in_doubt_and_done += u32::from(is_done);
        }
        figures.detached += std::mem::take(detached);
        figures.attached +=
            family.volumes.values().filter(|volume| volume.parent.is_some()).count() as u32;
    }
    figures
}

/// Every cluster is either free or owned by one lvol.
fn expect_no_lost_cluster(target: &Target) {
    let lvols = target.lvols();
    let Some(allocated) =
        lvols.values().map(|lvol| lvol.num_allocated_clusters).sum::<Option<u64>>()
    else {
        return;
    };
    let stores = target.must("bdev_lvol_get_lvstores", json!({"lvs_name": "lvs"}));
    assert_eq!(
        stores[0]["free_clusters"].as_u64().unwrap() + allocated,
        stores[0]["total_data_clusters"].as_u64().unwrap(),
        "free and allocated clusters make up all that there are"
    );
}

/// Every lvol reads as it must.
fn expect_data(target: &Target, players: &[Player]) {
    let work: Vec<_> = players
        .iter()
        .flat_map(|Player { family, .. }| family.volumes.keys().map(move |name| (family, name)))
        .map(|(family, name)| {
            let data = (0..).step_by(CLUSTER_SIZE as usize).zip(family.data(name));
            let commands = data.map(|(offset, byte)| iscsi::read(offset, CLUSTER_SIZE, byte));
            Work { lvol: format!("lvs/{name}"), read_only: true, commands: commands.collect() }
        })
        .collect();
    if !work.is_empty() && target.qemu_io(&work).is_err() {
        // Once more, to say which it is.
        for work in work {
            if let Err(error) = target.qemu_io(std::slice::from_ref(&work)) {
                panic!("{work:?} does not read as it should: {error}");
            }
        }
        panic!("an lvol did not read as it should, and then did");
    }
}

/// Makes sure that there is something to lose: more lvols, more clones, more data.
fn rest(target: &Target, players: &mut [Player], rng: &mut Rng) {
    let mut work = Vec::new();
    for Player { family, .. } in players.iter_mut() {
        let operation = family.choose_at_rest(rng);
        let (method, params) = operation.request();
        target.must(method, params);
        family.apply(&operation);

        for (name, volume) in &mut family.volumes {
            if !volume.read_only {
                let (cluster, byte) = (rng.usize(..CLUSTERS), rng.u8(1..));
                volume.owns[cluster] = Some(byte);
                let write = iscsi::write(cluster as u64 * CLUSTER_SIZE, CLUSTER_SIZE, byte);
                let lvol = format!("lvs/{name}");
                work.push(Work { lvol, read_only: false, commands: vec![write] });
            }
        }
    }
    if let Err(error) = target.qemu_io(&work) {
        panic!("could not write: {error}");
    }
    let facts: Vec<_> = players.iter().map(|player| player.family.facts()).collect();
    assert_eq!(seen(target), facts);
}

/// Kills a target so many times.
fn torment(kills: u32) -> Figures {
    let mut rng = Rng::new();
    let mut target = Target::start();
    let lvstore = Lvstore {
        size_mib: 128,
        cluster_size: CLUSTER_SIZE,
        can_be_slow: true,
        ..Lvstore::default()
    };
    target.create_lvstore("lvs", lvstore);
    // SPDK has it since 24.05.
    let can_set_parent = target.has_method("bdev_lvol_set_parent");

    let mut players: Vec<_> = (0..FAMILIES)
        .map(|number| Player { family: Family::new(number), in_doubt: None, detached: 0 })
        .collect();
    let mut figures = Figures::default();
    for _ in 0..kills {
        rest(&target, &mut players, &mut rng);

        match rng.u32(0..3) {
            // Writes that come late to the file: one each millisecond.
            0 => {
                let limit = json!({"name": target.base_bdev("lvs"), "rw_ios_per_sec": 1000});
                target.must("bdev_set_qos_limit", limit);
            }
            // Writes that are in the file before SPDK knows.
            1 => target.slow_down("lvs", 2000),
            _ => {}
        }
        let mut socket = UnixStream::connect(target.rpc().socket()).expect("a running target");
        let first: String =
            players.iter_mut().map(|player| player.next(&mut rng, can_set_parent)).collect();
        socket.write_all(first.as_bytes()).expect("a running target takes requests");
        let life = LONGEST_LIFE.mul_f64(rng.f64());
        thread::scope(|scope| {
            scope.spawn(|| play(socket, &mut players, &mut rng, can_set_parent));
            thread::sleep(life);
            target.kill9();
        });

        target.start_again();
        figures += settle(&target, &mut players);
        expect_no_lost_cluster(&target);
        expect_data(&target, &players);
    }
    clear(&target, players);
    figures
}

/// Detaches and deletes everything: after all that has happened nothing keeps an lvol or a cluster.
fn clear(target: &Target, players: Vec<Player>) {
    for Player { family, .. } in players {
        let with_parent = family.volumes.iter().filter(|(_, volume)| volume.parent.is_some());
        for (name, _) in with_parent {
            target.detach(&format!("lvs/{name}"));
        }
        for name in family.volumes.keys() {
            target.delete(&format!("lvs/{name}"));
        }
    }
    assert_eq!(target.lvols(), BTreeMap::new());
    expect_no_lost_cluster(target);
}

#[test]
fn what_was_answered_survives_and_what_was_not_is_done_wholly_or_not_at_all() {
    let mut figures = Figures::default();
    thread::scope(|scope| {
        let asked = std::env::var("KILLS").ok().and_then(|kills| kills.parse().ok());
        let all = asked.unwrap_or(KILLS);
        // The last takes what the division leaves.
        let shares = (0..TARGETS).map(|i| all * (i + 1) / TARGETS - all * i / TARGETS);
        let targets: Vec<_> = shares.map(|kills| scope.spawn(move || torment(kills))).collect();
        for target in targets {
            figures += target.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    });
    let Figures { kills, detached, attached, in_doubt, in_doubt_and_done } = figures;
    println!(
        "kills: {kills}, detached before the kill: {detached}, attached: {attached}, \
         in doubt: {in_doubt} ({in_doubt_and_done} of them done)"
    );
    // If the target never died while it had something to do this would show little.
    assert!(detached > 0 && attached > 0 && in_doubt_and_done > 0);
}
