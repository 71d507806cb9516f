//! Threads, as far as they tell of their parents.

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::News;

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::app_server) struct CodexThread {
    id: String,
    parent_thread_id: Option<String>,
    #[serde(default)]
    source: Value,
}

impl CodexThread {
    /// The thread of the agent that made this one.
    pub(in crate::app_server) fn parent(&self) -> Option<String> {
        let spawned_by = || {
            let parent = self.source.pointer("/subAgent/thread_spawn/parent_thread_id")?;
            parent.as_str().map(str::to_owned)
        };
        self.parent_thread_id.clone().or_else(spawned_by)
    }
}

pub(super) fn thread_started(thread: &RawValue) -> Option<News> {
    let thread: CodexThread = serde_json::from_str(thread.get()).ok()?;
    Some(News::ThreadStarted { parent: thread.parent(), thread_id: thread.id })
}
