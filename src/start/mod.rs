//! What happens once, when the target starts: verifying that it is the SPDK that this was built for.

pub mod guard;
pub mod memory_dev;
pub mod ready;
pub mod scratch;
pub mod subsystem;
pub mod version;
