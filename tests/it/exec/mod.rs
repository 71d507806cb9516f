//! `codex-sidecar exec` against the real `codex exec`: the same command lines on the same scripted
//! model must print the same and end with the same exit status. And the SDKs that start it.

mod human;

use std::collections::HashMap;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

use crate::support::{
    PATIENCE, Sidecar, codex_path, environment, eventually, make_repository, processes, within,
};

const BINARY: &str = env!("CARGO_BIN_EXE_codex-sidecar");

/// One of the two that are compared.
#[derive(Debug, Clone)]
struct Side {
    /// Where its turns work; a git repository. As long as the other's, because the model counts
    /// the characters that it is sent.
    work: PathBuf,
    /// The real one's CODEX_HOME; the drop-in needs none.
    home: Option<PathBuf>,
    address: String,
}

/// What a process came to.
#[derive(Debug)]
struct Ran {
    stdout: String,
    stderr: String,
    status: ExitStatus,
}

impl Side {
    fn command(&self) -> Command {
        let (program, name, value) = match &self.home {
            Some(home) => (codex_path(), "CODEX_HOME", home.as_os_str()),
            None => (Path::new(BINARY), "CODEX_SIDECAR_ADDR", self.address.as_ref()),
        };
        let mut command = Command::new(program);
        command
            .env_clear()
            .envs(environment(Path::new(env!("CARGO_TARGET_TMPDIR"))))
            .env(name, value)
            .arg("exec")
            .current_dir(&self.work)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Starts a turn; `{work}` and `{thread}` in the arguments are filled in.
    fn start(&self, turn: &Turn, thread_id: &str) -> Child {
        let work = self.work.display().to_string();
        let arguments = turn
            .arguments
            .iter()
            .map(|word| word.replace("{work}", &work).replace("{thread}", thread_id));
        self.command().args(arguments).spawn().expect("it starts")
    }

    async fn run(&self, turn: &Turn, thread_id: &str) -> Ran {
        let mut child = self.start(turn, thread_id);
        let mut stdin = child.stdin.take().unwrap();
        let prompt = turn.prompt.replace("{work}", &self.work.display().to_string());
        let feeding = async move {
            // It may end without having read all of it.
            let _ = stdin.write_all(prompt.as_bytes()).await;
        };
        let mut stdout = child.stdout.take().unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let pid = child.id().unwrap();
        let (mut out, mut err) = (Vec::new(), String::new());
        let reading = async {
            let mut signal = turn.signal;
            while stdout.read_buf(&mut out).await.unwrap() > 0 {
                let shows = String::from_utf8_lossy(&out).contains("command_execution");
                if let Some(signal) = signal.take_if(|_| shows) {
                    processes::signal(pid, signal);
                }
            }
        };
        let ran = async {
            let complaining = stderr.read_to_string(&mut err);
            let (_, (), complained) = tokio::join!(feeding, reading, complaining);
            complained.unwrap();
            child.wait().await.unwrap()
        };
        let status = within(PATIENCE, &format!("the end of {turn:?}"), ran).await;
        Ran { stdout: String::from_utf8(out).unwrap(), stderr: err, status }
    }
}

#[derive(Debug, Clone)]
struct Turn {
    arguments: Vec<String>,
    prompt: String,
    /// Sent as soon as a command is shown.
    signal: Option<Signal>,
}

fn turn(prompt: impl Into<String>, arguments: &str) -> Turn {
    let arguments = arguments.split_whitespace().map(str::to_owned).collect();
    Turn { arguments, prompt: prompt.into(), signal: None }
}

/// With `--json` and no sandbox, which many containers can't do; the prompt comes from stdin.
fn plain(prompt: impl Into<String>) -> Turn {
    turn(prompt, "--experimental-json --sandbox danger-full-access -")
}

fn with(prompt: impl Into<String>, arguments: &str) -> Turn {
    turn(prompt, &format!("--json --sandbox danger-full-access {arguments}"))
}

/// A scripted conversation.
struct Case {
    name: &'static str,
    turns: Vec<Turn>,
    /// What the last turn must have printed, so that a case that went wrong on both sides is seen.
    shows: &'static str,
    status: i32,
}

fn case(name: &'static str, turns: Vec<Turn>, shows: &'static str) -> Case {
    Case { name, turns, shows, status: 0 }
}

fn failing(name: &'static str, turn: Turn, shows: &'static str) -> Case {
    Case { name, turns: vec![turn], shows, status: 1 }
}

fn wrong(name: &'static str, turn: Turn) -> Case {
    Case { name, turns: vec![turn], shows: "", status: 2 }
}

/// A transparent pixel.
const PNG: &[u8] = &[
    0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a, 0, 0, 0, 0x0d, 0x49, 0x48, 0x44, 0x52, 0, 0, 0,
    1, 0, 0, 0, 1, 8, 6, 0, 0, 0, 0x1f, 0x15, 0xc4, 0x89, 0, 0, 0, 0x0d, 0x49, 0x44, 0x41, 0x54,
    0x78, 0xda, 0x63, 0x64, 0x60, 0xf8, 0x5f, 0x0f, 0, 2, 0x87, 1, 0x80, 0xeb, 0x47, 0xba, 0x92, 0,
    0, 0, 0, 0x49, 0x45, 0x4e, 0x44, 0xae, 0x42, 0x60, 0x82,
];

const SCHEMA: &str = r#"{"type":"object","properties":{"a":{"type":"string"}},"required":["a"],"additionalProperties":false}"#;

/// As light as it can be: on a loaded machine an interpreter takes longer to start than Codex waits.
const MCP_SERVER: &str = r#"
while read -r line; do
    id=${line#*\"id\":}
    id=${id%%[,\}]*}
    version=${line#*\"protocolVersion\":\"}
    version=${version%%\"*}
    case $line in
    *\"initialize\"*)
        result='{"protocolVersion":"'$version'","capabilities":{"tools":{}},"serverInfo":{"name":"t","version":"1"}}' ;;
    *\"tools/list\"*)
        schema='{"type":"object","properties":{"x":{"type":"string"}}}'
        result='{"tools":[{"name":"echo","description":"e","inputSchema":'$schema'}]}' ;;
    *\"tools/call\"*)
        result='{"content":[{"type":"text","text":"hi"}],"structuredContent":{"z":1,"a":[null]}}' ;;
    *\"notifications/*) continue ;;
    *) result='{}' ;;
    esac
    printf '{"jsonrpc":"2.0","id":%s,"result":%s}\n' "$id" "$result"
done
"#;

fn cases() -> Vec<Case> {
    let mebibyte = "x".repeat(1 << 20);
    let resumed = |arguments: &str| with("and again", arguments);
    let signalled = |prompt: &str, signal| Turn { signal: Some(signal), ..plain(prompt) };
    vec![
        case("a plain turn", vec![plain("hello")], "You said: hello"),
        case(
            "a resumed thread, the TypeScript SDK's way",
            vec![plain("one"), resumed("resume {thread}"), resumed("resume {thread}")],
            "user messages so far: 3",
        ),
        case(
            "a resumed thread, the Python SDK's way",
            vec![plain("one"), resumed("resume --image {work}/a.png -- {thread} -")],
            "user messages so far: 2",
        ),
        case("a command", vec![plain("[[run echo hi]] [[say done]]")], "exit_code\":0"),
        case("a failing command", vec![plain("[[run echo no; exit 3]]")], "exit_code\":3"),
        case("no such command", vec![plain("[[run no-such-command]]")], "exit_code\":127"),
        case(
            "commands with much output",
            vec![plain("[[run seq 1 5000]] [[run printf 'a\\tb\\0c']]")],
            "item_1",
        ),
        case(
            "file changes of every kind",
            vec![plain(
                "[[write notes.txt done]] [[patch *** Update File: notes.txt\n@@\n-done\n+more\n]] \
                 [[patch *** Delete File: notes.txt]]",
            )],
            "\"kind\":\"delete\"",
        ),
        case(
            "a patch that does not apply",
            vec![plain("[[patch *** Update File: nowhere.txt\n@@\n-a\n+b\n]] [[say sorry]]")],
            "sorry",
        ),
        case(
            "a todo list",
            vec![plain("[[plan a; b; c]] [[run true]] [[plan a; d]] [[say first]] [[say done]]")],
            "todo_list",
        ),
        case("thoughts", vec![plain("[[reason let me see]] [[say so]]")], "\"reasoning\""),
        case(
            "structured output",
            vec![with(r#"[[json {"a": "b"}]]"#, "--output-schema {work}/schema.json -")],
            r#"{\"a\": \"b\"}"#,
        ),
        case(
            "what the model is told of the schema",
            vec![with("[[show /text]]", "--output-schema {work}/schema.json -")],
            "codex_output_schema",
        ),
        case(
            "the model and the effort",
            vec![with(
                "[[show /reasoning/effort]] [[show /model]]",
                "--model offline-model -c model_reasoning_effort=\"high\" -",
            )],
            "offline-model",
        ),
        case("an image", vec![with("look", "--image {work}/a.png")], "look"),
        case("an image and a dash", vec![with("look", "--image {work}/a.png -")], "look"),
        case("two images", vec![with("look", "--image {work}/a.png,{work}/a.png")], "look"),
        failing(
            "a directory outside a repository",
            with("hello", "--cd / -"),
            "Not inside a trusted directory and --skip-git-repo-check was not specified.",
        ),
        case(
            "the same, wanted",
            vec![with("hello", "--cd / --skip-git-repo-check -")],
            "You said: hello",
        ),
        failing("a directory that is not there", with("hello", "--cd {work}/nowhere -"), ""),
        failing(
            "an unknown thread",
            with("hello", "resume 01a2027c-e0ba-7870-bb86-73c090781e3b -"),
            "no rollout found for thread id 01a2027c-e0ba-7870-bb86-73c090781e3b",
        ),
        failing("401", plain("[[status 401]]"), "turn.failed"),
        failing("429", plain("[[status 429 1]]"), "429 Too Many Requests"),
        failing("500", plain("[[status 500]]"), "turn.failed"),
        failing("400", plain("[[status 400]]"), "turn.failed"),
        failing("a full window", plain("[[fail context_length_exceeded]]"), "ran out of room"),
        failing("a cut connection", plain("[[cut]]"), "stream disconnected"),
        failing(
            "a failure after work",
            plain("[[plan a; b]] [[run echo hi]] [[status 500]]"),
            "\"completed\":true",
        ),
        failing(
            "retries",
            with("[[status 500]]", "-c model_providers.offline.stream_max_retries=2 -"),
            "Reconnecting... 2/2",
        ),
        failing(
            "interrupted by SIGINT",
            signalled("[[plan a; b]] [[run sleep 47]]", Signal::INT),
            "command_execution",
        ),
        Case {
            // No exit status: killed by the signal.
            status: -15,
            ..failing(
                "ended by SIGTERM",
                signalled("[[run sleep 48]]", Signal::TERM),
                "command_execution",
            )
        },
        case("a prompt of 1 MiB", vec![plain(mebibyte)], "xxx"),
        case("unicode", vec![plain("wörld 🚀 \u{202e}日本\u{301}\n\"\\ [[say é\u{7f}\t]]")], "é"),
        case("many deltas", vec![plain("[[words 2000]]")], "w2000"),
        case("a long message", vec![plain("[[bytes 300000]]")], "0123456789abcdef"),
        case("a blank prompt", vec![with("", "prompt")], "You said: prompt"),
        failing("no prompt", plain(" \n"), "No prompt provided via stdin."),
        case(
            "a prompt argument and stdin",
            vec![with("piped", "prompt")],
            "<stdin>\\npiped\\n</stdin>",
        ),
        case(
            "an unknown model",
            vec![with("hello", "--model mystery -")],
            "metadata for `mystery`",
        ),
        case(
            "a wish to leave the sandbox",
            vec![plain(
                "[[tool exec_command {\"cmd\": \"ls\", \"sandbox_permissions\": \
                 \"require_escalated\", \"justification\": \"may I?\"}]]",
            )],
            "You said",
        ),
        case(
            "a tool of an MCP server",
            vec![with(
                "[[tool t.echo {\"x\": \"y\"}]]",
                "-c mcp_servers.t.command=\"sh\" -c mcp_servers.t.args=[\"{work}/mcp.sh\"] \
                 -c mcp_servers.t.startup_timeout_sec=60 -c mcp_servers.t.required=true -",
            )],
            "structured_content\":{\"z\":1,\"a\":[null]}",
        ),
        case("an ephemeral thread", vec![with("hello", "--ephemeral -")], "You said: hello"),
        case(
            "a review of what is changed",
            vec![with("", "review --uncommitted --output-schema {work}/no")],
            "prioritized findings",
        ),
        case(
            "a review of a commit with a title",
            vec![with("", "review --commit 0123456789 --title T --ephemeral")],
            "introduced by commit 0123456789 (\\\"T\\\")",
        ),
        case(
            "a review by instructions that does something",
            vec![with("[[reason so]] [[run echo hi]] [[plan a; b]] [[say all well]]", "review -")],
            "all well",
        ),
        failing(
            "a review that fails",
            with("[[status 500]]", "review -"),
            "Review was interrupted",
        ),
        failing("a review of nothing", with("", "review"), "Specify --uncommitted, --base"),
        failing("a blank review", with(" ", "review -"), "No prompt provided via stdin."),
        wrong("a review of two things", with("", "review --uncommitted --base main")),
        failing("no schema there", with("hello", "--output-schema {work}/no -"), "No such file"),
        failing("a broken schema", with("hello", "--output-schema {work}/a.png -"), "schema"),
        failing("a broken override", with("hello", "-c nonsense -"), "missing '='"),
        wrong("an unknown flag", with("hello", "--nonsense -")),
        wrong("an unknown sandbox", turn("hello", "--json --sandbox nope -")),
        wrong("two prompts", with("hello", "one two")),
    ]
}

/// Two sides on one scripted model.
async fn sides(sidecar: &Sidecar) -> [Side; 2] {
    let root = sidecar.place.path();
    // As long as the sidecar's, for the same reason.
    let home = root.join(".plain");
    std::fs::create_dir(&home).unwrap();
    let mut settings = sidecar.model.config_overrides();
    // As in the sidecar: a login shell per thread, left behind when its Codex ends.
    settings.push("features.shell_snapshot=false".to_owned());
    std::fs::write(home.join("config.toml"), settings.join("\n")).unwrap();
    let address = sidecar.addresses[0].to_string();
    ["one-work", "two-work"].map(|name| {
        let work = root.join(name);
        make_repository(&work);
        std::fs::write(work.join("a.png"), PNG).unwrap();
        std::fs::write(work.join("schema.json"), SCHEMA).unwrap();
        std::fs::write(work.join("mcp.sh"), MCP_SERVER).unwrap();
        let home = (name == "one-work").then(|| home.clone());
        Side { work, home, address: address.clone() }
    })
}

/// The output with all that may differ masked: ids in the order in which they appear, the
/// directory, and the counts of input tokens where the model was sent times and ids.
fn normalised(ran: &Ran, side: &Side) -> Vec<String> {
    let text = ran.stdout.replace(&side.work.display().to_string(), "<work>");
    let text = masked_uuids(&text);
    text.lines()
        .map(|line| {
            let event: Value =
                serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            if event["type"] == "turn.completed" { event.to_string() } else { line.to_owned() }
        })
        .collect()
}

/// What the second side counted, with the first side's counts in its place where they are as good as
/// equal: a time, an id or a path is a few characters longer or shorter.
fn with_near_counts(expected: &[String], got: Vec<String>) -> Vec<String> {
    const NEAR: u64 = 64;
    let near = |expected: &str, got: &str| -> Option<String> {
        let expected: Value = serde_json::from_str(expected).ok()?;
        let mut got: Value = serde_json::from_str(got).ok()?;
        for count in ["input_tokens", "cached_input_tokens"] {
            let (ours, theirs) =
                (got["usage"][count].as_u64()?, expected["usage"][count].as_u64()?);
            if ours.abs_diff(theirs) <= NEAR {
                got["usage"][count] = theirs.into();
            }
        }
        Some(got.to_string())
    };
    got.into_iter()
        .enumerate()
        .map(|(at, got)| expected.get(at).and_then(|expected| near(expected, &got)).unwrap_or(got))
        .collect()
}

fn masked_uuids(text: &str) -> String {
    let mut seen: HashMap<&str, usize> = HashMap::new();
    let mut masked = String::with_capacity(text.len());
    let (mut at, mut kept) = (0, 0);
    while let Some(candidate) = text.as_bytes().get(at..at + 36) {
        let is_uuid = candidate.iter().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => *byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        });
        if is_uuid {
            let next = seen.len();
            let number = *seen.entry(&text[at..at + 36]).or_insert(next);
            masked.push_str(&text[kept..at]);
            masked.push_str(&format!("<id {number}>"));
            at += 36;
            kept = at;
        } else {
            at += 1;
        }
    }
    masked.push_str(&text[kept..]);
    masked
}

fn thread_id(ran: &Ran) -> String {
    let first = ran.stdout.lines().next().unwrap_or_default();
    let event: Value = serde_json::from_str(first).unwrap_or_default();
    event["thread_id"].as_str().unwrap_or_default().to_owned()
}

/// The status as in a shell's `$?`, or the signal below zero.
fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| -status.signal().unwrap())
}

