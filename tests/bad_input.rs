//! Arbitrary input on the RPC socket: anything that is not a proper request for a detach is answered as
//! JSON-RPC requires, changes nothing, and the target keeps serving.
//!
//! Who refuses what, and how (`lib/jsonrpc/jsonrpc_server.c`, `lib/json/json_parse.c`):
//! - SPDK's server takes whole JSON values from the stream. What can't become one is a parse error,
//!   and there is no way to find the next request in the stream: it closes the connection. Its
//!   answer (-32700) is queued and goes down with the connection.
//! - A JSON value that is no request is answered with -32600 and the id null. Batches are such
//!   values for SPDK: all of a batch gets one such answer, and nothing of it is done.
//! - What is left gets to the extension, with params that are absent, an array or an object.
//!
//! A connection that ends with a parse error while a request of it is under way, whatever the
//! method, is never free again (SPDK's issue 2939), and SPDK has 64 of them: few are lost here.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use common::iostat::Iostat;
use common::lvol::Lvol;
use common::lvstore::Lvstore;
use common::rpc::{EINVAL, ENODEV, INVALID_PARAMS, METHOD_NOT_FOUND};
use common::target::{Target, spdk_define};
use serde_json::{Value, json};

const INVALID_REQUEST: i64 = -32600;
const PARSE_ERROR: i64 = -32700;

/// `SPDK_JSON_MAX_NESTING_DEPTH`.
const MAX_NESTING: usize = 64;

/// A request that doesn't fit is never whole.
fn receive_buffer() -> usize {
    server_limit("SPDK_JSONRPC_RECV_BUF_SIZE")
}

/// Keys count, and so do both ends of an array or an object.
fn max_values() -> usize {
    server_limit("SPDK_JSONRPC_MAX_VALUES")
}

/// What the header of the tree at hand defines: a number, or a product in parentheses.
fn server_limit(name: &str) -> usize {
    let value = spdk_define("lib/jsonrpc/jsonrpc_internal.h", name);
    let factors = value.trim_matches(['(', ')']).split('*');
    factors.map(|factor| factor.trim().parse::<usize>().unwrap()).product()
}

/// A target with the chain `base <- snap <- vol`, of which `snap` and `vol` could be detached.
struct Chain {
    target: Target,
    lvols: BTreeMap<String, Lvol>,
    device: Iostat,
}

impl Chain {
    fn new() -> Chain {
        Chain::on(Lvstore::default())
    }

    fn on(lvstore: Lvstore) -> Chain {
        let mut target = Target::start();
        target.create_lvstore("lvs", lvstore);
        target.create_thin("lvs/vol", 4);
        target.write("lvs/vol", &[(0, 0x11), (1, 0x11)]);
        target.snapshot("lvs/vol", "lvs/base");
        target.write("lvs/vol", &[(1, 0x22)]);
        target.snapshot("lvs/vol", "lvs/snap");
        let (lvols, device) = (target.lvols(), target.iostat(&target.base_bdev("lvs")));
        Chain { target, lvols, device }
    }

    /// Every lvol is as it was, and the device has not been asked for anything.
    #[track_caller]
    fn expect_untouched(&self, after: &str) {
        assert_eq!(self.target.lvols(), self.lvols, "the lvols after {after}");
        let device = self.target.iostat(&self.target.base_bdev("lvs"));
        assert_eq!(device - self.device, Iostat::default(), "the device I/O of {after}");
    }

    /// Sends what must be refused.
    #[track_caller]
    fn expect_refused(&self, bytes: &[u8], expected: &Expected) {
        let shown = shown(bytes);
        let exchange = Exchange::new(&self.target, bytes, 1);
        if let Err(difference) = expected.compare(&exchange) {
            panic!("{shown}: {difference}: {exchange:?}");
        }
        self.expect_untouched(&shown);
    }

    /// After all of that the target is as good as new.
    #[track_caller]
    fn expect_still_served(&self) {
        self.target.detach("lvs/snap");
        assert_eq!(self.target.parent("lvs/snap"), None);
        self.target.expect_data("lvs/snap", &[0, 0x22, 0, 0]);
        self.target.expect_data("lvs/vol", &[0, 0x22, 0, 0]);
        self.target.delete("lvs/base");
    }
}

/// What came back for some bytes that were sent.
#[derive(Debug)]
struct Exchange {
    answers: Vec<Value>,
    /// The target took no more requests.
    closed: bool,
}

