//! Faults around the sidecar's own process and its machine: signals, what is left behind, PID 1, a disk
//! that is full, no file descriptors.

use std::time::{Duration, Instant};

use crate::support;
use crate::support::binary::{Binary, through};
use crate::support::turn::until_there;
use crate::support::{Client, Place, eventually, processes, prompt, scripted, unsandboxed};
use codex_sidecar::parts::app::READINESS_SERVICE;
use codex_sidecar::pb;
use rustix::process::{Pid, Resource, Rlimit, Signal};
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;

/// Whether this machine lets us; says so if not.
fn permitted(what: &str, command: &[&str]) -> bool {
    let tried = std::process::Command::new(command[0]).args(&command[1..]).output();
    let permitted = tried.as_ref().is_ok_and(|output| output.status.success());
    if !permitted {
        eprintln!("SKIPPED: {what}: `{}` is not permitted here: {tried:?}", command.join(" "));
    }
    permitted
}

/// Row 19.
#[tokio::test]
async fn sigterm_under_load_ends_every_stream_with_its_terminal_event() {
    let mut sidecar = Binary::with(|command| {
        command.env("CODEX_SIDECAR_WORKERS", "2").args(["--drain-grace", "10s"]);
    })
    .await;
    let mut brief = Vec::new();
    let go = sidecar.place.path().join("go");
    for number in 0..4 {
        let request = until_there(&format!("brief{number}"), &go, "in time");
        brief.push(sidecar.begin(request).await);
    }
    let mut endless = Vec::new();
    for words in ["[[run sleep 300]]", "[[hang]]"] {
        endless.push(sidecar.begin(prompt(words, words)).await);
    }
    for turn in brief.iter_mut().chain(&mut endless) {
        turn.started().await;
    }
    endless[0].command_started().await;

    sidecar.signal(Signal::TERM);
    eventually("NOT_SERVING", async || {
        let health = sidecar.health_of(READINESS_SERVICE).await.ok()?;
        (health == ServingStatus::NotServing).then_some(())
    })
    .await;
    sidecar.refused(prompt("new", "hello")).await.assert(Code::Unavailable, "DRAINING");
    std::fs::write(go, "").unwrap();
    for turn in brief {
        assert_eq!(turn.rest().await.final_response(), "in time");
    }
    for turn in endless {
        assert_eq!(turn.rest().await.interrupted(), pb::InterruptReason::Draining);
    }
    let status = sidecar.exited(support::PATIENCE).await;
    assert_eq!(status.code(), Some(0), "{}", sidecar.log());
    processes::assert_none_left(&sidecar.place.codex_home()).await;
}

/// Turns with commands under way, each of its own kind: in the foreground, in the background, and a
/// daemon in a session of its own.
async fn with_commands(client: &Client) -> Vec<support::Turn> {
    let mut turns = Vec::new();
    for (context, words) in [
        ("a", "[[run sleep 300]]"),
        ("b", "[[run sleep 301 & sleep 302]]"),
        ("c", "[[run setsid -f sleep 303; sleep 304]]"),
    ] {
        let mut turn = client.begin(unsandboxed(context, words)).await;
        turn.command_started().await;
        turns.push(turn);
    }
    turns
}

async fn all_run(home: &std::path::Path) {
    eventually("all commands", async || {
        let running = processes::of_home(home);
        (300..=304)
            .all(|nap| running.iter().any(|process| process.command == format!("sleep {nap}")))
            .then_some(())
    })
    .await;
}

