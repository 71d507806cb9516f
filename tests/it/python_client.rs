//! Another language's client, with stubs of its own from `proto/`, sees what Rust sees.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crate::questions::with_desk;
use crate::support::binary::Binary;
use crate::support::{self, Place};

/// Its environment is made anew on a fresh machine, through a package index.
const LIMIT: Duration = Duration::from_secs(600);

#[tokio::test]
async fn a_python_client_sees_the_contract_survives_its_connection_and_reaches_a_unix_socket() {
    let sockets = support::short_directory();
    let socket = sockets.path().join("sidecar.sock");
    let place = Place::new();
    with_desk(&place);
    let sidecar = Binary::cold(place, |command| {
        command.arg("--listen").arg(format!("unix:{}", socket.display()));
    })
    .await;
    sidecar.ready().await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/run.sh");
    let mut command = tokio::process::Command::new(script);
    command
        .env("CODEX_SIDECAR_ADDR", &sidecar.address)
        .env("CODEX_SIDECAR_SOCKET", &socket)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let output = support::within(LIMIT, "the Python client", command.output()).await.unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{told}", String::from_utf8_lossy(&output.stdout));
    // A run that tests nothing proves nothing.
    assert!(told.contains("\nOK\n") && !told.contains("Ran 0 tests"), "{told}");
    assert!(!told.contains("left out"), "{told}");
    sidecar.stop().await;
}
