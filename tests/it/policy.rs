//! What callers may ask for at most, against the real CLI: what would run programs, read files or send the
//! key away never reaches it.

use std::net::TcpListener;
use std::path::Path;

use codex_sidecar::parts::config::ToolDefaults;
use codex_sidecar::parts::model::options::{SandboxMode, ThreadOptions, WebSearchMode};
use codex_sidecar::parts::model::policy::Policy;
use codex_sidecar::pb;
use prost_types::value::Kind;
use serde_json::{Value, json};
use tonic::Code;

use crate::support::{Place, Refused, Sidecar, eventually, prompt, unsandboxed, with_options};

fn protobuf(value: &Value) -> prost_types::Value {
    let kind = match value {
        Value::Bool(value) => Kind::BoolValue(*value),
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap()),
        Value::Array(values) => Kind::ListValue(prost_types::ListValue {
            values: values.iter().map(protobuf).collect(),
        }),
        Value::Object(_) => Kind::StructValue(table(value)),
        Value::Null => panic!("TOML has none"),
    };
    prost_types::Value { kind: Some(kind) }
}

fn table(value: &Value) -> prost_types::Struct {
    let fields = value.as_object().unwrap().iter();
    prost_types::Struct { fields: fields.map(|(key, it)| (key.clone(), protobuf(it))).collect() }
}

/// The request with these overrides of Codex's configuration.
pub(crate) fn configured(request: pb::RunTurnRequest, config: &Value) -> pb::RunTurnRequest {
    with_options(request, |options| options.config = Some(table(config)))
}

fn assert_denied(refused: &Refused, fields: &[&str]) {
    refused.assert(Code::PermissionDenied, "POLICY_DENIED");
    assert_eq!(refused.field_paths(), fields, "{refused:#?}");
}

/// Where an attack would leave its mark.
struct Canary {
    listener: TcpListener,
    file: std::path::PathBuf,
}

impl Canary {
    fn new(place: &Place) -> Canary {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        Canary { listener, file: place.path().join("canary") }
    }

    /// Each attack, with the key that is denied of it.
    fn attacks(&self) -> Vec<(Value, &'static str)> {
        let url = format!("http://{}/v1", self.listener.local_addr().unwrap());
        let file = self.file.display().to_string();
        let touch = json!(["touch", file]);
        vec![
            (json!({ "openai_base_url": url }), "openai_base_url"),
            (json!({ "chatgpt_base_url": url }), "chatgpt_base_url"),
            (
                json!({ "model_providers.offline.base_url": url }),
                "model_providers.offline.base_url",
            ),
            (
                json!({ "model_providers": { "offline": { "base_url": url } } }),
                "model_providers.offline.base_url",
            ),
            (
                json!({ "model_providers.offline": { "auth": { "command": "touch" } } }),
                "model_providers.offline.auth.command",
            ),
            (json!({ "mcp_servers.x": { "command": "touch" } }), "mcp_servers.x.command"),
            (json!({ "mcp_servers": { "x": { "url": url } } }), "mcp_servers.x.url"),
            (json!({ "notify": touch }), "notify"),
            (json!({ "hooks": { "stop": touch } }), "hooks.stop"),
            (json!({ "otel": { "exporter": { "otlp-http": url } } }), "otel.exporter.otlp-http"),
            (json!({ "model_catalog_json": "/dev/zero" }), "model_catalog_json"),
            (json!({ "model_instructions_file": "/etc/passwd" }), "model_instructions_file"),
            (json!({ "shell_environment_policy": {} }), "shell_environment_policy"),
            (json!({ "features": { "goals": true } }), "features.goals"),
            (
                json!({ "permissions": { "mine": { "extends": ":danger-full-access" } } }),
                "permissions.mine.extends",
            ),
            (json!({ "profile": "mine" }), "profile"),
            (
                json!({ "approval_policy": { "granular": { "rules": true } } }),
                "approval_policy.granular.rules",
            ),
        ]
    }

