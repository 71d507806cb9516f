//! What the driver needs of a sidecar, so that it can be driven without one.

use std::future::Future;

use crate::grpc::caller::{Caller, Refused, TurnEvents};
use crate::pb;

/// A sidecar that runs turns.
pub(super) trait Sidecar: Clone + 'static {
    type Events: Events + 'static;

    fn run_turn(
        &self,
        request: pb::RunTurnRequest,
    ) -> impl Future<Output = Result<Self::Events, Refused>>;

    fn attach_turn(
        &self,
        request: pb::AttachTurnRequest,
    ) -> impl Future<Output = Result<Self::Events, Refused>>;

    fn interrupt_turn(&self, turn_id: String) -> impl Future<Output = Result<(), Refused>>;

    fn answer_request(
        &self,
        request: pb::AnswerRequestRequest,
    ) -> impl Future<Output = Result<(), Refused>>;
}

/// The events of a turn.
pub(super) trait Events {
    /// The next event; `None` after the last. May be given up at any time.
    fn next(&mut self) -> impl Future<Output = Result<Option<pb::TurnEvent>, Refused>>;
}

impl Sidecar for Caller {
    type Events = TurnEvents;

    async fn run_turn(&self, request: pb::RunTurnRequest) -> Result<TurnEvents, Refused> {
        Caller::run_turn(self, request).await
    }

    async fn attach_turn(&self, request: pb::AttachTurnRequest) -> Result<TurnEvents, Refused> {
        Caller::attach_turn(self, request).await
    }

    async fn interrupt_turn(&self, turn_id: String) -> Result<(), Refused> {
        Caller::interrupt_turn(self, turn_id).await.map(drop)
    }

    async fn answer_request(&self, request: pb::AnswerRequestRequest) -> Result<(), Refused> {
        Caller::answer_request(self, request).await
    }
}

impl Events for TurnEvents {
    async fn next(&mut self) -> Result<Option<pb::TurnEvent>, Refused> {
        TurnEvents::next(self).await
    }
}
