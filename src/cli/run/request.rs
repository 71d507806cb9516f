//! What a command line of `run` asks the sidecar for.

use std::env::VarError;

use super::RunArgs;
use crate::cli::args::{absolute, enum_name, number, prompt, to_protobuf};
use crate::cli::exec::overrides::Overrides;
use crate::cli::failure::Failure;
use crate::pb;
use crate::pb::review_target::Target;

/// The request that the arguments ask for. Only what has to be read here is looked at here; the
/// rest is the sidecar's to judge.
pub(super) fn of(args: &RunArgs) -> Result<pb::RunTurnRequest, Failure> {
    let RunArgs {
        addr: _,
        context,
        context_policy,
        tool,
        thread_key,
        thread,
        missing_thread,
        ephemeral,
        options: _,
        inputs,
        review,
        compact,
        output_schema,
        turn_timeout,
        max_total_tokens,
        idle_timeout,
        answer_timeout,
        request_id,
        busy,
        on_disconnect,
        questions: _,
        output: _,
        prompt: said,
    } = args;

    let says_nothing = review.is_some() || *compact;
    let said = if says_nothing { None } else { Some(prompt(said.as_deref())?) };
    let output_schema = match output_schema {
        Some(path) => std::fs::read_to_string(path).map_err(|error| {
            Failure::usage(format!("can't read --output-schema {}: {error}", path.display()))
        })?,
        None => String::new(),
    };
    Ok(pb::RunTurnRequest {
        context_id: context.clone().unwrap_or_default(),
        tool_name: tool.clone(),
        thread_id_key: thread_key.clone(),
        inputs: inputs.inputs(said)?,
        ephemeral: *ephemeral,
        thread_id: thread.clone().unwrap_or_default(),
        thread_options: Some(thread_options(args)?),
        turn_options: Some(pb::TurnOptions {
            output_schema,
            idle_timeout: idle_timeout.map(to_protobuf).transpose()?,
            turn_timeout: turn_timeout.map(to_protobuf).transpose()?,
            answer_timeout: answer_timeout.map(to_protobuf).transpose()?,
            max_total_tokens: max_total_tokens.unwrap_or_default(),
            omit_final_response: false,
        }),
        request_id: request_id.clone(),
        busy_policy: number(pb::BusyPolicy::from_str_name, "BUSY_POLICY_", busy),
        disconnect_policy: number(
            pb::DisconnectPolicy::from_str_name,
            "DISCONNECT_POLICY_",
            on_disconnect,
        ),
        missing_thread_policy: number(
            pb::MissingThreadPolicy::from_str_name,
            "MISSING_THREAD_POLICY_",
            missing_thread,
        ),
        context_policy: number(pb::ContextPolicy::from_str_name, "CONTEXT_POLICY_", context_policy),
        review: review.as_deref().map(review_target),
        compact: *compact,
        ..Default::default()
    })
}

fn thread_options(args: &RunArgs) -> Result<pb::ThreadOptions, Failure> {
    let super::ThreadArgs {
        cd,
        skip_git_repo_check,
        add_dir,
        model,
        effort,
        reasoning_summary,
        service_tier,
        sandbox,
        permission_profile,
        network,
        web_search,
        approval,
        reviewer,
        config,
        environment,
    } = &args.options;
    let mut options = pb::ThreadOptions {
        model: model.clone(),
        sandbox_mode: number(pb::SandboxMode::from_str_name, "SANDBOX_MODE_", sandbox),
        working_directory: cd.as_deref().map(absolute).transpose()?,
        skip_git_repo_check: skip_git_repo_check.then_some(true),
        additional_directories: add_dir
            .iter()
            .map(|directory| absolute(directory))
            .collect::<Result<_, _>>()?,
        network_access_enabled: *network,
        web_search_mode: number(pb::WebSearchMode::from_str_name, "WEB_SEARCH_MODE_", web_search),
        approval_policy: number(pb::ApprovalPolicy::from_str_name, "APPROVAL_POLICY_", approval),
        approvals_reviewer: number(
            pb::ApprovalsReviewer::from_str_name,
            "APPROVALS_REVIEWER_",
            reviewer,
        ),
        reasoning_summary: number(
            pb::ReasoningSummary::from_str_name,
            "REASONING_SUMMARY_",
            reasoning_summary,
        ),
        permission_profile: permission_profile.clone().unwrap_or_default(),
        service_tier: service_tier.clone().unwrap_or_default(),
        config: Overrides::parse(config)
            .map_err(|fault| Failure::usage(format!("-c: {fault}")))?
            .into_struct()
            .map_err(Failure::usage)?,
        environment: environment.iter().map(|text| variable(text)).collect::<Result<_, _>>()?,
        ..Default::default()
    };
    if let Some(effort) = effort {
        // By its number where it has one: an older sidecar knows those.
        match pb::ReasoningEffort::from_str_name(&enum_name("REASONING_EFFORT_", effort)) {
            Some(known) if known != pb::ReasoningEffort::Unspecified => {
                options.set_model_reasoning_effort(known);
            }
            _ => options.model_reasoning_effort_name = effort.clone(),
        }
    }
    Ok(options)
}

