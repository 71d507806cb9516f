//! What a worker says: lines of any kind on its stdout, and what lies in its CODEX_HOME.

use prost::Message as _;
use serde_json::Value;
use serde_json::value::RawValue;

use super::Target;
use crate::app_server::answer::Expected;
use crate::app_server::decode;
use crate::app_server::lines::{LineLimits, Lines, Piece};
use crate::app_server::message::{self, Inbound, Line};
use crate::app_server::settings::Settings;
use crate::app_server::whose::Scan;
use crate::app_server::{record, secrets};
use crate::codex_cli::CliVersion;
use crate::model::question::{
    Answer, ApprovalAnswer, ElicitationAnswer, PermissionsAnswer, UserQuestionAnswer,
    UserQuestionsAnswer,
};
use crate::pb;
use crate::redact::{Pieces, Redactor};

pub(super) const TARGETS: &[Target] = &[
    Target { name: "app_server::lines", seeds: streams, holds: lines, share: 15 },
    Target { name: "app_server::message", seeds: messages, holds: message, share: 200 },
    Target { name: "app_server::whose", seeds: messages, holds: whose, share: 30 },
    Target { name: "app_server::answers", seeds: answer_seeds, holds: answers, share: 100 },
    Target { name: "app_server::history", seeds: history_seeds, holds: history, share: 100 },
    Target { name: "app_server::settings", seeds: settings_seeds, holds: settings, share: 100 },
    Target { name: "app_server::record", seeds: record_seeds, holds: recorded, share: 50 },
    Target { name: "app_server::secrets", seeds: secret_seeds, holds: secrets, share: 50 },
    Target { name: "codex_cli::version", seeds: version_seeds, holds: version, share: 20 },
    Target { name: "redact", seeds: redact_seeds, holds: redact, share: 20 },
];

/// Lines as Codex 0.169.0 wrote them, one of a kind.
const LINES: &str = include_str!("seeds/app_server.jsonl");

/// Kinds that those lines have none of.
const MORE: &[&str] = &[
    r#"{"method":"item/completed","params":{"item":{"type":"mcpToolCall","id":"i","server":"s","tool":"t","status":"failed","arguments":{"a":[1]},"result":{"content":[{"type":"text","text":"x"}],"structuredContent":null},"error":{"message":"m"},"durationMs":7},"threadId":"t","turnId":"u"}}"#,
    r#"{"method":"item/completed","params":{"item":{"type":"collabAgentToolCall","id":"i","tool":"spawnAgent","status":"completed","senderThreadId":"t","receiverThreadIds":["c"],"prompt":"p","agentsStates":{"c":{"status":"running","message":null}}},"threadId":"t","turnId":"u"}}"#,
    r#"{"method":"item/completed","params":{"item":{"type":"webSearch","id":"i","query":"q","action":{"type":"search","query":"q"}},"threadId":"t","turnId":"u"}}"#,
    r#"{"method":"item/completed","params":{"item":{"type":"imageGeneration","id":"i","status":"completed","result":"iVBORw0KGgo=","revisedPrompt":null,"savedPath":"/a.png"},"threadId":"t","turnId":"u"}}"#,
    r#"{"method":"error","params":{"error":{"message":"Rate limit reached. Please try again in 1m59.5s","codexErrorInfo":{"httpConnectionFailed":{"httpStatusCode":429}},"additionalDetails":"retry-after: 30"},"willRetry":true,"threadId":"t","turnId":"u"}}"#,
    r#"{"method":"mcpServer/startupStatus/updated","params":{"threadId":"t","name":"s","status":"failed","error":"no such file"}}"#,
    r#"{"method":"thread/goal/updated","params":{"threadId":"t","goal":{"objective":"o","status":"active"}}}"#,
    r#"{"id":3,"method":"mcpServer/elicitation/request","params":{"threadId":"t","turnId":"u","serverName":"s","mode":"form","message":"m","requestedSchema":{"type":"object","properties":{"a":{"type":"string","enum":["x","y"]},"n":{"type":"integer","minimum":1}},"required":["a"]}}}"#,
    r#"{"id":4,"method":"item/tool/call","params":{"threadId":"t","turnId":"u","callId":"c","tool":"look","arguments":{"n":1}}}"#,
    r#"{"id":"five","method":"execCommandApproval","params":{"conversationId":"t","callId":"c","command":["ls","-l"],"cwd":"/","reason":null,"parsedCmd":[]}}"#,
];

