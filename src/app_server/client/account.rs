//! The login of the process.

use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};

use crate::app_server::client::Client;
use crate::app_server::login;
use crate::app_server::peer::RequestError;

impl Client {
    /// Whether Codex keeps a login in memory, and not where the user's own is. Takes it 1 ms.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn keeps_login_in_memory(&self) -> Result<bool, RequestError> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Config {
            cli_auth_credentials_store: Option<String>,
        }
        #[derive(Deserialize)]
        struct Read {
            #[serde(default)]
            config: Config,
        }
        let Read { config } = self.ask_config(None).await?;
        Ok(config.cli_auth_credentials_store.as_deref() == Some(login::EPHEMERAL))
    }

    /// Has the process know the key of its provider; it takes the place of the login that it has. Takes
    /// Codex 1 to 100 ms.
    ///
    /// # Errors
    /// See [`RequestError`]; that the key is wrong is told by the provider alone.
    pub async fn log_in(&self, key: &SecretString) -> Result<(), RequestError> {
        // Not to be printed.
        #[derive(Serialize)]
        #[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
        enum Login<'a> {
            ApiKey { api_key: &'a str },
        }
        let login = Login::ApiKey { api_key: key.expose_secret() };
        self.order("account/login/start", &login).await
    }
}
