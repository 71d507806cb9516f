//! What Codex's configuration says of the variables of its environment: which it reads, which hold keys,
//! and which its commands see.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};
use toml::{Table, Value};

use crate::app_server::secrets;

/// The table that says what commands see.
const POLICY: &str = "shell_environment_policy";

/// Its key for what they don't see.
const EXCLUDE: &str = "exclude";

/// What the built-in provider of Amazon's models goes by. AWS's own programs read the same.
const BEDROCK: &[&str] = &[
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_BEARER_TOKEN_BEDROCK",
    "AWS_PROFILE",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
];

/// The variables that a configuration names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Named {
    /// All that it reads, or lets its commands see by name.
    pub(crate) variables: Vec<String>,
    /// Those of them that hold keys.
    pub(crate) keys: Vec<String>,
    /// What is kept from commands, as names and patterns.
    pub(crate) excluded: Vec<String>,
}

impl Named {
    /// Adds what another part of the configuration names.
    pub(crate) fn extend(&mut self, other: Named) {
        let Named { variables, keys, excluded } = other;
        self.variables.extend(variables);
        self.keys.extend(keys);
        self.excluded.extend(excluded);
    }

    /// What this configuration names, in what holds with its profile.
    pub(crate) fn of(config: &Table) -> Named {
        let mut named = Named::default();
        let profile = config.get("profile").and_then(Value::as_str);
        let profile = profile.and_then(|name| config.get("profiles")?.as_table()?.get(name));
        for layer in [Some(config), profile.and_then(Value::as_table)].into_iter().flatten() {
            named.add(layer);
        }
        named
    }

    fn add(&mut self, config: &Table) {
        let secrets = secrets::of_config(config);
        self.variables.extend(secrets.named);
        self.keys.extend(secrets.variables);
        if config.get("model_provider").and_then(Value::as_str) == Some("amazon-bedrock") {
            self.variables.extend(BEDROCK.iter().map(|name| (*name).to_owned()));
            let keys = BEDROCK.iter().filter(|name| secrets::is_secret(name));
            self.keys.extend(keys.map(|name| (*name).to_owned()));
        }
        let policy = config.get(POLICY).and_then(Value::as_table);
        let names = |key: &str| {
            let names = policy.and_then(|policy| policy.get(key)).and_then(Value::as_array);
            names.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned)
        };
        self.excluded.extend(names(EXCLUDE));
        self.variables.extend(names("include_only").filter(|name| !name.contains(['*', '?'])));
    }
}

/// The same configuration without dots in its keys: each stands for a table in a table, as with `-c`.
pub(crate) fn nested(config: &Table) -> Table {
    let mut nested = Table::new();
    for (key, value) in config {
        let mut inner = &mut nested;
        let mut parts = key.split('.').peekable();
        while let Some(part) = parts.next() {
            let part = part.to_owned();
            if parts.peek().is_none() {
                match (inner.get_mut(&part), value) {
                    (Some(Value::Table(old)), Value::Table(new)) => old.extend(new.clone()),
                    _ => _ = inner.insert(part, value.clone()),
                }
                break;
            }
            let table = inner.entry(part).or_insert_with(|| Value::Table(Table::new()));
            let Value::Table(table) = table else { break };
            inner = table;
        }
    }
    nested
}

/// The value for `-c` that keeps these variables, by name or pattern, from commands. It takes the place of
/// what the user's `config.toml` excludes, which must be among them.
pub(crate) fn exclude(names: &[String]) -> String {
    let names: Vec<Value> = names.iter().cloned().map(Value::String).collect();
    format!("{POLICY}.{EXCLUDE}={}", Value::Array(names))
}

/// Has the overrides of a thread keep these variables from its commands, too: what they say of the policy
/// takes the place of what the worker was started with, a table all of it. So they are given key by key,
/// and what they exclude is excluded besides.
pub(crate) fn keep_excluded(overrides: &mut Map<String, Json>, names: &[String]) {
    let is_policy = |key: &str| key.split('.').next() == Some(POLICY);
    // What says more of the path lies over what says less: Codex itself takes them in any order.
    let said: BTreeMap<String, Json> = overrides
        .iter()
        .filter(|(key, _)| is_policy(key))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    if names.is_empty() || said.is_empty() {
        return;
    }
    if said.get(POLICY).is_some_and(|table| !table.is_object()) {
        // Alone it is refused by Codex.
        overrides.retain(|key, _| key == POLICY || !is_policy(key));
        return;
    }
    overrides.retain(|key, _| !is_policy(key));
    let mut policy = Json::Object(Map::new());
    for (key, value) in said {
        let table = key.split('.').skip(1).collect::<Vec<_>>().into_iter().rev();
        let nested = table.fold(value, |inner, part| json!({ part: inner }));
        lay_over(&mut policy, nested);
    }
    let Json::Object(mut policy) = policy else { return };
    // Codex refuses what is no list.
    if let Json::Array(excluded) = policy.entry(EXCLUDE).or_insert_with(|| json!([])) {
        let said = std::mem::take(excluded);
        excluded.extend(names.iter().cloned().map(Json::String));
        excluded.extend(said.into_iter().filter(|one| !names.iter().any(|name| one == name)));
    }
    for (key, value) in policy {
        match value {
            // Those that the worker was started with hold beside them.
            Json::Object(table)
                if !table.is_empty() && table.keys().all(|key| !key.contains('.')) =>
            {
                let leaves = table.into_iter();
                overrides
                    .extend(leaves.map(|(name, value)| (format!("{POLICY}.{key}.{name}"), value)));
            }
            value => _ = overrides.insert(format!("{POLICY}.{key}"), value),
        }
    }
}

