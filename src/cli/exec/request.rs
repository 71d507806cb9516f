//! The request that a command line of `codex exec` asks for.
//!
//! What the real one settles by itself is said explicitly: the directory is the caller's own, the
//! approval policy is `never`. What it leaves to the CLI's configuration (model, sandbox) is left to
//! it here too, so that `config.toml` means the same on both ways.

use std::path::{Component, Path, PathBuf};

use toml::Value;

use super::args::{ExecArgs, Flags};
use super::human::Thoughts;
use super::last::ResumeLast;
use super::overrides::Overrides;
use super::review::Review;
use super::{Failure, failed};
use crate::pb;

/// What becomes of a command line.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Asked {
    /// The turn.
    pub(super) request: pb::RunTurnRequest,
    /// The thread that it continues is still to be found.
    pub(super) resume_last: Option<ResumeLast>,
    /// What is said, for the header.
    pub(super) prompt: String,
    /// Which of its thoughts the model's user wants to see.
    pub(super) thoughts: Thoughts,
    /// The base URL that the caller wants, which is not the caller's to choose.
    pub(super) base_url: Option<String>,
    /// What the caller should know.
    pub(super) warnings: Vec<String>,
}

/// Where a command line comes from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    /// The directory that relative paths start at.
    pub(super) directory: &'a Path,
    /// The context to bind the turn to.
    pub(super) context_id: Option<&'a str>,
}

/// What a turn is to do.
#[derive(Debug)]
pub(super) enum Said {
    Prompt {
        text: String,
        /// The text of the schema's file, or empty.
        output_schema: String,
    },
    Review(Review),
}

/// Reads the overrides and settles all fields.
pub(super) fn ask(args: &ExecArgs, place: Place<'_>, said: Said) -> Result<Asked, Failure> {
    let Flags {
        json: _,
        config,
        enable,
        disable,
        model,
        sandbox,
        dangerously_bypass_approvals_and_sandbox: bypass,
        cd,
        add_dir,
        skip_git_repo_check,
        ephemeral,
        thread_source,
        output_schema: _,
        output_last_message: _,
        color: _,
    } = &args.flags;
    let Place { directory, context_id } = place;
    let mut asked = Asked::default();
    let mut overrides = Overrides::parse(config)
        .map_err(|fault| failed(format!("Error parsing -c overrides: {fault}")))?;
    for (features, value) in [(enable, true), (disable, false)] {
        for feature in features {
            overrides.set(&format!("features.{feature}"), Value::Boolean(value));
        }
    }
    asked.base_url = text(&mut overrides, "openai_base_url")?;
    check_approval_policy(&mut overrides, &mut asked.warnings)?;
    asked.thoughts = Thoughts {
        shown: !overrides.is_true("hide_agent_reasoning"),
        raw: overrides.is_true("show_raw_agent_reasoning"),
    };
    asked.resume_last = args.resume_last();

    let cd = cd.as_deref().unwrap_or(Path::new(""));
    let mut options = pb::ThreadOptions {
        model: model.clone(),
        working_directory: Some(absolute(directory, cd)?),
        // Said either way: a default of the sidecar's must not switch the check off.
        skip_git_repo_check: Some(*skip_git_repo_check || *bypass),
        thread_source: String::new(),
        ..Default::default()
    };
    options.set_approval_policy(pb::ApprovalPolicy::Never);
    let sandbox = if *bypass { Some("danger-full-access") } else { sandbox.as_deref() };
    if let Some(mode) = sandbox {
        options.set_sandbox_mode(sandbox_mode(mode)?);
    }
    configure(overrides, directory, &mut options)?;
    for added in add_dir {
        options.additional_directories.push(absolute(directory, added)?);
    }

    let thread_id = args.thread_id().unwrap_or_default();
    let is_new = thread_id.is_empty() && asked.resume_last.is_none();
    if is_new {
        // As the real one files its threads.
        options.thread_source = thread_source.clone().unwrap_or_else(|| "user".to_owned());
    } else if asked.resume_last.is_none() && uuid::Uuid::try_parse(thread_id).is_err() {
        return Err(failed(format!(
            "resume {thread_id:?} can't be honoured through a sidecar: it finds threads by their \
             ids (UUIDs), not by names"
        )));
    }
    let context_id = context_id.unwrap_or_default();
    if *ephemeral && !(is_new && context_id.is_empty()) {
        return Err(failed(
            "--ephemeral can't be combined with resume or CODEX_SIDECAR_CONTEXT: an ephemeral \
             thread is neither continued nor bound",
        ));
    }

    let (mut inputs, mut review, mut schema) = (Vec::new(), None, String::new());
    match said {
        Said::Prompt { text, output_schema } => {
            for image in args.images() {
                let path = absolute(directory, image)?;
                inputs.push(input(pb::user_input::Input::LocalImage(pb::LocalImage { path })));
            }
            asked.prompt.clone_from(&text);
            inputs.push(input(pb::user_input::Input::Text(text)));
            schema = output_schema;
        }
        Said::Review(Review { target, hint }) => {
            asked.prompt = hint;
            review = Some(target.into());
        }
    }
    asked.request = pb::RunTurnRequest {
        context_id: context_id.to_owned(),
        inputs,
        ephemeral: *ephemeral,
        thread_id: thread_id.to_owned(),
        thread_options: Some(options),
        turn_options: Some(pb::TurnOptions { output_schema: schema, ..Default::default() }),
        review,
        // Kept on disk to be resumed by its id, and bound to nothing: callers of this kind keep the
        // id themselves.
        unbound: is_new && context_id.is_empty() && !*ephemeral,
        ..Default::default()
    };
    Ok(asked)
}

