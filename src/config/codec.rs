//! How a value is written: from text (flag, environment) or TOML (file), and back to TOML.

use std::ffi::{OsStr, OsString};
use std::marker::PhantomData;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::secrets;
use crate::access::IdentifyPeers;
use crate::model::id::is_hidden;
use crate::model::options::{DEEPEST_CONFIG, config_depth};
use crate::registry::ledger::{Durability, StatePath};
use crate::telemetry::LogFormat;
use crate::worker::environment::is_kept_back;

/// Longest duration that is taken: further out, clocks overflow.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// A value as it was written.
#[derive(Clone, Copy)]
pub(super) enum Raw<'a> {
    /// One flag or environment variable.
    Text(&'a OsStr),
    /// A flag that was given several times.
    Texts(&'a [OsString]),
    /// From the file.
    Toml(&'a toml::Value),
}

impl Raw<'_> {
    /// The value for a message, in one line and bounded.
    pub(super) fn show(&self) -> String {
        let text = match self {
            Raw::Text(text) => format!("{:?}", text.to_string_lossy()),
            Raw::Texts(texts) => {
                let texts: Vec<String> =
                    texts.iter().map(|text| format!("{:?}", text.to_string_lossy())).collect();
                texts.join(", ")
            }
            Raw::Toml(value) => secrets::show(value),
        };
        show_bounded(&text)
    }
}

/// A text in one line, cut where it gets long.
pub(super) fn show_bounded(text: &str) -> String {
    const LONGEST_SHOWN: usize = 200;
    let line = text.replace(['\n', '\r'], " ");
    match line.char_indices().nth(LONGEST_SHOWN) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

/// One way to write a value.
pub(super) trait Codec {
    /// What it means.
    type Value;
    /// Reads it; relative paths start at `base`. An error says what is allowed.
    fn read(&self, raw: Raw<'_>, base: &Path) -> Result<Self::Value, String>;
    /// Writes it so that `read` gives the same.
    fn write(&self, value: &Self::Value) -> toml::Value;
}

/// The text of a raw value, where it is one.
fn text_of<'a>(raw: Raw<'a>) -> Option<&'a str> {
    match raw {
        Raw::Text(text) => text.to_str().map(str::trim),
        Raw::Toml(toml::Value::String(text)) => Some(text.trim()),
        Raw::Toml(_) | Raw::Texts(_) => None,
    }
}

/// A whole number.
pub(super) struct Count<T> {
    range: RangeInclusive<u64>,
    of: PhantomData<T>,
}

/// A whole number within `range`.
pub(super) fn count<T>(range: RangeInclusive<u64>) -> Count<T> {
    Count { range, of: PhantomData }
}

impl<T: TryFrom<u64> + TryInto<u64> + Copy> Codec for Count<T> {
    type Value = T;

    fn read(&self, raw: Raw<'_>, _base: &Path) -> Result<T, String> {
        let number = match raw {
            Raw::Toml(toml::Value::Integer(number)) => u64::try_from(*number).ok(),
            // A quoted number in the file is a mistake that is not worth guessing about.
            Raw::Toml(_) => None,
            Raw::Text(_) | Raw::Texts(_) => text_of(raw).and_then(|text| text.parse().ok()),
        };
        number
            .filter(|number| self.range.contains(number))
            .and_then(|number| T::try_from(number).ok())
            .ok_or_else(|| {
                format!("wants a whole number from {} to {}", self.range.start(), self.range.end())
            })
    }

    fn write(&self, value: &T) -> toml::Value {
        to_integer(*value)
    }
}

/// A number of bytes.
pub(super) struct Bytes<T>(Count<T>);

/// A number of bytes within `range`.
pub(super) fn bytes<T>(range: RangeInclusive<u64>) -> Bytes<T> {
    Bytes(count(range))
}

impl<T: TryFrom<u64> + TryInto<u64> + Copy> Codec for Bytes<T> {
    type Value = T;

    fn read(&self, raw: Raw<'_>, _base: &Path) -> Result<T, String> {
        let number = match raw {
            Raw::Toml(toml::Value::Integer(number)) => u64::try_from(*number).ok(),
            _ => text_of(raw).and_then(parse_bytes),
        };
        number
            .filter(|number| self.0.range.contains(number))
            .and_then(|number| T::try_from(number).ok())
            .ok_or_else(|| {
                format!(
                    "wants a number of bytes from {} to {}, like 65536 or \"4MiB\"",
                    show_bytes(*self.0.range.start()),
                    show_bytes(*self.0.range.end())
                )
            })
    }

    fn write(&self, value: &T) -> toml::Value {
        let number: Option<u64> = (*value).try_into().ok();
        match number.map(show_bytes) {
            Some(text) if text.ends_with("iB") => toml::Value::String(text),
            _ => to_integer(*value),
        }
    }
}

fn to_integer<T: TryInto<u64>>(value: T) -> toml::Value {
    let number: u64 = value.try_into().unwrap_or(u64::MAX);
    toml::Value::Integer(i64::try_from(number).unwrap_or(i64::MAX))
}

/// `65536`, `64KiB`, `64 kib`, `10MB`.
fn parse_bytes(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// The number in its largest binary unit that divides it.
fn show_bytes(number: u64) -> String {
    for (shift, unit) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if number > 0 && number.is_multiple_of(1 << shift) {
            return format!("{}{unit}", number >> shift);
        }
    }
    number.to_string()
}

/// A duration.
pub(super) struct Span {
    shortest: Duration,
}

/// A duration above zero.
pub(super) fn duration() -> Span {
    Span { shortest: Duration::from_millis(1) }
}

/// A duration that may be zero.
pub(super) fn duration_or_zero() -> Span {
    Span { shortest: Duration::ZERO }
}

/// A duration above zero, or zero for none.
pub(super) struct SpanOrNone;

impl Codec for SpanOrNone {
    type Value = Option<Duration>;

    fn read(&self, raw: Raw<'_>, base: &Path) -> Result<Option<Duration>, String> {
        let duration = duration_or_zero().read(raw, base);
        let duration = duration.map_err(|wanted| format!("{wanted}, or \"0\" for no limit"))?;
        Ok(Some(duration).filter(|duration| !duration.is_zero()))
    }

    fn write(&self, value: &Option<Duration>) -> toml::Value {
        duration_or_zero().write(&value.unwrap_or_default())
    }
}

impl Codec for Span {
    type Value = Duration;

    fn read(&self, raw: Raw<'_>, _base: &Path) -> Result<Duration, String> {
        text_of(raw)
            .and_then(|text| humantime::parse_duration(text).ok())
            .filter(|duration| (self.shortest..=LONGEST).contains(duration))
            .ok_or_else(|| {
                format!(
                    "wants a duration from {} to 365days, like \"500ms\", \"30s\" or \"10m\"",
                    humantime::format_duration(self.shortest)
                )
            })
    }

    fn write(&self, value: &Duration) -> toml::Value {
        toml::Value::String(humantime::format_duration(*value).to_string())
    }
}

/// Yes or no.
pub(super) struct Switch;

impl Codec for Switch {
    type Value = bool;

    fn read(&self, raw: Raw<'_>, _base: &Path) -> Result<bool, String> {
        if let Raw::Toml(toml::Value::Boolean(value)) = raw {
            return Ok(*value);
        }
        let text = match raw {
            Raw::Toml(_) => None,
            Raw::Text(_) | Raw::Texts(_) => text_of(raw),
        };
        match text.map(str::to_ascii_lowercase).as_deref() {
            Some("true" | "1" | "yes" | "on") => Ok(true),
            Some("false" | "0" | "no" | "off") => Ok(false),
            _ => Err("wants true or false".to_owned()),
        }
    }

    fn write(&self, value: &bool) -> toml::Value {
        toml::Value::Boolean(*value)
    }
}

pub(super) struct LogForm;

impl Codec for LogForm {
    type Value = LogFormat;

    fn read(&self, raw: Raw<'_>, _base: &Path) -> Result<LogFormat, String> {
        match text_of(raw) {
            Some("json") => Ok(LogFormat::Json),
            Some("text") => Ok(LogFormat::Text),
            _ => Err("wants json or text".to_owned()),
        }
    }

    fn write(&self, value: &LogFormat) -> toml::Value {
        let text = match value {
            LogFormat::Json => "json",
            LogFormat::Text => "text",
        };
        toml::Value::String(text.to_owned())
    }
}

/// A file, or the word `memory`.
pub(super) struct FileOrMemory;

impl Codec for FileOrMemory {
    type Value = StatePath;

    fn read(&self, raw: Raw<'_>, base: &Path) -> Result<StatePath, String> {
        if text_of(raw) == Some("memory") {
            return Ok(StatePath::Memory);
        }
        let path = AbsolutePath { bare_name_allowed: false }.read(raw, base);
        path.map(StatePath::File).map_err(|fault| match fault.as_str() {
            "wants a path" => "wants a path, or memory".to_owned(),
            _ => fault,
        })
    }

    fn write(&self, value: &StatePath) -> toml::Value {
        toml::Value::String(match value {
            StatePath::File(path) => path.to_string_lossy().into_owned(),
            StatePath::Memory => "memory".to_owned(),
        })
    }
}

/// What is kept outlives.
pub(super) struct Outlives;

impl Codec for Outlives {
    type Value = Durability;

    fn read(&self, raw: Raw<'_>, _base: &Path) -> Result<Durability, String> {
        match text_of(raw) {
            Some("power") => Ok(Durability::Power),
            Some("process") => Ok(Durability::Process),
            _ => Err("wants power or process".to_owned()),
        }
    }

    fn write(&self, value: &Durability) -> toml::Value {
        let text = match value {
            Durability::Power => "power",
            Durability::Process => "process",
        };
        toml::Value::String(text.to_owned())
    }
}

/// Whether callers must be identified.
pub(super) struct Identify;

impl Codec for Identify {
    type Value = IdentifyPeers;

    fn read(&self, raw: Raw<'_>, _base: &Path) -> Result<IdentifyPeers, String> {
        match text_of(raw) {
            Some("when_possible") => Ok(IdentifyPeers::WhenPossible),
            Some("required") => Ok(IdentifyPeers::Required),
            _ => Err("wants when_possible or required".to_owned()),
        }
    }

    fn write(&self, value: &IdentifyPeers) -> toml::Value {
        let text = match value {
            IdentifyPeers::WhenPossible => "when_possible",
            IdentifyPeers::Required => "required",
        };
        toml::Value::String(text.to_owned())
    }
}

pub(super) struct LogFilter;

impl Codec for LogFilter {
    type Value = String;

    fn read(&self, raw: Raw<'_>, _base: &Path) -> Result<String, String> {
        const ALLOWED: &str = "wants a level (error, warn, info, debug, trace, off) or a filter \
                               like \"info,codex_sidecar::pool=debug\"";
        let text = text_of(raw).filter(|text| !text.is_empty()).ok_or(ALLOWED)?;
        // A bare word that is no level would be a target of ours that logs everything: a typo.
        let words = ["error", "warn", "info", "debug", "trace", "off"];
        let bare_word = text.chars().all(|c| c.is_ascii_alphabetic());
        if bare_word && !words.contains(&text.to_ascii_lowercase().as_str()) {
            return Err(ALLOWED.to_owned());
        }
        match tracing_subscriber::EnvFilter::builder().parse(text) {
            Ok(_) => Ok(text.to_owned()),
            Err(error) => Err(format!("{error}; {ALLOWED}")),
        }
    }

    fn write(&self, value: &String) -> toml::Value {
        toml::Value::String(value.clone())
    }
}

/// A path that is made absolute.
#[derive(Clone, Copy)]
pub(super) struct AbsolutePath {
    /// A name without a slash stays one, and is looked for on PATH.
    pub(super) bare_name_allowed: bool,
}

impl Codec for AbsolutePath {
    type Value = PathBuf;

    fn read(&self, raw: Raw<'_>, base: &Path) -> Result<PathBuf, String> {
        let path = match raw {
            Raw::Text(text) => Some(Path::new(text)),
            Raw::Toml(toml::Value::String(text)) => Some(Path::new(text.as_str())),
            Raw::Toml(_) | Raw::Texts(_) => None,
        };
        let path = path
            .filter(|path| !path.as_os_str().is_empty())
            .filter(|path| !path.as_os_str().as_encoded_bytes().contains(&0))
            .ok_or("wants a path")?;
        if self.bare_name_allowed && !path.as_os_str().as_encoded_bytes().contains(&b'/') {
            return Ok(path.to_owned());
        }
        make_absolute(path, base)
    }

    fn write(&self, value: &PathBuf) -> toml::Value {
        toml::Value::String(value.to_string_lossy().into_owned())
    }
}

pub(super) fn make_absolute(path: &Path, base: &Path) -> Result<PathBuf, String> {
    std::path::absolute(base.join(path)).map_err(|error| format!("can't be made absolute: {error}"))
}

/// The mode of a file.
pub(super) struct FileMode;

impl Codec for FileMode {
    type Value = u32;

    fn read(&self, raw: Raw<'_>, _base: &Path) -> Result<u32, String> {
        text_of(raw)
            .and_then(|text| u32::from_str_radix(text, 8).ok())
            .filter(|mode| *mode <= 0o777)
            .ok_or_else(|| "wants a file mode in octal as a text, like \"0660\"".to_owned())
    }

    fn write(&self, value: &u32) -> toml::Value {
        toml::Value::String(format!("{value:04o}"))
    }
}

/// The name of a group, or its number.
pub(super) struct GroupName;

impl Codec for GroupName {
    type Value = String;

    fn read(&self, raw: Raw<'_>, _base: &Path) -> Result<String, String> {
        let name = match raw {
            Raw::Toml(toml::Value::Integer(number)) => {
                u32::try_from(*number).ok().map(|number| number.to_string())
            }
            _ => text_of(raw).map(str::to_owned),
        };
        name.filter(|name| !name.is_empty() && !name.contains([':', '\n']))
            .ok_or_else(|| "wants the name or the number of a group".to_owned())
    }

    fn write(&self, value: &String) -> toml::Value {
        toml::Value::String(value.clone())
    }
}

/// Numbers of users or groups.
pub(super) struct Ids;

impl Codec for Ids {
    type Value = Vec<u32>;

    fn read(&self, raw: Raw<'_>, _base: &Path) -> Result<Vec<u32>, String> {
        let ids: Option<Vec<u32>> = match raw {
            Raw::Toml(toml::Value::Array(values)) => {
                values.iter().map(|value| u32::try_from(value.as_integer()?).ok()).collect()
            }
            _ => None,
        };
        ids.ok_or_else(|| "wants a list of numbers, like [1000, 1001]".to_owned())
    }

    fn write(&self, value: &Vec<u32>) -> toml::Value {
        value.iter().map(|id| toml::Value::Integer(i64::from(*id))).collect::<Vec<_>>().into()
    }
}

/// Texts that say something.
pub(super) struct TextList;

impl Codec for TextList {
    type Value = Vec<String>;

    fn read(&self, raw: Raw<'_>, _base: &Path) -> Result<Vec<String>, String> {
        let texts: Option<Vec<String>> = match raw {
            Raw::Toml(toml::Value::Array(values)) => values
                .iter()
                .map(|value| value.as_str().map(|text| text.trim().to_owned()))
                .collect(),
            _ => None,
        };
        let plausible = |text: &String| !text.is_empty() && !text.chars().any(is_hidden);
        texts.filter(|texts| texts.iter().all(plausible)).ok_or_else(|| {
            "wants a list of texts that are not empty, like [\"a\", \"b\"]".to_owned()
        })
    }

    fn write(&self, value: &Vec<String>) -> toml::Value {
        value.iter().map(|text| toml::Value::String(text.clone())).collect::<Vec<_>>().into()
    }
}

/// The name of an environment variable.
pub(super) struct VariableName;

impl Codec for VariableName {
    type Value = String;

    fn read(&self, raw: Raw<'_>, _base: &Path) -> Result<String, String> {
        let plausible = |name: &&str| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_graphic() && c != '=')
        };
        let name = text_of(raw).filter(plausible).map(str::to_owned);
        name.ok_or_else(|| "wants the name of an environment variable".to_owned())
    }

    fn write(&self, value: &String) -> toml::Value {
        toml::Value::String(value.clone())
    }
}