async fn compare(case: &Case, sides: &[Side; 2]) -> Result<(), String> {
    let mut threads = [String::new(), String::new()];
    let mut last = None;
    for (number, turn) in case.turns.iter().enumerate() {
        let (real, drop_in) =
            tokio::join!(sides[0].run(turn, &threads[0]), sides[1].run(turn, &threads[1]),);
        threads = [thread_id(&real), thread_id(&drop_in)];
        // Outputs of tools hold times and ids, which the model counts. And where `--image` swallows
        // the dash, the real one tells the model of an image called `-` that it can't find.
        let calls = ["[[run", "[[tool", "[[patch", "[[write", "[[plan"];
        let exact = !calls.iter().any(|call| turn.prompt.contains(call))
            && !turn.arguments.ends_with(&["{work}/a.png".to_owned(), "-".to_owned()]);
        let (expected, got) = (normalised(&real, &sides[0]), normalised(&drop_in, &sides[1]));
        let got = if exact { got } else { with_near_counts(&expected, got) };
        if expected != got || code(real.status) != code(drop_in.status) {
            return Err(format!(
                "{}, turn {number}:\n--- codex exec ({})\n{}\n{}\n--- codex-sidecar exec \
                 ({})\n{}\n{}\n",
                case.name,
                real.status,
                cut(&expected.join("\n")),
                cut(&real.stderr),
                drop_in.status,
                cut(&got.join("\n")),
                cut(&drop_in.stderr),
            ));
        }
        last = Some((real, drop_in));
    }
    let (real, drop_in) = last.unwrap();
    for ran in [&real, &drop_in] {
        let all = format!("{}{}", ran.stdout, ran.stderr);
        if !all.contains(case.shows) || code(ran.status) != case.status {
            return Err(format!(
                "{}: both did the same, but not what was meant: {}\n{}",
                case.name,
                ran.status,
                cut(&all)
            ));
        }
    }
    Ok(())
}

