//! What the benchmarks share: a sidecar as a process of its own, the same Codex CLI spoken to
//! straight, and the offline model that answers both.
//!
//! Both sides get the same binary, the same flags, the same model and a fresh CODEX_HOME each; they
//! send Codex the same requests. What is measured differs in the sidecar alone.

#![allow(dead_code, reason = "no benchmark uses all of it")]

use std::collections::HashMap;
use std::error::Error;
use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use codex_sidecar::client::codex_service_client::CodexServiceClient;
use codex_sidecar::client::pool_service_client::PoolServiceClient;
use codex_sidecar::parts::app_server::baseline::{Baseline, Lingering};
use codex_sidecar::parts::app_server::client::{
    CliDefaults, Client, LoadOptions, LoadThread, StartTurn, Task,
};
use codex_sidecar::parts::app_server::decode::{News, TurnEnd};
use codex_sidecar::parts::app_server::message::{Inbound, Told};
use codex_sidecar::parts::app_server::peer::{Peer, PeerLimits};
use codex_sidecar::parts::codex_cli;
use codex_sidecar::parts::model::id::TurnId;
use codex_sidecar::parts::model::options::{ApprovalPolicy, SandboxMode, ThreadOptions};
use codex_sidecar::parts::model::request::{UserInput, Work};
use codex_sidecar::parts::model::workspace::Workspace;
use codex_sidecar::parts::offline_model::OfflineModel;
use codex_sidecar::parts::process::{Pipes, Process, ProcessSpec};
use codex_sidecar::parts::worker::settings::WorkerSettings;
use codex_sidecar::pb;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::sync::oneshot;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

/// Why a benchmark can't go on.
pub(crate) type Fault = Box<dyn Error + Send + Sync>;

/// The sidecar gives every worker this, because it wants ephemeral threads unloaded soon.
const WORKER_OVERRIDE: &str = "thread_unload_delay_secs=1";
/// How long a worker or a sidecar may take to start, on a machine that others use, too.
const START_TIMEOUT: Duration = Duration::from_secs(60);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Whether to take only a few samples: with `--quick`, and whenever it is not `cargo bench` that
/// runs the benchmark (`cargo test --benches` does, to see that it works).
pub(crate) fn is_quick() -> bool {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    has("--quick") || !has("--bench")
}

/// Whether to measure the case of this name: all of them, unless the command line has words.
pub(crate) fn is_wanted(name: &str) -> bool {
    let mut words = std::env::args().skip(1).filter(|word| !word.starts_with('-')).peekable();
    words.peek().is_none() || words.any(|word| name.contains(&word))
}

/// The place of one run, and what both sides have in common.
pub(crate) struct Bed {
    place: TempDir,
    codex: PathBuf,
    model: OfflineModel,
    work: PathBuf,
}

impl Bed {
    /// Finds (or installs) the CLI and starts the model.
    pub(crate) async fn make() -> Result<Bed, Fault> {
        let configured = std::env::var_os("CODEX_PATH").filter(|path| !path.is_empty());
        let found = codex_cli::find(
            configured.as_deref().map(std::path::Path::new),
            std::env::var_os("PATH").as_deref(),
        );
        let codex = match found {
            Ok(codex) => codex,
            Err(error) if configured.is_some() => return Err(error.into()),
            Err(_) => tokio::task::spawn_blocking(codex_cli::install).await??,
        };
        let version = codex_cli::version(&codex).await?;
        let cores = std::thread::available_parallelism()?;
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load = load.split_whitespace().next().unwrap_or("unknown").to_owned();
        say(&format!("Codex CLI {version}, {cores} cores, load {load}"));
        // Not a temporary directory: Codex puts no helper programs there.
        let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let work = place.path().join("work");
        std::fs::create_dir(&work)?;
        let model = OfflineModel::start(([127, 0, 0, 1], 0).into()).await?;
        Ok(Bed { place, codex, model, work })
    }

    fn home(&self, name: &str) -> Result<PathBuf, Fault> {
        let home = self.place.path().join(name);
        std::fs::create_dir_all(&home)?;
        Ok(home)
    }

    /// How turns run, on both sides.
    fn options(&self) -> ThreadOptions {
        ThreadOptions {
            working_directory: Some(self.work.clone()),
            skip_git_repo_check: Some(true),
            sandbox_mode: Some(SandboxMode::ReadOnly),
            approval_policy: Some(ApprovalPolicy::Never),
            ..ThreadOptions::default()
        }
    }
}

