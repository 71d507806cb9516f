//! Whose a line is that is too long to be kept: the few words of it that tell, and nothing else.
//!
//! A `Scan` is fed the bytes of a line as they come, and keeps only what stands at fixed places of a
//! message: its method, its id, and the ids directly within its parameters. Codex writes those of an
//! item behind the item, and an item may hold any text that a model, a file or a tool wrote: so every
//! byte is looked at, the depth of brackets is counted, and nothing within a string or at another
//! depth is ever taken for an id. What it keeps is bounded, however long the line is.

use memchr::memchr2;
use serde_json::Value;

/// A line that was over the limit, and what is known of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SkippedLine {
    /// How long it was, without its end.
    pub bytes: u64,
    /// How long it might have been.
    pub limit: usize,
    /// Codex's name of what it told or asked.
    pub method: Option<String>,
    /// The id of a request of Codex, or of what is answered.
    pub id: Option<Value>,
    /// Whether it was an answer to a request of ours.
    pub is_answer: bool,
    /// The thread that it was about.
    pub thread_id: Option<String>,
    /// The turn that it was about.
    pub turn_id: Option<String>,
    /// The item that it was about.
    pub item_id: Option<String>,
    /// Codex's name of what the item is.
    pub item_type: Option<String>,
    /// How long the item's text was, as it stood in the line.
    pub item_text_bytes: Option<u64>,
    /// With which status the turn ended, where the line was its end.
    pub turn_status: Option<String>,
    /// Where a list that was answered goes on.
    pub next_cursor: Option<String>,
}

/// A longer value is none that tells whose a line is.
const LONGEST_VALUE: usize = 512;

/// The deepest brackets in which something stands that is kept: `{"params":{"turn":{"id":…}}}`.
const DEPTHS: usize = 3;

/// A look at a line, byte by byte.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    bytes: u64,
    depth: usize,
    levels: [Level; DEPTHS],
    reading: Reading,
    // The key or value that is being read, as it stands in the line; only where it is wanted.
    token: Vec<u8>,
    is_wanted: bool,
    is_over: bool,
    is_broken: bool,
    found: SkippedLine,
}

#[derive(Debug, Default, Clone, Copy, PartialEq)]
enum Reading {
    #[default]
    Structure,
    String {
        is_key: bool,
        is_escaped: bool,
    },
    /// A number, `true`, `false`, `null`.
    Bare,
}

#[derive(Debug, Default, Clone, Copy)]
struct Level {
    is_object: bool,
    expects_key: bool,
    key: Key,
}

/// The keys that lead to what is kept.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
enum Key {
    #[default]
    Other,
    Method,
    Id,
    Params,
    Result,
    Error,
    NextCursor,
    ThreadId,
    ConversationId,
    TurnId,
    ItemId,
    Turn,
    Item,
    Type,
    Text,
    Status,
}

impl Key {
    fn of(name: &[u8]) -> Key {
        match name {
            b"method" => Key::Method,
            b"id" => Key::Id,
            b"params" => Key::Params,
            b"result" => Key::Result,
            b"error" => Key::Error,
            b"nextCursor" => Key::NextCursor,
            b"threadId" => Key::ThreadId,
            // The two older approval requests name the thread so.
            b"conversationId" => Key::ConversationId,
            b"turnId" => Key::TurnId,
            b"itemId" => Key::ItemId,
            b"turn" => Key::Turn,
            b"item" => Key::Item,
            b"type" => Key::Type,
            b"text" => Key::Text,
            b"status" => Key::Status,
            _ => Key::Other,
        }
    }
}

