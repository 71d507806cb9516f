//! What threads have behind them, over real gRPC on the real CLI: copied, taken back, read. Also after a
//! restart, and of threads that another process holds.

use std::path::PathBuf;

use crate::support::app_server::AppServer;
use crate::support::{Client, Place, Refused, Sidecar, Told, ephemeral, prompt};
use codex_sidecar::pb;
use futures::future::join_all;
use pb::item::Kind;
use pb::read_thread_request::Target;
use pb::turn_event::Event;
use tonic::Code;

const NOWHERE: &str = "00000000-0000-7000-8000-000000000001";

fn context(context: &str) -> pb::ContextRef {
    pb::ContextRef { context_id: context.into(), ..Default::default() }
}

fn copying(source: &str, target: &str) -> pb::ForkContextRequest {
    pb::ForkContextRequest {
        source: Some(context(source)),
        target: Some(context(target)),
        last_codex_turn_id: String::new(),
    }
}

async fn try_fork(
    client: &Client,
    request: pb::ForkContextRequest,
) -> Result<pb::Context, Refused> {
    let forked = client.codex().fork_context(request).await.map_err(Refused::from)?;
    Ok(forked.into_inner().context.unwrap())
}

async fn fork(client: &Client, source: &str, target: &str) -> pb::Context {
    try_fork(client, copying(source, target)).await.unwrap()
}

async fn revert(client: &Client, of: &str, before: &str) -> Result<pb::Context, Refused> {
    let request = pb::RevertContextRequest {
        context: Some(context(of)),
        before_codex_turn_id: before.into(),
    };
    let reverted = client.codex().revert_context(request).await.map_err(Refused::from)?;
    Ok(reverted.into_inner().context.unwrap())
}

async fn bind(client: &Client, context: &str, thread: &str) {
    let request = pb::BindContextRequest {
        context_id: context.into(),
        thread_id: thread.into(),
        ..Default::default()
    };
    client.codex().bind_context(request).await.unwrap();
}

fn of_thread(thread_id: &str) -> pb::ReadThreadRequest {
    let target = Some(Target::ThreadId(thread_id.into()));
    pb::ReadThreadRequest { target, ..Default::default() }
}

async fn try_read(
    client: &Client,
    request: pb::ReadThreadRequest,
) -> Result<pb::ReadThreadResponse, Refused> {
    let page = client.codex().read_thread(request).await.map_err(Refused::from)?;
    Ok(page.into_inner())
}

/// All pages of a thread's history.
async fn pages(client: &Client, request: pb::ReadThreadRequest) -> Vec<pb::ReadThreadResponse> {
    let mut pages: Vec<pb::ReadThreadResponse> = Vec::new();
    loop {
        let page_token = pages.last().map(|page| page.next_page_token.clone()).unwrap_or_default();
        let page = try_read(client, pb::ReadThreadRequest { page_token, ..request.clone() }).await;
        pages.push(page.unwrap());
        if pages.last().unwrap().next_page_token.is_empty() {
            return pages;
        }
    }
}

async fn history(client: &Client, thread_id: &str) -> Vec<pb::ThreadTurn> {
    let pages = pages(client, of_thread(thread_id)).await;
    pages.into_iter().flat_map(|page| page.turns).collect()
}

fn ids(turns: &[pb::ThreadTurn]) -> Vec<&str> {
    turns.iter().map(|turn| turn.codex_turn_id.as_str()).collect()
}

fn kinds(turn: &pb::ThreadTurn) -> Vec<&'static str> {
    let kind = |item: &pb::Item| match item.kind.as_ref().unwrap() {
        Kind::UserMessage(_) => "user_message",
        Kind::AgentMessage(_) => "agent_message",
        Kind::CommandExecution(_) => "command_execution",
        Kind::Reasoning(_) => "reasoning",
        other => panic!("{other:?}"),
    };
    turn.items.iter().map(kind).collect()
}

/// Says something so many times; gives Codex's ids of the turns.
async fn say_all(client: &Client, context: &str, words: &[&str]) -> Vec<String> {
    let mut ids = Vec::new();
    for words in words {
        let told = client.say(context, words).await;
        told.completed();
        ids.push(told.codex_turn_ids()[0].to_owned());
    }
    ids
}