/// Settles what the overrides say: what the contract has a field for goes there, where nothing is said
/// yet; the rest becomes `config`.
pub(in crate::cli) fn configure(
    mut overrides: Overrides,
    directory: &Path,
    options: &mut pb::ThreadOptions,
) -> Result<(), Failure> {
    let model = text(&mut overrides, "model")?;
    options.model = options.model.take().or(model);
    if let Some(mode) = text(&mut overrides, "sandbox_mode")? {
        let mode = sandbox_mode(&mode)?;
        if options.sandbox_mode() == pb::SandboxMode::Unspecified {
            options.set_sandbox_mode(mode);
        }
    }
    if let Some(effort) = text(&mut overrides, "model_reasoning_effort")? {
        options.model_reasoning_effort_name = effort;
    }
    workspace_write(&mut overrides, directory, options)?;
    if let Some(mode) = text(&mut overrides, "web_search")? {
        match mode.as_str() {
            "disabled" => options.set_web_search_mode(pb::WebSearchMode::Disabled),
            "cached" => options.set_web_search_mode(pb::WebSearchMode::Cached),
            "live" => options.set_web_search_mode(pb::WebSearchMode::Live),
            // One that the contract has no name for goes as it came.
            _ => overrides.set("web_search", Value::String(mode)),
        }
    }
    options.config = overrides.into_struct().map_err(failed)?;
    Ok(())
}

pub(in crate::cli) fn input(input: pb::user_input::Input) -> pb::UserInput {
    pb::UserInput { input: Some(input) }
}

/// The real one runs under `never`, whatever is configured.
fn check_approval_policy(
    overrides: &mut Overrides,
    warnings: &mut Vec<String>,
) -> Result<(), Failure> {
    match text(overrides, "approval_policy")?.as_deref() {
        None | Some("never") => {}
        Some(policy @ ("on-request" | "on-failure")) => warnings.push(format!(
            "approval_policy {policy:?} is of no effect: codex exec runs under \"never\", and so \
             does this"
        )),
        Some("untrusted") => {
            return Err(failed(
                "approval_policy = \"untrusted\" is no longer supported; remove this setting",
            ));
        }
        Some(policy) => {
            return Err(failed(format!("{policy:?} is no approval_policy")));
        }
    }
    match overrides.any_within("approval_policy") {
        Some(path) => Err(failed(format!(
            "-c {path} can't be honoured through a sidecar: a turn of codex exec runs under \
             approval_policy \"never\""
        ))),
        None => Ok(()),
    }
}

pub(in crate::cli) fn sandbox_mode(mode: &str) -> Result<pb::SandboxMode, Failure> {
    match mode {
        "read-only" => Ok(pb::SandboxMode::ReadOnly),
        "workspace-write" => Ok(pb::SandboxMode::WorkspaceWrite),
        "danger-full-access" => Ok(pb::SandboxMode::DangerFullAccess),
        _ => Err(failed(format!(
            "{mode:?} is no sandbox_mode; wants read-only, workspace-write or danger-full-access"
        ))),
    }
}

