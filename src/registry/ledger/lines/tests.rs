use std::time::{Duration, UNIX_EPOCH};

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use prost::Message as _;

use super::*;
use crate::model::event::Usage;
use crate::model::fingerprint::Fingerprint;
use crate::model::id::{ContextKey, Tenant, TurnId};
use crate::model::request::{ContentHash, RequestId};
use crate::pb;
use crate::registry::bindings::Binding;
use crate::registry::ledger::{KeptEnd, KeptFacts, KeptThreadStarted, KeptTokens, KeptTurn};
use crate::registry::threads::ThreadFacts;
use crate::registry::threads::{Left, SeenTurn, TurnsSeen};

/// What a caller may name a thing.
fn name() -> impl Strategy<Value = String> {
    let seen = "[^\\p{Cc}\u{61c}\u{200e}\u{200f}\u{2028}-\u{202e}\u{2066}-\u{2069}]{1,20}";
    seen.prop_map(|name| name.trim().to_owned()).prop_filter("empty", |name| !name.is_empty())
}

fn thread() -> impl Strategy<Value = ThreadId> {
    name().prop_map(ThreadId::from_codex)
}

fn turn_id() -> impl Strategy<Value = TurnId> {
    name().prop_map(TurnId)
}

fn time() -> impl Strategy<Value = SystemTime> {
    // The years 1 to 9999.
    (-62_135_596_800_i64..253_402_300_800, 0..1_000_000_000_u32).prop_map(|(seconds, nanos)| {
        let distance = Duration::from_secs(seconds.unsigned_abs());
        let second = if seconds < 0 { UNIX_EPOCH - distance } else { UNIX_EPOCH + distance };
        second + Duration::from_nanos(nanos.into())
    })
}

fn key() -> impl Strategy<Value = ContextKey> {
    (name(), name()).prop_map(|(context_id, thread_key)| ContextKey {
        tenant: Tenant::default(),
        context_id,
        thread_key,
    })
}

fn context() -> impl Strategy<Value = Entry> {
    let times = (time(), time(), time());
    let rest = (any::<u64>(), option::of(turn_id()), any::<bool>(), option::of(thread()));
    (key(), thread(), times, rest).prop_map(|(key, thread_id, times, rest)| {
        let (created_at, updated_at, used_at) = times;
        let (turns, latest_turn, is_fresh_copy, copied_from) = rest;
        let binding = Binding {
            thread_id,
            created_at,
            updated_at,
            turns,
            latest_turn,
            is_fresh_copy,
            copied_from,
            used_at,
        };
        Entry::Context(Box::new(KeptBinding { key, binding }))
    })
}

fn evicted() -> impl Strategy<Value = Entry> {
    (key(), thread(), time()).prop_map(|(key, thread_id, evicted_at)| {
        Entry::EvictedContext(KeptMark { key, thread_id, evicted_at })
    })
}

fn facts() -> impl Strategy<Value = Entry> {
    let usage = any::<[u64; 5]>().prop_map(|numbers| {
        let [input_tokens, cached_input_tokens, cache_write_input_tokens, ..] = numbers;
        let [.., output_tokens, reasoning_output_tokens] = numbers;
        Usage {
            input_tokens,
            cached_input_tokens,
            cache_write_input_tokens,
            output_tokens,
            reasoning_output_tokens,
        }
    });
    let last = (any::<String>(), any::<bool>())
        .prop_map(|(id, has_completed)| SeenTurn { id, has_completed });
    let turns =
        (any::<usize>(), option::of(last)).prop_map(|(count, last)| TurnsSeen { count, last });
    let left =
        any::<[bool; 2]>().prop_map(|[summary, service_tier]| Left { summary, service_tier });
    let seen = (option::of(turns), option::of(left));
    let fingerprint = || option::of(any::<[u8; 32]>().prop_map(Fingerprint::from_bytes));
    let facts = (thread(), option::of(usage), any::<bool>(), seen, fingerprint(), fingerprint())
        .prop_map(|(thread_id, usage, is_blank, seen, dynamic_tools, developer_instructions)| {
            let (turns, left) = seen;
            let facts =
                ThreadFacts { usage, is_blank, turns, left, dynamic_tools, developer_instructions };
            (thread_id, facts)
        });
    (facts, time())
        .prop_map(|((thread_id, facts), at)| Entry::Thread(thread_id, KeptFacts { facts, at }))
}

