//! How late a deadline strikes: calls whose deadline passes in the middle of a turn, and the time
//! from the deadline until the client has DEADLINE_EXCEEDED, and until the turn itself is over.
//!
//!     cargo bench --bench deadline [-- --quick]
//!
//! Deadlines are to end within 100 ms of their time.

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use codex_sidecar::pb;
use support::{Bed, Fault, Samples, Sidecar, is_quick, say};
use tonic::Code;

/// As late as a status may come, in milliseconds.
const ALLOWED: f64 = 100.0;
/// How many calls are open at once.
const AT_ONCE: usize = 4;

/// What the turn is doing when the deadline passes.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    prompt: &'static str,
    /// Whether another turn of the context runs, so that this one waits for it.
    waits: bool,
}

const CASES: [Case; 4] = [
    Case { name: "a silent turn", prompt: "[[hang]]", waits: false },
    Case { name: "a delta every 20 ms", prompt: "[[slow 20ms]] [[words 1000]]", waits: false },
    Case { name: "a flood of deltas", prompt: "[[words 100000]]", waits: false },
    Case { name: "a turn that waits in its queue", prompt: "[[hang]]", waits: true },
];

#[derive(Default)]
struct Found {
    status: Samples,
    end: Samples,
    other_codes: Vec<Code>,
}

#[tokio::main]
async fn main() -> Result<(), Fault> {
    let calls = if is_quick() { 4 } else { 60 };
    let bed = Bed::make().await?;
    let sidecar = Arc::new(Sidecar::start(&bed, 2).await?);
    say(&format!("{:<32}   milliseconds after the deadline", ""));
    say(&format!(
        "{calls} calls each, {AT_ONCE} at once{:<11}     min      p50      p99      max",
        ""
    ));
    for (number, case) in CASES.into_iter().enumerate() {
        let found = run(Arc::clone(&sidecar), number, case, calls).await?;
        let [min, p50, p99, max] = [0.0, 0.5, 0.99, 1.0].map(|share| found.status.quantile(share));
        let verdict = if max <= ALLOWED { "" } else { "  beyond what is allowed" };
        say(&format!("{:<32} {min:>8.2} {p50:>8.2} {p99:>8.2} {max:>8.2}{verdict}", case.name));
        let [min, p50, p99, max] = [0.0, 0.5, 0.99, 1.0].map(|share| found.end.quantile(share));
        say(&format!(
            "{:<32} {min:>8.2} {p50:>8.2} {p99:>8.2} {max:>8.2}",
            "  and the turn is over"
        ));
        if !found.other_codes.is_empty() {
            say(&format!("  not DEADLINE_EXCEEDED: {:?}", found.other_codes));
        }
    }
    let sidecar = Arc::into_inner(sidecar).ok_or("a call is still open")?;
    sidecar.stop().await
}

async fn run(
    sidecar: Arc<Sidecar>,
    case_number: usize,
    case: Case,
    calls: usize,
) -> Result<Found, Fault> {
    let mut found = Found::default();
    let mut lanes = tokio::task::JoinSet::new();
    for lane in 0..AT_ONCE {
        let sidecar = Arc::clone(&sidecar);
        let calls = calls / AT_ONCE;
        lanes.spawn(async move {
            let context = format!("deadline-{case_number}-{lane}");
            let mut outcomes = Vec::new();
            for _ in 0..calls {
                outcomes.push(call(&sidecar, &context, case).await?);
            }
            Ok::<_, Fault>(outcomes)
        });
    }
    while let Some(lane) = lanes.join_next().await {
        for Outcome { code, status, end } in lane?? {
            if code == Code::DeadlineExceeded {
                found.status.add_milliseconds(status);
                found.end.add_milliseconds(end);
            } else {
                found.other_codes.push(code);
            }
        }
    }
    Ok(found)
}

struct Outcome {
    code: Code,
    /// Milliseconds from the deadline to the status.
    status: f64,
    /// Milliseconds from the deadline to the end of the turn.
    end: f64,
}

async fn call(sidecar: &Sidecar, context: &str, case: Case) -> Result<Outcome, Fault> {
    let mut client = sidecar.client();
    // Dropped at the end of the call, which interrupts its turn.
    let mut ahead = None;
    if case.waits {
        let mut stream = client.run_turn(sidecar.request(context, "[[hang]]")).await?.into_inner();
        stream.message().await?;
        ahead = Some(stream);
    }
    // Late enough that the turn runs on a busy machine, too; and not at a round time.
    let timeout = Duration::from_micros(fastrand::u64(400_000..700_000));
    let mut request = tonic::Request::new(sidecar.request(context, case.prompt));
    request.set_timeout(timeout);
    let began = Instant::now();
    let after = |began: Instant| (began.elapsed().as_secs_f64() - timeout.as_secs_f64()) * 1000.0;

    let mut turn_id = String::new();
    let mut sequence = 0;
    let code = match client.run_turn(request).await {
        Err(status) => status.code(),
        Ok(response) => {
            let mut stream = response.into_inner();
            loop {
                match stream.message().await {
                    Ok(Some(response)) => {
                        let event = response.event.unwrap_or_default();
                        (turn_id, sequence) = (event.turn_id, event.sequence);
                    }
                    Ok(None) => break Code::Ok,
                    Err(status) => break status.code(),
                }
            }
        }
    };
    let status = after(began);
    if !turn_id.is_empty() {
        let target = Some(pb::attach_turn_request::Target::TurnId(turn_id));
        let request = pb::AttachTurnRequest { target, after_sequence: sequence };
        let mut stream = client.attach_turn(request).await?.into_inner();
        while stream.message().await?.is_some() {}
    }
    let end = after(began);
    if let Some(mut ahead) = ahead.take() {
        let turn_id = ahead.message().await?.and_then(|response| response.event);
        let turn_id = turn_id.map(|event| event.turn_id).unwrap_or_default();
        drop(ahead);
        client.interrupt_turn(pb::InterruptTurnRequest { turn_id }).await?;
    }
    Ok(Outcome { code, status, end })
}
