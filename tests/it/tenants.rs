//! Tenants: each has what is its, and nobody learns of another's.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use codex_sidecar::client::codex_service_client::CodexServiceClient;
use codex_sidecar::client::pool_service_client::PoolServiceClient;
use codex_sidecar::pb;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::support::binary::Binary;
use crate::support::{PATIENCE, Place, Refused, Told, Turn, eventually, prompt, within};

/// A sidecar whose tenants `default`, `a` and `b` have a token each, with these settings of theirs.
async fn sidecar_in(place: Place, settings: &str) -> Binary {
    let at = |name: &str| place.path().join(name);
    for tenant in ["default", "a", "b"] {
        let file = at(&format!("{tenant}.tokens"));
        std::fs::write(&file, token(tenant)).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    let config = format!(
        "token_file = \"default.tokens\"\nworkers = 1\ndrain_grace = \"0s\"\n{settings}\n\
         [tenants.a]\ncodex_home = \"home-a\"\ntoken_file = \"a.tokens\"\n\
         [tenants.b]\ncodex_home = \"home-b\"\ntoken_file = \"b.tokens\"\n"
    );
    std::fs::write(at("sidecar.toml"), config).unwrap();
    let config = at("sidecar.toml");
    Binary::cold(place, |command| _ = command.arg("--config").arg(config)).await
}

fn token(tenant: &str) -> String {
    format!("the-token-of-the-tenant-{tenant}")
}

/// Who calls for a tenant.
struct Caller {
    channel: Channel,
    token: String,
    work: String,
}

impl Caller {
    fn new(sidecar: &Binary, tenant: &str) -> Caller {
        let work = sidecar.place.work().display().to_string();
        Caller { channel: sidecar.channel(), token: token(tenant), work }
    }

    fn codex(&self) -> CodexServiceClient<Channel> {
        CodexServiceClient::new(self.channel.clone())
    }

    fn pool(&self) -> PoolServiceClient<Channel> {
        PoolServiceClient::new(self.channel.clone())
    }

    fn ask<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request
            .metadata_mut()
            .insert("authorization", format!("Bearer {}", self.token).parse().unwrap());
        request.set_timeout(PATIENCE);
        request
    }

    async fn begin(&self, mut request: pb::RunTurnRequest) -> Result<Turn, Refused> {
        request.thread_options.get_or_insert_default().working_directory = Some(self.work.clone());
        let turn = self.codex().run_turn(self.ask(request)).await.map_err(Refused::from)?;
        Ok(Turn::new(turn.into_inner()))
    }

    async fn run(&self, request: pb::RunTurnRequest) -> Told {
        self.begin(request).await.unwrap_or_else(|refused| panic!("{refused:?}")).rest().await
    }

    /// Why a turn is refused, also where that is found out late.
    async fn refused(&self, request: pb::RunTurnRequest) -> Refused {
        match self.begin(request).await {
            Ok(mut turn) => turn.rest_fails().await,
            Err(refused) => refused,
        }
    }

    async fn workers(&self) -> Vec<pb::Worker> {
        let asked = self.pool().list_workers(self.ask(pb::ListWorkersRequest {})).await;
        asked.unwrap().into_inner().workers
    }

    async fn info(&self) -> pb::GetServerInfoResponse {
        let asked = self.pool().get_server_info(self.ask(pb::GetServerInfoRequest {})).await;
        asked.unwrap().into_inner()
    }

    async fn models(&self) -> Vec<pb::Model> {
        let asked = self.pool().list_models(self.ask(pb::ListModelsRequest::default())).await;
        asked.unwrap().into_inner().models
    }

    /// All that it can list, as text.
    async fn lists(&self) -> String {
        let contexts =
            self.codex().list_contexts(self.ask(pb::ListContextsRequest::default())).await;
        let turns = self.codex().list_turns(self.ask(pb::ListTurnsRequest::default())).await;
        let mut export =
            self.pool().export_state(self.ask(pb::ExportStateRequest {})).await.unwrap();
        let mut state = String::new();
        while let Some(part) = export.get_mut().message().await.unwrap() {
            state.push_str(std::str::from_utf8(&part.lines).unwrap());
        }
        let (contexts, turns) = (contexts.unwrap().into_inner(), turns.unwrap().into_inner());
        let (workers, info) = (self.workers().await, self.info().await);
        format!("{contexts:?}\n{turns:?}\n{workers:?}\n{info:?}\n{state}")
    }
}

