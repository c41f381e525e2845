//! Who reads through whom: lvols, their blobs, and the family of one.

pub mod ancestry;
pub mod blob;
pub mod clusters;
pub mod family;
pub mod lineage;
pub mod lvol;
pub mod usage;
