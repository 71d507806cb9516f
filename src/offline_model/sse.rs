//! From a script to bytes: the server-sent events that a Responses API streams.
//!
//! Pure, and lazy: an answer of a million deltas is never held as a million frames.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use super::script::{Answer, Call, Script, Step, Usage};

/// The largest delta of `[[bytes N]]`.
const CHUNK_BYTES: usize = 64 << 10;
/// A text streams word by word up to this many deltas, then by more words at a time: echoing a prompt of 1 MiB
/// should cost Codex a message, not 200,000 events.
const MAX_TEXT_DELTAS: usize = 4_096;
/// What `[[bytes N]]` repeats, so that a reader can tell where it is.
const BYTES_PATTERN: &str = "0123456789abcdef";
/// Time for what was written to reach the client: a connection that is reset loses what its reader has not read.
const BEFORE_CUT: Duration = Duration::from_millis(50);

/// One thing for the connection to do.
#[derive(Debug, PartialEq)]
pub(crate) enum Frame {
    Send(Bytes),
    Pause(Duration),
    /// Send nothing more, and keep the connection.
    Stall,
    /// Send nothing more, and drop the connection without ending the body.
    Cut,
}

type Frames = Box<dyn Iterator<Item = Frame> + Send>;

/// Encodes a script. `id` is unique to the response; the ids of its items and calls derive from it.
pub(crate) fn frames(script: Script, id: &str) -> Frames {
    let Script { steps, pace, usage } = script;
    let response = format!("resp_{id}");
    let created = event(
        "response.created",
        json!({"response": {"id": response, "object": "response", "status": "in_progress"}}),
    );
    let ends_itself = steps.last().is_some_and(|step| {
        matches!(step, Step::Hang | Step::Cut | Step::Fail { .. } | Step::Incomplete { .. })
    });
    let completed = (!ends_itself).then(|| completed(&response, &usage));
    let id = id.to_owned();
    Box::new(
        std::iter::once(created)
            .chain(
                steps
                    .into_iter()
                    .enumerate()
                    .flat_map(move |(index, step)| encode(step, index, &id, pace)),
            )
            .chain(completed),
    )
}

fn encode(step: Step, index: usize, id: &str, pace: Duration) -> Frames {
    let one = |frame| -> Frames { Box::new(std::iter::once(frame)) };
    match step {
        Step::Wait(pause) => one(Frame::Pause(pause)),
        Step::Reason(text) => reasoning(&text, index, format!("rs_{id}_{index}"), pace),
        Step::Answer(answer) => message(answer, index, format!("msg_{id}_{index}"), pace),
        Step::Call(call) => one(item_done(index, call_item(call, id, index))),
        Step::Fail { code, message } => one(event(
            "response.failed",
            json!({"response": {"id": format!("resp_{id}"), "object": "response", "status": "failed",
                                "error": {"code": code, "message": message}}}),
        )),
        Step::Incomplete { reason } => one(event(
            "response.incomplete",
            json!({"response": {"id": format!("resp_{id}"), "object": "response", "status": "incomplete",
                                "incomplete_details": {"reason": reason}}}),
        )),
        Step::Hang => one(Frame::Stall),
        Step::Cut => {
            let item = format!("msg_{id}_{index}");
            Box::new(
                [
                    message_added(index, &item),
                    text_delta(index, &item, "This answer ends in the mid"),
                    Frame::Pause(BEFORE_CUT),
                    Frame::Cut,
                ]
                .into_iter(),
            )
        }
        // The server has answered with it; a script that came here is wrong, and says so by not completing.
        Step::Status { .. } => one(Frame::Cut),
    }
}

fn message(answer: Answer, index: usize, id: String, pace: Duration) -> Frames {
    let (text, deltas): (String, Box<dyn Iterator<Item = String> + Send>) = match answer {
        Answer::Text(text) => (text.clone(), Box::new(pieces(text))),
        Answer::Words(count) => {
            let word = move |n: usize| format!("w{n}{}", if n < count { " " } else { "" });
            ((1..=count).map(word).collect(), Box::new((1..=count).map(word)))
        }
        Answer::Bytes(count) => {
            let lengths =
                (0..count).step_by(CHUNK_BYTES).map(move |start| CHUNK_BYTES.min(count - start));
            // Each chunk starts the pattern afresh: CHUNK_BYTES is a multiple of its length.
            (pattern(count), Box::new(lengths.map(pattern)))
        }
    };
    let done = item_done(
        index,
        json!({"type": "message", "id": id, "role": "assistant", "status": "completed",
               "content": [{"type": "output_text", "text": text, "annotations": []}]}),
    );
    let added = message_added(index, &id);
    let deltas = deltas.map(move |delta| text_delta(index, &id, &delta));
    Box::new(std::iter::once(added).chain(paced(deltas, pace)).chain([done]))
}

