//! What the integration tests share: a sidecar on the real CLI with the offline model, a client
//! that waits for nothing without a deadline, and the rules that every stream must keep.
//!
//! A sidecar runs either in the test's process ([`Sidecar`]: its configuration can be anything, and
//! the scripted model's requests can be counted) or as the built binary ([`Binary`]: signals, exit
//! codes, logs). Both lend their [`Client`]. Each has a CODEX_HOME and a working directory of its
//! own, so tests don't see each other. `TEST_LOG=debug` shows the log of those in the process.

#![allow(dead_code, unused_imports, unreachable_pub, reason = "the benches use a part of it")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, and says where"
)]

pub mod app_server;
pub mod attached;
pub mod binary;
pub mod desk;
pub mod processes;
pub mod scripted;
pub mod terminal;
pub mod turn;

use std::ffi::OsString;
use std::future::Future;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use codex_sidecar::client::codex_service_client::CodexServiceClient;
use codex_sidecar::client::pool_service_client::PoolServiceClient;
use codex_sidecar::parts::app::{App, BoundAddress, READINESS_SERVICE, ServeError};
use codex_sidecar::parts::codex_cli;
use codex_sidecar::parts::config::{Config, ListenAddress, LogFormat};
use codex_sidecar::parts::offline_model::OfflineModel;
use codex_sidecar::pb;
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

pub use desk::desk;
pub use turn::{Refused, Told, Turn, ephemeral, prompt, text, unsandboxed, with_options};

/// How long anything may take that has no better bound. Long, because a loaded machine is slow;
/// short enough that a hang is told before the test runner is killed.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// `future`, or a panic that says what was waited for.
pub async fn within<T>(limit: Duration, what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(limit, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: still not there after {limit:?}"),
    }
}

