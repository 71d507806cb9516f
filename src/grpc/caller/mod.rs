//! The Rust side of a call: what the subcommands reach a sidecar through.
//!
//! Owns a connection and how a refused call is read; above it nobody needs tonic. Never judges a
//! request, which is the sidecar's part, and never retries.

mod connect;

use std::error::Error as _;
use std::time::Duration;

use tonic::{Code, Status, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt as _;

use crate::grpc::client::codex_service_client::CodexServiceClient;
use crate::grpc::client::pool_service_client::PoolServiceClient;
use crate::grpc::status::DOMAIN;
use crate::pb;

use self::connect::Way;
pub(crate) use self::connect::{Credentials, NamedFile, TlsFiles};

/// A connection to a sidecar. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Caller(Way);

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("{0:?} is no address; wants HOST:PORT, https://HOST:PORT or unix:PATH")]
    NoAddress(String),
    /// What is to be shown, or who is to be trusted, can't be read.
    #[error("{0}")]
    Credentials(String),
    /// With the cause, such as a refused connection.
    #[error("{0}")]
    Unreachable(String),
}

/// A call that the sidecar refused, or that was lost on the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    /// The status code as the protocol spells it, such as `INVALID_ARGUMENT`.
    pub(crate) code: &'static str,
    /// The contract's reason, where the sidecar gave one.
    pub(crate) reason: Option<String>,
    /// What it says, or else what the code means.
    pub(crate) message: String,
    /// The fields that it complains of, each with its fault.
    pub(crate) fields: Vec<(String, String)>,
    /// When to try again.
    pub(crate) retry_after: Option<Duration>,
}

/// The events of a turn. Dropping those of a call that began it tells the sidecar that its caller is
/// gone.
#[derive(Debug)]
pub(crate) enum TurnEvents {
    /// Of the call that began the turn.
    Run(Streaming<pb::RunTurnResponse>),
    /// Of one that joined it.
    Attach(Streaming<pb::AttachTurnResponse>),
}

/// The lines of what a sidecar keeps.
#[derive(Debug)]
pub(crate) struct StateParts(Streaming<pb::ExportStateResponse>);

impl StateParts {
    /// The next part; `None` after the last.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<u8>>, Refused> {
        Ok(self.0.message().await?.map(|part| part.lines))
    }
}

/// What a health service says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Health(ServingStatus);

impl Caller {
    /// Connects now, so that a sidecar which isn't there is told as that.
    pub(crate) async fn connect(
        address: &str,
        credentials: &Credentials,
        timeout: Duration,
    ) -> Result<Caller, ConnectError> {
        connect::connect(address, credentials, timeout).await.map(Caller)
    }

    fn codex(&self) -> CodexServiceClient<Way> {
        // What the sidecar sends is bounded by the sidecar's own limits.
        CodexServiceClient::new(self.0.clone()).max_decoding_message_size(usize::MAX)
    }

    fn pool(&self) -> PoolServiceClient<Way> {
        PoolServiceClient::new(self.0.clone()).max_decoding_message_size(usize::MAX)
    }

    /// The health needs no token.
    fn of_health(&self) -> HealthClient<Way> {
        HealthClient::new(self.0.without_token())
    }

    /// Begins a turn. The sidecar may answer only with the turn's first event.
    pub(crate) async fn run_turn(
        &self,
        request: pb::RunTurnRequest,
    ) -> Result<TurnEvents, Refused> {
        Ok(TurnEvents::Run(self.codex().run_turn(request).await?.into_inner()))
    }

    /// Joins a turn that runs or is retained.
    pub(crate) async fn attach_turn(
        &self,
        request: pb::AttachTurnRequest,
    ) -> Result<TurnEvents, Refused> {
        Ok(TurnEvents::Attach(self.codex().attach_turn(request).await?.into_inner()))
    }

    /// Stops a turn; returns when it has ended.
    pub(crate) async fn interrupt_turn(
        &self,
        turn_id: String,
    ) -> Result<pb::InterruptTurnResponse, Refused> {
        let request = pb::InterruptTurnRequest { turn_id };
        Ok(self.codex().interrupt_turn(request).await?.into_inner())
    }