/// So many messages of the user the model has been sent.
fn so_far(told: &Told) -> usize {
    let response = told.final_response();
    let (_, count) = response.rsplit_once("so far: ").expect(response);
    count.trim_end_matches(')').parse().unwrap()
}

#[tokio::test]
async fn a_copy_has_its_past_and_goes_its_own_way() {
    let sidecar = Sidecar::with(|config| config.workers = 2).await;
    let turns = say_all(&sidecar, "a", &["one", "two", "three"]).await;
    let source = sidecar.context("a").await.unwrap();
    let bound = fork(&sidecar, "a", "whole").await;
    assert_ne!(bound.thread_id, source.thread_id);
    assert_eq!((bound.context_id.as_str(), bound.turn_count), ("whole", 0));
    assert_eq!((bound.latest_turn_id.as_str(), bound.running_turn_id.as_str()), ("", ""));
    assert_eq!(sidecar.context("whole").await.unwrap(), bound);
    let part =
        pb::ForkContextRequest { last_codex_turn_id: turns[1].clone(), ..copying("a", "part") };
    let part = try_fork(&sidecar, part).await.unwrap();
    let copied = history(&sidecar, &part.thread_id).await;
    assert_eq!(ids(&copied), turns[..2], "with the turn that was named");

    for (context, past) in [("whole", 3), ("part", 2)] {
        let told = sidecar.say(context, "and on").await;
        assert_eq!(told.origin(), pb::ThreadOrigin::Forked, "{context}");
        assert_eq!(so_far(&told), past + 1, "{context}");
        assert_eq!(told.warnings().len(), 0, "{:?}", told.warnings());
        let again = sidecar.say(context, "and on").await;
        assert_eq!((again.origin(), so_far(&again)), (pb::ThreadOrigin::Resumed, past + 2));
        assert_eq!(again.thread_id(), told.thread_id());
    }
    let own = sidecar.say("a", "four").await;
    assert_eq!((own.thread_id(), so_far(&own)), (source.thread_id.as_str(), 4));
    assert_eq!(own.origin(), pb::ThreadOrigin::Resumed);
    assert_eq!(history(&sidecar, &source.thread_id).await.len(), 4);
    assert_eq!(history(&sidecar, &bound.thread_id).await.len(), 5);

    // A copy of a copy; under a key of its own.
    let key =
        |context: &str| pb::ContextRef { tool_name: "codex_x".into(), ..self::context(context) };
    let request = pb::ForkContextRequest { target: Some(key("part")), ..copying("part", "") };
    let copy = try_fork(&sidecar, request).await.unwrap();
    assert_eq!((copy.context_id.as_str(), copy.tool_name.as_str()), ("part", "codex_x"));
    let request = pb::ForkContextRequest { source: Some(key("part")), ..copying("", "other") };
    let other = try_fork(&sidecar, request).await.unwrap();
    assert_eq!(other.thread_id_key, "codex_thread_id_x", "the source's, where none is named");
    assert_eq!(history(&sidecar, &other.thread_id).await.len(), 4);
    sidecar.stop().await;
}

