//! Turns that outlive their streams: `AttachTurn`, and what is retained for it.

use std::time::{Duration, Instant};

use crate::support;
use crate::support::attached::{assert_follows, by_context, by_id, said};
use crate::support::turn::is_terminal;
use crate::support::{Client, PATIENCE, Sidecar, prompt, scripted, within};
use codex_sidecar::parts::process;
use codex_sidecar::pb;
use codex_sidecar::pb::turn_event::Event;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tonic::Code;

fn outliving(request: pb::RunTurnRequest) -> pb::RunTurnRequest {
    pb::RunTurnRequest { disconnect_policy: pb::DisconnectPolicy::Continue.into(), ..request }
}

/// Hands bytes on to a sidecar until all of its connections are cut at once, with a reset.
struct Wire {
    address: String,
    cut: watch::Sender<()>,
}

impl Wire {
    async fn to(sidecar: &Sidecar) -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let upstream = sidecar.addresses[0].to_string();
        let cut = watch::Sender::new(());
        let cuts = cut.clone();
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut far = TcpStream::connect(&upstream).await.unwrap();
                let mut cut = cuts.subscribe();
                tokio::spawn(async move {
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = cut.changed() => {
                            near.set_zero_linger().unwrap();
                            far.set_zero_linger().unwrap();
                        }
                    }
                });
            }
        });
        Wire { address, cut }
    }

    async fn client(&self, sidecar: &Sidecar) -> Client {
        Client::connect(&self.address, sidecar.place.work()).await
    }

    fn cut(&self) {
        self.cut.send_replace(());
    }
}

#[tokio::test]
async fn a_turn_is_whole_although_its_connection_is_cut_three_times() {
    const WORDS: usize = 2000;
    let sidecar = Sidecar::start().await;
    let wire = Wire::to(&sidecar).await;

    let client = wire.client(&sidecar).await;
    let mut turn =
        client.begin(outliving(prompt("a", &format!("[[words {WORDS}]] [[slow 1]]")))).await;
    let mut events = Vec::new();
    let cut_after = fastrand::usize(1..400);
    while events.len() < cut_after {
        events.push(turn.try_next().await.unwrap().expect("an event"));
    }
    wire.cut();
    // What was under way still arrives; then the stream is broken, not ended.
    let mut at_risk = loop {
        match turn.try_next().await {
            Ok(event) => events.push(event.expect("no end before the turn's")),
            Err(status) => break status,
        }
    };
    let turn_id = turn.turn_id().to_owned();

    let mut cuts = 1;
    let mut ended = false;
    while !ended {
        let client = wire.client(&sidecar).await;
        let after = events.last().unwrap().sequence;
        let mut attached = client.attach(by_id(&turn_id), after).await;
        let cut_after = fastrand::usize(1..500);
        loop {
            if cuts < 3 && attached.events.len() == cut_after {
                wire.cut();
                cuts += 1;
            }
            match attached.try_next().await {
                Ok(Some(_)) => {}
                Ok(None) => {
                    ended = true;
                    break;
                }
                Err(status) => {
                    at_risk = status;
                    break;
                }
            }
        }
        events.append(&mut attached.events);
    }
    assert_eq!(cuts, 3, "{at_risk:?}");

    let told = support::Told { events };
    told.assert_well_formed();
    let deltas = told.kinds().iter().filter(|kind| **kind == "agent_message_delta").count();
    assert_eq!(deltas, WORDS);
    assert_eq!(said(&told.events), told.final_response());
    assert_eq!(sidecar.model.requests(), 1);
    sidecar.stop().await;
}

#[tokio::test]
async fn any_number_of_readers_see_one_turn_alike_while_it_runs_and_after_its_end() {
    let sidecar = Sidecar::start().await;
    let mut turn = sidecar.begin(prompt("a", "[[words 300]] [[slow 1]]")).await;
    let turn_id = turn.started().await;
    while turn.events.len() < 4 {
        turn.try_next().await.unwrap();
    }

    let attached = |target, after| {
        let client: Client = (*sidecar).clone();
        tokio::spawn(async move { client.attach(target, after).await.rest().await })
    };
    let early: Vec<_> = (0..8)
        .map(|n| attached(if n % 2 == 0 { by_id(&turn_id) } else { by_context("a") }, n / 2))
        .collect();
    let whole = turn.rest().await;
    for (n, reading) in early.into_iter().enumerate() {
        assert_eq!(reading.await.unwrap(), whole.events[n / 2..], "reader {n}");
    }

    // A finished turn replays to its terminal event, from anywhere, by its id or its context.
    let last = whole.events.len() as u64;
    for after in [0, 1, last - 1] {
        let replayed = sidecar.attach(by_context("a"), after).await.rest().await;
        assert_eq!(replayed, whole.events[usize::try_from(after).unwrap()..]);
    }
    let again = sidecar.attach(by_id(&turn_id), last).await.rest().await;
    assert_eq!(again, whole.events[whole.events.len() - 1..], "the terminal event comes always");

    let beyond = sidecar.try_attach(by_id(&turn_id), last + 1).await.unwrap_err();
    beyond.assert(Code::InvalidArgument, "INVALID_INPUT");
    assert_eq!(beyond.field_paths(), ["after_sequence"]);
    let nobody = uuid::Uuid::now_v7().to_string();
    let unknown = sidecar.try_attach(by_id(&nobody), 0).await.unwrap_err();
    unknown.assert(Code::NotFound, "TURN_NOT_FOUND");
    sidecar
        .try_attach(by_context("b"), 0)
        .await
        .unwrap_err()
        .assert(Code::NotFound, "TURN_NOT_FOUND");
    sidecar
        .try_attach(by_id("x"), 0)
        .await
        .unwrap_err()
        .assert(Code::InvalidArgument, "INVALID_INPUT");

    // The context's latest turn from now on.
    let second = sidecar.say("a", "again").await;
    assert_eq!(sidecar.attach(by_context("a"), 0).await.rest().await, second.events);
    assert_eq!(sidecar.attach(by_id(&turn_id), 0).await.rest().await, whole.events);
    sidecar.stop().await;
}

