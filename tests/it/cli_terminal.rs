//! What a person sees at a terminal, on the real CLI: questions, the clock, Ctrl-C.

use crate::support::binary::Binary;
use crate::support::terminal::Terminal;

fn run<'a>(work: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["run", "--context", "person", "--cd", work], more].concat()
}

#[tokio::test]
async fn a_person_is_asked_and_every_answer_does_what_it_says() {
    let sidecar = Binary::start().await;
    let work = sidecar.place.work().display().to_string();
    let untrusted = |command: &'static str| {
        run(&work, &["--sandbox", "danger-full-access", "--approval", "untrusted", command])
    };

    let mut terminal = Terminal::start(&sidecar, &untrusted("[[run touch yes]]"));
    terminal.until("Codex asks: may this command run?").await;
    terminal.until("touch yes").await;
    terminal.until("y  yes, this once").await;
    terminal.until("[y/a/n/c] ").await;
    terminal.types("what?\n").await;
    terminal.until("Type one of: y, a, n, c").await;
    terminal.until("] ").await;
    terminal.types("y\n").await;
    let (shown, status) = terminal.end().await;
    assert_eq!(status.code(), Some(0), "{shown}");
    assert!(sidecar.place.work().join("yes").exists());
    // The answer once, although both streams are the terminal.
    assert_eq!(shown.matches("You said: ").count(), 1, "{shown}");

    let mut terminal = Terminal::start(&sidecar, &untrusted("[[run touch no]]"));
    terminal.until("[y/a/n/c] ").await;
    terminal.types("n\n").await;
    let (shown, status) = terminal.end().await;
    assert_eq!(status.code(), Some(0), "a no is an answer: {shown}");
    assert!(shown.contains("declined") && !sidecar.place.work().join("no").exists(), "{shown}");

    let mut terminal = Terminal::start(&sidecar, &untrusted("[[run touch cancel]]"));
    terminal.until("[y/a/n/c] ").await;
    terminal.types("c\n").await;
    let (shown, status) = terminal.end().await;
    assert_eq!(status.code(), Some(130), "{shown}");

    // Always: what is asked once is not asked again.
    let always = ["--sandbox", "read-only", "--approval", "untrusted"];
    for (words, asks) in [("[[write a one]]", true), ("[[write a two]]", false)] {
        let mut terminal =
            Terminal::start(&sidecar, &run(&work, &[&always[..], &[words]].concat()));
        if asks {
            terminal.until("may these files be changed?").await;
            terminal.until("[y/a/n/c/d] ").await;
            terminal.types("d\n").await;
            terminal.until("one").await;
            terminal.until("[y/a/n/c/d] ").await;
            terminal.types("a\n").await;
        }
        let (shown, status) = terminal.end().await;
        assert_eq!(status.code(), Some(0), "{shown}");
        assert_eq!(shown.contains("may these files"), asks, "{shown}");
    }
    sidecar.stop().await;
}

#[tokio::test]
async fn questions_and_permissions_are_asked_with_what_there_is_to_choose() {
    let sidecar = Binary::start().await;
    let work = sidecar.place.work().display().to_string();
    let words = "[[ask Which one? | the first | the second; And now? | go | stop]]";
    let mut terminal = Terminal::start(&sidecar, &run(&work, &[words]));
    terminal.until("Codex asks (1 of 2)").await;
    terminal.until("2  the second").await;
    terminal.until("leaves it unanswered.\r\n> ").await;
    terminal.types("2\n").await;
    terminal.until("Codex asks (2 of 2)").await;
    terminal.until("leaves it unanswered.\r\n> ").await;
    terminal.types("neither\n").await;
    let (shown, status) = terminal.end().await;
    assert_eq!(status.code(), Some(0), "{shown}");
    // What the model was told.
    let told = sidecar.shown("/input", crate::support::prompt("person", "")).await.to_string();
    assert!(told.contains("the second") && told.contains("neither"), "{told}");

    let words = r#"[[permit {"network": {"enabled": true}}]]"#;
    let mut terminal = Terminal::start(&sidecar, &run(&work, &["--approval", "on-request", words]));
    terminal.until("may it do more than the sandbox allows?").await;
    terminal.until("\"enabled\": true").await;
    terminal.until("[y/a/n] ").await;
    terminal.types("y\n").await;
    let (shown, status) = terminal.end().await;
    assert_eq!(status.code(), Some(0), "{shown}");
    sidecar.stop().await;
}

#[tokio::test]
async fn time_is_shown_while_the_model_thinks_and_ctrl_c_stops_the_turn() {
    let sidecar = Binary::start().await;
    let work = sidecar.place.work().display().to_string();
    let mut terminal = Terminal::start(&sidecar, &run(&work, &["[[wait 60s]]"]));
    terminal.until("s] thinking").await;
    // It goes on.
    terminal.until("s] thinking").await;
    terminal.types("\u{3}").await;
    terminal.until("interrupting the turn").await;
    let (shown, status) = terminal.end().await;
    assert_eq!(status.code(), Some(130), "{shown}");
    assert!(shown.contains("interrupted (interrupt requested)"), "{shown}");

    // The same in a question, which takes its prompt along.
    let asks = run(&work, &["--approval", "untrusted", "[[run touch x]]"]);
    let mut terminal = Terminal::start(&sidecar, &asks);
    terminal.until("[y/a/n/c] ").await;
    terminal.types("\u{3}").await;
    terminal.until("interrupting the turn").await;
    let (shown, status) = terminal.end().await;
    assert_eq!(status.code(), Some(130), "{shown}");

    // A person who goes away has not answered.
    let mut terminal = Terminal::start(&sidecar, &asks);
    terminal.until("[y/a/n/c] ").await;
    terminal.types("\u{4}").await;
    let (shown, status) = terminal.end().await;
    assert_eq!(status.code(), Some(5), "{shown}");
    let (_, told) = shown.split_once("error: ").expect(&shown);
    assert!(told.contains("touch x") && told.contains("at the prompt"), "{told}");
    assert!(!told.contains("run it on a terminal"), "it is one: {told}");
    sidecar.stop().await;
}
