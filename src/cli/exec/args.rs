//! The command line of `codex exec`, as far as it can be honoured through a sidecar.
//!
//! It is read by a parser of its own, with the same rules as the real one: most flags may stand on
//! either side of `resume`, `--image` takes everything up to the next flag, `--` ends the flags.
//! What is known there and can't be honoured here is listed too, so that it is refused by name and
//! with a reason instead of as a typing error.

use std::path::PathBuf;

use clap::builder::PossibleValuesParser;

use super::last::ResumeLast;
use super::review::ReviewArgs;

#[derive(Debug, Clone, Default, PartialEq, clap::Parser)]
#[command(
    name = "codex-sidecar exec",
    bin_name = "codex-sidecar exec",
    version,
    about = "Run a turn as `codex exec` does, through the sidecar",
    override_usage = "codex-sidecar exec [OPTIONS] [PROMPT]\n       \
                      codex-sidecar exec [OPTIONS] resume [THREAD_ID | --last] [PROMPT]\n       \
                      codex-sidecar exec [OPTIONS] review [--uncommitted | --base BRANCH | --commit SHA | PROMPT]",
    after_help = "The sidecar is found at CODEX_SIDECAR_ADDR (HOST:PORT, https://HOST:PORT or unix:PATH; default \
                  127.0.0.1:50061). CODEX_SIDECAR_CONTEXT binds the turn to a context of its \
                  registry. Paths are those of the sidecar's machine, relative ones are taken \
                  from here."
)]
pub(in crate::cli) struct ExecArgs {
    #[command(subcommand)]
    pub(super) command: Option<Command>,
    #[command(flatten)]
    pub(super) flags: Flags,
    #[command(flatten)]
    pub(super) refused: Refused,
    /// An image to show, a file; takes all that follows up to the next flag
    #[arg(short, long, value_name = "FILE", num_args = 1.., value_delimiter = ',')]
    pub(super) image: Vec<PathBuf>,
    /// What to say; - reads it from stdin, and so does none; with one given, a piped stdin is added
    #[arg(value_name = "PROMPT")]
    pub(super) prompt: Option<String>,
}

#[derive(Debug, Clone, PartialEq, clap::Subcommand)]
pub(super) enum Command {
    /// Continue a thread
    Resume(ResumeArgs),
    /// Review changes
    Review(ReviewArgs),
    #[command(hide = true)]
    Fork(Unsupported),
}

#[derive(Debug, Clone, Default, PartialEq, clap::Args)]
pub(super) struct ResumeArgs {
    /// The thread's id, a UUID
    #[arg(value_name = "THREAD_ID")]
    pub(super) thread_id: Option<String>,
    /// What to say; - reads it from stdin, and so does none
    #[arg(value_name = "PROMPT")]
    pub(super) prompt: Option<String>,
    // Not the one above made global: it takes one value only, so that the id may follow it.
    /// An image to show, a file; may be given several times
    #[arg(short, long = "image", value_name = "FILE", num_args = 1, value_delimiter = ',')]
    pub(super) images: Vec<PathBuf>,
    /// Continue the thread that the sidecar worked with last in this directory, or in
    /// CODEX_SIDECAR_CONTEXT
    #[arg(long)]
    pub(super) last: bool,
    /// With --last: whatever the directory
    #[arg(long)]
    pub(super) all: bool,
}

/// What stands behind a subcommand that can't be honoured.
#[derive(Debug, Clone, Default, PartialEq, clap::Args)]
pub(super) struct Unsupported {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, num_args = 0..)]
    rest: Vec<std::ffi::OsString>,
}

