//! The keys of Codex's configuration that a caller may set.
//!
//! An override is judged by the paths of all that it sets, as Codex comes to them: a key is split at its
//! dots, a table in it leads on by its own keys, which may have dots in them. Whatever is on no list is
//! denied: most of Codex's configuration runs programs, reads files or says where the key is sent.

use serde_json::{Map, Value};

use crate::model::pattern::any_matches;

/// What callers may set without a word of the configuration. (Of `tools` the CLI 0.169.0 knows
/// `web_search`, `client_search_provider`, `experimental_request_user_input` and `update_plan`: none of them
/// runs a program or reads a file, and none gives more of a search than `web_search` does.)
const ALLOWED: [&str; 13] = [
    "model",
    "model_verbosity",
    "model_reasoning_*",
    "model_context_window",
    "model_auto_compact_token_limit",
    "tool_output_token_limit",
    "personality",
    "service_tier",
    "web_search",
    "tools.*",
    "hide_agent_reasoning",
    "show_raw_agent_reasoning",
    "project_doc_max_bytes",
];

/// Longest path that is looked for on a list. No key of Codex's is half as long, and each look takes its time.
const LONGEST: usize = 1024;

/// Calls `deny` with the path of everything in `config` that neither the list nor `more` allows, until it
/// says that it has heard enough. A part of a path that is no bare key of TOML's stands in quotes.
pub(super) fn denied(
    config: &Map<String, Value>,
    more: &[String],
    deny: &mut dyn FnMut(&str) -> bool,
) {
    if more.iter().any(|pattern| pattern == "*") {
        return;
    }
    let mut walk = Walk { more, deny, path: String::new(), is_over: false };
    for (key, value) in config {
        for part in key.split('.') {
            walk.push(part);
        }
        walk.look(value);
        walk.path.clear();
    }
}

/// Whether a path is on the list, or on the other.
fn is_allowed(path: &str, more: &[String]) -> bool {
    path.len() <= LONGEST && (any_matches(&ALLOWED, path) || any_matches(more, path))
}

struct Walk<'a> {
    more: &'a [String],
    deny: &'a mut dyn FnMut(&str) -> bool,
    path: String,
    is_over: bool,
}

