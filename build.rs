//! Compiles the C shim, and tells the tests how to link SPDK.
//!
//! The extension itself links nothing of SPDK: it is loaded into a target that has it.

use std::env;
use std::path::PathBuf;
use std::process::exit;

fn main() {
    let root = PathBuf::from(env::var_os("DEP_SPDK_ROOT").unwrap_or_default());
    println!("cargo::rerun-if-changed=c_shim/shim.c");
    cc::Build::new()
        .file("c_shim/shim.c")
        .include(root.join("include"))
        .flag("-std=gnu11")
        .warnings_into_errors(true)
        .cargo_metadata(false)
        .compile("lvol_detach_shim");
    // Nothing refers to the constructors, so the linker has to be told to keep them.
    println!(
        "cargo::rustc-link-search=native={}",
        PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).display()
    );
    println!("cargo::rustc-link-lib=static:+whole-archive=lvol_detach_shim");

    link_tests_with_spdk(&root);
}

fn link_tests_with_spdk(root: &std::path::Path) {
    let pkgconfig = root.join("build/lib/pkgconfig");
    // SAFETY: a build script has one thread at this point.
    unsafe { env::set_var("PKG_CONFIG_PATH", &pkgconfig) };
    // All of them, so that what one needs of another is there already when it is loaded.
    println!("cargo::rustc-link-arg-tests=-Wl,--no-as-needed");
    for package in ["spdk_event", "spdk_bdev", "spdk_lvol", "spdk_env_dpdk", "spdk_syslibs"] {
        let library = pkg_config::Config::new()
            .cargo_metadata(false)
            .env_metadata(false)
            .probe(package)
            .unwrap_or_else(|error| {
                eprintln!("{error}");
                exit(1)
            });
        for path in &library.link_paths {
            println!("cargo::rustc-link-arg-tests=-Wl,-rpath,{0}", path.display());
            println!("cargo::rustc-link-arg-tests=-L{0}", path.display());
        }
        for name in &library.libs {
            println!("cargo::rustc-link-arg-tests=-l{name}");
        }
    }
    // SPDK's libraries leave it to the program to link some of what they need, OpenSSL for one.
    println!("cargo::rustc-link-arg-tests=-Wl,--allow-shlib-undefined");
    let dpdk = root.join("dpdk/build/lib");
    println!("cargo::rustc-link-arg-tests=-Wl,-rpath,{0},-rpath-link,{0}", dpdk.display());
}
