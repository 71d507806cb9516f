//! A service that answers nothing before it is known what an earlier process has kept.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::Service;

use crate::model::refusal::Refusal;
use crate::registry::ledger::{Ledger, Trouble};

/// The service, once the ledger is read; before, LEDGER_UNAVAILABLE for whatever is called.
#[derive(Debug, Clone)]
pub(crate) struct WhenRead<S> {
    service: S,
    ledger: Arc<Ledger>,
}

impl<S> WhenRead<S> {
    pub(crate) fn new(service: S, ledger: Arc<Ledger>) -> WhenRead<S> {
        WhenRead { service, ledger }
    }

    fn refusal(&self) -> Option<Refusal> {
        if self.ledger.is_read() {
            return None;
        }
        let trouble = self.ledger.trouble().borrow().clone();
        // It may be read by now.
        let cause = || "what an earlier sidecar has kept is being read".to_owned();
        Some(trouble.unwrap_or_else(|| Trouble { cause: cause() }).into())
    }
}

impl<S: NamedService> NamedService for WhenRead<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B> Service<http::Request<B>> for WhenRead<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<S::Response, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        match self.refusal() {
            None => self.service.call(request).boxed(),
            Some(refusal) => std::future::ready(Ok(Status::from(refusal).into_http())).boxed(),
        }
    }
}
