//! Which thread a context continues, over real gRPC: the calls of the registry, and the order of
//! the turns of one context.

use crate::support::{Client, Refused, Sidecar, Turn, prompt, unsandboxed};
use codex_sidecar::pb;
use codex_sidecar::pb::turn_event::Event;
use futures::future::join_all;
use tonic::Code;

async fn bind(client: &Client, context: &str, thread: &str) -> pb::BindContextResponse {
    let request = pb::BindContextRequest {
        context_id: context.into(),
        thread_id: thread.into(),
        ..Default::default()
    };
    client.codex().bind_context(request).await.unwrap().into_inner()
}

async fn delete(client: &Client, context: &str) -> Result<(), Refused> {
    let request = pb::DeleteContextRequest { context_id: context.into(), ..Default::default() };
    client.codex().delete_context(request).await.map(|_| ()).map_err(Refused::from)
}

async fn list(client: &Client, request: pb::ListContextsRequest) -> pb::ListContextsResponse {
    client.codex().list_contexts(request).await.unwrap().into_inner()
}

fn seconds(timestamp: Option<prost_types::Timestamp>) -> (i64, i32) {
    let timestamp = timestamp.expect("a binding has its times");
    (timestamp.seconds, timestamp.nanos)
}

#[tokio::test]
async fn a_binding_tells_of_its_turns() {
    let sidecar = Sidecar::start().await;
    sidecar.context("a").await.unwrap_err().assert(Code::NotFound, "CONTEXT_NOT_FOUND");
    let first = sidecar.say("a", "hello").await;
    let context = sidecar.context(" a ").await.unwrap();
    assert_eq!(context.context_id, "a");
    assert_eq!(context.thread_id, first.thread_id());
    assert_eq!(
        (context.thread_id_key.as_str(), context.tool_name.as_str()),
        ("codex_thread_id", "codex")
    );
    assert_eq!((context.turn_count, context.latest_turn_id.as_str()), (1, first.turn_id()));
    assert_eq!((context.running_turn_id.as_str(), context.queued_turns), ("", 0));
    assert_eq!(context.worker_id, sidecar.workers().await[0].worker_id);
    assert!(seconds(context.create_time) <= seconds(context.update_time));

    // While a turn runs and another waits for it.
    let mut running = sidecar.begin(prompt("a", "[[hang]]")).await;
    let running_id = running.started().await;
    let waiting = sidecar.begin(prompt("a", "hello")).await;
    let during = sidecar.context("a").await.unwrap();
    assert_eq!((during.running_turn_id.as_str(), during.queued_turns), (running_id.as_str(), 1));
    assert_eq!((during.turn_count, during.latest_turn_id.as_str()), (2, running_id.as_str()));
    assert_eq!(seconds(during.create_time), seconds(context.create_time));
    assert!(seconds(during.update_time) > seconds(context.update_time));
    // The binding is not pulled from under them.
    delete(&sidecar, "a").await.unwrap_err().assert(Code::Aborted, "CONTEXT_BUSY");
    let rebind = pb::BindContextRequest {
        context_id: "a".into(),
        thread_id: first.thread_id().into(),
        ..Default::default()
    };
    let refused = Refused::from(sidecar.codex().bind_context(rebind).await.unwrap_err());
    refused.assert(Code::Aborted, "CONTEXT_BUSY");

    sidecar.interrupt(&running_id).await.unwrap();
    running.rest().await;
    let waited = waiting.rest().await;
    assert_eq!(waited.thread_id(), first.thread_id());
    let after = sidecar.context("a").await.unwrap();
    assert_eq!((after.turn_count, after.running_turn_id.as_str()), (3, ""));
    sidecar.stop().await;
}

