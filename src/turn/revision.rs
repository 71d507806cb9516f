//! The branch or commit that a review names, looked for before Codex sees it: Codex takes any name, and
//! sends its reviewer to look at what is not there.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use crate::model::refusal::Refusal;
use crate::model::request::{ReviewTarget, Work};
use crate::turn::workspace;

/// Longest time that git may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Of the sidecar's environment, what git needs: nothing secret, and nothing that leads it elsewhere.
const KEPT: [&str; 5] = ["PATH", "HOME", "XDG_CONFIG_HOME", "USER", "LANG"];

/// What git exits with where there is no such revision.
const NOT_THERE: i32 = 1;

/// Looks whether what a review compares is there, in the repository of this directory.
///
/// # Errors
/// [`Refusal::NotAGitRepository`], also where the turn skips that check; a wrong name, by its field.
pub(crate) async fn check(work: &Work, directory: &Path) -> Result<(), Refusal> {
    let Work::Review(target) = work else { return Ok(()) };
    let named = match target {
        ReviewTarget::Instructions(_) => return Ok(()),
        ReviewTarget::UncommittedChanges => None,
        ReviewTarget::BaseBranch(branch) => Some(("review.base_branch", branch)),
        ReviewTarget::Commit(commit) => Some(("review.commit", commit)),
    };
    if !workspace::is_in_git_repository(directory) {
        let (field, path) = ("review".to_owned(), directory.to_owned());
        return Err(Refusal::NotAGitRepository { field, path, can_be_skipped: false });
    }
    match named {
        Some((field, name)) if is_missing(name, directory).await => {
            let fault = format!("{name:?} is not there; name one that {} has", directory.display());
            Err(Refusal::field(field, fault))
        }
        Some(_) | None => Ok(()),
    }
}

/// Whether git says that there is no such commit. Where it can't be asked, Codex finds out.
async fn is_missing(name: &str, directory: &Path) -> bool {
    let kept = KEPT.iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
    let mut command = Command::new("git");
    command
        .env_clear()
        .envs(kept)
        // The repository may be anybody's: nothing of its configuration is to be run.
        .args(["-c", "protocol.allow=never", "-c", "core.fsmonitor=false", "-C"])
        .arg(directory)
        .args(["rev-parse", "--verify", "--quiet"])
        // It begins with no dash.
        .arg(format!("{name}^{{commit}}"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let status = tokio::time::timeout(PATIENCE, command.status()).await;
    matches!(status, Ok(Ok(status)) if status.code() == Some(NOT_THERE))
}
