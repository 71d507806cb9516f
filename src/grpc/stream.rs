//! The stream of a turn's events to one caller.

use std::pin::Pin;

use bytes::Bytes;
use futures::Stream;
use tokio::time::Instant;
use tonic::Status;

use crate::model::refusal::Refusal;
use crate::turn::log::{Read, Reader};
use crate::turn::turn::Caller;

/// One stream of a turn's events.
pub(super) struct Streaming {
    pub(super) reader: Reader,
    // Held for its drop: the end of the stream is the caller's leave.
    pub(super) caller: Option<Caller>,
    pub(super) deadline: Option<Instant>,
    pub(super) is_over: bool,
}

impl Streaming {
    async fn next(&mut self) -> Option<Result<Read, Status>> {
        if self.is_over {
            return None;
        }
        let deadline = async {
            match self.deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        let next = tokio::select! {
            biased;
            // First: a flood of events must not carry a stream beyond its deadline.
            () = deadline => {
                if let Some(caller) = &self.caller {
                    caller.deadline_passed();
                }
                Some(Err(Refusal::DeadlineExceeded.into()))
            }
            next = self.reader.next() => next.map(|next| next.map_err(Status::from)),
        };
        self.is_over = match &next {
            None | Some(Err(_)) => true,
            Some(Ok(read)) => read.is_terminal,
        };
        if self.is_over {
            // Now, not when the client has read the trailers.
            self.caller = None;
        }
        next
    }

    pub(super) fn into_stream<T: Send + 'static>(
        self,
        wrap: impl Fn(Bytes) -> T + Send + 'static,
    ) -> EventStream<T> {
        Box::pin(futures::stream::unfold((self, wrap), |(mut streaming, wrap)| async move {
            let next = streaming.next().await?;
            Some((next.map(|read| wrap(read.encoded)), (streaming, wrap)))
        }))
    }
}

pub(super) type EventStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
