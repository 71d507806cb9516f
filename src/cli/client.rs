//! How the subcommands reach a sidecar.

use std::error::Error as _;
use std::path::PathBuf;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use super::failure::Failure;
use crate::pb::codex_service_client::CodexServiceClient;
use crate::pb::pool_service_client::PoolServiceClient;

/// Where a sidecar listens unless it is told otherwise.
pub(super) const DEFAULT_ADDR: &str = "127.0.0.1:50061";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Which sidecar to talk to.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct AddrArgs {
    /// The sidecar's address: HOST:PORT or unix:PATH
    #[arg(
        long,
        value_name = "ADDR",
        env = "CODEX_SIDECAR_ADDR",
        default_value = DEFAULT_ADDR
    )]
    pub(super) addr: String,
}

/// A client for turns and contexts.
pub(super) async fn codex(addr: &str) -> Result<CodexServiceClient<Channel>, Failure> {
    Ok(codex_on(connect(addr).await?))
}

/// The same on a connection that is there.
pub(super) fn codex_on(channel: Channel) -> CodexServiceClient<Channel> {
    // What the sidecar sends is bounded by the sidecar's own limits.
    CodexServiceClient::new(channel).max_decoding_message_size(usize::MAX)
}

/// A client for the pool.
pub(super) async fn pool(addr: &str) -> Result<PoolServiceClient<Channel>, Failure> {
    Ok(PoolServiceClient::new(connect(addr).await?).max_decoding_message_size(usize::MAX))
}

/// Connects now, so that a sidecar which isn't there is told as that.
pub(super) async fn connect(addr: &str) -> Result<Channel, Failure> {
    connect_within(addr, CONNECT_TIMEOUT, "--addr or CODEX_SIDECAR_ADDR").await
}

/// The same with a bound of its own; `how` tells what names another sidecar.
pub(super) async fn connect_within(
    addr: &str,
    timeout: Duration,
    how: &str,
) -> Result<Channel, Failure> {
    let unreachable = |cause: &str| {
        Failure::told(format!(
            "can't reach a sidecar at {addr}: {cause}; start one with `codex-sidecar serve` (with \
             --offline-model it needs no key), or name another with {how}"
        ))
    };
    let connection = match addr.trim().strip_prefix("unix:") {
        Some(path) => {
            let path = PathBuf::from(path);
            // The address is never looked up: the connector below goes to the socket.
            let endpoint = Endpoint::from_static("http://localhost").connect_timeout(timeout);
            let connector = tower::service_fn(move |_: Uri| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            });
            endpoint.connect_with_connector(connector).await
        }
        None => {
            let trimmed = addr.trim();
            let bare = trimmed.strip_prefix("http://").unwrap_or(trimmed).trim_end_matches('/');
            let endpoint = Endpoint::from_shared(format!("http://{bare}"))
                .ok()
                .filter(|endpoint| {
                    endpoint.uri().port_u16().is_some() && endpoint.uri().path() == "/"
                })
                .ok_or_else(|| Failure::Told {
                    message: format!("{addr:?} is no address; wants HOST:PORT or unix:PATH"),
                    code: super::USAGE,
                })?;
            endpoint.connect_timeout(timeout).connect().await
        }
    };
    connection.map_err(|error| unreachable(&root_cause(&error)))
}

/// What went wrong at the bottom: tonic's own words are only `transport error`.
fn root_cause(error: &tonic::transport::Error) -> String {
    let mut cause = error.source();
    let mut text = error.to_string();
    while let Some(error) = cause {
        text = error.to_string();
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_sidecar_that_is_not_there_is_told_with_the_cause_and_the_remedy() {
        // Bound and let go: nobody listens there.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        for addr in [format!("127.0.0.1:{port}"), "unix:/no/such/socket".to_owned()] {
            let Err(Failure::Told { message, code: 1 }) = connect(&addr).await else {
                panic!("connected to {addr}");
            };
            assert!(message.contains(&addr), "{message}");
            assert!(message.contains("os error"), "{message}");
            assert!(message.contains("codex-sidecar serve"), "{message}");
        }
        for wrong in ["", "localhost", "host:port", "127.0.0.1:1/path"] {
            let failure = connect(wrong).await.unwrap_err();
            assert!(matches!(failure, Failure::Told { code: 64, .. }), "{wrong}: {failure:?}");
        }
    }
}
