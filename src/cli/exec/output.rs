//! What a turn shows as `codex exec --json` does: lines on standard output, warnings on stderr.

use std::io::{self, Write as _};
use std::sync::mpsc;

use super::failed;
use super::jsonl::{self, Renderer};
use crate::cli::failure::{Failure, tell};
use crate::cli::turn::Output;
use crate::grpc::caller::Refused;
use crate::pb;
use crate::pb::answer_request_request::Answer;
use crate::pb::codex_request::Kind as Question;
use crate::pb::turn_event::Event;

/// Writes on a thread of its own: whoever reads slowly must not keep this process from reading the
/// events, of which the sidecar retains only so many.
pub(super) struct JsonLines {
    lines: mpsc::Sender<Vec<u8>>,
    writer: std::thread::JoinHandle<io::Result<()>>,
    renderer: Renderer,
    failed_on_the_way: bool,
    last_message: Option<String>,
}

impl JsonLines {
    pub(super) fn start() -> JsonLines {
        let (lines, queue) = mpsc::channel::<Vec<u8>>();
        let writer = std::thread::spawn(move || {
            let mut out = io::stdout().lock();
            for line in queue {
                out.write_all(&line)?;
            }
            out.flush()
        });
        JsonLines {
            lines,
            writer,
            renderer: Renderer::default(),
            failed_on_the_way: false,
            last_message: None,
        }
    }

    /// Waits until all is written; gives whether an error was told that Codex did not get over, and
    /// the agent's last message.
    pub(super) fn finish(self) -> Result<(bool, Option<String>), Failure> {
        let JsonLines { lines, writer, renderer: _, failed_on_the_way, last_message } = self;
        drop(lines);
        match writer.join() {
            Ok(written) => written?,
            Err(_) => return Err(failed("can't write to standard output")),
        }
        Ok((failed_on_the_way, last_message))
    }
}

impl Output for JsonLines {
    fn event(&mut self, event: &pb::TurnEvent) -> Result<(), Failure> {
        for line in self.renderer.event(event) {
            let mut text = serde_json::to_vec(&line)
                .map_err(|error| failed(format!("can't render an event: {error}")))?;
            text.push(b'\n');
            // The writer ends early only when it can't write; `finish` knows why.
            self.lines.send(text).map_err(|_| Failure::OutputClosed)?;
        }
        match &event.event {
            Some(Event::ItemCompleted(pb::ItemCompleted { item: Some(item) })) => {
                if let Some(pb::item::Kind::AgentMessage(message)) = &item.kind {
                    self.last_message = Some(message.text.clone());
                }
            }
            Some(Event::ThreadError(pb::ThreadError { will_retry: false, .. })) => {
                self.failed_on_the_way = true;
            }
            Some(Event::Warning(warning)) if !jsonl::is_from_codex(warning) => {
                tell(&format!("warning: {}", warning.message));
            }
            _ => {}
        }
        Ok(())
    }

    /// Says nothing of it, as the real one does.
    fn interrupting(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    /// Says no at once, as the real one does: nobody is there to be asked.
    fn answer(&self, question: &pb::CodexRequest) -> Option<Answer> {
        match question.kind.as_ref()? {
            Question::CommandApproval(_) | Question::FileChangeApproval(_) => {
                let decision = pb::ApprovalDecision::Decline.into();
                Some(Answer::Approval(pb::ApprovalAnswer { decision, ..Default::default() }))
            }
            Question::PermissionsApproval(_) => Some(Answer::Permissions(Default::default())),
            Question::UserQuestions(_) => Some(Answer::UserQuestions(Default::default())),
            Question::Elicitation(_) => {
                let action = pb::ElicitationAction::Cancel.into();
                Some(Answer::Elicitation(pb::ElicitationAnswer { action, ..Default::default() }))
            }
            Question::ToolCall(_) => Some(Answer::ToolCall(Default::default())),
            Question::Unknown(_) => None,
        }
    }

    /// What the real one says, where that is known.
    fn refusal(&self, refused: Refused) -> Failure {
        match refused.reason.as_deref() {
            Some("NOT_A_GIT_REPOSITORY") => failed(
                "Not inside a trusted directory and --skip-git-repo-check was not specified.",
            ),
            _ => refused.into(),
        }
    }
}