/// `NAME=VALUE`, or `NAME` as it is here.
fn variable(text: &str) -> Result<(String, String), Failure> {
    if let Some((name, value)) = text.split_once('=') {
        return Ok((name.to_owned(), value.to_owned()));
    }
    let value = std::env::var(text).map_err(|error| match error {
        VarError::NotPresent => Failure::usage(format!("--env {text}: it is not set here")),
        VarError::NotUnicode(_) => Failure::usage(format!("--env {text}: its value is no UTF-8")),
    })?;
    Ok((text.to_owned(), value))
}

/// `uncommitted`, `base=BRANCH`, `commit=COMMIT`, or what the reviewer is told.
fn review_target(text: &str) -> pb::ReviewTarget {
    let target = match text.split_once('=') {
        _ if text == "uncommitted" => Target::UncommittedChanges(true),
        Some(("base", branch)) => Target::BaseBranch(branch.to_owned()),
        Some(("commit", commit)) => Target::Commit(commit.to_owned()),
        _ => Target::Instructions(text.to_owned()),
    };
    pb::ReviewTarget { target: Some(target) }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        run: RunArgs,
    }

    fn parse(line: &[&str]) -> Result<RunArgs, clap::Error> {
        Line::try_parse_from(std::iter::once("run").chain(line.iter().copied()))
            .map(|line| line.run)
    }

    #[test]
    fn every_argument_reaches_the_request() {
        let directory = tempfile::tempdir().unwrap();
        let schema = directory.path().join("schema.json");
        std::fs::write(&schema, "{}").unwrap();
        let args = parse(&[
            "--context",
            "c",
            "--tool",
            "codex_engineer",
            "--thread",
            "t",
            "--cd",
            "/work/./x",
            "--skip-git-repo-check",
            "--model",
            "m",
            "--sandbox",
            "workspace-write",
            "--effort",
            "xhigh",
            "--approval",
            "on-request",
            "--image",
            "/a.png",
            "--image",
            "/b.png",
            "--output-schema",
            schema.to_str().unwrap(),
            "--turn-timeout",
            "1m 500ms",
            "--max-total-tokens",
            "9000",
            "--idle-timeout",
            "2s",
            "--request-id",
            "r",
            "--answer-timeout",
            "3",
            "--busy",
            "steer",
            "--context-policy",
            "must-exist",
            "--missing-thread",
            "start-new",
            "--thread-key",
            "k",
            "--add-dir",
            "/more",
            "--add-dir",
            "/most",
            "--network",
            "--web-search",
            "--reviewer",
            "auto-review",
            "--service-tier",
            "fast",
            "-c",
            "a.b=1",
            "--env",
            "A=b=c",
            "--env",
            "PATH",
            "--on-disconnect",
            "continue",
            "--",
            "-hello",
        ])
        .unwrap();
        let input = |input| pb::UserInput { input: Some(input) };
        let image = |path: &str| {
            input(pb::user_input::Input::LocalImage(pb::LocalImage { path: path.to_owned() }))
        };
        let one = prost_types::Value { kind: Some(prost_types::value::Kind::NumberValue(1.0)) };
        let expected = pb::RunTurnRequest {
            context_id: "c".to_owned(),
            tool_name: "codex_engineer".to_owned(),
            inputs: vec![
                input(pb::user_input::Input::Text("-hello".to_owned())),
                image("/a.png"),
                image("/b.png"),
            ],
            thread_id: "t".to_owned(),
            thread_options: Some(pb::ThreadOptions {
                model: Some("m".to_owned()),
                sandbox_mode: pb::SandboxMode::WorkspaceWrite.into(),
                working_directory: Some("/work/x".to_owned()),
                skip_git_repo_check: Some(true),
                model_reasoning_effort: pb::ReasoningEffort::Xhigh.into(),
                approval_policy: pb::ApprovalPolicy::OnRequest.into(),
                additional_directories: vec!["/more".to_owned(), "/most".to_owned()],
                network_access_enabled: Some(true),
                web_search_mode: pb::WebSearchMode::Live.into(),
                approvals_reviewer: pb::ApprovalsReviewer::AutoReview.into(),
                service_tier: "fast".to_owned(),
                environment: [("A", "b=c".to_owned()), ("PATH", std::env::var("PATH").unwrap())]
                    .map(|(name, value)| (name.to_owned(), value))
                    .into(),
                config: Some(prost_types::Struct {
                    fields: [("a.b".to_owned(), one)].into_iter().collect(),
                }),
                ..Default::default()
            }),
            turn_options: Some(pb::TurnOptions {
                output_schema: "{}".to_owned(),
                idle_timeout: Some(prost_types::Duration { seconds: 2, nanos: 0 }),
                turn_timeout: Some(prost_types::Duration { seconds: 60, nanos: 500_000_000 }),
                answer_timeout: Some(prost_types::Duration { seconds: 3, nanos: 0 }),
                max_total_tokens: 9000,
                ..Default::default()
            }),
            thread_id_key: "k".to_owned(),
            request_id: "r".to_owned(),
            context_policy: pb::ContextPolicy::MustExist.into(),
            missing_thread_policy: pb::MissingThreadPolicy::StartNew.into(),
            busy_policy: pb::BusyPolicy::Steer.into(),
            disconnect_policy: pb::DisconnectPolicy::Continue.into(),
            ..Default::default()
        };
        assert_eq!(of(&args).unwrap(), expected);

        let newer = parse(&["--ephemeral", "--effort", "ultra", "x"]).unwrap();
        let options = of(&newer).unwrap().thread_options.unwrap();
        assert_eq!(options.model_reasoning_effort_name, "ultra");
        assert_eq!(options.model_reasoning_effort, 0);
    }

    #[test]
    fn every_listed_word_is_one_of_the_contract() {
        let words = [
            ("--sandbox", vec!["read-only", "workspace-write", "danger-full-access"]),
            ("--approval", vec!["never", "on-request", "on-failure", "untrusted"]),
            ("--busy", vec!["queue", "reject", "steer", "interrupt"]),
            ("--web-search=", vec!["disabled", "cached", "live"]),
            ("--reviewer", vec!["user", "auto-review"]),
            ("--context-policy", vec!["any", "must-exist", "must-be-new"]),
            ("--missing-thread", vec!["fail", "start-new"]),
            ("--on-disconnect", vec!["interrupt", "continue"]),
        ];
        for (flag, words) in words {
            for word in words {
                let argument = match flag.strip_suffix('=') {
                    Some(_) => vec![format!("{flag}{word}")],
                    None => vec![flag.to_owned(), word.to_owned()],
                };
                let line: Vec<&str> =
                    argument.iter().map(String::as_str).chain(["--ephemeral", "x"]).collect();
                let request = of(&parse(&line).unwrap()).unwrap();
                let options = request.thread_options.unwrap();
                let numbers = [
                    options.sandbox_mode,
                    options.approval_policy,
                    request.busy_policy,
                    request.disconnect_policy,
                    options.web_search_mode,
                    options.approvals_reviewer,
                    request.context_policy,
                    request.missing_thread_policy,
                ];
                assert_ne!(numbers, [0; 8], "{flag} {word}");
            }
        }
        let network = |flag| {
            let request = of(&parse(&["--ephemeral", flag, "x"]).unwrap()).unwrap();
            request.thread_options.unwrap().network_access_enabled
        };
        assert_eq!((network("--network"), network("--network=false")), (Some(true), Some(false)));
        assert!(parse(&["x"]).is_err(), "no thread was chosen");
        assert!(parse(&["--ephemeral", "--context", "c", "x"]).is_err());
    }

    #[test]
    fn a_review_or_a_compaction_takes_the_place_of_a_prompt() {
        let review = |target: &str| {
            let request = of(&parse(&["--context", "c", "--review", target]).unwrap()).unwrap();
            assert_eq!(request.inputs, []);
            request.review.unwrap().target.unwrap()
        };
        assert_eq!(review("uncommitted"), Target::UncommittedChanges(true));
        assert_eq!(review("base=main"), Target::BaseBranch("main".to_owned()));
        assert_eq!(review("commit=abc"), Target::Commit("abc".to_owned()));
        let words = "look at x=y";
        assert_eq!(review(words), Target::Instructions(words.to_owned()));
        let compact = of(&parse(&["--context", "c", "--compact"]).unwrap()).unwrap();
        assert!(compact.compact && compact.inputs.is_empty());
        assert!(parse(&["--context", "c", "--compact", "x"]).is_err());
        assert!(parse(&["--context", "c", "--review", "uncommitted", "x"]).is_err());
    }
}
