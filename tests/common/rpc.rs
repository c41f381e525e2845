//! JSON-RPC 2.0 over the target's Unix socket.

use std::collections::HashMap;
use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

pub const INVALID_PARAMS: i64 = -32602;
pub const METHOD_NOT_FOUND: i64 = -32601;
pub const ENODEV: i64 = -19;
pub const EINVAL: i64 = -22;
pub const EBUSY: i64 = -16;
pub const EIO: i64 = -5;

/// Long enough for the slowest answer, so that only a target that hangs makes a test fail.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);

/// The `error` of a JSON-RPC answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RpcError {
    pub code: i64,
    pub message: String,
}

impl fmt::Display for RpcError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error {}: {}", self.code, self.message)
    }
}

pub type RpcResult = Result<Value, RpcError>;

/// A request with an id of its own. Null params are left out.
pub fn request(method: &str, params: Value) -> Value {
    static IDS: AtomicU64 = AtomicU64::new(1);
    let id = IDS.fetch_add(1, Ordering::Relaxed);
    let mut request = json!({"jsonrpc": "2.0", "id": id, "method": method});
    if !params.is_null() {
        request["params"] = params;
    }
    request
}

/// Where a target listens.
#[derive(Debug, Clone)]
pub struct Rpc {
    socket: PathBuf,
}

impl Rpc {
    pub fn new(socket: impl Into<PathBuf>) -> Rpc {
        Rpc { socket: socket.into() }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// A connection for many calls.
    pub fn connect(&self) -> std::io::Result<Connection> {
        let stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        Ok(Connection { stream, received: Vec::new(), answers: HashMap::new() })
    }

    /// One call on a connection of its own.
    pub fn call(&self, method: &str, params: Value) -> RpcResult {
        self.send(request(method, params)).wait()
    }

    /// Sends a request on a connection of its own, and leaves the answer for later.
    pub fn send(&self, request: Value) -> Pending {
        let mut connection = match self.connect() {
            Ok(connection) => connection,
            Err(error) => panic!("could not connect to {}: {error}", self.socket.display()),
        };
        connection.send(&request);
        Pending { connection, request }
    }

    /// Sends any bytes on a connection of its own, and returns what comes back until the target
    /// closes the connection or has been quiet for so long.
    pub fn raw(&self, bytes: &[u8], quiet: Duration) -> std::io::Result<Vec<u8>> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(quiet))?;
        stream.write_all(bytes)?;
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Ok(_) => Ok(answer),
            Err(error) if is_quiet(&error) || error.kind() == ErrorKind::ConnectionReset => {
                Ok(answer)
            }
            Err(error) => Err(error),
        }
    }
}

/// An open connection to a target. Many requests may be sent before the first answer is received.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    /// What was read and is no whole answer yet.
    received: Vec<u8>,
    /// The answers that nobody has asked for yet, by the request's id.
    answers: HashMap<u64, RpcResult>,
}

impl Connection {
    /// One call; the next may follow it at once.
    pub fn call(&mut self, method: &str, params: Value) -> RpcResult {
        let request = request(method, params);
        self.send(&request);
        self.receive(&request)
    }

    pub fn send(&mut self, request: &Value) {
        self.send_all(std::slice::from_ref(request));
    }

    /// Sends requests in one piece: the target starts each before it looks at anything else.
    pub fn send_all(&mut self, requests: &[Value]) {
        let text: String = requests.iter().map(|request| format!("{request}\n")).collect();
        if let Err(error) = self.stream.write_all(text.as_bytes()) {
            panic!("the target did not take {text}: {error}");
        }
    }

    /// The answer to a request that was sent.
    pub fn receive(&mut self, request: &Value) -> RpcResult {
        let id = id(request);
        loop {
            if let Some(answer) = self.answers.remove(&id) {
                return answer;
            }
            match self.read_some() {
                Ok(0) => panic!("the target closed the connection instead of answering {request}"),
                Ok(_) => {}
                // By a debugger, or who stops the test for a while.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if is_quiet(&error) => panic!("the target does not answer {request}"),
                Err(error) => panic!("the answer to {request} could not be read: {error}"),
            }
        }
    }

    /// Whether the answer to a request that was sent is there. It is kept for `receive`.
    pub fn is_answered(&mut self, request: &Value) -> bool {
        self.stream.set_nonblocking(true).expect("a socket can be made non-blocking");
        let read = self.read_some();
        self.stream.set_nonblocking(false).expect("a socket can be made blocking");
        match read {
            Ok(0) => panic!("the target closed the connection instead of answering {request}"),
            Err(error) if !is_quiet(&error) => {
                panic!("the answer to {request} could not be read: {error}")
            }
            _ => self.answers.contains_key(&id(request)),
        }
    }

    fn read_some(&mut self) -> std::io::Result<usize> {
        let mut buffer = [0; 16384];
        let read = self.stream.read(&mut buffer)?;
        self.received.extend_from_slice(&buffer[..read]);
        // SPDK ends each answer with a newline, and has none within.
        while let Some(end) = self.received.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.received.drain(..=end).collect();
            let Ok(answer) = serde_json::from_slice(&line) else {
                panic!("the target sent no JSON: {}", String::from_utf8_lossy(&line));
            };
            self.answers.insert(id(&answer), result(&answer));
        }
        Ok(read)
    }
}

/// A call that was sent and not answered yet.
#[derive(Debug)]
pub struct Pending {
    connection: Connection,
    request: Value,
}

impl Pending {
    /// Whether the answer has come. It is kept for [`Pending::wait`].
    pub fn is_answered(&mut self) -> bool {
        self.connection.is_answered(&self.request)
    }

    pub fn wait(mut self) -> RpcResult {
        self.connection.receive(&self.request)
    }
}

fn id(message: &Value) -> u64 {
    message["id"].as_u64().unwrap_or_default()
}

fn result(answer: &Value) -> RpcResult {
    match answer.get("error") {
        None => Ok(answer["result"].clone()),
        Some(error) => Err(RpcError {
            code: error["code"].as_i64().unwrap_or_default(),
            message: error["message"].as_str().unwrap_or_default().to_owned(),
        }),
    }
}

fn is_quiet(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}
