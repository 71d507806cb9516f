//! When to try again, as providers say it in words.

use std::time::Duration;

/// What stands before a time to wait: `Please try again in 1m59s`, `Retry-After: 30`, `wait 2 hours`.
const CUES: [&str; 12] = [
    "try again in",
    "try again after",
    "again in",
    "retry in",
    "retry after",
    "retry-after",
    "retry_after",
    "wait",
    "resets in",
    "reset in",
    "reset after",
    "available in",
];

/// What may stand between the cue and the time.
const BETWEEN: [&str; 9] =
    ["about ", "approximately ", "around ", "at least ", "another ", "for ", "in ", "up to ", "~"];

/// A longer wait is no wait.
const LONGEST: f64 = 366.0 * 24.0 * 3600.0;

/// When to try again, where the text says so. A text about a limit may say it without a cue: `in 20
/// seconds`.
pub(super) fn retry_after_in(text: &str, is_about_a_limit: bool) -> Option<Duration> {
    let text = text.to_ascii_lowercase();
    let mut found = CUES.iter().flat_map(|cue| text.match_indices(cue)).collect::<Vec<_>>();
    found.sort_by_key(|(at, cue)| (*at, std::cmp::Reverse(cue.len())));
    let cued = found.into_iter().find_map(|(at, cue)| duration(&text[at + cue.len()..], true));
    cued.or_else(|| {
        let mut uncued = text.match_indices(" in ").filter(|_| is_about_a_limit);
        uncued.find_map(|(at, cue)| duration(&text[at + cue.len()..], false))
    })
}

/// The duration at the beginning of a text: `1m59s`, `1 minute and 30.5 seconds`, `300ms`; a number
/// without a unit means seconds, as in a header, where that `is_enough`.
fn duration(text: &str, is_enough: bool) -> Option<Duration> {
    let mut rest = text.trim_start_matches(|c: char| c.is_whitespace() || ":=\"'(".contains(c));
    while let Some(after) = BETWEEN.iter().find_map(|word| rest.strip_prefix(word)) {
        rest = after.trim_start();
    }
    let mut seconds = None;
    loop {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && !".,".contains(c));
        let (number, after) = rest.split_at(digits.unwrap_or(rest.len()));
        let is_last = number.ends_with(['.', ',']);
        let Some(number) = number_of(number) else { break };
        if after
            .strip_prefix(':')
            .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        {
            // A time of day, or minutes and seconds: the text does not say which.
            return None;
        }
        // What stands in the next line is no unit.
        let after = after.trim_start_matches([' ', '\t']);
        let letters = after.find(|c: char| is_last || !c.is_ascii_alphabetic());
        let letters = letters.unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        let Some(factor) = in_seconds(unit) else {
            // `5 attempts` and `3 moons` are no seconds.
            if seconds.is_none() && is_enough && unit.is_empty() {
                seconds = Some(number);
            }
            break;
        };
        *seconds.get_or_insert(0.0) += number * factor;
        rest = after.trim_start_matches(|c: char| c.is_whitespace() || c == ',');
        rest = rest.strip_prefix("and ").unwrap_or(rest).trim_start();
    }
    let seconds = seconds.filter(|seconds| *seconds <= LONGEST)?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// A number without the end of its sentence: `30.`, `1.5`, `1,200`.
fn number_of(digits: &str) -> Option<f64> {
    let digits = digits.trim_end_matches(['.', ',']);
    let mut groups = digits.split(',');
    let first = groups.next().unwrap_or_default();
    let mut plain = first.to_owned();
    for group in groups {
        let whole = group.split('.').next().unwrap_or_default();
        if first.len() > 3 || whole.len() != 3 {
            return None;
        }
        plain.push_str(group);
    }
    plain.parse().ok()
}

fn in_seconds(unit: &str) -> Option<f64> {
    Some(match unit {
        "ms" | "msec" | "msecs" | "millisecond" | "milliseconds" => 0.001,
        "s" | "sec" | "secs" | "second" | "seconds" => 1.0,
        "m" | "min" | "mins" | "minute" | "minutes" => 60.0,
        "h" | "hr" | "hrs" | "hour" | "hours" => 3600.0,
        "d" | "day" | "days" => 24.0 * 3600.0,
        "w" | "wk" | "wks" | "week" | "weeks" => 7.0 * 24.0 * 3600.0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn providers_words_for_a_wait_are_understood() {
        for (text, millis) in [
            ("Rate limit reached. Please try again in 1m59s.", Some(119_000)),
            ("Rate limit reached. Please try again in 7.5s.", Some(7_500)),
            ("try again in 11.054s. Visit https://x/y", Some(11_054)),
            ("Please try again in 6m0s", Some(360_000)),
            ("please try again in 1h2m3s", Some(3_723_000)),
            ("Try again in 300ms", Some(300)),
            ("try again in 20 seconds.", Some(20_000)),
            ("try again in 2 hours", Some(7_200_000)),
            ("try again in about 1 minute and 30 seconds", Some(90_000)),
            ("Try again in 1 day, 2 hours and 3 minutes.", Some(93_780_000)),
            ("retry after 30", Some(30_000)),
            ("Retry-After: 30", Some(30_000)),
            (r#"{"retry_after": 1.5}"#, Some(1_500)),
            ("Please retry in 39.430694776s.", Some(39_430)),
            ("Please wait 5 min before", Some(300_000)),
            ("Try again in 1,200 seconds", Some(1_200_000)),
            ("Please try again in 2 weeks", Some(1_209_600_000)),
            ("try again in 3 months", None),
            ("try again in 01:59", None),
            ("retry after 12:30", None),
            ("wait 5 turns", None),
            ("Retry-After: 30\r\nServer: x", Some(30_000)),
            ("retry after 30, then go on", Some(30_000)),
            ("wait for it; try again in 2s", Some(2_000)),
            ("the quota resets in 1h", Some(3_600_000)),
            ("too many requests: you can go on in 20 seconds", Some(20_000)),
            ("try again later", None),
            ("Try again at 3:05 PM", None),
            ("in time", None),
            ("try again in 99999999999999999999 hours", None),
            ("try again in ...", None),
            ("", None),
        ] {
            let millis_of = |after: Duration| u64::try_from(after.as_millis()).unwrap();
            assert_eq!(retry_after_in(text, true).map(millis_of), millis, "{text}");
        }
        assert_eq!(retry_after_in("the command ended in 20 seconds", false), None);
    }

    proptest! {
        #[test]
        fn any_duration_is_read_back_as_it_was_written(
            (hours, minutes, seconds, millis) in (0_u64..100, 0_u64..60, 0_u64..60, 0_u64..1000),
        ) {
            let expected = Duration::from_millis(((hours * 60 + minutes) * 60 + seconds) * 1000 + millis);
            for text in [
                format!("Please try again in {hours}h{minutes}m{seconds}.{millis:03}s."),
                format!("Please try again in {hours} hours, {minutes} minutes, {seconds} seconds and {millis} ms"),
            ] {
                let read = retry_after_in(&text, false).unwrap();
                prop_assert!(read.abs_diff(expected) < Duration::from_millis(1), "{text}: {read:?}");
            }
        }

        #[test]
        fn no_text_is_too_strange(text in any::<String>(), tail in "(try again in |wait )[0-9.hms ]{0,12}") {
            let _ = retry_after_in(&(text + &tail), true);
        }
    }
}
