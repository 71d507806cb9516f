//! What the ledger costs a turn: the same turn with `--state memory` and with a ledger on tmpfs and on the
//! disk, with and without fsync, one after the other in each round, in an order that is drawn anew. The CPU
//! time of the sidecars and of their workers, how long a turn takes, and what an fsync takes on this disk
//! while Codex writes there, too: in the middle of a turn of one more sidecar, and at its end.
//!
//!     cargo bench --bench state [-- --quick] [--disk DIRECTORY]
//!
//! The disk is that of the temporary directory, where the workers' CODEX_HOMEs are, unless it is named.
//!
//! "more" is the median of the differences to the turn with `--state memory` of the same round, "±" half of
//! the interval that the true one is in with 95%, "in fsyncs" the same in p50s of the measured fsync.
//!
//! Ends with 1 when a ledger takes 5% or more of the CPU time of sidecar and worker together, or adds more
//! to a turn than one such fsync (where it waits for none, more than nothing), by more than this run can tell
//! from nothing: "±", and 2% of the turn at the least.

mod support;

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use codex_sidecar::pb;
use codex_sidecar::pb::turn_event::Event;
use support::{Bed, Fault, Samples, Sidecar, is_quick, say};

const PROMPT: &str = "hello, how are you today?";
/// Of the CPU time of sidecar and worker together.
const MOST_CPU: f64 = 0.05;
/// Of a turn's time: what two sidecars of the same kind differ by at the least, on a machine that others use.
const NOISE: f64 = 0.02;
/// How far from the middle of N samples, in N-ths, the ends of the median's 95% interval are, times √N.
const INTERVAL: f64 = 0.98;
/// How large the file is whose fsync is measured, in bytes, and how many pages of it are written: as a commit
/// of the ledger does.
const FILE: u64 = 1 << 20;
const PAGE: u64 = 4096;
const PAGES: usize = 4;
/// A file system in memory.
const MEMORY: &str = "/dev/shm";

/// A sidecar with a state of its own kind.
struct Kind {
    name: &'static str,
    /// Whether its end waits for an fsync of the disk.
    is_synced: bool,
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
        Kind { is_synced: true, ..kind(&bed, "disk", Some(disk.path()), "power").await? },
        kind(&bed, "disk, process", Some(disk.path()), "process").await?,
    ];
    let beside = kind(&bed, "beside", None, "power").await?.sidecar;
    let page = page_file(disk.path())?;
    let mut fsync = Samples::default();
    for number in 0..5 {
        round(&mut kinds, "warm", &format!("warm {number}"), |_| None).await?;
    }
    for number in 0..first {
        let context = format!("first {number}");
        round(&mut kinds, &context, &context, |kind| Some(&mut kind.first)).await?;
        syncs(&beside, &context, &page, &mut fsync).await?;
    }
    let mut before = Vec::new();
    for kind in &kinds {
        before.push(kind.cpu_now().await?);
    }
    for number in 0..next {
        round(&mut kinds, "warm", &format!("next {number}"), |kind| Some(&mut kind.next)).await?;
        syncs(&beside, "warm", &page, &mut fsync).await?;
    }
    for (kind, before) in kinds.iter_mut().zip(before) {
        let now = kind.cpu_now().await?;
        kind.cpu =
            Cpu { sidecar: now.sidecar - before.sidecar, worker: now.worker - before.worker };
    }

    say(&format!(
        "an fsync on the disk, in turns      {:>7.2} ms at p50, {:.2} at p90",
        fsync.p50(),
        fsync.quantile(0.9)
    ));
    let mut is_good = true;
    for (what, rounds, times) in [
        ("next turn of a loaded thread", next, (|kind| &kind.next) as fn(&Kind) -> &Times),
        ("first turn of a new context", first, |kind| &kind.first),
    ] {
        say(&format!(
            "{:<35} {:>10} {:>9} {:>9} {:>9} {:>7} {:>10}",
            format!("{what}, {rounds} rounds"),
            "to thread",
            "p50",
            "p90",
            "more",
            "±",
            "in fsyncs"
        ));
        for kind in &kinds {
            let Times { to_thread, to_end, more } = times(kind);
            let most = if kind.is_synced { fsync.p50() } else { 0.0 };
            let doubt = half_interval(more);
            is_good &= more.p50() <= most + doubt.max(NOISE * to_end.p50());
            say(&format!(
                "  {:<33} {:>10.2} {:>9.2} {:>9.2} {:>9.2} {:>7.2} {:>10.2}",
                kind.name,
                to_thread.p50(),
                to_end.p50(),
                to_end.quantile(0.9),
                more.p50(),
                doubt,
                more.p50() / fsync.p50()
            ));
        }
    }
    say(&format!("{:<35} {:>10} {:>9} {:>9}", "CPU, ms a turn", "sidecar", "worker", "ledger"));
    let plain = kinds.first().map(|kind| kind.cpu).unwrap_or_default();
    for kind in &kinds {
        let Cpu { sidecar, worker } = kind.cpu;
        let a_turn = |time: Duration| time.as_secs_f64() * 1000.0 / f64::from(next);
        let own = sidecar.as_secs_f64() - plain.sidecar.as_secs_f64();
        let share = own / (plain.sidecar + plain.worker).as_secs_f64();
        is_good &= share < MOST_CPU;
        say(&format!(
            "  {:<33} {:>10.2} {:>9.2} {:>8.1}%",
            kind.name,
            a_turn(sidecar),
            a_turn(worker),
            share * 100.0
        ));
    }
    for kind in kinds {
        kind.sidecar.stop().await?;
    }
    beside.stop().await?;
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
    let (next, first, cpu) = Default::default();
    Ok(Kind { name, is_synced: false, sidecar, next, first, cpu })
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
        let began = Instant::now();
        let mut to_thread = Duration::ZERO;
        turn(&kind.sidecar, context, request_id, |event| {
            if matches!(event, Event::ThreadStarted(_)) {
                to_thread = began.elapsed();
            }
        })
        .await?;
        let to_end = began.elapsed();
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

