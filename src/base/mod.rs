//! What everything stands on.

pub mod error;
pub mod log;
pub mod steps;
pub mod tailq;
pub mod task;
