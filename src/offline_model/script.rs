//! From a request to what is answered: a pure function of the request's JSON.
//!
//! The model keeps no state. How far a turn has got is read from the request itself, as a real model reads it: the
//! tool outputs that follow the last user message say how many of the prompt's calls are done.

use std::time::Duration;

use serde_json::{Value, json};

use super::directive::{self, Directive, Question, Verdict};

/// How long a command may run before its call returns without it. The longest that `exec_command` takes; the
/// default of ten seconds would end a turn while its command is still at work.
const COMMAND_YIELD_MS: u64 = 30_000;
/// The older command tools kill what runs longer.
const COMMAND_TIMEOUT_MS: u64 = 600_000;

/// The answer to one request.
#[derive(Debug, PartialEq)]
pub(crate) struct Script {
    pub(super) steps: Vec<Step>,
    /// The pause between two deltas.
    pub(super) pace: Duration,
    pub(super) usage: Usage,
}

/// One step of an answer. `Status` comes before all others but `Wait`, and nothing follows the last six.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    Wait(Duration),
    Reason(String),
    Answer(Answer),
    Status { code: u16, retry_after: Option<u64> },
    Hang,
    Cut,
    Fail { code: String, message: String },
    Incomplete { reason: String },
    Call(Call),
}

/// An agent message, and with it how it is cut into deltas.
#[derive(Debug, PartialEq)]
pub(super) enum Answer {
    Text(String),
    Words(usize),
    Bytes(usize),
}

/// A tool call, in the form in which the request offered the tool.
#[derive(Debug, PartialEq)]
pub(super) enum Call {
    Function {
        name: String,
        /// Since some version after 0.115, MCP tools are grouped, and a call names its group apart.
        namespace: Option<String>,
        arguments: Value,
    },
    Custom {
        name: String,
        input: String,
    },
    LocalShell {
        command: Vec<String>,
    },
}

/// What `response.completed` reports. A word counts as a token, and so do four characters of input.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Usage {
    pub(super) input: usize,
    /// All that was there before the last user message, as if the previous turn had been cached.
    pub(super) cached: usize,
    /// Includes `reasoning`, as OpenAI counts it.
    pub(super) output: usize,
    pub(super) reasoning: usize,
}

/// Decides the answer to a request body.
pub(crate) fn decide(request: &Value) -> Script {
    let history = History::read(request);
    if let Some(script) = review(request) {
        return script;
    }
    let mut script = match directive::parse(&history.prompt) {
        Ok(directives) => perform(&directives, &history, request),
        Err(malformed) => say(malformed.to_string()),
    };
    script.usage = Usage {
        input: history.input_chars / 4,
        cached: history.cached_chars / 4,
        ..spent(&script.steps)
    };
    script
}

/// The verdict, where the request is that of Codex's reviewer: what the prompt under review says, else that all is
/// well. The reviewer has the conversation before it, prompts and their directives included.
fn review(request: &Value) -> Option<Script> {
    let wanted = request.pointer("/text/format/schema/properties")?;
    if wanted.get("outcome").is_none() || wanted.get("user_authorization").is_none() {
        return None;
    }
    let verdict = |outcome: &str, risk: &str, why: String| {
        let verdict = json!({"outcome": outcome, "risk_level": risk, "user_authorization": "medium",
                             "rationale": why});
        Step::Answer(Answer::Text(verdict.to_string()))
    };
    let items = request["input"].as_array()?;
    let mut verdicts =
        items.iter().rev().filter(|item| item["role"] == "user").filter_map(|item| {
            item["content"]
                .as_array()?
                .iter()
                .rev()
                .find_map(|part| directive::verdict(part["text"].as_str()?))
        });
    let step = match verdicts.next() {
        None => verdict("allow", "low", "the prompt says nothing against it".to_owned()),
        Some(Verdict::Allow(why)) => verdict("allow", "low", why),
        Some(Verdict::Deny(why)) => verdict("deny", "high", why),
        Some(Verdict::Nonsense) => Step::Answer(Answer::Text("neither yes nor no".to_owned())),
        Some(Verdict::Hang) => Step::Hang,
    };
    Some(ended(vec![step], Duration::ZERO))
}

