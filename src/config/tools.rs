//! The defaults of tools: `[tools.NAME]` of the file.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::num::NonZeroU64;
use std::path::{Component, Path};

use super::codec::{self, Codec as _, Raw, check_depth, show_bounded, to_json};
use super::file::{File, Origins, unknown_key};
use super::load::join;
use super::{Fault, policy};
use crate::model::id::is_hidden;
use crate::model::options::{DynamicTool, Environment, ThreadOptions, ToolDefaults};
use crate::model::policy::Policy;

/// The keys of `ThreadOptions`; a test keeps the list true.
pub(super) const THREAD_OPTION_KEYS: [&str; 20] = [
    "model",
    "sandbox_mode",
    "working_directory",
    "skip_git_repo_check",
    "model_reasoning_effort",
    "network_access_enabled",
    "web_search_mode",
    "web_search_enabled",
    "approval_policy",
    "additional_directories",
    "base_instructions",
    "developer_instructions",
    "config",
    "dynamic_tools",
    "thread_source",
    "permission_profile",
    "reasoning_summary",
    "approvals_reviewer",
    "service_tier",
    "environment",
];

/// The table of what a tool's callers may ask for at most.
const POLICY_KEY: &str = "policy";

/// The one of the keys of `ThreadOptions` of which no value is shown.
const ENVIRONMENT_KEY: &str = "environment";

/// The keys of a tool beside them.
const OWN_KEYS: [&str; 7] = [
    "thread_id",
    "thread_id_key",
    "output_schema",
    "idle_timeout",
    "turn_timeout",
    "answer_timeout",
    "max_total_tokens",
];

/// Reads the tools of a table, which is at this path of the file.
pub(super) fn read(
    file: &File,
    table: &toml::Table,
    at: &str,
    policy: &Policy,
    origins: &mut Origins,
    faults: &mut Vec<Fault>,
) -> BTreeMap<String, ToolDefaults> {
    let mut tools = BTreeMap::new();
    let Some(value) = table.get("tools") else {
        return tools;
    };
    let at = join(at, "tools");
    let Some(table) = value.as_table() else {
        faults.push(Fault {
            origin: file.origin(&at).to_string(),
            value: show_bounded(&value.to_string()),
            problem: "wants tables, like [tools.codex_engineer]".to_owned(),
        });
        return tools;
    };
    for (name, value) in table {
        let path = join(&at, name);
        let mut refuse = |key: &str, value: String, problem: String| {
            let key = if key.is_empty() { path.clone() } else { format!("{path}.{key}") };
            faults.push(Fault { origin: file.origin(&key).to_string(), value, problem });
        };
        let Some(keys) = value.as_table() else {
            refuse("", Raw::Toml(value).show(), "wants a table".to_owned());
            continue;
        };
        let mut defaults = ToolDefaults::default();
        let (mut unknown, mut policies) = (Vec::new(), None);
        for (key, value) in keys {
            if key == POLICY_KEY {
                policies = Some(value);
                continue;
            }
            if key == ENVIRONMENT_KEY {
                match read_environment(value) {
                    Ok(variables) => {
                        defaults.thread_options.environment = Some(variables);
                        let path = format!("{path}.{key}");
                        let origin = file.origin(&path);
                        origins.insert(path, origin);
                    }
                    // Keys may stand there: what is set is never told.
                    Err(problems) => {
                        problems.into_iter().for_each(|it| refuse(key, String::new(), it));
                    }
                }
                continue;
            }
            match read_key(key, value, &mut defaults) {
                Read::Done => {
                    let path = format!("{path}.{key}");
                    let origin = file.origin(&path);
                    origins.insert(path, origin);
                }
                Read::Wrong(problem) => refuse(key, Raw::Toml(value).show(), problem),
                Read::Unknown => unknown.push(key),
            }
        }
        let known: BTreeSet<&'static str> =
            THREAD_OPTION_KEYS.into_iter().chain(OWN_KEYS).chain([POLICY_KEY]).collect();
        for key in unknown {
            faults.push(unknown_key(file.origin(&format!("{path}.{key}")), key, &known));
        }
        let unreadable = defaults.thread_options.take_fields_from_config().err();
        for (key, problem) in unreadable.into_iter().flatten() {
            faults.push(Fault {
                origin: file.origin(&format!("{path}.config")).to_string(),
                value: key,
                problem,
            });
        }
        let options = &defaults.thread_options;
        if let Some(profile) = options.permission_profile.as_ref()
            && options.sandbox_mode.is_some()
        {
            faults.push(Fault {
                origin: file.origin(&format!("{path}.permission_profile")).to_string(),
                value: format!("{profile:?}"),
                problem: "stands beside sandbox_mode; give one of the two".to_owned(),
            });
        }
        if let Err(problem) = check_name(name, keys.contains_key("thread_id_key")) {
            faults.push(Fault {
                origin: file.origin(&path).to_string(),
                value: format!("{name:?}"),
                problem,
            });
        }
        defaults.policy =
            policies.and_then(|value| policy::of_tool(&path, value, policy, file, origins, faults));
        policy::judge_tool(&path, &defaults, policy, file, faults);
        tools.insert(name.clone(), defaults);
    }
    tools
}

