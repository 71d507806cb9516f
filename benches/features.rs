//! What each of Codex's features costs a turn: the CPU time of `codex app-server` with the feature
//! switched off, as `[worker] disable_features` does. For whoever runs many turns on few cores.
//!
//!     cargo bench --bench features [-- --quick]
//!
//! CPU time instead of time: it hardly depends on what else the machine does. The least of several
//! rounds is shown.

mod support;

use std::time::{Duration, Instant};

use support::{Bed, Fault, Straight, is_quick, say};

const FEATURES: [&str; 14] = [
    "apps",
    "plugins",
    "goals",
    "hooks",
    "shell_snapshot",
    "multi_agent",
    "image_generation",
    "guardian_approval",
    "browser_use",
    "computer_use",
    "tool_suggest",
    "remote_plugin",
    "workspace_dependencies",
    "skill_search",
];
const PROMPT: &str = "hello, how are you today?";

/// Milliseconds per turn.
#[derive(Clone, Copy)]
struct Cost {
    next_cpu: f64,
    next_time: f64,
    first_cpu: f64,
    first_time: f64,
}

impl Cost {
    fn least(self, other: Cost) -> Cost {
        Cost {
            next_cpu: self.next_cpu.min(other.next_cpu),
            next_time: self.next_time.min(other.next_time),
            first_cpu: self.first_cpu.min(other.first_cpu),
            first_time: self.first_time.min(other.first_time),
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Fault> {
    let (rounds, turns) = if is_quick() { (1, 5) } else { (3, 40) };
    let bed = Bed::make().await?;
    let all = FEATURES.map(str::to_owned);
    let mut sets = vec![("none".to_owned(), Vec::new())];
    sets.extend(all.clone().map(|feature| (feature.clone(), vec![feature])));
    sets.push(("all of them".to_owned(), all.to_vec()));

    let mut costs: Vec<Option<Cost>> = vec![None; sets.len()];
    for _ in 0..rounds {
        for ((_, disabled), least) in sets.iter().zip(&mut costs) {
            let cost = measure(&bed, disabled, turns).await?;
            *least = Some(least.map_or(cost, |least| least.least(cost)));
        }
    }
    say("milliseconds per turn            next turn of a thread    first turn of a thread");
    say("switched off                           CPU       time           CPU       time");
    for ((name, _), cost) in sets.iter().zip(costs) {
        let Some(Cost { next_cpu, next_time, first_cpu, first_time }) = cost else { continue };
        say(&format!(
            "{name:<30} {next_cpu:>11.1} {next_time:>10.1} {first_cpu:>13.1} {first_time:>10.1}"
        ));
    }
    Ok(())
}

async fn measure(bed: &Bed, disabled: &[String], turns: usize) -> Result<Cost, Fault> {
    let codex = Straight::start(bed, disabled).await?;
    let thread = codex.open().await?;
    for _ in 0..3 {
        codex.turn(&thread, PROMPT).await?;
    }
    let per_turn = |took: Duration| took.as_secs_f64() * 1000.0 / turns as f64;
    let (began, used) = (Instant::now(), codex.cpu()?);
    for _ in 0..turns {
        codex.turn(&thread, PROMPT).await?;
    }
    let (next_time, next_cpu) = (began.elapsed(), codex.cpu()?.saturating_sub(used));
    let (began, used) = (Instant::now(), codex.cpu()?);
    for _ in 0..turns {
        let thread = codex.open().await?;
        codex.turn(&thread, PROMPT).await?;
    }
    let (first_time, first_cpu) = (began.elapsed(), codex.cpu()?.saturating_sub(used));
    Ok(Cost {
        next_cpu: per_turn(next_cpu),
        next_time: per_turn(next_time),
        first_cpu: per_turn(first_cpu),
        first_time: per_turn(first_time),
    })
}
