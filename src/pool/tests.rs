//! A pool over workers in memory, on a paused clock.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::model::id::WorkerId;
use crate::worker::SpawnError;
use crate::worker::conversation::{Conversation, Launch};
use crate::worker::testing::{Codex, launcher, spec};

/// A pool, and what ends each of its workers, in the order of their starts.
struct Played {
    pool: Arc<Pool>,
    workers: mpsc::UnboundedReceiver<oneshot::Sender<()>>,
}

impl Played {
    fn start(workers: usize, settings: PoolSettings) -> Played {
        Played::start_with(workers, settings, |_| {})
    }

    fn start_with(
        workers: usize,
        settings: PoolSettings,
        change: impl FnOnce(&mut WorkerSpec),
    ) -> Played {
        let (launch, mut launched) = launcher();
        let (sender, receiver) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(codex) = launched.recv().await {
                let (end, ends) = oneshot::channel();
                tokio::spawn(play(codex, ends));
                let _ = sender.send(end);
            }
        });
        let mut spec = spec(launch);
        change(&mut spec);
        Played { pool: Pool::start(spec, workers, settings), workers: receiver }
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

#[tokio::test(start_paused = true)]
async fn a_death_under_an_opening_is_no_failure_and_one_that_a_turn_wanted_is() {
    let mut played = Played::warm(1, PoolSettings::default()).await;
    for generation in 1..=4 {
        let (lease, entering) = played.pool.lease_to_open(None, false).await.unwrap();
        assert_eq!(lease.worker().id().generation, generation);
        played.workers.recv().await.unwrap().send(()).unwrap();
        lease.worker().exited().await;
        assert!(entering.incarnation().died_under_opening());
        // Also where the opening is over before the end is seen.
        drop((lease, entering));
        played.slots(|slots| slots[0].generation == generation + 1).await;
        assert_eq!(played.pool.status()[0].failures, 0);
    }
    let (lease, entering) = played.pool.lease_to_open(None, false).await.unwrap();
    lease.incarnation().give_up("it is stuck");
    lease.worker().exited().await;
    assert!(!entering.incarnation().died_under_opening());
    played.slots(|slots| slots[0].failures == 1).await;
    played.pool.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn an_opening_that_is_to_be_alone_waits_for_those_before_it_and_keeps_others_away() {
    let Played { pool, .. } = Played::warm(2, PoolSettings::default()).await;
    let first = pool.lease_to_open(None, false).await.unwrap();
    let alone = pool.lease_to_open(None, true).await.unwrap();
    assert_ne!(first.0.worker().id(), alone.0.worker().id(), "where the fewest turns run");
    // New ones go elsewhere, although more run there.
    let others = [
        pool.lease_to_open(None, false).await.unwrap(),
        pool.lease_to_open(None, false).await.unwrap(),
    ];
    assert!(others.iter().all(|(lease, _)| lease.worker().id() == first.0.worker().id()));
    // One whose thread is there waits.
    let there = alone.0.worker().id().clone();
    let mut waiting = std::pin::pin!(pool.lease_to_open(Some(&there), false));
    assert!(futures::poll!(waiting.as_mut()).is_pending());
    drop(alone.1);
    assert_eq!(*waiting.await.unwrap().0.worker().id(), there);
    pool.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_turn_waits_no_longer_for_an_opening_that_is_alone_than_for_a_worker() {
    let played = Played::warm(1, PoolSettings::default()).await;
    let pool = &played.pool;
    let _alone = pool.lease_to_open(None, true).await.unwrap();
    let asked_at = tokio::time::Instant::now();
    let unavailable = pool.lease_to_open(None, false).await.unwrap_err();
    assert_eq!(asked_at.elapsed(), pool.settings.worker_wait);
    assert!(unavailable.cause.contains("w0"), "{}", unavailable.cause);
    pool.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn an_opening_that_takes_long_is_alone_no_more() {
    let played = Played::warm(1, PoolSettings::default()).await;
    let pool = &played.pool;
    let (_lease, alone) = pool.lease_to_open(None, true).await.unwrap();
    tokio::time::sleep(Duration::from_secs(25)).await;
    assert!(!alone.has_company());
    let asked_at = tokio::time::Instant::now();
    drop(pool.lease_to_open(None, false).await.unwrap());
    assert_eq!(asked_at.elapsed(), Duration::from_secs(5));
    assert!(alone.has_company());
    pool.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn an_opening_that_is_alone_waits_a_while_for_the_turns_on_its_worker() {
    let played = Played::warm(1, PoolSettings::default()).await;
    let pool = &played.pool;
    let (turn, entering) = pool.lease_to_open(None, false).await.unwrap();
    drop(entering);
    for (ends_after, waited) in [(1, 1), (60, 2)] {
        let asked_at = tokio::time::Instant::now();
        let end = tokio::time::sleep(Duration::from_secs(ends_after));
        tokio::select! {
            biased;
            () = end => assert!(ends_after == 1),
            alone = pool.lease_to_open(None, true) => drop(alone.unwrap()),
        }
        assert_eq!(asked_at.elapsed(), Duration::from_secs(waited));
    }
    drop(turn);
    let asked_at = tokio::time::Instant::now();
    drop(pool.lease_to_open(None, true).await.unwrap());
    assert_eq!(asked_at.elapsed(), Duration::ZERO);
    pool.shutdown().await;
}

/// Workers of which only the first starts; each later start ends as it is told.
struct Barren {
    first: Arc<dyn Launch>,
    starts: Arc<AtomicUsize>,
    hangs: bool,
}

impl Launch for Barren {
    fn launch<'a>(
        &'a self,
        config_overrides: &'a [String],
    ) -> BoxFuture<'a, Result<Conversation, SpawnError>> {
        if self.starts.fetch_add(1, Ordering::Relaxed) == 0 {
            self.first.launch(config_overrides)
        } else if self.hangs {
            futures::future::pending().boxed()
        } else {
            futures::future::ready(Err(SpawnError::NotFound("no more".to_owned()))).boxed()
        }
    }
}

/// A pool of one worker that is worn at once and has no successor; the worker's other side.
async fn barren(hangs: bool) -> (Arc<Pool>, Codex, Arc<AtomicUsize>) {
    let (first, mut launched) = launcher();
    let starts = Arc::<AtomicUsize>::default();
    let launch = Barren { first, starts: Arc::clone(&starts), hangs };
    let settings = PoolSettings { max_turns_per_worker: Some(1), ..PoolSettings::default() };
    let pool = Pool::start(spec(Arc::new(launch)), 1, settings);
    let mut codex = launched.recv().await.unwrap();
    let mut readiness = pool.readiness();
    codex.during(readiness.wait_for(|readiness| *readiness == Readiness::Ready)).await.unwrap();
    codex.during(pool.lease(None)).await.unwrap();
    (pool, codex, starts)
}

#[tokio::test(start_paused = true)]
async fn successors_that_fail_are_tried_with_growing_pauses() {
    let (pool, mut codex, starts) = barren(false).await;
    codex.during(tokio::time::sleep(Duration::from_secs(120))).await;
    let tries = starts.load(Ordering::Relaxed) - 1;
    assert!((4..=12).contains(&tries), "{tries} tries in two minutes");
    assert!(pool.lease(None).await.is_ok(), "the worker stays");
    pool.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_is_watched_while_its_successor_is_being_started() {
    let (pool, mut codex, starts) = barren(true).await;
    codex.during(tokio::time::sleep(Duration::from_secs(2))).await;
    assert_eq!(starts.load(Ordering::Relaxed), 2);
    // It answers nothing from here on.
    let began = tokio::time::Instant::now();
    assert_eq!(codex.ended().await, "signal 9");
    assert!(began.elapsed() < Duration::from_secs(21), "{:?}", began.elapsed());
    pool.shutdown().await;
}

/// A pool that sleeps once nobody has needed it for a minute.
fn drowsy(workers: usize) -> Played {
    let stop_when_idle = Some(Duration::from_secs(60));
    Played::start(workers, PoolSettings { stop_when_idle, ..PoolSettings::default() })
}

fn sleeps(slots: &[SlotStatus]) -> bool {
    slots.iter().all(|slot| matches!(slot.state, SlotState::Asleep))
}

#[tokio::test(start_paused = true)]
async fn workers_start_with_the_first_who_needs_one_and_stop_when_nobody_has_for_long_enough() {
    let mut played = drowsy(2);
    played.is_ready().await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(sleeps(&played.pool.status()) && played.workers.try_recv().is_err());
    assert_eq!(*played.pool.readiness().borrow(), Readiness::Ready);

    // Many who come at once wake each worker once, and no probe is told of it.
    let mut readiness = played.pool.readiness();
    readiness.mark_unchanged();
    let leases = futures::future::join_all((0..20).map(|_| played.pool.lease(None))).await;
    let leases: Vec<Lease> = leases.into_iter().map(Result::unwrap).collect();
    played.slots(|slots| slots.iter().all(|slot| slot.state.ready().is_some())).await;
    let _workers = [(); 2].map(|()| played.workers.try_recv().unwrap());
    assert!(played.workers.try_recv().is_err() && !readiness.has_changed().unwrap());

    // One is enough to keep them all.
    let kept = leases.into_iter().next().unwrap();
    let (worker, slots) = (Arc::clone(kept.worker()), played.pool.status());
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(slots.iter().all(|slot| slot.state.ready().unwrap().worker.is_alive()));
    drop(kept);
    let idle_since = tokio::time::Instant::now();
    let exit = worker.exited().await;
    assert_eq!(idle_since.elapsed().as_secs(), 60);
    assert_eq!(exit.cause, "killed: no turn needed it for a while");
    played.slots(sleeps).await;
    assert_eq!(*played.pool.readiness().borrow(), Readiness::Ready);
    assert!(!readiness.has_changed().unwrap());

    // And again.
    let lease = played.pool.lease(Some(worker.id())).await.unwrap();
    assert_eq!(lease.worker().id().generation, 2);
    played.pool.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn whoever_comes_while_the_workers_stop_gets_one_that_stays() {
    let played = drowsy(1);
    let lease = || played.pool.lease(None);
    drop(lease().await.unwrap());
    for before in [0, 1, 2, 3] {
        // Whatever of it has been done by then.
        tokio::time::sleep(Duration::from_secs(60)).await;
        for _ in 0..before {
            tokio::task::yield_now().await;
        }
        let lease = lease().await.unwrap();
        tokio::time::sleep(Duration::from_secs(50)).await;
        assert!(lease.worker().is_alive(), "after {before} steps");
    }
    played.pool.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn nobody_sleeps_while_workers_fail_or_the_home_is_faulty() {
    let stop_when_idle = Some(Duration::from_secs(60));
    let settings = PoolSettings { stop_when_idle, ..PoolSettings::default() };
    let is_faulty = Arc::<AtomicBool>::default();
    let mut played = Played::start_with(1, settings, |spec| {
        let is_faulty = Arc::clone(&is_faulty);
        spec.check_home = Arc::new(move || match is_faulty.load(Ordering::Relaxed) {
            true => Err("the disk is full".to_owned()),
            false => Ok(()),
        });
    });
    drop(played.pool.lease(None).await.unwrap());
    // It dies young: what is wrong may be wrong with the next one, too.
    played.workers.recv().await.unwrap().send(()).unwrap();
    played.slots(|slots| slots[0].generation == 2).await;
    assert_eq!(played.pool.status()[0].failures, 1);
    is_faulty.store(true, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(600)).await;
    // What could not be written down is there alone.
    let status = played.pool.status();
    assert!(status[0].state.ready().is_some_and(|ready| ready.worker.is_alive()));
    is_faulty.store(false, Ordering::Relaxed);
    played.slots(sleeps).await;
    // Faulty and asleep is not ready.
    is_faulty.store(true, Ordering::Relaxed);
    let mut readiness = played.pool.readiness();
    readiness.wait_for(|readiness| *readiness != Readiness::Ready).await.unwrap();
    played.pool.shutdown().await;
}
