use super::*;

const FORM: Modes = Modes { form: true, url: false };

fn question(kind: Kind) -> Question {
    Question {
        question: pb::CodexRequest {
            request_id: "r".to_owned(),
            item_id: "item".to_owned(),
            kind: Some(kind),
            ..Default::default()
        },
        turn_id: "t".to_owned(),
        thread_id: "thread".to_owned(),
        codex_turn_id: "turn".to_owned(),
        call_id: "7".to_owned(),
    }
}

fn reply(result: Value) -> Option<Reply> {
    Reply::of(serde_json::from_value(result).unwrap())
}

fn accepted(content: Value) -> Reply {
    reply(json!({ "action": "accept", "content": content })).unwrap()
}

fn command(offered: &[Decision]) -> pb::CommandApproval {
    pb::CommandApproval {
        command: "/bin/bash -lc 'echo hi'".to_owned(),
        working_directory: "/w".to_owned(),
        available_decisions: offered.iter().map(|decision| i32::from(*decision)).collect(),
        ..Default::default()
    }
}

#[test]
fn an_approval_is_asked_as_codex_asked_it() {
    let asked = elicitation(&question(Kind::CommandApproval(command(&[]))), FORM).unwrap();
    assert_eq!(
        asked,
        json!({
            "message": "Allow Codex to run `/bin/bash -lc 'echo hi'` in `/w`?",
            "requestedSchema": { "type": "object", "properties": {} },
            "codex_elicitation": "exec-approval",
            "codex_command": ["/bin/bash", "-lc", "echo hi"],
            "codex_cwd": "/w",
            "codex_reason": "",
            "threadId": "thread",
            "codex_mcp_tool_call_id": "7",
            "codex_event_id": "turn",
            "codex_call_id": "item",
        })
    );
    let file = pb::ChangedFile {
        path: "/w/a".to_owned(),
        kind: pb::FileChangeKind::Add.into(),
        diff: "x\n".to_owned(),
        ..Default::default()
    };
    let patch = pb::FileChangeApproval { changes: vec![file], ..Default::default() };
    let asked = elicitation(&question(Kind::FileChangeApproval(patch)), FORM).unwrap();
    assert_eq!(asked["codex_elicitation"], "patch-approval");
    assert_eq!(asked["codex_changes"], json!({ "/w/a": { "type": "add", "content": "x\n" } }));
}

#[test]
fn a_client_is_asked_only_what_it_can_be() {
    let capabilities = |elicitation: Value| {
        Modes::of(Some(serde_json::from_value(json!({ "elicitation": elicitation })).unwrap()))
    };
    assert_eq!(capabilities(json!({})), FORM);
    assert_eq!(capabilities(json!({ "url": {} })), Modes { form: false, url: true });
    assert_eq!(capabilities(json!({ "form": {}, "url": {} })), Modes { form: true, url: true });
    assert_eq!(Modes::of(Some(ClientCapabilities::default())), Modes::default());
    assert_eq!(Modes::of(None), Modes::default());

    let approval = || question(Kind::CommandApproval(command(&[])));
    assert_eq!(elicitation(&approval(), Modes::default()), None);
    let address = || {
        question(Kind::Elicitation(pb::Elicitation {
            mode: "url".to_owned(),
            url: "https://x".to_owned(),
            ..Default::default()
        }))
    };
    assert_eq!(elicitation(&address(), FORM), None);
    let asked = elicitation(&address(), Modes { form: false, url: true }).unwrap();
    assert_eq!((&asked["mode"], &asked["url"]), (&json!("url"), &json!("https://x")));
    let secret = pb::UserQuestion { secret: true, ..Default::default() };
    let secret = pb::UserQuestions { questions: vec![secret], ..Default::default() };
    assert_eq!(elicitation(&question(Kind::UserQuestions(secret)), FORM), None);
    assert_eq!(elicitation(&question(Kind::ToolCall(pb::ToolCall::default())), FORM), None);
}

#[test]
fn actions_and_decisions_come_to_what_is_on_offer() {
    use Decision::{Accept, AcceptForSession, Cancel, Decline};
    let all = [Accept, AcceptForSession, Cancel, Decline];
    for (said, offered, decision) in [
        (json!({ "action": "accept" }), &all[..], Accept),
        (json!({ "action": "decline" }), &all, Decline),
        (json!({ "action": "cancel" }), &all, Cancel),
        (json!({ "action": "cancel" }), &[Accept, Decline], Decline),
        (json!({ "decision": "approved" }), &all, Accept),
        (json!({ "decision": "denied" }), &all, Decline),
        (json!({ "decision": "abort" }), &all, Cancel),
        (
            json!({ "action": "accept", "content": { "decision": "approved_for_session" } }),
            &all,
            AcceptForSession,
        ),
        (
            json!({ "action": "accept", "content": { "decision": "approved_for_session" } }),
            &[Accept, Decline],
            Accept,
        ),
    ] {
        let asked = question(Kind::CommandApproval(command(offered)));
        let said = reply(said).unwrap();
        assert_eq!(answer(&asked.question, &said), Some(approval(decision)), "{said:?}");
    }
    assert_eq!(reply(json!({ "nonsense": 1 })), None);
}

#[test]
fn a_form_is_answered_with_its_content() {
    let option =
        |label: &str| pb::UserQuestionOption { label: label.to_owned(), ..Default::default() };
    let asked = pb::UserQuestion {
        question_id: "q".to_owned(),
        header: "Colour".to_owned(),
        text: "Which?".to_owned(),
        options: vec![option("red"), option("blue")],
        ..Default::default()
    };
    let kind = pb::UserQuestions { questions: vec![asked], ..Default::default() };
    let asked = question(Kind::UserQuestions(kind));
    let form = elicitation(&asked, FORM).unwrap();
    let property = &form["requestedSchema"]["properties"]["q"];
    assert_eq!(
        (&property["enum"], &property["title"]),
        (&json!(["red", "blue"]), &json!("Colour"))
    );
    let said = answer(&asked.question, &accepted(json!({ "q": "red" })));
    let answers = vec![pb::UserQuestionAnswer {
        question_id: "q".to_owned(),
        answers: vec!["red".to_owned()],
    }];
    assert_eq!(said, Some(Answer::UserQuestions(pb::UserQuestionsAnswer { answers })));

    let schema = json!({ "type": "object", "properties": { "name": { "type": "string" } } });
    let asked = question(Kind::Elicitation(pb::Elicitation {
        server_name: "s".to_owned(),
        mode: "form".to_owned(),
        message: "Who?".to_owned(),
        requested_schema_json: schema.to_string(),
        ..Default::default()
    }));
    let form = elicitation(&asked, FORM).unwrap();
    assert_eq!((&form["message"], &form["requestedSchema"]), (&json!("s: Who?"), &schema));
    let said = answer(&asked.question, &accepted(json!({ "name": "x" })));
    let expected = |action: Action, content: &str| {
        let (action, content_json) = (action.into(), content.to_owned());
        Some(Answer::Elicitation(pb::ElicitationAnswer {
            action,
            content_json,
            ..Default::default()
        }))
    };
    assert_eq!(said, expected(Action::Accept, r#"{"name":"x"}"#));
    assert_eq!(answer(&asked.question, &Reply::declined()), expected(Action::Decline, ""));
}
