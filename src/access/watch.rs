//! Files that are read again when they change: the new content counts if it is good, else the old one
//! stays, and that is told.

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;

use super::files::Stamp;

/// How often they are looked at.
pub(crate) const EVERY: Duration = Duration::from_secs(1);
/// How often it is told that the new content is not used.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Some files that belong together.
#[derive(Debug)]
pub(crate) struct Watch {
    /// What is in them, for the log.
    what: &'static str,
    files: Vec<PathBuf>,
    /// What they were when they were last read and good.
    seen: Vec<Stamp>,
    trouble: Option<Trouble>,
}

#[derive(Debug)]
struct Trouble {
    cause: String,
    told: Option<Instant>,
}

/// What a look at them came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Look<T> {
    /// They are as they were.
    Same,
    /// They have changed.
    New(T),
    /// What is in them now can't be used.
    Kept(String),
}

impl Watch {
    /// Of files that are about to be read for the first time: what changes while they are read is seen
    /// later.
    pub(crate) fn new(what: &'static str, files: Vec<PathBuf>) -> Watch {
        let seen = stamps(&files);
        Watch { what, files, seen, trouble: None }
    }

    /// Reads them if they have changed, or in any case if they `must` be read.
    ///
    /// A fault is told when a second look still finds it, because files that belong together can't be
    /// replaced at once; where they must be read it is told at once.
    pub(crate) fn look<T>(
        &mut self,
        must: bool,
        now: Instant,
        read: impl FnOnce() -> Result<T, String>,
    ) -> Look<T> {
        let stamps = stamps(&self.files);
        if stamps.contains(&Stamp::Once) {
            // A pipe gives nothing a second time.
            return match must {
                true => Look::Kept("a pipe can't be read again".to_owned()),
                false => Look::Same,
            };
        }
        let what = self.what;
        if stamps == self.seen && !must {
            if self.trouble.take().is_some_and(|trouble| trouble.told.is_some()) {
                tracing::info!("the {what} are again as they were");
            }
            return Look::Same;
        }
        match read() {
            Ok(new) => {
                self.seen = stamps;
                self.trouble = None;
                Look::New(new)
            }
            Err(cause) => {
                let trouble = self.trouble.take().filter(|trouble| trouble.cause == cause);
                let told = trouble.as_ref().and_then(|trouble| trouble.told);
                let due = match told {
                    Some(told) => now - told >= TELL_EVERY,
                    None => must || trouble.is_some(),
                };
                if due {
                    tracing::error!("the new {what} can't be used, and the old ones stay: {cause}");
                }
                let told = if due { Some(now) } else { told };
                self.trouble = Some(Trouble { cause: cause.clone(), told });
                Look::Kept(cause)
            }
        }
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Stamp> {
    files.iter().map(|path| Stamp::of(path)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_content_counts_and_bad_content_is_told_at_a_second_look_and_each_minute() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("f");
        std::fs::write(&path, "one").unwrap();
        let mut watch = Watch::new("words", vec![path.clone()]);
        let read = || {
            let text = std::fs::read_to_string(&path).map_err(|error| error.to_string())?;
            if text == "bad" { Err("is bad".to_owned()) } else { Ok(text) }
        };
        let now = Instant::now();
        let told = |watch: &Watch| watch.trouble.as_ref().and_then(|trouble| trouble.told);
        assert_eq!(watch.look(false, now, read), Look::Same);
        assert_eq!(watch.look(true, now, read), Look::New("one".to_owned()));
        std::fs::write(&path, "two!").unwrap();
        assert_eq!(watch.look(false, now, read), Look::New("two!".to_owned()));
        assert_eq!(watch.look(false, now, read), Look::Same);

        std::fs::write(&path, "bad").unwrap();
        assert_eq!(watch.look(false, now, read), Look::Kept("is bad".to_owned()));
        assert_eq!(told(&watch), None);
        assert_eq!(watch.look(false, now + EVERY, read), Look::Kept("is bad".to_owned()));
        assert_eq!(told(&watch), Some(now + EVERY));
        watch.look(false, now + EVERY * 2, read);
        assert_eq!(told(&watch), Some(now + EVERY));
        watch.look(false, now + EVERY + TELL_EVERY, read);
        assert_eq!(told(&watch), Some(now + EVERY + TELL_EVERY));

        std::fs::remove_file(&path).unwrap();
        assert!(matches!(watch.look(true, now, read), Look::Kept(_)));
        assert_eq!(told(&watch), Some(now));
        std::fs::write(&path, "three").unwrap();
        assert_eq!(watch.look(false, now, read), Look::New("three".to_owned()));
        assert_eq!(told(&watch), None);
    }
}
