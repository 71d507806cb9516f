//! What callers can make the sidecar and its workers keep.

use std::time::Duration;

use codex_sidecar::pb;
use futures::future::join_all;
use tonic::Code;

use super::{Target, size};
use crate::support::attached::by_id;
use crate::support::{Client, prompt, text};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_never_read_share_what_they_do_not_read() {
    let count = size(120, 350);
    // All of the turn is kept: the reader of the turn itself may fall behind, which is another matter.
    let target = Target::with("[retention]\nmax_bytes_per_turn = \"16MiB\"\n").await;
    let big = target.say("big", "[[bytes 3000000]]").await;
    let what = format!("{count} readers that never read of a turn of 3 MB");
    let measured = target
        .attacked(&what, async |sidecar| {
            let mut held = Vec::new();
            let mut refused = 0;
            for _ in 0..count {
                // A connection each: the window of one would bound them all.
                let client = Client::connect(&sidecar.address, sidecar.place.work()).await;
                match client.try_attach(by_id(big.turn_id()), 0).await {
                    Ok(reader) => held.push(reader),
                    Err(status) => {
                        status.assert(Code::ResourceExhausted, "TOO_MANY_READERS");
                        refused += 1;
                    }
                }
            }
            println!("{} hold on, {refused} were refused", held.len());
            tokio::time::sleep(Duration::from_secs(3)).await;
        })
        .await;
    assert!(measured.grown() < 160, "{measured:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_threads_were_loaded_with_is_not_kept() {
    let count = size(12, 60);
    let target = Target::with("").await;
    let instructions = "Be brief. ".repeat((7 << 20) / 10);
    let what = format!("{count} contexts with 7 MiB of instructions, then deleted");
    let measured = target
        .attacked(&what, async |sidecar| {
            for number in 0..count {
                let context = format!("long{number}");
                let mut request = prompt(&context, "hello");
                request.thread_options.get_or_insert_default().developer_instructions =
                    Some(instructions.clone());
                sidecar.run(request).await.completed();
            }
            for number in 0..count {
                let context_id = format!("long{number}");
                let request = pb::DeleteContextRequest { context_id, ..Default::default() };
                sidecar.codex().delete_context(request).await.unwrap();
            }
            crate::support::eventually("unloaded threads", async || {
                let loaded: u32 =
                    sidecar.workers().await.iter().map(|worker| worker.loaded_threads).sum();
                // The canary's own.
                (loaded <= 1).then_some(())
            })
            .await;
        })
        .await;
    assert!(measured.kept() < 100, "{measured:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_threads_are_let_go_of() {
    let count = size(60, 1_000);
    let target = Target::with("[pool]\nmax_idle_threads = 8\n").await;
    let what = format!("{count} contexts of one turn, at most 8 idle threads a worker");
    let measured = target
        .attacked(&what, async |sidecar| {
            for number in 0..count / 4 {
                let names: Vec<String> = (0..4).map(|part| format!("c{number}-{part}")).collect();
                let turns = join_all(names.iter().map(|name| sidecar.say(name, "hello"))).await;
                assert!(turns.iter().all(|told| !told.final_response().is_empty()));
            }
            crate::support::eventually("few idle threads", async || {
                let workers = sidecar.workers().await;
                // One may be the canary's, just running.
                workers.iter().all(|worker| worker.loaded_threads <= 9).then_some(())
            })
            .await;
            assert!(sidecar.workers().await.iter().all(|worker| worker.restarts == 0));
            // Who was let go of goes on where it was.
            let again = sidecar.say("c0-0", "again").await;
            assert_eq!(again.final_response(), "You said: again (user messages so far: 2)");
        })
        .await;
    assert!(measured.kept() < 64, "{measured:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn steering_is_counted() {
    let count = size(60, 150);
    let target = Target::with("").await;
    let measured = target
        .attacked(&format!("{count} × 1 MB of steering of one turn"), async |sidecar| {
            let mut turn = sidecar.begin(prompt("steered", "[[hang]]")).await;
            let turn_id = turn.started().await;
            let words = "x".repeat(1_000_000);
            let steering = (0..count).map(|_| async {
                let inputs = vec![text(&words)];
                let request = pb::SteerTurnRequest { turn_id: turn_id.clone(), inputs };
                let call = sidecar.codex().steer_turn(request).await;
                call.map(drop).map_err(crate::support::Refused::from)
            });
            let refused = join_all(steering).await.into_iter().filter_map(Result::err);
            let full = refused.inspect(|it| it.assert(Code::ResourceExhausted, "STEERING_FULL"));
            assert!(full.count() > 0, "nothing was refused");
            sidecar.interrupt(&turn_id).await.unwrap();
        })
        .await;
    assert!(measured.kept() < 100, "{measured:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_given_back_after_big_turns() {
    let (rounds, megabytes) = size((2, 1), (10, 7));
    // Nobody is told of a gap, however slow the machine is. What is over is forgotten at once: what is
    // left then is what was not given back.
    let target =
        Target::with("[retention]\nafter_end = \"0s\"\nmax_bytes_per_turn = \"64MiB\"\n").await;
    let measured = target
        .attacked(&format!("{rounds} × 4 turns of {megabytes} MB at once"), async |sidecar| {
            for _ in 0..rounds {
                let names = ["a", "b", "c", "d"];
                let turns = names.map(async |name| {
                    sidecar.say(name, &format!("[[bytes {megabytes}000000]]")).await
                });
                for told in join_all(turns).await {
                    assert_eq!(told.final_response().len(), megabytes * 1_000_000);
                }
            }
        })
        .await;
    assert!(measured.kept() < 100, "{measured:?}");
}
