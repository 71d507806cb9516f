//! Tests of the configuration as a whole.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser as _;
use secrecy::ExposeSecret as _;

use super::*;
use crate::model::options::{
    ApprovalPolicy, ApprovalsReviewer, DynamicTool, Environment, ReasoningSummary, SandboxMode,
    ThreadOptions, WebSearchMode,
};
use crate::worker::WorkerLimits;

#[derive(clap::Parser)]
struct Line {
    #[command(flatten)]
    serve: ServeArgs,
}

fn args(line: &[&str]) -> ServeArgs {
    Line::try_parse_from(std::iter::once("serve").chain(line.iter().copied())).unwrap().serve
}

fn load(line: &[&str], variables: &[(&str, &str)]) -> Result<(Config, Origins), ConfigErrors> {
    let variables: HashMap<String, OsString> =
        variables.iter().map(|(name, value)| (name.to_string(), value.into())).collect();
    Config::load_with_origins(args(line), &|name| variables.get(name).cloned())
}

fn file(text: &str) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sidecar.toml");
    std::fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (directory, path)
}

#[test]
fn a_flag_beats_the_environment_beats_the_file_beats_the_default() {
    let (directory, path) = file(
        "workers = 5\ndrain_grace = \"5s\"\nlog = \"warn\"\ncodex_home = \"home\"\n\
         [limits]\nmax_line_bytes = \"1MiB\"\nmax_message_bytes = \"2 MB\"\n",
    );
    let variables = [
        ("CODEX_SIDECAR_CONFIG", path.as_str()),
        ("CODEX_SIDECAR_WORKERS", "6"),
        ("CODEX_SIDECAR_DRAIN_GRACE", "6s"),
        ("CODEX_SIDECAR_LISTEN", "[::1]:1, localhost:2,unix:/run/x.sock"),
        ("CODEX_SIDECAR_LOG_FORMAT", " "),
        ("CODEX_SIDECAR_OFFLINE_MODEL", "true"),
        ("CODEX_SIDECAR_MAX_LINE_BYTES", "65536"),
        ("CODEX_API_KEY", "  "),
        ("OPENAI_API_KEY", "sk-second"),
    ];
    let (config, origins) = load(&["--workers", "7", "--offline-model=false"], &variables).unwrap();

    assert_eq!(config.workers, 7);
    assert_eq!(config.drain_grace, Duration::from_secs(6));
    assert_eq!(config.log, "warn");
    assert!(!config.offline_model);
    // A relative path of the file starts at the file.
    assert_eq!(config.codex_home, directory.path().join("home"));
    assert_eq!(config.worker.limits.peer.max_line_bytes, 64 << 10);
    assert_eq!(config.requests.max_message_bytes, 2_000_000);
    assert_eq!(config.limits.max_running_turns, 64);
    let listen: Vec<String> = config.listen.iter().map(ToString::to_string).collect();
    assert_eq!(listen, ["[::1]:1", "localhost:2", "unix:/run/x.sock"]);
    let key = config.api_key.unwrap();
    assert_eq!((&*key.source, key.secret.expose_secret()), ("OPENAI_API_KEY", "sk-second"));
    assert_eq!(origins["workers"].to_string(), "--workers");
    assert_eq!(origins["drain_grace"].to_string(), "CODEX_SIDECAR_DRAIN_GRACE");
    assert_eq!(origins["log"].to_string(), format!("{path}: log"));
    assert!(!origins.contains_key("limits.max_running_turns"));
}

#[test]
fn every_fault_of_every_source_is_told_at_once() {
    let (_directory, path) = file(
        r#"
        wrokers = 3
        log = "inof"
        pool = 3
        [limits]
        max_running_turns = "64"
        max_line_bytes = "65MiB"
        nonsense_beyond_repair = 1
        [timeouts]
        turn = 30
        idle = "2h"
        max_idle = "1h"
        [tools.codex_engineer]
        sandbox_mode = "full"
        working_directory = "relative"
        modle = "gpt"
        thread_id = "abc"
        answer_timeout = "0s"
        max_total_tokens = 0
        [tools.claude]
        [tools."codex_a-b"]
        "#,
    );
    let variables = [
        ("CODEX_SIDECAR_WORKERS", "0"),
        ("CODEX_SIDECAR_DRAIN_GRACE", "30"),
        ("CODEX_API_KEY", "sk canary"),
    ];
    let line =
        ["--config", &path, "--workers", "many", "--listen", "nowhere", "--listen", "unix:/x"];
    let errors = load(&line, &variables).unwrap_err();
    let text = errors.to_string();
    assert!(!text.contains("canary"), "{text}");

    let expected = [
        "--listen: \"nowhere\", \"unix:/x\": \"nowhere\": the port is missing; wants HOST:PORT or unix:PATH",
        "--workers: \"many\": wants a whole number from 1 to 64",
        "CODEX_SIDECAR_WORKERS: \"0\": wants a whole number from 1 to 64",
        "CODEX_SIDECAR_DRAIN_GRACE: \"30\": wants a duration from 0s to 365days",
        "FILE: log: \"inof\": wants a level",
        "FILE: limits.max_running_turns: \"64\": wants a whole number from 1 to 1000000",
        "FILE: limits.max_line_bytes: \"65MiB\": wants a number of bytes from 64KiB to 64MiB",
        "FILE: timeouts.turn: 30: wants a duration from 1ms",
        "FILE: wrokers: unknown key; did you mean workers?",
        "FILE: pool: 3: wants a table",
        "FILE: limits.nonsense_beyond_repair: unknown key; known are context_ttl, ",
        "FILE: tools.codex_engineer.sandbox_mode: \"full\": unknown variant `full`",
        "FILE: tools.codex_engineer.working_directory: \"relative\": wants absolute paths",
        "FILE: tools.codex_engineer.modle: unknown key; did you mean model?",
        "FILE: tools.codex_engineer.thread_id: \"abc\": wants a thread id, a UUID",
        "FILE: tools.codex_engineer.answer_timeout: \"0s\": wants a duration from 1ms",
        "FILE: tools.codex_engineer.max_total_tokens: 0: wants a whole number of tokens from 1",
        "FILE: tools.claude: \"claude\": a tool is called codex, or codex_ and a suffix",
        "FILE: tools.codex_a-b: \"codex_a-b\": the suffix of a tool's name wants",
        "CODEX_API_KEY: wants a key of printable ASCII characters without spaces",
        "FILE: timeouts.idle: 2h: wants at most timeouts.max_idle, which is 1h",
    ];
    for expected in expected {
        let expected = expected.replace("FILE", &path);
        assert!(text.lines().any(|line| line.starts_with(&expected)), "no {expected:?} in\n{text}");
    }
    assert_eq!(errors.0.len(), expected.len(), "{text}");
}