    fn assert_untouched(&self) {
        assert!(!self.file.exists(), "a program ran");
        let error = self.listener.accept().expect_err("nobody connects").kind();
        assert_eq!(error, std::io::ErrorKind::WouldBlock);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_key_that_runs_a_program_or_leads_the_key_astray_reaches_codex() {
    let sidecar = Sidecar::start().await;
    let canary = Canary::new(&sidecar.place);
    let before = sidecar.model.requests();
    for (config, key) in canary.attacks() {
        let mut refused = Vec::new();
        refused.push(sidecar.refused(configured(prompt("a", "hello"), &config)).await);
        let ephemeral = pb::RunTurnRequest { ephemeral: true, ..prompt("", "hello") };
        refused.push(sidecar.refused(configured(ephemeral, &config)).await);
        for refused in refused {
            assert_denied(&refused, &[&format!("thread_options.config[{key:?}]")]);
            assert!(refused.message.contains("[policy] config_keys"), "{refused:#?}");
        }
    }
    assert_eq!(sidecar.model.requests(), before);
    sidecar.context("a").await.unwrap_err().assert(Code::NotFound, "CONTEXT_NOT_FOUND");
    // The worker is the same as ever.
    sidecar.say("a", "hello").await.completed();
    canary.assert_untouched();
    assert_eq!(sidecar.workers().await[0].restarts, 0);
    sidecar.stop().await;
}

/// So that the test above tries what would have worked.
#[tokio::test(flavor = "multi_thread")]
async fn where_all_keys_are_allowed_a_caller_runs_programs() {
    let sidecar = Sidecar::with(|config| config.policy.config_keys = vec!["*".to_owned()]).await;
    let canary = Canary::new(&sidecar.place);
    let file = canary.file.display().to_string();
    let attack = json!({ "notify": ["touch", file] });
    sidecar.run(configured(prompt("a", "hello"), &attack)).await.completed();
    eventually("the program's file", async || canary.file.exists().then_some(())).await;
    sidecar.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ceiling_holds_where_nobody_says_anything_and_the_configuration_says_more() {
    let place = Place::new();
    let wide = "sandbox_mode = \"danger-full-access\"\nweb_search = \"live\"\n";
    std::fs::write(place.codex_home().join("config.toml"), wide).unwrap();
    let sidecar = Sidecar::in_place(place, |_, config| {
        config.policy = Policy {
            max_sandbox_mode: SandboxMode::WorkspaceWrite,
            network_access: false,
            max_web_search: WebSearchMode::Cached,
            ..Policy::default()
        };
    })
    .await;
    let outside = sidecar.place.path().join("outside");
    let script = format!("[[run touch {}]] [[say done]]", outside.display());
    for _ in 0..2 {
        let told = sidecar.say("a", &script).await;
        assert_eq!(told.final_response(), "done");
        assert!(!outside.exists(), "a command left its sandbox");
        let tools = sidecar.shown("/tools", prompt("a", "")).await;
        assert!(!tools.to_string().contains("web_search"), "{tools}");
    }
    for (change, field) in [
        (
            Box::new(|options: &mut pb::ThreadOptions| {
                options.set_sandbox_mode(pb::SandboxMode::DangerFullAccess);
            }) as Box<dyn FnOnce(&mut pb::ThreadOptions)>,
            "thread_options.sandbox_mode",
        ),
        (
            Box::new(|options| options.config = Some(table(&json!({ "web_search": "live" })))),
            "thread_options.web_search_mode",
        ),
        (
            Box::new(|options| {
                options.config = Some(table(&json!({
                    "sandbox_workspace_write": { "network_access": true },
                })));
            }),
            "thread_options.network_access_enabled",
        ),
        (
            Box::new(|options| options.permission_profile = ":danger-full-access".to_owned()),
            "thread_options.permission_profile",
        ),
    ] {
        let refused = sidecar.refused(with_options(prompt("a", "hello"), change)).await;
        assert_denied(&refused, &[field]);
    }
    sidecar.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_have_the_variables_of_their_turn_and_no_others() {
    let sidecar = Sidecar::with(|config| {
        config.policy.environment = vec!["SET_*".to_owned()];
        let own = json!({ "OWN": "tool", "SET_Y": "tool" });
        let thread_options = ThreadOptions {
            environment: serde_json::from_value(own).unwrap(),
            ..ThreadOptions::default()
        };
        let defaults = ToolDefaults { thread_options, ..ToolDefaults::default() };
        config.tools.insert("codex_set".to_owned(), defaults);
    })
    .await;
    let printed = async |tool: &str, variables: &[(&str, &str)]| {
        let script = "[[run echo \"x=$SET_X y=$SET_Y own=$OWN key=${CODEX_HOME:+set}\"]]";
        let request = with_options(unsandboxed("a", script), |options| {
            let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
            options.environment = variables.iter().map(own).collect();
        });
        let request = pb::RunTurnRequest {
            tool_name: tool.to_owned(),
            thread_id_key: "k".to_owned(),
            ..request
        };
        let told = sidecar.run(request).await;
        let output = told.command().aggregated_output.clone();
        output.lines().find(|line| line.starts_with("x=")).unwrap().to_owned()
    };
    // One after the other on one thread, which stays loaded.
    for (tool, variables, said) in [
        ("codex", &[("SET_X", "one")][..], "x=one y= own="),
        ("codex", &[("SET_X", "a \"b\" $c\n"), ("SET_Y", "")], "x=a \"b\" $c"),
        ("codex", &[], "x= y= own="),
        ("codex_set", &[], "x= y=tool own=tool"),
        ("codex_set", &[("SET_Y", "mine")], "x= y=mine own=tool"),
        ("codex", &[], "x= y= own="),
    ] {
        let line = printed(tool, variables).await;
        assert!(line.starts_with(said), "{variables:?}: {line}");
    }
    for name in ["OWN", "PATH", "CODEX_API_KEY"] {
        let request = with_options(prompt("a", "hello"), |options| {
            options.environment = [(name.to_owned(), "canary".to_owned())].into();
        });
        let refused = sidecar.refused(request).await;
        assert_denied(&refused, &[&format!("thread_options.environment[{name:?}]")]);
    }
    sidecar.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn turns_stay_in_the_roots() {
    let place = Place::new();
    let roots = vec![place.work()];
    let sidecar = Sidecar::in_place(place, |_, config| config.policy.roots = Some(roots)).await;
    let work = sidecar.place.work();
    std::fs::create_dir(work.join("sub")).unwrap();
    std::os::unix::fs::symlink("sub", work.join("link")).unwrap();
    std::os::unix::fs::symlink("/", work.join("out")).unwrap();
    let at = |path: &Path| {
        with_options(prompt("a", "[[run pwd]]"), |options| {
            options.working_directory = Some(path.display().to_string());
            options.skip_git_repo_check = Some(true);
        })
    };
    let told = sidecar.run(at(&work.join("link"))).await;
    assert!(told.command().working_directory.ends_with("/sub"), "{:?}", told.command());
    let mut messages = Vec::new();
    for path in [work.join("out"), work.join("out/none"), sidecar.place.path().to_owned()] {
        let refused = sidecar.refused_as_is(at(&path)).await;
        assert_denied(&refused, &["thread_options.working_directory"]);
        let path = format!("{} ", path.display());
        messages.push(refused.message.replacen(&path, "PATH ", 1));
    }
    // With all else that the policy denies.
    let notifying = configured(at(&work.join("out")), &json!({ "notify": ["x"] }));
    let refused = sidecar.refused_as_is(notifying).await;
    assert_denied(
        &refused,
        &["thread_options.config[\"notify\"]", "thread_options.working_directory"],
    );
    messages.dedup();
    assert_eq!(messages.len(), 1, "they tell what is there: {messages:#?}");
    sidecar.stop().await;
}
