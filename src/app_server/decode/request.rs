//! What Codex asks, and the answers that say no.

use serde_json::{Value, json};

use crate::app_server::message::{RpcError, ServerRequest};
use crate::model::event::{Question, RequestKind};

/// What a request of Codex asks, and the item that it is about.
pub fn request(request: &ServerRequest) -> (Option<String>, RequestKind) {
    let ServerRequest { id: _, method, params } = request;
    let params: Value = serde_json::from_str(params.get()).unwrap_or_default();
    let text = |key: &str| params[key].as_str().map(str::to_owned);
    let item_id = text("itemId").or_else(|| text("callId"));
    let kind = match method.as_str() {
        "item/commandExecution/requestApproval" | "execCommandApproval" => {
            RequestKind::CommandApproval {
                command: match &params["command"] {
                    Value::Array(words) => {
                        words.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" ")
                    }
                    other => other.as_str().unwrap_or_default().to_owned(),
                },
                working_directory: text("cwd").unwrap_or_default(),
                reason: text("reason"),
                network_access: params["networkApprovalContext"].as_object().map(|network| {
                    let part = |key: &str| {
                        network.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
                    };
                    (part("host"), part("protocol"))
                }),
                proposed_exec_policy_amendment: params["proposedExecpolicyAmendment"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(Value::as_str)
                    .map(str::to_owned)
                    .collect(),
                proposed_network_policy_amendments: params["proposedNetworkPolicyAmendments"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(|amendment| {
                        let host = amendment["host"].as_str()?.to_owned();
                        Some((host, amendment["action"] == "allow"))
                    })
                    .collect(),
                additional_permissions_json: params
                    .get("additionalPermissions")
                    .filter(|permissions| !permissions.is_null())
                    .map(Value::to_string),
            }
        }
        "item/fileChange/requestApproval" | "applyPatchApproval" => {
            RequestKind::FileChangeApproval {
                reason: text("reason"),
                grant_root: text("grantRoot"),
            }
        }
        "item/permissions/requestApproval" => RequestKind::PermissionsApproval {
            reason: text("reason"),
            permissions_json: params["permissions"].to_string(),
            working_directory: text("cwd").unwrap_or_default(),
        },
        "item/tool/requestUserInput" => RequestKind::UserInput {
            questions: params["questions"].as_array().into_iter().flatten().map(question).collect(),
            is_blocking: params["isBlocking"].as_bool().unwrap_or(true),
        },
        "mcpServer/elicitation/request" => RequestKind::Elicitation {
            server: text("serverName").unwrap_or_default(),
            mode: text("mode").unwrap_or_default(),
            message: text("message").unwrap_or_default(),
            schema_json: params.get("requestedSchema").map(Value::to_string),
            url: text("url"),
            elicitation_id: text("elicitationId"),
            params_json: params.to_string(),
        },
        "item/tool/call" => RequestKind::ToolCall {
            tool: text("tool").unwrap_or_default(),
            namespace: text("namespace").unwrap_or_default(),
            call_id: text("callId").unwrap_or_default(),
            arguments_json: params["arguments"].to_string(),
        },
        method => RequestKind::Unknown { method: method.to_owned(), json: params.to_string() },
    };
    (item_id, kind)
}

fn question(question: &Value) -> Question {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Question {
        id: text(&question["id"]),
        header: text(&question["header"]),
        question: text(&question["question"]),
        options: question["options"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|option| (text(&option["label"]), text(&option["description"])))
            .collect(),
        is_other_allowed: question["isOther"].as_bool().unwrap_or(false),
        is_secret: question["isSecret"].as_bool().unwrap_or(false),
    }
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
