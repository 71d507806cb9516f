//! Looks at the disk on behalf of one tenant's calls: what may block, and must keep nobody else waiting.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::model::refusal::Refusal;

/// Longest time that one look may take: a network file system may never answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Most looks of one tenant at once. One that hangs keeps its thread until the file system answers, and the
/// runtime has 512 of them.
const MOST: usize = 32;

/// Those of one tenant.
#[derive(Debug)]
pub(crate) struct Looks(Arc<Semaphore>);

impl Default for Looks {
    fn default() -> Looks {
        Looks(Arc::new(Semaphore::new(MOST)))
    }
}

impl Looks {
    /// Does what may block, with a bound.
    ///
    /// # Errors
    /// Those of `work`; [`Refusal::OutOfResources`] if the file system does not answer in time.
    pub(crate) async fn take<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let patient = tokio::time::timeout(PATIENCE, async {
            // Never closed, so it fails never.
            let permit = Arc::clone(&self.0).acquire_owned().await.ok();
            tokio::task::spawn_blocking(move || {
                // Held by the thread, not by the waiting caller, who may leave a stuck one behind.
                let _permit = permit;
                work()
            })
            .await
        });
        match patient.await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) => {
                Err(Refusal::Internal(format!("the look at the workspace failed: {error}")))
            }
            Err(_elapsed) => Err(Refusal::OutOfResources {
                cause: format!(
                    "the file system did not answer within {} seconds about the directories and \
                     images of the request",
                    PATIENCE.as_secs()
                ),
                retry_after: PATIENCE,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn looks_that_hang_keep_no_other_tenants_waiting() {
        let [stuck, other] = [Looks::default(), Looks::default()];
        let (release, released) = mpsc::channel::<()>();
        let released = Arc::new(std::sync::Mutex::new(released));
        let hanging: Vec<_> = (0..MOST)
            .map(|_| {
                let released = Arc::clone(&released);
                Box::pin(stuck.take(move || {
                    let _ = released.lock().unwrap().recv();
                    Ok(())
                }))
            })
            .collect();
        let mut hanging = futures::future::join_all(hanging);
        assert!(futures::poll!(&mut hanging).is_pending());
        assert_eq!(stuck.0.available_permits(), 0);
        other.take(|| Ok(())).await.unwrap();
        assert!(futures::poll!(&mut hanging).is_pending());
        drop(release);
        hanging.await;
    }
}
