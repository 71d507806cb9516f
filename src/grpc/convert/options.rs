//! Thread and turn options on their way in.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::num::NonZeroU64;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use prost_types::value::Kind;
use serde_json::{Map, Number, Value, json};

use super::{Faults, show};
use crate::model::options::{
    ApprovalPolicy, ApprovalsReviewer, DEEPEST_CONFIG, DynamicTool, Environment, ReasoningSummary,
    SandboxMode, ThreadOptions, ToolDefaults, TurnOptions, WebSearchMode, config_depth,
};
use crate::model::request::{
    BusyPolicy, ContextPolicy, DisconnectPolicy, MissingThreadPolicy, QuestionPolicy,
};
use crate::output_schema;
use crate::pb;
use crate::turn::timeouts::Timeouts;

/// Most entries of a list in the options: more are a mistake, and each costs a look at the disk or
/// a place in the model's prompt.
const MOST_ENTRIES: usize = 256;
/// Most keys and entries of `config`, those inside others included.
const MOST_CONFIG_VALUES: usize = 10_000;

/// The deepest nesting of JSON that is passed on to Codex. Its parser gives up at 128 levels of the
/// whole message, and drops the message without an answer.
const DEEPEST_JSON: usize = 100;

pub(super) const CONTEXT_POLICY: &str = "context_policy";

const SANDBOX_MODE: &str = "thread_options.sandbox_mode";

/// The request's own layer of thread options.
pub(super) fn thread_options(
    options: Option<pb::ThreadOptions>,
    faults: &mut Faults,
) -> ThreadOptions {
    let Some(options) = options else {
        return ThreadOptions::default();
    };
    let pb::ThreadOptions {
        model,
        sandbox_mode,
        working_directory,
        skip_git_repo_check,
        model_reasoning_effort,
        model_reasoning_effort_name,
        network_access_enabled,
        web_search_mode,
        web_search_enabled,
        approval_policy,
        additional_directories,
        base_instructions,
        developer_instructions,
        config,
        dynamic_tools,
        thread_source,
        permission_profile,
        reasoning_summary,
        approvals_reviewer,
        service_tier,
        environment,
    } = options;

    let model = model.and_then(|name| model_name(&name, faults));
    let sandbox_mode = sandbox(sandbox_mode, faults);
    let mut options = ThreadOptions {
        model,
        sandbox_mode,
        working_directory: working_directory.and_then(|path| {
            absolute_path("thread_options.working_directory", &path, faults).map(PathBuf::from)
        }),
        skip_git_repo_check,
        model_reasoning_effort: reasoning_effort(
            model_reasoning_effort,
            &model_reasoning_effort_name,
            faults,
        ),
        network_access_enabled,
        web_search_mode: web_search(web_search_mode, faults),
        web_search_enabled,
        approval_policy: approval(approval_policy, faults),
        additional_directories: directories(&additional_directories, faults),
        base_instructions,
        developer_instructions,
        config: config.map(|config| config_overrides(config, faults)),
        dynamic_tools: lent_functions(dynamic_tools, faults),
        thread_source: Some(thread_source.trim().to_owned()).filter(|source| !source.is_empty()),
        permission_profile: None,
        reasoning_summary: summary(reasoning_summary, faults),
        approvals_reviewer: reviewer(approvals_reviewer, faults),
        service_tier: tier(&service_tier, faults),
        environment: variables(environment, faults),
    };
    for (key, problem) in options.take_fields_from_config().err().into_iter().flatten() {
        faults.add(format!("thread_options.config[{}]", show(&key)), problem);
    }
    options.permission_profile = profile(&permission_profile, options.sandbox_mode, faults);
    options
}