/// Flags that are honoured, on either side of `resume`.
#[derive(Debug, Clone, Default, PartialEq, clap::Args)]
pub(super) struct Flags {
    /// Print the events as JSONL
    #[arg(long, alias = "experimental-json", global = true)]
    pub(super) json: bool,
    /// Override a value of the CLI's configuration; the value is TOML, or else a text
    #[arg(short, long, value_name = "KEY=VALUE", global = true)]
    pub(super) config: Vec<String>,
    /// Like `-c features.NAME=true`
    #[arg(long, value_name = "FEATURE", global = true)]
    pub(super) enable: Vec<String>,
    /// Like `-c features.NAME=false`
    #[arg(long, value_name = "FEATURE", global = true)]
    pub(super) disable: Vec<String>,
    /// The model
    #[arg(short, long, value_name = "MODEL", global = true)]
    pub(super) model: Option<String>,
    /// What commands may touch
    #[arg(short, long, value_name = "SANDBOX_MODE", global = true, value_parser = PossibleValuesParser::new(["read-only", "workspace-write", "danger-full-access"]))]
    pub(super) sandbox: Option<String>,
    /// No sandbox, and no check for a git repository
    #[arg(long, alias = "yolo", global = true)]
    pub(super) dangerously_bypass_approvals_and_sandbox: bool,
    /// The directory to work in
    #[arg(short = 'C', long, value_name = "DIR", global = true)]
    pub(super) cd: Option<PathBuf>,
    /// A directory that is writable beside it; may be given several times
    #[arg(long, value_name = "DIR", global = true)]
    pub(super) add_dir: Vec<PathBuf>,
    /// Allow a directory outside a git repository
    #[arg(long, global = true)]
    pub(super) skip_git_repo_check: bool,
    /// Keep the thread nowhere
    #[arg(long, global = true)]
    pub(super) ephemeral: bool,
    /// What a new thread is filed under
    #[arg(long, value_name = "SOURCE", global = true)]
    pub(super) thread_source: Option<String>,
    /// A file with a JSON schema for the last message
    #[arg(long, value_name = "FILE", global = true)]
    pub(super) output_schema: Option<PathBuf>,
    /// A file to write the last message to
    #[arg(short, long, value_name = "FILE", global = true)]
    pub(super) output_last_message: Option<PathBuf>,
    /// Whether what is told on stderr has colours; auto means: on a terminal
    #[arg(long, value_name = "COLOR", global = true, value_parser = PossibleValuesParser::new(["always", "never", "auto"]))]
    pub(super) color: Option<String>,
}

/// Flags that `codex exec` has and a sidecar can't honour for a single turn.
#[derive(Debug, Clone, Default, PartialEq, clap::Args)]
pub(super) struct Refused {
    #[arg(long, hide = true, global = true)]
    pub(super) strict_config: bool,
    #[arg(long, hide = true, global = true)]
    pub(super) oss: bool,
    #[arg(long, hide = true, global = true)]
    pub(super) local_provider: Option<String>,
    #[arg(short, long, hide = true, global = true)]
    pub(super) profile: Option<String>,
    #[arg(long, hide = true, global = true)]
    pub(super) approve_for_me: bool,
    #[arg(long, hide = true, global = true)]
    pub(super) dangerously_bypass_hook_trust: bool,
    #[arg(long, hide = true, global = true)]
    pub(super) worktree: bool,
    #[arg(long, hide = true, global = true)]
    pub(super) cyber_access_program: Option<String>,
    #[arg(long, hide = true, global = true)]
    pub(super) trust: bool,
    #[arg(long, hide = true, global = true)]
    pub(super) ignore_user_config: bool,
    #[arg(long, hide = true, global = true)]
    pub(super) ignore_rules: bool,
}

