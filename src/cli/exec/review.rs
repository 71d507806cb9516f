//! `exec review`: a review of changes, with the flags and the texts of `codex exec review`.

use super::{Failure, failed, prompt};
use crate::pb;
use crate::pb::review_target::Target;

#[derive(Debug, Clone, Default, PartialEq, clap::Args)]
pub(super) struct ReviewArgs {
    /// Review what is changed, staged or untracked
    #[arg(long, conflicts_with_all = ["base", "commit", "review_prompt"])]
    uncommitted: bool,
    /// Review what the current branch changes compared with this one
    #[arg(long, value_name = "BRANCH", conflicts_with_all = ["commit", "review_prompt"])]
    base: Option<String>,
    /// Review what a commit changes
    #[arg(long, value_name = "SHA", conflicts_with = "review_prompt")]
    commit: Option<String>,
    /// What the commit is called
    #[arg(long, value_name = "TITLE")]
    title: Option<String>,
    // Named apart from the prompt before `review`, which counts for nothing here.
    /// What to look at; - reads it from stdin
    #[arg(id = "review_prompt", value_name = "PROMPT")]
    prompt: Option<String>,
}

/// What is under review.
#[derive(Debug, PartialEq)]
pub(super) struct Review {
    pub(super) target: Target,
    /// What the header shows in place of a prompt.
    pub(super) hint: String,
}

impl ReviewArgs {
    /// Reads what is under review; standard input only where a `-` says so.
    pub(super) fn read(&self) -> Result<Review, Failure> {
        let ReviewArgs { uncommitted, base, commit, title, prompt } = self;
        if *uncommitted {
            let target = Target::UncommittedChanges(true);
            return Ok(Review { target, hint: "current changes".to_owned() });
        }
        if let Some(base) = base {
            let hint = format!("changes against '{base}'");
            return Ok(Review { target: Target::BaseBranch(base.clone()), hint });
        }
        if let Some(commit) = commit {
            return Ok(of_commit(commit, title.as_deref()));
        }
        let Some(prompt) = prompt.as_deref() else {
            return Err(failed(
                "Specify --uncommitted, --base, --commit, or provide custom review instructions",
            ));
        };
        let prompt = prompt::resolve(Some(prompt), true)?;
        let instructions = prompt.trim();
        if instructions.is_empty() {
            return Err(failed("Review prompt cannot be empty"));
        }
        let target = Target::Instructions(instructions.to_owned());
        Ok(Review { target, hint: instructions.to_owned() })
    }
}

fn of_commit(commit: &str, title: Option<&str>) -> Review {
    let short: String = commit.chars().take(7).collect();
    let hint = match title {
        Some(title) => format!("commit {short}: {title}"),
        None => format!("commit {short}"),
    };
    let title = title.unwrap_or_default().trim();
    let target = if title.is_empty() || commit.trim().is_empty() {
        Target::Commit(commit.to_owned())
    } else {
        // The contract has no title of a commit: in the words of the CLI 0.169 it reaches the reviewer.
        let commit = commit.trim();
        Target::Instructions(format!(
            "Review the code changes introduced by commit {commit} (\"{title}\"). Provide prioritized, \
             actionable findings."
        ))
    };
    Review { target, hint }
}

impl From<Target> for pb::ReviewTarget {
    fn from(target: Target) -> pb::ReviewTarget {
        pb::ReviewTarget { target: Some(target) }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::super::args::ExecArgs;
    use super::*;

    fn read(line: &[&str]) -> Result<Review, Failure> {
        let args = ExecArgs::try_parse_from(["exec", "review"].iter().chain(line)).unwrap();
        args.review().unwrap().read()
    }

    #[test]
    fn each_kind_of_target_is_said_and_shown_as_codex_does() {
        let expected = [
            (&["--uncommitted"][..], Target::UncommittedChanges(true), "current changes"),
            (&["--base", "main"], Target::BaseBranch("main".to_owned()), "changes against 'main'"),
            (
                &["--commit", "fa61e6e20e"],
                Target::Commit("fa61e6e20e".to_owned()),
                "commit fa61e6e",
            ),
            (&["--commit", "x", "--title", ""], Target::Commit("x".to_owned()), "commit x: "),
            (&[" look at it "], Target::Instructions("look at it".to_owned()), "look at it"),
            (&["--title", "T", "it"], Target::Instructions("it".to_owned()), "it"),
        ];
        for (line, target, hint) in expected {
            assert_eq!(read(line), Ok(Review { target, hint: hint.to_owned() }), "{line:?}");
        }
        let titled = read(&["--commit", "HEAD", "--title", " a b "]).unwrap();
        assert_eq!(titled.hint, "commit HEAD:  a b ");
        assert!(
            matches!(&titled.target, Target::Instructions(text) if text.contains("HEAD (\"a b\")"))
        );
        for (line, why) in [(&[][..], "Specify --uncommitted"), (&[" "], "cannot be empty")] {
            assert!(read(line).unwrap_err().into_message().contains(why), "{line:?}");
        }
    }

    #[test]
    fn one_target_is_all_that_a_review_has() {
        let ways = [&["--uncommitted"][..], &["--base", "b"], &["--commit", "c"], &["look"]];
        for (at, one) in ways.iter().enumerate() {
            for other in &ways[at + 1..] {
                let line = [&["exec", "review"][..], one, other].concat();
                assert!(ExecArgs::try_parse_from(&line).is_err(), "{line:?}");
            }
        }
    }
}
