//! `interrupt`: stops a turn, with all that it started.

use std::io::{self, Write as _};

use super::client::{self, AddrArgs};
use super::failure::CommandResult;
use super::target::TurnTarget;
use super::{json, refusal};
use crate::pb;
use crate::pb::turn_event::Event;

#[derive(Debug, clap::Args)]
pub(super) struct InterruptArgs {
    #[command(flatten)]
    addr: AddrArgs,
    #[command(flatten)]
    target: TurnTarget,
    /// Print the turn's last event as JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn interrupt(args: InterruptArgs) -> CommandResult {
    let InterruptArgs { addr, target, json } = args;
    let caller = client::connect(&addr).await?;
    let turn_id = target.running(&caller).await?;
    let response = caller.interrupt_turn(turn_id.clone()).await.map_err(refusal::failure)?;
    let pb::InterruptTurnResponse { terminal_event } = response;
    let terminal_event = terminal_event.unwrap_or_default();
    if json {
        writeln!(io::stdout(), "{}", json::line(&terminal_event)?)?;
        return Ok(0);
    }
    let how = match &terminal_event.event {
        Some(Event::TurnInterrupted(_)) => "was interrupted",
        Some(Event::TurnCompleted(_)) => "had completed already",
        Some(Event::TurnFailed(_)) => "had failed already",
        _ => "has ended",
    };
    writeln!(io::stdout(), "turn {turn_id} {how}")?;
    Ok(0)
}