/// The turn options of all layers: the request's, the tool's, the server's.
pub(super) fn turn_options(
    options: Option<pb::TurnOptions>,
    tool_name: &str,
    tool: &ToolDefaults,
    timeouts: &Timeouts,
    question_policy: QuestionPolicy,
    faults: &mut Faults,
) -> TurnOptions {
    let pb::TurnOptions {
        output_schema,
        idle_timeout,
        turn_timeout,
        answer_timeout,
        omit_final_response,
        max_total_tokens,
    } = options.unwrap_or_default();

    let output_schema = if output_schema.is_empty() {
        configured_schema(tool_name, tool, faults)
    } else {
        output_schema::strict(&output_schema)
            .map_err(|fault| {
                faults.add(
                    "turn_options.output_schema",
                    format!("{}: {fault}", show(&output_schema)),
                );
            })
            .ok()
    };
    TurnOptions {
        output_schema,
        idle_timeout: timeout(
            "turn_options.idle_timeout",
            idle_timeout,
            tool.idle_timeout.or(timeouts.idle),
            timeouts.max_idle,
            faults,
        ),
        turn_timeout: timeout(
            "turn_options.turn_timeout",
            turn_timeout,
            tool.turn_timeout.or(timeouts.turn),
            timeouts.max_turn,
            faults,
        ),
        answer_timeout: timeout(
            "turn_options.answer_timeout",
            answer_timeout,
            tool.answer_timeout.or(Some(timeouts.answer_under(question_policy))),
            timeouts.max_answer,
            faults,
        ),
        omit_final_response,
        max_total_tokens: NonZeroU64::new(max_total_tokens).or(tool.max_total_tokens),
    }
}

pub(super) fn busy_policy(number: i32, faults: &mut Faults) -> BusyPolicy {
    use pb::BusyPolicy as Pb;
    match value_of("busy_policy", number, Pb::as_str_name, faults) {
        Pb::Unspecified | Pb::Queue => BusyPolicy::Queue,
        Pb::Reject => BusyPolicy::Reject,
        Pb::Steer => BusyPolicy::Steer,
        Pb::Interrupt => BusyPolicy::Interrupt,
    }
}

pub(super) fn question_policy(number: i32, faults: &mut Faults) -> QuestionPolicy {
    use pb::QuestionPolicy as Pb;
    match value_of("question_policy", number, Pb::as_str_name, faults) {
        Pb::Unspecified | Pb::Decline => QuestionPolicy::Decline,
        Pb::Ask => QuestionPolicy::Ask,
    }
}

pub(super) fn context_policy(number: i32, faults: &mut Faults) -> ContextPolicy {
    use pb::ContextPolicy as Pb;
    match value_of(CONTEXT_POLICY, number, Pb::as_str_name, faults) {
        Pb::Unspecified | Pb::Any => ContextPolicy::Any,
        Pb::MustExist => ContextPolicy::MustExist,
        Pb::MustBeNew => ContextPolicy::MustBeNew,
    }
}

pub(super) fn disconnect_policy(number: i32, faults: &mut Faults) -> DisconnectPolicy {
    use pb::DisconnectPolicy as Pb;
    match value_of("disconnect_policy", number, Pb::as_str_name, faults) {
        Pb::Unspecified | Pb::Interrupt => DisconnectPolicy::Interrupt,
        Pb::Continue => DisconnectPolicy::Continue,
    }
}

pub(super) fn missing_thread_policy(number: i32, faults: &mut Faults) -> MissingThreadPolicy {
    use pb::MissingThreadPolicy as Pb;
    match value_of("missing_thread_policy", number, Pb::as_str_name, faults) {
        Pb::Unspecified | Pb::Fail => MissingThreadPolicy::Fail,
        Pb::StartNew => MissingThreadPolicy::StartNew,
    }
}

/// A path that may go to Codex: absolute, without NUL, and without `..`, which means one thing to
/// who reads it and another to the kernel once a link is in the way.
pub(super) fn absolute_path(field: &str, path: &str, faults: &mut Faults) -> Option<String> {
    let path = path.trim();
    let fault = if path.is_empty() {
        "is empty; give an absolute path, or leave the field out"
    } else if path.contains('\0') {
        "holds a NUL byte; give an absolute path without one"
    } else if !Path::new(path).is_absolute() {
        "is not absolute; give a path that begins with /"
    } else if Path::new(path).components().any(|part| part == Component::ParentDir) {
        "holds `..`; give the path that it leads to"
    } else {
        return Some(path.to_owned());
    };
    faults.add(field, format!("{} {fault}", show(path)));
    None
}