/// Asks again and again until `probe` has something. For what has no event to wait for.
pub async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut probe: impl FnMut() -> F,
) -> T {
    let asking = async {
        loop {
            if let Some(value) = probe().await {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within(PATIENCE, what, asking).await
}

/// The native binary of the CLI: CODEX_PATH, PATH, else the pinned one from npm, installed once.
pub fn codex_path() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| {
        let configured = std::env::var_os("CODEX_PATH").filter(|path| !path.is_empty());
        let configured = configured.map(PathBuf::from);
        let path = std::env::var_os("PATH");
        match codex_cli::find(configured.as_deref(), path.as_deref()) {
            Ok(found) => found,
            // A path that somebody gave and that is wrong is not passed over in silence.
            Err(error) if configured.is_some() => panic!("CODEX_PATH: {error}"),
            Err(_) => codex_cli::install().expect("the pinned Codex CLI could not be installed"),
        }
    })
}

/// The environment of what tests start: nothing of the machine's but where programs and temporary
/// files are. Keys, proxies, locales and settings of Codex, git and the sidecar stay outside.
pub fn environment(user_home: &Path) -> Vec<(OsString, OsString)> {
    const KEPT: [&str; 6] =
        ["PATH", "TMPDIR", "USER", "LOGNAME", "LD_LIBRARY_PATH", "RUST_BACKTRACE"];
    let kept = KEPT.iter().filter_map(|name| Some(((*name).into(), std::env::var_os(name)?)));
    let own = [("HOME".into(), user_home.into()), ("LANG".into(), "C.UTF-8".into())];
    kept.chain(own).collect()
}

/// The same as a change of this process's environment.
fn cleaned_environment(user_home: &Path) -> Vec<(OsString, Option<OsString>)> {
    let all = std::env::vars_os().map(|(name, _)| (name, None));
    let set = environment(user_home).into_iter().map(|(name, value)| (name, Some(value)));
    all.chain(set).collect()
}

/// Makes a git repository of this directory, which is made if it is not there. By hand: git would
/// bring in templates and settings of whoever runs the tests, and may not be there.
pub fn make_repository(directory: &Path) {
    let git = directory.join(".git");
    for directory in ["objects", "refs/heads"] {
        std::fs::create_dir_all(git.join(directory)).unwrap();
    }
    std::fs::write(git.join("HEAD"), "ref: refs/heads/main\n").unwrap();
    std::fs::write(git.join("config"), "[core]\n\trepositoryformatversion = 0\n").unwrap();
}

/// A directory whose path leaves room for a socket's name: the system allows some hundred bytes,
/// and the temporary directory may be anywhere.
pub fn short_directory() -> TempDir {
    let candidates = [std::env::temp_dir(), "/tmp".into(), "/var/tmp".into(), "/dev/shm".into()];
    let short = candidates.iter().filter(|directory| directory.as_os_str().len() < 60);
    short
        .filter_map(|directory| tempfile::tempdir_in(directory).ok())
        .next()
        .expect("a directory with a short path that can be written to")
}

/// The directories of one sidecar; gone with it.
#[derive(Debug)]
pub struct Place {
    root: TempDir,
}

impl Place {
    /// Not below /tmp: Codex refuses to put its helper binaries there. Where links lead, as workers are
    /// told it.
    pub fn new() -> Place {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).canonicalize();
        let root = tempfile::Builder::new()
            .prefix("sidecar-")
            .tempdir_in(target.expect("a directory below target/"))
            .expect("a directory in it");
        let place = Place { root };
        for directory in [place.codex_home(), place.work(), place.user_home()] {
            std::fs::create_dir(directory).unwrap();
        }
        make_repository(&place.work());
        place
    }

    /// The workers' CODEX_HOME. By this name Codex keeps it from being written, also where the whole
    /// project lies in a temporary directory.
    pub fn codex_home(&self) -> PathBuf {
        self.path().join(".codex")
    }

    /// The HOME of what runs here: empty, so that no shell's or git's settings of whoever runs the
    /// tests are in it.
    pub fn user_home(&self) -> PathBuf {
        self.path().join("home")
    }

    /// A git repository, where turns work unless they say otherwise.
    pub fn work(&self) -> PathBuf {
        self.path().join("work")
    }

    /// Both are in here, and a test may put its own files beside them.
    pub fn path(&self) -> &Path {
        self.root.path()
    }

    /// The rollout files that Codex has written: one for each thread that had a turn.
    pub fn rollouts(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut directories = vec![self.codex_home().join("sessions")];
        while let Some(directory) = directories.pop() {
            let Ok(entries) = std::fs::read_dir(directory) else { continue };
            for path in entries.flatten().map(|entry| entry.path()) {
                if path.is_dir() {
                    directories.push(path);
                } else if path.extension().is_some_and(|extension| extension == "jsonl") {
                    found.push(path);
                }
            }
        }
        found.sort();
        found
    }
}

/// How tests talk to a sidecar, whichever kind it is.
#[derive(Debug, Clone)]
pub struct Client {
    channel: Channel,
    work: PathBuf,
}

impl Client {
    pub async fn connect(address: &str, work: PathBuf) -> Client {
        let connecting = async {
            match address.strip_prefix("unix:") {
                Some(path) => {
                    let path = PathBuf::from(path);
                    let connector = tower::service_fn(move |_: Uri| {
                        let path = path.clone();
                        async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
                    });
                    Endpoint::from_static("http://localhost")
                        .connect_with_connector(connector)
                        .await
                }
                None => Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await,
            }
        };
        let connected = within(PATIENCE, &format!("a connection to {address}"), connecting).await;
        Client { channel: connected.unwrap_or_else(|error| panic!("{address}: {error:?}")), work }
    }

    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub fn codex(&self) -> CodexServiceClient<Channel> {
        CodexServiceClient::new(self.channel()).max_decoding_message_size(usize::MAX)
    }

    pub fn pool(&self) -> PoolServiceClient<Channel> {
        PoolServiceClient::new(self.channel())
    }

    pub fn health(&self) -> HealthClient<Channel> {
        HealthClient::new(self.channel())
    }

    /// What health says of a service now.
    pub async fn health_of(&self, service: &str) -> Result<ServingStatus, Status> {
        let request = HealthCheckRequest { service: service.to_owned() };
        let checked =
            within(PATIENCE, "a health check", async { self.health().check(request).await });
        checked.await.map(|response| response.into_inner().status())
    }

