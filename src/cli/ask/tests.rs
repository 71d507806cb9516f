//! Questions over a person in memory: what is shown, and what each answer comes to.

use std::cell::RefCell;
use std::collections::VecDeque;

use super::*;
use crate::pb::ApprovalDecision as Decision;

/// Types these lines, then is gone.
#[derive(Default)]
struct Typist {
    lines: RefCell<VecDeque<String>>,
    screen: RefCell<String>,
}

impl Typist {
    fn new(lines: &[&str]) -> Typist {
        let lines = RefCell::new(lines.iter().map(|&line| line.to_owned()).collect());
        Typist { lines, screen: RefCell::default() }
    }
}

impl Person for Typist {
    fn begin(&self) {}

    fn show(&self, text: &str) -> io::Result<()> {
        self.screen.borrow_mut().push_str(text);
        Ok(())
    }

    async fn line(&self, prompt: &str, hidden: bool) -> io::Result<Option<String>> {
        let line = self.lines.borrow_mut().pop_front();
        let echo = match &line {
            Some(_) if hidden => "(hidden)",
            Some(line) => line.as_str(),
            None => "(gone)",
        };
        self.show(&format!("{prompt}{echo}\n"))?;
        Ok(line)
    }
}

fn question(kind: Question) -> pb::CodexRequest {
    pb::CodexRequest { request_id: "1".to_owned(), kind: Some(kind), ..Default::default() }
}

/// What is answered when these lines are typed, and what the screen shows then.
fn typed(kind: Question, lines: &[&str]) -> (Option<Answer>, String) {
    let person = Typist::new(lines);
    let question = question(kind);
    let asking = ask(&question, &person);
    let answer = futures::FutureExt::now_or_never(asking).expect("nothing to wait for").unwrap();
    assert!(person.lines.borrow().is_empty(), "lines that were not read: {:?}", person.lines);
    (answer, person.screen.take())
}

fn decided(decision: Decision) -> Option<Answer> {
    Some(approval::decided(decision))
}

/// As the CLI offers it: neither for the session nor a plain no.
fn command() -> pb::CommandApproval {
    pb::CommandApproval {
        command: "touch x\u{1b}[2J".to_owned(),
        working_directory: "/w".to_owned(),
        reason: "may I?".to_owned(),
        proposed_exec_policy_amendment: vec!["touch".to_owned()],
        available_decisions: vec![
            Decision::Accept.into(),
            Decision::AcceptWithExecPolicyAmendment.into(),
            Decision::Cancel.into(),
        ],
        ..Default::default()
    }
}

#[test]
fn a_command_is_asked_about_with_every_decision_that_is_on_offer() {
    let ask = |lines: &[&str]| typed(Question::CommandApproval(command()), lines);
    let (answer, screen) = ask(&["", "x", "yes"]);
    assert_eq!(answer, decided(Decision::Accept));
    let expected = "Codex asks: may this command run?\n    touch x[2J\n  in /w\n  because: may I?\n  \
                    y  yes, this once\n  a  always: commands that start with `touch`; Codex writes it \
                    into its rules\n  n  no, and Codex goes on without it\n  c  no, and the turn is \
                    stopped\n[y/a/n/c] \nType one of: y, a, n, c\n[y/a/n/c] x\nType one of: y, a, n, \
                    c\n[y/a/n/c] yes\n";
    assert_eq!(screen, expected);
    assert_eq!(ask(&["a"]).0, decided(Decision::AcceptWithExecPolicyAmendment));
    assert_eq!(ask(&["N"]).0, decided(Decision::Decline));
    assert_eq!(ask(&["c"]).0, decided(Decision::Cancel));
    assert_eq!(ask(&[]).0, None);

    // Nothing said is the common four; with both kinds of always each has its key.
    let plain = pb::CommandApproval { command: "ls".to_owned(), ..Default::default() };
    let ask = |lines: &[&str]| typed(Question::CommandApproval(plain.clone()), lines).0;
    assert_eq!(ask(&["always"]), decided(Decision::AcceptForSession));
    let mut both = command();
    both.available_decisions.push(Decision::AcceptForSession.into());
    let ask = |lines: &[&str]| typed(Question::CommandApproval(both.clone()), lines).0;
    assert_eq!(ask(&["a"]), decided(Decision::AcceptForSession));
    assert_eq!(ask(&["p"]), decided(Decision::AcceptWithExecPolicyAmendment));
}

