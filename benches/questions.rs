//! Questions that wait for their answers, a thousand at once: what each takes of the sidecar's memory,
//! and how fast turns are beside them.
//!
//!     cargo bench --bench questions [-- --quick]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use codex_sidecar::pb;
use codex_sidecar::pb::turn_event::Event;
use support::{Bed, Fault, Samples, Sidecar, is_quick, say};
use tonic::Streaming;

const WORKERS: usize = 2;
const PROMPT: &str = "hello, how are you today?";

/// A turn whose questions wait.
struct Asking {
    turn_id: String,
    request_ids: Vec<String>,
    stream: Streaming<pb::RunTurnResponse>,
}

#[tokio::main]
async fn main() -> Result<(), Fault> {
    // How many turns ask, how many questions each, and how many turns are beside them.
    let (turns, each, beside) = if is_quick() { (2, 5, 2) } else { (20, 50, 40) };
    let bed = Bed::make().await?;
    let sidecar = Arc::new(Sidecar::start(&bed, WORKERS).await?);
    // Of the same kind, so that what comes once has come.
    for asking in ask(&sidecar, "before", turns, 1).await? {
        answer(&sidecar, asking).await?;
    }
    turns_beside(&sidecar, beside).await?;

    let alone = turns_beside(&sidecar, beside).await?;
    let before = sidecar.resident()?;
    let began = Instant::now();
    let asking = ask(&sidecar, "asking", turns, each).await?;
    let took = began.elapsed();
    let questions = asking.iter().map(|asking| asking.request_ids.len()).sum::<usize>();
    let held = sidecar.resident()?.saturating_sub(before);
    let together = turns_beside(&sidecar, beside).await?;
    let mut answered = Samples::default();
    for asking in asking {
        for sample in answer(&sidecar, asking).await? {
            answered.add(sample);
        }
    }
    say(&format!("{questions} questions that wait at once, of {turns} turns, {WORKERS} workers"));
    say(&format!("  asked within                {:>8.2} s", took.as_secs_f64()));
    say(&format!(
        "  of the sidecar's memory     {:>8.2} kB per question, turns and streams included",
        held as f64 / 1000.0 / questions as f64
    ));
    say(&format!("  an answer                   {:>8.2} ms at p50", answered.p50()));
    say(&format!("a turn, {} each                    p50      p95", alone.len()));
    say(&format!(
        "  without them                {:>8.1} {:>8.1} ms",
        alone.p50(),
        alone.quantile(0.95)
    ));
    say(&format!(
        "  beside them                 {:>8.1} {:>8.1} ms",
        together.p50(),
        together.quantile(0.95)
    ));
    let sidecar = Arc::into_inner(sidecar).ok_or("a call is still open")?;
    sidecar.stop().await
}

async fn turns_beside(sidecar: &Sidecar, turns: usize) -> Result<Samples, Fault> {
    let mut samples = Samples::default();
    for _ in 0..turns {
        let began = Instant::now();
        sidecar.turn("beside", PROMPT).await?;
        samples.add(began.elapsed());
    }
    Ok(samples)
}

/// Begins turns of which each calls a lent function so often at once.
async fn ask(
    sidecar: &Arc<Sidecar>,
    name: &str,
    turns: usize,
    each: usize,
) -> Result<Vec<Asking>, Fault> {
    let call = |number: usize| format!("[[tool lookup {{\"number\": {number}}}]]");
    let prompt = (0..each).map(call).collect::<Vec<_>>().join(" [[and]] ");
    let mut beginning = tokio::task::JoinSet::new();
    for number in 0..turns {
        let mut request = sidecar.request(&format!("{name}-{number}"), &prompt);
        request.set_question_policy(pb::QuestionPolicy::Ask);
        let options = request.thread_options.get_or_insert_default();
        options.dynamic_tools.push(pb::DynamicTool {
            name: "lookup".to_owned(),
            description: "Looks something up.".to_owned(),
            input_schema: r#"{"type":"object","properties":{"number":{"type":"integer"}}}"#
                .to_owned(),
        });
        let sidecar = Arc::clone(sidecar);
        beginning.spawn(async move { begin(&sidecar, request, each).await });
    }
    let mut asking = Vec::new();
    while let Some(begun) = beginning.join_next().await {
        asking.push(begun??);
    }
    Ok(asking)
}

async fn begin(
    sidecar: &Sidecar,
    request: pb::RunTurnRequest,
    questions: usize,
) -> Result<Asking, Fault> {
    let mut stream = sidecar.client().run_turn(request).await?.into_inner();
    let mut request_ids = Vec::new();
    while let Some(response) = stream.message().await? {
        let event = response.event.ok_or("a response without an event")?;
        match event.event {
            Some(Event::RequestRaised(pb::RequestRaised { request: Some(request) })) => {
                request_ids.push(request.request_id);
            }
            Some(Event::TurnCompleted(_) | Event::TurnFailed(_) | Event::TurnInterrupted(_)) => {
                return Err(format!("the turn ended before it asked: {event:#?}").into());
            }
            _ => {}
        }
        if request_ids.len() == questions {
            return Ok(Asking { turn_id: event.turn_id, request_ids, stream });
        }
    }
    Err("the stream ended without an end".into())
}

/// Answers all that a turn asks, waits for its end, and gives how long each answer took.
async fn answer(sidecar: &Sidecar, asking: Asking) -> Result<Vec<Duration>, Fault> {
    let Asking { turn_id, request_ids, mut stream } = asking;
    let mut client = sidecar.client();
    let mut took = Vec::new();
    for request_id in request_ids {
        let text = pb::tool_content::Content::Text("found".to_owned());
        let content = vec![pb::ToolContent { content: Some(text) }];
        let answer = pb::ToolCallAnswer { content, success: true };
        let began = Instant::now();
        client
            .answer_request(pb::AnswerRequestRequest {
                turn_id: turn_id.clone(),
                request_id,
                answer: Some(pb::answer_request_request::Answer::ToolCall(answer)),
            })
            .await?;
        took.push(began.elapsed());
    }
    let mut last = None;
    while let Some(response) = stream.message().await? {
        last = response.event.and_then(|event| event.event);
    }
    match last {
        Some(Event::TurnCompleted(_)) => Ok(took),
        other => Err(format!("the turn ended with {other:?}").into()),
    }
}