/// The table `sandbox_workspace_write`: the sidecar settles the sandbox turn by turn, and has
/// fields for two of its keys.
fn workspace_write(
    overrides: &mut Overrides,
    directory: &Path,
    options: &mut pb::ThreadOptions,
) -> Result<(), Failure> {
    match overrides.take("sandbox_workspace_write.network_access") {
        Some(Value::Boolean(enabled)) => options.network_access_enabled = Some(enabled),
        Some(value) => {
            return Err(failed(format!(
                "sandbox_workspace_write.network_access is {value}; wants true or false"
            )));
        }
        None => {}
    }
    match overrides.take("sandbox_workspace_write.writable_roots") {
        Some(Value::Array(roots)) => {
            for root in roots {
                let Value::String(root) = root else {
                    return Err(failed("sandbox_workspace_write.writable_roots wants paths"));
                };
                options.additional_directories.push(absolute(directory, Path::new(&root))?);
            }
        }
        Some(_) => return Err(failed("sandbox_workspace_write.writable_roots wants a list")),
        None => {}
    }
    match overrides.any_within("sandbox_workspace_write") {
        Some(path) => Err(failed(format!(
            "-c {path} can't be honoured through a sidecar; say it in the config.toml of its \
             CODEX_HOME"
        ))),
        None => Ok(()),
    }
}

pub(in crate::cli) fn text(
    overrides: &mut Overrides,
    path: &str,
) -> Result<Option<String>, Failure> {
    match overrides.take(path) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(value) => Err(failed(format!("{path} is {value}; wants a text"))),
    }
}

