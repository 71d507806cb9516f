//! What `exec` tells people, the commands that begin elsewhere than with `exec`, and what goes on with
//! the last thread.

use std::path::Path;
use std::process::Stdio;

use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

use super::{Ran, Side, Turn, code, cut, drop_in, finished, masked_uuids, sides, thread_id, turn};
use crate::support::{PATIENCE, Sidecar, codex_path, environment, eventually, within};

/// A command line of both; `{work}` is each one's own directory.
struct Case {
    name: &'static str,
    turn: Turn,
    /// What must have been told, so that a case that went wrong on both sides is seen.
    shows: &'static str,
    status: i32,
}

fn case(name: &'static str, prompt: &str, arguments: &str, shows: &'static str) -> Case {
    let arguments = format!("--sandbox danger-full-access {arguments}");
    Case { name, turn: turn(prompt, &arguments), shows, status: 0 }
}

fn failing(name: &'static str, prompt: &str, arguments: &str, shows: &'static str) -> Case {
    Case { status: 1, ..case(name, prompt, arguments, shows) }
}

fn cases() -> Vec<Case> {
    let work = "[[reason let me see]] [[run echo hi; sleep 0.3; echo no >&2]] [[run exit 3]] [[run echo]] \
                [[plan a; b; c]] [[write notes.txt one\ntwo]] \
                [[patch *** Update File: notes.txt\n@@\n-one\n+three\n]] [[say first]] [[say last]]";
    vec![
        case("a plain turn", "hello", "-", "tokens used\n"),
        case("all that a turn does", work, "-", "@@ -0,0 +1,2 @@"),
        case("the same in colours", work, "--color always -", "\u{1b}[35m\u{1b}[3mcodex"),
        case("without colours", "hello", "--color never", "Reading prompt from stdin...\n"),
        case("a prompt argument and stdin", "piped", "prompt", "<stdin>\npiped\n</stdin>"),
        case("a prompt argument alone", "", "prompt", "Reading additional input from stdin..."),
        case(
            "the model and the effort",
            "hi",
            "-m mystery -c model_reasoning_effort=\"high\" -",
            "reasoning effort: high",
        ),
        case("hidden thoughts", "[[reason secret]] hi", "-c hide_agent_reasoning=true -", "hi"),
        case("a directory", "hello", "--cd / --skip-git-repo-check -", "workdir: /\n"),
        case(
            "no message",
            "[[run true]] [[end]]",
            "-o last.txt -",
            "Warning: no last agent message",
        ),
        case(
            "a sub-agent",
            "[[tool spawn_agent {\"message\": \"[[say child]]\"}]] [[say bye]]",
            "-",
            "collab: SpawnAgent",
        ),
        case(
            "a tool of an MCP server",
            "[[tool t.echo {\"x\": \"y\"}]]",
            "-c mcp_servers.t.command=\"sh\" -c mcp_servers.t.args=[\"{work}/mcp.sh\"] \
             -c mcp_servers.t.startup_timeout_sec=60 -c mcp_servers.t.required=true -",
            "mcp: t/echo (completed)",
        ),
        case("an ephemeral thread", "hello", "--ephemeral -", "You said: hello"),
        case("a review", "", "review --uncommitted", "user\ncurrent changes\n"),
        case(
            "a review of a commit",
            "",
            "review --commit 0123456789 --title T",
            "user\ncommit 0123456: T\n",
        ),
        case(
            "a review by instructions",
            " [[reason so]] [[run echo hi]] [[say all well]]\n",
            "outer review -",
            "user\n[[reason so]]",
        ),
        failing(
            "a review that fails",
            "[[status 500]]",
            "review -",
            "codex\nReview was interrupted",
        ),
        failing("a full window", "[[fail context_length_exceeded]]", "-", "tokens used\n0\n"),
        failing(
            "a full window of a review",
            "[[fail context_length_exceeded]]",
            "review -",
            "ran out of room",
        ),
        failing("no prompt", " \n", "-", "No prompt provided via stdin.\n"),
        failing("an untrusted directory", "hello", "--cd / -", "Not inside a trusted directory"),
        failing("a broken override", "hello", "-c nonsense -", "Error parsing -c overrides: "),
        failing(
            "no schema",
            "hello",
            "--output-schema {work}/no -",
            "Failed to read output schema",
        ),
        failing("a broken schema", "hello", "--output-schema {work}/a.png -", "Failed to read"),
        failing("no place for the message", "hello", "-o /no/such/file -", "Error: Failed to open"),
        failing("a review of nothing", "", "review", "Error: Specify --uncommitted, --base"),
        failing("401", "[[status 401]]", "-", "ERROR: unexpected status 401"),
        failing(
            "a failure after work",
            "[[run echo hi]] [[status 500]]",
            "--color always -",
            "hi\n",
        ),
        failing(
            "retries",
            "[[status 500]]",
            "-c model_providers.offline.stream_max_retries=2 -",
            "ERROR: Reconnecting... 2/2",
        ),
    ]
}

