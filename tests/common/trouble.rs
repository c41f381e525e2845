//! Operations of SPDK's that fail half-way, loads that take their time, and how large a target gets.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::rpc::{Pending, RpcResult};
use super::target::Target;

/// Longer than what a test does between two writes, however busy the machine is.
const BETWEEN_WRITES: Duration = Duration::from_millis(400);

/// Only a target that hangs takes so long.
const PATIENCE: Duration = Duration::from_secs(60);

impl Target {
    /// Makes a request whose `nth` write to the device of this lvstore fails, the first being 1. The
    /// lvstore must be one that can fail and be slow.
    ///
    /// Each write is held up after it was done, so that the next can be made to fail meanwhile.
    #[track_caller]
    pub fn call_with_failing_write(
        &self,
        lvstore: &str,
        nth: u64,
        method: &str,
        params: Value,
    ) -> RpcResult {
        let latency = u64::try_from(BETWEEN_WRITES.as_micros()).unwrap_or_default();
        let base = self.base_bdev(lvstore);
        let before = self.iostat(&base).writes;
        self.slow_down_writes(lvstore, latency);
        if nth == 1 {
            self.fail_writes(lvstore, 1);
        }
        let pending = self.start_call(method, params);
        let started = Instant::now();
        while self.iostat(&base).writes - before < nth - 1 {
            assert!(started.elapsed() < PATIENCE, "{method} has no write number {nth}");
            thread::sleep(Duration::from_millis(2));
        }
        if nth > 1 {
            self.fail_writes(lvstore, 1);
        }
        let answer = pending.wait();
        self.slow_down_writes(lvstore, 0);
        self.stop_failing(lvstore);
        answer
    }

    /// Starts a target that was stopped, while its one lvstore is slow to read. The lvstore is not
    /// there yet when this returns, but when the answer has come.
    #[track_caller]
    pub fn start_again_slowly(&mut self, read_latency_us: u64) -> Pending {
        let disks = std::mem::take(&mut self.disks);
        self.start_again();
        self.disks = disks;
        let [disk] = self.disks.as_slice() else {
            panic!("this test has {} lvstores", self.disks.len());
        };
        disk.start_to_attach(self, read_latency_us)
    }

    /// Its resident memory.
    #[track_caller]
    pub fn resident_mib(&self) -> u64 {
        let pid = self.pid().expect("the target runs");
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kib.expect("a process has resident memory") / 1024
    }

    /// A request that must be answered, and for which the target must not take more than `mib` more
    /// memory than it has.
    #[track_caller]
    pub fn call_within_memory(&self, method: &str, params: Value, mib: u64) -> RpcResult {
        let limit = self.resident_mib() + mib;
        let mut pending = self.start_call(method, params.clone());
        let started = Instant::now();
        while !pending.is_answered() {
            let resident = self.resident_mib();
            assert!(resident < limit, "for {method} {params} the target takes {resident} MiB");
            assert!(started.elapsed() < PATIENCE, "{method} {params} is not answered");
            thread::sleep(Duration::from_millis(2));
        }
        pending.wait()
    }
}