/// The enum value of a number. An unknown one is a fault, and read as the default.
fn value_of<E: TryFrom<i32> + Default>(
    field: &str,
    number: i32,
    name: fn(&E) -> &'static str,
    faults: &mut Faults,
) -> E {
    E::try_from(number).unwrap_or_else(|_| {
        // Enums of this contract are small and numbered from zero without holes.
        let known: Vec<_> =
            (0..).map_while(|number| E::try_from(number).ok()).map(|value| name(&value)).collect();
        faults.add(field, format!("{number} is no value of it; use one of {}", known.join(", ")));
        E::default()
    })
}

fn model_name(name: &str, faults: &mut Faults) -> Option<String> {
    let name = name.trim();
    if name.is_empty() {
        faults.add(
            "thread_options.model",
            "\"\" is no model; name one, or leave the field out for the default",
        );
        return None;
    }
    Some(name.to_owned())
}

fn sandbox(number: i32, faults: &mut Faults) -> Option<SandboxMode> {
    use pb::SandboxMode as Pb;
    match value_of(SANDBOX_MODE, number, Pb::as_str_name, faults) {
        Pb::Unspecified => None,
        Pb::ReadOnly => Some(SandboxMode::ReadOnly),
        Pb::WorkspaceWrite => Some(SandboxMode::WorkspaceWrite),
        Pb::DangerFullAccess => Some(SandboxMode::DangerFullAccess),
    }
}

fn profile(name: &str, sandbox: Option<SandboxMode>, faults: &mut Faults) -> Option<String> {
    const FIELD: &str = "thread_options.permission_profile";
    let name = name.trim();
    if name.is_empty() {
        return None;
    }
    if sandbox.is_some() {
        for (field, other) in [(FIELD, "sandbox_mode"), (SANDBOX_MODE, "permission_profile")] {
            faults.add(field, format!("stands beside {other}; give one of the two"));
        }
    }
    if name.len() > 256 || name.chars().any(char::is_control) {
        faults.add(FIELD, format!("{} is no profile's name; use at most 256 bytes", show(name)));
    }
    Some(name.to_owned())
}

fn tier(name: &str, faults: &mut Faults) -> Option<String> {
    let name = name.trim();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if name.is_empty() {
        return None;
    }
    if name.len() > 64 || !name.bytes().all(plain) {
        faults.add(
            "thread_options.service_tier",
            format!("{} is no tier's name; use 1 to 64 of A-Z a-z 0-9 _ -", show(name)),
        );
    }
    Some(name.to_owned())
}

fn summary(number: i32, faults: &mut Faults) -> Option<ReasoningSummary> {
    use pb::ReasoningSummary as Pb;
    match value_of("thread_options.reasoning_summary", number, Pb::as_str_name, faults) {
        Pb::Unspecified => None,
        Pb::Auto => Some(ReasoningSummary::Auto),
        Pb::Concise => Some(ReasoningSummary::Concise),
        Pb::Detailed => Some(ReasoningSummary::Detailed),
        Pb::None => Some(ReasoningSummary::None),
    }
}

fn web_search(number: i32, faults: &mut Faults) -> Option<WebSearchMode> {
    use pb::WebSearchMode as Pb;
    match value_of("thread_options.web_search_mode", number, Pb::as_str_name, faults) {
        Pb::Unspecified => None,
        Pb::Disabled => Some(WebSearchMode::Disabled),
        Pb::Cached => Some(WebSearchMode::Cached),
        Pb::Live => Some(WebSearchMode::Live),
    }
}

fn approval(number: i32, faults: &mut Faults) -> Option<ApprovalPolicy> {
    use pb::ApprovalPolicy as Pb;
    match value_of("thread_options.approval_policy", number, Pb::as_str_name, faults) {
        Pb::Unspecified => None,
        Pb::Never => Some(ApprovalPolicy::Never),
        Pb::OnRequest => Some(ApprovalPolicy::OnRequest),
        Pb::OnFailure => Some(ApprovalPolicy::OnFailure),
        Pb::Untrusted => Some(ApprovalPolicy::Untrusted),
    }
}

