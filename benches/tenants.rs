//! What one tenant costs another: turns of B while A does nothing, is at its limits, is in a crash loop,
//! can't be served, or keeps the processors busy.
//!
//!     cargo bench --bench tenants [-- [--quick] [WORD]]
//!
//! The workers are the scripted app-server, which answers at once: what a turn of B takes is what the sidecar
//! takes for it (queue, open, relay) and the scripted app-server's part, which is the same in each case. The
//! cases take turns in one run of one sidecar, so that what else runs on the machine hits all of them.
//! `burning` is the one in which A's commands take the processors, and is told as a whole turn's time; it
//! is run only where a word names it.

mod support;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use codex_sidecar::client::codex_service_client::CodexServiceClient;
use codex_sidecar::client::pool_service_client::PoolServiceClient;
use codex_sidecar::pb;
use support::{Fault, Samples, is_quick, is_wanted, say};
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Streaming};

/// By how much B's time may be longer at p99 with A beside it, in milliseconds.
const ALLOWED: f64 = 2.0;
/// How many turns of B make a sample of a case.
const TURNS: usize = 25;
/// How many of A's turns run at once, and wait.
const RUNNING: usize = 16;
const WAITING: usize = 64;
/// How often A calls although it is refused.
const PACE: Duration = Duration::from_millis(2);

const CASES: [&str; 5] = ["alone", "at its limits", "in a crash loop", "not served", "burning"];

#[tokio::main]
async fn main() -> Result<(), Fault> {
    let rounds = if is_quick() { 4 } else { 40 };
    let word = |case: &&str| *case != "burning" || std::env::args().any(|word| word == "burning");
    let cases: Vec<&str> =
        CASES.into_iter().filter(|case| is_wanted(case) || *case == "alone").collect();
    let cases: Vec<&str> = cases.into_iter().filter(word).collect();
    let mut sidecar = Sidecar::start().await?;
    let b = sidecar.caller("b");
    b.turn("warm", "hello").await?;
    let mut samples: Vec<Samples> = cases.iter().map(|_| Samples::default()).collect();
    for round in 0..rounds {
        for at in 0..cases.len() {
            // Each is the first of a round as often as any other.
            let at = (at + round) % cases.len();
            let load = sidecar.begin(cases[at]).await?;
            let context = format!("round-{round}-{at}");
            b.turn(&context, "hello").await?;
            for _ in 0..TURNS {
                let began = Instant::now();
                b.turn(&context, "hello").await?;
                samples[at].add(began.elapsed());
            }
            sidecar.end(load).await?;
        }
    }
    say(&format!("{} turns of B in each case, {} rounds; milliseconds", samples[0].len(), rounds));
    say("A is                      p50      p99      p50 more     p99 more");
    let mut missed = Vec::new();
    for (case, of_case) in cases.iter().zip(&samples) {
        let more = |share: f64| of_case.quantile(share) - samples[0].quantile(share);
        say(&format!(
            "  {case:<20} {:>8.3} {:>8.3} {:>12.3} {:>12.3}",
            of_case.p50(),
            of_case.quantile(0.99),
            more(0.5),
            more(0.99)
        ));
        if *case != "burning" && more(0.99) > ALLOWED {
            missed.push(*case);
        }
    }
    sidecar.stop().await?;
    match &*missed {
        [] => Ok(()),
        missed if is_quick() => {
            say(&format!("more than {ALLOWED} ms at p99 (few samples): {}", missed.join(", ")));
            Ok(())
        }
        missed => Err(format!("more than {ALLOWED} ms at p99: {}", missed.join(", ")).into()),
    }
}

/// A sidecar with the tenants of the cases.
struct Sidecar {
    place: tempfile::TempDir,
    child: tokio::process::Child,
    endpoint: Endpoint,
}

/// What A does meanwhile.
#[derive(Default)]
struct Load {
    streams: Vec<Streaming<pb::RunTurnResponse>>,
    callers: Vec<JoinHandle<()>>,
    crashes: bool,
}

impl Sidecar {
    async fn start() -> Result<Sidecar, Fault> {
        let place = tempfile::tempdir()?;
        let at = |name: &str| place.path().join(name);
        let mut config = format!(
            "codex_path = {:?}\nworkers = 1\ncodex_home = \"default\"\n",
            scripted_cli()?.display().to_string()
        );
        for name in ["b", "full", "crashing", "broken", "burning"] {
            std::fs::create_dir(at(name))?;
            config.push_str(&format!(
                "[tenants.{name}]\ncodex_home = {name:?}\ntoken_file = \"{name}.tokens\"\n"
            ));
            let tokens = at(&format!("{name}.tokens"));
            std::fs::write(&tokens, token(name))?;
            let owner_only = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            std::fs::set_permissions(&tokens, owner_only)?;
        }
        config.push_str(&format!(
            "[tenants.full.limits]\nmax_running_turns = {RUNNING}\nmax_waiting_turns = {WAITING}\n\
             [tenants.crashing.pool]\nbackoff_initial = \"10ms\"\nbackoff_max = \"50ms\"\n\
             breaker_open = \"50ms\"\nbreaker_failures = 1000\n"
        ));
        std::fs::write(at("broken").join("sidecar.redb"), "no ledger")?;
        std::fs::write(at("sidecar.toml"), config)?;
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_codex-sidecar"));
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--log-format", "text"])
            .args(["--drain-grace", "0s", "--config"])
            .arg(at("sidecar.toml"))
            .env_remove("CODEX_HOME")
            .env_remove("CODEX_PATH")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn()?;
        let log = child.stderr.take().ok_or("the sidecar has no stderr")?;
        let address = support::address_in(log).await?;
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
        support::ready(endpoint.connect().await?).await?;
        Ok(Sidecar { place, child, endpoint })
    }

