//! A scripted OpenAI Responses API on loopback: the *offline model*.
//!
//! The real Codex CLI takes it for its model provider, so that demos, tests, benchmarks and integration tests of
//! users run the real thing with no key, no network and no cost. It owns a listener, its connections and a model
//! catalog; it never starts Codex, never leaves loopback and keeps no state between requests: everything is decided
//! from the `input` that Codex sends, as with a real model. It lives until it is shut down or dropped, and takes its
//! connections with it.
//!
//! # What it answers
//!
//! `You said: {last user message} (user messages so far: {n})`, word by word. What Codex itself puts into the
//! conversation (developer messages, `AGENTS.md`, `<environment_context>` and the like) is neither echoed nor
//! counted. Usage counts four characters of input, and one word of output, as a token; what came before the last
//! user message counts as cached.
//!
//! # Directives
//!
//! A prompt may say what should happen instead, in double square brackets. Directives are done in order; other text
//! around them is free. With no answer among those that follow the last tool call, the default answer ends the turn
//! (the prompt as it is, directives included). `[[` followed by anything but a lower-case letter is ordinary text,
//! and pairs of brackets nest. A directive that can't be understood gets an answer that says why, and nothing of
//! that prompt is done.
//!
//! | directive | what happens |
//! |---|---|
//! | `[[say TEXT]]` | an agent message of exactly that text |
//! | `[[json VALUE]]` | an agent message of exactly that JSON, for turns with an output schema |
//! | `[[words N]]` | an agent message `w1 w2 … wN`, one delta per word |
//! | `[[bytes N]]` | an agent message of N bytes (`0123456789abcdef…`), in deltas of up to 64 KiB; N up to 64 Mi |
//! | `[[show POINTER]]` | an agent message with what the model was sent: the JSON at this pointer into the request, such as `/model`, `/reasoning/effort`, `/text/format`, `/tools`, `/input` |
//! | `[[reason TEXT]]` | a reasoning item with a streamed summary |
//! | `[[run COMMAND]]` | a shell command, waited for up to 30 s; after that it goes on in the background |
//! | `[[write FILE TEXT]]` | a file change: FILE (no spaces) with TEXT, which may have many lines |
//! | `[[patch PATCH]]` | any other file change, in the language of `apply_patch` (`*** Update File: …`), with or without its first and last line |
//! | `[[plan A; B; C]]` | a plan: A completed, B in progress, the rest pending |
//! | `[[escalate COMMAND]]` | a shell command outside the sandbox, which Codex asks for under `on-request` |
//! | `[[ask QUESTION \| A \| B; …]]` | questions to the user, each with what to choose from; their ids are `q1`, `q2`, … |
//! | `[[permit {…}]]` | a request for more permissions: `{"network": {"enabled": true}, "file_system": {"write": ["/…"]}}` |
//! | `[[tool NAME {…}]]` | a call of any tool with these arguments: built-in, dynamic, or `server.tool` for MCP; the JSON may be left out. A freeform tool takes its `input` |
//! | `[[and]]` | between two calls: both are made at once |
//! | `[[review allow WHY]]`, `[[review deny WHY]]` | what Codex's reviewer says of all that the turn asks for, with `approvals_reviewer = auto_review`; without it, that it may. `[[review nonsense]]` is no verdict, `[[review hang]]` never comes |
//! | `[[slow MS]]` | a pause of MS milliseconds between deltas, wherever it stands in the prompt (also `[[slow 1s]]`) |
//! | `[[wait DURATION]]` | a pause before what follows: `500ms`, `2s`, `1m 30s` |
//! | `[[status CODE]]`, `[[status CODE SECONDS]]` | HTTP status 400 to 599 instead of an answer, with `Retry-After: SECONDS`. Comes first, or right after a call: an answer that has begun has its status |
//! | `[[fail CODE]]`, `[[fail CODE MESSAGE]]` | the answer ends as `response.failed` with this error code: `context_length_exceeded`, `insufficient_quota`, `rate_limit_exceeded`, … |
//! | `[[incomplete REASON]]` | the answer ends as `response.incomplete` for this reason: `content_filter`, `max_output_tokens`, … |
//! | `[[next]]` | what follows is for the next turn that Codex takes by itself, to go on with a goal; the last part is for all turns from there on |
//! | `[[end]]` | the answer ends here, without the default message |
//! | `[[cut]]` | the connection breaks in the middle of a message |
//! | `[[hang]]` | silence, until the client goes away |
//!
//! `status`, `fail`, `incomplete`, `end`, `cut` and `hang` end the answer; what follows them is not done. The calls are
//! `run`, `write`, `patch`, `plan`, `escalate`, `ask`, `permit` and `tool`: Codex answers each, or those that `[[and]]`
//! joins together, with a new request, whose tool outputs since the last user message say how many are done. One that
//! was denied counts as done, like any other.
//!
//! What Codex asks its user comes of `escalate` (a command), `write` and `patch` where the sandbox is read-only (a
//! change of files), `permit`, `ask`, and `tool` with an MCP server's tool or a function that the caller lends.
//! `ask` and `permit` need features that Codex has off by default; the overrides below switch them on.
//!
//! ```text
//! [[escalate rm -r build]] [[ask Which one? | the first | the second]] [[say thank you]]
//! [[tool look {"n": 1}]] [[and]] [[tool look {"n": 2}]] [[say both]]
//! [[reason let me look]] [[run ls -l]] [[write notes.txt done]] [[say I wrote it down]]
//! ```

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use self::catalog::{Catalog, MODEL};

