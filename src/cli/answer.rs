//! `answer`: answers what a turn asks, from anywhere.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::time::Duration;

use clap::builder::PossibleValuesParser;

use super::args::{enum_name, parts};
use super::ask::{self, Terminal};
use super::client::{self, AddrArgs};
use super::failure::{CommandResult, Failure};
use super::refusal::Words;
use super::turn::unless_interrupted;
use super::words::show_question;
use super::{INTERRUPTED, REFUSED, refusal};
use crate::grpc::caller::Caller;
use crate::pb;
use crate::pb::answer_request_request::Answer;
use crate::pb::attach_turn_request::Target;
use crate::pb::turn_event::Event;

/// How long the replay of a turn must be silent before it is over.
const REPLAY: Duration = Duration::from_millis(300);

#[derive(Debug, clap::Args)]
#[command(
    group(clap::ArgGroup::new("way").multiple(false).args(
        ["yes", "no", "decision", "answers", "action", "permissions", "result"])),
    after_long_help = "\
Without one of these flags it asks, on a terminal. The first answer of a question counts.

Examples:
  codex-sidecar answer TURN                           asks what the turn asks
  codex-sidecar answer TURN REQUEST --yes
  codex-sidecar answer TURN REQUEST --decision accept-for-session
  codex-sidecar answer TURN REQUEST --answer color=Blue --answer size=L
  codex-sidecar answer TURN REQUEST --action accept --content '{\"name\": \"x\"}'
  codex-sidecar answer TURN REQUEST --result 'sunny, 21 degrees'")]
pub(super) struct AnswerArgs {
    #[command(flatten)]
    addr: AddrArgs,
    /// The turn, by the id that `run` and `turns` show
    #[arg(value_name = "TURN")]
    turn: String,
    /// What it asks, by the id that `run` and `turns` show; not needed where it is the only one
    #[arg(value_name = "REQUEST")]
    request: Option<String>,
    /// Yes, this once
    #[arg(long, short)]
    yes: bool,
    /// No
    #[arg(long, short)]
    no: bool,
    /// To an approval: what to do
    #[arg(long, value_name = "DECISION", value_parser = PossibleValuesParser::new(["accept", "accept-for-session", "decline", "cancel", "accept-with-exec-policy-amendment", "apply-network-policy-amendment"]))]
    decision: Option<String>,
    /// With accept-with-exec-policy-amendment: a word of the start of the commands that are allowed from
    /// now on; once for each word [default: what Codex proposes]
    #[arg(long, value_name = "WORD", requires = "decision", allow_hyphen_values = true)]
    amendment: Vec<String>,
    /// With apply-network-policy-amendment: the host to allow
    #[arg(long, value_name = "HOST", requires = "decision")]
    allow_host: Option<String>,
    /// With apply-network-policy-amendment: the host to deny
    #[arg(long, value_name = "HOST", requires = "decision", conflicts_with = "allow_host")]
    deny_host: Option<String>,
    /// To questions: an answer to one; may be given several times, also for one question
    #[arg(long = "answer", value_name = "QUESTION=ANSWER")]
    answers: Vec<String>,
    /// To an elicitation: what to do
    #[arg(long, value_name = "ACTION", value_parser = PossibleValuesParser::new(["accept", "decline", "cancel"]))]
    action: Option<String>,
    /// With --action accept: the form, as JSON
    #[arg(long, value_name = "JSON", requires = "action")]
    content: Option<String>,
    /// With --action accept: how long it holds, one of what the question offers: session, always
    #[arg(long, value_name = "HOW_LONG", requires = "action")]
    persist: Option<String>,
    /// To a permissions approval: what is granted, as JSON
    #[arg(long, value_name = "JSON")]
    permissions: Option<String>,
    /// With --permissions: how long it holds
    #[arg(long, value_name = "SCOPE", requires = "permissions", value_parser = PossibleValuesParser::new(["turn", "session"]))]
    scope: Option<String>,
    /// To the call of a lent function: what it gives back
    #[arg(long, value_name = "TEXT")]
    result: Option<String>,
    /// With --result: it did not go well
    #[arg(long, requires = "result")]
    failed: bool,
}