#[tokio::test]
async fn a_copy_inherits_what_belongs_to_the_thread_and_no_rights_of_its_turns() {
    let sidecar = Sidecar::start().await;
    let instructed = |context: &str, words: &str| {
        let mut request = prompt(context, words);
        let options = request.thread_options.get_or_insert_default();
        options.developer_instructions = Some("DEVELOPER-1".into());
        request
    };
    let mut first = instructed("a", "one");
    let options = first.thread_options.get_or_insert_default();
    options.base_instructions = Some("BASE-1".into());
    options.dynamic_tools = vec![pb::DynamicTool {
        name: "lookup".into(),
        description: "Looks something up".into(),
        input_schema: r#"{"type": "object"}"#.into(),
    }];
    options.set_sandbox_mode(pb::SandboxMode::DangerFullAccess);
    options.set_approval_policy(pb::ApprovalPolicy::Never);
    sidecar.run(first).await.completed();
    // Of another turn's alone.
    let mut other = prompt("a", "two");
    let options = other.thread_options.get_or_insert_default();
    options.base_instructions = Some("BASE-2".into());
    options.set_sandbox_mode(pb::SandboxMode::DangerFullAccess);
    options.set_approval_policy(pb::ApprovalPolicy::Never);
    sidecar.run(other).await.completed();

    fork(&sidecar, "a", "b").await;
    let touched = sidecar.place.work().join("touched");
    let words = format!("[[run touch {}]] [[say tried]]", touched.display());
    let told = sidecar.run(instructed("b", &words)).await;
    assert_eq!((told.origin(), told.final_response()), (pb::ThreadOrigin::Forked, "tried"));
    assert_eq!(told.warnings().len(), 0, "{:?}", told.warnings());
    assert!(!touched.exists(), "the rights of the source's last turn");
    let input = sidecar.shown("/input", instructed("b", "")).await.to_string();
    assert!(input.contains("DEVELOPER-1") && input.contains("BASE-1"), "{input}");
    assert!(!input.contains("BASE-2"), "{input}");
    let tools = sidecar.shown("/tools", instructed("b", "")).await.to_string();
    assert!(tools.contains("lookup"), "{tools}");
    // It has its own already.
    let mut otherwise = prompt("b", "three");
    otherwise.thread_options.get_or_insert_default().developer_instructions = Some("other".into());
    let warned = sidecar.run(otherwise).await;
    let codes: Vec<&str> = warned.warnings().iter().map(|told| told.code.as_str()).collect();
    assert_eq!(codes, ["DEVELOPER_INSTRUCTIONS_IGNORED"]);
    sidecar.stop().await;
}

#[tokio::test]
async fn what_cannot_be_copied_is_refused_and_leaves_nothing() {
    let sidecar = Sidecar::start().await;
    let turns = say_all(&sidecar, "a", &["one"]).await;
    sidecar.say("taken", "one").await.completed();
    bind(&sidecar, "lost", NOWHERE).await;
    let refused =
        async |request: pb::ForkContextRequest| try_fork(&sidecar, request).await.unwrap_err();

    let nothing = refused(pb::ForkContextRequest::default()).await;
    nothing.assert(Code::InvalidArgument, "INVALID_INPUT");
    assert_eq!(nothing.field_paths(), ["source", "target"]);
    let unnamed = refused(copying("", "\u{7}")).await;
    assert_eq!(unnamed.field_paths(), ["source.context_id", "target.context_id"]);
    refused(copying("unknown", "b")).await.assert(Code::NotFound, "CONTEXT_NOT_FOUND");
    refused(copying("a", "taken")).await.assert(Code::AlreadyExists, "CONTEXT_EXISTS");
    refused(copying("a", "a")).await.assert(Code::AlreadyExists, "CONTEXT_EXISTS");
    refused(copying("lost", "b")).await.assert(Code::NotFound, "THREAD_NOT_FOUND");
    for turn_id in [NOWHERE, "no id at all"] {
        let last_codex_turn_id = turn_id.to_owned();
        let request = pb::ForkContextRequest { last_codex_turn_id, ..copying("a", "b") };
        let unknown = refused(request).await;
        unknown.assert(Code::InvalidArgument, "INVALID_INPUT");
        assert_eq!(unknown.field_paths(), ["last_codex_turn_id"]);
    }
    let mut running = sidecar.begin(prompt("a", "[[hang]]")).await;
    let running_id = running.started().await;
    refused(copying("a", "b")).await.assert(Code::Aborted, "CONTEXT_BUSY");
    // Of another context on the same thread.
    bind(&sidecar, "same", &sidecar.context("a").await.unwrap().thread_id).await;
    refused(copying("same", "b")).await.assert(Code::Aborted, "CONTEXT_BUSY");
    // One that is about to be bound.
    let mut begun = sidecar.begin(prompt("new", "[[hang]]")).await;
    let begun_id = begun.started().await;
    refused(copying("taken", "new")).await.assert(Code::AlreadyExists, "CONTEXT_EXISTS");
    for turn_id in [running_id, begun_id] {
        sidecar.interrupt(&turn_id).await.unwrap();
    }
    running.rest().await;
    begun.rest().await;

    sidecar.context("b").await.unwrap_err().assert(Code::NotFound, "CONTEXT_NOT_FOUND");
    assert_eq!(sidecar.place.rollouts().len(), 3, "those of a, taken and new");
    fork(&sidecar, "a", "b").await;
    let last_codex_turn_id = turns[0].clone();
    let request = pb::ForkContextRequest { last_codex_turn_id, ..copying("b", "c") };
    try_fork(&sidecar, request).await.unwrap();
    sidecar.stop().await;
}