/// Runs a turn, and shows each event.
async fn turn(
    sidecar: &Sidecar,
    context: &str,
    request_id: &str,
    mut seen: impl FnMut(&Event),
) -> Result<(), Fault> {
    let mut request = sidecar.request(context, PROMPT);
    request.request_id = request_id.to_owned();
    let mut client = sidecar.client();
    let mut stream = client.run_turn(request).await?.into_inner();
    let mut last = None;
    while let Some(pb::RunTurnResponse { event }) = stream.message().await? {
        last = event.and_then(|event| event.event);
        last.iter().for_each(&mut seen);
    }
    match last {
        Some(Event::TurnCompleted(_)) => Ok(()),
        other => Err(format!("the turn ended with {other:?}").into()),
    }
}

/// What an fsync takes in the middle of a turn and at its end.
async fn syncs(
    sidecar: &Sidecar,
    context: &str,
    page: &File,
    fsync: &mut Samples,
) -> Result<(), Fault> {
    let mut took = Vec::new();
    turn(sidecar, context, "", |event| {
        if matches!(event, Event::TurnStarted(_) | Event::TurnCompleted(_)) {
            took.push(sync(page));
        }
    })
    .await?;
    for took in took {
        fsync.add(took?);
    }
    Ok(())
}

fn page_file(directory: &Path) -> Result<File, Fault> {
    let file = File::create(directory.join("pages"))?;
    file.set_len(FILE)?;
    Ok(file)
}

/// What the disk takes for some pages of a file.
fn sync(file: &File) -> std::io::Result<Duration> {
    for _ in 0..PAGES {
        let page: Vec<u8> =
            std::iter::repeat_with(|| fastrand::u8(..)).take(PAGE as usize).collect();
        file.write_all_at(&page, fastrand::u64(..FILE / PAGE) * PAGE)?;
    }
    let began = Instant::now();
    file.sync_data()?;
    Ok(began.elapsed())
}

/// Half of the interval that the true median is in with 95%, in milliseconds.
fn half_interval(samples: &Samples) -> f64 {
    let far = INTERVAL / (samples.len() as f64).sqrt();
    (samples.quantile(0.5 + far) - samples.quantile(0.5 - far)) / 2.0
}

impl Kind {
    async fn cpu_now(&self) -> Result<Cpu, Fault> {
        let worker = self.sidecar.cpu_of_workers().await?;
        Ok(Cpu { sidecar: self.sidecar.cpu()?, worker })
    }
}