#[test]
fn half_of_what_tls_needs_is_refused_with_the_other_half() {
    for (line, expected) in [
        (["--tls-cert", "/c"], "--tls-cert: /c: needs tls_key, too (--tls-key)"),
        (["--tls-key", "/k"], "--tls-key: /k: needs tls_cert, too (--tls-cert)"),
        (["--tls-client-ca", "/a"], "--tls-client-ca: /a: needs tls_cert, too (--tls-cert)"),
    ] {
        let told = load(&line, &[]).unwrap_err().to_string();
        assert!(told.starts_with(expected) && told.lines().count() == 1, "{told}");
    }
    let (_directory, path) =
        file("client_names = [\"a\"]\n[tenants.b]\ncodex_home = \"/b\"\nclient_names = [\"b\"]\n");
    let told = load(&["--config", &path], &[]).unwrap_err().to_string();
    let [own, tenants] = told.lines().collect::<Vec<_>>().try_into().unwrap();
    assert!(own.contains(": client_names: needs tls_client_ca"), "{told}");
    assert!(tenants.contains("tenants.b.client_names: needs tls_client_ca"), "{told}");
    load(&["--tls-cert", "/c", "--tls-key", "/k"], &[("CODEX_SIDECAR_TLS_CLIENT_CA", "/a")])
        .unwrap();
}

#[test]
fn a_file_that_is_missing_or_broken_hides_no_other_fault() {
    let (_directory, path) = file("workers = 3\nlog = [\n");
    let broken = load(&["--config", &path, "--workers", "0"], &[]).unwrap_err().to_string();
    assert!(broken.contains("is not TOML in line"), "{broken}");
    assert_eq!(broken.lines().count(), 2, "{broken}");
    let missing =
        load(&["--workers", "0"], &[("CODEX_SIDECAR_CONFIG", "/no/such")]).unwrap_err().to_string();
    assert!(missing.starts_with("CODEX_SIDECAR_CONFIG: /no/such: can't be read: "), "{missing}");
    assert_eq!(missing.lines().count(), 2, "{missing}");
}

