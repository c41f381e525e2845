//! Fuzzes the code that a request's params pass through: SPDK's own JSON parser and decoder, and the
//! extension's [`decode_name`], which gives the name of the lvol or refuses.
//!
//! The oracle is another JSON parser, serde_json. The two need not agree on every text:
//! - SPDK takes at most 64 nested arrays and objects, serde_json 128;
//! - SPDK takes numbers that fit no number type, serde_json doesn't;
//! - SPDK reads one value and leaves what follows it for the next request, and so must the oracle;
//! - SPDK's decoder takes no string that has a NUL (which is `\u0000`), since it would end there.
//!
//! The first two are about values that make any params wrong. So the outcome must be the same for
//! every input: a name exactly if the text begins with an object of exactly one member, whose key
//! is `name` and whose value is a string without NUL.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::cell::Cell;
use std::ffi::CString;
use std::fmt;
use std::ptr;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestError, TestRunner};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use spdk_lvol_detach::internals::{decode_check, decode_name};
use spdk_sys as sys;

const INPUTS: u32 = 150_000;

/// `SPDK_JSON_PARSE_FLAG_DECODE_IN_PLACE`
const DECODE_IN_PLACE: u32 = 1;

// --- The way of the params ---

/// What became of an input.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    /// No JSON: the server doesn't call the handler.
    NoJson,
    Refused,
    Accepted(CString),
}

/// As `jsonrpc_parse_request` (`lib/jsonrpc/jsonrpc_server.c`): the text is parsed once to count
/// its values, and then a copy of it, whose strings are decoded in place.
fn decode(text: &[u8]) -> Outcome {
    // The parser doesn't write without the flag, but takes a mutable pointer.
    let mut text = text.to_vec();
    let mut end = ptr::null_mut();
    // SAFETY: the text has this length; no values are asked for.
    let count = unsafe {
        let start = text.as_mut_ptr().cast();
        sys::spdk_json_parse(start, text.len(), ptr::null_mut(), 0, &mut end, 0)
    };
    let Ok(count @ 1..) = usize::try_from(count) else {
        return Outcome::NoJson;
    };
    // No byte too many, so that a checker of memory would see the first that is read past the end.
    let length = end as usize - text.as_ptr() as usize;
    let mut request: Box<[u8]> = text[..length].into();
    let mut values = vec![sys::spdk_json_val::default(); count].into_boxed_slice();
    // SAFETY: the text has this length, and there is room for so many values.
    let again = unsafe {
        let start = request.as_mut_ptr().cast();
        let room = values.as_mut_ptr();
        sys::spdk_json_parse(start, length, room, count, &mut end, DECODE_IN_PLACE)
    };
    assert_eq!(usize::try_from(again), Ok(count), "SPDK's parser says something else each time");
    // SAFETY: the values were parsed, and the text that they point to is still there.
    let (name, check) = unsafe { (decode_name(values.as_ptr()), decode_check(values.as_ptr())) };
    // The check takes what the detach takes, and more.
    if let Some(name) = &name {
        assert_eq!(check, Some((name.clone(), false)));
    }
    match name {
        Some(name) => Outcome::Accepted(name),
        None => Outcome::Refused,
    }
}

// --- The oracle ---

/// JSON in which nothing is lost that matters here: objects keep members with the same key.
enum Json {
    String(String),
    Object(Vec<(String, Json)>),
    Other,
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Json, D::Error> {
        struct AnyJson;

        impl<'de> Visitor<'de> for AnyJson {
            type Value = Json;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }
            fn visit_unit<E>(self) -> Result<Json, E> {
                Ok(Json::Other)
            }
            fn visit_bool<E>(self, _: bool) -> Result<Json, E> {
                Ok(Json::Other)
            }
            fn visit_i64<E>(self, _: i64) -> Result<Json, E> {
                Ok(Json::Other)
            }
            fn visit_u64<E>(self, _: u64) -> Result<Json, E> {
                Ok(Json::Other)
            }
            fn visit_f64<E>(self, _: f64) -> Result<Json, E> {
                Ok(Json::Other)
            }
            fn visit_str<E>(self, text: &str) -> Result<Json, E> {
                Ok(Json::String(text.to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Json, A::Error> {
                while array.next_element::<Json>()?.is_some() {}
                Ok(Json::Other)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Json, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = object.next_entry()? {
                    members.push(member);
                }
                Ok(Json::Object(members))
            }
        }

        deserializer.deserialize_any(AnyJson)
    }
}

/// The name that the params give, by serde_json.
fn expected(text: &[u8]) -> Option<CString> {
    let first = serde_json::Deserializer::from_slice(text).into_iter::<Json>().next()?.ok()?;
    let Json::Object(members) = first else { return None };
    match members.as_slice() {
        [(key, Json::String(name))] if key == "name" => CString::new(name.as_str()).ok(),
        _ => None,
    }
}

// --- The inputs ---

/// The text of a JSON string, or nearly.
fn string() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => select(vec!["lvs/", "snap", "name", "3f1c6a54-0d7c-4a3e-9a70-4b8a7a1b2c3d", "é", "😀"])
            .prop_map(str::to_owned),
        4 => "[ -!#-\\[\\]-~]{0,8}",
        2 => any::<char>().prop_map(String::from),
        2 => select(vec!["\\\"", "\\\\", "\\/", "\\b", "\\f", "\\n", "\\r", "\\t"])
            .prop_map(str::to_owned),
        // Any, halves of surrogate pairs as well.
        1 => any::<u16>().prop_map(|unit| format!("\\u{unit:04x}")),
        1 => (0u8..0x80).prop_map(|letter| format!("\\u{letter:04X}")),
        1 => any::<char>().prop_map(|letter| {
            letter.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect()
        }),
    ];
    let piece = prop_oneof![
        30 => piece,
        1 => (0usize..4000).prop_map(|length| "n".repeat(length)),
    ];
    vec(piece, 0..5).prop_map(|pieces| format!("\"{}\"", pieces.concat()))
}