/// What names the things of somebody.
struct Names {
    context: String,
    thread_id: String,
    turn_id: String,
    codex_turn_id: String,
}

impl Names {
    /// Of the same form, and nobody's.
    fn never_there() -> Names {
        Names {
            context: "context-of-nobody".to_owned(),
            thread_id: "01999999-9999-7999-8999-999999999999".to_owned(),
            turn_id: "01999999-9999-7999-8999-999999999998".to_owned(),
            codex_turn_id: "01999999-9999-7999-8999-999999999997".to_owned(),
        }
    }

    /// What each call says that names them, without the names.
    async fn answers(&self, caller: &Caller) -> Vec<(&'static str, String)> {
        let Names { context, thread_id, turn_id, codex_turn_id } = self;
        let (context, thread_id, turn_id) =
            (|| context.clone(), || thread_id.clone(), || turn_id.clone());
        let key = || Some(pb::ContextRef { context_id: context(), ..Default::default() });
        let inputs = || vec![crate::support::text("hello")];
        let mut answers = Vec::new();
        let mut note = |call: &'static str, answer: Result<String, Refused>| {
            let mut told = match answer {
                Ok(answer) => answer,
                Err(Refused { code, reason, metadata, fields, retry_after, message, .. }) => {
                    let metadata = BTreeMap::from_iter(metadata);
                    format!("{code:?} {reason} {metadata:?} {fields:?} {retry_after:?} {message}")
                }
            };
            let names = [&self.context, &self.thread_id, &self.turn_id, codex_turn_id];
            for name in names {
                told = told.replace(name.as_str(), "NAME");
            }
            answers.push((call, told));
        };
        macro_rules! ask {
            ($call:ident, $request:expr) => {{
                let answer = caller.codex().$call(caller.ask($request)).await;
                let answer = answer.map(|answer| format!("{:?}", answer.into_inner()));
                note(stringify!($call), answer.map_err(Refused::from));
            }};
        }
        let by_id = pb::attach_turn_request::Target::TurnId(turn_id());
        let by_context = pb::attach_turn_request::Target::Context(key().unwrap());
        for target in [by_id, by_context] {
            let request = pb::AttachTurnRequest { target: Some(target), after_sequence: 0 };
            let attached = caller.codex().attach_turn(caller.ask(request)).await;
            let told = match attached {
                Ok(mut stream) => {
                    stream.get_mut().message().await.map(|event| format!("{event:?}"))
                }
                Err(status) => Err(status),
            };
            note("attach_turn", told.map_err(Refused::from));
        }
        ask!(interrupt_turn, pb::InterruptTurnRequest { turn_id: turn_id() });
        ask!(steer_turn, pb::SteerTurnRequest { turn_id: turn_id(), inputs: inputs() });
        let answer = pb::answer_request_request::Answer::ToolCall(pb::ToolCallAnswer::default());
        let request_id = "1".to_owned();
        ask!(
            answer_request,
            pb::AnswerRequestRequest { turn_id: turn_id(), request_id, answer: Some(answer) }
        );
        ask!(get_context, pb::GetContextRequest { context_id: context(), ..Default::default() });
        ask!(
            list_contexts,
            pb::ListContextsRequest { context_id: context(), ..Default::default() }
        );
        ask!(list_turns, pb::ListTurnsRequest { context: key(), ..Default::default() });
        let target = Some(pb::ContextRef { context_id: "fork".to_owned(), ..Default::default() });
        ask!(fork_context, pb::ForkContextRequest { source: key(), target, ..Default::default() });
        ask!(
            revert_context,
            pb::RevertContextRequest {
                context: key(),
                before_codex_turn_id: codex_turn_id.clone(),
            }
        );
        for target in [
            pb::read_thread_request::Target::Context(key().unwrap()),
            pb::read_thread_request::Target::ThreadId(thread_id()),
        ] {
            ask!(read_thread, pb::ReadThreadRequest { target: Some(target), ..Default::default() });
        }
        for delete_thread in [false, true] {
            ask!(
                delete_context,
                pb::DeleteContextRequest {
                    context_id: context(),
                    delete_thread,
                    ..Default::default()
                }
            );
        }
        let must_exist = pb::RunTurnRequest {
            context_policy: pb::ContextPolicy::MustExist.into(),
            ..prompt(&context(), "hello")
        };
        note("run_turn in its context", Err(caller.refused(must_exist).await));
        let on_its_thread = pb::RunTurnRequest { thread_id: thread_id(), ..prompt("", "hello") };
        note("run_turn on its thread", Err(caller.refused(on_its_thread).await));
        answers
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_one_tenant_is_known_to_another() {
    let sidecar = sidecar_in(Place::new(), "").await;
    sidecar.ready().await;
    let [a, b, default] = ["a", "b", "default"].map(|tenant| Caller::new(&sidecar, tenant));
    let nobody = Names::never_there();
    let request = |context: &str, words: &str| pb::RunTurnRequest {
        request_id: "one-id-for-all".to_owned(),
        ..prompt(context, words)
    };
    let done = a.run(request("context-of-a-alone", "[[say the secret of a]]")).await;
    let turn = a.begin(prompt("context-of-a-alone", "[[wait 60s]]")).await;
    let mut turn = turn.unwrap_or_else(|refused| panic!("{refused:?}"));
    let codex_turn_id = turn.started().await;
    let names = Names {
        context: "context-of-a-alone".to_owned(),
        thread_id: done.thread_id().to_owned(),
        turn_id: turn.turn_id().to_owned(),
        codex_turn_id,
    };
    let pid = a.workers().await[0].pid;

    // Another's request id is free, and its context is another one.
    let own = b.run(request("context-of-b", "hello")).await;
    assert_eq!(own.origin(), pb::ThreadOrigin::New);
    default.run(request("context-of-default", "hello")).await;
    for (caller, home) in [(&b, "home-b"), (&default, "/.codex\"")] {
        let lists = caller.lists().await;
        let of_a = [&names.context, &names.thread_id, &names.turn_id, done.turn_id(), "home-a"];
        let pid = format!("pid: {pid},");
        for name in of_a.into_iter().chain([pid.as_str(), "the secret of a"]) {
            assert!(!lists.contains(name), "{name} in {lists}");
        }
        assert!(lists.contains(home) && lists.contains("running_turns: 0"), "{lists}");
        let (theirs, nobodys) = (names.answers(caller).await, nobody.answers(caller).await);
        assert!(theirs.len() > 15);
        assert_eq!(theirs, nobodys);
    }
    // All of which has changed nothing.
    let context = pb::GetContextRequest { context_id: names.context, ..Default::default() };
    let context = a.codex().get_context(a.ask(context)).await.unwrap().into_inner().context;
    assert_eq!(context.unwrap().thread_id, names.thread_id);
    assert_eq!(a.info().await.counts.unwrap().running_turns, 1);
    let interrupt = pb::InterruptTurnRequest { turn_id: names.turn_id };
    a.codex().interrupt_turn(a.ask(interrupt)).await.unwrap();
    turn.rest().await;
    sidecar.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_can_not_be_served_is_told_so_alone_and_served_as_soon_as_it_can() {
    let place = Place::new();
    let homes = ["home-a", "home-b"].map(|name| place.path().join(name));
    for home in &homes {
        std::fs::create_dir(home).unwrap();
    }
    // As another sidecar that runs.
    let lock = std::fs::File::create(homes[0].join("sidecar.lock")).unwrap();
    lock.lock().unwrap();
    std::fs::write(homes[1].join("sidecar.redb"), "no ledger").unwrap();
    let sidecar = sidecar_in(place, "").await;
    sidecar.ready().await;
    let [a, b, default] = ["a", "b", "default"].map(|tenant| Caller::new(&sidecar, tenant));
    default.run(prompt("c", "hello")).await;
    for (caller, cause) in [(&a, "is used by another sidecar"), (&b, "sidecar.redb")] {
        let refused = caller.refused(prompt("c", "hello")).await;
        refused.assert(Code::Unavailable, "TENANT_UNAVAILABLE");
        assert!(refused.message.contains(cause) && refused.retry_after.is_some(), "{refused:?}");
        let asked = caller.pool().list_workers(caller.ask(pb::ListWorkersRequest {})).await;
        Refused::from(asked.unwrap_err()).assert(Code::Unavailable, "TENANT_UNAVAILABLE");
    }
    drop(lock);
    let served = || async {
        let asked: Result<_, Status> =
            a.pool().list_workers(a.ask(pb::ListWorkersRequest {})).await;
        asked.ok()
    };
    eventually("the tenant whose CODEX_HOME is free now", served).await;
    a.run(prompt("c", "hello")).await;
    let log = sidecar.log();
    assert!(log.contains("the tenant is not served"), "{log}");
    sidecar.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_workers_of_a_tenant_are_there_while_somebody_needs_them() {
    let sidecar = sidecar_in(Place::new(), "[pool]\nstop_when_idle = \"2s\"").await;
    sidecar.ready().await;
    let a = Caller::new(&sidecar, "a");
    let states = || async {
        let workers = a.workers().await;
        workers.iter().map(pb::Worker::state).collect::<Vec<_>>()
    };
    assert_eq!(states().await, [pb::WorkerState::Asleep]);
    let info = a.info().await;
    assert!(info.ready && info.not_ready_reason.is_empty(), "{info:?}");
    assert_eq!(info.limits.unwrap().stop_when_idle.unwrap().seconds, 2);
    let models = a.models().await;
    assert!(!models.is_empty());
    assert_eq!(states().await, [pb::WorkerState::Ready]);
    let told = a.run(prompt("c", "[[wait 3s]] [[say awake]]")).await;
    assert_eq!(told.final_response(), "awake");
    let asleep = || async { (states().await == [pb::WorkerState::Asleep]).then_some(()) };
    eventually("sleep", asleep).await;
    // The same thread, on another worker.
    let again = a.run(prompt("c", "hello")).await;
    assert_eq!((again.origin(), again.thread_id()), (pb::ThreadOrigin::Resumed, told.thread_id()));
    sidecar.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn turns_a_minute_and_tokens_a_day_are_each_tenants_own_and_outlive_a_restart() {
    let limits = "[limits]\nturns_per_minute = 2\ntokens_per_day = 10";
    let sidecar = sidecar_in(Place::new(), limits).await;
    sidecar.ready().await;
    let [a, b] = ["a", "b"].map(|tenant| Caller::new(&sidecar, tenant));
    let first = pb::RunTurnRequest { request_id: "first".to_owned(), ..prompt("c", "hello") };
    let told = a.run(first.clone()).await;
    let usage = told.completed().usage.unwrap();
    let used = usage.input_tokens + usage.output_tokens;
    assert!(used > 10, "{usage:?}");
    let refused = a.refused(prompt("c", "hello")).await;
    refused.assert(Code::ResourceExhausted, "TOKEN_QUOTA_EXCEEDED");
    let day = Duration::from_secs(24 * 3600);
    assert!(refused.retry_after.is_some_and(|after| after <= day), "{refused:?}");
    // The same once more begins nothing.
    assert_eq!(a.run(first.clone()).await.turn_id(), told.turn_id());
    let info = a.info().await;
    let (limits, counts) = (info.limits.unwrap(), info.counts.unwrap());
    assert_eq!((limits.turns_per_minute, limits.tokens_per_day), (Some(2), Some(10)));
    assert_eq!(counts.tokens_today, Some(used));
    assert_eq!(b.info().await.counts.unwrap().tokens_today, Some(0));

    // Those that are refused for their form have not begun.
    for _ in 0..3 {
        b.refused(prompt("c", "")).await.assert(Code::InvalidArgument, "INVALID_INPUT");
    }
    let both = [prompt("c", "[[wait 60s]]"), prompt("d", "[[wait 60s]]")];
    let mut turns = Vec::new();
    for request in both {
        turns.push(b.begin(request).await.unwrap_or_else(|refused| panic!("{refused:?}")));
    }
    let refused = b.refused(prompt("e", "hello")).await;
    refused.assert(Code::ResourceExhausted, "TURN_RATE_EXCEEDED");
    let wait = refused.retry_after.unwrap();
    assert!(wait <= Duration::from_secs(30) && wait > Duration::from_secs(15), "{wait:?}");
    drop(turns);

    let place = within(PATIENCE, "the end", sidecar.stop()).await;
    let sidecar = sidecar_in(place, "[limits]\ntokens_per_day = 10").await;
    sidecar.ready().await;
    let a = Caller::new(&sidecar, "a");
    a.refused(prompt("c", "hello")).await.assert(Code::ResourceExhausted, "TOKEN_QUOTA_EXCEEDED");
    assert_eq!(a.info().await.counts.unwrap().tokens_today, Some(used));
    sidecar.stop().await;
}