impl Scan {
    /// Looks at more of the line.
    pub(crate) fn feed(&mut self, mut bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        while let Some(&byte) = bytes.first() {
            match self.reading {
                Reading::String { is_key, is_escaped: true } => {
                    self.keep(&bytes[..1]);
                    self.reading = Reading::String { is_key, is_escaped: false };
                    bytes = &bytes[1..];
                }
                Reading::String { is_key, is_escaped: false } => {
                    let end = memchr2(b'"', b'\\', bytes).unwrap_or(bytes.len());
                    self.keep(&bytes[..end]);
                    match bytes.get(end) {
                        Some(b'"') => self.end_string(is_key),
                        Some(_) => {
                            self.keep(b"\\");
                            self.reading = Reading::String { is_key, is_escaped: true };
                        }
                        None => {}
                    }
                    bytes = &bytes[(end + 1).min(bytes.len())..];
                }
                Reading::Bare => {
                    if b",:{}[]\"".contains(&byte) || byte.is_ascii_whitespace() {
                        self.reading = Reading::Structure;
                        self.end_value();
                    } else {
                        self.keep(&bytes[..1]);
                        bytes = &bytes[1..];
                    }
                }
                Reading::Structure => {
                    self.structure(byte);
                    bytes = &bytes[1..];
                }
            }
        }
    }

    /// Whether this is what a caller put in, told back: its start has been seen.
    pub(crate) fn is_echo(&self) -> bool {
        let is_item =
            matches!(self.found.method.as_deref(), Some("item/started" | "item/completed"));
        is_item && self.found.item_type.as_deref() == Some("userMessage")
    }

    /// The line has ended. Of one that was no whole message nothing is known but its length.
    pub(crate) fn end(self, limit: usize) -> SkippedLine {
        let Scan { bytes, is_over, is_broken, found, .. } = self;
        if is_broken || !is_over {
            return SkippedLine { bytes, limit, ..SkippedLine::default() };
        }
        SkippedLine { bytes, limit, ..found }
    }

    fn level(&mut self) -> Option<&mut Level> {
        self.levels.get_mut(self.depth.checked_sub(1)?)
    }

    fn structure(&mut self, byte: u8) {
        if byte.is_ascii_whitespace() {
            return;
        }
        // A message is one object.
        if self.is_over || (self.depth == 0 && byte != b'{') {
            self.is_broken = true;
            return;
        }
        match byte {
            b'{' | b'[' => {
                self.depth += 1;
                let is_object = byte == b'{';
                if let Some(level) = self.level() {
                    *level = Level { is_object, expects_key: is_object, key: Key::Other };
                }
            }
            b'}' | b']' => {
                let is_object = byte == b'}';
                let is_wrong = self.level().is_some_and(|level| level.is_object != is_object);
                self.is_broken |= is_wrong;
                self.depth -= 1;
                self.is_over = self.depth == 0;
            }
            b',' => {
                if let Some(level) = self.level() {
                    level.expects_key = level.is_object;
                    level.key = Key::Other;
                }
            }
            b':' => {}
            b'"' => {
                let is_key = self.level().is_some_and(|level| level.expects_key);
                self.begin(is_key, true);
                self.reading = Reading::String { is_key, is_escaped: false };
            }
            _ => {
                self.begin(false, false);
                self.keep(&[byte]);
                self.reading = Reading::Bare;
            }
        }
    }