impl Exchange {
    /// Sends the bytes on a connection of their own, and receives everything that comes back: so many
    /// answers, unless the target closes the connection before, and whatever else there is.
    #[track_caller]
    fn new(target: &Target, bytes: &[u8], answers: usize) -> Exchange {
        Exchange::finish(connect(target), bytes, answers)
    }

    /// Sends the last bytes and a request that shows whether the target still takes requests. When
    /// all is answered it says that no more will come. (Not before: SPDK 26.05 doesn't answer a client
    /// that has said so, `jsonrpc_server_send_response`.)
    #[track_caller]
    fn finish(mut socket: UnixStream, bytes: &[u8], answers: usize) -> Exchange {
        let last = br#"{"jsonrpc":"2.0","id":"last","method":"spdk_get_version"}"#;
        let mut received = Vec::new();
        let mut reader = BufReader::new(socket.try_clone().expect("a socket can be shared"));
        let outcome = match socket.write_all(&[bytes, last].concat()) {
            Ok(()) => (0..=answers)
                .try_for_each(|_| reader.read_until(b'\n', &mut received).map(|_| ()))
                // The target may have closed it.
                .map(|()| socket.shutdown(Shutdown::Write).unwrap_or_default()),
            // The target has closed it already.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
            Err(error) => Err(error),
        };
        match outcome.and_then(|()| reader.read_to_end(&mut received)) {
            Ok(_) => {}
            // The target closed it before it had read everything.
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
        // Each answer ends with a newline, and has none within.
        let mut answers: Vec<Value> = received
            .split_inclusive(|&byte| byte == b'\n')
            .map(|line| {
                serde_json::from_slice(line)
                    .unwrap_or_else(|error| panic!("{}: {error}", shown(line)))
            })
            .collect();
        let sent = answers.len();
        answers.retain(|answer| answer["id"] != "last");
        Exchange { closed: answers.len() == sent, answers }
    }
}

/// A connection. Only a target that hangs takes longer to answer than it waits.
#[track_caller]
fn connect(target: &Target) -> UnixStream {
    let socket = UnixStream::connect(target.rpc().socket()).expect("the target takes connections");
    socket.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout can be set");
    socket
}

/// Bytes for a message: the end matters less than the beginning.
fn shown(bytes: &[u8]) -> String {
    let text = bytes.escape_ascii().to_string();
    match text.len() {
        0..=300 => text,
        length => format!("{}... ({length} characters)", &text[..300]),
    }
}

/// How something must be refused.
#[derive(Debug)]
enum Expected {
    /// One error answer, and the connection stays open.
    Error { id: Value, code: i64, message: String },
    /// The connection is closed.
    ParseError,
}

impl Expected {
    /// By the extension.
    fn invalid_params() -> Expected {
        let message = "Invalid parameters: name (a string: UUID or alias of the lvol) is \
                       required, and nothing else is known";
        Expected::Error { id: json!(1), code: INVALID_PARAMS, message: message.to_owned() }
    }

    /// By SPDK's server.
    fn invalid_request(id: Value) -> Expected {
        let message = "Invalid request".to_owned();
        Expected::Error { id, code: INVALID_REQUEST, message }
    }

    fn no_such_method() -> Expected {
        let message = "Method not found".to_owned();
        Expected::Error { id: json!(1), code: METHOD_NOT_FOUND, message }
    }

    fn no_such_bdev(name: &str) -> Expected {
        let message = format!("No such device: there is no bdev {name}");
        Expected::Error { id: json!(1), code: ENODEV, message }
    }

    fn compare(&self, exchange: &Exchange) -> Result<(), &'static str> {
        match self {
            Expected::Error { id, code, message } => {
                let [answer] = exchange.answers.as_slice() else {
                    return Err("there is not exactly one answer");
                };
                let expected = json!({
                    "jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message},
                });
                if *answer != expected {
                    return Err("the answer is another");
                }
                if exchange.closed { Err("the connection was closed") } else { Ok(()) }
            }
            Expected::ParseError => {
                // Today's SPDK sends none.
                if exchange.answers.iter().any(|answer| answer["error"]["code"] != PARSE_ERROR) {
                    return Err("there is an answer");
                }
                if exchange.closed { Ok(()) } else { Err("the connection was not closed") }
            }
        }
    }
}

