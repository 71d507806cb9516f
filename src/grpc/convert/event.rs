//! Events on their way out.

use super::duration;
use super::item::item;
use crate::model::event::{
    Delta, Event, InterruptReason, McpServerState, McpServerStatus, Question, ReasoningDelta,
    ReasoningPart, Request, RequestKind, Resolution, ThreadOrigin, TurnError, TurnEvent, Usage,
};
use crate::model::id::TurnId;
use crate::pb;
use crate::pb::turn_event::Event as PbEvent;

/// An event of the turn `turn_id` for the wire.
pub fn turn_event(turn_id: &TurnId, event: &TurnEvent) -> pb::TurnEvent {
    let TurnEvent { sequence, emitted_at, event } = event;
    pb::TurnEvent {
        sequence: *sequence,
        emitted_at: Some((*emitted_at).into()),
        turn_id: turn_id.0.clone(),
        event: Some(kind(event)),
    }
}

fn usage(usage: Usage) -> pb::Usage {
    let Usage {
        input_tokens,
        cached_input_tokens,
        cache_write_input_tokens,
        output_tokens,
        reasoning_output_tokens,
    } = usage;
    pb::Usage {
        input_tokens,
        cached_input_tokens,
        cache_write_input_tokens,
        output_tokens,
        reasoning_output_tokens,
    }
}

fn mcp_server_status(status: &McpServerStatus) -> pb::McpServerStatus {
    let McpServerStatus { server, state, error } = status;
    pb::McpServerStatus {
        server: server.clone(),
        state: match state {
            McpServerState::Starting => pb::McpServerState::Starting,
            McpServerState::Ready => pb::McpServerState::Ready,
            McpServerState::Failed => pb::McpServerState::Failed,
            McpServerState::Cancelled => pb::McpServerState::Cancelled,
        }
        .into(),
        error: error.clone(),
    }
}