/// What an encoded event of a turn has: also a field of a newer contract, and what another encoder has written.
#[derive(Debug, Clone)]
struct Encoded {
    at: prost_types::Timestamp,
    strange: Vec<u8>,
}

impl Encoded {
    fn event(self, turn_id: &TurnId, sequence: u64, event: pb::turn_event::Event) -> bytes::Bytes {
        let Encoded { at, strange } = self;
        let (emitted_at, turn_id, event) = (Some(at), turn_id.0.clone(), Some(event));
        let event = pb::TurnEvent { sequence, emitted_at, turn_id, event };
        [event.encode_to_vec(), strange].concat().into()
    }
}

fn encoded() -> impl Strategy<Value = Encoded> {
    let strange = prop_oneof![
        4 => Just(vec![]),
        // Field 1000, a number.
        1 => Just(vec![0xC0, 0x3E, 7]),
        // A field once more, which changes nothing: `emitted_at` without anything.
        1 => Just(vec![0x12, 0]),
    ];
    (-99..99_i64, strange).prop_map(|(seconds, strange)| {
        let at = prost_types::Timestamp { seconds, nanos: 5_000_000 };
        Encoded { at, strange }
    })
}

fn terminal() -> impl Strategy<Value = pb::turn_event::Event> {
    prop_oneof![
        any::<String>().prop_map(|final_response| pb::turn_event::Event::TurnCompleted(
            pb::TurnCompleted { final_response, ..Default::default() }
        )),
        (any::<String>(), -2..99_i32).prop_map(|(message, status)| {
            let error = pb::TurnError { message, http_status: Some(status), ..Default::default() };
            pb::turn_event::Event::TurnFailed(pb::TurnFailed {
                error: Some(error),
                ..Default::default()
            })
        }),
    ]
}

fn turn() -> impl Strategy<Value = Entry> {
    let request =
        ("[ -~]{1,36}", any::<u32>(), any::<[u8; 32]>()).prop_map(|(id, version, digest)| {
            RequestId { id, content: ContentHash { version, digest } }
        });
    let sequence = 1..1_u64 << 52;
    // An enum's number that may have no name here.
    let started =
        (thread(), option::of(any::<String>()), sequence.clone(), any::<i32>(), encoded());
    let end = (time(), sequence.clone(), terminal(), encoded());
    let rest = (vec(request, 0..3), option::of(started), sequence, option::of(end));
    (turn_id(), option::of(key()), time(), time(), rest).prop_map(
        |(turn_id, context, created_at, started_at, rest)| {
            let (requests, started, more, end) = rest;
            let first = started.as_ref().map_or(0, |started| started.2);
            let thread_started = started.map(|(thread_id, worker, sequence, origin, encoded)| {
                let told = pb::ThreadStarted { thread_id: thread_id.to_string(), origin };
                let told = pb::turn_event::Event::ThreadStarted(told);
                let event = encoded.event(&turn_id, sequence, told);
                KeptThreadStarted { thread_id, worker, sequence, event }
            });
            let end = end.map(|(ended_at, more, terminal, encoded)| {
                let sequence = first + more;
                let event = encoded.event(&turn_id, sequence, terminal);
                KeptEnd { ended_at, sequence, event }
            });
            let reserved = first + more;
            Entry::Turn(Box::new(KeptTurn {
                turn_id,
                context,
                created_at,
                started_at,
                requests,
                thread_started,
                reserved,
                end,
            }))
        },
    )
}

fn directory() -> impl Strategy<Value = Entry> {
    use std::os::unix::ffi::OsStringExt as _;
    let path = prop_oneof![
        any::<String>().prop_map(PathBuf::from),
        any::<Vec<u8>>().prop_map(|bytes| PathBuf::from(std::ffi::OsString::from_vec(bytes))),
    ];
    (path, thread(), time())
        .prop_map(|(path, thread_id, at)| Entry::Directory(path, LatestThread { thread_id, at }))
}