/// What the request's `input` tells about the thread.
struct History {
    /// The last thing that a person said.
    prompt: String,
    /// How many messages a person wrote so far.
    user_messages: usize,
    /// Tool outputs since the last of them.
    outputs: usize,
    /// How often Codex told the model since then to go on with its goal.
    continuations: usize,
    /// Tool outputs since the last time that it did.
    outputs_since: usize,
    input_chars: usize,
    cached_chars: usize,
}

impl History {
    fn read(request: &Value) -> Self {
        let mut history = Self {
            prompt: String::new(),
            user_messages: 0,
            outputs: 0,
            continuations: 0,
            outputs_since: 0,
            input_chars: 0,
            cached_chars: 0,
        };
        let items = request["input"].as_array().map_or(&[][..], Vec::as_slice);
        for item in items {
            if let Some(text) = written_by_a_person(item) {
                if history.user_messages > 0 {
                    history.cached_chars = history.input_chars;
                }
                history.prompt = text;
                history.user_messages += 1;
                history.outputs = 0;
                history.continuations = 0;
                history.outputs_since = 0;
            } else if is_continuation(item) {
                history.continuations += 1;
                history.outputs_since = 0;
            } else if is_output(item) {
                history.outputs += 1;
                history.outputs_since += 1;
            }
            history.input_chars += chars(item);
        }
        history
    }
}

/// Whether it is what a tool gave back. Codex tells the goal as an output, too, of a call that nobody made.
fn is_output(item: &Value) -> bool {
    item["type"].as_str().is_some_and(|kind| kind.ends_with("_output"))
        && item["name"] != "goal_objective"
}

/// Whether Codex tells the model to go on with its goal.
fn is_continuation(item: &Value) -> bool {
    const OPENING: &str = "<codex_internal_context source=\"goal\">";
    let parts = item["content"].as_array().into_iter().flatten();
    item["role"] == "user"
        && parts.filter_map(|part| part["text"].as_str()).any(|text| text.starts_with(OPENING))
}

/// The text of a message that a person wrote; `None` for every other item.
fn written_by_a_person(item: &Value) -> Option<String> {
    if item["role"] != "user" {
        return None;
    }
    let parts = match &item["content"] {
        Value::String(text) => return (!is_injected(text)).then(|| text.clone()),
        parts => parts.as_array()?,
    };
    // Codex adds its own parts to a message of its own, and labels an image with parts beside the person's.
    let texts: Vec<&str> = parts
        .iter()
        .filter_map(|part| part["text"].as_str())
        .filter(|text| !is_injected(text))
        .collect();
    if texts.is_empty() {
        let image = parts.iter().any(|part| part["type"] == "input_image");
        return image.then(|| "[image]".to_owned());
    }
    Some(texts.join("\n\n"))
}

/// Whether Codex, not a person, wrote this part of a user message.
fn is_injected(text: &str) -> bool {
    const OPENINGS: [&str; 10] = [
        "# AGENTS.md instructions",
        "<AGENTS.md ",
        "<INSTRUCTIONS>",
        "<skill>",
        "<image ",
        "</image>",
        "Codex could not read the local image at ",
        // Up to about 0.110, notices came in the user's name.
        "Warning: apply_patch was requested via ",
        "Warning: The maximum number of unified exec processes ",
        // The summary that stands for the history after a compaction.
        "Another language model started to solve this problem",
    ];
    let text = text.trim();
    OPENINGS.iter().any(|opening| text.starts_with(opening)) || is_fragment(text)
}

/// `<environment_context>…</environment_context>`, `<turn_aborted>…`, `<user_instructions>…`, `<subagent_notification>…`
/// and those to come: Codex wraps what it injects in one tag of several words. People don't.
fn is_fragment(text: &str) -> bool {
    let Some(inner) = text.strip_prefix('<') else {
        return false;
    };
    let end = inner.find(|c: char| !(c.is_ascii_lowercase() || c == '_')).unwrap_or(inner.len());
    let tag = &inner[..end];
    tag.contains('_')
        && text
            .strip_suffix('>')
            .and_then(|text| text.strip_suffix(tag))
            .is_some_and(|text| text.ends_with("</"))
}

