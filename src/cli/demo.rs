//! `demo`: two turns of one context against a sidecar of its own, through real gRPC.
//!
//! Everything is in a directory of its own, in the user's cache, and is gone afterwards: not in a
//! temporary one, which the commands of a turn may write. With the offline model there is no key and no
//! network; only `--live` uses the caller's own CODEX_HOME and key.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use secrecy::ExposeSecret as _;
use tokio_util::sync::CancellationToken;

use super::failure::{CommandResult, Failure, tell};
use super::printer::{Printer, colours_wanted};
use super::serve::with_causes;
use super::turn::{Outcome, run_turn};
use super::words::{show_duration, show_error};
use super::{INTERRUPTED, client};
use crate::access::{TokenHash, tokens};
use crate::app::{App, READINESS_SERVICE};
use crate::app_server::protected::Resolved;
use crate::codex_cli::{self, CliVersion};
use crate::config::{Config, LogFormat, ServeArgs};
use crate::grpc::caller::{Caller, Credentials};
use crate::pb;
use crate::telemetry;

const CONTEXT: &str = "demo";
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest time of a turn: a demo that can't reach its model says so.
const OFFLINE_TURN: Duration = Duration::from_secs(60);
const LIVE_TURN: Duration = Duration::from_secs(300);

#[derive(Debug, clap::Args)]
pub(super) struct DemoArgs {
    /// Ask the real model, with the key in CODEX_API_KEY or OPENAI_API_KEY and your own CODEX_HOME
    #[arg(long)]
    live: bool,
    /// Longest time of a turn, such as 90s [default: 60s, with --live 5m]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    turn_timeout: Option<Duration>,
    /// What of the sidecar's log to show on stderr
    #[arg(long, value_name = "FILTER", default_value = "warn")]
    log: String,
}

pub(super) async fn demo(DemoArgs { live, turn_timeout, log }: DemoArgs) -> CommandResult {
    let log =
        telemetry::init(LogFormat::Text, &log).map_err(|error| Failure::told(error.to_string()))?;
    let result = show_turns(live, turn_timeout).await;
    log.flush(telemetry::FLUSH_TIME);
    result
}

async fn show_turns(live: bool, turn_timeout: Option<Duration>) -> CommandResult {
    let mut printer = Printer::new(io::stdout(), colours_wanted(&io::stdout()));

    let (codex, version) = find_codex().await?;
    printer.say(&format!("Codex CLI {version}: {}", codex.display()))?;
    let directory = DemoDirectory::create()?;
    let mut config = configure(live, &codex, &directory)?;
    // What the model runs could turn round and call it, as could everybody on this machine.
    let token = tokens::new().map_err(Failure::told)?;
    config.own_token = Some(TokenHash::of(token.expose_secret().as_bytes()));
    let credentials = Credentials { token: Some(token), ..Credentials::default() };
    // A key alone does not make it live: a demo that costs money has to be asked for.
    let live = live && config.api_key.is_some();
    match &config.api_key {
        Some(key) if live => {
            printer.say(&format!("model: the real one, key from {}", key.source))?
        }
        _ => printer.say("model: the built-in offline model; no key and no network")?,
    }

    let turn_timeout = turn_timeout.unwrap_or(if live { LIVE_TURN } else { OFFLINE_TURN });
    let turn_timeout = prost_types::Duration::try_from(turn_timeout)
        .map_err(|_| Failure::told("--turn-timeout is too long"))?;

    let started = Instant::now();
    let app = App::start(config).await.map_err(|error| Failure::told(with_causes(&error)))?;
    let addr = app.addresses().first().map(ToString::to_string).unwrap_or_default();
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(app.run(shutdown.clone()));

    let turn = |prompt: &str| turn(prompt, live, &directory, turn_timeout);
    let shown = show(&addr, &credentials, started, live, turn, &mut printer).await;
    // However it went: the sidecar's processes go before their directory does.
    shutdown.cancel();
    match running.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tell(&format!("error: the sidecar: {}", with_causes(&error))),
        Err(error) => tell(&format!("error: the sidecar: {error}")),
    }
    shown
}

