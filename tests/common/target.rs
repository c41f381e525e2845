//! A target process of the test's own.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::lvstore::Disk;
use super::preload::built;
use super::rpc::{Connection, Pending, Rpc, RpcResult, request};

/// Only a target that hangs takes so long to start or to stop.
const PATIENCE: Duration = Duration::from_secs(60);

/// SPDK's pools in an eighth of their size and less: with those that it has by default, most of the time of a
/// test is the kernel's, which clears and frees 900 MB for each target.
pub const SMALL_POOLS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/small_pools.json");

/// What to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// The launcher of this project: the stock target with the extension loaded.
    Launcher,
    /// What this file starts.
    At(PathBuf),
    /// The target with the extension and these libraries.
    With(Vec<PathBuf>),
    /// The stock target alone.
    Stock,
    /// The stock target with these libraries.
    StockWith(Vec<PathBuf>),
}

impl Program {
    /// The command without arguments.
    pub fn command(&self) -> Command {
        match self {
            Program::Launcher => {
                built(if is_static() { "spdk_tgt" } else { "libspdk_lvol_detach.so" });
                launcher()
            }
            Program::At(file) => Command::new(file),
            Program::Stock => stock_target(),
            // Not by the launcher: the libraries are for the target, not for a shell.
            Program::With(libraries) if is_static() => {
                preload(Command::new(built("spdk_tgt")), libraries)
            }
            Program::With(libraries) => {
                let extension = built("libspdk_lvol_detach.so");
                preload(stock_target(), &[&[extension], libraries.as_slice()].concat())
            }
            Program::StockWith(libraries) => preload(stock_target(), libraries),
        }
    }
}

/// How to start a target.
#[derive(Debug, Clone)]
pub struct Options {
    pub program: Program,
    /// SPDK's core mask. By default each target gets one CPU, and the next target the next CPU.
    pub core_mask: String,
    /// Arguments that follow the usual ones.
    pub arguments: Vec<String>,
    /// Variables beside those that the test has.
    pub environment: Vec<(OsString, OsString)>,
}

impl Default for Options {
    fn default() -> Options {
        static STARTED: AtomicUsize = AtomicUsize::new(0);
        let cpus = allowed_cpus();
        let cpu = cpus[STARTED.fetch_add(1, Ordering::Relaxed) % cpus.len()];
        Options {
            program: Program::Launcher,
            core_mask: format!("[{cpu}]"),
            arguments: Vec::new(),
            environment: Vec::new(),
        }
    }
}

impl Options {
    /// A target that runs on this many CPUs, or on all there are.
    pub fn on_cores(count: usize) -> Options {
        let cpus: Vec<_> = allowed_cpus().iter().take(count).map(ToString::to_string).collect();
        Options { core_mask: format!("[{}]", cpus.join(",")), ..Options::default() }
    }
}

/// A running target with files of its own, which are gone when it is dropped.
///
/// A target that ends by itself fails the test. If a test fails, the end of its target's log is
/// printed. The thread that starts a target must outlive it.
#[derive(Debug)]
pub struct Target {
    // Dropped, and so ended, before its files go.
    process: Option<Process>,
    rpc: Rpc,
    options: Options,
    pub(super) disks: Vec<Disk>,
    pub(super) portal: Mutex<Option<u16>>,
    dir: TempDir,
}

impl Target {
    /// Starts a target with the extension loaded.
    pub fn start() -> Target {
        Target::start_with(Options::default())
    }

    pub fn start_with(options: Options) -> Target {
        let dir = tempfile::Builder::new()
            .prefix("spdk-lvol-detach-test-")
            .tempdir()
            .expect("a temporary folder can be made");
        let mut target = Target {
            process: None,
            rpc: Rpc::new(dir.path().join("rpc.sock")),
            options,
            disks: Vec::new(),
            portal: Mutex::new(None),
            dir,
        };
        target.start_again();
        target
    }

