//! The one table of settings: key in the file, flag, environment variable, whose it is, how it is
//! written.

use super::codec::{
    self, AbsolutePath, Codec, FeatureNames, FileMode, FileOrMemory, GroupName, Ids, LogFilter,
    LogForm, Outlives, Overrides, SpanOrNone, Switch, TextList, VariableName, VariableNames,
};
use super::listen::Listen;
use super::{Config, Credentials, TenantConfig, TlsFiles, UnixSockets, policy};
use crate::app_server::peer::PeerLimits;
use crate::grpc::limits::{CODEX_MAX_INPUT_CHARACTERS, ConnectionLimits, RequestLimits};
use crate::pool::PoolSettings;
use crate::registry::ledger::StateSettings;
use crate::turn::admission::AdmissionLimits;
use crate::turn::contexts::ContextLimits;
use crate::turn::quota::QuotaLimits;
use crate::turn::readers::ReaderLimits;
use crate::turn::retention::Retention;
use crate::turn::timeouts::Timeouts;
use crate::worker::WorkerLimits;
use crate::worker::settings::WorkerSettings;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// More at once than any machine runs; catches a number with a unit forgotten.
const MANY: u64 = 1_000_000;

/// What a setting is called in each of its sources.
#[derive(Clone, Copy)]
pub(super) struct Name {
    /// The key in the file, without its section.
    pub(super) key: &'static str,
    /// The flag, with its dashes.
    pub(super) flag: Option<&'static str>,
    /// The environment variable.
    pub(super) env: Option<&'static str>,
    /// Whose it is.
    pub(super) scope: Scope,
}

/// Whose a setting is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// The sidecar's as a whole: there is one of it.
    Sidecar,
    /// Each tenant's: its table may have it, and inherits the top level's, but for what makes it another
    /// tenant.
    Tenant,
}

impl Name {
    /// The sidecar's as a whole.
    const fn of_sidecar(self) -> Name {
        Name { scope: Scope::Sidecar, ..self }
    }
}

/// A tenant's setting that only the file has.
pub(super) const fn key(key: &'static str) -> Name {
    Name { key, flag: None, env: None, scope: Scope::Tenant }
}

/// A tenant's setting that has, for the top level, a flag and an environment variable.
const fn flag(key: &'static str, flag: &'static str, env: &'static str) -> Name {
    Name { key, flag: Some(flag), env: Some(env), scope: Scope::Tenant }
}

