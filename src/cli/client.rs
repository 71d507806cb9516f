//! How the subcommands reach a sidecar.

use std::time::Duration;

use super::failure::Failure;
use super::{UNREACHABLE, USAGE};
use crate::grpc::caller::{Caller, ConnectError};

/// Where a sidecar listens unless it is told otherwise.
const DEFAULT_ADDR: &str = "127.0.0.1:50061";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What names the sidecar where no argument does.
const ADDR_VARIABLE: &str = "CODEX_SIDECAR_ADDR";

/// Which sidecar to talk to.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct AddrArgs {
    // The variable is not clap's: what it gives, the usage line of an error shows as if it had to be
    // given.
    /// The sidecar's address: HOST:PORT or unix:PATH [env: CODEX_SIDECAR_ADDR] [default: 127.0.0.1:50061]
    #[arg(long, value_name = "ADDR")]
    addr: Option<String>,
}

impl AddrArgs {
    /// The address: the argument, the variable, or the default.
    pub(super) fn address(&self) -> String {
        self.addr.clone().unwrap_or_else(default_addr)
    }
}

/// The address where no argument names one.
pub(super) fn default_addr() -> String {
    let named = std::env::var_os(ADDR_VARIABLE).map(|addr| addr.to_string_lossy().into_owned());
    named.filter(|addr| !addr.trim().is_empty()).unwrap_or_else(|| DEFAULT_ADDR.to_owned())
}

/// Connects to it.
pub(super) async fn connect(addr: &AddrArgs) -> Result<Caller, Failure> {
    connect_to(&addr.address()).await
}

/// Connects to the one at an address.
pub(super) async fn connect_to(addr: &str) -> Result<Caller, Failure> {
    connect_within(addr, CONNECT_TIMEOUT, "--addr or CODEX_SIDECAR_ADDR").await
}

/// The same with a bound of its own; `how` tells what names another sidecar.
pub(super) async fn connect_within(
    addr: &str,
    timeout: Duration,
    how: &str,
) -> Result<Caller, Failure> {
    Caller::connect(addr, timeout).await.map_err(|error| match error {
        ConnectError::NoAddress(_) => Failure::Told { message: error.to_string(), code: USAGE },
        ConnectError::Unreachable(cause) => Failure::Told {
            message: format!(
                "can't reach a sidecar at {addr}: {cause}; start one with `codex-sidecar serve` (with \
                 --offline-model it needs no key), or name another with {how}"
            ),
            code: UNREACHABLE,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_sidecar_that_is_not_there_is_told_with_the_cause_and_the_remedy() {
        // Bound and let go: nobody listens there.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        for addr in [format!("127.0.0.1:{port}"), "unix:/no/such/socket".to_owned()] {
            let Err(Failure::Told { message, code: 69 }) = connect_to(&addr).await else {
                panic!("connected to {addr}");
            };
            assert!(message.contains(&addr), "{message}");
            assert!(message.contains("os error"), "{message}");
            assert!(message.contains("codex-sidecar serve"), "{message}");
        }
        for wrong in ["", "localhost", "host:port", "127.0.0.1:1/path"] {
            let failure = connect_to(wrong).await.unwrap_err();
            assert!(matches!(failure, Failure::Told { code: 64, .. }), "{wrong}: {failure:?}");
        }
    }
}
