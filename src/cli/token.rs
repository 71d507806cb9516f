//! `token`: makes what callers show.

use std::fs::OpenOptions;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use secrecy::ExposeSecret as _;

use super::args::duration;
use super::failure::{CommandResult, Failure, tell};
use crate::access::files::{self, Readers};
use crate::access::tokens;
use crate::config;

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  codex-sidecar token new --file tokens > mine      the token in mine, its hash added to tokens
  codex-sidecar serve --token-file tokens
  codex-sidecar info --token-file mine   or CODEX_SIDECAR_TOKEN=\"$(cat mine)\" codex-sidecar info

A line of a token file is a token, or sha256: with the token's hash in hexadecimal digits, then if need be
tenant=NAME and expires=TIME; # begins a comment. Nobody else may read the file (chmod 0600). What the model
runs can read what the sidecar can, so the sidecar's file best has hashes. A running sidecar takes in what
changes there within a second or two.")]
pub(super) struct TokenArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Print a new token once, on stdout, and the line with its hash for the sidecar's token file
    New(NewArgs),
}

#[derive(Debug, clap::Args)]
struct NewArgs {
    /// The tenant that it is of [default: the file's, or the default tenant]
    #[arg(long, value_name = "NAME", value_parser = tenant)]
    tenant: Option<String>,
    /// When it ends to be good: a time like 2027-01-31T18:00:00Z, or a duration from now, like 90d
    /// [default: never]
    #[arg(long, value_name = "TIME|DURATION", value_parser = expiry)]
    expires: Option<SystemTime>,
    /// Append the line to this file, which is made with the mode 0600 if it is not there [default: print it
    /// on stderr]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

pub(super) fn token(TokenArgs { action: Action::New(args) }: TokenArgs) -> CommandResult {
    let NewArgs { tenant, expires, file } = args;
    let token = tokens::new().map_err(Failure::told)?;
    let line = tokens::line(&token, tenant.as_deref(), expires);
    // First: a token without its line is of no use.
    match &file {
        Some(file) => append(file, &line)
            .map_err(|problem| Failure::told(format!("--file {}: {problem}", file.display())))?,
        None => tell(&format!("for the sidecar's token file:\n{line}")),
    }
    writeln!(io::stdout(), "{}", token.expose_secret())?;
    Ok(0)
}

fn append(file: &Path, line: &str) -> Result<(), String> {
    let cant_write = |error: io::Error| format!("can't be written: {error}");
    let mut options = OpenOptions::new();
    let mut opened =
        options.read(true).append(true).create(true).mode(0o600).open(file).map_err(cant_write)?;
    // What others can read they could use, and what they can write they could choose.
    files::guarded(&opened.metadata().map_err(cant_write)?, Readers::Nobody)?;
    let mut before = Vec::new();
    opened.read_to_end(&mut before).map_err(|error| format!("can't be read: {error}"))?;
    // In one piece, with a line end before it where the last line has none.
    let separator = if before.last().is_some_and(|last| *last != b'\n') { "\n" } else { "" };
    opened.write_all(format!("{separator}{line}\n").as_bytes()).map_err(cant_write)
}

fn tenant(name: &str) -> Result<String, String> {
    config::tenant_name(name).map(str::to_owned)
}

fn expiry(text: &str) -> Result<SystemTime, String> {
    let now = SystemTime::now();
    if let Some(time) = tokens::rfc3339(text) {
        return match time > now {
            true => Ok(time),
            false => Err("is over: the token would open nothing".to_owned()),
        };
    }
    let from_now = duration(text).map_err(|_| {
        "wants a time with its offset, like 2027-01-31T18:00:00Z, or a duration from now, like 90d"
            .to_owned()
    })?;
    if from_now < Duration::from_secs(1) {
        return Err("wants a second at least: the token would open nothing".to_owned());
    }
    now.checked_add(from_now).ok_or_else(|| "is too far away".to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_line_is_appended_to_a_file_that_only_its_owner_reads() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("tokens");
        append(&file, "one").unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(&file, "one\n# without an end").unwrap();
        append(&file, "two").unwrap();
        append(&file, "three").unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        assert_eq!(text, "one\n# without an end\ntwo\nthree\n");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(append(&file, "four").unwrap_err().contains("0644"));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
    }

    #[test]
    fn an_end_is_a_time_or_a_duration_from_now() {
        let at = expiry("2030-01-01T00:00:00+01:00").unwrap();
        assert_eq!(at, SystemTime::UNIX_EPOCH + Duration::from_secs(1_893_452_400));
        let in_a_day = expiry("1d").unwrap().duration_since(SystemTime::now()).unwrap();
        assert!(in_a_day <= Duration::from_secs(86_400) && in_a_day > Duration::from_secs(86_000));
        for wrong in ["tomorrow", "2030-01-01", "", "2020-01-01T00:00:00Z", "0d"] {
            assert!(expiry(wrong).is_err(), "{wrong}");
        }
        // As the configuration names tenants: no other can be there.
        assert!(["a b", "", "a#b", "RESEARCH"].iter().all(|name| tenant(name).is_err()));
        assert!(tenant("research-2").is_ok() && tenant("default").is_ok());
    }
}
