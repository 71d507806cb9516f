//! Has a worker know the key of the model provider, before it is asked for anything that needs it.

use secrecy::SecretString;

use crate::app_server::client::Client;
use crate::app_server::peer::RequestError;
use crate::model::id::WorkerId;

/// Tells a worker the key. One that doesn't take it is told of and serves on: its provider may need none,
/// and what one that does need it says is what a turn fails with.
///
/// # Errors
/// [`RequestError`] of a worker that is gone or silent.
pub(super) async fn log_in(
    worker: &WorkerId,
    client: &Client,
    key: &SecretString,
) -> Result<(), RequestError> {
    match client.keeps_login_in_memory().await {
        Ok(true) => {}
        // It would be written where the user's own is.
        Ok(false) => {
            tracing::warn!(
                %worker,
                "the key is not used: the machine's configuration of Codex has logins written down; \
                 take cli_auth_credentials_store out of it, or log in with `codex login`"
            );
            return Ok(());
        }
        // Of a worker whose config.toml can't be read: it has no turns, and is replaced when it can be.
        Err(error) => return gone(error),
    }
    match client.log_in(key).await {
        Ok(()) => Ok(()),
        Err(RequestError::Server { message, .. }) => {
            tracing::warn!(%worker, %message, "Codex does not take the key of the model provider");
            Ok(())
        }
        Err(error) => gone(error),
    }
}

/// What can't be read is an answer all the same.
fn gone(error: RequestError) -> Result<(), RequestError> {
    match error {
        RequestError::Transport { .. } | RequestError::Timeout { .. } => Err(error),
        RequestError::Server { .. }
        | RequestError::Decode { .. }
        | RequestError::TooLong { .. } => {
            tracing::warn!(%error, "whether the worker has the key is not known");
            Ok(())
        }
    }
}
