//! The sidecar ends, by its own way or by SIGKILL, and another one starts where it was: nothing that was
//! told is forgotten, and nothing runs twice. On the built binary and the real CLI.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::support::attached::{by_context, by_id};
use crate::support::binary::{self, Binary};
use crate::support::turn::is_terminal;
use crate::support::{Client, Place, codex_path, eventually, prompt, unsandboxed};
use codex_sidecar::pb;
use codex_sidecar::pb::turn_event::Event;
use tonic::Code;

/// The file that outlives the sidecar, unless it is told otherwise.
fn state(place: &Place) -> PathBuf {
    place.codex_home().join("sidecar.redb")
}

fn with_id(request: pb::RunTurnRequest, id: &str) -> pb::RunTurnRequest {
    pb::RunTurnRequest { request_id: id.to_owned(), ..request }
}

fn under(policy: pb::BusyPolicy, request: pb::RunTurnRequest) -> pb::RunTurnRequest {
    pb::RunTurnRequest { busy_policy: policy.into(), ..request }
}

/// A turn that writes a line into this file each time that a model is asked for it, and then works
/// until the other one is there.
fn counted(context: &str, count: &Path, go: &Path) -> pb::RunTurnRequest {
    let (count, go) = (count.display(), go.display());
    let command = format!("echo ran >> '{count}'; until [ -e '{go}' ]; do sleep 0.05; done");
    unsandboxed(context, &format!("[[run {command}]] [[say it is done]]"))
}

fn lines(file: &Path) -> usize {
    std::fs::read_to_string(file).unwrap_or_default().lines().count()
}

async fn until_it_runs(count: &Path) {
    eventually("the turn's command", async || (lines(count) > 0).then_some(())).await;
}

async fn bind(client: &Client, context: &str, thread_id: &str) {
    let request = pb::BindContextRequest {
        context_id: context.to_owned(),
        thread_id: thread_id.to_owned(),
        ..Default::default()
    };
    client.codex().bind_context(request).await.unwrap();
}

async fn delete(client: &Client, context: &str) {
    let request = pb::DeleteContextRequest { context_id: context.to_owned(), ..Default::default() };
    client.codex().delete_context(request).await.unwrap();
}

fn is_thread_started(event: &&pb::TurnEvent) -> bool {
    matches!(event.event, Some(Event::ThreadStarted(_)))
}

/// What must be left of a turn: its `thread_started` and, if it was told, its terminal event, just as they
/// were told, and gaps for the rest.
fn assert_kept(told: &[pb::TurnEvent], kept: &[pb::TurnEvent]) {
    let started: Vec<_> = told.iter().filter(is_thread_started).collect();
    assert_eq!(kept.iter().filter(is_thread_started).collect::<Vec<_>>(), started, "{kept:#?}");
    if let Some(terminal) = told.last().filter(|event| is_terminal(event)) {
        assert_eq!(kept.last(), Some(terminal));
    }
    let others = kept.iter().filter(|event| !is_thread_started(event) && !is_terminal(event));
    let gaps = others.inspect(|event| {
        assert!(matches!(event.event, Some(Event::Gap(_))), "more than is kept: {kept:#?}");
    });
    // One in front of `thread_started` for what was told in the queue, and one behind it.
    assert!(gaps.count() <= 2, "{kept:#?}");
}

/// The turn was lost with the sidecar that ran it.
fn assert_lost(kept: &[pb::TurnEvent]) {
    let Some(Event::TurnFailed(pb::TurnFailed { error: Some(error), .. })) =
        kept.last().and_then(|event| event.event.as_ref())
    else {
        panic!("not failed: {kept:#?}")
    };
    assert_eq!(error.reason, "SIDECAR_RESTARTED", "{error:#?}");
    assert!(error.retryable && error.side_effects_possible, "{error:#?}");
}

