//! What callers may ask for at most: `[policy]` of the file, and `[tools.NAME.policy]`, which may only say
//! less.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::Fault;
use super::codec::{AbsolutePath, Codec, Raw, Switch, show_bounded};
use super::file::{File, Origins, unknown_key};
use super::settings::{Name, Visitor, key};
use crate::model::options::{
    ApprovalPolicy, ApprovalsReviewer, SandboxMode, ToolDefaults, WebSearchMode,
};
use crate::model::policy::{ImagePolicy, OwnKeys, Policy, word};
use crate::model::refusal::Faults;

const SANDBOX_MODES: OneOf<SandboxMode> =
    OneOf(&[SandboxMode::ReadOnly, SandboxMode::WorkspaceWrite, SandboxMode::DangerFullAccess]);
const APPROVAL_POLICIES: OneOf<ApprovalPolicy> = OneOf(&[
    ApprovalPolicy::Never,
    ApprovalPolicy::OnRequest,
    ApprovalPolicy::OnFailure,
    ApprovalPolicy::Untrusted,
]);
const REVIEWERS: OneOf<ApprovalsReviewer> =
    OneOf(&[ApprovalsReviewer::User, ApprovalsReviewer::AutoReview]);
const WEB_SEARCH_MODES: OneOf<WebSearchMode> =
    OneOf(&[WebSearchMode::Disabled, WebSearchMode::Cached, WebSearchMode::Live]);
const IMAGES: OneOf<ImagePolicy> = OneOf(&[ImagePolicy::None, ImagePolicy::Data, ImagePolicy::Any]);

/// Goes through the settings of a policy.
pub(super) fn visit(policy: &mut Policy, v: &mut impl Visitor) {
    let Policy {
        max_sandbox_mode,
        permission_profiles,
        approval_policies,
        approvals_reviewers,
        network_access,
        max_web_search,
        models,
        roots,
        config_keys,
        environment,
        dynamic_tools,
        images,
        own: _,
    } = policy;
    v.required(key("max_sandbox_mode"), SANDBOX_MODES, max_sandbox_mode);
    v.optional(key("permission_profiles"), patterns("names"), permission_profiles);
    v.optional(key("approval_policies"), some(APPROVAL_POLICIES), approval_policies);
    v.optional(key("approvals_reviewers"), some(REVIEWERS), approvals_reviewers);
    v.required(key("network_access"), Switch, network_access);
    v.required(key("max_web_search"), WEB_SEARCH_MODES, max_web_search);
    v.optional(key("models"), some(Pattern::of("names")), models);
    v.optional(key("roots"), some(Directory), roots);
    v.required(key("config_keys"), patterns("keys"), config_keys);
    v.required(key("environment"), Several { one: VARIABLES, may_be_none: true }, environment);
    v.required(key("dynamic_tools"), Switch, dynamic_tools);
    v.required(key("images"), IMAGES, images);
}

/// Reads the policy of the tool whose table is at this path. It begins with the one that holds for all.
pub(super) fn of_tool(
    tool: &str,
    value: &toml::Value,
    outer: &Policy,
    file: &File,
    origins: &mut Origins,
    faults: &mut Vec<Fault>,
) -> Option<Arc<Policy>> {
    let section = format!("{tool}.policy");
    let Some(table) = value.as_table() else {
        faults.push(Fault {
            origin: file.origin(&section).to_string(),
            value: show_bounded(&value.to_string()),
            problem: "wants a table".to_owned(),
        });
        return None;
    };
    let mut policy = outer.clone();
    let known = BTreeSet::new();
    let mut reader = Reader { table, section: &section, file, known, said: Vec::new(), faults };
    visit(&mut policy, &mut reader);
    let Reader { known, said, .. } = reader;
    for key in table.keys().filter(|key| !known.contains(key.as_str())) {
        faults.push(unknown_key(file.origin(&format!("{section}.{key}")), key, &known));
    }
    for (key, wanted) in policy.wider_than(outer) {
        let value = table.get(key).map(|value| show_bounded(&value.to_string()));
        faults.push(Fault {
            origin: file.origin(&format!("{section}.{key}")).to_string(),
            value: value.unwrap_or_default(),
            problem: format!("{wanted}: a tool's policy allows no more than [policy] does"),
        });
    }
    for key in &said {
        let path = format!("{section}.{key}");
        let origin = file.origin(&path);
        origins.insert(path, origin);
    }
    policy.own = OwnKeys { section, keys: said };
    Some(Arc::new(policy))
}

/// Holds the defaults of the tool at this path against its policy: they would be denied to each of its callers.
pub(super) fn judge_tool(
    path: &str,
    tool: &ToolDefaults,
    outer: &Policy,
    file: &File,
    faults: &mut Vec<Fault>,
) {
    let policy = tool.policy.as_deref().unwrap_or(outer);
    let mut denied = Faults::default();
    policy.judge("", &tool.thread_options, &mut denied);
    for denied in denied.0 {
        let path = format!("{path}.{}", denied.field);
        faults.push(Fault {
            origin: file.origin(&path).to_string(),
            value: denied.field,
            problem: denied.description,
        });
    }
    let Some(roots) = &policy.roots else { return };
    let options = &tool.thread_options;
    let working = options.working_directory.iter().map(|path| ("working_directory", path));
    let additional = options.additional_directories.iter().flatten();
    let additional = additional.map(|path| ("additional_directories", path));
    for (key, named) in working.chain(additional) {
        if !roots.iter().any(|root| named.starts_with(root)) {
            faults.push(Fault {
                origin: file.origin(&format!("{path}.{key}")).to_string(),
                value: named.display().to_string(),
                problem: format!("is in none of the directories of {}", policy.setting("roots")),
            });
        }
    }
}

