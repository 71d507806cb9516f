//! Codex's own review and compaction as turns, on the real CLI.

use std::path::Path;
use std::process::Command;

use crate::support::{Sidecar, eventually, processes, prompt};
use codex_sidecar::pb;
use codex_sidecar::pb::item::Kind;
use codex_sidecar::pb::review_target::Target;
use tonic::Code;

fn review(context: &str, target: Target) -> pb::RunTurnRequest {
    let review = Some(pb::ReviewTarget { target: Some(target) });
    pb::RunTurnRequest { review, inputs: Vec::new(), ..prompt(context, "") }
}

fn words(words: &str) -> Target {
    Target::Instructions(words.to_owned())
}

fn git(directory: &Path, args: &[&str]) {
    let mut command = Command::new("git");
    command.arg("-C").arg(directory).args(["-c", "user.name=a", "-c", "user.email=a@b"]);
    let output = command.args(args).env("GIT_CONFIG_GLOBAL", "/dev/null").output();
    let output = output.expect("git is there");
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The working directory of the sidecar as a repository with a commit, a branch and a change.
fn repository(sidecar: &Sidecar) {
    let work = sidecar.place.work();
    std::fs::write(work.join("a.txt"), "one\n").unwrap();
    git(&work, &["add", "."]);
    git(&work, &["commit", "-qm", "first"]);
    git(&work, &["branch", "base"]);
    std::fs::write(work.join("a.txt"), "two\n").unwrap();
}

#[tokio::test]
async fn each_target_of_a_review_reaches_codex_and_its_text_is_the_answer() {
    let sidecar = Sidecar::start().await;
    repository(&sidecar);
    let first = sidecar.say("a", "hello").await;
    for (target, asked) in [
        (Target::UncommittedChanges(true), "current code changes"),
        (Target::BaseBranch("base".to_owned()), "the base branch 'base'"),
        (Target::Commit("HEAD".to_owned()), "commit HEAD"),
        (words("look at a.txt"), "look at a.txt"),
    ] {
        let told = sidecar.run(review("a", target)).await;
        assert_eq!(told.thread_id(), first.thread_id());
        assert!(told.final_response().contains(asked), "{}", told.final_response());
        assert_eq!(told.codex_turn_ids().len(), 1);
        // Codex does not say what a review uses.
        assert_eq!(told.completed().usage, None);
    }
    let told = sidecar.run(review("a", words("[[say All is well.]]"))).await;
    assert_eq!(told.final_response(), "All is well.");
    // The thread goes on, and knows of it.
    let input = sidecar.shown("/input", prompt("a", "")).await;
    assert!(input.to_string().contains("All is well."), "{input:#}");
    sidecar.stop().await;
}

#[tokio::test]
async fn what_a_review_can_not_look_at_is_refused_before_codex_sees_it() {
    let sidecar = Sidecar::start().await;
    repository(&sidecar);
    let outside = tempfile::tempdir_in("/dev/shm").unwrap();
    for (target, field) in [
        (Target::BaseBranch("nowhere".to_owned()), "review.base_branch"),
        (Target::BaseBranch("--help".to_owned()), "review.base_branch"),
        (Target::Commit("deadbeef".to_owned()), "review.commit"),
        (Target::Commit("a b".to_owned()), "review.commit"),
        (words(" "), "review.instructions"),
        (Target::UncommittedChanges(false), "review.uncommitted_changes"),
    ] {
        let refused = sidecar.refused(review("a", target)).await;
        refused.assert(Code::InvalidArgument, "INVALID_INPUT");
        assert_eq!(refused.field_paths(), [field]);
    }
    let mut beside = review("a", words("x"));
    let options = pb::TurnOptions {
        output_schema: "{}".to_owned(),
        max_total_tokens: 1,
        ..Default::default()
    };
    beside.turn_options = Some(options);
    beside.compact = true;
    beside.busy_policy = pb::BusyPolicy::Steer.into();
    beside.inputs = prompt("a", "and this").inputs;
    let refused = sidecar.refused(beside).await;
    refused.assert(Code::InvalidArgument, "INVALID_INPUT");
    let mut fields = refused.field_paths();
    fields.sort_unstable();
    assert_eq!(fields, ["busy_policy", "compact", "inputs", "turn_options.output_schema"]);
    let mut budget = review("a", words("x"));
    budget.turn_options.get_or_insert_default().max_total_tokens = 1;
    assert_eq!(sidecar.refused(budget).await.field_paths(), ["turn_options.max_total_tokens"]);

    let elsewhere = |target: Target| {
        let mut request = review("b", target);
        let options = request.thread_options.get_or_insert_default();
        options.working_directory = Some(outside.path().display().to_string());
        options.skip_git_repo_check = Some(true);
        request
    };
    let refused = sidecar.refused(elsewhere(Target::UncommittedChanges(true))).await;
    refused.assert(Code::FailedPrecondition, "NOT_A_GIT_REPOSITORY");
    let told = sidecar.run(elsewhere(words("[[say ok]]"))).await;
    assert_eq!(told.final_response(), "ok");
    sidecar.stop().await;
}

#[tokio::test]
async fn a_review_is_interrupted_with_its_command_and_the_context_goes_on() {
    let sidecar = Sidecar::start().await;
    // A number that no other test's command has.
    let mut running = sidecar.begin(review("a", words("[[run sleep 86123]]"))).await;
    let turn_id = running.started().await;
    running.command_started().await;
    let refused = sidecar.steer(&turn_id, "and this").await.unwrap_err();
    refused.assert(Code::FailedPrecondition, "TURN_NOT_STEERABLE");
    sidecar.interrupt(&turn_id).await.unwrap();
    let told = running.rest().await;
    assert_eq!(told.interrupted(), pb::InterruptReason::InterruptRequested);
    eventually("the command's end", async || {
        let left = processes::of_home(&sidecar.place.codex_home());
        (!left.iter().any(|process| process.command.contains("sleep 86123"))).then_some(())
    })
    .await;
    assert_eq!(sidecar.say("a", "hello").await.thread_id(), told.thread_id());
    sidecar.stop().await;
}

#[tokio::test]
async fn a_review_works_by_its_own_settings_and_leaves_none_to_the_next_turn() {
    let sidecar = Sidecar::start().await;
    sidecar.say("a", "hello").await;
    let file = sidecar.place.work().join("written");
    let writing = format!("[[run echo x > '{}']] [[say done]]", file.display());
    // By what is there: of a command that fails at once Codex may tell nothing.
    sidecar.run(review("a", words(&writing))).await.completed();
    assert!(!file.exists(), "a review may only read, unless more is asked for");
    let mut wider = review("a", words(&writing));
    let options = wider.thread_options.get_or_insert_default();
    options.set_sandbox_mode(pb::SandboxMode::DangerFullAccess);
    options.model = Some("another".to_owned());
    sidecar.run(wider).await.completed();
    std::fs::remove_file(&file).expect("this one may write");
    sidecar.say("a", &writing).await.completed();
    assert!(!file.exists(), "what a review may, the next turn may not");
    assert_ne!(sidecar.shown("/model", prompt("a", "")).await, "another");
    sidecar.stop().await;
}

#[tokio::test]
async fn a_compaction_sums_the_thread_up_and_the_next_turn_goes_on_with_less() {
    let sidecar = Sidecar::start().await;
    let compact = |context: &str| pb::RunTurnRequest {
        compact: true,
        inputs: Vec::new(),
        ..prompt(context, "")
    };
    let refused = sidecar.refused(compact("a")).await;
    refused.assert(Code::NotFound, "CONTEXT_NOT_FOUND");
    let first = sidecar.say("a", "[[words 500]]").await;
    let told = sidecar.run(compact("a")).await;
    assert_eq!(told.thread_id(), first.thread_id());
    let is_compaction = |(_, kind): &(&str, &Kind)| matches!(kind, Kind::ContextCompaction(_));
    assert!(told.items().iter().any(is_compaction), "{:?}", told.kinds());
    let usage = told.completed().usage.expect("Codex says what it used");
    assert!(usage.input_tokens > 0 && usage.output_tokens > 0, "{usage:?}");
    let input = sidecar.shown("/input", prompt("a", "")).await.to_string();
    assert!(!input.contains("w499"), "{input}");
    sidecar.stop().await;
}

#[tokio::test]
async fn a_review_is_one_turn_of_its_thread_to_read_copy_and_take_back() {
    let sidecar = Sidecar::start().await;
    repository(&sidecar);
    let context = |id: &str| Some(pb::ContextRef { context_id: id.into(), ..Default::default() });
    let first = sidecar.say("a", "hello").await;
    let reviewed = sidecar.run(review("a", Target::UncommittedChanges(true))).await;
    let last = sidecar.say("a", "bye").await;
    let [first, reviewed, last] =
        [&first, &reviewed, &last].map(|told| told.codex_turn_ids()[0].to_owned());
    let codex = || sidecar.codex();
    let read = async |context: &str, page_size: i32| {
        let mut turns: Vec<pb::ThreadTurn> = Vec::new();
        let mut page_token = String::new();
        loop {
            let context = pb::ContextRef { context_id: context.into(), ..Default::default() };
            let target = Some(pb::read_thread_request::Target::Context(context));
            let request = pb::ReadThreadRequest { target, page_size, page_token };
            let page = codex().read_thread(request).await.unwrap().into_inner();
            turns.extend(page.turns);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                assert!(
                    turns.iter().all(|turn| turn.status() == pb::ThreadTurnStatus::Completed),
                    "{turns:#?}"
                );
                return turns;
            }
        }
    };
    let ids = |turns: &[pb::ThreadTurn]| {
        turns.iter().map(|turn| turn.codex_turn_id.clone()).collect::<Vec<_>>()
    };
    for page_size in [1, 2, 9] {
        let turns = read("a", page_size).await;
        assert_eq!(ids(&turns), [first.as_str(), &reviewed, &last], "{page_size}");
        // What the reviewer was asked is a part of it.
        assert!(turns[1].items.len() >= 4, "{:#?}", turns[1]);
    }
    let request = pb::ForkContextRequest {
        source: context("a"),
        target: context("b"),
        last_codex_turn_id: reviewed.clone(),
    };
    codex().fork_context(request).await.unwrap();
    for page_size in [1, 9] {
        assert_eq!(ids(&read("b", page_size).await), [first.as_str(), &reviewed], "{page_size}");
    }
    for of in ["a", "b"] {
        let request = pb::RevertContextRequest {
            context: context(of),
            before_codex_turn_id: reviewed.clone(),
        };
        codex().revert_context(request).await.unwrap();
        assert_eq!(ids(&read(of, 0).await), [first.as_str()], "{of}");
        sidecar.say(of, "on").await.completed();
    }
    sidecar.stop().await;
}
