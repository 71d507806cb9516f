//! `codex-sidecar mcp` with a client that is not ours.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use crate::support::{Sidecar, eventually, within};

/// An environment from the registry may have to be made first.
const LIMIT: Duration = Duration::from_secs(300);

#[tokio::test(flavor = "multi_thread")]
async fn the_mcp_package_of_python_runs_turns_answers_approvals_and_cancels() {
    let sidecar = Sidecar::with(|config| config.workers = 2).await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk/mcp/run.sh");
    let mut command = Command::new(script);
    command
        .env("CODEX_SIDECAR", env!("CARGO_BIN_EXE_codex-sidecar"))
        .env("CODEX_SIDECAR_ADDR", sidecar.addresses[0].to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let output = within(LIMIT, "the tests in Python", command.output()).await.unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{told}", String::from_utf8_lossy(&output.stdout));
    // A run that tests nothing proves nothing.
    assert!(told.contains("\nOK\n") && !told.contains("Ran 0 tests"), "{told}");
    // What the client gave up, the sidecar has ended too, and nothing of it was bound.
    eventually("the end of all turns", || async {
        (sidecar.info().await.counts.unwrap().running_turns == 0).then_some(())
    })
    .await;
    assert_eq!(sidecar.info().await.counts.unwrap().contexts, 0);
}
