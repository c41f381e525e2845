//! Every error code that the sources can return is in the documents and in the plugin's help.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The codes in the Rust sources, by name.
fn codes(folder: &Path, codes: &mut BTreeMap<String, i32>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            self::codes(&path, codes);
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for rest in text.split("libc::E").skip(1) {
            let end = rest.find(|c: char| !c.is_ascii_uppercase()).unwrap_or(rest.len());
            let name = format!("E{}", &rest[..end]);
            let code = number(&name);
            codes.insert(name, code);
        }
        if text.contains("SPDK_JSONRPC_ERROR_INVALID_PARAMS") {
            codes.insert("INVALID_PARAMS".to_owned(), -32602);
        }
    }
}

fn number(name: &str) -> i32 {
    -match name {
        "EBUSY" => libc::EBUSY,
        "ECANCELED" => libc::ECANCELED,
        "EILSEQ" => libc::EILSEQ,
        "EINVAL" => libc::EINVAL,
        "EIO" => libc::EIO,
        "ENODEV" => libc::ENODEV,
        "ENOMEM" => libc::ENOMEM,
        "ENOTRECOVERABLE" => libc::ENOTRECOVERABLE,
        "ENOTSUP" => libc::ENOTSUP,
        "EPERM" => libc::EPERM,
        "ESHUTDOWN" => libc::ESHUTDOWN,
        "EUCLEAN" => libc::EUCLEAN,
        _ => panic!("{name} is new: say its number here, and what it means in the documents"),
    }
}

#[test]
fn every_code_is_explained() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut codes = BTreeMap::new();
    self::codes(&root.join("src"), &mut codes);
    assert!(codes.len() >= 12, "{codes:?}");
    let read = |file: &str| fs::read_to_string(root.join(file)).unwrap();
    let (table, troubleshooting) = (read("docs/jsonrpc.md"), read("docs/troubleshooting.md"));
    let plugin = read("python/spdk_lvol_detach.py");
    for (name, code) in codes {
        assert!(table.contains(&format!("\n{code} ")), "{name} ({code}): docs/jsonrpc.md");
        let heading = format!("` ({code})");
        assert!(troubleshooting.contains(&heading), "{name} ({code}): docs/troubleshooting.md");
        assert!(plugin.contains(&format!("\n  {code} ")), "{name} ({code}): the plugin's help");
    }
}
