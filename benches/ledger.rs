//! What it takes to keep a million contexts: the registry over its ledger, without gRPC and without Codex.
//!
//!     cargo bench --bench ledger [-- [--quick]]
//!
//! Once on a tmpfs, and once on the disk that `target/` is on, whose fsync is measured beside. Each step runs
//! in a process of its own, so that its memory is its own.

use std::error::Error;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use codex_sidecar::parts::process::resident_bytes;
use codex_sidecar::parts::registry::{Durability, KeptContexts};
use futures::StreamExt as _;
use futures::stream;

#[cfg(all(feature = "jemalloc", target_os = "linux"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

type Fault = Box<dyn Error + Send + Sync>;

/// How many calls are under way at once where they are grouped.
const AT_ONCE: usize = 512;

/// The most that a million contexts may take of memory, with all of the process.
const ALLOWED_BYTES: u64 = 400 << 20;
/// The most that it may take to read them.
const ALLOWED_START: Duration = Duration::from_secs(3);

/// A step, in a process of its own: what it is called, and on which file.
const STEP: &str = "--step";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let step = arguments.iter().position(|argument| argument == STEP);
    let done = match step.map(|at| &arguments[at + 1..]) {
        Some([step, path, most]) => run_step(step, Path::new(path), most),
        _ => run_all(&arguments),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run_all(arguments: &[String]) -> Result<bool, Fault> {
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    let most = if has("--quick") || !has("--bench") { 10_000 } else { 1_000_000 };
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let mut is_fine = true;
    for (name, directory) in [("tmpfs", Path::new("/dev/shm")), ("disk", target)] {
        let directory = tempfile::tempdir_in(directory)?;
        let fsync = fsync_takes(directory.path())?;
        println!("## {name}: {most} contexts, an fsync takes {}", show(fsync));
        let path = directory.path().join("sidecar.redb");
        for step in ["fill", "open", "cut off", "open"] {
            let status = Command::new(std::env::current_exe()?)
                .args([STEP, step])
                .arg(&path)
                .arg(most.to_string())
                .stdin(Stdio::null())
                .status()?;
            is_fine &= status.success() || step == "cut off";
        }
    }
    Ok(is_fine)
}

fn fsync_takes(directory: &Path) -> Result<Duration, Fault> {
    let mut file = File::create(directory.join("fsync"))?;
    let mut took: Vec<Duration> = Vec::new();
    for _ in 0..51 {
        file.write_all(&[7; 4096])?;
        let began = Instant::now();
        file.sync_data()?;
        took.push(began.elapsed());
    }
    took.sort();
    Ok(took[took.len() / 2])
}

fn run_step(step: &str, path: &Path, most: &str) -> Result<bool, Fault> {
    let (path, most) = (path.to_owned(), most.parse()?);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match step {
            "fill" => fill(path, most).await,
            "cut off" => cut_off(&path, most).await,
            _ => open(&path, most).await,
        }
    })
}

/// The names of the contexts, in no order, of 20 to 40 bytes.
fn name(number: usize) -> String {
    let scattered = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let length = 20 + number % 21;
    let mut name = format!("{scattered:016x}-chat-{number:018}");
    name.truncate(length);
    name
}

/// Ids of threads as Codex makes them.
fn thread(number: usize) -> String {
    format!("019a{:04x}-{:04x}-7{:03x}-8000-{number:012x}", number >> 16, number & 0xffff, 7)
}

async fn fill(path: PathBuf, most: usize) -> Result<bool, Fault> {
    let empty = resident();
    let contexts = KeptContexts::open(Some(&path), Durability::Power).await?;
    println!(
        "empty: {} of memory, a file of {}",
        show_bytes(empty),
        show_bytes(file_bytes(&path)?)
    );
    let mut bound = 0;
    for next in [10, 1_000, 10_000, 100_000, 1_000_000].into_iter().filter(|next| *next <= most) {
        if bound > 0 {
            single(&contexts, bound).await?;
            bound += 100;
        }
        let began = Instant::now();
        let cpu = cpu_time();
        let count = next - bound;
        let binding = stream::iter(bound..next);
        let binding = binding.map(|number| bind(&contexts, number)).buffer_unordered(AT_ONCE);
        binding.for_each(|_| async {}).await;
        report("bind, grouped", count, began.elapsed(), cpu_time() - cpu);
        bound = next;
        println!("# {} contexts", contexts.count());
        turns(&contexts, bound).await?;
    }
    gets(&contexts, bound);
    pages(&contexts, bound);
    let began = Instant::now();
    contexts.close().await;
    println!("closed in {}; a file of {}", show(began.elapsed()), show_bytes(file_bytes(&path)?));
    Ok(has_room("filled", bound))
}

async fn bind(contexts: &KeptContexts, number: usize) {
    if let Err(refusal) = contexts.bind(&name(number), &thread(number)).await {
        eprintln!("context {number} is not bound: {refusal}");
    }
}