/// Reads one table's settings over those that are there.
struct Reader<'a> {
    table: &'a toml::Table,
    section: &'a str,
    file: &'a File,
    known: BTreeSet<&'static str>,
    said: Vec<&'static str>,
    faults: &'a mut Vec<Fault>,
}

impl Reader<'_> {
    fn find<C: Codec>(&mut self, name: Name, codec: &C) -> Option<C::Value> {
        self.known.insert(name.key);
        let value = self.table.get(name.key)?;
        let raw = Raw::Toml(value);
        match codec.read(raw, &self.file.directory) {
            Ok(value) => {
                self.said.push(name.key);
                Some(value)
            }
            Err(problem) => {
                let origin = self.file.origin(&format!("{}.{}", self.section, name.key));
                self.faults.push(Fault { origin: origin.to_string(), value: raw.show(), problem });
                None
            }
        }
    }
}

impl Visitor for Reader<'_> {
    fn section(&mut self, _name: &'static str) {}

    fn required<C: Codec>(&mut self, name: Name, codec: C, slot: &mut C::Value) {
        if let Some(value) = self.find(name, &codec) {
            *slot = value;
        }
    }

    fn optional<C: Codec>(&mut self, name: Name, codec: C, slot: &mut Option<C::Value>) {
        if let Some(value) = self.find(name, &codec) {
            *slot = Some(value);
        }
    }
}

/// One of a few words.
struct OneOf<T: 'static>(&'static [T]);

impl<T: Copy + Serialize> OneOf<T> {
    fn words(&self) -> String {
        self.0.iter().map(word).collect::<Vec<_>>().join(", ")
    }
}

impl<T: Copy + Serialize> Codec for OneOf<T> {
    type Value = T;

    fn read(&self, raw: Raw<'_>, _base: &Path) -> Result<T, String> {
        let text = match raw {
            Raw::Toml(toml::Value::String(text)) => Some(text.trim()),
            _ => None,
        };
        let known = self.0.iter().find(|value| text == Some(word(*value).as_str()));
        known.copied().ok_or_else(|| format!("wants one of {}", self.words()))
    }

    fn write(&self, value: &T) -> toml::Value {
        word(value).into()
    }
}

/// Several values.
struct Several<C> {
    one: C,
    may_be_none: bool,
}

/// At least one.
fn some<C>(one: C) -> Several<C> {
    Several { one, may_be_none: false }
}

fn patterns(of: &'static str) -> Several<Pattern> {
    Several { one: Pattern::of(of), may_be_none: true }
}

impl<C: Codec> Codec for Several<C> {
    type Value = Vec<C::Value>;

    fn read(&self, raw: Raw<'_>, base: &Path) -> Result<Vec<C::Value>, String> {
        let values = match raw {
            Raw::Toml(toml::Value::Array(values)) => values,
            _ => return Err("wants a list".to_owned()),
        };
        if values.is_empty() && !self.may_be_none {
            return Err("wants a list of at least one; leave it out to allow all".to_owned());
        }
        let read = |value| {
            let raw = Raw::Toml(value);
            self.one.read(raw, base).map_err(|problem| format!("{}: {problem}", raw.show()))
        };
        values.iter().map(read).collect()
    }

    fn write(&self, values: &Vec<C::Value>) -> toml::Value {
        values.iter().map(|value| self.one.write(value)).collect::<Vec<_>>().into()
    }
}

/// A name, or a pattern of names.
struct Pattern {
    what: &'static str,
    allows: fn(char) -> bool,
}

/// Of variables.
const VARIABLES: Pattern = Pattern {
    what: "names of variables (A-Z a-z 0-9 _)",
    allows: |c| c.is_ascii_alphanumeric() || c == '_' || c == '*',
};

impl Pattern {
    fn of(what: &'static str) -> Pattern {
        Pattern { what, allows: |c| !c.is_control() }
    }
}

impl Codec for Pattern {
    type Value = String;

    fn read(&self, raw: Raw<'_>, _base: &Path) -> Result<String, String> {
        let text = match raw {
            Raw::Toml(toml::Value::String(text)) => Some(text.trim()),
            _ => None,
        };
        text.filter(|text| !text.is_empty() && text.chars().all(self.allows))
            .map(str::to_owned)
            .ok_or_else(|| format!("wants texts: {}, in which * stands for anything", self.what))
    }

    fn write(&self, value: &String) -> toml::Value {
        value.clone().into()
    }
}

/// A directory, without a way up in it.
struct Directory;

impl Codec for Directory {
    type Value = PathBuf;

    fn read(&self, raw: Raw<'_>, base: &Path) -> Result<PathBuf, String> {
        let path = AbsolutePath { bare_name_allowed: false }.read(raw, base)?;
        match path.components().any(|part| part == Component::ParentDir) {
            true => Err("wants directories without .. in their paths".to_owned()),
            false => Ok(path.components().collect()),
        }
    }

    fn write(&self, value: &PathBuf) -> toml::Value {
        value.to_string_lossy().into_owned().into()
    }
}
