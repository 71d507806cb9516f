//! The listeners: bound before anything is started, served until they are closed.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use super::{ServeError, StartError};
use crate::config::ListenAddress;
use crate::grpc::limits::ConnectionLimits;

/// An address that is listened on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BoundAddress {
    /// TCP, with the port that was really taken.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for BoundAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BoundAddress::Tcp(address) => write!(f, "{address}"),
            BoundAddress::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Binds all of them, or none.
pub(super) async fn bind_all(
    addresses: &[ListenAddress],
) -> Result<Vec<(Listener, BoundAddress)>, StartError> {
    let mut listeners = Vec::new();
    for address in addresses {
        let bound = bind(address).await;
        let address = address.to_string();
        listeners.push(bound.map_err(|source| StartError::Listen { address, source })?);
    }
    Ok(listeners)
}

async fn bind(address: &ListenAddress) -> std::io::Result<(Listener, BoundAddress)> {
    match address {
        ListenAddress::Tcp { host, port } => {
            let listener = TcpListener::bind((host.as_str(), *port)).await?;
            let bound = BoundAddress::Tcp(listener.local_addr()?);
            Ok((Listener::Tcp(listener), bound))
        }
        ListenAddress::Unix(path) => {
            // A socket that nobody listens on is what a killed sidecar left behind.
            if std::os::unix::net::UnixStream::connect(path).is_err() && is_socket(path) {
                std::fs::remove_file(path)?;
            }
            let listener = UnixListener::bind(path)?;
            Ok((Listener::Unix(listener), BoundAddress::Unix(path.clone())))
        }
    }
}

fn is_socket(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt as _;
    std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

/// Serves until `close` is cancelled and the connections have ended.
pub(super) async fn serve(
    listener: Listener,
    address: BoundAddress,
    routes: Routes,
    limits: ConnectionLimits,
    close: CancellationToken,
) -> Result<(), ServeError> {
    let router = Server::builder()
        // Neither is bounded by default: a client could open streams, or reset them, without end.
        .max_concurrent_streams(limits.max_streams_per_connection)
        .http2_max_pending_accept_reset_streams(Some(64))
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
        .add_routes(routes);
    let closing = close.cancelled_owned();
    let served = match listener {
        Listener::Tcp(listener) => {
            let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
            router.serve_with_incoming_shutdown(incoming, closing).await
        }
        Listener::Unix(listener) => {
            let served = router
                .serve_with_incoming_shutdown(UnixListenerStream::new(listener), closing)
                .await;
            if let BoundAddress::Unix(path) = &address {
                let _ = std::fs::remove_file(path);
            }
            served
        }
    };
    served.map_err(|source| ServeError::Transport { address: address.to_string(), source })
}