pub(super) async fn answer(args: AnswerArgs) -> CommandResult {
    let said = args.said()?;
    let caller = client::connect(&args.addr).await?;
    let person = Terminal::find(false);
    let answering = async {
        let (request_id, answer) = match (&args.request, said) {
            (Some(request_id), Some(answer)) => (request_id.clone(), answer),
            (_, said) => {
                let question = pending(&caller, &args.turn, args.request.as_deref()).await?;
                let answer = match (said, &person) {
                    (Some(answer), _) => answer,
                    (None, _) if args.yes => ask::yes(&question).ok_or_else(|| {
                        refused(format!("a yes is no answer to it: {}", show_question(&question)))
                    })?,
                    (None, _) if args.no => ask::no(&question)
                        .ok_or_else(|| refused("nobody can answer that".to_owned()))?,
                    (None, Some(person)) => ask::ask(&question, person)
                        .await?
                        .ok_or_else(|| refused("there was no answer".to_owned()))?,
                    (None, None) => {
                        return Err(Failure::usage(format!(
                            "there is no terminal to ask on, so give the answer: --yes, --no or \
                             another of `codex-sidecar answer --help`; asked is: {}",
                            show_question(&question)
                        )));
                    }
                };
                (question.request_id, answer)
            }
        };
        let request = pb::AnswerRequestRequest {
            turn_id: args.turn.clone(),
            request_id: request_id.clone(),
            answer: Some(answer),
        };
        caller
            .answer_request(request)
            .await
            .map_err(|refused| Words::of_answer().failure(refused))?;
        Ok(request_id)
    };
    match unless_interrupted(answering).await? {
        Some(request_id) => {
            writeln!(io::stdout(), "request {request_id} is answered")?;
            Ok(0)
        }
        None => Ok(INTERRUPTED),
    }
}

impl AnswerArgs {
    /// The answer, as far as it can be told without what is asked.
    fn said(&self) -> Result<Option<Answer>, Failure> {
        if let Some(decision) = &self.decision {
            let rule =
                |host: &String, allow| pb::NetworkPolicyAmendment { host: host.clone(), allow };
            let allowed = self.allow_host.as_ref().map(|host| rule(host, true));
            let denied = self.deny_host.as_ref().map(|host| rule(host, false));
            let name = enum_name("APPROVAL_DECISION_", decision);
            return Ok(Some(Answer::Approval(pb::ApprovalAnswer {
                decision: pb::ApprovalDecision::from_str_name(&name).map_or(0, Into::into),
                exec_policy_amendment: self.amendment.clone(),
                network_policy_amendment: allowed.or(denied),
            })));
        }
        if !self.answers.is_empty() {
            let mut answers: BTreeMap<String, Vec<String>> = BTreeMap::new();
            for answer in &self.answers {
                let (question, text) = parts("--answer", "QUESTION=ANSWER", answer)?;
                answers.entry(question).or_default().push(text);
            }
            let answers = answers
                .into_iter()
                .map(|(question_id, answers)| pb::UserQuestionAnswer { question_id, answers });
            return Ok(Some(Answer::UserQuestions(pb::UserQuestionsAnswer {
                answers: answers.collect(),
            })));
        }
        if let Some(action) = &self.action {
            let name = enum_name("ELICITATION_ACTION_", action);
            return Ok(Some(Answer::Elicitation(pb::ElicitationAnswer {
                action: pb::ElicitationAction::from_str_name(&name).map_or(0, Into::into),
                content_json: self.content.clone().unwrap_or_default(),
                persist: self.persist.clone().unwrap_or_default(),
            })));
        }
        if let Some(permissions) = &self.permissions {
            let scope = self.scope.as_deref().unwrap_or_default();
            let name = enum_name("PERMISSION_GRANT_SCOPE_", scope);
            return Ok(Some(Answer::Permissions(pb::PermissionsAnswer {
                permissions_json: permissions.clone(),
                scope: pb::PermissionGrantScope::from_str_name(&name).map_or(0, Into::into),
                strict_auto_review: None,
            })));
        }
        if let Some(result) = &self.result {
            let content = pb::tool_content::Content::Text(result.clone());
            return Ok(Some(Answer::ToolCall(pb::ToolCallAnswer {
                content: vec![pb::ToolContent { content: Some(content) }],
                success: !self.failed,
            })));
        }
        Ok(None)
    }
}

/// What the turn asks and nobody has answered: the one of this id, or the only one.
async fn pending(
    caller: &Caller,
    turn_id: &str,
    request_id: Option<&str>,
) -> Result<pb::CodexRequest, Failure> {
    let target = Some(Target::TurnId(turn_id.to_owned()));
    let request = pb::AttachTurnRequest { target, after_sequence: 0 };
    let mut events = caller.attach_turn(request).await.map_err(refusal::failure)?;
    let mut asked: Vec<pb::CodexRequest> = Vec::new();
    // The end of what is retained is not told: it is there when nothing comes for a while.
    while let Ok(event) = tokio::time::timeout(REPLAY, events.next()).await {
        match event.map_err(refusal::failure)?.map(|event| event.event) {
            Some(Some(Event::RequestRaised(pb::RequestRaised { request: Some(question) }))) => {
                asked.push(question);
            }
            Some(Some(Event::RequestResolved(resolved))) => {
                asked.retain(|question| question.request_id != resolved.request_id);
            }
            Some(_) => {}
            None => break,
        }
    }
    choose(asked, turn_id, request_id)
}

