//! Rows 7 and 34: a line over the limit is the trouble of its own turn, on the real CLI. Every test runs
//! another turn on the same worker meanwhile, which must not notice.

use std::path::Path;

use crate::support::{Client, Sidecar, Told, prompt, text, unsandboxed, with_options};
use codex_sidecar::pb;
use pb::item::Kind;
use pb::turn_event::Event;

const MIB: usize = 1 << 20;

/// A turn that may write.
fn writing(context: &str, words: &str) -> pb::RunTurnRequest {
    with_options(unsandboxed(context, words), |options| {
        options.set_approval_policy(pb::ApprovalPolicy::Never);
    })
}

/// Runs a turn beside another one on the only worker, which must end well and on the same process.
async fn beside_another(client: &Client, request: pb::RunTurnRequest) -> Told {
    let mut other = client.begin(prompt("other", "[[run sleep 3]] [[say unharmed]]")).await;
    other.command_started().await;
    let told = client.run(request).await;
    let other = other.rest().await;
    assert_eq!(other.final_response(), "unharmed");
    assert_eq!(skipped(&other), Vec::<&str>::new());
    let workers = client.workers().await;
    assert_eq!((workers.len(), workers[0].generation), (1, 1), "{workers:#?}");
    told
}

/// What the turn says of skipped lines.
fn skipped(told: &Told) -> Vec<&str> {
    let warnings = told.warnings().into_iter().filter(|warning| warning.code == "LINE_SKIPPED");
    warnings.map(|warning| warning.message.as_str()).collect()
}

fn write_big_file(work: &Path, bytes: usize) {
    std::fs::write(work.join("big.txt"), "0123456789abcde\n".repeat(bytes / 16)).unwrap();
}

const DELETE: &str = "[[patch\n*** Delete File: big.txt\n]]";

#[tokio::test]
async fn a_file_of_9_mb_is_deleted_and_the_turn_goes_on_with_a_warning() {
    let sidecar = Sidecar::start().await;
    let work = sidecar.place.work();
    write_big_file(&work, 9_000_000);
    let told =
        beside_another(&sidecar, writing("a", &format!("{DELETE} [[say it is gone]]"))).await;
    assert!(!work.join("big.txt").exists());
    assert_eq!(told.final_response(), "it is gone");
    let lost = skipped(&told);
    println!("{lost:#?}");
    assert!(!lost.is_empty(), "{:?}", told.kinds());
    for words in &lost {
        assert!(words.contains("limits.max_line_bytes, which is 8388608"), "{words}");
    }
    assert!(lost.iter().any(|words| words.contains("item/completed of fileChange")), "{lost:#?}");

    // The model's next request fails: nobody may promise that nothing was done.
    write_big_file(&work, 9_000_000);
    let failing = writing("a", &format!("{DELETE} [[status 500]]"));
    let told = beside_another(&sidecar, failing).await;
    assert!(!work.join("big.txt").exists());
    let error = told.failed();
    assert!(error.side_effects_possible && error.retryable, "{error:#?}");
    let next = sidecar.say("a", "hello").await;
    assert_eq!(next.origin(), pb::ThreadOrigin::Resumed);
    sidecar.stop().await;
}

#[tokio::test]
async fn an_answer_of_12_mib_touches_its_own_turn_alone() {
    let sidecar = Sidecar::start().await;
    let told = beside_another(&sidecar, prompt("a", "[[bytes 12582912]]")).await;
    // Whoever reads as they come has it all.
    let text: usize = told
        .all()
        .map(|event| match event {
            Event::AgentMessageDelta(delta) => delta.text.len(),
            _ => 0,
        })
        .sum();
    assert_eq!(text, 12 * MIB);
    // Codex repeats the last message in the line that ends the turn.
    let error = told.failed();
    assert_eq!(error.reason, "WORKER_PROTOCOL", "{error:#?}");
    assert!(!error.retryable && error.side_effects_possible, "{error:#?}");
    assert!(error.message.contains("completed") && error.message.contains("8388608"), "{error:#?}");
    let lost = skipped(&told);
    assert!(lost.iter().any(|words| words.contains("item/completed of agentMessage")), "{lost:#?}");
    let next = sidecar.say("a", "hello").await;
    assert_eq!(next.thread_id(), told.thread_id());
    assert_eq!(next.final_response(), "You said: hello (user messages so far: 2)");
    sidecar.stop().await;
}

/// The item of a message can be lost although the end of its turn is not.
#[tokio::test]
async fn a_message_whose_item_is_lost_is_known_from_its_deltas() {
    let sidecar =
        Sidecar::with(|config| config.worker.limits.peer.max_line_bytes = 256 << 10).await;
    let told =
        beside_another(&sidecar, prompt("a", "[[bytes 300000]] [[say and that was all]]")).await;
    assert_eq!(told.final_response(), "and that was all");
    let texts = told.messages();
    assert_eq!(texts.len(), 2);
    assert_eq!(texts[0], "0123456789abcdef".repeat(300_000 / 16));
    let lost = skipped(&told);
    assert_eq!(lost.len(), 1, "{lost:#?}");
    assert!(lost[0].contains("known from its deltas"), "{lost:#?}");
    sidecar.stop().await;
}

