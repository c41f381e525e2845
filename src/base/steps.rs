//! How long each step of a detach takes, for the log.

use std::fmt;
use std::time::{Duration, Instant};

/// A stopwatch.
#[derive(Debug)]
pub struct Steps {
    since: Instant,
    taken: Vec<(&'static str, Duration)>,
}

impl Steps {
    /// Starts the first step.
    pub fn start() -> Steps {
        Steps { since: Instant::now(), taken: Vec::new() }
    }

    /// Ends a step, and starts the next.
    pub fn done(&mut self, step: &'static str) {
        let now = Instant::now();
        self.taken.push((step, now - self.since));
        self.since = now;
    }
}

/// `open 5.1 us, write 32.0 us`
impl fmt::Display for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (step, taken)) in self.taken.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{step} {:.1} us", taken.as_secs_f64() * 1e6)?;
        }
        Ok(())
    }
}
