//! What is left of a child's processes: nothing.
//!
//! Every child of a test carries a variable of its own in its environment, and so does all that it
//! starts; "left" is whatever in `/proc` carries it still, zombies of ours included.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use codex_sidecar::parts::process::{self, Pipes, Process, ProcessSpec};
use rustix::process::{Pid, Signal};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};

const PATIENCE: Duration = Duration::from_secs(20);

/// The variable by which a test knows its own.
const MARK: &str = "PROCESSES_TEST";

/// What the helper of a test is to do, and the file that it answers into.
const PLAY: &str = "PROCESSES_TEST_PLAY";
const ANSWER: &str = "PROCESSES_TEST_ANSWER";

struct Mark(String);

impl Mark {
    fn new() -> Mark {
        static LAST: AtomicU32 = AtomicU32::new(0);
        Mark(format!("{}-{}", std::process::id(), LAST.fetch_add(1, Ordering::Relaxed)))
    }

    fn spec(&self, program: &str, args: &[&str]) -> ProcessSpec {
        ProcessSpec {
            program: program.into(),
            args: args.iter().map(OsString::from).collect(),
            env: std::env::vars_os().collect(),
            mark: Some((MARK.into(), self.0.clone().into())),
            current_dir: None,
            guard: Some(env!("CARGO_BIN_EXE_codex-sidecar").into()),
        }
    }

    fn shell(&self, script: &str) -> ProcessSpec {
        self.spec("/bin/sh", &["-c", script])
    }

    /// The processes that carry the mark, guards too.
    fn carriers(&self) -> Vec<i32> {
        let line = format!("{MARK}={}", self.0);
        pids()
            .filter(|pid| {
                let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
                environment.split(|byte| *byte == 0).any(|variable| variable == line.as_bytes())
            })
            .collect()
    }

    async fn until_there_are(&self, count: usize) {
        until(&format!("{count} processes"), || self.carriers().len() >= count).await;
    }

    fn assert_nothing_is_left(&self) {
        let left: Vec<_> = self.carriers().into_iter().map(|pid| (pid, cmdline(pid))).collect();
        assert!(left.is_empty(), "left: {left:?}");
    }
}

fn pids() -> impl Iterator<Item = i32> {
    let entries = std::fs::read_dir("/proc").unwrap();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

fn cmdline(pid: i32) -> String {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).replace('\0', " ")
}

/// The state and the parent of a process.
fn stat(pid: i32) -> Option<(char, i32)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text[text.rfind(')')? + 1..].split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

fn signal(pid: i32, signal: Signal) {
    rustix::process::kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

fn parent(pid: u32) -> i32 {
    stat(pid.try_into().unwrap()).unwrap().1
}

async fn until(what: &str, mut happened: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !happened() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited in vain for {what}"),
    }
}

/// Starts it and waits for its end and for its output's.
async fn run(spec: ProcessSpec) -> (String, String) {
    let (mut process, Pipes { stdin, mut stdout, stderr: _stderr }) =
        Process::spawn(spec).await.unwrap();
    drop(stdin);
    let mut output = String::new();
    within("the end of the output", stdout.read_to_string(&mut output)).await.unwrap();
    let status = within("the end", process.wait()).await.unwrap();
    assert_eq!(status, process.wait().await.unwrap(), "asked again, it says the same");
    (process::describe(status), output)
}

/// Starts ones that leave its group and session, one that leaves the tree, and some that ignore every
/// signal that can be ignored: eight processes, the shell and the guard among them.
const SCATTER: &str = "
    setsid sleep 91 &
    sh -c 'setsid sleep 92 &'
    setsid -f sh -c 'setsid -f sleep 93; sleep 94'
    (trap '' TERM INT HUP QUIT; exec sleep 95) &
    echo scattered
";
const SCATTERED: usize = 8;

#[tokio::test]
async fn its_own_exit_status_is_told() {
    let mark = Mark::new();
    assert_eq!(run(mark.shell("exit 0")).await.0, "exit status 0");
    assert_eq!(run(mark.shell("exit 77")).await.0, "exit status 77");
    assert_eq!(run(mark.shell("kill -TERM $$")).await.0, "signal 15");
    assert_eq!(run(mark.shell("kill -KILL $$")).await.0, "signal 9");
    mark.assert_nothing_is_left();
}

