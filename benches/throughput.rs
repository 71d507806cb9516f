//! Many contexts at once: turns per second through the sidecar, and with the same number of Codex
//! processes spoken to straight.
//!
//!     cargo bench --bench throughput [-- --quick]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use support::{Bed, Fault, Samples, Sidecar, Straight, disabled_by_default, is_quick, say};

const CONTEXTS: usize = 16;
const WORKERS: usize = 2;
/// How many turns each context runs in a round, one after the other.
const TURNS: usize = 3;
const PROMPT: &str = "hello, how are you today?";

#[tokio::main]
async fn main() -> Result<(), Fault> {
    let rounds = if is_quick() { 1 } else { 8 };
    let bed = Bed::make().await?;
    let mut processes = Vec::new();
    for _ in 0..WORKERS {
        processes.push(Arc::new(Straight::start(&bed, &disabled_by_default()).await?));
    }
    let sidecar = Arc::new(Sidecar::start(&bed, WORKERS).await?);

    let (mut plain, mut through) = (Samples::default(), Samples::default());
    let mut used = Duration::ZERO;
    for round in 0..rounds {
        for side in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
            if side == 0 {
                plain.add(straight_round(&processes).await?);
            } else {
                let cpu = sidecar.cpu()?;
                through.add(sidecar_round(&sidecar, round).await?);
                used += sidecar.cpu()?.saturating_sub(cpu);
            }
        }
    }
    let turns = (CONTEXTS * TURNS) as f64;
    let rate = |samples: &Samples| turns * 1000.0 / samples.p50();
    let best = |samples: &Samples| turns * 1000.0 / samples.quantile(0.0);
    say(&format!(
        "{CONTEXTS} contexts at once, {WORKERS} workers, {rounds} rounds of {turns} turns, new threads"
    ));
    say("turns per second                   p50     best");
    say(&format!("  straight                    {:>8.1} {:>8.1}", rate(&plain), best(&plain)));
    say(&format!("  through gRPC                {:>8.1} {:>8.1}", rate(&through), best(&through)));
    say(&format!("  ratio of times at p50       {:>8.3}", through.p50() / plain.p50()));
    say(&format!(
        "  the sidecar's own CPU       {:>8.2} ms per turn",
        used.as_secs_f64() * 1000.0 / (turns * rounds as f64)
    ));
    let sidecar = Arc::into_inner(sidecar).ok_or("a call is still open")?;
    sidecar.stop().await
}

async fn straight_round(processes: &[Arc<Straight>]) -> Result<Duration, Fault> {
    let began = Instant::now();
    let mut running = tokio::task::JoinSet::new();
    for number in 0..CONTEXTS {
        let process = Arc::clone(&processes[number % processes.len()]);
        running.spawn(async move {
            let thread = process.open().await?;
            for _ in 0..TURNS {
                process.turn(&thread, PROMPT).await?;
            }
            Ok::<_, Fault>(())
        });
    }
    while let Some(ended) = running.join_next().await {
        ended??;
    }
    Ok(began.elapsed())
}

async fn sidecar_round(sidecar: &Arc<Sidecar>, round: usize) -> Result<Duration, Fault> {
    let began = Instant::now();
    let mut running = tokio::task::JoinSet::new();
    for number in 0..CONTEXTS {
        let sidecar = Arc::clone(sidecar);
        running.spawn(async move {
            let context = format!("throughput-{round}-{number}");
            for _ in 0..TURNS {
                sidecar.turn(&context, PROMPT).await?;
            }
            Ok::<_, Fault>(())
        });
    }
    while let Some(ended) = running.join_next().await {
        ended??;
    }
    Ok(began.elapsed())
}