/// Names of features of the CLI.
pub(super) struct FeatureNames;

impl Codec for FeatureNames {
    type Value = Vec<String>;

    fn read(&self, raw: Raw<'_>, _base: &Path) -> Result<Vec<String>, String> {
        let names: Option<Vec<String>> = match raw {
            Raw::Toml(toml::Value::Array(values)) => {
                values.iter().map(|value| value.as_str().map(str::to_owned)).collect()
            }
            _ => None,
        };
        let plausible = |name: &String| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        names
            .filter(|names| names.iter().all(plausible))
            .ok_or_else(|| "wants a list of feature names, like [\"apps\", \"plugins\"]".to_owned())
    }

    fn write(&self, value: &Vec<String>) -> toml::Value {
        value.iter().map(|name| toml::Value::String(name.clone())).collect::<Vec<_>>().into()
    }
}

/// Names of environment variables, and patterns of them.
pub(super) struct VariableNames;

impl Codec for VariableNames {
    type Value = Vec<String>;

    fn read(&self, raw: Raw<'_>, _base: &Path) -> Result<Vec<String>, String> {
        const ALLOWED: &str = "wants a list of environment variables by name or pattern, like \
                               [\"AWS_*\", \"SSH_AUTH_SOCK\"]";
        let names: Option<Vec<String>> = match raw {
            Raw::Toml(toml::Value::Array(values)) => {
                values.iter().map(|value| value.as_str().map(str::to_owned)).collect()
            }
            _ => None,
        };
        let names = names.ok_or(ALLOWED)?;
        let is_name = |name: &String| !name.is_empty() && !name.contains(['=', '\0']);
        if !names.iter().all(is_name) {
            return Err(ALLOWED.to_owned());
        }
        match names.iter().find(|name| is_kept_back(name)) {
            Some(name) => Err(format!(
                "{ALLOWED}; {name} is the sidecar's own, and no worker gets it (CODEX_SIDECAR_*, OTEL_*)"
            )),
            None => Ok(names),
        }
    }