#[tokio::test]
async fn arguments_variables_directory_and_streams_reach_it() {
    let mark = Mark::new();
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path().canonicalize().unwrap();
    let mut spec = mark.spec(
        "/bin/sh",
        &[
            "-c",
            r#"read line; echo "$line|$1|$GIVEN|${HOME-none}|$PWD"; echo oh >&2"#,
            "sh",
            "-- a\n",
        ],
    );
    spec.env = vec![("GIVEN".into(), "yes".into())];
    spec.current_dir = Some(directory.clone());
    let (mut process, Pipes { mut stdin, mut stdout, mut stderr }) =
        Process::spawn(spec).await.unwrap();
    stdin.write_all(b"said\n").await.unwrap();
    let (mut output, mut complaint) = (String::new(), String::new());
    stdout.read_to_string(&mut output).await.unwrap();
    stderr.read_to_string(&mut complaint).await.unwrap();
    assert_eq!(output, format!("said|-- a\n|yes|none|{}\n", directory.display()));
    assert_eq!(complaint, "oh\n");
    assert!(within("the end", process.wait()).await.unwrap().success());
}

#[tokio::test]
async fn it_has_three_descriptors_no_blocked_signal_and_a_group_of_its_own() {
    let mark = Mark::new();
    let (mut process, _pipes) = Process::spawn(mark.spec("/bin/sleep", &["90"])).await.unwrap();
    let pid = process.pid();
    // Its loader has files open, for a moment.
    let descriptors = || std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    until("three descriptors", || descriptors() == 3).await;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let own_status = std::fs::read_to_string("/proc/self/status").unwrap();
    assert_eq!(signals(&status, "SigBlk"), 0);
    // What its guard doesn't heed is no matter of its. Of ours, it inherits all but SIGPIPE, and those
    // that the guard takes for itself: who starts the tests in the background ignores some of them.
    let bits = |signals: &[Signal]| {
        signals.iter().fold(0_u64, |bits, signal| bits | 1 << (signal.as_raw() - 1))
    };
    let taken =
        bits(&[Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM, Signal::USR1, Signal::USR2]);
    let (ignored, ours) = (signals(&status, "SigIgn"), signals(&own_status, "SigIgn"));
    assert_eq!(ignored & !taken, ours & !taken & !bits(&[Signal::PIPE]));
    assert_eq!(ignored & taken & !ours, 0);
    let pid = Pid::from_raw(pid.try_into().unwrap()).unwrap();
    assert_eq!(rustix::process::getpgid(Some(pid)).unwrap(), pid);
    // What the guard holds of its streams would keep them open after its end.
    let guard = parent(process.pid());
    for fd in 0..3 {
        let target = std::fs::read_link(format!("/proc/{guard}/fd/{fd}")).unwrap();
        assert_eq!(target, Path::new("/dev/null"));
    }
    process.kill();
    within("the end", process.wait()).await.unwrap();
}

fn signals(status: &str, field: &str) -> u64 {
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    u64::from_str_radix(line[field.len() + 1..].trim(), 16).unwrap()
}

#[tokio::test]
async fn a_program_that_cannot_be_started_says_why() {
    let mark = Mark::new();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("not-executable");
    std::fs::write(&file, "").unwrap();
    let denied = Process::spawn(mark.spec(file.to_str().unwrap(), &[])).await.unwrap_err();
    assert_eq!(denied.raw_os_error(), Some(rustix::io::Errno::ACCESS.raw_os_error()));
    let missing = Process::spawn(mark.spec("/nowhere/codex", &[])).await.unwrap_err();
    assert_eq!(missing.raw_os_error(), Some(rustix::io::Errno::NOENT.raw_os_error()));
    let mut spec = mark.shell("exit 0");
    spec.guard = Some("/nowhere/guard".into());
    let unguarded = Process::spawn(spec).await.unwrap_err();
    assert_eq!(unguarded.kind(), std::io::ErrorKind::NotFound);
    assert!(unguarded.to_string().contains("guard /nowhere/guard"), "{unguarded}");
    until("the guards' end", || mark.carriers().is_empty()).await;
}