pub(in crate::registry::ledger) fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let tokens =
        (time(), any::<u64>()).prop_map(|(day, tokens)| Entry::Tokens(KeptTokens { day, tokens }));
    vec(prop_oneof![context(), evicted(), facts(), turn(), directory(), tokens], 0..12)
}

fn written(entries: &[Entry]) -> Vec<u8> {
    let mut writer = LineWriter::new(Vec::new()).unwrap();
    for entry in entries {
        writer.entry(entry.clone()).unwrap();
    }
    let (lines, counts) = writer.end(false).unwrap();
    assert_eq!(counts.total(), entries.len() as u64);
    lines
}

fn read(lines: &[u8]) -> (Vec<Entry>, Vec<LineFault>) {
    let (mut entries, mut faults) = (Vec::new(), Vec::new());
    for read in LineReader::new(lines) {
        match read {
            Ok(entry) => entries.push(entry),
            Err(fault) => faults.push(fault),
        }
    }
    (entries, faults)
}

fn changed(lines: &[u8], change: impl FnOnce(&mut Vec<&str>)) -> String {
    let text = std::str::from_utf8(lines).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    change(&mut lines);
    lines.join("\n") + "\n"
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read_as_it_was(entries in entries()) {
        let lines = written(&entries);
        prop_assert_eq!(read(&lines), (entries.clone(), vec![]));
        // Of the same form whoever writes it: nothing comes back otherwise than it went.
        let rewritten = written(&read(&lines).0);
        let body = |lines: &[u8]| changed(lines, |lines| _ = lines.remove(0));
        prop_assert_eq!(body(&rewritten), body(&lines));
    }

    #[test]
    fn lines_that_were_cut_are_never_taken_for_whole_ones(
        entries in entries(),
        at in any::<prop::sample::Index>(),
    ) {
        let lines = written(&entries);
        // Without its last byte, the end of a line, it is whole.
        let cut = &lines[..at.index(lines.len() - 1)];
        let (read, faults) = read(cut);
        prop_assert!(!faults.is_empty());
        prop_assert!(entries.starts_with(&read));
    }

    #[test]
    fn damaged_lines_are_told_or_are_lines(
        entries in entries(),
        at in any::<prop::sample::Index>(),
        byte: u8,
    ) {
        let mut lines = written(&entries);
        let at = at.index(lines.len());
        lines[at] = byte;
        // Only that it ends, and without a panic.
        prop_assert!(read(&lines).0.len() <= entries.len());
    }
}

fn some_context(context_id: &str) -> Entry {
    let binding = Binding {
        thread_id: ThreadId::from_codex("t"),
        created_at: UNIX_EPOCH,
        updated_at: UNIX_EPOCH,
        turns: 1,
        latest_turn: None,
        is_fresh_copy: false,
        copied_from: None,
        used_at: UNIX_EPOCH + Duration::from_millis(1_500),
    };
    let key = ContextKey {
        tenant: Tenant::default(),
        context_id: context_id.to_owned(),
        thread_key: "codex_thread_id".to_owned(),
    };
    Entry::Context(Box::new(KeptBinding { key, binding }))
}

