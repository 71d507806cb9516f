//! Asks the record that Codex keeps of a thread whether a turn that is over had an answer.

use std::fs::File;
use std::io::{self, BufReader, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::app_server::record::{self, Recorded};
use crate::model::id::ThreadId;
use crate::worker::Worker;

/// How much of the end of a record is read: more than a turn without an answer needs, the longest
/// input included, which is in it twice.
const MOST: u64 = 32 << 20;

/// How long it may take to find out. Nobody but the turn's own end waits for it.
const WITHIN: Duration = Duration::from_secs(2);

/// The end of a turn is recorded before it is told; for a file system that is slow with it.
const AGAIN: Duration = Duration::from_millis(50);

impl Worker {
    /// Whether it is certain that a turn which has ended had no answer of the model, not even a part
    /// that could have been acted on. False in doubt: where no record is kept (of an ephemeral thread),
    /// where it can't be read or understood, where it takes too long.
    pub(crate) async fn had_no_answer(&self, thread_id: &ThreadId, codex_turn_id: &str) -> bool {
        let asking = async {
            let path = match self.client.thread_read(thread_id.as_str()).await {
                Ok(read) => read.path?,
                Err(error) => {
                    tracing::debug!(%thread_id, %error, "where the thread is recorded can't be asked");
                    return None;
                }
            };
            loop {
                let (path, turn) = (path.clone(), codex_turn_id.to_owned());
                let looking = tokio::task::spawn_blocking(move || look(&path, &turn));
                match looking.await.ok()? {
                    Ok(Recorded::Unfinished) => tokio::time::sleep(AGAIN).await,
                    Ok(recorded) => return Some(recorded),
                    Err(error) => {
                        tracing::debug!(%thread_id, %error, "the thread's record can't be read");
                        return None;
                    }
                }
            }
        };
        let recorded = tokio::time::timeout(WITHIN, asking).await;
        matches!(recorded, Ok(Some(Recorded::NoAnswer)))
    }
}

fn look(path: &Path, turn_id: &str) -> io::Result<Recorded> {
    let mut file = File::open(PathBuf::from(path))?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(MOST)))?;
    record::recorded(BufReader::new(file.take(MOST)), turn_id)
}
