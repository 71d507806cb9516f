//! One line of the protocol.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

pub use crate::app_server::whose::SkippedLine;

/// A message from the worker, parsed only as far as routing needs.
#[derive(Debug)]
pub enum Inbound {
    /// It tells.
    Notification(Notification),
    /// It asks, and must be answered.
    Request(ServerRequest),
    /// It told or asked something in a line over the limit, which is gone.
    Skipped(Box<SkippedLine>),
}

/// A notification of the worker.
#[derive(Debug)]
pub struct Notification {
    /// For example `item/started`.
    pub method: String,
    /// Its parameters, unparsed.
    pub params: Box<RawValue>,
}

/// A request of the worker.
#[derive(Debug)]
pub struct ServerRequest {
    /// The worker's id of it, a number or a text; the answer repeats it.
    pub id: serde_json::Value,
    /// For example `item/tool/call`.
    pub method: String,
    /// Its parameters, unparsed.
    pub params: Box<RawValue>,
}

/// An error answer of the worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RpcError {
    /// JSON-RPC's code; Codex uses -32600 and -32602 for refusals, -32001 for overload.
    pub code: i64,
    /// For the person who reads it.
    pub message: String,
}

/// A parsed line.
#[derive(Debug)]
pub(crate) enum Line {
    Inbound(Inbound),
    Response { id: u64, outcome: Result<Box<RawValue>, RpcError> },
}

/// Parses one line; the error says what is wrong with it.
pub(crate) fn parse(line: &[u8]) -> Result<Line, String> {
    #[derive(Deserialize)]
    struct Envelope {
        id: Option<serde_json::Value>,
        method: Option<String>,
        params: Option<Box<RawValue>>,
        result: Option<Box<RawValue>>,
        error: Option<RpcError>,
    }

    let Envelope { id, method, params, result, error } =
        serde_json::from_slice(line).map_err(|error| error.to_string())?;
    match (method, id) {
        (Some(method), Some(id)) if !id.is_null() => {
            let params = params.unwrap_or_else(empty);
            Ok(Line::Inbound(Inbound::Request(ServerRequest { id, method, params })))
        }
        (Some(method), _) => {
            let params = params.unwrap_or_else(empty);
            Ok(Line::Inbound(Inbound::Notification(Notification { method, params })))
        }
        (None, Some(id)) => {
            let id = id.as_u64().ok_or_else(|| format!("an answer to the unknown id {id}"))?;
            let outcome = match (error, result) {
                (Some(error), _) => Err(error),
                (None, Some(result)) => Ok(result),
                (None, None) => Ok(empty()),
            };
            Ok(Line::Response { id, outcome })
        }
        (None, None) => Err("neither a method nor an id".to_owned()),
    }
}

fn empty() -> Box<RawValue> {
    RawValue::NULL.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_a_notification_an_answer_and_garbage_are_told_apart() {
        let request = parse(br#"{"id":"a","method":"item/tool/call","params":{"x":1}}"#).unwrap();
        assert!(matches!(request, Line::Inbound(Inbound::Request(request))
            if request.id == "a" && request.method == "item/tool/call" && request.params.get() == r#"{"x":1}"#));
        let notification = parse(br#"{"method":"turn/started"}"#).unwrap();
        assert!(matches!(notification, Line::Inbound(Inbound::Notification(notification))
            if notification.params.get() == "null"));
        let answer = parse(br#"{"id":7,"result":{"ok":true}}"#).unwrap();
        assert!(
            matches!(answer, Line::Response { id: 7, outcome: Ok(result) } if result.get() == r#"{"ok":true}"#)
        );
        let refused = parse(br#"{"id":7,"error":{"code":-32001,"message":"busy"}}"#).unwrap();
        assert!(matches!(
            refused,
            Line::Response { outcome: Err(RpcError { code: -32001, .. }), .. }
        ));
        for garbage in [&b"{}"[..], b"hello", b"\xff\xfe", br#"{"id":"x","result":1}"#, b"[1]"] {
            assert!(parse(garbage).is_err());
        }
    }
}
