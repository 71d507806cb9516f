//! Turns: started, steered, interrupted.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::app_server::baseline::{Baseline, Lingering, Rights};
use crate::app_server::client::Client;
use crate::app_server::peer::RequestError;
use crate::app_server::settings::Settings;
use crate::model::options::{ReasoningSummary, ThreadOptions};
use crate::model::request::{ReviewTarget, UserInput, Work};
use crate::model::workspace::Workspace;

/// A turn to be started. All of it is sent, always, because whatever one turn sets holds for all later
/// turns of the thread that do not set it themselves.
#[derive(Debug, Clone, Copy)]
pub struct StartTurn<'a> {
    /// The thread.
    pub thread_id: &'a str,
    /// What is asked of it.
    pub task: Task<'a>,
    /// How it runs.
    pub options: &'a ThreadOptions,
    /// What it uses where the options say nothing.
    pub baseline: &'a Baseline,
    /// Where it works.
    pub workspace: &'a Workspace,
    /// What it must take away.
    pub lingering: Lingering,
}

/// What is asked of a turn.
#[derive(Debug, Clone, Copy)]
pub struct Task<'a> {
    /// A name that no other turn has, for the look at the answer: Codex takes it for a new turn, and
    /// not where it takes the request as steering of a turn that runs.
    pub root_turn_id: &'a str,
    /// What is to be done.
    pub work: &'a Work,
    /// What is said.
    pub inputs: &'a [UserInput],
    /// The schema of its final response.
    pub output_schema: Option<&'a Value>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Params<'a> {
    thread_id: &'a str,
    root_turn_id: &'a str,
    input: Vec<Input<'a>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    additional_context: BTreeMap<String, External<'a>>,
    #[serde(flatten)]
    settings: ThreadSettings<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_schema: Option<&'a Value>,
}

/// What holds for the turn, and for all later ones until it is set anew.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ThreadSettings<'a> {
    #[serde(flatten)]
    rights: Rights<'a>,
    model: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_tier: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    effort: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    collaboration_mode: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    summary: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "camelCase")]
enum Input<'a> {
    Text { text: String },
    LocalImage { path: &'a Path },
    Image { url: &'a str },
    Skill { name: &'a str, path: &'a str },
    Mention { name: &'a str, path: &'a str },
}

/// Text from outside. Codex gives it to the model as the output of a tool of this name.
#[derive(Serialize)]
struct External<'a> {
    kind: &'static str,
    name: String,
    value: &'a str,
}

/// The texts joined with a blank line, then the rest, as `codex exec` receives them from its SDKs.
fn input(inputs: &[UserInput]) -> Vec<Input<'_>> {
    let texts: Vec<&str> = inputs
        .iter()
        .filter_map(|input| match input {
            UserInput::Text(text) => Some(text.as_str()),
            _ => None,
        })
        .collect();
    let text = (!texts.is_empty()).then(|| Input::Text { text: texts.join("\n\n") });
    let rest = inputs.iter().filter_map(|input| match input {
        UserInput::Text(_) | UserInput::External { .. } => None,
        UserInput::LocalImage(path) => Some(Input::LocalImage { path: path.as_ref() }),
        UserInput::ImageUrl(url) => Some(Input::Image { url }),
        UserInput::Skill { name, path } => Some(Input::Skill { name, path }),
        UserInput::Mention { name, path } => Some(Input::Mention { name, path }),
    });
    text.into_iter().chain(rest).collect()
}

/// The texts from outside, by keys of which Codex keeps the order. It does not repeat one that has the
/// key and the text of one of the turn before, so `unique` must be another one each time.
fn external<'a>(unique: &str, inputs: &'a [UserInput]) -> BTreeMap<String, External<'a>> {
    let texts = inputs.iter().enumerate().filter_map(|(at, input)| match input {
        UserInput::External { source, text } => {
            let external = External { kind: "untrusted", name: tool_name(source), value: text };
            Some((format!("{unique}/{at:06}"), external))
        }
        _ => None,
    });
    texts.collect()
}

/// The source as Codex takes it for a tool's name: `[a-z][a-z0-9_]{0,63}`.
fn tool_name(source: &str) -> String {
    const LONGEST: usize = 64;
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
    let name: String = source.chars().map(plain).collect();
    let begins_well = name.starts_with(|c: char| c.is_ascii_lowercase());
    let name = if begins_well { name } else { format!("from_{name}") };
    name.chars().take(LONGEST).collect()
}

