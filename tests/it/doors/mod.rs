//! Who may call, over real sockets: tokens, TLS and client certificates, users of Unix sockets; and what
//! changes while the sidecar runs.

mod command_line;
mod pki;
mod tls;
mod tokens;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use codex_sidecar::pb;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::support::{Client, PATIENCE, Refused, within};

const TOKEN: &str = "a-token-that-only-tests-have";

/// A file that only its owner reads, in the place of one that may be there.
fn write(path: &Path, text: &str) -> PathBuf {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::rename(&new, path).unwrap();
    path.to_owned()
}

/// A request that shows these tokens.
fn showing<T>(message: T, tokens: &[&str]) -> Request<T> {
    let mut request = Request::new(message);
    for token in tokens {
        let value = format!("Bearer {token}").parse().unwrap();
        request.metadata_mut().append("authorization", value);
    }
    request
}

/// Asks for the sidecar's version, which everybody may who is let in.
async fn asked(channel: Channel, tokens: &[&str]) -> Result<(), Status> {
    let mut pool = codex_sidecar::client::pool_service_client::PoolServiceClient::new(channel);
    let request = showing(pb::GetServerInfoRequest {}, tokens);
    within(PATIENCE, "GetServerInfo", pool.get_server_info(request)).await.map(drop)
}

/// Asserts that a call was refused for its credential, and that nothing was told of the cause.
fn assert_unauthenticated(result: Result<(), Status>) {
    let status = result.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    let refused = Refused::from(status);
    assert_eq!(refused.reason, "UNAUTHENTICATED", "{refused:?}");
}

/// A turn of one prompt that shows a token.
async fn turn(client: &Client, context: &str, token: &str) -> Result<(), Status> {
    let request = client.at_work(crate::support::prompt(context, "Hello."));
    let events = client.codex().run_turn(showing(request, &[token])).await?;
    crate::support::Turn::new(events.into_inner()).rest().await;
    Ok(())
}
