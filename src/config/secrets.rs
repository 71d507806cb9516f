//! What of a value that is free in its form may be a secret, told by its key.

/// The value as a fault shows it.
pub(super) fn show(value: &toml::Value) -> String {
    match value {
        toml::Value::Table(table) => {
            let mut table = table.clone();
            redact(&mut table, "", &mut Vec::new());
            toml::Value::Table(table).to_string()
        }
        value => value.to_string(),
    }
}

/// Takes out of the table what by its name may be a secret; `taken` gets the keys.
pub(super) fn redact(table: &mut toml::Table, path: &str, taken: &mut Vec<String>) {
    let keys: Vec<String> = table.keys().cloned().collect();
    for key in keys {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        match table.get_mut(&key) {
            Some(toml::Value::String(_)) if may_be_secret(&path) => {
                table.remove(&key);
                taken.push(path);
            }
            Some(toml::Value::Table(inner)) => redact(inner, &path, taken),
            _ => {}
        }
    }
}

/// Whether a dotted key looks like one of a secret.
fn may_be_secret(path: &str) -> bool {
    const SIGNS: [&str; 9] = [
        "token",
        "secret",
        "password",
        "passwd",
        "authorization",
        "credential",
        "bearer",
        "apikey",
        "cookie",
    ];
    let path = path.to_ascii_lowercase();
    let last = path.rsplit('.').next().unwrap_or(&path);
    // Names of environment variables are no secrets.
    let names_a_variable = last.ends_with("env_key") || last.ends_with("env_var");
    let key_like = last == "key" || last.ends_with("_key") || last.ends_with("-key");
    let header =
        path.split('.').any(|part| ["http_headers", "query_params", "env"].contains(&part));
    !names_a_variable && (header || key_like || SIGNS.iter().any(|sign| last.contains(sign)))
}