/// The built binary, so that its memory is not the test's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_nobody_reads_costs_no_more_than_what_is_retained() {
    let binary = support::binary::Binary::with(|command| {
        command.env("CODEX_PATH", scripted::fake_cli());
    })
    .await;
    let mut baseline = Vec::new();
    for _ in 0..20 {
        let began = Instant::now();
        binary.say("b", "hello").await;
        baseline.push(began.elapsed());
    }

    let resident = || process::resident_bytes(binary.pid()).expect("the sidecar runs");
    let before = resident();
    // Each message comes as a delta and, whole, with its end: 100 MiB.
    let request = prompt("a", "[[items 800 65536]]");
    // Held to the end, and not read once.
    let unread = binary.begin(request).await;
    let mut most = 0;
    let mut meanwhile = Vec::new();
    let done = async {
        loop {
            let began = Instant::now();
            binary.say("b", "hello").await;
            meanwhile.push(began.elapsed());
            tokio::time::sleep(Duration::from_millis(20)).await;
            most = most.max(resident());
            let context = binary.context("a").await.expect("the context");
            if context.running_turn_id.is_empty() {
                return;
            }
        }
    };
    within(PATIENCE, "the end of a turn that nobody reads", done).await;
    let grown = most.saturating_sub(before);
    baseline.sort();
    meanwhile.sort();
    println!(
        "resident {} KiB before, at most {} KiB more; a turn of another context took {:?} before, \
         {:?} meanwhile ({} of them)",
        before >> 10,
        grown >> 10,
        baseline[baseline.len() / 2],
        meanwhile[meanwhile.len() / 2],
        meanwhile.len(),
    );
    // 4 MiB are retained; the rest is room for buffers on the way and for the allocator.
    assert!(grown < 48 << 20, "grew by {} KiB", grown >> 10);
    assert!(meanwhile.len() >= 2, "the others stood still");

    let replayed = binary.attach(by_context("a"), 0).await.rest().await;
    assert!(matches!(replayed.last().unwrap().event, Some(Event::TurnCompleted(_))));
    // And the one that nobody read has not been given up: it goes on, over a gap (and another one where it falls behind again).
    let mut late = unread;
    let mut seen = 0;
    let mut gaps = 0;
    while let Some(event) = late.try_next().await.unwrap() {
        assert_follows(seen, &event);
        seen = event.sequence;
        gaps += usize::from(matches!(event.event, Some(Event::Gap(_))));
    }
    assert!(is_terminal(late.events.last().unwrap()) && gaps > 0, "{gaps} gaps");
    let held: usize = replayed.iter().map(prost::Message::encoded_len).sum();
    assert!(held <= 4 << 20, "{held} bytes are retained");
    binary.stop().await;
}

/// A copy for each of them was a gigabyte.
#[tokio::test]
async fn readers_that_never_read_cost_little_and_there_are_only_so_many() {
    let binary = support::binary::Binary::with(|command| {
        command.env("CODEX_PATH", scripted::fake_cli());
    })
    .await;
    let told = binary.say("a", "[[items 1 3000000]]").await;
    let resident = || process::resident_bytes(binary.pid()).expect("the sidecar runs");
    let before = resident();
    let (mut unread, mut clients, mut refused) = (Vec::new(), Vec::new(), 0);
    for _ in 0..7 {
        let client = Client::connect(&binary.address, binary.place.work()).await;
        for _ in 0..50 {
            match client.try_attach(by_id(told.turn_id()), 0).await {
                Ok(reader) => unread.push(reader),
                Err(refusal) => {
                    refusal.assert(Code::ResourceExhausted, "TOO_MANY_READERS");
                    refused += 1;
                }
            }
        }
        clients.push(client);
    }
    // Meanwhile all of them are sent what they take.
    for _ in 0..20 {
        binary.say("b", "hello").await;
    }
    let grown = resident().saturating_sub(before);
    println!("{} readers, {refused} refused: {} KiB more", unread.len(), grown >> 10);
    assert!(grown < 64 << 20, "grew by {} KiB", grown >> 10);
    assert_eq!((unread.len(), refused), (128, 350 - 128));
    // Late, but whole; the others of its connection are in its way, as they share a window.
    let late = unread.remove(0);
    drop((unread, clients));
    assert!(late.rest().await.last().is_some_and(is_terminal));
    binary.attach(by_id(told.turn_id()), 0).await.rest().await;
    binary.stop().await;
}
