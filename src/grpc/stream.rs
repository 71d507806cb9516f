//! The stream of a turn's events to one caller.
//!
//! Each event goes out as its log keeps it, encoded once for all of its readers. What a reader costs is
//! therefore what is on its way to it, and that is little: the body is made piece by piece, as the
//! connection takes them, and never of a whole event. tonic would copy every event for every reader, and
//! keep a buffer of that size for each of them; so its body is replaced ([`EventBodies`]). In memory, and
//! in tests, the stream is read as tonic reads it.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::{FutureExt as _, Stream};
use http::HeaderMap;
use http_body::{Body, Frame};
use prost::encoding::{encode_varint, encoded_len_varint};
use tokio::time::Instant;
use tonic::server::NamedService;
use tonic::{Response, Status};
use tower::Service;

use super::unsent::{LARGE, Sending, Unsent};
use crate::model::refusal::Refusal;
use crate::turn::log::{Read, Reader};
use crate::turn::readers::Seat;
use crate::turn::turn::Caller;

/// How much of a stream's events goes to the connection in one piece: a frame of HTTP/2.
const PIECE: usize = 16 << 10;

/// One stream of a turn's events.
pub(super) struct Streaming {
    pub(super) reader: Reader,
    // Held for its drop: the end of the stream is the caller's leave.
    pub(super) caller: Option<Caller>,
    pub(super) deadline: Option<Instant>,
    pub(super) is_over: bool,
    // Held as long as there is something to send.
    pub(super) _seat: Seat,
    pub(super) unsent: Arc<Unsent>,
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

    /// The response that carries it.
    pub(super) fn into_response<T: Send + 'static>(
        self,
        wrap: impl Fn(Bytes) -> T + Send + 'static,
    ) -> Response<EventStream<T>> {
        let handover = Handover(Arc::new(Mutex::new(Some(self))));
        let state = (handover.clone(), None, wrap);
        let stream = futures::stream::unfold(state, |(handover, streaming, wrap)| async move {
            let mut streaming: Streaming = streaming.or_else(|| handover.take())?;
            let next = streaming.next().await?;
            Some((next.map(|read| wrap(read.encoded)), (handover, Some(streaming), wrap)))
        });
        let mut response = Response::new(Box::pin(stream) as EventStream<T>);
        response.extensions_mut().insert(handover);
        response
    }
}

pub(super) type EventStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A stream on its way to whoever makes a body of it.
#[derive(Clone)]
struct Handover(Arc<Mutex<Option<Streaming>>>);

impl Handover {
    fn take(&self) -> Option<Streaming> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The service with bodies of its own for the streams of events.
#[derive(Debug, Clone)]
pub(crate) struct EventBodies<S>(pub(crate) S);

impl<S: NamedService> NamedService for EventBodies<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B> Service<http::Request<B>> for EventBodies<S>
where
    S: Service<http::Request<B>, Response = http::Response<tonic::body::Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<S::Response, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let response = self.0.call(request);
        Box::pin(async move {
            let mut response = response.await?;
            let handover = response.extensions_mut().remove::<Handover>();
            if let Some(streaming) = handover.and_then(|handover| handover.take()) {
                *response.body_mut() = tonic::body::Body::new(EventBody::new(streaming));
            }
            Ok(response)
        })
    }
}

/// A stream's events as they go over the wire.
struct EventBody(Pin<Box<dyn Stream<Item = Frame<Bytes>> + Send>>);

impl EventBody {
    fn new(streaming: Streaming) -> EventBody {
        let pieces = Pieces { streaming, event: Event::None, end: End::None };
        EventBody(Box::pin(futures::stream::unfold(pieces, |mut pieces| async move {
            Some((pieces.next().await?, pieces))
        })))
    }
}

impl Body for EventBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.as_mut().poll_next(cx).map(|frame| frame.map(Ok))
    }
}

/// What of a stream is still to be sent.
struct Pieces {
    streaming: Streaming,
    event: Event,
    end: End,
}

/// The event that is under way.
enum Event {
    None,
    Small(Bytes),
    Large(Sending),
}

impl Event {
    /// Its next piece of at most so many bytes. `None` where it was lost.
    fn next(&mut self, most: usize) -> Option<Bytes> {
        match self {
            Event::None => Some(Bytes::new()),
            Event::Small(event) => Some(event.split_to(event.len().min(most))),
            Event::Large(sending) => sending.next(most),
        }
    }
}

enum End {
    None,
    Trailers(HeaderMap),
    Sent,
}

impl Pieces {
    /// The next piece: as much as there is now, up to its size, and in the end the status.
    async fn next(&mut self) -> Option<Frame<Bytes>> {
        let mut piece = BytesMut::new();
        while let End::None = self.end {
            let Some(part) = self.event.next(PIECE.saturating_sub(piece.len())) else {
                self.end = trailers(&Refusal::ReaderTooSlow.into());
                break;
            };
            piece.extend_from_slice(&part);
            if piece.len() >= PIECE {
                break;
            }
            self.event = Event::None;
            let next = self.streaming.next();
            let next = if piece.is_empty() {
                next.await
            } else {
                let Some(next) = next.now_or_never() else { break };
                next
            };
            match next {
                Some(Ok(read)) => {
                    put_head(&mut piece, read.encoded.len());
                    self.event = match read.encoded {
                        event if event.len() < LARGE => Event::Small(event),
                        event => Event::Large(self.streaming.unsent.begin(event)),
                    };
                }
                None => self.end = trailers(&Status::ok("")),
                Some(Err(status)) => self.end = trailers(&status),
            }
        }
        if !piece.is_empty() {
            return Some(Frame::data(piece.freeze()));
        }
        match std::mem::replace(&mut self.end, End::Sent) {
            End::Trailers(trailers) => Some(Frame::trailers(trailers)),
            End::None | End::Sent => None,
        }
    }
}

fn trailers(status: &Status) -> End {
    let mut trailers = HeaderMap::new();
    // What can't be a header is left out, and the code is one always.
    let _ = status.add_header(&mut trailers);
    End::Trailers(trailers)
}

/// Puts what goes before an event: the head of a message that is not compressed, and that of its one
/// field.
fn put_head(piece: &mut BytesMut, event_bytes: usize) {
    // Field 1, of a length that is told.
    const FIELD: u8 = (1 << 3) | 2;
    let field_bytes = event_bytes as u64;
    let message_bytes = 1 + encoded_len_varint(field_bytes) + event_bytes;
    piece.put_u8(0);
    piece.put_u32(u32::try_from(message_bytes).unwrap_or(u32::MAX));
    piece.put_u8(FIELD);
    encode_varint(field_bytes, piece);
}
