//! Requests on their way in: a message becomes a validated value, or a refusal that names every
//! fault.

use std::sync::Arc;

use prost::Message as _;
use sha2::{Digest as _, Sha256};

use super::inputs::{check_beside_work, inputs_of, work_of};
use super::options::{
    CONTEXT_POLICY, busy_policy, context_policy, disconnect_policy, missing_thread_policy,
    question_policy, thread_options, turn_options,
};
use super::{Faults, show};
use crate::grpc::limits::RequestLimits;
use crate::model::id::{CallerId, ContextKey, LONGEST_NAME, Tenant, ThreadId, faults_of_name};
use crate::model::options::{Environment, ThreadOptions, ToolDefaults};
use crate::model::policy::Policy;
use crate::model::refusal::{FieldViolation, Refusal};
use crate::model::request::{
    BusyPolicy, ContentHash, ContextPolicy, RequestId, TurnRequest, UserInput, Work,
};
use crate::pb;
use crate::turn::timeouts::Timeouts;

/// The version of the hash of a request's content: SHA-256 of its encoding, without its id and what holds
/// anyway. A field that a later version adds changes nothing where it is not set.
const CONTENT_HASH_VERSION: u32 = 1;

const DEFAULT_TOOL: &str = "codex";
const TOOL_PREFIX: &str = "codex_";
const THREAD_KEY: &str = "codex_thread_id";

/// Validates a `RunTurnRequest`. `tool_defaults` is what the configuration says of a tool by its
/// name; empty defaults for one that it does not name. `policy` is what holds for tools that have none.
pub(crate) fn turn_request(
    mut request: pb::RunTurnRequest,
    tool_defaults: &dyn Fn(&str) -> ToolDefaults,
    policy: &Arc<Policy>,
    limits: &RequestLimits,
    timeouts: &Timeouts,
    tenant: Tenant,
) -> Result<TurnRequest, Refusal> {
    let mut faults = Faults::default();
    let bytes = request.encoded_len();
    // Before the request is taken apart: the digest is of everything but the id.
    let request_id = std::mem::take(&mut request.request_id);
    leave_out_defaults(&mut request);
    let request_id = request_id_of(request_id, &request, &mut faults);

    let pb::RunTurnRequest {
        context_id,
        tool_name,
        thread_id_key,
        inputs,
        ephemeral,
        thread_id,
        thread_options: options,
        turn_options: options_of_turn,
        request_id: _taken_above,
        busy_policy: busy,
        disconnect_policy: disconnect,
        missing_thread_policy: missing_thread,
        include_raw_events,
        unbound,
        context_policy: for_context,
        question_policy: question,
        review,
        compact,
    } = request;

    let tool_name = tool_of("tool_name", &tool_name, &mut faults);
    let tool = tool_name.as_deref().map(tool_defaults).unwrap_or_default();
    let thread_key = thread_key_of("", tool_name.as_deref(), &thread_id_key, &tool, &mut faults);
    let context_id = context_id.trim();
    let explicit_thread = thread_id_of("thread_id", &thread_id, &mut faults);

    if ephemeral || unbound {
        let what = if ephemeral { "ephemeral" } else { "unbound" };
        for (field, value) in [
            ("context_id", context_id),
            ("thread_id", thread_id.trim()),
            ("thread_id_key", thread_id_key.trim()),
        ] {
            if !value.is_empty() {
                faults.add(
                    field,
                    format!(
                        "{} can't be combined with {what}, whose thread is neither continued nor \
                         bound; leave one of the two out",
                        show(value)
                    ),
                );
            }
        }
        if ephemeral && unbound {
            faults
                .add("unbound", "true can't be combined with ephemeral; leave one of the two out");
        }
    } else if context_id.is_empty() && thread_id.trim().is_empty() {
        faults.add(
            "context_id",
            "\"\" names no conversation; give 1 to 256 bytes, or a thread_id, or set ephemeral or \
             unbound",
        );
    }
    check_key("context_id", context_id, &mut faults);
    let context_policy = context_policy(for_context, &mut faults);
    if context_policy != ContextPolicy::Any && context_id.is_empty() {
        faults.add(
            CONTEXT_POLICY,
            "is about the context's binding, and the turn has no context; give a context_id, or \
             leave it out",
        );
    }

    let work = work_of(review, compact, &inputs, limits, &mut faults);
    let inputs = match work {
        Work::Inputs => inputs_of(inputs, limits, &mut faults),
        // They have had their fault.
        Work::Review(_) | Work::Compact => Vec::new(),
    };
    let own_options = thread_options(options, &mut faults);
    if work != Work::Inputs {
        check_beside_work(&work, options_of_turn.as_ref(), ephemeral, unbound, &mut faults);
    }
    let question_policy = question_policy(question, &mut faults);
    let mut turn_options = turn_options(
        options_of_turn,
        tool_name.as_deref().unwrap_or(DEFAULT_TOOL),
        &tool,
        timeouts,
        question_policy,
        &mut faults,
    );
    let busy_policy = busy_policy(busy, &mut faults);
    if work != Work::Inputs {
        // The tool's schema is for what it is asked in words.
        turn_options.output_schema = None;
        if busy_policy == BusyPolicy::Steer {
            faults.add(
                "busy_policy",
                "STEER adds inputs to the running turn, and this turn has none; use another policy",
            );
        }
    }
    let disconnect_policy = disconnect_policy(disconnect, &mut faults);
    let missing_thread_policy = missing_thread_policy(missing_thread, &mut faults);

    let context = (!context_id.is_empty()).then(|| ContextKey {
        tenant: tenant.clone(),
        context_id: context_id.to_owned(),
        thread_key: thread_key.unwrap_or_default(),
    });
    // These turns continue nothing, the tool's thread neither.
    let starts_anew = ephemeral || unbound;
    let configured_thread =
        tool.thread_id.as_deref().filter(|_| !starts_anew).and_then(ThreadId::parse);
    faults.or_refuse(())?;
    let policy = tool.policy.as_ref().unwrap_or(policy);
    let (thread_options, denied) = permitted(own_options, &tool, policy, &inputs);
    // What lies outside of the roots is told with it.
    if policy.roots.is_none() && !denied.is_empty() {
        return Err(Refusal::PolicyDenied(denied));
    }
    Ok(TurnRequest {
        tenant,
        // Known by the connection, and not by what the request says.
        caller: CallerId::default(),
        context,
        work,
        inputs,
        ephemeral,
        explicit_thread,
        configured_thread,
        thread_options,
        turn_options,
        request_id,
        context_policy,
        busy_policy,
        question_policy,
        disconnect_policy,
        missing_thread_policy,
        include_raw_events,
        policy: Arc::clone(policy),
        denied,
        bytes,
    })
}

