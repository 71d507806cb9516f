//! What Codex means where it refuses and has no code for it: its English texts, in one place.
//!
//! The texts are those of the CLI 0.100.0 to 0.169.0.

/// What a refusal means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// There is no rollout of the thread, or none that Codex can read.
    ThreadNotFound,
    /// Another process writes the thread.
    HeldElsewhere,
    /// The thread is in the archive.
    Archived,
    /// `config.toml` can't be read, the user's or one of a project.
    BadConfig,
    /// It is out of file descriptors, memory or disk.
    OutOfResources,
    /// Something else.
    Other,
}

/// Texts of the operating system that say nothing of the file: the same thread can be read as soon as
/// the machine has room again, and must not be given up for lost.
const PASSING: &[&str] = &[
    "(os error 4)",  // interrupted
    "(os error 5)",  // input/output error
    "(os error 11)", // try again
    "(os error 12)", // no memory
    "(os error 23)", // no file descriptors in the system
    "(os error 24)", // no file descriptors in the process
    "(os error 28)", // no space
];

/// Texts of the operating system, and of Codex's database, where there is no more of something.
const OUT_OF_RESOURCES: &[&str] = &[
    "(os error 12)", // no memory
    "(os error 23)", // no file descriptors in the system
    "(os error 24)", // no file descriptors in the process
    "(os error 28)", // no space
    "database or disk is full",
];

/// What Codex means with the text of a refusal.
pub(super) fn meaning(message: &str) -> Meaning {
    let says = |texts: &[&str]| texts.iter().any(|text| message.contains(text));
    if says(&["failed to load configuration", "failed to read configuration layers"]) {
        return Meaning::BadConfig;
    }
    // The last two of a thread that is only read: one that is nowhere, and one that is kept nowhere.
    let is_missing = says(&[
        "no rollout found",
        "thread not found",
        "thread not loaded",
        "ephemeral threads do not support",
    ]);
    // Of a fork, whose beginning is in the rollout of another thread.
    let has_no_beginning = says(&["invalid paginated history lineage"]);
    // Of an empty rollout, of one whose first line is cut or is no session's, of one that is no text,
    // of a directory in its place, of one that may not be read, of another thread's; of one whose last
    // record Codex can't go on from.
    let is_unreadable =
        says(&["failed to load rollout", "rollout is empty", "failed to read session metadata"])
            || (says(&["session metadata"]) && says(&["belongs to thread"]))
            || (says(&["failed to resume local thread recorder"]) && says(&["rollout record at"]));
    if is_missing || has_no_beginning || (is_unreadable && !says(PASSING)) {
        Meaning::ThreadNotFound
    } else if says(&["active writer"]) {
        Meaning::HeldElsewhere
    } else if says(&["is archived"]) {
        Meaning::Archived
    } else if says(OUT_OF_RESOURCES) {
        Meaning::OutOfResources
    } else {
        Meaning::Other
    }
}

/// What a text means that says of a missing thread only what it is not: `None` of one that says more.
pub(super) fn cause_of_missing(message: &str) -> Option<&'static str> {
    if ["thread not loaded", "thread not found"].iter().any(|text| message.starts_with(text)) {
        Some("there is none of this id")
    } else if message.starts_with("ephemeral threads do not support") {
        Some("it is ephemeral, and kept nowhere")
    } else {
        None
    }
}

/// Whether a warning says that what was said on a thread could not be written down. Codex tries again,
/// as long as its process lives.
pub(super) fn is_of_lost_history(warning: &str) -> bool {
    warning.starts_with("Failed to save the conversation transcript")
}

/// Whether it says that the thread does not have a turn. The second is that of the CLIs before 0.153.
pub(super) fn is_unknown_turn(message: &str) -> bool {
    message.starts_with("turn not found") || message.ends_with("was not found in the source thread")
}

/// Whether it says that a turn has no beginning of its own, as a review, which begins with its reviewer's
/// turn.
pub(super) fn is_turn_without_start(message: &str) -> bool {
    message.ends_with("does not have a persisted start boundary")
}

/// Whether it says that there is nothing of a thread on the disk; not of one that can't be read.
pub(super) fn is_without_rollout(message: &str) -> bool {
    message.starts_with("no rollout found")
}

/// Whether it says that there is nothing in a thread's rollout.
pub(super) fn is_of_empty_rollout(message: &str) -> bool {
    message.contains("rollout") && message.ends_with(" is empty")
}