    /// Waits until turns are taken, by the same word that a probe of Kubernetes goes by.
    pub async fn ready(&self) {
        let request = HealthCheckRequest { service: READINESS_SERVICE.to_owned() };
        let serving = async {
            let mut watch = self.health().watch(request).await.unwrap().into_inner();
            while let Some(update) = watch.message().await.unwrap() {
                if update.status() == ServingStatus::Serving {
                    return;
                }
            }
            panic!("the health watch ended before the sidecar was ready");
        };
        if tokio::time::timeout(PATIENCE, serving).await.is_err() {
            panic!("not ready for turns after {PATIENCE:?}: {:?}", self.info().await);
        }
    }

    /// Fills in what a test has not said and must not matter to it: where the turn works.
    pub fn at_work(&self, mut request: pb::RunTurnRequest) -> pb::RunTurnRequest {
        let work = self.work.display().to_string();
        request.thread_options.get_or_insert_default().working_directory.get_or_insert(work);
        request
    }

    /// Begins a turn; the first event may not be there yet.
    pub async fn begin(&self, request: pb::RunTurnRequest) -> Turn {
        match self.try_begin(request).await {
            Ok(turn) => turn,
            Err(status) => panic!("refused: {status:?}"),
        }
    }

    pub async fn try_begin(&self, request: pb::RunTurnRequest) -> Result<Turn, Status> {
        let (request, mut codex) = (self.at_work(request), self.codex());
        // The headers come with the first event.
        let response = within(PATIENCE, "the headers of RunTurn", codex.run_turn(request)).await?;
        Ok(Turn::new(response.into_inner()))
    }

    /// Runs a turn to its end, which must be one by the rules.
    pub async fn run(&self, request: pb::RunTurnRequest) -> Told {
        self.begin(request).await.rest().await
    }

    /// Runs a turn of a context with nothing but this prompt.
    pub async fn say(&self, context: &str, words: &str) -> Told {
        self.run(prompt(context, words)).await
    }

    /// What the model was sent, by a pointer into the request, in a turn of its own.
    pub async fn shown(&self, pointer: &str, mut request: pb::RunTurnRequest) -> serde_json::Value {
        request.inputs = vec![text(&format!("[[show {pointer}]]"))];
        let told = self.run(request).await;
        let shown = told.final_response();
        serde_json::from_str(shown).unwrap_or_else(|_| serde_json::Value::from(shown))
    }

    /// Runs a turn that must be refused without an event.
    pub async fn refused(&self, request: pb::RunTurnRequest) -> Refused {
        self.refused_as_is(self.at_work(request)).await
    }

    /// The same, with the request just as it is.
    pub async fn refused_as_is(&self, request: pb::RunTurnRequest) -> Refused {
        let mut codex = self.codex();
        let call = async {
            let mut stream = codex.run_turn(request).await?.into_inner();
            // A refusal that is found out late comes as the stream's end.
            match stream.message().await? {
                Some(response) => panic!("not refused, but began with {response:?}"),
                None => panic!("not refused, but ended without an event"),
            }
        };
        let result: Result<(), Status> = within(PATIENCE, "a refusal", call).await;
        Refused::from(result.unwrap_err())
    }

    pub async fn context(&self, context_id: &str) -> Result<pb::Context, Refused> {
        let request =
            pb::GetContextRequest { context_id: context_id.to_owned(), ..Default::default() };
        let answer = self.codex().get_context(request).await;
        Ok(answer.map_err(Refused::from)?.into_inner().context.expect("a context"))
    }

    pub async fn info(&self) -> pb::GetServerInfoResponse {
        let mut pool = self.pool();
        let asked = pool.get_server_info(pb::GetServerInfoRequest {});
        within(PATIENCE, "GetServerInfo", asked).await.unwrap().into_inner()
    }

