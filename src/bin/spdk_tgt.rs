//! SPDK's own target with the extension linked in, for SPDK trees without shared libraries. Its `main`
//! is the tree's `app/spdk_tgt/spdk_tgt.c`, which `build.rs` compiles and links.

#![no_main]

use spdk_lvol_detach as _;
