//! What the commands of a turn must not write is taken out of it, or the turn is denied.

use std::sync::Arc;
use std::time::Duration;

use crate::app_server::answer::Expected;
use crate::app_server::baseline::Baseline;
use crate::app_server::client::LoadOptions;
use crate::app_server::protected::{Denials, Protection, Shield};
use crate::app_server::thread_error::ThreadError;
use crate::codex_cli::CliVersion;
use crate::model::options::ThreadOptions;
use crate::model::question::{Answer, Question};
use crate::model::refusal::{FieldViolation, Refusal};
use crate::model::workspace::Workspace;
use crate::worker::Worker;

/// How long the look at the directories may take: a network file system may never answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Most looks of one worker at once: one that hangs keeps its thread until the file system answers.
pub(super) const MOST_LOOKS: usize = 8;

/// Whether a CLI of this version keeps what is named `.codex` from being written in a root: 0.130 and
/// newer ones do (0.115 applies patches there, and those between were not tried).
pub(super) fn keeps(version: &str) -> bool {
    const SINCE: &str = "0.130.0";
    let parsed: [Result<CliVersion, _>; 2] = [version.parse(), SINCE.parse()];
    match parsed {
        [Ok(version), Ok(since)] => version.is_unversioned() || version >= since,
        _ => false,
    }
}

/// Looks whether a turn itself names directories to be written where no CLI can keep what is protected:
/// nothing is done for it then, and nobody makes room. What more is known with a worker is looked at there.
/// Blocks.
///
/// # Errors
/// [`Refusal::PolicyDenied`].
pub(crate) fn check_request(
    protection: &Protection,
    options: &ThreadOptions,
    workspace: &Workspace,
) -> Result<(), Refusal> {
    let protected = protection.find().with_cli(true);
    let roots = Baseline::before_start(None).roots(options, workspace, &protected);
    let mut roots = roots.unwrap_or_default();
    roots.retain(|root| !root.is_configured);
    protected.shield(&roots).map(drop).map_err(Refusal::PolicyDenied)
}

/// Looks whether this answer to a question lets what is protected be written through a link. By the paths as
/// they are written the turn itself judges it. Blocks.
///
/// # Errors
/// [`Refusal::PolicyDenied`].
pub(crate) fn check_answer(
    protection: &Protection,
    question: &Question,
    answer: &Answer,
) -> Result<(), Refusal> {
    // What does not fit the question is refused for that, by the turn.
    let fits =
        Expected::of(question, usize::MAX).take(&question.request_id, answer.clone()).is_ok();
    if !fits {
        return Ok(());
    }
    let denials = Denials::of(question, &protection.find());
    denials.check_on_disk(answer).map_err(Refusal::PolicyDenied)
}

impl Worker {
    /// Has turns with these options keep what is protected, by a baseline that covers them.
    ///
    /// # Errors
    /// [`ThreadError::Denied`] where they can't; see [`ThreadError`].
    pub(super) async fn protect(
        &self,
        baseline: &mut Baseline,
        options: &ThreadOptions,
        workspace: &Workspace,
    ) -> Result<(), ThreadError> {
        baseline.set_shield(Shield::default());
        if self.protected.is_unknown() {
            return Ok(());
        }
        let protected = self.protected.clone();
        if let Some(name) = baseline.profile(options) {
            if protected.is_empty() {
                return Ok(());
            }
            let directory = workspace.working_directory.clone();
            if LoadOptions::of(options).may_bring_profiles() {
                return Err(ThreadError::Denied(vec![FieldViolation::new(
                    "thread_options.config.permissions",
                    "what a profile of the request's own lets be written can't be told; use one of \
                     the CLI's configuration, or set policy.allow_writable_codex_home = true",
                )]));
            }
            let (name, tables) = (name.to_owned(), self.client.profile_tables(&directory).await?);
            return self.look(move || protected.judge_profile(&name, &tables, &directory)).await;
        }
        let Some(roots) = baseline.roots(options, workspace, &protected) else { return Ok(()) };
        let shield = self.look(move || protected.shield(&roots)).await?;
        baseline.set_shield(shield);
        Ok(())
    }

    /// Looks at directories where that may take its time.
    async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce() -> Result<T, Vec<FieldViolation>> + Send + 'static,
    ) -> Result<T, ThreadError> {
        let looked = tokio::time::timeout(PATIENCE, async {
            // Never closed, so it fails never.
            let permit = Arc::clone(&self.looks).acquire_owned().await.ok();
            tokio::task::spawn_blocking(move || {
                // Held by the thread, not by who waits, who may leave a stuck one behind.
                let _permit = permit;
                look()
            })
            .await
        });
        match looked.await {
            Ok(Ok(looked)) => looked.map_err(ThreadError::Denied),
            Ok(Err(error)) => {
                Err(ThreadError::Refused(format!("the look at the roots failed: {error}")))
            }
            Err(_elapsed) => Err(ThreadError::OutOfResources(
                "the file system did not answer in time about the directories of the turn"
                    .to_owned(),
            )),
        }
    }
}
