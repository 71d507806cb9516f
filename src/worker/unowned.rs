//! Turns that nobody asked for: found, stopped and told.
//!
//! Codex takes turns by itself: a goal's continuations, a sub-agent's. Those of a thread with a turn
//! of ours, and of the threads that descend from it, go to that turn. Any other turn is looked at here:
//! for a second at most, since the news of a sub-agent's parent may come after its first turn, and then
//! it is interrupted and its thread's goal is cleared. A worker in which that does not help is given
//! up: tokens must not be spent without a turn.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::app_server::client::TurnRef;
use crate::app_server::decode::{News, Scope};
use crate::app_server::message::Told;
use crate::app_server::peer::RequestError;
use crate::app_server::thread_error::ThreadError;
use crate::model::event::Usage;
use crate::model::id::ThreadId;
use crate::worker::Worker;
use crate::worker::ownership::{Before, Ownership};

/// How long the news of a thread's parent is waited for.
const LOOK: Duration = Duration::from_secs(1);

/// How long a turn that nobody asked for may take to end.
const GRACE: Duration = Duration::from_secs(5);

/// How often it is told to.
const AGAIN: Duration = Duration::from_millis(100);

/// How many such turns a thread may begin within [`WINDOW`] before it is given up.
const PATIENCE: u32 = 8;

/// See [`PATIENCE`].
const WINDOW: Duration = Duration::from_secs(10);

/// How many messages of a thread are held while its parent is looked for.
const HELD: usize = 512;

/// A turn that has begun on a thread to which no turn of ours listens.
#[derive(Debug)]
pub(super) struct Suspect {
    thread_id: String,
    turn_id: String,
}

/// What a worker knows of its threads, beside its routes.
#[derive(Debug)]
pub(super) struct Kin {
    ownership: Mutex<Ownership>,
    // What is told of threads whose parent is being looked for.
    held: Mutex<HashMap<String, Vec<Told>>>,
    // Begins of turns that nobody asked for, by thread: since when, and how many.
    repeated: Mutex<HashMap<String, (Instant, u32)>>,
    // Changes whenever something is learned.
    changed: watch::Sender<u64>,
    suspects: mpsc::UnboundedSender<Suspect>,
    // Whether the CLI repeats the name that a turn is given when it is started.
    repeats_roots: AtomicBool,
}

impl Kin {
    pub(super) fn new() -> (Kin, mpsc::UnboundedReceiver<Suspect>) {
        let (suspects, suspected) = mpsc::unbounded_channel();
        let kin = Kin {
            ownership: Mutex::default(),
            held: Mutex::default(),
            repeated: Mutex::default(),
            changed: watch::Sender::new(0),
            suspects,
            repeats_roots: AtomicBool::new(false),
        };
        (kin, suspected)
    }

    pub(super) fn ownership(&self) -> MutexGuard<'_, Ownership> {
        // A panic elsewhere can't leave it half changed.
        self.ownership.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held(&self) -> MutexGuard<'_, HashMap<String, Vec<Told>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what is told of threads; false where nothing is.
    pub(super) fn observe(&self, told: &Told) -> bool {
        // Most of what is told.
        if !Ownership::is_touched_by(&told.news) {
            return false;
        }
        self.ownership().observe(told);
        self.changed.send_modify(|changes| *changes += 1);
        true
    }

    /// News of a thread to which no turn of ours listens: the begin of a turn is looked into, and what
    /// follows is held until that is done.
    pub(super) fn unheard(&self, told: Told) {
        let Scope { thread_id: Some(thread_id), turn_id } = &told.scope else { return };
        let mut held = self.held();
        if let (News::TurnStarted { .. }, Some(turn_id)) = (&told.news, turn_id) {
            held.entry(thread_id.clone()).or_default();
            self.suspect(thread_id.clone(), turn_id.clone());
        }
        if let Some(held) = held.get_mut(thread_id).filter(|held| held.len() < HELD) {
            held.push(told);
        }
    }

    fn suspect(&self, thread_id: String, turn_id: String) {
        // Nobody looks while the worker is being started or has ended.
        let _ = self.suspects.send(Suspect { thread_id, turn_id });
    }

