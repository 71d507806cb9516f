use super::*;
use crate::pb::item::Kind;

const SHOWN: Thoughts = Thoughts { shown: true, raw: false };

fn renderer(thoughts: Thoughts) -> Renderer {
    let mut settings = pb::TurnSettings {
        working_directory: "/w".to_owned(),
        model: "m".to_owned(),
        ..Default::default()
    };
    settings.set_sandbox_mode(pb::SandboxMode::ReadOnly);
    let header = Header {
        cli_version: "1.2.3".to_owned(),
        prompt: "hi".to_owned(),
        settings,
        ..Default::default()
    };
    Renderer::new(header, thoughts, Paint(false), false)
}

fn render(renderer: &mut Renderer, events: Vec<Event>) -> String {
    let events = events.into_iter();
    let events = events.map(|event| pb::TurnEvent { event: Some(event), ..Default::default() });
    events.map(|event| renderer.event(&event)).collect()
}

fn begun(thoughts: Thoughts) -> Renderer {
    let mut renderer = renderer(thoughts);
    render(&mut renderer, vec![Event::TurnStarted(pb::TurnStarted::default())]);
    renderer
}

fn completed(kind: Kind) -> Event {
    let item = Some(pb::Item { id: "i".to_owned(), kind: Some(kind) });
    Event::ItemCompleted(pb::ItemCompleted { item })
}

fn warning(code: &str, message: &str, details: &str) -> Event {
    let (code, message, details) = (code.to_owned(), message.to_owned(), details.to_owned());
    Event::Warning(pb::Warning { code, message, details })
}

#[test]
fn the_header_tells_what_is_in_force_and_comes_before_all_else() {
    let mut settings = pb::TurnSettings {
        working_directory: "/w".to_owned(),
        model: "in force".to_owned(),
        model_provider: "p".to_owned(),
        model_reasoning_effort: "high".to_owned(),
        ..Default::default()
    };
    settings.set_approval_policy(pb::ApprovalPolicy::Never);
    settings.set_sandbox_mode(pb::SandboxMode::DangerFullAccess);
    let started = pb::TurnStarted { settings: Some(settings), ..Default::default() };
    let thread_id = "t".to_owned();
    let text = render(
        &mut renderer(SHOWN),
        vec![
            Event::Queued(pb::Queued { position: 1 }),
            Event::ThreadStarted(pb::ThreadStarted { thread_id, origin: 1 }),
            warning("CONFIG_WARNING", "odd", "very"),
            Event::TurnStarted(started),
            warning("", "late", "unseen"),
        ],
    );
    let expected = "OpenAI Codex v1.2.3\n--------\nworkdir: /w\nmodel: in force\nprovider: p\n\
                    approval: never\nsandbox: danger-full-access\nreasoning effort: high\n\
                    reasoning summaries: none\nsession id: t\n--------\nuser\nhi\n\
                    warning: odd (very)\nwarning: late\n";
    assert_eq!(text, expected);
}

#[test]
fn a_turn_that_never_begins_has_the_header_of_what_was_asked() {
    let error = Some(pb::TurnError { message: "boom".to_owned(), ..Default::default() });
    let failed = Event::TurnFailed(pb::TurnFailed { error, ..Default::default() });
    let text = render(&mut renderer(SHOWN), vec![failed]);
    assert!(text.contains("model: m\n") && text.contains("sandbox: read-only\n"), "{text}");
    assert!(text.ends_with("user\nhi\nERROR: boom\n"), "{text}");
}

#[test]
fn thoughts_are_shown_as_they_are_wanted() {
    let thought = || {
        let (summary, content) = (vec!["sum".to_owned()], vec!["raw".to_owned()]);
        completed(Kind::Reasoning(pb::Reasoning { summary, content }))
    };
    for (thoughts, text) in [
        (SHOWN, "sum\n"),
        (Thoughts { shown: true, raw: true }, "raw\n"),
        (Thoughts { shown: false, raw: true }, ""),
    ] {
        assert_eq!(render(&mut begun(thoughts), vec![thought()]), text, "{thoughts:?}");
    }
}

#[test]
fn what_the_offline_model_cant_bring_about_is_told_too() {
    let mut declined = pb::CommandExecution::default();
    declined.set_status(pb::CommandExecutionStatus::Declined);
    let mut call = pb::McpToolCall {
        server: "s".to_owned(),
        tool: "t".to_owned(),
        error_message: "boom".to_owned(),
        ..Default::default()
    };
    call.set_status(pb::McpToolCallStatus::Failed);
    let search = pb::WebSearch { query: "q".to_owned(), ..Default::default() };
    let text = render(
        &mut begun(SHOWN),
        vec![
            completed(Kind::CommandExecution(declined)),
            completed(Kind::McpToolCall(call)),
            completed(Kind::WebSearch(search)),
            completed(Kind::ContextCompaction(pb::ContextCompaction::default())),
            warning("DEPRECATION_NOTICE", "old", "use new"),
            Event::Gap(pb::Gap { from: 4, to: 6 }),
        ],
    );
    let expected = " declined:\nmcp: s/t (failed)\nboom\nweb search: q\ncontext compacted\n\
                    deprecated: old\nuse new\nwarning: event stream lagged; dropped 3 events\n";
    assert_eq!(text, expected);
}

#[test]
fn a_full_window_counts_from_zero_but_in_a_review() {
    for is_review in [false, true] {
        let mut renderer = Renderer { is_review, ..begun(SHOWN) };
        let reason = "CONTEXT_WINDOW_EXCEEDED".to_owned();
        let error = Some(pb::TurnError { reason, ..Default::default() });
        let failed = Event::TurnFailed(pb::TurnFailed { error, ..Default::default() });
        render(&mut renderer, vec![failed]);
        assert_eq!(renderer.usage(), if is_review { "" } else { "tokens used\n0\n" });
    }
}

#[test]
fn what_was_cached_is_not_counted_as_used() {
    let mut renderer = begun(SHOWN);
    assert_eq!(renderer.usage(), "");
    let thread_usage = pb::Usage {
        input_tokens: 1_234_567,
        cached_input_tokens: 1_000,
        output_tokens: 12,
        ..Default::default()
    };
    let done = pb::TurnCompleted { thread_usage: Some(thread_usage), ..Default::default() };
    render(&mut renderer, vec![Event::TurnCompleted(done)]);
    assert_eq!(renderer.usage(), "tokens used\n1,233,579\n");
    let separated = [0, 999, 1_000, 100_000].map(with_separators);
    assert_eq!(separated, ["0", "999", "1,000", "100,000"]);
}
