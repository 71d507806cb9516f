//! Another language's client, with stubs of its own from `proto/`, sees what Rust sees.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, and says where"
)]

mod support;

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use support::binary::Binary;

/// Its environment is made anew on a fresh machine, through a package index.
const LIMIT: Duration = Duration::from_secs(600);

#[tokio::test]
async fn a_python_client_runs_two_turns_of_one_context() {
    let sidecar = Binary::start().await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/run.sh");
    let mut command = tokio::process::Command::new(script);
    command
        .env("CODEX_SIDECAR_ADDR", &sidecar.address)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let output = support::within(LIMIT, "the Python client", command.output()).await.unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{told}", String::from_utf8_lossy(&output.stdout));
    // A run that tests nothing proves nothing.
    assert!(told.contains("\nOK") && !told.contains("Ran 0 tests"), "{told}");
    sidecar.stop().await;
}
