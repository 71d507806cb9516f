//! What a turn is to do on its way in: its inputs, a review, a compaction.

use std::path::{Component, Path};

use super::options::absolute_path;
use super::{Faults, image_url, show};
use crate::grpc::limits::RequestLimits;
use crate::model::id::is_hidden;
use crate::model::request::{ReviewTarget, UserInput, Work};
use crate::pb;

/// Most inputs of one turn.
const MOST_INPUTS: usize = 256;
/// Most bytes of the name of a skill, a mention, a branch or a commit.
const LONGEST_NAME: usize = 256;
/// Most bytes of the address of a mention.
const LONGEST_ADDRESS: usize = 4096;
/// Most characters of the source of a message from outside.
const LONGEST_SOURCE: usize = 64;

const INPUTS: &str = "inputs";

/// What the turn is to do. A fault where more than one thing is said.
pub(super) fn work_of(
    review: Option<pb::ReviewTarget>,
    compact: bool,
    inputs: &[pb::UserInput],
    limits: &RequestLimits,
    faults: &mut Faults,
) -> Work {
    let beside = match (&review, compact) {
        (None, false) => return Work::Inputs,
        (Some(_), _) => "review",
        (None, true) => "compact",
    };
    if !inputs.is_empty() {
        let fault = format!("stand beside {beside}, which takes their place; give one of the two");
        faults.add(INPUTS, fault);
    }
    match review {
        Some(_) if compact => {
            faults.add("compact", "stands beside review; give one of the two");
            Work::Compact
        }
        // A wrong one is a review all the same: it is not told in the words of a compaction.
        Some(target) => Work::Review(
            review_of(target, limits, faults).unwrap_or(ReviewTarget::UncommittedChanges),
        ),
        None => Work::Compact,
    }
}

/// A fault for every option that has no meaning with such a turn.
pub(super) fn check_beside_work(
    work: &Work,
    options: Option<&pb::TurnOptions>,
    ephemeral: bool,
    unbound: bool,
    faults: &mut Faults,
) {
    let what = match work {
        Work::Inputs => return,
        Work::Review(_) => "a review",
        Work::Compact => "a compaction",
    };
    if options.is_some_and(|options| !options.output_schema.is_empty()) {
        faults.add(
            "turn_options.output_schema",
            format!("Codex takes none for {what}; leave it out"),
        );
    }
    if matches!(work, Work::Review(_)) && options.is_some_and(|asked| asked.max_total_tokens > 0) {
        faults.add(
            "turn_options.max_total_tokens",
            "Codex does not tell what a review uses, so it can't be kept; leave it out, and give a \
             turn_timeout",
        );
    }
    if *work == Work::Compact && (ephemeral || unbound) {
        let other = if ephemeral { "ephemeral" } else { "unbound" };
        faults.add(
            "compact",
            format!(
                "can't be combined with {other}, whose thread is new; leave one of the two out"
            ),
        );
    }
}

fn review_of(
    target: pb::ReviewTarget,
    limits: &RequestLimits,
    faults: &mut Faults,
) -> Option<ReviewTarget> {
    use pb::review_target::Target;
    let pb::ReviewTarget { target } = target;
    match target {
        Some(Target::UncommittedChanges(true)) => Some(ReviewTarget::UncommittedChanges),
        Some(Target::BaseBranch(branch)) => {
            revision("review.base_branch", &branch, faults).map(ReviewTarget::BaseBranch)
        }
        Some(Target::Commit(commit)) => {
            revision("review.commit", &commit, faults).map(ReviewTarget::Commit)
        }
        Some(Target::Instructions(words)) => {
            let words = words.trim();
            let length = words.chars().count();
            if words.is_empty() {
                faults.add("review.instructions", "is blank; say what to look at");
            } else if length > limits.max_input_characters {
                let most = limits.max_input_characters;
                let fault = format!("{length} characters are too many; give at most {most}");
                faults.add("review.instructions", fault);
            } else {
                return Some(ReviewTarget::Instructions(words.to_owned()));
            }
            None
        }
        Some(Target::UncommittedChanges(false)) => {
            let fault = "is false; set it to true, or base_branch, commit or instructions";
            faults.add("review.uncommitted_changes", fault);
            None
        }
        None => {
            faults.add(
                "review",
                "names nothing; set one of uncommitted_changes, base_branch, commit and instructions",
            );
            None
        }
    }
}