#[tokio::test]
async fn a_guard_that_may_not_fork_says_so() {
    let mark = Mark::new();
    // No more descriptors than the guard has: the pipe by which a failed exec is told is one too many.
    let directory = tempfile::tempdir().unwrap();
    let guard = directory.path().join("guard");
    let binary = env!("CARGO_BIN_EXE_codex-sidecar");
    // The shell has a few descriptors of its own above, which the guard closes.
    script(&guard, &format!("#!/bin/sh\nulimit -n 6\nexec {binary} \"$@\"\n"));
    let mut spec = mark.shell("exit 0");
    // The control socket's number must be below the limit too, so in a process with few open files.
    spec.guard = Some(guard);
    let answer = play("spawn-with-guard", &mark, spec.guard.as_deref().unwrap());
    assert_eq!(answer, rustix::io::Errno::MFILE.raw_os_error().to_string());
    until("the guard's end", || mark.carriers().is_empty()).await;
}

#[tokio::test]
async fn its_own_end_takes_all_that_it_started_with_it() {
    let mark = Mark::new();
    let (mut process, Pipes { stdin, stdout, stderr: _stderr }) =
        Process::spawn(mark.shell(&format!("{SCATTER} read line; exit 3"))).await.unwrap();
    let mut lines = BufReader::new(stdout).lines();
    assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("scattered"));
    mark.until_there_are(SCATTERED).await;
    drop(stdin);
    let status = within("the end", process.wait()).await.unwrap();
    assert_eq!(process::describe(status), "exit status 3");
    mark.assert_nothing_is_left();
}

#[tokio::test]
async fn killing_it_kills_all_that_it_started() {
    let mark = Mark::new();
    let script = format!("trap '' TERM INT HUP; {SCATTER} while :; do sleep 90; done");
    let (mut process, _pipes) = Process::spawn(mark.shell(&script)).await.unwrap();
    mark.until_there_are(SCATTERED + 1).await;
    process.kill();
    process.kill();
    let status = within("the end", process.wait()).await.unwrap();
    assert_eq!(process::describe(status), "signal 9");
    mark.assert_nothing_is_left();
}

#[tokio::test]
async fn dropping_it_kills_all_that_it_started() {
    let mark = Mark::new();
    let (process, pipes) =
        Process::spawn(mark.shell(&format!("{SCATTER} exec sleep 90"))).await.unwrap();
    mark.until_there_are(SCATTERED).await;
    let guard = parent(process.pid());
    drop((process, pipes));
    until("the end", || mark.carriers().is_empty()).await;
    until("the guard to be reaped", || stat(guard).is_none()).await;
}

#[tokio::test]
async fn dropping_the_start_of_it_kills_it() {
    let mark = Mark::new();
    for micros in [0, 50, 200, 500, 1000, 2000, 4000] {
        let start = Process::spawn(mark.shell("setsid sleep 90 & exec sleep 90"));
        let _ = tokio::time::timeout(Duration::from_micros(micros), start).await;
    }
    until("the end", || mark.carriers().is_empty()).await;
}

// The three that follow end by themselves, should they be left: by their count, and with their
// directory, which is gone with the test.

#[tokio::test]
async fn a_fork_loop_does_not_outrun_its_end() {
    let mark = Mark::new();
    let leash = tempfile::tempdir().unwrap();
    let script =
        r#"n=0; while [ -e "$0" ] && [ $((n += 1)) -lt 400 ]; do setsid sleep 90 & done; wait"#;
    let spec = mark.spec("/bin/sh", &["-c", script, leash.path().to_str().unwrap()]);
    let (mut process, _pipes) = Process::spawn(spec).await.unwrap();
    mark.until_there_are(40).await;
    process.kill();
    within("the end", process.wait()).await.unwrap();
    mark.assert_nothing_is_left();
}

