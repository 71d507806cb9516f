//! `health`: an exec probe.

use std::io::{self, Write as _};
use std::time::Duration;

use super::client::{self, AddrArgs};
use super::failure::{CommandResult, Failure};

#[derive(Debug, clap::Args)]
pub(super) struct HealthArgs {
    #[command(flatten)]
    addr: AddrArgs,
    /// The service: empty for alive, codex.sidecar.v1.CodexService for ready for turns
    #[arg(long, value_name = "NAME", default_value = "")]
    service: String,
    /// How long to wait for an answer
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

pub(super) async fn health(HealthArgs { addr, service, timeout }: HealthArgs) -> CommandResult {
    let check = async {
        let caller = client::connect(&addr.addr).await?;
        Ok::<_, Failure>(caller.health(&service).await?)
    };
    let health = tokio::time::timeout(timeout, check).await.map_err(|_| {
        let timeout = humantime::format_duration(timeout);
        Failure::told(format!("the sidecar at {} did not answer within {timeout}", addr.addr))
    })??;
    writeln!(io::stdout(), "{}", health.as_str())?;
    Ok(if health.is_serving() { 0 } else { 1 })
}
