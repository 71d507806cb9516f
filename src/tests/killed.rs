//! A sidecar that is killed between two commits, or on a disk that is slow or full: what is told after it.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tonic::Code;

use crate::pb;
use crate::registry::ledger::Change;
use crate::registry::ledger::testing::Disk;
use crate::testing::{Sidecar, Turn, meanwhile, prompt, sidecar_with};
use crate::worker::testing::{Codex, HOLD};

const GONE: (&str, usize, i64, &str) =
    ("thread/resume", 1, -32600, "no rollout found for thread id");
const EMPTY: (&str, usize, i64, &str) = (
    "thread/resume",
    1,
    -32603,
    "failed to read thread: failed to read session metadata /h/r.jsonl: rollout at /h/r.jsonl is empty",
);

const UNSAVED: &str = "Failed to save the conversation transcript; Codex will continue retrying.";

async fn start(disk: &Arc<Disk>, number: u32) -> (Sidecar, Codex) {
    let (sidecar, mut codex) = sidecar_with(|setup| setup.state = Some(Arc::clone(disk))).await;
    codex.number = Some(number);
    (sidecar, codex)
}

/// Has a turn of context `a` begin while so many of its commits are kept from `turn/start` on, and the
/// sidecar killed then. How many there were.
async fn killed_after(
    disk: &Arc<Disk>,
    sidecar: &Sidecar,
    codex: &mut Codex,
    commits: usize,
) -> usize {
    let running = sidecar.begin(prompt("a", HOLD));
    tokio::pin!(running);
    let asked = tokio::select! {
        told = &mut running => panic!("it tells something: {:?}", told.err()),
        asked = codex.asked("turn/start") => asked,
    };
    disk.hold();
    codex.answer_usually(&asked).await;
    meanwhile(running.as_mut(), codex.during(tokio::time::sleep(Duration::from_secs(1)))).await;
    let all = disk.held().len();
    disk.keep_first(commits.min(all));
    all
}

/// Nobody was told of its thread, and Codex never wrote that down.
#[tokio::test(start_paused = true)]
async fn between_any_two_commits_of_its_first_turn_a_context_goes_on_afterwards() {
    let mut commits = 0;
    loop {
        let disk = Arc::<Disk>::default();
        let (sidecar, mut codex) = start(&disk, 1).await;
        let all = killed_after(&disk, &sidecar, &mut codex, commits).await;
        // The same while a blank thread is replaced.
        let (sidecar, mut codex) = start(&disk, 2).await;
        disk.release();
        codex.refuses.push(GONE);
        killed_after(&disk, &sidecar, &mut codex, commits).await;
        let (sidecar, mut codex) = start(&disk, 3).await;
        disk.release();
        codex.refuses.push(GONE);
        let after = codex.during(sidecar.run(prompt("a", "again"))).await;
        assert_eq!(after.final_response(), "You said: again", "{commits} commits");
        if commits > all {
            break;
        }
        commits += 1;
    }
    assert!(commits > 2);
}

#[tokio::test(start_paused = true)]
async fn a_context_whose_first_turn_codex_did_not_take_goes_on_with_a_thread_afterwards() {
    for restarts in [false, true] {
        let disk = Arc::<Disk>::default();
        let (mut sidecar, mut codex) = start(&disk, 1).await;
        codex.refuses.push(("turn/start", 99, -32001, "too many"));
        codex.during(sidecar.refused(prompt("a", "hello"))).await;
        let bound = sidecar.context("a").await.unwrap();
        if restarts {
            (sidecar, codex) = start(&disk, 2).await;
        } else {
            codex.refuses.clear();
        }
        codex.refuses.push(GONE);
        let after = codex.during(sidecar.run(prompt("a", "again"))).await;
        assert_eq!(after.final_response(), "You said: again", "restarts: {restarts}");
        if restarts {
            assert!(after.warned("THREAD_REPLACED")[0].contains(&bound.thread_id));
        }
    }
}

