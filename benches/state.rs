//! What the ledger costs a turn: the same turn with `--state memory` and with a ledger on tmpfs and on the
//! disk, with and without fsync, one after the other in each round, in an order that is drawn anew. The CPU
//! time of the sidecars and of their workers, how long a turn takes, and what an fsync of this disk takes
//! in the same run.
//!
//!     cargo bench --bench state [-- --quick] [-- --disk DIRECTORY]
//!
//! Ends with 1 when a ledger takes 5% or more of the CPU time of sidecar and worker together, or adds more
//! to a turn than one fsync and what a machine with others on it can't tell from nothing.

mod support;

use std::ffi::OsString;
use std::io::{Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use codex_sidecar::pb;
use codex_sidecar::pb::turn_event::Event;
use support::{Bed, Fault, Samples, Sidecar, is_quick, say};

const PROMPT: &str = "hello, how are you today?";
/// Of the CPU time of sidecar and worker together.
const MOST_CPU: f64 = 0.05;
/// Of a turn's time: what two halves of the same kind differ by on a machine that others use.
const UNTOLD: f64 = 0.02;
/// A file system in memory.
const MEMORY: &str = "/dev/shm";

/// A sidecar with a state of its own kind.
struct Kind {
    name: &'static str,
    /// Where its fsync leads to; none for what is without.
    synced: Option<PathBuf>,
    sidecar: Sidecar,
    next: Times,
    first: Times,
    cpu: Cpu,
}

/// How long turns took.
#[derive(Default)]
struct Times {
    to_thread: Samples,
    to_end: Samples,
    /// More than the one without a state in the same round.
    more: Samples,
}

/// CPU time of a sidecar and of its worker, over some turns.
#[derive(Default, Clone, Copy)]
struct Cpu {
    sidecar: Duration,
    worker: Duration,
}

#[tokio::main]
async fn main() -> Result<ExitCode, Fault> {
    // Rounds of a turn on a loaded thread, and of the first turn of a context.
    let (next, first) = if is_quick() { (8, 4) } else { (250, 60) };
    let bed = Bed::make().await?;
    let arguments: Vec<String> = std::env::args().collect();
    let disk = arguments.iter().position(|word| word == "--disk");
    let disk = disk.and_then(|at| arguments.get(at + 1)).map(PathBuf::from);
    let disk = tempfile::tempdir_in(disk.unwrap_or_else(std::env::temp_dir))?;
    let memory = tempfile::tempdir_in(MEMORY)?;
    let mut kinds = vec![
        kind(&bed, "memory", None, "power").await?,
        kind(&bed, "tmpfs", Some(memory.path()), "power").await?,
        kind(&bed, "disk", Some(disk.path()), "power").await?,
        kind(&bed, "disk, process", Some(disk.path()), "process").await?,
    ];
    let mut fsync = Samples::default();
    for number in 0..5 {
        round(&mut kinds, "warm", &format!("warm {number}"), |_| None).await?;
    }
    for number in 0..first {
        let context = format!("first {number}");
        round(&mut kinds, &context, &context, |kind| Some(&mut kind.first)).await?;
        fsync.add(sync(disk.path())?);
    }
    let mut before = Vec::new();
    for kind in &kinds {
        before.push(kind.cpu_now().await?);
    }
    for number in 0..next {
        round(&mut kinds, "warm", &format!("next {number}"), |kind| Some(&mut kind.next)).await?;
        fsync.add(sync(disk.path())?);
    }
    for (kind, before) in kinds.iter_mut().zip(before) {
        let now = kind.cpu_now().await?;
        kind.cpu =
            Cpu { sidecar: now.sidecar - before.sidecar, worker: now.worker - before.worker };
    }

    say(&format!(
        "an fsync of 4 KiB on the disk       {:>7.2} ms at p50, {:.2} at p90",
        fsync.p50(),
        fsync.quantile(0.9)
    ));
    let mut is_good = true;
    for (what, rounds, times) in [
        ("next turn of a loaded thread", next, (|kind| &kind.next) as fn(&Kind) -> &Times),
        ("first turn of a new context", first, |kind| &kind.first),
    ] {
        say(&format!(
            "{:<35} {:>9} {:>9} {:>9} {:>9}",
            format!("{what}, {rounds} rounds"),
            "to thread",
            "p50",
            "p90",
            "more"
        ));
        for kind in &kinds {
            let of = times(kind);
            let most = kind.synced.as_ref().map_or(0.0, |_| fsync.p50());
            let fsyncs = match kind.synced.as_deref() {
                Some(synced) if synced == disk.path() => {
                    format!("{:.2} fsyncs", of.more.p50() / fsync.p50())
                }
                _ => String::new(),
            };
            is_good &= of.more.p50() <= most + UNTOLD * of.to_end.p50();
            say(&format!(
                "  {:<33} {:>9.2} {:>9.2} {:>9.2} {:>9.2}  {fsyncs}",
                kind.name,
                of.to_thread.p50(),
                of.to_end.p50(),
                of.to_end.quantile(0.9),
                of.more.p50()
            ));
        }
    }
    say(&format!("{:<35} {:>9} {:>9} {:>9}", "CPU, ms a turn", "sidecar", "worker", "ledger"));
    let plain = kinds.first().map(|kind| kind.cpu).unwrap_or_default();
    for kind in &kinds {
        let Cpu { sidecar, worker } = kind.cpu;
        let a_turn = |time: Duration| time.as_secs_f64() * 1000.0 / f64::from(next);
        let own = sidecar.as_secs_f64() - plain.sidecar.as_secs_f64();
        let share = own / (plain.sidecar + plain.worker).as_secs_f64();
        is_good &= share < MOST_CPU;
        say(&format!(
            "  {:<33} {:>9.2} {:>9.2} {:>8.1}%",
            kind.name,
            a_turn(sidecar),
            a_turn(worker),
            share * 100.0
        ));
    }
    for kind in kinds {
        kind.sidecar.stop().await?;
    }
    // A few samples settle nothing.
    Ok(ExitCode::from(u8::from(!is_good && !is_quick())))
}

async fn kind(
    bed: &Bed,
    name: &'static str,
    directory: Option<&Path>,
    durability: &str,
) -> Result<Kind, Fault> {
    let file = directory.map(|directory| directory.join(format!("{durability}.redb")));
    let state = file.map_or_else(|| "memory".into(), PathBuf::into_os_string);
    let home = format!("{}-home", name.replace(", ", "-"));
    let settings = format!("[state]\ndurability = \"{durability}\"\n");
    let flags: [OsString; 2] = ["--state".into(), state];
    let sidecar = Sidecar::with(bed, 1, &home, &flags, &settings).await?;
    let synced = directory.filter(|_| durability == "power").map(Path::to_owned);
    let (next, first, cpu) = Default::default();
    Ok(Kind { name, synced, sidecar, next, first, cpu })
}

/// The same turn with each.
async fn round(
    kinds: &mut [Kind],
    context: &str,
    request_id: &str,
    times: impl Fn(&mut Kind) -> Option<&mut Times>,
) -> Result<(), Fault> {
    let mut order: Vec<usize> = (0..kinds.len()).collect();
    fastrand::shuffle(&mut order);
    let mut took = vec![Duration::ZERO; kinds.len()];
    for at in order {
        let Some(kind) = kinds.get_mut(at) else { continue };
        let (to_thread, to_end) = turn(&kind.sidecar, context, request_id).await?;
        if let Some(took) = took.get_mut(at) {
            *took = to_end;
        }
        if let Some(times) = times(kind) {
            times.to_thread.add(to_thread);
            times.to_end.add(to_end);
        }
    }
    let plain = took.first().copied().unwrap_or_default();
    for (kind, took) in kinds.iter_mut().zip(took) {
        if let Some(times) = times(kind) {
            times.more.add_milliseconds((took.as_secs_f64() - plain.as_secs_f64()) * 1000.0);
        }
    }
    Ok(())
}

/// How long a turn took to tell its thread, and its end.
async fn turn(
    sidecar: &Sidecar,
    context: &str,
    request_id: &str,
) -> Result<(Duration, Duration), Fault> {
    let mut request = sidecar.request(context, PROMPT);
    request.request_id = request_id.to_owned();
    let mut client = sidecar.client();
    let began = Instant::now();
    let mut stream = client.run_turn(request).await?.into_inner();
    let mut to_thread = Duration::ZERO;
    let mut last = None;
    while let Some(pb::RunTurnResponse { event }) = stream.message().await? {
        last = event.and_then(|event| event.event);
        if matches!(last, Some(Event::ThreadStarted(_))) {
            to_thread = began.elapsed();
        }
    }
    match last {
        Some(Event::TurnCompleted(_)) => Ok((to_thread, began.elapsed())),
        other => Err(format!("the turn ended with {other:?}").into()),
    }
}

/// What the disk takes for a page.
fn sync(directory: &Path) -> Result<Duration, Fault> {
    let path = directory.join("page");
    let mut file = std::fs::File::options().create(true).truncate(false).write(true).open(path)?;
    file.rewind()?;
    let page: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(4096).collect();
    file.write_all(&page)?;
    let began = Instant::now();
    file.sync_data()?;
    Ok(began.elapsed())
}

impl Kind {
    async fn cpu_now(&self) -> Result<Cpu, Fault> {
        let worker = self.sidecar.cpu_of_workers().await?;
        Ok(Cpu { sidecar: self.sidecar.cpu()?, worker })
    }
}
