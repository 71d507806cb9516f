//! MCP servers that end between two turns, or do not start.

use super::*;
use crate::worker::mcp::McpHealth;
use crate::worker::testing::worker;

/// A loaded thread with one server, of which Codex has told this.
async fn with_server(
    overrides: Value,
    statuses: &[&str],
) -> (std::sync::Arc<Worker>, Codex, ThreadOptions) {
    let (worker, mut codex) = worker().await;
    let config = overrides.as_object().unwrap().clone();
    let options = ThreadOptions { config: Some(config), ..ThreadOptions::default() };
    codex.during(worker.opens(&options)).await.unwrap();
    for status in statuses {
        let params = json!({ "threadId": "t1", "name": "desk", "status": status, "error": null });
        codex.tell("mcpServer/startupStatus/updated", params).await;
    }
    settle().await;
    (worker, codex, options)
}

fn status(runtime_status: &str) -> Value {
    let server = json!({ "name": "desk", "runtimeStatus": runtime_status, "toolsError": "gone" });
    json!({ "data": [{ "name": "another" }, server] })
}

async fn mend(
    worker: &Worker,
    options: &ThreadOptions,
    codex: &mut Codex,
    script: &[(&str, Value)],
) -> McpHealth {
    let workspace = workspace();
    let (id, directory) = (thread("t1"), &workspace.working_directory);
    let mending = worker.mend_mcp_servers(&id, directory, options);
    let (health, ()) = tokio::join!(mending, async {
        for (method, result) in script {
            let asked = codex.next().await.unwrap();
            assert_eq!(asked.method, *method);
            codex.answer(&asked, result.clone()).await;
        }
    });
    codex.is_left_alone_for(SECOND).await;
    health
}

const LIST: &str = "mcpServerStatus/list";
const RELOAD: &str = "config/mcpServer/reload";

fn required() -> Value {
    json!({ "mcp_servers.desk": { "command": "x", "required": true } })
}

#[tokio::test(start_paused = true)]
async fn a_server_that_ended_between_two_turns_is_there_for_the_next() {
    let (worker, mut codex, options) = with_server(required(), &["starting", "ready"]).await;
    let script = [
        (LIST, status("failed")),
        ("config/read", json!({ "config": {} })),
        (RELOAD, json!({})),
        (LIST, status("connected")),
    ];
    assert_eq!(mend(&worker, &options, &mut codex, &script).await, McpHealth::Settled);
    // One that is well costs one look.
    let script = [(LIST, status("connected"))];
    assert_eq!(mend(&worker, &options, &mut codex, &script).await, McpHealth::Settled);
}

#[tokio::test(start_paused = true)]
async fn a_required_server_that_does_not_come_back_is_told_and_one_that_is_not_is_done_without() {
    let optional = json!({ "mcp_servers.desk": { "command": "x" } });
    for (overrides, health) in
        [(required(), McpHealth::RequiredIsDown), (optional, McpHealth::Settled)]
    {
        let (worker, mut codex, options) = with_server(overrides, &["starting", "ready"]).await;
        drop(worker.route("t1").unwrap().take_mcp_servers());
        let script = [
            (LIST, status("failed")),
            ("config/read", json!({ "config": {} })),
            (RELOAD, json!({})),
            (LIST, status("failed")),
        ];
        assert_eq!(mend(&worker, &options, &mut codex, &script).await, health);
        let told = worker.route("t1").unwrap().take_mcp_servers();
        let [missing] = &told[..] else { panic!("{told:?}") };
        assert_eq!((missing.server.as_str(), missing.error.as_str()), ("desk", "gone"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_can_not_be_looked_at_is_left_alone() {
    let (worker, mut codex, options) = with_server(json!({}), &["starting", "ready"]).await;
    let workspace = workspace();
    let began = tokio::time::Instant::now();
    let id = thread("t1");
    let mending = worker.mend_mcp_servers(&id, &workspace.working_directory, &options);
    // It does not answer.
    assert_eq!(mending.await, McpHealth::Settled);
    assert!(began.elapsed() <= 2 * SECOND + Duration::from_millis(10), "{:?}", began.elapsed());
    assert_eq!(codex.next().await.unwrap().method, LIST);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_reached_over_the_network_is_looked_at_once() {
    let (worker, mut codex, options) =
        with_server(json!({}), &["ready", "starting", "ready"]).await;
    let remote = json!({ "data": [{ "name": "desk", "httpOrigin": "https://h" }] });
    let script = [(LIST, remote)];
    assert_eq!(mend(&worker, &options, &mut codex, &script).await, McpHealth::Settled);
    assert_eq!(mend(&worker, &options, &mut codex, &[]).await, McpHealth::Settled);
}

#[tokio::test(start_paused = true)]
async fn a_thread_without_servers_costs_nothing() {
    let (worker, mut codex, options) = with_server(json!({}), &[]).await;
    assert!(!worker.has_mcp_servers(&thread("t1")));
    assert_eq!(mend(&worker, &options, &mut codex, &[]).await, McpHealth::Settled);
}