#[tokio::test]
async fn a_context_goes_on_in_its_thread_after_a_stop_and_after_a_kill() {
    let sidecar = Binary::start().await;
    let first = sidecar.say("a", "one").await;
    let mut engineer = prompt("a", "another tool");
    engineer.tool_name = "codex_engineer".to_owned();
    let engineers = sidecar.run(engineer.clone()).await.thread_id().to_owned();
    let deleted = sidecar.say("deleted", "hello").await.thread_id().to_owned();
    delete(&sidecar, "deleted").await;
    sidecar.say("bound", "hello").await;
    bind(&sidecar, "bound", &deleted).await;

    let mut place = sidecar.stop().await;
    for (words, count) in [("two", 2), ("three", 3)] {
        let sidecar = Binary::in_place(place).await;
        let next = sidecar.say("a", words).await;
        assert_eq!(
            (next.thread_id(), next.origin()),
            (first.thread_id(), pb::ThreadOrigin::Resumed)
        );
        let heard = format!("You said: {words} (user messages so far: {count})");
        assert_eq!(next.final_response(), heard);
        let context = sidecar.context("a").await.unwrap();
        assert_eq!((context.turn_count, context.latest_turn_id.as_str()), (count, next.turn_id()));
        let next = sidecar.run(engineer.clone()).await;
        assert_eq!(
            (next.thread_id(), next.origin()),
            (engineers.as_str(), pb::ThreadOrigin::Resumed)
        );
        let gone = sidecar.context("deleted").await.unwrap_err();
        gone.assert(Code::NotFound, "CONTEXT_NOT_FOUND");
        assert_eq!(sidecar.context("bound").await.unwrap().thread_id, deleted);
        // Without a word and a breath.
        place = sidecar.kill().await;
    }
    let sidecar = Binary::in_place(place).await;
    assert_eq!(sidecar.say("bound", "hello").await.thread_id(), deleted);
    assert_ne!(sidecar.say("deleted", "hello").await.thread_id(), deleted);
    sidecar.stop().await;
}

#[tokio::test]
async fn a_turn_that_ran_at_a_kill_is_told_so_to_all_who_ask_and_never_runs_again() {
    let sidecar = Binary::start().await;
    let (count, go) = (sidecar.place.path().join("count"), sidecar.place.path().join("go"));
    let request = with_id(counted("a", &count, &go), "once");
    let mut running = sidecar.begin(request.clone()).await;
    running.command_started().await;
    until_it_runs(&count).await;
    // Input that another request has added is a part of it.
    let added = with_id(under(pb::BusyPolicy::Steer, prompt("a", "and hurry")), "added");
    let mut joined = sidecar.begin(added.clone()).await;
    joined.started().await;
    let turn_id = running.turn_id().to_owned();
    assert_eq!(joined.turn_id(), turn_id);
    let thread_id = sidecar.context("a").await.unwrap().thread_id;
    let heard = running.events.last().unwrap().sequence;

    let place = sidecar.kill().await;
    let sidecar = Binary::in_place(place).await;
    let lost = sidecar.told_after(by_id(&turn_id), 0).await;
    assert_kept(&running.events, &lost);
    assert_lost(&lost);
    let end = lost.last().unwrap().sequence;
    assert!(end > heard, "{end} was told before as something else");
    assert!(lost.iter().all(|event| event.turn_id == turn_id), "{lost:#?}");
    // Whatever was heard of it, there is an end behind it.
    for after in (1..=heard).chain([end - 1, end]) {
        let told = sidecar.told_after(by_id(&turn_id), after).await;
        assert_eq!(told.last(), lost.last(), "after {after}");
    }
    let told = sidecar.told_after(by_context("a"), 0).await;
    assert_eq!(told, lost);
    let listed = sidecar.turns(Some("a")).await;
    let [info] = listed.as_slice() else { panic!("one turn: {listed:#?}") };
    assert_eq!(
        (info.turn_id.as_str(), info.thread_id.as_str()),
        (turn_id.as_str(), thread_id.as_str())
    );
    assert_eq!((info.state(), info.reason.as_str()), (pb::TurnState::Failed, "SIDECAR_RESTARTED"));
    assert_eq!((info.last_sequence, info.last_event.as_str()), (end, "turn_failed"));
    assert!(info.create_time.is_some() && info.start_time.is_some() && info.end_time.is_some());
    // By stopping it, too: it has ended already.
    assert_eq!(Some(&sidecar.interrupt(&turn_id).await.unwrap()), lost.last());

    // Asked again, with nothing in its way any more.
    std::fs::write(&go, "").unwrap();
    for request in [&request, &added] {
        assert_eq!(sidecar.begin(request.clone()).await.read_kept().await, lost);
    }
    for id in ["once", "added"] {
        let other = with_id(prompt("a", "something else"), id);
        sidecar.refused(other).await.assert(Code::AlreadyExists, "REQUEST_ID_REUSED");
    }
    let next = sidecar.say("a", "are you there?").await;
    assert_eq!((next.thread_id(), next.origin()), (thread_id.as_str(), pb::ThreadOrigin::Resumed));
    // What the lost turn was asked is a part of the thread.
    let seen = next.final_response();
    assert!(["2", "3"].iter().any(|n| seen.ends_with(&format!("so far: {n})"))), "{seen}");
    assert_eq!(lines(&count), 1, "it ran again");

    // The next restart says the same.
    let sidecar = Binary::in_place(sidecar.kill().await).await;
    assert_eq!(sidecar.told_after(by_id(&turn_id), 0).await, lost);
    assert_eq!(sidecar.begin(request).await.read_kept().await, lost);
    assert_eq!(lines(&count), 1, "it ran again");
    sidecar.stop().await;
}