/// Somebody who goes through all settings.
pub(super) trait Visitor {
    /// The settings from here on are in this section of the file; the ones before the first are at
    /// its top.
    fn section(&mut self, name: &'static str);
    /// A setting that always has a value.
    fn required<C: Codec>(&mut self, name: Name, codec: C, slot: &mut C::Value);
    /// A setting that may have none.
    fn optional<C: Codec>(&mut self, name: Name, codec: C, slot: &mut Option<C::Value>);
}

/// Goes through all settings of the top level but tenants, tools and key.
pub(super) fn visit_top(config: &mut Config, visitor: &mut impl Visitor) {
    let v = visitor;
    // Not inherited: a tenant has its own, under the same names.
    v.optional(
        flag("token_file", "--token-file", "CODEX_SIDECAR_TOKEN_FILE"),
        AbsolutePath { bare_name_allowed: false },
        &mut config.token_file,
    );
    v.optional(key("client_names"), TextList, &mut config.client_names);
    visit(config, v);
}

/// Goes through all settings of a tenant but its tools and the key itself.
pub(super) fn visit_tenant(tenant: &mut TenantConfig, visitor: &mut impl Visitor) {
    let TenantConfig { config, credentials, api_key_file, api_key_env, cpu_weight } = tenant;
    let Credentials { token_file, client_names, unix_uids, unix_gids } = credentials;
    let v = visitor;
    let any_path = AbsolutePath { bare_name_allowed: false };
    v.optional(key("token_file"), any_path, token_file);
    v.optional(key("client_names"), TextList, client_names);
    v.optional(key("unix_uids"), Ids, unix_uids);
    v.optional(key("unix_gids"), Ids, unix_gids);
    v.optional(key("api_key_file"), any_path, api_key_file);
    v.optional(key("api_key_env"), VariableName, api_key_env);
    v.optional(key("cpu_weight"), codec::count(1..=10_000), cpu_weight);
    visit(config, v);
}

/// Goes through all settings that a tenant may inherit, and those of the sidecar as a whole.
fn visit(config: &mut Config, visitor: &mut impl Visitor) {
    // All fields by name, here and below: a new one fails to compile until it has its line. One
    // that is `_` is no user's setting.
    let Config {
        listen,
        health_listen,
        insecure_listen,
        // Of the top level: see there.
        token_file: _,
        client_names: _,
        tls,
        unix_sockets,
        identify_peers,
        codex_path,
        codex_home,
        share_codex_home,
        workers,
        offline_model,
        drain_grace,
        log_format,
        log,
        limits,
        quotas,
        requests,
        connections,
        retention,
        readers,
        contexts,
        timeouts,
        pool,
        worker,
        state,
        allow_writable_codex_home,
        policy,
        tools: _,
        tenants: _,
        tenant: _,
        api_key: _,
        guard: _,
        worker_env: _,
        kept_beside: _,
        own_token: _,
    } = config;
    let TlsFiles { cert: tls_cert, key: tls_key, client_ca: tls_client_ca } = tls;
    let UnixSockets { mode: unix_mode, group: unix_group, allow_uids, allow_gids } = unix_sockets;
    let AdmissionLimits {
        max_running_turns,
        max_running_turns_per_tenant,
        max_waiting_turns,
        max_waiting_turns_per_context,
    } = limits;
    let QuotaLimits { turns_per_minute, tokens_per_day } = quotas;
    let RequestLimits { max_input_characters, max_message_bytes } = requests;
    let ConnectionLimits {
        max_connections,
        max_handshakes,
        max_streams_per_connection,
        handshake_timeout,
        request_timeout: message_timeout,
    } = connections;
    let ContextLimits { max_contexts, context_ttl, evict_contexts } = contexts;
    let ReaderLimits { max_readers, max_readers_per_turn } = readers;
    let Retention { max_bytes_per_turn, max_bytes, after_end } = retention;
    let Timeouts { turn, idle, tool, answer, max_turn, max_idle, max_answer, interrupt_grace } =
        timeouts;
    let PoolSettings {
        max_turns_per_worker,
        max_age,
        max_resident_bytes,
        max_idle_threads,
        liveness_interval,
        liveness_timeout,
        backoff_initial,
        backoff_max,
        breaker_failures,
        breaker_open,
        start_spacing,
        worker_wait,
        stop_when_idle,
    } = pool;
    let StateSettings { path, durability } = state;
    let WorkerSettings { config, disable_features, environment, limits: worker_limits } = worker;
    let WorkerLimits { peer, start_timeout, request_timeout } = worker_limits;
    let PeerLimits {
        max_line_bytes,
        // What callers may put in says it.
        max_echo_bytes: _,
        max_garbage_lines: _,
        write_timeout,
        max_queued_writes: _,
        max_queued_answers: _,
    } = peer;

    let any_name = AbsolutePath { bare_name_allowed: true };
    let any_path = AbsolutePath { bare_name_allowed: false };
    let v = visitor;
    v.required(flag("listen", "--listen", "CODEX_SIDECAR_LISTEN").of_sidecar(), Listen, listen);
    v.optional(
        flag("health_listen", "--health-listen", "CODEX_SIDECAR_HEALTH_LISTEN").of_sidecar(),
        Listen,
        health_listen,
    );
    v.required(
        flag("insecure_listen", "--insecure-listen", "CODEX_SIDECAR_INSECURE_LISTEN").of_sidecar(),
        Switch,
        insecure_listen,
    );
    v.optional(
        flag("tls_cert", "--tls-cert", "CODEX_SIDECAR_TLS_CERT").of_sidecar(),
        any_path,
        tls_cert,
    );
    v.optional(
        flag("tls_key", "--tls-key", "CODEX_SIDECAR_TLS_KEY").of_sidecar(),
        any_path,
        tls_key,
    );
    v.optional(
        flag("tls_client_ca", "--tls-client-ca", "CODEX_SIDECAR_TLS_CLIENT_CA").of_sidecar(),
        any_path,
        tls_client_ca,
    );
    v.required(key("unix_mode").of_sidecar(), FileMode, unix_mode);
    v.optional(key("unix_group").of_sidecar(), GroupName, unix_group);
    v.optional(key("unix_allow_uids").of_sidecar(), Ids, allow_uids);
    v.optional(key("unix_allow_gids").of_sidecar(), Ids, allow_gids);
    v.optional(flag("codex_path", "--codex-path", "CODEX_PATH"), any_name, codex_path);
    v.required(flag("codex_home", "--codex-home", "CODEX_HOME"), any_path, codex_home);
    v.required(
        flag("share_codex_home", "--share-codex-home", "CODEX_SIDECAR_SHARE_CODEX_HOME"),
        Switch,
        share_codex_home,
    );
    v.required(
        flag("workers", "--workers", "CODEX_SIDECAR_WORKERS"),
        codec::count(1..=64),
        workers,
    );
    v.required(
        flag("offline_model", "--offline-model", "CODEX_SIDECAR_OFFLINE_MODEL"),
        Switch,
        offline_model,
    );
    v.required(
        flag("drain_grace", "--drain-grace", "CODEX_SIDECAR_DRAIN_GRACE").of_sidecar(),
        codec::duration_or_zero(),
        drain_grace,
    );
    v.required(
        flag("log_format", "--log-format", "CODEX_SIDECAR_LOG_FORMAT").of_sidecar(),
        LogForm,
        log_format,
    );
    v.required(flag("log", "--log", "CODEX_SIDECAR_LOG").of_sidecar(), LogFilter, log);

    v.section("limits");
    v.required(key("max_running_turns"), codec::count(1..=MANY), max_running_turns);
    v.required(
        key("max_running_turns_per_tenant"),
        codec::count(1..=MANY),
        max_running_turns_per_tenant,
    );
    v.required(key("max_waiting_turns"), codec::count(0..=MANY), max_waiting_turns);
    v.required(
        key("max_waiting_turns_per_context"),
        codec::count(0..=MANY),
        max_waiting_turns_per_context,
    );
    v.required(
        key("max_input_characters"),
        codec::count(1..=CODEX_MAX_INPUT_CHARACTERS as u64),
        max_input_characters,
    );
    v.required(
        key("max_message_bytes").of_sidecar(),
        codec::bytes(64 * KIB..=256 * MIB),
        max_message_bytes,
    );
    v.required(
        Name { env: Some("CODEX_SIDECAR_MAX_LINE_BYTES"), ..key("max_line_bytes") },
        codec::bytes(64 * KIB..=64 * MIB),
        max_line_bytes,
    );
    v.required(key("max_connections").of_sidecar(), codec::count(1..=MANY), max_connections);
    v.required(key("max_handshakes").of_sidecar(), codec::count(1..=MANY), max_handshakes);
    v.required(
        key("max_streams_per_connection").of_sidecar(),
        codec::count(1..=MANY),
        max_streams_per_connection,
    );
    v.required(key("max_readers"), codec::count(1..=MANY), max_readers);
    v.required(key("max_readers_per_turn"), codec::count(1..=MANY), max_readers_per_turn);
    v.required(key("max_contexts"), codec::count(1..=100 * MANY), max_contexts);
    v.optional(key("context_ttl"), codec::duration(), context_ttl);
    v.required(key("evict_contexts"), Switch, evict_contexts);
    v.optional(key("turns_per_minute"), codec::count(1..=MANY), turns_per_minute);
    v.optional(key("tokens_per_day"), codec::count(1..=u64::MAX >> 1), tokens_per_day);

    v.section("retention");
    v.required(key("max_bytes_per_turn"), codec::bytes(64 * KIB..=GIB), max_bytes_per_turn);
    v.required(key("max_bytes"), codec::bytes(64 * KIB..=1024 * GIB), max_bytes);
    v.required(key("after_end"), codec::duration_or_zero(), after_end);

    v.section("state");
    v.optional(flag("path", "--state", "CODEX_SIDECAR_STATE"), FileOrMemory, path);
    v.required(key("durability"), Outlives, durability);

    v.section("timeouts");
    v.optional(key("turn"), codec::duration(), turn);
    v.required(key("idle"), SpanOrNone, idle);
    v.required(key("tool"), SpanOrNone, tool);
    v.optional(key("answer"), codec::duration(), answer);
    v.optional(key("max_turn"), codec::duration(), max_turn);
    v.optional(key("max_idle"), codec::duration(), max_idle);
    v.optional(key("max_answer"), codec::duration(), max_answer);
    v.required(key("interrupt_grace"), codec::duration(), interrupt_grace);
    v.required(key("worker_start"), codec::duration(), start_timeout);
    v.required(key("worker_request"), codec::duration(), request_timeout);
    v.required(key("worker_wait"), codec::duration(), worker_wait);
    v.required(key("handshake").of_sidecar(), codec::duration(), handshake_timeout);
    v.required(key("request").of_sidecar(), codec::duration(), message_timeout);

    v.section("pool");
    v.optional(key("max_turns_per_worker"), codec::count(1..=u64::MAX >> 1), max_turns_per_worker);
    v.optional(key("max_age"), codec::duration(), max_age);
    v.optional(key("max_resident_bytes"), codec::bytes(64 * MIB..=1024 * GIB), max_resident_bytes);
    v.optional(key("max_idle_threads"), codec::count(0..=MANY), max_idle_threads);
    v.required(key("liveness_interval"), codec::duration(), liveness_interval);
    v.required(key("liveness_timeout"), codec::duration(), liveness_timeout);
    v.required(key("backoff_initial"), codec::duration(), backoff_initial);
    v.required(key("backoff_max"), codec::duration(), backoff_max);
    v.required(key("breaker_failures"), codec::count(1..=MANY), breaker_failures);
    v.required(key("breaker_open"), codec::duration(), breaker_open);
    v.required(key("start_spacing"), codec::duration_or_zero(), start_spacing);
    v.required(key("write_timeout"), codec::duration(), write_timeout);
    v.required(key("stop_when_idle"), SpanOrNone, stop_when_idle);

    v.section("worker");
    v.required(key("disable_features"), FeatureNames, disable_features);
    v.required(key("environment"), VariableNames, environment);
    v.required(key("config"), Overrides, config);

    v.section("policy");
    v.required(key("identify_peers").of_sidecar(), codec::Identify, identify_peers);
    v.required(key("allow_writable_codex_home"), Switch, allow_writable_codex_home);
    policy::visit(policy, v);
}
