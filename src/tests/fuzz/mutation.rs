//! Inputs that are nearly right.
//!
//! A script of bytes says which seed is taken and what is done to it, step by step. So whoever makes
//! scripts at random, shrinks them or breeds them by coverage gets inputs that reach beyond the first
//! check of a parser: bytes at random hardly ever do.

use serde_json::Value;

/// Most bytes of an input: beyond that it grows no more.
const LONGEST: usize = 64 << 10;

/// What parsers look for, or should refuse.
const WORDS: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    "\"",
    "\\",
    ":",
    ",",
    "=",
    ".",
    ";",
    "'",
    "#",
    "%",
    "/",
    "\n",
    "\r\n",
    "\0",
    " ",
    "\t",
    "null",
    "true",
    "false",
    "\"\"",
    "[]",
    "{}",
    "[[",
    "]]",
    "\"\"\"",
    "'''",
    "..",
    "../",
    "//",
    "-",
    "+",
    "e",
    "\\u0000",
    "\\ud800",
    "\\ud83d\\ude00",
    "\u{feff}",
    "\u{2028}",
    "\u{1f980}",
    "ä",
    "data:",
    ";base64,",
    "$ref",
    "$defs",
    "#/$defs/a",
    "type",
    "object",
    "properties",
    "required",
    "\"id\":",
    "\"method\":",
    "\"params\":",
    "\"item\":",
    "\"type\":",
    "\"threadId\":",
    "\"turnId\":",
    "\"result\":",
    "\"error\":",
];

/// Numbers at which something ends.
const NUMBERS: &[&str] = &[
    "0",
    "-0",
    "-1",
    "1",
    "255",
    "256",
    "65535",
    "65536",
    "2147483647",
    "2147483648",
    "4294967295",
    "9007199254740993",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "1e308",
    "1e999",
    "-1e-999",
    "0.1",
    "1_000",
    "0x7f",
    "99999999999999999999999999999999999999999",
];

/// What may be nested, each before and behind something.
const BRACKETS: &[(&str, &str)] = &[
    ("[", "]"),
    ("{\"a\":", "}"),
    ("[[", "]]"),
    ("a.", ""),
    ("{a=", "}"),
    ("\"", "\""),
    ("\\", ""),
    ("{\"properties\":{\"a\":", "}}"),
    ("{\"items\":", "}"),
    ("{\"anyOf\":[", "]}"),
    ("\x0a\x7f", ""),
];

/// The input that a script comes to.
pub(super) fn input(seeds: &[Vec<u8>], script: &[u8]) -> Vec<u8> {
    let mut script = Script(script);
    let seed = script.below(seeds.len() + 1);
    let mut input = match seeds.get(seed) {
        Some(seed) => seed.clone(),
        // Now and then nothing but what the script says.
        None => return script.0.to_vec(),
    };
    while !script.0.is_empty() {
        step(&mut input, seeds, &mut script);
        input.truncate(LONGEST);
    }
    input
}

fn step(input: &mut Vec<u8>, seeds: &[Vec<u8>], script: &mut Script<'_>) {
    let kind = script.byte() % 16;
    let at = script.below(input.len() + 1);
    let rest = input.len() - at;
    match kind {
        0 => {
            if let Some(byte) = input.get_mut(at) {
                *byte ^= 1 << (script.byte() % 8);
            }
        }
        1 => {
            if let Some(byte) = input.get_mut(at) {
                *byte = script.byte();
            }
        }
        2 => insert(input, at, &script.bytes(8)),
        3 => _ = input.drain(at..at + script.below(rest.min(64) + 1)),
        4 => input.truncate(at),
        5 => {
            let other = &seeds[script.below(seeds.len())];
            let part = script.part(other);
            insert(input, at, part);
        }
        6 => {
            let other = &seeds[script.below(seeds.len())];
            input.truncate(at);
            input.extend(&other[script.below(other.len() + 1)..]);
        }
        7 => {
            let part = input[at..at + script.below(rest.min(64) + 1)].to_vec();
            let part = part.repeat(1 << (script.byte() % 9));
            insert(input, at, &part);
        }
        8 => {
            let (before, behind) = BRACKETS[script.below(BRACKETS.len())];
            let times = 1 << (script.byte() % 12);
            let end = at + script.below(rest + 1);
            insert(input, end, behind.repeat(times).as_bytes());
            insert(input, at, before.repeat(times).as_bytes());
        }
        9 => {
            let is_digit = |byte: &u8| byte.is_ascii_digit();
            if let Some(begin) = input[at..].iter().position(is_digit).map(|begin| at + begin) {
                let digits = input[begin..].iter().take_while(|byte| is_digit(byte)).count();
                let number = NUMBERS[script.below(NUMBERS.len())].bytes();
                input.splice(begin..begin + digits, number);
            }
        }
        10 | 11 => insert(input, at, WORDS[script.below(WORDS.len())].as_bytes()),
        12 => {
            // A line twice, or another one's in its place.
            let lines: Vec<&[u8]> = input.split_inclusive(|byte| *byte == b'\n').collect();
            let (from, to) = (script.below(lines.len()), script.below(lines.len() + 1));
            let moved = lines.get(from).copied().unwrap_or_default();
            *input = [&lines[..to], &[moved], &lines[to..]].concat().concat();
        }
        _ => {
            if let Some(changed) = json(input, seeds, script) {
                *input = changed;
            }
        }
    }
}