/// A file that says everything that a file can say.
const FULL: &str = r#"
    listen = ["0.0.0.0:1", "unix:/run/codex.sock"]
    insecure_listen = true
    token_file = "tokens"
    tls_cert = "/tls/cert.pem"
    tls_key = "/tls/key.pem"
    tls_client_ca = "/tls/ca.pem"
    client_names = ["build.example", "spiffe://example/build"]
    unix_mode = "0660"
    unix_group = "codex"
    unix_allow_uids = [1000]
    unix_allow_gids = []
    codex_path = "/opt/codex"
    codex_home = "/var/lib/codex"
    workers = 3
    offline_model = true
    drain_grace = "0s"
    log_format = "json"
    log = "info,codex_sidecar::pool=debug"
    [limits]
    max_running_turns = 1
    max_running_turns_per_tenant = 2
    max_waiting_turns = 3
    max_waiting_turns_per_context = 4
    max_input_characters = 5
    max_message_bytes = 100001
    max_line_bytes = "128KiB"
    max_connections = 6
    max_handshakes = 5
    max_streams_per_connection = 7
    max_readers = 8
    max_readers_per_turn = 9
    max_contexts = 10
    context_ttl = "11s"
    evict_contexts = true
    turns_per_minute = 12
    tokens_per_day = 1000000
    [retention]
    max_bytes_per_turn = "1MiB"
    max_bytes = "1GiB"
    after_end = "1h 30m"
    [timeouts]
    turn = "1s"
    idle = "2s"
    tool = "0"
    answer = "3s"
    max_turn = "4s"
    max_idle = "5s"
    max_answer = "6s"
    interrupt_grace = "7s"
    worker_start = "8s"
    worker_wait = "9s"
    handshake = "11s"
    request = "12s"
    [pool]
    max_turns_per_worker = 1
    max_age = "1day"
    max_resident_bytes = "1GiB"
    max_idle_threads = 0
    liveness_interval = "1s"
    liveness_timeout = "2s"
    backoff_initial = "3s"
    backoff_max = "4s"
    breaker_failures = 5
    breaker_open = "6s"
    start_spacing = "0s"
    stop_when_idle = "10m"
    write_timeout = "7s"
    [worker]
    disable_features = ["apps", "plugins"]
    [worker.config]
    model_provider = "x"
    "model_providers.x.base_url" = "http://127.0.0.1:1/v1"
    model_providers.y = { request_max_retries = 0, env_key = "Y_KEY" }
    notify = ["a", "multi\nline"]
    [tools.codex]
    [tools."codex_a b\n"]
    thread_id_key = "key"
    model = "gpt"
    [tools.codex_engineer]
    model = "gpt"
    sandbox_mode = "workspace-write"
    working_directory = "/work"
    skip_git_repo_check = true
    model_reasoning_effort = "high"
    network_access_enabled = true
    web_search_mode = "live"
    web_search_enabled = false
    approval_policy = "on-request"
    additional_directories = ["/a", "/b"]
    base_instructions = "two\nlines, \"quoted\" # no comment"
    developer_instructions = ""
    config = { a = { b = 1.5 }, c = [1, 2] }
    dynamic_tools = [{ name = "t", description = "d", input_schema = { type = "object" } }]
    thread_id = "0199A213-81C0-7800-8AA1-BBAB2A035A53"
    output_schema = '{"type": "object", "properties": {"a": {"enum": [null, 1]}}}'
    idle_timeout = "1s"
    turn_timeout = "2s"
    answer_timeout = "3s"
    max_total_tokens = 100000
    [tools.codex_engineer.policy]
    max_sandbox_mode = "workspace-write"
    approvals_reviewers = ["user"]
    config_keys = ["features.a"]
    [policy]
    permission_profiles = ["mine", "team-*"]
    approval_policies = ["on-request", "never"]
    max_web_search = "live"
    models = ["*"]
    roots = ["/", "relative"]
    config_keys = ["features.*"]
    environment = ["LC_*"]
    images = "data"
    [tenants.research.policy]
    network_access = false
    [tenants.research]
    codex_home = "research"
    workers = 1
    token_file = "research.tokens"
    client_names = ["research.internal", "spiffe://a/research"]
    unix_uids = [1001]
    unix_gids = []
    api_key_env = "RESEARCH_KEY"
    cpu_weight = 50
    [tenants.research.limits]
    max_running_turns = 9
    [tenants.research.worker.config]
    model = "other"
    [tenants.research.tools.codex_engineer]
    model = "small"
    [tenants.b-2]
    codex_home = "/b"
    [tenants.b-2.state]
    path = "memory"
"#;

#[test]
fn what_print_config_prints_loads_to_the_same_configuration() {
    let (_directory, path) = file(FULL);
    for line in [vec![], vec!["--config", &path]] {
        let key = ("RESEARCH_KEY", "sk-canary");
        let (config, origins) = load(&line, &[("HOME", "/home/x"), key]).unwrap();
        let printed = config.to_toml(&origins);
        assert!(!printed.contains("canary"));
        let (_directory, path) = file(&printed);
        let reloaded = load(&["--config", &path], &[("HOME", "/home/y"), key]);
        assert_eq!(reloaded.as_ref().map(|(config, _)| config), Ok(&config), "{printed}");
    }
    let (config, _) = load(&["--config", &path], &[("RESEARCH_KEY", "x")]).unwrap();
    let tool = ToolDefaults::of(&config.tools, "codex_engineer");
    assert_eq!(tool.thread_id.as_deref(), Some("0199a213-81c0-7800-8aa1-bbab2a035a53"));
    assert_eq!(tool.thread_options.web_search_mode, Some(WebSearchMode::Live));
    assert_eq!(tool.thread_options.web_search_enabled, Some(false));
    assert_eq!(ToolDefaults::of(&config.tools, "codex_unheard_of"), ToolDefaults::default());
    assert_eq!(
        config.worker.config_overrides(),
        [
            "model_provider=\"x\"",
            "model_providers.y.env_key=\"Y_KEY\"",
            "model_providers.y.request_max_retries=0",
            "model_providers.x.base_url=\"http://127.0.0.1:1/v1\"",
            "notify=[\"a\", \"\"\"\nmulti\nline\"\"\"]",
            "features.apps=false",
            "features.plugins=false",
            "features.goals=false",
        ]
    );
}