    pub(crate) async fn steer_turn(
        &self,
        request: pb::SteerTurnRequest,
    ) -> Result<pb::SteerTurnResponse, Refused> {
        Ok(self.codex().steer_turn(request).await?.into_inner())
    }

    pub(crate) async fn list_turns(
        &self,
        request: pb::ListTurnsRequest,
    ) -> Result<pb::ListTurnsResponse, Refused> {
        Ok(self.codex().list_turns(request).await?.into_inner())
    }

    pub(crate) async fn read_thread(
        &self,
        request: pb::ReadThreadRequest,
    ) -> Result<pb::ReadThreadResponse, Refused> {
        Ok(self.codex().read_thread(request).await?.into_inner())
    }

    pub(crate) async fn fork_context(
        &self,
        request: pb::ForkContextRequest,
    ) -> Result<pb::ForkContextResponse, Refused> {
        Ok(self.codex().fork_context(request).await?.into_inner())
    }

    pub(crate) async fn revert_context(
        &self,
        request: pb::RevertContextRequest,
    ) -> Result<pb::RevertContextResponse, Refused> {
        Ok(self.codex().revert_context(request).await?.into_inner())
    }

    pub(crate) async fn answer_request(
        &self,
        request: pb::AnswerRequestRequest,
    ) -> Result<(), Refused> {
        self.codex().answer_request(request).await?;
        Ok(())
    }

    pub(crate) async fn get_context(
        &self,
        request: pb::GetContextRequest,
    ) -> Result<pb::GetContextResponse, Refused> {
        Ok(self.codex().get_context(request).await?.into_inner())
    }

    pub(crate) async fn list_contexts(
        &self,
        request: pb::ListContextsRequest,
    ) -> Result<pb::ListContextsResponse, Refused> {
        Ok(self.codex().list_contexts(request).await?.into_inner())
    }

    pub(crate) async fn bind_context(
        &self,
        request: pb::BindContextRequest,
    ) -> Result<pb::BindContextResponse, Refused> {
        Ok(self.codex().bind_context(request).await?.into_inner())
    }

    pub(crate) async fn get_latest_thread(
        &self,
        request: pb::GetLatestThreadRequest,
    ) -> Result<pb::GetLatestThreadResponse, Refused> {
        Ok(self.codex().get_latest_thread(request).await?.into_inner())
    }

    pub(crate) async fn delete_context(
        &self,
        request: pb::DeleteContextRequest,
    ) -> Result<pb::DeleteContextResponse, Refused> {
        Ok(self.codex().delete_context(request).await?.into_inner())
    }

    pub(crate) async fn list_workers(&self) -> Result<pb::ListWorkersResponse, Refused> {
        Ok(self.pool().list_workers(pb::ListWorkersRequest {}).await?.into_inner())
    }

    pub(crate) async fn get_server_info(&self) -> Result<pb::GetServerInfoResponse, Refused> {
        Ok(self.pool().get_server_info(pb::GetServerInfoRequest {}).await?.into_inner())
    }

    /// The lines of what the sidecar keeps, in parts.
    pub(crate) async fn export_state(&self) -> Result<StateParts, Refused> {
        Ok(StateParts(self.pool().export_state(pb::ExportStateRequest {}).await?.into_inner()))
    }

    pub(crate) async fn list_models(
        &self,
        request: pb::ListModelsRequest,
    ) -> Result<pb::ListModelsResponse, Refused> {
        Ok(self.pool().list_models(request).await?.into_inner())
    }

    /// The health of a service; of the sidecar itself under the empty name.
    pub(crate) async fn health(&self, service: &str) -> Result<Health, Refused> {
        let request = HealthCheckRequest { service: service.to_owned() };
        let response = self.of_health().check(request).await?;
        Ok(Health(response.into_inner().status()))
    }

