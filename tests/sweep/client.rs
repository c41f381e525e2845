//! A target that may crash or hang, which is then an answer and not the end of the test.

use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::rpc::request;
use crate::common::target::{Options, Program, SMALL_POOLS};

/// Only a target that hangs takes so long to start.
const PATIENCE: Duration = Duration::from_secs(60);
/// Who has not answered by then hangs: an operation of SPDK's, and what a detach must not disturb.
pub const HANGS_AFTER: Duration = Duration::from_secs(10);
/// The same for what may well hang by SPDK's fault.
pub const IS_LEFT_OUT_AFTER: Duration = Duration::from_secs(2);

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lost {
    Crash,
    Hang,
}

/// The answer to an RPC: its result, or its error's code and text.
pub type Answer = Result<Value, (i64, String)>;

pub type Call = (&'static str, Value);

/// A target with the helper `sweep.c`, which is killed when this is dropped.
pub struct Client {
    folder: PathBuf,
    program: Program,
    options: Options,
    process: Option<Child>,
    connection: Option<UnixStream>,
    /// How often a target was started.
    pub starts: usize,
}

impl Client {
    /// None is started yet.
    pub fn new(folder: &Path, helper: &Path) -> Client {
        Client {
            folder: folder.to_owned(),
            program: Program::With(vec![helper.to_owned()]),
            options: Options::default(),
            process: None,
            connection: None,
            starts: 0,
        }
    }

    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// Kills the target, if there is one.
    pub fn kill(&mut self) {
        self.connection = None;
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Starts a target, unless one runs.
    pub fn start(&mut self) {
        if self.is_running() {
            return;
        }
        self.starts += 1;
        let socket = self.folder.join("rpc.sock");
        let _ = std::fs::remove_file(&socket);
        let log = File::create(self.log()).expect("the target's log can be made");
        let mut command = self.program.command();
        command
            .args(["--no-huge", "-s", "256", "--no-pci", "--disable-cpumask-locks"])
            .args(["--num-trace-entries", "0", "-c", SMALL_POOLS])
            .args(["-m", &self.options.core_mask, "-r"])
            .arg(&socket)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file can be shared"))
            .stderr(log);
        // SAFETY: both may be called between fork and exec, and touch no memory of ours.
        unsafe {
            // A target doesn't outlive the thread that started it.
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                // It may well crash, again and again.
                libc::setrlimit(libc::RLIMIT_CORE, &libc::rlimit { rlim_cur: 0, rlim_max: 0 });
                Ok(())
            });
        }
        self.process = Some(command.spawn().expect("the target can be started"));
        let started = Instant::now();
        let connection = loop {
            if let Ok(connection) = UnixStream::connect(&socket) {
                break connection;
            }
            assert!(started.elapsed() < PATIENCE, "the target does not start: {}", self.log_tail());
            thread::sleep(Duration::from_millis(10));
        };
        self.connection = Some(connection);
        let answer = self.exchange_within(&[("framework_wait_init", Value::Null)], PATIENCE);
        let is_done = answer.is_ok_and(|answers| answers[0].is_ok());
        assert!(is_done, "the target does not start: {}", self.log_tail());
    }

    fn log(&self) -> PathBuf {
        self.folder.join("target.log")
    }

    /// The end of the log of the target that was started last.
    pub fn log_tail(&self) -> String {
        let log = std::fs::read(self.log()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(25)..].join("\n")
    }

    /// One RPC. A target that crashes or hangs is ended.
    pub fn call(&mut self, method: &'static str, params: Value) -> Result<Answer, Lost> {
        let mut answers = self.exchange(&[(method, params)])?;
        Ok(answers.remove(0))
    }

    /// One RPC, which may take so long.
    pub fn call_within(
        &mut self,
        (method, params): Call,
        patience: Duration,
    ) -> Result<Answer, Lost> {
        let mut answers = self.exchange_within(&[(method, params)], patience)?;
        Ok(answers.remove(0))
    }

    /// Several RPCs, which the target starts one after the other without waiting for the answers.
    pub fn exchange(&mut self, calls: &[Call]) -> Result<Vec<Answer>, Lost> {
        self.exchange_within(calls, HANGS_AFTER)
    }

    fn exchange_within(&mut self, calls: &[Call], patience: Duration) -> Result<Vec<Answer>, Lost> {
        let connection = self.connection.as_mut().expect("a target runs");
        let answers = exchange(connection, calls, patience);
        if answers.is_err() {
            self.kill();
        }
        answers
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.kill();
    }
}

fn exchange(
    connection: &mut UnixStream,
    calls: &[Call],
    patience: Duration,
) -> Result<Vec<Answer>, Lost> {
    let deadline = Instant::now() + patience;
    let requests: Vec<Value> =
        calls.iter().map(|(method, params)| request(method, params.clone())).collect();
    let text: String = requests.iter().map(|request| format!("{request}\n")).collect();
    connection.write_all(text.as_bytes()).map_err(|_| Lost::Crash)?;
    let mut received = Vec::new();
    let mut answers = HashMap::new();
    let mut buffer = [0; 1 << 16];
    while answers.len() < calls.len() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Lost::Hang);
        }
        connection.set_read_timeout(Some(left)).expect("a time to wait can be set");
        match connection.read(&mut buffer) {
            Ok(0) => return Err(Lost::Crash),
            Ok(read) => received.extend_from_slice(&buffer[..read]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Err(Lost::Hang);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return Err(Lost::Crash),
        }
        while let Some(end) = received.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = received.drain(..=end).collect();
            let answer: Value = serde_json::from_slice(&line).expect("the target sends JSON");
            let result = match answer.get("error") {
                None => Ok(answer["result"].clone()),
                Some(error) => Err((
                    error["code"].as_i64().unwrap_or_default(),
                    error["message"].as_str().unwrap_or_default().to_owned(),
                )),
            };
            answers.insert(answer["id"].as_u64(), result);
        }
    }
    Ok(requests
        .iter()
        .map(|request| answers.remove(&request["id"].as_u64()).expect("it was answered"))
        .collect())
}

/// The RPC that makes writes fail.
pub fn arm(first: u64, count: u64) -> Call {
    ("sweep_arm", json!({"first": first, "count": count}))
}

/// The RPC that lets them work again, and returns how many there were.
pub fn disarm() -> Call {
    ("sweep_disarm", Value::Null)
}