    /// No turn of ours listens to a thread any more: what runs there, or on a thread that descends from
    /// it, has begun in the last moment.
    pub(super) fn unheard_from_now_on(&self, thread_id: &str) {
        let running = self.ownership().running_below(thread_id);
        for (thread_id, turn_id) in running {
            self.suspect(thread_id, turn_id);
        }
    }

    /// Gives back what is held of the threads of which `is_heard` says that somebody listens now.
    pub(super) fn take_heard(&self, is_heard: impl Fn(&str) -> bool) -> Vec<(String, Vec<Told>)> {
        let mut held = self.held();
        if held.is_empty() {
            return Vec::new();
        }
        held.extract_if(|thread_id, _| is_heard(thread_id)).collect()
    }

    /// Counts the begin of a turn that nobody asked for; whether there have been too many.
    fn is_too_often(&self, thread_id: &str) -> bool {
        let mut repeated = self.repeated.lock().unwrap_or_else(PoisonError::into_inner);
        repeated.retain(|_, (since, _)| since.elapsed() < WINDOW);
        let (_, count) = repeated.entry(thread_id.to_owned()).or_insert((Instant::now(), 0));
        *count += 1;
        *count > PATIENCE
    }
}

/// Looks after the suspects of a worker until it ends.
pub(super) async fn watch(worker: Weak<Worker>, mut suspects: mpsc::UnboundedReceiver<Suspect>) {
    while let Some(Suspect { thread_id, turn_id }) = suspects.recv().await {
        let Some(worker) = worker.upgrade() else { return };
        tokio::spawn(
            async move {
                if !worker.finds_an_owner(&thread_id).await {
                    worker.stop_unowned(&thread_id, &turn_id).await;
                }
            }
            .in_current_span(),
        );
    }
}

impl Worker {
    /// Whether a thread turns out to descend from one with a turn of ours.
    async fn finds_an_owner(&self, thread_id: &str) -> bool {
        let kin = self.kin();
        // One that was opened here is nobody's sub-agent: there is nothing to wait for.
        let is_ours = self.holds_thread(&ThreadId::from_codex(thread_id));
        if !is_ours {
            let mut changed = kin.changed.subscribe();
            let looking =
                async { while !self.is_heard(thread_id) && changed.changed().await.is_ok() {} };
            if tokio::time::timeout(LOOK, looking).await.is_err() {
                // What was not told may be asked.
                let parent = self.client.within(LOOK).thread_parent(thread_id).await;
                if let Ok(Some(parent)) = parent {
                    kin.ownership().adopt(thread_id, &parent);
                }
            }
        }
        self.forward_held();
        let is_heard = self.is_heard(thread_id);
        if !is_heard {
            kin.held().remove(thread_id);
        }
        is_heard
    }

    /// Ends what runs on a thread, and on those that descend from it, whose turn hears of it no more.
    pub(crate) async fn stop_unheard(&self, thread_id: &ThreadId) {
        let running = self.kin().ownership().running_below(thread_id.as_str());
        let stops = running.iter().map(|(thread_id, turn_id)| self.stop(thread_id, turn_id));
        join_all(stops).await;
    }

    /// Ends a turn that is nobody's, and what makes Codex begin the next.
    async fn stop_unowned(&self, thread_id: &str, turn_id: &str) {
        self.note_unowned(thread_id, turn_id);
        self.stop(thread_id, turn_id).await;
    }

    /// Whether a turn of Codex's runs on a thread, as far as it was told.
    pub(crate) fn runs_turn(&self, thread_id: &ThreadId) -> bool {
        self.kin().ownership().running(thread_id.as_str()).is_some()
    }

    async fn stop(&self, thread_id: &str, turn_id: &str) {
        let kin = self.kin();
        if !kin.is_too_often(thread_id) {
            let thread = ThreadId::from_codex(thread_id);
            self.clear_goal(&thread).await;
            if self.end_turn_of(thread_id, turn_id, GRACE).await {
                return;
            }
        }
        // A turn of ours that has come meanwhile sees to it itself.
        if self.is_alive() && !self.is_heard(thread_id) {
            self.give_up_thread(thread_id).await;
        }
    }

    fn note_unowned(&self, thread_id: &str, turn_id: &str) {
        if self.kin().ownership().note_stopped(thread_id, turn_id) {
            tracing::warn!(
                worker = %self.id,
                thread_id,
                codex_turn_id = turn_id,
                "Codex began a turn that nobody had asked for; it is stopped"
            );
        }
    }

