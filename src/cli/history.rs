//! `contexts history`: what happened on a thread, as Codex has it.

use std::io::{self, Write as _};

use super::client::{self, AddrArgs};
use super::failure::Failure;
use super::json;
use super::printer::{Printer, colours_wanted};
use super::refusal::Words;
use super::words::{ago, plain, show_error, word};
use crate::pb;
use crate::pb::read_thread_request::Target;

/// Prints the turns of a thread, the oldest first, page by page.
pub(super) async fn history(addr: &AddrArgs, json: bool, target: Target) -> Result<(), Failure> {
    let caller = client::connect(addr).await?;
    let mut printer = Printer::new(io::stdout(), colours_wanted(&io::stdout()));
    let mut page_token = String::new();
    let mut is_first = true;
    loop {
        let request =
            pb::ReadThreadRequest { target: Some(target.clone()), page_size: 0, page_token };
        let page = caller.read_thread(request).await;
        let page = page.map_err(|refused| Words::of_history().failure(refused))?;
        if std::mem::take(&mut is_first) && !json {
            printer.say(&format!("thread {}", plain(&page.thread_id)))?;
        }
        for turn in &page.turns {
            if json {
                writeln!(io::stdout(), "{}", json::line(turn)?)?;
            } else {
                show(turn, &mut printer)?;
            }
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(());
        }
    }
}

fn show(turn: &pb::ThreadTurn, printer: &mut Printer<impl io::Write>) -> Result<(), Failure> {
    let status = word(turn.status().as_str_name(), "THREAD_TURN_STATUS_");
    let when = match &turn.start_time {
        Some(_) => format!(", {} ago", ago(turn.start_time.as_ref())),
        None => String::new(),
    };
    printer.begin_turn();
    printer.say(&format!("\n— turn {} ({status}{when})", plain(&turn.codex_turn_id)))?;
    for item in &turn.items {
        printer.show_item(item)?;
    }
    if let Some(error) = &turn.error {
        printer.say(&format!("failed: {}", show_error(error)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_shown_with_its_items_and_its_error() {
        let text = pb::user_input::Input::Text("hello".to_owned());
        let said = pb::UserMessage { inputs: vec![pb::UserInput { input: Some(text) }] };
        let item = |id: &str, kind| pb::Item { id: id.to_owned(), kind: Some(kind) };
        let answer = pb::AgentMessage { text: "hi".to_owned(), ..Default::default() };
        let turn = pb::ThreadTurn {
            codex_turn_id: "t-1".to_owned(),
            status: pb::ThreadTurnStatus::Failed.into(),
            items: vec![
                item("1", pb::item::Kind::UserMessage(said)),
                item("2", pb::item::Kind::AgentMessage(answer)),
            ],
            error: Some(pb::TurnError {
                reason: "BAD_REQUEST".to_owned(),
                message: "no".to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let mut out = Vec::new();
        let mut printer = Printer::new(&mut out, false);
        // Twice: turns may number their items alike.
        show(&turn, &mut printer).unwrap();
        show(&turn, &mut printer).unwrap();
        let one = "\n— turn t-1 (failed)\n> hello\nhi\nfailed: BAD_REQUEST: no\n";
        assert_eq!(String::from_utf8(out).unwrap(), one.repeat(2));
    }
}
