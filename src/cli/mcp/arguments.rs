//! What a call of a tool asks for, as a request to the sidecar.
//!
//! The mistakes are told in the words of `codex mcp-server`, which are those of its JSON reader.

use std::path::Path;

use rmcp::model::JsonObject;
use serde::Deserialize;
use serde_json::Value;

use super::call::{Asked, Ending};
use super::sessions::Sessions;
use crate::cli::exec::overrides::Overrides;
use crate::cli::exec::request::{absolute, configure, input, text};
use crate::cli::failure::Failure;
use crate::pb;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Codex {
    prompt: String,
    model: Option<String>,
    cwd: Option<String>,
    approval_policy: Option<ApprovalPolicy>,
    sandbox: Option<Sandbox>,
    config: Option<JsonObject>,
    base_instructions: Option<String>,
    developer_instructions: Option<String>,
    compact_prompt: Option<String>,
}

/// Also those that the schema no longer has.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum ApprovalPolicy {
    OnRequest,
    Never,
    OnFailure,
    Untrusted,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Sandbox {
    ReadOnly,
    WorkspaceWrite,
    DangerFullAccess,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CodexReply {
    prompt: String,
    thread_id: Option<String>,
    conversation_id: Option<String>,
}

impl From<ApprovalPolicy> for pb::ApprovalPolicy {
    fn from(policy: ApprovalPolicy) -> pb::ApprovalPolicy {
        match policy {
            ApprovalPolicy::OnRequest => pb::ApprovalPolicy::OnRequest,
            ApprovalPolicy::Never => pb::ApprovalPolicy::Never,
            ApprovalPolicy::OnFailure => pb::ApprovalPolicy::OnFailure,
            ApprovalPolicy::Untrusted => pb::ApprovalPolicy::Untrusted,
        }
    }
}

/// A call of `codex`: a new thread.
pub(crate) fn codex(arguments: JsonObject, directory: &Path) -> Result<Asked, Ending> {
    let wrong = |why: String| {
        Ending::failed("", format!("Failed to parse configuration for Codex tool: {why}"))
    };
    let codex: Codex = read(arguments).map_err(wrong)?;
    let prompt = codex.prompt.clone();
    let options = options(codex, directory).map_err(|failure| wrong(failure.into_message()))?;
    let request = pb::RunTurnRequest { unbound: true, ..request(prompt, options) };
    Ok(Asked { request, thread_id: String::new() })
}

/// A call of `codex-reply`: a thread goes on, as it began if that was here.
pub(super) fn codex_reply(
    arguments: JsonObject,
    sessions: &Sessions,
    directory: &Path,
) -> Result<Asked, Ending> {
    let CodexReply { prompt, thread_id, conversation_id } = read(arguments).map_err(|why| {
        Ending::failed("", format!("Failed to parse configuration for Codex tool: {why}"))
    })?;
    let wrong = |why: &str| Ending::failed("", format!("Failed to parse thread_id: {why}"));
    let thread_id = thread_id
        .or(conversation_id)
        .ok_or_else(|| wrong("either threadId or conversationId must be provided"))?;
    if let Err(error) = uuid::Uuid::try_parse(&thread_id) {
        return Err(wrong(&error.to_string()));
    }
    let options = match sessions.options(&thread_id) {
        Some(options) => options,
        None => in_directory(None, directory).map_err(|_| wrong("no working directory"))?,
    };
    let request = pb::RunTurnRequest { thread_id: thread_id.clone(), ..request(prompt, options) };
    Ok(Asked { request, thread_id })
}

fn read<T: serde::de::DeserializeOwned>(arguments: JsonObject) -> Result<T, String> {
    serde_json::from_value(Value::Object(arguments)).map_err(|error| error.to_string())
}

fn request(prompt: String, options: pb::ThreadOptions) -> pb::RunTurnRequest {
    pb::RunTurnRequest {
        inputs: vec![input(pb::user_input::Input::Text(prompt))],
        thread_options: Some(options),
        ..Default::default()
    }
}

fn in_directory(cwd: Option<&str>, directory: &Path) -> Result<pb::ThreadOptions, Failure> {
    Ok(pb::ThreadOptions {
        working_directory: Some(absolute(directory, Path::new(cwd.unwrap_or_default()))?),
        // `codex mcp-server` does not look.
        skip_git_repo_check: Some(true),
        ..Default::default()
    })
}

fn options(codex: Codex, directory: &Path) -> Result<pb::ThreadOptions, Failure> {
    let mut overrides = Overrides::default();
    for (key, value) in codex.config.into_iter().flatten() {
        if let Some(value) = to_toml(value) {
            overrides.set(&key, value);
        }
    }
    if let Some(prompt) = codex.compact_prompt {
        overrides.set("compact_prompt", toml::Value::String(prompt));
    }
    let mut options = pb::ThreadOptions {
        model: codex.model,
        base_instructions: codex.base_instructions,
        developer_instructions: codex.developer_instructions,
        ..in_directory(codex.cwd.as_deref(), directory)?
    };
    let configured = text(&mut overrides, "approval_policy")?.map(toml::Value::String);
    let configured = match configured.map(ApprovalPolicy::deserialize).transpose() {
        Ok(policy) => policy,
        Err(error) => return Err(Failure::told(format!("config.approval_policy: {error}"))),
    };
    if let Some(policy) = codex.approval_policy.or(configured) {
        options.set_approval_policy(policy.into());
    }
    match codex.sandbox {
        Some(Sandbox::ReadOnly) => options.set_sandbox_mode(pb::SandboxMode::ReadOnly),
        Some(Sandbox::WorkspaceWrite) => options.set_sandbox_mode(pb::SandboxMode::WorkspaceWrite),
        Some(Sandbox::DangerFullAccess) => {
            options.set_sandbox_mode(pb::SandboxMode::DangerFullAccess);
        }
        None => {}
    }
    configure(overrides, directory, &mut options)?;
    Ok(options)
}

/// TOML has no null: what is null is not said.
fn to_toml(value: Value) -> Option<toml::Value> {
    Some(match value {
        Value::Null => return None,
        Value::Bool(value) => toml::Value::Boolean(value),
        Value::Number(number) => match number.as_i64() {
            Some(integer) => toml::Value::Integer(integer),
            None => toml::Value::Float(number.as_f64()?),
        },
        Value::String(text) => toml::Value::String(text),
        Value::Array(values) => {
            toml::Value::Array(values.into_iter().filter_map(to_toml).collect())
        }
        Value::Object(object) => {
            let fields = object.into_iter();
            let fields = fields.filter_map(|(key, value)| Some((key, to_toml(value)?)));
            toml::Value::Table(fields.collect())
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ID: &str = "01a2027d-3c05-7d20-bbab-2c1375cd12d9";

    fn object(value: Value) -> JsonObject {
        value.as_object().unwrap().clone()
    }

    fn asked(arguments: Value) -> pb::RunTurnRequest {
        codex(object(arguments), Path::new("/here")).unwrap().request
    }

    #[test]
    fn a_new_thread_is_asked_for_with_all_that_the_tool_has() {
        let request = asked(json!({
            "prompt": "hi",
            "model": "m",
            "cwd": "sub",
            "approval-policy": "on-request",
            "sandbox": "workspace-write",
            "config": {
                "model": "other",
                "model_reasoning_effort": "high",
                "approval_policy": "never",
                "sandbox_workspace_write": { "network_access": true },
                "model_verbosity": "low",
                "nothing": null,
            },
            "base-instructions": "b",
            "developer-instructions": "d",
            "compact-prompt": "c",
        }));
        assert!(request.unbound);
        let mut options = request.thread_options.unwrap();
        let config = options.config.take().unwrap();
        let keys: Vec<&String> = config.fields.keys().collect();
        assert_eq!(keys, ["compact_prompt", "model_verbosity"]);
        let expected = pb::ThreadOptions {
            model: Some("m".to_owned()),
            working_directory: Some("/here/sub".to_owned()),
            skip_git_repo_check: Some(true),
            approval_policy: pb::ApprovalPolicy::OnRequest.into(),
            sandbox_mode: pb::SandboxMode::WorkspaceWrite.into(),
            model_reasoning_effort_name: "high".to_owned(),
            network_access_enabled: Some(true),
            base_instructions: Some("b".to_owned()),
            developer_instructions: Some("d".to_owned()),
            ..Default::default()
        };
        assert_eq!(options, expected);
        let bare = asked(json!({ "prompt": "hi" })).thread_options.unwrap();
        assert_eq!(bare.approval_policy(), pb::ApprovalPolicy::Unspecified);
        assert_eq!(bare.working_directory.as_deref(), Some("/here"));
        let configured = asked(json!({ "prompt": "", "config": { "approval_policy": "never" } }));
        let options = configured.thread_options.unwrap();
        assert_eq!(options.approval_policy(), pb::ApprovalPolicy::Never);
    }

    #[test]
    fn a_reply_runs_as_its_thread_began() {
        let sessions = Sessions::default();
        let options = asked(json!({ "prompt": "hi", "sandbox": "read-only" })).thread_options;
        sessions.remember(ID, options.as_ref().unwrap());
        for key in ["threadId", "conversationId"] {
            let arguments = object(json!({ "prompt": "more", key: ID }));
            let asked = codex_reply(arguments, &sessions, Path::new("/else")).unwrap();
            assert_eq!((asked.request.thread_id.as_str(), asked.request.unbound), (ID, false));
            assert_eq!(asked.request.thread_options, options);
        }
        let arguments = object(json!({ "prompt": "more", "threadId": ID }));
        let asked = codex_reply(arguments, &Sessions::default(), Path::new("/else")).unwrap();
        let options = asked.request.thread_options.unwrap();
        assert_eq!(options.working_directory.as_deref(), Some("/else"));
    }

    #[test]
    fn mistakes_are_told_as_codex_told_them() {
        let here = Path::new("/here");
        for (arguments, why) in [
            (json!({}), "Failed to parse configuration for Codex tool: missing field `prompt`"),
            (json!({ "prompt": "x", "nonsense": 1 }), "unknown field `nonsense`, expected one of"),
            (json!({ "prompt": "x", "sandbox": "bogus" }), "unknown variant `bogus`"),
            (json!({ "prompt": "x", "config": { "model": 3 } }), "model is 3; wants a text"),
            (
                json!({ "prompt": "x", "config": { "approval_policy": "bogus" } }),
                "config.approval_policy: unknown variant `bogus`",
            ),
        ] {
            let ending = codex(object(arguments), here).unwrap_err();
            assert!(ending.text().contains(why), "{ending:?}");
        }
        for (arguments, why) in [
            (json!({ "prompt": "x" }), "either threadId or conversationId must be provided"),
            (json!({ "prompt": "x", "threadId": "y" }), "Failed to parse thread_id: "),
            (json!({ "threadId": ID }), "missing field `prompt`"),
        ] {
            let ending = codex_reply(object(arguments), &Sessions::default(), here).unwrap_err();
            assert!(ending.text().contains(why), "{ending:?}");
        }
    }
}