    /// Tells Codex to end a turn until it has; false where it has not in time.
    async fn end_turn_of(&self, thread_id: &str, turn_id: &str, within: Duration) -> bool {
        let kin = self.kin();
        let runs = || kin.ownership().running(thread_id) == Some(turn_id);
        let thread = ThreadId::from_codex(thread_id);
        let ending = async {
            let mut changed = kin.changed.subscribe();
            while runs() && self.is_alive() {
                if let Err(error) = self.interrupt_turn(&thread, turn_id).await {
                    tracing::debug!(worker = %self.id, thread_id, %error, "not interrupted");
                    if self.is_active(&thread).await == Some(false) {
                        // It has ended by itself, and that was told before.
                        kin.ownership().note_ended(thread_id, turn_id);
                    }
                }
                let told = async { while runs() && changed.changed().await.is_ok() {} };
                let _ = tokio::time::timeout(AGAIN, told).await;
            }
        };
        tokio::time::timeout(within, ending).await.is_ok()
    }

    /// Unloads a thread that goes on by itself; a worker that does not let go of it is killed.
    async fn give_up_thread(&self, thread_id: &str) {
        let thread = ThreadId::from_codex(thread_id);
        let released = tokio::time::timeout(GRACE, self.release_thread(&thread)).await;
        if matches!(released, Ok(Ok(()))) {
            tracing::warn!(worker = %self.id, thread_id, "the thread was unloaded to end its turns");
        } else if self.is_alive() {
            self.kill("it ran turns that nobody had asked for, and did not end them");
        }
    }

    /// Makes sure that nothing runs on a thread that is about to have a turn, and that Codex begins
    /// nothing there by itself: it would take the turn as steering of what runs.
    ///
    /// # Errors
    /// What could not be ended.
    pub(crate) async fn quiet_thread(
        &self,
        thread_id: &ThreadId,
        within: Duration,
    ) -> Result<(), String> {
        let deadline = Instant::now() + within;
        let kin = self.kin();
        let had_goal = (self.may_have_goals || kin.ownership().has_goal(thread_id.as_str()))
            && self.has_goal(thread_id).await;
        if had_goal {
            // Left by another process, or by a worker that died: nobody has asked to go on with it.
            self.clear_goal(thread_id).await;
            let _ = tokio::time::timeout(within, self.goes_on_all_the_same(thread_id)).await;
        }
        loop {
            let running = kin.ownership().running(thread_id.as_str()).map(str::to_owned);
            if let Some(turn_id) = running {
                self.note_unowned(thread_id.as_str(), &turn_id);
                let left = deadline.saturating_duration_since(Instant::now());
                if !self.end_turn_of(thread_id.as_str(), &turn_id, left).await {
                    return Err(format!("Codex's own turn {turn_id} could not be ended"));
                }
            } else if !(had_goal && self.is_active(thread_id).await == Some(true)) {
                return Ok(());
            } else if Instant::now() >= deadline {
                return Err("Codex goes on with the thread by itself".to_owned());
            } else {
                // Its begin is about to be told.
                tokio::time::sleep(AGAIN.min(within)).await;
            }
        }
    }

    /// Whether the thread has a goal that Codex goes on with by itself.
    pub(crate) async fn has_goal(&self, thread_id: &ThreadId) -> bool {
        match self.client.goal_is_active(thread_id.as_str()).await {
            Ok(is_active) => is_active,
            // A CLI or a thread without goals.
            Err(RequestError::Server { .. }) => false,
            Err(error) => {
                tracing::debug!(worker = %self.id, %thread_id, %error, "the goal can't be read");
                self.kin().ownership().has_goal(thread_id.as_str())
            }
        }
    }

    /// Takes a thread's goal away, and tells whether there was one. An interruption alone leaves it, and
    /// the next turn wakes it.
    pub(crate) async fn clear_goal(&self, thread_id: &ThreadId) -> bool {
        match self.client.goal_clear(thread_id.as_str()).await {
            Ok(cleared) => cleared,
            // A CLI or a thread without goals has none to go on with.
            Err(RequestError::Server { .. }) => false,
            Err(error) => {
                tracing::warn!(worker = %self.id, %thread_id, %error, "the goal can't be cleared");
                false
            }
        }
    }