#[tokio::test]
async fn of_copies_that_race_for_one_context_one_is_made() {
    let sidecar = Sidecar::with(|config| config.workers = 2).await;
    say_all(&sidecar, "a", &["one"]).await;
    say_all(&sidecar, "b", &["one", "two"]).await;
    let racing = (0..10).map(|number| {
        let request = copying(if number % 2 == 0 { "a" } else { "b" }, "target");
        try_fork(&sidecar, request)
    });
    let (won, lost): (Vec<_>, Vec<_>) = join_all(racing).await.into_iter().partition(Result::is_ok);
    assert_eq!((won.len(), lost.len()), (1, 9));
    for refused in lost {
        refused.unwrap_err().assert(Code::AlreadyExists, "CONTEXT_EXISTS");
    }
    assert_eq!(sidecar.place.rollouts().len(), 3, "no copy that nobody has");
    // And of one context, many at once, with turns among them.
    let copies = (0..6).map(|number| {
        let sidecar = &sidecar;
        async move { fork(sidecar, "a", &format!("c{number}")).await.thread_id }
    });
    let mut threads = join_all(copies).await;
    threads.sort();
    threads.dedup();
    assert_eq!(threads.len(), 6);
    assert_eq!(so_far(&sidecar.say("c5", "two").await), 2);
    sidecar.stop().await;
}

#[tokio::test]
async fn a_context_is_taken_back_to_before_a_turn_and_goes_on_from_there() {
    let sidecar = Sidecar::with(|config| config.workers = 2).await;
    let turns = say_all(&sidecar, "a", &["one", "two", "three", "four"]).await;
    let before = sidecar.context("a").await.unwrap();
    fork(&sidecar, "a", "copy").await;
    let reverted = revert(&sidecar, "a", &turns[2]).await.unwrap();
    assert_eq!((&reverted.thread_id, reverted.turn_count), (&before.thread_id, 4));
    assert_eq!(ids(&history(&sidecar, &before.thread_id).await), turns[..2]);

    let told = sidecar.say("a", "otherwise").await;
    assert_eq!((told.thread_id(), so_far(&told)), (before.thread_id.as_str(), 3));
    assert_eq!(told.origin(), pb::ThreadOrigin::Resumed);
    assert_eq!(told.warnings().len(), 0, "{:?}", told.warnings());
    // Its own tokens, not the difference to what is gone.
    let usage = told.completed().usage.unwrap();
    assert!(usage.input_tokens > 0);
    let thread = told.completed().thread_usage.unwrap();
    assert!(usage.input_tokens * 2 < thread.input_tokens, "{usage:?} of {thread:?}");
    assert_eq!(so_far(&sidecar.say("a", "and on").await), 4);
    // Whoever copied it before has it all.
    assert_eq!(so_far(&sidecar.say("copy", "and on").await), 5);

    // Gone is gone; so is what never was.
    for turn_id in [turns[3].as_str(), NOWHERE, "no id at all"] {
        let refused = revert(&sidecar, "a", turn_id).await.unwrap_err();
        refused.assert(Code::InvalidArgument, "INVALID_INPUT");
        assert_eq!(refused.field_paths(), ["before_codex_turn_id"]);
    }
    let missing = revert(&sidecar, "a", " ").await.unwrap_err();
    assert_eq!(missing.field_paths(), ["before_codex_turn_id"]);
    revert(&sidecar, "unknown", NOWHERE)
        .await
        .unwrap_err()
        .assert(Code::NotFound, "CONTEXT_NOT_FOUND");
    bind(&sidecar, "lost", NOWHERE).await;
    revert(&sidecar, "lost", NOWHERE).await.unwrap_err().assert(Code::NotFound, "THREAD_NOT_FOUND");
    let mut running = sidecar.begin(prompt("a", "[[hang]]")).await;
    let running_id = running.started().await;
    revert(&sidecar, "a", &turns[1]).await.unwrap_err().assert(Code::Aborted, "CONTEXT_BUSY");
    sidecar.interrupt(&running_id).await.unwrap();
    running.rest().await;

    // To the very beginning.
    revert(&sidecar, "a", &turns[0]).await.unwrap();
    assert_eq!(history(&sidecar, &before.thread_id).await, []);
    let afresh = sidecar.say("a", "afresh").await;
    assert_eq!((afresh.thread_id(), so_far(&afresh)), (before.thread_id.as_str(), 1));
    assert_eq!(afresh.warnings().len(), 0, "{:?}", afresh.warnings());
    sidecar.stop().await;
}

