//! What the fields and the values of requests are called where a person gives them.

use crate::pb;

/// Fields of requests, and what says them. What is within a field is named after it.
type Names = [(&'static str, &'static str)];

/// Where a request comes from: the first that has a field names it.
pub(super) type Place = &'static [&'static Names];

/// `run`, and what follows a turn.
pub(super) const RUN: Place = &[&[
    ("thread_options.additional_directories", "--add-dir"),
    ("thread_options.approval_policy", "--approval"),
    ("thread_options.approvals_reviewer", "--reviewer"),
    ("thread_options.config", "-c"),
    ("thread_options.environment", "--env"),
    ("thread_options.model_reasoning_effort_name", "--effort"),
    ("thread_options.model_reasoning_effort", "--effort"),
    ("thread_options.model", "--model"),
    ("thread_options.network_access_enabled", "--network"),
    ("thread_options.permission_profile", "--permission-profile"),
    ("thread_options.reasoning_summary", "--reasoning-summary"),
    ("thread_options.sandbox_mode", "--sandbox"),
    ("thread_options.service_tier", "--service-tier"),
    ("thread_options.skip_git_repo_check", "--skip-git-repo-check"),
    ("thread_options.web_search_mode", "--web-search"),
    (WORKING_DIRECTORY, "--cd"),
    ("turn_options.answer_timeout", "--answer-timeout"),
    ("turn_options.idle_timeout", "--idle-timeout"),
    ("turn_options.max_total_tokens", "--max-total-tokens"),
    ("turn_options.output_schema", "--output-schema"),
    ("turn_options.turn_timeout", "--turn-timeout"),
    ("review.base_branch", "--review base=BRANCH"),
    ("review.commit", "--review commit=COMMIT"),
    ("review.instructions", "--review TEXT"),
    (MISSING_THREAD, "--missing-thread"),
    ("disconnect_policy", "--on-disconnect"),
    ("question_policy", "--on-question"),
    ("context_policy", "--context-policy"),
    ("busy_policy", "--busy"),
    ("after_sequence", "--after"),
    ("thread_id_key", "--thread-key"),
    ("context_id", "--context"),
    ("request_id", "--request-id"),
    ("tool_name", "--tool"),
    ("thread_id", "--thread"),
    ("ephemeral", "--ephemeral"),
    ("turn_id", "TURN"),
    ("compact", "--compact"),
    ("review", "--review"),
    ("inputs", "PROMPT"),
]];

/// `answer`.
pub(super) const ANSWER: Place = &[&[
    ("approval.decision", "--decision"),
    ("approval.exec_policy_amendment", "--amendment"),
    ("approval.network_policy_amendment", "--allow-host or --deny-host"),
    ("permissions.permissions_json", "--permissions"),
    ("permissions.scope", "--scope"),
    ("user_questions", "--answer"),
    ("elicitation.content_json", "--content"),
    ("elicitation.action", "--action"),
    ("elicitation.persist", "--persist"),
    ("tool_call", "--result"),
    ("request_id", "REQUEST"),
    ("turn_id", "TURN"),
]];

/// `contexts`.
pub(super) const CONTEXTS: Place = &[OF_CONTEXTS, &[("thread_id", "THREAD")]];
/// `contexts history`.
pub(super) const HISTORY: Place = &[OF_CONTEXTS, &[("thread_id", "--thread")]];

const OF_CONTEXTS: &Names = &[
    ("before_codex_turn_id", "--before"),
    ("last_codex_turn_id", "--up-to"),
    ("source.context_id", "CONTEXT"),
    ("source.tool_name", "--tool"),
    ("source.thread_id_key", "--thread-key"),
    ("target.context_id", "TARGET"),
    ("target.tool_name", "--tool"),
    ("target.thread_id_key", "--thread-key"),
    ("context.context_id", "CONTEXT"),
    ("context.tool_name", "--tool"),
    ("context.thread_id_key", "--thread-key"),
    ("context_id", "CONTEXT"),
    ("tool_name", "--tool"),
    ("thread_id_key", "--thread-key"),
];

