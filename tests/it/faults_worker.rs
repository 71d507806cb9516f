//! Faults of one worker: how it dies, what it writes, what it does not read. In every case the other
//! turns go on, the context keeps its thread, and the next turn is served.

use std::time::Duration;

use crate::support;
use crate::support::binary::Binary;
use crate::support::{Client, Sidecar, eventually, processes, prompt, scripted};
use codex_sidecar::pb;
use rustix::process::Signal;

/// The worker that runs a turn.
async fn busy(client: &Client) -> pb::Worker {
    let workers = client.workers().await;
    let busy = workers.iter().find(|worker| worker.running_turns > 0);
    busy.unwrap_or_else(|| panic!("none runs a turn: {workers:#?}")).clone()
}

/// Row 1, on the real CLI.
#[tokio::test]
async fn a_killed_worker_fails_its_turn_alone_and_the_context_goes_on_with_its_thread() {
    let sidecar = Sidecar::with(|config| config.workers = 2).await;
    let first = sidecar.say("a", "hello").await;
    let mut turn = sidecar.begin(prompt("a", "[[run sleep 300]]")).await;
    turn.command_started().await;
    let victim = busy(&sidecar).await;
    let mut other = sidecar.begin(prompt("b", "[[run sleep 2]] [[say undisturbed]]")).await;
    other.command_started().await;

    processes::signal(victim.pid, Signal::KILL);
    let told = turn.rest().await;
    let error = told.failed();
    assert_eq!(error.reason, "WORKER_LOST", "{error:#?}");
    assert!(error.side_effects_possible && error.retryable, "{error:#?}");
    assert!(error.message.contains("signal 9"), "{error:#?}");

    // While the other one still runs, on another worker than the one that died.
    let next = sidecar.say("a", "are you there?").await;
    assert_eq!(next.thread_id(), first.thread_id());
    assert_eq!(next.origin(), pb::ThreadOrigin::Resumed);
    assert_eq!(next.final_response(), "You said: are you there? (user messages so far: 3)");
    assert_eq!(other.rest().await.final_response(), "undisturbed");
    eventually("the next incarnation", async || {
        let workers = sidecar.workers().await;
        workers.iter().all(|worker| worker.state() == pb::WorkerState::Ready).then_some(())
    })
    .await;
    let workers = sidecar.workers().await;
    let place = workers.iter().find(|worker| worker.worker_id == victim.worker_id).unwrap();
    assert_eq!((place.generation, place.restarts), (2, 1));
    assert!(place.last_error.contains("signal 9"), "{place:#?}");
    sidecar.stop().await;
}

/// Rows 7 and 9: what a worker writes costs bounded memory and a bounded log, whatever it is.
#[tokio::test]
async fn endless_lines_and_floods_of_complaints_are_bounded() {
    let sidecar = Binary::with(|command| {
        command.env("CODEX_PATH", scripted::fake_cli());
    })
    .await;
    // Exactly the limit, 8 MiB by default.
    let told = sidecar.say("a", "[[line 8388608]] [[say read]]").await;
    assert_eq!(told.final_response(), "read");
    assert_eq!(sidecar.workers().await[0].generation, 1);

    let resident = || resident_mib(sidecar.pid());
    let before = resident();
    let told = sidecar.say("a", "[[line 67108864]] [[line 8388609]] [[say unread]]").await;
    assert_eq!(told.final_response(), "unread");
    let warnings = told.warnings();
    let said: Vec<&str> = warnings.iter().map(|warning| warning.message.as_str()).collect();
    assert!(warnings.iter().all(|warning| warning.code == "LINE_SKIPPED"), "{warnings:#?}");
    assert_eq!(said.len(), 2, "{said:#?}");
    assert!(said[0].contains("a line of 67108864 bytes") && said[0].contains("turn/diff/updated"));
    assert!(said[1].contains("8388609 bytes, more than limits.max_line_bytes, which is 8388608"));
    let after = resident();
    // What a line at the limit takes while it is read, and not what this one would.
    assert!(after < before + 24, "{before} MiB before, {after} MiB after");
    assert_eq!(sidecar.workers().await[0].generation, 1);

    let flood = "[[stderr 20971520]] [[stderr-line 1048576]] [[stderr-text the last words]] \
                 [[wait 200]] [[die 7]]";
    let told = sidecar.say("a", flood).await;
    let error = told.failed();
    assert!(error.message.contains("exit status 7"), "{error:#?}");
    assert!(error.details.ends_with("Z the last words"), "{error:#?}");
    assert!(error.details.len() < 16 * 1024, "{}", error.details.len());
    assert_eq!(sidecar.say("a", "hello").await.origin(), pb::ThreadOrigin::Resumed);
    // Told although nothing follows; this test reads the log through a pipe.
    eventually("the count of what the log leaves out", async || {
        sidecar.log().contains("suppressed").then_some(())
    })
    .await;
    let log = sidecar.log();
    assert!(log.len() < 256 * 1024, "{} bytes of log", log.len());
    println!("resident {before} -> {after} -> {} MiB, log {} bytes", resident(), log.len());
    sidecar.stop().await;
}

