//! How an app-server comes by the key of its provider: by a login that it keeps in memory.
//!
//! Unlike `codex exec` it reads no key of its environment for the providers that it brings along (CLI 0.100
//! to 0.169): it goes by the login in CODEX_HOME, or by one that it is told.

use toml::{Table, Value};

/// The value for `-c` that has it keep its login in memory: the one in CODEX_HOME is neither used nor
/// changed.
pub(crate) const IN_MEMORY: &str = "cli_auth_credentials_store=\"ephemeral\"";

/// What [`IN_MEMORY`] makes of the setting.
pub(super) const EPHEMERAL: &str = "ephemeral";

/// Whether a configuration lets nobody log in with a key.
pub(crate) fn forbids_keys(config: &Table) -> bool {
    config.get("forced_login_method").and_then(Value::as_str) == Some("chatgpt")
}