impl Walk<'_> {
    fn push(&mut self, part: &str) {
        if !self.path.is_empty() {
            self.path.push('.');
        }
        let is_bare = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        if !part.is_empty() && part.bytes().all(is_bare) {
            self.path.push_str(part);
        } else {
            self.path.push_str(&Value::from(part).to_string());
        }
    }

    /// The depth is bounded where the request comes in.
    fn look(&mut self, value: &Value) {
        if self.is_over {
            return;
        }
        match value {
            Value::Object(table) if !table.is_empty() => {
                let above = self.path.len();
                for (key, value) in table {
                    self.push(key);
                    self.look(value);
                    self.path.truncate(above);
                }
            }
            // It takes away what is below, so that all of that must be allowed.
            Value::Object(_) => {
                self.path.push('.');
                let is_allowed = is_allowed(&self.path, self.more);
                self.path.pop();
                self.tell(is_allowed);
            }
            _ => {
                let is_allowed = is_allowed(&self.path, self.more);
                self.tell(is_allowed);
            }
        }
    }

    fn tell(&mut self, is_allowed: bool) {
        if !is_allowed {
            self.is_over = (self.deny)(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn denied_of(config: &Value, more: &[&str]) -> Vec<String> {
        let more: Vec<String> = more.iter().map(|pattern| (*pattern).to_owned()).collect();
        let mut paths = Vec::new();
        denied(config.as_object().unwrap(), &more, &mut |path| {
            paths.push(path.to_owned());
            false
        });
        paths
    }

    #[test]
    fn what_is_on_no_list_is_denied_however_it_is_spelt() {
        for (config, path) in [
            (json!({"model_providers.x.base_url": 1}), "model_providers.x.base_url"),
            (json!({"model_providers": {"x": {"base_url": 1}}}), "model_providers.x.base_url"),
            (json!({"model_providers.x": {"base_url": 1}}), "model_providers.x.base_url"),
            (json!({"model_providers": {"x.y": {"z": 1}}}), "model_providers.\"x.y\".z"),
            (json!({"model_providers": {}}), "model_providers"),
            (json!({"mcp_servers": [{"command": "x"}]}), "mcp_servers"),
            (json!({"mcp_servers.a": [{"command": "x"}]}), "mcp_servers.a"),
            (json!({"notify": ["x"]}), "notify"),
            (json!({"hooks": {"a": {}}}), "hooks.a"),
            (json!({"openai_base_url": "x"}), "openai_base_url"),
            (json!({"otel.exporter": "x"}), "otel.exporter"),
            (json!({"model_catalog_json": "/dev/zero"}), "model_catalog_json"),
            (json!({"model_instructions_file": "/etc/shadow"}), "model_instructions_file"),
            (json!({"permissions": {"p": {"x": 1}}}), "permissions.p.x"),
            (json!({"features.goals": true}), "features.goals"),
            (json!({"shell_environment_policy.set.X": "x"}), "shell_environment_policy.set.X"),
            (json!({"profiles": {"a": {"model": "x"}}}), "profiles.a.model"),
            (json!({"profile": "a"}), "profile"),
            (json!({"projects": {"/w": {"trust_level": 1}}}), "projects.\"/w\".trust_level"),
            (
                json!({"approval_policy": {"granular": {"rules": true}}}),
                "approval_policy.granular.rules",
            ),
            (
                json!({"sandbox_workspace_write": {"exclude_slash_tmp": 1}}),
                "sandbox_workspace_write.exclude_slash_tmp",
            ),
            (json!({"base_instructions": "x"}), "base_instructions"),
            (json!({"developer_instructions": "x"}), "developer_instructions"),
            (json!({"Model": "x"}), "Model"),
            (json!({" model": "x"}), "\" model\""),
            (json!({"model ": "x"}), "\"model \""),
            (json!({"\"model\"": "x"}), "\"\\\"model\\\"\""),
            (json!({"model.x": 1}), "model.x"),
            (json!({"model_verbosity": {"x": 1}}), "model_verbosity.x"),
            (json!({"tools": 1}), "tools"),
            (json!({"tools": [{"x": 1}]}), "tools"),
            (json!({"toolsx.y": 1}), "toolsx.y"),
            (json!({"\"tools.x\"": 1}), "\"\\\"tools\".\"x\\\"\""),
        ] {
            assert_eq!(denied_of(&config, &[]), [path], "{config}");
            assert_eq!(denied_of(&config, &["*"]), Vec::<String>::new(), "{config}");
        }
    }

    #[test]
    fn what_is_on_a_list_is_allowed() {
        for config in [
            json!({"model": "x", "model_reasoning_effort": "low", "web_search": "live"}),
            json!({"tools": {"web_search": {"context_size": "low"}}, "tools.update_plan.enabled": 1}),
            json!({"tools": {}}),
            json!({}),
        ] {
            assert_eq!(denied_of(&config, &[]), Vec::<String>::new(), "{config}");
        }
        let config =
            json!({"features": {"a": true, "b": true}, "mcp_servers": {"x": {"url": "u"}}});
        assert_eq!(denied_of(&config, &["features.a", "mcp_servers.x.*"]), ["features.b"],);
        // A list of one provider's keys is not one of its name's beginnings.
        let dotted = json!({"mcp_servers": {"x.y": {"url": "u"}}});
        assert_eq!(denied_of(&dotted, &["mcp_servers.x.*"]), ["mcp_servers.\"x.y\".url"]);
        let taken_away = json!({"mcp_servers": {}});
        assert_eq!(denied_of(&taken_away, &["mcp_servers.x.*"]), ["mcp_servers"]);
    }

    /// What Codex makes of one override after another: the tree that it lays over its configuration.
    fn applied(config: &Map<String, Value>) -> Value {
        let mut tree = json!({});
        for (key, value) in config {
            let parts: Vec<&str> = key.split('.').collect();
            let (last, above) = parts.split_last().unwrap();
            let mut table = &mut tree;
            for part in above {
                if !table[part].is_object() {
                    table[part] = json!({});
                }
                table = &mut table[part];
            }
            table[last] = value.clone();
        }
        tree
    }

    /// Whether anything of this name at the top of the tree may be there: the list, once more, by what it
    /// is and not by how it is spelt.
    fn may_stay(tree: &Value) -> bool {
        tree.as_object().unwrap().iter().all(|(top, value)| match top.as_str() {
            "tools" => value.is_object(),
            "model" | "model_verbosity" | "web_search" | "personality" => !value.is_object(),
            name if name.starts_with("model_reasoning_") => true,
            _ => false,
        })
    }

    fn part() -> impl Strategy<Value = String> {
        prop_oneof![
            Just("tools".to_owned()),
            Just("model".to_owned()),
            Just("model_reasoning_effort".to_owned()),
            Just("model_providers".to_owned()),
            Just("mcp_servers".to_owned()),
            Just("notify".to_owned()),
            Just("x".to_owned()),
            "[ \"'*Mm.\\\\]{0,3}",
        ]
    }

    fn key() -> impl Strategy<Value = String> {
        prop::collection::vec(part(), 1..4).prop_map(|parts| parts.join("."))
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf =
            prop_oneof![Just(json!("v")), Just(json!(true)), Just(json!({})), Just(json!([]))];
        leaf.prop_recursive(3, 12, 3, |inner| {
            prop_oneof![
                prop::collection::vec((key(), inner.clone()), 0..3)
                    .prop_map(|table| Value::Object(table.into_iter().collect())),
                prop::collection::vec(inner, 0..3).prop_map(Value::Array),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn no_spelling_of_a_denied_key_gets_through(
            config in prop::collection::vec((key(), value()), 0..4)
        ) {
            let config: Map<String, Value> = config.into_iter().collect();
            if denied_of(&Value::Object(config.clone()), &[]).is_empty() {
                let tree = applied(&config);
                prop_assert!(may_stay(&tree), "{:?} became {}", config, tree);
            }
        }
    }
}
