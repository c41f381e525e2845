//! Which lvol reads through which: lvols, their blobs, and the family of an lvol.

pub mod ancestry;
pub mod blob;
pub mod clusters;
pub mod family;
pub mod lineage;
pub mod lvol;
pub mod usage;
