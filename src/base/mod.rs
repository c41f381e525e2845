//! The foundation for all other modules.

pub mod batch;
pub mod error;
pub mod json;
pub mod log;
pub mod steps;
pub mod tailq;
pub mod task;
