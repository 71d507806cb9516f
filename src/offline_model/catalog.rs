//! What Codex is told about the model, and how it gets to read it.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::MemfdFlags;
use serde_json::{Value, json};

/// The model's name, in requests and in the catalog.
pub(super) const MODEL: &str = "offline-model";
/// More than any thread has: `[[bytes N]]` must not make Codex compact the thread before its next turn.
/// `model_context_window` in Codex's configuration makes it smaller where that is wanted.
const CONTEXT_WINDOW: u64 = 1_000_000_000;

/// The model catalog, as a file that needs no disk and no cleaning up.
///
/// Without it, Codex opens every thread with an error item ("Model metadata for `offline-model` not found"), and
/// offers no `apply_patch`. Codex asks `GET /v1/models` only of providers that it logs in to, and then caches the
/// answer in CODEX_HOME, where it outlives us; so a file it is, in memory, reached through `/proc`.
#[derive(Debug)]
pub(super) struct Catalog(OwnedFd);

impl Catalog {
    pub(super) fn new() -> io::Result<Self> {
        let file = rustix::fs::memfd_create("offline-model-catalog", MemfdFlags::CLOEXEC)?;
        let text = catalog().to_string();
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            let written = rustix::io::write(&file, rest)?;
            rest = &rest[written..];
        }
        Ok(Self(file))
    }

    pub(super) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

/// Writes the same as a file of this directory, which is made if it is missing; gives its path.
pub(super) fn write(directory: &Path) -> io::Result<PathBuf> {
    const NAME: &str = ".codex-sidecar-offline-model.json";
    std::fs::create_dir_all(directory)?;
    let path = directory.join(NAME);
    let text = catalog().to_string();
    if std::fs::read(&path).is_ok_and(|there| there == text.as_bytes()) {
        return Ok(path);
    }
    // At once: a worker may be reading it.
    let new = directory.join(format!("{NAME}.{}", std::process::id()));
    std::fs::write(&new, text)?;
    std::fs::rename(new, &path)?;
    Ok(path)
}

/// What Codex wants to know of a model. A catalog that it can't read keeps it from starting, so this is the union of
/// what 0.100.0 to 0.169.0 require; unknown fields are ignored.
pub(super) fn catalog() -> Value {
    let efforts = ["minimal", "low", "medium", "high", "xhigh"]
        .map(|effort| json!({"effort": effort, "description": effort}));
    json!({"models": [{
        "slug": MODEL,
        "display_name": "Offline model",
        "description": "Scripted: no key, no network",
        "base_instructions": "You are a scripted model.",
        "visibility": "list",
        "supported_in_api": true,
        "priority": 1,
        "upgrade": null,
        "availability_nux": null,
        "additional_speed_tiers": [],
        "service_tiers": [],
        "context_window": CONTEXT_WINDOW,
        "truncation_policy": {"mode": "bytes", "limit": 10_000},
        "input_modalities": ["text", "image"],
        "default_reasoning_level": "medium",
        "supported_reasoning_levels": efforts,
        "supports_reasoning_summaries": true,
        "default_reasoning_summary": "auto",
        "support_verbosity": false,
        "default_verbosity": null,
        "shell_type": "unified_exec",
        "apply_patch_tool_type": "freeform",
        "supports_parallel_tool_calls": true,
        "experimental_supported_tools": [],
    }]})
}