#[tokio::test]
async fn a_context_can_be_bound_and_unbound_by_hand() {
    let sidecar = Sidecar::start().await;
    let first = sidecar.say("a", "one").await;
    let bound = bind(&sidecar, "b", first.thread_id()).await;
    assert_eq!(bound.replaced_thread_id, "");
    assert_eq!(bound.context.unwrap().turn_count, 0);
    let told = sidecar.say("b", "two").await;
    assert_eq!((told.thread_id(), told.origin()), (first.thread_id(), pb::ThreadOrigin::Resumed));
    assert_eq!(told.final_response(), "You said: two (user messages so far: 2)");

    // In place of what was: the next turn goes by it.
    let other = sidecar.say("c", "one").await;
    let upper = other.thread_id().to_uppercase();
    let bound = bind(&sidecar, "b", &format!(" {upper} ")).await;
    assert_eq!(bound.replaced_thread_id, first.thread_id());
    assert_eq!(bound.context.unwrap().thread_id, other.thread_id());
    assert_eq!(sidecar.say("b", "two").await.thread_id(), other.thread_id());

    // Unbound: a new thread, while the old one is still there for who names it.
    delete(&sidecar, "b").await.unwrap();
    delete(&sidecar, "b").await.unwrap_err().assert(Code::NotFound, "CONTEXT_NOT_FOUND");
    let fresh = sidecar.say("b", "one").await;
    assert_eq!(fresh.origin(), pb::ThreadOrigin::New);
    assert_eq!(fresh.final_response(), "You said: one (user messages so far: 1)");
    assert_eq!(
        sidecar.say("a", "three").await.final_response(),
        "You said: three (user messages so far: 3)"
    );
    sidecar.stop().await;
}

#[tokio::test]
async fn pages_list_every_binding_once_and_in_order() {
    let sidecar = Sidecar::start().await;
    let mut expected = Vec::new();
    for number in 0..23 {
        let context_id = format!("c{number:02}");
        for tool in ["", "codex_engineer"] {
            let request = pb::BindContextRequest {
                context_id: context_id.clone(),
                tool_name: tool.into(),
                thread_id: format!("00000000-0000-7000-8000-0000000000{number:02}"),
                ..Default::default()
            };
            let bound = sidecar.codex().bind_context(request).await.unwrap().into_inner();
            let bound = bound.context.unwrap();
            expected.push((bound.context_id, bound.thread_id_key));
        }
    }
    expected.sort();
    let keys = |page: &pb::ListContextsResponse| -> Vec<(String, String)> {
        let key =
            |context: &pb::Context| (context.context_id.clone(), context.thread_id_key.clone());
        page.contexts.iter().map(key).collect()
    };
    for page_size in [1, 7, 46, 1000, i32::MAX] {
        let mut seen = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = pb::ListContextsRequest { page_size, page_token, ..Default::default() };
            let page = list(&sidecar, request).await;
            assert!(page.contexts.len() <= usize::try_from(page_size).unwrap());
            seen.extend(keys(&page));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        assert_eq!(seen, expected, "pages of {page_size}");
    }
    assert_eq!(list(&sidecar, pb::ListContextsRequest::default()).await.contexts.len(), 46);
    let of_one = pb::ListContextsRequest { context_id: " c07 ".into(), ..Default::default() };
    assert_eq!(keys(&list(&sidecar, of_one.clone()).await), expected[14..16]);

    // A token belongs to the question that it was the answer to.
    let first = pb::ListContextsRequest { page_size: 1, ..of_one };
    let page_token = list(&sidecar, first).await.next_page_token;
    assert!(!page_token.is_empty());
    let other = pb::ListContextsRequest { page_token, ..Default::default() };
    let refused = Refused::from(sidecar.codex().list_contexts(other).await.unwrap_err());
    refused.assert(Code::InvalidArgument, "INVALID_INPUT");
    assert_eq!(refused.field_paths(), ["page_token"]);
    sidecar.stop().await;
}