#[tokio::test]
async fn an_ended_turn_is_told_after_a_restart_as_it_was_told_before() {
    let mut sidecar = Binary::start().await;
    let mut turns = Vec::new();
    for (id, words) in [
        ("completed", "[[words 30]]"),
        ("failed", "[[fail insufficient_quota no money left]]"),
        ("after a command", "[[run true]] [[fail insufficient_quota]]"),
    ] {
        let request = with_id(unsandboxed("a", words), id);
        turns.push((request.clone(), sidecar.run(request).await));
    }
    let request = with_id(unsandboxed("a", "[[run sleep 300]]"), "interrupted");
    let mut interrupted = sidecar.begin(request.clone()).await;
    interrupted.command_started().await;
    sidecar.interrupt(interrupted.turn_id()).await.unwrap();
    turns.push((request, interrupted.rest().await));
    let listed = sidecar.turns(None).await;

    for ends in ["by a kill", "by a stop"] {
        let place = if ends == "by a kill" { sidecar.kill().await } else { sidecar.stop().await };
        sidecar = Binary::in_place(place).await;
        for (request, told) in &turns {
            let turn_id = told.turn_id();
            let kept = sidecar.told_after(by_id(turn_id), 0).await;
            assert_kept(&told.events, &kept);
            let started = kept.iter().find(is_thread_started).unwrap().sequence;
            let rest = sidecar.told_after(by_id(turn_id), started).await;
            let [gap, terminal] = rest.as_slice() else { panic!("{ends}: {rest:#?}") };
            let between = pb::Gap { from: started + 1, to: terminal.sequence - 1 };
            assert_eq!(gap.event, Some(Event::Gap(between)));
            let again = sidecar.told_after(by_id(turn_id), terminal.sequence).await;
            assert_eq!(again, std::slice::from_ref(terminal));
            let beyond = sidecar.try_attach(by_id(turn_id), terminal.sequence + 1).await;
            beyond.unwrap_err().assert(Code::InvalidArgument, "INVALID_INPUT");
            // The same call, and one for the end alone.
            assert_eq!(sidecar.begin(request.clone()).await.read_kept().await, kept);
            let unary = pb::RunTurnUnaryRequest { request: Some(sidecar.at_work(request.clone())) };
            let unary = sidecar.codex().run_turn_unary(unary).await.unwrap().into_inner();
            assert_eq!(unary.terminal_event.as_ref(), Some(terminal));
            assert_eq!(unary.thread_id, told.thread_id());
        }
        assert_eq!(sidecar.turns(None).await, listed, "{ends}");
        let latest = sidecar.told_after(by_context("a"), 0).await;
        assert_eq!(latest[0].turn_id, turns.last().unwrap().1.turn_id());
    }
    sidecar.stop().await;
}

