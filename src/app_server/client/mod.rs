//! Codex's requests as calls: the only place that names their methods and knows their parameters.
//!
//! A [`Client`] is a cheap handle to a peer, with a time for answers. Field names are those of
//! `codex app-server generate-json-schema --experimental`. Answers name only what is used, and
//! everything that an older CLI may leave out is optional. Nothing here remembers anything.

mod account;
mod config;
mod history;
mod models;
#[cfg(test)]
mod tests;
mod thread;
mod turn;

use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::app_server::peer::{Peer, RequestError};

pub use config::CliDefaults;
pub(crate) use config::{CliConfig, WorkspaceWriteConfig};
pub(crate) use history::{
    KeptTurn, ListPart, has_copies, is_invalid_place, is_turn_without_start, is_unknown_request,
    is_without_rollout, unknown_turn,
};
pub(crate) use thread::ListedTurn;
pub(crate) use thread::ThreadOpened;
pub use thread::{LoadOptions, LoadThread, Terminal};
pub(crate) use turn::TurnRef;
pub use turn::{StartTurn, Task};

/// Asks Codex.
#[derive(Debug, Clone)]
pub struct Client {
    peer: Peer,
    timeout: Duration,
    // The variables that commands of no thread may see, by name or pattern.
    excluded: Arc<[String]>,
}

/// An answer of which nothing is read.
#[derive(Deserialize)]
struct Ignored {}

/// What Codex says of itself.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Initialized {
    /// `codex_sidecar/0.169.0 (Debian …)`.
    #[serde(default)]
    pub user_agent: String,
}

impl Client {
    /// Asks over this peer, and waits so long for each answer.
    pub fn new(peer: Peer, timeout: Duration) -> Client {
        Client { peer, timeout, excluded: Arc::default() }
    }

    /// The same, of a CLI that was told to keep these variables from commands, by name or pattern.
    pub(crate) fn excluding(self, excluded: Vec<String>) -> Client {
        Client { excluded: excluded.into(), ..self }
    }

    /// The same with another time for answers.
    pub fn within(&self, timeout: Duration) -> Client {
        Client { timeout, ..self.clone() }
    }

    /// How long it waits for an answer.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    async fn ask<A: DeserializeOwned>(
        &self,
        method: &'static str,
        params: &impl Serialize,
    ) -> Result<A, RequestError> {
        self.peer.request(method, params, self.timeout).await
    }

    async fn order(
        &self,
        method: &'static str,
        params: &impl Serialize,
    ) -> Result<(), RequestError> {
        let Ignored {} = self.ask(method, params).await?;
        Ok(())
    }

    /// Shakes hands.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn initialize(&self) -> Result<Initialized, RequestError> {
        let params = json!({
            "clientInfo": {
                "name": "codex_sidecar",
                "title": "codex-sidecar",
                "version": env!("CARGO_PKG_VERSION"),
            },
            // Dynamic tools, `excludeTurns` and the background terminals are experimental.
            "capabilities": { "experimentalApi": true, "requestAttestation": false },
        });
        let initialized = self.ask("initialize", &params).await?;
        self.peer.notify("initialized")?;
        Ok(initialized)
    }

    /// Asks for the cheapest thing that goes through Codex's own queue.
    ///
    /// # Errors
    /// See [`RequestError`]; any answer at all, also an error, is a sign of life.
    pub async fn ping(&self) -> Result<(), RequestError> {
        match self.order("thread/loaded/list", &json!({})).await {
            Ok(())
            | Err(
                RequestError::Server { .. }
                | RequestError::Decode { .. }
                | RequestError::TooLong { .. },
            ) => Ok(()),
            Err(error @ (RequestError::Transport { .. } | RequestError::Timeout { .. })) => {
                Err(error)
            }
        }
    }
}