async fn show(
    addr: &str,
    credentials: &Credentials,
    started: Instant,
    live: bool,
    turn: impl Fn(&str) -> pb::RunTurnRequest,
    printer: &mut Printer<io::Stdout>,
) -> CommandResult {
    let caller = tokio::select! {
        caller = wait_until_ready(addr, credentials) => caller?,
        _ = tokio::signal::ctrl_c() => return Ok(INTERRUPTED),
    };
    let took = show_duration(started.elapsed());
    printer.say(&format!("sidecar: {addr}, ready for turns after {took}"))?;
    printer.say(
        "callers: this demo alone, with a token that nobody else has; see serve --token-file",
    )?;

    let first_prompt = "Write a haiku about a sidecar.";
    let second_prompt = if live {
        "Run the command `echo hello`, then repeat the first line of your haiku."
    } else {
        "Run a command, and say how many messages you saw. [[run echo hello]]"
    };
    let mut threads = Vec::new();
    let mut timings = Vec::new();
    let mut last_response = String::new();
    for (number, prompt) in [(1, first_prompt), (2, second_prompt)] {
        printer.say(&format!("\n— turn {number} of the context {CONTEXT:?}"))?;
        let began = Instant::now();
        let told = run_turn(&caller, turn(prompt), printer).await?;
        timings.push(began.elapsed());
        threads.push(told.thread_id);
        match told.outcome {
            Outcome::Completed(response) => last_response = response,
            Outcome::Failed(error) => {
                return Err(Failure::told(format!(
                    "turn {number} failed: {}; --log info shows what Codex says about it",
                    show_error(&error)
                )));
            }
            Outcome::Interrupted => return Ok(INTERRUPTED),
        }
    }

    printer.say("\n— what this showed")?;
    let [first, second] = threads.as_slice() else {
        return Err(Failure::told("there were not two turns"));
    };
    if first != second || first.is_empty() {
        return Err(Failure::told(format!(
            "the second turn ran on another thread: {first:?}, then {second:?}"
        )));
    }
    printer.say(&format!("both turns ran on the same thread: {first}"))?;
    if !live {
        if !last_response.contains("user messages so far: 2") {
            return Err(Failure::told(format!(
                "the model did not see both user messages in the second turn: {last_response:?}"
            )));
        }
        printer.say("the model saw 2 user messages in the second turn: the thread went on")?;
    }
    for (index, took) in timings.iter().enumerate() {
        printer.say(&format!("turn {}: {}", index + 1, show_duration(*took)))?;
    }
    Ok(0)
}