#[test]
fn a_key_reaches_its_part_from_whatever_section() {
    let (directory, path) = file(FULL);
    let (config, _) = load(&["--config", &path], &[("RESEARCH_KEY", "x")]).unwrap();
    let seconds = Duration::from_secs;
    assert_eq!(
        config.limits,
        AdmissionLimits {
            max_running_turns: 1,
            max_running_turns_per_tenant: 2,
            max_waiting_turns: 3,
            max_waiting_turns_per_context: 4,
        }
    );
    let requests = RequestLimits { max_input_characters: 5, max_message_bytes: 100_001 };
    assert_eq!(config.requests, requests);
    let connections = ConnectionLimits {
        max_connections: 6,
        max_handshakes: 5,
        max_streams_per_connection: 7,
        handshake_timeout: seconds(11),
        request_timeout: seconds(12),
    };
    assert_eq!(config.connections, connections);
    let contexts =
        ContextLimits { max_contexts: 10, context_ttl: Some(seconds(11)), evict_contexts: true };
    assert_eq!(config.contexts, contexts);
    assert_eq!(config.readers, ReaderLimits { max_readers: 8, max_readers_per_turn: 9 });
    assert_eq!(
        config.timeouts,
        Timeouts {
            turn: Some(seconds(1)),
            idle: Some(seconds(2)),
            tool: None,
            answer: Some(seconds(3)),
            max_turn: Some(seconds(4)),
            max_idle: Some(seconds(5)),
            max_answer: Some(seconds(6)),
            interrupt_grace: seconds(7),
        }
    );
    let sockets = UnixSockets {
        mode: 0o660,
        group: Some("codex".to_owned()),
        allow_uids: Some(vec![1000]),
        allow_gids: Some(Vec::new()),
    };
    assert_eq!((config.insecure_listen, config.unix_sockets), (true, sockets));
    assert_eq!(config.token_file, Some(directory.path().join("tokens")));
    let names = ["build.example", "spiffe://example/build"].map(str::to_owned);
    assert_eq!(config.client_names, Some(names.to_vec()));
    let tls = TlsFiles {
        cert: Some("/tls/cert.pem".into()),
        key: Some("/tls/key.pem".into()),
        client_ca: Some("/tls/ca.pem".into()),
    };
    assert_eq!(config.tls, tls);
    let quotas = QuotaLimits { turns_per_minute: Some(12), tokens_per_day: Some(1_000_000) };
    assert_eq!(config.quotas, quotas);
    assert_eq!(config.pool.worker_wait, seconds(9));
    assert_eq!(config.pool.stop_when_idle, Some(seconds(600)));
    let WorkerLimits { peer, start_timeout, .. } = config.worker.limits;
    assert_eq!(start_timeout, seconds(8));
    assert_eq!((peer.max_line_bytes, peer.write_timeout), (128 << 10, seconds(7)));
}

#[test]
fn a_key_of_the_clis_configuration_leads_no_deeper_than_codex_goes() {
    let key = |parts: usize| ["a"; 1].repeat(parts).join(".");
    for (at, table) in [("worker.config", "worker"), ("tools.codex.config", "tools.codex")] {
        let with = |key: &str, value: &str| {
            let text = format!("[{table}]\nconfig = {{ \"{key}\" = {value} }}");
            let (_directory, path) = file(&text);
            load(&["--config", &path], &[]).map(drop)
        };
        with(&key(100), "1").unwrap();
        with(&key(98), "{ b = [1] }").unwrap();
        for (key, value) in [(key(101), "1"), (key(99), "{ b = [1] }"), (key(10_000), "1")] {
            let ConfigErrors(faults) = with(&key, value).unwrap_err();
            let [fault] = &*faults else { panic!("{faults:?}") };
            assert!(fault.origin.ends_with(at), "{fault}");
            assert!(fault.problem.contains("levels deep") && fault.problem.len() < 400, "{fault}");
        }
    }
}

#[test]
fn what_the_worker_config_says_of_a_feature_beats_every_other_word() {
    let overrides = |text: &str| {
        let (_directory, path) = file(text);
        let (config, _) = load(&["--config", &path], &[]).unwrap();
        config.worker.config_overrides()
    };
    let off = ["features.shell_snapshot=false", "features.goals=false"];
    assert_eq!(overrides(""), off);
    assert_eq!(overrides("[worker]\ndisable_features = []"), [off[1]]);
    assert_eq!(overrides("[worker]\ndisable_features = [\"goals\"]"), [off[1]]);
    // As a dotted key, and as a table; also against the list that names it.
    for (config, beaten) in [
        ("config = { \"features.goals\" = true }", vec!["features.goals=true", off[0]]),
        ("config = { features = { goals = true } }", vec!["features.goals=true", off[0]]),
        (
            "disable_features = [\"goals\", \"apps\"]\nconfig = { \"features.goals\" = true }",
            vec!["features.goals=true", "features.apps=false"],
        ),
        (
            "config = { \"features.shell_snapshot\" = true }",
            vec!["features.shell_snapshot=true", off[1]],
        ),
    ] {
        assert_eq!(overrides(&format!("[worker]\n{config}")), beaten, "{config}");
    }
}

