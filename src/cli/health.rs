//! `health`: an exec probe, and a way to wait for a sidecar.

use std::io::{self, Write as _};
use std::time::Duration;

use super::UNREACHABLE;
use super::args::duration;
use super::client::{self, AddrArgs};
use super::failure::{CommandResult, Failure};

/// How long to wait before a sidecar that can't be reached is tried again.
const AGAIN: Duration = Duration::from_millis(200);
/// How long one look may take while it is waited for.
const LOOK: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Exit status: 0 if it is serving, 1 if it is not, 69 if the sidecar can't be reached.

Examples:
  codex-sidecar health --wait 30s --service codex.sidecar.v1.CodexService && codex-sidecar run …")]
pub(super) struct HealthArgs {
    #[command(flatten)]
    addr: AddrArgs,
    /// The service: empty for alive, codex.sidecar.v1.CodexService for ready for turns
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    service: String,
    /// How long to wait for an answer
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    timeout: Duration,
    /// Wait for so long until it is serving: seconds, or like 30s; the sidecar need not be there yet
    #[arg(long, value_name = "DURATION", value_parser = duration, conflicts_with = "timeout")]
    wait: Option<Duration>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn health(args: HealthArgs) -> CommandResult {
    let HealthArgs { addr, service, timeout, wait, json } = args;
    let looked = match wait {
        Some(limit) => wait_for(&addr, &service, limit).await,
        None => tokio::time::timeout(timeout, look(&addr, &service)).await.unwrap_or_else(|_| {
            let timeout = humantime::format_duration(timeout);
            let addr = addr.address();
            let message = format!("the sidecar at {addr} did not answer within {timeout}");
            Err(Failure::told(message))
        }),
    };
    let (is_serving, status) = looked?;
    if json {
        let line = serde_json::json!({ "service": service, "status": status });
        writeln!(io::stdout(), "{line}")?;
    } else {
        writeln!(io::stdout(), "{status}")?;
    }
    Ok(if is_serving { 0 } else { 1 })
}

/// Whether it is serving, and in which word.
async fn look(addr: &AddrArgs, service: &str) -> Result<(bool, &'static str), Failure> {
    let caller = client::connect_for_health(addr).await?;
    // Of what is not known there, too, it is told that it is not serving.
    let health = caller.health(service).await.map_err(|refused| {
        let is_lost = refused.is_lost();
        let failure = Failure::from(refused);
        if is_lost { failure } else { failure.with_code(1) }
    })?;
    Ok((health.is_serving(), health.as_str()))
}

/// Looks again and again, until it is serving or the time is up; then what was seen last counts.
async fn wait_for(
    addr: &AddrArgs,
    service: &str,
    limit: Duration,
) -> Result<(bool, &'static str), Failure> {
    let waited = humantime::format_duration(limit).to_string();
    let mut last: Result<(bool, &'static str), Failure> = Err(Failure::Told {
        message: format!("the sidecar at {} did not answer within {waited}", addr.address()),
        code: UNREACHABLE,
    });
    let waiting = async {
        loop {
            match tokio::time::timeout(LOOK, look(addr, service)).await {
                Ok(Ok((true, status))) => return Ok((true, status)),
                // No address: that will not get better.
                Ok(Err(Failure::Told { message, code })) if code == super::USAGE => {
                    return Err(Failure::Told { message, code });
                }
                Ok(seen) => last = seen,
                Err(_) => {}
            }
            tokio::time::sleep(AGAIN).await;
        }
    };
    match tokio::time::timeout(limit, waiting).await {
        Ok(seen) => seen,
        Err(_) => last,
    }
}
