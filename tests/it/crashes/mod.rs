//! The sidecar is killed at random moments under load, and started again: what its callers were told
//! holds, nothing runs twice, nothing is without an outcome, and nothing is left running.
//!
//! `CODEX_SIDECAR_CRASHES` is how often: `1000` for the full test, 8 without it. It prints its seed;
//! `CODEX_SIDECAR_CRASHES_SEED` repeats the choices, though not their timing. At its end it prints where
//! the kills have met the turns.

mod check;
mod load;
mod told;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use self::check::Fates;
use self::load::Load;
use self::told::{Asked, Context, Phase};
use crate::support::binary::{self, Binary};
use crate::support::{Client, Place, processes};
use codex_sidecar::pb;

/// Contexts that go on through all rounds.
const LASTING: usize = 5;
/// Two seconds are the promise, on a machine that has them to give.
const LEFT_LIMIT: Duration = Duration::from_secs(15);
/// Requests of earlier rounds that are repeated now and then.
const REMEMBERED: usize = 200;

/// When the sidecar is killed.
#[derive(Debug)]
enum Aim {
    /// So long after the callers have begun, which is before it can take turns, or after.
    After(Duration),
    /// So long after the callers have come upon this so often.
    At { what: &'static str, times: usize, and: Duration },
    /// When nothing runs.
    Idle,
}

/// What callers may come upon.
const MOMENTS: [&str; 10] = [
    "called",
    "called",
    "queued",
    "thread_started",
    "turn_started",
    "item_started",
    "item_completed",
    "turn_completed",
    "deleted",
    "bound",
];

impl Aim {
    fn random(random: &mut fastrand::Rng) -> Aim {
        match random.u8(..10) {
            0 => Aim::Idle,
            1..=4 => Aim::After(Duration::from_millis(random.u64(..1500))),
            _ => Aim::At {
                what: random.choice(MOMENTS).expect("some"),
                times: random.usize(1..6),
                and: Duration::from_micros(random.u64(..20_000)),
            },
        }
    }