#[test]
fn no_secret_is_printed_or_debugged() {
    let (_directory, path) = file(
        "[worker.config]\nmodel_providers.x.experimental_bearer_token = \"canary-1\"\n\
         model_providers.x.http_headers = { X-Whatever = \"canary-2\" }\n\
         mcp_servers.y.env = { MY_API_KEY = \"canary-3\" }\nmodel_auto_compact_token_limit = 77\n\
         [tools.codex]\nconfig = { \"a.b_secret\" = \"canary-4\" }\n",
    );
    let variables = [("CODEX_API_KEY", "canary-5")];
    let (config, origins) = load(&["--config", &path], &variables).unwrap();
    let printed = config.to_toml(&origins);
    assert!(!printed.contains("canary"), "{printed}");
    assert!(printed.contains("key: [redacted], from CODEX_API_KEY"), "{printed}");
    assert!(printed.contains("experimental_bearer_token = \"[redacted]\""), "{printed}");
    assert!(printed.contains("model_auto_compact_token_limit = 77"), "{printed}");
    let worker_and_key = format!("{:?} {:?}", config.worker, config.api_key);
    assert!(!worker_and_key.contains("canary"), "{worker_and_key}");
}

#[test]
fn the_list_of_thread_option_keys_is_complete() {
    let all = ThreadOptions {
        model: Some(String::new()),
        sandbox_mode: Some(SandboxMode::ReadOnly),
        working_directory: Some(PathBuf::new()),
        skip_git_repo_check: Some(true),
        model_reasoning_effort: Some(String::new()),
        network_access_enabled: Some(true),
        web_search_mode: Some(WebSearchMode::Live),
        web_search_enabled: Some(true),
        approval_policy: Some(ApprovalPolicy::Never),
        additional_directories: Some(Vec::new()),
        base_instructions: Some(String::new()),
        developer_instructions: Some(String::new()),
        config: Some(serde_json::Map::new()),
        dynamic_tools: Some(Vec::<DynamicTool>::new()),
        thread_source: Some(String::new()),
        permission_profile: Some(String::new()),
        reasoning_summary: Some(ReasoningSummary::Auto),
        approvals_reviewer: Some(ApprovalsReviewer::AutoReview),
        service_tier: Some(String::new()),
        environment: Some(Environment::default()),
    };
    let json = serde_json::to_value(all).unwrap();
    let keys: BTreeSet<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, BTreeSet::from(tools::THREAD_OPTION_KEYS));
}

#[test]
fn a_tool_has_a_sandbox_or_a_profile() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sidecar.toml");
    let with = |tool: &str| {
        std::fs::write(&path, format!("[tools.codex]\n{tool}")).unwrap();
        load(&["--config", &path.display().to_string()], &[])
    };
    let (config, origins) = with("permission_profile = \"mine\"\n").unwrap();
    let options = &config.tools["codex"].thread_options;
    assert_eq!(options.permission_profile.as_deref(), Some("mine"));
    assert!(config.to_toml(&origins).contains("permission_profile = \"mine\""));
    let faults = with("permission_profile = \"mine\"\nsandbox_mode = \"read-only\"\n").unwrap_err();
    let told = format!("{faults:?}");
    assert!(told.contains("permission_profile") && told.contains("sandbox_mode"), "{told}");
    assert!(with("permission_profile = \" \"\n").is_err());
}

#[test]
fn the_readmes_example_can_be_loaded() {
    let readme = include_str!("../../README.md");
    let (_, example) = readme.split_once("\n```toml\nworkers").unwrap();
    let (example, _) = example.split_once("\n```\n").unwrap();
    let (_directory, path) = file(&format!("workers{example}"));
    let (config, _) = load(&["--config", &path], &[]).unwrap();
    assert_eq!(config.connections.max_connections, 1024);
    assert!(config.contexts.evict_contexts && config.tools.contains_key("codex_engineer"));
}

