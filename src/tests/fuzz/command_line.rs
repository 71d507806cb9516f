//! What the command line reads that others have written: overrides, durations, forms of MCP servers, the
//! messages of MCP clients; and what processes say of themselves.

use std::path::Path;

use serde_json::Value;

use super::Target;
use crate::cli::args;
use crate::cli::ask::form;
use crate::cli::exec::overrides::Overrides;
use crate::cli::mcp::{arguments, envelope::Envelope};
use crate::process::guard_wire::Word;
use crate::process::tree::Stat;

pub(super) const TARGETS: &[Target] = &[
    Target { name: "cli::overrides", seeds: overrides_seeds, holds: overrides, share: 100 },
    Target { name: "cli::mcp", seeds: calls, holds: call, share: 100 },
    Target { name: "cli::form", seeds: forms, holds: form, share: 50 },
    Target { name: "cli::arguments", seeds: texts, holds: text, share: 20 },
    Target { name: "process::guard_wire", seeds: words, holds: word, share: 20 },
    Target { name: "process::tree", seeds: stats, holds: stat, share: 20 },
];

fn overrides_seeds() -> Vec<Vec<u8>> {
    let all = [
        "model=\"m\"\nmodel=x\na.b.c=1\na.b={ d = [1, 2.5], \"e.f\" = true }\na.b.e=2",
        "sandbox_workspace_write.writable_roots=[\"/a\"]\nx=1979-05-27T07:32:00Z\ny={ z = { w = 1 } }\ny.z.w.v=2",
    ];
    all.map(|text| text.as_bytes().to_vec()).to_vec()
}

/// None of what is left lies within another.
fn overrides(lines: &[u8]) {
    let Ok(lines) = std::str::from_utf8(lines) else { return };
    let lines: Vec<String> = lines.lines().map(str::to_owned).collect();
    let Ok(overrides) = Overrides::parse(&lines) else { return };
    let Ok(Some(fields)) = overrides.into_struct() else { return };
    let paths: Vec<&str> = fields.fields.keys().map(String::as_str).collect();
    for pair in paths.windows(2) {
        let within = pair[1].strip_prefix(pair[0]);
        assert!(!within.is_some_and(|rest| rest.starts_with('.')), "{paths:?}");
    }
}

fn calls() -> Vec<Vec<u8>> {
    let calls = [
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"codex","arguments":{"prompt":"p","cwd":"sub","sandbox":"read-only","approval-policy":"never","model":"m","config":{"a.b":1,"c":{"d.e":[1]},"c.f":null},"base-instructions":"b"}}}"#,
        r#"{"jsonrpc":"2.0","id":"x","result":{"action":"accept","content":{}}}"#,
        r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}"#,
    ];
    calls.map(|text| text.as_bytes().to_vec()).to_vec()
}

/// An answer is told apart from what wants one.
fn call(message: &[u8]) {
    let envelope = Envelope::of(message);
    assert!(!(envelope.is_notification && envelope.id.is_some()));
    let Ok(message) = serde_json::from_slice::<Value>(message) else { return };
    if let Value::Object(arguments) = &message["params"]["arguments"] {
        _ = arguments::codex(arguments.clone(), Path::new("/work"));
    }
}

fn forms() -> Vec<Vec<u8>> {
    let forms = [
        r#"{"type":"object","properties":{"a":{"type":"string","title":"A","minLength":1,"format":"email"},"n":{"type":"integer","minimum":1,"maximum":9,"default":3},"b":{"type":"boolean"},"c":{"type":"string","enum":["x","y"],"enumNames":["X","Y"]},"l":{"type":"array","items":{"anyOf":[{"const":"u","title":"U"}]},"minItems":1}},"required":["a"]}"#,
    ];
    forms.map(|text| text.as_bytes().to_vec()).to_vec()
}

fn form(schema: &[u8]) {
    let Ok(schema) = std::str::from_utf8(schema) else { return };
    let fields = form::of(schema);
    let Some(content) = form::by_default(schema) else { return };
    assert!(fields.is_ok() && content.is_object());
}

fn texts() -> Vec<Vec<u8>> {
    ["1h 30m", "500ms", "0", "name=/a/path"].map(|text| text.as_bytes().to_vec()).to_vec()
}

fn text(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    if let Ok(duration) = args::duration(text) {
        _ = args::to_protobuf(duration);
    }
    _ = args::positive_duration(text);
    if let Ok((name, value)) = args::parts("--skill", "NAME=FILE", text) {
        assert!(name.len() + value.len() < text.len());
    }
}

fn words() -> Vec<Vec<u8>> {
    ["started 7\n", "failed 2", "ended 256"].map(|text| text.as_bytes().to_vec()).to_vec()
}

/// As it is said, it is understood.
fn word(line: &[u8]) {
    let Ok(line) = std::str::from_utf8(line) else { return };
    if let Some(word) = Word::parse(line) {
        assert_eq!(Word::parse(&word.to_string()), Some(word));
    }
}

fn stats() -> Vec<Vec<u8>> {
    let stats = [
        "42 (co) dex)) S 1 42 42 0 -1 4194560 100 0 0 0 1 2 0 0 20 0 1 0 123456 1000 200 18446744073709551615",
        "7 (sh) Z 42 42 42 0 -1 4 0 0 0 0 0 0 0 0 20 0 1 0 99 0 0",
    ];
    stats.map(|text| text.as_bytes().to_vec()).to_vec()
}

/// A process may call itself whatever it likes.
fn stat(line: &[u8]) {
    let renamed = |name: &str| {
        let after = line.iter().rposition(|byte| *byte == b')')?;
        Stat::parse(7, &[b"7 (", name.as_bytes(), &line[after..]].concat())
    };
    let stat = Stat::parse(7, line);
    assert_eq!(format!("{:?}", renamed("a) S 1 1 1 (")), format!("{stat:?}"));
}
