//! Codex's own `config.toml`: while Codex can't read it the sidecar is not ready, and says why.

use crate::support::{Client, Place, Sidecar, eventually, prompt};
use codex_sidecar::parts::app::READINESS_SERVICE;
use codex_sidecar::pb;
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;

/// No TOML, in its second line.
const BROKEN: &str = "# mine\nmodel = \n";

/// Waits until the sidecar says of itself that it is not ready for this; returns the message.
async fn not_ready(client: &Client) -> String {
    let message = eventually("CODEX_CONFIG_INVALID", async || {
        let info = client.info().await;
        (info.not_ready_reason == "CODEX_CONFIG_INVALID").then_some(info.not_ready_message)
    })
    .await;
    eventually("NOT_SERVING", async || {
        let health = client.health_of(READINESS_SERVICE).await.unwrap();
        (health == ServingStatus::NotServing).then_some(())
    })
    .await;
    message
}

#[tokio::test]
async fn a_config_file_that_breaks_is_told_without_a_turn_and_its_mending_is_seen() {
    let sidecar = Sidecar::start().await;
    let file = sidecar.place.codex_home().join("config.toml");
    let loaded = sidecar.say("loaded", "hello").await;
    // What is no TOML, and what is no configuration.
    for (new, broken, says) in
        [("a", BROKEN, ":2:"), ("b", "sandbox_mode = \"anything\"\n", "anything")]
    {
        std::fs::write(&file, broken).unwrap();
        let message = not_ready(&sidecar).await;
        assert!(message.contains(file.to_str().unwrap()) && message.contains(says), "{message}");
        let refused = sidecar.refused(prompt(new, "hello")).await;
        refused.assert(Code::Unavailable, "WORKER_UNAVAILABLE");
        assert!(refused.message.contains(says) && refused.retry_after.is_some(), "{refused:#?}");
        // A thread that is there is not touched.
        let told = sidecar.say("loaded", "still there?").await;
        assert_eq!(told.thread_id(), loaded.thread_id());

        std::fs::write(&file, "# mended\n").unwrap();
        sidecar.ready().await;
        sidecar.say(new, "hello").await.completed();
    }
    assert_eq!(sidecar.workers().await[0].restarts, 0, "the workers did not need to end");
    sidecar.stop().await;
}

#[tokio::test]
async fn workers_that_start_without_a_config_file_are_replaced_once_they_can_read_it() {
    let place = Place::new();
    let file = place.codex_home().join("config.toml");
    std::fs::write(&file, BROKEN).unwrap();
    let sidecar = Sidecar::cold(place, |_, config| config.workers = 2).await;
    let message = not_ready(&sidecar).await;
    assert!(message.contains(":2:"), "{message}");
    eventually("both workers", async || {
        (sidecar.info().await.counts.unwrap().ready_workers == 2).then_some(())
    })
    .await;
    let refused = sidecar.refused(prompt("a", "hello")).await;
    refused.assert(Code::Unavailable, "WORKER_UNAVAILABLE");

    std::fs::write(&file, "# mended\n").unwrap();
    sidecar.ready().await;
    sidecar.say("a", "hello").await.completed();
    eventually("workers that have read it", async || {
        let workers = sidecar.workers().await;
        workers.iter().all(|worker| worker.generation == 2).then_some(())
    })
    .await;
    assert!(sidecar.info().await.ready);
    sidecar.stop().await;
}

#[tokio::test]
async fn a_projects_broken_config_file_is_the_trouble_of_its_turns_alone() {
    let place = Place::new();
    let project = place.work();
    std::fs::create_dir(project.join(".codex")).unwrap();
    std::fs::write(project.join(".codex/config.toml"), BROKEN).unwrap();
    let trusted =
        format!("[projects.{:?}]\ntrust_level = \"trusted\"\n", project.display().to_string());
    std::fs::write(place.codex_home().join("config.toml"), trusted).unwrap();
    let elsewhere = place.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    let sidecar = Sidecar::in_place(place, |_, _| {}).await;

    let refused = sidecar.refused(prompt("a", "hello")).await;
    refused.assert(Code::FailedPrecondition, "CODEX_REFUSED");
    assert!(refused.message.contains(".codex/config.toml"), "{refused:#?}");
    assert!(sidecar.info().await.ready, "{:#?}", sidecar.info().await);
    let mut request = prompt("b", "hello");
    request.thread_options = Some(pb::ThreadOptions {
        working_directory: Some(elsewhere.display().to_string()),
        skip_git_repo_check: Some(true),
        ..Default::default()
    });
    sidecar.run(request).await.completed();
    sidecar.stop().await;
}
