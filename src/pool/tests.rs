//! A pool over workers in memory, on a paused clock.

use std::time::Duration;

use futures::FutureExt as _;
use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::model::id::WorkerId;
use crate::worker::testing::{Codex, launcher, spec};

/// A pool, and what ends each of its workers, in the order of their starts.
struct Played {
    pool: Arc<Pool>,
    workers: mpsc::UnboundedReceiver<oneshot::Sender<()>>,
}

impl Played {
    fn start(workers: usize, settings: PoolSettings) -> Played {
        let (launch, mut launched) = launcher();
        let (sender, receiver) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(codex) = launched.recv().await {
                let (end, ends) = oneshot::channel();
                tokio::spawn(play(codex, ends));
                let _ = sender.send(end);
            }
        });
        Played { pool: Pool::start(spec(launch), workers, settings), workers: receiver }
    }

    async fn warm(workers: usize, settings: PoolSettings) -> Played {
        let played = Played::start(workers, settings);
        played.is_ready().await;
        played
    }

    async fn is_ready(&self) {
        let mut readiness = self.pool.readiness();
        readiness.wait_for(|readiness| *readiness == Readiness::Ready).await.unwrap();
    }

    /// Waits until the slots are as wanted.
    async fn slots(&self, wanted: impl Fn(&[SlotStatus]) -> bool) {
        let mut slots = self.pool.slots.subscribe();
        slots.wait_for(|slots| wanted(slots)).await.unwrap();
    }
}

/// Gives the usual answers until it is told to end, or is killed.
async fn play(mut codex: Codex, ends: oneshot::Receiver<()>) {
    if codex.during(ends).await.is_ok() {
        codex.exit("exit status 1");
    }
}

fn id(slot: usize, generation: u64) -> WorkerId {
    WorkerId { slot, generation }
}

#[tokio::test(start_paused = true)]
async fn turns_go_to_the_worker_with_the_fewest_of_them_and_to_their_own_where_it_runs() {
    let Played { pool, .. } = Played::warm(2, PoolSettings::default()).await;
    let first = pool.lease(None).await.unwrap();
    let second = pool.lease(None).await.unwrap();
    assert_ne!(first.worker().id(), second.worker().id());
    let taken = first.worker().id().clone();
    let third = pool.lease(Some(&taken)).await.unwrap();
    assert_eq!(*third.worker().id(), taken);
    let books = || {
        let taken = pool.incarnation(&taken).unwrap();
        (taken.running_turns(), taken.started_turns(), taken.completed_turns())
    };
    assert_eq!(books(), (2, 2, 0));
    third.note_turn_completed();
    drop((first, third));
    assert_eq!(books(), (0, 2, 1));
    // Another incarnation than the one that is wanted is as good as any.
    let gone = WorkerId { generation: 7, ..taken.clone() };
    assert_eq!(*pool.lease(Some(&gone)).await.unwrap().worker().id(), taken);
    pool.shutdown().await;
    assert!(matches!(pool.lease(None).await, Err(Unavailable { .. })));
}

#[tokio::test(start_paused = true)]
async fn two_turns_at_once_do_not_take_the_same_idle_worker() {
    let Played { pool, .. } = Played::warm(2, PoolSettings::default()).await;
    let runtime = tokio::runtime::Handle::current();
    let lease = || {
        let _entered = runtime.enter();
        pool.lease(None).now_or_never().unwrap().unwrap()
    };
    for _ in 0..1000 {
        let [first, second] = std::thread::scope(|scope| {
            [scope.spawn(lease), scope.spawn(lease)].map(|turn| turn.join().unwrap())
        });
        assert_ne!(first.worker().id(), second.worker().id());
    }
    pool.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_worn_worker_ends_with_its_last_turn_and_its_successor_is_warm_before() {
    let settings = PoolSettings { max_turns_per_worker: Some(1), ..PoolSettings::default() };
    let played = Played::warm(1, settings).await;
    let pool = &played.pool;
    let lease = pool.lease(None).await.unwrap();
    assert_eq!(*lease.worker().id(), id(0, 1));
    played.slots(|slots| slots[0].generation == 2).await;
    assert_eq!(*pool.readiness().borrow(), Readiness::Ready);
    assert!(lease.worker().is_alive());
    // It takes no turns, and may hold threads.
    assert!(pool.worker(&id(0, 1)).is_none() && pool.retiring(&id(0, 1)).is_some());
    assert!(pool.runs(&id(0, 1)) && pool.runs(&id(0, 2)) && !pool.runs(&id(0, 3)));
    assert_eq!(*pool.lease(Some(&id(0, 1))).await.unwrap().worker().id(), id(0, 2));

    let old = Arc::clone(lease.worker());
    drop(lease);
    assert_eq!(old.exited().await.cause, "killed: it was recycled");
    // The slot of the next one to be replaced is free only once this one is off the books.
    played.slots(|slots| slots[0].generation == 3).await;
    assert!(!pool.runs(&id(0, 1)));
    pool.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_died_is_followed_at_once_by_another_and_counts_as_one_failure() {
    let mut played = Played::warm(1, PoolSettings::default()).await;
    let lease = played.pool.lease(None).await.unwrap();
    played.workers.recv().await.unwrap().send(()).unwrap();
    lease.worker().exited().await;
    // The turn that comes now waits for the next one.
    let next = played.pool.lease(Some(lease.worker().id())).await.unwrap();
    assert_eq!(*next.worker().id(), id(0, 2));
    assert!(!played.pool.runs(&id(0, 1)));
    assert_eq!(played.pool.status()[0].failures, 1);
    drop(lease);
    played.slots(|slots| slots[0].failures == 0).await;
    played.pool.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn turns_are_refused_at_once_where_workers_keep_failing() {
    let settings = PoolSettings { breaker_failures: 3, ..PoolSettings::default() };
    let breaker_open = settings.breaker_open;
    let mut played = Played::start(1, settings);
    for _ in 0..3 {
        drop(played.pool.lease(None).await.unwrap());
        played.workers.recv().await.unwrap().send(()).unwrap();
        played.slots(|slots| slots[0].state.held().is_none()).await;
    }
    let asked_at = tokio::time::Instant::now();
    let unavailable = played.pool.lease(None).await.unwrap_err();
    assert_eq!(asked_at.elapsed(), Duration::ZERO);
    assert!(unavailable.cause.contains("3 failures in a row"), "{}", unavailable.cause);
    assert!(unavailable.retry_after >= breaker_open / 2);
    let not_ready =
        |kind| matches!(kind, Readiness::NotReady { kind: Trouble::WorkersFailing, .. });
    assert!(not_ready(played.pool.readiness().borrow().clone()));
    // The next start is a trial, and its success is enough for new turns.
    played.is_ready().await;
    assert!(asked_at.elapsed() >= breaker_open / 2);
    drop(played.pool.lease(None).await.unwrap());
    played.pool.shutdown().await;
}