#[test]
fn a_rule_for_a_host_is_chosen_by_its_number() {
    let rule = |host: &str, allow| pb::NetworkPolicyAmendment { host: host.to_owned(), allow };
    let network = pb::CommandApproval {
        network_access: Some(pb::NetworkAccess {
            host: "x.org".to_owned(),
            protocol: "https".to_owned(),
        }),
        proposed_network_policy_amendments: vec![rule("x.org", true), rule("x.org", false)],
        available_decisions: vec![
            Decision::Accept.into(),
            Decision::ApplyNetworkPolicyAmendment.into(),
        ],
        ..Default::default()
    };
    let (answer, screen) = typed(Question::CommandApproval(network), &["2"]);
    let expected = Answer::Approval(pb::ApprovalAnswer {
        decision: Decision::ApplyNetworkPolicyAmendment.into(),
        network_policy_amendment: Some(rule("x.org", false)),
        ..Default::default()
    });
    assert_eq!(answer, Some(expected));
    assert!(screen.contains("it wants to reach x.org by https"), "{screen}");
    assert!(screen.contains("  2  never allow the host x.org\n"), "{screen}");
}

#[test]
fn changes_to_files_are_asked_about_with_their_diff_on_demand() {
    let change = pb::FileChangeApproval {
        changes: vec![pb::ChangedFile {
            path: "/w/a".to_owned(),
            kind: pb::FileChangeKind::Add.into(),
            diff: "+one\n".to_owned(),
            ..Default::default()
        }],
        grant_root: "/w".to_owned(),
        ..Default::default()
    };
    let ask = |lines: &[&str]| typed(Question::FileChangeApproval(change.clone()), lines);
    let (answer, screen) = ask(&["d", "a"]);
    assert_eq!(answer, decided(Decision::AcceptForSession));
    for shown in ["    + /w/a\n", "all below /w", "[y/a/n/c/d] d\n/w/a\n    +one\n"] {
        assert!(screen.contains(shown), "{shown:?} in {screen}");
    }
    assert_eq!(ask(&["y"]).0, decided(Decision::Accept));
    assert_eq!(ask(&["n"]).0, decided(Decision::Decline));
    assert_eq!(ask(&["d"]).0, None);
}

#[test]
fn permissions_are_granted_as_asked_for_a_turn_or_for_longer() {
    let asked = pb::PermissionsApproval {
        permissions_json: r#"{"network":{"enabled":true}}"#.to_owned(),
        ..Default::default()
    };
    let ask = |lines: &[&str]| typed(Question::PermissionsApproval(asked.clone()), lines).0;
    let granted = |scope| Some(approval::granted(&asked, scope));
    assert_eq!(ask(&["y"]), granted(pb::PermissionGrantScope::Turn));
    assert_eq!(ask(&["a"]), granted(pb::PermissionGrantScope::Session));
    assert_eq!(ask(&["n"]), Some(Answer::Permissions(Default::default())));
}

fn user_question(id: &str, options: &[&str]) -> pb::UserQuestion {
    let options = options.iter().map(|&label| pb::UserQuestionOption {
        label: label.to_owned(),
        description: String::new(),
    });
    pb::UserQuestion {
        question_id: id.to_owned(),
        header: "H".to_owned(),
        text: format!("which {id}?"),
        options: options.collect(),
        ..Default::default()
    }
}

fn answers(given: &[(&str, &[&str])]) -> Option<Answer> {
    let answers = given.iter().map(|(id, answers)| pb::UserQuestionAnswer {
        question_id: (*id).to_owned(),
        answers: answers.iter().map(|&answer| answer.to_owned()).collect(),
    });
    Some(Answer::UserQuestions(pb::UserQuestionsAnswer { answers: answers.collect() }))
}