/// The features that a sidecar switches off unless it is told otherwise.
pub(crate) fn disabled_by_default() -> Vec<String> {
    let overrides = WorkerSettings::default().config_overrides();
    let disabled = overrides.iter().filter_map(|value| {
        value.strip_prefix("features.")?.strip_suffix("=false").map(str::to_owned)
    });
    disabled.collect()
}

/// The variables that would make the two sides differ, taken out.
fn environment(home: PathBuf) -> Vec<(OsString, Option<OsString>)> {
    let ours = std::env::vars_os()
        .map(|(name, _)| name)
        .filter(|name| name.to_string_lossy().starts_with("CODEX_"))
        .chain(["OPENAI_API_KEY".into()]);
    let mut environment: Vec<_> = ours.map(|name| (name, None)).collect();
    environment.push(("CODEX_HOME".into(), Some(home.into_os_string())));
    environment
}

/// What is left then, and what is put in.
fn kept_environment(home: PathBuf) -> Vec<(OsString, OsString)> {
    let changes = environment(home);
    let is_changed = |name: &OsString| changes.iter().any(|(changed, _)| changed == name);
    let kept: Vec<_> = std::env::vars_os().filter(|(name, _)| !is_changed(name)).collect();
    let set = changes.into_iter().filter_map(|(name, value)| Some((name, value?)));
    kept.into_iter().chain(set).collect()
}

/// A sidecar, as a process of its own, as its users run it.
pub(crate) struct Sidecar {
    child: tokio::process::Child,
    channel: Channel,
    client: CodexServiceClient<Channel>,
    options: pb::ThreadOptions,
}

impl Sidecar {
    /// Starts one; returns when it is ready for turns.
    pub(crate) async fn start(bed: &Bed, workers: usize) -> Result<Sidecar, Fault> {
        Sidecar::with(bed, workers, "sidecar-home", &[], "").await
    }

    /// The same with a CODEX_HOME of this name, with more flags and settings.
    pub(crate) async fn with(
        bed: &Bed,
        workers: usize,
        home: &str,
        flags: &[OsString],
        settings: &str,
    ) -> Result<Sidecar, Fault> {
        let config = bed.home(home)?.join("sidecar.toml");
        // As its users would configure a provider.
        let overrides = bed.model.config_overrides().join("\n");
        std::fs::write(&config, format!("{settings}[worker.config]\n{overrides}\n"))?;
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_codex-sidecar"));
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--log-format", "text"])
            .args(["--workers", &workers.to_string(), "--drain-grace", "1s"])
            .arg("--codex-path")
            .arg(&bed.codex)
            .arg("--config")
            .arg(&config)
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        for (name, value) in environment(bed.home(home)?) {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let mut child = command.spawn()?;
        let log = child.stderr.take().ok_or("the sidecar has no stderr")?;
        let address = tokio::time::timeout(START_TIMEOUT, address_in(log)).await??;
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
        let channel = endpoint.connect().await?;
        tokio::time::timeout(START_TIMEOUT, ready(channel.clone())).await??;
        let client = CodexServiceClient::new(channel.clone());
        let client = client.max_decoding_message_size(usize::MAX);
        let mut options = pb::ThreadOptions {
            working_directory: Some(bed.work.to_string_lossy().into_owned()),
            skip_git_repo_check: Some(true),
            ..pb::ThreadOptions::default()
        };
        options.set_sandbox_mode(pb::SandboxMode::ReadOnly);
        options.set_approval_policy(pb::ApprovalPolicy::Never);
        Ok(Sidecar { child, channel, client, options })
    }

    /// A client of it, on a connection that is open.
    pub(crate) fn client(&self) -> CodexServiceClient<Channel> {
        self.client.clone()
    }

    /// A request for a turn.
    pub(crate) fn request(&self, context_id: &str, prompt: &str) -> pb::RunTurnRequest {
        let text = pb::user_input::Input::Text(prompt.to_owned());
        pb::RunTurnRequest {
            context_id: context_id.to_owned(),
            inputs: vec![pb::UserInput { input: Some(text) }],
            thread_options: Some(self.options.clone()),
            ..pb::RunTurnRequest::default()
        }
    }

    /// Runs one turn to the end of its stream.
    pub(crate) async fn turn(&self, context_id: &str, prompt: &str) -> Result<(), Fault> {
        let mut client = self.client();
        let mut stream = client.run_turn(self.request(context_id, prompt)).await?.into_inner();
        let mut last = None;
        while let Some(response) = stream.message().await? {
            last = response.event.and_then(|event| event.event);
        }
        match last {
            Some(pb::turn_event::Event::TurnCompleted(_)) => Ok(()),
            other => Err(format!("the turn ended with {other:?}").into()),
        }
    }

    /// The CPU time that it has used, its workers not counted.
    pub(crate) fn cpu(&self) -> Result<Duration, Fault> {
        cpu(self.child.id().ok_or("the sidecar has ended")?)
    }

    /// The CPU time that its workers have used.
    pub(crate) async fn cpu_of_workers(&self) -> Result<Duration, Fault> {
        let mut pool = PoolServiceClient::new(self.channel.clone());
        let workers = pool.list_workers(pb::ListWorkersRequest {}).await?.into_inner().workers;
        workers.iter().map(|worker| cpu(worker.pid)).sum()
    }

    /// The memory that it has resident, in bytes, that of its workers not counted.
    pub(crate) fn resident(&self) -> Result<u64, Fault> {
        let pid = self.child.id().ok_or("the sidecar has ended")?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let resident = resident.and_then(|text| text.split_whitespace().next());
        Ok(resident.ok_or("no VmRSS in /proc/PID/status")?.parse::<u64>()? * 1024)
    }

    /// Ends it as an orchestrator would.
    pub(crate) async fn stop(mut self) -> Result<(), Fault> {
        let pid = self.child.id().and_then(|pid| i32::try_from(pid).ok());
        if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        }
        let status = tokio::time::timeout(START_TIMEOUT, self.child.wait()).await??;
        if status.success() {
            Ok(())
        } else {
            Err(format!("the sidecar ended with {status}").into())
        }
    }
}