    fn write(&self, value: &Vec<String>) -> toml::Value {
        FeatureNames.write(value)
    }
}

/// Refuses a key of the CLI's configuration that leads too deep.
pub(super) fn check_depth(key: &str, value: &serde_json::Value) -> Result<(), String> {
    match config_depth(key, value) {
        ..=DEEPEST_CONFIG => Ok(()),
        depth => Err(format!(
            "{:?} leads {depth} levels deep, its dots included; the most is {DEEPEST_CONFIG}",
            show_bounded(key)
        )),
    }
}

/// TOML as JSON; dates become their text.
pub(super) fn to_json(value: &toml::Value) -> Result<serde_json::Value, String> {
    Ok(match value {
        toml::Value::String(text) => serde_json::Value::String(text.clone()),
        toml::Value::Integer(number) => (*number).into(),
        toml::Value::Float(number) => serde_json::Number::from_f64(*number)
            .map(serde_json::Value::Number)
            .ok_or("has a number that JSON can't express")?,
        toml::Value::Boolean(value) => (*value).into(),
        toml::Value::Datetime(date) => serde_json::Value::String(date.to_string()),
        toml::Value::Array(values) => {
            serde_json::Value::Array(values.iter().map(to_json).collect::<Result<_, _>>()?)
        }
        toml::Value::Table(table) => serde_json::Value::Object(
            table
                .iter()
                .map(|(key, value)| Ok((key.clone(), to_json(value)?)))
                .collect::<Result<_, String>>()?,
        ),
    })
}

/// Overrides of CLI configuration.
pub(super) struct Overrides;

impl Codec for Overrides {
    type Value = toml::Table;

    fn read(&self, raw: Raw<'_>, _base: &Path) -> Result<toml::Table, String> {
        match raw {
            Raw::Toml(toml::Value::Table(table)) => {
                // `-c` splits at the first `=`, and Codex at every dot.
                let usable = |key: &String| {
                    !key.is_empty()
                        && !key.contains(['=', '\0'])
                        && key.split('.').all(|part| !part.is_empty())
                };
                if let Some(key) = table.keys().find(|key| !usable(key)) {
                    return Err(format!("{key:?} is no key for the CLI's -c"));
                }
                for (key, value) in table {
                    check_depth(key, &to_json(value)?)?;
                }
                Ok(table.clone())
            }
            _ => Err("wants a table of CLI settings by dotted key".to_owned()),
        }
    }

    fn write(&self, value: &toml::Table) -> toml::Value {
        toml::Value::Table(value.clone())
    }
}