/// What a worker said while it started explains no death of it.
#[tokio::test]
async fn last_words_are_those_of_the_end_with_their_time() {
    let place = support::Place::new();
    let config = place.path().join("sidecar.toml");
    std::fs::write(&config, "[worker]\nenvironment = [\"FAKE_*\"]\n").unwrap();
    let sidecar = Binary::cold(place, |command| {
        command.env("CODEX_PATH", scripted::fake_cli()).arg("--config").arg(&config);
        command.env("FAKE_STDERR_AT_START", "WARNING: an old habit\n");
    })
    .await;
    sidecar.ready().await;
    let told = sidecar.say("a", "[[stderr-text it hurts]] [[wait 200]] [[die 7]]").await;
    let error = told.failed();
    let (time, words) = error.details.split_once(' ').unwrap_or_else(|| panic!("{error:#?}"));
    assert_eq!(words, "it hurts", "{error:#?}");
    let said = humantime::parse_rfc3339(time).unwrap();
    assert!(said.elapsed().unwrap() < support::PATIENCE, "{time}");
    assert!(sidecar.log().contains("an old habit"), "{}", sidecar.log());
    let last_error = &sidecar.workers().await[0].last_error;
    assert!(!last_error.contains("an old habit"), "{last_error}");
    assert_eq!(sidecar.say("a", "hello").await.thread_id(), told.thread_id());
    sidecar.stop().await;
}

/// A line that never ends is silence: the clock of its turn ends it, and nothing grows meanwhile.
#[tokio::test]
async fn a_line_without_an_end_is_silence_and_takes_no_memory() {
    let sidecar = Binary::with(|command| {
        command.env("CODEX_PATH", scripted::fake_cli());
    })
    .await;
    sidecar.say("a", "hello").await;
    let before = resident_mib(sidecar.pid());
    let mut request = prompt("a", "[[endless-line]]");
    let idle = prost_types::Duration { seconds: 2, nanos: 0 };
    request.turn_options.get_or_insert_default().idle_timeout = Some(idle);
    let mut turn = sidecar.begin(request).await;
    turn.started().await;
    let mut most = before;
    let told = {
        let mut rest = std::pin::pin!(turn.rest());
        let mut look = tokio::time::interval(Duration::from_millis(50));
        loop {
            tokio::select! {
                told = &mut rest => break told,
                _ = look.tick() => most = most.max(resident_mib(sidecar.pid())),
            }
        }
    };
    let error = told.failed();
    assert_eq!(error.reason, "IDLE_TIMEOUT", "{error:#?}");
    assert!(error.retryable && error.side_effects_possible, "{error:#?}");
    println!("resident {before} MiB before, at most {most} MiB meanwhile");
    assert!(most < before + 32, "{before} MiB before, {most} MiB meanwhile");
    assert_eq!(sidecar.say("a", "hello").await.thread_id(), told.thread_id());
    sidecar.stop().await;
}

fn resident_mib(pid: u32) -> u64 {
    let resident = codex_sidecar::parts::process::resident_bytes(pid).expect("it runs");
    resident / (1 << 20)
}