    /// Starts a target that was stopped or killed, on the same files: its lvstores are there when
    /// this returns.
    pub fn start_again(&mut self) {
        assert!(self.process.is_none(), "the target runs already");
        self.process = Some(self.spawn());
        let started = Instant::now();
        while self.rpc.connect().is_err() {
            self.check_alive();
            assert!(
                started.elapsed() < PATIENCE,
                "the target does not answer; its log ends with\n{}",
                self.log_tail()
            );
            thread::sleep(Duration::from_millis(20));
        }
        self.must("framework_wait_init", Value::Null);
        *self.portal.get_mut().expect("no test panicked while it held the lock") = None;
        for disk in &self.disks {
            disk.attach(self);
        }
        if !self.disks.is_empty() {
            self.must("bdev_wait_for_examine", Value::Null);
        }
    }

    fn spawn(&self) -> Process {
        let mut command = self.options.program.command();
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("the target's log can be opened");
        command
            .args(["--no-huge", "-s", "1536", "--no-pci", "--disable-cpumask-locks"])
            // A killed target leaves the shared memory of its trace behind.
            .args(["--num-trace-entries", "0"])
            .args(["-c", SMALL_POOLS])
            .args(["-m", &self.options.core_mask])
            .arg("-r")
            .arg(self.rpc.socket())
            .args(&self.options.arguments)
            .envs(self.options.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file can be shared"))
            .stderr(log);
        // SAFETY: `prctl` may be called between fork and exec, and touches no memory.
        unsafe {
            // A target doesn't outlive the thread that started it, however that ends.
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        match command.spawn() {
            Ok(child) => Process(child),
            Err(error) => panic!("{command:?} could not be started: {error}"),
        }
    }

    /// The folder with the target's files.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn rpc(&self) -> &Rpc {
        &self.rpc
    }

    /// The process id, if it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(|process| process.0.id())
    }

    /// One RPC.
    pub fn call(&self, method: &str, params: Value) -> RpcResult {
        self.rpc.call(method, params)
    }

    /// One RPC that must succeed.
    #[track_caller]
    pub fn must(&self, method: &str, params: Value) -> Value {
        match self.rpc.call(method, params.clone()) {
            Ok(result) => result,
            Err(error) => panic!("{method} {params} failed: {error}"),
        }
    }

    #[track_caller]
    pub fn has_method(&self, method: &str) -> bool {
        let methods = self.must("rpc_get_methods", Value::Null);
        methods.as_array().is_some_and(|methods| methods.contains(&method.into()))
    }

    /// Sends an RPC, and leaves the answer for later.
    pub fn start_call(&self, method: &str, params: Value) -> Pending {
        self.rpc.send(request(method, params))
    }

    /// A connection for many RPCs.
    #[track_caller]
    pub fn connect(&self) -> Connection {
        self.rpc.connect().expect("a running target takes connections")
    }

    /// Detaches an lvol, which must succeed.
    #[track_caller]
    pub fn detach(&self, lvol: &str) {
        let result = self.must("bdev_lvol_detach_parent", json!({"name": lvol}));
        assert_eq!(result, json!(true), "the result of detaching {lvol}");
    }

