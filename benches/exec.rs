//! One turn through the drop-in, through `codex exec`, and through a connection that is there:
//! the same prompt on the same scripted model, one after the other, round by round.
//!
//! What the process itself costs is measured on a turn that the sidecar refuses at once, so that
//! what Codex does is not in it: from the process's start to its end, less the same call on a
//! connection that is there.
//!
//! `cargo bench --bench exec [-- ROUNDS]`. Ends with 1 when the drop-in is not at least 2.5 times
//! faster than `codex exec`, or costs more than 15 ms by itself (p50 each).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a bench fails by panicking, and says where"
)]

#[path = "../tests/it/support/mod.rs"]
mod support;

use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use support::{Sidecar, codex_path};

const PROMPT: &str = "say something";
const LEAST_SPEEDUP: f64 = 2.5;
const MOST_OWN_COST: Duration = Duration::from_millis(15);

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if !arguments.iter().any(|argument| argument == "--bench") {
        // `cargo test --all-targets` runs benches too; numbers of a loaded machine say nothing.
        return ExitCode::SUCCESS;
    }
    let rounds = arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(40);

    let sidecar = Sidecar::start().await;
    let home = sidecar.place.path().join("plain-home");
    std::fs::create_dir(&home).unwrap();
    let mut settings = sidecar.model.config_overrides();
    // As in the sidecar: a login shell per thread, left behind when its Codex ends.
    settings.push("features.shell_snapshot=false".to_owned());
    std::fs::write(home.join("config.toml"), settings.join("\n")).unwrap();
    let (work, address) = (sidecar.place.work(), sidecar.addresses[0].to_string());
    let real = || {
        let mut command = Command::new(codex_path());
        command.env("CODEX_HOME", &home).current_dir(&work);
        command
    };
    let drop_in = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_codex-sidecar"));
        command.env("CODEX_SIDECAR_ADDR", &address).current_dir(&work);
        command
    };

    let mut times: [Vec<Duration>; 5] = Default::default();
    for round in 0..=rounds {
        let measured = [
            run(real()).await,
            run(drop_in()).await,
            through_a_connection(&sidecar).await,
            refused(drop_in()).await,
            refused_on_a_connection(&sidecar).await,
        ];
        // The first one finds everything cold.
        if round > 0 {
            for (times, took) in times.iter_mut().zip(measured) {
                times.push(took);
            }
        }
    }

    let names = [
        "codex exec",
        "codex-sidecar exec",
        "RunTurn, connected",
        "codex-sidecar exec, refused",
        "RunTurn, connected, refused",
    ];
    println!("{:<28} {:>9} {:>9} {:>9}", "one turn", "p50", "p90", "max");
    for (name, times) in names.iter().zip(&mut times) {
        times.sort();
        let [p50, p90, max] = [0.5, 0.9, 1.0].map(|part| show(at(times, part)));
        println!("{name:<28} {p50:>9} {p90:>9} {max:>9}");
    }
    let [real, drop_in, _, refused, connected] = times.each_ref().map(|times| at(times, 0.5));
    let speedup = real.as_secs_f64() / drop_in.as_secs_f64();
    let own = refused.saturating_sub(connected);
    println!(
        "speedup {speedup:.2} (at least {LEAST_SPEEDUP}), own cost {} (at most 15 ms)",
        show(own)
    );
    println!("{rounds} rounds, p50 of the same run");
    ExitCode::from(u8::from(speedup < LEAST_SPEEDUP || own > MOST_OWN_COST))
}

/// A whole turn in a process of its own, from its start to its end.
async fn run(mut command: Command) -> Duration {
    command
        .args(["exec", "--experimental-json", "--sandbox", "danger-full-access", "-"])
        .env_remove("CODEX_API_KEY")
        .env_remove("OPENAI_API_KEY")
        .env_remove("OPENAI_BASE_URL")
        .env_remove("CODEX_SIDECAR_CONTEXT")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let began = Instant::now();
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(PROMPT.as_bytes()).await.unwrap();
    drop(stdin);
    let output = child.wait_with_output().await.unwrap();
    let took = began.elapsed();
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && told.contains("turn.completed"), "{told}");
    took
}

/// The same turn without a process of its own.
async fn through_a_connection(sidecar: &Sidecar) -> Duration {
    let mut request = support::prompt("", PROMPT);
    request.unbound = true;
    let options = request.thread_options.get_or_insert_default();
    options.set_sandbox_mode(codex_sidecar::pb::SandboxMode::DangerFullAccess);
    options.set_approval_policy(codex_sidecar::pb::ApprovalPolicy::Never);
    let began = Instant::now();
    sidecar.run(request).await;
    began.elapsed()
}

/// A directory that is not there.
const NOWHERE: &str = "/nowhere/at/all";

async fn refused(mut command: Command) -> Duration {
    command.args(["exec", "--experimental-json", "--cd", NOWHERE, PROMPT]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let began = Instant::now();
    let status = command.status().await.unwrap();
    let took = began.elapsed();
    assert_eq!(status.code(), Some(1));
    took
}

async fn refused_on_a_connection(sidecar: &Sidecar) -> Duration {
    let mut request = support::prompt("", PROMPT);
    request.unbound = true;
    let options = request.thread_options.get_or_insert_default();
    options.working_directory = Some(NOWHERE.to_owned());
    let began = Instant::now();
    sidecar.refused(request).await;
    began.elapsed()
}

fn at(sorted: &[Duration], part: f64) -> Duration {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * part).round() as usize).copied().unwrap_or_default()
}

fn show(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1000.0)
}
