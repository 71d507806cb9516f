//! A caller beside an attack: it has done nothing wrong, and must not notice.

use std::time::{Duration, Instant};

use codex_sidecar::pb::turn_event::Event;
use tokio_util::sync::CancellationToken;

use crate::support::{Client, PATIENCE, Place, prompt};

/// Health every 200 ms over one connection; every second a connection and a small turn over it.
#[derive(Debug)]
pub(super) struct Canary {
    over: CancellationToken,
    health: tokio::task::JoinHandle<Calls>,
    turns: tokio::task::JoinHandle<Calls>,
}

/// What came of one kind of call.
#[derive(Debug, Default)]
pub(super) struct Calls {
    took: Vec<Duration>,
    pub(super) failures: Vec<String>,
}

/// What a canary has seen.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) health: Calls,
    pub(super) turns: Calls,
}

impl Canary {
    pub(super) fn start(client: &Client, address: &str, place: &Place) -> Canary {
        let over = CancellationToken::new();
        let health = tokio::spawn({
            let client = client.clone();
            each(Duration::from_millis(200), over.clone(), move || {
                let client = client.clone();
                async move {
                    let status = client.health_of("").await.map_err(|status| status.to_string())?;
                    (status == tonic_health::pb::health_check_response::ServingStatus::Serving)
                        .then_some(())
                        .ok_or_else(|| format!("health says {status:?}"))
                }
            })
        });
        let (address, work) = (address.to_owned(), place.work());
        let turns = tokio::spawn(each(Duration::from_secs(1), over.clone(), move || {
            let (address, work) = (address.clone(), work.clone());
            async move { turn(&address, work).await }
        }));
        Canary { over, health, turns }
    }

    /// The calls that are under way are waited for.
    pub(super) async fn stop(self) -> Seen {
        self.over.cancel();
        Seen { health: self.health.await.unwrap(), turns: self.turns.await.unwrap() }
    }
}

async fn turn(address: &str, work: std::path::PathBuf) -> Result<(), String> {
    let client = Client::connect(address, work).await;
    let mut turn = client
        .try_begin(prompt("canary", "are you there?"))
        .await
        .map_err(|status| status.to_string())?;
    while turn.try_next().await.map_err(|status| status.to_string())?.is_some() {}
    match turn.events.last().and_then(|event| event.event.as_ref()) {
        Some(Event::TurnCompleted(_)) => Ok(()),
        other => Err(format!("the turn ended as {other:?}")),
    }
}

/// Makes a call again and again, one at a time.
async fn each<F: Future<Output = Result<(), String>>>(
    pause: Duration,
    over: CancellationToken,
    mut call: impl FnMut() -> F,
) -> Calls {
    let mut calls = Calls::default();
    let mut ticks = tokio::time::interval(pause);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = over.cancelled() => return calls,
            _ = ticks.tick() => {}
        }
        let began = Instant::now();
        match tokio::time::timeout(PATIENCE, call()).await {
            Ok(Ok(())) => calls.took.push(began.elapsed()),
            Ok(Err(failure)) => calls.failures.push(failure),
            Err(_) => calls.failures.push(format!("no end after {PATIENCE:?}")),
        }
    }
}

impl Calls {
    /// p50, p99 and the longest, in milliseconds.
    pub(super) fn shown(&self) -> String {
        let mut took: Vec<u128> = self.took.iter().map(Duration::as_millis).collect();
        took.sort_unstable();
        let at = |hundredths: usize| took.get((took.len() * hundredths / 100).min(took.len() - 1));
        match took.last() {
            Some(longest) => format!("{}/{}/{longest}", at(50).unwrap(), at(99).unwrap()),
            None => "-".to_owned(),
        }
    }
}
