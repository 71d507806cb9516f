//! One line of the protocol, parsed once into what it means.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::app_server::decode::{self, News, Scope};
use crate::app_server::refusal_text;
use crate::model::event::{Event, Raw};
use crate::model::question::Question;

pub(crate) use crate::app_server::whose::SkippedLine;

/// What comes from the worker unasked.
#[derive(Debug)]
pub enum Inbound {
    /// It tells.
    Told(Told),
    /// It asks, and must be answered.
    Asked(Asked),
    /// It told or asked something in a line over the limit, which is gone.
    Skipped(Box<SkippedLine>),
}

/// Something that the worker tells.
#[derive(Debug)]
pub struct Told {
    /// What it is about.
    pub scope: Scope,
    /// What it says.
    pub news: News,
    pub(super) method: String,
    params: Box<RawValue>,
}

impl Told {
    fn read(method: String, params: &RawValue) -> Told {
        let (scope, news) = decode::notification(&method, params);
        Told { scope, news, method, params: params.to_owned() }
    }

    /// How long its text is.
    pub fn bytes(&self) -> usize {
        self.params.get().len()
    }

    /// Whether it is about an item.
    pub fn is_of_an_item(&self) -> bool {
        self.method.starts_with("item/")
    }

    /// Whether it is an error after which Codex tries again by itself.
    pub fn is_retry(&self) -> bool {
        matches!(&self.news, News::Event(Event::ThreadError(error)) if error.will_retry)
    }

    /// Whether it is a warning of Codex's that it could not write down what was said on the thread.
    pub fn is_of_lost_history(&self) -> bool {
        matches!(
            &self.news,
            News::Event(Event::Warning(warning))
                if refusal_text::is_of_lost_history(&warning.message)
        )
    }

    /// The same in Codex's own words.
    pub fn raw(&self) -> Event {
        let (method, json) = (self.method.clone(), self.params.get().to_owned());
        Event::Raw(Raw { method, json })
    }
}

#[cfg(test)]
impl Told {
    /// News of a thread, and of a turn where one is named.
    pub(crate) fn of(thread_id: &str, turn_id: Option<&str>, news: News) -> Told {
        let (thread_id, turn_id) = (Some(thread_id.to_owned()), turn_id.map(str::to_owned));
        let (method, params) = ("test".to_owned(), RawValue::NULL.to_owned());
        Told { scope: Scope { thread_id, turn_id }, news, method, params }
    }

    pub(crate) fn method(&self) -> &str {
        &self.method
    }

    /// The notification of this method with these parameters.
    pub(crate) fn notification(method: &str, params: &Value) -> Told {
        let params = RawValue::from_string(params.to_string()).unwrap();
        Told::read(method.to_owned(), &params)
    }
}

#[cfg(test)]
impl Call {
    pub(crate) fn method(&self) -> &str {
        &self.method
    }
}

/// Something that the worker asks.
#[derive(Debug)]
pub struct Asked {
    /// What it is about.
    pub scope: Scope,
    /// What to answer it by.
    pub call: Call,
    /// What it asks, without an id of its own.
    pub question: Question,
    /// How long its text was.
    pub bytes: usize,
}

impl Asked {
    /// Whether it is about the process, and no turn's matter: it is answered at once.
    pub fn is_of_the_process(&self) -> bool {
        matches!(
            self.call.method.as_str(),
            "currentTime/read" | "attestation/generate" | "account/chatgptAuthTokens/refresh"
        )
    }
}

/// A request of the worker, as far as its answer needs it.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    // The answer repeats it.
    pub(super) id: CallId,
    pub(super) method: String,
}

/// The worker's id of a request of its own, a number or a text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CallId(Value);

impl Call {
    /// Whether this is its id.
    pub fn is(&self, id: &CallId) -> bool {
        self.id == *id
    }
}

#[cfg(test)]
impl Call {
    /// A request of this id and method.
    pub(crate) fn new(id: u64, method: &str) -> Call {
        Call { id: CallId::new(id), method: method.to_owned() }
    }
}

#[cfg(test)]
impl CallId {
    pub(crate) fn new(id: u64) -> CallId {
        CallId(id.into())
    }
}

impl SkippedLine {
    /// What to answer it by, where it was a request.
    pub fn call(&self) -> Option<Call> {
        Some(Call { id: CallId(self.id.clone()?), method: self.method.clone()? })
    }
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
#[allow(clippy::large_enum_variant, reason = "it is taken apart at once")]
pub enum Line {
    /// What comes unasked.
    Inbound(Inbound),
    /// An answer.
    Response {
        /// The id of what was asked.
        id: u64,
        /// The result, unparsed.
        outcome: Result<Box<RawValue>, RpcError>,
    },
}

/// Parses one line.
///
/// # Errors
/// What is wrong with it.
pub fn parse(line: &[u8]) -> Result<Line, String> {
    #[derive(Deserialize)]
    struct Envelope<'a> {
        id: Option<Value>,
        method: Option<String>,
        #[serde(borrow)]
        params: Option<&'a RawValue>,
        result: Option<Box<RawValue>>,
        error: Option<RpcError>,
    }

    let Envelope { id, method, params, result, error } =
        serde_json::from_slice(line).map_err(|error| error.to_string())?;
    match (method, id) {
        (Some(method), Some(id)) => {
            let (scope, question) = decode::request(&method, params.unwrap_or(RawValue::NULL));
            let call = Call { id: CallId(id), method };
            let bytes = line.len();
            Ok(Line::Inbound(Inbound::Asked(Asked { scope, call, question, bytes })))
        }
        (Some(method), None) => {
            let told = Told::read(method, params.unwrap_or(RawValue::NULL));
            Ok(Line::Inbound(Inbound::Told(told)))
        }
        (None, Some(id)) => {
            let id = id.as_u64().ok_or_else(|| format!("an answer to the unknown id {id}"))?;
            let outcome = match (error, result) {
                (Some(error), _) => Err(error),
                (None, Some(result)) => Ok(result),
                (None, None) => Ok(RawValue::NULL.to_owned()),
            };
            Ok(Line::Response { id, outcome })
        }
        (None, None) => Err("neither a method nor an id".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_a_notification_an_answer_and_garbage_are_told_apart() {
        let request = parse(br#"{"id":"a","method":"item/tool/call","params":{"x":1}}"#).unwrap();
        assert!(matches!(request, Line::Inbound(Inbound::Asked(asked))
            if asked.call.id.0 == "a" && asked.call.method == "item/tool/call"));
        let notification = parse(br#"{"method":"turn/started"}"#).unwrap();
        assert!(matches!(notification, Line::Inbound(Inbound::Told(told))
            if told.method == "turn/started" && told.params.get() == "null"));
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