/// The options of all layers, and what of them the policy does not let the request have.
fn permitted(
    own: ThreadOptions,
    tool: &ToolDefaults,
    policy: &Policy,
    inputs: &[UserInput],
) -> (ThreadOptions, Vec<FieldViolation>) {
    let mut denied = Faults::default();
    // Of the request alone: the tool's are the owner's.
    if let Some(config) = &own.config {
        policy.judge_config("thread_options.config", config, &mut denied);
    }
    if let Some(Environment(variables)) = &own.environment {
        let names = variables.keys().map(String::as_str);
        policy.judge_environment("thread_options.environment", names, &mut denied);
    }
    let mut options = own.or(&tool.thread_options);
    policy.judge("thread_options.", &options, &mut denied);
    policy.judge_inputs(inputs, &mut denied);
    policy.settle(&mut options);
    (options, denied.into())
}

/// Validates the name of a binding, given by the fields `context_id`, `tool_name` and
/// `thread_id_key` of a request.
pub(crate) fn context_key(
    tenant: &Tenant,
    context_id: &str,
    tool_name: &str,
    thread_id_key: &str,
    tool_defaults: &dyn Fn(&str) -> ToolDefaults,
) -> Result<ContextKey, Refusal> {
    let mut faults = Faults::default();
    let key = key_of("", tenant, context_id, tool_name, thread_id_key, tool_defaults, &mut faults);
    faults.or_refuse(key)
}

/// Validates the name of a binding that stands in the field `path` of a request.
pub(crate) fn context_ref(
    path: &str,
    tenant: &Tenant,
    reference: &pb::ContextRef,
    tool_defaults: &dyn Fn(&str) -> ToolDefaults,
) -> Result<ContextKey, Refusal> {
    let pb::ContextRef { context_id, tool_name, thread_id_key } = reference;
    let mut faults = Faults::default();
    let key =
        key_of(path, tenant, context_id, tool_name, thread_id_key, tool_defaults, &mut faults);
    faults.or_refuse(key)
}

/// Validates the field `inputs`: what the user says.
pub(crate) fn user_inputs(
    inputs: Vec<pb::UserInput>,
    limits: &RequestLimits,
) -> Result<Vec<UserInput>, Refusal> {
    let mut faults = Faults::default();
    let inputs = inputs_of(inputs, limits, &mut faults);
    faults.or_refuse(inputs)
}

fn request_id_of(id: String, rest: &pb::RunTurnRequest, faults: &mut Faults) -> Option<RequestId> {
    if id.is_empty() {
        return None;
    }
    if let Some(fault) = RequestId::fault_of(&id) {
        faults.add("request_id", format!("{} {fault}", show(&id)));
        return None;
    }
    // Equal requests encode alike: fields go in the order of their numbers, and maps are kept sorted.
    let digest = Sha256::digest(rest.encode_to_vec()).into();
    Some(RequestId { id, content: ContentHash { version: CONTENT_HASH_VERSION, digest } })
}

