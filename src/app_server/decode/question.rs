//! What Codex asks, and the answers that say no.

use serde_json::{Value, json};

use crate::app_server::message::{RpcError, ServerRequest};
use crate::model::question::{
    CommandApproval, Elicitation, FileChangeApproval, NetworkAccess, NetworkPolicyAmendment,
    PermissionsApproval, Question, QuestionKind, ToolCall, UnknownRequest, UserQuestion,
    UserQuestionOption, UserQuestions,
};

/// What a request of Codex asks.
pub fn question(request: &ServerRequest) -> Question {
    let ServerRequest { id: _, method, params } = request;
    let params: Value = serde_json::from_str(params.get()).unwrap_or_default();
    let said = |key: &str| params[key].as_str().map(str::to_owned);
    let text = |key: &str| said(key).unwrap_or_default();
    let item_id = said("itemId").or_else(|| said("callId"));
    let kind = match method.as_str() {
        "item/commandExecution/requestApproval" | "execCommandApproval" => {
            QuestionKind::CommandApproval(CommandApproval {
                command: match &params["command"] {
                    Value::Array(words) => {
                        words.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" ")
                    }
                    other => text_of(other),
                },
                working_directory: text("cwd"),
                reason: text("reason"),
                network_access: params["networkApprovalContext"].as_object().map(|network| {
                    let part = |key: &str| network.get(key).map(text_of).unwrap_or_default();
                    NetworkAccess { host: part("host"), protocol: part("protocol") }
                }),
                proposed_exec_policy_amendment: list(&params["proposedExecpolicyAmendment"])
                    .filter_map(Value::as_str)
                    .map(str::to_owned)
                    .collect(),
                proposed_network_policy_amendments: list(
                    &params["proposedNetworkPolicyAmendments"],
                )
                .filter_map(|amendment| {
                    let host = amendment["host"].as_str()?.to_owned();
                    let allow = amendment["action"] == "allow";
                    Some(NetworkPolicyAmendment { host, allow })
                })
                .collect(),
                additional_permissions_json: params
                    .get("additionalPermissions")
                    .filter(|permissions| !permissions.is_null())
                    .map(Value::to_string)
                    .unwrap_or_default(),
                ..CommandApproval::default()
            })
        }
        "item/fileChange/requestApproval" | "applyPatchApproval" => {
            QuestionKind::FileChangeApproval(FileChangeApproval {
                reason: text("reason"),
                grant_root: text("grantRoot"),
                changes: Vec::new(),
            })
        }
        "item/permissions/requestApproval" => {
            QuestionKind::PermissionsApproval(PermissionsApproval {
                reason: text("reason"),
                permissions_json: params["permissions"].to_string(),
                working_directory: text("cwd"),
            })
        }
        "item/tool/requestUserInput" => QuestionKind::UserQuestions(UserQuestions {
            questions: list(&params["questions"]).map(user_question).collect(),
            blocking: params["isBlocking"].as_bool().unwrap_or(true),
        }),
        "mcpServer/elicitation/request" => QuestionKind::Elicitation(Elicitation {
            server_name: text("serverName"),
            mode: text("mode"),
            message: text("message"),
            requested_schema_json: params
                .get("requestedSchema")
                .map(Value::to_string)
                .unwrap_or_default(),
            url: text("url"),
            elicitation_id: text("elicitationId"),
            params_json: params.to_string(),
        }),
        "item/tool/call" => QuestionKind::ToolCall(ToolCall {
            tool: text("tool"),
            namespace: text("namespace"),
            call_id: text("callId"),
            arguments_json: params["arguments"].to_string(),
        }),
        method => {
            let (method, json) = (method.to_owned(), params.to_string());
            QuestionKind::Unknown(UnknownRequest { method, json })
        }
    };
    Question::new(item_id, kind)
}

fn user_question(question: &Value) -> UserQuestion {
    UserQuestion {
        question_id: text_of(&question["id"]),
        header: text_of(&question["header"]),
        text: text_of(&question["question"]),
        options: list(&question["options"])
            .map(|option| UserQuestionOption {
                label: text_of(&option["label"]),
                description: text_of(&option["description"]),
            })
            .collect(),
        other_allowed: question["isOther"].as_bool().unwrap_or(false),
        secret: question["isSecret"].as_bool().unwrap_or(false),
    }
}

/// The text; empty for what is none.
fn text_of(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The entries; none of what is no list.
fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// The answer that says no to a request of Codex. Every request must be answered, or its turn
/// hangs for ever; one of an unknown method is answered with an error.
pub fn decline(method: &str) -> Result<Value, RpcError> {
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