#[tokio::test]
async fn another_sidecar_reads_copies_and_takes_back_what_this_one_made() {
    let sidecar = Sidecar::start().await;
    let turns = say_all(&sidecar, "a", &["one", "two", "three"]).await;
    let thread = sidecar.context("a").await.unwrap().thread_id;
    let told = history(&sidecar, &thread).await;
    let place: Place = sidecar.stop().await;

    let sidecar = Sidecar::in_place(place, |_, config| config.workers = 2).await;
    assert_eq!(history(&sidecar, &thread.to_uppercase()).await, told);
    let loaded: u32 = sidecar.workers().await.iter().map(|worker| worker.loaded_threads).sum();
    assert_eq!(loaded, 0, "nothing is loaded to be read");
    bind(&sidecar, "a", &thread).await;
    fork(&sidecar, "a", "b").await;
    revert(&sidecar, "a", &turns[1]).await.unwrap();
    let loaded: u32 = sidecar.workers().await.iter().map(|worker| worker.loaded_threads).sum();
    assert_eq!(loaded, 0, "nor stays loaded");
    let of_context = Some(Target::Context(context("a")));
    let page =
        try_read(&sidecar, pb::ReadThreadRequest { target: of_context, ..Default::default() });
    let page = page.await.unwrap();
    assert_eq!(
        (page.thread_id.as_str(), ids(&page.turns)),
        (thread.as_str(), vec![turns[0].as_str()])
    );
    assert_eq!(so_far(&sidecar.say("a", "on").await), 2);
    assert_eq!(so_far(&sidecar.say("b", "on").await), 4);
    sidecar.stop().await;
}

#[tokio::test]
async fn a_thread_that_another_process_holds_is_read_and_copied_and_not_taken_back() {
    let sidecar = Sidecar::with(|config| config.workers = 2).await;
    let mut other = AppServer::start(&sidecar).await;
    let thread = other.thread().await;
    let mut turns = Vec::new();
    for words in ["one", "two", "three"] {
        turns.push(other.turn(&thread, words).await);
    }
    assert_eq!(ids(&history(&sidecar, &thread).await), turns);
    bind(&sidecar, "a", &thread).await;
    sidecar
        .refused(prompt("a", "x"))
        .await
        .assert(Code::FailedPrecondition, "THREAD_HELD_ELSEWHERE");
    let copy = fork(&sidecar, "a", "whole").await;
    let part =
        pb::ForkContextRequest { last_codex_turn_id: turns[0].clone(), ..copying("a", "part") };
    try_fork(&sidecar, part).await.unwrap();
    for (context, past) in [("whole", 3), ("part", 1)] {
        let told = sidecar.say(context, "on").await;
        assert_eq!((told.origin(), so_far(&told)), (pb::ThreadOrigin::Forked, past + 1));
    }
    assert_ne!(copy.thread_id, thread);
    let refused = revert(&sidecar, "a", &turns[1]).await.unwrap_err();
    refused.assert(Code::FailedPrecondition, "THREAD_HELD_ELSEWHERE");
    // It is the other's still.
    turns.push(other.turn(&thread, "four").await);
    assert_eq!(ids(&history(&sidecar, &thread).await), turns);
    other.stop().await;
    revert(&sidecar, "a", &turns[1]).await.unwrap();
    assert_eq!(so_far(&sidecar.say("a", "on").await), 2);
    sidecar.stop().await;
}