    /// Waits until a service is serving; `false` where the sidecar stops telling before.
    pub(crate) async fn serving(&self, service: &str) -> Result<bool, Refused> {
        let request = HealthCheckRequest { service: service.to_owned() };
        let response = self.of_health().watch(request).await?;
        let mut told = response.into_inner();
        while let Some(response) = told.message().await? {
            if Health(response.status()).is_serving() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl TurnEvents {
    /// The next event; `None` after the last.
    pub(crate) async fn next(&mut self) -> Result<Option<pb::TurnEvent>, Refused> {
        loop {
            let response = match self {
                TurnEvents::Run(events) => events.message().await?.map(|response| response.event),
                TurnEvents::Attach(events) => {
                    events.message().await?.map(|response| response.event)
                }
            };
            match response {
                Some(None) => {}
                Some(event) => return Ok(event),
                None => return Ok(None),
            }
        }
    }
}

impl Refused {
    /// Whether the call was lost on the way: the sidecar did not say this, but the connection or
    /// something that it goes through. Whether the call was carried out is not known then.
    pub(crate) fn is_lost(&self) -> bool {
        const LOST: [&str; 4] = ["UNAVAILABLE", "INTERNAL", "CANCELLED", "UNKNOWN"];
        self.reason.is_none() && LOST.contains(&self.code)
    }
}

impl Health {
    pub(crate) fn is_serving(self) -> bool {
        self.0 == ServingStatus::Serving
    }

    /// As the protocol spells it, such as `NOT_SERVING`.
    pub(crate) fn as_str(self) -> &'static str {
        self.0.as_str_name()
    }
}

impl From<Status> for Refused {
    fn from(status: Status) -> Refused {
        let details = status.get_error_details();
        let fields =
            details.bad_request().into_iter().flat_map(|request| &request.field_violations);
        let message = match status.message() {
            "" => status.code().description(),
            message => message,
        };
        Refused {
            code: code_name(status.code()),
            reason: details
                .error_info()
                .filter(|info| info.domain == DOMAIN)
                .map(|info| info.reason.clone()),
            message: message.to_owned(),
            fields: fields.map(|fault| (fault.field.clone(), fault.description.clone())).collect(),
            retry_after: details.retry_info().and_then(|retry| retry.retry_delay),
        }
    }
}

/// What went wrong at the bottom: tonic's own words are only `transport error`.
fn root_cause(error: &tonic::transport::Error) -> String {
    let mut cause = error.source();
    let mut text = error.to_string();
    while let Some(error) = cause {
        text = error.to_string();
        cause = error.source();
    }
    text
}

fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn a_status_is_read_with_all_its_details() {
        let mut details = ErrorDetails::new();
        details
            .set_error_info("INVALID_INPUT", "codex.sidecar", HashMap::new())
            .add_bad_request_violation("inputs[0].text", "is blank")
            .set_retry_info(Some(Duration::from_millis(1500)));
        let status = Status::with_error_details(Code::InvalidArgument, "invalid request", details);
        assert_eq!(
            Refused::from(status),
            Refused {
                code: "INVALID_ARGUMENT",
                reason: Some("INVALID_INPUT".to_owned()),
                message: "invalid request".to_owned(),
                fields: vec![("inputs[0].text".to_owned(), "is blank".to_owned())],
                retry_after: Some(Duration::from_millis(1500)),
            }
        );
    }

    #[test]
    fn what_the_sidecar_did_not_say_may_have_been_lost() {
        let said = |domain: &str| {
            let mut details = ErrorDetails::new();
            details.set_error_info("DRAINING", domain, HashMap::new());
            Refused::from(Status::with_error_details(Code::Unavailable, "going", details))
        };
        assert!(!said(DOMAIN).is_lost());
        assert!(said("a.proxy").is_lost());
        assert!(Refused::from(Status::unavailable("connection reset")).is_lost());
        assert!(!Refused::from(Status::unimplemented("")).is_lost());
        assert!(!Refused::from(Status::deadline_exceeded("")).is_lost());
    }
}
