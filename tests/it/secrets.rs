//! Row 27: a key that the workers have is in nothing that leaves the sidecar, whoever repeats it.

use std::path::Path;

use codex_sidecar::pb;
use codex_sidecar::pb::item::Kind;
use codex_sidecar::pb::turn_event::Event;

use serde_json::{Value, json};

use crate::policy;
use crate::support;
use crate::support::binary::{Binary, command, output};
use crate::support::{Told, processes, prompt, scripted, with_options};

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
    // A command has no key that would have to be taken out.
    let words =
        "[[run echo key: $CODEX_API_KEY $OTHER_PROVIDERS_KEY; env | grep -i key]] [[say done]]";
    let all = format!("{:?}", sidecar.run(prompt("env", words)).await.events);
    assert!(!all.contains(KEY) && !all.contains(PROVIDERS) && !all.contains("[redacted]"), "{all}");
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

/// Variables that stand in a sidecar's environment.
const CANARIES: [(&str, &str); 8] = [
    ("PLAIN_ONE", "plain"),
    ("CODEX_API_KEY", KEY),
    ("OTHER_PROVIDERS_KEY", PROVIDERS),
    ("https_proxy", "http://me:canary-of-a-proxy@127.0.0.1:1"),
    ("OWNERS_THING", "canary-of-nobody"),
    ("DB_PASSWORD", "canary-of-a-database"),
    ("CODEX_SIDECAR_TOKEN", "canary-of-a-token"),
    ("OTEL_EXPORTER_OTLP_HEADERS", "canary-of-telemetry"),
];

fn has_canary(text: &str) -> bool {
    text.contains("canary")
}

/// A sidecar with all of them, whose provider has its key in a variable.
async fn with_canaries(settings: &str, codex: &str, log: &str) -> Binary {
    let place = support::Place::new();
    let config = format!(
        "{codex}\n[model_providers.other]\nname = \"other\"\nbase_url = \"http://127.0.0.1:1\"\n\
         env_key = \"OTHER_PROVIDERS_KEY\"\n"
    );
    std::fs::write(place.codex_home().join("config.toml"), config).unwrap();
    let file = place.path().join("sidecar.toml");
    std::fs::write(&file, settings).unwrap();
    let sidecar = Binary::cold(place, |command| {
        command.envs(CANARIES).env("CODEX_SIDECAR_LOG", log).arg("--config").arg(&file);
    })
    .await;
    sidecar.ready().await;
    sidecar
}

const MODES: [pb::SandboxMode; 3] =
    [pb::SandboxMode::ReadOnly, pb::SandboxMode::WorkspaceWrite, pb::SandboxMode::DangerFullAccess];

fn in_sandbox(mode: pb::SandboxMode, context: &str, words: &str) -> pb::RunTurnRequest {
    with_options(prompt(context, words), |options| options.set_sandbox_mode(mode))
}

/// What its commands have printed.
fn outputs(told: &Told) -> Vec<String> {
    let commands = told.events.iter().filter_map(|event| match &event.event {
        Some(Event::ItemCompleted(pb::ItemCompleted { item: Some(item) })) => match &item.kind {
            Some(Kind::CommandExecution(command)) => Some(command.aggregated_output.clone()),
            _ => None,
        },
        _ => None,
    });
    commands.collect()
}