fn reviewer(number: i32, faults: &mut Faults) -> Option<ApprovalsReviewer> {
    use pb::ApprovalsReviewer as Pb;
    match value_of("thread_options.approvals_reviewer", number, Pb::as_str_name, faults) {
        Pb::Unspecified => None,
        Pb::User => Some(ApprovalsReviewer::User),
        Pb::AutoReview => Some(ApprovalsReviewer::AutoReview),
    }
}

fn reasoning_effort(number: i32, name: &str, faults: &mut Faults) -> Option<String> {
    use pb::ReasoningEffort as Pb;
    let effort =
        match value_of("thread_options.model_reasoning_effort", number, Pb::as_str_name, faults) {
            Pb::Unspecified => None,
            Pb::Minimal => Some("minimal"),
            Pb::Low => Some("low"),
            Pb::Medium => Some("medium"),
            Pb::High => Some("high"),
            Pb::Xhigh => Some("xhigh"),
        };

    const FIELD: &str = "thread_options.model_reasoning_effort_name";
    let name = name.trim();
    let plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-');
    if name.is_empty() {
        return effort.map(str::to_owned);
    }
    if let Some(effort) = effort {
        faults.add(
            FIELD,
            format!(
                "{} stands beside model_reasoning_effort, which says {effort:?}; give only one",
                show(name)
            ),
        );
    }
    if name.len() > 32 || !name.bytes().all(plain) {
        faults
            .add(FIELD, format!("{} is no effort's name; use 1 to 32 of a-z 0-9 _ -", show(name)));
    }
    Some(name.to_owned())
}

fn directories(paths: &[String], faults: &mut Faults) -> Option<Vec<PathBuf>> {
    const FIELD: &str = "thread_options.additional_directories";
    if too_many(FIELD, paths.len(), faults) {
        return None;
    }
    let paths: Vec<PathBuf> = paths
        .iter()
        .enumerate()
        .filter_map(|(at, path)| absolute_path(&format!("{FIELD}[{at}]"), path, faults))
        .map(PathBuf::from)
        .collect();
    (!paths.is_empty()).then_some(paths)
}

/// Values are never shown in a fault.
fn variables(variables: BTreeMap<String, String>, faults: &mut Faults) -> Option<Environment> {
    const FIELD: &str = "thread_options.environment";
    if variables.len() > Environment::MOST {
        let (length, most) = (variables.len(), Environment::MOST);
        faults.add(FIELD, format!("{length} variables are too many; give at most {most}"));
        return None;
    }
    for (name, value) in &variables {
        if let Some(fault) = Environment::fault_of(name, value) {
            faults.add(format!("{FIELD}[{}]", show(name)), fault);
        }
    }
    (!variables.is_empty()).then_some(Environment(variables))
}

/// True, and a fault, for a list that is longer than any sensible one.
fn too_many(field: &str, length: usize, faults: &mut Faults) -> bool {
    let many = length > MOST_ENTRIES;
    if many {
        faults.add(field, format!("{length} entries are too many; give at most {MOST_ENTRIES}"));
    }
    many
}

fn config_overrides(config: prost_types::Struct, faults: &mut Faults) -> Map<String, Value> {
    let mut path = "thread_options.config".to_owned();
    // Before each of them is looked at: that takes its time, and others wait for the thread.
    let values = count_values(&config);
    if values > MOST_CONFIG_VALUES {
        let fault = format!("holds {values} values; give at most {MOST_CONFIG_VALUES}");
        faults.add(path.as_str(), fault);
        return Map::new();
    }
    let config = json_object(config, &mut path, faults);
    for (key, value) in &config {
        let depth = config_depth(key, value);
        if key.contains("..") || key.starts_with('.') || key.ends_with('.') {
            let fault = "has nothing between two dots, or at an end; name each part";
            faults.add(format!("{path}[{}]", show(key)), fault);
        }
        if depth > DEEPEST_CONFIG {
            faults.add(
                format!("{path}[{}]", show(key)),
                format!(
                    "leads {depth} levels deep, its dots included; give at most {DEEPEST_CONFIG}"
                ),
            );
        }
    }
    config
}