#[test]
fn questions_are_answered_by_number_by_word_or_in_ones_own_words() {
    let mut open = user_question("open", &["Red", "Blue"]);
    open.other_allowed = true;
    let closed = user_question("closed", &["Red", "Blue"]);
    let mut secret = user_question("secret", &[]);
    secret.secret = true;
    let questions = vec![open, closed, user_question("skipped", &["Red"]), secret];
    let asked = pb::UserQuestions { questions, blocking: true };
    let lines = [" a mix ", "green", "3", "1,2", "", " pass word"];
    let (answer, screen) = typed(Question::UserQuestions(asked.clone()), &lines);
    let expected =
        answers(&[("open", &["a mix"]), ("closed", &["Red", "Blue"]), ("secret", &[" pass word"])]);
    assert_eq!(answer, expected);
    assert!(screen.contains("Codex asks (1 of 4): H\n  which open?\n  1  Red\n  2  Blue\n"));
    assert!(screen.contains("Type a number from 1 to 2"), "{screen}");
    assert!(screen.contains("(hidden)") && !screen.contains("pass word"), "{screen}");

    let lines = ["blue", "2", "1", "x"];
    let (answer, _) = typed(Question::UserQuestions(asked.clone()), &lines);
    let expected = answers(&[
        ("open", &["Blue"]),
        ("closed", &["Blue"]),
        ("skipped", &["Red"]),
        ("secret", &["x"]),
    ]);
    assert_eq!(answer, expected);
    assert_eq!(typed(Question::UserQuestions(asked), &["1"]).0, None);
}

fn form(schema: &str) -> pb::Elicitation {
    pb::Elicitation {
        server_name: "tickets".to_owned(),
        mode: "form".to_owned(),
        message: "Who are you?".to_owned(),
        requested_schema_json: schema.to_owned(),
        ..Default::default()
    }
}

fn elicited(action: pb::ElicitationAction, content: &str) -> Option<Answer> {
    Some(Answer::Elicitation(pb::ElicitationAnswer {
        action: action.into(),
        content_json: content.to_owned(),
        persist: String::new(),
    }))
}

const FORM: &str = r#"{"type": "object", "required": ["name", "count", "colour", "sure"], "properties": {
    "name": {"type": "string", "title": "Your name", "minLength": 2, "maxLength": 5},
    "mail": {"type": "string", "format": "email", "description": "where to write"},
    "count": {"type": "integer", "minimum": 1, "maximum": 9},
    "share": {"type": "number", "default": 0.5},
    "sure": {"type": "boolean"},
    "colour": {"type": "string", "enum": ["r", "b"], "enumNames": ["Red", "Blue"]},
    "sizes": {"type": "array", "minItems": 2, "items": {"anyOf": [
        {"const": "s", "title": "Small"}, {"const": "l", "title": "Large"}]}},
    "password": {"type": "string", "writeOnly": true},
    "more": {"type": "object"}
}}"#;

#[test]
fn a_form_is_filled_in_field_by_field() {
    let lines = [
        "y",
        "",
        "A",
        "Annabel",
        "Anna",
        "",
        "x",
        "0",
        "10",
        "3",
        "",
        "perhaps",
        "y",
        "green",
        "blue",
        "1",
        "1,2",
        "hush",
        "{",
        r#"{"a": [1]}"#,
    ];
    let (answer, screen) = typed(Question::Elicitation(form(FORM)), &lines);
    let content = r#"{"name":"Anna","count":3,"share":0.5,"sure":true,"colour":"b","sizes":["s","l"],"password":"hush","more":{"a":[1]}}"#;
    assert_eq!(answer, elicited(pb::ElicitationAction::Accept, content));
    for shown in [
        "The MCP server tickets asks:\n  Who are you?\n  y  fill it in\n",
        "Your name (text)\n> \nIt has to be filled in.\n> A\nAt least 2 characters.\n> Annabel\nAt most 5",
        "mail (email), may be left empty\n  where to write\n",
        "count (whole number)\n> x\nType a whole number.\n> 0\nAt least 1.\n> 10\nAt most 9.\n",
        "share (number) [0.5]\n",
        "Type y or n.",
        "colour (one of)\n  1  Red\n  2  Blue\n> green\nType a number from 1 to 2.\n",
        "At least 2 of them.",
        "This is no JSON",
    ] {
        assert!(screen.contains(shown), "{shown:?} in {screen}");
    }
    assert!(screen.contains("password (hidden text)") && !screen.contains("hush"), "{screen}");
}