/// One that runs a script which does nothing but to run it again, five hundred times.
fn growing(mark: &Mark, leash: &Path, grow: &str) -> ProcessSpec {
    let mut spec = mark.shell(r#"eval "$GROW"; exec sleep 90"#);
    let grow = format!(r#"[ -e "$LEASH" ] && [ $((N += 1)) -lt 500 ] && {{ {grow}; }}"#);
    spec.env.extend([
        ("GROW".into(), grow.into()),
        ("LEASH".into(), leash.into()),
        ("N".into(), "0".into()),
    ]);
    spec
}

#[tokio::test]
async fn a_tree_that_grows_at_its_tip_does_not_outrun_its_end() {
    let mark = Mark::new();
    let leash = tempfile::tempdir().unwrap();
    // Each waits for the next one, which is in a session of its own.
    let grow = r#"export N; setsid sh -c 'eval "$GROW"' & wait"#;
    let (mut process, _pipes) = Process::spawn(growing(&mark, leash.path(), grow)).await.unwrap();
    mark.until_there_are(40).await;
    process.kill();
    within("the end", process.wait()).await.unwrap();
    mark.assert_nothing_is_left();
}

#[tokio::test]
async fn one_that_moves_from_process_to_process_is_caught() {
    let mark = Mark::new();
    let leash = tempfile::tempdir().unwrap();
    let grow = r#"export N; echo $N >"$LEASH/hops"; setsid -f sh -c 'eval "$GROW"'"#;
    let (mut process, _pipes) = Process::spawn(growing(&mark, leash.path(), grow)).await.unwrap();
    let hops = || {
        let count = std::fs::read_to_string(leash.path().join("hops")).unwrap_or_default();
        count.trim().parse::<u32>().unwrap_or(0)
    };
    until("some hops", || hops() > 20).await;
    process.kill();
    within("the end", process.wait()).await.unwrap();
    let then = hops();
    mark.assert_nothing_is_left();
    assert!(then < 490, "it ended by itself");
}

#[tokio::test]
async fn the_guard_does_not_heed_what_a_terminal_or_service_manager_sends() {
    let mark = Mark::new();
    let (mut process, _pipes) = Process::spawn(mark.spec("/bin/sleep", &["90"])).await.unwrap();
    let guard = parent(process.pid());
    for unheeded in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT, Signal::TERM] {
        signal(guard, unheeded);
    }
    // It has seen them when it has seen what comes after them.
    signal(process.pid().try_into().unwrap(), Signal::TERM);
    let status = within("the end", process.wait()).await.unwrap();
    assert_eq!(process::describe(status), "signal 15");
}

#[tokio::test]
async fn orphans_are_reaped_while_it_runs() {
    let mark = Mark::new();
    let script = "for i in 1 2 3 4 5; do setsid -f true; done; echo done; exec sleep 90";
    let (mut process, Pipes { stdout, stdin: _stdin, stderr: _stderr }) =
        Process::spawn(mark.shell(script)).await.unwrap();
    let guard = parent(process.pid());
    let mut lines = BufReader::new(stdout).lines();
    assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("done"));
    until("the zombies' end", || {
        pids().filter(|pid| stat(*pid).is_some_and(|(_, parent)| parent == guard)).count() == 1
    })
    .await;
    process.kill();
    within("the end", process.wait()).await.unwrap();
}

#[tokio::test]
async fn a_guard_that_is_killed_leaves_nothing_either() {
    process::adopt_orphans().unwrap();
    let mark = Mark::new();
    for _ in 0..5 {
        let (mut process, _pipes) =
            Process::spawn(mark.shell(&format!("{SCATTER} exec sleep 90"))).await.unwrap();
        mark.until_there_are(SCATTERED).await;
        let guard = parent(process.pid());
        signal(guard, Signal::KILL);
        let status = within("the end", process.wait()).await.unwrap();
        assert_eq!(process::describe(status), "signal 9");
        assert_eq!(stat(guard), None, "the guard is reaped");
        mark.assert_nothing_is_left();
    }
}

