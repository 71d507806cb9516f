//! What the sidecar adds to a turn: one turn through gRPC against the same turn spoken straight to
//! `codex app-server`.
//!
//!     cargo bench --bench turn [-- [--quick] [WORD]]
//!
//! With a word, only the cases with it in their name.
//!
//! The two take turns on the machine (A, B, B, A, …), so that what else runs there hits both. The
//! sidecar is a process of its own; a turn through it is over when its stream is.

mod support;

use std::time::{Duration, Instant};

use support::{
    Bed, Fault, Samples, Sidecar, Straight, disabled_by_default, is_quick, is_wanted, say,
};

/// At most this much longer, at p50, may a turn take through the sidecar.
const ALLOWED: f64 = 1.10;
/// What Codex still does after a turn shall not be counted to the next one.
const SETTLE: Duration = Duration::from_millis(10);
/// A thread grows with every turn, and so does the time that a turn takes: after this many a new
/// one is taken, on both sides.
const TURNS_OF_A_THREAD: usize = 25;

struct Case {
    name: &'static str,
    prompt: &'static str,
    starts_thread: bool,
    pairs: usize,
}

#[tokio::main]
async fn main() -> Result<(), Fault> {
    let scale = if is_quick() { 10 } else { 1 };
    let cases = [
        Case {
            name: "next turn of a loaded thread",
            prompt: "hello, how are you today?",
            starts_thread: false,
            pairs: 250 / scale,
        },
        Case {
            name: "first turn of a new thread",
            prompt: "hello, how are you today?",
            starts_thread: true,
            pairs: 80 / scale,
        },
        Case {
            name: "next turn, with 500 deltas",
            prompt: "[[words 500]]",
            starts_thread: false,
            pairs: 80 / scale,
        },
    ];

    let bed = Bed::make().await?;
    let straight = Straight::start(&bed, &disabled_by_default()).await?;
    let sidecar = Sidecar::start(&bed, 1).await?;
    say("milliseconds                            p10      p50      p90      ratio of p50s");
    let mut contexts = 0;
    for case in cases.iter().filter(|case| is_wanted(case.name)) {
        run(case, &straight, &sidecar, &mut contexts).await?;
    }
    sidecar.stop().await
}

async fn run(
    case: &Case,
    straight: &Straight,
    sidecar: &Sidecar,
    contexts: &mut usize,
) -> Result<(), Fault> {
    let Case { name, prompt, starts_thread, pairs } = case;
    let (mut plain, mut through, mut more) =
        (Samples::default(), Samples::default(), Samples::default());
    let mut used = Duration::ZERO;
    let mut thread = straight.open().await?;
    let mut context = String::new();
    for pair in 0..*pairs {
        let renew = pair % TURNS_OF_A_THREAD == 0;
        if renew || *starts_thread {
            *contexts += 1;
            context = format!("bench-{contexts}");
        }
        if renew && !starts_thread {
            thread = straight.open().await?;
            // The first turn of a thread is another case.
            straight.turn(&thread, prompt).await?;
            sidecar.turn(&context, prompt).await?;
        }
        let mut times = [0.0; 2];
        for side in if pair % 2 == 0 { [0, 1] } else { [1, 0] } {
            tokio::time::sleep(SETTLE).await;
            let cpu = sidecar.cpu()?;
            let began = Instant::now();
            if side == 0 {
                if *starts_thread {
                    thread = straight.open().await?;
                }
                straight.turn(&thread, prompt).await?;
                plain.add(began.elapsed());
            } else {
                sidecar.turn(&context, prompt).await?;
                through.add(began.elapsed());
                used += sidecar.cpu()?.saturating_sub(cpu);
            }
            times[side] = began.elapsed().as_secs_f64() * 1000.0;
        }
        more.add_milliseconds(times[1] - times[0]);
    }
    let ratio = through.p50() / plain.p50();
    say(&format!("{name}, {} pairs", more.len()));
    for (side, samples) in [("straight", &plain), ("through gRPC", &through)] {
        let [p10, p50, p90] = [0.1, 0.5, 0.9].map(|share| samples.quantile(share));
        let ratio = match side {
            "straight" => String::new(),
            _ => format!("{ratio:>9.3} (allowed {ALLOWED:.2})"),
        };
        say(&format!("  {side:<32} {p10:>8.2} {p50:>8.2} {p90:>8.2} {ratio}"));
    }
    say(&format!(
        "  the sidecar's own: {:.2} ms more at p50 of the pairs, {:.2} ms of CPU per turn",
        more.p50(),
        used.as_secs_f64() * 1000.0 / more.len() as f64
    ));
    Ok(())
}