fn pattern(length: usize) -> String {
    let mut text = BYTES_PATTERN.repeat(length.div_ceil(BYTES_PATTERN.len()));
    text.truncate(length);
    text
}

fn reasoning(text: &str, index: usize, id: String, pace: Duration) -> Frames {
    let item = |summary: Value| json!({"type": "reasoning", "id": id, "summary": summary, "encrypted_content": null});
    let part = json!({"type": "summary_text", "text": text});
    let opening = [
        event(
            "response.output_item.added",
            json!({"output_index": index, "item": item(json!([]))}),
        ),
        event(
            "response.reasoning_summary_part.added",
            json!({"item_id": id, "output_index": index, "summary_index": 0,
                   "part": {"type": "summary_text", "text": ""}}),
        ),
    ];
    let done = item_done(index, item(json!([part])));
    let deltas = pieces(text.to_owned()).map(move |delta| {
        event(
            "response.reasoning_summary_text.delta",
            json!({"item_id": id, "output_index": index, "summary_index": 0, "delta": delta}),
        )
    });
    Box::new(opening.into_iter().chain(paced(deltas, pace)).chain([done]))
}

fn call_item(call: Call, id: &str, index: usize) -> Value {
    let call_id = format!("call_{id}_{index}");
    match call {
        Call::Function { name, namespace, arguments } => {
            // Arguments travel as text within the JSON.
            let mut item = json!({"type": "function_call", "id": format!("fc_{id}_{index}"), "status": "completed",
                                  "call_id": call_id, "name": name, "arguments": arguments.to_string()});
            if let Some(namespace) = namespace {
                item["namespace"] = namespace.into();
            }
            item
        }
        Call::Custom { name, input } => {
            json!({"type": "custom_tool_call", "id": format!("ctc_{id}_{index}"), "status": "completed",
                   "call_id": call_id, "name": name, "input": input})
        }
        Call::LocalShell { command } => {
            json!({"type": "local_shell_call", "id": format!("lsc_{id}_{index}"), "status": "completed",
                   "call_id": call_id, "action": {"type": "exec", "command": command}})
        }
    }
}

fn completed(response: &str, usage: &Usage) -> Frame {
    let Usage { input, cached, output, reasoning } = usage;
    event(
        "response.completed",
        json!({"response": {"id": response, "object": "response", "status": "completed", "usage": {
            "input_tokens": input,
            "input_tokens_details": {"cached_tokens": cached},
            "output_tokens": output,
            "output_tokens_details": {"reasoning_tokens": reasoning},
            "total_tokens": input + output,
        }}}),
    )
}

fn message_added(index: usize, id: &str) -> Frame {
    event(
        "response.output_item.added",
        json!({"output_index": index, "item": {"type": "message", "id": id, "role": "assistant",
               "status": "in_progress", "content": []}}),
    )
}

fn text_delta(index: usize, id: &str, delta: &str) -> Frame {
    event(
        "response.output_text.delta",
        json!({"item_id": id, "output_index": index, "content_index": 0, "delta": delta}),
    )
}

fn item_done(index: usize, item: Value) -> Frame {
    event("response.output_item.done", json!({"output_index": index, "item": item}))
}

/// Codex reads the type from the JSON, other clients from the `event:` line.
fn event(kind: &str, mut data: Value) -> Frame {
    data["type"] = kind.into();
    Frame::Send(format!("event: {kind}\ndata: {data}\n\n").into())
}

/// Pauses between frames, not before the first or after the last.
fn paced(
    frames: impl Iterator<Item = Frame> + Send + 'static,
    pace: Duration,
) -> impl Iterator<Item = Frame> + Send {
    frames.enumerate().flat_map(move |(position, frame)| {
        let pause = (position > 0 && !pace.is_zero()).then_some(Frame::Pause(pace));
        pause.into_iter().chain([frame])
    })
}