#[tokio::test]
async fn a_guard_that_is_stuck_is_given_up() {
    process::adopt_orphans().unwrap();
    let mark = Mark::new();
    let (mut process, _pipes) =
        Process::spawn(mark.shell(&format!("{SCATTER} exec sleep 90"))).await.unwrap();
    mark.until_there_are(SCATTERED).await;
    signal(parent(process.pid()), Signal::STOP);
    process.kill();
    within("the end", process.wait()).await.unwrap();
    mark.assert_nothing_is_left();
}

#[tokio::test]
async fn a_guard_that_was_stopped_holds_the_end_of_its_worker_up_for_a_moment_only() {
    process::adopt_orphans().unwrap();
    let mark = Mark::new();
    let (mut process, _pipes) = Process::spawn(mark.shell("exec sleep 90")).await.unwrap();
    mark.until_there_are(1).await;
    let worker = process.pid();
    signal(parent(worker), Signal::STOP);
    signal(worker.try_into().unwrap(), Signal::KILL);
    let killed = Instant::now();
    process.kill();
    within("the end", process.wait()).await.unwrap();
    // A guard that is at work is given five seconds.
    assert!(killed.elapsed() < Duration::from_secs(4), "{:?}", killed.elapsed());
    mark.assert_nothing_is_left();
}

#[tokio::test]
async fn adopted_zombies_are_reaped_and_nobody_elses_status_is_taken() {
    // In a process of its own: where a guard is killed, what is adopted meanwhile is killed too.
    assert_eq!(play("funeral", &Mark::new(), Path::new("")), "3");
}

fn me() -> i32 {
    std::process::id().try_into().unwrap()
}

#[tokio::test]
async fn somebody_elses_orphan_survives_the_death_of_a_guard() {
    // In a process of its own, like the last.
    assert_eq!(play("bystander", &Mark::new(), Path::new("")), "alive");
}

#[tokio::test]
async fn a_sidecar_that_is_killed_leaves_nothing_behind() {
    let mark = Mark::new();
    let directory = tempfile::tempdir().unwrap();
    let answer = directory.path().join("answer");
    let mut sidecar = helper("hold", &mark, Path::new(""), &answer).spawn().unwrap();
    // Three workers, and the helper itself, which carries no mark but its own variable.
    mark.until_there_are(3 * SCATTERED).await;
    let killed = Instant::now();
    sidecar.kill().unwrap();
    sidecar.wait().unwrap();
    until("the end", || mark.carriers().is_empty()).await;
    // Two seconds are the promise, on a machine that has them to give; by themselves they take 90.
    assert!(killed.elapsed() < Duration::from_secs(15), "{:?}", killed.elapsed());
}

#[tokio::test]
async fn a_hundred_children_leave_no_descriptor_and_no_zombie() {
    let mark = Mark::new();
    assert_eq!(play("hundred", &mark, Path::new("")), "same");
    mark.assert_nothing_is_left();
}

#[tokio::test]
async fn an_earlier_sidecars_leftovers_are_found_by_what_they_carry() {
    let mark = Mark::new();
    let home = tempfile::tempdir().unwrap();
    let dead = play("variable", &mark, home.path());
    let (name, living) = process::instance_variable(home.path()).unwrap();
    let leave = |value: &OsString, script: &str| {
        let mut command = Command::new("setsid");
        command.args(["-f", "sh", "-c", script]).stdout(Stdio::null());
        assert!(command.env(&name, value).env(MARK, &mark.0).status().unwrap().success());
    };
    let sleeping = |number: &str| {
        mark.carriers()
            .into_iter()
            .filter(|pid| cmdline(*pid) == format!("sleep {number} "))
            .count()
    };
    leave(&living, "exec sleep 91");
    until("the living one's", || sleeping("91") == 1).await;
    assert_eq!(clear(home.path()).await, 0, "its sidecar lives");
    // The child doesn't carry the variable.
    let script = format!("env -u {} sleep 92 & exec sleep 93", name.display());
    leave(&dead.into(), &script);
    until("the dead one's", || sleeping("92") == 1 && sleeping("93") == 1).await;
    let other = tempfile::tempdir().unwrap();
    assert_eq!(clear(other.path()).await, 0, "another home's");
    assert_eq!(clear(home.path()).await, 2);
    assert_eq!((mark.carriers().len(), sleeping("91")), (1, 1));
    signal(mark.carriers()[0], Signal::KILL);
}

