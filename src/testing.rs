//! A whole sidecar in memory, for tests: the gRPC services over an engine and a pool whose workers are
//! played by the test ([`Codex`]). There is no network, no process and, on a paused clock, no waiting.

use std::ops::Deref;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt as _, StreamExt as _};
use prost::Message as _;
use tokio::sync::{Mutex, broadcast, mpsc};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use crate::grpc;
use crate::grpc::api::codex_service_server::CodexService as _;
use crate::grpc::api::pool_service_server::PoolService as _;
use crate::grpc::codex_service::CodexApi;
use crate::grpc::limits::{ConnectionLimits, RequestLimits};
use crate::grpc::pool_service::PoolApi;
use crate::model::id::{CallerId, CallerName, TurnId};
use crate::model::policy::Policy;
use crate::model::question::Answer;
use crate::pb;
use crate::pb::turn_event::Event;
use crate::pool::{Pool, PoolSettings};
use crate::registry::ledger::{self, Ledger};
use crate::turn::admission::{Admission, AdmissionLimits};
use crate::turn::contexts::ContextLimits;
use crate::turn::engine::{Engine, EngineSettings};
use crate::turn::quota::QuotaLimits;
use crate::turn::readers::ReaderLimits;
use crate::turn::retention::Retention;
use crate::turn::timeouts::Timeouts;
use crate::turn::turns::Turns;
use crate::worker::WorkerSpec;
use crate::worker::testing::{self, Codex};

/// What a sidecar is made of.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) spec: WorkerSpec,
    pub(crate) workers: usize,
    pub(crate) pool: PoolSettings,
    pub(crate) limits: AdmissionLimits,
    pub(crate) retention: Retention,
    pub(crate) readers: ReaderLimits,
    pub(crate) contexts: ContextLimits,
    pub(crate) quotas: QuotaLimits,
    pub(crate) timeouts: Timeouts,
    /// What its callers may ask for.
    pub(crate) policy: Policy,
    /// What outlives it; nothing, where that is not said.
    pub(crate) state: Option<Arc<ledger::testing::Disk>>,
}

/// The disk of a CODEX_HOME, full as long as the test says so.
#[derive(Debug, Default)]
pub(crate) struct Disk(Arc<AtomicBool>);

impl Disk {
    /// Told whenever the CODEX_HOME is looked at and full.
    pub(crate) const TROUBLE: &str = "the disk is full";

    /// Puts the CODEX_HOME on it.
    pub(crate) fn hold_home(&self, setup: &mut Setup) {
        let is_full = Arc::clone(&self.0);
        setup.spec.check_home = Arc::new(move || match is_full.load(Ordering::Relaxed) {
            true => Err(Disk::TROUBLE.to_owned()),
            false => Ok(()),
        });
    }