/// The keys and entries of an object and of all that is in it.
fn count_values(object: &prost_types::Struct) -> usize {
    fn within(value: &prost_types::Value) -> usize {
        use prost_types::value::Kind;
        1 + match &value.kind {
            Some(Kind::StructValue(object)) => count_values(object),
            Some(Kind::ListValue(list)) => list.values.iter().map(within).sum(),
            Some(
                Kind::NullValue(_)
                | Kind::NumberValue(_)
                | Kind::StringValue(_)
                | Kind::BoolValue(_),
            )
            | None => 0,
        }
    }
    object.fields.values().map(within).sum()
}

/// Protobuf decodes no more than 100 levels, so the recursion ends, and stays within what Codex
/// can parse. Values are never shown in a fault: one may be a provider's token.
fn json_object(
    object: prost_types::Struct,
    path: &mut String,
    faults: &mut Faults,
) -> Map<String, Value> {
    let prost_types::Struct { fields } = object;
    let mut map = Map::new();
    for (key, value) in fields {
        let above = path.len();
        path.push_str(&format!("[{}]", show(&key)));
        if key.trim().is_empty() {
            faults.add(path.as_str(), "the key is empty; name what it overrides");
        } else if key.chars().any(char::is_control) {
            faults.add(path.as_str(), "the key holds a control character; leave it out");
        }
        if let Some(value) = json_value(value, path, faults) {
            map.insert(key, value);
        }
        path.truncate(above);
    }
    map
}

fn json_value(value: prost_types::Value, path: &mut String, faults: &mut Faults) -> Option<Value> {
    let prost_types::Value { kind } = value;
    match kind {
        Some(Kind::BoolValue(value)) => Some(Value::Bool(value)),
        Some(Kind::StringValue(text)) => Some(Value::String(text)),
        Some(Kind::NumberValue(number)) => {
            let json = json_number(number);
            if json.is_none() {
                faults.add(path.as_str(), format!("{number} is not finite; give a number that is"));
            }
            json.map(Value::Number)
        }
        Some(Kind::StructValue(object)) => Some(Value::Object(json_object(object, path, faults))),
        Some(Kind::ListValue(prost_types::ListValue { values })) => {
            let mut list = Vec::with_capacity(values.len());
            for (at, value) in values.into_iter().enumerate() {
                let above = path.len();
                path.push_str(&format!("[{at}]"));
                list.extend(json_value(value, path, faults));
                path.truncate(above);
            }
            Some(Value::Array(list))
        }
        // TOML has no null: Codex would take it for an empty text without a word.
        Some(Kind::NullValue(_)) | None => {
            faults.add(
                path.as_str(),
                "is null, which Codex's configuration has no form for; leave the key out",
            );
            None
        }
    }
}

/// A number as the configuration's author meant it: a Struct has only doubles, but Codex refuses
/// `4.0` where it wants an integer.
fn json_number(number: f64) -> Option<Number> {
    // Beyond 2^53 a double no longer holds every integer.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if number.fract() == 0.0 && number.abs() <= EXACT {
        Some(Number::from(number as i64))
    } else {
        Number::from_f64(number)
    }
}

fn lent_functions(
    functions: Vec<pb::DynamicTool>,
    faults: &mut Faults,
) -> Option<Vec<DynamicTool>> {
    const FIELD: &str = "thread_options.dynamic_tools";
    if functions.is_empty() || too_many(FIELD, functions.len(), faults) {
        return None;
    }
    let mut names = HashSet::new();
    let mut lent = Vec::with_capacity(functions.len());
    for (at, pb::DynamicTool { name, description, input_schema }) in
        functions.into_iter().enumerate()
    {
        if let Some(fault) = function_name_fault(&name) {
            faults.add(format!("{FIELD}[{at}].name"), format!("{} {fault}", show(&name)));
        } else if !names.insert(name.clone()) {
            faults.add(
                format!("{FIELD}[{at}].name"),
                format!("{} is there twice; give each function its own name", show(&name)),
            );
        }
        let input_schema = if input_schema.is_empty() {
            json!({ "type": "object", "properties": {} })
        } else {
            object_schema(&input_schema).unwrap_or_else(|fault| {
                faults.add(
                    format!("{FIELD}[{at}].input_schema"),
                    format!("{}: {fault}", show(&input_schema)),
                );
                Value::Null
            })
        };
        lent.push(DynamicTool { name, description, input_schema });
    }
    Some(lent)
}

