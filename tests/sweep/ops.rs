//! SPDK's operations, on one lvstore that has a chain of lvols.

use serde_json::json;

use crate::client::Call;

/// The size of an lvol.
pub const SIZE_MIB: u64 = 2;

/// What an operation is.
#[derive(Debug, Clone)]
pub enum Kind {
    /// An RPC.
    Rpc(Call),
    /// An RPC after the base bdev has become larger.
    Grow(Call),
    /// The lvstore is loaded: after a clean unload, or after a crash.
    Load { clean: bool },
    /// The lvstore is unloaded.
    Unload,
}

#[derive(Debug, Clone)]
pub struct Op {
    pub name: &'static str,
    pub kind: Kind,
    /// The lvols that are detached afterwards, each from an lvstore of its own.
    pub detached: &'static [&'static str],
}

/// What makes the chains, each step with the next one's lvols:
///
/// ```text
/// lvs/g <- lvs/p <- lvs/s <- lvs/vol
///                         <- lvs/twin
/// lvs/lone
/// ext <- lvs/es <- lvs/e
/// ```
pub fn set_up() -> Vec<Call> {
    let create = |name: &str| {
        let size = SIZE_MIB;
        let params = json!({"lvs_name": "lvs", "lvol_name": name, "size_in_mib": size, "thin_provision": true});
        ("bdev_lvol_create", params)
    };
    let write = |name: &str, cluster: u64, fill: u8| {
        let size = crate::state::CLUSTER;
        let params = json!({"name": name, "cluster": cluster, "fill": fill, "cluster_size": size});
        ("sweep_write", params)
    };
    vec![
        create("vol"),
        write("lvs/vol", 0, 0x10),
        write("lvs/vol", 1, 0x11),
        write("lvs/vol", 2, 0x12),
        snapshot("vol", "g"),
        write("lvs/vol", 1, 0x21),
        write("lvs/vol", 3, 0x23),
        snapshot("vol", "p"),
        write("lvs/vol", 2, 0x32),
        write("lvs/vol", 4, 0x34),
        snapshot("vol", "s"),
        write("lvs/vol", 4, 0x44),
        write("lvs/vol", 5, 0x45),
        clone("s", "twin"),
        write("lvs/twin", 6, 0x56),
        create("lone"),
        write("lvs/lone", 0, 0x60),
        clone_bdev("e"),
        write("lvs/e", 1, 0x71),
        snapshot("e", "es"),
        write("lvs/e", 2, 0x82),
    ]
}

fn snapshot(of: &str, name: &str) -> Call {
    ("bdev_lvol_snapshot", json!({"lvol_name": format!("lvs/{of}"), "snapshot_name": name}))
}

fn clone(of: &str, name: &str) -> Call {
    ("bdev_lvol_clone", json!({"snapshot_name": format!("lvs/{of}"), "clone_name": name}))
}

fn clone_bdev(name: &str) -> Call {
    ("bdev_lvol_clone_bdev", json!({"bdev": "ext", "lvs_name": "lvs", "clone_name": name}))
}

fn create(thin: bool) -> Call {
    let params = json!({"lvs_name": "lvs", "lvol_name": "new", "size_in_mib": SIZE_MIB, "thin_provision": thin});
    ("bdev_lvol_create", params)
}

fn on(method: &'static str, name: &str) -> Call {
    (method, json!({"name": format!("lvs/{name}")}))
}

fn resize(name: &str, size_in_mib: u64) -> Call {
    ("bdev_lvol_resize", json!({"name": format!("lvs/{name}"), "size_in_mib": size_in_mib}))
}

fn rename(name: &str) -> Call {
    let (old, new) = (format!("lvs/{name}"), "new");
    ("bdev_lvol_rename", json!({"old_name": old, "new_name": new}))
}

fn set_parent(name: &str, parent: &str) -> Call {
    let (lvol, parent) = (format!("lvs/{name}"), format!("lvs/{parent}"));
    ("bdev_lvol_set_parent", json!({"lvol_name": lvol, "parent_name": parent}))
}

fn set_parent_bdev(name: &str) -> Call {
    let lvol = format!("lvs/{name}");
    ("bdev_lvol_set_parent_bdev", json!({"lvol_name": lvol, "parent_name": "ext"}))
}

/// Every operation that touches the chain.
pub fn all() -> Vec<Op> {
    const CHAIN: &[&str] = &["p", "s", "vol", "twin", "new"];
    const EXTERNAL: &[&str] = &["e", "es", "new"];
    const LONE: &[&str] = &["lone", "new", "s"];
    const FEW: &[&str] = &["s", "vol"];
    let rpc = |name, call, detached| Op { name, kind: Kind::Rpc(call), detached };
    let mut ops = vec![
        rpc("create a thin lvol", create(true), FEW),
        rpc("create a thick lvol", create(false), FEW),
        rpc("clone s", clone("s", "new"), CHAIN),
        rpc("clone g", clone("g", "new"), CHAIN),
        rpc("clone a bdev", clone_bdev("new"), EXTERNAL),
        rpc("snapshot vol", snapshot("vol", "new"), CHAIN),
        rpc("snapshot lone", snapshot("lone", "new"), LONE),
        rpc("snapshot e", snapshot("e", "new"), EXTERNAL),
        rpc("delete vol", on("bdev_lvol_delete", "vol"), CHAIN),
        rpc("delete p", on("bdev_lvol_delete", "p"), CHAIN),
        rpc("delete g", on("bdev_lvol_delete", "g"), CHAIN),
        rpc("delete e", on("bdev_lvol_delete", "e"), EXTERNAL),
        rpc("delete es", on("bdev_lvol_delete", "es"), EXTERNAL),
        rpc("inflate vol", on("bdev_lvol_inflate", "vol"), FEW),
        rpc("inflate e", on("bdev_lvol_inflate", "e"), &["e"]),
        rpc("decouple vol", on("bdev_lvol_decouple_parent", "vol"), FEW),
        rpc("decouple s", on("bdev_lvol_decouple_parent", "s"), FEW),
        rpc("decouple e", on("bdev_lvol_decouple_parent", "e"), &["e"]),
        rpc("resize vol to more", resize("vol", SIZE_MIB + 1), CHAIN),
        rpc("resize vol to less", resize("vol", SIZE_MIB - 1), CHAIN),
        rpc("rename vol", rename("vol"), CHAIN),
        rpc("rename s", rename("s"), CHAIN),
        rpc(
            "rename the lvstore",
            ("bdev_lvol_rename_lvstore", json!({"old_name": "lvs", "new_name": "new-lvs"})),
            FEW,
        ),
        Op {
            name: "grow the lvstore",
            kind: Kind::Grow(("bdev_lvol_grow_lvstore", json!({"lvs_name": "lvs"}))),
            detached: FEW,
        },
        Op { name: "load", kind: Kind::Load { clean: true }, detached: FEW },
        Op { name: "load after a crash", kind: Kind::Load { clean: false }, detached: FEW },
        Op { name: "unload", kind: Kind::Unload, detached: FEW },
    ];
    if cfg!(spdk_blob_set_parent) {
        ops.extend([
            rpc("set vol's parent to g", set_parent("vol", "g"), CHAIN),
            rpc("set lone's parent to s", set_parent("lone", "s"), LONE),
            rpc("set p's parent to its clone s", set_parent("p", "s"), CHAIN),
            rpc("set lone's parent to a bdev", set_parent_bdev("lone"), LONE),
            rpc("set vol's parent to a bdev", set_parent_bdev("vol"), CHAIN),
        ]);
    }
    ops
}