/// `exec`, which has the flags of another program.
pub(super) const EXEC: Place = &[&[
    ("thread_options.additional_directories", "--add-dir"),
    ("thread_options.approval_policy", "-c approval_policy"),
    ("thread_options.config", "-c"),
    ("thread_options.model_reasoning_effort_name", "-c model_reasoning_effort"),
    ("thread_options.model_reasoning_effort", "-c model_reasoning_effort"),
    ("thread_options.model", "--model"),
    ("thread_options.network_access_enabled", "-c sandbox_workspace_write.network_access"),
    ("thread_options.sandbox_mode", "--sandbox"),
    ("thread_options.skip_git_repo_check", "--skip-git-repo-check"),
    ("thread_options.thread_source", "--thread-source"),
    ("thread_options.web_search_mode", "-c web_search"),
    (WORKING_DIRECTORY, "--cd"),
    ("turn_options.output_schema", "--output-schema"),
    ("review.base_branch", "--base"),
    ("review.commit", "--commit"),
    ("review.instructions", "PROMPT"),
    ("context_id", "CODEX_SIDECAR_CONTEXT"),
    (CREDENTIAL, "set CODEX_SIDECAR_TOKEN, or CODEX_SIDECAR_TLS_CERT and CODEX_SIDECAR_TLS_KEY"),
    ("thread_id", "resume"),
    ("ephemeral", "--ephemeral"),
    ("review", "review"),
    ("inputs", "PROMPT"),
]];

/// The tools of `mcp`.
pub(super) const MCP: Place = &[&[
    ("thread_options.approval_policy", "approval-policy"),
    ("thread_options.base_instructions", "base-instructions"),
    ("thread_options.developer_instructions", "developer-instructions"),
    ("thread_options.config", "config"),
    ("thread_options.model", "model"),
    ("thread_options.sandbox_mode", "sandbox"),
    (WORKING_DIRECTORY, "cwd"),
    ("thread_id", "threadId"),
    ("inputs", "prompt"),
]];

/// No field of a request, but what comes beside it.
const CREDENTIAL: &str = "authorization";
/// How it is told where there are flags.
const WITH_FLAGS: &str = "give --token-file FILE or set CODEX_SIDECAR_TOKEN, or give --tls-cert FILE and \
                          --tls-key FILE";

pub(super) const WORKING_DIRECTORY: &str = "thread_options.working_directory";
pub(super) const MISSING_THREAD: &str = "missing_thread_policy";

/// What the sidecar says where there are only fields, and what is said where there are arguments.
const PHRASES: &[(&str, &str)] = &[
    ("give the UUID that thread_started told", "give the UUID that the thread was shown with"),
    ("leave the field out", "leave it out"),
    ("or set ephemeral or unbound", "or give --ephemeral"),
    ("combined with ephemeral", "combined with --ephemeral"),
    ("stands beside review", "stands beside --review"),
];

/// Where what to do about a missing credential begins, as callers are told that have no command line.
const SEND_ONE: &str = "send authorization: Bearer";

/// What says a field: its name, and what of the field's path lies within.
pub(super) fn find(place: Place, field: &str) -> Option<(&'static str, &str)> {
    place.iter().copied().flatten().find_map(|(name, argument)| {
        let rest = field.strip_prefix(name)?;
        (rest.is_empty() || rest.starts_with(['.', '['])).then_some((*argument, rest))
    })
}

/// What says a field that a text names by the last part of its path, as in `give a turn_timeout`.
pub(super) fn find_last(place: Place, last: &str) -> Option<&'static str> {
    let is_it = |name: &str| name.rsplit_once('.').is_some_and(|(_, part)| part == last);
    let mut names = place.iter().copied().flatten();
    names.find_map(|(name, argument)| is_it(name).then_some(*argument))
}

