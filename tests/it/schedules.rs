//! Random schedules of everything that callers can do to turns. Whatever the order: every stream is
//! gap-free and in order or says where it is not, a turn ends once, and nothing is left.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::attached::{assert_follows, by_id};
use crate::support::turn::is_terminal;
use crate::support::{Client, PATIENCE, eventually, prompt, scripted, within};
use codex_sidecar::pb;
use codex_sidecar::pb::turn_event::Event;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::Code;

#[derive(Debug, Clone)]
enum Step {
    Run {
        context: u8,
        script: usize,
        busy: pb::BusyPolicy,
        outlives: bool,
        id: Option<u8>,
        leaves: Option<u8>,
    },
    Attach {
        turn: prop::sample::Index,
        after: u64,
        leaves: Option<u8>,
    },
    Repeat {
        call: prop::sample::Index,
        leaves: Option<u8>,
    },
    Interrupt {
        turn: prop::sample::Index,
    },
    Steer {
        turn: prop::sample::Index,
        script: usize,
    },
    /// Waits until that many events in all have been seen.
    Pause {
        events: u8,
    },
}

const SCRIPTS: &[&str] = &[
    "hello",
    "[[words 40]]",
    "[[words 15]] [[slow 2]]",
    "[[items 12 2000]]",
    "[[hang]]",
    "[[items 6 3000]] [[hang]]",
    "[[retry 3]] [[say x]]",
    "[[fail usageLimitExceeded]]",
    "[[words 5]] [[ignore-interrupt]] [[wait 300]]",
    "[[no-end]]",
    "[[plan a; b]] [[unknown-item]] [[warn w]] [[reason r]]",
    "[[refuse -32600 no]]",
    "[[double-end]] [[late 3]]",
    "[[ask item/commandExecution/requestApproval]]",
    "[[words 3]] [[die KILL]]",
];

fn step() -> impl Strategy<Value = Step> {
    let busy = prop_oneof![
        3 => Just(pb::BusyPolicy::Queue),
        1 => Just(pb::BusyPolicy::Reject),
        1 => Just(pb::BusyPolicy::Steer),
    ];
    // After how many events a reader leaves; most stay.
    let leaves = prop::option::weighted(0.3, 0_u8..20);
    let id = prop::option::weighted(0.4, 0_u8..4);
    let turn = any::<prop::sample::Index>;
    prop_oneof![
        6 => (0_u8..3, 0..SCRIPTS.len(), busy, any::<bool>(), id, leaves.clone()).prop_map(
            |(context, script, busy, outlives, id, leaves)| {
                Step::Run { context, script, busy, outlives, id, leaves }
            }
        ),
        4 => (turn(), 0_u64..12, leaves.clone())
            .prop_map(|(turn, after, leaves)| Step::Attach { turn, after, leaves }),
        2 => (turn(), leaves).prop_map(|(call, leaves)| Step::Repeat { call, leaves }),
        3 => turn().prop_map(|turn| Step::Interrupt { turn }),
        2 => (turn(), 0..SCRIPTS.len()).prop_map(|(turn, script)| Step::Steer { turn, script }),
        3 => (1_u8..60).prop_map(|events| Step::Pause { events }),
    ]
}

/// What all readers of a case have seen.
#[derive(Debug, Default)]
struct Seen {
    // Every event by its turn and number: whoever sees it sees the same.
    events: HashMap<(String, u64), pb::TurnEvent>,
    // The turns in the order in which they became known, with the number of the terminal event.
    turns: Vec<String>,
    ends: HashMap<String, u64>,
    kinds: BTreeMap<&'static str, usize>,
}

#[derive(Debug, Clone, Default)]
struct Witness {
    seen: Arc<Mutex<Seen>>,
    count: Arc<watch::Sender<usize>>,
}

impl Witness {
    fn note(&self, event: &pb::TurnEvent) {
        let mut seen = self.seen.lock().unwrap();
        if !seen.turns.contains(&event.turn_id) {
            seen.turns.push(event.turn_id.clone());
        }
        *seen.kinds.entry(event.event.as_ref().map_or("none", Event::name)).or_insert(0) += 1;
        if is_terminal(event) {
            let end = seen.ends.insert(event.turn_id.clone(), event.sequence);
            assert!(end.is_none_or(|end| end == event.sequence), "two ends: {event:#?}");
        }
        if let Some(end) = seen.ends.get(&event.turn_id) {
            assert!(event.sequence <= *end, "after the end: {event:#?}");
        }
        if !matches!(event.event, Some(Event::Gap(_))) {
            let key = (event.turn_id.clone(), event.sequence);
            let known = seen.events.entry(key).or_insert_with(|| event.clone());
            assert_eq!(known, event, "two readers see different events");
        }
        drop(seen);
        self.count.send_modify(|count| *count += 1);
    }

