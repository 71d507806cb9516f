//! Files that people write: the sidecar's configuration.

use std::ffi::OsString;

use tempfile::TempDir;

use super::Target;
use crate::config::{Config, ServeArgs};

pub(super) const TARGETS: &[Target] =
    &[Target { name: "config", seeds: configurations, holds: configuration, share: 8 }];

fn configurations() -> Vec<Vec<u8>> {
    // All that there is, as it is printed.
    let all = Config::default().to_toml(&Default::default());
    let some = r#"
listen = ["127.0.0.1:0", "unix:/run/s.sock"]
unix_mode = "0660"
unix_allow_uids = [1000]
workers = 2
[limits]
max_line_bytes = "16MiB"
max_waiting_turns = 7
[timeouts]
idle = "0"
tool = "1h 30m"
[worker]
disable_features = ["goals"]
config = { "features.goals" = true, a = { b = [1, 2.5, "x"] } }
[tools.codex_engineer]
model = "m"
sandbox_mode = "workspace-write"
approval_policy = "never"
additional_directories = ["a", "/b"]
config = { model_verbosity = "low" }
output_schema = '{"type":"object","properties":{}}'
dynamic_tools = [{ name = "n", description = "d", input_schema = { type = "object" } }]
idle_timeout = "5m"
"#;
    vec![all.into_bytes(), some.as_bytes().to_vec()]
}

thread_local! {
    static DIRECTORY: TempDir = tempfile::tempdir().unwrap();
}

/// What is loaded is printed so that it loads to the same; what is not is told with its place.
fn configuration(text: &[u8]) {
    let load = |text: &[u8]| {
        let path = DIRECTORY.with(|directory| directory.path().join("sidecar.toml"));
        std::fs::write(&path, text).unwrap();
        let args = ServeArgs { config: Some(path.into()), ..Default::default() };
        let home = |name: &str| (name == "HOME").then(|| OsString::from("/home/u"));
        Config::load_with_origins(args, &home)
    };
    match load(text) {
        Ok((config, origins)) => {
            let printed = config.to_toml(&origins);
            let (again, _) =
                load(printed.as_bytes()).unwrap_or_else(|faults| panic!("{faults}: {printed}"));
            assert_eq!(again, config, "{printed}");
        }
        Err(faults) => assert!(!faults.to_string().is_empty()),
    }
}
