//! Where a command line of `exec` begins: `exec …`, `e …`, or with options before that word.
//!
//! `codex` takes the options of its interactive mode before a subcommand, too, and `exec` goes by those
//! that it has itself. What stands after the word beats what stands before it.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::Parser as _;
use clap::builder::PossibleValuesParser;

use super::args::{ExecArgs, Refused};

#[derive(Debug, clap::Parser)]
#[command(name = "codex-sidecar", bin_name = "codex-sidecar")]
struct Front {
    #[command(flatten)]
    before: Before,
    #[command(subcommand)]
    word: Word,
}

#[derive(Debug, clap::Subcommand)]
enum Word {
    #[command(alias = "e")]
    Exec(Box<ExecArgs>),
}

/// What may stand before the word. `exec` has its own of nearly all, and they are global: of the same
/// id, they would take the place of these.
#[derive(Debug, Default, clap::Args)]
struct Before {
    #[arg(id = "before-config", short = 'c', long = "config", value_name = "KEY=VALUE")]
    config: Vec<String>,
    #[arg(id = "before-enable", long = "enable", value_name = "FEATURE")]
    enable: Vec<String>,
    #[arg(id = "before-disable", long = "disable", value_name = "FEATURE")]
    disable: Vec<String>,
    #[arg(id = "before-image", short = 'i', long = "image", value_name = "FILE", num_args = 1.., value_delimiter = ',')]
    image: Vec<PathBuf>,
    #[arg(id = "before-model", short = 'm', long = "model")]
    model: Option<String>,
    #[arg(id = "before-sandbox", short = 's', long = "sandbox", value_parser = PossibleValuesParser::new(["read-only", "workspace-write", "danger-full-access"]))]
    sandbox: Option<String>,
    #[arg(
        id = "before-dangerously-bypass-approvals-and-sandbox",
        long = "dangerously-bypass-approvals-and-sandbox",
        alias = "yolo"
    )]
    dangerously_bypass_approvals_and_sandbox: bool,
    #[arg(id = "before-cd", short = 'C', long = "cd", value_name = "DIR")]
    cd: Option<PathBuf>,
    #[arg(id = "before-add-dir", long = "add-dir", value_name = "DIR")]
    add_dir: Vec<PathBuf>,
    #[arg(id = "before-search", long = "search")]
    search: bool,
    // Of no effect on `exec`, as with the real one: the terminal's own.
    #[arg(id = "before-ask-for-approval", short = 'a', long = "ask-for-approval", value_parser = PossibleValuesParser::new(["on-request", "never"]))]
    ask_for_approval: Option<String>,
    #[arg(id = "before-no-alt-screen", long = "no-alt-screen")]
    no_alt_screen: bool,
    #[arg(id = "before-no-daemon", long = "no-daemon")]
    no_daemon: bool,
    #[arg(id = "before-strict-config", long = "strict-config")]
    strict_config: bool,
    #[arg(id = "before-oss", long = "oss")]
    oss: bool,
    #[arg(id = "before-local-provider", long = "local-provider")]
    local_provider: Option<String>,
    #[arg(id = "before-profile", short = 'p', long = "profile")]
    profile: Option<String>,
    #[arg(id = "before-approve-for-me", long = "approve-for-me")]
    approve_for_me: bool,
    #[arg(id = "before-dangerously-bypass-hook-trust", long = "dangerously-bypass-hook-trust")]
    dangerously_bypass_hook_trust: bool,
    #[arg(id = "before-worktree", long = "worktree")]
    worktree: bool,
}

/// Reads the command line; `None` where it is one of another subcommand.
pub(super) fn parse(arguments: Vec<OsString>) -> Option<Result<ExecArgs, clap::Error>> {
    let is_word = |argument: &OsString| argument == "exec" || argument == "e";
    let first = arguments.first()?;
    if is_word(first) {
        let name = OsString::from("codex-sidecar exec");
        let rest = arguments.into_iter().skip(1);
        return Some(ExecArgs::try_parse_from(std::iter::once(name).chain(rest)));
    }
    let is_own = ["-h", "--help", "-V", "--version"].map(OsStr::new).contains(&first.as_os_str());
    let is_option = first.as_encoded_bytes().starts_with(b"-");
    if !is_option || is_own || !arguments.iter().any(is_word) {
        return None;
    }
    let name = OsString::from("codex-sidecar");
    let front = Front::try_parse_from(std::iter::once(name).chain(arguments));
    Some(front.map(|Front { before, word: Word::Exec(args) }| behind(before, *args)))
}

