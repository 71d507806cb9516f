//! `turns`: those that run, wait, or have ended and are retained.

use std::io::{self, Write as _};

use super::client::{self, AddrArgs};
use super::failure::CommandResult;
use super::target::ContextThread;
use super::{json, refusal, table, words};
use crate::pb;

const PAGE: i32 = 1000;

#[derive(Debug, clap::Args)]
pub(super) struct TurnsArgs {
    #[command(flatten)]
    addr: AddrArgs,
    /// Only those of this context
    #[arg(long, value_name = "ID")]
    context: Option<String>,
    #[command(flatten)]
    thread: ContextThread,
    /// Only those that run or wait
    #[arg(long)]
    running: bool,
    /// Print JSON, one turn a line
    #[arg(long)]
    json: bool,
}

pub(super) async fn turns(args: TurnsArgs) -> CommandResult {
    let TurnsArgs { addr, context, thread, running, json } = args;
    let caller = client::connect(&addr).await?;
    let context = context.map(|context_id| thread.of(context_id));
    let mut rows = Vec::new();
    let mut page_token = String::new();
    let mut out = io::stdout();
    loop {
        let request =
            pb::ListTurnsRequest { context: context.clone(), page_size: PAGE, page_token };
        let page = caller.list_turns(request).await.map_err(refusal::failure)?;
        let wanted = page.turns.iter().filter(|turn| !running || has_not_ended(turn));
        for turn in wanted {
            if json {
                writeln!(out, "{}", json::line(turn)?)?;
            } else {
                rows.push(row(turn));
            }
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    if !json {
        let titles =
            ["TURN", "CONTEXT", "STATE", "BEGAN AGO", "WORKER", "LAST EVENT", "TOKENS", "ASKS"];
        table::write(&mut out, titles, &rows)?;
    }
    Ok(0)
}

fn has_not_ended(turn: &pb::TurnInfo) -> bool {
    matches!(turn.state(), pb::TurnState::Waiting | pb::TurnState::Running)
}

fn row(turn: &pb::TurnInfo) -> [String; 8] {
    let state = words::word(turn.state().as_str_name(), "TURN_STATE_");
    let state = match (turn.queue_position, turn.reason.as_str()) {
        (0, "") => state,
        (0, reason) => format!("{state} ({})", words::plain(reason)),
        (position, _) => format!("{state} (position {position})"),
    };
    let tokens = match &turn.usage {
        Some(usage) => format!("{} in, {} out", usage.input_tokens, usage.output_tokens),
        None => "-".to_owned(),
    };
    let context = turn.context.as_ref().map_or("", |context| context.context_id.as_str());
    let last = match turn.last_sequence {
        0 => "-".to_owned(),
        number => {
            let ago = words::ago(turn.last_event_time.as_ref());
            format!("{number} {}, {ago} ago", words::plain(&turn.last_event))
        }
    };
    [
        words::plain(&turn.turn_id),
        words::or_dash(context),
        state,
        words::ago(turn.create_time.as_ref()),
        words::or_dash(&turn.worker_id),
        last,
        tokens,
        words::or_dash(&turn.pending_request_ids.join(", ")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_one_row_whatever_its_state() {
        let waiting = pb::TurnInfo {
            turn_id: "t".to_owned(),
            state: pb::TurnState::Waiting.into(),
            queue_position: 2,
            ..Default::default()
        };
        let expected = ["t", "-", "waiting (position 2)", "-", "-", "-", "-", "-"];
        assert_eq!(row(&waiting), expected.map(str::to_owned));
        assert!(has_not_ended(&waiting));
        let failed = pb::TurnInfo {
            turn_id: "t".to_owned(),
            context: Some(pb::ContextRef { context_id: "c".to_owned(), ..Default::default() }),
            state: pb::TurnState::Failed.into(),
            reason: "WORKER_LOST".to_owned(),
            worker_id: "w".to_owned(),
            usage: Some(pb::Usage { input_tokens: 5, output_tokens: 2, ..Default::default() }),
            pending_request_ids: vec!["1".to_owned(), "2".to_owned()],
            ..Default::default()
        };
        let expected = ["t", "c", "failed (WORKER_LOST)", "-", "w", "-", "5 in, 2 out", "1, 2"];
        assert_eq!(row(&failed), expected.map(str::to_owned));
        assert!(!has_not_ended(&failed));
    }
}