fn key() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => Just("\"name\"".to_owned()),
        1 => select(vec!["n\\u0061me", "\\u006e\\u0061\\u006d\\u0065"])
            .prop_map(|key| format!("\"{key}\"")),
        1 => select(vec!["Name", "nam", "names", "name\\u0000", " name", "lvol_name", "uuid", ""])
            .prop_map(|key| format!("\"{key}\"")),
        1 => string(),
    ]
}

/// Any JSON.
fn value() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        4 => string(),
        2 => "-?(0|[1-9][0-9]{0,25})(\\.[0-9]{1,5})?([eE][+-]?[0-9]{1,4})?",
        1 => select(vec!["null", "true", "false"]).prop_map(str::to_owned),
    ];
    let value = leaf.prop_recursive(4, 16, 4, |value| {
        prop_oneof![
            vec(value.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(","))),
            object(vec((key(), value), 0..4)),
        ]
    });
    prop_oneof![
        30 => value,
        1 => (1usize..140).prop_map(|depth| "[".repeat(depth) + &"]".repeat(depth)),
    ]
}

fn object(members: impl Strategy<Value = Vec<(String, String)>>) -> impl Strategy<Value = String> {
    (members, "[ \t\r\n]{0,2}").prop_map(|(members, space)| {
        let members: Vec<_> = members
            .iter()
            .map(|(key, value)| format!("{space}{key}{space}:{space}{value}{space}"))
            .collect();
        format!("{{{}}}", members.join(","))
    })
}

/// Params that are right, nearly right, and of any shape.
fn params() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => object(vec((Just("\"name\"".to_owned()), string()), 1)),
        4 => object(vec((key(), value()), 0..4)),
        1 => value(),
    ]
}

/// Something that goes wrong with the bytes.
#[derive(Debug, Clone)]
enum Mutation {
    FlipBit(Index, u8),
    Replace(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    Repeat(Index, usize),
    Truncate(Index),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let token = select(vec![
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"",
        "\\",
        "\\u",
        "\\ud83d",
        "\\u0000",
        "//",
        "/*",
        "*/",
        "-",
        "0",
        "1e",
        ".",
        "null",
        "true",
        "name",
        "\"name\":",
        "\"name\":\"x\"",
        " ",
        "\n",
        "\u{feff}",
    ]);
    prop_oneof![
        (any::<Index>(), 0u8..8).prop_map(|(at, bit)| Mutation::FlipBit(at, bit)),
        (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Mutation::Replace(at, byte)),
        (any::<Index>(), token).prop_map(|(at, token)| Mutation::Insert(at, token.into())),
        (any::<Index>(), vec(any::<u8>(), 1..4)).prop_map(|(at, new)| Mutation::Insert(at, new)),
        (any::<Index>(), 1usize..8).prop_map(|(at, length)| Mutation::Remove(at, length)),
        (any::<Index>(), 1usize..32).prop_map(|(at, length)| Mutation::Repeat(at, length)),
        any::<Index>().prop_map(Mutation::Truncate),
    ]
}

impl Mutation {
    fn apply(self, text: &mut Vec<u8>) {
        if text.is_empty() {
            return;
        }
        let range = |at: Index, length: usize| {
            let start = at.index(text.len());
            start..text.len().min(start + length)
        };
        match self {
            Mutation::FlipBit(at, bit) => *at.get_mut(text) ^= 1 << bit,
            Mutation::Replace(at, byte) => *at.get_mut(text) = byte,
            Mutation::Insert(at, new) => {
                let at = at.index(text.len() + 1);
                text.splice(at..at, new);
            }
            Mutation::Remove(at, length) => drop(text.drain(range(at, length))),
            Mutation::Repeat(at, length) => {
                let range = range(at, length);
                let copy = text[range.clone()].to_vec();
                text.splice(range.end..range.end, copy);
            }
            Mutation::Truncate(at) => text.truncate(at.index(text.len())),
        }
    }
}

/// Bytes that show what they are when a failure is printed.
#[derive(Clone, PartialEq, Eq)]
struct Text(Vec<u8>);

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b\"{}\"", self.0.escape_ascii())
    }
}