    fn turn(&self, index: &prop::sample::Index) -> Option<String> {
        let seen = self.seen.lock().unwrap();
        (!seen.turns.is_empty()).then(|| seen.turns[index.index(seen.turns.len())].clone())
    }
}

/// Reads a stream to its end, or to where its reader leaves, and holds it to the rules.
async fn read<S, E>(
    witness: &Witness,
    mut stream: tonic::Streaming<S>,
    event_of: E,
    after: u64,
    leaves: Option<u8>,
) -> Result<(), tonic::Status>
where
    E: Fn(S) -> Option<pb::TurnEvent>,
{
    let mut seen = after;
    let mut count = 0;
    let mut ended = false;
    loop {
        if leaves == Some(count) {
            return Ok(());
        }
        let Some(message) = stream.message().await? else {
            assert!(ended, "OK without a terminal event after {seen}");
            return Ok(());
        };
        let event = event_of(message).expect("a response has its event");
        assert!(!ended, "after the terminal event: {event:#?}");
        let again = count == 0 && event.sequence == after && is_terminal(&event);
        if !again {
            assert_follows(seen, &event);
        }
        seen = event.sequence;
        ended = is_terminal(&event);
        count = count.saturating_add(1);
        witness.note(&event);
    }
}

async fn call(witness: Witness, client: Client, request: pb::RunTurnRequest, leaves: Option<u8>) {
    let outcome = async {
        let stream = client.codex().run_turn(client.at_work(request)).await?.into_inner();
        read(&witness, stream, |response| response.event, 0, leaves).await
    };
    if let Err(status) = outcome.await {
        let expected = [
            Code::Aborted,
            Code::AlreadyExists,
            Code::ResourceExhausted,
            Code::FailedPrecondition,
            // A worker that died took the thread along before it had a history.
            Code::NotFound,
            Code::Unavailable,
        ];
        assert!(expected.contains(&status.code()), "{status:?}");
    }
}

async fn attach(witness: Witness, client: Client, turn_id: String, after: u64, leaves: Option<u8>) {
    let outcome = async {
        let request =
            pb::AttachTurnRequest { target: Some(by_id(&turn_id)), after_sequence: after };
        let stream = client.codex().attach_turn(request).await?.into_inner();
        read(&witness, stream, |response| response.event, after, leaves).await
    };
    if let Err(status) = outcome.await {
        // Beyond its latest event; refused late, or no longer retained.
        let expected = [Code::InvalidArgument, Code::NotFound, Code::Unavailable];
        assert!(expected.contains(&status.code()), "{status:?}");
    }
}

