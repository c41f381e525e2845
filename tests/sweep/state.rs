//! What a target says of the lvols of its one lvstore, and what a detach makes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::client::{Answer, Client, Lost};

/// Bytes of a cluster.
pub const CLUSTER: u64 = 256 * 1024;

/// A blob's id.
pub type Id = u64;
/// `SPDK_BLOBID_INVALID`
const NO_ID: Id = u64::MAX;

/// Everything that is compared.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct State {
    pub lvols: BTreeMap<Id, Lvol>,
    pub free_clusters: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lvol {
    pub alias: String,
    /// What it reads through, whatever the lists of clones say.
    pub parent: Id,
    pub clones: BTreeSet<Id>,
    pub size: u64,
    pub read_only: bool,
    pub thin: bool,
    /// Whether it is in the list of its parent's clones.
    pub clone: bool,
    pub external: bool,
    /// `None` if it could not be read, or was not.
    pub content: Option<Content>,
}

/// For each cluster what it is full of, -1 if that is not one byte, and whether the lvol owns it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    pub data: Vec<i64>,
    pub owned: Vec<bool>,
}

/// The lvols of an lvstore, without what is in them. The lvstore's name ends in `number`, which is left
/// out of what they are called.
pub fn list(client: &mut Client, number: &str) -> Result<State, Lost> {
    let answers =
        client.exchange(&[("sweep_list", Value::Null), ("bdev_lvol_get_lvstores", Value::Null)])?;
    let [Ok(lvols), Ok(stores)] = &answers[..] else {
        panic!("a list that has no parameters failed: {answers:?}");
    };
    let lvols = lvols.as_array().into_iter().flatten().filter_map(lvol);
    let lvols = lvols.filter_map(|(id, mut lvol)| {
        let (store, name) = lvol.alias.split_once('/')?;
        lvol.alias = format!("{}/{name}", store.strip_suffix(number)?);
        Some((id, lvol))
    });
    let is_it = |store: &&Value| store["name"].as_str().is_some_and(|name| name.ends_with(number));
    let store = stores.as_array().into_iter().flatten().find(is_it);
    let free_clusters = store.and_then(|store| store["free_clusters"].as_u64());
    Ok(State { lvols: lvols.collect(), free_clusters })
}

fn lvol(lvol: &Value) -> Option<(Id, Lvol)> {
    let is = |name: &str| lvol[name].as_bool();
    let clones = lvol["clones"].as_array()?;
    Some((
        lvol["id"].as_u64()?,
        Lvol {
            alias: lvol["alias"].as_str()?.to_owned(),
            parent: lvol["parent"].as_u64()?,
            clones: clones.iter().filter_map(Value::as_u64).collect(),
            size: lvol["size"].as_u64()?,
            read_only: is("read_only")?,
            thin: is("thin")?,
            clone: is("clone")?,
            external: is("external")?,
            content: None,
        },
    ))
}

/// The RPC that reads an lvol.
pub fn reading(alias: String) -> (&'static str, Value) {
    ("sweep_read", json!({"name": alias, "cluster_size": CLUSTER}))
}

impl State {
    /// Notes what `reading` has found, if it is an answer to that.
    pub fn note(&mut self, id: Id, read: &Answer) {
        let (Some(lvol), Ok(read)) = (self.lvols.get_mut(&id), read) else { return };
        if read.get("data").is_none() {
            return;
        }
        let array = |name: &str| read[name].as_array().cloned().unwrap_or_default();
        lvol.content = Some(Content {
            data: array("data").iter().filter_map(Value::as_i64).collect(),
            owned: array("owned").iter().filter_map(Value::as_bool).collect(),
        });
    }

    /// The lvol of this name in the lvstore.
    pub fn find(&self, name: &str) -> Option<Id> {
        let is_it = |lvol: &Lvol| lvol.alias.rsplit('/').next() == Some(name);
        self.lvols.iter().find(|(_, lvol)| is_it(lvol)).map(|(&id, _)| id)
    }

