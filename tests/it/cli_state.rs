//! `codex-sidecar state`, as an operator uses it: a backup, another machine, a damaged file.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Output;

use crate::support::binary::{self, Binary};
use crate::support::{Place, prompt};
use codex_sidecar::pb;
use serde_json::Value;

/// `state` with these arguments, beside what is in the place.
async fn state(place: &Place, arguments: &[&str]) -> Output {
    binary::output(binary::command(place).arg("state").args(arguments)).await
}

fn told(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[track_caller]
fn succeeds(output: &Output) -> String {
    assert!(output.status.success(), "{output:#?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[track_caller]
fn fails(output: &Output, code: i32, words: &[&str]) {
    let told = told(output);
    assert_eq!(output.status.code(), Some(code), "{output:#?}");
    for word in words {
        assert!(told.contains(word), "{word:?} is not in: {told}");
    }
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

/// Without the header, which has the time of the export.
fn body(text: &str) -> String {
    text.split_once('\n').unwrap().1.to_owned()
}

fn of_kind<'a>(lines: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    lines.iter().filter(move |line| line["kind"] == kind)
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[tokio::test]
async fn a_sidecar_moves_to_another_place_with_its_contexts() {
    let sidecar = Binary::start().await;
    let first = sidecar.say("moved", "hello").await;
    let once = pb::RunTurnRequest { request_id: "once".into(), ..prompt("other", "hello") };
    let once = sidecar.run(once).await;
    let info = sidecar.info().await.state.expect("it keeps its state");
    let file = sidecar.place.codex_home().join("sidecar.redb");
    assert_eq!(
        (info.path.as_str(), info.durability()),
        (file.to_str().unwrap(), pb::StateDurability::Power)
    );
    assert_eq!(info.bytes, file.metadata().unwrap().len());
    let shown =
        binary::output(binary::command(&sidecar.place).args(["info", "--addr", &sidecar.address]))
            .await;
    assert!(succeeds(&shown).contains(file.to_str().unwrap()), "{shown:#?}");

    // Of the running one: asked, it answers; its file is its own.
    let asked = state(&sidecar.place, &["export", "--addr", &sidecar.address]).await;
    let asked = succeeds(&asked);
    let told_lines = lines(&asked);
    let context = of_kind(&told_lines, "context").find(|line| line["context_id"] == "moved");
    assert_eq!(context.unwrap()["thread_id"], first.thread_id());
    let turn = of_kind(&told_lines, "turn").find(|line| line["turn_id"] == once.turn_id()).unwrap();
    assert_eq!(turn["requests"][0]["request_id"], "once");
    assert_eq!(turn["end"]["event"]["turn_completed"]["final_response"], once.final_response());
    let address = sidecar.address.clone();
    let pid = format!("pid {}", sidecar.pid());
    for arguments in [&["check"][..], &["export"]] {
        let refused = state(&sidecar.place, arguments).await;
        fails(&refused, 69, &[file.to_str().unwrap(), &pid, "state export --addr", &address]);
        assert!(refused.stdout.is_empty());
    }
    let backup = sidecar.place.path().join("state.jsonl");
    std::fs::write(&backup, &asked).unwrap();
    let refused = state(&sidecar.place, &["import", backup.to_str().unwrap()]).await;
    fails(&refused, 69, &[file.to_str().unwrap(), &pid, "end it first"]);

    // Of one that has ended: its file says the same.
    let place = sidecar.stop().await;
    let checked = succeeds(&state(&place, &["check", "--json"]).await);
    let checked: Value = serde_json::from_str(&checked).unwrap();
    assert_eq!((&checked["state"], &checked["counts"]["contexts"]), (&"whole".into(), &2.into()));
    let exported = state(&place, &["export", "-o", backup.to_str().unwrap()]).await;
    assert_eq!(succeeds(&exported), "");
    assert_eq!(backup.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let exported = std::fs::read_to_string(&backup).unwrap();
    assert_eq!(body(&exported), body(&asked));

    // Another place, with the threads but not the state.
    let other = Place::new();
    copy(&place.codex_home().join("sessions"), &other.codex_home().join("sessions"));
    let missing = state(&other, &["check"]).await;
    fails(&missing, 1, &[other.codex_home().to_str().unwrap(), "no state"]);
    for expected in ["new           2 contexts", "there already 2 contexts"] {
        let imported = state(&other, &["import", backup.to_str().unwrap()]).await;
        assert!(succeeds(&imported).contains(expected), "{imported:#?}");
    }
    let moved = Binary::cold(other, |_| {}).await;
    moved.ready().await;
    let told = moved.say("moved", "again").await;
    assert_eq!(told.thread_id(), first.thread_id());
    assert_eq!(told.final_response(), "You said: again (user messages so far: 2)");
    // The turn has run already.
    let again = pb::RunTurnRequest {
        request_id: "once".into(),
        thread_options: Some(pb::ThreadOptions {
            working_directory: Some(place.work().display().to_string()),
            ..Default::default()
        }),
        ..prompt("other", "hello")
    };
    let mut again = moved.try_begin(again).await.unwrap();
    while again.try_next().await.unwrap().is_some() {}
    assert_eq!(again.turn_id(), once.turn_id());
    assert_eq!(again.events.last(), once.events.last());
    moved.stop().await;
}

#[tokio::test]
async fn a_damaged_state_is_refused_with_the_commands_that_save_what_can_be_read() {
    let sidecar = Binary::start().await;
    let first = sidecar.say("kept", "hello").await;
    let place = sidecar.stop().await;
    let file = place.codex_home().join("sidecar.redb");
    let mut bytes = std::fs::read(&file).unwrap();
    // All that says where things are.
    bytes[..512].fill(0);
    std::fs::write(&file, &bytes).unwrap();

    let mut serve = binary::command(&place);
    serve.args(["serve", "--offline-model", "--listen", "127.0.0.1:0"]);
    let refused = binary::output(&mut serve).await;
    let commands =
        ["state check", "state export", "mv ", "state import --partial", "start the sidecar"];
    fails(&refused, 64, &[&[file.to_str().unwrap(), "damaged"][..], &commands].concat());
    assert_eq!(std::fs::read(&file).unwrap(), bytes, "it was written to");

    // What it says, done in its order.
    let error = told(&refused);
    let commands: Vec<Vec<&str>> = error
        .lines()
        .filter_map(|line| line.strip_prefix("  "))
        .map(|line| line.split(' ').collect())
        .collect();
    let mut codes = Vec::new();
    for command in &commands {
        let output = match command[..] {
            ["codex-sidecar", "state", ..] => state(&place, &command[2..]).await,
            ["mv", from, to] => {
                std::fs::rename(from, to).unwrap();
                continue;
            }
            _ => panic!("{error}"),
        };
        codes.push(output.status.code());
        assert!(!told(&output).contains("panicked"), "{output:#?}");
    }
    assert_eq!(codes, [Some(1), Some(0)], "the export says that not all was read");
    let saved = std::fs::read_to_string(file.with_extension("redb.jsonl")).unwrap();
    assert_eq!(lines(&saved).last().unwrap()["partial"], true, "{saved}");

    let sidecar = Binary::cold(place, |_| {}).await;
    sidecar.ready().await;
    assert_eq!(sidecar.say("kept", "again").await.thread_id(), first.thread_id());
    sidecar.stop().await;
}

#[tokio::test]
async fn the_file_is_found_as_serve_finds_it() {
    let place = Place::new();
    let named = |name: &str| place.path().join(name).display().to_string();
    let config = place.path().join("sidecar.toml");
    std::fs::write(&config, "[state]\npath = \"configured.redb\"\n").unwrap();
    type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], String);
    let cases: [Case<'_>; 6] = [
        (&[], &[], place.codex_home().join("sidecar.redb").display().to_string()),
        (&["--codex-home", &named("h")], &[], named("h/sidecar.redb")),
        (&[], &[("CODEX_SIDECAR_STATE", &named("e"))], named("e")),
        (&["--state", &named("f")], &[("CODEX_SIDECAR_STATE", &named("e"))], named("f")),
        (&[&named("p")], &[("CODEX_SIDECAR_STATE", &named("e"))], named("p")),
        (&["--config", config.to_str().unwrap()], &[], named("configured.redb")),
    ];
    for (arguments, variables, expected) in cases {
        let mut command = binary::command(&place);
        command.args(["state", "check", "--json"]).args(arguments).envs(variables.iter().copied());
        let output = binary::output(&mut command).await;
        let line: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&line["state"], &line["path"]), (&"missing".into(), &expected.into()));
    }
    fails(&state(&place, &["check", "--state", "memory"]).await, 64, &["memory", "--state"]);
    let sidecar = Binary::with(|command| _ = command.args(["--state", "memory"])).await;
    let refused = state(&sidecar.place, &["export", "--addr", &sidecar.address]).await;
    fails(&refused, 3, &["STATE_IN_MEMORY", "--state memory"]);
    assert_eq!(sidecar.info().await.state, None);
    sidecar.stop().await;
}
