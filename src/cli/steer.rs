//! `steer`: adds input to a turn that runs.

use std::io::{self, Write as _};

use super::args::{InputArgs, prompt};
use super::client::{self, AddrArgs};
use super::failure::{CommandResult, Failure};
use super::refusal::Words;
use super::target::{ContextThread, TurnTarget};
use super::words::plain;
use crate::pb;

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  codex-sidecar steer --context ticket-4711 'Leave the migrations alone'
  codex-sidecar steer 01a202ba-f49f-728a-b3db-f796a144f1de < remarks.md")]
pub(super) struct SteerArgs {
    #[command(flatten)]
    addr: AddrArgs,
    /// In place of TURN: the context whose running turn is meant
    #[arg(long, value_name = "ID")]
    context: Option<String>,
    #[command(flatten)]
    thread: ContextThread,
    #[command(flatten)]
    inputs: InputArgs,
    /// The turn, by the id that `run` and `turns` show (not with --context), and what to say; - or
    /// nothing reads that from a pipe
    #[arg(value_names = ["TURN", "PROMPT"], num_args = 0..=2)]
    words: Vec<String>,
}

pub(super) async fn steer(args: SteerArgs) -> CommandResult {
    let SteerArgs { addr, context, thread, inputs, words } = args;
    let mut words = words.into_iter();
    let turn = if context.is_some() { None } else { words.next() };
    let said = words.next();
    if words.next().is_some() {
        return Err(Failure::usage("with --context there is no TURN, and one PROMPT"));
    }
    if turn.is_none() && context.is_none() {
        return Err(Failure::usage("which turn? Give TURN or --context ID"));
    }
    let target = TurnTarget { turn, context, thread };
    let inputs = inputs.inputs(Some(prompt(said.as_deref())?))?;
    let words = Words::of(&inputs);
    let caller = client::connect(&addr).await?;
    let turn_id = target.running(&caller).await?;
    let request = pb::SteerTurnRequest { turn_id: turn_id.clone(), inputs };
    let taken = caller.steer_turn(request).await.map_err(|refused| words.failure(refused))?;
    let by = plain(&taken.codex_turn_id);
    writeln!(io::stdout(), "turn {turn_id} has taken it (Codex's turn {by})")?;
    Ok(0)
}