fn kind(event: &Event) -> PbEvent {
    match event {
        Event::Queued { position } => PbEvent::Queued(pb::Queued { position: *position }),
        Event::ThreadStarted { thread_id, origin } => PbEvent::ThreadStarted(pb::ThreadStarted {
            thread_id: thread_id.clone(),
            origin: thread_origin(*origin).into(),
        }),
        Event::TurnStarted { codex_turn_id } => {
            PbEvent::TurnStarted(pb::TurnStarted { codex_turn_id: codex_turn_id.clone() })
        }
        Event::ItemStarted(it) => PbEvent::ItemStarted(pb::ItemStarted { item: Some(item(it)) }),
        Event::ItemUpdated(it) => PbEvent::ItemUpdated(pb::ItemUpdated { item: Some(item(it)) }),
        Event::ItemCompleted(it) => {
            PbEvent::ItemCompleted(pb::ItemCompleted { item: Some(item(it)) })
        }
        Event::AgentMessageDelta(Delta { item_id, text }) => {
            PbEvent::AgentMessageDelta(pb::AgentMessageDelta {
                item_id: item_id.clone(),
                text: text.clone(),
            })
        }
        Event::ReasoningDelta(ReasoningDelta { item_id, text, part, index }) => {
            PbEvent::ReasoningDelta(pb::ReasoningDelta {
                item_id: item_id.clone(),
                text: text.clone(),
                part: match part {
                    ReasoningPart::Summary => pb::ReasoningPart::Summary,
                    ReasoningPart::Content => pb::ReasoningPart::Content,
                }
                .into(),
                index: *index,
            })
        }
        Event::CommandOutputDelta(Delta { item_id, text }) => {
            PbEvent::CommandOutputDelta(pb::CommandOutputDelta {
                item_id: item_id.clone(),
                text: text.clone(),
            })
        }
        Event::TurnDiffUpdated { diff } => {
            PbEvent::TurnDiffUpdated(pb::TurnDiffUpdated { diff: diff.clone() })
        }
        Event::TokenUsageUpdated { turn, thread, last_request, model_context_window } => {
            PbEvent::TokenUsageUpdated(pb::TokenUsageUpdated {
                usage: Some(usage(*turn)),
                thread_usage: Some(usage(*thread)),
                last_request_usage: Some(usage(*last_request)),
                model_context_window: *model_context_window,
            })
        }
        Event::ThreadError { error, will_retry } => PbEvent::ThreadError(pb::ThreadError {
            error: Some(turn_error(error)),
            will_retry: *will_retry,
        }),
        Event::Warning { code, message, details } => PbEvent::Warning(pb::Warning {
            code: code.as_str().to_owned(),
            message: message.clone(),
            details: details.clone(),
        }),
        Event::McpServerStatus(status) => PbEvent::McpServerStatus(mcp_server_status(status)),
        Event::RequestRaised(asked) => {
            PbEvent::RequestRaised(pb::RequestRaised { request: Some(request(asked)) })
        }
        Event::RequestResolved { request_id, resolution } => {
            PbEvent::RequestResolved(pb::RequestResolved {
                request_id: request_id.clone(),
                resolution: match resolution {
                    Resolution::Answered => pb::RequestResolution::Answered,
                    Resolution::Declined => pb::RequestResolution::Declined,
                    Resolution::Withdrawn => pb::RequestResolution::Withdrawn,
                }
                .into(),
            })
        }
        Event::Gap { from, to } => PbEvent::Gap(pb::Gap { from: *from, to: *to }),
        Event::Raw { method, json } => {
            PbEvent::Raw(pb::Raw { method: method.clone(), json: json.clone() })
        }
        Event::TurnCompleted { final_response, usage, thread_usage } => {
            PbEvent::TurnCompleted(pb::TurnCompleted {
                final_response: final_response.clone(),
                usage: known(*usage),
                thread_usage: known(*thread_usage),
            })
        }
        Event::TurnFailed { error, usage, thread_usage } => PbEvent::TurnFailed(pb::TurnFailed {
            error: Some(turn_error(error)),
            usage: known(*usage),
            thread_usage: known(*thread_usage),
        }),
        Event::TurnInterrupted { reason, usage, thread_usage } => {
            PbEvent::TurnInterrupted(pb::TurnInterrupted {
                reason: match reason {
                    InterruptReason::CallerDisconnected => pb::InterruptReason::CallerDisconnected,
                    InterruptReason::DeadlineExceeded => pb::InterruptReason::DeadlineExceeded,
                    InterruptReason::Requested => pb::InterruptReason::InterruptRequested,
                    InterruptReason::Draining => pb::InterruptReason::Draining,
                    InterruptReason::Codex => pb::InterruptReason::Codex,
                }
                .into(),
                usage: known(*usage),
                thread_usage: known(*thread_usage),
            })
        }
    }
}

fn thread_origin(origin: ThreadOrigin) -> pb::ThreadOrigin {
    match origin {
        ThreadOrigin::New => pb::ThreadOrigin::New,
        ThreadOrigin::Resumed => pb::ThreadOrigin::Resumed,
        ThreadOrigin::Forked => pb::ThreadOrigin::Forked,
        ThreadOrigin::Explicit => pb::ThreadOrigin::Explicit,
    }
}

/// A turn's final usage. Codex never tells of one without a token, so all zeros mean that it told
/// nothing, which the contract says by leaving the field out.
fn known(tokens: Usage) -> Option<pb::Usage> {
    (tokens != Usage::default()).then(|| usage(tokens))
}

fn turn_error(error: &TurnError) -> pb::TurnError {
    let TurnError {
        reason,
        message,
        details,
        retryable,
        retry_after,
        side_effects_possible,
        http_status,
    } = error;
    pb::TurnError {
        reason: reason.as_str().to_owned(),
        message: message.clone(),
        retryable: *retryable,
        retry_after: retry_after.and_then(duration),
        side_effects_possible: *side_effects_possible,
        http_status: http_status.map(i32::from),
        details: details.clone(),
    }
}

