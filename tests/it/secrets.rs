//! Row 27: a key that the workers have is in nothing that leaves the sidecar, whoever repeats it.

use crate::support;
use crate::support::binary::Binary;
use crate::support::{prompt, scripted};

const KEY: &str = "sk-canary-4f1e7a90b2c3";
const PROVIDERS: &str = "canary/of+a=provider";

#[tokio::test]
async fn a_key_that_a_provider_or_a_command_repeats_is_taken_out_of_all_that_is_told() {
    let place = support::Place::new();
    let config = "[model_providers.other]\nname = \"other\"\nbase_url = \"http://127.0.0.1:1\"\n\
                  env_key = \"OTHER_PROVIDERS_KEY\"\n";
    std::fs::write(place.codex_home().join("config.toml"), config).unwrap();
    let login = format!("{{\"OPENAI_API_KEY\": \"{KEY}-of-a-login\"}}");
    std::fs::write(place.codex_home().join("auth.json"), login).unwrap();
    let sidecar = Binary::cold(place, |command| {
        command
            .env("CODEX_API_KEY", KEY)
            .env("OTHER_PROVIDERS_KEY", PROVIDERS)
            .env("CODEX_SIDECAR_LOG", "debug");
    })
    .await;
    sidecar.ready().await;
    let percent = "canary%2Fof%2Ba%3Dprovider";
    for (number, words) in [
        format!("[[fail server_error Incorrect API key provided: {KEY}]]"),
        format!("[[fail invalid_prompt {PROVIDERS} and https://x/?key={percent}]]"),
        format!("[[reason I know {KEY}]] [[say it is {KEY}-of-a-login, \"{PROVIDERS}\"]]"),
        "[[run echo key: $CODEX_API_KEY $OTHER_PROVIDERS_KEY; env | grep -i key]] [[say done]]"
            .to_owned(),
        // In two parts, so that the model's words come to the sidecar without the key in any of them.
        format!("[[slow 5]] [[run echo {} | tr -d _]] [[say done]]", KEY.replace("4f1e", "4f_1e")),
    ]
    .iter()
    .enumerate()
    {
        let mut request = prompt(&number.to_string(), words);
        request.include_raw_events = true;
        let told = sidecar.run(request).await;
        let all = format!("{:?}", told.events);
        assert!(!all.contains(KEY), "{words}: {all}");
        assert!(!all.contains(PROVIDERS) && !all.contains(percent), "{words}: {all}");
        assert!(!all.contains("-of-a-login"), "{words}: {all}");
        assert!(all.contains("[redacted]"), "{words}: {all}");
    }
    let log = sidecar.log();
    assert!(!log.contains(KEY) && !log.contains(PROVIDERS), "{log}");
    sidecar.stop().await;
}

#[tokio::test]
async fn a_key_in_a_workers_last_words_is_taken_out_wherever_they_are_told() {
    let sidecar = Binary::with(|command| {
        command.env("CODEX_PATH", scripted::fake_cli()).env("OPENAI_API_KEY", KEY);
    })
    .await;
    // Across the end of what is kept of a line.
    for before in [10, 500, 4080, 4090] {
        let words =
            format!("[[stderr-text {} {KEY} {KEY}]] [[wait 200ms]] [[die 7]]", "x".repeat(before));
        let told = sidecar.say("a", &words).await;
        let error = told.failed();
        assert_eq!(error.reason, "WORKER_LOST", "{error:#?}");
        assert!(!error.details.is_empty() && !error.details.contains("canary"), "{error:#?}");
        let workers = format!("{:?}", sidecar.workers().await);
        assert!(!workers.contains("canary"), "{workers}");
    }
    assert!(!sidecar.log().contains("canary"), "{}", sidecar.log());
    sidecar.stop().await;
}
