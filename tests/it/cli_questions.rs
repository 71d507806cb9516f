//! The client where nobody sits at a terminal: what is asked, who answers, and the exit status; and the
//! subcommands beside `run`.

use std::process::{Output, Stdio};

use serde_json::Value;
use tokio::io::AsyncWriteExt as _;

use crate::support::binary::{self, Binary};
use crate::support::{eventually, within};

const UNTRUSTED: [&str; 4] = ["--sandbox", "danger-full-access", "--approval", "untrusted"];

async fn client(sidecar: &Binary, arguments: &[&str]) -> Output {
    let mut command = binary::command(&sidecar.place);
    command.args(arguments).env("CODEX_SIDECAR_ADDR", &sidecar.address);
    binary::output(&mut command).await
}

/// A turn of the context `script` under `untrusted`.
async fn run(sidecar: &Binary, more: &[&str]) -> Output {
    let work = sidecar.place.work().display().to_string();
    let fixed = ["run", "--context", "script", "--cd", &work];
    client(sidecar, &[&fixed[..], &UNTRUSTED, more].concat()).await
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    (text(&output.stdout), text(&output.stderr))
}

#[tokio::test]
async fn without_a_terminal_a_question_is_told_and_the_status_says_who_answered() {
    let sidecar = Binary::start().await;
    let made = |name: &str| sidecar.place.work().join(name).exists();

    let output = run(&sidecar, &["[[run touch unasked]]"]).await;
    let (answer, told) = texts(&output);
    assert_eq!(output.status.code(), Some(5), "{told}");
    assert!(answer.starts_with("You said: "), "{answer}");
    for words in ["touch unasked", "run it on a terminal", "--yes or --no", "--on-question=ask"] {
        assert!(told.contains(words), "{words}: {told}");
    }
    assert!(!made("unasked"));

    let output = run(&sidecar, &["--yes", "[[run touch yes]]"]).await;
    assert_eq!(output.status.code(), Some(0), "{output:#?}");
    assert!(made("yes"));
    let output = run(&sidecar, &["--no", "[[run touch no]]"]).await;
    assert_eq!(output.status.code(), Some(0), "a no is an answer: {output:#?}");
    assert!(!made("no"));

    let output = run(&sidecar, &["--on-question=fail", "[[run touch fail]]"]).await;
    let (answer, told) = texts(&output);
    assert_eq!((output.status.code(), answer.as_str()), (Some(5), ""), "{told}");
    assert!(told.contains("--on-question=fail") && !made("fail"), "{told}");
    let output = run(&sidecar, &["--on-question=decline", "[[run touch decline]]"]).await;
    assert_eq!(output.status.code(), Some(5), "{output:#?}");

    // A yes is no answer to a question.
    let output = run(&sidecar, &["--yes", "[[ask Which? | a | b]]"]).await;
    let (_, told) = texts(&output);
    assert_eq!(output.status.code(), Some(5), "{told}");
    assert!(told.contains("Which?") && told.contains("a yes is no answer"), "{told}");
    assert!(!told.contains("give --yes"), "it was given: {told}");
    // A script is told in its language, of the question and of the status.
    let output = run(&sidecar, &["--json", "[[run touch json]]"]).await;
    let (events, told) = texts(&output);
    assert_eq!(output.status.code(), Some(5));
    assert!(events.contains(r#""request_raised""#), "{events}");
    let told: Value = serde_json::from_str(&told).expect(&told);
    assert_eq!(told["error"]["exit_status"], 5, "{told}");
    sidecar.stop().await;
}

#[tokio::test]
async fn a_question_can_be_answered_from_elsewhere_and_a_turn_watched_steered_and_stopped() {
    let sidecar = Binary::start().await;
    let running = async |context: &str| {
        let found = eventually("a running turn", async || {
            let context = sidecar.context(context).await.ok()?;
            Some(context.running_turn_id).filter(|turn_id| !turn_id.is_empty())
        });
        found.await
    };
    let ask = run(&sidecar, &["--on-question=ask", "--quiet", "[[run touch elsewhere]]"]);
    let answering = async {
        let turn_id = running("script").await;
        // As soon as it is asked.
        let answered = eventually("the answer", async || {
            let output = client(&sidecar, &["answer", &turn_id, "--yes"]).await;
            (output.status.code() == Some(0)).then_some(output)
        });
        let (told, _) = texts(&answered.await);
        assert!(told.contains("is answered"), "{told}");
        turn_id
    };
    let (output, turn_id) = tokio::join!(ask, answering);
    let (_, told) = texts(&output);
    assert_eq!(output.status.code(), Some(0), "{told}");
    assert!(told.contains(&format!("codex-sidecar answer {turn_id}")), "{told}");
    assert!(sidecar.place.work().join("elsewhere").exists());
    let late = client(&sidecar, &["answer", &turn_id, "--yes"]).await;
    assert_eq!(late.status.code(), Some(3), "{late:#?}");

    // The turn is there to be looked at.
    let output = client(&sidecar, &["attach", &turn_id]).await;
    let (answer, told) = texts(&output);
    assert_eq!(output.status.code(), Some(0), "{told}");
    assert!(answer.starts_with("You said: ") && told.contains("touch elsewhere"), "{told}");
    let unknown =
        client(&sidecar, &["attach", "01a221bd-95c1-709a-a61e-358e99718fc0", "--json"]).await;
    assert_eq!(unknown.status.code(), Some(3), "{unknown:#?}");
    assert!(texts(&unknown).1.contains(r#""reason":"TURN_NOT_FOUND""#), "{unknown:#?}");

    // Steered and stopped by its context.
    let waiting = run(&sidecar, &["[[wait 60s]]"]);
    let stopping = async {
        running("script").await;
        let steered = eventually("the steering", async || {
            let steer = ["steer", "--context", "script", "and this"];
            let output = client(&sidecar, &steer).await;
            (output.status.code() == Some(0)).then_some(output)
        });
        steered.await;
        let stopped = client(&sidecar, &["interrupt", "--context", "script"]).await;
        assert_eq!(stopped.status.code(), Some(0), "{stopped:#?}");
        assert!(texts(&stopped).0.contains("was interrupted"), "{stopped:#?}");
    };
    let (output, ()) = tokio::join!(waiting, stopping);
    assert_eq!(output.status.code(), Some(130), "{output:#?}");
    let nothing = client(&sidecar, &["interrupt", "--context", "script"]).await;
    assert_eq!(nothing.status.code(), Some(3), "{nothing:#?}");
    sidecar.stop().await;
}

#[tokio::test]
async fn the_answer_alone_is_on_stdout_and_in_its_file_and_the_prompt_may_come_through_a_pipe() {
    let sidecar = Binary::start().await;
    let work = sidecar.place.work().display().to_string();
    let file = sidecar.place.path().join("answer.txt").display().to_string();
    let piped = async |arguments: &[&str], prompt: &str| {
        let mut command = binary::command(&sidecar.place);
        command.args(arguments).env("CODEX_SIDECAR_ADDR", &sidecar.address);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(prompt.as_bytes()).await.unwrap();
        drop(stdin);
        within(crate::support::PATIENCE, "the client", child.wait_with_output()).await.unwrap()
    };
    let fixed = ["run", "--ephemeral", "--cd", &work, "--quiet", "--turn-timeout", "50"];
    for dash in [&[][..], &["-"]] {
        let arguments = [&fixed[..], &["--output-last-message", &file], dash].concat();
        let output = piped(&arguments, "from a pipe\n").await;
        let (answer, told) = texts(&output);
        assert_eq!(output.status.code(), Some(0), "{told}");
        assert_eq!(answer, "You said: from a pipe (user messages so far: 1)\n");
        assert_eq!(told, "");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), answer.trim_end());
        std::fs::remove_file(&file).unwrap();
    }
    let empty = piped(&fixed, " \n").await;
    assert_eq!(empty.status.code(), Some(2), "{empty:#?}");
    let nowhere = piped(&[&fixed[..], &["-o", "/no/such/file"]].concat(), "x").await;
    assert_eq!(nowhere.status.code(), Some(2), "{nowhere:#?}");
    // What is wrong is told once, in one line, in the command's words; a turn's end is a sentence.
    let once = [
        (&["-c", "foo"][..], "-c: Invalid override (missing '='): foo"),
        (&["-c", "a=inf"], "-c a can't be honoured"),
        (&["--image", "/no/such.png"], "--image /no/such.png does not exist"),
        (&["--thread", "zzz"], "--thread: \"zzz\" is no thread id"),
        (&["-o", &file], "temporary errors; running it again may help"),
    ];
    std::fs::write(&file, "an earlier answer").unwrap();
    for (arguments, expected) in once {
        let thread: &[&str] = if arguments[0] == "--thread" { &[] } else { &["--ephemeral"] };
        let fixed = [&["run", "--cd", &work, "--quiet"], thread].concat();
        let output = client(&sidecar, &[&fixed, arguments, &["[[status 500]]"]].concat()).await;
        let (_, told) = texts(&output);
        assert!(told.contains(expected) && told.lines().count() == 1, "{told}");
        assert!(!told.contains(".;") && !told.contains("thread_"), "{told}");
    }
    assert_eq!(
        std::fs::read_to_string(&file).unwrap(),
        "",
        "the earlier answer is not this turn's"
    );

    // Where nobody hears what is told, the answer is worth no less.
    let mut command = binary::command(&sidecar.place);
    command.args(["run", "--ephemeral", "--cd", &work, "x"]);
    command.env("CODEX_SIDECAR_ADDR", &sidecar.address).stdout(Stdio::piped());
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let child = command.stderr(full).spawn().unwrap();
    let unheard = within(crate::support::PATIENCE, "the client", child.wait_with_output()).await;
    let unheard = unheard.unwrap();
    assert_eq!(unheard.status.code(), Some(0), "{unheard:#?}");
    assert!(unheard.stdout.starts_with(b"You said: x"), "{unheard:#?}");

    // What went wrong says so by its status.
    let slow = ["run", "--ephemeral", "--cd", &work, "--turn-timeout", "0.5", "[[hang]]"];
    let timeout = client(&sidecar, &slow).await;
    assert_eq!(timeout.status.code(), Some(4), "{timeout:#?}");
    let elsewhere = ["run", "--ephemeral", "--cd", "/", "--json", "x"];
    let refused = client(&sidecar, &elsewhere).await;
    assert_eq!(refused.status.code(), Some(3), "{refused:#?}");
    let told: Value = serde_json::from_slice(&refused.stderr).unwrap();
    assert_eq!(told["error"]["reason"], "NOT_A_GIT_REPOSITORY", "{told}");
    assert!(told["error"]["message"].as_str().unwrap().contains("--skip-git-repo-check"), "{told}");
    sidecar.stop().await;
}

#[tokio::test]
async fn what_a_sidecar_is_and_how_it_does_can_be_read_and_waited_for() {
    // Not there yet.
    let place = crate::support::Place::new();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("127.0.0.1:{port}");
    let mut command = binary::command(&place);
    command.args(["health", "--wait", "0.3", "--addr", &address]);
    assert_eq!(binary::output(&mut command).await.status.code(), Some(69));

    let sidecar = Binary::cold(place, |_| {}).await;
    let wait = ["health", "--wait", "60", "--service", "codex.sidecar.v1.CodexService", "--json"];
    let ready = client(&sidecar, &wait).await;
    let (told, _) = texts(&ready);
    let told: Value = serde_json::from_str(&told).expect(&told);
    assert_eq!((ready.status.code(), &told["status"]), (Some(0), &"SERVING".into()));

    let (text, _) = texts(&client(&sidecar, &["info"]).await);
    assert!(text.contains("ready for turns") && text.contains("offline model"), "{text}");
    let (json, _) = texts(&client(&sidecar, &["info", "--json"]).await);
    let info: Value = serde_json::from_str(&json).expect(&json);
    assert_eq!(info["offline_model"], true, "{info}");

    for shell in ["bash", "zsh", "fish"] {
        let script = client(&sidecar, &["completions", shell]).await;
        let (script, told) = texts(&script);
        assert!(script.contains("on-question"), "{shell}: {told}");
    }
    sidecar.stop().await;
}
