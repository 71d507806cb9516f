//! `completions`: a script that has a shell complete the command line.

use std::io::{self, Write as _};

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::failure::CommandResult;

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  codex-sidecar completions bash > ~/.local/share/bash-completion/completions/codex-sidecar
  codex-sidecar completions zsh > \"${fpath[1]}/_codex-sidecar\"
  codex-sidecar completions fish > ~/.config/fish/completions/codex-sidecar.fish")]
pub(super) struct CompletionsArgs {
    /// Which shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

pub(super) fn completions(args: &CompletionsArgs) -> CommandResult {
    let mut command = super::CommandLine::command();
    // Not straight to stdout, which may be closed: the generator panics then.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "codex-sidecar", &mut script);
    io::stdout().write_all(&script)?;
    Ok(0)
}
