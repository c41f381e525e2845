//! What a bdev has been asked to do.

use std::ops::Sub;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::target::Target;

/// The device I/O of a bdev since it was made; the difference of two is what was done between.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Iostat {
    pub reads: u64,
    pub bytes_read: u64,
    pub writes: u64,
    pub bytes_written: u64,
    pub unmaps: u64,
    pub bytes_unmapped: u64,
}

impl Sub for Iostat {
    type Output = Iostat;

    fn sub(self, before: Iostat) -> Iostat {
        Iostat {
            reads: self.reads - before.reads,
            bytes_read: self.bytes_read - before.bytes_read,
            writes: self.writes - before.writes,
            bytes_written: self.bytes_written - before.bytes_written,
            unmaps: self.unmaps - before.unmaps,
            bytes_unmapped: self.bytes_unmapped - before.bytes_unmapped,
        }
    }
}

impl Target {
    #[track_caller]
    fn bdev_stat(&self, bdev: &str) -> Value {
        let stats = self.must("bdev_get_iostat", Value::Null);
        let bdevs = stats["bdevs"].as_array().expect("bdev_get_iostat lists bdevs");
        let Some(stat) = bdevs.iter().find(|stat| stat["name"] == bdev) else {
            panic!("bdev_get_iostat does not list {bdev}");
        };
        stat.clone()
    }

    /// Waits until the bdev has I/O in flight.
    #[track_caller]
    pub fn wait_for_io(&self, bdev: &str) {
        self.must("bdev_set_qd_sampling_period", json!({"name": bdev, "period": 1000}));
        let started = Instant::now();
        while self.bdev_stat(bdev)["queue_depth"].as_u64().unwrap_or_default() == 0 {
            assert!(started.elapsed() < Duration::from_secs(60), "{bdev} has no I/O in flight");
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[track_caller]
    pub fn iostat(&self, bdev: &str) -> Iostat {
        let stat = self.bdev_stat(bdev);
        let number = |name: &str| stat[name].as_u64().expect("bdev_get_iostat has numbers");
        Iostat {
            reads: number("num_read_ops"),
            bytes_read: number("bytes_read"),
            writes: number("num_write_ops"),
            bytes_written: number("bytes_written"),
            unmaps: number("num_unmap_ops"),
            bytes_unmapped: number("bytes_unmapped"),
        }
    }
}