/// A value of the contract as it is typed: `MISSING_THREAD_POLICY_START_NEW` and `START_NEW` are
/// `start-new`. `None` of what is none.
pub(super) fn value(word: &str) -> Option<String> {
    /// Whether a name is one of an enum's.
    type IsValue = fn(&str) -> bool;
    const ENUMS: &[(&str, IsValue)] = &[
        ("APPROVAL_DECISION_", |name| pb::ApprovalDecision::from_str_name(name).is_some()),
        ("APPROVAL_POLICY_", |name| pb::ApprovalPolicy::from_str_name(name).is_some()),
        ("APPROVALS_REVIEWER_", |name| pb::ApprovalsReviewer::from_str_name(name).is_some()),
        ("BUSY_POLICY_", |name| pb::BusyPolicy::from_str_name(name).is_some()),
        ("CONTEXT_POLICY_", |name| pb::ContextPolicy::from_str_name(name).is_some()),
        ("DISCONNECT_POLICY_", |name| pb::DisconnectPolicy::from_str_name(name).is_some()),
        ("ELICITATION_ACTION_", |name| pb::ElicitationAction::from_str_name(name).is_some()),
        ("MISSING_THREAD_POLICY_", |name| pb::MissingThreadPolicy::from_str_name(name).is_some()),
        ("PERMISSION_GRANT_SCOPE_", |name| pb::PermissionGrantScope::from_str_name(name).is_some()),
        ("QUESTION_POLICY_", |name| pb::QuestionPolicy::from_str_name(name).is_some()),
        ("REASONING_EFFORT_", |name| pb::ReasoningEffort::from_str_name(name).is_some()),
        ("REASONING_SUMMARY_", |name| pb::ReasoningSummary::from_str_name(name).is_some()),
        ("SANDBOX_MODE_", |name| pb::SandboxMode::from_str_name(name).is_some()),
        ("WEB_SEARCH_MODE_", |name| pb::WebSearchMode::from_str_name(name).is_some()),
    ];
    if word.len() < 2 || !word.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_') {
        return None;
    }
    let bare = ENUMS.iter().find_map(|(prefix, is_value)| {
        let bare = word.strip_prefix(prefix).unwrap_or(word);
        is_value(&format!("{prefix}{bare}")).then_some(bare)
    })?;
    Some(bare.to_ascii_lowercase().replace('_', "-"))
}

/// The text with what only makes sense where there are fields said otherwise, or left out.
pub(super) fn rephrased(place: Place, text: &str) -> String {
    let mut text = without_protocol(text);
    for (theirs, ours) in PHRASES {
        text = text.replace(theirs, ours);
    }
    if let Some((what, _)) = text.split_once(SEND_ONE) {
        let how = find(place, CREDENTIAL).map_or(WITH_FLAGS, |(how, _)| how);
        text = format!(
            "{what}{how}; `codex-sidecar token new` makes a token for the sidecar's token file"
        );
    }
    if find(place, MISSING_THREAD).is_none()
        && let Some(start) = text.find(" (a turn may begin a new thread in its place")
        && let Some(length) = text[start..].find(')')
    {
        text.replace_range(start..=start + length, "");
    }
    text
}

/// The text without the names and numbers of Codex's protocol, which say nothing to a person:
/// `thread/revert: not found (code -32600)` is `not found`.
fn without_protocol(text: &str) -> String {
    let is_method = |word: &str| {
        let name = word.strip_suffix(':').unwrap_or_default();
        let is_plain = name.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'/');
        is_plain && name.contains('/') && !name.starts_with('/') && !name.ends_with('/')
    };
    let words: Vec<&str> = text.split(' ').collect();
    let mut told: Vec<String> = Vec::with_capacity(words.len());
    let mut words = words.into_iter().peekable();
    while let Some(word) = words.next() {
        let code = words.peek().and_then(|next| next.strip_prefix("-")?.split_once(')'));
        match code {
            Some((number, rest)) if word == "(code" && number.parse::<u32>().is_ok() => {
                words.next();
                if let Some(last) = told.last_mut() {
                    last.push_str(rest);
                }
            }
            _ if is_method(word) => {}
            _ => told.push(word.to_owned()),
        }
    }
    told.join(" ")
}
