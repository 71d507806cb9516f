//! What the threads that no turn uses cost the real CLI.

use crate::support::{PATIENCE, Sidecar, ephemeral, prompt, within};

/// Row 38.
#[tokio::test]
async fn a_worker_does_not_grow_with_the_number_of_its_contexts() {
    const MIB: u64 = 1 << 20;
    let sidecar = Sidecar::with(|config| config.pool.max_idle_threads = Some(2)).await;
    let mut request = prompt("c0", "hello");
    let options = request.thread_options.get_or_insert_default();
    options.base_instructions = Some("do what you must. ".repeat(60_000));
    let say = async |context: usize| {
        let mut request = request.clone();
        request.context_id = format!("c{context}");
        sidecar.run(request).await
    };
    let settled = async || {
        while sidecar.workers().await[0].loaded_threads > 2 {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        sidecar.workers().await[0].resident_memory_bytes
    };
    let first = say(0).await;
    for context in 1..8 {
        say(context).await.completed();
    }
    let before = within(PATIENCE, "the release", settled()).await;
    for context in 8..32 {
        say(context).await.completed();
        sidecar.run(ephemeral("hello")).await.completed();
    }
    let after = within(PATIENCE, "the release", settled()).await;
    // Each keeps its instructions several times: without a release it is 170 MiB.
    let grown = after.saturating_sub(before) / MIB;
    assert!(grown < 90, "it has grown from {} by {grown} MiB", before / MIB);
    assert_eq!(sidecar.workers().await[0].generation, 1);
    // Its history is all there.
    let again = say(0).await;
    assert_eq!(again.thread_id(), first.thread_id());
    assert!(again.final_response().contains("user messages so far: 2"), "{again:#?}");
    sidecar.stop().await;
}