/// Whether it says that a thread can't be deleted because others are copies of it. Codex has unloaded it all
/// the same.
pub(super) fn has_copies(message: &str) -> bool {
    message.ends_with("forked history still references it")
}

/// Whether it says that a place in its lists is none of the thread's.
pub(super) fn is_invalid_cursor(message: &str) -> bool {
    message.starts_with("invalid cursor")
}

/// Whether a CLI says that it does not know the request at all.
pub(super) fn is_unknown_request(message: &str) -> bool {
    message.contains("unknown variant")
}

/// What is wrong with the configuration, if that is what an error answer to `config/read` says.
/// `None` for any other error: an older CLI may not know the request.
pub(super) fn config_fault(code: i64, message: &str) -> Option<String> {
    /// JSON-RPC's code of an internal error, which Codex gives here.
    const INTERNAL: i64 = -32603;
    let texts = ["failed to read configuration layers: ", "invalid configuration: "];
    let is_fault = code == INTERNAL && texts.iter().any(|text| message.starts_with(text));
    is_fault.then(|| message.trim_end().replace('\n', " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unreadable_rollout_is_no_thread_and_a_machine_without_room_is_something_else() {
        let metadata = "failed to read thread: thread-store internal error: failed to read session \
                        metadata /h/sessions/r.jsonl: ";
        for cause in [
            "rollout at /h/sessions/r.jsonl is empty",
            "rollout at /h/sessions/r.jsonl does not start with session metadata",
            "stream did not contain valid UTF-8",
            "Is a directory (os error 21)",
            "Permission denied (os error 13)",
        ] {
            assert_eq!(meaning(&format!("{metadata}{cause}")), Meaning::ThreadNotFound, "{cause}");
        }
        for passing in ["Too many open files (os error 24)", "Cannot allocate memory (os error 12)"]
        {
            let means = meaning(&format!("{metadata}{passing}"));
            assert_eq!(means, Meaning::OutOfResources, "{passing}");
        }
        let others = "failed to read thread: thread-store internal error: session metadata /h/r.jsonl \
                      belongs to thread 1, expected 2";
        assert_eq!(meaning(others), Meaning::ThreadNotFound);
        let recorder = "error resuming thread: Fatal error: Failed to initialize session: thread-store \
                        internal error: failed to resume local thread recorder: ";
        let last = "final paginated rollout record at /h/r.jsonl is missing an ordinal";
        assert_eq!(meaning(&format!("{recorder}{last}")), Meaning::ThreadNotFound);
        let passing = "No space left on device (os error 28)";
        assert_eq!(meaning(&format!("{recorder}{passing}")), Meaning::OutOfResources);
        assert_eq!(meaning(&format!("{recorder}try again (os error 11)")), Meaning::Other);
        assert_eq!(meaning("no rollout found for thread id 1"), Meaning::ThreadNotFound);
        assert_eq!(meaning("thread 1 already has an active writer"), Meaning::HeldElsewhere);
        assert_eq!(meaning("session 1 is archived. Run unarchive"), Meaning::Archived);
        assert_eq!(meaning("the model said no"), Meaning::Other);
        for unknown in ["turn not found: 1", "lastTurnId '1' was not found in the source thread"] {
            assert!(is_unknown_turn(unknown) && meaning(unknown) == Meaning::Other, "{unknown}");
        }
        for gone in [
            "thread not loaded: 1",
            "ephemeral threads do not support thread/turns/list",
            "invalid paginated history lineage for 1: missing source rollout",
        ] {
            assert_eq!(meaning(gone), Meaning::ThreadNotFound, "{gone}");
        }
    }

    #[test]
    fn a_broken_configuration_is_told_by_whoever_meets_it() {
        let cause = "/h/config.toml:2:4: key with no value, expected `=`";
        assert_eq!(meaning(&format!("failed to load configuration: {cause}")), Meaning::BadConfig);
        let layers = format!("failed to read configuration layers: {cause}");
        assert_eq!(config_fault(-32603, &layers), Some(layers.clone()));
        let unknown = "invalid configuration: unknown variant `x`\nin `sandbox_mode`\n";
        let told = "invalid configuration: unknown variant `x` in `sandbox_mode`";
        assert_eq!(config_fault(-32603, unknown).as_deref(), Some(told));
        assert_eq!(config_fault(-32601, &layers), None);
        assert_eq!(config_fault(-32603, "unknown method config/read"), None);
    }
}
