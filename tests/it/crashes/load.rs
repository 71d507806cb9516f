//! What the callers do until the sidecar is gone.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};

use super::told::{Asked, Belief, Context};
use crate::support::{Client, PATIENCE, Refused, Turn, unsandboxed, within};
use codex_sidecar::pb;
use codex_sidecar::pb::turn_event::Event;
use tonic::Status;

/// What callers may be refused with, and only for a while.
const PASSING: [&str; 3] = ["WORKER_UNAVAILABLE", "CONTEXT_BUSY", "TURN_NOT_STEERABLE"];

/// Something that a caller did or heard: a moment to kill at.
pub(super) type Moments = mpsc::UnboundedSender<&'static str>;

/// What all callers of a round share.
#[derive(Debug)]
pub(super) struct Load {
    pub(super) client: Client,
    /// Where commands leave their lines.
    pub(super) directory: PathBuf,
    pub(super) moments: Moments,
    /// Nobody is to begin anything more.
    pub(super) is_over: AtomicBool,
    /// Somebody's stream was cut.
    pub(super) is_gone: AtomicBool,
}

/// The number in the next request's id.
static NEXT: AtomicU64 = AtomicU64::new(1);

impl Load {
    /// A request of the context that leaves a line for each of its runs; one that waits runs until it is
    /// told to go on.
    fn request(&self, context: &str, waits: bool) -> Asked {
        let id = format!("r-{:07}", NEXT.fetch_add(1, Relaxed));
        let count = self.directory.join(&id);
        let go = waits.then(|| self.directory.join(format!("{id}.go")));
        let mut command = format!("echo ran >> '{}'", count.display());
        if let Some(go) = &go {
            command += &format!("; until [ -e '{}' ]; do sleep 0.05; done", go.display());
        }
        let words = format!("This is {id}. [[run {command}]] [[say {id} is done]]");
        let mut request = unsandboxed(context, &words);
        request.request_id = id;
        Asked {
            request: self.client.at_work(request),
            count: Some(count),
            go,
            events: Vec::new(),
            refused: None,
            is_sent: false,
            is_cut: false,
        }
    }

    /// Has turns of the context, deletes and binds it, until that is over or the sidecar is.
    pub(super) async fn keep_busy(&self, context: &mut Context, random: &mut fastrand::Rng) {
        while !self.is_over.load(Relaxed) {
            let is_alive = match random.u8(..10) {
                0 => self.delete(context).await,
                1 => self.bind(context).await,
                2..=4 => self.crowd(context, random).await,
                _ => self.turn(context).await,
            };
            if !is_alive {
                return;
            }
        }
    }

    async fn turn(&self, context: &mut Context) -> bool {
        let mut asked = self.request(&context.name, false);
        context.expects_turns();
        self.hear(&mut asked, None).await;
        self.learn(context, asked)
    }

    /// A long turn, one that waits for it, and one that is added to it.
    async fn crowd(&self, context: &mut Context, random: &mut fastrand::Rng) -> bool {
        let mut long = self.request(&context.name, true);
        let mut queued = self.request(&context.name, false);
        let mut added = self.request(&context.name, false);
        added.request.set_busy_policy(pb::BusyPolicy::Steer);
        let go = long.go.clone().expect("it waits");
        let release_after = Duration::from_millis(random.u64(..400));
        context.expects_turns();
        let running = Notify::new();
        let others = async {
            running.notified().await;
            let release = async {
                tokio::time::sleep(release_after).await;
                std::fs::write(go, "").unwrap();
            };
            tokio::join!(self.hear(&mut queued, None), self.hear(&mut added, None), release);
        };
        tokio::join!(self.hear(&mut long, Some(&running)), others);
        let alive = [long, added, queued].map(|asked| self.learn(context, asked));
        alive.into_iter().all(|alive| alive)
    }

    fn learn(&self, context: &mut Context, asked: Asked) -> bool {
        let is_alive = asked.is_sent && !asked.is_cut;
        context.learns(&asked);
        if asked.is_sent {
            context.asked.push(asked);
        }
        is_alive
    }

    async fn delete(&self, context: &mut Context) -> bool {
        let Some(thread_id) = context.belief.thread_id().map(str::to_owned) else {
            return self.turn(context).await;
        };
        context.belief.or(None);
        let request =
            pb::DeleteContextRequest { context_id: context.name.clone(), ..Default::default() };
        let mut codex = self.client.codex();
        let deleted = within(PATIENCE, "DeleteContext", codex.delete_context(request)).await;
        let kept = match deleted.map_err(refusal) {
            Ok(_) => None,
            Err(Some(_)) => Some(thread_id.clone()),
            Err(None) => return false,
        };
        let _ = self.moments.send("deleted");
        context.belief = Belief::sure(kept);
        context.earlier = context.written.contains(&thread_id).then_some(thread_id);
        true
    }

    /// Back to an earlier thread.
    async fn bind(&self, context: &mut Context) -> bool {
        let Some(earlier) = context.earlier.take() else { return self.turn(context).await };
        let before = context.belief.clone();
        context.belief.or(Some(earlier.clone()));
        let request = pb::BindContextRequest {
            context_id: context.name.clone(),
            thread_id: earlier.clone(),
            ..Default::default()
        };
        let mut codex = self.client.codex();
        let bound = within(PATIENCE, "BindContext", codex.bind_context(request)).await;
        context.belief = match bound.map_err(refusal) {
            Ok(_) => Belief::sure(Some(earlier)),
            Err(Some(_)) => before,
            Err(None) => return false,
        };
        let _ = self.moments.send("bound");
        true
    }

    /// Makes the call and hears it to its end, or to the sidecar's. Tells when its command runs, or when
    /// it never will.
    pub(super) async fn hear(&self, asked: &mut Asked, running: Option<&Notify>) {
        if !self.is_gone.load(Relaxed) {
            asked.is_sent = true;
            let _ = self.moments.send("called");
            match self.client.try_begin(asked.request.clone()).await {
                Ok(turn) => self.listen(asked, turn, running).await,
                Err(status) => self.ended(asked, status),
            }
        }
        if let Some(running) = running {
            running.notify_one();
        }
    }

    async fn listen(&self, asked: &mut Asked, mut turn: Turn, running: Option<&Notify>) {
        loop {
            match turn.try_next().await {
                Ok(Some(event)) => {
                    let content = event.event.as_ref().expect("an event");
                    if let Some(running) = running.filter(|_| is_command(content)) {
                        running.notify_one();
                    }
                    let _ = self.moments.send(content.name());
                }
                Ok(None) => break,
                Err(status) => {
                    self.ended(asked, status);
                    break;
                }
            }
        }
        asked.events = turn.events;
    }

    fn ended(&self, asked: &mut Asked, status: Status) {
        asked.refused = refusal(status);
        asked.is_cut = asked.refused.is_none();
        self.is_gone.fetch_or(asked.is_cut, Relaxed);
    }
}

/// What comes to a turn from here on does not take the place of its command.
fn is_command(event: &Event) -> bool {
    let Event::ItemStarted(pb::ItemStarted { item: Some(item) }) = event else { return false };
    matches!(item.kind, Some(pb::item::Kind::CommandExecution(_)))
}

/// What a sidecar said; nothing if it was none that spoke.
fn refusal(status: Status) -> Option<String> {
    let refused = Refused::from(status);
    if refused.domain != "codex.sidecar" {
        return None;
    }
    assert!(PASSING.contains(&refused.reason.as_str()), "{refused:#?}");
    Some(refused.reason)
}