fn input() -> impl Strategy<Value = Text> {
    let mutations = prop_oneof![3 => vec(mutation(), 0), 2 => vec(mutation(), 1..4)];
    (params(), mutations).prop_map(|(params, mutations)| {
        let mut text = params.into_bytes();
        for mutation in mutations {
            mutation.apply(&mut text);
        }
        Text(text)
    })
}

// --- The tests ---

/// One input, judged.
fn check(text: &[u8]) -> Result<Outcome, String> {
    let (outcome, expected) = (decode(text), expected(text));
    let name = match &outcome {
        Outcome::Accepted(name) => Some(name),
        Outcome::Refused | Outcome::NoJson => None,
    };
    if name == expected.as_ref() {
        Ok(outcome)
    } else {
        Err(format!("{outcome:?}, but the name is {expected:?}"))
    }
}

#[test]
fn any_params_give_the_name_that_they_have_or_are_refused() {
    let (accepted, refused, no_json) = (Cell::new(0), Cell::new(0), Cell::new(0));
    let config = Config { cases: INPUTS, failure_persistence: None, ..Config::default() };
    let result = TestRunner::new(config).run(&input(), |Text(text)| {
        let counter = match check(&text).map_err(TestCaseError::fail)? {
            Outcome::Accepted(_) => &accepted,
            Outcome::Refused => &refused,
            Outcome::NoJson => &no_json,
        };
        counter.set(counter.get() + 1);
        Ok(())
    });
    match result {
        Ok(()) => {}
        Err(TestError::Fail(reason, input)) => panic!("{reason}, for the params {input:?}"),
        Err(TestError::Abort(reason)) => panic!("{reason}"),
    }
    // If the inputs were all of one kind they would show little.
    for (what, count) in
        [("accepted", &accepted), ("refused", &refused), ("not even JSON", &no_json)]
    {
        assert!(count.get() > INPUTS / 20, "only {} inputs are {what}", count.get());
    }
    let refused = refused.get() + no_json.get();
    println!("fuzz: {INPUTS} inputs ({} accepted, {refused} refused)", accepted.get());
}

#[test]
fn missing_params_are_refused() {
    // SAFETY: null is what SPDK passes if there are no params.
    assert_eq!(unsafe { decode_name(ptr::null()) }, None);
}

/// Both parsers were asked to be sure of what this file's head says of them.
#[test]
fn the_two_parsers_differ_where_it_makes_no_difference() {
    let nested = |depth: usize| {
        format!("{{\"name\":{}{}}}", "[".repeat(depth - 1), "]".repeat(depth - 1)).into_bytes()
    };
    let accepted = |name: &[u8]| Outcome::Accepted(CString::new(name).unwrap());
    for (text, outcome) in [
        (nested(64), Outcome::Refused),
        (nested(65), Outcome::NoJson),
        (nested(129), Outcome::NoJson),
        (br#"{"name":1e999}"#.to_vec(), Outcome::Refused),
        (br#"{"name":"a"} and more"#.to_vec(), accepted(b"a")),
        (br#"{"name":"a\u0000"}"#.to_vec(), Outcome::Refused),
        (br#"{"name":"a","name":"a"}"#.to_vec(), Outcome::Refused),
        (br#"{"name":"\ud83d"}"#.to_vec(), Outcome::NoJson),
        (br#"{"name":"\ud83d\ude00"}"#.to_vec(), accepted("😀".as_bytes())),
        (b"{\"name\":\"\xff\"}".to_vec(), Outcome::NoJson),
        (br#"/* */{"name":"a"}"#.to_vec(), Outcome::NoJson),
    ] {
        assert_eq!(check(&text), Ok(outcome), "{:?}", Text(text));
    }
}
