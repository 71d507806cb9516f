//! A state that can't be written, or not even be made: no turn starts, those that run come to their end,
//! and all goes on by itself when there is room.

use std::path::{Path, PathBuf};

use crate::support::attached::by_id;
use crate::support::binary::{Binary, through};
use crate::support::turn::until_there;
use crate::support::{Client, PATIENCE, Place, Refused, eventually, prompt, within};
use codex_sidecar::parts::app::READINESS_SERVICE;
use codex_sidecar::pb;
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;

fn with_id(request: pb::RunTurnRequest, id: &str) -> pb::RunTurnRequest {
    pb::RunTurnRequest { request_id: id.to_owned(), ..request }
}

/// A sidecar whose state is on a disk of its own, mounted with these options; none where this machine
/// does not let us. The disk as it is seen from here beside it.
async fn on_a_disk(place: Place, options: &str) -> Option<(Binary, PathBuf)> {
    let disk = place.path().join("disk");
    std::fs::create_dir_all(&disk).unwrap();
    let tried = std::process::Command::new("unshare").args(["--mount", "true"]).output();
    if !tried.as_ref().is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: a disk of its own: `unshare --mount` is not permitted here: {tried:?}");
        return None;
    }
    let mount = format!("mount -t tmpfs -o {options} tmpfs '{}' && exec \"$@\"", disk.display());
    let sidecar = Binary::cold(place, |command| {
        command.arg("--state").arg(disk.join("state.redb"));
        through(command, &["unshare", "--mount", "sh", "-c", &mount, "sh"]);
    })
    .await;
    let seen = PathBuf::from(format!("/proc/{}/root{}", sidecar.pid(), disk.display()));
    assert!(seen.is_dir());
    Some((sidecar, seen))
}

async fn is_refused(refused: Refused, cause: &str) {
    refused.assert(Code::Unavailable, "LEDGER_UNAVAILABLE");
    assert!(refused.retry_after.is_some(), "{refused:#?}");
    assert!(refused.message.contains(cause), "{refused:#?}");
}

/// Readiness says so, and a turn is refused before it has begun.
async fn is_unavailable(sidecar: &Client, cause: &str) {
    let message = eventually("LEDGER_UNAVAILABLE", async || {
        let info = sidecar.info().await;
        (info.not_ready_reason == "LEDGER_UNAVAILABLE").then_some(info.not_ready_message)
    })
    .await;
    assert!(message.contains("state.redb") && message.contains(cause), "{message}");
    let health = sidecar.health_of(READINESS_SERVICE).await.unwrap();
    assert_eq!(health, ServingStatus::NotServing);
    assert_eq!(sidecar.health_of("").await.unwrap(), ServingStatus::Serving, "it is alive");
    is_refused(sidecar.refused(prompt("refused", "hello")).await, cause).await;
}

async fn bind(client: &Client, context: &str) -> Result<(), Refused> {
    let request = pb::BindContextRequest {
        context_id: context.to_owned(),
        thread_id: uuid::Uuid::now_v7().to_string(),
        ..Default::default()
    };
    let mut codex = client.codex();
    let bound = within(PATIENCE, "BindContext", codex.bind_context(request)).await;
    bound.map(drop).map_err(Refused::from)
}

/// Binds contexts until there is no room; how many there are then.
async fn bind_until_full(sidecar: &Client, disk: &Path) -> usize {
    // Nothing is left but what the file has already.
    let filler = disk.join("filler");
    let full = std::fs::write(&filler, vec![b'x'; 64 << 20]).unwrap_err();
    assert_eq!(full.raw_os_error(), Some(rustix::io::Errno::NOSPC.raw_os_error()));
    for count in 0..100_000 {
        // Names of some length take room the sooner.
        if let Err(refused) = bind(sidecar, &format!("{count:0>200}")).await {
            is_refused(refused, "No space left").await;
            return count;
        }
    }
    panic!("there is room for all");
}