#[tokio::test]
async fn a_copy_without_its_beginning_is_a_thread_that_is_gone() {
    let sidecar = Sidecar::start().await;
    say_all(&sidecar, "a", &["one"]).await;
    let source = sidecar.context("a").await.unwrap().thread_id;
    let copy = fork(&sidecar, "a", "b").await.thread_id;
    let place = sidecar.stop().await;
    let of_source = |path: &std::path::PathBuf| path.display().to_string().contains(&source);
    std::fs::remove_file(place.rollouts().into_iter().find(of_source).unwrap()).unwrap();

    let sidecar = Sidecar::in_place(place, |_, _| {}).await;
    bind(&sidecar, "b", &copy).await;
    let read = try_read(&sidecar, of_thread(&copy)).await;
    read.unwrap_err().assert(Code::NotFound, "THREAD_NOT_FOUND");
    sidecar.refused(prompt("b", "on")).await.assert(Code::NotFound, "THREAD_NOT_FOUND");
    let refused = try_fork(&sidecar, copying("b", "c")).await.unwrap_err();
    refused.assert(Code::NotFound, "THREAD_NOT_FOUND");
    let refused = revert(&sidecar, "b", NOWHERE).await.unwrap_err();
    refused.assert(Code::NotFound, "THREAD_NOT_FOUND");
    sidecar.stop().await;
}

#[tokio::test]
async fn a_history_tells_each_turn_with_its_items_and_its_end() {
    let sidecar = Sidecar::start().await;
    let script = "[[reason why]] [[run echo hello]] [[say done]]";
    let first = sidecar.say("a", script).await;
    sidecar.run(prompt("a", "[[status 400]]")).await.failed();
    let mut running = sidecar.begin(prompt("a", "[[run echo before]] [[hang]]")).await;
    let running_id = running.started().await;
    let command_ended = |event: &Event| match event {
        Event::ItemCompleted(pb::ItemCompleted { item: Some(item) }) => {
            matches!(item.kind, Some(Kind::CommandExecution(_))).then_some(())
        }
        _ => None,
    };
    running.until("the end of a command", command_ended).await;
    let during = history(&sidecar, first.thread_id()).await;
    sidecar.interrupt(&running_id).await.unwrap();
    running.rest().await;
    let after = history(&sidecar, first.thread_id()).await;

    let statuses = |turns: &[pb::ThreadTurn]| -> Vec<pb::ThreadTurnStatus> {
        turns.iter().map(|turn| turn.status()).collect()
    };
    use pb::ThreadTurnStatus::{Completed, Failed, InProgress, Interrupted};
    assert_eq!(statuses(&during), [Completed, Failed, InProgress]);
    assert_eq!(statuses(&after), [Completed, Failed, Interrupted]);
    let all = ["user_message", "reasoning", "command_execution", "agent_message"];
    assert_eq!(kinds(&after[0]), all);
    assert_eq!(kinds(&after[2]), ["user_message", "command_execution"]);
    assert_eq!(after[0].codex_turn_id, first.codex_turn_ids()[0]);
    // As they were told at their ends.
    let told: Vec<&Kind> = first.items().into_iter().map(|(_, kind)| kind).collect();
    let kept: Vec<&Kind> = after[0].items.iter().filter_map(|item| item.kind.as_ref()).collect();
    assert_eq!(kept, told);
    let error = after[1].error.as_ref().unwrap();
    assert_eq!(error.reason, "BAD_REQUEST");
    assert!(error.message.contains("status 400"), "{error:?}");
    assert!(after[0].error.is_none());
    for turn in &after[..2] {
        assert!(turn.start_time.unwrap().seconds <= turn.end_time.unwrap().seconds);
        assert_eq!(turn.skipped_items, 0);
    }
    assert!(during[2].start_time.is_some() && during[2].end_time.is_none());
    sidecar.stop().await;
}

