//! The lines of contexts, bound and evicted.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::encoded::time;
use super::{is_false, key, name, thread_id};
use crate::model::id::{ContextKey, TurnId};
use crate::registry::bindings::Binding;
use crate::registry::ledger::{KeptBinding, KeptMark};

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct ContextLine {
    context_id: String,
    thread_id_key: String,
    thread_id: String,
    #[serde(with = "time")]
    create_time: SystemTime,
    #[serde(with = "time")]
    update_time: SystemTime,
    #[serde(with = "time")]
    use_time: SystemTime,
    turn_count: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    latest_turn_id: Option<String>,
    #[serde(default, skip_serializing_if = "is_false")]
    fresh_copy: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    copied_from_thread_id: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct EvictedLine {
    context_id: String,
    thread_id_key: String,
    thread_id: String,
    #[serde(with = "time")]
    evict_time: SystemTime,
}

impl From<KeptBinding> for ContextLine {
    fn from(kept: KeptBinding) -> ContextLine {
        let KeptBinding { key, binding } = kept;
        let ContextKey { tenant: _, context_id, thread_key } = key;
        let Binding {
            thread_id,
            created_at,
            updated_at,
            turns,
            latest_turn,
            is_fresh_copy,
            copied_from,
            used_at,
        } = binding;
        ContextLine {
            context_id,
            thread_id_key: thread_key,
            thread_id: thread_id.to_string(),
            create_time: created_at,
            update_time: updated_at,
            use_time: used_at,
            turn_count: turns,
            latest_turn_id: latest_turn.map(|turn| turn.0),
            fresh_copy: is_fresh_copy,
            copied_from_thread_id: copied_from.map(|thread| thread.to_string()),
        }
    }
}

impl TryFrom<ContextLine> for KeptBinding {
    type Error = String;

    fn try_from(line: ContextLine) -> Result<KeptBinding, String> {
        let ContextLine {
            context_id,
            thread_id_key,
            thread_id: thread,
            create_time,
            update_time,
            use_time,
            turn_count,
            latest_turn_id,
            fresh_copy,
            copied_from_thread_id,
        } = line;
        let binding = Binding {
            thread_id: thread_id("thread_id", thread)?,
            created_at: create_time,
            updated_at: update_time,
            turns: turn_count,
            latest_turn: latest_turn_id
                .map(|id| name("latest_turn_id", id).map(TurnId))
                .transpose()?,
            is_fresh_copy: fresh_copy,
            copied_from: copied_from_thread_id
                .map(|id| thread_id("copied_from_thread_id", id))
                .transpose()?,
            used_at: use_time,
        };
        Ok(KeptBinding { key: key(context_id, thread_id_key)?, binding })
    }
}

impl From<KeptMark> for EvictedLine {
    fn from(kept: KeptMark) -> EvictedLine {
        let KeptMark { key, thread_id, evicted_at } = kept;
        let ContextKey { tenant: _, context_id, thread_key } = key;
        EvictedLine {
            context_id,
            thread_id_key: thread_key,
            thread_id: thread_id.to_string(),
            evict_time: evicted_at,
        }
    }
}

impl TryFrom<EvictedLine> for KeptMark {
    type Error = String;

    fn try_from(line: EvictedLine) -> Result<KeptMark, String> {
        let EvictedLine { context_id, thread_id_key, thread_id: thread, evict_time } = line;
        Ok(KeptMark {
            key: key(context_id, thread_id_key)?,
            thread_id: thread_id("thread_id", thread)?,
            evicted_at: evict_time,
        })
    }
}