fn messages() -> Vec<Vec<u8>> {
    LINES.lines().chain(MORE.iter().copied()).map(|line| line.as_bytes().to_vec()).collect()
}

fn streams() -> Vec<Vec<u8>> {
    let all: Vec<&str> = LINES.lines().chain(MORE.iter().copied()).collect();
    let long = |kind: &str| {
        let text = "x".repeat(6_000);
        format!(
            r#"{{"method":"item/started","params":{{"item":{{"type":"{kind}","id":"i","text":"{text}"}}}}}}"#
        )
    };
    let long = [long("userMessage"), long("agentMessage")].map(String::into_bytes);
    all.chunks(3).map(|lines| lines.join("\n").into_bytes()).chain(long).collect()
}

#[derive(Debug, PartialEq)]
enum Seen {
    Line(Vec<u8>),
    Skipped(Box<message::SkippedLine>),
}

fn read(limits: LineLimits, stream: &[u8], cut: usize) -> Vec<Seen> {
    let mut lines = Lines::new(limits);
    let mut seen = Vec::new();
    let see = |piece: Piece<'_>| match piece {
        Piece::Line(line) => Seen::Line(line.to_vec()),
        Piece::Skipped(line) => Seen::Skipped(line),
    };
    for mut part in stream.chunks(cut) {
        while let Some(piece) = lines.next(&mut part) {
            seen.push(see(piece));
        }
    }
    seen.extend(lines.rest().map(see));
    seen
}

/// However the stream is cut, the same lines come out of it, and none that is too long.
fn lines(stream: &[u8]) {
    // As in earnest, more than the beginning of a line that tells what it is.
    let limits = LineLimits { any: 5_000, echo: 9_000 };
    let whole = read(limits, stream, usize::MAX);
    for cut in [1, 97] {
        assert_eq!(read(limits, stream, cut), whole);
    }
    let mut bytes = 0;
    for seen in &whole {
        bytes += 1 + match seen {
            Seen::Line(line) => {
                assert!(line.len() <= limits.echo && !line.contains(&b'\n'));
                line.len()
            }
            Seen::Skipped(line) => {
                assert!(line.bytes > limits.any as u64);
                _ = (decode::skipped(line), line.call());
                usize::try_from(line.bytes).unwrap()
            }
        };
    }
    assert!(bytes == stream.len() || bytes == stream.len() + 1);
}

/// What is told is an event that can be sent and read again.
fn message(line: &[u8]) {
    let Ok(Line::Inbound(inbound)) = message::parse(line) else { return };
    match inbound {
        Inbound::Told(told) => {
            _ = (told.is_retry(), told.is_of_lost_history(), told.is_of_an_item());
            assert!(told.bytes() <= line.len());
            if let decode::News::Event(event) = &told.news {
                is_sent_and_read(event.clone());
            }
            let raw = told.raw();
            let crate::model::event::Event::Raw(told) = &raw else { panic!("{raw:?}") };
            serde_json::from_str::<&serde_json::value::RawValue>(&told.json).unwrap();
            is_sent_and_read(raw);
        }
        Inbound::Asked(asked) => {
            let sent = asked.question.encode_to_vec();
            assert_eq!(pb::CodexRequest::decode(&*sent).unwrap(), asked.question);
            _ = asked.is_of_the_process();
        }
        Inbound::Skipped(line) => panic!("{line:?}"),
    }
}

fn is_sent_and_read(event: crate::model::event::Event) {
    let event = pb::TurnEvent { event: Some(event), ..Default::default() };
    assert_eq!(pb::TurnEvent::decode(&*event.encode_to_vec()).unwrap(), event);
}

