//! stub
use crate::options::ThreadOptions;
use crate::turn::event::UserInput;
use crate::turn::refusal::Refusal;
pub use crate::worker::thread::Workspace;
use std::path::Path;
/// stub
pub async fn check(
    options: &ThreadOptions,
    _inputs: &[UserInput],
    default_directory: &Path,
) -> Result<Workspace, Refusal> {
    Ok(Workspace {
        working_directory: options.working_directory.clone().unwrap_or(default_directory.into()),
        additional_directories: options.additional_directories.clone().unwrap_or_default(),
    })
}