/// Row 20.
#[tokio::test]
async fn sigkill_of_the_sidecar_leaves_nothing_alive_and_nothing_in_the_way_of_the_next() {
    let mut sidecar = Binary::with(|command| {
        command.env("CODEX_SIDECAR_WORKERS", "2");
    })
    .await;
    let first = sidecar.say("a", "hello").await;
    let turns = with_commands(&sidecar).await;
    let home = sidecar.place.codex_home();
    all_run(&home).await;
    let before = processes::of_home(&home).len();

    sidecar.signal(Signal::KILL);
    let killed = Instant::now();
    let _ = sidecar.exited(Duration::from_secs(10)).await;
    loop {
        let left = processes::of_home(&home);
        if left.is_empty() {
            break;
        }
        // Two seconds are the promise, on a machine that has them to give.
        assert!(killed.elapsed() < Duration::from_secs(15), "alive after 15 s: {left:#?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    println!("{before} processes, none alive {:?} after the SIGKILL", killed.elapsed());
    drop(turns);

    let Binary { place, .. } = sidecar;
    let next = Binary::cold(place, |_| {}).await;
    next.ready().await;
    let mut request = prompt("a", "hello again");
    request.thread_id = first.thread_id().to_owned();
    let told = next.run(request).await;
    assert!(told.final_response().starts_with("You said: hello again"));
    next.stop().await;
}

/// Row 21.
#[tokio::test]
async fn an_interrupted_turn_takes_its_commands_along_and_a_worker_all_that_it_started() {
    let sidecar = Binary::start().await;
    let home = sidecar.place.codex_home();
    let turns = with_commands(&sidecar).await;
    all_run(&home).await;
    let naps = |naps: &'static [u32]| {
        let running = processes::of_home(&home);
        let of =
            |nap: &u32| running.iter().any(|process| process.command == format!("sleep {nap}"));
        naps.iter().filter(|nap| of(nap)).count()
    };
    for turn in turns {
        sidecar.interrupt(turn.turn_id()).await.unwrap();
        turn.rest().await.interrupted();
    }
    // The turns' own commands, with what has made itself a daemon.
    eventually("the end of the turns' commands", async || {
        (naps(&[300, 301, 302, 303, 304]) == 0).then_some(())
    })
    .await;

    // One that does not show which turn started it goes with its worker.
    let hidden = "[[run setsid -f env -u CODEX_THREAD_ID sleep 303; true]] [[say left it behind]]";
    sidecar.run(unsandboxed("d", hidden)).await.completed();
    assert_eq!(naps(&[303]), 1);
    let pid = sidecar.workers().await[0].pid;
    processes::signal(pid, Signal::KILL);
    eventually("the end of the daemon", async || (naps(&[303]) == 0).then_some(())).await;
    sidecar.ready().await;
    sidecar.say("a", "hello").await.completed();
    sidecar.stop().await;
}

/// Row 22.
#[tokio::test]
async fn as_pid_1_it_reaps_what_nobody_else_does() {
    const UNSHARE: &[&str] = &["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"];
    if !permitted("the sidecar as PID 1", &[UNSHARE, &["true"]].concat()) {
        return;
    }
    let sidecar = Binary::with(|command| through(command, UNSHARE)).await;
    // By its parent, `unshare`.
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", sidecar.pid()));
    let one: u32 = children.unwrap().trim().parse().expect("one child: the sidecar");
    for number in 0..5 {
        // Orphans, which PID 1 inherits, and which end at once.
        let words = "[[run for i in 1 2 3 4 5; do setsid -f sleep 0.01; done; true]] [[say done]]";
        let told = sidecar.run(unsandboxed(&format!("c{number}"), words)).await;
        assert_eq!(told.final_response(), "done");
    }
    let zombies = || {
        let children = std::fs::read_to_string(format!("/proc/{one}/task/{one}/children"));
        let children = children.unwrap_or_default();
        let pids = children.split_whitespace().filter_map(|pid| pid.parse().ok());
        pids.filter(|pid| !processes::is_alive(*pid)).count()
    };
    eventually("no zombie", async || (zombies() == 0).then_some(())).await;
    // The workers' ends are still seen: what reaps orphans takes nobody else's child.
    let worker = sidecar.workers().await.remove(0);
    let inner: u32 = worker.pid;
    let outer = processes::of_home(&sidecar.place.codex_home())
        .into_iter()
        .find(|process| process.command.contains("app-server") && has_inner_pid(process.pid, inner))
        .expect("the worker");
    processes::signal(outer.pid, Signal::KILL);
    eventually("the next incarnation", async || {
        let worker = sidecar.workers().await.remove(0);
        (worker.generation == 2 && worker.state() == pb::WorkerState::Ready).then_some(())
    })
    .await;
    let told = sidecar.workers().await.remove(0);
    assert!(told.last_error.contains("signal 9"), "{told:#?}");
    sidecar.say("c0", "hello").await.completed();
    processes::signal(one, Signal::TERM);
    let home = sidecar.place.codex_home();
    eventually("its end", async || (!processes::is_alive(one)).then_some(())).await;
    processes::assert_none_left(&home).await;
}

/// Whether the process has this id in its own namespace.
fn has_inner_pid(pid: u32, inner: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    ids.and_then(|ids| ids.split_whitespace().last()?.parse().ok()) == Some(inner)
}

/// A turn is refused with this, and readiness says why.
async fn home_is_unusable(sidecar: &Client, cause: &str, reason: &str) {
    let message = eventually("CODEX_HOME_UNUSABLE", async || {
        let info = sidecar.info().await;
        (info.not_ready_reason == "CODEX_HOME_UNUSABLE").then_some(info.not_ready_message)
    })
    .await;
    assert!(message.contains("CODEX_HOME") && message.contains(cause), "{message}");
    let health = sidecar.health_of(READINESS_SERVICE).await.unwrap();
    assert_eq!(health, ServingStatus::NotServing);
    let refused = sidecar.refused(prompt("a", "hello")).await;
    refused.assert(Code::Unavailable, reason);
    assert!(refused.message.contains(cause) && refused.retry_after.is_some(), "{refused:#?}");
}

/// Row 23.
#[tokio::test]
async fn a_codex_home_that_cannot_be_made_is_told_and_used_once_it_can() {
    let place = Place::new();
    let home = place.codex_home();
    std::fs::remove_dir(&home).unwrap();
    std::fs::write(&home, "in the way").unwrap();
    let sidecar = Binary::cold(place, |command| {
        command.env("CODEX_PATH", scripted::fake_cli()).args(["--state", "memory"]);
    })
    .await;
    home_is_unusable(&sidecar, "can't be made", "WORKER_UNAVAILABLE").await;
    std::fs::remove_file(&home).unwrap();
    sidecar.ready().await;
    sidecar.say("a", "hello").await.completed();
    sidecar.stop().await;
}

/// A sidecar whose CODEX_HOME is a disk of its own, mounted with these options, and which has these
/// flags; none where this machine does not let us.
async fn on_a_disk(place: Place, options: &str, flags: &[&str]) -> Option<Binary> {
    if !permitted("a disk of its own", &["unshare", "--mount", "true"]) {
        return None;
    }
    let mount = format!("mount -t tmpfs -o {options} tmpfs \"$CODEX_HOME\" && exec \"$@\"");
    let sidecar = Binary::cold(place, |command| {
        command.args(flags);
        through(command, &["unshare", "--mount", "sh", "-c", &mount, "sh"]);
    });
    Some(sidecar.await)
}

/// One of 48 MiB, looked at so often, and that disk as it is seen from here. The sidecar's own state is on
/// another one, so that it is Codex that has no room.
async fn with_a_small_disk(look: &str) -> Option<(Binary, std::path::PathBuf)> {
    let place = Place::new();
    let home = place.codex_home();
    let config = place.path().join("sidecar.toml");
    std::fs::write(&config, format!("[pool]\nliveness_interval = \"{look}\"\n")).unwrap();
    let state = place.path().join("state.redb");
    let flags = ["--config", config.to_str().unwrap(), "--state", state.to_str().unwrap()];
    let sidecar = on_a_disk(place, "size=48m", &flags).await?;
    sidecar.ready().await;
    let disk = std::path::PathBuf::from(format!("/proc/{}/root{}", sidecar.pid(), home.display()));
    assert!(!home.join("config.toml").exists() && disk.is_dir());
    Some((sidecar, disk))
}

/// Row 23, with a disk of its own.
#[tokio::test]
async fn a_full_and_a_read_only_codex_home_are_told_and_survived() {
    let Some((sidecar, disk)) = with_a_small_disk("300ms").await else { return };
    let first = sidecar.say("a", "hello").await;

    let filler = disk.join("filler");
    let full = std::fs::write(&filler, vec![b'x'; 64 << 20]).unwrap_err();
    assert_eq!(full.raw_os_error(), Some(rustix::io::Errno::NOSPC.raw_os_error()));
    home_is_unusable(&sidecar, "No space left", "WORKER_UNAVAILABLE").await;
    std::fs::remove_file(&filler).unwrap();
    sidecar.ready().await;
    let second = sidecar.say("a", "again").await;
    assert_eq!(second.thread_id(), first.thread_id());
    assert_eq!(second.final_response(), "You said: again (user messages so far: 2)");

    sidecar.stop().await;

    // One that finds it read-only, until it no longer is.
    let place = Place::new();
    let home = place.codex_home();
    let Some(sidecar) = on_a_disk(place, "ro", &[]).await else { return };
    // With the state in it, as it is by default.
    home_is_unusable(&sidecar, "Read-only", "LEDGER_UNAVAILABLE").await;
    let mut remount = std::process::Command::new("nsenter");
    remount.args(["--mount", "--target", &sidecar.pid().to_string()]);
    remount.args(["mount", "-o", "remount,rw"]).arg(&home);
    assert!(remount.status().unwrap().success());
    sidecar.ready().await;
    sidecar.say("a", "hello").await.completed();
    sidecar.stop().await;
}

/// One CODEX_HOME, one sidecar; also after one that was killed, whose commands may outlive it for a moment.
#[tokio::test]
async fn a_second_sidecar_of_one_codex_home_says_who_has_it_and_does_not_start() {
    let mut first = Binary::start().await;
    first.say("a", "hello").await.completed();
    let second = |flags: &[&str]| {
        let mut command = support::binary::command(&first.place);
        command.args(["serve", "--offline-model", "--listen", "127.0.0.1:0"]).args(flags);
        command
    };
    let refused = support::binary::output(&mut second(&[])).await;
    assert_eq!(refused.status.code(), Some(64), "{refused:#?}");
    let told = String::from_utf8(refused.stderr).unwrap();
    for said in [format!("pid {}", first.pid()), first.address.clone()] {
        assert!(told.contains(&said), "{told}");
    }
    assert!(told.contains("--share-codex-home"), "{told}");
    // Those who mean it.
    let mut printing = second(&["--share-codex-home", "--print-config"]);
    let printed = support::binary::output(&mut printing).await;
    let printed = String::from_utf8(printed.stdout).unwrap();
    assert!(printed.contains("share_codex_home = true"), "{printed}");
    let beside = Binary::cold(Place::new(), |command| {
        command.args(["--share-codex-home", "--state", "memory"]);
        command.env("CODEX_HOME", first.place.codex_home());
    });
    drop(beside.await);

    first.say("a", "again").await.completed();
    first.signal(Signal::KILL);
    let _ = first.exited(Duration::from_secs(10)).await;
    let Binary { place, .. } = first;
    let next = Binary::cold(place, |_| {}).await;
    next.ready().await;
    next.stop().await;
}

/// Row 40.
#[tokio::test]
async fn a_disk_that_fills_under_a_worker_is_told_by_readiness_and_what_it_cost_by_the_next_turn() {
    // Nobody looks by himself.
    let Some((sidecar, disk)) = with_a_small_disk("1h").await else { return };
    let first = sidecar.say("a", "hello").await;
    let filler = disk.join("filler");
    std::fs::write(&filler, vec![b'x'; 64 << 20]).unwrap_err();

    let unsaved = sidecar.say("a", "again").await;
    assert_eq!(unsaved.final_response(), "You said: again (user messages so far: 2)");
    home_is_unusable(&sidecar, "No space left", "WORKER_UNAVAILABLE").await;
    // With the worker goes what it had in its memory alone.
    processes::signal(sidecar.workers().await[0].pid, Signal::KILL);
    std::fs::remove_file(&filler).unwrap();
    eventually("another worker", async || {
        (sidecar.workers().await[0].generation == 2).then_some(())
    })
    .await;
    sidecar.ready().await;
    let next = sidecar.say("a", "and again").await;
    assert_eq!(next.thread_id(), first.thread_id());
    let warnings = next.warnings();
    let truncated = warnings.iter().find(|warning| warning.code == "THREAD_TRUNCATED");
    let truncated = truncated.unwrap_or_else(|| panic!("{warnings:#?}"));
    assert!(truncated.message.contains("has 1 whole turns"), "{truncated:#?}");
    assert!(truncated.message.contains("and 2 were seen"), "{truncated:#?}");
    assert_eq!(next.final_response(), "You said: and again (user messages so far: 2)");
    sidecar.stop().await;
}

/// Row 24.
#[tokio::test]
async fn without_file_descriptors_turns_are_refused_until_there_are_some() {
    let sidecar = Binary::with(|command| {
        command.env("CODEX_PATH", scripted::fake_cli());
    })
    .await;
    let first = sidecar.say("a", "hello").await;
    let pid = Pid::from_raw(i32::try_from(sidecar.pid()).unwrap());
    let limit = |current: Option<u64>| {
        let now = rustix::process::getrlimit(Resource::Nofile);
        let limits = Rlimit { current: current.or(now.current), maximum: now.maximum };
        rustix::process::prlimit(pid, Resource::Nofile, limits).expect("prlimit");
    };
    // No number above those that are in use now.
    limit(Some(12));
    // A worker that can't be looked at is not dead.
    let told = sidecar.say("a", "again").await;
    assert_eq!(told.thread_id(), first.thread_id());
    told.completed();
    processes::signal(sidecar.workers().await[0].pid, Signal::KILL);
    let message = eventually("OUT_OF_RESOURCES", async || {
        let info = sidecar.info().await;
        (info.not_ready_reason == "OUT_OF_RESOURCES").then_some(info.not_ready_message)
    })
    .await;
    assert!(message.contains("Too many open files"), "{message}");
    let refused = sidecar.refused(prompt("a", "hello")).await;
    refused.assert(Code::ResourceExhausted, "OUT_OF_RESOURCES");
    assert!(refused.retry_after.is_some(), "{refused:#?}");

    limit(None);
    sidecar.ready().await;
    let next = sidecar.say("a", "again").await;
    assert_eq!(next.thread_id(), first.thread_id());
    sidecar.stop().await;
}
