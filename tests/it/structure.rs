//! Which room of the house may see which: read from the sources, by their tokens.
//!
//! - **Direction.** [`FLOORS`] is the one list of rooms, lowest first. What begins with `crate::` or
//!   climbs out of its room with `super::` leads down, or to a neighbour that [`NEIGHBOURS`] allows;
//!   in imports, in code, in macros, in tests.
//! - **Codex's words.** Outside of `app_server` no string is, as a whole, the name of one of Codex's
//!   methods, and nothing names a constant of the module `method`. In the rooms that handle what Codex
//!   says, `worker`, `pool` and `turn`, nothing names `serde_json` or `json!`. Other rooms have JSON of
//!   their own: the offline model plays the model's API and not Codex, `cli/exec` prints the lines of
//!   `codex exec`, `grpc`, `config` and `output_schema` read what a caller or an owner wrote. Tests are
//!   left out: who tests a worker plays Codex.
//! - **tonic.** Only `grpc` and `app` name it, or a crate that belongs to it.
//!
//! Comments, documentation and other strings are no part of it, and neither is generated code.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, Group, Ident, Literal, TokenStream, TokenTree};

/// The rooms, lowest floor first.
const FLOORS: &[&[&str]] = &[
    &["model", "pb"],
    &[
        "access",
        "process",
        "app_server",
        "redact",
        "output_schema",
        "codex_cli",
        "telemetry",
        "offline_model",
    ],
    &["registry"],
    &["worker"],
    &["pool"],
    &["turn"],
    &["grpc"],
    &["config"],
    &["app"],
    &["cli", "parts"],
    // Only there for tests: a whole sidecar in memory, and what is tested on it.
    &["testing"],
    &["tests"],
];

/// Who may see whom on its own floor.
const NEIGHBOURS: &[(&str, &str)] = &[("model", "pb")];

/// The rooms that handle what Codex says, and must not know how it is written.
const NO_JSON: &[&str] = &["worker", "pool", "turn"];

/// What the names of Codex's methods begin with.
const METHOD_FAMILIES: &[&str] = &[
    "account",
    "app",
    "command",
    "config",
    "item",
    "mcpServer",
    "mcpServerStatus",
    "model",
    "permissionProfile",
    "rawResponseItem",
    "serverRequest",
    "skills",
    "thread",
    "turn",
];

/// The rooms that know tonic; those for tests call services.
const KNOW_TONIC: &[&str] = &["app", "grpc", "testing", "tests"];

/// What does not hold yet, by file and rule. To become empty; what no longer occurs has to go from here
/// at once.
const EXCEPTIONS: &[(&str, &str)] = &[];

const TONIC: &str = "only grpc and app know tonic";
const CODEX: &str = "only app_server knows how Codex writes";
const UP: &str = "a higher floor";
const NEIGHBOUR: &str = "a neighbour that it must not see";
const UNKNOWN: &str = "no room that has a floor";

/// Something that a file must not name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Fault {
    file: String,
    line: usize,
    names: String,
    rule: &'static str,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fault { file, line, names, rule } = self;
        write!(f, "{file}:{line}: {names}: {rule}")
    }
}

/// A source file: its path below the repository, its modules, its tokens.
struct Source {
    file: String,
    modules: Vec<String>,
    tokens: TokenStream,
}

impl Source {
    fn new(file: &str, text: &str) -> Source {
        let below = file.strip_prefix("src/").unwrap_or(file).trim_end_matches(".rs");
        let mut modules: Vec<String> = below.split('/').map(str::to_owned).collect();
        if modules.last().is_some_and(|last| last == "mod") {
            modules.pop();
        }
        let tokens = text.parse().unwrap_or_else(|error| panic!("{file}: {error}"));
        Source { file: file.to_owned(), modules, tokens }
    }