mod catalog;
pub(crate) mod directive;
pub(crate) mod script;
mod server;
pub(crate) mod sse;

/// What `shutdown` gives its connections to end. They are aborted, so only a busy runtime needs any of it.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(2);

/// A scripted model, listening on loopback until it is shut down or dropped.
///
/// The module's documentation says what it answers and how a prompt directs it.
#[derive(Debug)]
pub struct OfflineModel {
    addr: SocketAddr,
    requests: Arc<AtomicU64>,
    catalog: Catalog,
    stop: Option<oneshot::Sender<()>>,
    server: JoinHandle<()>,
}

impl OfflineModel {
    /// Listens on `addr`, which must be a loopback address; port 0 picks a free one.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidInput`] for an address others could reach: whoever talks to the model decides which
    /// commands Codex runs. Else what binding the address, or making the catalog, came to.
    pub async fn start(addr: SocketAddr) -> io::Result<Self> {
        if !addr.ip().is_loopback() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("the offline model listens on loopback only, not on {addr}"),
            ));
        }
        let catalog = Catalog::new()?;
        let listener = TcpListener::bind(addr).await?;
        let addr = listener.local_addr()?;
        let requests = Arc::new(AtomicU64::new(0));
        let (stop, stopped) = oneshot::channel();
        let server = tokio::spawn(server::serve(listener, Arc::clone(&requests), stopped));
        Ok(Self { addr, requests, catalog, stop: Some(stop), server })
    }

    /// Where Codex finds it: `http://127.0.0.1:PORT/v1`.
    fn base_url(&self) -> String {
        format!("http://{}/v1", self.addr)
    }

    /// How many requests for a response it has begun to answer, failures and silence included.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// The values of the `-c` flags that make a Codex CLI use this model, whatever its `config.toml` says.
    ///
    /// They name no key, so none is needed, and no retries, so that a scripted failure is seen at once. They are good
    /// for as long as this model lives, and for processes that may read `/proc` of this one, where the model's catalog
    /// is: same user, same PID namespace, and this process has not made itself undumpable.
    pub fn config_overrides(&self) -> Vec<String> {
        [
            ("model", MODEL),
            ("model_provider", "offline"),
            ("model_providers.offline.name", "offline model"),
            ("model_providers.offline.base_url", &self.base_url()),
            ("model_providers.offline.wire_api", "responses"),
            ("model_catalog_json", &self.catalog.path()),
        ]
        .map(|(key, text)| format!("{key}={}", toml::Value::from(text)))
        .into_iter()
        .chain(
            [
                "model_providers.offline.request_max_retries=0",
                "model_providers.offline.stream_max_retries=0",
                // Off by default since about 0.160; `[[plan]]` needs it.
                "tools.update_plan.enabled=true",
                // Off by default: `[[ask]]` and `[[permit]]` need them. Codex would warn of them on every thread.
                "features.default_mode_request_user_input=true",
                "features.request_permissions_tool=true",
                "suppress_unstable_features_warning=true",
            ]
            .map(str::to_owned),
        )
        .collect()
    }

    /// Writes the model's catalog into a directory, for processes that may not read `/proc` of this one; gives the
    /// value of the `-c` flag for it, which belongs behind [the others](Self::config_overrides). The file stays: it
    /// holds nothing, and is the same for all models.
    ///
    /// # Errors
    ///
    /// The file can't be written.
    pub fn write_catalog(&self, directory: &Path) -> io::Result<String> {
        let path = catalog::write(directory)?;
        Ok(format!("model_catalog_json={}", toml::Value::from(path.to_string_lossy().as_ref())))
    }

    /// Stops listening and drops every connection. Takes two seconds at the most.
    pub async fn shutdown(mut self) {
        if let Some(stop) = self.stop.take() {
            // Fails only when the server is gone already.
            let _ = stop.send(());
        }
        let ended = tokio::time::timeout(SHUTDOWN_LIMIT, &mut self.server).await;
        if ended.is_err() {
            tracing::warn!(addr = %self.addr, "offline model is slow to stop; aborting it");
        }
    }
}