fn chars(value: &Value) -> usize {
    match value {
        Value::String(text) => text.chars().count(),
        Value::Array(values) => values.iter().map(chars).sum(),
        Value::Object(fields) => fields.values().map(chars).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
    }
}

fn perform(directives: &[Directive], history: &History, request: &Value) -> Script {
    let pace = directives
        .iter()
        .rev()
        .find_map(|directive| match directive {
            Directive::Slow(pace) => Some(*pace),
            _ => None,
        })
        .unwrap_or_default();
    let mut parts: Vec<&[Directive]> = directives.split(|one| *one == Directive::Next).collect();
    let outputs = if parts.len() > 1 { history.outputs_since } else { history.outputs };
    // The last part is for all turns from there on.
    parts.truncate(history.continuations + 1);
    let mut remaining = parts.last().copied().unwrap_or_default().iter().peekable();
    for _ in 0..outputs {
        if !remaining.any(Directive::is_call) {
            break;
        }
    }

    let offered = Offered(request["tools"].as_array().map_or(&[], Vec::as_slice));
    let mut steps = Vec::new();
    let mut answered = false;
    while let Some(directive) = remaining.next() {
        let answer = match directive {
            Directive::Slow(_) | Directive::Review(_) | Directive::And | Directive::Next => {
                continue;
            }
            Directive::Wait(pause) => {
                steps.push(Step::Wait(*pause));
                continue;
            }
            Directive::Reason(text) => {
                steps.push(Step::Reason(text.clone()));
                continue;
            }
            Directive::Say(text) => Answer::Text(text.clone()),
            Directive::Show(pointer) => {
                Answer::Text(request.pointer(pointer).unwrap_or(&Value::Null).to_string())
            }
            Directive::Words(count) => Answer::Words(*count),
            Directive::Bytes(count) => Answer::Bytes(*count),
            Directive::Status { code, retry_after } => {
                // The status line is gone once anything was streamed.
                if steps.iter().all(|step| matches!(step, Step::Wait(_))) {
                    steps.push(Step::Status { code: *code, retry_after: *retry_after });
                    return ended(steps, pace);
                }
                return say(format!(
                    "offline model: [[status {code}]] must come first, or right after a tool call: \
                     an answer that has begun has its status"
                ));
            }
            Directive::End => return ended(steps, pace),
            Directive::Hang => {
                steps.push(Step::Hang);
                return ended(steps, pace);
            }
            Directive::Cut => {
                steps.push(Step::Cut);
                return ended(steps, pace);
            }
            Directive::Fail { code, message } => {
                steps.push(Step::Fail {
                    code: code.clone(),
                    message: message.clone().unwrap_or_else(|| {
                        format!("offline model: failed with {code} as the prompt asked")
                    }),
                });
                return ended(steps, pace);
            }
            Directive::Incomplete(reason) => {
                steps.push(Step::Incomplete { reason: reason.clone() });
                return ended(steps, pace);
            }
            Directive::Run(_)
            | Directive::Escalate(_)
            | Directive::Ask(_)
            | Directive::Permit(_)
            | Directive::Patch(_)
            | Directive::Plan(_)
            | Directive::Tool { .. } => {
                match offered.directed(directive) {
                    Ok(call) => steps.push(Step::Call(call)),
                    Err(why) => return say(why),
                }
                // Codex answers all calls of one response with one request.
                if remaining.next_if_eq(&&Directive::And).is_some() {
                    continue;
                }
                return ended(steps, pace);
            }
        };
        steps.push(Step::Answer(answer));
        answered = true;
    }
    if !answered {
        let History { prompt, user_messages, .. } = history;
        steps.push(Step::Answer(Answer::Text(format!(
            "You said: {prompt} (user messages so far: {user_messages})"
        ))));
    }
    ended(steps, pace)
}

fn ended(steps: Vec<Step>, pace: Duration) -> Script {
    Script { steps, pace, usage: Usage::default() }
}

fn say(text: String) -> Script {
    ended(vec![Step::Answer(Answer::Text(text))], Duration::ZERO)
}

