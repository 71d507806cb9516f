//! Turns under random faults: workers are killed, turns interrupted, callers vanish. Whatever happens,
//! no context loses its thread, every stream ends by the rules, and nothing is left or leaks.
//!
//! `CODEX_SIDECAR_SOAK` is how long the soak on the real CLI takes: `2m`, `30m`; 8 seconds without it.
//! It prints its seed; `CODEX_SIDECAR_SOAK_SEED` repeats the choices, though not their timing; and,
//! while it runs, what the sidecar holds, which must not grow once it is warm.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support;
use crate::support::attached::by_id;
use crate::support::binary::Binary;
use crate::support::{Client, Refused, Told, codex_path, eventually, processes, prompt, scripted};
use codex_sidecar::parts::process::resident_bytes;
use codex_sidecar::pb;
use codex_sidecar::pb::turn_event::Event;
use rustix::process::Signal;
use tonic::{Code, Status};

/// One kind of soak.
struct Soak {
    workers: usize,
    contexts: usize,
    /// What a turn may be asked to do.
    prompts: &'static [&'static str],
    /// Callers do all that they may: steer, join a turn, put a deadline on it, make new contexts.
    is_mixed: bool,
    /// The pause between two kills, at most.
    kill_pause: Duration,
    /// When it is over.
    kills: u64,
    time: Duration,
}

/// What has happened.
#[derive(Debug, Default)]
struct Tally {
    kills: AtomicU64,
    completed: AtomicU64,
    lost: AtomicU64,
    interrupted: AtomicU64,
    timed_out: AtomicU64,
    refused: AtomicU64,
    left: AtomicU64,
    steered: AtomicU64,
    joined: AtomicU64,
    late: AtomicU64,
    contexts: AtomicU64,
}

/// What must be at the end as it was at the start.
#[derive(Debug)]
struct Footprint {
    resident_mib: u64,
    files: usize,
    processes: usize,
}

impl Footprint {
    fn of(sidecar: &Binary) -> Footprint {
        let files = std::fs::read_dir(format!("/proc/{}/fd", sidecar.pid())).unwrap().count();
        Footprint {
            resident_mib: resident_bytes(sidecar.pid()).unwrap() >> 20,
            files,
            processes: processes::of_home(&sidecar.place.codex_home()).len(),
        }
    }
}

/// What the sidecar and its workers hold at some time under load.
#[derive(Debug, Clone, Copy)]
struct Held {
    resident_mib: u64,
    workers_mib: u64,
    files: u64,
    processes: u64,
    loaded_threads: u64,
}

impl Held {
    async fn by(sidecar: &Client, pid: u32, home: std::path::PathBuf) -> Held {
        let workers = sidecar.workers().await;
        let loaded_threads = workers.iter().map(|worker| u64::from(worker.loaded_threads)).sum();
        let of_processes = tokio::task::spawn_blocking(move || {
            let all = processes::of_home(&home);
            let bytes: u64 = (all.iter())
                .filter(|process| process.pid != pid)
                .filter_map(|process| resident_bytes(process.pid))
                .sum();
            (bytes >> 20, all.len() as u64)
        });
        let (workers_mib, processes) = of_processes.await.unwrap();
        let files = std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count) as u64;
        let resident_mib = resident_bytes(pid).unwrap_or(0) >> 20;
        Held { resident_mib, workers_mib, files, processes, loaded_threads }
    }

    /// The middle of each over some time: what one moment is like is chance.
    fn median(some: &[Held]) -> Held {
        let middle = |of: fn(&Held) -> u64| {
            let mut values: Vec<u64> = some.iter().map(of).collect();
            values.sort_unstable();
            values[values.len() / 2]
        };
        Held {
            resident_mib: middle(|held| held.resident_mib),
            workers_mib: middle(|held| held.workers_mib),
            files: middle(|held| held.files),
            processes: middle(|held| held.processes),
            loaded_threads: middle(|held| held.loaded_threads),
        }
    }

    /// Not more than at another time, beside what chance makes.
    fn assert_no_more_than(self, earlier: Held) {
        let Held { resident_mib, workers_mib, files, processes, loaded_threads } = self;
        let what = format!("{earlier:?} became {self:?}");
        assert!(resident_mib <= earlier.resident_mib + 40, "{what}");
        assert!(workers_mib <= earlier.workers_mib + earlier.workers_mib / 3 + 100, "{what}");
        assert!(files <= earlier.files + 20, "{what}");
        assert!(processes <= earlier.processes + 12, "{what}");
        assert!(loaded_threads <= earlier.loaded_threads + 16, "{what}");
    }
}