    /// Waits until it shows whether Codex had begun to go on with a goal of an idle thread when the goal
    /// was taken away; true when it had.
    pub(crate) async fn goes_on_all_the_same(&self, thread_id: &ThreadId) -> bool {
        let begun = || self.kin().ownership().running(thread_id.as_str()).is_some();
        loop {
            let mut changed = self.kin().changed.subscribe();
            let beginning = async { while !begun() && changed.changed().await.is_ok() {} };
            if tokio::time::timeout(AGAIN, beginning).await.is_ok() {
                return true;
            }
            if self.is_active(thread_id).await != Some(true) {
                return begun();
            }
        }
    }

    /// Whether Codex works on a thread, as far as it says so.
    async fn is_active(&self, thread_id: &ThreadId) -> Option<bool> {
        let read = self.client.thread_read(thread_id.as_str()).await;
        read.ok().map(|read| read.is_active())
    }

    /// Whether the thread may have a goal: the CLI has goals on, or told of one.
    pub(crate) fn may_have_goal(&self, thread_id: &ThreadId) -> bool {
        self.may_have_goals || self.kin().ownership().has_goal(thread_id.as_str())
    }

    /// Notes that a turn of this name is being started on a thread; what ran there before, for
    /// [`Worker::is_new`].
    pub(super) fn expects_turn(&self, thread_id: &ThreadId, root_turn_id: &str) -> Before {
        let mut ownership = self.kin().ownership();
        ownership.expect_root(root_turn_id, thread_id.as_str());
        ownership.now(thread_id.as_str())
    }

    /// Whether a turn that `turn/start` was answered with is one that it made.
    pub(super) fn is_new(&self, turn: &TurnRef, root_turn_id: &str, before: &Before) -> bool {
        let repeats_roots = &self.kin().repeats_roots;
        match &turn.root_turn_id {
            Some(root) if root == root_turn_id => {
                repeats_roots.store(true, Ordering::Relaxed);
                true
            }
            Some(_) if repeats_roots.load(Ordering::Relaxed) => false,
            // An older CLI: a turn that was there before is all that can be told.
            Some(_) | None => !self.kin().ownership().had_begun(before, &turn.id),
        }
    }

    /// Codex's id of the next turn that begins on a thread.
    ///
    /// # Errors
    /// [`ThreadError::Lost`]: the worker ends first.
    pub(super) async fn begun_since(
        &self,
        before: &Before,
        thread_id: &ThreadId,
    ) -> Result<String, ThreadError> {
        let mut changed = self.kin().changed.subscribe();
        loop {
            let begun = self.kin().ownership().begun_since(before, thread_id.as_str());
            if let Some(begun) = begun {
                return Ok(begun);
            }
            tokio::select! {
                biased;
                _ = changed.changed() => {}
                exit = self.exited() => {
                    let cause = exit.cause.clone();
                    return Err(ThreadError::Lost { cause, written: true });
                }
            }
        }
    }

    /// Ends a turn into which a new one was taken as steering.
    ///
    /// # Errors
    /// It could not be ended.
    pub(crate) async fn end_foreign_turn(
        &self,
        thread_id: &ThreadId,
        codex_turn_id: &str,
        within: Duration,
    ) -> Result<(), String> {
        self.note_unowned(thread_id.as_str(), codex_turn_id);
        // Whatever was told of it: Codex said that it runs.
        self.kin().ownership().note_running(thread_id.as_str(), codex_turn_id);
        self.clear_goal(thread_id).await;
        if self.end_turn_of(thread_id.as_str(), codex_turn_id, within).await {
            Ok(())
        } else {
            Err(format!("Codex's own turn {codex_turn_id} could not be ended"))
        }
    }

    /// Codex's ids of the turns that were stopped on a thread, or on those that descend from it,
    /// because they were nobody's; each is told once.
    pub(crate) fn take_stopped_turns(&self, thread_id: &ThreadId) -> Vec<String> {
        self.kin().ownership().take_stopped(thread_id.as_str())
    }

    /// The token counts that it last told of a thread.
    pub(crate) fn counts_of(&self, thread_id: &ThreadId) -> Option<Usage> {
        self.kin().ownership().counts(thread_id.as_str())
    }
}