impl Drop for OfflineModel {
    fn drop(&mut self) {
        // The connections go with the task that holds them.
        self.server.abort();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    async fn start() -> OfflineModel {
        OfflineModel::start(([127, 0, 0, 1], 0).into()).await.unwrap()
    }

    async fn post(model: &OfflineModel, prompt: &str) -> TcpStream {
        let body = json!({"input": [{"role": "user", "content": prompt}]}).to_string();
        let mut stream = TcpStream::connect(model.addr).await.unwrap();
        let head = format!(
            "POST /v1/responses HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).await.unwrap();
        stream
    }

    async fn ask(model: &OfflineModel, prompt: &str) -> String {
        let mut answer = String::new();
        let mut stream = post(model, prompt).await;
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn others_than_loopback_are_refused() {
        let error = OfflineModel::start(([0, 0, 0, 0], 0).into()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[tokio::test]
    async fn an_answer_streams_to_its_end_unless_it_is_cut() {
        let model = start().await;
        let whole = ask(&model, "hello").await;
        assert!(whole.contains("You said: hello (user messages so far: 1)"));
        assert!(whole.contains("response.completed") && whole.ends_with("\r\n0\r\n\r\n"));
        let cut = ask(&model, "[[say before]] [[cut]]").await;
        assert!(cut.contains("\"text\":\"before\"") && cut.contains("in the mid"));
        assert!(!cut.contains("response.completed") && !cut.ends_with("\r\n0\r\n\r\n"));
        assert_eq!(model.requests(), 2);
    }

    #[tokio::test]
    async fn a_status_has_its_head_and_an_openai_error() {
        let model = start().await;
        let answer = ask(&model, "[[status 429 7]]").await;
        assert!(answer.starts_with("HTTP/1.1 429"));
        assert!(answer.contains("retry-after: 7"));
        assert!(answer.contains("offline model: status 429 as the prompt asked"));
        assert!(answer.contains("\"code\":\"rate_limit_exceeded\""));
    }

    #[tokio::test]
    async fn shutdown_and_drop_end_what_hangs() {
        for dropped in [false, true] {
            let model = start().await;
            let mut silent = post(&model, "[[hang]]").await;
            let mut stalled = post(&model, "[[say a]] [[hang]]").await;
            // Both have been answered, in their way, before the end comes.
            let mut head = [0; 12];
            stalled.read_exact(&mut head).await.unwrap();
            while model.requests() < 2 {
                tokio::task::yield_now().await;
            }
            if dropped {
                drop(model);
            } else {
                model.shutdown().await;
            }
            let mut rest = Vec::new();
            silent.read_to_end(&mut rest).await.ok();
            assert!(rest.is_empty());
            stalled.read_to_end(&mut rest).await.ok();
        }
    }

    #[tokio::test]
    async fn the_overrides_are_toml_and_lead_to_the_catalog() {
        let model = start().await;
        let config: toml::Table = model.config_overrides().join("\n").parse().unwrap();
        assert_eq!(
            config["model_providers"]["offline"]["base_url"].as_str(),
            Some(model.base_url().as_str())
        );
        let path = config["model_catalog_json"].as_str().unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), catalog::catalog());
        let directory = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            let written: toml::Table =
                model.write_catalog(&directory.path().join("new")).unwrap().parse().unwrap();
            let path = written["model_catalog_json"].as_str().unwrap();
            assert_eq!(std::fs::read_to_string(path).unwrap(), text);
        }
    }
}