#[test]
fn an_elicitation_can_be_declined_and_left_and_given_up() {
    use pb::ElicitationAction as Action;
    let ask = |lines: &[&str]| typed(Question::Elicitation(form(FORM)), lines).0;
    assert_eq!(ask(&["n"]), elicited(Action::Decline, ""));
    assert_eq!(ask(&["c"]), elicited(Action::Cancel, ""));
    assert_eq!(ask(&["y", "Anna"]), None);
    // What has nothing to fill in is the approval of a tool.
    let empty = form(r#"{"type":"object","properties":{}}"#);
    let (answer, screen) = typed(Question::Elicitation(empty.clone()), &["y"]);
    assert_eq!(answer, elicited(Action::Accept, "{}"));
    assert!(screen.contains("  y  yes\n"), "{screen}");
    let lasting = pb::Elicitation {
        persist: ["session", "always", "longer"].map(str::to_owned).to_vec(),
        ..empty
    };
    for (key, persist) in [("a", "session"), ("k", "always")] {
        let (answer, screen) = typed(Question::Elicitation(lasting.clone()), &[key]);
        let Some(Answer::Elicitation(answer)) = answer else { panic!("{answer:?}") };
        assert_eq!((answer.action(), answer.persist.as_str()), (Action::Accept, persist));
        assert!(screen.contains("[y/a/k/n/c]"), "{screen}");
    }
    let address = pb::Elicitation {
        mode: "url".to_owned(),
        url: "https://x.org/\u{202e}in\u{7}".to_owned(),
        ..form("")
    };
    let (answer, screen) = typed(Question::Elicitation(address), &["y"]);
    assert_eq!(answer, elicited(Action::Accept, ""));
    assert!(screen.contains("Visit this address") && !screen.contains('\u{7}'), "{screen}");
    // One of another kind can only be refused.
    let newer = pb::Elicitation {
        mode: "hologram".to_owned(),
        params_json: r#"{"a":1}"#.to_owned(),
        ..form("")
    };
    let (answer, screen) = typed(Question::Elicitation(newer), &["y", "n"]);
    assert_eq!(answer, elicited(Action::Decline, ""));
    assert!(screen.contains(r#""a": 1"#) && screen.contains("Type one of: n, c"), "{screen}");
}

#[test]
fn a_yes_allows_no_more_than_what_is_asked_this_once() {
    use pb::ElicitationAction as Action;
    let yes = |kind| super::yes(&question(kind));
    assert_eq!(yes(Question::CommandApproval(command())), decided(Decision::Accept));
    let only_rules = pb::CommandApproval {
        available_decisions: vec![Decision::AcceptWithExecPolicyAmendment.into()],
        ..command()
    };
    assert_eq!(yes(Question::CommandApproval(only_rules)), None);
    let files = Question::FileChangeApproval(Default::default());
    assert_eq!(yes(files), decided(Decision::Accept));
    let permissions = pb::PermissionsApproval {
        permissions_json: "{\"network\":{}}".to_owned(),
        ..Default::default()
    };
    assert_eq!(
        yes(Question::PermissionsApproval(permissions.clone())),
        Some(approval::granted(&permissions, pb::PermissionGrantScope::Turn))
    );
    let default = r#"{"required":["a"],"properties":{"a":{"type":"string","default":"x"},"b":{}}}"#;
    assert_eq!(yes(Question::Elicitation(form(default))), elicited(Action::Accept, r#"{"a":"x"}"#));
    // What wants words, a visit or a result is not answered by a yes.
    assert_eq!(yes(Question::Elicitation(form(FORM))), None);
    assert_eq!(
        yes(Question::Elicitation(pb::Elicitation { mode: "url".to_owned(), ..form("{}") })),
        None
    );
    assert_eq!(yes(Question::UserQuestions(Default::default())), None);
    assert_eq!(yes(Question::ToolCall(Default::default())), None);
}

#[test]
fn a_no_declines_everything_that_can_be_answered() {
    use pb::ElicitationAction as Action;
    let no = |kind| super::no(&question(kind));
    assert_eq!(no(Question::CommandApproval(command())), decided(Decision::Decline));
    assert_eq!(no(Question::FileChangeApproval(Default::default())), decided(Decision::Decline));
    assert_eq!(
        no(Question::PermissionsApproval(Default::default())),
        Some(Answer::Permissions(Default::default()))
    );
    assert_eq!(no(Question::UserQuestions(Default::default())), answers(&[]));
    assert_eq!(no(Question::Elicitation(form(FORM))), elicited(Action::Decline, ""));
    let Some(Answer::ToolCall(call)) = no(Question::ToolCall(Default::default())) else { panic!() };
    assert!(!call.success && call.content.len() == 1);
    assert_eq!(no(Question::Unknown(Default::default())), None);
    assert_eq!(super::no(&pb::CodexRequest::default()), None);
}