#[tokio::test]
async fn the_turns_of_a_context_run_in_the_order_of_their_arrival() {
    let sidecar = Sidecar::start().await;
    let mut first = sidecar.begin(prompt("a", "[[wait 1s]] [[say 0]]")).await;
    first.started().await;
    let mut turns = vec![first];
    for number in 1..6 {
        // A turn that waits says so at once, and that is when the next one comes.
        let mut turn = sidecar.begin(prompt("a", &format!("[[say {number}]]"))).await;
        let position = turn.until("queued", queued).await;
        assert_eq!(position, number, "its place when it came");
        turns.push(turn);
    }
    let told = join_all(turns.into_iter().map(Turn::rest)).await;
    let thread_id = told[0].thread_id().to_owned();
    let mut ends = Vec::new();
    for (number, told) in told.iter().enumerate() {
        assert_eq!(told.final_response(), number.to_string());
        assert_eq!(told.thread_id(), thread_id);
        // Its place only ever gets better, down to the next to run.
        let positions: Vec<u32> = told.all().filter_map(queued).collect();
        let falling: Vec<u32> = (1..=u32::try_from(number).unwrap()).rev().collect();
        assert!(positions.is_sorted_by(|a, b| a > b), "{positions:?}");
        assert!(positions.iter().all(|position| falling.contains(position)), "{positions:?}");
        let at = |event: &pb::TurnEvent| {
            let at = event.emitted_at.unwrap();
            (at.seconds, at.nanos)
        };
        let started =
            told.events.iter().find(|event| matches!(event.event, Some(Event::ThreadStarted(_))));
        ends.push((at(started.unwrap()), at(told.events.last().unwrap())));
    }
    for pair in ends.windows(2) {
        assert!(
            pair[0].1 <= pair[1].0,
            "a turn began before the one ahead of it was over: {ends:?}"
        );
    }
    sidecar.stop().await;
}

fn queued(event: &Event) -> Option<u32> {
    match event {
        Event::Queued(queued) => Some(queued.position),
        _ => None,
    }
}

#[tokio::test]
async fn turns_of_different_contexts_run_side_by_side() {
    let sidecar = Sidecar::with(|config| config.workers = 2).await;
    // Neither can end before both have begun: each waits for a file that the test makes.
    let script = "[[run until [ -e go ]; do sleep 0.05; done]] [[say done]]";
    let mut a = sidecar.begin(unsandboxed("a", script)).await;
    let mut b = sidecar.begin(unsandboxed("b", script)).await;
    a.command_started().await;
    b.command_started().await;
    let workers = sidecar.workers().await;
    let running: Vec<u32> = workers.iter().map(|worker| worker.running_turns).collect();
    assert_eq!(running, [1, 1], "a new thread goes to the least loaded worker");
    std::fs::write(sidecar.place.work().join("go"), "").unwrap();
    let (a, b) = tokio::join!(a.rest(), b.rest());
    assert_ne!(a.thread_id(), b.thread_id());
    assert_eq!((a.final_response(), b.final_response()), ("done", "done"));
    // A thread stays with the worker that holds it.
    for context in ["a", "b", "a", "b"] {
        let holder = sidecar.context(context).await.unwrap().worker_id;
        sidecar.say(context, "hello").await.completed();
        assert_eq!(sidecar.context(context).await.unwrap().worker_id, holder);
    }
    sidecar.stop().await;
}

#[tokio::test]
async fn two_contexts_on_one_thread_take_turns() {
    let sidecar = Sidecar::with(|config| config.workers = 2).await;
    let first = sidecar.say("a", "hello").await;
    bind(&sidecar, "b", first.thread_id()).await;
    let mut running = sidecar.begin(prompt("a", "[[wait 500ms]] [[say a]]")).await;
    running.started().await;
    let other = sidecar.begin(prompt("b", "[[say b]]"));
    let named =
        pb::RunTurnRequest { thread_id: first.thread_id().into(), ..prompt("", "[[say c]]") };
    let named = sidecar.begin(named);
    let (running, other, named) =
        tokio::join!(running.rest(), async { other.await.rest().await }, async {
            named.await.rest().await
        });
    for (told, response) in [(&running, "a"), (&other, "b"), (&named, "c")] {
        assert_eq!((told.final_response(), told.thread_id()), (response, first.thread_id()));
    }
    let history = sidecar.say("a", "how many?").await;
    assert_eq!(history.final_response(), "You said: how many? (user messages so far: 5)");
    sidecar.stop().await;
}