/// It is as new for its second turn as for its first.
#[tokio::test(start_paused = true)]
async fn a_blank_thread_is_told_of_once_codex_has_written_it_down() {
    let disk = Arc::<Disk>::default();
    let (sidecar, mut codex) = start(&disk, 1).await;
    codex.refuses.push(("turn/start", 99, -32001, "too many"));
    codex.during(sidecar.refused(prompt("a", "hello"))).await;
    codex.refuses.clear();
    let running = sidecar.begin(prompt("a", "hello"));
    tokio::pin!(running);
    let asked = tokio::select! {
        _ = &mut running => panic!("it tells something"),
        asked = codex.asked("turn/start") => asked,
    };
    let (root, thread_id) = (asked.params["rootTurnId"].clone(), asked.params["threadId"].clone());
    let turn = serde_json::json!({ "turn": { "id": "u1", "rootTurnId": root } });
    codex.tell_settings(&asked).await;
    codex.answer(&asked, turn).await;
    let while_not = codex.during(tokio::time::sleep(Duration::from_secs(4)));
    meanwhile(running.as_mut(), while_not).await;
    codex.begin_turn(thread_id.as_str().unwrap(), "u1", root.as_str().unwrap()).await;
    let mut turn = running.await.unwrap();
    turn.until("turn_started").await;
}

#[tokio::test(start_paused = true)]
async fn a_thread_that_had_a_history_is_missed_and_not_replaced() {
    let disk = Arc::<Disk>::default();
    let (sidecar, mut codex) = start(&disk, 1).await;
    let mut before = sidecar.hold(&mut codex, prompt("a", "hello")).await;
    codex.say_in_turn("done").await;
    codex.during(before.until("item_completed")).await;
    let (sidecar, mut codex) = start(&disk, 2).await;
    codex.refuses.push(GONE);
    let missed = codex.during(sidecar.refused(prompt("a", "again"))).await;
    missed.assert(Code::NotFound, "THREAD_NOT_FOUND");
}

/// Its turns were told, and the disk of CODEX_HOME was full all the time.
#[tokio::test(start_paused = true)]
async fn a_thread_of_which_codex_could_write_down_nothing_is_replaced_and_what_is_lost_is_told() {
    for turns in [0, 2] {
        let disk = Arc::<Disk>::default();
        let (sidecar, mut codex) = start(&disk, 1).await;
        let mut running = sidecar.hold(&mut codex, prompt("a", "hello")).await;
        for turn in 0..=turns {
            codex.say_in_turn("done").await;
            codex.during(running.until("item_completed")).await;
            codex.tell_in_turn("warning", json!({ "message": UNSAVED })).await;
            codex.during(running.until("warning")).await;
            if turn < turns {
                codex.end_last_turn().await;
                codex.during(running.rest()).await;
                running = sidecar.hold(&mut codex, prompt("a", "hello")).await;
            }
        }
        let (sidecar, mut codex) = start(&disk, 2).await;
        codex.refuses.push(EMPTY);
        let after = codex.during(sidecar.say("a", "again")).await;
        assert_eq!(after.final_response(), "You said: again");
        assert_eq!(after.thread_started().origin(), pb::ThreadOrigin::New);
        let told = after.warned("THREAD_REPLACED")[0];
        let lost = format!("which is lost with the {turns} turns that were seen to end on it");
        assert!(told.contains(running.thread_id()), "{told}");
        assert!(turns == 0 || told.contains(&lost), "{told}");
    }
    // Of one that this sidecar never saw nobody knows what it had.
    let (sidecar, mut codex) = start(&Arc::default(), 1).await;
    codex.refuses.push(EMPTY);
    let mut request = prompt("b", "hello");
    request.thread_id = uuid::Uuid::new_v4().to_string();
    let missed = codex.during(sidecar.refused(request)).await;
    missed.assert(Code::NotFound, "THREAD_NOT_FOUND");
}

