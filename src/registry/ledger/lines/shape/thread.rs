//! The line of what is known of a thread.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::encoded::{Base64, time};
use super::thread_id;
use crate::model::event::Usage;
use crate::model::fingerprint::Fingerprint;
use crate::model::id::ThreadId;
use crate::registry::ledger::KeptFacts;
use crate::registry::threads::{Left, SeenTurn, ThreadFacts, TurnsSeen};

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct ThreadLine {
    thread_id: String,
    /// When this was told of it.
    #[serde(with = "time")]
    update_time: SystemTime,
    /// Whether Codex was never seen to work on a turn of it.
    blank: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    usage: Option<UsageLine>,
    /// The turns that were seen to end on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    turns_seen: Option<TurnsSeenLine>,
    /// Which settings its last turn has left in force that Codex does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    left: Option<LeftLine>,
    /// SHA-256 in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dynamic_tools_digest: Option<Base64>,
    /// SHA-256 in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    developer_instructions_digest: Option<Base64>,
}

#[derive(Debug, Serialize, Deserialize)]
struct UsageLine(#[serde(with = "UsageFields")] Usage);

#[derive(Debug, Serialize, Deserialize)]
#[serde(remote = "Usage", deny_unknown_fields)]
struct UsageFields {
    input_tokens: u64,
    cached_input_tokens: u64,
    cache_write_input_tokens: u64,
    output_tokens: u64,
    reasoning_output_tokens: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TurnsSeenLine {
    count: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last: Option<SeenTurnLine>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LeftLine {
    reasoning_summary: bool,
    service_tier: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SeenTurnLine {
    codex_turn_id: String,
    completed: bool,
}

impl From<(ThreadId, KeptFacts)> for ThreadLine {
    fn from((thread_id, kept): (ThreadId, KeptFacts)) -> ThreadLine {
        let KeptFacts { facts, at } = kept;
        let ThreadFacts { usage, is_blank, turns, left, dynamic_tools, developer_instructions } =
            facts;
        let digest = |fingerprint: Fingerprint| Base64(fingerprint.as_bytes().to_vec());
        let seen = |SeenTurn { id, has_completed }| SeenTurnLine {
            codex_turn_id: id,
            completed: has_completed,
        };
        ThreadLine {
            thread_id: thread_id.to_string(),
            update_time: at,
            blank: is_blank,
            usage: usage.map(UsageLine),
            turns_seen: turns
                .map(|TurnsSeen { count, last }| TurnsSeenLine { count, last: last.map(seen) }),
            left: left.map(|Left { summary, service_tier }| LeftLine {
                reasoning_summary: summary,
                service_tier,
            }),
            dynamic_tools_digest: dynamic_tools.map(digest),
            developer_instructions_digest: developer_instructions.map(digest),
        }
    }
}

impl TryFrom<ThreadLine> for (ThreadId, KeptFacts) {
    type Error = String;

    fn try_from(line: ThreadLine) -> Result<(ThreadId, KeptFacts), String> {
        let ThreadLine {
            thread_id: thread,
            update_time,
            blank,
            usage,
            turns_seen,
            left,
            dynamic_tools_digest,
            developer_instructions_digest,
        } = line;
        let fingerprint = |field: &str, digest: Option<Base64>| {
            digest.map(|digest| digest.digest(field).map(Fingerprint::from_bytes)).transpose()
        };
        let seen = |SeenTurnLine { codex_turn_id, completed }| SeenTurn {
            id: codex_turn_id,
            has_completed: completed,
        };
        let facts = ThreadFacts {
            usage: usage.map(|UsageLine(usage)| usage),
            is_blank: blank,
            turns: turns_seen
                .map(|TurnsSeenLine { count, last }| TurnsSeen { count, last: last.map(seen) }),
            left: left.map(|LeftLine { reasoning_summary, service_tier }| Left {
                summary: reasoning_summary,
                service_tier,
            }),
            dynamic_tools: fingerprint("dynamic_tools_digest", dynamic_tools_digest)?,
            developer_instructions: fingerprint(
                "developer_instructions_digest",
                developer_instructions_digest,
            )?,
        };
        Ok((thread_id("thread_id", thread)?, KeptFacts { facts, at: update_time }))
    }
}
