//! What Codex asks, and the answers that say no.

use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::parts::Parts;
use crate::app_server::message::RpcError;
use crate::model::item::{ChangedFile, FileChangeKind};
use crate::model::question::{
    ApprovalDecision, CommandApproval, Elicitation, FileChangeApproval, NetworkAccess,
    NetworkPolicyAmendment, PermissionsApproval, Question, QuestionKind, ToolCall, UnknownRequest,
    UserQuestion, UserQuestionOption, UserQuestions,
};

/// What a request of Codex asks; `json` are its parameters.
pub(super) fn question(method: &str, json: &RawValue, params: &Parts<'_>) -> Question {
    let said = |name: &str| params.read::<String>(name);
    let text = |name: &str| said(name).unwrap_or_default();
    // Other requests name what is no item, or name none.
    let names_item = match method {
        "item/commandExecution/requestApproval" => {
            params.get("networkApprovalContext").is_none() || params.get("command").is_some()
        }
        "item/tool/requestUserInput" | "item/permissions/requestApproval" => false,
        _ => true,
    };
    let item_id = said("itemId").or_else(|| said("callId")).filter(|_| names_item);
    let kind = match method {
        "item/commandExecution/requestApproval" | "execCommandApproval" => {
            QuestionKind::CommandApproval(CommandApproval {
                command: said("command").unwrap_or_else(|| texts(params, "command").join(" ")),
                working_directory: text("cwd"),
                reason: text("reason"),
                network_access: params.read("networkApprovalContext").map(|network: Parts<'_>| {
                    let part = |name: &str| network.read(name).unwrap_or_default();
                    NetworkAccess { host: part("host"), protocol: part("protocol") }
                }),
                action: text("kind"),
                proposed_exec_policy_amendment: exec_policy_amendment(params),
                proposed_network_policy_amendments: network_policy_amendments(params),
                available_decisions: available_decisions(params),
                additional_permissions_json: params.json("additionalPermissions"),
            })
        }
        "item/fileChange/requestApproval" | "applyPatchApproval" => {
            QuestionKind::FileChangeApproval(FileChangeApproval {
                reason: text("reason"),
                grant_root: text("grantRoot"),
                // The older request brings its own; the item of the newer one was told before.
                changes: older_changes(params),
            })
        }
        "item/permissions/requestApproval" => {
            QuestionKind::PermissionsApproval(PermissionsApproval {
                reason: text("reason"),
                permissions_json: params.json_or_null("permissions"),
                working_directory: text("cwd"),
            })
        }
        "item/tool/requestUserInput" => QuestionKind::UserQuestions(UserQuestions {
            questions: list(params, "questions").map(|question| user_question(&question)).collect(),
            blocking: params.read("isBlocking").unwrap_or(true),
        }),
        "mcpServer/elicitation/request" => QuestionKind::Elicitation(Elicitation {
            server_name: text("serverName"),
            mode: text("mode"),
            message: text("message"),
            requested_schema_json: params.json("requestedSchema"),
            url: text("url"),
            elicitation_id: text("elicitationId"),
            params_json: json.get().to_owned(),
            persist: texts(&params.parts("_meta"), "persist"),
        }),
        "item/tool/call" => QuestionKind::ToolCall(ToolCall {
            tool: text("tool"),
            namespace: text("namespace"),
            call_id: text("callId"),
            arguments_json: params.json_or_null("arguments"),
        }),
        method => {
            let (method, json) = (method.to_owned(), json.get().to_owned());
            QuestionKind::Unknown(UnknownRequest { method, json })
        }
    };
    Question::new(item_id, kind)
}

/// How a decision is spelled that brings an amendment with it, and the amendment.
const WITH_EXEC_POLICY: (&str, &str) = ("acceptWithExecpolicyAmendment", "execpolicy_amendment");
const WITH_NETWORK_POLICY: (&str, &str) =
    ("applyNetworkPolicyAmendment", "network_policy_amendment");

