//! Compiles the C shim, and links the target with the extension inside, the tests and the examples with SPDK.
//!
//! The library that is preloaded links nothing of SPDK: it has stubs, behind which `c_shim/shim.c` puts
//! what it finds in the target.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

fn main() {
    let root = PathBuf::from(env::var_os("DEP_SPDK_ROOT").unwrap_or_default());
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());

    tell_tests(&root);
    compile(&root, Path::new("c_shim/shim.c"), "lvol_detach_shim");
    println!("cargo::rustc-link-search=native={}", out.display());
    // Nothing refers to the constructors, so the linker has to be told to keep them.
    println!("cargo::rustc-link-lib=static:+whole-archive=lvol_detach_shim");
    println!("cargo::rustc-cdylib-link-arg={}", stubs(&out).display());
    // What has no stub would keep every process but a target from starting.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,defs");
    // The name by which a program that is linked with it looks for it. If it is preloaded as well, it is
    // loaded once.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libspdk_lvol_detach.so");

    compile(&root, &root.join("app/spdk_tgt/spdk_tgt.c"), "spdk_tgt_main");
    println!("cargo::rustc-link-arg-bin=spdk_tgt={}", out.join("libspdk_tgt_main.a").display());
    // So that a library can be loaded into it as well, and finds SPDK there.
    println!("cargo::rustc-link-arg-bin=spdk_tgt=-Wl,--export-dynamic");
    for argument in spdk_tgt_link_arguments(&root) {
        println!("cargo::rustc-link-arg-bin=spdk_tgt={argument}");
        println!("cargo::rustc-link-arg-tests={argument}");
        println!("cargo::rustc-link-arg-examples={argument}");
    }
}

/// Which of this the tree has, for the tests: older releases lack some, and have faults that were
/// mended since. `docs/compatibility.md` says what follows from each.
fn tell_tests(root: &Path) {
    const BLOBSTORE: &str = "lib/blob/blobstore.c";
    for (cfg, file, text) in [
        ("spdk_asserts", "include/spdk/config.h", "#define SPDK_CONFIG_DEBUG 1"),
        ("spdk_md_page_size", "include/spdk/blob.h", "uint32_t md_page_size;"),
        ("spdk_env_opts_size", "include/spdk/env.h", "opts_size;"),
        ("spdk_blob_set_parent", "include/spdk/blob.h", "spdk_bs_blob_set_parent("),
        ("spdk_blob_counts_clusters", "lib/blob/blobstore.h", "num_allocated_clusters;"),
        ("spdk_unmap_frees_clusters", BLOBSTORE, "blob_free_cluster_on_md_thread("),
        // Without it, a clone's unmap of a whole cluster brings its parent's data back.
        ("spdk_unmap_spares_clones", BLOBSTORE, "blob_backed_with_zeroes_dev(blob) &&"),
        // Without it, an unmap leaves in an extent page what the page before it had.
        ("spdk_unmap_clears_pages", BLOBSTORE, "memset(ctx->page, 0, blob->bs->md_page_size);"),
        // Without it, of two cores that allocate a cluster at once, one frees data that the next
        // owner reads.
        ("spdk_clears_unused_copies", BLOBSTORE, "blob_insert_cluster_clear("),
        // Without it, a read of an lvol beyond the end of its parent fails.
        ("spdk_reads_beyond_parent", BLOBSTORE, "is_range_valid("),
        // Without it, an lvstore whose device fails is never unloaded.
        ("spdk_unloads_after_eio", BLOBSTORE, "bserrno != 0 && bserrno != -EIO"),
        // Without it, an lvol that was given an external snapshot doesn't copy from it on a write.
        ("spdk_marks_esnap_parent", BLOBSTORE, "EXTERNAL_SNAPSHOT;\n\tblob->parent_id ="),
    ] {
        println!("cargo::rustc-check-cfg=cfg({cfg})");
        watch(&root.join(file));
        let source = fs::read_to_string(root.join(file)).unwrap_or_default();
        if source.contains(text) {
            println!("cargo::rustc-cfg={cfg}");
        }
    }
    // Without them nothing can be loaded into the stock target.
    println!("cargo::rustc-check-cfg=cfg(spdk_shared_libraries)");
    if root.join("build/lib/libspdk_blob.so").exists() {
        println!("cargo::rustc-cfg=spdk_shared_libraries");
    }
}

/// Whatever is made from this file or folder is made again when it has changed. (What doesn't exist
/// counts as changed, each time.)
fn watch(path: &Path) {
    if path.exists() {
        println!("cargo::rerun-if-changed={}", path.display());
    }
}

fn compile(root: &Path, file: &Path, name: &str) {
    watch(file);
    watch(&root.join("include"));
    cc::Build::new()
        .file(file)
        .include(root.join("include"))
        .include(env::var_os("DEP_SPDK_INCLUDE").unwrap_or_default())
        .flag("-std=gnu11")
        .define("_GNU_SOURCE", None)
        .warnings(false)
        .cargo_metadata(false)
        .compile(name);
}