#[tokio::test]
async fn new_contexts_that_race_get_one_thread_each() {
    let sidecar = Sidecar::with(|config| config.workers = 2).await;
    let turns = (0..5).flat_map(|context| {
        let sidecar = &sidecar;
        (0..4).map(move |_| async move {
            let context = format!("race{context}");
            (context.clone(), sidecar.say(&context, "hello").await)
        })
    });
    let told = join_all(turns).await;
    for context in 0..5 {
        let context = format!("race{context}");
        let of_context: Vec<_> = told.iter().filter(|(of, _)| *of == context).collect();
        let mut threads: Vec<&str> = of_context.iter().map(|(_, told)| told.thread_id()).collect();
        threads.dedup();
        assert_eq!(threads.len(), 1, "{context}: {threads:?}");
        let new = of_context.iter().filter(|(_, told)| told.origin() == pb::ThreadOrigin::New);
        assert_eq!(new.count(), 1, "{context}");
        let mut counts: Vec<&str> =
            of_context.iter().map(|(_, told)| told.final_response()).collect();
        counts.sort_unstable();
        let expected: Vec<String> =
            (1..=4).map(|n| format!("You said: hello (user messages so far: {n})")).collect();
        assert_eq!(counts, expected, "{context}");
    }
    assert_eq!(sidecar.place.rollouts().len(), 5);
    sidecar.stop().await;
}

#[tokio::test]
async fn a_full_queue_refuses_and_says_when_to_come_back() {
    let sidecar = Sidecar::with(|config| {
        config.limits.max_running_turns = 1;
        config.limits.max_waiting_turns = 2;
        config.limits.max_waiting_turns_per_context = 1;
    })
    .await;
    let mut running = sidecar.begin(prompt("a", "[[hang]]")).await;
    let running_id = running.started().await;
    let mut reject = prompt("a", "x");
    reject.set_busy_policy(pb::BusyPolicy::Reject);
    sidecar.refused(reject).await.assert(Code::Aborted, "CONTEXT_BUSY");

    let mut second = sidecar.begin(prompt("a", "x")).await;
    second.until("queued", queued).await;
    let refused = sidecar.refused(prompt("a", "x")).await;
    refused.assert(Code::ResourceExhausted, "CONTEXT_QUEUE_FULL");
    assert!(refused.retry_after.is_some(), "{refused:#?}");
    let mut other = sidecar.begin(prompt("b", "x")).await;
    other.until("queued", queued).await;
    let refused = sidecar.refused(prompt("c", "x")).await;
    refused.assert(Code::ResourceExhausted, "QUEUE_FULL");
    assert!(refused.retry_after.is_some(), "{refused:#?}");
    let counts = sidecar.info().await.counts.unwrap();
    assert_eq!((counts.running_turns, counts.queued_turns), (1, 2));

    // One that waits can be taken out of the queue.
    let interrupted = sidecar.interrupt(other.turn_id()).await.unwrap();
    assert!(matches!(interrupted.event, Some(Event::TurnInterrupted(_))), "{interrupted:?}");
    assert_eq!(other.rest().await.interrupted(), pb::InterruptReason::InterruptRequested);
    sidecar.interrupt(&running_id).await.unwrap();
    running.rest().await;
    second.rest().await.completed();
    sidecar.say("c", "x").await.completed();
    sidecar.stop().await;
}