fn lay_over(below: &mut Json, above: Json) {
    match (below, above) {
        (Json::Object(below), Json::Object(above)) => {
            for (key, value) in above {
                lay_over(below.entry(key).or_insert(Json::Null), value);
            }
        }
        (below, above) => *below = above,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_configuration_reads_hides_and_shows_is_found_also_in_its_profile() {
        let config = toml::toml! {
            profile = "work"
            [model_providers.x]
            env_key = "X_KEY"
            env_http_headers = { "X-Org" = "ORG", "X-Token" = "X_TOKEN" }
            [mcp_servers.y]
            env_vars = ["GITHUB_PAT", "EDITOR"]
            [shell_environment_policy]
            inherit = "all"
            exclude = ["PLAIN", "DB_*"]
            include_only = ["PATH", "FOO", "BAR_*"]
            [profiles.work]
            model_provider = "amazon-bedrock"
            [profiles.work.shell_environment_policy]
            exclude = ["WORK_*"]
            [profiles.other.shell_environment_policy]
            exclude = ["OTHER_*"]
        };
        let Named { variables, keys, excluded } = Named::of(&config);
        let some = ["X_KEY", "ORG", "X_TOKEN", "GITHUB_PAT", "EDITOR", "FOO", "AWS_REGION"];
        for name in some {
            assert!(variables.iter().any(|found| found == name), "{name}: {variables:?}");
        }
        assert!(!variables.iter().any(|name| name == "BAR_*"), "{variables:?}");
        for name in ["X_KEY", "X_TOKEN", "GITHUB_PAT", "AWS_SECRET_ACCESS_KEY"] {
            assert!(keys.iter().any(|found| found == name), "{name}: {keys:?}");
        }
        for name in ["ORG", "EDITOR", "AWS_REGION", "FOO"] {
            assert!(!keys.iter().any(|found| found == name), "{name}: {keys:?}");
        }
        assert_eq!(excluded, ["PLAIN", "DB_*", "WORK_*"]);
        assert_eq!(Named::of(&toml::toml! { shell_environment_policy = 7 }), Named::default());
    }

    #[test]
    fn a_dotted_key_is_a_table_in_a_table() {
        let config = toml::toml! {
            "model_providers.x.env_key" = "X_KEY"
            "model_providers.x" = { name = "x" }
            "shell_environment_policy.exclude" = ["A"]
            model = "m"
        };
        let nested = nested(&config);
        assert_eq!(nested["model_providers"]["x"]["name"].as_str(), Some("x"));
        let Named { keys, excluded, .. } = Named::of(&nested);
        assert_eq!((keys, excluded), (vec!["X_KEY".to_owned()], vec!["A".to_owned()]));
    }

    #[test]
    fn names_are_written_as_toml() {
        let value = exclude(&["A", "B\"x"].map(str::to_owned));
        let table: Table = value.parse().unwrap();
        let list = table[POLICY]["exclude"].as_array().unwrap();
        let list: Vec<&str> = list.iter().filter_map(Value::as_str).collect();
        assert_eq!(list, ["A", "B\"x"]);
    }

    fn kept(mut overrides: Json) -> Json {
        let overrides_of = overrides.as_object_mut().unwrap();
        keep_excluded(overrides_of, &["KEY", "X_*"].map(str::to_owned));
        overrides
    }

    #[test]
    fn whatever_a_thread_is_loaded_with_its_commands_see_nothing_that_the_worker_excludes() {
        for nothing in [json!({}), json!({ "model": "m", "shell_environment_policyx": {} })] {
            assert_eq!(kept(nothing.clone()), nothing);
        }
        let path = |key: &str| format!("shell_environment_policy.{key}");
        let (exclude, all) = (path("exclude"), json!(["KEY", "X_*"]));
        for (said, left) in [
            (json!({ &exclude: ["FOO", "KEY"] }), json!({ &exclude: ["KEY", "X_*", "FOO"] })),
            (json!({ &exclude: [] }), json!({ &exclude: all })),
            (json!({ POLICY: {} }), json!({ &exclude: all })),
            (json!({ path("inherit"): "all" }), json!({ path("inherit"): "all", &exclude: all })),
            (
                json!({ &exclude: ["FOO"], POLICY: { "inherit": "all", "exclude": [] }, "model": "m" }),
                json!({ "model": "m", path("inherit"): "all", &exclude: ["KEY", "X_*", "FOO"] }),
            ),
            // The turn's variables are not lost beside a table of them.
            (
                json!({ POLICY: { "set": { "A": "1", "B": "2" } }, path("set.B"): "3" }),
                json!({ path("set.A"): "1", path("set.B"): "3", &exclude: all }),
            ),
            (
                json!({ path("set"): { "A.B": "1" }, path("set.C"): "2" }),
                json!({ path("set"): { "A.B": "1", "C": "2" }, &exclude: all }),
            ),
            // Codex refuses these.
            (json!({ POLICY: 7, &exclude: [] }), json!({ POLICY: 7 })),
            (json!({ POLICY: null }), json!({ POLICY: null })),
            (json!({ &exclude: "KEY" }), json!({ &exclude: "KEY" })),
        ] {
            assert_eq!(kept(said.clone()), left, "{said}");
        }
    }
}