    /// Whether an lvol has a parent in the store.
    pub fn has_parent(&self, id: Id) -> bool {
        self.lvols.get(&id).is_some_and(|lvol| lvol.parent != NO_ID && !lvol.external)
    }

    /// The lvol and all that read through it.
    pub fn with_descendants(&self, id: Id) -> BTreeSet<Id> {
        let mut all = BTreeSet::from([id]);
        loop {
            let before = all.len();
            let more = self.lvols.iter().filter(|(_, lvol)| all.contains(&lvol.parent));
            let more: Vec<_> = more.map(|(&id, _)| id).collect();
            all.extend(more);
            if all.len() == before {
                return all;
            }
        }
    }

    /// What must be there when an lvol of this state has been detached.
    pub fn without_parent_of(&self, detached: Id) -> State {
        let mut state = self.clone();
        let Some(lvol) = state.lvols.get_mut(&detached) else { return state };
        lvol.parent = NO_ID;
        lvol.clone = false;
        for lvol in state.lvols.values_mut() {
            lvol.clones.remove(&detached);
        }
        for &id in self.lvols.keys() {
            if let Some(content) = self.content_without(id, detached, &mut BTreeSet::new()) {
                let lvol = state.lvols.get_mut(&id).expect("it is a copy");
                lvol.content = content;
            }
        }
        state
    }

    /// What an lvol holds when `detached` has no parent; `None` if it doesn't read through that.
    fn content_without(
        &self,
        id: Id,
        detached: Id,
        seen: &mut BTreeSet<Id>,
    ) -> Option<Option<Content>> {
        let lvol = self.lvols.get(&id)?;
        if !seen.insert(id) {
            return None;
        }
        let below: Vec<i64> = if id == detached {
            Vec::new()
        } else {
            match self.content_without(lvol.parent, detached, seen)? {
                Some(content) => content.data,
                None => return Some(None),
            }
        };
        let Some(mut content) = lvol.content.clone() else { return Some(None) };
        for (cluster, owned) in content.owned.iter().enumerate() {
            if !owned {
                content.data[cluster] = below.get(cluster).copied().unwrap_or(0);
            }
        }
        Some(Some(content))
    }

    /// What differs, as a sentence, but for what was not read; `None` if nothing does.
    pub fn difference(&self, expected: &State) -> Option<String> {
        let mut text = String::new();
        let names: BTreeSet<_> = self.lvols.keys().chain(expected.lvols.keys()).collect();
        for id in names {
            match (self.lvols.get(id), expected.lvols.get(id)) {
                (Some(found), Some(expected)) => found.describe(expected, &mut text),
                (Some(found), None) => drop(write!(text, "{} is there; ", found.alias)),
                (None, Some(expected)) => drop(write!(text, "{} is gone; ", expected.alias)),
                (None, None) => {}
            }
        }
        if self.free_clusters != expected.free_clusters {
            let (found, expected) = (self.free_clusters, expected.free_clusters);
            let _ = write!(text, "{found:?} clusters are free, expected {expected:?}; ");
        }
        (!text.is_empty()).then_some(text)
    }
}

impl Lvol {
    fn describe(&self, expected: &Lvol, text: &mut String) {
        let alias = &self.alias;
        let known = |lvol: &Lvol| Lvol { content: None, ..lvol.clone() };
        if known(self) != known(expected) {
            let _ = write!(text, "{alias}: {:?}, expected {:?}; ", known(self), known(expected));
        }
        if let (Some(found), Some(expected)) = (&self.content, &expected.content)
            && found != expected
        {
            let clusters = found.data.len().max(expected.data.len());
            for cluster in 0..clusters {
                let of = |content: &Content| {
                    (content.data.get(cluster).copied(), content.owned.get(cluster).copied())
                };
                if of(found) != of(expected) {
                    let (found, expected) = (of(found), of(expected));
                    let _ = write!(
                        text,
                        "{alias} cluster {cluster}: {found:x?}, expected {expected:x?}; "
                    );
                }
            }
        }
    }
}