/// Reads the log up to where it says the address, and goes on reading in the background.
pub(crate) async fn address_in(log: tokio::process::ChildStderr) -> Result<String, Fault> {
    let mut lines = BufReader::new(log).lines();
    while let Some(line) = lines.next_line().await? {
        if let Some((_, address)) = line.split_once("listening on ") {
            let address = address.trim().to_owned();
            tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
            return Ok(address);
        }
    }
    Err("the sidecar ended before it listened".into())
}

pub(crate) async fn ready(channel: Channel) -> Result<(), Fault> {
    let service = codex_sidecar::parts::app::READINESS_SERVICE.to_owned();
    let request = HealthCheckRequest { service };
    let mut statuses = HealthClient::new(channel).watch(request).await?.into_inner();
    while let Some(response) = statuses.message().await? {
        if response.status() == ServingStatus::Serving {
            return Ok(());
        }
    }
    Err("the sidecar ended before it was ready".into())
}

type Ends = Arc<Mutex<HashMap<String, oneshot::Sender<Result<(), String>>>>>;

/// A `codex app-server` that is spoken to straight, with as little as that can be done with. It is
/// killed when this is dropped.
pub(crate) struct Straight {
    process: Process,
    peer: Peer,
    client: Client,
    ends: Ends,
    options: ThreadOptions,
    workspace: Workspace,
}

/// A thread of it.
pub(crate) struct Thread {
    id: String,
    baseline: Baseline,
}

impl Straight {
    /// Starts one; returns when it has shaken hands.
    pub(crate) async fn start(bed: &Bed, disabled: &[String]) -> Result<Straight, Fault> {
        let mut args: Vec<OsString> =
            vec!["app-server".into(), "-c".into(), WORKER_OVERRIDE.into()];
        let disabled = disabled.iter().map(|feature| format!("features.{feature}=false"));
        for value in bed.model.config_overrides().into_iter().chain(disabled) {
            args.extend(["-c".into(), value.into()]);
        }
        let spec = ProcessSpec {
            guard: None,
            program: bed.codex.clone(),
            args,
            env: kept_environment(bed.home("straight-home")?),
            mark: None,
            current_dir: None,
        };
        let (process, Pipes { stdin, stdout, stderr }) = Process::spawn(spec).await?;
        tokio::spawn(async move {
            let mut lines = BufReader::new(stderr).lines();
            while let Ok(Some(_)) = lines.next_line().await {}
        });
        let ends = Ends::default();
        let peer = Peer::start(stdout, stdin, PeerLimits::default(), {
            let ends = Arc::clone(&ends);
            move |_, message| note_end(&ends, &message)
        });
        let client = Client::new(peer.clone(), REQUEST_TIMEOUT);
        client.within(START_TIMEOUT).initialize().await?;
        let options = bed.options();
        let workspace =
            Workspace { working_directory: bed.work.clone(), additional_directories: Vec::new() };
        Ok(Straight { process, peer, client, ends, options, workspace })
    }

