//! stub
use serde_json::Value;
/// s
pub fn strict(text: &str) -> Result<Value, String> {
    strict_value(serde_json::from_str(text).map_err(|e| e.to_string())?)
}
/// s
pub fn strict_value(v: Value) -> Result<Value, String> {
    Ok(v)
}
/// s
pub fn depth(_: &Value) -> usize {
    1
}
