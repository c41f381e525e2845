//! Who reads through whom: lvols, their blobs, and the family of one.

pub mod blob;
pub mod family;
pub mod lineage;
pub mod lvol;