#[tokio::test]
async fn in_each_sandbox_a_commands_own_environment_holds_no_key_and_what_the_owner_lets_it_have() {
    let settings = "[worker]\ndisable_features = []\nenvironment = [\"OWNERS_*\", \"PLAIN_*\"]\n";
    let codex = "[shell_environment_policy]\nexclude = [\"PLAIN_*\"]\nset = { SETX = \"set-x\" }\n";
    let sidecar = with_canaries(settings, codex, "info").await;
    // A login shell, one that is none, a terminal, and one that begins with what the first has left.
    let words = r#"[[run env | sort]] [[tool exec_command {"cmd": "env", "login": false}]]
        [[tool exec_command {"cmd": "env", "tty": true}]] [[run env]] [[say done]]"#;
    for mode in MODES {
        let told = sidecar.run(in_sandbox(mode, &format!("{mode:?}"), words)).await;
        assert_eq!(told.final_response(), "done", "{told:#?}");
        let outputs = outputs(&told);
        assert_eq!(outputs.len(), 4, "{mode:?}: {told:#?}");
        for output in outputs {
            assert!(output.contains("OWNERS_THING=canary-of-nobody"), "{mode:?}: {output}");
            assert!(
                output.contains("SETX=set-x") && output.contains("HOME="),
                "{mode:?}: {output}"
            );
            let rest = output.replace("canary-of-nobody", "");
            // What was taken out of the output would have been there.
            assert!(!has_canary(&rest) && !rest.contains("[redacted]"), "{mode:?}: {output}");
            assert!(!rest.contains("PLAIN_"), "{mode:?}: {output}");
        }
    }
    sidecar.stop().await;
}

/// What a thread is loaded with takes the place of what its worker was started with.
#[tokio::test]
async fn no_override_of_a_tool_or_a_caller_shows_a_command_the_keys() {
    let settings = r#"
        [policy]
        config_keys = ["*"]
        [worker]
        environment = ["OWNERS_*", "PLAIN_*"]
        [tools.codex_more]
        config = { "shell_environment_policy.exclude" = ["OWNERS_*"] }
        [tools.codex_table]
        config = { shell_environment_policy = { inherit = "all", set = { SETX = "set-x" } } }
    "#;
    let codex = "[shell_environment_policy]\nexclude = [\"PLAIN_*\"]\n";
    let sidecar = with_canaries(settings, codex, "info").await;
    let printed = async |tool: &str, config: Value| {
        let request = in_sandbox(pb::SandboxMode::ReadOnly, "", "[[run env]] [[say done]]");
        let request = policy::configured(request, &config);
        let tool_name = tool.to_owned();
        let told = sidecar.run(pb::RunTurnRequest { ephemeral: true, tool_name, ..request }).await;
        let outputs = outputs(&told);
        assert_eq!(outputs.len(), 1, "{tool} {config}: {told:#?}");
        let output = outputs[0].replace("canary-of-nobody", "");
        assert!(output.contains("HOME="), "{tool} {config}: {output}");
        // What was taken out of the output would have been there.
        let has_key = has_canary(&output) || output.contains("[redacted]");
        assert!(!has_key && !output.contains("PLAIN_"), "{tool} {config}: {output}");
        output
    };
    assert!(printed("codex", json!({})).await.contains("OWNERS_THING="));
    assert!(!printed("codex_more", json!({})).await.contains("OWNERS_THING="));
    assert!(printed("codex_table", json!({})).await.contains("SETX=set-x"));
    for config in [
        json!({ "shell_environment_policy.exclude": [] }),
        json!({ "shell_environment_policy": {} }),
        json!({ "shell_environment_policy": { "exclude": [], "inherit": "all" } }),
    ] {
        printed("codex", config).await;
    }
    sidecar.stop().await;
}

#[tokio::test]
async fn in_a_sandbox_no_process_that_a_command_can_look_at_shows_a_key() {
    let sidecar = with_canaries("", "", "info").await;
    let words = "[[run cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>&1 | tr '\\0' '\\n'; \
                 ls -l /proc/[0-9]*/fd 2>&1; echo looked]] [[say done]]";
    for (mode, network) in [
        (pb::SandboxMode::ReadOnly, false),
        (pb::SandboxMode::WorkspaceWrite, false),
        (pb::SandboxMode::WorkspaceWrite, true),
    ] {
        let request = in_sandbox(mode, &format!("{mode:?}{network}"), words);
        let request = with_options(request, |options| {
            options.network_access_enabled = network.then_some(true);
        });
        let told = sidecar.run(request).await;
        let outputs = outputs(&told);
        let output = outputs.first().unwrap_or_else(|| panic!("{told:#?}"));
        if !output.contains("looked") {
            eprintln!("not tried, not permitted here: commands in a sandbox: {output}");
            continue;
        }
        assert!(!has_canary(output) && !output.contains("[redacted]"), "{mode:?}: {output}");
    }
    sidecar.stop().await;
}