/// A library with a stub for each function that the bindings declare, and those that the shim calls.
/// Each is in an object of its own, of which the linker takes those that are called.
///
/// A stub jumps to the address in its entry of the section `lvol_detach_needs`, and changes nothing
/// else: it is the function, whatever its parameters. Nobody may compare its address, which isn't the
/// function's own.
fn stubs(out: &Path) -> PathBuf {
    const SHIM: [&str; 3] =
        ["spdk_add_subsystem", "spdk_add_subsystem_depend", "spdk_log_register_flag"];
    let jump = match env::var("CARGO_CFG_TARGET_ARCH").as_deref() {
        Ok("x86_64") => "endbr64\n\tjmp *2f(%rip)",
        Ok("aarch64") => "hint #34\n\tadrp x16, 2f\n\tldr x16, [x16, :lo12:2f]\n\tbr x16",
        arch => fail(&format!("there are no stubs for the processor {}", arch.unwrap_or_default())),
    };
    let folder = out.join("stubs");
    if let Err(error) = fs::create_dir_all(&folder) {
        fail(&format!("could not make {}: {error}", folder.display()));
    }
    let bindings = env::var_os("DEP_SPDK_BINDINGS").unwrap_or_default();
    let bindings = fs::read_to_string(&bindings).unwrap_or_else(|error| {
        fail(&format!("could not read {}: {error}", Path::new(&bindings).display()))
    });
    let declared = bindings
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("pub fn spdk_")?.split_once('('))
        .map(|(name, _)| format!("spdk_{name}"));
    let mut names: Vec<_> = declared.chain(SHIM.map(str::to_owned)).collect();
    names.sort();
    names.dedup();
    let mut build = cc::Build::new();
    for name in names {
        let file = folder.join(&name).with_extension("s");
        let stub = format!(
            "\t.text\n\t.globl {name}\n\t.hidden {name}\n\t.type {name}, %function\n\
             {name}:\n\t{jump}\n\t.size {name}, . - {name}\n\
             \t.section lvol_detach_needs, \"aw\", %progbits\n\t.balign 8\n\
             \t.quad 1f\n2:\t.quad 0\n\
             \t.section .rodata.str1.1, \"aMS\", %progbits, 1\n1:\t.asciz \"{name}\"\n\
             \t.section .note.GNU-stack, \"\", %progbits\n"
        );
        if let Err(error) = fs::write(&file, stub) {
            fail(&format!("could not write {}: {error}", file.display()));
        }
        build.file(file);
    }
    build.cargo_metadata(false).compile("lvol_detach_stubs");
    out.join("liblvol_detach_stubs.a")
}

/// What the tree's own `spdk_tgt` is linked with if it is linked statically: every subsystem and
/// module that the tree was built with. Its Makefile is asked for the variables, as nobody else
/// knows. (A dry run of the link would not do: SPDK's recipe runs even then.)
fn spdk_tgt_link_arguments(root: &Path) -> Vec<String> {
    watch(&root.join("mk"));
    watch(&root.join("app/spdk_tgt/Makefile"));
    const SHOW: &str = "include Makefile\n\
        lvol_detach_link:\n\t@echo $(LDFLAGS) $(LIBS) $(ENV_LDFLAGS) $(SYS_LIBS)\n";
    let makefile = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("link.mk");
    if let Err(error) = fs::write(&makefile, SHOW) {
        fail(&format!("could not write {}: {error}", makefile.display()));
    }
    let output = Command::new("make")
        .args(["--silent", "--no-print-directory", "CONFIG_SHARED=n", "lvol_detach_link", "-C"])
        .arg(root.join("app/spdk_tgt"))
        .arg("-f")
        .arg(&makefile)
        .env_remove("MAKEFLAGS")
        .env_remove("MAKELEVEL")
        .output();
    let output = output.unwrap_or_else(|error| fail(&format!("could not run make: {error}")));
    let shown = String::from_utf8_lossy(&output.stdout);
    let arguments: Vec<String> = shown
        .split_whitespace()
        // How to link is rustc's own business.
        .filter(|argument| {
            !["-fuse-ld=", "-flto", "-fno-lto", "-pie", "-no-pie", "-Wl,-z,"]
                .iter()
                .any(|prefix| argument.starts_with(prefix))
        })
        .flat_map(|argument| match argument.strip_prefix("-lspdk_") {
            // A shared library of that name, if there is one, would win.
            Some(name) => vec![format!("{}/build/lib/libspdk_{name}.a", root.display())],
            None if argument == "-fsanitize=address" => address_sanitizer(),
            None => vec![argument.to_owned()],
        })
        .collect();
    if !arguments.iter().any(|argument| argument.ends_with("libspdk_event.a")) {
        fail(&format!(
            "could not find out what spdk_tgt is linked with: the Makefile in {} does not say. {}",
            root.join("app/spdk_tgt").display(),
            String::from_utf8_lossy(&output.stderr)
        ));
    }
    watch_libraries(&arguments);
    arguments
}

/// After a fix in one of SPDK's libraries the target is linked again.
fn watch_libraries(arguments: &[String]) {
    let folders = || arguments.iter().filter_map(|argument| argument.strip_prefix("-L"));
    for argument in arguments {
        match argument.strip_prefix("-l") {
            Some(name) => folders().for_each(|folder| {
                watch(&Path::new(folder).join(format!("lib{name}.a")));
                watch(&Path::new(folder).join(format!("lib{name}.so")));
            }),
            None if argument.starts_with('/') => watch(Path::new(argument)),
            None => {}
        }
    }
}

/// The sanitizer as a static library: rustc links without the compiler's default libraries, and puts
/// libc before what is given here, which the shared one does not bear.
fn address_sanitizer() -> Vec<String> {
    let library = Command::new("cc").arg("-print-file-name=libasan.a").output();
    match library {
        Ok(output) => {
            let path = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            [
                "-Wl,--whole-archive",
                &path,
                "-Wl,--no-whole-archive",
                "-Wl,--export-dynamic",
                "-lstdc++",
            ]
            .map(str::to_owned)
            .to_vec()
        }
        Err(error) => fail(&format!("could not run cc: {error}")),
    }
}

fn fail(reason: &str) -> ! {
    eprintln!("{reason}");
    exit(1);
}