/// The tools that the request offers.
struct Offered<'a>(&'a [Value]);

impl Offered<'_> {
    /// The tool's description, and the namespace it stands in.
    ///
    /// `server.tool` finds `tool` of the MCP server `server` as every Codex names it: flat, `mcp__server__tool`
    /// (0.115), in a namespace `mcp__server__` (0.130), or in one called `mcp__server` (0.150).
    fn find(&self, name: &str) -> Option<(&Value, Option<&str>)> {
        let flat = |name: &str| self.0.iter().find(|tool| tool["name"] == name);
        if let Some(tool) = flat(name) {
            return Some((tool, None));
        }
        let (server, tool) = name.split_once('.').unzip();
        if let (Some(server), Some(tool)) = (server, tool)
            && let Some(found) = flat(&format!("mcp__{server}__{tool}"))
        {
            return Some((found, None));
        }
        self.0.iter().find_map(|namespace| {
            let group = namespace["name"].as_str()?;
            let tools = namespace["tools"].as_array()?;
            let bare = group.strip_prefix("mcp__").unwrap_or(group).trim_end_matches("__");
            if server.is_some_and(|server| server != bare && server != group) {
                return None;
            }
            let wanted = tool.unwrap_or(name);
            let found = tools.iter().find(|tool| tool["name"] == wanted)?;
            Some((found, Some(group)))
        })
    }

    /// The call that a directive asks for.
    fn directed(&self, directive: &Directive) -> Result<Call, String> {
        match directive {
            Directive::Run(command) => self.run(command),
            Directive::Escalate(command) => self.escalate(command),
            Directive::Ask(questions) => Ok(self.ask(questions)),
            Directive::Permit(permissions) => {
                let reason = "as the prompt asked";
                let arguments = json!({"permissions": permissions, "reason": reason});
                Ok(self.call("request_permissions", &arguments))
            }
            Directive::Patch(patch) => self.patch(patch),
            Directive::Plan(plan) => self.plan(plan),
            Directive::Tool { name, arguments } => Ok(self.call(name, arguments)),
            other => Err(format!("offline model: {other:?} is no call")),
        }
    }

    /// Any tool. One that isn't offered is called all the same: models do that too, and Codex has an answer to it.
    fn call(&self, name: &str, arguments: &Value) -> Call {
        let Some((tool, namespace)) = self.find(name) else {
            return Call::Function {
                name: name.to_owned(),
                namespace: None,
                arguments: arguments.clone(),
            };
        };
        let name = tool["name"].as_str().unwrap_or(name).to_owned();
        if tool["type"] == "custom" {
            let input =
                arguments["input"].as_str().map_or_else(|| arguments.to_string(), str::to_owned);
            return Call::Custom { name, input };
        }
        Call::Function {
            name,
            namespace: namespace.map(str::to_owned),
            arguments: arguments.clone(),
        }
    }

    fn run(&self, command: &str) -> Result<Call, String> {
        let argv = ["bash", "-c", command];
        for (name, mut arguments) in [
            ("exec_command", json!({"cmd": command, "yield_time_ms": COMMAND_YIELD_MS})),
            ("shell_command", json!({"command": command, "timeout_ms": COMMAND_TIMEOUT_MS})),
            ("shell", json!({"command": argv, "timeout_ms": COMMAND_TIMEOUT_MS})),
        ] {
            if let Some((tool, _)) = self.find(name) {
                if !tool["parameters"]["properties"]["login"].is_null() {
                    // A login shell runs the profile of whoever tests, which may take longer than the command, or
                    // never end: pyenv's waits a minute for a lock that a killed shell left behind.
                    arguments["login"] = false.into();
                }
                return Ok(self.call(name, &arguments));
            }
        }
        if self.0.iter().any(|tool| tool["type"] == "local_shell") {
            return Ok(Call::LocalShell { command: argv.map(str::to_owned).to_vec() });
        }
        Err("offline model: the request offers no tool that runs commands".to_owned())
    }

    fn escalate(&self, command: &str) -> Result<Call, String> {
        let mut call = self.run(command)?;
        if let Call::Function { arguments, .. } = &mut call {
            arguments["sandbox_permissions"] = "require_escalated".into();
            arguments["justification"] = "as the prompt asked".into();
        }
        Ok(call)
    }

    fn ask(&self, questions: &[Question]) -> Call {
        let asked = questions.iter().enumerate().map(|(at, Question { text, options })| {
            let options = options.iter().map(|label| json!({"label": label, "description": label}));
            json!({"id": format!("q{}", at + 1), "header": format!("Question {}", at + 1),
                   "question": text, "options": options.collect::<Vec<_>>()})
        });
        let arguments = json!({"questions": asked.collect::<Vec<_>>()});
        self.call("request_user_input", &arguments)
    }

    fn patch(&self, patch: &str) -> Result<Call, String> {
        if self.find("apply_patch").is_some() {
            return Ok(self.call("apply_patch", &json!({"input": patch})));
        }
        // Codex takes this command for a patch, whether or not it offers the tool.
        self.run(&format!("apply_patch <<'END_OF_OFFLINE_PATCH'\n{patch}\nEND_OF_OFFLINE_PATCH"))
    }

    fn plan(&self, plan: &[String]) -> Result<Call, String> {
        if self.find("update_plan").is_none() {
            return Err(
                "offline model: the request offers no update_plan (tools.update_plan.enabled)"
                    .to_owned(),
            );
        }
        let steps: Vec<Value> = plan
            .iter()
            .enumerate()
            .map(|(position, step)| {
                let status = match position {
                    0 => "completed",
                    1 => "in_progress",
                    _ => "pending",
                };
                json!({"step": step, "status": status})
            })
            .collect();
        Ok(self.call("update_plan", &json!({"plan": steps})))
    }
}