impl<'a> StartTurn<'a> {
    /// What it may do.
    pub fn settings(&self) -> Settings {
        self.baseline.settings(self.options, self.workspace)
    }

    fn params(&self) -> Params<'a> {
        let Task { root_turn_id, work: _, inputs, output_schema } = self.task;
        Params {
            thread_id: self.thread_id,
            root_turn_id,
            input: input(inputs),
            additional_context: external(root_turn_id, inputs),
            settings: self.thread_settings(),
            output_schema,
        }
    }

    /// An effort that lingers can be replaced, but only a collaboration mode can take it away (its
    /// empty instructions add nothing to the history). A summary can only be replaced.
    fn thread_settings(&self) -> ThreadSettings<'a> {
        let StartTurn { options, baseline, lingering, .. } = *self;
        let model = options.model.as_ref().unwrap_or(&baseline.model);
        let effort = options.model_reasoning_effort.as_ref().or(baseline.effort.as_ref());
        let takes_effort_away = effort.is_none() && lingering.effort;
        let collaboration_mode = takes_effort_away.then(|| {
            let settings = json!({
                "model": model,
                "reasoning_effort": null,
                "developer_instructions": "",
            });
            json!({ "mode": "default", "settings": settings })
        });
        let summary = options.summary().map(ReasoningSummary::as_str);
        let summary = summary.or(baseline.reasoning_summary.as_deref());
        let tier = options.service_tier.as_ref().map(|tier| json!(tier));
        let tier = tier.or_else(|| baseline.service_tier.clone());
        ThreadSettings {
            rights: baseline.rights(options, self.workspace),
            model,
            service_tier: tier.or(lingering.service_tier.then_some(Value::Null)),
            effort: effort.map(String::as_str),
            collaboration_mode,
            summary: summary.or(lingering.summary.then(|| ReasoningSummary::Auto.as_str())),
        }
    }
}

/// A turn of Codex.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TurnRef {
    /// Codex's id.
    pub id: String,
    /// The first turn of the chain of work that it belongs to; what the request named, where it made
    /// the turn.
    #[serde(default)]
    pub root_turn_id: Option<String>,
}

