//! The connections of clients, from the listener's queue to their end.
//!
//! Here they are accepted, held and said goodbye to; [`books`] knows how many there are and who makes
//! room for whom, [`calls`] keeps the books' count of calls, [`handshake`] sees a client's begin, [`frames`] that it floods
//! nobody. Never
//! looks into a call, which is the services' matter. A connection begins with its handshake,
//! which has a clock, TLS included; it is idle while no call is open on it. It ends when its client closes it or
//! answers no ping, when it has been idle for longest and another one needs its room, or with its
//! listener. In each case calls that are open go on to their end, but for those that only wait for
//! something to be told (`Watch` of the health service, reflection): one that has nothing else, and
//! carries nothing, makes room where no idle one can.

mod books;
mod calls;
mod frames;
mod handshake;
#[cfg(test)]
mod tests;

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustix::io::Errno;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;

use self::books::Connection;
pub(super) use self::books::Connections;
use self::calls::Calls;
use self::handshake::Handshake;
use super::descent::{self, Descent, Verdict};
use super::doors::Doors;
use super::listen::{Listener, Socket};
use super::tls::Tls;
use crate::access::Peer;

/// How long a connection that is told to leave, and has no call, is there for one that is on its way.
const LEAVE_GRACE: Duration = Duration::from_millis(200);
/// Most bytes of a call's metadata: gRPC's own most is 8 KiB, and a bearer token may have some of that.
const MOST_METADATA: u32 = 16 << 10;
/// How long nobody is accepted after the system had nothing to accept with.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// What a listener leads to.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) doors: Doors,
    /// Where it is TLS that is spoken; over a Unix socket it is not.
    pub(super) tls: Option<Tls>,
}

/// Serves whoever connects until `close` is cancelled and the connections have ended. Dropping it cuts
/// them.
///
/// # Errors
/// What the system says where the listener is of no use any more.
pub(super) async fn serve(
    listener: Listener,
    entry: Entry,
    connections: Connections,
    descent: Descent,
    close: CancellationToken,
) -> io::Result<()> {
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = close.cancelled() => break,
            Some(_) = open.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((socket, peer)) => {
                    // Else it is closed here and now.
                    if let Some(connection) = connections.admit(&close) {
                        let verdict = descent.verdict(descent::peer_of(&socket));
                        open.spawn(hold(socket, peer, connection, verdict, entry.clone()));
                    }
                }
                Err(error) => match Errno::from_io_error(&error) {
                    // That client is gone already.
                    Some(Errno::CONNABORTED | Errno::CONNRESET | Errno::INTR) => {}
                    Some(Errno::BADF | Errno::INVAL | Errno::NOTSOCK | Errno::OPNOTSUPP) => {
                        return Err(error);
                    }
                    // Most often no descriptor is free. The client waits in the listener's queue:
                    // to ask for it again at once would be a spin.
                    _ => {
                        connections.short_of_descriptors(&error);
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
    }
    // Who comes now is told at once that nobody is here.
    drop(listener);
    while open.join_next().await.is_some() {}
    Ok(())
}

async fn hold(
    socket: Socket,
    mut peer: Peer,
    connection: Connection,
    verdict: Verdict,
    entry: Entry,
) {
    let connection = Arc::new(connection);
    let (limits, close) = (connection.limits(), &connection.close);
    let Entry { doors, tls } = entry;
    // For both handshakes.
    let until = Instant::now() + limits.handshake_timeout;
    let socket = match (socket, tls) {
        (Either::Left(socket), Some(tls)) => {
            let secured = tokio::select! {
                () = close.cancelled() => return,
                secured = timeout_at(until, tls.accept(socket, &peer.name)) => secured,
            };
            let Ok(secured) = secured else {
                tracing::debug!("a connection without a TLS handshake is closed");
                return;
            };
            let Some((socket, certificate)) = secured else { return };
            peer.certificate = certificate;
            Either::Left(socket)
        }
        (socket, _) => Either::Right(socket),
    };
    let shaken = CancellationToken::new();
    let socket = Handshake::new(socket, shaken.clone());
    let calls =
        Calls { connection: Arc::clone(&connection), peer, verdict: verdict.clone(), doors };
    let mut http = http2::Builder::new(TokioExecutor::new());
    http.timer(TokioTimer::new())
        // Neither is bounded by default: a client could open streams, or reset them, without end.
        .max_concurrent_streams(limits.max_streams_per_connection)
        .max_pending_accept_reset_streams(64)
        // All of a call's metadata, as the sender would count it; h2 cuts the connection at four times that.
        .max_header_list_size(MOST_METADATA)
        // What a stream holds for a client that does not read; by default six times that.
        .max_send_buf_size(64 << 10)
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(20));
    let mut http = pin!(http.serve_connection(TokioIo::new(socket), calls));

    // Its calls, if there are any, are told why.
    let refused = async {
        verdict.refused().await;
        tokio::time::sleep(LEAVE_GRACE).await;
    };
    let told_to_leave = async {
        let mut dismissed = pin!(async {
            tokio::select! {
                () = close.cancelled() => {}
                () = refused => {}
            }
        });
        tokio::select! {
            // Without a handshake there is nobody to say goodbye to.
            () = dismissed.as_mut() => shaken.is_cancelled(),
            in_time = timeout_at(until, shaken.cancelled()) => {
                if in_time.is_ok() {
                    connection.note_handshake();
                    dismissed.await;
                }
                in_time.is_ok()
            }
        }
    };
    tokio::select! {
        ended = http.as_mut() => {
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection broke");
            }
            return;
        }
        told = told_to_leave => if !told {
            tracing::debug!("a connection without a handshake is closed");
            return;
        }
    }
    http.as_mut().graceful_shutdown();
    // A client that doesn't read keeps its calls, and nothing else.
    while timeout(LEAVE_GRACE, http.as_mut()).await.is_err() && !connection.is_idle() {}
}