async fn single(contexts: &KeptContexts, bound: usize) -> Result<(), Fault> {
    let (began, cpu) = (Instant::now(), cpu_time());
    for number in bound..bound + 100 {
        bind(contexts, number).await;
    }
    report("bind, one after the other", 100, began.elapsed(), cpu_time() - cpu);
    Ok(())
}

/// What turns cost: one after the other, and many at once.
async fn turns(contexts: &KeptContexts, bound: usize) -> Result<(), Fault> {
    const TURNS: usize = 4000;
    for (name, count, at_once) in [("one after the other", 200, 1), ("16 at once", TURNS, 16)] {
        let (began, cpu) = (Instant::now(), cpu_time());
        let numbers = (0..count).map(|_| fastrand::usize(..bound));
        let running = stream::iter(numbers).map(|number| turn(contexts, number));
        running.buffer_unordered(at_once).for_each(|_| async {}).await;
        report(&format!("turn, {name}"), count, began.elapsed(), cpu_time() - cpu);
    }
    Ok(())
}

async fn turn(contexts: &KeptContexts, number: usize) {
    if let Err(refusal) = contexts.turn(&name(number)).await {
        eprintln!("a turn of context {number} does not run: {refusal}");
    }
}

fn gets(contexts: &KeptContexts, bound: usize) {
    const GETS: usize = 200_000;
    let names: Vec<_> = (0..GETS).map(|_| name(fastrand::usize(..bound))).collect();
    let (began, cpu) = (Instant::now(), cpu_time());
    let found = names.iter().filter(|name| contexts.get(name).is_some()).count();
    report("get", GETS, began.elapsed(), cpu_time() - cpu);
    assert_eq!(found, GETS);
}

fn pages(contexts: &KeptContexts, bound: usize) {
    let mut names: Vec<_> = (0..bound).map(name).collect();
    names.sort();
    let end = bound.saturating_sub(1002);
    for (part, after) in [("start", None), ("middle", Some(bound / 2)), ("end", Some(end))] {
        const TIMES: u32 = 20;
        let after = after.map(|at| names[at].as_str());
        let began = Instant::now();
        for _ in 0..TIMES {
            assert_eq!(contexts.page(after, 1000), 1000);
        }
        println!("page of 1,000 at the {part}: {}", show(began.elapsed() / TIMES));
    }
}

async fn open(path: &Path, most: usize) -> Result<bool, Fault> {
    let began = Instant::now();
    let contexts = KeptContexts::open(Some(path), Durability::Power).await?;
    let took = began.elapsed();
    println!("opened in {}: {} contexts", show(took), contexts.count());
    let is_fine = has_room("opened", contexts.count()) && took < ALLOWED_START;
    assert!(contexts.count() >= most && contexts.get(&name(most - 1)) == Some(thread(most - 1)));
    gets(&contexts, most);
    contexts.close().await;
    Ok(is_fine)
}

/// Ends in the midst of turns, as by a kill.
async fn cut_off(path: &Path, most: usize) -> Result<bool, Fault> {
    let contexts = KeptContexts::open(Some(path), Durability::Power).await?;
    let turns = stream::iter(0..2000).map(|_| turn(&contexts, fastrand::usize(..most)));
    turns.buffer_unordered(16).for_each(|_| async {}).await;
    println!("cut off in the midst of turns");
    let pid = std::process::id().to_string();
    Command::new("kill").args(["-9", &pid]).status()?;
    Ok(false)
}

fn has_room(when: &str, bound: usize) -> bool {
    let resident = resident();
    println!("{when}: {} of memory for {bound} contexts", show_bytes(resident));
    resident < ALLOWED_BYTES
}

fn report(what: &str, count: usize, took: Duration, cpu: Duration) {
    let times = u32::try_from(count).unwrap_or(u32::MAX);
    let per_second = count as f64 / took.as_secs_f64();
    println!("{what}: {per_second:.0}/s, {} of CPU each", show(cpu / times));
}

/// The processor time that the threads of this process have had.
fn cpu_time() -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let nanos = tasks.filter_map(|task| {
        let stat = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        stat.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanos.sum())
}

fn resident() -> u64 {
    resident_bytes(std::process::id()).unwrap_or_default()
}

fn file_bytes(path: &Path) -> Result<u64, Fault> {
    Ok(std::fs::metadata(path)?.len())
}

fn show_bytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn show(duration: Duration) -> String {
    match duration {
        long if long >= Duration::from_secs(1) => format!("{:.2} s", long.as_secs_f64()),
        middle if middle >= Duration::from_millis(1) => {
            format!("{:.2} ms", middle.as_secs_f64() * 1e3)
        }
        short => format!("{:.1} µs", short.as_secs_f64() * 1e6),
    }
}
