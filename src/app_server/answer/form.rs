//! Whether what a user gave to an MCP server fits the form that it asked with.

use serde_json::Value;

/// What is wrong with content for a schema, each as a sentence.
pub(super) fn faults(content_json: &str, _schema: &str) -> Vec<String> {
    match serde_json::from_str(content_json) {
        Ok(Value::Object(_)) => Vec::new(),
        Ok(_) => vec!["is no object".to_owned()],
        Err(error) => vec![format!("is no JSON: {error}")],
    }
}
