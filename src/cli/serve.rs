//! `serve`: the sidecar itself.

use std::io::{self, Write as _};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::failure::{CommandResult, Failure, tell};
use super::{INTERRUPTED, USAGE};
use crate::app::App;
use crate::config::{Config, ServeArgs};
use crate::process;
use crate::telemetry;

pub(super) async fn serve(args: ServeArgs) -> CommandResult {
    let print_config = args.print_config;
    let loaded = Config::load_with_origins(args, &|name| std::env::var_os(name));
    let (config, origins) = match loaded {
        Ok(loaded) => loaded,
        Err(errors) => {
            for fault in &errors.0 {
                tell(&format!("error: {fault}"));
            }
            return Ok(USAGE);
        }
    };
    if print_config {
        io::stdout().write_all(config.to_toml(&origins).as_bytes())?;
        return Ok(0);
    }
    telemetry::init(config.log_format, &config.log)
        .map_err(|error| Failure::told(error.to_string()))?;

    // Before anything is started: a signal that comes in between must not just kill the process.
    let shutdown = CancellationToken::new();
    cancel_on_signal(shutdown.clone())?;

    // Also whatever the kernel gives to process 1 of a container.
    if let Err(error) = process::adopt_orphans() {
        tracing::warn!(%error, "orphaned processes can't be adopted");
    }
    let app = match App::start(config).await {
        Ok(app) => app,
        Err(error) => {
            let code = error.exit_code();
            return Err(Failure::Told { message: with_causes(&error), code });
        }
    };
    for address in app.addresses() {
        tracing::info!("listening on {address}");
    }
    for address in app.health_addresses() {
        tracing::info!("listening on {address} for health probes");
    }
    app.run(shutdown).await.map_err(|error| Failure::told(with_causes(&error)))?;
    tracing::info!("drained, exiting");
    Ok(0)
}

/// The first SIGTERM or SIGINT cancels `shutdown`; the second ends the process on the spot, for
/// whoever does not want to wait for the drain.
fn cancel_on_signal(shutdown: CancellationToken) -> Result<(), Failure> {
    let no_signals = |error| Failure::told(format!("can't listen for signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
    tokio::spawn(async move {
        for first in [true, false] {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            if first {
                tracing::info!("{name}: draining; once more to exit at once");
                shutdown.cancel();
            } else {
                tracing::warn!("{name} again: exiting without drain");
                std::process::exit(INTERRUPTED.into());
            }
        }
    });
    Ok(())
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
