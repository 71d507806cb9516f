//! Answers as Codex reads them, and held against what was asked.

use super::*;
use crate::app_server::message::{self, Inbound, Line};

fn approval(decision: ApprovalDecision) -> Answer {
    Answer::Approval(ApprovalAnswer {
        decision: decision.into(),
        exec_policy_amendment: vec!["git".to_owned(), "status".to_owned()],
        network_policy_amendment: Some(NetworkPolicyAmendment {
            host: "h".to_owned(),
            allow: false,
        }),
    })
}

#[test]
fn a_decision_is_said_in_the_words_of_the_request() {
    use ApprovalDecision as Decision;
    let words = json!(["git", "status"]);
    let rule = json!({ "host": "h", "action": "deny" });
    let cases = [
        (Decision::Accept, json!("accept"), json!("approved")),
        (Decision::AcceptForSession, json!("acceptForSession"), json!("approved_for_session")),
        (Decision::Decline, json!("decline"), json!("denied")),
        (Decision::Cancel, json!("cancel"), json!("abort")),
        (
            Decision::AcceptWithExecPolicyAmendment,
            json!({ "acceptWithExecpolicyAmendment": { "execpolicy_amendment": words } }),
            json!({
                "approved_execpolicy_amendment": { "proposed_execpolicy_amendment": words }
            }),
        ),
        (
            Decision::ApplyNetworkPolicyAmendment,
            json!({ "applyNetworkPolicyAmendment": { "network_policy_amendment": rule } }),
            json!({ "network_policy_amendment": { "network_policy_amendment": rule } }),
        ),
    ];
    for (decision, newer, older) in cases {
        let said = |method: &str| result(method, &approval(decision))["decision"].clone();
        assert_eq!(said("item/commandExecution/requestApproval"), newer);
        assert_eq!(said("item/fileChange/requestApproval"), newer);
        assert_eq!(said("execCommandApproval"), older);
        assert_eq!(said("applyPatchApproval"), older);
    }
}