    /// The crate's roots declare the rooms, and belong to none.
    fn is_root(&self) -> bool {
        matches!(self.file.as_str(), "src/lib.rs" | "src/main.rs")
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Vec::new();
    let mut directories = vec![root.join("src")];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let file = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                sources.push(Source::new(&file, &std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    sources
}

/// All that is wrong with these files.
fn faults(sources: &[Source]) -> BTreeSet<Fault> {
    let mut reader = Reader::default();
    for source in sources {
        reader.source = source.file.clone();
        reader.modules = source.modules.clone();
        reader.is_root = source.is_root();
        if reader.is_root {
            reader.modules.clear();
        }
        reader.read(source.tokens.clone());
    }
    let Reader { mut faults, tests, .. } = reader;
    // Which files are tests is known only when all are read.
    let test_files: BTreeSet<&str> = sources
        .iter()
        .filter(|source| tests.iter().any(|test| source.modules.starts_with(test)))
        .map(|source| source.file.as_str())
        .collect();
    faults.retain(|fault| fault.rule != CODEX || !test_files.contains(fault.file.as_str()));
    faults
}

#[derive(Default)]
struct Reader {
    source: String,
    modules: Vec<String>,
    is_root: bool,
    in_test: bool,
    faults: BTreeSet<Fault>,
    /// Modules that are only there for tests and have files of their own.
    tests: Vec<Vec<String>>,
}

impl Reader {
    fn room(&self) -> &str {
        self.modules.first().map_or("", String::as_str)
    }

    fn fault(&mut self, line: usize, names: impl Into<String>, rule: &'static str) {
        self.faults.insert(Fault { file: self.source.clone(), line, names: names.into(), rule });
    }

    fn read(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let outside = self.in_test;
        let mut at = 0;
        while let Some(token) = tokens.get(at) {
            at += 1;
            match token {
                TokenTree::Punct(punct) if punct.as_char() == '#' => {
                    at += usize::from(is_punct(&tokens, at, '!'));
                    if let Some(TokenTree::Group(attribute)) = tokens.get(at) {
                        // To the end of the item.
                        self.in_test |= is_cfg_test(attribute);
                        at += 1;
                    }
                }
                TokenTree::Punct(punct) if punct.as_char() == ';' => self.in_test = outside,
                TokenTree::Punct(_) => {}
                TokenTree::Literal(literal) => self.literal(literal),
                TokenTree::Group(group) => {
                    self.read(group.stream());
                    if group.delimiter() == Delimiter::Brace {
                        self.in_test = outside;
                    }
                }
                TokenTree::Ident(word) if word == "mod" => {
                    let Some(TokenTree::Ident(name)) = tokens.get(at) else { continue };
                    self.modules.push(name.to_string());
                    if let Some(TokenTree::Group(body)) = tokens.get(at + 1) {
                        self.read(body.stream());
                        self.in_test = outside;
                        at += 2;
                    } else if self.in_test {
                        self.tests.push(self.modules.clone());
                    }
                    self.modules.pop();
                }
                TokenTree::Ident(word) => at = self.word(word, &tokens, at),
            }
        }
        self.in_test = outside;
    }

    /// Reads a word and the path that it begins; gives where to go on.
    fn word(&mut self, word: &Ident, tokens: &[TokenTree], at: usize) -> usize {
        let line = word.span().start().line;
        let text = word.to_string();
        let is_path = is_colons(tokens, at);
        match text.as_str() {
            "crate" if is_path => self.path(&[], line, tokens, at + 2),
            "self" if is_path => self.path(&self.modules.clone(), line, tokens, at + 2),
            "super" if is_path => {
                let above = self.modules.split_last().map_or(&[][..], |(_, above)| above).to_vec();
                self.path(&above, line, tokens, at + 2)
            }
            _ => {
                if (text == "tonic" || text.starts_with("tonic_"))
                    && is_path
                    && !KNOW_TONIC.contains(&self.room())
                {
                    self.fault(line, text.clone(), TONIC);
                }
                if text == "serde_json" || (text == "json" && is_punct(tokens, at, '!')) {
                    self.json(text.clone(), line);
                }
                if text == "method"
                    && is_path
                    && let Some(TokenTree::Ident(constant)) = tokens.get(at + 2)
                {
                    self.method(&constant.to_string(), line);
                }
                at
            }
        }
    }

    /// Follows a path from the module `from` to whatever it names; gives where to go on.
    fn path(&mut self, from: &[String], line: usize, tokens: &[TokenTree], at: usize) -> usize {
        match tokens.get(at) {
            Some(TokenTree::Group(group)) => {
                // A branching import, each branch with a line of its own.
                let branches: Vec<TokenTree> = group.stream().into_iter().collect();
                let mut next = 0;
                while let Some(branch) = branches.get(next) {
                    let line = branch.span().start().line;
                    next = self.path(from, line, &branches, next).max(next + 1);
                    while next < branches.len() && !is_punct(&branches, next, ',') {
                        next += 1;
                    }
                    next += 1;
                }
                at + 1
            }
            Some(TokenTree::Ident(word)) => {
                let mut to = from.to_vec();
                match word.to_string().as_str() {
                    "super" => {
                        to.pop();
                    }
                    "self" => {}
                    name => to.push(name.to_owned()),
                }
                if is_colons(tokens, at + 1) {
                    return self.path(&to, line, tokens, at + 3);
                }
                self.names(&to, line);
                at + 1
            }
            // A glob names the module before it; anything else, such as `::<`, ends a path.
            _ => {
                self.names(from, line);
                at
            }
        }
    }

    /// Something of another module is named.
    fn names(&mut self, path: &[String], line: usize) {
        if self.is_root {
            return;
        }
        let shown = path.join("::");
        if let Some(at) = path.iter().position(|word| word == "method")
            && let Some(constant) = path.get(at + 1)
        {
            self.method(constant, line);
        }
        let own = self.room().to_owned();
        let Some(room) = path.first().filter(|room| **room != own) else { return };
        let floor = |room: &str| FLOORS.iter().position(|floor| floor.contains(&room));
        match (floor(&own), floor(room)) {
            (Some(here), Some(there)) if there < here => {}
            (Some(here), Some(there)) if there > here => self.fault(line, shown, UP),
            (Some(_), Some(_)) => {
                if !NEIGHBOURS.contains(&(own.as_str(), room)) {
                    self.fault(line, shown, NEIGHBOUR);
                }
            }
            _ => self.fault(line, shown, UNKNOWN),
        }
    }

    fn json(&mut self, word: String, line: usize) {
        if NO_JSON.contains(&self.room()) && !self.in_test {
            self.fault(line, word, CODEX);
        }
    }

    fn method(&mut self, constant: &str, line: usize) {
        let is_constant = constant.chars().all(|c| c.is_ascii_uppercase() || c == '_');
        if is_constant && !self.in_test && self.room() != "app_server" {
            self.fault(line, format!("method::{constant}"), CODEX);
        }
    }

    fn literal(&mut self, literal: &Literal) {
        let text = literal.to_string();
        let text = text.trim_start_matches('r').trim_matches('#');
        let Some(text) = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) else {
            return;
        };
        let mut words = text.split('/');
        let family = words.next().is_some_and(|family| METHOD_FAMILIES.contains(&family));
        let is_word =
            |word: &str| !word.is_empty() && word.chars().all(|c| c.is_ascii_alphabetic());
        let is_method = family && text.contains('/') && words.all(is_word);
        if is_method && !self.in_test && self.room() != "app_server" {
            self.fault(literal.span().start().line, format!("{text:?}"), CODEX);
        }
    }
}

fn is_colons(tokens: &[TokenTree], at: usize) -> bool {
    is_punct(tokens, at, ':') && is_punct(tokens, at + 1, ':')
}

fn is_punct(tokens: &[TokenTree], at: usize, wanted: char) -> bool {
    matches!(tokens.get(at), Some(TokenTree::Punct(punct)) if punct.as_char() == wanted)
}

/// Whether an attribute is `#[cfg(test)]` or `#[cfg(all(test, …))]`.
fn is_cfg_test(attribute: &Group) -> bool {
    let text: String = attribute.stream().to_string().split_whitespace().collect();
    text == "cfg(test)" || text.starts_with("cfg(all(test,")
}

#[test]
fn every_room_sees_only_what_lies_below_it() {
    let sources = sources();
    let rooms: BTreeSet<&str> = sources
        .iter()
        .filter(|source| !source.is_root())
        .map(|source| source.modules[0].as_str())
        .collect();
    // Generated, so without a file.
    let with_a_floor: BTreeSet<&str> =
        FLOORS.iter().copied().flatten().copied().filter(|room| *room != "pb").collect();
    assert_eq!(rooms, with_a_floor, "rooms, and rooms with a floor");

    let mut left: BTreeSet<(&str, &str)> = EXCEPTIONS.iter().copied().collect();
    let found = faults(&sources);
    let mut told = Vec::new();
    for fault in &found {
        let excepted =
            EXCEPTIONS.iter().find(|(file, rule)| *file == fault.file && *rule == fault.rule);
        match excepted {
            Some(exception) => {
                left.remove(exception);
            }
            None => told.push(fault.to_string()),
        }
    }
    assert!(told.is_empty(), "\n{}\n", told.join("\n"));
    assert!(left.is_empty(), "these exceptions occur no longer and have to go: {left:#?}");
}

/// What is found in these files, without their paths.
fn planted(files: &[(&str, &str)]) -> Vec<(usize, String, &'static str)> {
    let sources: Vec<Source> = files.iter().map(|(file, text)| Source::new(file, text)).collect();
    let found = faults(&sources).into_iter();
    found.map(|Fault { file: _, line, names, rule }| (line, names, rule)).collect()
}

fn one(file: &str, text: &str) -> Vec<(usize, String, &'static str)> {
    planted(&[(file, text)])
}

fn told(line: usize, names: &str, rule: &'static str) -> (usize, String, &'static str) {
    (line, names.to_owned(), rule)
}

#[test]
fn a_look_upstairs_is_found_however_it_is_written() {
    let import =
        "use crate::{\n    model::id,\n    grpc::{status, stream::{self, EventStream}},\n};";
    assert_eq!(
        one("src/turn/log.rs", import),
        [
            told(3, "grpc::status", UP),
            told(3, "grpc::stream", UP),
            told(3, "grpc::stream::EventStream", UP),
        ]
    );
    let code =
        "fn f() {\n    crate::cli::main::<u8>();\n    other!(x => crate::app::App::start());\n}";
    assert_eq!(
        one("src/pool/mod.rs", code),
        [told(2, "cli::main", UP), told(3, "app::App::start", UP)]
    );
    assert_eq!(one("src/pool/mod.rs", "use crate::turn::*;"), [told(1, "turn", UP)]);
    assert_eq!(one("src/pool/mod.rs", "use crate::turn as t;"), [told(1, "turn", UP)]);
    assert_eq!(one("src/worker.rs", "use super::pool::Pool;"), [told(1, "pool::Pool", UP)]);
    let climbing =
        "use super::super::turn::Turn;\nmod inner { use super::super::super::grpc as g; }";
    assert_eq!(
        one("src/worker/mcp.rs", climbing),
        [told(1, "turn::Turn", UP), told(2, "grpc", UP)]
    );
    let test = "#[cfg(test)]\nmod tests {\n    use crate::config::Config;\n}";
    assert_eq!(one("src/grpc/limits.rs", test), [told(3, "config::Config", UP)]);
}

#[test]
fn a_look_at_a_neighbour_is_found_unless_it_is_allowed() {
    let spawn = "use crate::process::ProcessSpec;";
    assert_eq!(one("src/app_server/peer.rs", spawn), [told(1, "process::ProcessSpec", NEIGHBOUR)]);
    let peer = "use crate::app_server::peer::Peer;";
    assert_eq!(one("src/process/mod.rs", peer), [told(1, "app_server::peer::Peer", NEIGHBOUR)]);
    assert_eq!(one("src/model/item.rs", "use crate::pb::Item;"), []);
    assert_eq!(one("src/model/item.rs", "use crate::attic::Chest;")[0].2, UNKNOWN);
}

#[test]
fn what_leads_down_or_stays_or_is_only_talked_of_is_left_alone() {
    let text = r##"
        //! [`crate::cli`] and `use crate::grpc::status;`
        use std::fmt;
        use self::log::Log;
        use super::turns::{Turns, inner::{self, Turn}};
        use crate::model::{self, id::TurnId};
        pub(crate) struct Shown; // crate::app::App
        pub(in crate::turn) struct Hidden;
        /* crate::app::App */
        /// [`App`](crate::app::App)
        fn f(text: &'static str) -> TurnId { g("crate::app::App", r#"use crate::cli;"#, 'c') }
        mod tests { use super::*; use super::super::turns; }
    "##;
    assert_eq!(one("src/turn/machine.rs", text), []);
    assert_eq!(one("src/main.rs", "fn main() { codex_sidecar::cli::main() }"), []);
}

#[test]
fn codexs_words_are_found_outside_of_its_room() {
    let literal = "fn f() {\n    call(\"thread/goal/clear\");\n}";
    let rule = CODEX;
    assert_eq!(one("src/turn/open.rs", literal), [told(2, "\"thread/goal/clear\"", rule)]);
    assert_eq!(one("src/cli/run.rs", literal), [told(2, "\"thread/goal/clear\"", rule)]);
    assert_eq!(one("src/app_server/method.rs", literal), []);
    let constants = "use crate::app_server::method;\nfn f() { method::TURN_START }";
    assert_eq!(one("src/worker/mod.rs", constants), [told(2, "method::TURN_START", rule)]);
    let imported = "use crate::app_server::method::{LoadOptions, TURN_START};";
    assert_eq!(one("src/worker/mod.rs", imported), [told(1, "method::TURN_START", rule)]);
    let json = "use serde_json::Value;\nfn f(json: &str) {\n    json!({})\n}";
    let expected = [told(1, "serde_json", rule), told(3, "json", rule)];
    for file in ["src/worker/mcp.rs", "src/pool/mod.rs", "src/turn/log.rs"] {
        assert_eq!(one(file, json), expected, "{file}");
    }
    for file in ["src/offline_model/sse.rs", "src/cli/exec/jsonl.rs", "src/grpc/page_token.rs"] {
        assert_eq!(one(file, json), [], "{file}");
    }
    let sentences = "fn f() { say(\"turn/start was refused\", \"refs/heads/main\", \"item\") }";
    assert_eq!(one("src/turn/open.rs", sentences), []);
}

#[test]
fn a_test_may_play_codex() {
    let inline = "#[cfg(all(test, unix))]\nmod tests {\n    const M: &str = \"turn/start\";\n    use serde_json::json;\n}\nuse serde_json::Value;";
    assert_eq!(one("src/worker/mod.rs", inline), [told(6, "serde_json", CODEX)]);
    let played = "const M: &str = \"turn/start\";\nuse crate::pool::Pool;";
    let files = [
        ("src/worker/mod.rs", "#[cfg(test)]\nmod tests;\nmod route;"),
        ("src/worker/tests.rs", played),
    ];
    assert_eq!(planted(&files), [told(2, "pool::Pool", UP)]);
    let files = [("src/worker/mod.rs", "mod played;"), ("src/worker/played.rs", played)];
    assert_eq!(planted(&files).len(), 2);
}

#[test]
fn tonic_is_found_outside_of_the_edge() {
    let text = "use tonic::Status;\nfn f() -> tonic_types::ErrorDetails { tonic }";
    let expected = [told(1, "tonic", TONIC), told(2, "tonic_types", TONIC)];
    assert_eq!(one("src/cli/failure.rs", text), expected);
    assert_eq!(one("src/lib.rs", text), expected);
    assert_eq!(one("src/grpc/status.rs", text), []);
    assert_eq!(one("src/app/listen.rs", text), []);
}