    fn begin(&mut self, is_key: bool, is_string: bool) {
        self.token.clear();
        let is_text = is_string && !is_key && self.path() == [Key::Params, Key::Item, Key::Text];
        if is_text {
            self.found.item_text_bytes = Some(0);
        }
        self.is_wanted = is_key || (!is_text && self.is_kept());
        if self.is_wanted && !is_key {
            self.token.push(b'"');
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.is_wanted {
            // One byte too many tells that it was too long.
            let room = (LONGEST_VALUE + 1).saturating_sub(self.token.len());
            self.token.extend_from_slice(&bytes[..bytes.len().min(room)]);
        } else if let Some(length) = &mut self.found.item_text_bytes
            && matches!(self.reading, Reading::String { is_key: false, .. })
            && self.depth == DEPTHS
            && self.levels.map(|level| level.key) == [Key::Params, Key::Item, Key::Text]
        {
            *length += bytes.len() as u64;
        }
    }

    fn end_string(&mut self, is_key: bool) {
        self.reading = Reading::Structure;
        if is_key {
            let key = Key::of(&self.token);
            if let Some(level) = self.level() {
                level.expects_key = false;
                level.key = key;
            }
            if self.depth == 1 {
                self.found.is_answer |= matches!(key, Key::Result | Key::Error);
            }
        } else {
            if self.is_wanted {
                self.token.push(b'"');
            }
            self.end_value();
        }
    }

    /// The keys on the way to the value that is being read; none where it is too deep or in a list.
    fn path(&self) -> [Key; DEPTHS] {
        let mut path = [Key::Other; DEPTHS];
        if self.depth <= DEPTHS {
            for (key, level) in path.iter_mut().zip(&self.levels).take(self.depth) {
                *key = if level.is_object { level.key } else { return [Key::Other; DEPTHS] };
            }
        }
        path
    }

    fn is_kept(&self) -> bool {
        match self.path() {
            [Key::Method | Key::Id, ..] => self.depth == 1,
            [Key::Params, Key::ThreadId | Key::ConversationId | Key::TurnId | Key::ItemId, _] => {
                self.depth == 2
            }
            [Key::Result, Key::NextCursor, _] => self.depth == 2,
            [Key::Params, Key::Turn, Key::Id | Key::Status]
            | [Key::Params, Key::Item, Key::Id | Key::Type] => true,
            _ => false,
        }
    }

    fn end_value(&mut self) {
        if !std::mem::take(&mut self.is_wanted) {
            return;
        }
        let path = self.path();
        // A value that can't be read is as good as none.
        let value = match self.token.strip_prefix(b"\"") {
            _ if self.token.len() > LONGEST_VALUE => return,
            Some(text) if text.ends_with(b"\"") => serde_json::from_slice::<Value>(&self.token),
            Some(bare) => serde_json::from_slice(bare),
            None => return,
        };
        let Ok(value) = value else {
            self.is_broken = true;
            return;
        };
        if path[0] == Key::Id && self.depth == 1 {
            self.is_broken |= self.found.id.replace(value).is_some();
            return;
        }
        let Value::String(text) = value else { return };
        let found = &mut self.found;
        let place = match path {
            [Key::Method, ..] => &mut found.method,
            [Key::Params, Key::ThreadId | Key::ConversationId, _] => &mut found.thread_id,
            [Key::Params, Key::TurnId, _] | [Key::Params, Key::Turn, Key::Id] => &mut found.turn_id,
            [Key::Params, Key::ItemId, _] | [Key::Params, Key::Item, Key::Id] => &mut found.item_id,
            [Key::Params, Key::Item, Key::Type] => &mut found.item_type,
            [Key::Params, Key::Turn, Key::Status] => &mut found.turn_status,
            [Key::Result, Key::NextCursor, _] => &mut found.next_cursor,
            _ => return,
        };
        // Two words on one thing: neither can be trusted.
        self.is_broken |= place.replace(text).is_some();
    }
}

/// How long a text is as Codex writes it into a line: quotes, backslashes and control characters take
/// more than themselves.
pub(crate) fn encoded_bytes(text: &str) -> u64 {
    let escapes = text.bytes().map(|byte| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 1,
        0x00..=0x1f => 5,
        _ => 0,
    });
    text.len() as u64 + escapes.sum::<u64>()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn scan(line: &str, cuts: &[usize]) -> SkippedLine {
        let mut scan = Scan::default();
        let mut rest = line.as_bytes();
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, tail) = rest.split_at((*cut).clamp(1, rest.len()));
            scan.feed(piece);
            rest = tail;
        }
        scan.end(7)
    }

    /// The same by a reader of the whole.
    fn known(line: &str) -> SkippedLine {
        let value: Value = serde_json::from_str(line).unwrap();
        let text =
            |pointer: &str| value.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        SkippedLine {
            bytes: line.len() as u64,
            limit: 7,
            method: text("/method"),
            id: value.get("id").cloned(),
            is_answer: value.get("result").or(value.get("error")).is_some(),
            thread_id: text("/params/threadId").or_else(|| text("/params/conversationId")),
            turn_id: text("/params/turnId").or_else(|| text("/params/turn/id")),
            item_id: text("/params/itemId").or_else(|| text("/params/item/id")),
            item_type: text("/params/item/type"),
            item_text_bytes: value
                .pointer("/params/item/text")
                .filter(|text| text.is_string())
                .map(|text| text.to_string().len() as u64 - 2),
            turn_status: text("/params/turn/status"),
            next_cursor: text("/result/nextCursor"),
        }
    }

    #[test]
    fn lines_as_codex_writes_them_tell_whose_they_are() {
        let (thread, turn) = ("01a2-thread", "01a2-turn");
        for line in [
            json!({"method": "item/agentMessage/delta", "params": {"threadId": thread, "turnId": turn, "itemId": "msg_1", "delta": "x"}}),
            json!({"method": "item/completed", "params": {
                "item": {"type": "fileChange", "id": "c1", "changes": [{"path": "a", "diff": "}},\"threadId\":\"evil\""}]},
                "threadId": thread, "turnId": turn, "startedAtMs": 1}, "emittedAtMs": 2}),
            json!({"method": "turn/completed", "params": {"threadId": thread, "turn": {
                "id": turn, "rootTurnId": "evil", "items": [{"type": "agentMessage", "id": "evil", "status": "evil"}],
                "status": "completed", "error": null}}, "emittedAtMs": 2}),
            json!({"id": 7, "result": {"threadId": "evil", "params": {"threadId": "evil"}, "data": ["x"]}}),
            json!({"id": 7, "result": {"data": [{"nextCursor": "evil"}], "nextCursor": "{\"at\":8}"}}),
            json!({"id": 7, "result": {"data": ["nextCursor"], "nextCursor": null}}),
            json!({"result": [[{"id": 8}]], "id": 9}),
            json!({"id": "a", "method": "item/tool/call", "params": {"arguments": {"threadId": "evil"}, "threadId": thread}}),
            json!({"method": "execCommandApproval", "id": 3, "params": {"conversationId": thread, "command": ["x"]}}),
            json!({"method": "warning", "params": {"threadId": null, "message": "x"}}),
            json!({"method": "warning", "params": [{"threadId": "evil"}]}),
        ] {
            let line = line.to_string();
            assert_eq!(scan(&line, &[line.len()]), known(&line), "{line}");
            assert_eq!(scan(&line, &[1]), known(&line), "{line}");
        }
    }

    #[test]
    fn of_what_is_no_whole_message_nothing_is_believed() {
        let good = r#"{"method":"x","params":{"threadId":"t"}}"#;
        assert_eq!(scan(good, &[3]).thread_id.as_deref(), Some("t"));
        for line in [
            r#"{"method":"x","params":{"threadId":"t"}"#,
            r#"{"method":"x","params":{"threadId":"t"}}}"#,
            r#"{"method":"x","params":{"threadId":"t"}}{}"#,
            r#"{"method":"x","params":{"threadId":"t"]}"#,
            r#"{"method":"x","params":{"threadId":"t","threadId":"u"}}"#,
            r#"{"method":"x","params":{"threadId":"\q"}}"#,
            r#"[{"method":"x","params":{"threadId":"t"}}]"#,
            r#"{"method":"x","params":{"threadId":"t"}} "half"#,
            r#"what {"method":"x","params":{"threadId":"t"}}"#,
            "",
        ] {
            let expected =
                SkippedLine { bytes: line.len() as u64, limit: 7, ..SkippedLine::default() };
            assert_eq!(scan(line, &[2]), expected, "{line}");
        }
        // Too long to be an id: as good as none, and the rest holds.
        let long = json!({"method": "x", "params": {"threadId": "t".repeat(600), "turnId": "u"}});
        let seen = scan(&long.to_string(), &[64]);
        assert_eq!((seen.thread_id, seen.turn_id.as_deref()), (None, Some("u")));
    }

    #[test]
    fn what_is_kept_is_bounded_whatever_the_line_is() {
        let piece = r#"\"threadId\":\"evil\","#.repeat(1000);
        let mut line = Scan::default();
        line.feed(br#"{"method":"item/completed","params":{"item":{"text":""#);
        for _ in 0..400 {
            line.feed(piece.as_bytes());
        }
        assert!(line.token.capacity() <= 2 * (LONGEST_VALUE + 2));
        line.feed(br#"","type":"agentMessage"},"threadId":"t"}}"#);
        let seen = line.end(7);
        assert_eq!(seen.item_text_bytes, Some(400 * piece.len() as u64));
        assert_eq!(seen.thread_id.as_deref(), Some("t"));
    }

    /// Texts that look like what ends a string, an object, a line.
    fn hostile() -> impl Strategy<Value = String> {
        let parts = prop_oneof![
            Just("\"},\"threadId\":\"evil\",\"turnId\":\"evil\"}}".to_owned()),
            Just("\\".to_owned()),
            Just("\"".to_owned()),
            Just("\\\"}".to_owned()),
            Just("{[".to_owned()),
            Just("\n\t\u{1}".to_owned()),
            Just("\"id\":7,\"result\":{}".to_owned()),
            any::<String>(),
        ];
        prop::collection::vec(parts, 0..6).prop_map(|parts| parts.concat())
    }

    fn tree() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            hostile().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<bool>().prop_map(Value::from),
            Just(Value::Null),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            let key = prop_oneof![
                Just("threadId".to_owned()),
                Just("turnId".to_owned()),
                Just("nextCursor".to_owned()),
                Just("id".to_owned()),
                Just("item".to_owned()),
                Just("params".to_owned()),
                Just("type".to_owned()),
                Just("text".to_owned()),
                Just("method".to_owned()),
                hostile(),
            ];
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((key, inner), 0..4)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn it_reads_what_a_json_reader_reads_wherever_the_line_is_cut(
            item in tree(),
            more in tree(),
            thread in "[a-z0-9-]{1,12}",
            ids_first in any::<bool>(),
            is_turn in any::<bool>(),
            cuts in prop::collection::vec(1_usize..40, 1..30),
        ) {
            let subject = if is_turn { "turn" } else { "item" };
            let params = if ids_first {
                json!({"threadId": thread, "turnId": "u", "more": more, subject: item})
            } else {
                json!({subject: item, "more": more, "threadId": thread, "turnId": "u"})
            };
            // Two words on one thing are believed by neither.
            let is_short = |text: &String| serde_json::to_string(text).unwrap().len() <= LONGEST_VALUE;
            let is_doubled = is_turn && item["id"].as_str().is_some_and(|id| is_short(&id.to_owned()));
            let line = json!({"method": "m", "params": params, "more": more, "emittedAtMs": 1}).to_string();
            let seen = scan(&line, &cuts);
            if is_doubled {
                prop_assert_eq!(seen.thread_id, None);
            } else {
                let mut expected = known(&line);
                expected.item_id = expected.item_id.filter(is_short);
                expected.item_type = expected.item_type.filter(is_short);
                expected.turn_status = expected.turn_status.filter(is_short);
                prop_assert_eq!(seen, expected);
            }
        }

        #[test]
        fn the_length_of_a_text_in_a_line_is_known(text in hostile()) {
            let written = serde_json::to_string(&text).unwrap().len() as u64 - 2;
            prop_assert_eq!(encoded_bytes(&text), written);
        }
    }
}