/// A branch or a commit, which Codex puts into command lines of git's.
fn revision(field: &str, name: &str, faults: &mut Faults) -> Option<String> {
    let name = name.trim();
    let fault = if name.is_empty() {
        "is empty; name one"
    } else if name.len() > LONGEST_NAME {
        "is too long; give at most 256 bytes"
    } else if name.starts_with('-') || name.chars().any(|c| c.is_whitespace() || is_hidden(c)) {
        "is no name of git's; give one without spaces and without a - in front"
    } else {
        return Some(name.to_owned());
    };
    faults.add(field, format!("{} {fault}", show(name)));
    None
}

pub(super) fn inputs_of(
    inputs: Vec<pb::UserInput>,
    limits: &RequestLimits,
    faults: &mut Faults,
) -> Vec<UserInput> {
    if inputs.is_empty() {
        faults.add(INPUTS, "is empty; give at least one input");
    }
    if inputs.len() > MOST_INPUTS {
        faults.add(INPUTS, format!("{} are too many; give at most {MOST_INPUTS}", inputs.len()));
        return Vec::new();
    }
    use pb::user_input::Input;
    let says_something = |input: &pb::UserInput| match input.input {
        Some(Input::Mention(_) | Input::ExternalMessage(_)) => false,
        Some(Input::Text(_) | Input::LocalImage(_) | Input::ImageUrl(_) | Input::Skill(_)) => true,
        // That is a fault of its own.
        None => true,
    };
    if !inputs.is_empty() && !inputs.iter().any(says_something) {
        faults.add(
            INPUTS,
            "hold nothing that the user says; add a text to the mentions and external messages",
        );
    }
    let inputs: Vec<UserInput> = inputs
        .into_iter()
        .enumerate()
        .filter_map(|(at, input)| input_of(&format!("{INPUTS}[{at}]"), input, faults))
        .collect();

    check_length(
        "text",
        texts(&inputs, |input| matches!(input, UserInput::Text(_))),
        limits,
        faults,
    );
    let external = texts(&inputs, |input| matches!(input, UserInput::External { .. }));
    check_length("external messages", external, limits, faults);
    inputs
}

/// The characters of these texts, joined. Codex counts what it is sent, the blank lines between the
/// texts included.
fn texts(inputs: &[UserInput], is_meant: impl Fn(&UserInput) -> bool) -> usize {
    let texts = inputs.iter().filter(|input| is_meant(input)).filter_map(|input| match input {
        UserInput::Text(text) | UserInput::External { text, .. } => Some(text.chars().count()),
        _ => None,
    });
    texts.reduce(|before, text| before + "\n\n".len() + text).unwrap_or_default()
}

fn check_length(what: &str, length: usize, limits: &RequestLimits, faults: &mut Faults) {
    let most = limits.max_input_characters;
    if length > most {
        faults.add(
            INPUTS,
            format!(
                "{length} characters of {what} are too many; give at most {most}, or put the text \
                 into a file of the working directory"
            ),
        );
    }
}