/// The words that are proposed; without them, those of the decision that is on offer.
fn exec_policy_amendment(params: &Parts<'_>) -> Vec<String> {
    let proposed = texts(params, "proposedExecpolicyAmendment");
    if !proposed.is_empty() {
        return proposed;
    }
    let (decision, amendment) = WITH_EXEC_POLICY;
    let mut offered = list(params, "availableDecisions");
    let words = offered.find_map(|offered| {
        let words = texts(&offered.parts(decision), amendment);
        (!words.is_empty()).then_some(words)
    });
    words.unwrap_or_default()
}

/// The rules that are proposed, and those of the decisions that are on offer.
fn network_policy_amendments(params: &Parts<'_>) -> Vec<NetworkPolicyAmendment> {
    let (decision, amendment) = WITH_NETWORK_POLICY;
    let proposed = list(params, "proposedNetworkPolicyAmendments");
    let offered =
        list(params, "availableDecisions").map(|offered| offered.parts(decision).parts(amendment));
    let mut rules = Vec::new();
    for rule in proposed.chain(offered).filter_map(|rule| network_rule(&rule)) {
        if !rules.contains(&rule) {
            rules.push(rule);
        }
    }
    rules
}

fn network_rule(rule: &Parts<'_>) -> Option<NetworkPolicyAmendment> {
    let allow = rule.read::<String>("action").as_deref() == Some("allow");
    Some(NetworkPolicyAmendment { host: rule.read("host")?, allow })
}

/// The decisions that Codex offers; none where it does not say. It takes a decline also where it does
/// not offer one.
fn available_decisions(params: &Parts<'_>) -> Vec<i32> {
    use ApprovalDecision as Decision;
    let offered: Vec<&RawValue> = params.read("availableDecisions").unwrap_or_default();
    let can_amend = !exec_policy_amendment(params).is_empty();
    let can_rule = !network_policy_amendments(params).is_empty();
    let mut decisions: Vec<Decision> = offered
        .into_iter()
        .filter_map(|offered| {
            let word: Option<String> = serde_json::from_str(offered.get()).ok();
            let parts = Parts::of(offered);
            Some(match word.as_deref() {
                Some("accept") => Decision::Accept,
                Some("acceptForSession") => Decision::AcceptForSession,
                Some("decline") => Decision::Decline,
                Some("cancel") => Decision::Cancel,
                // Without an amendment, nobody knows what it would allow.
                None if parts.get(WITH_EXEC_POLICY.0).is_some() && can_amend => {
                    Decision::AcceptWithExecPolicyAmendment
                }
                None if parts.get(WITH_NETWORK_POLICY.0).is_some() && can_rule => {
                    Decision::ApplyNetworkPolicyAmendment
                }
                // Of a newer CLI.
                Some(_) | None => return None,
            })
        })
        .collect();
    // It offers one network rule at a time.
    decisions.dedup();
    if !decisions.is_empty() && !decisions.contains(&Decision::Decline) {
        decisions.push(Decision::Decline);
    }
    decisions.into_iter().map(i32::from).collect()
}

/// The changes of a patch that the older request asks for.
fn older_changes(params: &Parts<'_>) -> Vec<ChangedFile> {
    let changes: Map<String, Value> = params.read("fileChanges").unwrap_or_default();
    let changed = changes.into_iter().map(|(path, change)| {
        let text = |name: &str| change[name].as_str().unwrap_or_default().to_owned();
        let kind = match change["type"].as_str() {
            Some("add") => FileChangeKind::Add,
            Some("delete") => FileChangeKind::Delete,
            Some("update") => FileChangeKind::Update,
            Some(_) | None => FileChangeKind::Unspecified,
        };
        let diff =
            if kind == FileChangeKind::Update { text("unified_diff") } else { text("content") };
        ChangedFile { path, kind: kind.into(), diff, move_path: text("move_path") }
    });
    changed.collect()
}

