//! The smallest MCP server, in Python: one tool, on standard input and output.

use serde_json::Value;

use super::Place;

const SERVER: &str = r#"
import json, sys
tool, answer = json.loads(sys.argv[1]), sys.argv[2]
for line in sys.stdin:
    message = json.loads(line)
    method, params = message.get("method"), message.get("params") or {}
    if method == "initialize":
        result = {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}},
                  "serverInfo": {"name": "desk", "version": "1"}}
    elif method == "tools/list":
        result = {"tools": [tool]}
    elif method == "tools/call":
        result = {"content": [{"type": "text", "text": answer % (params.get("arguments") or {})}]}
    else:
        result = {}
    if "id" in message:
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
"#;

/// Writes the server; returns its table of `config.toml`, to which more of its keys may be added. It
/// has this tool, as `tools/list` tells it, and answers by these words, which Python's `%` fills in
/// from the arguments.
pub fn desk(place: &Place, tool: &Value, answer: &str) -> String {
    let server = place.path().join("server.py");
    std::fs::write(&server, SERVER).unwrap();
    let args = [server.display().to_string(), tool.to_string(), answer.to_owned()];
    format!("[mcp_servers.desk]\ncommand = \"python3\"\nargs = {args:?}\n")
}
