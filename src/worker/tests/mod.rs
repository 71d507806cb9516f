//! A worker over two streams in memory, on a paused clock: what it makes of everything that the other
//! side can do.

mod asking;
mod ends;
mod handshake;
mod lines;
mod loading;
mod mcp;
mod routing;
mod unowned;

use std::time::Duration;

use serde_json::{Value, json};

use crate::model::id::ThreadId;
use crate::model::options::ThreadOptions;
use crate::model::request::{UserInput, Work};
use crate::model::workspace::Workspace;
use crate::worker::testing::Codex;
use crate::worker::thread::{LoadedThread, Task, ThreadError};
use crate::worker::{NoRoute, Route, ThreadMessage, Worker};

const SECOND: Duration = Duration::from_secs(1);

/// What a message is, in short: `turn/started`, `a question: item/tool/call`, `a skipped line`.
fn kind(message: &ThreadMessage) -> String {
    match message {
        ThreadMessage::Told(told) => told.method().to_owned(),
        ThreadMessage::Asked(asked) => format!("a question: {}", asked.call.method()),
        ThreadMessage::Skipped(_) => "a skipped line".to_owned(),
    }
}

async fn next(route: &mut Route) -> String {
    match route.recv().await {
        Some(message) => kind(&message),
        None => "the end".to_owned(),
    }
}

/// All that a route holds once everything has been said.
async fn all(route: &mut Route) -> Vec<String> {
    settle().await;
    std::iter::from_fn(|| route.try_recv()).map(|message| kind(&message)).collect()
}

/// Lets everybody do what there is to do now.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

fn thread(id: &str) -> ThreadId {
    ThreadId::from_codex(id)
}

fn workspace() -> Workspace {
    Workspace { working_directory: "/w".into(), additional_directories: Vec::new() }
}

/// A turn that is begun and that Codex takes.
const ROOT: &str = "r";

impl Worker {
    async fn opens(
        &self,
        options: &ThreadOptions,
    ) -> Result<(ThreadId, LoadedThread), ThreadError> {
        self.start_thread(options, &workspace(), false).await
    }

    async fn loads(&self, id: &str, options: &ThreadOptions) -> Result<LoadedThread, ThreadError> {
        self.resume_thread(&thread(id), options, &workspace()).await
    }

    async fn starts(
        &self,
        id: &str,
        loaded: &mut LoadedThread,
        options: &ThreadOptions,
    ) -> Result<String, ThreadError> {
        let inputs = [UserInput::Text("hello".to_owned())];
        let task =
            Task { root_turn_id: ROOT, work: &Work::Inputs, inputs: &inputs, output_schema: None };
        self.start_turn(&thread(id), loaded, task, options, &workspace()).await
    }

    /// Adds words to a turn.
    async fn says(&self, words: &str) -> Result<(), String> {
        let inputs = [UserInput::Text(words.to_owned())];
        let steered = self.steer_turn(&thread("t"), "u", &inputs).await;
        steered.map_err(|error| error.to_string())
    }
}

impl Codex {
    /// Nothing is asked for so long.
    async fn is_left_alone_for(&mut self, time: Duration) {
        if let Ok(asked) = tokio::time::timeout(time, self.next()).await {
            panic!("{asked:?}");
        }
    }
}
