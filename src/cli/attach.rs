//! `attach`: joins a turn that runs, or looks at one that has ended and is retained.

use super::answers::{QuestionArgs, Unasked};
use super::client::{self, AddrArgs};
use super::failure::CommandResult;
use super::refusal::Words;
use super::target::TurnTarget;
use super::turn::{Begin, follow_turn};
use super::watch::{OutputArgs, Watch};
use crate::pb;

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Ctrl-C leaves, and the turn goes on; `codex-sidecar interrupt` stops it. The exit status is that of `run`.

Examples:
  codex-sidecar attach --context ticket-4711
  codex-sidecar attach 01a202ba-f49f-728a-b3db-f796a144f1de --after 120 --json")]
pub(super) struct AttachArgs {
    #[command(flatten)]
    addr: AddrArgs,
    #[command(flatten)]
    target: TurnTarget,
    /// Only what came after the event of this number
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    after: u64,
    #[command(flatten)]
    questions: QuestionArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) async fn attach(args: AttachArgs) -> CommandResult {
    let AttachArgs { addr, target, after, questions, output } = args;
    let mut watch =
        Watch::new(&output, &questions, Unasked::Leave, false, Words::default())?.looking_on();
    let caller = client::connect(&addr).await?;
    let request = pb::AttachTurnRequest { target: Some(target.to_attach()), after_sequence: after };
    let person = watch.person();
    let told = follow_turn(&caller, Begin::Attach(request), &mut watch, &person).await?;
    watch.conclude(told)
}