    async fn wait(&self, moments: &mut mpsc::UnboundedReceiver<&'static str>) {
        match self {
            Aim::After(pause) => tokio::time::sleep(*pause).await,
            Aim::At { what, times, and } => {
                let mut left = *times;
                let coming = async {
                    while left > 0
                        && let Some(moment) = moments.recv().await
                    {
                        left -= usize::from(moment == *what);
                    }
                };
                // It may never come, and the load has been on then.
                let _ = tokio::time::timeout(Duration::from_secs(3), coming).await;
                tokio::time::sleep(*and).await;
            }
            Aim::Idle => tokio::time::sleep(Duration::from_millis(500)).await,
        }
    }
}

/// All that is known through the rounds.
#[derive(Debug)]
struct Crashes {
    random: fastrand::Rng,
    round: usize,
    contexts: Vec<Context>,
    remembered: VecDeque<Asked>,
    // What came of it.
    phases: BTreeMap<&'static str, usize>,
    fates: Fates,
    listening: Duration,
    ready: Duration,
    gone: Duration,
    late: usize,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_whatever_moment_it_is_killed_nothing_told_is_lost_and_nothing_runs_twice() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
    let kills = number("CODEX_SIDECAR_CRASHES").unwrap_or(8);
    let seed = number("CODEX_SIDECAR_CRASHES_SEED").unwrap_or_else(|| fastrand::u64(..1 << 32));
    println!("CODEX_SIDECAR_CRASHES_SEED={seed}");
    let mut crashes = Crashes {
        random: fastrand::Rng::with_seed(seed),
        round: 0,
        contexts: (0..LASTING).map(|number| Context::new(format!("lasting-{number}"))).collect(),
        remembered: VecDeque::new(),
        phases: BTreeMap::new(),
        fates: Fates::default(),
        listening: Duration::ZERO,
        ready: Duration::ZERO,
        gone: Duration::ZERO,
        late: 0,
    };
    let mut place = Place::new();
    std::fs::create_dir(place.path().join("runs")).unwrap();
    let began = Instant::now();
    let mut leaving = JoinSet::new();
    for _ in 0..kills {
        place = crashes.round(place, &mut leaving).await;
        while let Some(gone) = leaving.try_join_next() {
            crashes.has_gone(gone.unwrap());
        }
        if crashes.round.is_multiple_of(25) {
            println!("after {:?}: {}", began.elapsed(), crashes.summary());
        }
    }
    // Once more, for what the last kill has left.
    let sidecar = crashes.start(place).await;
    sidecar.ready().await;
    let load = crashes.load(&sidecar).0;
    crashes.check(&load, true).await;
    while let Some(gone) = leaving.join_next().await {
        crashes.has_gone(gone.unwrap());
    }
    sidecar.stop().await;
    println!("in {:?}: {}", began.elapsed(), crashes.summary());
    // A load that the kills never met proves nothing.
    assert!(crashes.fates.lost > 0 && crashes.fates.ended > 0, "{:?}", crashes.fates);
}

impl Crashes {
    /// Starts it, holds it to what was told, puts load on it, kills it.
    async fn round(&mut self, place: Place, leaving: &mut JoinSet<Duration>) -> Place {
        let place = self.kill_while_starting(place, leaving).await;
        let sidecar = self.start(place).await;
        let (load, mut moments) = self.load(&sidecar);
        if self.round > 1 {
            self.check(&load, self.round.is_multiple_of(25)).await;
        }
        self.contexts.push(Context::new(format!("new-{}", self.round)));
        let aim = Aim::random(&mut self.random);
        // What the checks have come upon is no moment of the load.
        while moments.try_recv().is_ok() {}

        // In the end callers and contexts come back, with what they have heard.
        let mut callers = JoinSet::new();
        let rest = self.contexts.split_off(LASTING);
        let (resting, new): (Vec<_>, Vec<_>) = {
            let last = rest.len() - 1;
            rest.into_iter().enumerate().partition(|(at, _)| *at < last)
        };
        let new = new.into_iter().map(|(_, context)| context);
        for mut context in self.contexts.drain(..).chain(new) {
            let (load, mut random) =
                (Arc::clone(&load), fastrand::Rng::with_seed(self.random.u64(..)));
            callers.spawn(async move {
                load.keep_busy(&mut context, &mut random).await;
                context
            });
        }
        aim.wait(&mut moments).await;
        let mut back = Vec::new();
        if matches!(aim, Aim::Idle) {
            load.is_over.store(true, Relaxed);
            back.append(&mut callers.join_all().await);
            callers = JoinSet::new();
        }
        leaving.spawn(all_gone(processes::mark_of(sidecar.pid()), sidecar.pid()));
        let place = sidecar.kill().await;
        back.append(&mut callers.join_all().await);

        self.tell_phases(&back);
        // In their order: the lasting ones first.
        back.sort_by_key(|context| !context.name.starts_with("lasting"));
        self.contexts = back;
        self.contexts.extend(resting.into_iter().map(|(_, context)| context));
        place
    }

    /// Now and then, one that has hardly begun.
    async fn kill_while_starting(
        &mut self,
        place: Place,
        leaving: &mut JoinSet<Duration>,
    ) -> Place {
        if self.random.u8(..5) > 0 {
            return place;
        }
        self.round += 1;
        let mut command = binary::command(&place);
        command.args(["serve", "--offline-model", "--listen", "127.0.0.1:0"]);
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let mut child = command.spawn().unwrap();
        tokio::time::sleep(Duration::from_millis(self.random.u64(..400))).await;
        let pid = child.id().unwrap();
        leaving.spawn(all_gone(processes::mark_of(pid), pid));
        child.kill().await.unwrap();
        *self.phases.entry("starting").or_default() += 1;
        place
    }

    async fn start(&mut self, place: Place) -> Binary {
        self.round += 1;
        // What a kill leaves is the same with or without fsync.
        let durability = if self.random.bool() { "power" } else { "process" };
        let config = place.path().join("sidecar.toml");
        let settings =
            format!("[state]\ndurability = \"{durability}\"\n[retention]\nafter_end = \"3h\"\n");
        std::fs::write(&config, settings).unwrap();
        let began = Instant::now();
        let sidecar = Binary::cold(place, |command| {
            command.env("CODEX_SIDECAR_WORKERS", "2").arg("--config").arg(config);
        })
        .await;
        self.listening = self.listening.max(began.elapsed());
        sidecar
    }

    fn load(&self, sidecar: &Binary) -> (Arc<Load>, mpsc::UnboundedReceiver<&'static str>) {
        let (moments, heard) = mpsc::unbounded_channel();
        let load = Load {
            client: Client::clone(sidecar),
            directory: sidecar.place.path().join("runs"),
            moments,
            is_over: AtomicBool::new(false),
            is_gone: AtomicBool::new(false),
        };
        (Arc::new(load), heard)
    }