/// The contract's rule for tool names.
fn check_name(name: &str, has_thread_id_key: bool) -> Result<(), String> {
    let suffix = match name.strip_prefix("codex") {
        Some("") => return Ok(()),
        Some(rest) => rest.strip_prefix('_').filter(|suffix| !suffix.is_empty()),
        None => None,
    };
    let Some(suffix) = suffix else {
        return Err("a tool is called codex, or codex_ and a suffix".to_owned());
    };
    let plain = suffix.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if plain || has_thread_id_key {
        Ok(())
    } else {
        Err("the suffix of a tool's name wants A-Z, a-z, 0-9 and _ only, unless the tool has a \
             thread_id_key"
            .to_owned())
    }
}

enum Read {
    Done,
    Wrong(String),
    Unknown,
}

fn read_key(key: &str, value: &toml::Value, defaults: &mut ToolDefaults) -> Read {
    let result = match key {
        "thread_id" => read_thread_id(value).map(|id| defaults.thread_id = Some(id)),
        "thread_id_key" => read_thread_id_key(value).map(|key| defaults.thread_id_key = Some(key)),
        "output_schema" => {
            read_output_schema(value).map(|schema| defaults.output_schema = Some(schema))
        }
        "idle_timeout" => read_duration(value).map(|time| defaults.idle_timeout = Some(time)),
        "turn_timeout" => read_duration(value).map(|time| defaults.turn_timeout = Some(time)),
        "answer_timeout" => read_duration(value).map(|time| defaults.answer_timeout = Some(time)),
        "max_total_tokens" => {
            read_max_total_tokens(value).map(|tokens| defaults.max_total_tokens = Some(tokens))
        }
        key if THREAD_OPTION_KEYS.contains(&key) => {
            read_thread_option(key, value).map(|option| {
                // One key each time, so nothing overlaps and nothing is lost.
                let above = std::mem::take(&mut defaults.thread_options);
                defaults.thread_options = merge(above, option);
            })
        }
        _ => return Read::Unknown,
    };
    match result {
        Ok(()) => Read::Done,
        Err(problem) => Read::Wrong(problem),
    }
}

/// `or`, but for keys of which a layer's one would hide the other: here both are of the same layer.
fn merge(above: ThreadOptions, below: ThreadOptions) -> ThreadOptions {
    let web_search_mode = above.web_search_mode.or(below.web_search_mode);
    let web_search_enabled = above.web_search_enabled.or(below.web_search_enabled);
    let sandbox_mode = above.sandbox_mode.or(below.sandbox_mode);
    let permission_profile =
        above.permission_profile.clone().or_else(|| below.permission_profile.clone());
    ThreadOptions {
        web_search_mode,
        web_search_enabled,
        sandbox_mode,
        permission_profile,
        ..above.or(&below)
    }
}

fn read_duration(value: &toml::Value) -> Result<std::time::Duration, String> {
    codec::duration().read(Raw::Toml(value), Path::new(""))
}

fn read_max_total_tokens(value: &toml::Value) -> Result<NonZeroU64, String> {
    value
        .as_integer()
        .and_then(|tokens| u64::try_from(tokens).ok())
        .and_then(NonZeroU64::new)
        .ok_or_else(|| "wants a whole number of tokens from 1".to_owned())
}

