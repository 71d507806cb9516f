//! What a command line of `run` asks the sidecar for.

use std::io::{self, Read as _};
use std::path::Path;
use std::time::Duration;

use super::RunArgs;
use crate::cli::USAGE;
use crate::cli::failure::Failure;
use crate::pb;

/// The request that the arguments ask for. Only what has to be read here is looked at here; the
/// rest is the sidecar's to judge.
pub(super) fn of(args: &RunArgs) -> Result<pb::RunTurnRequest, Failure> {
    let RunArgs {
        addr: _,
        context,
        tool,
        thread,
        ephemeral,
        cd,
        skip_git_repo_check,
        model,
        sandbox,
        permission_profile,
        reasoning_summary,
        effort,
        approval,
        image,
        output_schema,
        turn_timeout,
        max_total_tokens,
        idle_timeout,
        request_id,
        busy,
        on_disconnect,
        json: _,
        prompt,
    } = args;

    let prompt = if prompt == "-" { read_stdin()? } else { prompt.clone() };
    let mut inputs = vec![input(pb::user_input::Input::Text(prompt))];
    for path in image {
        let path = absolute(path)?;
        inputs.push(input(pb::user_input::Input::LocalImage(pb::LocalImage { path })));
    }
    let output_schema = match output_schema {
        Some(path) => std::fs::read_to_string(path).map_err(|error| {
            usage(format!("can't read the output schema {}: {error}", path.display()))
        })?,
        None => String::new(),
    };

    let mut thread_options = pb::ThreadOptions {
        model: model.clone(),
        sandbox_mode: number(pb::SandboxMode::from_str_name, "SANDBOX_MODE_", sandbox),
        working_directory: cd.as_deref().map(absolute).transpose()?,
        skip_git_repo_check: skip_git_repo_check.then_some(true),
        approval_policy: number(pb::ApprovalPolicy::from_str_name, "APPROVAL_POLICY_", approval),
        reasoning_summary: number(
            pb::ReasoningSummary::from_str_name,
            "REASONING_SUMMARY_",
            reasoning_summary,
        ),
        permission_profile: permission_profile.clone().unwrap_or_default(),
        ..Default::default()
    };
    if let Some(effort) = effort {
        // By its number where it has one: an older sidecar knows those.
        match pb::ReasoningEffort::from_str_name(&enum_name("REASONING_EFFORT_", effort)) {
            Some(known) if known != pb::ReasoningEffort::Unspecified => {
                thread_options.set_model_reasoning_effort(known);
            }
            _ => thread_options.model_reasoning_effort_name = effort.clone(),
        }
    }

    Ok(pb::RunTurnRequest {
        context_id: context.clone().unwrap_or_default(),
        tool_name: tool.clone(),
        inputs,
        ephemeral: *ephemeral,
        thread_id: thread.clone().unwrap_or_default(),
        thread_options: Some(thread_options),
        turn_options: Some(pb::TurnOptions {
            output_schema,
            idle_timeout: idle_timeout.map(duration).transpose()?,
            turn_timeout: turn_timeout.map(duration).transpose()?,
            max_total_tokens: max_total_tokens.unwrap_or_default(),
            ..Default::default()
        }),
        request_id: request_id.clone(),
        busy_policy: number(pb::BusyPolicy::from_str_name, "BUSY_POLICY_", busy),
        disconnect_policy: number(
            pb::DisconnectPolicy::from_str_name,
            "DISCONNECT_POLICY_",
            on_disconnect,
        ),
        ..Default::default()
    })
}

fn input(input: pb::user_input::Input) -> pb::UserInput {
    pb::UserInput { input: Some(input) }
}

/// The number of an enum's value, zero where none is chosen.
fn number<E: Into<i32>>(
    by_name: fn(&str) -> Option<E>,
    prefix: &str,
    text: &Option<String>,
) -> i32 {
    let text = text.as_deref();
    text.and_then(|text| by_name(&enum_name(prefix, text))).map_or(0, Into::into)
}

/// `read-only` as the contract spells it: `SANDBOX_MODE_READ_ONLY`.
fn enum_name(prefix: &str, text: &str) -> String {
    format!("{prefix}{}", text.to_ascii_uppercase().replace('-', "_"))
}

fn duration(duration: Duration) -> Result<prost_types::Duration, Failure> {
    duration.try_into().map_err(|_| usage(format!("{duration:?} is too long")))
}

/// The path from the root: the sidecar works in another directory than this client.
fn absolute(path: &Path) -> Result<String, Failure> {
    let absolute = std::path::absolute(path)
        .map_err(|error| usage(format!("{} can't be made absolute: {error}", path.display())))?;
    let text = absolute.to_str();
    text.map(str::to_owned).ok_or_else(|| usage(format!("{} is not UTF-8", path.display())))
}

fn read_stdin() -> Result<String, Failure> {
    let mut prompt = String::new();
    io::stdin()
        .read_to_string(&mut prompt)
        .map_err(|error| usage(format!("can't read the prompt from stdin: {error}")))?;
    Ok(prompt)
}

fn usage(message: String) -> Failure {
    Failure::Told { message, code: USAGE }
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
            "--busy",
            "steer",
            "--on-disconnect",
            "continue",
            "--",
            "-hello",
        ])
        .unwrap();
        let image = |path: &str| {
            input(pb::user_input::Input::LocalImage(pb::LocalImage { path: path.to_owned() }))
        };
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
                ..Default::default()
            }),
            turn_options: Some(pb::TurnOptions {
                output_schema: "{}".to_owned(),
                idle_timeout: Some(prost_types::Duration { seconds: 2, nanos: 0 }),
                turn_timeout: Some(prost_types::Duration { seconds: 60, nanos: 500_000_000 }),
                max_total_tokens: 9000,
                ..Default::default()
            }),
            request_id: "r".to_owned(),
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
            ("--busy", vec!["queue", "reject", "steer"]),
            ("--on-disconnect", vec!["interrupt", "continue"]),
        ];
        for (flag, words) in words {
            for word in words {
                let request = of(&parse(&["--ephemeral", flag, word, "x"]).unwrap()).unwrap();
                let options = request.thread_options.unwrap();
                let numbers = [
                    options.sandbox_mode,
                    options.approval_policy,
                    request.busy_policy,
                    request.disconnect_policy,
                ];
                assert_ne!(numbers, [0; 4], "{flag} {word}");
            }
        }
        assert!(parse(&["x"]).is_err(), "no thread was chosen");
        assert!(parse(&["--ephemeral", "--context", "c", "x"]).is_err());
    }
}