/// A line that is skipped is known by the same words as one that is read.
fn whose(line: &[u8]) {
    let scanned = |cut: usize| {
        let mut scan = Scan::default();
        line.chunks(cut).for_each(|part| scan.feed(part));
        scan.end(0)
    };
    let skipped = scanned(usize::MAX);
    for cut in [1, 50] {
        assert_eq!(scanned(cut), skipped);
    }
    let Ok(Line::Inbound(inbound)) = message::parse(line) else { return };
    let scope = match &inbound {
        Inbound::Told(told) => &told.scope,
        Inbound::Asked(asked) => &asked.scope,
        Inbound::Skipped(_) => panic!("it was read"),
    };
    for (known, scope) in
        [(&skipped.thread_id, &scope.thread_id), (&skipped.turn_id, &scope.turn_id)]
    {
        if let (Some(known), Some(scope)) = (known, scope) {
            assert_eq!(known, scope, "{}", line.escape_ascii());
        }
    }
}

/// Whatever is asked can be declined, and an answer of any kind is taken or refused.
fn answers(lines: &[u8]) {
    let (line, answer) = halves(lines);
    let Ok(Line::Inbound(Inbound::Asked(asked))) = message::parse(line) else { return };
    _ = decode::decline(asked.call.method());
    let expected = Expected::of(&asked.question, 1 << 20);
    let json = String::from_utf8_lossy(answer).into_owned();
    let texts: Vec<String> = json.lines().map(str::to_owned).collect();
    for answer in [
        Answer::Approval(ApprovalAnswer {
            decision: json.len().try_into().unwrap_or_default(),
            exec_policy_amendment: texts.clone(),
            ..Default::default()
        }),
        Answer::Permissions(PermissionsAnswer {
            permissions_json: json.clone(),
            scope: 1,
            ..Default::default()
        }),
        Answer::UserQuestions(UserQuestionsAnswer {
            answers: vec![UserQuestionAnswer { question_id: "q1".to_owned(), answers: texts }],
        }),
        Answer::Elicitation(ElicitationAnswer {
            action: 1,
            content_json: json.clone(),
            ..Default::default()
        }),
    ] {
        if let Err(faults) = expected.take("r", answer) {
            assert!(!faults.is_empty() && faults.iter().all(|fault| !fault.field.is_empty()));
        }
    }
}

fn answer_seeds() -> Vec<Vec<u8>> {
    let answers = [
        r#"{"a":"x","n":1}"#,
        "the first",
        r#"{"network":{"enabled":true},"fileSystem":{"write":["/a"],"entries":[{"path":{"type":"path","path":"/a"},"access":"write"}]}}"#,
    ];
    let asked = messages()
        .into_iter()
        .filter(|line| matches!(message::parse(line), Ok(Line::Inbound(Inbound::Asked(_)))));
    asked.flat_map(|line| answers.map(|answer| [&line, answer.as_bytes()].join(&b'\n'))).collect()
}

/// The first line, and the rest.
fn halves(lines: &[u8]) -> (&[u8], &[u8]) {
    match lines.iter().position(|byte| *byte == b'\n') {
        Some(end) => (&lines[..end], &lines[end + 1..]),
        None => (lines, b""),
    }
}

fn history_seeds() -> Vec<Vec<u8>> {
    let turn = r#"{"id":"u","rootTurnId":"u","status":"failed","startedAt":1795881596,"completedAt":1795881597,"error":{"message":"m","codexErrorInfo":"other","additionalDetails":null},"items":[ITEM]}"#;
    let items = messages().into_iter().filter_map(|line| {
        let line: Value = serde_json::from_slice(&line).ok()?;
        let item = line["params"]["item"].as_object()?.clone();
        serde_json::to_string(&item).ok()
    });
    items.map(|item| turn.replace("ITEM", &item).into_bytes()).collect()
}

/// What Codex has kept can be told.
fn history(json: &[u8]) {
    let Ok(turn) = serde_json::from_slice::<&RawValue>(json) else { return };
    _ = (decode::root_turn_id(turn), decode::listed_item(turn));
    if let Some(turn) = decode::thread_turn(turn) {
        assert_eq!(pb::ThreadTurn::decode(&*turn.encode_to_vec()).unwrap(), turn);
    }
}