#[tokio::test]
async fn pages_hold_every_turn_once_and_are_of_one_thread() {
    let sidecar = Sidecar::start().await;
    let words: Vec<String> = (0..7).map(|number| format!("number {number}")).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let turns = say_all(&sidecar, "a", &words).await;
    let thread = sidecar.context("a").await.unwrap().thread_id;
    for (page_size, sizes) in [(1, vec![1; 7]), (3, vec![3, 3, 1]), (7, vec![7]), (0, vec![7])] {
        let pages =
            pages(&sidecar, pb::ReadThreadRequest { page_size, ..of_thread(&thread) }).await;
        let found: Vec<usize> = pages.iter().map(|page| page.turns.len()).collect();
        assert_eq!(found, sizes, "pages of {page_size}");
        let all: Vec<pb::ThreadTurn> = pages.into_iter().flat_map(|page| page.turns).collect();
        assert_eq!(ids(&all), turns);
    }
    let first = try_read(&sidecar, pb::ReadThreadRequest { page_size: 3, ..of_thread(&thread) });
    let page_token = first.await.unwrap().next_page_token;
    // What comes later is on the last page.
    let later = say_all(&sidecar, "a", &["later"]).await;
    let rest = pb::ReadThreadRequest { page_token: page_token.clone(), ..of_thread(&thread) };
    let rest = try_read(&sidecar, rest).await.unwrap();
    assert_eq!(ids(&rest.turns), [&turns[3..], &later[..]].concat());

    sidecar.say("b", "other").await.completed();
    let other = sidecar.context("b").await.unwrap().thread_id;
    let invalid = [
        (pb::ReadThreadRequest { page_token, ..of_thread(&other) }, "page_token"),
        (pb::ReadThreadRequest { page_token: "zz".into(), ..of_thread(&thread) }, "page_token"),
        (pb::ReadThreadRequest { page_size: -1, ..of_thread(&thread) }, "page_size"),
        (of_thread("nothing"), "thread_id"),
        (pb::ReadThreadRequest::default(), "target"),
    ];
    for (request, field) in invalid {
        let refused = try_read(&sidecar, request).await.unwrap_err();
        refused.assert(Code::InvalidArgument, "INVALID_INPUT");
        assert_eq!(refused.field_paths(), [field]);
    }
    try_read(&sidecar, of_thread(NOWHERE))
        .await
        .unwrap_err()
        .assert(Code::NotFound, "THREAD_NOT_FOUND");
    let target = Some(Target::Context(context("unknown")));
    let unbound = pb::ReadThreadRequest { target, ..Default::default() };
    try_read(&sidecar, unbound).await.unwrap_err().assert(Code::NotFound, "CONTEXT_NOT_FOUND");
    // Kept nowhere.
    let gone = sidecar.run(ephemeral("hello")).await;
    let refused = try_read(&sidecar, of_thread(gone.thread_id())).await.unwrap_err();
    refused.assert(Code::NotFound, "THREAD_NOT_FOUND");
    sidecar.stop().await;
}

/// The largest line of Codex in these tests.
const LINE: usize = 128 << 10;

#[tokio::test]
async fn a_turn_larger_than_a_page_goes_on_on_the_next_one() {
    let sidecar = Sidecar::with(|config| config.worker.limits.peer.max_line_bytes = LINE).await;
    // Seven outputs of 50 kB, of which two fit into a line.
    let output = |number: usize| format!("[[run seq {number}0000 {number}8999]] ");
    let script: String = (1..8).map(output).collect();
    let mut request = prompt("a", &format!("{script} [[say done]]"));
    let options = request.thread_options.get_or_insert_default();
    options.set_sandbox_mode(pb::SandboxMode::DangerFullAccess);
    let large = sidecar.run(request).await;
    assert_eq!(large.final_response(), "done");
    sidecar.say("a", "small").await.completed();
    let pages = pages(&sidecar, of_thread(large.thread_id())).await;
    assert!(pages.len() > 3, "{}", pages.len());
    let mut outputs = Vec::new();
    for page in &pages {
        assert!(prost::Message::encoded_len(page) < LINE);
        for turn in &page.turns {
            outputs.extend(turn.items.iter().filter_map(|item| match &item.kind {
                Some(Kind::CommandExecution(command)) => Some(command.aggregated_output.clone()),
                _ => None,
            }));
            assert_eq!(turn.skipped_items, 0);
        }
    }
    let expected: Vec<String> =
        large.commands().iter().map(|command| command.aggregated_output.clone()).collect();
    assert_eq!(outputs, expected);
    assert!(outputs.iter().all(|output| output.len() > 40_000), "{outputs:?}");
    let mut seen: Vec<&str> = pages.iter().flat_map(|page| ids(&page.turns)).collect();
    seen.dedup();
    assert_eq!(seen.len(), 2, "the large one, and the small one after it");
    sidecar.stop().await;
}