/// The path from the root, for a process that works in another directory. Links stay as they are;
/// only a `..` has to be resolved, which the sidecar does not take.
pub(in crate::cli) fn absolute(directory: &Path, path: &Path) -> Result<String, Failure> {
    let joined: PathBuf = directory.join(path).components().collect();
    let has_parents = joined.components().any(|part| part == Component::ParentDir);
    let absolute = if has_parents {
        joined.canonicalize().map_err(|error| failed(format!("{}: {error}", joined.display())))?
    } else {
        joined
    };
    let text = absolute.into_os_string().into_string();
    text.map_err(|path| failed(format!("{} is not UTF-8", Path::new(&path).display())))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use prost_types::value::Kind;

    use super::*;

    const ID: &str = "01a2027d-3c05-7d20-bbab-2c1375cd12d9";

    fn ask_in(line: &[&str], context_id: Option<&str>) -> Result<Asked, Failure> {
        let args = ExecArgs::try_parse_from(std::iter::once("exec").chain(line.iter().copied()));
        let place = Place { directory: Path::new("/here"), context_id };
        let args = args.unwrap();
        let said = match args.review() {
            Some(review) => Said::Review(review.read()?),
            None => Said::Prompt { text: "hello".to_owned(), output_schema: String::new() },
        };
        ask(&args, place, said)
    }

    fn request(line: &[&str]) -> pb::RunTurnRequest {
        ask_in(line, None).unwrap().request
    }

    fn refusal(line: &[&str]) -> String {
        match ask_in(line, None).unwrap_err() {
            Failure::Told { message, code: 1 } => message,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_the_real_one_settles_by_itself_is_said_and_the_rest_is_left_to_the_cli() {
        let expected = pb::RunTurnRequest {
            inputs: vec![input(pb::user_input::Input::Text("hello".to_owned()))],
            thread_options: Some(pb::ThreadOptions {
                working_directory: Some("/here".to_owned()),
                skip_git_repo_check: Some(false),
                approval_policy: pb::ApprovalPolicy::Never.into(),
                thread_source: "user".to_owned(),
                ..Default::default()
            }),
            turn_options: Some(pb::TurnOptions::default()),
            unbound: true,
            ..Default::default()
        };
        assert_eq!(request(&["--json"]), expected);
    }

    #[test]
    fn all_that_the_sdks_pass_has_its_field() {
        let line = [
            "--experimental-json",
            "--config",
            "model_auto_compact_token_limit=77",
            "--model",
            "m",
            "--thread-source",
            "batch",
            "--sandbox",
            "workspace-write",
            "--cd",
            "sub/./dir",
            "--add-dir",
            "/extra",
            "--add-dir",
            "more",
            "--skip-git-repo-check",
            "--config",
            "model_reasoning_effort=\"xhigh\"",
            "--config",
            "sandbox_workspace_write.network_access=true",
            "--config",
            "web_search=\"cached\"",
            "--config",
            "approval_policy=\"never\"",
            "--image",
            "a.png",
        ];
        let request = request(&line);
        let mut options = request.thread_options.unwrap();
        let config = options.config.take().unwrap();
        let number = config.fields["model_auto_compact_token_limit"].kind.clone();
        assert_eq!((config.fields.len(), number), (1, Some(Kind::NumberValue(77.0))));
        let expected = pb::ThreadOptions {
            model: Some("m".to_owned()),
            sandbox_mode: pb::SandboxMode::WorkspaceWrite.into(),
            working_directory: Some("/here/sub/dir".to_owned()),
            skip_git_repo_check: Some(true),
            model_reasoning_effort_name: "xhigh".to_owned(),
            network_access_enabled: Some(true),
            web_search_mode: pb::WebSearchMode::Cached.into(),
            approval_policy: pb::ApprovalPolicy::Never.into(),
            additional_directories: vec!["/extra".to_owned(), "/here/more".to_owned()],
            thread_source: "batch".to_owned(),
            ..Default::default()
        };
        assert_eq!(options, expected);
        let image = pb::LocalImage { path: "/here/a.png".to_owned() };
        assert_eq!(request.inputs[0], input(pb::user_input::Input::LocalImage(image)));
    }

    #[test]
    fn a_resumed_thread_is_named_and_a_context_binds() {
        let resumed = request(&["resume", ID, "-"]);
        assert_eq!((resumed.thread_id.as_str(), resumed.unbound), (ID, false));
        assert_eq!(resumed.thread_options.unwrap().thread_source, "");
        let bound = ask_in(&["-"], Some("c")).unwrap().request;
        assert_eq!((bound.context_id.as_str(), bound.unbound), ("c", false));
        let both = ask_in(&["resume", ID, "-"], Some("c")).unwrap().request;
        assert_eq!((both.context_id.as_str(), both.thread_id.as_str()), ("c", ID));
        let ephemeral = request(&["--ephemeral"]);
        assert_eq!((ephemeral.ephemeral, ephemeral.unbound), (true, false));
        assert!(ask_in(&["--ephemeral"], Some("c")).is_err());
        assert!(refusal(&["resume", "my thread"]).contains("not by names"));
    }

    #[test]
    fn a_review_has_no_inputs_and_shows_what_it_looks_at() {
        let line = ["--ephemeral", "-i", "a.png", "--json", "review", "--base", "main", "-m", "m"];
        let asked = ask_in(&line, None).unwrap();
        let target = pb::review_target::Target::BaseBranch("main".to_owned());
        assert_eq!(asked.request.review, Some(target.into()));
        assert_eq!(
            (asked.request.inputs, asked.prompt.as_str()),
            (vec![], "changes against 'main'")
        );
        assert_eq!(asked.request.thread_options.unwrap().model.as_deref(), Some("m"));
    }

    #[test]
    fn flags_win_over_overrides_and_the_bypass_over_both() {
        let config = ["-c", "model=a", "-c", "sandbox_mode=read-only"];
        let options =
            |more: &[&str]| request(&[&config[..], more].concat()).thread_options.unwrap();
        assert_eq!(options(&[]).model.as_deref(), Some("a"));
        assert_eq!(options(&[]).sandbox_mode(), pb::SandboxMode::ReadOnly);
        let flags = options(&["-m", "b", "-s", "workspace-write"]);
        assert_eq!(flags.model.as_deref(), Some("b"));
        assert_eq!(flags.sandbox_mode(), pb::SandboxMode::WorkspaceWrite);
        let bypass = options(&["--yolo"]);
        assert_eq!(bypass.sandbox_mode(), pb::SandboxMode::DangerFullAccess);
        assert_eq!((bypass.skip_git_repo_check, bypass.config), (Some(true), None));
    }

    #[test]
    fn what_has_no_effect_is_told_and_what_cant_be_honoured_is_refused() {
        let asked = ask_in(&["-c", "approval_policy=\"on-request\""], None).unwrap();
        assert!(asked.warnings[0].contains("of no effect"), "{:?}", asked.warnings);
        let asked = ask_in(&["-c", "openai_base_url=\"http://x/v1\""], None).unwrap();
        assert_eq!(asked.base_url.as_deref(), Some("http://x/v1"));
        assert_eq!(asked.request.thread_options.unwrap().config, None);
        for (text, why) in [
            ("approval_policy=\"untrusted\"", "no longer supported"),
            ("approval_policy=\"bogus\"", "no approval_policy"),
            ("approval_policy={granular={rules=true}}", "can't be honoured"),
            ("sandbox_mode=\"bogus\"", "no sandbox_mode"),
            ("sandbox_workspace_write.exclude_slash_tmp=true", "can't be honoured"),
            ("sandbox_workspace_write.network_access=\"yes\"", "wants true or false"),
            ("model=3", "wants a text"),
            ("nonsense", "Error parsing -c overrides: Invalid override"),
        ] {
            let message = refusal(&["-c", text]);
            assert!(message.contains(why), "{text}: {message}");
        }
    }
}