/// Plays a schedule, to its end; returns how often each kind of event was seen.
async fn play(client: &Client, case: u64, steps: Vec<Step>) -> BTreeMap<&'static str, usize> {
    let witness = Witness::default();
    let mut calls: Vec<pb::RunTurnRequest> = Vec::new();
    let mut tasks: Vec<JoinHandle<()>> = Vec::new();
    for step in steps {
        match step {
            Step::Run { context, script, busy, outlives, id, leaves } => {
                let policy = if outlives {
                    pb::DisconnectPolicy::Continue
                } else {
                    pb::DisconnectPolicy::Interrupt
                };
                let request = pb::RunTurnRequest {
                    busy_policy: busy.into(),
                    disconnect_policy: policy.into(),
                    request_id: id.map(|id| format!("{case}-{id}")).unwrap_or_default(),
                    // So that the turn that never ends does.
                    turn_options: Some(pb::TurnOptions {
                        idle_timeout: Some(prost_types::Duration { seconds: 2, nanos: 0 }),
                        ..Default::default()
                    }),
                    ..prompt(&format!("{case}-{context}"), SCRIPTS[script])
                };
                calls.push(request.clone());
                tasks.push(tokio::spawn(call(witness.clone(), client.clone(), request, leaves)));
            }
            Step::Repeat { call: index, leaves } if !calls.is_empty() => {
                let request = calls[index.index(calls.len())].clone();
                tasks.push(tokio::spawn(call(witness.clone(), client.clone(), request, leaves)));
            }
            Step::Repeat { .. } => {}
            Step::Attach { turn, after, leaves } => {
                if let Some(turn_id) = witness.turn(&turn) {
                    let attached = attach(witness.clone(), client.clone(), turn_id, after, leaves);
                    tasks.push(tokio::spawn(attached));
                }
            }
            Step::Interrupt { turn } => {
                if let Some(turn_id) = witness.turn(&turn) {
                    let (witness, client) = (witness.clone(), client.clone());
                    tasks.push(tokio::spawn(async move {
                        if let Ok(terminal) = client.interrupt(&turn_id).await {
                            assert!(is_terminal(&terminal), "{terminal:#?}");
                            witness.note(&terminal);
                        }
                    }));
                }
            }
            Step::Steer { turn, script } => {
                if let Some(turn_id) = witness.turn(&turn) {
                    let client = client.clone();
                    tasks.push(tokio::spawn(async move {
                        if let Err(refused) = client.steer(&turn_id, SCRIPTS[script]).await {
                            let expected = [Code::FailedPrecondition, Code::NotFound];
                            assert!(expected.contains(&refused.code), "{refused:#?}");
                        }
                    }));
                }
            }
            Step::Pause { events } => {
                let mut count = witness.count.subscribe();
                let wanted = *count.borrow() + usize::from(events);
                let enough = count.wait_for(|count| *count >= wanted);
                // There may be none to come.
                let _ = tokio::time::timeout(Duration::from_millis(50), enough).await;
            }
        }
    }
    // What hangs is ended; and whoever reads then comes to an end.
    let ending = async {
        loop {
            let turns = witness.seen.lock().unwrap().turns.clone();
            for turn_id in turns {
                if let Ok(terminal) = client.interrupt(&turn_id).await {
                    witness.note(&terminal);
                }
            }
            if tasks.iter().all(JoinHandle::is_finished) {
                let counts = client.counts().await;
                if counts.running_turns == 0 && counts.queued_turns == 0 {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within(PATIENCE, "the end of all turns", ending).await;
    for task in tasks {
        task.await.unwrap();
    }
    // Those whose every reader left have ended, too.
    let turns = witness.seen.lock().unwrap().turns.clone();
    for turn_id in turns {
        match client.interrupt(&turn_id).await {
            Ok(terminal) => witness.note(&terminal),
            Err(refused) => {
                refused.assert(Code::NotFound, "TURN_NOT_FOUND");
                // It could not be started after it had waited: its readers were told by a status.
                let seen = witness.seen.lock().unwrap();
                let mut events = seen.events.values().filter(|event| event.turn_id == turn_id);
                let waited = |event: &Option<Event>| {
                    matches!(event, Some(Event::Queued(_) | Event::Warning(_)))
                };
                assert!(events.all(|event| waited(&event.event)), "{turn_id} is lost");
            }
        }
    }
    let seen = witness.seen.lock().unwrap();
    seen.kinds.clone()
}

#[test]
fn whatever_callers_do_streams_keep_their_rules_and_nothing_is_left() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.unwrap();
    let sidecar = runtime.block_on(scripted::with(|config| {
        config.workers = 2;
        config.limits.max_running_turns = 3;
        config.limits.max_waiting_turns = 4;
        config.limits.max_waiting_turns_per_context = 3;
        // Small enough that readers fall behind, and ended turns have to make room.
        config.retention.max_bytes_per_turn = 12_000;
        config.retention.max_bytes = 30_000;
        config.retention.after_end = Duration::from_secs(8);
        config.timeouts.interrupt_grace = Duration::from_millis(150);
        config.pool.backoff_initial = Duration::from_millis(10);
        config.pool.backoff_max = Duration::from_millis(50);
        config.pool.start_spacing = Duration::ZERO;
        config.pool.breaker_failures = 1000;
    }));
    let config =
        Config { cases: 24, max_shrink_iters: 40, failure_persistence: None, ..Config::default() };
    let totals = RefCell::new(BTreeMap::new());
    let case = Cell::new(0);
    let outcome = TestRunner::new(config).run(&prop::collection::vec(step(), 1..30), |steps| {
        case.set(case.get() + 1);
        let seen = runtime.block_on(play(&sidecar, case.get(), steps));
        for (kind, count) in seen {
            *totals.borrow_mut().entry(kind).or_insert(0) += count;
        }
        Ok(())
    });
    println!("{:?}", totals.borrow());
    if let Err(error) = outcome {
        panic!("{error}");
    }
    runtime.block_on(async {
        eventually("nothing left", || async {
            let counts = sidecar.counts().await;
            let left = (
                counts.running_turns,
                counts.queued_turns,
                counts.retained_turns,
                counts.retained_bytes,
            );
            let workers = sidecar.workers().await;
            let running: u32 = workers.iter().map(|worker| worker.running_turns).sum();
            (left == (0, 0, 0, 0) && running == 0).then_some(())
        })
        .await;
        sidecar.stop().await;
    });
}
