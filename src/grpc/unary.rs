//! A turn for callers that want one answer: run as a stream is, and told by its end alone.

use tonic::Request;

use crate::grpc::codex_service::{CodexApi, terminal};
use crate::grpc::{deadline, routed};
use crate::model::id::CallerId;
use crate::model::refusal::{FieldViolation, Refusal};
use crate::pb;

/// Where the turn's request stands in the call's.
const REQUEST: &str = "request";

/// Runs the turn, and gives its terminal event. Dropping this is the caller's leave.
///
/// # Errors
/// Whatever refuses the turn, with the paths of fields as they are in this call; and
/// [`Refusal::DeadlineExceeded`].
pub(super) async fn run(
    api: &CodexApi,
    request: Request<pb::RunTurnUnaryRequest>,
) -> Result<pb::RunTurnUnaryResponse, Refusal> {
    let deadline = deadline::of(request.metadata());
    let caller = request.extensions().get::<CallerId>().copied().unwrap_or_default();
    let routed = routed::check(&request);
    let pb::RunTurnUnaryRequest { request } = request.into_inner();
    let Some(request) = request else {
        return Err(Refusal::field(REQUEST, "is not set; give the turn to run"));
    };
    let run = async {
        let turn = routed::read(routed, api.validate(request, caller))?;
        let seat = api.engine().readers().take(caller)?;
        let caller = deadline::answer(deadline, api.engine().run_turn(turn)).await?;
        if let Some(deadline) = deadline {
            caller.leave_at(deadline);
        }
        let turn = caller.turn();
        let _seat = seat.of_turn(&turn.id)?;
        let ended = deadline::answer(deadline, terminal(turn)).await;
        if ended == Err(Refusal::DeadlineExceeded) {
            caller.deadline_passed();
        }
        let terminal_event = Some(ended?);
        let thread_id = turn.log.summary().thread_id.unwrap_or_default();
        Ok(pb::RunTurnUnaryResponse { terminal_event, thread_id })
    };
    run.await.map_err(within)
}

/// The refusal of the turn, as that of the call that it came with.
fn within(refusal: Refusal) -> Refusal {
    let path = |field: String| format!("{REQUEST}.{field}");
    let all = |violations: Vec<FieldViolation>| {
        let within = |FieldViolation { field, description }| FieldViolation {
            field: path(field),
            description,
        };
        violations.into_iter().map(within).collect()
    };
    match refusal {
        Refusal::InvalidInput(violations) => Refusal::InvalidInput(all(violations)),
        Refusal::PolicyDenied(denied) => Refusal::PolicyDenied(all(denied)),
        Refusal::WorkingDirectoryMissing { field, path: directory, cause } => {
            Refusal::WorkingDirectoryMissing { field: path(field), path: directory, cause }
        }
        Refusal::NotAGitRepository { field, path: directory, can_be_skipped } => {
            Refusal::NotAGitRepository { field: path(field), path: directory, can_be_skipped }
        }
        other => other,
    }
}
