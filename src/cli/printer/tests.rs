//! What is printed of turns.

use super::*;
use crate::pb::item::Kind;

fn event(event: Event) -> pb::TurnEvent {
    pb::TurnEvent { turn_id: "t-1".to_owned(), event: Some(event), ..Default::default() }
}

fn item(id: &str, kind: Kind) -> Option<pb::Item> {
    Some(pb::Item { id: id.to_owned(), kind: Some(kind) })
}

fn print(colours: bool, events: Vec<Event>) -> String {
    let mut out = Vec::new();
    let mut printer = Printer::new(&mut out, colours);
    for kind in events {
        printer.show(&event(kind)).unwrap();
    }
    String::from_utf8(out).unwrap()
}

fn message(text: &str) -> Kind {
    Kind::AgentMessage(pb::AgentMessage { text: text.to_owned(), phase: String::new() })
}

fn delta(id: &str, text: &str) -> Event {
    Event::AgentMessageDelta(pb::AgentMessageDelta {
        item_id: id.to_owned(),
        text: text.to_owned(),
    })
}

#[test]
fn a_turn_is_printed_with_every_text_once() {
    let command = |exit_code, aggregated_output: &str| {
        Kind::CommandExecution(pb::CommandExecution {
            command: "echo hello".to_owned(),
            aggregated_output: aggregated_output.to_owned(),
            exit_code,
            duration: exit_code.map(|_| prost_types::Duration { seconds: 0, nanos: 12_000_000 }),
            ..Default::default()
        })
    };
    let output = |text: &str| {
        Event::CommandOutputDelta(pb::CommandOutputDelta {
            item_id: "c".to_owned(),
            text: text.to_owned(),
        })
    };
    let usage = pb::Usage {
        input_tokens: 120,
        cached_input_tokens: 20,
        cache_write_input_tokens: 0,
        output_tokens: 15,
        reasoning_output_tokens: 3,
    };
    let printed = print(
        false,
        vec![
            Event::TurnStarted(pb::TurnStarted::default()),
            Event::ItemStarted(pb::ItemStarted { item: item("a", message("")) }),
            delta("a", "one "),
            delta("a", "two\nthr"),
            Event::ItemStarted(pb::ItemStarted { item: item("c", command(None, "")) }),
            output("hel"),
            output("lo\nworld\n"),
            Event::ItemCompleted(pb::ItemCompleted {
                item: item("c", command(Some(3), "hello\nworld\n")),
            }),
            Event::ItemCompleted(pb::ItemCompleted { item: item("a", message("one two\nthr")) }),
            // Never streamed, and started unseen.
            Event::ItemCompleted(pb::ItemCompleted {
                item: item("d", command(Some(0), "all at once")),
            }),
            Event::TurnCompleted(pb::TurnCompleted {
                final_response: "one two\nthr".to_owned(),
                usage: Some(usage),
                thread_usage: None,
            }),
        ],
    );
    let expected = "turn t-1\none two\nthr\n$ echo hello\n  hello\n  world\n  exit code 3 after \
                    12 ms\n$ echo hello\n  all at once\n  exit code 0 after 12 ms\ncompleted; \
                    tokens: 120 in (20 cached), 15 out (3 reasoning)\n";
    assert_eq!(printed, expected);
}

/// What Codex 0.169.0 tells of `echo start; sleep 3; echo end`, and of other such commands.
#[test]
fn output_that_was_never_streamed_is_printed_and_none_is_printed_twice() {
    let command = |pieces: &[&str], whole: &str| {
        let command = |exit_code, output: &str| {
            let command = pb::CommandExecution {
                command: "c".to_owned(),
                aggregated_output: output.to_owned(),
                exit_code,
                ..Default::default()
            };
            item("c", Kind::CommandExecution(command))
        };
        let mut events = vec![Event::ItemStarted(pb::ItemStarted { item: command(None, "") })];
        events.extend(pieces.iter().map(|piece| {
            let (item_id, text) = ("c".to_owned(), (*piece).to_owned());
            Event::CommandOutputDelta(pb::CommandOutputDelta { item_id, text })
        }));
        let ended = pb::ItemCompleted { item: command(Some(0), whole) };
        events.push(Event::ItemCompleted(ended));
        print(false, events)
    };
    let cases = [
        (&["end\n"][..], "start\nend\n", "  end\n  (not shown above)\n  start\n"),
        (&["star"], "start\nend", "  start\n  end\n"),
        (&["start\n", "end\n"], "start\nend\n", "  start\n  end\n"),
        (&[], "start\nend\n", "  start\n  end\n"),
        (&["b\n", "d\n"], "a\nb\nc\nd\n", { "  b\n  d\n  (not shown above)\n  a\n  (…)\n  c\n" }),
        (&["x\n"], "start\n", "  x\n  (all of it)\n  start\n"),
    ];
    for (pieces, whole, expected) in cases {
        let expected = format!("$ c\n{expected}  exit code 0\n");
        assert_eq!(command(pieces, whole), expected, "{pieces:?} of {whole:?}");
    }
}

#[test]
fn a_turn_without_an_answer_shows_its_final_response() {
    let done = pb::TurnCompleted {
        final_response: "Codex task completed with inputs.".to_owned(),
        usage: None,
        thread_usage: None,
    };
    let printed = print(false, vec![Event::TurnCompleted(done)]);
    assert_eq!(printed, "Codex task completed with inputs.\ncompleted\n");
}

#[test]
fn escape_sequences_of_a_command_do_not_reach_the_terminal() {
    let output = Event::CommandOutputDelta(pb::CommandOutputDelta {
        item_id: "c".to_owned(),
        text: "\x1b]0;title\x07\ta\r\nb\u{9b}2J".to_owned(),
    });
    assert_eq!(print(false, vec![output.clone()]), "  ]0;title\ta\n  b2J");
    assert_eq!(print(true, vec![output]), "  \x1b[2m]0;title\ta\x1b[0m\n  \x1b[2mb2J\x1b[0m");
}

#[test]
fn a_plan_is_printed_when_it_changes() {
    let plan = |completed| {
        item(
            "plan",
            Kind::TodoList(pb::TodoList {
                items: vec![pb::TodoItem { text: "look".to_owned(), completed, status: 0 }],
                explanation: String::new(),
            }),
        )
    };
    let printed = print(
        false,
        vec![
            Event::ItemStarted(pb::ItemStarted { item: plan(false) }),
            Event::ItemUpdated(pb::ItemUpdated { item: plan(true) }),
            Event::ItemCompleted(pb::ItemCompleted { item: plan(true) }),
        ],
    );
    assert_eq!(printed, "plan:\n  [ ] look\nplan:\n  [x] look\n");
}