    pub async fn workers(&self) -> Vec<pb::Worker> {
        let mut pool = self.pool();
        let asked = pool.list_workers(pb::ListWorkersRequest {});
        within(PATIENCE, "ListWorkers", asked).await.unwrap().into_inner().workers
    }

    pub async fn interrupt(&self, turn_id: &str) -> Result<pb::TurnEvent, Refused> {
        let request = pb::InterruptTurnRequest { turn_id: turn_id.to_owned() };
        let mut codex = self.codex();
        let answer = within(PATIENCE, "InterruptTurn", codex.interrupt_turn(request)).await;
        let answer = answer.map_err(Refused::from)?.into_inner();
        Ok(answer.terminal_event.expect("a terminal event"))
    }
}

/// A sidecar in the test's own process.
#[derive(Debug)]
pub struct Sidecar {
    client: Client,
    pub place: Place,
    pub model: Arc<OfflineModel>,
    pub addresses: Vec<BoundAddress>,
    shutdown: CancellationToken,
    running: Option<JoinHandle<Result<(), ServeError>>>,
    drain_grace: Duration,
}

impl Deref for Sidecar {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Sidecar {
    /// One worker, ready for turns, all else by default.
    pub async fn start() -> Sidecar {
        Sidecar::with(|_| {}).await
    }

    /// The same with another configuration.
    pub async fn with(change: impl FnOnce(&mut Config)) -> Sidecar {
        Sidecar::in_place(Place::new(), |_, config| change(config)).await
    }

    /// The same where the configuration needs to know the directories.
    pub async fn in_place(place: Place, change: impl FnOnce(&Place, &mut Config)) -> Sidecar {
        let sidecar = Sidecar::cold(place, change).await;
        sidecar.ready().await;
        sidecar
    }

    /// Started and listening; whether it is ready is the test's matter.
    pub async fn cold(place: Place, change: impl FnOnce(&Place, &mut Config)) -> Sidecar {
        show_log();
        let anywhere = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        let model = Arc::new(OfflineModel::start(anywhere).await.expect("the offline model"));
        let mut config = Config {
            listen: vec![ListenAddress::Tcp { host: "127.0.0.1".to_owned(), port: 0 }],
            codex_path: Some(codex_path().to_owned()),
            codex_home: place.codex_home(),
            workers: 1,
            guard: Some(env!("CARGO_BIN_EXE_codex-sidecar").into()),
            worker_env: cleaned_environment(&place.user_home()),
            ..Config::default()
        };
        // The test's own model, and not `offline_model`: its requests can be counted from here.
        let overrides = model.config_overrides().join("\n");
        config.worker.config = toml::from_str(&overrides).expect("overrides are TOML");
        change(&place, &mut config);

        let drain_grace = config.drain_grace;
        let app = App::start(config).await.expect("the sidecar starts");
        let addresses = app.addresses().to_vec();
        let shutdown = CancellationToken::new();
        let running = Some(tokio::spawn(app.run(shutdown.clone())));
        let client = Client::connect(&addresses[0].to_string(), place.work()).await;
        Sidecar { client, place, model, addresses, shutdown, running, drain_grace }
    }

    /// Asks it to drain, without waiting.
    pub fn begin_shutdown(&self) {
        self.shutdown.cancel();
    }

    /// Drains it and asserts that it went well: in time, without an error, with no process of the
    /// CLI or of a command left. Leaves the directories to whoever wants to look at them.
    pub async fn stop(mut self) -> Place {
        self.shutdown.cancel();
        let running = self.running.take().expect("it is stopped once");
        // Its grace, and the bounds of the steps after it.
        let limit = self.drain_grace + Duration::from_secs(20);
        let ended = within(limit, "the end of the drain", running).await;
        ended.expect("the sidecar panicked").expect("the sidecar failed");
        processes::assert_none_left(&self.place.codex_home()).await;
        let Sidecar { place, .. } = self;
        place
    }
}

fn show_log() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        if let Ok(filter) = std::env::var("TEST_LOG") {
            let _ = codex_sidecar::parts::telemetry::init(LogFormat::Text, &filter);
        }
    });
}