/// What becomes of a rollout's bytes.
type Damage = fn(&[u8]) -> Vec<u8>;

/// Rollouts that Codex can't read, and one that is another thread's.
const UNREADABLE: [(&str, Damage); 7] = [
    ("empty", |_| Vec::new()),
    ("blank", |_| b"\n\n".to_vec()),
    ("first line cut", |whole| whole[..100].to_vec()),
    ("text", |_| b"hello\nworld\n".to_vec()),
    ("not text", |whole| [b"\xff\xfe", whole].concat()),
    ("no beginning", |whole| {
        let first = whole.iter().position(|byte| *byte == b'\n').unwrap();
        whole[first + 1..].to_vec()
    }),
    ("of another thread", |whole| {
        let text = String::from_utf8(whole.to_vec()).unwrap();
        let first: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        let id = first["payload"]["id"].as_str().unwrap();
        text.replace(id, "01a210b2-38b6-76f1-a65b-dfcd677863f3").into_bytes()
    }),
];

/// Rollouts that have lost their end, which Codex can read.
const CUT: [(&str, Damage); 2] = [
    ("cut in the middle", |whole| whole[..whole.len() / 2].to_vec()),
    ("cut in the last line", |whole| whole[..whole.len() - 5].to_vec()),
];

#[tokio::test]
async fn a_rollout_that_codex_cannot_read_is_a_thread_that_is_gone() {
    let sidecar = Sidecar::start().await;
    let mut threads = Vec::new();
    for (what, _) in UNREADABLE.iter().chain(&CUT) {
        sidecar.say(what, "hello").await.completed();
        threads.push(sidecar.say(what, "again").await.thread_id().to_owned());
    }
    let place = sidecar.stop().await;
    let rollouts = place.rollouts();
    for ((_, damage), thread) in UNREADABLE.iter().chain(&CUT).zip(&threads) {
        let is_its = |path: &&std::path::PathBuf| path.to_str().unwrap().contains(thread.as_str());
        let rollout = rollouts.iter().find(is_its).expect("a rollout");
        std::fs::write(rollout, damage(&std::fs::read(rollout).unwrap())).unwrap();
    }

    let sidecar = Sidecar::in_place(place, |_, _| {}).await;
    for ((what, _), thread) in UNREADABLE.iter().zip(&threads) {
        bind(&sidecar, what, thread).await;
        for _ in 0..2 {
            let refused = sidecar.refused(prompt(what, "still there?")).await;
            refused.assert(Code::NotFound, "THREAD_NOT_FOUND");
            assert!(refused.message.contains(thread.as_str()), "{what}: {refused:#?}");
            assert_eq!(sidecar.context(what).await.unwrap().thread_id, *thread, "{what}");
        }
        let mut replace = prompt(what, "still there?");
        replace.set_missing_thread_policy(pb::MissingThreadPolicy::StartNew);
        let told = sidecar.run(replace).await;
        assert_eq!(told.origin(), pb::ThreadOrigin::New, "{what}");
        assert_eq!(told.final_response(), "You said: still there? (user messages so far: 1)");
        let warnings = told.warnings();
        let is_replacement = |warning: &&&pb::Warning| warning.code == "THREAD_REPLACED";
        let replaced = warnings.iter().find(is_replacement).expect(what);
        assert!(replaced.message.contains(thread.as_str()), "{what}: {replaced:#?}");
        let next = sidecar.say(what, "and now?").await;
        assert_eq!(next.thread_id(), told.thread_id(), "{what}");
    }
    for ((what, _), thread) in CUT.iter().zip(&threads[UNREADABLE.len()..]) {
        bind(&sidecar, what, thread).await;
        let told = sidecar.say(what, "still there?").await;
        assert_eq!((told.thread_id(), told.origin()), (thread.as_str(), pb::ThreadOrigin::Resumed));
        told.completed();
    }
    sidecar.stop().await;
}
