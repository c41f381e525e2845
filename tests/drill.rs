//! The drill of `docs/operations.md`: its commands are run in a shell, against a real target,
//! and print what the document says.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use common::target::Target;

/// The document's, which another target on this machine may have.
const PORT: &str = "3260";

/// A command, which may have several lines, and what it prints.
#[derive(Debug, Default)]
struct Step {
    command: String,
    output: String,
}

/// What is in the fences of this kind, in one section of a document.
fn steps(document: &str, section: &str) -> Vec<Step> {
    let start = document.find(&format!("\n## {section}\n")).expect("the section is there") + 1;
    let text = &document[start..];
    let text = text[3..].find("\n## ").map_or(text, |end| &text[..end + 3]);
    let mut steps: Vec<Step> = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        if let Some(kind) = line.strip_prefix("```") {
            assert!(inside || kind == "console", "a fence that no test runs: {line}");
            inside = !inside;
        } else if let Some(command) = line.strip_prefix("$ ").filter(|_| inside) {
            steps.push(Step { command: format!("{command}\n"), ..Step::default() });
        } else if inside {
            let step = steps.last_mut().expect("an output follows a command");
            match line.strip_prefix("> ").filter(|_| step.output.is_empty()) {
                Some(more) => step.command += &format!("{more}\n"),
                None => step.output += &format!("{line}\n"),
            }
        }
    }
    steps
}

/// UUIDs are others each time.
fn masked(text: &str) -> String {
    let is_uuid = |word: &str| {
        let lengths: Vec<_> = word.split('-').map(str::len).collect();
        lengths == [8, 4, 4, 4, 12]
    };
    let words = text.split_inclusive(|c: char| !c.is_ascii_hexdigit() && c != '-');
    words
        .map(|word| {
            let end = word.trim_end_matches(|c: char| !c.is_ascii_hexdigit());
            if is_uuid(end) { word.replace(end, "UUID") } else { word.to_owned() }
        })
        .collect()
}

#[test]
#[cfg_attr(
    not(spdk_blob_set_parent),
    ignore = "this SPDK has neither a set parent nor a shallow copy"
)]
fn the_drill_goes_as_it_says() {
    const MARK: &str = "--- the next step ---";
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = fs::read_to_string(root.join("docs/operations.md")).unwrap();
    let steps = steps(&document, "A drill");
    assert!(steps.len() > 20, "{steps:?}");
    let target = Target::start();
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    drop(listener);

    let mut script = String::from("spdk-rpc() { command spdk-rpc -s \"$SOCKET\" \"$@\"; }\n");
    for step in &steps {
        script += &step.command.replace(PORT, &port);
        script += &format!("echo '{MARK}'\n");
    }
    let output = Command::new("bash")
        .args(["-c", &format!("exec 2>&1\n{script}")])
        .current_dir(target.dir())
        .env("SOCKET", target.rpc().socket())
        .env("PYTHONPATH", root.join("python"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .unwrap();

    let printed = String::from_utf8(output.stdout).unwrap();
    let mark = format!("{MARK}\n");
    let mut printed = printed.split(mark.as_str());
    let mut wrong = String::new();
    for step in &steps {
        let printed = printed.next().unwrap_or_default().replace(&port, PORT);
        if masked(&printed) != masked(&step.output) {
            wrong += &format!("$ {}{printed}instead of\n{}", step.command, step.output);
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}