fn input_of(path: &str, input: pb::UserInput, faults: &mut Faults) -> Option<UserInput> {
    let pb::UserInput { input } = input;
    match input {
        Some(pb::user_input::Input::Text(text)) => {
            let text = text.trim();
            if text.is_empty() {
                faults.add(format!("{path}.text"), "is blank; say something, or leave it out");
                return None;
            }
            Some(UserInput::Text(text.to_owned()))
        }
        Some(pb::user_input::Input::LocalImage(pb::LocalImage { path: image })) => {
            absolute_path(&format!("{path}.local_image.path"), &image, faults)
                .map(UserInput::LocalImage)
        }
        Some(pb::user_input::Input::ImageUrl(url)) => {
            let url = url.trim();
            if let Some(fault) = image_url::fault(url) {
                faults.add(format!("{path}.image_url"), fault);
                return None;
            }
            Some(UserInput::ImageUrl(url.to_owned()))
        }
        Some(pb::user_input::Input::Skill(pb::Skill { name, path: file })) => {
            let name = name_of(&format!("{path}.skill.name"), &name, faults);
            let file = absolute_path(&format!("{path}.skill.path"), &file, faults);
            Some(UserInput::Skill { name: name?, path: file? })
        }
        Some(pb::user_input::Input::Mention(pb::Mention { name, path: of })) => {
            let name = name_of(&format!("{path}.mention.name"), &name, faults);
            let of = mentioned(&format!("{path}.mention.path"), &of, faults);
            Some(UserInput::Mention { name: name?, path: of? })
        }
        Some(pb::user_input::Input::ExternalMessage(message)) => {
            external(&format!("{path}.external_message"), message, faults)
        }
        None => {
            faults.add(
                path,
                "says nothing; set one of text, local_image, image_url, skill, mention and \
                 external_message",
            );
            None
        }
    }
}

fn name_of(field: &str, name: &str, faults: &mut Faults) -> Option<String> {
    let name = name.trim();
    let fault = if name.is_empty() {
        "is empty; give the name"
    } else if name.len() > LONGEST_NAME {
        "is too long; give at most 256 bytes"
    } else if name.chars().any(is_hidden) {
        "holds a control character; leave it out"
    } else {
        return Some(name.to_owned());
    };
    faults.add(field, format!("{} {fault}", show(name)));
    None
}

/// What a mention is of: a path, or an address of Codex.
fn mentioned(field: &str, path: &str, faults: &mut Faults) -> Option<String> {
    let path = path.trim();
    let is_address = path.split_once("://").is_some_and(|(scheme, rest)| {
        let plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'+' | b'-' | b'.');
        scheme.starts_with(|c: char| c.is_ascii_lowercase())
            && scheme.bytes().all(plain)
            && !rest.is_empty()
    });
    let climbs = Path::new(path).components().any(|part| part == Component::ParentDir);
    let fault = if path.len() > LONGEST_ADDRESS {
        "is too long; give at most 4096 bytes"
    } else if path.chars().any(|c| c.is_control() || (is_address && c.is_whitespace())) {
        "holds control characters or spaces; give a path or an address without them"
    } else if !is_address && !path.starts_with('/') {
        "is neither an absolute path nor an address; give one, such as /work/a.rs or app://ID"
    } else if climbs {
        "holds `..`; give the path that it leads to"
    } else {
        return Some(path.to_owned());
    };
    faults.add(field, format!("{} {fault}", show(path)));
    None
}

fn external(path: &str, message: pb::ExternalMessage, faults: &mut Faults) -> Option<UserInput> {
    let pb::ExternalMessage { source, text } = message;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.:/@-".contains(&byte);
    let is_source = (1..=LONGEST_SOURCE).contains(&source.len()) && source.bytes().all(plain);
    if !is_source {
        faults.add(
            format!("{path}.source"),
            format!(
                "{} is no source; use 1 to {LONGEST_SOURCE} of A-Z a-z 0-9 _ . : / @ -, for \
                 example github:issue/12",
                show(&source)
            ),
        );
    }
    let text = text.trim();
    if text.is_empty() {
        faults.add(format!("{path}.text"), "is blank; give the text, or leave the message out");
    }
    (is_source && !text.is_empty()).then(|| UserInput::External { source, text: text.to_owned() })
}