async fn clear(home: &Path) -> usize {
    let home = home.to_owned();
    tokio::task::spawn_blocking(move || process::clear_leftovers(&home)).await.unwrap()
}

#[tokio::test]
async fn what_one_thread_started_is_killed_alone() {
    let mark = Mark::new();
    let script = "
        export CODEX_THREAD_ID=one; setsid -f sh -c 'sleep 91 & wait'; setsid sleep 92 &
        export CODEX_THREAD_ID=two; setsid -f sleep 93; setsid sleep 94 &
        unset CODEX_THREAD_ID; exec sleep 95";
    let before = process::Moment::now();
    let (mut process, _pipes) = Process::spawn(mark.shell(script)).await.unwrap();
    let mut begun = Vec::new();
    until("all", || {
        begun = mark.carriers().into_iter().map(cmdline).collect();
        (91..=95).all(|number| begun.contains(&format!("sleep {number} ")))
    })
    .await;
    let pid = process.pid();
    let kill = tokio::task::spawn_blocking(move || {
        process::kill_started_since(pid, "CODEX_THREAD_ID", "one", before)
    });
    assert_eq!(kill.await.unwrap(), 3);
    let left: Vec<_> =
        mark.carriers().into_iter().map(cmdline).filter(|line| line.starts_with("sleep")).collect();
    assert_eq!(left.len(), 3, "{left:?}");
    assert!(!left.iter().any(|line| line.contains("91") || line.contains("92")), "{left:?}");
    process.kill();
    within("the end", process.wait()).await.unwrap();
    mark.assert_nothing_is_left();
}

#[tokio::test]
async fn without_a_guard_the_group_is_killed() {
    let mark = Mark::new();
    let mut spec = mark.shell("sleep 90 & exec sleep 90");
    spec.guard = None;
    let (mut process, _pipes) = Process::spawn(spec).await.unwrap();
    mark.until_there_are(2).await;
    process.kill();
    let status = within("the end", process.wait()).await.unwrap();
    assert_eq!(process::describe(status), "signal 9");
    until("the end of the group", || mark.carriers().is_empty()).await;
}

