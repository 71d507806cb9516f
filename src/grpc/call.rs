//! What every call is held to, whatever its service: the form of the request, the time and the room that
//! it takes to arrive, and that a refusal of tonic's own making is told as the contract tells refusals.

use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep};
use tonic::Status;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::service::Routes;
use tower::Service as _;

use super::arrivals::{Arrivals, Arrived};
use super::{deadline, status};
use crate::model::id::CallerId;
use crate::model::refusal::Refusal;

/// Where clients stream requests: those arrive for as long as the client likes.
const STREAMED: &str = "/grpc.reflection.";

/// Answers one call. Its request has to arrive within `patience`, and within the caller's deadline, and
/// `arrivals` to have room for it.
pub(crate) async fn answer<B>(
    mut routes: Routes,
    request: Request<B>,
    patience: Duration,
    arrivals: &Arc<Arrivals>,
) -> Response<Body>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    if request.method() != Method::POST {
        let fault = format!("{} is no method of gRPC; use POST", request.method());
        let mut response = refused(Refusal::field(":method", fault).into());
        *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
        return response;
    }
    if !is_grpc(request.headers()) {
        let found = request.headers().get(header::CONTENT_TYPE);
        let fault = match found {
            Some(found) => format!("{found:?} is not gRPC's; send application/grpc"),
            None => "is missing; send application/grpc".to_owned(),
        };
        let mut response = refused(Refusal::field("content-type", fault).into());
        *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return response;
    }
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let arrived = arrivals.begin(parts.extensions.get::<CallerId>().copied().unwrap_or_default());
    let clock = (!path.starts_with(STREAMED)).then(|| {
        let asked = deadline::of(&MetadataMap::from_headers(parts.headers.clone()));
        Clock::new(patience, asked)
    });
    let body = Body::new(Arriving { body: Body::new(body), arrived, clock });
    // It can't fail.
    let Ok(response) = routes.call(Request::from_parts(parts, body)).await;
    // A refusal of ours has its details.
    match Status::from_header_map(response.headers()) {
        Some(of_tonic) if of_tonic.details().is_empty() => {
            status::of_tonic(&of_tonic, &path).map_or(response, refused)
        }
        _ => response,
    }
}

fn refused(status: Status) -> Response<Body> {
    status.into_http()
}

/// With or without the encoding of messages, of which there is one.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let kind = kind.and_then(|kind| kind.split(';').next()).map(str::trim);
    kind.is_some_and(|kind| {
        ["application/grpc", "application/grpc+proto"]
            .iter()
            .any(|known| kind.eq_ignore_ascii_case(known))
    })
}

/// A request on its way, which has to be there in time, its end included: a call whose client never says
/// that it has said all would else wait for ever.
struct Arriving {
    body: Body,
    arrived: Arrived,
    clock: Option<Clock>,
}

/// By when it has to be there, and what is said where it is not.
struct Clock {
    at: Pin<Box<Sleep>>,
    refusal: Refusal,
}

impl Clock {
    fn new(patience: Duration, asked: Option<Instant>) -> Clock {
        let latest = Instant::now() + patience;
        let (at, refusal) = match asked {
            Some(asked) if asked < latest => (asked, Refusal::DeadlineExceeded),
            _ => (latest, Refusal::RequestIncomplete { patience }),
        };
        Clock { at: Box::pin(tokio::time::sleep_until(at)), refusal }
    }
}

impl http_body::Body for Arriving {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(data) = frame.data_ref()
            && let Err(refusal) = self.arrived.add(data.len())
        {
            return Poll::Ready(Some(Err(refusal.into())));
        }
        if frame.is_pending()
            && let Some(Clock { at, refusal }) = &mut self.clock
            && at.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Some(Err(status::status(refusal))));
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