/// Has a turn tell so much while the disk keeps nothing.
async fn flood(sidecar: &Sidecar, codex: &mut Codex, disk: &Disk, is_full: bool) -> Turn {
    let turn = sidecar.hold(codex, prompt("a", "hello")).await;
    if is_full {
        disk.fill();
    } else {
        disk.hold();
    }
    for number in 0..5000 {
        codex.say_in_turn(&number.to_string()).await;
        if number % 50 == 0 {
            tokio::task::yield_now().await;
        }
    }
    codex.during(tokio::time::sleep(Duration::from_secs(1))).await;
    turn
}

async fn told_so_far(turn: &mut Turn) -> u64 {
    while let Ok(told) = tokio::time::timeout(Duration::from_secs(1), turn.next()).await {
        told.unwrap();
    }
    turn.events.last().unwrap().sequence
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_lost_turn_comes_after_all_that_was_told_of_it() {
    let disk = Arc::<Disk>::default();
    let (sidecar, mut codex) = start(&disk, 1).await;
    let mut before = flood(&sidecar, &mut codex, &disk, false).await;
    let told = told_so_far(&mut before).await;
    let (listed, _) = sidecar.turns(None, 0, "").await.unwrap();
    assert_eq!(listed[0].last_sequence, told);
    {
        let (sidecar, _codex) = start(&disk, 2).await;
        let mut after = sidecar.attach(&before.id()).await.unwrap();
        after.rest().await;
        assert!(after.events.last().unwrap().sequence > told, "{told}");
    }

    // What was held is told once it may be.
    let disk = Arc::<Disk>::default();
    let (sidecar, mut codex) = start(&disk, 1).await;
    let mut slow = flood(&sidecar, &mut codex, &disk, false).await;
    let held_at = told_so_far(&mut slow).await;
    disk.release();
    assert!(codex.during(told_so_far(&mut slow)).await > held_at);
    codex.end_last_turn().await;
    codex.during(slow.rest()).await;
    assert_eq!(slow.final_response(), "4999");
    assert_eq!(slow.warned("OUTCOME_NOT_KEPT"), [""; 0]);

    // Nothing is held up for a disk that has no room, but it is said.
    let disk = Arc::<Disk>::default();
    let (sidecar, mut codex) = start(&disk, 1).await;
    let mut full = flood(&sidecar, &mut codex, &disk, true).await;
    assert!(told_so_far(&mut full).await > 5000);
    assert_eq!(full.warned("OUTCOME_NOT_KEPT").len(), 1);
}

/// Whatever is in the file.
#[tokio::test(start_paused = true)]
async fn a_turn_that_was_kept_has_its_own_terminal_event_last() {
    let disk = Arc::<Disk>::default();
    let (sidecar, mut codex) = start(&disk, 1).await;
    let ids = [
        codex.during(sidecar.say("a", "hello")).await.id(),
        codex.during(sidecar.say("b", "hello")).await.id(),
        codex.during(sidecar.say("c", "hello")).await.id(),
    ];
    let mut turns = disk.turns();
    let started = turns[0].thread_started.clone().unwrap();
    // No terminal one.
    turns[0].end.as_mut().unwrap().event = started.event.clone();
    // Those of another turn.
    turns[1].end = turns[2].end.clone();
    turns[1].thread_started = Some(started);
    // It had not ended, as far as is known.
    turns[2].end = None;
    turns[2].reserved = u64::MAX;
    for turn in turns {
        disk.change(&Change::ForgetTurn(turn.turn_id.clone()));
        disk.change(&Change::StartTurn(Box::new(turn)));
    }
    let (sidecar, _codex) = start(&disk, 2).await;
    for id in ids {
        let mut turn = sidecar.attach(&id).await.unwrap();
        turn.rest().await;
        assert_eq!(turn.failed().reason, "SIDECAR_RESTARTED");
        let sequences = turn.events.iter().map(|event| event.sequence);
        assert!(sequences.is_sorted() && turn.events.iter().all(|event| event.turn_id == id));
    }
}