/// Leaves out what holds anyway: who writes it out makes no other request of it.
fn leave_out_defaults(request: &mut pb::RunTurnRequest) {
    let left_out = |value: &mut i32, default: i32| {
        if *value == default {
            *value = 0;
        }
    };
    left_out(&mut request.busy_policy, pb::BusyPolicy::Queue.into());
    left_out(&mut request.disconnect_policy, pb::DisconnectPolicy::Interrupt.into());
    left_out(&mut request.missing_thread_policy, pb::MissingThreadPolicy::Fail.into());
    left_out(&mut request.context_policy, pb::ContextPolicy::Any.into());
    left_out(&mut request.question_policy, pb::QuestionPolicy::Decline.into());
    if request.tool_name.trim() == "codex" {
        request.tool_name.clear();
    }
    request.thread_options.take_if(|options| *options == pb::ThreadOptions::default());
    request.turn_options.take_if(|options| *options == pb::TurnOptions::default());
}

fn key_of(
    path: &str,
    tenant: &Tenant,
    context_id: &str,
    tool_name: &str,
    thread_id_key: &str,
    tool_defaults: &dyn Fn(&str) -> ToolDefaults,
    faults: &mut Faults,
) -> ContextKey {
    let tool_name = tool_of(&within(path, "tool_name"), tool_name, faults);
    let tool = tool_name.as_deref().map(tool_defaults).unwrap_or_default();
    let thread_key = thread_key_of(path, tool_name.as_deref(), thread_id_key, &tool, faults);
    let field = within(path, "context_id");
    let context_id = context_id.trim();
    if context_id.is_empty() {
        faults.add(field.as_str(), "\"\" names no conversation; give 1 to 256 bytes");
    }
    check_key(&field, context_id, faults);
    ContextKey {
        tenant: tenant.clone(),
        context_id: context_id.to_owned(),
        thread_key: thread_key.unwrap_or_default(),
    }
}

/// `field` of the message at `path`.
fn within(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}

/// A key is short, and is what it seems to be wherever it is shown.
fn check_key(field: &str, value: &str, faults: &mut Faults) {
    for fault in faults_of_name(value) {
        faults.add(field, format!("{} {fault}", show(value)));
    }
}

/// The tool's name; `None` for a wrong one.
fn tool_of(field: &str, name: &str, faults: &mut Faults) -> Option<String> {
    let name = name.trim();
    if name.is_empty() {
        return Some(DEFAULT_TOOL.to_owned());
    }
    if name != DEFAULT_TOOL && !name.starts_with(TOOL_PREFIX) {
        faults.add(
            field,
            format!("{} is no Codex tool; call it codex, or codex_ and a suffix", show(name)),
        );
        return None;
    }
    check_key(field, name, faults);
    (name.len() <= LONGEST_NAME).then(|| name.to_owned())
}

/// The thread key: the request's, the one configured for the tool, or the one that the tool's name
/// gives. `None` where none can be told, which is a fault.
fn thread_key_of(
    path: &str,
    tool_name: Option<&str>,
    given: &str,
    tool: &ToolDefaults,
    faults: &mut Faults,
) -> Option<String> {
    let given = given.trim();
    if !given.is_empty() {
        check_key(&within(path, "thread_id_key"), given, faults);
        return Some(given.to_owned());
    }
    if let Some(configured) = &tool.thread_id_key {
        return Some(configured.clone());
    }
    // A wrong name has had its fault already.
    let tool_name = tool_name?;
    let Some(suffix) = tool_name.strip_prefix(TOOL_PREFIX) else {
        return Some(THREAD_KEY.to_owned());
    };
    let key = format!("{THREAD_KEY}_{suffix}");
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let fault = if suffix.is_empty() || !suffix.bytes().all(plain) {
        "its suffix after codex_ must match [A-Za-z0-9_]+"
    } else if key.len() > LONGEST_NAME {
        "its suffix gives a thread key of more than 256 bytes"
    } else {
        return Some(key);
    };
    faults.add(
        within(path, "tool_name"),
        format!("{}: {fault}; rename the tool, or give thread_id_key", show(tool_name)),
    );
    None
}

fn thread_id_of(field: &str, id: &str, faults: &mut Faults) -> Option<ThreadId> {
    let id = id.trim();
    if id.is_empty() {
        return None;
    }
    let parsed = ThreadId::parse(id);
    if parsed.is_none() {
        faults.add(
            field,
            format!("{} is no thread id; give the UUID that thread_started told", show(id)),
        );
    }
    parsed
}
