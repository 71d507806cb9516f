//! The calls of one connection: each is in the books from its first byte to the last one of its
//! response, also when its client vanishes.
//!
//! Says which calls only wait for something to be told, by their path, and which send what their client
//! does not take. Never reads a message: what a
//! request holds while it arrives, and how long it may take, is `grpc::call`'s matter.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tonic::Status;

use super::books::{CallOnDrop, Connection};
use crate::access::{Peer, Unauthenticated};
use crate::app::descent::{Refused, Verdict};
use crate::app::doors::{Doors, Services};
use crate::grpc::call;
use crate::model::refusal::Refusal;

/// The services for one connection.
#[derive(Debug)]
pub(super) struct Calls {
    pub(super) connection: Arc<Connection>,
    pub(super) peer: Peer,
    /// Whether its other end may call at all. Told before the first call is served.
    pub(super) verdict: Verdict,
    pub(super) doors: Doors,
}

impl hyper::service::Service<Request<Incoming>> for Calls {
    type Response = Response<Counted>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Counted>, Infallible>> + Send>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let path = request.uri().path();
        let services = self.doors.services(path, &self.peer, request.headers());
        // Who shows nothing takes no place from who does.
        let is_nobodys = self.doors.ask() && !matches!(services, Ok(Services::Tenant(_)));
        let waits = is_nobodys
            || path == "/grpc.health.v1.Health/Watch"
            || path.starts_with("/grpc.reflection.");
        let mut open = self.connection.begin_call(waits);
        request.extensions_mut().insert(self.connection.caller);
        request.extensions_mut().insert(self.peer.name.clone());
        let connection = Arc::clone(&self.connection);
        let verdict = self.verdict.clone();
        Box::pin(async move {
            if let Err(Refused) = verdict.on_call().await {
                let response = Status::from(Refusal::CalledByATurn).into_http();
                return Ok(response.map(|body| Counted { body, call: open }));
            }
            let patience = connection.limits().request_timeout;
            let response = match services {
                Ok(Services::Open(routes)) => {
                    call::answer(routes, request, patience, connection.arrivals()).await
                }
                Ok(Services::Tenant(tenant)) => tenant.answer(request, patience).await,
                // Its body is not read, and nothing is done.
                Err(Unauthenticated) => Status::from(Refusal::Unauthenticated).into_http(),
            };
            open.sent();
            Ok(response.map(|body| Counted { body, call: open }))
        })
    }
}

/// A response, whose call is open until all of it is sent.
#[derive(Debug)]
pub(super) struct Counted {
    body: tonic::body::Body,
    call: CallOnDrop,
}

impl Body for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        // Nobody asks before there is room for it.
        self.call.taken();
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if frame.is_ready() {
            self.call.sent();
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
