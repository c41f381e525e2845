//! Logical volumes. They are named by their aliases, `lvs/lvol`.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::target::Target;

/// What the target says of an lvol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lvol {
    pub uuid: String,
    pub aliases: Vec<String>,
    /// In bytes.
    pub size: u64,
    pub read_only: bool,
    pub thin_provision: bool,
    /// `None` in a release that does not tell.
    pub num_allocated_clusters: Option<u64>,
    pub snapshot: bool,
    pub clone: bool,
    /// The name of the snapshot that it is a clone of, without the lvstore's.
    pub parent: Option<String>,
    /// The names of its clones, sorted.
    pub clones: Vec<String>,
    pub esnap_clone: bool,
}

impl Lvol {
    /// `None` if the bdev is not an lvol.
    fn from_bdev(bdev: &Value) -> Option<Lvol> {
        let lvol = bdev["driver_specific"].get("lvol")?;
        let strings = |list: &Value| -> Vec<String> {
            let list = list.as_array().into_iter().flatten();
            list.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let mut clones = strings(&lvol["clones"]);
        clones.sort();
        Some(Lvol {
            uuid: bdev["uuid"].as_str()?.to_owned(),
            aliases: strings(&bdev["aliases"]),
            size: bdev["block_size"].as_u64()? * bdev["num_blocks"].as_u64()?,
            read_only: !bdev["supported_io_types"]["write"].as_bool()?,
            thin_provision: lvol["thin_provision"].as_bool()?,
            num_allocated_clusters: lvol["num_allocated_clusters"].as_u64(),
            snapshot: lvol["snapshot"].as_bool()?,
            clone: lvol["clone"].as_bool()?,
            parent: lvol["base_snapshot"].as_str().map(str::to_owned),
            clones,
            esnap_clone: lvol["esnap_clone"].as_bool()?,
        })
    }
}

fn split(alias: &str) -> (&str, &str) {
    let Some(names) = alias.split_once('/') else {
        panic!("{alias} is no alias of an lvol, `lvs/lvol`");
    };
    names
}

impl Target {
    /// What the target says of an lvol, which must be there.
    #[track_caller]
    pub fn lvol(&self, alias: &str) -> Lvol {
        let lvol = self.bdev(alias).as_ref().and_then(Lvol::from_bdev);
        lvol.unwrap_or_else(|| panic!("there is no lvol {alias}"))
    }

    /// All lvols, by alias.
    #[track_caller]
    pub fn lvols(&self) -> BTreeMap<String, Lvol> {
        let bdevs = self.must("bdev_get_bdevs", Value::Null);
        let lvols = bdevs.as_array().into_iter().flatten().filter_map(Lvol::from_bdev);
        lvols.map(|lvol| (lvol.aliases.join(" "), lvol)).collect()
    }

    #[track_caller]
    pub fn parent(&self, alias: &str) -> Option<String> {
        self.lvol(alias).parent
    }

    #[track_caller]
    pub fn expect_allocated(&self, alias: &str, clusters: u64) {
        if let Some(allocated) = self.lvol(alias).num_allocated_clusters {
            assert_eq!(allocated, clusters, "the clusters of {alias}");
        }
    }

    #[track_caller]
    pub fn create_thin(&self, alias: &str, size_mib: u64) {
        self.create_lvol(alias, size_mib, true);
    }

    #[track_caller]
    pub fn create_thick(&self, alias: &str, size_mib: u64) {
        self.create_lvol(alias, size_mib, false);
    }

    #[track_caller]
    fn create_lvol(&self, alias: &str, size_mib: u64, thin: bool) {
        let (lvstore, name) = split(alias);
        self.must(
            "bdev_lvol_create",
            json!({
                "lvs_name": lvstore, "lvol_name": name,
                "size_in_mib": size_mib, "thin_provision": thin,
            }),
        );
    }

    /// Makes a snapshot of an lvol, and that its clone.
    #[track_caller]
    pub fn snapshot(&self, alias: &str, snapshot: &str) {
        let (_, name) = split(snapshot);
        self.must("bdev_lvol_snapshot", json!({"lvol_name": alias, "snapshot_name": name}));
    }

    /// Makes a clone of a snapshot.
    #[track_caller]
    pub fn clone_of(&self, snapshot: &str, clone: &str) {
        let (_, name) = split(clone);
        self.must("bdev_lvol_clone", json!({"snapshot_name": snapshot, "clone_name": name}));
    }

    /// Makes a clone of a bdev outside the lvstore: of an external snapshot.
    #[track_caller]
    pub fn clone_of_bdev(&self, bdev: &str, clone: &str) {
        let (lvstore, name) = split(clone);
        self.must(
            "bdev_lvol_clone_bdev",
            json!({"bdev": bdev, "lvs_name": lvstore, "clone_name": name}),
        );
    }

    #[track_caller]
    pub fn delete(&self, alias: &str) {
        self.must("bdev_lvol_delete", json!({"name": alias}));
    }
}