    /// Starts a thread.
    pub(crate) async fn open(&self) -> Result<Thread, Fault> {
        let load = LoadOptions::of(&self.options);
        let directory = &self.workspace.working_directory;
        let new = LoadThread::new(&self.options, &load, directory, false);
        let opened = self.client.load_thread(&new).await?;
        let id = opened.thread_id().to_owned();
        Ok(Thread { id, baseline: Baseline::of(opened, &CliDefaults::default()) })
    }

    /// Runs one turn to its end.
    pub(crate) async fn turn(&self, thread: &Thread, prompt: &str) -> Result<(), Fault> {
        let root_turn_id = TurnId::generate();
        let turn = StartTurn {
            thread_id: &thread.id,
            task: Task {
                root_turn_id: &root_turn_id.0,
                work: &Work::Inputs,
                inputs: &[UserInput::Text(prompt.to_owned())],
                output_schema: None,
            },
            options: &self.options,
            baseline: &thread.baseline,
            workspace: &self.workspace,
            lingering: Lingering::default(),
        };
        let (end, ended) = oneshot::channel();
        self.ends.lock().unwrap_or_else(PoisonError::into_inner).insert(thread.id.clone(), end);
        self.client.turn_start(&turn).await?;
        tokio::select! {
            ended = ended => ended?.map_err(Fault::from),
            // Else a process that dies in the middle of a turn would be waited for without end.
            cause = self.peer.closed() => Err(cause.into()),
        }
    }

    /// The CPU time that it has used.
    pub(crate) fn cpu(&self) -> Result<Duration, Fault> {
        cpu(self.process.pid())
    }
}

fn note_end(ends: &Ends, message: &Inbound) {
    let Inbound::Told(Told { scope, news, .. }) = message else { return };
    let outcome = match news {
        News::TurnEnded(TurnEnd::Completed) => Ok(()),
        News::TurnEnded(other) => Err(format!("the turn ended with {other:?}")),
        _ => return,
    };
    let thread_id = scope.thread_id.as_deref().unwrap_or_default();
    let end = ends.lock().unwrap_or_else(PoisonError::into_inner).remove(thread_id);
    if let Some(end) = end {
        let _ = end.send(outcome);
    }
}

/// The CPU time of a process, in user and system mode, its own children not counted.
fn cpu(pid: u32) -> Result<Duration, Fault> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may hold anything; what follows it are plain numbers from field 3 on.
    let (_, fields) = stat.rsplit_once(')').ok_or("no name in /proc/PID/stat")?;
    let ticks: u64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(str::parse::<u64>)
        .sum::<Result<u64, _>>()?;
    let per_second = rustix::param::clock_ticks_per_second();
    Ok(Duration::from_millis(ticks * 1000 / per_second.max(1)))
}

/// How long each of many things took.
#[derive(Debug, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    /// Adds one.
    pub(crate) fn add(&mut self, took: Duration) {
        self.add_milliseconds(took.as_secs_f64() * 1000.0);
    }

    /// Adds one, which may be negative.
    pub(crate) fn add_milliseconds(&mut self, took: f64) {
        let at = self.0.partition_point(|other| *other < took);
        self.0.insert(at, took);
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The sample below which this share of all lies, in milliseconds; not a number without any.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let last = self.0.len().saturating_sub(1);
        let at = (last as f64 * share).round() as usize;
        self.0.get(at).copied().unwrap_or(f64::NAN)
    }

    /// The one in the middle.
    pub(crate) fn p50(&self) -> f64 {
        self.quantile(0.5)
    }
}

/// Prints a line.
pub(crate) fn say(line: &str) {
    // Nobody needs a benchmark whose output is closed.
    let _ = writeln!(std::io::stdout(), "{line}");
}
