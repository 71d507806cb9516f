//! What the CLI's configuration says, and whether it can be read.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::app_server::client::{Client, Ignored};
use crate::app_server::mcp;
use crate::app_server::peer::RequestError;
use crate::app_server::protected::ProfileTables;
use crate::app_server::refusal_text;

/// What the CLI's configuration says where a request says nothing.
#[derive(Debug, Clone, Default)]
pub struct CliDefaults {
    /// The configured part.
    pub config: CliConfig,
    /// The model that is used where none is configured.
    pub default_model: Option<String>,
    /// Whether the CLI tells which settings came into force with a turn. Such a CLI has permission
    /// profiles that can be picked by name, too.
    pub tells_settings: bool,
}

/// A part of the CLI's effective configuration: what `config.toml` and `-c` say, as far as it is needed
/// to undo what an earlier turn overrode.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct CliConfig {
    pub(in crate::app_server) model: Option<String>,
    pub(in crate::app_server) model_reasoning_summary: Option<String>,
    pub(in crate::app_server) service_tier: Option<String>,
    pub(in crate::app_server) sandbox_workspace_write: Option<WorkspaceWriteConfig>,
    /// Where the provider is reached, if that is configured.
    pub openai_base_url: Option<String>,
}

/// The table `sandbox_workspace_write` of the CLI's configuration.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct WorkspaceWriteConfig {
    /// Writable beside the working directory.
    pub writable_roots: Vec<String>,
    /// Whether commands reach the network.
    pub network_access: bool,
    /// Whether `$TMPDIR` is not writable.
    pub exclude_tmpdir_env_var: bool,
    /// Whether `/tmp` is not writable.
    pub exclude_slash_tmp: bool,
}

/// A permission profile.
#[derive(Debug, Clone, Deserialize)]
pub struct Profile {
    /// Its name.
    pub id: String,
    /// Whether the machine's administrator lets it be used.
    #[serde(default = "yes")]
    pub allowed: bool,
}

fn yes() -> bool {
    true
}

impl Client {
    /// What the configuration says, in this directory or in none.
    ///
    /// # Errors
    /// See [`RequestError`]; an older CLI can't be asked.
    pub async fn config_read(&self, directory: Option<&Path>) -> Result<CliConfig, RequestError> {
        #[derive(Deserialize)]
        struct Read {
            #[serde(default)]
            config: CliConfig,
        }
        let Read { config } = self.ask_config(directory).await?;
        Ok(config)
    }

    /// The permission profiles of the configuration of this directory, with what they allow.
    ///
    /// # Errors
    /// See [`RequestError`]; an older CLI can't be asked.
    pub(crate) async fn profile_tables(
        &self,
        directory: &Path,
    ) -> Result<ProfileTables, RequestError> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Config {
            permissions: Option<ProfileTables>,
        }
        #[derive(Deserialize)]
        struct Read {
            #[serde(default)]
            config: Config,
        }
        let Read { config } = self.ask_config(Some(directory)).await?;
        Ok(config.permissions.unwrap_or_default())
    }

    /// How the MCP servers of threads in this directory are configured.
    ///
    /// # Errors
    /// See [`RequestError`]; an older CLI can't be asked.
    pub async fn mcp_config(&self, directory: &Path) -> Result<mcp::ConfigRead, RequestError> {
        self.ask_config(Some(directory)).await
    }

    pub(super) async fn ask_config<A: for<'a> Deserialize<'a>>(
        &self,
        directory: Option<&Path>,
    ) -> Result<A, RequestError> {
        let mut params = json!({ "includeLayers": false });
        if let Some(directory) = directory {
            params["cwd"] = json!(directory);
        }
        self.ask("config/read", &params).await
    }

    /// What is wrong with the user's `config.toml`; `None` where Codex can read it. A project's own is
    /// not looked at. Takes Codex 1 ms.
    ///
    /// # Errors
    /// See [`RequestError`]; nothing is known then.
    pub async fn config_fault(&self) -> Result<Option<String>, RequestError> {
        match self.ask_config::<Ignored>(None).await {
            Ok(Ignored {}) => Ok(None),
            Err(error) => fault_of(&error).map(Some).ok_or(error),
        }
    }

    /// What is used where nobody says anything, and what is wrong with the user's `config.toml`. What
    /// can't be asked counts as not said.
    pub async fn defaults(&self) -> (CliDefaults, Option<String>) {
        let mut config_fault = None;
        let (read, tells_settings) = tokio::join!(self.config_read(None), self.tells_settings());
        let config = read.unwrap_or_else(|error| {
            config_fault = fault_of(&error);
            // An old CLI without it: `thread/start` still tells the defaults of new threads.
            tracing::debug!(%error, "the CLI's configuration can't be read");
            CliConfig::default()
        });
        let default_model = match &config.model {
            Some(model) => Some(model.clone()),
            None => self.default_model().await.ok().flatten(),
        };
        (CliDefaults { config, default_model, tells_settings }, config_fault)
    }

    async fn default_model(&self) -> Result<Option<String>, RequestError> {
        #[derive(Deserialize)]
        struct List {
            #[serde(default)]
            data: Vec<Model>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Model {
            model: String,
            #[serde(default)]
            is_default: bool,
        }
        let List { data } = self.ask("model/list", &json!({})).await?;
        Ok(data.into_iter().find(|model| model.is_default).map(|model| model.model))
    }

    /// Asks for a change of settings of no thread at all: the CLIs that know this request are those
    /// that tell their settings, also when they refuse it.
    async fn tells_settings(&self) -> bool {
        match self.order("thread/settings/update", &json!({ "threadId": "none" })).await {
            Ok(()) => true,
            Err(RequestError::Server { message, .. }) => {
                !refusal_text::is_unknown_request(&message)
            }
            Err(_) => false,
        }
    }

    /// The permission profiles that the configuration has in this directory.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn profile_list(&self, directory: &Path) -> Result<Vec<Profile>, RequestError> {
        #[derive(Deserialize)]
        struct List {
            #[serde(default)]
            data: Vec<Profile>,
        }
        let List { data } =
            self.ask("permissionProfile/list", &json!({ "cwd": directory })).await?;
        Ok(data)
    }

    /// Makes every thread look at its MCP servers before its next turn: those that run are kept, calls
    /// under way included, and those that don't are started. About 4 ms.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn mcp_reload(&self) -> Result<(), RequestError> {
        self.order("config/mcpServer/reload", &Value::Null).await
    }

    /// What Codex says of one server of a thread: 1 to 3 ms for one that is up or has failed; for one
    /// that starts, and for one that has ended since the last [`Client::mcp_reload`], until its start is
    /// over.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn mcp_server_status(
        &self,
        thread_id: &str,
        server: &str,
    ) -> Result<Option<mcp::ServerStatus>, RequestError> {
        #[derive(Deserialize)]
        struct List {
            #[serde(default)]
            data: Vec<mcp::ServerStatus>,
        }
        let detail = "toolsAndAuthOnly";
        let params = json!({ "threadId": thread_id, "serverName": server, "detail": detail });
        let List { data } = self.ask("mcpServerStatus/list", &params).await?;
        // An older CLI lists all of them.
        Ok(data.into_iter().find(|status| status.name == server))
    }
}

/// What is wrong with the configuration, if that is why it could not be read.
fn fault_of(error: &RequestError) -> Option<String> {
    match error {
        RequestError::Server { code, message, .. } => refusal_text::config_fault(*code, message),
        RequestError::Transport { .. }
        | RequestError::Timeout { .. }
        | RequestError::TooLong { .. }
        | RequestError::Decode { .. } => None,
    }
}
