//! `run`: one turn, shown as it goes; its answer on stdout.

mod request;

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::PossibleValuesParser;

use super::answers::{QuestionArgs, Unasked};
use super::args::{InputArgs, positive_duration};
use super::client::{self, AddrArgs};
use super::failure::CommandResult;
use super::refusal::Words;
use super::turn::{Begin, follow_turn};
use super::watch::{OutputArgs, Watch};

#[derive(Debug, clap::Args)]
#[command(
    group(clap::ArgGroup::new("thread-choice").required(true).multiple(true)
        .args(["context", "thread", "ephemeral"])),
    after_long_help = EXAMPLES
)]
pub(super) struct RunArgs {
    #[command(flatten)]
    addr: AddrArgs,
    /// The conversation to continue, or to begin
    #[arg(long, value_name = "ID", help_heading = "Which conversation")]
    context: Option<String>,
    /// Refuse a context that is not there yet (must-exist), or one that is (must-be-new)
    #[arg(long, value_name = "POLICY", help_heading = "Which conversation", value_parser = PossibleValuesParser::new(["any", "must-exist", "must-be-new"]))]
    context_policy: Option<String>,
    /// Which of the Codex tools speaks: codex, or codex_ and a suffix
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true,
        help_heading = "Which conversation"
    )]
    tool: String,
    /// The thread key itself, in place of the tool's
    #[arg(
        long,
        value_name = "KEY",
        default_value = "",
        hide_default_value = true,
        help_heading = "Which conversation"
    )]
    thread_key: String,
    /// The thread to continue, a UUID, in place of the context's
    #[arg(long, value_name = "ID", help_heading = "Which conversation")]
    thread: Option<String>,
    /// What to do when Codex no longer has the thread
    #[arg(long, value_name = "POLICY", help_heading = "Which conversation", value_parser = PossibleValuesParser::new(["fail", "start-new"]))]
    missing_thread: Option<String>,
    /// A new thread that is kept nowhere
    #[arg(long, conflicts_with_all = ["context", "thread"], help_heading = "Which conversation")]
    ephemeral: bool,

    #[command(flatten)]
    options: ThreadArgs,
    #[command(flatten)]
    inputs: InputArgs,
    /// Have changes reviewed, in place of a prompt: uncommitted, base=BRANCH, commit=COMMIT, or what to
    /// look at in words
    #[arg(long, value_name = "TARGET", conflicts_with_all = ["prompt", "compact"], help_heading = "What to say")]
    review: Option<String>,
    /// Have the thread's history summed up, in place of a prompt
    #[arg(long, conflicts_with = "prompt", help_heading = "What to say")]
    compact: bool,

    /// A file with a JSON schema for the answer
    #[arg(long, value_name = "FILE", help_heading = "What the turn is held to")]
    output_schema: Option<PathBuf>,
    /// Longest time for the turn: seconds, or like 10m
    #[arg(long, value_name = "DURATION", value_parser = positive_duration, help_heading = "What the turn is held to")]
    turn_timeout: Option<Duration>,
    /// Longest time without progress
    #[arg(long, value_name = "DURATION", value_parser = positive_duration, help_heading = "What the turn is held to")]
    idle_timeout: Option<Duration>,
    /// Longest time that a question waits for its answer
    #[arg(long, value_name = "DURATION", value_parser = positive_duration, help_heading = "What the turn is held to")]
    answer_timeout: Option<Duration>,
    /// Most tokens of the turn, in and out, sub-agents included; more stop it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = "What the turn is held to")]
    max_total_tokens: Option<u64>,
    /// Makes it safe to run the same command again: the same id gives the same turn
    #[arg(
        long,
        value_name = "ID",
        default_value = "",
        hide_default_value = true,
        help_heading = "What the turn is held to"
    )]
    request_id: String,
    /// What to do when the thread is busy: wait, give up, add to the turn that runs, or take its place
    #[arg(long, value_name = "POLICY", help_heading = "What the turn is held to", value_parser = PossibleValuesParser::new(["queue", "reject", "steer", "interrupt"]))]
    busy: Option<String>,
    /// What becomes of the turn when this client goes away or loses its connection
    #[arg(long, value_name = "POLICY", help_heading = "What the turn is held to", value_parser = PossibleValuesParser::new(["interrupt", "continue"]))]
    on_disconnect: Option<String>,

    #[command(flatten)]
    questions: QuestionArgs,
    #[command(flatten)]
    output: OutputArgs,
    /// What to say; - or nothing reads it from a pipe, which is not read beside a PROMPT
    #[arg(value_name = "PROMPT")]
    prompt: Option<String>,
}

