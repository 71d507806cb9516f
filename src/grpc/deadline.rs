//! The caller's deadline.
//!
//! Nobody else keeps it: neither hyper nor tonic's services do. A call whose request is still on its way
//! is [`call`](super::call)'s; from then on each call keeps it itself, a stream up to its end.

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;
use tonic::metadata::MetadataMap;

use crate::model::refusal::Refusal;

/// How long before the deadline a stream has its headers, if there is nothing to say yet: a client of
/// tonic's waits for those by a clock of its own, which started earlier than ours, and says CANCELLED.
const HEADERS_MARGIN: Duration = Duration::from_millis(100);

/// The same for a call with a single answer, whose refusal must not come much too early.
const ANSWER_MARGIN: Duration = Duration::from_millis(25);

/// When the call must be over, from its `grpc-timeout`; `None` where it has none. A malformed one
/// counts as none, as in tonic.
pub(crate) fn of(metadata: &MetadataMap) -> Option<Instant> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    parse(text).and_then(|timeout| Instant::now().checked_add(timeout))
}

/// Waits for something to send headers for, but not longer than until shortly before the deadline.
pub(crate) async fn headers<T>(
    deadline: Option<Instant>,
    future: impl Future<Output = T>,
) -> Option<T> {
    before(deadline, HEADERS_MARGIN, future).await
}

/// Waits for the answer of a unary call, or for what must be known before a stream can begin.
///
/// # Errors
/// [`Refusal::DeadlineExceeded`], or the future's own.
pub(crate) async fn answer<T>(
    deadline: Option<Instant>,
    future: impl Future<Output = Result<T, Refusal>>,
) -> Result<T, Refusal> {
    let answer = before(deadline, ANSWER_MARGIN, future).await;
    answer.unwrap_or(Err(Refusal::DeadlineExceeded))
}

/// Of a short time, the margin takes no more than a quarter.
async fn before<T>(
    deadline: Option<Instant>,
    margin: Duration,
    future: impl Future<Output = T>,
) -> Option<T> {
    let Some(deadline) = deadline else { return Some(future.await) };
    let left = deadline.saturating_duration_since(Instant::now());
    tokio::time::timeout(left - margin.min(left / 4), future).await.ok()
}

/// At most eight digits and a unit, as the gRPC specification says (`PROTOCOL-HTTP2`).
fn parse(text: &str) -> Option<Duration> {
    let digits = text.get(..text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    Some(match text.as_bytes().last()? {
        b'H' => Duration::from_secs(value * 3600),
        b'M' => Duration::from_secs(value * 60),
        b'S' => Duration::from_secs(value),
        b'm' => Duration::from_millis(value),
        b'u' => Duration::from_micros(value),
        b'n' => Duration::from_nanos(value),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_the_specification_says() {
        assert_eq!(parse("2S"), Some(Duration::from_secs(2)));
        assert_eq!(parse("99999999m"), Some(Duration::from_millis(99_999_999)));
        assert_eq!(parse("1H"), Some(Duration::from_secs(3600)));
        for malformed in ["", "S", "123456789S", "-1S", "1x", "1", "1é"] {
            assert_eq!(parse(malformed), None, "{malformed}");
        }
    }
}
