//! What reaches the offline model: prompts with directives, and requests of the Responses API.

use serde_json::json;

use super::Target;
use crate::offline_model::{directive, script, sse};

pub(super) const TARGETS: &[Target] = &[
    Target { name: "offline_model::directive", seeds: prompts, holds: prompt, share: 200 },
    Target { name: "offline_model::sse", seeds: requests, holds: request, share: 20 },
];

fn prompts() -> Vec<Vec<u8>> {
    let prompts = [
        "[[reason let me look]] [[run ls -l]] [[write notes.txt done]] [[say I wrote it down]]",
        "[[ask Which one? | the first | the second; And? | a]] [[plan A; B; C]] [[slow 1s]]",
        "[[tool look {\"n\": [[1]]}]] [[and]] [[tool s.look]] [[wait 1m 30s]] [[status 429 7]]",
        "[[permit {\"network\": {\"enabled\": true}}]] [[words 3]] [[bytes 70000]] [[show /input/0]]",
        "[[json {\"a\": 1}]] [[fail rate_limit_exceeded slow down]] [[incomplete max_output_tokens]]",
        "[[review deny it is late]] [[next]] [[end]] [[cut]] [[hang]] [[patch *** Add File: a\n+b]]",
    ];
    prompts.map(|prompt| prompt.as_bytes().to_vec()).to_vec()
}

fn prompt(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    if let Ok(directives) = directive::parse(text) {
        assert!(directives.len() <= text.matches("[[").count());
    }
    _ = directive::verdict(text);
}

fn requests() -> Vec<Vec<u8>> {
    let message = |role: &str, text: &str| json!({"type": "message", "role": role, "content": [{"type": "input_text", "text": text}]});
    let requests = prompts().into_iter().map(|prompt| {
        let prompt = String::from_utf8(prompt).unwrap();
        json!({"model": "m", "input": [
            message("developer", "d"),
            message("user", &prompt),
            {"type": "function_call", "name": "exec_command", "arguments": "{}", "call_id": "c"},
            {"type": "function_call_output", "call_id": "c", "output": "done"},
        ], "tools": [{"type": "function", "name": "look", "parameters": {}}, {"type": "custom", "name": "free"}]})
    });
    let reviewed = json!({"input": [message("user", "[[review nonsense]]")],
        "text": {"format": {"schema": {"properties": {"outcome": {}, "user_authorization": {}}}}}});
    requests.chain([reviewed]).map(|request| request.to_string().into_bytes()).collect()
}

/// Each frame is one event, or several, of server-sent events, and whole.
fn request(json: &[u8]) {
    let Ok(request) = serde_json::from_slice(json) else { return };
    for frame in sse::frames(script::decide(&request), "id").take(500) {
        if let sse::Frame::Send(bytes) = frame {
            let text = std::str::from_utf8(&bytes).unwrap();
            assert!(text.starts_with("event: ") && text.ends_with("\n\n"), "{text}");
            for event in text.trim_end().split("\n\n") {
                let data = event.split_once("\ndata: ").unwrap().1;
                serde_json::from_str::<serde_json::Value>(data).unwrap();
            }
        }
    }
}
