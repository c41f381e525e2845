//! The I/O in flight: what a blob reads through, and when no thread is in the middle of using it.

pub mod backing;
pub mod channel;
pub mod grace;
pub mod in_flight;