fn read(path: impl AsRef<Path>) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).replace('\0', "\n")
}

/// Row 27, over every output that there is. Codex's own files (its rollouts) are Codex's: what a model or a
/// command says with a key in it stands there as it was said.
#[tokio::test]
async fn no_output_of_the_sidecar_and_no_process_of_its_own_shows_what_is_in_its_environment() {
    let sidecar = with_canaries("", "", "trace").await;
    let home = sidecar.place.codex_home();
    for (number, words) in [
        format!("[[fail server_error Incorrect API key provided: {KEY}]]"),
        format!("[[reason I know {KEY}]] [[say it is {KEY}, \"{PROVIDERS}\"]]"),
        format!("[[run echo {} | tr -d _]] [[say canary-of-a-proxy]]", KEY.replace("can", "c_an")),
        format!("[[run cat /proc/$PPID/environ | tr '\\0' '\\n']] [[say {KEY}]]"),
    ]
    .iter()
    .enumerate()
    {
        let request = in_sandbox(pb::SandboxMode::DangerFullAccess, &number.to_string(), words);
        let request = pb::RunTurnRequest { include_raw_events: true, ..request };
        let told = format!("{:?}", sidecar.run(request).await.events);
        assert!(!has_canary(&told), "{words}: {told}");
    }
    let refused = sidecar.refused(prompt("", KEY)).await;
    assert!(!has_canary(&format!("{refused:?}")), "{refused:?}");
    let info = format!("{:?} {:?}", sidecar.info().await, sidecar.workers().await);
    assert!(!has_canary(&info), "{info}");
    let turns = sidecar.codex().list_turns(pb::ListTurnsRequest::default()).await.unwrap();
    assert!(!has_canary(&format!("{turns:?}")), "{turns:?}");
    assert!(!has_canary(&sidecar.log()), "{}", sidecar.log());

    let running = processes::of_home(&home);
    let is_guard = |line: &str| line.contains(" __guard ");
    assert_eq!(running.iter().filter(|it| is_guard(&it.command)).count(), 1, "{running:?}");
    let own = processes::Process { pid: sidecar.pid(), command: "the sidecar".to_owned() };
    for processes::Process { pid, command } in running.iter().chain([&own]) {
        let of = |name: &str| read(format!("/proc/{pid}/{name}"));
        assert!(!has_canary(&of("cmdline")), "{command}: {}", of("cmdline"));
        let core = of("limits");
        let core = core.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        let core: Vec<&str> = core.split_whitespace().skip(4).take(2).collect();
        assert_eq!(core, ["0", "0"], "{command}");
        if *pid == own.pid {
            continue;
        }
        let environment = of("environ");
        let rest: Vec<&str> = environment.lines().filter(|line| has_canary(line)).collect();
        if is_guard(command) {
            assert!(rest.is_empty(), "{command}: {rest:?}");
            continue;
        }
        // The worker's own, and no more than it needs.
        let names = rest.iter().filter_map(|line| Some(line.split_once('=')?.0));
        let mut names: Vec<&str> = names.collect();
        names.sort_unstable();
        assert_eq!(names, ["OTHER_PROVIDERS_KEY", "https_proxy"], "{command}");
    }

    let mut export = command(&sidecar.place);
    export.args(["state", "export", "--addr", &sidecar.address]);
    let export = output(&mut export).await;
    assert!(export.status.success() && export.stdout.len() > 100, "{export:?}");
    let export = String::from_utf8_lossy(&export.stdout).into_owned();
    assert!(!has_canary(&export), "{export}");
    let place = sidecar.stop().await;
    let ledger = std::fs::read(place.codex_home().join("sidecar.redb")).unwrap();
    assert!(ledger.len() > 1000 && !ledger.windows(6).any(|bytes| bytes == b"canary"));
}