/// Cuts a text behind its white space; the pieces together are the text.
fn pieces(text: String) -> impl Iterator<Item = String> + Send {
    let ends: Vec<usize> = text
        .char_indices()
        .zip(text.chars().skip(1))
        .filter(|((_, this), next)| this.is_whitespace() && !next.is_whitespace())
        .map(|((at, this), _)| at + this.len_utf8())
        .chain((!text.is_empty()).then_some(text.len()))
        .collect();
    let group = ends.len().div_ceil(MAX_TEXT_DELTAS).max(1);
    let mut cuts: Vec<usize> =
        ends.chunks(group).filter_map(|group| group.last().copied()).collect();
    cuts.dedup();
    cuts.into_iter().scan(0, move |start, end| {
        let piece = text[*start..end].to_owned();
        *start = end;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(steps: Vec<Step>, pace: Duration) -> Script {
        Script { steps, pace, usage: Usage { input: 40, cached: 30, output: 2, reasoning: 1 } }
    }

    fn decode(frame: Frame) -> Value {
        let Frame::Send(bytes) = frame else { panic!("{frame:?}") };
        let text = std::str::from_utf8(&bytes).unwrap();
        let (kind, data) = text.trim_end_matches("\n\n").split_once('\n').unwrap();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(kind.strip_prefix("event: "), data["type"].as_str());
        data
    }

    fn deltas(frames: Frames) -> Vec<String> {
        frames
            .filter(|frame| matches!(frame, Frame::Send(_)))
            .map(decode)
            .filter_map(|event| event["delta"].as_str().map(str::to_owned))
            .collect()
    }

    #[test]
    fn a_message_is_added_streamed_done_and_completed() {
        let answer = Step::Answer(Answer::Text("two words".into()));
        let events: Vec<Value> =
            frames(script(vec![answer], Duration::ZERO), "1").map(decode).collect();
        let kinds: Vec<&str> = events.iter().filter_map(|event| event["type"].as_str()).collect();
        assert_eq!(
            kinds,
            [
                "response.created",
                "response.output_item.added",
                "response.output_text.delta",
                "response.output_text.delta",
                "response.output_item.done",
                "response.completed"
            ]
        );
        assert_eq!(events[1]["item"]["id"], events[4]["item"]["id"]);
        assert_eq!(events[4]["item"]["content"][0]["text"], "two words");
        assert_eq!(events[5]["response"]["usage"]["total_tokens"], 42);
    }

    #[test]
    fn deltas_add_up_to_the_text() {
        for text in ["", " ", "a", " a  b\n\nc ", "grüße an alle"] {
            assert_eq!(pieces(text.into()).collect::<String>(), text);
        }
        assert_eq!(pieces("a  b\nc".into()).collect::<Vec<_>>(), ["a  ", "b\n", "c"]);
        let long = "word ".repeat(10_000);
        let cut: Vec<String> = pieces(long.clone()).collect();
        assert!(cut.len() <= MAX_TEXT_DELTAS && cut.len() > MAX_TEXT_DELTAS / 2);
        assert_eq!(cut.concat(), long);
    }

    #[test]
    fn sized_answers_have_their_size_and_their_pauses_between() {
        let words = Step::Answer(Answer::Words(3));
        assert_eq!(deltas(frames(script(vec![words], Duration::ZERO), "1")), ["w1 ", "w2 ", "w3"]);
        let bytes = Step::Answer(Answer::Bytes(150_000));
        let chunks = deltas(frames(script(vec![bytes], Duration::ZERO), "1"));
        assert_eq!(chunks.iter().map(String::len).collect::<Vec<_>>(), [65_536, 65_536, 18_928]);
        assert_eq!(
            chunks.concat(),
            BYTES_PATTERN.chars().cycle().take(150_000).collect::<String>()
        );
        let pace = Duration::from_millis(5);
        let slow = Step::Answer(Answer::Words(3));
        let pauses =
            frames(script(vec![slow], pace), "1").filter(|frame| *frame == Frame::Pause(pace));
        assert_eq!(pauses.count(), 2);
    }

    #[test]
    fn an_ending_leaves_the_response_open() {
        let last = |step: Step| frames(script(vec![step], Duration::ZERO), "1").last();
        assert_eq!(last(Step::Cut), Some(Frame::Cut));
        assert_eq!(last(Step::Hang), Some(Frame::Stall));
        let failed = last(Step::Fail { code: "server_error".into(), message: "m".into() });
        assert_eq!(
            failed.map(decode).unwrap()["response"]["error"],
            json!({"code": "server_error", "message": "m"})
        );
        let incomplete = last(Step::Incomplete { reason: "content_filter".into() });
        let response = &incomplete.map(decode).unwrap()["response"];
        assert_eq!(response["incomplete_details"], json!({"reason": "content_filter"}));
    }

    #[test]
    fn a_call_carries_its_arguments_as_text() {
        let call = Step::Call(Call::Function {
            name: "query".into(),
            namespace: Some("mcp__db".into()),
            arguments: json!({"n": 1}),
        });
        let done = decode(frames(script(vec![call], Duration::ZERO), "1").nth(1).unwrap());
        assert_eq!(done["item"]["arguments"], "{\"n\":1}");
        assert_eq!(done["item"]["namespace"], "mcp__db");
        assert_eq!(done["item"]["call_id"], "call_1_0");
    }
}