/// What the steps cost. Input is not theirs to tell.
fn spent(steps: &[Step]) -> Usage {
    let words = |text: &str| text.split_whitespace().count();
    let mut usage = Usage::default();
    for step in steps {
        match step {
            Step::Reason(text) => {
                usage.reasoning += words(text);
                usage.output += words(text);
            }
            Step::Answer(Answer::Text(text)) => usage.output += words(text),
            Step::Answer(Answer::Words(count)) => usage.output += count,
            Step::Answer(Answer::Bytes(count)) => usage.output += count.div_ceil(4),
            Step::Call(Call::Function { arguments, .. }) => {
                usage.output += chars(arguments) / 4 + 1
            }
            Step::Call(Call::Custom { input, .. }) => usage.output += words(input),
            Step::Call(Call::LocalShell { command }) => usage.output += command.len(),
            Step::Wait(_)
            | Step::Status { .. }
            | Step::Hang
            | Step::Cut
            | Step::Fail { .. }
            | Step::Incomplete { .. } => {}
        }
    }
    usage
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(text: &str) -> Value {
        json!({"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]})
    }

    fn output() -> Value {
        json!({"type": "function_call_output", "call_id": "c", "output": "ok"})
    }

    /// What 0.169.0 sends ahead of the first prompt.
    fn preamble() -> Vec<Value> {
        vec![
            json!({"type": "message", "role": "developer",
                   "content": [{"type": "input_text", "text": "[[cut]]"}]}),
            json!({"type": "message", "role": "user", "content": [
                {"type": "input_text", "text": "# AGENTS.md instructions for /w\n\n<INSTRUCTIONS>\n[[cut]]\n</INSTRUCTIONS>"},
                {"type": "input_text", "text": "<environment_context>\n  <cwd>/w</cwd>\n</environment_context>"}]}),
        ]
    }

    fn steps(tools: Value, items: impl IntoIterator<Item = Value>) -> Vec<Step> {
        let input: Vec<Value> = preamble().into_iter().chain(items).collect();
        decide(&json!({"model": "m", "input": input, "tools": tools})).steps
    }

    fn text(text: &str) -> Step {
        Step::Answer(Answer::Text(text.into()))
    }

    #[test]
    fn the_default_answer_echoes_the_last_person_and_counts_them() {
        let history = [
            user("first"),
            json!({"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "x"}]}),
            user("<turn_aborted>\nThe user interrupted\n</turn_aborted>"),
            user(" <b>second</b>\n"),
        ];
        assert_eq!(
            steps(json!([]), history),
            [text("You said:  <b>second</b>\n (user messages so far: 2)")]
        );
        assert_eq!(steps(json!([]), []), [text("You said:  (user messages so far: 0)")]);
        assert_eq!(decide(&Value::Null).steps, [text("You said:  (user messages so far: 0)")]);
    }

    #[test]
    fn parts_of_one_message_are_one_and_image_labels_are_not_text() {
        let message = json!({"type": "message", "role": "user", "content": [
            {"type": "input_text", "text": "look"},
            {"type": "input_text", "text": "<image name=[Image #1]>"},
            {"type": "input_image", "image_url": "data:"},
            {"type": "input_text", "text": "</image>"},
            {"type": "input_text", "text": "Codex could not read the local image at `/x`: No such file"},
            {"type": "input_text", "text": "here"}]});
        assert_eq!(
            steps(json!([]), [message]),
            [text("You said: look\n\nhere (user messages so far: 1)")]
        );
    }

    #[test]
    fn outputs_after_the_last_user_message_say_how_far_the_turn_got() {
        let tools = json!([{"type": "function", "name": "exec_command",
                            "parameters": {"properties": {"login": {"type": "boolean"}}}}]);
        let run = |cmd: &str| {
            Step::Call(Call::Function {
                name: "exec_command".into(),
                namespace: None,
                arguments: json!({"cmd": cmd, "yield_time_ms": 30_000, "login": false}),
            })
        };
        let prompt = "[[say a]] [[run one]] [[reason b]] [[run two]]";
        let turn = |outputs: usize| {
            let before = [user("[[run zero]]"), output(), user(prompt)];
            steps(tools.clone(), before.into_iter().chain((0..outputs).map(|_| output())))
        };
        assert_eq!(turn(0), [text("a"), run("one")]);
        assert_eq!(turn(1), [Step::Reason("b".into()), run("two")]);
        let echo = text(&format!("You said: {prompt} (user messages so far: 2)"));
        assert_eq!(turn(2), [echo]);
        // A turn that Codex goes on with for its own reasons ends all the same.
        assert_eq!(turn(7), turn(2));
    }

    #[test]
    fn turns_that_codex_takes_by_itself_have_parts_of_the_prompt_of_their_own() {
        let tools =
            json!([{"type": "function", "name": "create_goal"}, {"type": "function", "name": "t"}]);
        let goal =
            || json!({"type": "function_call_output", "name": "goal_objective", "output": "x"});
        let go_on = || {
            let text =
                "<codex_internal_context source=\"goal\">\nGo on.\n</codex_internal_context>";
            json!({"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]})
        };
        let called = |name: &str| {
            let (name, arguments) = (name.to_owned(), json!({}));
            [Step::Call(Call::Function { name, namespace: None, arguments })]
        };
        let prompt =
            "[[tool create_goal]] [[say a]] [[next]] [[tool t]] [[say b]] [[next]] [[say c]]";
        let after = |items: &[Value]| {
            steps(tools.clone(), [user(prompt)].into_iter().chain(items.iter().cloned()))
        };
        assert_eq!(after(&[]), called("create_goal"));
        // Codex's own output is that of no call.
        assert_eq!(after(&[output(), goal()]), [text("a")]);
        assert_eq!(after(&[output(), goal(), go_on()]), called("t"));
        assert_eq!(after(&[output(), goal(), go_on(), output()]), [text("b")]);
        let twice = [output(), goal(), go_on(), output(), go_on()];
        assert_eq!(after(&twice), [text("c")]);
        let often: Vec<Value> = twice.into_iter().chain([go_on(), go_on()]).collect();
        assert_eq!(after(&often), [text("c")]);
        // Without parts, a prompt is done once.
        let once = steps(
            tools.clone(),
            [user("[[tool create_goal]] [[say a]]"), output(), goal(), go_on()],
        );
        assert_eq!(once, [text("a")]);
    }

    #[test]
    fn tools_are_called_the_way_they_are_offered() {
        let one = |tools: Value, prompt: &str| steps(tools, [user(prompt)]).remove(0);
        let function = |name: &str, namespace: Option<&str>, arguments: Value| {
            Step::Call(Call::Function {
                name: name.into(),
                namespace: namespace.map(str::to_owned),
                arguments,
            })
        };
        let grouped = json!([{"type": "namespace", "name": "mcp__db", "tools": [{"type": "function", "name": "query"}]}]);
        for prompt in ["[[tool db.query]]", "[[tool mcp__db.query]]", "[[tool query]]"] {
            assert_eq!(one(grouped.clone(), prompt), function("query", Some("mcp__db"), json!({})));
        }
        let flat = json!([{"type": "function", "name": "mcp__db__query"}]);
        assert_eq!(one(flat, "[[tool db.query]]"), function("mcp__db__query", None, json!({})));
        assert_eq!(
            one(json!([]), "[[tool other.query]]"),
            function("other.query", None, json!({}))
        );
        assert_eq!(
            one(json!([{"type": "function", "name": "shell"}]), "[[run ls]]"),
            function(
                "shell",
                None,
                json!({"command": ["bash", "-c", "ls"], "timeout_ms": 600_000})
            )
        );
        let patch = "*** Begin Patch\n*** Add File: f\n+x\n*** End Patch";
        assert_eq!(
            one(json!([{"type": "custom", "name": "apply_patch"}]), "[[write f x]]"),
            Step::Call(Call::Custom { name: "apply_patch".into(), input: patch.into() })
        );
        assert_eq!(
            one(json!([{"type": "local_shell"}]), "[[write f x]]"),
            Step::Call(Call::LocalShell {
                command: vec![
                    "bash".into(),
                    "-c".into(),
                    format!("apply_patch <<'END_OF_OFFLINE_PATCH'\n{patch}\nEND_OF_OFFLINE_PATCH")
                ]
            })
        );
        assert_eq!(
            one(json!([{"type": "function", "name": "update_plan"}]), "[[plan a; b; c]]"),
            function(
                "update_plan",
                None,
                json!({"plan": [{"step": "a", "status": "completed"}, {"step": "b", "status": "in_progress"},
                                {"step": "c", "status": "pending"}]})
            )
        );
    }

    #[test]
    fn what_codex_is_to_ask_for_is_called_as_codex_takes_it() {
        let tools = json!([
            {"type": "function", "name": "exec_command",
             "parameters": {"properties": {"login": {"type": "boolean"}}}},
            {"type": "function", "name": "request_user_input"},
            {"type": "function", "name": "request_permissions"},
        ]);
        let one = |prompt: &str| {
            let [Step::Call(Call::Function { name, arguments, .. })] =
                &steps(tools.clone(), [user(prompt)])[..]
            else {
                panic!("{prompt}")
            };
            (name.clone(), arguments.clone())
        };
        let escalated = json!({"cmd": "ls", "yield_time_ms": 30_000, "login": false,
                               "sandbox_permissions": "require_escalated",
                               "justification": "as the prompt asked"});
        assert_eq!(one("[[escalate ls]]"), ("exec_command".to_owned(), escalated));
        let question = |id: &str, header: &str, text: &str, labels: &[&str]| {
            let options = labels.iter().map(|label| json!({"label": label, "description": label}));
            json!({"id": id, "header": header, "question": text,
                   "options": options.collect::<Vec<_>>()})
        };
        let questions = json!({"questions": [question("q1", "Question 1", "Which?", &["A", "B"]),
                                             question("q2", "Question 2", "And?", &["C"])]});
        assert_eq!(
            one("[[ask Which? | A | B; And? | C]]"),
            ("request_user_input".to_owned(), questions)
        );
        let permissions = json!({"permissions": {"network": {"enabled": true}},
                                 "reason": "as the prompt asked"});
        assert_eq!(
            one("[[permit {\"network\": {\"enabled\": true}}]]"),
            ("request_permissions".to_owned(), permissions)
        );
    }

    #[test]
    fn calls_that_are_joined_are_made_at_once_and_their_outputs_counted() {
        let tools = json!([{"type": "function", "name": "f"}]);
        let called = |numbers: &[u32]| -> Vec<Step> {
            let call = |number: &u32| {
                let (name, arguments) = ("f".to_owned(), json!({"n": number}));
                Step::Call(Call::Function { name, namespace: None, arguments })
            };
            numbers.iter().map(call).collect()
        };
        let prompt =
            "[[tool f {\"n\": 1}]] [[and]] [[tool f {\"n\": 2}]] [[tool f {\"n\": 3}]] [[say a]]";
        let after = |outputs: usize| {
            let outputs = (0..outputs).map(|_| output());
            steps(tools.clone(), [user(prompt)].into_iter().chain(outputs))
        };
        assert_eq!(after(0), called(&[1, 2]));
        assert_eq!(after(2), called(&[3]));
        assert_eq!(after(3), [text("a")]);
    }

    #[test]
    fn codexs_reviewer_gets_the_verdict_of_the_last_prompt_that_has_one() {
        // As 0.169.0 asks: what was said before stands in the reviewer's own words.
        let verdict = |said: &[&str]| {
            let input: Vec<Value> = said
                .iter()
                .map(|said| user(&format!("[1] Retained source order: 0\nuser: {said}")))
                .collect();
            let properties = json!({"outcome": {}, "user_authorization": {}, "rationale": {}});
            let format = json!({"type": "json_schema", "schema": {"properties": properties}});
            let mut steps = decide(&json!({"input": input, "text": {"format": format}})).steps;
            assert_eq!(steps.len(), 1);
            steps.remove(0)
        };
        let read = |step: Step| {
            let Step::Answer(Answer::Text(text)) = step else { panic!("{step:?}") };
            let verdict: Value = serde_json::from_str(&text).unwrap();
            (verdict["outcome"].clone(), verdict["rationale"].clone())
        };
        let denied = verdict(&["[[escalate ls]] [[review allow]]", "[[review deny it lists]] x"]);
        assert_eq!(read(denied), (json!("deny"), json!("it lists")));
        let (outcome, _) = read(verdict(&["[[escalate ls]]"]));
        assert_eq!(outcome, "allow");
        assert_eq!(verdict(&["[[review hang]]"]), Step::Hang);
        assert_eq!(verdict(&["[[review nonsense]]"]), text("neither yes nor no"));
    }

    #[test]
    fn what_cannot_be_done_is_said() {
        for (prompt, why) in [
            ("[[run ls]]", "no tool that runs commands"),
            ("[[plan a]]", "no update_plan"),
            ("[[say a]] [[status 500]]", "must come first"),
            ("[[say a]] [[nonsense]]", "no directive `nonsense`"),
        ] {
            let steps = steps(json!([]), [user(prompt)]);
            let [Step::Answer(Answer::Text(text))] = &steps[..] else {
                panic!("{prompt}: {steps:?}")
            };
            assert!(text.contains(why), "{prompt}: {text}");
        }
    }

    #[test]
    fn endings_keep_what_came_before_and_drop_what_follows() {
        let all = |prompt: &str| steps(json!([]), [user(prompt)]);
        let wait = Step::Wait(Duration::from_secs(2));
        assert_eq!(
            all("[[wait 2s]] [[status 429 7]] [[say never]]"),
            [wait, Step::Status { code: 429, retry_after: Some(7) }]
        );
        assert_eq!(all("[[words 3]] [[cut]]"), [Step::Answer(Answer::Words(3)), Step::Cut]);
        assert_eq!(all("[[show /model]]"), [text("\"m\"")]);
        assert_eq!(all("[[show /none]]"), [text("null")]);
    }

    #[test]
    fn usage_grows_with_the_thread() {
        let ask = |items: &[Value]| decide(&json!({"input": items})).usage;
        let long = "x".repeat(400);
        let first = ask(&[user(&long)]);
        assert_eq!(first.cached, 0);
        let second = ask(&[user(&long), user("[[reason a b c]] [[words 10]]")]);
        assert!(second.input > first.input && second.cached == first.input);
        assert_eq!((second.output, second.reasoning), (13, 3));
    }
}