/// A request for a detach with these params, which may be anything.
fn detach_with(params: impl AsRef<[u8]>) -> Vec<u8> {
    let head = br#"{"jsonrpc":"2.0","id":1,"method":"bdev_lvol_detach_parent","params":"#;
    [head, params.as_ref(), b"}"].concat()
}

/// A request for the detach of the lvol of this name.
fn detach_of(name: &str) -> Vec<u8> {
    detach_with(json!({"name": name}).to_string())
}

/// A request whose params have the name and an array, and which has so many values in all.
fn detach_with_values(count: usize) -> Vec<u8> {
    // Those of the request with an empty array.
    const OTHERS: usize = 16;
    let items = vec!["0"; count - OTHERS].join(",");
    detach_with(format!(r#"{{"name":"lvs/snap","x":[{items}]}}"#))
}

/// Arrays within an array, so many in all.
fn nested(depth: usize) -> String {
    "[".repeat(depth) + &"]".repeat(depth)
}

#[test]
fn params_of_any_other_form_are_refused() {
    let chain = Chain::new();
    let request = br#"{"jsonrpc":"2.0","id":1,"method":"bdev_lvol_detach_parent"}"#;
    chain.expect_refused(request, &Expected::invalid_params());

    for params in [
        // Null params are as good as none.
        "null",
        // No object.
        "[]",
        r#"["lvs/snap"]"#,
        r#"["name","lvs/snap"]"#,
        r#"[{"name":"lvs/snap"}]"#,
        // No name.
        "{}",
        r#"{"":"lvs/snap"}"#,
        r#"{"uuid":"lvs/snap"}"#,
        r#"{"lvol_name":"lvs/snap"}"#,
        r#"{"params":{"name":"lvs/snap"}}"#,
        // Not quite a name.
        r#"{"Name":"lvs/snap"}"#,
        r#"{"nam":"lvs/snap"}"#,
        r#"{"names":"lvs/snap"}"#,
        r#"{"name ":"lvs/snap"}"#,
        r#"{"name\u0000":"lvs/snap"}"#,
        r#"{"\u0000name":"lvs/snap"}"#,
        r#"{"n\u0430me":"lvs/snap"}"#,
        // A name of another type.
        r#"{"name":null}"#,
        r#"{"name":true}"#,
        r#"{"name":false}"#,
        r#"{"name":0}"#,
        r#"{"name":-0}"#,
        r#"{"name":-0.0e-0}"#,
        r#"{"name":1E+2}"#,
        r#"{"name":1e999999999}"#,
        r#"{"name":123456789012345678901234567890123456789012345678901234567890}"#,
        r#"{"name":[]}"#,
        r#"{"name":["lvs/snap"]}"#,
        r#"{"name":{}}"#,
        r#"{"name":{"name":"lvs/snap"}}"#,
        // More than the name.
        r#"{"name":"lvs/snap","force":true}"#,
        r#"{"force":true,"name":"lvs/snap"}"#,
        r#"{"name":"lvs/snap","Name":"lvs/snap"}"#,
        r#"{"name":"lvs/snap","parent":null}"#,
        r#"{"name":"lvs/snap","":{}}"#,
        // More than one name.
        r#"{"name":"lvs/snap","name":"lvs/snap"}"#,
        r#"{"name":"lvs/snap","name":"lvs/vol"}"#,
        r#"{"name":"lvs/snap","n\u0061me":"lvs/snap"}"#,
        r#"{"name":"lvs/snap","name":null}"#,
        r#"{"name":null,"name":"lvs/snap"}"#,
        // A NUL would end the name before its end: SPDK's decoder takes no string that has one.
        r#"{"name":"lvs/snap\u0000"}"#,
        r#"{"name":"lvs/snap\u0000x"}"#,
        r#"{"name":"\u0000lvs/snap"}"#,
        r#"{"name":"\u0000"}"#,
        // As deep as SPDK's parser goes, two levels being the request and its params.
        &format!(r#"{{"name":{}}}"#, nested(MAX_NESTING - 2)),
        &nested(MAX_NESTING - 1),
        &format!(r#"{{"name":"lvs/snap"{}}}"#, r#","x":0"#.repeat(500)),
    ] {
        chain.expect_refused(&detach_with(params), &Expected::invalid_params());
    }
    chain.expect_refused(&detach_with_values(max_values()), &Expected::invalid_params());
    chain.expect_still_served();
}

#[test]
fn a_name_that_no_lvol_has_is_refused_whatever_its_letters() {
    let chain = Chain::new();
    let uuid = chain.target.lvol("lvs/snap").uuid;

    for name in [
        "",
        " ",
        "/",
        "lvs",
        "lvs/",
        "snap",
        "/snap",
        "lvs//snap",
        "lvs/snap/",
        " lvs/snap",
        "lvs/snap ",
        "LVS/SNAP",
        "lvs/snap,lvs/vol",
        "*",
        &uuid[1..],
        &format!("lvs/{uuid}"),
        // What a log or a message could trip over.
        "%s%s%s%n",
        "\"",
        "\\",
        "lvs\\/snap",
        "lvs/snap\n",
        "\u{1}\t\r\n\u{1f}\u{7f}",
        "größe",
        "снимок/😀",
        "lvs/ѕnap",
        "\u{feff}lvs/snap",
        "\u{202e}pans/svl",
        "\u{d7ff}\u{e000}\u{ffff}\u{10ffff}",
    ] {
        chain.expect_refused(&detach_of(name), &Expected::no_such_bdev(name));
    }
    let name = "\nlvs/snap is detached from its parent lvs/base";
    chain.expect_refused(&detach_of(name), &Expected::no_such_bdev(name));
    let line = format!("there is no bdev {}", name.replace('\n', "\\n"));
    chain.target.wait_for_log(|log| log.contains(&line));
    let log = chain.target.log();
    assert!(!log.contains(name), "a line is forged:\n{log}");

    let base = chain.target.base_bdev("lvs");
    let message = format!("No such device: the bdev {base} is not an lvol");
    let not_an_lvol = Expected::Error { id: json!(1), code: ENODEV, message };
    chain.expect_refused(&detach_of(&base), &not_an_lvol);
    chain.expect_still_served();
}

#[test]
fn a_name_that_no_lvol_has_is_refused_whatever_its_length() {
    let chain = Chain::new();
    let longest = receive_buffer() - detach_of("").len();

    for length in [1, 2, 63, 64, 255, 256, 257, 1000, 1023, 1024, 4096, 16000, longest] {
        let name = "n".repeat(length);
        chain.expect_refused(&detach_of(&name), &Expected::no_such_bdev(&name));
    }
    // A character of two bytes, which SPDK answers with an escape of six. No more of them than come in
    // one packet: SPDK takes half of one for no UTF-8.
    let name = "é".repeat(16_000);
    chain.expect_refused(&detach_of(&name), &Expected::no_such_bdev(&name));
    chain.expect_still_served();
}

#[test]
fn what_is_json_but_no_request_is_refused() {
    let chain = Chain::new();
    let detach = String::from_utf8(detach_of("lvs/snap")).unwrap();
    let with_member = |member: &str| detach.replacen('{', &format!("{{{member},"), 1);

    for request in [
        // No object.
        "1 ".to_owned(),
        "-0.5e7 ".to_owned(),
        "null".to_owned(),
        "true".to_owned(),
        r#""lvs/snap""#.to_owned(),
        r#""bdev_lvol_detach_parent""#.to_owned(),
        // A method or an id that is none, or a version that SPDK doesn't know.
        "{}".to_owned(),
        r#"{"jsonrpc":"2.0","id":1}"#.to_owned(),
        detach.replace(r#""bdev_lvol_detach_parent""#, "null"),
        detach.replace(r#""bdev_lvol_detach_parent""#, "7"),
        detach.replace(r#""bdev_lvol_detach_parent""#, r#"["bdev_lvol_detach_parent"]"#),
        detach.replace(r#""id":1"#, r#""id":{}"#),
        detach.replace(r#""id":1"#, r#""id":[1]"#),
        detach.replace(r#""id":1"#, r#""id":true"#),
        detach.replace("2.0", "1.0"),
        detach.replace(r#""2.0""#, "2.0"),
        // A member that is unknown, or there twice.
        with_member(r#""name":"lvs/snap""#),
        with_member(r#""jsonrpc":"2.0""#),
        with_member(r#""id":1"#),
        with_member(r#""method":"bdev_lvol_detach_parent""#),
        with_member(r#""params":{"name":"lvs/snap"}"#),
    ] {
        chain.expect_refused(request.as_bytes(), &Expected::invalid_request(Value::Null));
    }
    // Params that JSON-RPC doesn't know.
    for params in [r#""lvs/snap""#, "1", "true", "false"] {
        chain.expect_refused(&detach_with(params), &Expected::invalid_request(json!(1)));
    }
    for method in
        ["", "bdev_lvol_detach_parent\\u0000", "bdev_lvol_detach_paren", "BDEV_LVOL_DETACH_PARENT"]
    {
        let request = detach.replace("bdev_lvol_detach_parent", method);
        chain.expect_refused(request.as_bytes(), &Expected::no_such_method());
    }
    chain.expect_still_served();
}

/// Before 26.05 SPDK takes no batches.
#[test]
fn a_batch_is_refused_or_each_of_its_requests_is_answered() {
    let chain = Chain::new();
    let detach = String::from_utf8(detach_of("lvs/snap")).unwrap();
    let nothing = detach.replace("lvs/snap", "none").replace(r#""id":1"#, r#""id":2"#);
    chain.expect_refused(b"[]", &Expected::invalid_request(Value::Null));

    let probe = Exchange::new(&chain.target, format!("[{nothing}]").as_bytes(), 1);
    if !probe.answers[0].is_array() {
        for batch in
            [format!("[{detach}]"), format!("[{detach},{detach}]"), format!("[1,{detach}]")]
        {
            chain.expect_refused(batch.as_bytes(), &Expected::invalid_request(Value::Null));
        }
        return chain.expect_still_served();
    }
    let batch = format!("[{nothing},7,{detach}]");
    let exchange = Exchange::new(&chain.target, batch.as_bytes(), 1);
    let [Value::Array(answers)] = exchange.answers.as_slice() else { panic!("{exchange:?}") };
    assert_eq!(answers.len(), 3, "{answers:?}");
    let answer_to = |id: Value| answers.iter().find(|answer| answer["id"] == id).unwrap();
    assert_eq!(answer_to(json!(1))["result"], json!(true));
    assert_eq!(answer_to(json!(2))["error"]["code"], json!(ENODEV));
    assert_eq!(answer_to(Value::Null)["error"]["code"], json!(-32600));
    assert_eq!(chain.target.parent("lvs/snap"), None);
}

#[test]
fn what_is_no_json_ends_the_connection_and_nothing_else() {
    let chain = Chain::new();
    let detach = detach_of("lvs/snap");
    let too_long = receive_buffer() + 1 - detach_of("").len();

    for bytes in [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        b"\0".to_vec(),
        vec![0xff; 100],
        vec![b'{'; 3],
        // A byte order mark; a comment.
        [b"\xef\xbb\xbf", detach.as_slice()].concat(),
        [b"/* */", detach.as_slice()].concat(),
        detach_with(r#"/* */{"name":"lvs/snap"}"#),
        // Neither JSON nor far from it.
        detach_with(r#"{"name":'lvs/snap'}"#),
        detach_with(r#"{name:"lvs/snap"}"#),
        detach_with(r#"{"name":"lvs/snap",}"#),
        detach_with(r#"{,"name":"lvs/snap"}"#),
        detach_with(r#"{"name","lvs/snap"}"#),
        detach_with(r#"{"name":"lvs/snap"]"#),
        detach_with(r#"{"name":lvs/snap}"#),
        detach_with(r#"{"name":nul}"#),
        // Odd numbers.
        detach_with(r#"{"name":01}"#),
        detach_with(r#"{"name":+1}"#),
        detach_with(r#"{"name":-}"#),
        detach_with(r#"{"name":.5}"#),
        detach_with(r#"{"name":5.}"#),
        detach_with(r#"{"name":1e}"#),
        detach_with(r#"{"name":0x10}"#),
        detach_with(r#"{"name":NaN}"#),
        detach_with(r#"{"name":-Infinity}"#),
        // Escapes that are none, and halves of surrogate pairs.
        detach_with(r#"{"name":"lvs/snap\x"}"#),
        detach_with(r#"{"name":"lvs/snap\0"}"#),
        detach_with(r#"{"name":"lvs/snap\u00"}"#),
        detach_with(r#"{"name":"lvs/snap\u00g0"}"#),
        detach_with(r#"{"name":"lvs/snap\ud83d"}"#),
        detach_with(r#"{"name":"lvs/snap\ud83dx"}"#),
        detach_with(r#"{"name":"lvs/snap\ud83d\ud83d"}"#),
        detach_with(r#"{"name":"lvs/snap\ude00"}"#),
        detach_with(r#"{"lvs/snap\ude00":"name"}"#),
        // Control characters as they are.
        detach_with(b"{\"name\":\"lvs/snap\0\"}"),
        detach_with(b"{\"name\":\"lvs/snap\n\"}"),
        detach_with(b"{\"name\":\"lvs/snap\x1f\"}"),
        // No UTF-8: a stray byte, a cut character, an overlong one, a surrogate, one too high.
        detach_with(b"{\"name\":\"lvs/snap\xff\"}"),
        detach_with(b"{\"name\":\"lvs/snap\x80\"}"),
        detach_with(b"{\"name\":\"lvs/snap\xc3\"}"),
        detach_with(b"{\"name\":\"lvs/snap\xe2\x82\"}"),
        detach_with(b"{\"name\":\"lvs/snap\xc0\x80\"}"),
        detach_with(b"{\"name\":\"lvs\xc0\xafsnap\"}"),
        detach_with(b"{\"name\":\"lvs/snap\xed\xa0\x80\"}"),
        detach_with(b"{\"name\":\"lvs/snap\xf4\x90\x80\x80\"}"),
        // Deeper than SPDK's parser goes.
        detach_with(format!(r#"{{"name":{}}}"#, nested(MAX_NESTING - 1))),
        vec![b'['; 10_000],
        // More values than SPDK's server takes.
        detach_with_values(max_values() + 1),
        // More than fits the server's buffer.
        detach_of(&"n".repeat(too_long)),
        detach_of(&"n".repeat(10 * receive_buffer())),
        vec![b' '; receive_buffer() + 1],
    ] {
        chain.expect_refused(&bytes, &Expected::ParseError);
    }
    chain.expect_still_served();
}

#[test]
fn a_name_may_be_spelt_in_every_way_that_json_has() {
    let chain = Chain::new();
    let target = &chain.target;
    for (clone, params) in [
        ("plain", r#"{"name":"lvs/plain"}"#),
        ("space", "\t{ \r\n\"name\" :\n\t \"lvs/space\" } "),
        ("slash", r#"{"name":"lvs\/slash"}"#),
        ("escape", r#"{"name":"\u006c\u0076s\u002F\u0065scape"}"#),
        ("key", r#"{"n\u0061m\u0065":"lvs/key"}"#),
        ("größe", r#"{"name":"lvs/größe"}"#),
        ("Größe", r#"{"name":"lvs/Gr\u00f6\u00DFe"}"#),
        ("a 😀", r#"{"name":"lvs/a 😀"}"#),
        ("b 😀", r#"{"name":"lvs/b \ud83d\uDE00"}"#),
        ("\"\\\n\u{7f}", r#"{"name":"lvs/\"\\\n\u007f"}"#),
    ] {
        let alias = format!("lvs/{clone}");
        target.clone_of("lvs/snap", &alias);
        let exchange = Exchange::new(target, &detach_with(params), 1);
        let done = json!({"jsonrpc": "2.0", "id": 1, "result": true});
        assert_eq!(exchange.answers, [done], "{params}");
        assert_eq!(target.parent(&alias), None, "{params}");

        // The message gives the name back as it is.
        let Err(error) = target.call("bdev_lvol_detach_parent", json!({"name": alias})) else {
            panic!("{alias} was detached twice");
        };
        assert_eq!(error.code, EINVAL);
        assert_eq!(error.message, format!("Invalid argument: {alias} has no parent"));
    }
    chain.expect_still_served();
}

#[test]
fn an_id_may_be_any_that_json_rpc_has_and_the_version_may_be_missing() {
    let chain = Chain::new();
    let request = |head: &str| {
        let rest = r#""method":"bdev_lvol_detach_parent","params":{"name":"lvs/none"}}"#;
        format!("{{{head}{rest}").into_bytes()
    };
    for (head, id) in [
        (r#""id":"","#, json!("")),
        (r#""id":"a\u0000b\n😀","#, json!("a\0b\n😀")),
        (r#""id":0,"#, json!(0)),
        (r#""id":-1.5e3,"#, json!(-1500.0)),
        (r#""id":18446744073709551615,"#, json!(u64::MAX)),
        (&format!(r#""id":"{}","#, "i".repeat(16000)), json!("i".repeat(16000))),
        // Requests without an id are notifications, to which JSON-RPC wants no answer at all; SPDK
        // answers them if they fail, like one whose id is null.
        ("", Value::Null),
        (r#""jsonrpc":"2.0","#, Value::Null),
        (r#""id":null,"#, Value::Null),
    ] {
        let message = "No such device: there is no bdev lvs/none".to_owned();
        chain.expect_refused(&request(head), &Expected::Error { id, code: ENODEV, message });
    }
    chain.expect_still_served();
}

#[test]
fn a_notification_is_carried_out_and_not_answered() {
    let chain = Chain::new();
    for (clone, head) in [("a", r#""jsonrpc":"2.0""#), ("b", r#""jsonrpc":"2.0","id":null"#)] {
        let alias = format!("lvs/{clone}");
        chain.target.clone_of("lvs/snap", &alias);
        let notification = format!(
            r#"{{{head},"method":"bdev_lvol_detach_parent","params":{{"name":"{alias}"}}}}"#
        );
        let mut socket = connect(&chain.target);
        socket.write_all(notification.as_bytes()).unwrap();
        socket.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).expect("the target closes its side when it is done");

        assert_eq!(chain.target.parent(&alias), None);
        // SPDK drops the answer, but sends what its writer still has in its buffer: the beginning
        // of an answer, for every method (`skip_response`). It is nothing that parses.
        assert!(serde_json::from_slice::<Value>(&answer).is_err(), "{}", shown(&answer));
    }
    chain.expect_still_served();
}

#[test]
fn a_request_may_come_in_pieces() {
    let chain = Chain::new();
    let request = detach_with(r#"{"n\u0061me":"lvs\/sn\u0061p"}"#);
    let (pieces, last) = request.split_at(request.len() - 1);
    let mut socket = connect(&chain.target);
    for piece in pieces.chunks(3) {
        socket.write_all(piece).unwrap();
        // SPDK looks at every connection before it sends the next answer on any: now it has read
        // this piece.
        chain.expect_untouched("a part of a request");
    }
    let exchange = Exchange::finish(socket, last, 1);
    assert_eq!(exchange.answers, [json!({"jsonrpc": "2.0", "id": 1, "result": true})]);
    assert_eq!(chain.target.parent("lvs/snap"), None);
}

#[test]
fn a_character_that_comes_in_two_packets_does_no_harm() {
    let chain = Chain::new();
    chain.target.clone_of("lvs/snap", "lvs/größe");
    let before = chain.target.lvols();
    let request = detach_of("lvs/größe");
    let (first, last) =
        request.split_at(request.iter().position(|byte| *byte >= 0x80).unwrap() + 1);
    let mut socket = connect(&chain.target);
    socket.write_all(first).unwrap();
    assert_eq!(chain.target.lvols(), before);
    let exchange = Exchange::finish(socket, last, 1);
    // SPDK 26.01 takes the first half for no UTF-8 (`utf8_valid`), and closes the connection.
    if exchange.closed {
        assert_eq!(chain.target.lvols(), before);
        chain.target.detach("lvs/größe");
    } else {
        assert_eq!(exchange.answers, [json!({"jsonrpc": "2.0", "id": 1, "result": true})]);
    }
    assert_eq!(chain.target.parent("lvs/größe"), None);
}

#[test]
fn a_request_that_is_never_finished_does_nothing() {
    let chain = Chain::new();
    let request = detach_of("lvs/snap");
    for length in 0..request.len() {
        let mut socket = connect(&chain.target);
        socket.write_all(&request[..length]).unwrap();
        socket.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).expect("the target closes its side as well");
        assert!(answer.is_empty(), "{length} bytes: {}", shown(&answer));
    }
    chain.expect_untouched("every beginning of a request");
    chain.expect_still_served();
}

#[test]
fn many_requests_in_one_packet_are_each_answered() {
    const CLONES: usize = 100;
    let chain = Chain::new();
    let target = &chain.target;
    let mut requests = Vec::new();
    let mut expected = BTreeMap::new();
    for clone in 0..CLONES {
        let alias = format!("lvs/clone{clone}");
        target.clone_of("lvs/snap", &alias);
        // More than the server's buffer holds, together.
        let long = "n".repeat(receive_buffer() / 64);
        for (params, outcome) in [
            (json!({"name": long}), Err(ENODEV)),
            (json!({"name": alias}), Ok(true)),
            (json!({"name": 7}), Err(INVALID_PARAMS)),
            (json!(null), Err(INVALID_PARAMS)),
        ] {
            let id = expected.len();
            requests.push(json!({
                "jsonrpc": "2.0", "id": id, "method": "bdev_lvol_detach_parent", "params": params,
            }));
            expected.insert(id, outcome);
        }
    }
    // One after the other without anything between, as JSON allows it.
    let text: String = requests.iter().map(Value::to_string).collect();
    assert!(text.len() > receive_buffer());

    let exchange = Exchange::new(target, text.as_bytes(), expected.len());

    assert_eq!(exchange.answers.len(), expected.len());
    for answer in &exchange.answers {
        let id = usize::try_from(answer["id"].as_u64().unwrap()).unwrap();
        let outcome = match answer.get("error") {
            Some(error) => Err(error["code"].as_i64().unwrap()),
            None => Ok(answer["result"].as_bool().unwrap()),
        };
        assert_eq!(Some(outcome), expected.remove(&id), "{answer}");
    }
    for clone in 0..CLONES {
        assert_eq!(target.parent(&format!("lvs/clone{clone}")), None, "clone{clone}");
    }
    chain.expect_still_served();
}

#[test]
fn a_detach_goes_on_when_its_connection_is_closed() {
    lose_the_connection(drop);
}

#[test]
fn a_detach_goes_on_when_its_connection_ends_with_a_parse_error() {
    lose_the_connection(|mut socket| {
        socket.write_all(b"}").unwrap();
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).expect("the target closes the connection");
        assert!(answer.is_empty(), "{}", shown(&answer));
    });
}

#[test]
fn detaches_whose_connections_are_gone_before_they_start_are_done() {
    let chain = Chain::new();
    let clones: Vec<_> = (0..100).map(|clone| format!("lvs/clone{clone}")).collect();
    for clone in &clones {
        chain.target.clone_of("lvs/snap", clone);
    }
    for clone in &clones {
        connect(&chain.target).write_all(&detach_of(clone)).unwrap();
    }
    for clone in &clones {
        wait_until_detached(&chain.target, clone);
    }
    chain.expect_still_served();
}

#[track_caller]
fn wait_until_detached(target: &Target, lvol: &str) {
    let started = Instant::now();
    while target.parent(lvol).is_some() {
        assert!(started.elapsed() < Duration::from_secs(60), "{lvol} is never detached");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Loses the connection of a detach while that is under way, on a device that takes its time.
fn lose_the_connection(lose: impl Fn(UnixStream)) {
    let lvstore = Lvstore { can_be_slow: true, ..Lvstore::default() };
    let chain = Chain::on(lvstore);
    let target = &chain.target;
    // If the detach was done before the connection was lost, then again with a slower device.
    let under_way = [100_000, 400_000, 1_600_000, 6_400_000].into_iter().any(|latency_us| {
        let clone = format!("lvs/{latency_us}");
        target.clone_of("lvs/snap", &clone);
        target.slow_down("lvs", latency_us);
        let mut socket = connect(target);
        socket.write_all(&detach_of(&clone)).unwrap();
        // SPDK looks at every connection before it sends the next answer on any: now it has started.
        target.lvol(&clone);
        lose(socket);
        let under_way = target.parent(&clone).is_some();

        target.slow_down("lvs", 0);
        wait_until_detached(target, &clone);
        // Nothing of it holds the lvol any more.
        target.expect_data(&clone, &[0; 4]);
        target.delete(&clone);
        under_way
    });
    assert!(under_way, "each detach was done before its connection was lost");
    assert_eq!(target.lvols(), chain.lvols);
    chain.expect_still_served();
}

#[test]
fn answers_that_nobody_reads_hold_up_nobody() {
    let chain = Chain::new();
    let mut sockets: Vec<_> = (0..8).map(|_| connect(&chain.target)).collect();
    let request = detach_of(&"n".repeat(16000));
    for socket in &mut sockets {
        // Whose answers are more than a socket holds, which is 208 KiB by default.
        for _ in 0..20 {
            socket.write_all(&request).unwrap();
        }
    }
    chain.expect_untouched("many requests whose answers nobody reads");
    chain.expect_still_served();
    drop(sockets);
    chain.target.detach("lvs/vol");
}
