//! Makes the bindings from the SPDK tree that `SPDK_ROOT_DIR` names.

use std::env;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::exit;

const FUNCTIONS: &[&str] = &[
    "spdk_(bs|blob|lvs|lvol)_.*",
    "spdk_bdev_(for_each_bdev_io|for_each_channel|for_each_channel_continue|open_ext|get_by_name|close|desc_get_bdev|get_name|get_module_name|get_num_blocks)",
    "spdk_bdev_(get_qos_rate_limits|get_qos_rpc_type)",
    "spdk_spin_(lock|unlock)",
    "spdk_bdev_(dump_info_json|flush_blocks|free_io|io_get_nvme_status|io_type_supported|nvme_io_passthru)",
    "spdk_env_(opts_init|init|fini|get_current_core|get_first_core|get_next_core)",
    "spdk_dma_(zmalloc|free)",
    "spdk_json_(decode_bool|decode_object|decode_string)",
    "spdk_json_(find|find_string|parse|strdup)",
    "spdk_json_write_(array_begin|array_end|begin|end|object_begin|object_end)",
    "spdk_json_write_(bool|int32|name_raw|null|string_raw|uint64)",
    "spdk_jsonrpc_send_(bool|error)_response",
    "spdk_jsonrpc_(begin|end)_result",
    "spdk_rpc_(register_method|get_method_state_mask)",
    "spdk_log.*",
    "spdk_subsystem_(init|fini)_next",
    "spdk_thread_(lib_init|lib_fini|create|destroy|exit|is_exited|poll|send_msg)",
    "spdk_[gs]et_thread",
    "spdk_unaffinitize_thread",
    "spdk_bit_array_(count_set|find_first_set|get)",
    "spdk_crc32c_update",
    "spdk_io_device_(un)?register",
    "spdk_(get|put)_io_channel",
    "spdk_for_each_channel(_continue)?",
    "spdk_io_channel_iter_get_(channel|ctx)",
    "spdk_poller_(un)?register",
    // What only the examples need.
    "spdk_app_(opts_init|start|stop|fini)",
    // What only the load generator of the tests needs.
    "spdk_bdev_(get_block_size|get_io_channel)",
    "spdk_bdev_(readv|writev|unmap|write_zeroes)_blocks",
    "spdk_cpuset_(alloc|free|set_cpu)",
    "spdk_json_write_(val|val_raw)",
];
const TYPES: &[&str] = &[
    "spdk_blob",
    "spdk_blob_bs_dev",
    "spdk_blob_list",
    "spdk_blob_md_descriptor",
    "spdk_blob_md_descriptor_flags",
    "spdk_blob_md_page",
    "spdk_blob_store",
    "spdk_bs_channel",
    "spdk_bs_dev.*",
    "spdk_bs_request_set",
    "spdk_lvol",
    "spdk_lvol_store",
    "spdk_xattr",
    "spdk_json_.*",
    "spdk_log_(flag|level)",
];
const CONSTANTS: &[&str] = &[
    "BLOB_SNAPSHOT",
    "SPDK_BDEV_IO_TYPE_(FLUSH|NVME_IO|UNMAP)",
    "SPDK_BDEV_(CLAIM_NONE|QOS_NUM_RATE_LIMIT_TYPES)",
    "SPDK_BLOB_BLOBID_HIGH_BIT",
    "SPDK_BLOB_(EXTENT_TABLE|INTERNAL_XATTR|THIN_PROV)",
    "SPDK_IO_CHANNEL_STRUCT_SIZE",
    "SPDK_MD_DESCRIPTOR_TYPE_.*",
    "LVOL_CLEAR_.*",
    "SPDK_JSON_PARSE_FLAG_DECODE_IN_PLACE",
    "SPDK_JSONRPC_ERROR_.*",
    "SPDK_RPC_RUNTIME",
    "SPDK_VERSION_.*",
];

/// The first release that is known to work, and the last.
const KNOWN: [Release; 2] = [Release(24, 1), Release(26, 5)];

/// Year and month.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Release(u32, u32);

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02}", self.0, self.1)
    }
}

fn fail(reason: &str) -> ! {
    fail_with(&format!(
        "{reason}. Set SPDK_ROOT_DIR to an SPDK source tree in which ./configure and make have run, \
         or run `make`, which gets and builds one."
    ));
}