fn cut(text: &str) -> String {
    text.chars().take(4000).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_drop_in_prints_what_codex_exec_prints() {
    let sidecar = Sidecar::with(|config| {
        config.workers = 2;
        let allowed = ["mcp_servers.t.*", "model_providers.offline.stream_max_retries"];
        config.policy.config_keys = allowed.map(str::to_owned).into();
    })
    .await;
    let sides = sides(&sidecar).await;
    let cases = cases();
    let wanted = std::env::var("EXEC_CASE").unwrap_or_default();
    let mut differences = Vec::new();
    let mut turns = 0;
    for case in cases.iter().filter(|case| case.name.contains(&wanted)) {
        let began = Instant::now();
        turns += case.turns.len();
        if let Err(difference) = compare(case, &sides).await {
            differences.push(difference);
        }
        eprintln!("{:>6} ms  {}", began.elapsed().as_millis(), case.name);
    }
    assert!(differences.is_empty(), "{} differ:\n{}", differences.len(), differences.join("\n"));
    eprintln!("{} cases with {turns} turns are alike", cases.len());
    assert!(turns >= 20 || !wanted.is_empty());
    // Nothing of it was bound.
    assert_eq!(sidecar.info().await.counts.unwrap().contexts, 0);
    // Interrupted turns have ended, and so have their commands.
    eventually("the end of all turns", || async {
        (sidecar.info().await.counts.unwrap().running_turns == 0).then_some(())
    })
    .await;
    eventually("the end of all commands", || async {
        let home = sidecar.place.codex_home();
        processes::of_home(&home)
            .iter()
            .all(|process| !process.command.contains("sleep 4"))
            .then_some(())
    })
    .await;
}

/// The drop-in alone.
fn drop_in(sidecar: &Sidecar) -> Side {
    let address = sidecar.addresses[0].to_string();
    Side { work: sidecar.place.work(), home: None, address }
}

async fn finished(mut command: Command, prompt: &str) -> Ran {
    let mut child = command.spawn().expect("it starts");
    let mut stdin = child.stdin.take().unwrap();
    let _ = stdin.write_all(prompt.as_bytes()).await;
    drop(stdin);
    let output = within(PATIENCE, "its end", child.wait_with_output()).await.unwrap();
    Ran {
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
        status: output.status,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_context_binds_the_turns_and_a_thread_is_filed_as_the_real_one_does() {
    let sidecar = Sidecar::start().await;
    let side = drop_in(&sidecar);
    let run = |words: &'static str, context: Option<&'static str>, arguments: &'static [&str]| {
        let mut command = side.command();
        command.args(["--json"]).args(arguments);
        if let Some(context) = context {
            command.env("CODEX_SIDECAR_CONTEXT", context);
        }
        finished(command, words)
    };
    let first = run("one", Some("ctx"), &["-"]).await;
    let second = run("two", Some("ctx"), &["-"]).await;
    assert!(second.stdout.contains("two (user messages so far: 2)"), "{second:?}");
    assert_eq!(thread_id(&first), thread_id(&second));
    assert_eq!(sidecar.context("ctx").await.unwrap().thread_id, thread_id(&first));

    // Without one nothing is bound, and the thread is found again by its id.
    let unbound = run("one", None, &["--thread-source", "batch", "-"]).await;
    assert_ne!(thread_id(&unbound), thread_id(&first));
    let mut command = side.command();
    command
        .args(["--json", "resume", &thread_id(&unbound), "-"])
        .env("CODEX_SIDECAR_CONTEXT", "c2");
    let rebound = finished(command, "two").await;
    assert!(rebound.stdout.contains("user messages so far: 2"), "{rebound:?}");
    assert_eq!(sidecar.context("c2").await.unwrap().thread_id, thread_id(&unbound));
    assert_eq!(sidecar.info().await.counts.unwrap().contexts, 2);

    let sources: Vec<String> = sidecar
        .place
        .rollouts()
        .iter()
        .map(|rollout| {
            let text = std::fs::read_to_string(rollout).unwrap();
            let meta: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
            meta["payload"]["thread_source"].as_str().unwrap_or_default().to_owned()
        })
        .collect();
    assert_eq!(sources, ["user", "batch"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_message_goes_to_a_file_and_what_cant_be_honoured_is_refused() {
    let sidecar = Sidecar::start().await;
    let side = drop_in(&sidecar);
    let mut command = side.command();
    command.args(["--json", "-o", "last.txt", "-"]);
    let ran = finished(command, "[[say first]] [[say last\nof all]]").await;
    assert!(ran.status.success(), "{ran:?}");
    assert_eq!(std::fs::read_to_string(side.work.join("last.txt")).unwrap(), "last\nof all");

    let lines: [(&[&str], &str); 7] = [
        (&["--json", "--oss", "-"], "--oss can't be honoured"),
        (&["--json", "resume", "a name", "-"], "not by names"),
        (
            &["--json", "-c", "sandbox_workspace_write.exclude_slash_tmp=true", "-"],
            "can't be honoured",
        ),
        (&["--json", "--image", "nowhere.png", "-"], "nowhere.png"),
        (
            &["--json", "-c", "notify=[\"touch\", \"x\"]", "-"],
            "-c notify: is no key that callers may set here; who runs the sidecar can allow it with \
             [policy] config_keys",
        ),
        (&["--json", "-c", "model_providers={x={base_url=\"u\"}}", "-"], "[policy] config_keys"),
        (&["--json", "--enable", "goals", "-"], "-c features.goals: is no key"),
    ];
    let before = sidecar.model.requests();
    for (arguments, why) in lines {
        let mut command = side.command();
        command.args(arguments);
        let ran = finished(command, "hello").await;
        assert!(!ran.status.success() && ran.stdout.is_empty(), "{arguments:?}: {ran:?}");
        // A command line that can't be read is 2, as with the real one.
        if why.contains("key") {
            assert_eq!(ran.status.code(), Some(1), "{arguments:?}: {ran:?}");
        }
        assert!(ran.stderr.contains(why), "{arguments:?}: {ran:?}");
    }
    assert_eq!(sidecar.model.requests(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_differ_are_told_and_never_forwarded() {
    let sidecar = Sidecar::start().await;
    let mut command = drop_in(&sidecar).command();
    command
        .args(["--json", "-"])
        .env("CODEX_API_KEY", "sk-canary")
        .env("OPENAI_BASE_URL", "http://127.0.0.1:9/v1");
    let ran = finished(command, "hello").await;
    // The turn went to the sidecar's own provider all the same.
    assert!(ran.status.success(), "{ran:?}");
    let told: Vec<&str> = ran.stderr.lines().collect();
    assert_eq!(told.len(), 2, "{ran:?}");
    assert!(
        told[0].contains("OPENAI_BASE_URL (http://127.0.0.1:9/v1) is not forwarded"),
        "{ran:?}"
    );
    assert!(told[1].contains("CODEX_API_KEY is not forwarded"), "{ran:?}");
    assert!(!ran.stderr.contains("canary"), "{ran:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sidecars_own_key_raises_no_warning() {
    use codex_sidecar::parts::config::ApiKey;
    let sidecar = Sidecar::with(|config| {
        config.api_key =
            Some(ApiKey { secret: "sk-canary".to_owned().into(), source: "CODEX_API_KEY".into() });
    })
    .await;
    let info = sidecar.info().await;
    assert_eq!(info.api_key_fingerprint.len(), 16);
    for (key, warnings) in [("sk-canary", 0), ("sk-other", 1)] {
        let mut command = drop_in(&sidecar).command();
        command.args(["--json", "-"]).env("CODEX_API_KEY", key);
        let ran = finished(command, "hello").await;
        assert_eq!(ran.stderr.lines().count(), warnings, "{ran:?}");
    }
}

#[tokio::test]
async fn without_a_sidecar_it_says_so_within_a_second() {
    // Bound and let go: nobody listens there. The other address drops what is sent to it.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let full: Vec<_> =
        (0..2).map(|_| std::net::TcpStream::connect(silent.local_addr().unwrap())).collect();
    for address in [
        format!("127.0.0.1:{port}"),
        "unix:/no/such/socket".to_owned(),
        "192.0.2.1:50061".to_owned(),
    ] {
        let mut command =
            Side { work: std::env::temp_dir(), home: None, address: address.clone() }.command();
        command.args(["--json", "-"]);
        let began = Instant::now();
        let ran = finished(command, "hello").await;
        let took = began.elapsed();
        assert_eq!(code(ran.status), 1, "{ran:?}");
        assert!(ran.stdout.is_empty(), "{ran:?}");
        assert!(ran.stderr.contains(&address), "{ran:?}");
        assert!(ran.stderr.contains("codex-sidecar serve"), "{ran:?}");
        // A second, and what this machine takes at the moment to start a program.
        let began = Instant::now();
        let version = Command::new(BINARY).arg("--version").output().await.unwrap();
        assert!(version.status.success(), "{version:?}");
        let limit = Duration::from_secs(1) + 20 * began.elapsed();
        assert!(took < limit, "{address}: {took:?}, and {limit:?} are allowed");
    }
    drop(full);
}

/// Another language's script that tests an SDK, with the drop-in as its Codex CLI.
async fn sdk(script: &str, variable: &str) {
    let sidecar = Sidecar::with(|config| config.workers = 2).await;
    let mut command = Command::new(format!("{}/{script}", env!("CARGO_MANIFEST_DIR")));
    // The rest of the environment stays: what installs the SDK needs its proxies and its caches.
    for (name, _) in std::env::vars_os() {
        let spoken = name.to_string_lossy();
        if ["CODEX_", "OPENAI_", "GIT_"].iter().any(|prefix| spoken.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
    command
        .env("CODEX_SIDECAR_ADDR", sidecar.addresses[0].to_string())
        .env(variable, BINARY)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let child = command.spawn().expect("it starts");
    // An installation from the registry is in it.
    let limit = Duration::from_secs(300);
    let output = within(limit, script, child.wait_with_output()).await.unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {}\n{told}\n{complained}", output.status);
    eprintln!("{told}");
    // What the SDK ended, the sidecar has ended too.
    eventually("the end of all turns", || async {
        (sidecar.info().await.counts.unwrap().running_turns == 0).then_some(())
    })
    .await;
    assert_eq!(sidecar.info().await.counts.unwrap().contexts, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn openai_agents_keeps_its_thread_with_nothing_changed_but_codex_path() {
    sdk("tests/sdk/python/run.sh", "CODEX_PATH").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_typescript_sdk_does_all_it_can_with_nothing_changed_but_codex_path_override() {
    sdk("tests/sdk/typescript/run.sh", "CODEX_SIDECAR").await;
}