#[test]
fn a_tenant_has_the_top_levels_settings_with_its_own_over_them_and_nothing_that_makes_it_another() {
    let (directory, path) = file(FULL);
    let variables = [("RESEARCH_KEY", "sk-research"), ("CODEX_API_KEY", "sk-top")];
    let line = ["--config", &path, "--workers", "7"];
    let (config, origins) = load(&line, &variables).unwrap();
    let TenantConfig { config: research, credentials, cpu_weight, .. } =
        &config.tenants["research"];
    assert_eq!(research.codex_home, directory.path().join("research"));
    // Its own beats a flag of the top level's; what it does not say is the top level's, flag or not.
    assert_eq!((research.workers, config.tenants["b-2"].config.workers), (1, 7));
    assert_eq!(research.limits.max_running_turns, 9);
    assert_eq!(research.limits.max_waiting_turns, config.limits.max_waiting_turns);
    assert_eq!(research.timeouts, config.timeouts);
    assert_eq!(research.worker.config.keys().collect::<Vec<_>>(), ["model"]);
    assert_eq!(research.worker.disable_features, config.worker.disable_features);
    assert_eq!(research.tools.keys().collect::<Vec<_>>(), ["codex_engineer"]);
    assert_eq!(research.tools["codex_engineer"].thread_options.sandbox_mode, None);
    assert_eq!(research.state_file(), Some(directory.path().join("research/sidecar.redb")));
    let key = research.api_key.as_ref().unwrap();
    assert_eq!((&*key.source, key.secret.expose_secret()), ("RESEARCH_KEY", "sk-research"));
    assert_eq!(*cpu_weight, Some(50));
    let names = ["research.internal", "spiffe://a/research"].map(str::to_owned).to_vec();
    let token_file = Some(directory.path().join("research.tokens"));
    let unix_gids = Some(Vec::new());
    let all = Credentials {
        token_file,
        client_names: Some(names),
        unix_uids: Some(vec![1001]),
        unix_gids,
    };
    assert_eq!(*credentials, all);
    let second = &config.tenants["b-2"];
    assert_eq!(second.credentials, Credentials::default());
    assert_eq!((&second.config.api_key, second.config.state_file()), (&None, None));
    // Nobody's workers get a key of another.
    let taken = |config: &Config| {
        let taken = config.worker_env.iter().filter(|(_, value)| value.is_none());
        taken.map(|(name, _)| name.to_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(taken(&config), ["RESEARCH_KEY"]);
    for tenant in config.tenants.values() {
        let theirs = ["RESEARCH_KEY", "CODEX_API_KEY", "OPENAI_API_KEY", "CODEX_ACCESS_TOKEN"];
        assert_eq!(taken(&tenant.config), theirs);
    }
    let printed = config.to_toml(&origins);
    let has = |line: &str| assert!(printed.lines().any(|other| other == line), "{line}\n{printed}");
    has("workers = 7  # --workers");
    has(&format!("workers = 1  # {path}: tenants.research.workers"));
    has(&format!("max_running_turns = 9  # {path}: tenants.research.limits.max_running_turns"));
    has("# key: [redacted], from RESEARCH_KEY");
}

#[test]
fn the_workers_of_a_tenant_are_not_kept_for_ever_unless_it_is_said() {
    let stop_when_idle = |top: &str, own: &str| {
        let text = format!("codex_home = \"/t\"\n{top}\n[tenants.a]\ncodex_home = \"/a\"\n{own}");
        let (_directory, path) = file(&text);
        let (config, _) = load(&["--config", &path], &[]).unwrap();
        let own = config.tenants["a"].config.pool.stop_when_idle;
        (config.pool.stop_when_idle, own)
    };
    let minutes = |minutes: u64| Some(Duration::from_secs(minutes * 60));
    assert_eq!(stop_when_idle("", ""), (None, minutes(10)));
    assert_eq!(stop_when_idle("pool.stop_when_idle = \"5m\"", ""), (minutes(5), minutes(5)));
    assert_eq!(stop_when_idle("pool.stop_when_idle = \"0\"", ""), (None, None));
    assert_eq!(stop_when_idle("", "pool.stop_when_idle = \"0\""), (None, None));
}

#[test]
fn every_fault_of_every_tenant_is_told_at_once_and_what_they_inherit_once() {
    use std::os::unix::fs::PermissionsExt as _;
    let (directory, path) = file(
        r#"
        codex_home = "top"
        [timeouts]
        turn = "2h"
        max_turn = "1h"
        [tenants]
        five = 5
        [tenants.a]
        codex_home = "a"
        workers = 0
        wrokers = 1
        listen = ["127.0.0.1:1"]
        tokenfile = "x"
        pool = 3
        api_key_file = "open.key"
        unix_uids = [7]
        [tenants.a.limits]
        max_connections = 5
        max_running_turnz = 5
        [tenants.a.tools.codex]
        modle = "gpt"
        [tenants.b]
        codex_home = "sub/../a"
        api_key_env = "NOT_THERE"
        unix_uids = [7]
        [tenants.b.retention]
        max_bytes = "64KiB"
        [tenants.c]
        codex_home = "link"
        cpu_weight = 0
        api_key_file = "open.key"
        api_key_env = "KEY"
        [tenants.d]
        [tenants.d.tenants.e]
        [tenants.e]
        codex_home = "e"
        state.path = "top/sidecar.redb"
        [tenants.default]
        codex_home = "top"
        [tenants."A b"]
        codex_home = "blank"
        token_file = "a.tokens"
        unix_uids = [7]
        [tenants.f]
        codex_home = "top/f"
        token_file = "sub/../a.tokens"
        "#,
    );
    let at = directory.path();
    for name in ["top", "a", "sub"] {
        std::fs::create_dir(at.join(name)).unwrap();
    }
    std::os::unix::fs::symlink(at.join("top"), at.join("link")).unwrap();
    std::fs::write(at.join("open.key"), "sk-canary").unwrap();
    std::fs::set_permissions(at.join("open.key"), std::fs::Permissions::from_mode(0o640)).unwrap();
    let errors = load(&["--config", &path], &[("KEY", "x")]).unwrap_err();
    let text = errors.to_string();
    assert!(!text.contains("canary"), "{text}");
    let expected = [
        "FILE: timeouts.turn: 2h: wants at most timeouts.max_turn, which is 1h",
        "FILE: tenants.five: 5: wants a table",
        "FILE: tenants.a.workers: 0: wants a whole number from 1 to 64",
        "FILE: tenants.a.wrokers: unknown key; did you mean workers?",
        "FILE: tenants.a.listen: [\"127.0.0.1:1\"]: is the sidecar's and no tenant's: say listen at",
        "FILE: tenants.a.tokenfile: unknown key; did you mean token_file?",
        "FILE: tenants.a.pool: 3: wants a table",
        "FILE: tenants.a.api_key_file: DIR/open.key: has the mode 0640, so that others can read it; it may have 0600 at most: chmod 0600 it",
        "FILE: tenants.a.limits.max_connections: 5: is the sidecar's and no tenant's: say limits.max_conn",
        "FILE: tenants.a.limits.max_running_turnz: unknown key; did you mean max_running_turns?",
        "FILE: tenants.a.tools.codex.modle: unknown key; did you mean model?",
        "FILE: tenants.b.codex_home: DIR/sub/../a: is the CODEX_HOME of tenants.a, too; give each its own",
        "FILE: tenants.b.api_key_env: NOT_THERE: is not set",
        "FILE: tenants.a.unix_uids: 7: is tenants.A b's, too; a credential is one tenant's",
        "FILE: tenants.b.retention.max_bytes: 65536: wants at least retention.max_bytes_per_turn",
        "FILE: tenants.c.codex_home: DIR/link: is the CODEX_HOME of the top level, too",
        "FILE: tenants.c.cpu_weight: 0: wants a whole number from 1 to 10000",
        "FILE: tenants.c.api_key_env: KEY: stands beside api_key_file; give one of the two",
        "FILE: tenants.d.codex_home: is missing: each tenant has a CODEX_HOME of its own",
        "FILE: tenants.d.tenants: unknown key; ",
        "FILE: tenants.e.state.path: DIR/top/sidecar.redb: is the state of the top level, too",
        "FILE: tenants.default: \"default\": is the tenant that the top level of the file is",
        "FILE: tenants.b.unix_uids: 7: is tenants.a's, too; a credential is one tenant's",
        "FILE: tenants.f.codex_home: DIR/top/f: lies in the CODEX_HOME of the top level; put them side",
        "FILE: tenants.f.token_file: DIR/sub/../a.tokens: is tenants.A b's, too; a credential is one",
        "FILE: tenants.A b: \"A b\": the name of a tenant wants 1 to 64 of a-z, 0-9 and -",
    ];
    for expected in expected {
        let expected = expected.replace("FILE", &path).replace("DIR", at.to_str().unwrap());
        assert!(text.lines().any(|line| line.starts_with(&expected)), "no {expected:?} in\n{text}");
    }
    assert_eq!(errors.0.len(), expected.len(), "{text}");
}

/// The faults of a file, each with its key.
fn faults_of(text: &str) -> Vec<String> {
    let (_directory, path) = file(text);
    let ConfigErrors(faults) = load(&["--config", &path], &[]).unwrap_err();
    faults.into_iter().map(|fault| fault.to_string().replace(&path, "F")).collect()
}

#[test]
fn a_tool_says_less_than_the_policy_and_never_more() {
    let (_directory, path) = file(
        "[policy]\nmax_sandbox_mode = \"workspace-write\"\nmodels = [\"gpt-*\"]\n\
         [tools.codex.policy]\nmax_sandbox_mode = \"read-only\"\nmodels = [\"gpt-5\", \"gpt-5-*\"]\n",
    );
    let (config, _) = load(&["--config", &path], &[]).unwrap();
    let policy = config.tools["codex"].policy.as_ref().unwrap();
    assert_eq!(policy.max_sandbox_mode, SandboxMode::ReadOnly);
    assert_eq!(policy.setting("models"), "[tools.codex.policy] models");
    assert_eq!(policy.setting("roots"), "[policy] roots");

    let base = "[policy]\nmax_sandbox_mode = \"read-only\"\npermission_profiles = [\"a\"]\n\
                approval_policies = [\"never\"]\napprovals_reviewers = [\"user\"]\n\
                network_access = false\nmax_web_search = \"cached\"\nmodels = [\"m\"]\n\
                roots = [\"/work\"]\ndynamic_tools = false\nimages = \"data\"\n\
                [tools.codex.policy]\n";
    for (line, wanted) in [
        ("max_sandbox_mode = \"workspace-write\"", "wants at most read-only"),
        ("permission_profiles = [\"a\", \"*\"]", "wants nothing but what is in a"),
        ("approval_policies = [\"on-request\"]", "wants none but never"),
        ("approvals_reviewers = [\"auto_review\"]", "wants none but user"),
        ("network_access = true", "wants at most false"),
        ("max_web_search = \"live\"", "wants at most cached"),
        ("models = [\"m*\"]", "wants nothing but what is in m"),
        ("roots = [\"/work/a\", \"/workshop\"]", "wants directories in /work"),
        ("config_keys = [\"features.x\"]", "wants none"),
        ("environment = [\"X\"]", "wants none"),
        ("dynamic_tools = true", "wants at most false"),
        ("images = \"any\"", "wants at most data"),
    ] {
        let faults = faults_of(&format!("{base}{line}\n"));
        let [fault] = faults.as_slice() else { panic!("{line}: {faults:?}") };
        let key = line.split(' ').next().unwrap();
        assert!(fault.contains(&format!("tools.codex.policy.{key}")), "{fault}");
        assert!(fault.contains(wanted), "{fault}");
    }
}

#[test]
fn a_fault_of_a_tools_variables_shows_none_that_is_set() {
    let faults = faults_of(
        "[tools.codex.environment]\n\"A B\" = \"canary\"\nPORT = 3\nKEY = \"canary\"\nNUL = \"canary\\u0000\"\n\
         [tools.codex_x]\nenvironment = \"KEY=canary\"\n\
         config = { \"mcp_servers.x.env.A\" = \"canary\", \"a.b.api_key\" = \"canary\", x = [nan] }\n\
         [worker.config]\nlist = [nan]\nmcp_servers.x.env = { A = \"canary\" }\n",
    );
    let told = faults.join("\n");
    assert!(!told.contains("canary"), "{told}");
    for expected in [
        "F: tools.codex.environment: \"A B\" is no variable's name",
        "F: tools.codex.environment: \"NUL\" is set to something with a NUL byte",
        "F: tools.codex.environment: \"PORT\" is set to no text; put it in quotes",
        "F: tools.codex_x.environment: wants a table of variables",
        "F: tools.codex_x.config: { x = [nan] }: has a number that JSON can't express",
    ] {
        assert!(told.contains(expected), "no {expected} in\n{told}");
    }
}

#[test]
fn what_a_policy_denies_to_all_callers_is_no_default_of_a_tool() {
    let policy = "[policy]\nmax_sandbox_mode = \"read-only\"\napproval_policies = [\"never\"]\n\
                  network_access = false\nmax_web_search = \"disabled\"\nmodels = [\"m\"]\n\
                  roots = [\"/work\"]\ndynamic_tools = false\n[tools.codex]\n";
    for (line, key) in [
        ("sandbox_mode = \"workspace-write\"", "sandbox_mode"),
        ("permission_profile = \":workspace\"", "permission_profile"),
        ("permission_profile = \"mine\"", "permission_profile"),
        ("approval_policy = \"on-request\"", "approval_policy"),
        ("approvals_reviewer = \"auto_review\"", "approvals_reviewer"),
        ("network_access_enabled = true", "network_access_enabled"),
        ("web_search_mode = \"cached\"", "web_search_mode"),
        ("web_search_enabled = true", "web_search_enabled"),
        ("config = { web_search = \"indexed\" }", "config"),
        ("config = { model = \"n\" }", "model"),
        ("model = \"n\"", "model"),
        ("working_directory = \"/workshop\"", "working_directory"),
        ("additional_directories = [\"/work/a\", \"/tmp\"]", "additional_directories"),
        (
            "dynamic_tools = [{ name = \"t\", description = \"\", input_schema = {} }]",
            "dynamic_tools",
        ),
    ] {
        let faults = faults_of(&format!("{policy}{line}\n"));
        let [fault] = faults.as_slice() else { panic!("{line}: {faults:?}") };
        assert!(fault.contains(&format!("F: tools.codex.{key}")), "{fault}");
        assert!(fault.contains("[policy] "), "{fault}");
    }
    // The owner's own.
    let (_directory, path) = file(
        "[tools.codex]\nconfig = { notify = [\"x\"] }\nenvironment = { TOKEN = \"canary-in-file\" }\n",
    );
    let (config, origins) = load(&["--config", &path], &[]).unwrap();
    let printed = config.to_toml(&origins);
    assert!(printed.contains("environment.TOKEN = \"[redacted]\""), "{printed}");
    assert!(!format!("{printed}{config:?}").contains("canary"), "{printed}");
}

#[test]
fn a_policy_is_read_strictly() {
    for (line, wanted) in [
        (
            "max_sandbox_mode = \"none\"",
            "wants one of read-only, workspace-write, danger-full-access",
        ),
        ("approval_policies = []", "wants a list of at least one"),
        ("models = \"m\"", "wants a list"),
        ("models = [\"\"]", "wants texts"),
        ("environment = [\"OK_*\", \"A B\"]", "\"A B\": wants texts: names of variables"),
        ("roots = [\"/a\", \"\"]", ": \"\": wants a path"),
        ("roots = [\"/a/../b\"]", "without .."),
        ("roots = []", "wants a list of at least one"),
        ("images = \"some\"", "wants one of none, data, any"),
        ("max_web_serch = \"live\"", "did you mean max_web_search?"),
    ] {
        for section in ["policy", "tools.codex.policy"] {
            let faults = faults_of(&format!("[{section}]\n{line}\n"));
            let [fault] = faults.as_slice() else { panic!("{line}: {faults:?}") };
            assert!(fault.contains(wanted), "{fault}");
        }
    }
}

/// It is a login: who has it speaks to the provider as the top level does.
#[test]
fn no_tenants_workers_have_the_keys_and_the_login_of_the_top_level() {
    let (_directory, path) = file("[tenants.a]\ncodex_home = \"a\"\n");
    let config = load(&["--config", &path], &[("CODEX_ACCESS_TOKEN", "at")]).unwrap().0;
    let taken = config.tenants["a"].config.worker_env.iter().filter(|(_, value)| value.is_none());
    let taken: Vec<_> = taken.map(|(name, _)| name.to_str().unwrap()).collect();
    for key in ["CODEX_API_KEY", "OPENAI_API_KEY", "CODEX_ACCESS_TOKEN"] {
        assert!(taken.contains(&key), "{key} is passed on: only {taken:?} are kept back");
    }
}