/// Standard error with all that may differ masked: ids, the directory, and how long commands took.
/// Counts of tokens are as good as equal where an id, a path or a time is a few characters longer.
fn told(ran: &Ran, side: &Side) -> Vec<String> {
    // Of its frames it tells nothing but their number.
    let without_frames = ran.stderr.split("\n\nStack backtrace:").next().unwrap_or_default();
    let text = masked_uuids(&without_frames.replace(&side.work.display().to_string(), "<work>"));
    let is_count =
        |line: &str| !line.is_empty() && line.chars().all(|c| c.is_ascii_digit() || c == ',');
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines() {
        let after_title = lines.last().is_some_and(|line| line.contains("tokens used"));
        // What Codex logs is no part of its output.
        let is_log = line.contains(" ERROR ") || line.contains("ERROR\u{1b}[0m \u{1b}[2mcodex");
        match line.split_once("ms:").and_then(|(start, rest)| Some((start.rsplit_once(' ')?, rest)))
        {
            _ if is_log => {}
            _ if after_title && is_count(line) => lines.push("<count>".to_owned()),
            Some(((start, _), rest)) => lines.push(format!("{start} <took>:{rest}")),
            None => lines.push(line.to_owned()),
        }
    }
    lines
}

async fn compare(case: &Case, sides: &[Side; 2]) -> Result<(), String> {
    let (real, drop_in) = tokio::join!(sides[0].run(&case.turn, ""), sides[1].run(&case.turn, ""));
    let (expected, got) = (told(&real, &sides[0]), told(&drop_in, &sides[1]));
    if expected != got || real.stdout != drop_in.stdout || code(real.status) != code(drop_in.status)
    {
        return Err(format!(
            "{}:\n--- codex exec ({})\n{}\n{}\n--- codex-sidecar exec ({})\n{}\n{}\n",
            case.name,
            real.status,
            cut(&real.stdout),
            cut(&expected.join("\n")),
            drop_in.status,
            cut(&drop_in.stdout),
            cut(&got.join("\n")),
        ));
    }
    if !drop_in.stderr.contains(case.shows) && !drop_in.stdout.contains(case.shows)
        || code(drop_in.status) != case.status
    {
        return Err(format!("{}: both did the same, but not what was meant", case.name));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn people_are_told_what_codex_exec_tells_them() {
    let sidecar = Sidecar::with(|config| {
        config.workers = 2;
        let allowed = ["mcp_servers.t.*", "model_providers.offline.stream_max_retries"];
        config.policy.config_keys = allowed.map(str::to_owned).into();
    })
    .await;
    let sides = sides(&sidecar).await;
    let wanted = std::env::var("EXEC_CASE").unwrap_or_default();
    let mut differences = Vec::new();
    for case in cases().iter().filter(|case| case.name.contains(&wanted)) {
        if let Err(difference) = compare(case, &sides).await {
            differences.push(difference);
        }
    }
    assert!(differences.is_empty(), "{} differ:\n{}", differences.len(), differences.join("\n"));
}

/// Runs on a terminal; gives what was shown there, too.
async fn on_a_terminal(command: Command, stdout_too: bool) -> (String, Ran) {
    let (mut pty, pts) = pty_process::open().unwrap();
    let command = command.as_std();
    let environment = command.get_envs().filter_map(|(name, value)| Some((name, value?)));
    let mut on_pts = pty_process::Command::new(command.get_program())
        .args(command.get_args())
        .env_clear()
        .envs(environment)
        .env("TERM", "xterm")
        .current_dir(command.get_current_dir().unwrap())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    if !stdout_too {
        on_pts = on_pts.stdout(Stdio::piped());
    }
    let child = on_pts.spawn(pts).expect("it starts");
    let mut shown = Vec::new();
    // It ends with an error, once nobody has the terminal open any more.
    let reading = async { while pty.read_buf(&mut shown).await.is_ok_and(|read| read > 0) {} };
    let running = async { tokio::join!(reading, child.wait_with_output()).1 };
    let output = within(PATIENCE, "its end", running).await.unwrap();
    let shown = String::from_utf8(shown).unwrap().replace("\r\n", "\n");
    let stdout = String::from_utf8(output.stdout).unwrap();
    (shown, Ran { stdout, stderr: String::new(), status: output.status })
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_terminal_there_are_colours_and_the_message_stands_once() {
    let sidecar = Sidecar::start().await;
    let sides = sides(&sidecar).await;
    for stdout_too in [false, true] {
        let mut shown = Vec::new();
        for side in &sides {
            let mut command = side.command();
            command.args(["--sandbox", "danger-full-access", "[[run true]] [[say the answer]]"]);
            let (shows, mut ran) = on_a_terminal(command, stdout_too).await;
            assert!(ran.status.success(), "{shows}");
            let colours = "\u{1b}[35m\u{1b}[3mcodex\u{1b}[0m\u{1b}[0m\nthe answer\n";
            assert!(shows.contains(colours), "{shows}");
            ran.stderr = shows;
            shown.push((told(&ran, side), ran.stdout));
        }
        assert_eq!(shown[0], shown[1]);
        assert_eq!(shown[1].1, if stdout_too { "" } else { "the answer\n" });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_of_codex_action_works_unchanged() {
    let sidecar = Sidecar::start().await;
    let side = drop_in(&sidecar);
    // As the action calls it: `codex` of the PATH, in whatever directory, with the prompt on stdin.
    let tools = sidecar.place.path().join("tools");
    std::fs::create_dir(&tools).unwrap();
    std::os::unix::fs::symlink(super::BINARY, tools.join("codex")).unwrap();
    let schema = sidecar.place.path().join("schema.json");
    std::fs::write(&schema, super::SCHEMA).unwrap();
    let output_file = sidecar.place.path().join("output.md");
    let mut command = Command::new(tools.join("codex"));
    command
        .env_clear()
        .envs(environment(sidecar.place.path()))
        .env("CODEX_SIDECAR_ADDR", &side.address)
        .env("CODEX_INTERNAL_ORIGINATOR_OVERRIDE", "codex_github_action")
        .current_dir("/")
        .args(["exec", "--skip-git-repo-check", "--cd"])
        .arg(&side.work)
        .arg("--output-last-message")
        .arg(&output_file)
        .arg("--output-schema")
        .arg(&schema)
        .args(["--model", "offline-model", "--config", "model_reasoning_effort=\"high\""])
        .args(["--sandbox", "danger-full-access"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let ran = finished(command, r#"[[run pwd > here]] [[json {"a": "b"}]]"#).await;
    assert!(ran.status.success(), "{ran:?}");
    let answer = r#"{"a": "b"}"#;
    assert_eq!(std::fs::read_to_string(&output_file).unwrap(), answer);
    assert_eq!(ran.stdout, format!("{answer}\n"));
    assert!(ran.stderr.contains("reasoning effort: high"), "{ran:?}");
    let here = std::fs::read_to_string(side.work.join("here")).unwrap();
    assert_eq!(Path::new(here.trim()), side.work);
}

#[tokio::test(flavor = "multi_thread")]
async fn options_may_stand_before_the_word_and_the_word_may_be_e() {
    let sidecar = Sidecar::start().await;
    let sides = sides(&sidecar).await;
    let lines: [(&[&str], i32); 5] = [
        (&["-m", "offline-model", "-s", "danger-full-access", "exec", "[[show /model]]"], 0),
        (&["--yolo", "-c", "model_reasoning_effort=\"low\"", "e", "[[show /reasoning/effort]]"], 0),
        (&["-m", "one", "e", "-m", "offline-model", "--yolo", "[[show /model]]"], 0),
        (&["--json", "exec", "hi"], 2),
        (&["-o", "x", "exec", "hi"], 2),
    ];
    for (line, status) in lines {
        let mut stdout = Vec::new();
        for side in &sides {
            let (program, name, value) = match &side.home {
                Some(home) => (codex_path(), "CODEX_HOME", home.as_os_str()),
                None => (Path::new(super::BINARY), "CODEX_SIDECAR_ADDR", side.address.as_ref()),
            };
            let mut command = Command::new(program);
            command
                .env_clear()
                .envs(environment(sidecar.place.path()))
                .env(name, value)
                .args(line)
                .current_dir(&side.work)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            let ran = finished(command, "").await;
            assert_eq!(code(ran.status), status, "{line:?}: {ran:?}");
            stdout.push(ran.stdout);
        }
        assert_eq!(stdout[0], stdout[1], "{line:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_thread_is_that_of_the_directory_or_of_the_context() {
    let sidecar = Sidecar::start().await;
    let side = drop_in(&sidecar);
    let run = |line: &'static str, context: Option<&'static str>, cd: Option<&'static str>| {
        let mut command = side.command();
        command.args(["--json", "--skip-git-repo-check"]);
        command.args(cd.into_iter().flat_map(|cd| ["--cd", cd])).args(line.split(' '));
        if let Some(context) = context {
            command.env("CODEX_SIDECAR_CONTEXT", context);
        }
        finished(command, "")
    };
    let none = run("resume --last more", None, None).await;
    assert_eq!(code(none.status), 1, "{none:?}");
    assert!(
        none.stderr.contains("resume --last: ") && none.stderr.contains("give the thread's id")
    );
    assert_eq!(sidecar.model.requests(), 0);

    let here = thread_id(&run("one", None, None).await);
    let bound = thread_id(&run("two", Some("c"), None).await);
    run("--ephemeral three", None, None).await;
    let there = thread_id(&run("four", None, Some("/")).await);
    for (line, context, cd, thread) in [
        ("resume --last more", None, None, &here),
        ("resume --last more", None, Some("/"), &there),
        ("resume --last more", Some("c"), None, &bound),
        ("resume --last --all more", None, None, &there),
    ] {
        let ran = run(line, context, cd).await;
        assert_eq!(&thread_id(&ran), thread, "{line} {context:?} {cd:?}: {ran:?}");
        assert!(ran.stdout.contains("You said: more"), "{ran:?}");
    }
    let unbound = run("resume --last more", Some("other"), None).await;
    assert_eq!(code(unbound.status), 1, "{unbound:?}");
    // It was the last of all before it was resumed here, and is the last here now.
    eventually("the end of all turns", || async {
        (sidecar.info().await.counts.unwrap().running_turns == 0).then_some(())
    })
    .await;
}