fn choose(
    mut asked: Vec<pb::CodexRequest>,
    turn_id: &str,
    request_id: Option<&str>,
) -> Result<pb::CodexRequest, Failure> {
    if let Some(request_id) = request_id {
        asked.retain(|question| question.request_id == request_id);
    }
    match (asked.pop(), asked.is_empty(), request_id) {
        (Some(question), true, _) => Ok(question),
        (None, _, Some(request_id)) => Err(refused(format!(
            "the turn {turn_id} asks nothing under {request_id:?}, or it is settled already"
        ))),
        (None, _, None) => Err(refused(format!("the turn {turn_id} asks nothing now"))),
        (Some(last), false, _) => {
            asked.push(last);
            let list = asked.iter().map(|question| {
                format!("\n  {}  {}", question.request_id, show_question(question))
            });
            let list: String = list.collect();
            Err(Failure::usage(format!("the turn asks several things; name one of them:{list}")))
        }
    }
}

fn refused(message: String) -> Failure {
    Failure::Told { message, code: REFUSED }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        answer: AnswerArgs,
    }

    fn said(words: &[&str]) -> Option<Answer> {
        let line = ["answer", "t", "r"].into_iter().chain(words.iter().copied());
        Line::try_parse_from(line).unwrap().answer.said().unwrap()
    }

    #[test]
    fn every_kind_of_answer_can_be_said() {
        let session = pb::ApprovalAnswer {
            decision: pb::ApprovalDecision::AcceptForSession.into(),
            ..Default::default()
        };
        assert_eq!(said(&["--decision", "accept-for-session"]), Some(Answer::Approval(session)));
        let amended = pb::ApprovalAnswer {
            decision: pb::ApprovalDecision::AcceptWithExecPolicyAmendment.into(),
            exec_policy_amendment: vec!["git".to_owned(), "-v".to_owned()],
            ..Default::default()
        };
        let words = [
            "--decision",
            "accept-with-exec-policy-amendment",
            "--amendment",
            "git",
            "--amendment",
            "-v",
        ];
        assert_eq!(said(&words), Some(Answer::Approval(amended)));
        let host = pb::ApprovalAnswer {
            decision: pb::ApprovalDecision::ApplyNetworkPolicyAmendment.into(),
            network_policy_amendment: Some(pb::NetworkPolicyAmendment {
                host: "x".to_owned(),
                allow: false,
            }),
            ..Default::default()
        };
        let words = ["--decision", "apply-network-policy-amendment", "--deny-host", "x"];
        assert_eq!(said(&words), Some(Answer::Approval(host)));
        let answer = |id: &str, answers: &[&str]| pb::UserQuestionAnswer {
            question_id: id.to_owned(),
            answers: answers.iter().map(|&answer| answer.to_owned()).collect(),
        };
        let questions = pb::UserQuestionsAnswer {
            answers: vec![answer("a", &["1", "2=3"]), answer("b", &["x"])],
        };
        let words = ["--answer", "a=1", "--answer", "b=x", "--answer", "a=2=3"];
        assert_eq!(said(&words), Some(Answer::UserQuestions(questions)));
        let form = pb::ElicitationAnswer {
            action: pb::ElicitationAction::Accept.into(),
            content_json: "{}".to_owned(),
            persist: "session".to_owned(),
        };
        let words = ["--action", "accept", "--content", "{}", "--persist", "session"];
        assert_eq!(said(&words), Some(Answer::Elicitation(form)));
        let granted = pb::PermissionsAnswer {
            permissions_json: "{}".to_owned(),
            scope: pb::PermissionGrantScope::Session.into(),
            strict_auto_review: None,
        };
        let words = ["--permissions", "{}", "--scope", "session"];
        assert_eq!(said(&words), Some(Answer::Permissions(granted)));
        let content = pb::tool_content::Content::Text("no".to_owned());
        let result = pb::ToolCallAnswer {
            content: vec![pb::ToolContent { content: Some(content) }],
            success: false,
        };
        assert_eq!(said(&["--result", "no", "--failed"]), Some(Answer::ToolCall(result)));
        assert_eq!(said(&["--yes"]), None);
        let line = ["answer", "t", "--yes", "--decision", "accept"];
        assert!(Line::try_parse_from(line).is_err(), "two answers");
    }

    #[test]
    fn the_question_that_is_meant_is_the_only_one_or_the_named_one() {
        let question =
            |id: &str| pb::CodexRequest { request_id: id.to_owned(), ..Default::default() };
        let message = |result: Result<pb::CodexRequest, Failure>| match result {
            Err(Failure::Told { message, code }) => (message, code),
            other => panic!("{other:?}"),
        };
        assert_eq!(choose(vec![question("1")], "t", None), Ok(question("1")));
        assert_eq!(choose(vec![question("1"), question("2")], "t", Some("1")), Ok(question("1")));
        let (text, code) = message(choose(vec![question("1"), question("2")], "t", None));
        assert_eq!(code, 2);
        assert!(text.contains("\n  1  ") && text.contains("\n  2  "), "{text}");
        assert_eq!(message(choose(Vec::new(), "t", None)).1, 3);
        assert_eq!(message(choose(vec![question("1")], "t", Some("3"))).1, 3);
    }
}