fn request(request: &Request) -> pb::CodexRequest {
    let Request { id, item_id, kind } = request;
    pb::CodexRequest {
        request_id: id.clone(),
        expire_time: None,
        item_id: item_id.clone().unwrap_or_default(),
        kind: Some(request_kind(kind)),
    }
}

fn request_kind(kind: &RequestKind) -> pb::codex_request::Kind {
    use pb::codex_request::Kind;
    match kind {
        RequestKind::CommandApproval {
            command,
            working_directory,
            reason,
            network_access,
            proposed_exec_policy_amendment,
            proposed_network_policy_amendments,
            additional_permissions_json,
        } => Kind::CommandApproval(pb::CommandApproval {
            command: command.clone(),
            working_directory: working_directory.clone(),
            reason: reason.clone().unwrap_or_default(),
            action: String::new(),
            network_access: network_access.as_ref().map(|(host, protocol)| pb::NetworkAccess {
                host: host.clone(),
                protocol: protocol.clone(),
            }),
            proposed_exec_policy_amendment: proposed_exec_policy_amendment.clone(),
            proposed_network_policy_amendments: proposed_network_policy_amendments
                .iter()
                .map(|(host, allow)| pb::NetworkPolicyAmendment {
                    host: host.clone(),
                    allow: *allow,
                })
                .collect(),
            available_decisions: Vec::new(),
            additional_permissions_json: additional_permissions_json.clone().unwrap_or_default(),
        }),
        RequestKind::FileChangeApproval { reason, grant_root } => {
            Kind::FileChangeApproval(pb::FileChangeApproval {
                changes: Vec::new(),
                reason: reason.clone().unwrap_or_default(),
                grant_root: grant_root.clone().unwrap_or_default(),
            })
        }
        RequestKind::PermissionsApproval { reason, permissions_json, working_directory } => {
            Kind::PermissionsApproval(pb::PermissionsApproval {
                permissions_json: permissions_json.clone(),
                reason: reason.clone().unwrap_or_default(),
                working_directory: working_directory.clone(),
            })
        }
        RequestKind::UserInput { questions, is_blocking } => {
            Kind::UserQuestions(pb::UserQuestions {
                questions: questions.iter().map(question).collect(),
                blocking: *is_blocking,
            })
        }
        RequestKind::Elicitation {
            server,
            mode,
            message,
            schema_json,
            url,
            elicitation_id,
            params_json,
        } => Kind::Elicitation(pb::Elicitation {
            server_name: server.clone(),
            mode: mode.clone(),
            message: message.clone(),
            requested_schema_json: schema_json.clone().unwrap_or_default(),
            url: url.clone().unwrap_or_default(),
            elicitation_id: elicitation_id.clone().unwrap_or_default(),
            params_json: params_json.clone(),
        }),
        RequestKind::ToolCall { tool, namespace, call_id, arguments_json } => {
            Kind::ToolCall(pb::ToolCall {
                tool: tool.clone(),
                namespace: namespace.clone(),
                call_id: call_id.clone(),
                arguments_json: arguments_json.clone(),
            })
        }
        RequestKind::Unknown { method, json } => {
            Kind::Unknown(pb::UnknownRequest { method: method.clone(), json: json.clone() })
        }
    }
}

fn question(question: &Question) -> pb::UserQuestion {
    let Question { id, header, question, options, is_other_allowed, is_secret } = question;
    pb::UserQuestion {
        question_id: id.clone(),
        header: header.clone(),
        text: question.clone(),
        options: options
            .iter()
            .map(|(label, description)| pb::UserQuestionOption {
                label: label.clone(),
                description: description.clone(),
            })
            .collect(),
        other_allowed: *is_other_allowed,
        secret: *is_secret,
    }
}