fn function_name_fault(name: &str) -> Option<&'static str> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if !(1..=128).contains(&name.len()) || !name.bytes().all(plain) {
        Some("is no function's name; use 1 to 128 of A-Z a-z 0-9 _ -")
    } else if name == "mcp" || name.starts_with("mcp__") {
        Some("is a name that Codex keeps for MCP servers; use another one")
    } else {
        None
    }
}

fn object_schema(text: &str) -> Result<Value, String> {
    const WANTED: &str = "give the JSON text of an object schema";
    let schema: Value =
        serde_json::from_str(text).map_err(|error| format!("is not JSON ({error}); {WANTED}"))?;
    let Value::Object(object) = &schema else {
        return Err(format!("is not a JSON object; {WANTED}"));
    };
    if object.get("type").is_some_and(|kind| kind != "object") {
        return Err(format!("its type is not \"object\"; {WANTED}"));
    }
    if output_schema::depth(&schema) > DEEPEST_JSON {
        return Err(format!("is nested deeper than {DEEPEST_JSON} levels; flatten it"));
    }
    Ok(schema)
}

/// The tool's own schema. Its fault is the configuration's, but the caller can get around it.
fn configured_schema(tool_name: &str, tool: &ToolDefaults, faults: &mut Faults) -> Option<Value> {
    let schema = tool.output_schema.clone()?;
    output_schema::strict_value(schema)
        .map_err(|fault| {
            faults.add(
                "tool_name",
                format!(
                    "the output_schema that this server configures for {} can't be used: {fault}; \
                     give turn_options.output_schema, or have the configuration put right",
                    show(tool_name)
                ),
            );
        })
        .ok()
}

/// The time that holds for the turn: the request's, else `unasked` (the tool's or the server's
/// default), within the maximum. A default above the maximum is cut to it; a caller's time is
/// refused, so that the caller knows.
fn timeout(
    field: &str,
    asked: Option<prost_types::Duration>,
    unasked: Option<Duration>,
    maximum: Option<Duration>,
    faults: &mut Faults,
) -> Option<Duration> {
    let Some(asked) = asked else {
        return match (unasked, maximum) {
            (Some(unasked), Some(maximum)) => Some(unasked.min(maximum)),
            (unasked, maximum) => unasked.or(maximum),
        };
    };
    let Some(asked) = positive(&asked) else {
        faults.add(
            field,
            format!("{} is no positive duration; give one above zero", Seconds(&asked)),
        );
        return None;
    };
    if let Some(maximum) = maximum.filter(|maximum| asked > *maximum) {
        faults.add(
            field,
            format!(
                "{} is above this server's maximum; ask for at most {}",
                humantime::format_duration(asked),
                humantime::format_duration(maximum)
            ),
        );
        return None;
    }
    Some(asked)
}

/// The value of a duration that is above zero and well-formed by protobuf's rules.
fn positive(duration: &prost_types::Duration) -> Option<Duration> {
    // Ten thousand years; protobuf's own bound, and one that no clock here overflows at.
    const MOST_SECONDS: u64 = 315_576_000_000;
    let prost_types::Duration { seconds, nanos } = *duration;
    let seconds = u64::try_from(seconds).ok().filter(|seconds| *seconds <= MOST_SECONDS)?;
    let nanos = u32::try_from(nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    Some(Duration::new(seconds, nanos)).filter(|duration| !duration.is_zero())
}

/// A protobuf duration as it was sent, well-formed or not.
struct Seconds<'a>(&'a prost_types::Duration);

impl fmt::Display for Seconds<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prost_types::Duration { seconds, nanos } = self.0;
        write!(f, "{{seconds: {seconds}, nanos: {nanos}}}")
    }
}