#[tokio::test]
async fn what_a_caller_puts_in_can_always_be_told_back() {
    // No event falls into a gap.
    let sidecar = Sidecar::with(|config| config.retention.max_bytes_per_turn = 64 * MIB).await;
    let limit = usize::try_from(sidecar.info().await.limits.unwrap().max_request_bytes).unwrap();
    assert_eq!(limit, 8 * MIB);
    let image = |bytes: usize| format!("data:image/png;base64,{}", "A".repeat(bytes));
    let with_image = |url: String, padding: usize| {
        let image = pb::UserInput { input: Some(pb::user_input::Input::ImageUrl(url)) };
        let mut request = prompt("a", &format!("[[say I saw it]]{}", "x".repeat(padding)));
        request.inputs.push(image);
        request
    };
    // As large as a request may be, to the byte, and so every echo longer than the limit of lines.
    use prost::Message as _;
    let around = sidecar.at_work(with_image(image(7 * MIB), 0)).encoded_len() - 7 * MIB;
    // Base64 comes in fours; the text takes what is left.
    let (data, padding) = ((limit - around) / 4 * 4, (limit - around) % 4);
    let told = beside_another(&sidecar, with_image(image(data), padding)).await;
    assert_eq!(told.final_response(), "I saw it");
    assert_eq!(skipped(&told), Vec::<&str>::new());
    let (_, shown) = told.item("the input", |kind| match kind {
        Kind::UserMessage(message) => message.inputs.iter().find_map(|input| match &input.input {
            Some(pb::user_input::Input::ImageUrl(url)) => Some(url.clone()),
            _ => None,
        }),
        _ => None,
    });
    assert_eq!(shown, format!("data:image/png;base64,… ({} bytes)", data / 4 * 3));

    // The text that grows most when it is written as JSON.
    let mut request = prompt("b", "[[say I read it]]");
    request.inputs.push(text(&format!("x{}x", "\u{1}".repeat(1_040_000))));
    let told = beside_another(&sidecar, request).await;
    assert_eq!((told.final_response(), skipped(&told)), ("I read it", vec![]));
    sidecar.stop().await;
}

/// What no item is told of is known all the same.
#[tokio::test]
async fn no_side_effects_are_promised_only_where_the_model_had_answered_nothing() {
    let sidecar = Sidecar::start().await;
    // The sandbox lets the first write through and not the second, and then no item of it may come.
    let work = sidecar.place.work();
    for round in 0..4 {
        let words = "[[run echo one > one.txt; echo two > /etc/two.txt; exit 1]] [[status 500]]";
        let mut request = prompt("a", words);
        let options = request.thread_options.get_or_insert_default();
        options.sandbox_mode = pb::SandboxMode::WorkspaceWrite.into();
        options.approval_policy = pb::ApprovalPolicy::Never.into();
        let told = sidecar.run(request).await;
        println!("round {round}: {:?}", told.kinds());
        assert!(std::fs::remove_file(work.join("one.txt")).is_ok(), "nothing was written");
        assert!(told.failed().side_effects_possible, "{:#?}", told.failed());
        assert!(thread_error(&told).side_effects_possible);
    }
    for (words, side_effects) in
        [("[[hang]]", false), ("[[tool view_image {\"path\": \"/nowhere.png\"}]] [[hang]]", true)]
    {
        let mut request = prompt(words, words);
        let idle = prost_types::Duration { seconds: 2, nanos: 0 };
        request.turn_options.get_or_insert_default().idle_timeout = Some(idle);
        let told = sidecar.run(request).await;
        let error = told.failed();
        assert_eq!((error.reason.as_str(), error.retryable), ("IDLE_TIMEOUT", true), "{error:#?}");
        assert_eq!(error.side_effects_possible, side_effects, "{words}: {error:#?}");
    }
    for (words, side_effects) in [
        ("[[status 500]]", false),
        ("[[status 401]]", false),
        ("[[fail context_length_exceeded]]", false),
        // It broke off in the middle of its first message.
        ("[[cut]]", false),
        ("[[say hello]] [[cut]]", true),
        ("[[reason why]] [[cut]]", true),
        ("[[say hello]] [[fail server_error]]", true),
        ("[[plan a; b]] [[status 500]]", true),
        // A tool that fails without an item.
        ("[[tool view_image {\"path\": \"/nowhere.png\"}]] [[status 500]]", true),
    ] {
        let told = sidecar.say(words, words).await;
        if let Event::TurnCompleted(_) = told.terminal() {
            continue;
        }
        let error = told.failed();
        assert_eq!(error.side_effects_possible, side_effects, "{words}: {error:#?}");
        assert_eq!(thread_error(&told).side_effects_possible, side_effects, "{words}");
    }
    sidecar.stop().await;
}

fn thread_error(told: &Told) -> &pb::TurnError {
    let error = told.all().find_map(|event| match event {
        Event::ThreadError(pb::ThreadError { error, .. }) => error.as_ref(),
        _ => None,
    });
    error.expect("the error is told")
}
