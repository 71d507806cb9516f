//! Names by patterns.

/// Whether a name is one of a pattern's: a `*` of it stands for any characters, none and dots included.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    fits(pattern, name, |byte, found| byte == found)
}

/// The same, where a `?` stands for one character of ASCII, too.
pub(crate) fn matches_with_marks(pattern: &str, name: &str) -> bool {
    fits(pattern, name, |byte, found| byte == b'?' || byte == found)
}

/// Takes as many steps as both are long, multiplied, however many `*` there are.
fn fits(pattern: &str, name: &str, is_one: impl Fn(u8, u8) -> bool) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut at, mut in_name) = (0, 0);
    // Where to go on if what follows the last `*` does not fit: it takes one more character.
    let mut again: Option<(usize, usize)> = None;
    while in_name < name.len() {
        match pattern.get(at) {
            Some(b'*') => {
                again = Some((at + 1, in_name));
                at += 1;
            }
            Some(byte) if is_one(*byte, name[in_name]) => {
                at += 1;
                in_name += 1;
            }
            Some(_) | None => {
                let Some((after, taken)) = again else { return false };
                again = Some((after, taken + 1));
                (at, in_name) = (after, taken + 1);
            }
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

/// Whether a name is one of any of the patterns'.
pub(crate) fn any_matches<'a>(
    patterns: impl IntoIterator<Item = &'a (impl AsRef<str> + 'a)>,
    name: &str,
) -> bool {
    patterns.into_iter().any(|pattern| matches(pattern.as_ref(), name))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The same, as one would say it.
    fn plainly(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern, name) {
            ([], []) => true,
            ([b'*', rest @ ..], _) => (0..=name.len()).any(|taken| plainly(rest, &name[taken..])),
            ([first, rest @ ..], [other, others @ ..]) => first == other && plainly(rest, others),
            _ => false,
        }
    }

    #[test]
    fn a_mark_stands_for_one_character() {
        for (pattern, fits) in [("A?C", "ABC"), ("*?", "A"), ("A*?E", "ABCDE")] {
            assert!(matches_with_marks(pattern, fits), "{pattern} {fits}");
            assert!(!matches(pattern, fits), "{pattern} {fits}");
        }
        assert!(!matches_with_marks("A?", "A") && !matches_with_marks("?", "AB"));
    }

    #[test]
    fn many_stars_take_no_time() {
        assert!(!matches_with_marks(&"*a".repeat(40), &"a".repeat(39)));
    }

    proptest! {
        #[test]
        fn a_pattern_means_what_it_says(pattern in "[ab.*]{0,6}", name in "[ab.*]{0,8}") {
            prop_assert_eq!(
                matches(&pattern, &name),
                plainly(pattern.as_bytes(), name.as_bytes())
            );
        }

        /// So a policy may be held against another one pattern by pattern.
        #[test]
        fn what_a_pattern_matches_as_a_name_it_matches_in_all_its_names(
            outer in "[ab*]{0,5}",
            inner in "[ab*]{0,5}",
            name in "[ab]{0,8}",
        ) {
            prop_assert!(!matches(&outer, &inner) || !matches(&inner, &name) || matches(&outer, &name));
        }
    }
}
