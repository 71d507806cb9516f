//! The secrets that Codex has of its user: what its configuration and its login hold or name.
//!
//! They are looked up only to be taken out of what leaves the process.

use serde_json::Value as Json;
use toml::{Table, Value};

/// Where secrets are.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Secrets {
    /// Texts that are secret.
    pub values: Vec<String>,
    /// Environment variables whose values are.
    pub variables: Vec<String>,
    /// All environment variables that are read, whatever is in them.
    pub named: Vec<String>,
}

/// The secrets that a `config.toml`, or what takes its place, holds or names. One that can't be read
/// has none: Codex can't read it either.
pub(crate) fn of_config(config: &Table) -> Secrets {
    let mut secrets = Secrets::default();
    let tables = |name: &str| {
        let table = config.get(name).and_then(Value::as_table);
        table.into_iter().flat_map(Table::values).filter_map(Value::as_table)
    };
    for provider in tables("model_providers") {
        secrets.variables.extend(text(provider, "env_key"));
        secrets.values.extend(text(provider, "experimental_bearer_token"));
        secrets.values.extend(named_secret(provider, "query_params"));
        secrets.add_headers(provider);
    }
    for server in tables("mcp_servers") {
        secrets.variables.extend(text(server, "bearer_token_env_var"));
        secrets.values.extend(text(server, "bearer_token"));
        secrets.values.extend(named_secret(server, "env"));
        let passed = passed_variables(server);
        secrets.variables.extend(passed.iter().filter(|name| is_secret(name)).cloned());
        secrets.named.extend(passed);
        secrets.add_headers(server);
    }
    secrets.named.extend(secrets.variables.clone());
    secrets
}

/// The secrets of an `auth.json`, the login that Codex keeps.
pub(crate) fn of_login(login: &str) -> Vec<String> {
    let login: Json = serde_json::from_str(login).unwrap_or_default();
    let tokens = ["id_token", "access_token", "refresh_token"].map(|name| &login["tokens"][name]);
    let all = [&login["OPENAI_API_KEY"]].into_iter().chain(tokens);
    all.filter_map(Json::as_str).map(str::to_owned).collect()
}

impl Secrets {
    fn add_headers(&mut self, table: &Table) {
        self.values.extend(named_secret(table, "http_headers"));
        self.variables.extend(named_secret(table, "env_http_headers"));
        let variables =
            table.get("env_http_headers").and_then(Value::as_table).into_iter().flatten();
        self.named.extend(variables.filter_map(|(_, name)| name.as_str()).map(str::to_owned));
    }
}

fn text(table: &Table, key: &str) -> Option<String> {
    table.get(key).and_then(Value::as_str).map(str::to_owned)
}

/// The variables that a server gets of Codex's environment.
fn passed_variables(server: &Table) -> Vec<String> {
    let variables = server.get("env_vars").and_then(Value::as_array).into_iter().flatten();
    let name = |variable: &Value| match variable {
        Value::Table(variable) => text(variable, "name"),
        variable => variable.as_str().map(str::to_owned),
    };
    variables.filter_map(name).collect()
}

/// The values of a table whose names say that they are secret; without the scheme before a token.
fn named_secret(table: &Table, key: &str) -> Vec<String> {
    let entries = table.get(key).and_then(Value::as_table).into_iter().flatten();
    entries
        .filter(|(name, _)| is_secret(name))
        .filter_map(|(_, value)| value.as_str())
        .map(|value| value.strip_prefix("Bearer ").unwrap_or(value).to_owned())
        .collect()
}

/// Whether what has this name is a secret. `GIT_AUTHOR_NAME`, `SSH_AUTH_SOCK` and `TOKENIZER_PATH` are
/// not: their values stand in many texts that must stay whole.
pub(super) fn is_secret(name: &str) -> bool {
    const ANYWHERE: [&str; 7] =
        ["token", "secret", "password", "passwd", "credential", "cookie", "apikey"];
    const PLACES: [&str; 6] = ["sock", "path", "file", "dir", "name", "email"];
    let name = name.to_ascii_lowercase();
    let words: Vec<&str> = name.split(['_', '-', '.']).collect();
    if words.last().is_some_and(|word| PLACES.contains(word)) {
        return false;
    }
    words.iter().any(|word| {
        let word = word.trim_end_matches(|c: char| c.is_ascii_digit());
        let word = word.strip_suffix("s").filter(|word| !word.ends_with('s')).unwrap_or(word);
        (ANYWHERE.iter().any(|part| word.contains(part)) && !word.contains("tokeni"))
            || word.ends_with("key")
            || word.ends_with("auth")
            || ["pat", "pass", "authorization"].contains(&word)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_configuration_and_a_login_hold_or_name_is_found() {
        let config = toml::toml! {
            model = "m"
            [model_providers.x]
            env_key = "X_KEY"
            experimental_bearer_token = "bearer-value"
            query_params = { "api-key" = "query-value", "api-version" = "2026" }
            http_headers = { Authorization = "Bearer header-value", "X-Team" = "team" }
            env_http_headers = { "X-Api-Key" = "X_HEADER_KEY", "X-Org" = "ORG" }
            [mcp_servers.y]
            bearer_token_env_var = "Y_TOKEN"
            env_vars = ["GITHUB_PAT", "PATH", { name = "Z_TOKEN", source = "local" }]
            env = { Y_SECRET = "y-value", HOME = "/home" }
        };
        let Secrets { values, variables, named } = of_config(&config);
        assert_eq!(values, ["bearer-value", "query-value", "header-value", "y-value"]);
        assert_eq!(variables, ["X_KEY", "X_HEADER_KEY", "Y_TOKEN", "GITHUB_PAT", "Z_TOKEN"]);
        assert!(
            named.contains(&"ORG".to_owned()) && named.contains(&"PATH".to_owned()),
            "{named:?}"
        );
        assert!(variables.iter().all(|name| named.contains(name)), "{named:?}");
        assert_eq!(of_config(&toml::toml! { model_providers = 7 }), Secrets::default());
        let login =
            r#"{"OPENAI_API_KEY": null, "tokens": {"access_token": "a", "account_id": "b"}}"#;
        assert_eq!(of_login(login), ["a"]);
        assert_eq!(of_login("what"), Vec::<String>::new());
    }

    #[test]
    fn a_name_tells_a_secret_from_a_place_and_a_person() {
        for name in [
            "Authorization",
            "Proxy-Authorization",
            "X-Api-Key",
            "x-goog-api-key",
            "apiKey",
            "API_KEYS",
            "KEY2",
            "GITHUB_PAT",
            "DB_PASS",
            "DB_PASSWORD",
            "OAUTH_TOKEN",
            "X-Auth",
            "CLIENT_SECRET",
            "Cookie",
            "AWS_SECRET_ACCESS_KEY",
            "authToken",
            "CREDENTIALS",
        ] {
            assert!(is_secret(name), "{name}");
        }
        for name in [
            "GIT_AUTHOR_NAME",
            "GIT_AUTHOR_EMAIL",
            "AUTHOR",
            "XAUTHORITY",
            "SSH_AUTH_SOCK",
            "KEYBOARD",
            "TOKENIZER_PATH",
            "TOKENIZERS_PARALLELISM",
            "GOOGLE_CREDENTIALS_FILE",
            "PATH",
            "HOME",
            "",
        ] {
            assert!(!is_secret(name), "{name}");
        }
    }
}