fn user_question(question: &Parts<'_>) -> UserQuestion {
    let text = |name: &str| question.read(name).unwrap_or_default();
    UserQuestion {
        question_id: text("id"),
        header: text("header"),
        text: text("question"),
        options: list(question, "options")
            .map(|option| UserQuestionOption {
                label: option.read("label").unwrap_or_default(),
                description: option.read("description").unwrap_or_default(),
            })
            .collect(),
        other_allowed: question.read("isOther").unwrap_or(false),
        secret: question.read("isSecret").unwrap_or(false),
    }
}

/// The objects of a list; none of what is no list. What is no object has no parts.
fn list<'a>(params: &Parts<'a>, name: &str) -> impl Iterator<Item = Parts<'a>> + use<'a> {
    let list: Vec<&RawValue> = params.read(name).unwrap_or_default();
    list.into_iter().map(Parts::of)
}

/// The texts of a list; none of what is no list.
fn texts(params: &Parts<'_>, name: &str) -> Vec<String> {
    let list: Vec<Value> = params.read(name).unwrap_or_default();
    list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// The answer that says no to a request of Codex. Every request must be answered, or its turn
/// hangs for ever; one of an unknown method is answered with an error.
pub(crate) fn decline(method: &str) -> Result<Value, RpcError> {
    Ok(match method {
        "item/commandExecution/requestApproval" | "item/fileChange/requestApproval" => {
            json!({ "decision": "decline" })
        }
        "execCommandApproval" | "applyPatchApproval" => json!({ "decision": "denied" }),
        "item/permissions/requestApproval" => json!({ "permissions": {}, "scope": "turn" }),
        "item/tool/requestUserInput" => json!({ "answers": {} }),
        "mcpServer/elicitation/request" => {
            json!({ "action": "decline", "content": null, "_meta": null })
        }
        "item/tool/call" => json!({
            "contentItems": [{
                "type": "inputText",
                "text": "The tool could not be called: its caller did not answer.",
            }],
            "success": false,
        }),
        "currentTime/read" => {
            let now = std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .unwrap_or_default();
            json!({ "currentTimeAt": now.as_secs() })
        }
        method => {
            return Err(RpcError {
                code: -32601,
                message: format!("codex-sidecar does not answer {method}"),
            });
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app_server::message::{self, Asked, Inbound, Line};

    fn asked(method: &str, params: Value) -> Asked {
        let line = json!({"id": 7, "method": method, "params": params}).to_string();
        match message::parse(line.as_bytes()) {
            Ok(Line::Inbound(Inbound::Asked(asked))) => asked,
            other => panic!("{other:?}"),
        }
    }

    fn kind(method: &str, params: Value) -> QuestionKind {
        asked(method, params).question.kind.unwrap()
    }

    #[test]
    fn a_command_approval_tells_all_that_is_asked_for() {
        let Asked { scope, question, .. } = asked(
            "item/commandExecution/requestApproval",
            json!({
                "threadId": "t", "turnId": "u", "itemId": "i", "command": "curl x", "cwd": "/w",
                "reason": null,
                "networkApprovalContext": {"host": "x", "protocol": "https"},
                "proposedExecpolicyAmendment": ["curl"],
                "proposedNetworkPolicyAmendments": [
                    {"host": "x", "action": "allow"}, {"host": "y", "action": "deny"},
                    {"action": "allow"},
                ],
                "additionalPermissions": {"network": true},
            }),
        );
        assert_eq!((scope.thread_id.as_deref(), scope.turn_id.as_deref()), (Some("t"), Some("u")));
        assert_eq!(question.item_id, "i");
        let amendment = |host: &str, allow| NetworkPolicyAmendment { host: host.to_owned(), allow };
        let expected = CommandApproval {
            command: "curl x".to_owned(),
            working_directory: "/w".to_owned(),
            network_access: Some(NetworkAccess {
                host: "x".to_owned(),
                protocol: "https".to_owned(),
            }),
            proposed_exec_policy_amendment: vec!["curl".to_owned()],
            proposed_network_policy_amendments: vec![amendment("x", true), amendment("y", false)],
            additional_permissions_json: r#"{"network":true}"#.to_owned(),
            ..CommandApproval::default()
        };
        assert_eq!(question.kind, Some(QuestionKind::CommandApproval(expected)));
        // The older one.
        let params = json!({"conversationId": "t", "callId": "i", "command": ["ls", "-l"]});
        let Asked { scope, question, .. } = asked("execCommandApproval", params);
        assert_eq!((scope.thread_id.as_deref(), question.item_id.as_str()), (Some("t"), "i"));
        let Some(QuestionKind::CommandApproval(approval)) = question.kind else { panic!() };
        assert_eq!(approval.command, "ls -l");
    }

    #[test]
    fn what_is_odd_in_a_list_takes_nothing_else_of_it_away() {
        let questions = json!([null, {"id": "q", "options": ["a", {"label": "b"}]}, 7]);
        let QuestionKind::UserQuestions(asked) =
            kind("item/tool/requestUserInput", json!({ "questions": questions }))
        else {
            panic!()
        };
        let ids: Vec<&str> = asked.questions.iter().map(|one| one.question_id.as_str()).collect();
        assert_eq!(ids, ["", "q", ""]);
        let options: Vec<&str> =
            asked.questions[1].options.iter().map(|option| option.label.as_str()).collect();
        assert_eq!(options, ["", "b"]);
        let params = json!({
            "proposedExecpolicyAmendment": ["curl", null, 7],
            "proposedNetworkPolicyAmendments": ["x", {"host": "y", "action": "allow"}],
            "networkApprovalContext": "x",
        });
        let QuestionKind::CommandApproval(approval) =
            kind("item/commandExecution/requestApproval", params)
        else {
            panic!()
        };
        assert_eq!(approval.proposed_exec_policy_amendment, ["curl"]);
        let amendment = NetworkPolicyAmendment { host: "y".to_owned(), allow: true };
        assert_eq!(approval.proposed_network_policy_amendments, [amendment]);
        assert_eq!(approval.network_access, None);
    }

    #[test]
    fn questions_calls_and_what_is_unknown_are_read() {
        let question = json!({"id": "q", "header": "h", "question": "which?", "isOther": true,
            "options": [{"label": "a", "description": "b"}], "isSecret": false});
        let QuestionKind::UserQuestions(asked) =
            kind("item/tool/requestUserInput", json!({ "questions": [question] }))
        else {
            panic!()
        };
        assert!(asked.blocking);
        let expected = UserQuestion {
            question_id: "q".to_owned(),
            header: "h".to_owned(),
            text: "which?".to_owned(),
            options: vec![UserQuestionOption {
                label: "a".to_owned(),
                description: "b".to_owned(),
            }],
            other_allowed: true,
            secret: false,
        };
        assert_eq!(asked.questions, [expected]);

        let QuestionKind::ToolCall(call) =
            kind("item/tool/call", json!({"tool": "f", "callId": "c", "arguments": {"x": [1]}}))
        else {
            panic!()
        };
        assert_eq!((call.tool.as_str(), call.arguments_json.as_str()), ("f", r#"{"x":[1]}"#));

        let params =
            json!({"serverName": "s", "mode": "form", "message": "m", "requestedSchema": {}});
        let QuestionKind::Elicitation(asked) =
            kind("mcpServer/elicitation/request", params.clone())
        else {
            panic!()
        };
        assert_eq!((asked.requested_schema_json.as_str(), asked.url.as_str()), ("{}", ""));
        assert_eq!(asked.params_json, params.to_string());

        let unknown = kind("hologram/project", json!({"x": 1}));
        let (method, json) = ("hologram/project".to_owned(), r#"{"x":1}"#.to_owned());
        assert_eq!(unknown, QuestionKind::Unknown(UnknownRequest { method, json }));
    }
}
