//! `serve`: the sidecar itself.

use std::collections::HashSet;
use std::io::{self, Write as _};

use futures::StreamExt as _;
use futures::stream::{BoxStream, SelectAll};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_stream::wrappers::SignalStream;
use tokio_util::sync::CancellationToken;

use super::failure::{CommandResult, Failure, tell};
use super::{INTERRUPTED, USAGE};
use crate::access::WrongSetting;
use crate::app::{App, StartError};
use crate::config::{Config, Fault, Origins, ServeArgs, origin};
use crate::process;
use crate::telemetry::{self, Log};

pub(super) async fn serve(args: ServeArgs) -> CommandResult {
    let print_config = args.print_config;
    let (config, origins, mut faults) = Config::read(args, &|name| std::env::var_os(name));
    if !faults.is_empty() {
        let told: HashSet<String> = faults.iter().map(ToString::to_string).collect();
        let more = App::wrong_settings(&config).into_iter().map(|wrong| fault(wrong, &origins));
        faults.extend(more.filter(|fault| !told.contains(&fault.to_string())));
        for fault in faults {
            tell(&format!("error: {fault}"));
        }
        return Ok(USAGE);
    }
    if print_config {
        io::stdout().write_all(config.to_toml(&origins).as_bytes())?;
        return Ok(0);
    }
    let log = telemetry::init(config.log_format, &config.log)
        .map_err(|error| Failure::told(error.to_string()))?;
    telemetry::log_panics();
    // From here on nothing may wait for a reader of stderr.
    let code = match run(config, &origins, log.clone()).await {
        Ok(()) => 0,
        Err((code, messages)) => {
            for message in messages {
                log.tell(&format!("error: {message}"));
            }
            code
        }
    };
    log.flush(telemetry::FLUSH_TIME);
    Ok(code)
}

/// What is wrong with a setting, in the words of the place where it was said.
fn fault(WrongSetting { setting, problem }: WrongSetting, origins: &Origins) -> Fault {
    Fault { origin: origin(origins, &setting), value: String::new(), problem }
}

/// # Errors
/// The exit code, with what to tell.
async fn run(config: Config, origins: &Origins, log: Log) -> Result<(), (u8, Vec<String>)> {
    // Before anything is started: a signal that comes in between must not just kill the process.
    let shutdown = CancellationToken::new();
    let cant_listen = |error| (1, vec![format!("can't listen for signals: {error}")]);
    cancel_on_signal(shutdown.clone(), log).map_err(cant_listen)?;
    let hangups = hangups().map_err(cant_listen)?;

    if let Err(error) = process::raise_descriptor_limit() {
        tracing::warn!(%error, "the limit of open files can't be raised");
    }
    // Also whatever the kernel gives to process 1 of a container.
    if let Err(error) = process::adopt_orphans() {
        tracing::warn!(%error, "orphaned processes can't be adopted");
    }
    let app = App::start(config).await.map_err(|error| {
        let code = error.exit_code();
        let told = match error {
            StartError::Settings(wrong) => {
                wrong.into_iter().map(|wrong| fault(wrong, origins).to_string()).collect()
            }
            error => vec![with_causes(&error)],
        };
        (code, told)
    })?;
    for address in app.addresses() {
        tracing::info!("listening on {address}");
    }
    for address in app.health_addresses() {
        tracing::info!("listening on {address} for health probes");
    }
    app.tell_callers();
    if let Some(mut hangups) = hangups {
        let credentials = app.credentials();
        tokio::spawn(async move {
            while hangups.recv().await.is_some() {
                tracing::info!("SIGHUP: reading tokens and certificates again");
                credentials.reload().await;
            }
        });
    }
    app.run(shutdown).await.map_err(|error| (1, vec![with_causes(&error)]))?;
    tracing::info!("drained, exiting");
    Ok(())
}

/// The first signal that asks for it cancels `shutdown`; the second ends the process on the spot, for
/// whoever does not want to wait for the drain. Those that would end it without having been meant for
/// that are ignored.
fn cancel_on_signal(shutdown: CancellationToken, log: Log) -> io::Result<()> {
    let mut drain = streams(&[
        ("SIGTERM", SignalKind::terminate()),
        ("SIGINT", SignalKind::interrupt()),
        ("SIGQUIT", SignalKind::quit()),
    ])?;
    let mut ignored = streams(&[
        ("SIGUSR1", SignalKind::user_defined1()),
        ("SIGUSR2", SignalKind::user_defined2()),
        ("SIGALRM", SignalKind::alarm()),
        ("SIGPIPE", SignalKind::pipe()),
    ])?;
    tokio::spawn(async move {
        while let Some(name) = ignored.next().await {
            tracing::info!("{name} is ignored");
        }
    });
    tokio::spawn(async move {
        let Some(name) = drain.next().await else { return };
        tracing::info!("{name}: draining; once more to exit at once");
        shutdown.cancel();
        let Some(name) = drain.next().await else { return };
        tracing::warn!("{name} again: exiting without drain");
        log.flush(telemetry::FLUSH_TIME);
        std::process::exit(INTERRUPTED.into());
    });
    Ok(())
}

/// The signals that ask for tokens and certificates to be read again.
fn hangups() -> io::Result<Option<Signal>> {
    // `nohup` has it ignored, so that the end of a terminal is none of the sidecar's.
    match is_ignored(SignalKind::hangup()) {
        true => Ok(None),
        false => signal(SignalKind::hangup()).map(Some),
    }
}

/// The names of these signals, as they come.
fn streams(
    signals: &[(&'static str, SignalKind)],
) -> io::Result<SelectAll<BoxStream<'static, &'static str>>> {
    let streams = signals.iter().map(|&(name, kind)| {
        let signals = SignalStream::new(signal(kind)?);
        Ok(signals.map(move |()| name).boxed())
    });
    streams.collect()
}

/// Whether the process was started with this signal ignored; false where that can't be told.
fn is_ignored(signal: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal.as_raw_value() - 1) & 1 == 1)
}

/// An error with what caused it, unless it says that itself.
pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