#[tokio::test]
async fn on_a_full_disk_no_turn_starts_those_that_run_end_and_all_goes_on_when_there_is_room() {
    let place = Place::new();
    let Some((sidecar, disk)) = on_a_disk(place, "size=32m").await else { return };
    sidecar.ready().await;
    let before = with_id(prompt("a", "hello"), "before");
    let before = (sidecar.run(before.clone()).await, before);
    let go = sidecar.place.path().join("go");
    let running = with_id(until_there("b", &go, "in time"), "running");
    let mut turn = sidecar.begin(running.clone()).await;
    turn.started().await;
    turn.command_started().await;

    let bound = bind_until_full(&sidecar, &disk).await;
    assert!(bound > 0);
    is_unavailable(&sidecar, "No space left").await;
    // What was refused has not happened, and all that is known is still told.
    let refused = sidecar.context(&format!("{bound:0>200}")).await.unwrap_err();
    refused.assert(Code::NotFound, "CONTEXT_NOT_FOUND");
    sidecar.context("refused").await.unwrap_err().assert(Code::NotFound, "CONTEXT_NOT_FOUND");
    assert_eq!(sidecar.context("a").await.unwrap().thread_id, before.0.thread_id());
    let delete = pb::DeleteContextRequest { context_id: "a".to_owned(), ..Default::default() };
    let refused = sidecar.codex().delete_context(delete).await.map_err(Refused::from);
    is_refused(refused.unwrap_err(), "No space left").await;
    assert_eq!(sidecar.context("a").await.unwrap().thread_id, before.0.thread_id());
    // A call that is repeated starts nothing.
    assert_eq!(sidecar.run(before.1.clone()).await.events, before.0.events);

    // The turn that runs has its end, with a word on what it is worth.
    std::fs::write(&go, "").unwrap();
    let told = turn.rest().await;
    assert_eq!(told.final_response(), "in time");
    let kinds = told.kinds();
    let warnings = told.warnings();
    let not_kept: Vec<_> = warnings.iter().filter(|it| it.code == "OUTCOME_NOT_KEPT").collect();
    assert_eq!(not_kept.len(), 1, "{kinds:?}: {warnings:#?}");
    assert_eq!(kinds[kinds.len() - 2], "warning", "{kinds:?}");
    assert_eq!(sidecar.run(running.clone()).await.events, told.events);

    // Room again, and nobody has to do anything.
    std::fs::remove_file(disk.join("filler")).unwrap();
    sidecar.ready().await;
    let next = sidecar.say("a", "again").await;
    assert_eq!(next.thread_id(), before.0.thread_id());
    assert_eq!(next.final_response(), "You said: again (user messages so far: 2)");
    bind(&sidecar, "now").await.unwrap();

    // What was written down then, and what only could be later: all of it is on the disk.
    let copy = sidecar.place.path().join("copy.redb");
    let state = disk.join("state.redb");
    let contexts = sidecar.info().await.counts.unwrap().contexts;
    // The disk is gone with the process that has it mounted, and what it is killed in the middle of counts.
    sidecar.signal(rustix::process::Signal::STOP);
    std::fs::copy(&state, &copy).unwrap();
    let place = sidecar.kill().await;
    let successor = Binary::cold(place, |command| {
        command.arg("--state").arg(&copy);
    })
    .await;
    successor.ready().await;
    assert_eq!(successor.info().await.counts.unwrap().contexts, contexts);
    for context in [format!("{:0>200}", 0), format!("{:0>200}", bound - 1), "now".to_owned()] {
        successor.context(&context).await.unwrap();
    }
    let kept = successor.told_after(by_id(told.turn_id()), 0).await;
    assert_eq!(kept.last(), told.events.last());
    assert_eq!(successor.begin(running).await.read_kept().await, kept);
    let next = successor.say("b", "again").await;
    assert_eq!(next.thread_id(), told.thread_id());
    successor.stop().await;
}

#[tokio::test]
async fn a_disk_that_is_read_only_is_told_and_written_to_once_it_may_be() {
    let Some((sidecar, disk)) = on_a_disk(Place::new(), "ro").await else { return };
    is_unavailable(&sidecar, "Read-only").await;
    nothing_is_told_of_what_is_not_read(&sidecar).await;
    let mounted = sidecar.place.path().join("disk");
    let mut remount = std::process::Command::new("nsenter");
    remount.args(["--mount", "--target", &sidecar.pid().to_string()]);
    remount.args(["mount", "-o", "remount,rw"]).arg(&mounted);
    assert!(remount.status().unwrap().success());
    sidecar.ready().await;
    sidecar.say("a", "hello").await.completed();
    assert!(disk.join("state.redb").exists());
    sidecar.stop().await;
}

/// What a restart would find is not known yet: to say "not found" would be a lie.
async fn nothing_is_told_of_what_is_not_read(sidecar: &Client) {
    let refused = sidecar.context("a").await.unwrap_err();
    refused.assert(Code::Unavailable, "LEDGER_UNAVAILABLE");
    let nobody = uuid::Uuid::now_v7().to_string();
    let refused = sidecar.try_attach(by_id(&nobody), 0).await.unwrap_err();
    refused.assert(Code::Unavailable, "LEDGER_UNAVAILABLE");
    let refused = bind(sidecar, "a").await.unwrap_err();
    refused.assert(Code::Unavailable, "LEDGER_UNAVAILABLE");
    let request = pb::ListContextsRequest::default();
    let refused = Refused::from(sidecar.codex().list_contexts(request).await.unwrap_err());
    refused.assert(Code::Unavailable, "LEDGER_UNAVAILABLE");
    let refused = Refused::from(
        sidecar.codex().list_turns(pb::ListTurnsRequest::default()).await.unwrap_err(),
    );
    refused.assert(Code::Unavailable, "LEDGER_UNAVAILABLE");
}

/// Where no disk can be mounted, too.
#[tokio::test]
async fn a_directory_for_the_state_that_is_not_there_is_told_and_used_once_it_is() {
    let place = Place::new();
    let directory = place.path().join("later");
    let state = directory.join("state.redb");
    let sidecar = Binary::cold(place, |command| {
        command.arg("--state").arg(&state);
    })
    .await;
    is_unavailable(&sidecar, "No such file or directory").await;
    nothing_is_told_of_what_is_not_read(&sidecar).await;
    std::fs::create_dir(&directory).unwrap();
    sidecar.ready().await;
    let told = sidecar.say("a", "hello").await;
    let place = sidecar.kill().await;
    let sidecar = Binary::cold(place, |command| {
        command.arg("--state").arg(&state);
    })
    .await;
    sidecar.ready().await;
    assert_eq!(sidecar.say("a", "again").await.thread_id(), told.thread_id());
    sidecar.stop().await;
}