/// Written by another process, because a child that a neighbouring test forks meanwhile would inherit
/// the open file, and starting a file that is open for writing fails (ETXTBSY).
fn script(path: &Path, text: &str) {
    let mut command = Command::new("sh");
    command.args(["-c", r#"printf %s "$2" >"$1" && chmod 755 "$1""#, "sh"]).arg(path).arg(text);
    assert!(command.status().unwrap().success());
}

/// This test binary again, to be a process of its own.
fn helper(play: &str, mark: &Mark, path: &Path, answer: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "processes::helper_process", "--nocapture"]);
    command.env(PLAY, play).env("PROCESSES_TEST_MARK", &mark.0).env("PROCESSES_TEST_PATH", path);
    command.env(ANSWER, answer).stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// Has the helper play to its end; gives its answer.
fn play(play: &str, mark: &Mark, path: &Path) -> String {
    let directory = tempfile::tempdir().unwrap();
    let answer = directory.path().join("answer");
    let status = helper(play, mark, path, &answer).status().unwrap();
    assert!(status.success(), "{play}: {status}");
    std::fs::read_to_string(answer).unwrap()
}

/// No test, but what the tests above start as a process of its own.
#[tokio::test]
async fn helper_process() {
    let Ok(play) = std::env::var(PLAY) else { return };
    let mark = Mark(std::env::var("PROCESSES_TEST_MARK").unwrap());
    let path = PathBuf::from(std::env::var_os("PROCESSES_TEST_PATH").unwrap());
    let answer = match play.as_str() {
        "hold" => {
            process::adopt_orphans().unwrap();
            let mut held = Vec::new();
            for _ in 0..3 {
                let script = format!("{SCATTER} exec sleep 90");
                held.push(Process::spawn(mark.shell(&script)).await.unwrap());
            }
            std::future::pending::<()>().await;
            unreachable!("it is killed")
        }
        "hundred" => {
            process::adopt_orphans().unwrap();
            let spawn = || async { assert_eq!(run(mark.shell("exit 0")).await.0, "exit status 0") };
            spawn().await;
            let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
            let before = open();
            for _ in 0..80 {
                spawn().await;
            }
            for _ in 0..20 {
                let (process, _pipes) =
                    Process::spawn(mark.spec("/bin/sleep", &["90"])).await.unwrap();
                drop(process);
            }
            let children = || pids().filter_map(stat).filter(|(_, parent)| *parent == me()).count();
            until("the last funeral", || children() == 0).await;
            assert_eq!(open(), before);
            "same".to_owned()
        }
        "variable" => {
            let (_, value) = process::instance_variable(&path).unwrap();
            value.into_string().unwrap()
        }
        "spawn-with-guard" => {
            let mut spec = mark.shell("exit 0");
            spec.guard = Some(path);
            let error = Process::spawn(spec).await.unwrap_err();
            error.raw_os_error().map_or_else(|| error.to_string(), |errno| errno.to_string())
        }
        "funeral" => funeral(&mark).await,
        "bystander" => bystander(&mark).await,
        unknown => panic!("{unknown}"),
    };
    std::fs::write(std::env::var_os(ANSWER).unwrap(), answer).unwrap();
}

/// Adopts, and reaps those and only those.
async fn funeral(mark: &Mark) -> String {
    process::adopt_orphans().unwrap();
    let mut own = Command::new("sh").args(["-c", "exit 3"]).spawn().unwrap();
    let own_pid = own.id().try_into().unwrap();
    until("a zombie of our own", || stat(own_pid).is_some_and(|(state, _)| state == 'Z')).await;
    let mut foreign = Vec::new();
    for _ in 0..5 {
        // Orphaned alive, to die as ours.
        let script = "setsid -f sh -c 'echo $$; read line'";
        let mut shell = Command::new("sh");
        shell.args(["-c", script]).env(MARK, &mark.0).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut shell = shell.spawn().unwrap();
        let leash = shell.stdin.take();
        let mut line = String::new();
        let mut output = std::io::BufReader::new(shell.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut output, &mut line).unwrap();
        let pid = line.trim().parse::<i32>().unwrap();
        assert!(shell.wait().unwrap().success());
        until("the adoption", || stat(pid).is_some_and(|(_, parent)| parent == me())).await;
        drop(leash);
        foreign.push(pid);
    }
    until("their funeral", || foreign.iter().all(|pid| stat(*pid).is_none())).await;
    own.wait().unwrap().code().unwrap().to_string()
}

/// A live orphan that is none of a guard's, such as somebody may leave in a container.
async fn bystander(mark: &Mark) -> String {
    let directory = tempfile::tempdir().unwrap();
    let name = directory.path().join("pid");
    let mut command = Command::new("setsid");
    command.args(["-f", "sh", "-c", r#"echo $$ >"$0"; exec sleep 90"#]).arg(&name);
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    assert!(command.status().unwrap().success());
    let mut pid = None;
    until("the bystander", || {
        pid = std::fs::read_to_string(&name).ok().and_then(|text| text.trim().parse().ok());
        pid.is_some_and(|pid| stat(pid).is_some_and(|(_, parent)| parent == me()))
    })
    .await;
    process::adopt_orphans().unwrap();
    let (mut process, _pipes) =
        Process::spawn(mark.shell(&format!("{SCATTER} exec sleep 90"))).await.unwrap();
    mark.until_there_are(SCATTERED).await;
    signal(parent(process.pid()), Signal::KILL);
    within("the end", process.wait()).await.unwrap();
    mark.assert_nothing_is_left();
    let alive = stat(pid.unwrap()).is_some_and(|(state, _)| state != 'Z');
    signal(pid.unwrap(), Signal::KILL);
    until("its funeral", || stat(pid.unwrap()).is_none()).await;
    if alive { "alive".to_owned() } else { "dead".to_owned() }
}