fn insert(input: &mut Vec<u8>, at: usize, part: &[u8]) {
    if input.len() + part.len() <= LONGEST {
        input.splice(at..at, part.iter().copied());
    }
}

/// Changes one value within one line, where that is JSON.
fn json(input: &[u8], seeds: &[Vec<u8>], script: &mut Script<'_>) -> Option<Vec<u8>> {
    let mut lines: Vec<Vec<u8>> = input.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    let count = lines.len();
    let line = &mut lines[script.below(count)];
    let mut root: Value = serde_json::from_slice(line).ok()?;
    let other = match script.byte() % 12 {
        0 => Value::Null,
        1 => Value::Bool(script.byte().is_multiple_of(2)),
        2 => serde_json::from_str(NUMBERS[script.below(NUMBERS.len())]).unwrap_or(Value::Null),
        3 => Value::String(WORDS[script.below(WORDS.len())].to_owned()),
        4 => Value::String("x".repeat(1 << (script.byte() % 14))),
        5 => Value::Array(Vec::new()),
        6 => Value::Object(serde_json::Map::new()),
        7 => Value::Array(vec![root.clone()]),
        // A value of another place, or of another seed.
        8 | 9 => value(&mut root, script.below(usize::MAX))?.clone(),
        _ => {
            let seed = &seeds[script.below(seeds.len())];
            let mut lines = seed.split(|byte| *byte == b'\n');
            let mut other = serde_json::from_slice(lines.next()?).ok()?;
            value(&mut other, script.below(usize::MAX))?.clone()
        }
    };
    let place = value(&mut root, script.below(usize::MAX))?;
    match (place, script.byte() % 4) {
        (Value::Object(object), 0) => {
            let name = object.keys().nth(script.below(object.len().max(1))).cloned();
            _ = object.remove(&name.unwrap_or_default());
        }
        (Value::Object(object), 1) => {
            let name = object.keys().nth(script.below(object.len().max(1))).cloned();
            _ = object.insert(name.unwrap_or_default(), other);
        }
        (Value::Array(list), 0 | 1) => list.push(other),
        (place, _) => *place = other,
    }
    *line = serde_json::to_vec(&root).ok()?;
    Some(lines.join(&b'\n'))
}

/// The value that comes as the `number`-th, counted round and round.
fn value(root: &mut Value, number: usize) -> Option<&mut Value> {
    let number = number % count(root);
    let mut seen = 0;
    find(root, number, &mut seen)
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(list) => list.iter().map(count).sum(),
        Value::Object(object) => object.values().map(count).sum(),
        _ => 0,
    }
}

fn find<'a>(value: &'a mut Value, number: usize, seen: &mut usize) -> Option<&'a mut Value> {
    if *seen == number {
        return Some(value);
    }
    *seen += 1;
    match value {
        Value::Array(list) => list.iter_mut().find_map(|value| find(value, number, seen)),
        Value::Object(object) => object.values_mut().find_map(|value| find(value, number, seen)),
        _ => None,
    }
}

/// What is left of a script. At its end all is zero.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> u8 {
        let Some((byte, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *byte
    }

    /// A number below `end`; 0 where there is none.
    fn below(&mut self, end: usize) -> usize {
        let number = usize::from(u16::from_le_bytes([self.byte(), self.byte()]));
        number.checked_rem(end).unwrap_or_default()
    }

    /// As many of the next bytes as the next one says, at most so many.
    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let length = usize::from(self.byte()) % (most + 1);
        (0..length).map(|_| self.byte()).collect()
    }

    fn part<'a>(&mut self, whole: &'a [u8]) -> &'a [u8] {
        let begin = self.below(whole.len() + 1);
        &whole[begin..begin + self.below(whole.len() - begin + 1)]
    }
}