impl ExecArgs {
    /// The first thing that can't be honoured, and why.
    pub(super) fn refusal(&self) -> Option<String> {
        // All flags by name: a new one fails to compile until somebody has thought of it here.
        let Refused {
            strict_config,
            oss,
            local_provider,
            profile,
            approve_for_me,
            dangerously_bypass_hook_trust,
            worktree,
            cyber_access_program,
            trust,
            ignore_user_config,
            ignore_rules,
        } = &self.refused;
        let of_the_sidecar = "it is settled for the sidecar as a whole, in its CODEX_HOME and its \
                              own configuration";
        let not_offered = "the sidecar's contract has nothing like it";
        let refused = [
            (*strict_config, "--strict-config", of_the_sidecar),
            (*oss, "--oss", of_the_sidecar),
            (local_provider.is_some(), "--local-provider", of_the_sidecar),
            (profile.is_some(), "--profile", of_the_sidecar),
            (*approve_for_me, "--approve-for-me", not_offered),
            (*dangerously_bypass_hook_trust, "--dangerously-bypass-hook-trust", of_the_sidecar),
            (*worktree, "--worktree", not_offered),
            (cyber_access_program.is_some(), "--cyber-access-program", not_offered),
            (*trust, "--trust", of_the_sidecar),
            (*ignore_user_config, "--ignore-user-config", of_the_sidecar),
            (*ignore_rules, "--ignore-rules", of_the_sidecar),
        ];
        let flag = refused.into_iter().find(|(given, ..)| *given);
        let (name, why) = match (&self.command, flag) {
            (_, Some((_, name, why))) => (name, why),
            (Some(Command::Fork(_)), None) => ("fork", "use ForkContext of the sidecar's API"),
            (Some(Command::Resume(_) | Command::Review(_)) | None, None) => return None,
        };
        Some(format!("{name} can't be honoured through a sidecar: {why}"))
    }

    /// The thread to continue. An empty `resume` starts a new one, as the real one does.
    pub(super) fn thread_id(&self) -> Option<&str> {
        match &self.command {
            Some(Command::Resume(resume)) if !resume.last => resume.thread_id.as_deref(),
            Some(Command::Resume(_) | Command::Review(_) | Command::Fork(_)) | None => None,
        }
    }

    /// Whether the last thread is to be continued.
    pub(super) fn resume_last(&self) -> Option<ResumeLast> {
        match &self.command {
            Some(Command::Resume(resume)) if resume.last => {
                Some(ResumeLast { of_any_directory: resume.all })
            }
            Some(Command::Resume(_) | Command::Review(_) | Command::Fork(_)) | None => None,
        }
    }

    /// All images, in order. A `-` among them is the prompt's: `--image` has swallowed it.
    pub(super) fn images(&self) -> impl Iterator<Item = &PathBuf> {
        let of_resume = match &self.command {
            Some(Command::Resume(resume)) => resume.images.as_slice(),
            Some(Command::Review(_) | Command::Fork(_)) | None => &[],
        };
        self.image.iter().filter(|path| path.as_os_str() != "-").chain(of_resume)
    }

    /// The prompt argument: behind `resume`, or before it.
    pub(super) fn prompt(&self) -> Option<&str> {
        let of_resume = match &self.command {
            // With `--last` the first word behind it is the prompt.
            Some(Command::Resume(ResumeArgs { prompt: None, last: true, thread_id, .. })) => {
                thread_id.as_deref()
            }
            Some(Command::Resume(resume)) => resume.prompt.as_deref(),
            Some(Command::Review(_) | Command::Fork(_)) | None => None,
        };
        of_resume.or(self.prompt.as_deref())
    }

    /// What is to be reviewed, in place of a prompt.
    pub(super) fn review(&self) -> Option<&ReviewArgs> {
        match &self.command {
            Some(Command::Review(review)) => Some(review),
            Some(Command::Resume(_) | Command::Fork(_)) | None => None,
        }
    }

    /// Whether a thread is continued, where a piped stdin is not added to the prompt argument.
    pub(super) fn is_resume(&self) -> bool {
        matches!(self.command, Some(Command::Resume(_)))
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser as _};

    use super::*;

    fn parse(line: &[&str]) -> Result<ExecArgs, clap::Error> {
        ExecArgs::try_parse_from(std::iter::once("exec").chain(line.iter().copied()))
    }

    const ID: &str = "01a2027d-3c05-7d20-bbab-2c1375cd12d9";

