//! The line of a directory and its latest thread.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::encoded::{Base64, time};
use super::thread_id;
use crate::registry::latest::LatestThread;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct DirectoryLine {
    /// One of the two: what is no UTF-8 is in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    directory: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    directory_base64: Option<Base64>,
    thread_id: String,
    #[serde(with = "time")]
    use_time: SystemTime,
}

impl From<(PathBuf, LatestThread)> for DirectoryLine {
    fn from((directory, latest): (PathBuf, LatestThread)) -> DirectoryLine {
        let LatestThread { thread_id, at } = latest;
        let (directory, directory_base64) = match directory.to_str() {
            Some(text) => (Some(text.to_owned()), None),
            None => (None, Some(Base64(directory.as_os_str().as_bytes().to_vec()))),
        };
        let thread_id = thread_id.to_string();
        DirectoryLine { directory, directory_base64, thread_id, use_time: at }
    }
}

impl TryFrom<DirectoryLine> for (PathBuf, LatestThread) {
    type Error = String;

    fn try_from(line: DirectoryLine) -> Result<(PathBuf, LatestThread), String> {
        let DirectoryLine { directory, directory_base64, thread_id: thread, use_time } = line;
        let directory = match (directory, directory_base64) {
            (Some(text), None) => PathBuf::from(text),
            (None, Some(Base64(bytes))) => PathBuf::from(OsString::from_vec(bytes)),
            (Some(_), Some(_)) | (None, None) => {
                return Err("wants one of directory and directory_base64".to_owned());
            }
        };
        let latest = LatestThread { thread_id: thread_id("thread_id", thread)?, at: use_time };
        Ok((directory, latest))
    }
}