#[test]
fn permissions_are_granted_as_they_were_given() {
    let grant = |permissions_json: &str, scope: PermissionGrantScope, strict| {
        let answer = PermissionsAnswer {
            permissions_json: permissions_json.to_owned(),
            scope: scope.into(),
            strict_auto_review: strict,
        };
        result("item/permissions/requestApproval", &Answer::Permissions(answer))
    };
    assert_eq!(
        grant(r#"{"network":{"enabled":true}}"#, PermissionGrantScope::Session, Some(true)),
        json!({
            "permissions": { "network": { "enabled": true } },
            "scope": "session",
            "strictAutoReview": true,
        })
    );
    let nothing = json!({ "permissions": {}, "scope": "turn" });
    assert_eq!(grant("", PermissionGrantScope::Unspecified, None), nothing);
    // What is not granted is left out: Codex takes null for no permissions at all.
    let with_null = grant(r#"{"network":null}"#, PermissionGrantScope::Turn, None);
    assert_eq!(with_null, nothing);
}

#[test]
fn answers_of_a_user_are_said_by_their_questions_and_forms_with_their_content() {
    let answer = |id: &str, answers: &[&str]| UserQuestionAnswer {
        question_id: id.to_owned(),
        answers: answers.iter().map(|&answer| answer.to_owned()).collect(),
    };
    let answers = vec![answer("a", &["x", "y"]), answer("b", &[])];
    let said = Answer::UserQuestions(UserQuestionsAnswer { answers });
    assert_eq!(
        result("item/tool/requestUserInput", &said),
        json!({ "answers": { "a": { "answers": ["x", "y"] }, "b": { "answers": [] } } })
    );
    for (action, content, expected) in [
        (ElicitationAction::Accept, r#"{"n":1}"#, json!(["accept", { "n": 1 }])),
        (ElicitationAction::Accept, "", json!(["accept", null])),
        (ElicitationAction::Decline, "", json!(["decline", null])),
        (ElicitationAction::Cancel, "", json!(["cancel", null])),
    ] {
        let content_json = content.to_owned();
        let mut given =
            ElicitationAnswer { action: action.into(), content_json, ..Default::default() };
        let said = |given: &ElicitationAnswer| {
            let answer = Answer::Elicitation(given.clone());
            result("mcpServer/elicitation/request", &answer)
        };
        assert_eq!(json!([said(&given)["action"], said(&given)["content"]]), expected);
        assert!(said(&given)["_meta"].is_null());
        given.persist = "session".to_owned();
        assert_eq!(said(&given)["_meta"], json!({ "persist": "session" }));
    }
}

#[test]
fn what_a_lent_function_gave_back_is_what_codex_reads() {
    let content = [
        Content::Text("t".to_owned()),
        Content::ImageUrl("data:i".to_owned()),
        Content::AudioUrl("data:a".to_owned()),
    ];
    let content = content.map(|content| ToolContent { content: Some(content) }).to_vec();
    let said = |answer| result("item/tool/call", &Answer::ToolCall(answer));
    assert_eq!(
        said(ToolCallAnswer { content, success: true }),
        json!({
            "contentItems": [
                { "type": "inputText", "text": "t" },
                { "type": "inputImage", "imageUrl": "data:i" },
                { "type": "inputAudio", "audioUrl": "data:a" },
            ],
            "success": true,
        })
    );
    let nothing = json!({ "contentItems": [], "success": false });
    assert_eq!(said(ToolCallAnswer::default()), nothing);
}

/// What may be answered to a request of Codex, as it wrote it.
fn expected(method: &str, params: Value) -> Expected {
    let line = json!({ "id": 7, "method": method, "params": params }).to_string();
    match message::parse(line.as_bytes()) {
        Ok(Line::Inbound(Inbound::Asked(asked))) => Expected::of(&asked.question, 10_000),
        other => panic!("{other:?}"),
    }
}

/// The paths of an answer's faults.
#[track_caller]
fn faults(expected: &Expected, answer: Answer) -> Vec<String> {
    let faults = match expected.take("1", answer) {
        Ok(_) => Vec::new(),
        Err(faults) => faults,
    };
    faults.into_iter().map(|fault| fault.field).collect()
}

fn decided(decision: ApprovalDecision) -> ApprovalAnswer {
    ApprovalAnswer { decision: decision.into(), ..Default::default() }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

const DECISION: &str = "approval.decision";
const EXEC: &str = "approval.exec_policy_amendment";
const NETWORK: &str = "approval.network_policy_amendment";

#[test]
fn a_command_is_decided_by_what_is_on_offer_and_amended_by_no_more_than_was_proposed() {
    use ApprovalDecision as Decision;
    let asked = expected(
        "item/commandExecution/requestApproval",
        json!({
            "kind": "command", "itemId": "c7", "command": "/bin/bash -c 'touch /r1'", "cwd": "/x",
            "proposedExecpolicyAmendment": ["touch", "/r1"],
            "availableDecisions": [
                "accept",
                { "acceptWithExecpolicyAmendment": { "execpolicy_amendment": ["touch", "/r1"] } },
                "cancel", "dream",
            ],
        }),
    );
    let amended = |words: Vec<String>| ApprovalAnswer {
        exec_policy_amendment: words,
        ..decided(Decision::AcceptWithExecPolicyAmendment)
    };
    for decision in [Decision::Accept, Decision::Decline, Decision::Cancel] {
        assert_eq!(faults(&asked, Answer::Approval(decided(decision))), [""; 0], "{decision:?}");
        let beside =
            ApprovalAnswer { exec_policy_amendment: words(&["touch"]), ..decided(decision) };
        assert_eq!(faults(&asked, Answer::Approval(beside)), [EXEC]);
    }
    for number in [0, Decision::AcceptForSession.into(), 77, -1] {
        let answer = ApprovalAnswer { decision: number, ..Default::default() };
        assert_eq!(faults(&asked, Answer::Approval(answer)), [DECISION], "{number}");
    }
    let rule = decided(Decision::ApplyNetworkPolicyAmendment);
    assert_eq!(faults(&asked, Answer::Approval(rule)), [DECISION, NETWORK]);
    // What is left out is what was proposed.
    let Ok(Answer::Approval(taken)) = asked.take("1", Answer::Approval(amended(Vec::new()))) else {
        panic!()
    };
    assert_eq!(taken.exec_policy_amendment, ["touch", "/r1"]);
    for narrower in [&["touch", "/r1"][..], &["touch", "/r1", "/r2"]] {
        assert_eq!(faults(&asked, Answer::Approval(amended(words(narrower)))), [""; 0]);
    }
    for wider in [&["touch"][..], &["rm", "touch", "/r1"], &["touch", "/r10"], &[""]] {
        assert_eq!(faults(&asked, Answer::Approval(amended(words(wider)))), [EXEC], "{wider:?}");
    }
    let other = Answer::ToolCall(ToolCallAnswer::default());
    assert_eq!(faults(&asked, other), ["tool_call"]);
}

#[test]
fn what_is_proposed_is_read_from_the_offer_where_it_stands_nowhere_else() {
    let method = "item/commandExecution/requestApproval";
    let offer = |amendment: Value, rule: Value| {
        json!({ "itemId": "i", "command": "touch a", "availableDecisions": [
            "accept",
            { "acceptWithExecpolicyAmendment": { "execpolicy_amendment": amendment } },
            { "applyNetworkPolicyAmendment": { "network_policy_amendment": rule } },
        ] })
    };
    let rule = json!({ "host": "h", "action": "deny" });
    let asked = expected(method, offer(json!(["touch"]), rule));
    let amend = |words: &[&str]| {
        Answer::Approval(ApprovalAnswer {
            exec_policy_amendment: words.iter().map(|&word| word.to_owned()).collect(),
            ..decided(ApprovalDecision::AcceptWithExecPolicyAmendment)
        })
    };
    let Ok(Answer::Approval(taken)) = asked.take("1", amend(&[])) else { panic!() };
    assert_eq!(taken.exec_policy_amendment, ["touch"]);
    assert_eq!(faults(&asked, amend(&["rm"])), [EXEC]);
    let mut apply = decided(ApprovalDecision::ApplyNetworkPolicyAmendment);
    apply.network_policy_amendment =
        Some(NetworkPolicyAmendment { host: "h".to_owned(), allow: false });
    assert_eq!(faults(&asked, Answer::Approval(apply.clone())), [""; 0]);
    // An offer of nothing would allow everything.
    let nothing = expected(method, offer(json!([]), json!({})));
    assert_eq!(faults(&nothing, amend(&[]))[..1], [DECISION]);
    assert_eq!(faults(&nothing, amend(&["rm"]))[..1], [DECISION]);
    assert_eq!(faults(&nothing, Answer::Approval(apply))[..1], [DECISION]);
}

#[test]
fn a_rule_for_a_host_is_one_of_those_that_were_proposed() {
    let asked = expected(
        "item/commandExecution/requestApproval",
        json!({
            "kind": "command", "itemId": "network#local#http#example.test#80#0d",
            "networkApprovalContext": { "host": "example.test", "protocol": "http" },
            "proposedNetworkPolicyAmendments": [
                { "host": "example.test", "action": "allow" },
                { "host": "example.test", "action": "deny" },
            ],
            "availableDecisions": [
                "accept", "acceptForSession",
                { "applyNetworkPolicyAmendment": { "network_policy_amendment": {
                    "host": "example.test", "action": "allow" } } },
                "cancel",
            ],
        }),
    );
    let rule = |host: &str, allow| Some(NetworkPolicyAmendment { host: host.to_owned(), allow });
    let answer = |decision: ApprovalDecision, network_policy_amendment| {
        Answer::Approval(ApprovalAnswer { network_policy_amendment, ..decided(decision) })
    };
    let apply = ApprovalDecision::ApplyNetworkPolicyAmendment;
    for allow in [true, false] {
        assert_eq!(faults(&asked, answer(apply, rule("example.test", allow))), [""; 0]);
    }
    assert_eq!(faults(&asked, answer(apply, rule("example.org", true))), [NETWORK]);
    assert_eq!(faults(&asked, answer(apply, None)), [NETWORK]);
    let session = ApprovalDecision::AcceptForSession;
    assert_eq!(faults(&asked, answer(session, None)), [""; 0]);
    assert_eq!(faults(&asked, answer(session, rule("example.test", true))), [NETWORK]);
}

#[test]
fn where_codex_does_not_say_what_is_on_offer_it_is_the_usual_and_what_it_proposes() {
    use ApprovalDecision as Decision;
    let usual = [Decision::Accept, Decision::AcceptForSession, Decision::Decline, Decision::Cancel];
    let plain = expected("execCommandApproval", json!({ "callId": "c", "command": ["ls"] }));
    let patch = expected("item/fileChange/requestApproval", json!({ "itemId": "c" }));
    let older_patch = expected("applyPatchApproval", json!({ "callId": "c", "fileChanges": {} }));
    for asked in [plain, patch, older_patch] {
        for decision in usual {
            assert_eq!(faults(&asked, Answer::Approval(decided(decision))), [""; 0]);
        }
        let amended = decided(Decision::AcceptWithExecPolicyAmendment);
        assert_eq!(faults(&asked, Answer::Approval(amended)), [DECISION]);
    }
    let params = json!({ "itemId": "c", "proposedExecpolicyAmendment": ["ls"] });
    let proposing = expected("item/commandExecution/requestApproval", params);
    let amended = decided(Decision::AcceptWithExecPolicyAmendment);
    assert_eq!(faults(&proposing, Answer::Approval(amended)), [""; 0]);
}

#[test]
fn no_more_is_granted_than_was_asked_for() {
    let file = |path: &str, access: &str| json!({ "path": { "type": "path", "path": path }, "access": access });
    let asked = expected(
        "item/permissions/requestApproval",
        json!({ "permissions": {
            "network": { "enabled": true },
            "fileSystem": {
                "read": ["/etc"], "write": ["/w"],
                "entries": [file("/etc", "read"), file("/w", "write")],
            },
        } }),
    );
    let grant = |permissions: Value| {
        let permissions_json = permissions.to_string();
        Answer::Permissions(PermissionsAnswer { permissions_json, ..Default::default() })
    };
    let files = |files: Value| json!({ "fileSystem": files });
    for less in [
        json!({}),
        json!({ "network": { "enabled": true }, "fileSystem": null }),
        json!({ "network": { "enabled": false } }),
        files(json!({ "read": ["/etc", "/w", "/etc/ssl"], "write": ["/w/sub"] })),
        files(json!({ "entries": [file("/w", "read"), file("/w/a/b", "write")] })),
        files(json!({ "entries": [file("/anywhere", "deny")] })),
        files(json!({ "read": [], "write": null })),
    ] {
        assert_eq!(faults(&asked, grant(less.clone())), [""; 0], "{less}");
    }
    const FIELD: &str = "permissions.permissions_json";
    for more in [
        files(json!({ "read": ["/"] })),
        files(json!({ "write": ["/etc"] })),
        files(json!({ "write": ["/w/../etc"] })),
        files(json!({ "write": ["/wide"] })),
        files(json!({ "entries": [file("/etc", "write")] })),
        files(json!({ "entries": [file("/w", "own")] })),
        files(json!({ "entries": [{ "path": { "type": "special", "value": { "kind": "root" } },
            "access": "read" }] })),
        files(json!({ "read": ["/etc"], "globScanMaxDepth": 9 })),
        json!({ "camera": { "enabled": true } }),
        // What Codex can't read.
        json!({ "network": true }),
        json!({ "network": { "enabled": "yes" } }),
        json!({ "network": { "enabled": true, "hosts": [] } }),
        files(json!(true)),
        files(json!("all")),
        files(json!([])),
        files(json!({ "write": "/w" })),
        files(json!({ "read": [null] })),
        files(json!({ "read": { "0": "/etc" } })),
        files(json!({ "everything": true })),
        files(json!({ "entries": file("/w", "write") })),
        files(json!({ "entries": ["/w"] })),
        files(json!({ "entries": [{ "path": "/w", "access": "write" }] })),
        files(json!({ "entries": [{ "path": "/w", "access": "deny" }] })),
        files(json!({ "entries": [{ "path": { "type": "path", "path": "/w", "way": 1 },
            "access": "write" }] })),
        files(json!({ "entries": [{ "path": { "type": "dream" }, "access": "deny" }] })),
        files(json!({ "entries": [{ "path": { "type": "path", "path": "/w" }, "access": "write",
            "until": "noon" }] })),
        files(json!({ "globScanMaxDepth": 3 })),
        files(json!({ "globScanMaxDepth": false })),
        json!({ "fileSystem": {}, "file_system": { "read": ["/etc"] } }),
        json!({ "padding": "x".repeat(100_000) }),
        json!([]),
        json!("all"),
    ] {
        assert_eq!(faults(&asked, grant(more.clone())), [FIELD], "{more}");
    }
    let answer = |json: &str, scope: i32, strict_auto_review| {
        let permissions_json = json.to_owned();
        Answer::Permissions(PermissionsAnswer { permissions_json, scope, strict_auto_review })
    };
    assert_eq!(faults(&asked, answer("", 0, Some(true))), [""; 0]);
    assert_eq!(faults(&asked, answer("{", 7, None)), ["permissions.scope", FIELD]);
    let session = PermissionGrantScope::Session.into();
    assert_eq!(faults(&asked, answer("", session, Some(false))), [""; 0]);
    assert_eq!(faults(&asked, answer("", session, Some(true))), ["permissions.strict_auto_review"]);
    // Without a network in the request there is none to grant.
    let params = json!({ "permissions": { "network": null, "fileSystem": { "read": ["/etc"] } } });
    let no_network = expected("item/permissions/requestApproval", params);
    let network = json!({ "network": { "enabled": true } });
    assert_eq!(faults(&no_network, grant(network)), [FIELD]);
}

#[test]
fn what_a_request_of_a_newer_cli_asks_for_can_be_granted_as_it_stands() {
    let permissions = json!({
        "camera": { "enabled": true },
        "network": { "enabled": true, "hosts": ["example.test"] },
        "fileSystem": {
            "entries": [
                { "path": { "type": "star", "name": "sun" }, "access": "visit" },
                { "path": { "type": "special", "value": { "kind": "tmpdir" } }, "access": "write" },
            ],
            "links": "follow",
        },
    });
    let asked = expected("item/permissions/requestApproval", json!({ "permissions": permissions }));
    let grant = |permissions: &Value| {
        let permissions_json = permissions.to_string();
        Answer::Permissions(PermissionsAnswer { permissions_json, ..Default::default() })
    };
    assert_eq!(faults(&asked, grant(&permissions)), [""; 0]);
    let special = |access: &str| {
        json!({ "fileSystem": { "entries": [{ "access": access,
            "path": { "type": "special", "value": { "kind": "tmpdir" } } }] } })
    };
    assert_eq!(faults(&asked, grant(&special("read"))), [""; 0]);
    for (at, other) in
        [("/camera", json!({ "enabled": false })), ("/network/hosts", json!(["example.org"]))]
    {
        let mut permissions = permissions.clone();
        *permissions.pointer_mut(at).unwrap() = other;
        let Err(faults) = asked.take("1", grant(&permissions)) else { panic!("{at}") };
        let told: Vec<_> = faults.iter().map(|fault| fault.description.as_str()).collect();
        assert!(told.len() == 1 && told[0].contains(at), "{told:?}");
    }
}

#[test]
fn a_fault_shows_json_as_it_was_given_and_where() {
    let asked = expected(
        "item/permissions/requestApproval",
        json!({ "permissions": { "network": { "enabled": true }, "fileSystem": { "read": ["/w"] } } }),
    );
    let grant = json!({ "network": { "enabled": "yes" }, "fileSystem": { "write": ["/w", 7] } });
    let answer = Answer::Permissions(PermissionsAnswer {
        permissions_json: grant.to_string(),
        ..Default::default()
    });
    let Err(faults) = asked.take("1", answer) else { panic!() };
    let begins: Vec<_> = faults.iter().map(|fault| fault.description.as_str()).collect();
    assert_eq!(begins.len(), 3);
    assert!(begins[0].starts_with(r#""yes" at /network/enabled"#), "{begins:?}");
    assert!(begins[1].starts_with(r#""/w" at /fileSystem/write/0"#), "{begins:?}");
    assert!(begins[2].starts_with("7 at /fileSystem/write/1"), "{begins:?}");
}

#[test]
fn what_a_request_denies_stays_denied() {
    let glob = json!({ "path": { "type": "glob_pattern", "pattern": "**/*.env" },
        "access": "deny" });
    let all = json!({ "path": { "type": "path", "path": "/w" }, "access": "write" });
    let permissions = json!({ "fileSystem": { "entries": [all, glob], "globScanMaxDepth": 2 } });
    let asked = expected("item/permissions/requestApproval", json!({ "permissions": permissions }));
    let grant = |permissions: &Value| {
        let permissions_json = permissions.to_string();
        Answer::Permissions(PermissionsAnswer { permissions_json, ..Default::default() })
    };
    assert_eq!(faults(&asked, grant(&permissions)), [""; 0]);
    let without = json!({ "fileSystem": { "entries": [all] } });
    assert_eq!(faults(&asked, grant(&without)), ["permissions.permissions_json"]);
}

#[test]
fn a_users_answers_are_to_what_was_asked_and_chosen_from_what_is_offered() {
    let options = json!([{ "label": "Red", "description": "warm" }, { "label": "Blue" }]);
    let question = |id: &str, is_other: bool, options: &Value| {
        json!({ "id": id, "header": "h", "question": "q?", "isOther": is_other,
            "isSecret": false, "options": options })
    };
    let params = json!({ "isBlocking": true, "questions": [
        question("closed", false, &options),
        question("open", true, &options),
        question("free", false, &Value::Null),
    ] });
    let asked = expected("item/tool/requestUserInput", params);
    let answer = |answers: &[(&str, &[&str])]| {
        let answers = answers.iter().map(|(id, given)| UserQuestionAnswer {
            question_id: (*id).to_owned(),
            answers: words(given),
        });
        Answer::UserQuestions(UserQuestionsAnswer { answers: answers.collect() })
    };
    let good: [(&str, &[&str]); 3] =
        [("free", &["anything"]), ("closed", &["Blue", "Red"]), ("open", &["Green"])];
    assert_eq!(faults(&asked, answer(&good)), [""; 0]);
    assert_eq!(faults(&asked, answer(&[])), [""; 0]);
    assert_eq!(faults(&asked, answer(&[("closed", &[])])), [""; 0]);
    let bad: [(&str, &[&str]); 4] =
        [("closed", &["Red", "Green"]), ("what", &["x"]), ("open", &["Red"]), ("open", &["Red"])];
    assert_eq!(
        faults(&asked, answer(&bad)),
        [
            "user_questions.answers[0].answers[1]",
            "user_questions.answers[1].question_id",
            "user_questions.answers[3].question_id",
        ]
    );
    let wrong = Answer::Elicitation(ElicitationAnswer::default());
    assert_eq!(faults(&asked, wrong), ["elicitation"]);
}

#[test]
fn an_mcp_server_is_given_what_its_form_or_its_address_wants() {
    const CONTENT: &str = "elicitation.content_json";
    const PERSIST: &str = "elicitation.persist";
    use ElicitationAction as Action;
    let answer = |action: i32, content: &str, persist: &str| {
        let (content_json, persist) = (content.to_owned(), persist.to_owned());
        Answer::Elicitation(ElicitationAnswer { action, content_json, persist })
    };
    let accept = |content: &str, persist: &str| answer(Action::Accept.into(), content, persist);
    let schema = json!({ "type": "object", "properties": { "n": { "type": "integer" } },
        "required": ["n"] });
    let params = json!({ "mode": "form", "_meta": null, "requestedSchema": schema });
    let form = expected("mcpServer/elicitation/request", params);
    assert_eq!(faults(&form, accept(r#"{"n":1}"#, "")), [""; 0]);
    for content in ["", "{}", r#"{"n":"1"}"#, "7", "{"] {
        assert_eq!(faults(&form, accept(content, "")), [CONTENT], "{content}");
    }
    assert_eq!(faults(&form, accept(r#"{"n":1}"#, "session")), [PERSIST]);
    for action in [Action::Decline, Action::Cancel] {
        assert_eq!(faults(&form, answer(action.into(), "", "")), [""; 0]);
        let both = answer(action.into(), r#"{"n":1}"#, "session");
        assert_eq!(faults(&form, both), [CONTENT, PERSIST]);
    }
    for number in [0, 77] {
        assert_eq!(faults(&form, answer(number, "", "")), ["elicitation.action"]);
    }
    let params = json!({ "mode": "url", "url": "https://x", "elicitationId": "e" });
    let address = expected("mcpServer/elicitation/request", params);
    assert_eq!(faults(&address, accept("", "")), [""; 0]);
    assert_eq!(faults(&address, accept("{}", "")), [CONTENT]);
    // Whether a tool may be called.
    let params = json!({
        "mode": "form", "requestedSchema": { "type": "object", "properties": {} },
        "_meta": { "codex_approval_kind": "mcp_tool_call", "persist": ["session", "always"] },
    });
    let approval = expected("mcpServer/elicitation/request", params);
    for persist in ["", "session", "always"] {
        assert_eq!(faults(&approval, accept("", persist)), [""; 0], "{persist}");
    }
    assert_eq!(faults(&approval, accept("{}", "forever")), [PERSIST]);
    // One of a newer CLI.
    let dream = expected("mcpServer/elicitation/request", json!({ "mode": "dream" }));
    assert_eq!(faults(&dream, accept(r#"{"any":"thing"}"#, "")), [""; 0]);
}

#[test]
fn what_a_lent_function_gives_back_fits_in_the_line_in_which_codex_tells_it() {
    let call = expected("item/tool/call", json!({ "tool": "f", "arguments": { "x": 1 } }));
    let says = |text: String| {
        let content = vec![ToolContent { content: Some(Content::Text(text)) }];
        Answer::ToolCall(ToolCallAnswer { content, success: true })
    };
    assert_eq!(faults(&call, says("x".repeat(5_000))), [""; 0]);
    assert_eq!(faults(&call, says("x".repeat(6_000))), ["tool_call"]);
    // As long as JSON makes it.
    assert_eq!(faults(&call, says("\u{1}".repeat(1_000))), ["tool_call"]);
}

#[test]
fn what_has_no_name_has_no_answer() {
    let unknown = expected("hologram/project", json!({}));
    let answer = Answer::Approval(decided(ApprovalDecision::Accept));
    assert_eq!(faults(&unknown, answer), ["approval"]);
}