fn turn(
    prompt: &str,
    live: bool,
    directory: &DemoDirectory,
    turn_timeout: prost_types::Duration,
) -> pb::RunTurnRequest {
    let mut options = pb::ThreadOptions {
        working_directory: Some(directory.work.to_string_lossy().into_owned()),
        skip_git_repo_check: Some(true),
        ..Default::default()
    };
    // What the offline model runs is known, and many containers can't do Codex's sandbox; what a
    // real model runs is not.
    options.set_sandbox_mode(if live {
        pb::SandboxMode::ReadOnly
    } else {
        pb::SandboxMode::DangerFullAccess
    });
    options.set_approval_policy(pb::ApprovalPolicy::Never);
    pb::RunTurnRequest {
        context_id: CONTEXT.to_owned(),
        inputs: vec![pb::UserInput { input: Some(pb::user_input::Input::Text(prompt.to_owned())) }],
        thread_options: Some(options),
        turn_options: Some(pb::TurnOptions {
            turn_timeout: Some(turn_timeout),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// The CLI that is there and good enough, else the pinned one from npm.
async fn find_codex() -> Result<(PathBuf, CliVersion), Failure> {
    let configured = std::env::var_os("CODEX_PATH").filter(|path| !path.is_empty());
    let configured = configured.as_deref().map(Path::new);
    let found = codex_cli::find(configured, std::env::var_os("PATH").as_deref());
    let why_not = match found {
        Ok(path) => match codex_cli::version(&path).await {
            Ok(version) if version.is_supported() => return Ok((path, version)),
            Ok(version) => format!(
                "{} is version {version}, and the oldest supported one is {}",
                path.display(),
                codex_cli::OLDEST_SUPPORTED
            ),
            Err(error) => error.to_string(),
        },
        Err(error) => error.to_string(),
    };
    if configured.is_some() {
        // Who names a binary wants that one or none.
        return Err(Failure::told(why_not));
    }
    tell(&format!("{why_not}\ninstalling the pinned Codex CLI under target/"));
    let told = |error: &dyn std::error::Error| Failure::told(with_causes(error));
    let path = tokio::task::spawn_blocking(codex_cli::install)
        .await
        .map_err(|error| told(&error))?
        .map_err(|error| told(&error))?;
    let version = codex_cli::version(&path).await.map_err(|error| told(&error))?;
    Ok((path, version))
}

/// The sidecar's configuration: of the caller's environment only what `--live` asks for.
fn configure(live: bool, codex: &Path, directory: &DemoDirectory) -> Result<Config, Failure> {
    let env = |name: &str| -> Option<OsString> {
        match name {
            "HOME" => std::env::var_os(name),
            "CODEX_HOME" | "CODEX_API_KEY" | "OPENAI_API_KEY" if live => std::env::var_os(name),
            "CODEX_HOME" => Some(directory.home.clone().into_os_string()),
            _ => None,
        }
    };
    let args = ServeArgs {
        listen: vec!["127.0.0.1:0".into()],
        codex_path: Some(codex.into()),
        // With --live it may be that of a sidecar that runs.
        share_codex_home: Some("true".into()),
        workers: Some("2".into()),
        drain_grace: Some("2s".into()),
        ..ServeArgs::default()
    };
    let mut config =
        Config::load(args, &env).map_err(|errors| Failure::told(errors.to_string()))?;
    if live && config.api_key.is_none() {
        tell(
            "--live needs a key in CODEX_API_KEY or OPENAI_API_KEY; going on with the offline model",
        );
        config.codex_home = directory.home.clone();
    }
    config.offline_model = !live || config.api_key.is_none();
    Ok(config)
}

/// Waits until the sidecar takes turns, as any client would.
async fn wait_until_ready(addr: &str, credentials: &Credentials) -> Result<Caller, Failure> {
    let caller = client::connect_to(addr, credentials).await?;
    match tokio::time::timeout(READY_TIMEOUT, caller.serving(READINESS_SERVICE)).await {
        Ok(Ok(true)) => Ok(caller),
        Ok(Ok(false)) => {
            Err(Failure::told("the sidecar ended its health stream before it was ready"))
        }
        Ok(Err(refused)) => Err(refused.into()),
        Err(_) => {
            let info = caller.get_server_info().await?;
            Err(Failure::told(format!(
                "the sidecar was not ready for turns within {}: {}: {}",
                show_duration(READY_TIMEOUT),
                info.not_ready_reason,
                info.not_ready_message
            )))
        }
    }
}

/// A directory for the demo, deleted when dropped.
struct DemoDirectory {
    root: PathBuf,
    /// CODEX_HOME.
    home: PathBuf,
    /// Where Codex works.
    work: PathBuf,
}

impl DemoDirectory {
    fn create() -> Result<DemoDirectory, Failure> {
        let name = format!("demo-{}", uuid::Uuid::new_v4());
        let in_cache = user_caches(|name| std::env::var_os(name))
            .map(|cache| cache.join("codex-sidecar"))
            .filter(|place| !is_temporary(place))
            .find_map(|place| DemoDirectory::create_in(&place.join(&name)).ok());
        if let Some(directory) = in_cache {
            return Ok(directory);
        }
        let root = std::env::temp_dir().join(format!("codex-sidecar-{name}"));
        tell(&format!(
            "neither $XDG_CACHE_HOME nor ~/.cache can be written outside of the temporary directories: the \
             demo's CODEX_HOME is in {}, where Codex puts no helper programs",
            root.display()
        ));
        DemoDirectory::create_in(&root)
            .map_err(|error| Failure::told(format!("can't create {}: {error}", root.display())))
    }

    fn create_in(root: &Path) -> io::Result<DemoDirectory> {
        // By this name Codex keeps its home from being written, wherever it lies.
        let (home, work) = (root.join(".codex"), root.join("work"));
        let directory = DemoDirectory { home, work, root: root.to_owned() };
        for path in [&directory.home, &directory.work] {
            std::fs::create_dir_all(path)?;
        }
        Ok(directory)
    }
}

/// Where the user's caches may be.
fn user_caches(env: impl Fn(&str) -> Option<OsString>) -> impl Iterator<Item = PathBuf> {
    let named = |name: &str| env(name).map(PathBuf::from);
    let caches = [named("XDG_CACHE_HOME"), named("HOME").map(|home| home.join(".cache"))];
    caches.into_iter().flatten().filter(|path| path.is_absolute())
}

/// Whether it lies where the commands of a turn may write by default.
fn is_temporary(path: &Path) -> bool {
    let real = |path: &Path| Resolved::of(path).path;
    let path = real(path);
    [Path::new("/tmp"), &std::env::temp_dir()].iter().any(|above| path.starts_with(real(above)))
}

impl Drop for DemoDirectory {
    fn drop(&mut self) {
        // A leftover harms nobody.
        let _ = std::fs::remove_dir_all(&self.root);
        // Only if it is empty: another demo may run.
        if let Some(above) = self.root.parent().filter(|above| above.ends_with("codex-sidecar")) {
            let _ = std::fs::remove_dir(above);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demo_lies_in_the_users_cache_and_leaves_nothing_of_itself() {
        let caches = |variables: &[(&str, &str)]| {
            let of = |name: &str| variables.iter().find(|(known, _)| *known == name);
            user_caches(|name| of(name).map(|(_, value)| value.into())).collect::<Vec<_>>()
        };
        let both = [("HOME", "/h"), ("XDG_CACHE_HOME", "/c")];
        assert_eq!(caches(&both), [PathBuf::from("/c"), "/h/.cache".into()]);
        assert!(caches(&[("XDG_CACHE_HOME", "relative")]).is_empty());
        assert!(is_temporary(&std::env::temp_dir().join("x")) && is_temporary(Path::new("/tmp/x")));
        assert!(!is_temporary(Path::new("/nowhere/tmp")));

        let place = tempfile::tempdir().unwrap();
        let ours = place.path().join("codex-sidecar");
        let (first, second) = (ours.join("demo-1"), ours.join("demo-2"));
        let [first, second] = [first, second].map(|root| DemoDirectory::create_in(&root).unwrap());
        assert!(first.home.is_dir() && first.work.is_dir());
        drop(first);
        assert!(second.home.is_dir());
        drop(second);
        assert!(!ours.exists() && place.path().exists());
    }
}
