//! What a worker is started with, and held to, as it is configured.

use std::fmt;

use super::WorkerLimits;

/// What workers are started with. The values are visible in the machine's process list: a secret
/// belongs into CODEX_HOME or the environment.
#[derive(Clone, PartialEq)]
pub struct WorkerSettings {
    /// Overrides of CLI configuration. A nested table means dotted keys. What it says of a feature
    /// beats `disable_features` and the sidecar's own defaults.
    pub config: toml::Table,
    /// Features of the CLI that are switched off, beside `goals`, which only `config` switches on.
    /// Default `shell_snapshot`: it runs a login shell for every new thread, and leaves it behind when
    /// the worker ends meanwhile.
    pub disable_features: Vec<String>,
    /// Variables of the sidecar's environment that workers get beside those that they need, by name or by
    /// pattern (`AWS_*`, `*`); never those of the sidecar itself (`CODEX_SIDECAR_*`) and of telemetry
    /// (`OTEL_*`). Default none.
    pub environment: Vec<String>,
    /// Bounds.
    pub limits: WorkerLimits,
}

/// Features that let Codex act after a turn has ended: a goal makes it take turn after turn by itself.
const OFF_BY_DEFAULT: [&str; 1] = ["goals"];

impl Default for WorkerSettings {
    fn default() -> WorkerSettings {
        WorkerSettings {
            config: toml::Table::new(),
            disable_features: vec!["shell_snapshot".to_owned()],
            environment: Vec::new(),
            limits: WorkerLimits::default(),
        }
    }
}

impl WorkerSettings {
    /// The values for `-c`, each `dotted.key=value` with the value in TOML. Features are among them
    /// as `features.NAME=false`: unlike `--disable`, a CLI that does not know one takes that with a
    /// warning. What `config` says of a feature holds, whatever else would switch it off.
    pub fn config_overrides(&self) -> Vec<String> {
        let config = flatten(&self.config);
        let is_said = |feature: &str| config.iter().any(|(key, _)| key == feature);
        let listed = self.disable_features.iter().map(String::as_str);
        let defaults =
            OFF_BY_DEFAULT.into_iter().filter(|name| !listed.clone().any(|x| x == *name));
        let disabled: Vec<String> = listed
            .clone()
            .chain(defaults)
            .map(|name| format!("features.{name}"))
            .filter(|feature| !is_said(feature))
            .map(|feature| format!("{feature}=false"))
            .collect();
        let config = config.iter().map(|(key, value)| format!("{key}={value}"));
        config.chain(disabled).collect()
    }
}

impl fmt::Debug for WorkerSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let WorkerSettings { config, disable_features, environment, limits } = self;
        let keys: Vec<String> = flatten(config).into_iter().map(|(key, _)| key).collect();
        // Keys only: a value may be a provider's token.
        f.debug_struct("WorkerSettings")
            .field("config", &keys)
            .field("disable_features", disable_features)
            .field("environment", environment)
            .field("limits", limits)
            .finish()
    }
}

/// The table's leaves by dotted key, as the CLI's `-c` wants them. A table with a key that a dotted
/// path can't express is a leaf itself.
fn flatten(table: &toml::Table) -> Vec<(String, toml::Value)> {
    let mut leaves = Vec::new();
    for (key, value) in table {
        flatten_into(key.clone(), value, &mut leaves);
    }
    leaves
}

fn flatten_into(path: String, value: &toml::Value, leaves: &mut Vec<(String, toml::Value)>) {
    match value {
        toml::Value::Table(table)
            if !table.is_empty() && table.keys().all(|key| is_bare_key(key)) =>
        {
            for (key, value) in table {
                flatten_into(format!("{path}.{key}"), value, leaves);
            }
        }
        value => leaves.push((path, value.clone())),
    }
}

/// Whether TOML takes this key without quotes.
pub(crate) fn is_bare_key(key: &str) -> bool {
    !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
}