/// All workers ready and idle.
async fn at_rest(sidecar: &Binary, workers: usize) {
    eventually("rest", async || {
        let all = sidecar.workers().await;
        let ready = all
            .iter()
            .filter(|worker| worker.state() == pb::WorkerState::Ready && worker.running_turns == 0);
        let counts = sidecar.info().await.counts.unwrap();
        let idle = counts.running_turns == 0 && counts.queued_turns == 0;
        (ready.count() == workers && idle).then_some(())
    })
    .await;
}

async fn soak(codex: &std::path::Path, soak: Soak) {
    let seed = std::env::var("CODEX_SIDECAR_SOAK_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("CODEX_SIDECAR_SOAK_SEED={seed}");
    let place = support::Place::new();
    let config = place.path().join("sidecar.toml");
    // Kills come so fast that a worker seldom lasts: that is no crash loop here. Turns that are
    // over are forgotten at once, so that what is left at the end is a leak.
    std::fs::write(
        &config,
        "[pool]\nbackoff_initial = \"10ms\"\nbackoff_max = \"50ms\"\nbreaker_failures = 1000000\n\
         start_spacing = \"0s\"\nmax_idle_threads = 8\n[retention]\nafter_end = \"0s\"\n\
         [worker]\ndisable_features = [\"shell_snapshot\"]\n",
    )
    .unwrap();
    let sidecar = Binary::cold(place, |command| {
        command.env("CODEX_PATH", codex);
        command.env("CODEX_SIDECAR_WORKERS", soak.workers.to_string()).arg("--config").arg(&config);
    })
    .await;
    sidecar.ready().await;

    // A first turn each, so that every thread has a history that could be lost; and a second, so that
    // the footprint is that of a sidecar in use.
    let names: Vec<String> = (0..soak.contexts).map(|number| format!("c{number}")).collect();
    let mut threads = Vec::new();
    for name in &names {
        threads.push(sidecar.say(name, "hello").await.thread_id().to_owned());
    }
    futures::future::join_all(names.iter().map(|name| sidecar.say(name, "hello"))).await;
    at_rest(&sidecar, soak.workers).await;
    let before = Footprint::of(&sidecar);

    let tally = Arc::new(Tally::default());
    let over = Arc::new(AtomicBool::new(false));
    let began = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for (number, (name, thread)) in names.iter().zip(&threads).enumerate() {
        let random = fastrand::Rng::with_seed(seed.wrapping_add(number as u64 + 1));
        tasks.spawn(caller(
            Client::clone(&sidecar),
            (name.clone(), thread.clone()),
            soak.prompts,
            soak.is_mixed,
            random,
            Arc::clone(&tally),
            Arc::clone(&over),
        ));
    }
    if soak.is_mixed {
        tasks.spawn(newcomers(Client::clone(&sidecar), Arc::clone(&tally), Arc::clone(&over)));
    }
    let holding = tokio::spawn({
        let (client, over) = (Client::clone(&sidecar), Arc::clone(&over));
        let (pid, home) = (sidecar.pid(), sidecar.place.codex_home());
        async move {
            let mut all = Vec::new();
            while !over.load(Relaxed) {
                all.push(Held::by(&client, pid, home.clone()).await);
                if all.len() % 30 == 1 {
                    println!("after {:?}: {:?}", began.elapsed(), all.last());
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            all
        }
    });
    let mut random = fastrand::Rng::with_seed(seed);
    while tally.kills.load(Relaxed) < soak.kills && began.elapsed() < soak.time {
        tokio::time::sleep(soak.kill_pause.mul_f64(random.f64())).await;
        let workers = sidecar.workers().await;
        let alive: Vec<u32> =
            workers.iter().map(|worker| worker.pid).filter(|pid| *pid > 0).collect();
        let Some(pid) = random.choice(alive) else { continue };
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        // It may have ended since it was listed.
        if rustix::process::kill_process(pid, Signal::KILL).is_ok() {
            tally.kills.fetch_add(1, Relaxed);
        }
        assert!(!tasks.is_empty(), "the callers ended early");
        if let Some(ended) = tasks.try_join_next() {
            ended.unwrap();
            panic!("a caller ended early");
        }
    }
    over.store(true, Relaxed);
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    println!("{:?} after {:?}", tally, began.elapsed());
    let held = holding.await.unwrap();
    // The first sixth is for what grows to its size: five of thirty minutes.
    let warm = &held[held.len() / 6..];
    if warm.len() >= 30 {
        let (early, late) = (&warm[..warm.len() / 3], &warm[warm.len() * 2 / 3..]);
        let (early, late) = (Held::median(early), Held::median(late));
        println!("early {early:?}\nlate {late:?}");
        late.assert_no_more_than(early);
    }
    at_rest(&sidecar, soak.workers).await;

    // What turns that ended well have left running goes with its worker, and not before.
    for worker in sidecar.workers().await {
        processes::signal(worker.pid, Signal::KILL);
        eventually("its successor", async || {
            let workers = sidecar.workers().await;
            let now = workers.iter().find(|other| other.worker_id == worker.worker_id)?;
            (now.pid != worker.pid && now.state() == pb::WorkerState::Ready).then_some(())
        })
        .await;
    }
    // Every context goes on with its thread.
    for (name, thread) in names.iter().zip(&threads) {
        let told = sidecar.say(name, "are you there?").await;
        assert_eq!(told.thread_id(), thread, "{name}");
        assert!(told.final_response().starts_with("You said: are you there?"), "{name}");
    }
    at_rest(&sidecar, soak.workers).await;
    let mut after = Footprint::of(&sidecar);
    // What ended a moment ago may still be on its way out.
    for _ in 0..50 {
        if after.files <= before.files + 2 && after.processes <= before.processes {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        after = Footprint::of(&sidecar);
    }
    println!("before {before:?}, after {after:?}");
    let left = processes::of_home(&sidecar.place.codex_home());
    assert!(after.processes <= before.processes, "{before:?}, {after:?}, {left:#?}");
    assert!(after.files <= before.files + 2, "{before:?}, {after:?}");
    assert!(after.resident_mib <= before.resident_mib + 40, "{before:?}, {after:?}");
    let contexts = sidecar.info().await.counts.unwrap().contexts;
    let at_most = soak.contexts as u64 + tally.contexts.load(Relaxed) + tally.kills.load(Relaxed);
    assert!((soak.contexts as u64..=at_most).contains(&contexts), "{contexts} contexts");
    sidecar.stop().await;
}

/// One context that has one turn after the other.
async fn caller(
    client: Client,
    (name, thread): (String, String),
    prompts: &'static [&'static str],
    is_mixed: bool,
    mut random: fastrand::Rng,
    tally: Arc<Tally>,
    over: Arc<AtomicBool>,
) {
    while !over.load(Relaxed) {
        let words = random.choice(prompts).copied().unwrap_or("hello");
        let mut request = prompt(&name, words);
        // Some of them end no sooner by themselves.
        request.turn_options = Some(pb::TurnOptions {
            turn_timeout: Some(prost_types::Duration { seconds: 4, nanos: 0 }),
            ..Default::default()
        });
        // Some leave, some interrupt, where it is mixed some do what else a caller may; most stay.
        let mood = random.u8(..10);
        let is_late = is_mixed && mood == 2;
        let mut turn = match begin(&client, request, is_late).await {
            Ok(turn) => turn,
            Err(status) if is_late && has_no_time(&status) => {
                tally.late.fetch_add(1, Relaxed);
                continue;
            }
            Err(status) => {
                assert_refused(&name, status);
                tally.refused.fetch_add(1, Relaxed);
                continue;
            }
        };
        let leaves_after = random.usize(..6);
        let interrupting = Arc::new(Mutex::new(None));
        let ended = loop {
            match turn.try_next().await {
                Ok(Some(event)) => {
                    if let Some(Event::ThreadStarted(started)) = &event.event {
                        assert_eq!(started.thread_id, thread, "{name} lost its thread");
                    }
                    if mood == 0 && turn.events.len() > leaves_after {
                        break None;
                    }
                    if mood == 1 && turn.events.len() == leaves_after + 1 {
                        let (client, id) = (client.clone(), event.turn_id.clone());
                        let task = tokio::spawn(async move { client.interrupt(&id).await });
                        *interrupting.lock().unwrap() = Some(task);
                    }
                    if is_mixed && turn.events.len() == leaves_after + 1 {
                        beside(&client, mood, &event.turn_id, &tally).await;
                    }
                }
                Ok(None) => break Some(Ok(())),
                Err(status) => break Some(Err(status)),
            }
        };
        match ended {
            None => {
                tally.left.fetch_add(1, Relaxed);
            }
            Some(Err(status)) if is_late && has_no_time(&status) => {
                tally.late.fetch_add(1, Relaxed);
            }
            // Refused late: nothing had begun.
            Some(Err(status)) => {
                assert_refused(&name, status.clone());
                let begun = turn.events.iter().any(|event| {
                    matches!(event.event, Some(Event::ThreadStarted(_) | Event::TurnStarted(_)))
                });
                assert!(!begun, "{name}: {status:?} after {:#?}", turn.events);
                tally.refused.fetch_add(1, Relaxed);
            }
            Some(Ok(())) => {
                let told = Told { events: std::mem::take(&mut turn.events) };
                told.assert_well_formed();
                let count = match told.terminal() {
                    Event::TurnCompleted(_) => &tally.completed,
                    Event::TurnInterrupted(_) => &tally.interrupted,
                    Event::TurnFailed(_) => match told.failed().reason.as_str() {
                        "WORKER_LOST" => &tally.lost,
                        "TURN_TIMEOUT" => &tally.timed_out,
                        _ => panic!("{name}: {told:#?}"),
                    },
                    other => panic!("{other:#?}"),
                };
                count.fetch_add(1, Relaxed);
            }
        }
        let task = interrupting.lock().unwrap().take();
        if let Some(task) = task {
            // The turn may have been over, and forgotten.
            let _ = task.await.unwrap();
        }
    }
}

/// Nothing can take the turn now; or two workers in a row were killed just while they opened its thread,
/// which looks as if it were the request that kills them.
fn assert_refused(name: &str, status: Status) {
    let refused = Refused::from(status);
    if refused.code != Code::FailedPrecondition {
        assert_eq!(refused.code, Code::Unavailable, "{name}: {refused:#?}");
    } else {
        refused.assert(Code::FailedPrecondition, "OPENING_KILLS_WORKERS");
    }
}

/// tonic's own client says CANCELLED of a deadline that it sees before the sidecar does.
fn has_no_time(status: &Status) -> bool {
    matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled)
}

/// A turn whose caller may have little time.
async fn begin(
    client: &Client,
    request: pb::RunTurnRequest,
    is_late: bool,
) -> Result<support::Turn, Status> {
    if !is_late {
        return client.try_begin(request).await;
    }
    let mut request = tonic::Request::new(client.at_work(request));
    request.set_timeout(Duration::from_millis(300));
    let stream = client.codex().run_turn(request).await?;
    Ok(support::Turn::new(stream.into_inner()))
}

/// What a second caller does with a turn that runs, by this mood. It may be over already.
async fn beside(client: &Client, mood: u8, turn_id: &str, tally: &Tally) {
    if mood == 3 && client.steer(turn_id, "and be quick").await.is_ok() {
        tally.steered.fetch_add(1, Relaxed);
    }
    if mood == 4
        && let Ok(mut joined) = client.try_attach(by_id(turn_id), 0).await
        && joined.try_next().await.is_ok()
    {
        tally.joined.fetch_add(1, Relaxed);
    }
}

/// Contexts that have a big turn and are left alone, or deleted. Those that go on have small ones: a
/// history of megabytes would be sent to the model, which is in the sidecar's process, with each turn.
async fn newcomers(client: Client, tally: Arc<Tally>, over: Arc<AtomicBool>) {
    for number in 0_u64.. {
        if over.load(Relaxed) {
            return;
        }
        let name = format!("new{number}");
        // Its worker may be killed.
        let begun = client.try_begin(prompt(&name, "[[bytes 1000000]]")).await;
        let Ok(mut turn) = begun else { continue };
        while turn.try_next().await.is_ok_and(|event| event.is_some()) {}
        tally.contexts.fetch_add(1, Relaxed);
        if number % 2 == 0 {
            let request = pb::DeleteContextRequest { context_id: name, ..Default::default() };
            // The turn may have been refused, and nothing been bound.
            let _ = client.codex().delete_context(request).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_kills_under_sixteen_contexts_lose_and_leak_nothing() {
    let kinds = Soak {
        workers: 4,
        contexts: 16,
        is_mixed: false,
        prompts: &[
            "hello",
            "[[slow 5]] [[words 20]]",
            "[[run sleep 0.05]] [[say done]]",
            "[[spawn sleep 600]] [[wait 50]] [[say left one behind]]",
            "[[wait 150]]",
            "[[items 20 200]]",
        ],
        kill_pause: Duration::from_millis(200),
        kills: 200,
        time: Duration::from_secs(300),
    };
    soak(scripted::fake_cli(), kinds).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_real_cli_under_a_mixed_load_loses_nothing_and_grows_nowhere() {
    let time = std::env::var("CODEX_SIDECAR_SOAK").unwrap_or_else(|_| "8s".to_owned());
    let time = humantime::parse_duration(&time).expect("CODEX_SIDECAR_SOAK is a duration");
    let kinds = Soak {
        workers: 3,
        contexts: 8,
        is_mixed: true,
        prompts: &[
            "hello",
            "[[slow 5]] [[words 20]]",
            "[[run sleep 0.2]] [[say done]]",
            "[[run sleep 300]]",
            "[[hang]]",
        ],
        kill_pause: Duration::from_secs(4),
        kills: u64::MAX,
        time,
    };
    soak(codex_path(), kinds).await;
}