fn settings_seeds() -> Vec<Vec<u8>> {
    let told = messages().into_iter().filter_map(|line| {
        let line: Value = serde_json::from_slice(&line).ok()?;
        let settings = [&line["params"]["threadSettings"], &line["result"]];
        settings.into_iter().find(|it| !it["approvalPolicy"].is_null()).map(Value::to_string)
    });
    told.map(String::into_bytes).collect()
}

/// Nothing is wider than itself, unless nobody knows what it is.
fn settings(json: &[u8]) {
    let (one, other) = halves(json);
    let Ok(one) = serde_json::from_slice::<Value>(one) else { return };
    let other = serde_json::from_slice::<Value>(other).unwrap_or_else(|_| one.clone());
    let (one, other) = (Settings::told(&one), Settings::told(&other));
    _ = (one.wider_than(&other), other.lingers_beyond(&one), one.is_profile("a"));
    _ = one.works_elsewhere_than(&other);
    assert_eq!(one.works_elsewhere_than(&one), None);
    assert_eq!(one.asks_otherwise_than(&one), None);
}

fn record_seeds() -> Vec<Vec<u8>> {
    let lines = [
        r#"{"timestamp":"n","type":"event_msg","payload":{"type":"task_started","turn_id":"u"}}"#,
        r#"{"timestamp":"n","type":"turn_context","payload":{"turn_id":"u"}}"#,
        r#"{"timestamp":"n","type":"response_item","payload":{"type":"message","role":"user"}}"#,
        r#"{"timestamp":"n","type":"event_msg","payload":{"type":"item_completed","turn_id":"u","item":{"type":"UserMessage"}}}"#,
        r#"{"timestamp":"n","type":"event_msg","payload":{"type":"task_complete","turn_id":"u"}}"#,
        "",
    ];
    vec![lines.join("\n").into_bytes()]
}

fn recorded(lines: &[u8]) {
    record::recorded(lines, "u").unwrap();
}

fn secret_seeds() -> Vec<Vec<u8>> {
    [
        "[model_providers.x]\nenv_key = \"K\"\nexperimental_bearer_token = \"t\"\nquery_params = { key = \"v\" }\n\
         http_headers = { Authorization = \"Bearer abc\" }\n[mcp_servers.s]\nenv = { API_KEY = \"v\" }\nenv_vars = [\"TOKEN\", { name = \"SECRET\" }]\n",
        r#"{"OPENAI_API_KEY":"sk-1","tokens":{"id_token":"a","access_token":"b","refresh_token":"c"}}"#,
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

/// None of them is found where there is none: each stands in the text.
fn secrets(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    _ = secrets::of_login(text);
    if let Ok(table) = text.parse::<toml::Table>() {
        _ = secrets::of_config(&table);
    }
}

fn version_seeds() -> Vec<Vec<u8>> {
    ["codex-cli 0.169.0", "v0.170.0-alpha.3+build.5"].map(|text| text.as_bytes().to_vec()).to_vec()
}

/// As it is shown, it is read.
fn version(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    match text.parse::<CliVersion>() {
        Ok(version) => assert_eq!(version.to_string().parse::<CliVersion>().unwrap(), version),
        Err(error) => assert!(error.to_string().len() < 4096),
    }
}

const SECRET: &str = "sk-0123456789abcdef";

fn redact_seeds() -> Vec<Vec<u8>> {
    let texts = [
        format!("error: key {SECRET} is wrong\n"),
        format!("{SECRET}{SECRET}\n{}", &SECRET[..9]),
        format!("{{\"key\":\"{SECRET}\"}}"),
    ];
    texts.map(String::into_bytes).to_vec()
}

/// However a text is cut, no secret is in what is shown of it.
fn redact(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    let redactor = Redactor::new([SECRET.to_owned()]);
    let whole = redactor.text(text);
    assert!(!whole.contains(SECRET), "{whole}");
    for cut in [1, 5] {
        let mut pieces = Pieces::default();
        let characters: Vec<char> = text.chars().collect();
        let parts = characters.chunks(cut).map(|part| part.iter().collect());
        let mut shown: String = parts.map(|part| pieces.take(&redactor, part)).collect();
        shown += &pieces.end();
        assert!(!shown.contains(SECRET), "{shown}");
        assert_eq!(shown, whole);
    }
}