/// How Codex works.
#[derive(Debug, clap::Args)]
struct ThreadArgs {
    /// The directory to work in, on the sidecar's machine [default: the tool's, or else the sidecar's own]
    #[arg(long, short = 'C', value_name = "DIR", help_heading = "How Codex works")]
    cd: Option<PathBuf>,
    /// Allow a directory outside a git repository
    #[arg(long, help_heading = "How Codex works")]
    skip_git_repo_check: bool,
    /// A directory that may be written beside the working directory; may be given several times
    #[arg(long, value_name = "DIR", help_heading = "How Codex works")]
    add_dir: Vec<PathBuf>,
    /// The model
    #[arg(long, short, value_name = "MODEL", help_heading = "How Codex works")]
    model: Option<String>,
    /// How hard the model thinks: minimal, low, medium, high, xhigh, or what the CLI knows besides
    #[arg(long, value_name = "EFFORT", help_heading = "How Codex works")]
    effort: Option<String>,
    /// How much of its reasoning the model sums up
    #[arg(long, value_name = "SUMMARY", help_heading = "How Codex works", value_parser = PossibleValuesParser::new(["auto", "concise", "detailed", "none"]))]
    reasoning_summary: Option<String>,
    /// The provider's service tier
    #[arg(long, value_name = "NAME", help_heading = "How Codex works")]
    service_tier: Option<String>,
    /// What commands may touch
    #[arg(long, short, value_name = "MODE", help_heading = "How Codex works", value_parser = PossibleValuesParser::new(["read-only", "workspace-write", "danger-full-access"]))]
    sandbox: Option<String>,
    /// The permission profile of the CLI's configuration, in place of a sandbox
    #[arg(long, value_name = "NAME", conflicts_with = "sandbox", help_heading = "How Codex works")]
    permission_profile: Option<String>,
    /// Let commands use the network (under workspace-write)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "How Codex works")]
    network: Option<bool>,
    /// Let the model search the web; alone it means live
    #[arg(long, value_name = "MODE", num_args = 0..=1, require_equals = true, default_missing_value = "live", help_heading = "How Codex works", value_parser = PossibleValuesParser::new(["disabled", "cached", "live"]))]
    web_search: Option<String>,
    /// When Codex asks before it acts
    #[arg(long, value_name = "POLICY", help_heading = "How Codex works", value_parser = PossibleValuesParser::new(["never", "on-request", "on-failure", "untrusted"]))]
    approval: Option<String>,
    /// Who answers the approvals that Codex asks for: you, or Codex's own reviewer
    #[arg(long, value_name = "WHO", help_heading = "How Codex works", value_parser = PossibleValuesParser::new(["user", "auto-review"]))]
    reviewer: Option<String>,
    /// A setting of Codex's config.toml for this turn; may be given several times
    #[arg(short, long = "config", value_name = "KEY=VALUE", help_heading = "How Codex works")]
    config: Vec<String>,
    /// A variable for the commands that the model runs; NAME alone takes the value that it has here. May
    /// be given several times
    #[arg(long = "env", value_name = "NAME[=VALUE]", help_heading = "How Codex works")]
    environment: Vec<String>,
}

const EXAMPLES: &str = "\
Exit status:
  0    the turn completed
  1    it failed
  2    the command line is wrong
  3    the sidecar refused it before it began
  4    it ran out of time
  5    it completed, but something that Codex asked was declined for want of an answer;
       or --on-question=fail stopped it
  64   the address of the sidecar is none
  69   the sidecar can't be reached, or is on its way down
  130  it was interrupted

Examples:
  codex-sidecar run --context ticket-4711 --cd ~/src/shop --sandbox workspace-write 'Fix the test'
  (echo 'Review this diff:'; git diff) | codex-sidecar run --ephemeral --cd . > review.md
  codex-sidecar run --context ticket-4711 --approval untrusted --yes 'Run the tests'
  codex-sidecar run --context ticket-4711 --cd . --review uncommitted --output-last-message review.md";

pub(super) async fn run(args: RunArgs) -> CommandResult {
    let mut request = request::of(&args)?;
    let prompt_was_piped = !matches!(args.prompt.as_deref(), Some(prompt) if prompt != "-")
        && request.review.is_none()
        && !request.compact;
    let words = Words::of_run(&request);
    let mut watch =
        Watch::new(&args.output, &args.questions, Unasked::Decline, prompt_was_piped, words)?;
    request.set_question_policy(watch.question_policy());
    if request.request_id.is_empty() {
        // So that a call that is lost on the way can be made again.
        request.request_id = uuid::Uuid::new_v4().to_string();
    }
    let caller = client::connect(&args.addr).await?;
    let person = watch.person();
    let told = follow_turn(&caller, Begin::Run(Box::new(request)), &mut watch, &person).await?;
    watch.conclude(told)
}