    pub(crate) fn fill(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn empty(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// A sidecar.
#[derive(Debug)]
pub(crate) struct Sidecar {
    pub(crate) api: CodexApi,
    pub(crate) pool: PoolApi,
    pub(crate) engine: Arc<Engine>,
    launched: Mutex<mpsc::UnboundedReceiver<Codex>>,
    // Where its turns work; gone with it.
    _work: tempfile::TempDir,
}

/// One with one worker that is warm, all by default, and that worker's other side.
pub(crate) async fn sidecar() -> (Sidecar, Codex) {
    sidecar_with(|_| {}).await
}

/// The same with another setup, of one worker.
pub(crate) async fn sidecar_with(change: impl FnOnce(&mut Setup)) -> (Sidecar, Codex) {
    let sidecar = Sidecar::start(change);
    let mut codex = sidecar.codex().await;
    codex.during(sidecar.is_ready()).await;
    (sidecar, codex)
}

/// The same on this disk, in place of whichever had it; its worker gives threads of its own.
pub(crate) async fn sidecar_on(
    disk: &Arc<ledger::testing::Disk>,
    number: u32,
    change: impl FnOnce(&mut Setup),
) -> (Sidecar, Codex) {
    let (sidecar, mut codex) = sidecar_with(|setup| {
        setup.state = Some(Arc::clone(disk));
        change(setup);
    })
    .await;
    codex.number = Some(number);
    (sidecar, codex)
}

/// One whose workers play in the background: they say what they are told, and hold what they are told to
/// [`HOLD`](testing::HOLD) until it is released.
#[derive(Debug)]
pub(crate) struct Played {
    sidecar: Arc<Sidecar>,
    release: broadcast::Sender<()>,
}

impl Deref for Played {
    type Target = Arc<Sidecar>;

    fn deref(&self) -> &Arc<Sidecar> {
        &self.sidecar
    }
}

impl Played {
    pub(crate) async fn with(change: impl FnOnce(&mut Setup)) -> Played {
        let sidecar = Arc::new(Sidecar::start(change));
        let release = broadcast::Sender::new(16);
        tokio::spawn({
            let (sidecar, release) = (Arc::clone(&sidecar), release.clone());
            async move {
                for number in 1.. {
                    let mut codex = sidecar.codex().await;
                    codex.number = Some(number);
                    tokio::spawn(codex.play(release.subscribe()));
                }
            }
        });
        sidecar.is_ready().await;
        Played { sidecar, release }
    }

    /// Lets all turns end that are held now.
    pub(crate) fn release(&self) {
        self.release.send(()).unwrap();
    }
}

impl Sidecar {
    /// One whose workers are being started.
    pub(crate) fn start(change: impl FnOnce(&mut Setup)) -> Sidecar {
        let (launch, launched) = testing::launcher();
        let mut setup = Setup {
            spec: testing::spec(launch),
            workers: 1,
            pool: PoolSettings::default(),
            limits: AdmissionLimits::default(),
            retention: Retention::default(),
            readers: ReaderLimits::default(),
            contexts: ContextLimits::default(),
            quotas: QuotaLimits::default(),
            policy: Policy::default(),
            timeouts: Timeouts::default(),
            state: None,
        };
        change(&mut setup);
        let Setup {
            spec,
            workers,
            pool,
            limits,
            retention,
            readers,
            contexts,
            quotas,
            policy,
            timeouts,
            state,
        } = setup;
        let work = tempfile::tempdir().unwrap();
        let default_directory = work.path().canonicalize().unwrap();
        let ledger = Arc::new(state.as_ref().map_or_else(Ledger::memory, Ledger::played_on));
        let engine = Engine::new(
            Pool::start(spec.clone(), workers, pool.clone()),
            Arc::clone(&ledger),
            Arc::new(Turns::new(&retention, Arc::clone(&ledger))),
            Admission::new(limits.clone()),
            EngineSettings {
                default_directory,
                timeouts: timeouts.clone(),
                readers: readers.clone(),
                contexts: contexts.clone(),
                max_image_data: 1 << 20,
                quotas: quotas.clone(),
            },
        );
        ledger.open(engine.restoring()).now_or_never().unwrap().unwrap();
        let pool = PoolApi::new(
            Arc::clone(&engine),
            grpc::pool_service::Setup {
                codex_path: None,
                codex_home: PathBuf::from("/nowhere"),
                offline_model: false,
                api_key_fingerprint: None,
                peers_unidentified: Arc::default(),
                workers,
                pool,
                drain_grace: Duration::ZERO,
                admission: limits.clone(),
                quotas,
                requests: RequestLimits::default(),
                connections: ConnectionLimits::default(),
                max_line_bytes: spec.limits.peer.max_line_bytes,
                retention,
                readers,
                contexts,
                timeouts: timeouts.clone(),
            },
        );
        let requests = RequestLimits::default();
        let api =
            CodexApi::new(Arc::clone(&engine), Default::default(), policy, requests, timeouts);
        Sidecar { api, pool, engine, launched: Mutex::new(launched), _work: work }
    }

    /// The other side of the next worker that is launched; it has not shaken hands.
    pub(crate) async fn codex(&self) -> Codex {
        self.launched.lock().await.recv().await.unwrap()
    }

    /// Waits until turns are taken.
    pub(crate) async fn is_ready(&self) {
        let mut readiness = self.engine.pool().readiness();
        let ready = |readiness: &_| *readiness == crate::pool::Readiness::Ready;
        readiness.wait_for(ready).await.unwrap();
    }

    /// What is said of the first worker.
    pub(crate) async fn worker(&self) -> pb::Worker {
        self.workers().await.remove(0)
    }

    pub(crate) async fn workers(&self) -> Vec<pb::Worker> {
        let listed = self.pool.list_workers(Request::new(pb::ListWorkersRequest {})).await;
        listed.unwrap().into_inner().workers
    }

    /// Waits until a worker is in this state.
    pub(crate) async fn has_worker(&self, state: pb::WorkerState) -> pb::Worker {
        loop {
            if let Some(found) = self.workers().await.into_iter().find(|one| one.state() == state) {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    pub(crate) async fn info(&self) -> pb::GetServerInfoResponse {
        let info = self.pool.get_server_info(Request::new(pb::GetServerInfoRequest {})).await;
        info.unwrap().into_inner()
    }

    pub(crate) async fn context(&self, context_id: &str) -> Result<pb::Context, Refused> {
        let request =
            pb::GetContextRequest { context_id: context_id.to_owned(), ..Default::default() };
        let got = self.api.get_context(Request::new(request)).await;
        got.map(|got| got.into_inner().context.unwrap()).map_err(Refused::from)
    }

    pub(crate) async fn counts(&self) -> pb::ServerCounts {
        self.info().await.counts.unwrap()
    }

    /// Waits until so many turns wait.
    pub(crate) async fn queued(&self, count: u32) {
        while self.counts().await.queued_turns != count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Runs a turn for its end alone.
    pub(crate) async fn unary(
        &self,
        mut request: pb::RunTurnRequest,
    ) -> Result<pb::RunTurnUnaryResponse, Refused> {
        request.thread_options.get_or_insert_default().skip_git_repo_check.get_or_insert(true);
        let request = pb::RunTurnUnaryRequest { request: Some(request) };
        let ran = self.api.run_turn_unary(Request::new(request)).await;
        ran.map(tonic::Response::into_inner).map_err(Refused::from)
    }

    /// A page of the turns of this context, or of all, and where the next one begins.
    pub(crate) async fn turns(
        &self,
        context_id: Option<&str>,
        page_size: i32,
        page_token: &str,
    ) -> Result<(Vec<pb::TurnInfo>, String), Refused> {
        let context = context_id.map(|context_id| pb::ContextRef {
            context_id: context_id.to_owned(),
            ..Default::default()
        });
        let page_token = page_token.to_owned();
        let request = pb::ListTurnsRequest { context, page_size, page_token };
        let listed = self.api.list_turns(Request::new(request)).await;
        let listed = listed.map_err(Refused::from)?.into_inner();
        Ok((listed.turns, listed.next_page_token))
    }

    pub(crate) async fn interrupt(&self, turn_id: &str) -> pb::TurnEvent {
        let request = pb::InterruptTurnRequest { turn_id: turn_id.to_owned() };
        let interrupted = self.api.interrupt_turn(Request::new(request)).await.unwrap();
        interrupted.into_inner().terminal_event.unwrap()
    }

    pub(crate) async fn steer(&self, turn_id: &str, words: &str) -> Result<String, Refused> {
        let inputs = prompt("", words).inputs;
        let request = pb::SteerTurnRequest { turn_id: turn_id.to_owned(), inputs };
        let steered = self.api.steer_turn(Request::new(request)).await;
        steered.map(|steered| steered.into_inner().codex_turn_id).map_err(Refused::from)
    }

    /// Answers a question of a turn, as this caller.
    pub(crate) async fn answer_as(
        &self,
        name: &str,
        turn_id: &str,
        request_id: &str,
        answer: Answer,
    ) -> Result<(), Refused> {
        let (turn_id, request_id) = (turn_id.to_owned(), request_id.to_owned());
        let answer = Some(answer);
        let mut request = Request::new(pb::AnswerRequestRequest { turn_id, request_id, answer });
        request.extensions_mut().insert(CallerName(name.into()));
        self.api.answer_request(request).await.map(drop).map_err(Refused::from)
    }

    /// What a turn asks and nobody has answered yet.
    pub(crate) fn pending(&self, turn_id: &str) -> Vec<String> {
        self.engine.turn(&TurnId(turn_id.to_owned())).unwrap().log.pending_requests()
    }

    /// Joins a turn from its first event on.
    pub(crate) async fn attach(&self, turn_id: &str) -> Result<Turn, Refused> {
        let target = pb::attach_turn_request::Target::TurnId(turn_id.to_owned());
        let request = pb::AttachTurnRequest { target: Some(target), after_sequence: 0 };
        let attached = self.api.attach_turn(Request::new(request)).await.map_err(Refused::from)?;
        let stream = attached.into_inner().map(|read| read.map(|read| read.event)).boxed();
        Ok(Turn { stream, events: Vec::new() })
    }

    /// Begins a turn: returns when it has told something.
    pub(crate) async fn begin(&self, request: pb::RunTurnRequest) -> Result<Turn, Refused> {
        self.begin_as(CallerId::default(), request).await
    }

    /// The same for this one of the callers.
    pub(crate) async fn begin_as(
        &self,
        caller: CallerId,
        mut request: pb::RunTurnRequest,
    ) -> Result<Turn, Refused> {
        request.thread_options.get_or_insert_default().skip_git_repo_check.get_or_insert(true);
        let mut request = Request::new(request);
        request.extensions_mut().insert(caller);
        let response = self.api.run_turn(request).await.map_err(Refused::from)?;
        let stream = response.into_inner().map(|read| read.map(|read| read.event)).boxed();
        Ok(Turn { stream, events: Vec::new() })
    }

    /// Begins a turn that Codex takes, and ends when it is told to, as all that it takes after it.
    pub(crate) async fn hold(&self, codex: &mut Codex, request: pb::RunTurnRequest) -> Turn {
        codex.holds_turns = true;
        let mut turn = codex.during(self.begin(request)).await.unwrap();
        codex.during(turn.until("turn_started")).await;
        turn
    }

    /// Runs a turn to its terminal event.
    pub(crate) async fn run(&self, request: pb::RunTurnRequest) -> Turn {
        let mut turn = self.begin(request).await.unwrap();
        turn.rest().await;
        turn
    }

    /// Runs a turn of a context with nothing but this prompt.
    pub(crate) async fn say(&self, context: &str, words: &str) -> Turn {
        self.run(prompt(context, words)).await
    }

    /// Runs a turn that must be refused.
    pub(crate) async fn refused(&self, request: pb::RunTurnRequest) -> Refused {
        let mut turn = match self.begin(request).await {
            Ok(turn) => turn,
            Err(refused) => return refused,
        };
        while let Some(read) = turn.next().await.transpose() {
            if let Err(refused) = read {
                return refused;
            }
        }
        panic!("not refused: {:#?}", turn.events)
    }
}

/// What comes of `other` while `call` is not answered.
pub(crate) async fn meanwhile<C: Future, T>(
    call: Pin<&mut C>,
    other: impl Future<Output = T>,
) -> T {
    tokio::select! {
        biased;
        _ = call => panic!("it was answered"),
        value = other => value,
    }
}

/// A turn that is never asked for approval, in this sandbox.
pub(crate) fn never(context: &str, words: &str, sandbox: pb::SandboxMode) -> pb::RunTurnRequest {
    let mut request = prompt(context, words);
    let options = request.thread_options.get_or_insert_default();
    options.set_sandbox_mode(sandbox);
    options.set_approval_policy(pb::ApprovalPolicy::Never);
    request
}

/// A turn of a context that says these words.
pub(crate) fn prompt(context: &str, words: &str) -> pb::RunTurnRequest {
    let text = pb::user_input::Input::Text(words.to_owned());
    pb::RunTurnRequest {
        context_id: context.to_owned(),
        inputs: vec![pb::UserInput { input: Some(text) }],
        ..Default::default()
    }
}

/// A turn, and what was read of it.
pub(crate) struct Turn {
    stream: BoxStream<'static, Result<Bytes, Status>>,
    pub(crate) events: Vec<pb::TurnEvent>,
}

impl Turn {
    /// Reads one more event; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<()>, Refused> {
        let Some(read) = self.stream.next().await.transpose()? else {
            assert!(self.kinds().last().is_some_and(is_terminal), "no end: {:#?}", self.events);
            return Ok(None);
        };
        let event = pb::TurnEvent::decode(read).unwrap();
        self.assert_follows(&event);
        self.events.push(event);
        Ok(Some(()))
    }

    /// The rules that hold for every stream from its beginning.
    fn assert_follows(&self, event: &pb::TurnEvent) {
        let seen = self.events.last().map_or(0, |last| last.sequence);
        match &event.event {
            Some(Event::Gap(pb::Gap { from, to })) => {
                assert_eq!(*from, seen + 1, "a gap that leaves a hole or overlaps: {event:#?}");
                assert!(to >= from && event.sequence == *to, "{event:#?}");
            }
            _ => assert_eq!(event.sequence, seen + 1, "after {seen}: {event:#?}"),
        }
        let kinds = self.kinds();
        assert!(!kinds.last().is_some_and(is_terminal), "more after the end: {event:#?}");
        let kind = event.event.as_ref().map(Event::name);
        if kind == Some("turn_started") && !kinds.contains(&"gap") {
            assert!(kinds.contains(&"thread_started"), "{kinds:?}");
        }
        if kind == Some("thread_started") {
            let evicted = self.warned("CONTEXT_EVICTED").len();
            let told = |kind: &&&str| matches!(**kind, "queued" | "gap");
            assert_eq!(kinds.iter().filter(told).count() + evicted, kinds.len(), "{kinds:?}");
        }
        if let Some(first) = self.events.first() {
            assert_eq!(event.turn_id, first.turn_id, "{event:#?}");
        }
    }

    /// Reads on until an event of this kind.
    pub(crate) async fn until(&mut self, kind: &str) {
        while self.kinds().last() != Some(&kind) {
            if self.next().await.unwrap().is_none() {
                panic!("the turn ended before {kind}: {:#?}", self.events);
            }
        }
    }

    /// Reads to the end.
    pub(crate) async fn rest(&mut self) {
        while self.next().await.unwrap().is_some() {}
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Event> {
        self.events.iter().filter_map(|event| event.event.as_ref())
    }

    pub(crate) fn kinds(&self) -> Vec<&'static str> {
        self.all().map(Event::name).collect()
    }

    pub(crate) fn thread_started(&self) -> &pb::ThreadStarted {
        let started = self.all().find_map(|event| match event {
            Event::ThreadStarted(started) => Some(started),
            _ => None,
        });
        started.unwrap_or_else(|| panic!("no thread_started: {:#?}", self.events))
    }

    pub(crate) fn thread_id(&self) -> &str {
        &self.thread_started().thread_id
    }

    pub(crate) fn terminal(&self) -> &Event {
        self.all().last().unwrap()
    }

    pub(crate) fn completed(&self) -> &pb::TurnCompleted {
        match self.terminal() {
            Event::TurnCompleted(completed) => completed,
            _ => panic!("not completed: {:#?}", self.events),
        }
    }

    pub(crate) fn final_response(&self) -> &str {
        &self.completed().final_response
    }

    pub(crate) fn interrupted(&self) -> pb::InterruptReason {
        match self.terminal() {
            Event::TurnInterrupted(interrupted) => interrupted.reason(),
            _ => panic!("not interrupted: {:#?}", self.events),
        }
    }

    /// The sidecar's id of it.
    pub(crate) fn id(&self) -> String {
        self.events[0].turn_id.clone()
    }

    /// Where it was told to wait last.
    pub(crate) fn queue_position(&self) -> u32 {
        let positions = self.all().filter_map(|event| match event {
            Event::Queued(queued) => Some(queued.position),
            _ => None,
        });
        positions.last().unwrap_or_default()
    }

    pub(crate) fn failed(&self) -> &pb::TurnError {
        match self.terminal() {
            Event::TurnFailed(pb::TurnFailed { error: Some(error), .. }) => error,
            _ => panic!("not failed: {:#?}", self.events),
        }
    }

    /// Items as they were when they ended.
    pub(crate) fn items(&self) -> Vec<&pb::item::Kind> {
        let items = self.all().filter_map(|event| match event {
            Event::ItemCompleted(pb::ItemCompleted { item }) => item.as_ref()?.kind.as_ref(),
            _ => None,
        });
        items.collect()
    }

    pub(crate) fn warnings(&self) -> Vec<&pb::Warning> {
        let warnings = self.all().filter_map(|event| match event {
            Event::Warning(warning) => Some(warning),
            _ => None,
        });
        warnings.collect()
    }

    /// The words of the warnings with this code.
    pub(crate) fn warned(&self, code: &str) -> Vec<&str> {
        let warnings = self.warnings().into_iter().filter(|warning| warning.code == code);
        warnings.map(|warning| warning.message.as_str()).collect()
    }
}

fn is_terminal(kind: &&str) -> bool {
    matches!(*kind, "turn_completed" | "turn_failed" | "turn_interrupted")
}

/// A call that ended with a status, taken apart.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) code: Code,
    pub(crate) reason: String,
    pub(crate) retry_after: Option<Duration>,
    pub(crate) message: String,
    /// The paths of the faults.
    pub(crate) fields: Vec<String>,
}

impl From<Status> for Refused {
    fn from(status: Status) -> Refused {
        let details = status.get_error_details();
        Refused {
            code: status.code(),
            reason: details.error_info().map(|info| info.reason.clone()).unwrap_or_default(),
            retry_after: details.retry_info().and_then(|retry| retry.retry_delay),
            message: status.message().to_owned(),
            fields: details
                .bad_request()
                .map(|bad| bad.field_violations.iter().map(|one| one.field.clone()).collect())
                .unwrap_or_default(),
        }
    }
}

impl Refused {
    pub(crate) fn assert(&self, code: Code, reason: &str) {
        assert_eq!((self.code, self.reason.as_str()), (code, reason), "{self:#?}");
    }
}
