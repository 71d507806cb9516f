//! `info`: what a sidecar is, and how it does.

use std::io::{self, Write as _};
use std::time::Duration;

use super::client::{self, AddrArgs};
use super::failure::CommandResult;
use super::{json, refusal, words};
use crate::pb;

#[derive(Debug, clap::Args)]
pub(super) struct InfoArgs {
    #[command(flatten)]
    addr: AddrArgs,
    /// Print JSON, all limits included
    #[arg(long)]
    json: bool,
}

pub(super) async fn info(args: InfoArgs) -> CommandResult {
    let InfoArgs { addr, json } = args;
    let caller = client::connect(&addr).await?;
    let info = caller.get_server_info().await.map_err(refusal::failure)?;
    let mut out = io::stdout();
    if json {
        writeln!(out, "{}", json::line(&info)?)?;
    } else {
        out.write_all(text(&info).as_bytes())?;
    }
    Ok(0)
}

fn text(info: &pb::GetServerInfoResponse) -> String {
    let ready = if info.ready {
        "ready for turns".to_owned()
    } else {
        let reason = words::plain(&info.not_ready_reason);
        format!("not ready: {reason}: {}", words::plain(&info.not_ready_message))
    };
    let model =
        if info.offline_model { "the built-in offline model" } else { "the CLI's provider" };
    let key = match info.api_key_fingerprint.as_str() {
        "" => "none in its environment".to_owned(),
        fingerprint => format!("fingerprint {}", words::plain(fingerprint)),
    };
    let state = match &info.state {
        Some(state) => {
            let outlives = match state.durability() {
                pb::StateDurability::Power => ", outlives the loss of power",
                pb::StateDurability::Process => ", outlives the process",
                pb::StateDurability::Unspecified => "",
            };
            let pb::StateInfo { path, durability: _, bytes } = state;
            format!("in {}, {bytes} bytes{outlives}", words::plain(path))
        }
        None => "nowhere: a restart forgets all contexts".to_owned(),
    };
    let limits = info.limits.unwrap_or_default();
    let counts = info.counts.unwrap_or_default();
    let of = |most: u32| if most == 0 { String::new() } else { format!(" of {most}") };
    let lines = [
        ("sidecar", words::or_dash(&info.sidecar_version)),
        ("up for", words::ago(info.start_time.as_ref())),
        ("readiness", ready),
        ("drain", words::word(info.drain_state().as_str_name(), "DRAIN_STATE_")),
        (
            "codex",
            format!(
                "{} at {}",
                words::or_dash(&info.cli_version),
                words::or_dash(&info.codex_path)
            ),
        ),
        ("codex home", words::or_dash(&info.codex_home)),
        ("state", state),
        ("model", model.to_owned()),
        ("key", key),
        ("workers", format!("{} ready of {}", counts.ready_workers, limits.workers)),
        (
            "turns",
            format!(
                "{}{} running, {}{} waiting, {} retained",
                counts.running_turns,
                of(limits.max_running_turns),
                counts.queued_turns,
                of(limits.max_queued_turns),
                counts.retained_turns
            ),
        ),
        ("quotas", quotas(&limits, &counts)),
        ("contexts", counts.contexts.to_string()),
        (
            "timeouts",
            format!(
                "idle {}, turn {}, answer {}",
                time(limits.default_idle_timeout.as_ref()),
                time(limits.default_turn_timeout.as_ref()),
                time(limits.default_ask_timeout.as_ref())
            ),
        ),
    ];
    lines.map(|(name, value)| format!("{name:<12}{value}\n")).concat()
}

/// What is bounded over time.
fn quotas(limits: &pb::ServerLimits, counts: &pb::ServerCounts) -> String {
    let turns = match limits.turns_per_minute {
        Some(most) => format!("{most} turns a minute"),
        None => "no bound of turns a minute".to_owned(),
    };
    let tokens = match limits.tokens_per_day {
        Some(most) => {
            format!("{} of {most} tokens used today (UTC)", counts.tokens_today.unwrap_or_default())
        }
        None => "none of tokens a day".to_owned(),
    };
    format!("{turns}, {tokens}")
}

fn time(duration: Option<&prost_types::Duration>) -> String {
    match duration.and_then(|duration| Duration::try_from(*duration).ok()) {
        Some(duration) => humantime::format_duration(duration).to_string(),
        None => "none".to_owned(),
    }
}