#[tokio::test]
async fn an_item_larger_than_a_line_is_left_out_and_counted() {
    let sidecar = Sidecar::start().await;
    let words = format!("[[say before]] [[bytes {}]] [[say after]]", 2 * LINE);
    let large = sidecar.say("a", &words).await;
    assert_eq!(large.final_response(), "after");
    let large = large.thread_id().to_owned();
    sidecar.say("a", "small").await.completed();
    let place = sidecar.stop().await;
    // Read by one that takes less.
    let change = |_: &Place, config: &mut codex_sidecar::parts::config::Config| {
        config.worker.limits.peer.max_line_bytes = LINE;
    };
    let sidecar = Sidecar::in_place(place, change).await;
    let pages = pages(&sidecar, of_thread(&large)).await;
    let turns = || pages.iter().flat_map(|page| &page.turns);
    let skipped: u32 = turns().map(|turn| turn.skipped_items).sum();
    assert_eq!(skipped, 1, "{pages:#?}");
    let mut words = Vec::new();
    for item in turns().flat_map(|turn| &turn.items) {
        match &item.kind {
            Some(Kind::AgentMessage(message)) => words.push(message.text.as_str()),
            Some(Kind::UserMessage(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(words, ["before", "after", "You said: small (user messages so far: 2)"]);
    sidecar.stop().await;
}

#[tokio::test]
async fn the_models_are_those_that_the_cli_offers() {
    let sidecar = Sidecar::start().await;
    let mut pool = sidecar.pool();
    let listed = pool.list_models(pb::ListModelsRequest::default()).await.unwrap().into_inner();
    let [model] = &listed.models[..] else { panic!("{listed:#?}") };
    assert_eq!(
        (model.model.as_str(), model.is_default, model.hidden),
        ("offline-model", true, false)
    );
    assert_eq!(model.reasoning_efforts, ["minimal", "low", "medium", "high", "xhigh"]);
    assert_eq!(
        (model.default_reasoning_effort.as_str(), model.input_modalities.len()),
        ("medium", 2)
    );
    assert!(!model.display_name.is_empty() && !model.description.is_empty());
    let all = pb::ListModelsRequest { include_hidden: true };
    assert!(!pool.list_models(all).await.unwrap().into_inner().models.is_empty());
    sidecar.stop().await;
}

async fn erase(client: &Client, context: &str) -> Result<String, Refused> {
    let request = pb::DeleteContextRequest {
        context_id: context.into(),
        delete_thread: true,
        ..Default::default()
    };
    let erased = client.codex().delete_context(request).await.map_err(Refused::from)?;
    Ok(erased.into_inner().deleted_thread_id)
}

/// The files below CODEX_HOME with a thread's id in their names.
fn files_of(sidecar: &Sidecar, thread_id: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![sidecar.place.codex_home()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else if entry.file_name().to_string_lossy().contains(thread_id) {
                found.push(entry.path());
            }
        }
    }
    found
}

#[tokio::test]
async fn a_context_is_erased_with_its_thread_after_all_copies_of_it() {
    let sidecar = Sidecar::start().await;
    let source = sidecar.say("a", "hello").await.thread_id().to_owned();
    let copy = fork(&sidecar, "a", "b").await.thread_id;
    sidecar.say("b", "hello").await.completed();
    let refused = erase(&sidecar, "a").await.unwrap_err();
    refused.assert(Code::FailedPrecondition, "THREAD_SHARED");
    // One of which the sidecar knows no context any more: Codex refuses.
    let unbind = pb::DeleteContextRequest { context_id: "b".into(), ..Default::default() };
    sidecar.codex().delete_context(unbind).await.unwrap();
    let refused = erase(&sidecar, "a").await.unwrap_err();
    refused.assert(Code::FailedPrecondition, "THREAD_SHARED");
    assert_eq!(sidecar.say("a", "again").await.thread_id(), source);

    bind(&sidecar, "b", &copy).await;
    for (context, thread_id) in [("b", &copy), ("a", &source)] {
        assert!(!files_of(&sidecar, thread_id).is_empty());
        assert_eq!(erase(&sidecar, context).await.unwrap(), *thread_id);
        assert_eq!(files_of(&sidecar, thread_id), [] as [PathBuf; 0]);
        let refused = try_read(&sidecar, of_thread(thread_id)).await.unwrap_err();
        refused.assert(Code::NotFound, "THREAD_NOT_FOUND");
        let refused = erase(&sidecar, context).await.unwrap_err();
        refused.assert(Code::NotFound, "CONTEXT_NOT_FOUND");
    }
    // What Codex does not have is as good as deleted.
    bind(&sidecar, "a", &source).await;
    erase(&sidecar, "a").await.unwrap();
    assert_ne!(sidecar.say("a", "hello").await.thread_id(), source);
    sidecar.stop().await;
}
