//! A sidecar whose workers are the scripted app-server of `examples/fake_app_server`, for what the
//! real CLI can't be made to show.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use codex_sidecar::parts::config::Config;

use super::Sidecar;

/// The scripted app-server; built if the test was started in a way that did not.
pub fn fake_cli() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        // target/<profile>/deps/<test>
        let test = std::env::current_exe().unwrap();
        let profile = test.parent().and_then(Path::parent).expect("a profile's directory");
        let fake = profile.join("examples/fake_app_server");
        if !fake.exists() {
            let mut build = Command::new(env!("CARGO"));
            build.args(["build", "--quiet", "--example", "fake_app_server"]);
            if profile.ends_with("release") {
                build.arg("--release");
            }
            assert!(build.status().expect("cargo").success(), "the scripted app-server");
        }
        fake
    })
}

/// One scripted worker, ready for turns, all else by default.
pub async fn start() -> Sidecar {
    with(|_| {}).await
}

/// The same with another configuration.
pub async fn with(change: impl FnOnce(&mut Config)) -> Sidecar {
    Sidecar::with(|config| {
        config.codex_path = Some(fake_cli().to_owned());
        change(config);
    })
    .await
}

/// Sets the faults of the processes of a sidecar from now on.
pub fn set_faults(sidecar: &Sidecar, faults: &serde_json::Value) {
    let home = sidecar.place.codex_home();
    let written = home.join("fake.json.new");
    std::fs::write(&written, faults.to_string()).unwrap();
    std::fs::rename(written, home.join("fake.json")).unwrap();
}