impl Client {
    /// Starts a turn, or adds to one that runs.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn turn_start(&self, turn: &StartTurn<'_>) -> Result<TurnRef, RequestError> {
        #[derive(Deserialize)]
        struct Started {
            turn: TurnRef,
        }
        let Started { turn } = self.ask("turn/start", &turn.params()).await?;
        Ok(turn)
    }

    /// Sets what holds for the thread's turns from now on. Codex answers before it does so, but does it
    /// before whatever it is asked next.
    ///
    /// # Errors
    /// See [`RequestError`]; a CLI before 0.150 does not know it.
    pub async fn thread_settings_update(&self, turn: &StartTurn<'_>) -> Result<(), RequestError> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Params<'a> {
            thread_id: &'a str,
            #[serde(flatten)]
            settings: ThreadSettings<'a>,
        }
        let params = Params { thread_id: turn.thread_id, settings: turn.thread_settings() };
        self.order("thread/settings/update", &params).await
    }

    /// Starts a review on a thread, by the thread's settings; a turn that runs there is interrupted.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn review_start(
        &self,
        thread_id: &str,
        target: &ReviewTarget,
    ) -> Result<TurnRef, RequestError> {
        #[derive(Deserialize)]
        struct Started {
            turn: TurnRef,
        }
        let target = match target {
            ReviewTarget::UncommittedChanges => json!({ "type": "uncommittedChanges" }),
            ReviewTarget::BaseBranch(branch) => json!({ "type": "baseBranch", "branch": branch }),
            ReviewTarget::Commit(sha) => json!({ "type": "commit", "sha": sha, "title": null }),
            ReviewTarget::Instructions(words) => json!({ "type": "custom", "instructions": words }),
        };
        // On the thread itself; CLIs differ in what they do without it.
        let params = json!({ "threadId": thread_id, "target": target, "delivery": "inline" });
        let Started { turn } = self.ask("review/start", &params).await?;
        Ok(turn)
    }

    /// Has Codex sum up a thread's history, by the thread's settings, in a turn of which it tells only
    /// when it begins; a turn that runs there is interrupted.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn compact_start(&self, thread_id: &str) -> Result<(), RequestError> {
        self.order("thread/compact/start", &json!({ "threadId": thread_id })).await
    }

    /// The skills that Codex knows in this directory: the paths of their files, where they are not
    /// switched off.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn skills(&self, directory: &Path) -> Result<Vec<String>, RequestError> {
        #[derive(Deserialize)]
        struct Listed {
            data: Vec<OfDirectory>,
        }
        #[derive(Deserialize)]
        struct OfDirectory {
            skills: Vec<Skill>,
        }
        #[derive(Deserialize)]
        struct Skill {
            path: String,
            #[serde(default = "is_on")]
            enabled: bool,
        }
        fn is_on() -> bool {
            true
        }
        let Listed { data } = self.ask("skills/list", &json!({ "cwds": [directory] })).await?;
        let skills = data.into_iter().flat_map(|of_directory| of_directory.skills);
        Ok(skills.filter(|skill| skill.enabled).map(|skill| skill.path).collect())
    }

    /// Adds input to a running turn.
    ///
    /// # Errors
    /// See [`RequestError`]; a turn that has ended, or that can't be steered, is refused.
    pub async fn turn_steer(
        &self,
        thread_id: &str,
        codex_turn_id: &str,
        inputs: &[UserInput],
    ) -> Result<(), RequestError> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Params<'a> {
            thread_id: &'a str,
            expected_turn_id: &'a str,
            input: Vec<Input<'a>>,
            #[serde(skip_serializing_if = "BTreeMap::is_empty")]
            additional_context: BTreeMap<String, External<'a>>,
        }
        let params = Params {
            thread_id,
            expected_turn_id: codex_turn_id,
            input: input(inputs),
            additional_context: external(&uuid::Uuid::now_v7().to_string(), inputs),
        };
        self.order("turn/steer", &params).await
    }

    /// Asks for the end of a turn; `turn/completed` tells when it has come.
    ///
    /// # Errors
    /// See [`RequestError`]; a turn that has ended by itself is refused.
    pub async fn turn_interrupt(
        &self,
        thread_id: &str,
        codex_turn_id: &str,
    ) -> Result<(), RequestError> {
        let params = json!({ "threadId": thread_id, "turnId": codex_turn_id });
        self.order("turn/interrupt", &params).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app_server::client::{CliConfig, CliDefaults, ThreadOpened};
    use crate::model::options::{ApprovalsReviewer, SandboxMode};

    fn opened(more: Value) -> ThreadOpened {
        let mut opened = json!({
            "thread": { "id": "t" },
            "model": "m0",
            "approvalPolicy": "on-request",
            "sandbox": { "type": "readOnly", "networkAccess": false },
        });
        opened.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(opened).unwrap()
    }

    fn baseline() -> Baseline {
        Baseline::of(opened(json!({})), &CliDefaults::default())
    }

    fn params(options: &ThreadOptions, lingers: bool) -> Value {
        params_over(
            &baseline(),
            options,
            Lingering { effort: lingers, summary: lingers, service_tier: lingers },
        )
    }

    fn params_over(baseline: &Baseline, options: &ThreadOptions, lingering: Lingering) -> Value {
        let inputs = [
            UserInput::Text("a".to_owned()),
            UserInput::LocalImage("/i.png".to_owned()),
            UserInput::Text("b".to_owned()),
        ];
        let workspace = Workspace {
            working_directory: "/w".into(),
            additional_directories: vec!["/extra".into()],
        };
        let turn = StartTurn {
            thread_id: "t",
            task: Task {
                root_turn_id: "r",
                work: &Work::Inputs,
                inputs: &inputs,
                output_schema: None,
            },
            options,
            baseline,
            workspace: &workspace,
            lingering,
        };
        json!(turn.params())
    }

    #[test]
    fn a_turn_without_options_sends_the_whole_baseline() {
        assert_eq!(
            params(&ThreadOptions::default(), false),
            json!({
                "threadId": "t",
                "rootTurnId": "r",
                "input": [{"type": "text", "text": "a\n\nb"}, {"type": "localImage", "path": "/i.png"}],
                "cwd": "/w",
                "model": "m0",
                "approvalPolicy": "on-request",
                "sandboxPolicy": {"type": "readOnly", "networkAccess": false},
            })
        );
    }

    #[test]
    fn an_effort_of_an_earlier_turn_is_taken_away_and_one_of_this_turn_is_sent() {
        let reset = params(&ThreadOptions::default(), true);
        assert_eq!(reset["collaborationMode"]["settings"]["reasoning_effort"], Value::Null);
        assert_eq!(reset["collaborationMode"]["settings"]["model"], "m0");
        let own =
            ThreadOptions { model_reasoning_effort: Some("high".to_owned()), ..Default::default() };
        let set = params(&own, true);
        assert_eq!(set["effort"], "high");
        assert_eq!(set.get("collaborationMode"), None);
        assert!(Lingering::after(&own, &baseline()).effort);
        let usual = opened(json!({ "reasoningEffort": "high" }));
        let usual = Baseline::of(usual, &CliDefaults::default());
        assert_eq!(Lingering::after(&own, &usual), Lingering::default());
    }

    #[test]
    fn the_workspace_write_sandbox_gets_network_and_additional_directories() {
        let options = ThreadOptions {
            sandbox_mode: Some(SandboxMode::WorkspaceWrite),
            network_access_enabled: Some(true),
            ..Default::default()
        };
        let policy = &params(&options, false)["sandboxPolicy"];
        assert_eq!(policy["writableRoots"], json!(["/extra"]));
        assert_eq!(policy["networkAccess"], json!(true));
    }

    #[test]
    fn a_summary_of_an_earlier_turn_is_replaced_and_one_in_config_is_the_turns_own() {
        let nobody = ThreadOptions::default();
        assert_eq!(params(&nobody, false).get("summary"), None);
        assert_eq!(params(&nobody, true)["summary"], "auto");
        let config =
            CliConfig { model_reasoning_summary: Some("none".to_owned()), ..Default::default() };
        let defaults = CliDefaults { config, ..CliDefaults::default() };
        let configured = Baseline::of(opened(json!({})), &defaults);
        let lingering = Lingering { summary: true, ..Lingering::default() };
        assert_eq!(params_over(&configured, &nobody, lingering)["summary"], "none");
        let config = [("model_reasoning_summary".to_owned(), json!("detailed"))];
        let asked =
            ThreadOptions { config: Some(config.into_iter().collect()), ..Default::default() };
        assert_eq!(params(&asked, false)["summary"], "detailed");
        let field = ThreadOptions { reasoning_summary: Some(ReasoningSummary::Concise), ..asked };
        assert_eq!(params(&field, false)["summary"], "concise");
        assert!(Lingering::after(&field, &configured).summary);
    }

    #[test]
    fn every_turn_says_who_reviews_unless_the_cli_knows_nobody_but_the_caller() {
        let asks = |reviewer| ThreadOptions { approvals_reviewer: reviewer, ..Default::default() };
        let auto = asks(Some(ApprovalsReviewer::AutoReview));
        let user = asks(Some(ApprovalsReviewer::User));
        let told = |reviewer: Value| opened(json!({ "approvalsReviewer": reviewer }));
        let defaults = CliDefaults::default();
        let says = |baseline: &Baseline, options: &ThreadOptions| {
            params_over(baseline, options, Lingering::default())["approvalsReviewer"].clone()
        };

        let known = Baseline::of(told(json!("user")), &defaults);
        assert_eq!(says(&known, &auto), "auto_review");
        assert_eq!(says(&known, &asks(None)), "user");
        // What a thread was started with is an override: the default is still to be found out.
        let started = Baseline::of_started(told(json!("auto_review")), &auto, &defaults, None);
        assert!(started.covers(&user) && !started.covers(&asks(None)));

        let old = Baseline::of_started(told(Value::Null), &user, &defaults, None);
        assert!(old.covers(&asks(None)));
        assert_eq!(says(&old, &user), Value::Null);
        // It is refused by what the CLI then tells.
        assert_eq!(says(&old, &auto), "auto_review");
    }

    #[test]
    fn a_profile_of_the_configuration_stays_unless_a_sandbox_is_asked_for() {
        let opened = opened(json!({
            "sandbox": { "type": "workspaceWrite", "writableRoots": ["/w/out"] },
            "activePermissionProfile": { "id": "mine" },
        }));
        let defaults = CliDefaults { tells_settings: true, ..CliDefaults::default() };
        let baseline = Baseline::of(opened, &defaults);
        let sent = |options: &ThreadOptions| {
            let params = params_over(&baseline, options, Lingering::default());
            (params["permissions"].clone(), params["sandboxPolicy"]["type"].clone())
        };
        assert_eq!(sent(&ThreadOptions::default()), (json!("mine"), Value::Null));
        let other =
            ThreadOptions { permission_profile: Some("other".to_owned()), ..Default::default() };
        assert_eq!(sent(&other), (json!("other"), Value::Null));
        let sandboxed =
            ThreadOptions { sandbox_mode: Some(SandboxMode::ReadOnly), ..Default::default() };
        assert_eq!(sent(&sandboxed), (Value::Null, json!("readOnly")));
    }
}
