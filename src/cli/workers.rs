//! `workers`: the Codex processes of the pool.

use std::io::{self, Write as _};

use super::client::{self, AddrArgs};
use super::failure::CommandResult;
use super::{json, table, words};

#[derive(Debug, clap::Args)]
pub(super) struct WorkersArgs {
    #[command(flatten)]
    addr: AddrArgs,
    /// Print JSON, one worker a line
    #[arg(long)]
    json: bool,
}

pub(super) async fn workers(WorkersArgs { addr, json }: WorkersArgs) -> CommandResult {
    let caller = client::connect(&addr).await?;
    let workers = caller.list_workers().await?.workers;
    let info = caller.get_server_info().await?;
    let mut out = io::stdout().lock();
    if json {
        for worker in &workers {
            writeln!(out, "{}", json::line(worker)?)?;
        }
        return Ok(0);
    }
    let rows: Vec<[String; 9]> = workers
        .iter()
        .map(|worker| {
            let memory = match worker.resident_memory_bytes {
                0 => "-".to_owned(),
                bytes => format!("{} MiB", bytes >> 20),
            };
            [
                words::plain(&worker.worker_id),
                words::word(worker.state().as_str_name(), "WORKER_STATE_"),
                if worker.pid == 0 { "-".to_owned() } else { worker.pid.to_string() },
                words::ago(worker.start_time.as_ref()),
                format!("{} ({} running)", worker.turns_started, worker.running_turns),
                worker.loaded_threads.to_string(),
                memory,
                worker.restarts.to_string(),
                words::or_dash(&worker.last_error),
            ]
        })
        .collect();
    let titles =
        ["WORKER", "STATE", "PID", "AGE", "TURNS", "THREADS", "MEMORY", "RESTARTS", "LAST ERROR"];
    table::write(&mut out, titles, &rows)?;
    let state = if info.ready {
        "ready for turns".to_owned()
    } else {
        let reason = words::plain(&info.not_ready_reason);
        format!("not ready: {reason}: {}", words::plain(&info.not_ready_message))
    };
    let verified = if info.settings_verified {
        "settings of turns verified"
    } else {
        "settings of turns not verified"
    };
    writeln!(
        out,
        "\nsidecar {}, codex {} at {}, {state}, {verified}",
        words::plain(&info.sidecar_version),
        words::or_dash(&info.cli_version),
        words::or_dash(&info.codex_path),
    )?;
    Ok(0)
}