#[tokio::test]
async fn a_turn_that_waited_at_a_kill_leaves_no_trace_and_may_run() {
    let sidecar = Binary::start().await;
    let path = sidecar.place.path();
    let (ran, waited, go) = (path.join("ran"), path.join("waited"), path.join("go"));
    let mut running = sidecar.begin(counted("a", &ran, &go)).await;
    running.command_started().await;
    let request = with_id(counted("a", &waited, &go), "waits");
    let mut waiting = sidecar.begin(request.clone()).await;
    let queued = |event: &Event| matches!(event, Event::Queued(_)).then_some(());
    waiting.until("queued", queued).await;
    let turn_id = waiting.turn_id().to_owned();

    let sidecar = Binary::in_place(sidecar.kill().await).await;
    let unknown = sidecar.try_attach(by_id(&turn_id), 0).await.unwrap_err();
    unknown.assert(Code::NotFound, "TURN_NOT_FOUND");
    let listed = sidecar.turns(None).await;
    assert_eq!(listed.len(), 1, "{listed:#?}");
    assert_eq!(listed[0].turn_id, running.turn_id());
    std::fs::write(&go, "").unwrap();
    // Other content, too: nobody was ever promised anything of that id.
    let told = sidecar.run(request).await;
    assert_ne!(told.turn_id(), turn_id);
    assert_eq!(told.final_response(), "it is done");
    assert_eq!((lines(&ran), lines(&waited)), (1, 1));
    sidecar.stop().await;
}

/// A CLI that takes each turn and never hears of one.
fn deaf_to_turns(place: &Place) -> PathBuf {
    let path = place.path().join("codex");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/deaf_to_turns.py");
    let (script, real) = (script.display(), codex_path().display());
    let script = format!("#!/bin/sh\nREAL_CODEX='{real}' exec python3 -B '{script}' \"$@\"\n");
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    path
}

/// Codex writes a thread down with its first turn. Before that, there is no history to be lost, and nobody
/// has heard of it.
#[tokio::test]
async fn a_context_whose_first_turn_was_killed_before_codex_wrote_it_down_goes_on_anew() {
    let place = Place::new();
    let deaf = deaf_to_turns(&place);
    let sidecar = Binary::cold(place, |command| {
        command.env("CODEX_PATH", deaf);
    })
    .await;
    sidecar.ready().await;
    let go = sidecar.place.path().join("go");
    let count = sidecar.place.path().join("count");
    let request = with_id(counted("a", &count, &go), "first");
    let call = tokio::spawn({
        let (client, request) = (Client::clone(&sidecar), request.clone());
        async move {
            let mut turn = client.try_begin(request).await?;
            turn.try_next().await
        }
    });
    let lost_thread =
        eventually("the thread", async || Some(sidecar.context("a").await.ok()?.thread_id));
    let lost_thread = lost_thread.await;
    // There is one writer: what it says of one that came later holds for those before it.
    bind(&sidecar, "other", &uuid::Uuid::now_v7().to_string()).await;
    assert_eq!(sidecar.place.rollouts(), Vec::<PathBuf>::new(), "it is written down already");
    assert!(!call.is_finished(), "it tells a thread that could still be lost: {:?}", call.await);

    let sidecar = Binary::in_place(sidecar.kill().await).await;
    std::fs::write(&go, "").unwrap();
    assert_eq!(sidecar.context("a").await.unwrap().thread_id, lost_thread);
    let lost = sidecar.begin(request.clone()).await.read_kept().await;
    assert_lost(&lost);
    let next = sidecar.say("a", "hello").await;
    assert_eq!(next.origin(), pb::ThreadOrigin::New);
    assert_ne!(next.thread_id(), lost_thread);
    let warnings = next.warnings();
    let replaced = warnings.iter().find(|warning| warning.code == "THREAD_REPLACED");
    let replaced = replaced.unwrap_or_else(|| panic!("{warnings:#?}"));
    assert!(replaced.message.contains(&lost_thread), "{replaced:#?}");
    assert_eq!(next.final_response(), "You said: hello (user messages so far: 1)");
    assert_eq!(sidecar.context("a").await.unwrap().thread_id, next.thread_id());
    assert_eq!(sidecar.begin(request).await.read_kept().await, lost);
    assert_eq!(lines(&count), 0, "it ran after all");

    let sidecar = Binary::in_place(sidecar.kill().await).await;
    let after = sidecar.say("a", "again").await;
    assert_eq!((after.thread_id(), after.origin()), (next.thread_id(), pb::ThreadOrigin::Resumed));
    sidecar.stop().await;
}