fn read_thread_id(value: &toml::Value) -> Result<String, String> {
    value
        .as_str()
        .and_then(|text| uuid::Uuid::try_parse(text.trim()).ok())
        .map(|id| id.to_string())
        .ok_or_else(|| "wants a thread id, a UUID".to_owned())
}

fn read_thread_id_key(value: &toml::Value) -> Result<String, String> {
    value
        .as_str()
        .map(str::trim)
        .filter(|key| (1..=256).contains(&key.len()) && !key.chars().any(is_hidden))
        .map(str::to_owned)
        .ok_or_else(|| "wants a text of 1 to 256 bytes without control characters".to_owned())
}

fn read_output_schema(value: &toml::Value) -> Result<serde_json::Value, String> {
    const ALLOWED: &str = "wants an object schema, as a table or as JSON text";
    let schema = match value {
        toml::Value::String(text) => serde_json::from_str(text)
            .map_err(|error| format!("is not JSON: {error}; {ALLOWED}"))?,
        value => to_json(value)?,
    };
    let serde_json::Value::Object(object) = &schema else {
        return Err(ALLOWED.to_owned());
    };
    match object.get("type") {
        None => Ok(schema),
        Some(kind) if kind == "object" => Ok(schema),
        Some(kind) => Err(format!("its type is {kind}; {ALLOWED}")),
    }
}

fn read_thread_option(key: &str, value: &toml::Value) -> Result<ThreadOptions, String> {
    let object = serde_json::Map::from_iter([(key.to_owned(), to_json(value)?)]);
    let option: ThreadOptions = serde_json::from_value(serde_json::Value::Object(object))
        .map_err(|error| error.to_string())?;

    let texts = [
        &option.model,
        &option.model_reasoning_effort,
        &option.permission_profile,
        &option.service_tier,
    ];
    if texts.into_iter().flatten().any(|text| text.trim().is_empty()) {
        return Err("wants a text that is not empty".to_owned());
    }
    let directories =
        option.working_directory.iter().chain(option.additional_directories.iter().flatten());
    for directory in directories {
        let climbs = directory.components().any(|part| part == Component::ParentDir);
        if !directory.is_absolute() || climbs || directory.to_string_lossy().contains('\0') {
            return Err("wants absolute paths without ..".to_owned());
        }
    }
    for (key, value) in option.config.iter().flatten() {
        check_depth(key, value)?;
    }
    check_dynamic_tools(option.dynamic_tools.iter().flatten())?;
    Ok(option)
}

/// All variables, or all that is wrong with them.
fn read_environment(value: &toml::Value) -> Result<Environment, Vec<String>> {
    let Some(table) = value.as_table() else {
        return Err(vec!["wants a table of variables, like { CI = \"1\" }".to_owned()]);
    };
    let mut faults = Vec::new();
    let mut variables = BTreeMap::new();
    for (name, value) in table {
        let text = value.as_str().unwrap_or_default();
        if let Some(fault) = Environment::fault_of(name, text) {
            faults.push(format!("{name:?} {fault}"));
        }
        if !value.is_str() {
            faults.push(format!("{name:?} is set to no text; put it in quotes"));
        }
        variables.insert(name.clone(), text.to_owned());
    }
    if variables.len() > Environment::MOST {
        let (given, most) = (variables.len(), Environment::MOST);
        faults.push(format!("has {given} variables; give at most {most}"));
    }
    if faults.is_empty() { Ok(Environment(variables)) } else { Err(faults) }
}

fn check_dynamic_tools<'a>(tools: impl Iterator<Item = &'a DynamicTool>) -> Result<(), String> {
    let mut names = HashSet::new();
    for DynamicTool { name, description: _, input_schema } in tools {
        let plausible = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if !(1..=128).contains(&name.len()) || !name.chars().all(plausible) {
            return Err(format!("{name:?}: a name wants 1 to 128 of A-Z a-z 0-9 _ -"));
        }
        if name == "mcp" || name.starts_with("mcp__") {
            return Err(format!("{name:?}: Codex keeps names with mcp to itself"));
        }
        if !names.insert(name) {
            return Err(format!("{name:?} is there twice"));
        }
        if !input_schema.is_object() {
            return Err(format!("{name:?}: input_schema wants an object schema"));
        }
    }
    Ok(())
}