#[test]
fn a_line_is_in_the_words_of_the_contract() {
    let lines = written(&[some_context("a")]);
    let text = String::from_utf8(lines).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert!(
        lines[0].starts_with(r#"{"kind":"header","format":"codex-sidecar state","version":1,"#)
    );
    assert_eq!(
        lines[1..],
        [
            r#"{"kind":"context","context_id":"a","thread_id_key":"codex_thread_id","thread_id":"t","create_time":"1970-01-01T00:00:00Z","update_time":"1970-01-01T00:00:00Z","use_time":"1970-01-01T00:00:01.500Z","turn_count":1}"#,
            r#"{"kind":"end","contexts":1,"evicted_contexts":0,"threads":0,"turns":0,"directories":0}"#
        ]
    );
}

#[test]
fn what_is_wrong_with_lines_is_told_with_the_line() {
    let whole = written(&[some_context("a"), some_context("b")]);
    let faults = |change: &dyn Fn(&mut Vec<&str>)| {
        let (entries, faults) = read(changed(&whole, change).as_bytes());
        let told: Vec<(u64, String)> =
            faults.into_iter().map(|fault| (fault.line, fault.problem)).collect();
        (entries.len(), told)
    };
    let cut = "the line of kind \"end\" is not there: it was cut";
    type Case<'a> = (&'a dyn Fn(&mut Vec<&str>), usize, &'a [(u64, &'a str)]);
    let cases: [Case<'_>; 10] = [
        (&|lines| _ = lines.pop(), 2, &[(3, cut)]),
        (&|lines| _ = lines.remove(0), 2, &[(1, "the first line is not of kind \"header\"")]),
        (&|lines| _ = lines.remove(1), 1, &[(3, "it counts 2 contexts, and there are 1 context")]),
        (&|lines| lines.push(lines[1]), 2, &[(5, "comes after the line of kind \"end\"")]),
        (&|lines| lines.insert(1, lines[0]), 2, &[(2, "is a second header")]),
        (
            &|lines| lines[1] = r#"{"kind":"context","context_id":"a"}"#,
            1,
            &[(2, "missing field `thread_id_key`")],
        ),
        (&|lines| lines[2] = "{", 1, &[(3, "EOF while parsing")]),
        (&|lines| lines[2] = r#"{"kind":"budget"}"#, 1, &[(3, "unknown variant `budget`")]),
        (&|lines| lines.clear(), 0, &[(1, "there is nothing")]),
        // One can't be taken, and another one is not there.
        (
            &|lines| {
                lines[1] = "{";
                lines.remove(2);
            },
            0,
            &[(2, "EOF while parsing"), (3, "it counts 2 contexts, and there are nothing")],
        ),
    ];
    for (change, taken, expected) in cases {
        let (entries, told) = faults(change);
        let is_told = |((line, told), (at, says)): (&(u64, String), &(u64, &str))| {
            line == at && told.starts_with(says)
        };
        assert!(entries == taken && told.len() == expected.len(), "{entries}: {told:?}");
        assert!(told.iter().zip(expected).all(is_told), "{told:?}");
    }
    // Whatever a newer sidecar adds it can't do without.
    let (_, told) = faults(&|lines| {
        lines[1] = r#"{"kind":"context","context_id":"a","lent_to":"b"}"#;
    });
    assert!(told[0].1.starts_with("unknown field `lent_to`"), "{told:?}");
    let newer = changed(&whole, |lines| {
        lines[0] = r#"{"kind":"header","format":"codex-sidecar state","version":2,"sidecar_version":"9.1.0","create_time":"2031-01-01T00:00:00Z"}"#;
    });
    let (entries, told) = read(newer.as_bytes());
    assert!(
        entries.is_empty() && told[0].is_fatal && told[0].problem.contains("9.1.0"),
        "{told:?}"
    );
    let ledger = [b"redb\x1a\n".as_slice(), &[0; 99]].concat();
    let compressed = [b"\x1f\x8b\x08".as_slice(), &[b'\n'; 99]].concat();
    let utf_16: Vec<u8> = whole.iter().flat_map(|byte| [*byte, 0]).collect();
    for (bytes, says) in [
        (ledger, "state export"),
        (compressed, "gunzip"),
        (utf_16, "UTF-8"),
        (Vec::new(), "nothing"),
    ] {
        let (_, told) = read(&bytes);
        assert!(told.len() == 1 && told[0].problem.contains(says), "{told:?}");
    }
    // What some editors put before a text says nothing.
    let (entries, told) = read(&["\u{feff}".as_bytes(), &whole].concat());
    assert_eq!((entries.len(), told), (2, vec![]));
}