/// A thread that was told is the context's, at however early a moment the sidecar is killed.
#[tokio::test]
async fn a_thread_is_its_contexts_from_the_moment_that_it_is_told() {
    let mut sidecar = Binary::start().await;
    let mut told = Vec::new();
    for number in 0..4 {
        let context = format!("c{number}");
        let mut turn = sidecar.begin(prompt(&context, "[[wait 10s]]")).await;
        let started = |event: &Event| match event {
            Event::ThreadStarted(started) => Some(started.thread_id.clone()),
            _ => None,
        };
        told.push((context, turn.until("thread_started", started).await));
        sidecar = Binary::in_place(sidecar.kill().await).await;
    }
    for (context, thread_id) in told {
        let next = sidecar.say(&context, "are you there?").await;
        assert_eq!(next.thread_id(), thread_id);
        assert_eq!(next.origin(), pb::ThreadOrigin::Resumed);
    }
    sidecar.stop().await;
}

#[tokio::test]
async fn the_latest_thread_of_a_directory_is_known_after_a_restart() {
    let sidecar = Binary::start().await;
    let unbound = pb::RunTurnRequest { unbound: true, ..prompt("", "one") };
    let thread_id = sidecar.run(unbound).await.thread_id().to_owned();
    let sidecar = Binary::in_place(sidecar.kill().await).await;
    let working_directory = sidecar.place.work().display().to_string();
    let request = pb::GetLatestThreadRequest { working_directory };
    let latest = sidecar.codex().get_latest_thread(request).await.unwrap().into_inner();
    assert_eq!(latest.thread_id, thread_id);

    let mut last = binary::command(&sidecar.place);
    last.args(["exec", "resume", "--last", "two"])
        .env("CODEX_SIDECAR_ADDR", &sidecar.address)
        .current_dir(sidecar.place.work());
    let told = binary::output(&mut last).await;
    let stdout = String::from_utf8_lossy(&told.stdout);
    assert!(told.status.success(), "{told:#?}");
    assert_eq!(stdout.trim(), "You said: two (user messages so far: 2)");
    sidecar.stop().await;
}

#[tokio::test]
async fn with_state_in_memory_a_restart_forgets_and_leaves_no_file() {
    let in_memory = |place: Place| async {
        let sidecar = Binary::cold(place, |command| {
            command.args(["--state", "memory"]);
        })
        .await;
        sidecar.ready().await;
        sidecar
    };
    let sidecar = in_memory(Place::new()).await;
    let request = with_id(prompt("a", "hello"), "r");
    let first = sidecar.run(request.clone()).await;
    let place = sidecar.stop().await;
    assert!(!state(&place).exists());
    let sidecar = in_memory(place).await;
    sidecar.context("a").await.unwrap_err().assert(Code::NotFound, "CONTEXT_NOT_FOUND");
    let unknown = sidecar.try_attach(by_id(first.turn_id()), 0).await.unwrap_err();
    unknown.assert(Code::NotFound, "TURN_NOT_FOUND");
    let again = sidecar.run(request).await;
    assert_eq!(again.origin(), pb::ThreadOrigin::New);
    assert_ne!((again.turn_id(), again.thread_id()), (first.turn_id(), first.thread_id()));
    sidecar.stop().await;
}

/// What `serve` with these flags says when it is refused for what it is configured with.
async fn refused(place: &Place, flags: &[&OsStr]) -> String {
    let mut command = binary::command(place);
    command.args(["serve", "--offline-model", "--listen", "127.0.0.1:0"]).args(flags);
    let output = binary::output(&mut command).await;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(64), "{told}");
    told
}

