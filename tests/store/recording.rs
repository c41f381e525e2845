//! A scenario that was played on a device that kept a journal.

use std::cell::Cell;
use std::collections::BTreeMap;

use spdk_lvol_detach::internals::blob::BlobId;
use spdk_lvol_detach::internals::memory_dev::Image;

use super::journal::Journal;
use super::scenarios::{
    Name, Op, Scenario, State, World, add_concurrent_xattr, remove_concurrent_xattr,
};

pub struct Recording {
    pub scenario: Name,
    pub start: Start,
    pub names: BTreeMap<Name, BlobId>,
    pub steps: Vec<Step>,
    pub journal: Journal,
    /// Where on the device the data starts.
    pub data_start: usize,
}

/// An operation of a scenario, and when it ran, in events of the journal.
pub struct Step {
    pub op: Op,
    pub start: usize,
    pub end: usize,
    /// When, of two operations at once, the detach was done.
    pub detached: Option<usize>,
    pub before: State,
    pub after: State,
}

/// Whether the store was in use before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// It has just been loaded: the superblock says that it is clean.
    Clean,
    /// The superblock says that it isn't, as from the first metadata write of SPDK's on.
    InUse,
}

impl Recording {
    /// Plays a scenario.
    pub async fn of(scenario: &Scenario, start: Start) -> Recording {
        let (image, names) = scenario.prepare().await;
        Recording::on(&image, names, start, scenario.name, scenario.play).await
    }

    /// Plays something on a store that is there.
    pub async fn on(
        image: &Image,
        names: BTreeMap<Name, BlobId>,
        start: Start,
        scenario: Name,
        play: &[Op],
    ) -> Recording {
        let (mut journal, hook) = Journal::start(image);
        let mut world = World::load(image, Some(hook), &names).await.unwrap();
        if start == Start::InUse {
            world.play(Op::SetXattr("other", "in use", 20)).await.unwrap();
            journal.restart(image);
        }
        let mut steps = Vec::new();
        let mut before = world.whole_state().await.unwrap();
        for &op in play {
            let begin = journal.now();
            let (detached, clock) = (Cell::new(None), journal.clock());
            world.play_watched(op, || detached.set(Some(clock()))).await.unwrap();
            let end = journal.now();
            let after = world.whole_state().await.unwrap();
            let detached = detached.get();
            steps.push(Step { op, start: begin, end, detached, before, after: after.clone() });
            before = after;
        }
        journal.close();
        let data_start = world.store.data_start();
        let names = world.names.clone();
        world.unload().await.unwrap();
        Recording { scenario, start, names, steps, journal, data_start }
    }
}

impl Step {
    /// The lvol that was said to be detached, if this step has said so by then.
    pub fn promised(&self, at: usize) -> Option<Name> {
        let name = self.op.detaches()?;
        (at >= self.detached.unwrap_or(self.end)).then_some(name)
    }

    /// What there may be after a crash at this point: in the end all of what the operation does,
    /// and until then all or nothing.
    pub fn possible(&self, at: usize, names: &BTreeMap<Name, BlobId>) -> Vec<State> {
        let Step { before, after, .. } = self;
        let mut possible = vec![after.clone()];
        if at >= self.end {
            return possible;
        }
        match self.op {
            // A new cluster is the blob's before it is written to.
            Op::Write(name, cluster, _) => {
                let mut allocated = after.clone();
                let old = before[&names[name]].data[cluster as usize];
                allocated.get_mut(&names[name]).unwrap().data[cluster as usize] = old;
                possible.push(allocated);
            }
            // A cluster is cleared before it is given back.
            Op::Unmap(name, cluster) => {
                let mut cleared = before.clone();
                cleared.get_mut(&names[name]).unwrap().data[cluster as usize] = 0;
                possible.push(cleared);
            }
            // Two operations, each all or nothing.
            Op::DetachDuringSync(_, synced) => {
                let mut detached = after.clone();
                remove_concurrent_xattr(&mut detached, names[synced]);
                possible.push(detached);
                if self.detached.is_some_and(|detached| at >= detached) {
                    return possible;
                }
                let mut written = before.clone();
                add_concurrent_xattr(&mut written, names[synced]);
                possible.push(written);
            }
            _ => {}
        }
        possible.push(before.clone());
        possible
    }
}