    /// All that was told of those that were under load; every binding, if it is to be all.
    async fn check(&mut self, load: &Arc<Load>, all: bool) {
        let began = Instant::now();
        load.client.ready().await;
        self.ready = self.ready.max(began.elapsed());
        // The new one of each round is behind the lasting ones.
        let count = if all { self.contexts.len() } else { LASTING + 1 };
        let mut checks = JoinSet::new();
        let rest = self.contexts.split_off(count.min(self.contexts.len()));
        for mut context in self.contexts.drain(..) {
            let load = Arc::clone(load);
            checks.spawn(async move {
                let mut fates = Fates::default();
                load.check_binding(&mut context).await;
                load.check_requests(&mut context, &mut fates).await;
                load.check_binding(&mut context).await;
                load.check_history(&context).await;
                (context, fates)
            });
        }
        let mut back = Vec::new();
        while let Some(checked) = checks.join_next().await {
            let (context, fates) = checked.unwrap();
            self.fates.ended += fates.ended;
            self.fates.lost += fates.lost;
            self.fates.untouched += fates.untouched;
            back.push(context);
        }
        self.check_listing(load, &back).await;
        back.sort_by_key(|context| !context.name.starts_with("lasting"));
        for context in &mut back {
            self.remembered.extend(context.asked.drain(..));
        }
        back.extend(rest);
        self.contexts = back;
        // Some of long ago are told as they were, too.
        while self.remembered.len() > REMEMBERED {
            self.remembered.pop_front();
        }
        for _ in 0..3 {
            let Some(asked) = self.random.choice(&self.remembered) else { break };
            load.check_again(asked).await;
        }
    }

    /// Each turn that was heard of is listed, and has ended.
    async fn check_listing(&self, load: &Load, contexts: &[Context]) {
        let turns = load.client.turns(None).await;
        let ended: BTreeMap<&str, &pb::TurnInfo> =
            turns.iter().map(|turn| (turn.turn_id.as_str(), turn)).collect();
        for asked in contexts.iter().flat_map(|context| &context.asked) {
            let turn_id = asked.turn_id().expect("it has run");
            let info = ended.get(turn_id).unwrap_or_else(|| panic!("not listed: {asked:#?}"));
            let states = [pb::TurnState::Waiting, pb::TurnState::Running];
            assert!(!states.contains(&info.state()), "{info:#?}");
            assert_eq!(info.last_sequence, asked.heard(), "{info:#?}");
        }
    }

    fn tell_phases(&mut self, contexts: &[Context]) {
        let mut met: Vec<Option<Phase>> = contexts
            .iter()
            .flat_map(|context| &context.asked)
            .filter(|asked| asked.is_cut)
            .map(Asked::phase)
            .collect();
        met.sort_unstable();
        met.dedup();
        if met.is_empty() {
            *self.phases.entry("idle").or_default() += 1;
        }
        for phase in met.into_iter().flatten() {
            let name = match phase {
                Phase::Waiting => "waiting",
                Phase::Opening => "opening",
                Phase::Running => "running",
                Phase::Ending => "ending",
            };
            *self.phases.entry(name).or_default() += 1;
        }
    }

    fn has_gone(&mut self, took: Duration) {
        self.gone = self.gone.max(took);
        self.late += usize::from(took > Duration::from_secs(2));
    }

    fn summary(&self) -> String {
        let Crashes { round, phases, fates, listening, ready, gone, late, .. } = self;
        let replaced: usize = self.contexts.iter().map(|context| context.replaced).sum();
        format!(
            "{round} starts; kills that met turns {phases:?}; requests {fates:?}; {} contexts, \
             {replaced} threads that nobody had heard of replaced; at most \
             {listening:?} to listen, {ready:?} more to be ready, {gone:?} until all was gone ({late} \
             over 2 s)",
            self.contexts.len()
        )
    }
}

/// How long the processes of a start outlive it.
async fn all_gone(mark: String, pid: u32) -> Duration {
    while processes::is_alive(pid) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let began = Instant::now();
    loop {
        let look = mark.clone();
        let looked = tokio::task::spawn_blocking(move || processes::with_mark(&look));
        let left = looked.await.unwrap();
        if left.is_empty() {
            return began.elapsed();
        }
        assert!(began.elapsed() < LEFT_LIMIT, "alive after {LEFT_LIMIT:?}: {left:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