    #[test]
    fn the_command_line_is_consistent() {
        ExecArgs::command().debug_assert();
    }

    #[test]
    fn both_sdks_orders_of_resume_images_id_and_dash_mean_the_same() {
        let of_python =
            ["--experimental-json", "resume", "--image", "a", "--image", "b", "--", ID, "-"];
        let of_typescript = ["--experimental-json", "resume", ID, "--image", "a", "--image", "b"];
        let commas = ["--json", "resume", "-i", "a,b", ID, "-"];
        for line in [&of_python[..], &of_typescript, &commas] {
            let args = parse(line).unwrap();
            assert!(args.flags.json, "{line:?}");
            assert_eq!(args.thread_id(), Some(ID), "{line:?}");
            let images: Vec<&PathBuf> = args.images().collect();
            assert_eq!(images, [&PathBuf::from("a"), &PathBuf::from("b")], "{line:?}");
            assert!(matches!(args.prompt(), None | Some("-")), "{line:?}");
        }
        // A new thread: here the real `--image` swallows the dash.
        for line in [&["--image", "a", "--image", "b", "-"][..], &["--image", "a", "b"]] {
            let args = parse(line).unwrap();
            let images: Vec<&PathBuf> = args.images().collect();
            assert_eq!(images, [&PathBuf::from("a"), &PathBuf::from("b")], "{line:?}");
            assert_eq!((args.thread_id(), args.prompt()), (None, None), "{line:?}");
        }
    }

    #[test]
    fn a_prompt_may_stand_on_either_side_of_resume() {
        assert_eq!(parse(&["hello"]).unwrap().prompt(), Some("hello"));
        assert_eq!(parse(&["--", "-x"]).unwrap().prompt(), Some("-x"));
        assert_eq!(parse(&["-", "resume", ID]).unwrap().prompt(), Some("-"));
        assert_eq!(parse(&["one", "resume", ID, "two"]).unwrap().prompt(), Some("two"));
        assert!(parse(&["one", "two"]).is_err());
    }

    #[test]
    fn behind_last_the_first_word_is_the_prompt() {
        let args = parse(&["resume", "--last", "more"]).unwrap();
        assert_eq!((args.thread_id(), args.prompt()), (None, Some("more")));
        assert_eq!(args.resume_last(), Some(ResumeLast { of_any_directory: false }));
        let args = parse(&["resume", "--last", "--all", "-"]).unwrap();
        assert_eq!(args.resume_last(), Some(ResumeLast { of_any_directory: true }));
        assert_eq!(args.prompt(), Some("-"));
        let args = parse(&["resume", "--all", ID, "more"]).unwrap();
        assert_eq!((args.thread_id(), args.resume_last()), (Some(ID), None));
    }

    #[test]
    fn flags_may_stand_on_either_side_of_resume() {
        let before = parse(&["--json", "--model", "m", "-c", "a=1", "resume", ID]).unwrap();
        let after = parse(&["resume", ID, "--json", "--model=m", "--config", "a=1"]).unwrap();
        assert_eq!(before, after);
    }

    #[test]
    fn what_a_sidecar_cant_do_for_one_turn_is_refused_by_name() {
        let lines: [(&[&str], &str); 5] = [
            (&["--oss"], "--oss"),
            (&["--profile", "p"], "--profile"),
            (&["--cyber-access-program", "standard"], "--cyber-access-program"),
            (&["fork", ID], "fork"),
            (&["resume", ID, "--ignore-rules"], "--ignore-rules"),
        ];
        for (line, name) in lines {
            let refusal = parse(line).unwrap().refusal().unwrap();
            assert!(refusal.starts_with(&format!("{name} can't be honoured")), "{refusal}");
        }
        assert_eq!(parse(&["--json", "resume", ID]).unwrap().refusal(), None);
        assert!(parse(&["--nonsense"]).is_err());
        assert!(parse(&["--sandbox", "nope"]).is_err());
    }
}
