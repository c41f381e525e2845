//! What the integration tests share: a real target of their own, its JSON-RPC, lvstores on files,
//! and an outside client that reads and writes the data.
//!
//! Helpers that must succeed panic with a sentence that says what failed, at the caller's line.

// Each test crate is built with its own copy and uses a part of it.
#![allow(dead_code)]

pub mod chain;
pub mod iostat;
pub mod iscsi;
pub mod lvol;
pub mod lvstore;
pub mod metadata;
pub mod preload;
pub mod rpc;
pub mod target;
pub mod tree;
pub mod trouble;