#[tokio::test]
async fn a_second_sidecar_on_one_state_is_refused_and_the_first_goes_on() {
    let first = Binary::start().await;
    first.say("a", "hello").await;
    let path = state(&first.place);
    let elsewhere = Place::new();
    // Another CODEX_HOME with the same state, and the same of both by those who mean it.
    for (place, flags) in [
        (&elsewhere, [OsStr::new("--state"), path.as_os_str()].as_slice()),
        (&first.place, &[OsStr::new("--share-codex-home")]),
    ] {
        let told = refused(place, flags).await;
        assert!(told.contains(path.to_str().unwrap()), "{told}");
        assert!(told.contains("--state"), "no way out: {told}");
    }
    first.say("a", "again").await.completed();
    // With a state of its own it may share.
    let own = elsewhere.path().join("own.redb");
    let beside = Binary::cold(Place::new(), |command| {
        command.arg("--share-codex-home").arg("--state").arg(&own);
        command.env("CODEX_HOME", first.place.codex_home());
    })
    .await;
    beside.ready().await;
    beside.context("a").await.unwrap_err().assert(Code::NotFound, "CONTEXT_NOT_FOUND");
    drop(beside);
    let first = Binary::in_place(first.kill().await).await;
    assert_eq!(first.context("a").await.unwrap().turn_count, 2);
    first.stop().await;
}

#[tokio::test]
async fn a_damaged_state_file_is_refused_with_what_to_do_and_is_not_touched() {
    let sidecar = Binary::start().await;
    let thread_id = sidecar.say("a", "hello").await.thread_id().to_owned();
    let place = sidecar.stop().await;
    let path = state(&place);
    let whole = std::fs::read(&path).unwrap();

    let garbage = (0..whole.len()).map(|at| (at * 31 % 251) as u8).collect();
    let mut riddled = whole.clone();
    riddled.iter_mut().step_by(64).for_each(|byte| *byte ^= 0x55);
    let mut headless = whole.clone();
    headless[..4096].fill(0);
    let damages: [(&str, Vec<u8>); 5] = [
        ("something else", b"# Notes\n\nNot a ledger.\n".to_vec()),
        ("garbage", garbage),
        ("half of it", whole[..whole.len() / 2].to_vec()),
        ("bytes changed all over", riddled),
        ("its first page is gone", headless),
    ];
    for (damage, bytes) in damages {
        std::fs::write(&path, &bytes).unwrap();
        let told = refused(&place, &[]).await;
        assert!(told.contains(path.to_str().unwrap()), "{damage}: {told}");
        for advice in ["state check", "state export", "state import"] {
            assert!(told.contains(advice), "{damage}: no word of {advice}: {told}");
        }
        assert!(std::fs::read(&path).unwrap() == bytes, "{damage}: the file was written to");
    }
    // Nothing else is wrong.
    std::fs::write(&path, &whole).unwrap();
    let sidecar = Binary::in_place(place).await;
    assert_eq!(sidecar.say("a", "again").await.thread_id(), thread_id);
    sidecar.stop().await;
}

#[tokio::test]
async fn the_state_is_a_small_file_that_is_its_owners_alone_where_it_is_told_to_be() {
    let place = Place::new();
    let directory = place.path().join("kept");
    std::fs::create_dir(&directory).unwrap();
    let path = directory.join("here.redb");
    let sidecar = Binary::cold(place, |command| {
        command.arg("--state").arg(&path);
    })
    .await;
    sidecar.ready().await;
    let file = std::fs::metadata(&path).unwrap();
    assert_eq!(file.permissions().mode() & 0o777, 0o600);
    assert!(file.len() < 1 << 20, "{} bytes when empty", file.len());
    assert!(!state(&sidecar.place).exists());
    sidecar.say("a", "hello").await;
    let place = sidecar.stop().await;
    let sidecar = Binary::cold(place, |command| {
        command.env("CODEX_SIDECAR_STATE", &path);
    })
    .await;
    assert_eq!(sidecar.context("a").await.unwrap().turn_count, 1);
    sidecar.ready().await;
    sidecar.stop().await;
}