    fn caller(&self, tenant: &'static str) -> Caller {
        let work = self.place.path().display().to_string();
        // A connection of its own.
        Caller { channel: self.endpoint.connect_lazy(), tenant, work }
    }

    /// Has A do what the case says.
    async fn begin(&self, case: &str) -> Result<Load, Fault> {
        let mut load = Load::default();
        match case {
            "at its limits" => {
                let full = self.caller("full");
                for number in 0..RUNNING + WAITING {
                    let context = format!("full-{number}");
                    // Of the places that wait one connection gets its share.
                    load.streams.extend(full.begin(&context, "[[hang]]").await.ok());
                }
                load.callers.push(full.calls_on());
            }
            "in a crash loop" => {
                let crashing = self.caller("crashing");
                // Those that start from here on.
                self.settings(r#"{"crash_after": "20ms"}"#)?;
                // The one that is there.
                let _ = crashing.turn("last", "[[die]]").await;
                load.crashes = true;
                load.callers.push(crashing.calls_on());
            }
            "not served" => load.callers.push(self.caller("broken").calls_on()),
            "burning" => {
                let burning = self.caller("burning");
                for number in 0..2 {
                    let (context, burn) = (format!("burn-{number}"), "[[run while :; do :; done]]");
                    load.streams.push(burning.begin(&context, burn).await?);
                }
            }
            _ => {}
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        Ok(load)
    }

    async fn end(&mut self, load: Load) -> Result<(), Fault> {
        let Load { streams, callers, crashes } = load;
        for caller in callers {
            caller.abort();
        }
        // Nobody reads them any more: they are interrupted.
        drop(streams);
        if crashes {
            self.settings("{}")?;
            let crashing = self.caller("crashing");
            while crashing.turn("mended", "hello").await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        for tenant in ["full", "burning"] {
            while self.caller(tenant).running().await? > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        Ok(())
    }

    /// Sets what the scripted workers of the tenant do that crashes.
    fn settings(&self, json: &str) -> Result<(), Fault> {
        let home = self.place.path().join("crashing");
        std::fs::write(home.join("fake.json.new"), json)?;
        Ok(std::fs::rename(home.join("fake.json.new"), home.join("fake.json"))?)
    }

    async fn stop(mut self) -> Result<(), Fault> {
        let pid = self.child.id().and_then(|pid| i32::try_from(pid).ok());
        if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        }
        self.child.wait().await?;
        Ok(())
    }
}

fn token(tenant: &str) -> String {
    format!("the-token-of-the-tenant-{tenant}")
}

/// The scripted app-server of the tests; built if it is not there.
fn scripted_cli() -> Result<PathBuf, Fault> {
    // target/<profile>/deps/<bench>
    let bench = std::env::current_exe()?;
    let profile = bench.parent().and_then(Path::parent).ok_or("no profile's directory")?;
    let cli = profile.join("examples/fake_app_server");
    if !cli.exists() {
        let mut build = std::process::Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--example", "fake_app_server"]);
        if profile.ends_with("release") {
            build.arg("--release");
        }
        if !build.status()?.success() {
            return Err("the scripted app-server can't be built".into());
        }
    }
    Ok(cli)
}

/// Who calls for a tenant.
#[derive(Clone)]
struct Caller {
    channel: Channel,
    tenant: &'static str,
    work: String,
}

impl Caller {
    fn ask<T>(&self, message: T) -> Result<Request<T>, Fault> {
        let mut request = Request::new(message);
        let bearer = format!("Bearer {}", token(self.tenant)).parse()?;
        request.metadata_mut().insert("authorization", bearer);
        Ok(request)
    }

    async fn begin(
        &self,
        context: &str,
        prompt: &str,
    ) -> Result<Streaming<pb::RunTurnResponse>, Fault> {
        let text = pb::user_input::Input::Text(prompt.to_owned());
        let mut options = pb::ThreadOptions {
            working_directory: Some(self.work.clone()),
            skip_git_repo_check: Some(true),
            ..pb::ThreadOptions::default()
        };
        options.set_sandbox_mode(pb::SandboxMode::ReadOnly);
        options.set_approval_policy(pb::ApprovalPolicy::Never);
        let request = pb::RunTurnRequest {
            context_id: context.to_owned(),
            inputs: vec![pb::UserInput { input: Some(text) }],
            thread_options: Some(options),
            ..pb::RunTurnRequest::default()
        };
        let mut codex = CodexServiceClient::new(self.channel.clone());
        Ok(codex.run_turn(self.ask(request)?).await?.into_inner())
    }

    /// Runs one turn to the end of its stream.
    async fn turn(&self, context: &str, prompt: &str) -> Result<(), Fault> {
        let mut stream = self.begin(context, prompt).await?;
        let mut last = None;
        while let Some(response) = stream.message().await? {
            last = response.event.and_then(|event| event.event);
        }
        match last {
            Some(pb::turn_event::Event::TurnCompleted(_)) => Ok(()),
            other => Err(format!("the turn ended with {other:?}").into()),
        }
    }

    async fn running(&self) -> Result<u32, Fault> {
        let mut pool = PoolServiceClient::new(self.channel.clone());
        let info = pool.get_server_info(self.ask(pb::GetServerInfoRequest {})?).await?.into_inner();
        Ok(info.counts.map_or(0, |counts| counts.running_turns + counts.queued_turns))
    }

    /// Goes on calling, whatever the answers are.
    fn calls_on(&self) -> JoinHandle<()> {
        let caller = self.clone();
        tokio::spawn(async move {
            for number in 0.. {
                let _ = caller.turn(&format!("more-{number}"), "hello").await;
                tokio::time::sleep(PACE).await;
            }
        })
    }
}
