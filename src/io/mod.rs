//! The I/O that goes on meanwhile: what a blob reads through, and when nobody is in the middle of it.

pub mod backing;
pub mod channel;
pub mod grace;
