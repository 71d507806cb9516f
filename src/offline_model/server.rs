//! The listener, its connections and the HTTP around an answer.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures::stream;
use http::{HeaderMap, StatusCode, header};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::catalog::catalog;
use super::script::{self, Script, Step};
use super::sse::{self, Frame};

/// Codex refuses input of more than 1 MiB, but sends the whole thread, images included, with every request.
const MAX_REQUEST_BYTES: usize = 64 << 20;
/// How long to wait before accepting again when there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until `stop` is told, then drops the listener and every connection. So does aborting it.
pub(super) async fn serve(
    listener: TcpListener,
    requests: Arc<AtomicU64>,
    mut stop: oneshot::Receiver<()>,
) {
    let router = router(requests);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            // An `Err` is the model being dropped, which aborts this task anyway.
            _ = &mut stop => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, router.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "offline model could not accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
    drop(listener);
    connections.shutdown().await;
}

async fn connection(stream: TcpStream, router: Router) {
    // Deltas are small and each is somebody's next event. A socket that refuses the option works without it.
    let _ = stream.set_nodelay(true);
    let served = auto::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .await;
    if let Err(error) = served {
        // `[[cut]]`, or a client that went away in the middle.
        tracing::debug!(%error, "offline model: connection ended early");
    }
}

fn router(requests: Arc<AtomicU64>) -> Router {
    Router::new()
        .route("/v1/responses", post(respond))
        .route("/v1/models", get(models))
        .fallback(not_found)
        .method_not_allowed_fallback(not_found)
        .layer(DefaultBodyLimit::max(MAX_REQUEST_BYTES))
        .with_state(requests)
}

async fn models() -> Response {
    json_response(StatusCode::OK, &catalog())
}

async fn not_found() -> Response {
    error_response(
        StatusCode::NOT_FOUND,
        "offline model: it has POST /v1/responses and GET /v1/models",
    )
}

async fn respond(
    State(requests): State<Arc<AtomicU64>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    // Codex compresses for ChatGPT accounts alone, and this provider has none.
    if let Some(encoding) = headers.get(header::CONTENT_ENCODING)
        && encoding != "identity"
    {
        return error_response(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "offline model: send the body uncompressed",
        );
    }
    let body = match body {
        Ok(body) => body,
        Err(rejected) => {
            return error_response(
                rejected.status(),
                &format!("offline model: {}", rejected.body_text()),
            );
        }
    };
    let request: Value = match serde_json::from_slice(&body) {
        Ok(request) => request,
        Err(error) => {
            return error_response(
                StatusCode::BAD_REQUEST,
                &format!("offline model: the request is not JSON: {error}"),
            );
        }
    };
    requests.fetch_add(1, Ordering::Relaxed);
    answer(script::decide(&request)).await
}

async fn answer(mut script: Script) -> Response {
    // Waits that come first are held before the headers: a status may follow them.
    let first = script
        .steps
        .iter()
        .position(|step| !matches!(step, Step::Wait(_)))
        .unwrap_or(script.steps.len());
    for step in script.steps.drain(..first) {
        if let Step::Wait(pause) = step {
            tokio::time::sleep(pause).await;
        }
    }
    match script.steps.first() {
        Some(Step::Hang) => std::future::pending().await,
        Some(Step::Status { code, retry_after }) => status_response(*code, *retry_after),
        _ => stream_response(script),
    }
}

fn stream_response(script: Script) -> Response {
    let frames = sse::frames(script, &Uuid::now_v7().simple().to_string());
    let body = stream::unfold(frames, |mut frames| async move {
        loop {
            match frames.next()? {
                Frame::Send(bytes) => return Some((Ok(bytes), frames)),
                Frame::Pause(pause) => tokio::time::sleep(pause).await,
                Frame::Stall => std::future::pending::<()>().await,
                // An error in its body makes hyper drop a connection without the last chunk.
                Frame::Cut => {
                    let cut = io::Error::new(io::ErrorKind::ConnectionAborted, "cut by the prompt");
                    return Some((Err(cut), frames));
                }
            }
        }
    });
    let headers =
        [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
    (headers, Body::from_stream(body)).into_response()
}

fn status_response(code: u16, retry_after: Option<u64>) -> Response {
    let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response =
        error_response(status, &format!("offline model: status {code} as the prompt asked"));
    if let Some(seconds) = retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

/// An error in OpenAI's form, with the type and code that its API gives for the status.
fn error_response(status: StatusCode, message: &str) -> Response {
    let (kind, code) = match status.as_u16() {
        401 => ("invalid_request_error", Some("invalid_api_key")),
        403 => ("invalid_request_error", Some("permission_denied")),
        404 => ("invalid_request_error", Some("not_found")),
        429 => ("requests", Some("rate_limit_exceeded")),
        500.. => ("server_error", Some("server_error")),
        _ => ("invalid_request_error", None),
    };
    json_response(
        status,
        &json!({"error": {"message": message, "type": kind, "code": code, "param": null}}),
    )
}

fn json_response(status: StatusCode, body: &Value) -> Response {
    let headers = [(header::CONTENT_TYPE, "application/json")];
    (status, headers, body.to_string()).into_response()
}