/// The whole command line, as if all of it stood after the word.
fn behind(before: Before, mut args: ExecArgs) -> ExecArgs {
    let Before {
        mut config,
        enable,
        disable,
        image,
        model,
        sandbox,
        dangerously_bypass_approvals_and_sandbox: bypass,
        cd,
        add_dir,
        search,
        ask_for_approval: _,
        no_alt_screen: _,
        no_daemon: _,
        strict_config,
        oss,
        local_provider,
        profile,
        approve_for_me,
        dangerously_bypass_hook_trust,
        worktree,
    } = before;
    if search {
        config.push("web_search=\"live\"".to_owned());
    }
    let flags = &mut args.flags;
    flags.config.splice(..0, config);
    flags.enable.splice(..0, enable);
    flags.disable.splice(..0, disable);
    flags.add_dir.splice(..0, add_dir);
    flags.model = flags.model.take().or(model);
    flags.cd = flags.cd.take().or(cd);
    // The two are one choice.
    if flags.sandbox.is_none() && !flags.dangerously_bypass_approvals_and_sandbox {
        flags.sandbox = sandbox;
        flags.dangerously_bypass_approvals_and_sandbox = bypass;
    }
    args.image.splice(..0, image);
    let refused = &mut args.refused;
    refused.strict_config |= strict_config;
    refused.oss |= oss;
    refused.approve_for_me |= approve_for_me;
    refused.dangerously_bypass_hook_trust |= dangerously_bypass_hook_trust;
    refused.worktree |= worktree;
    let Refused { local_provider: own_provider, profile: own_profile, .. } = refused;
    *own_provider = own_provider.take().or(local_provider);
    *own_profile = own_profile.take().or(profile);
    args
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn read(line: &[&str]) -> Option<Result<ExecArgs, clap::Error>> {
        parse(line.iter().map(OsString::from).collect())
    }

    fn same(one: &[&str], other: &[&str]) {
        let (one, other) = (read(one).unwrap().unwrap(), read(other).unwrap().unwrap());
        assert_eq!(one, other);
    }

    #[test]
    fn the_command_line_is_consistent() {
        Front::command().debug_assert();
    }

    #[test]
    fn options_before_the_word_count_as_those_after_it_which_win() {
        same(&["e", "--json", "-"], &["exec", "--json", "-"]);
        same(
            &["-m", "a", "-c", "x=1", "-C", "/d", "--add-dir", "/e", "exec", "-c", "y=2", "hi"],
            &["exec", "-m", "a", "-c", "x=1", "-c", "y=2", "-C", "/d", "--add-dir", "/e", "hi"],
        );
        same(&["-m", "a", "-C", "/d", "e", "-m", "b", "-C", "/e"], &["e", "-m", "b", "-C", "/e"]);
        same(&["--yolo", "exec", "-s", "read-only"], &["exec", "-s", "read-only"]);
        same(&["-s", "read-only", "exec", "--yolo"], &["exec", "--yolo"]);
        same(&["--yolo", "exec"], &["exec", "--yolo"]);
        same(&["--search", "-a", "never", "exec"], &["exec", "-c", "web_search=\"live\""]);
        same(&["-i", "a", "-m", "x", "exec", "-i", "b"], &["exec", "-i", "a", "b", "-m", "x"]);
        same(&["-p", "p", "exec", "resume", "--last"], &["exec", "resume", "--last", "-p", "p"]);
    }

    #[test]
    fn what_is_not_exec_is_left_to_others_and_what_is_none_of_codexs_is_refused() {
        for line in [&[][..], &["run", "exec"], &["--help"], &["-V", "exec"], &["-m", "a", "run"]] {
            assert!(read(line).is_none(), "{line:?}");
        }
        for line in [["-o", "f", "exec"], ["--json", "exec", "-"], ["--color", "never", "exec"]] {
            assert!(read(&line).unwrap().is_err(), "{line:?}");
        }
    }
}