fn fail_with(sentence: &str) -> ! {
    eprintln!("{sentence}");
    exit(1);
}

fn spdk_root() -> PathBuf {
    println!("cargo::rerun-if-env-changed=SPDK_ROOT_DIR");
    let Some(root) = env::var_os("SPDK_ROOT_DIR").filter(|root| !root.is_empty()) else {
        fail("SPDK_ROOT_DIR is not set");
    };
    let Ok(root) = Path::new(&root).canonicalize() else {
        fail(&format!("SPDK_ROOT_DIR={} does not exist", root.display()));
    };
    if !root.join("lib/blob/blobstore.h").exists() {
        fail(&format!("{} is not an SPDK source tree", root.display()));
    }
    if !root.join("build/lib/pkgconfig/spdk_blob.pc").exists() {
        fail(&format!("the SPDK tree {} is not built", root.display()));
    }
    root
}

fn release(root: &Path) -> Release {
    let header = root.join("include/spdk/version.h");
    println!("cargo::rerun-if-changed={}", header.display());
    let text = fs::read_to_string(&header).unwrap_or_default();
    let number = |name| {
        let mut defines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        defines.find_map(|words| match words[..] {
            ["#define", define, number, ..] if define == name => number.parse().ok(),
            _ => None,
        })
    };
    match (number("SPDK_VERSION_MAJOR"), number("SPDK_VERSION_MINOR")) {
        (Some(major), Some(minor)) => Release(major, minor),
        _ => fail(&format!("{} says no version", header.display())),
    }
}

/// A release that nobody has tried may compile and do something else.
fn refuse_unknown(root: &Path) {
    const TRY_ANYWAY: &str = "LVOL_DETACH_ANY_SPDK";
    println!("cargo::rerun-if-env-changed={TRY_ANYWAY}");
    let release = release(root);
    let [first, last] = KNOWN;
    if !(first..=last).contains(&release) && env::var_os(TRY_ANYWAY).is_none() {
        fail_with(&format!(
            "{} is SPDK {release}, but only {first} to {last} are known to work: to try anyway, set \
             {TRY_ANYWAY}=1, and what doesn't fit is found when the library is built or the target \
             starts.",
            root.display()
        ));
    }
}

fn main() {
    let root = spdk_root();
    refuse_unknown(&root);
    println!("cargo::rerun-if-changed={}", root.join("build/lib/pkgconfig/spdk_blob.pc").display());
    // Handed to build.rs of the crates that depend on this one, as DEP_SPDK_ROOT.
    println!("cargo::metadata=root={}", root.display());
    // With compat.h, as DEP_SPDK_INCLUDE.
    println!("cargo::metadata=include={}", env!("CARGO_MANIFEST_DIR"));

    let mut builder = bindgen::Builder::default()
        .header("wrapper.h")
        // Each header that is read, wherever it is, is one that the bindings depend on.
        .parse_callbacks(Box::new(bindgen::CargoCallbacks::new()))
        .clang_args(
            ["include", "lib/blob", "module/bdev/lvol"]
                .map(|dir| format!("-I{}", root.join(dir).display())),
        )
        .default_enum_style(bindgen::EnumVariation::Consts)
        .prepend_enum_name(false)
        .derive_default(true)
        .generate_comments(false)
        // Holds unions of packed and aligned structs, which Rust can't lay out; nobody looks inside.
        .opaque_type("spdk_bdev_io")
        .opaque_type("spdk_nvme_.*");
    for name in FUNCTIONS {
        builder = builder.allowlist_function(name);
    }
    for name in TYPES {
        builder = builder.allowlist_type(name);
    }
    for name in CONSTANTS {
        builder = builder.allowlist_var(name);
    }
    let bindings = builder
        .generate()
        .unwrap_or_else(|error| fail(&format!("bindgen could not read SPDK's headers: {error}")));
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("bindings.rs");
    if let Err(error) = bindings.write_to_file(&out) {
        fail(&format!("could not write {}: {error}", out.display()));
    }
    // As DEP_SPDK_BINDINGS.
    println!("cargo::metadata=bindings={}", out.display());
}