    /// Everything that the target has logged, before its restarts too.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    /// Waits until the log is as `written` wants it: the extension's lines may come after the reply.
    #[track_caller]
    pub fn wait_for_log(&self, written: impl Fn(&str) -> bool) {
        let started = Instant::now();
        while !written(&self.log()) {
            assert!(
                started.elapsed() < PATIENCE,
                "what was expected is not in\n{}",
                self.log_tail()
            );
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("target.log")
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// Panics if the target has ended by itself.
    #[track_caller]
    pub fn check_alive(&mut self) {
        if let Some(status) = self.process.as_mut().and_then(Process::ended) {
            self.process = None;
            panic!("the target {}; its log ends with\n{}", what_happened(status), self.log_tail());
        }
    }

    /// Kills the target, as a power cut would.
    #[track_caller]
    pub fn kill9(&mut self) {
        self.check_alive();
        self.process = None;
    }

    /// Stops the target with SIGTERM, and waits until it has ended well.
    #[track_caller]
    pub fn stop(&mut self) {
        self.check_alive();
        let Some(mut process) = self.process.take() else {
            panic!("the target does not run");
        };
        process.terminate();
        let started = Instant::now();
        let status = loop {
            if let Some(status) = process.ended() {
                break status;
            }
            assert!(started.elapsed() < PATIENCE, "the target does not stop after SIGTERM");
            thread::sleep(Duration::from_millis(10));
        };
        assert!(
            status.success(),
            "the target {} when it was stopped; its log ends with\n{}",
            what_happened(status),
            self.log_tail()
        );
    }

    /// Stops it and starts it again on the same files.
    #[track_caller]
    pub fn restart(&mut self) {
        self.stop();
        self.start_again();
    }

    /// Kills it and starts it again on the same files.
    #[track_caller]
    pub fn crash(&mut self) {
        self.kill9();
        self.start_again();
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let ended = self.process.as_mut().and_then(Process::ended);
        self.process = None;
        if thread::panicking() {
            if let Some(status) = ended {
                eprintln!("the target {}", what_happened(status));
            }
            eprintln!("the end of the target's log:\n{}", self.log_tail());
        } else if let Some(status) = ended {
            panic!("the target {}; its log ends with\n{}", what_happened(status), self.log_tail());
        }
    }
}

fn what_happened(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("crashed with signal {signal}"),
        (None, code) => format!("ended by itself with exit status {}", code.unwrap_or_default()),
    }
}

/// A child that is killed when it is dropped.
#[derive(Debug)]
struct Process(Child);

impl Process {
    fn ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().expect("a child can be waited for")
    }

    fn terminate(&self) {
        let pid = i32::try_from(self.0.id()).expect("a process id is an i32");
        // SAFETY: `kill` touches no memory. The child has not been waited for, so the id is its.
        unsafe { libc::kill(pid, libc::SIGTERM) };
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn launcher() -> Command {
    let launcher = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/spdk_tgt");
    // It says itself what is missing, if anything is.
    Command::new(launcher)
}

fn stock_target() -> Command {
    let root = spdk_root();
    let mut command = Command::new(root.join("build/bin/spdk_tgt"));
    command.env("LD_LIBRARY_PATH", format!("{0}/build/lib:{0}/dpdk/build/lib", root.display()));
    command
}

/// Whether the tests are to use the target that has the extension linked in: as `scripts/spdk_tgt`, by
/// a variable, or because there is no other way.
fn is_static() -> bool {
    let asked = std::env::var("LVOL_DETACH_TGT").is_ok_and(|way| way == "static");
    asked || cfg!(not(spdk_shared_libraries))
}

fn preload(mut command: Command, libraries: &[PathBuf]) -> Command {
    let libraries: Vec<_> = libraries.iter().map(|path| path.as_os_str()).collect();
    command.env("LD_PRELOAD", libraries.join(OsStr::new(":")));
    command
}

/// What a header of the SPDK tree in use defines a name as.
#[track_caller]
pub fn spdk_define(header: &str, name: &str) -> String {
    let text = fs::read_to_string(spdk_root().join(header)).expect("SPDK has the header");
    let define = format!("#define {name}\t");
    let value = text.lines().find_map(|line| line.strip_prefix(&define)).expect("it is defined");
    value.trim().to_owned()
}

/// The SPDK tree in use.
pub fn spdk_root() -> PathBuf {
    let Some(root) = std::env::var_os("SPDK_ROOT_DIR").map(PathBuf::from) else {
        panic!("SPDK_ROOT_DIR names no SPDK tree: run `make test`, which sets it");
    };
    assert!(
        root.join("build/bin/spdk_tgt").exists(),
        "SPDK_ROOT_DIR={} is no built SPDK tree: run `make test`",
        root.display()
    );
    root
}

/// The CPUs that this process may run on.
fn allowed_cpus() -> Vec<usize> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let mut cpus = Vec::new();
    for range in list.unwrap_or("0").trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        if let (Ok(first), Ok(last)) = (first.parse::<usize>(), last.parse()) {
            cpus.extend(first..=last);
        }
    }
    assert!(!cpus.is_empty(), "no CPU in /proc/self/status");
    cpus
}