fn some_turn() -> Entry {
    let turn_id = TurnId("turn 1".to_owned());
    let encoded = || Encoded { at: prost_types::Timestamp::default(), strange: vec![] };
    let told = pb::ThreadStarted { thread_id: "t".to_owned(), origin: 1 };
    let started = encoded().event(&turn_id, 3, pb::turn_event::Event::ThreadStarted(told));
    let completed = pb::turn_event::Event::TurnCompleted(pb::TurnCompleted::default());
    let end = encoded().event(&turn_id, 9, completed);
    let Entry::Context(context) = some_context("a") else { panic!() };
    let content = ContentHash { version: 1, digest: [7; 32] };
    Entry::Turn(Box::new(KeptTurn {
        turn_id,
        context: Some(context.key),
        created_at: UNIX_EPOCH,
        started_at: UNIX_EPOCH,
        requests: vec![RequestId { id: "r".to_owned(), content }],
        thread_started: Some(KeptThreadStarted {
            thread_id: ThreadId::from_codex("t"),
            worker: None,
            sequence: 3,
            event: started,
        }),
        reserved: 4096,
        end: Some(KeptEnd { ended_at: UNIX_EPOCH, sequence: 9, event: end }),
    }))
}

#[test]
fn what_a_sidecar_never_keeps_is_not_taken() {
    use serde_json::{Value, json};
    let lines = written(&[some_context("a"), some_turn()]);
    assert_eq!(read(&lines).1, []);
    let text = String::from_utf8(lines).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let long = "x".repeat(257);
    let queued = json!({ "position": 1 });
    let completed = lines[2]["end"]["event"]["turn_completed"].clone();
    // The line, what is changed in it, and what is told.
    /// The line's number, what is changed in it, what is said of it.
    type Case<'a> = (usize, &'a [(&'a str, Value)], &'a str);
    let cases: &[Case<'_>] = &[
        (1, &[("/context_id", json!("  c "))], "context_id \"  c \" has space around it"),
        (1, &[("/context_id", json!(""))], "context_id \"\" is empty"),
        (1, &[("/context_id", json!(long))], "… (257 bytes) is too long; give at most 256 bytes"),
        (1, &[("/thread_id_key", json!(long))], "is too long; give at most 256 bytes"),
        (1, &[("/thread_id_key", json!("a\nb"))], "holds the control character U+000A"),
        (2, &[("/requests/0/request_id", json!("x".repeat(37)))], "is no request id"),
        (
            2,
            &[("/reserved_sequence", json!(u64::MAX))],
            "reserved_sequence 18446744073709551615 is not",
        ),
        (
            2,
            &[("/reserved_sequence", json!(u64::MAX)), ("/end", Value::Null)],
            "reserved_sequence 1844",
        ),
        (
            2,
            &[("/reserved_sequence", json!(2)), ("/end", Value::Null)],
            "is behind reserved_sequence",
        ),
        (2, &[("/end/sequence", json!(10))], "end: event has sequence 9 and not 10"),
        (
            2,
            &[("/end/sequence", json!(3)), ("/end/event/sequence", json!("3"))],
            "thread_started.sequence 3 is behind end.sequence",
        ),
        (
            2,
            &[("/end/sequence", json!(0)), ("/end/event/sequence", json!("0"))],
            "end.sequence 0 is not",
        ),
        (2, &[("/end/event/turn_id", json!("turn 2"))], "end: event is of turn \"turn 2\""),
        (2, &[("/end/event/emitted_at", Value::Null)], "end: event has no time"),
        (
            2,
            &[("/end/event/turn_completed", Value::Null), ("/end/event/queued", queued)],
            "end: event is queued, which ends no turn",
        ),
        (2, &[("/end/event/turn_completed", Value::Null)], "end: event is none"),
        (
            2,
            &[
                ("/thread_started/event/thread_started", Value::Null),
                ("/thread_started/event/turn_completed", completed),
            ],
            "thread_started: event is turn_completed, and not",
        ),
        (
            2,
            &[("/thread_started/thread_id", json!("another"))],
            "thread_started: event is thread_started, and not thread_started of that thread",
        ),
    ];
    for (at, changes, says) in cases {
        let mut lines = lines.clone();
        for (pointer, value) in *changes {
            let (object, field) = pointer.rsplit_once('/').unwrap();
            lines[*at].pointer_mut(object).unwrap()[field] = value.clone();
        }
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let (entries, faults) = read(text.as_bytes());
        let told: Vec<&str> = faults.iter().map(|fault| &*fault.problem).collect();
        assert!(entries.len() == 1 && told.len() == 1, "{changes:?}: {told:?}");
        assert!(told[0].contains(says), "{changes:?}: {told:?}");
    }
}
