//! Which addresses of images are taken: `data:` with base64, and nothing else.
//!
//! Only the form is looked at; the image itself is with those from files. Codex 0.169.0 refuses `http` and `https`, hands any other scheme
//! (`file:`, `blob:`) to the provider as it is, and replaces `data:` without base64, or with a wrong
//! one, by a note to the model, without a word to the caller.

use super::show;

/// Longest media type with its parameters, in bytes: it is shown to whoever reads the turn.
const LONGEST_KIND: usize = 128;

const WANTED: &str = "give data:image/…;base64,…";

/// What is wrong with an address, as a sentence for who sent it; `None` for nothing.
pub(super) fn fault(url: &str) -> Option<String> {
    let Some(rest) = after_scheme(url, "data:") else {
        let remedy = if after_scheme(url, "http:").is_some()
            || after_scheme(url, "https:").is_some()
        {
            "is not inline, and Codex takes no other images; fetch it, and send data:image/…;base64,…"
                .to_owned()
        } else if after_scheme(url, "file:").is_some() {
            format!("is a file's address; give its path as local_image, or {WANTED}")
        } else {
            format!("is no image's address; {WANTED}")
        };
        return Some(format!("{} {remedy}", show(url)));
    };
    let Some((kind, payload)) = rest.split_once(',') else {
        return Some(format!("{} has no comma before its data; {WANTED}", show(url)));
    };
    let mut parts = kind.split(';');
    let media_type = parts.next().unwrap_or_default();
    let is_plain = |c: char| c.is_ascii_graphic();
    if after_scheme(media_type, "image/").is_none_or(str::is_empty)
        || !kind.chars().all(is_plain)
        || kind.len() > LONGEST_KIND
    {
        return Some(format!("{} is not of the type image/…; {WANTED}", show(url)));
    }
    if !parts.next_back().is_some_and(|last| last.eq_ignore_ascii_case("base64")) {
        return Some(format!("{} is not in base64; {WANTED}", show(url)));
    }
    if !is_base64(payload) {
        return Some(format!(
            "{} does not hold standard base64 with its padding after the comma; {WANTED}",
            show(url)
        ));
    }
    None
}

/// What follows a scheme, in whatever case it is written.
fn after_scheme<'a>(url: &'a str, scheme: &str) -> Option<&'a str> {
    let (start, rest) = url.split_at_checked(scheme.len())?;
    start.eq_ignore_ascii_case(scheme).then_some(rest)
}

/// The standard alphabet, not the one for addresses, with all of its padding: what Codex decodes.
fn is_base64(payload: &str) -> bool {
    let bytes = payload.as_bytes();
    let unpadded = payload.trim_end_matches('=').as_bytes();
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    !unpadded.is_empty()
        && bytes.len().is_multiple_of(4)
        && bytes.len() - unpadded.len() <= 2
        && unpadded.iter().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_in_base64_is_taken_in_every_way_that_codex_takes_it() {
        for url in [
            "data:image/png;base64,QUJD",
            "data:image/png;base64,QUI=",
            "data:image/png;base64,QQ==",
            "DATA:IMAGE/PNG;BASE64,+/++",
            "data:image/svg+xml;charset=utf-8;base64,QUJD",
        ] {
            assert_eq!(fault(url), None, "{url}");
        }
    }

    #[test]
    fn any_other_address_is_refused_with_what_to_send_instead() {
        let cases = [
            ("https://example.com/x.png", "is not inline"),
            ("HTTP://example.com/x.png", "is not inline"),
            ("https:", "is not inline"),
            ("file:///etc/passwd", "give its path as local_image"),
            ("blob:abc", "is no image's address"),
            ("", "is no image's address"),
            ("/srv/x.png", "is no image's address"),
            ("da", "is no image's address"),
            ("☃☃☃☃☃☃", "is no image's address"),
            ("data:image/png;base64", "has no comma"),
            ("data:text/plain;base64,QUJD", "is not of the type image"),
            ("data:;base64,QUJD", "is not of the type image"),
            ("data:image/;base64,QUJD", "is not of the type image"),
            ("data:image/p ng;base64,QUJD", "is not of the type image"),
            ("data:image/svg+xml,<svg/>", "is not in base64"),
            ("data:image/png;base64;x,QUJD", "is not in base64"),
            ("data:image/png;base64,", "does not hold standard base64"),
            ("data:image/png;base64,====", "does not hold standard base64"),
            ("data:image/png;base64,QUJ", "does not hold standard base64"),
            ("data:image/png;base64,Q===", "does not hold standard base64"),
            ("data:image/png;base64,QU=D", "does not hold standard base64"),
            ("data:image/png;base64,-_-_", "does not hold standard base64"),
            ("data:image/png;base64,QU\nD", "does not hold standard base64"),
        ];
        for (url, expected) in cases {
            let fault = fault(url).unwrap_or_else(|| panic!("{url} is taken"));
            assert!(fault.contains(expected), "{url}: {fault}");
            assert!(fault.contains("data:image/…;base64,…"), "{url}: {fault}");
        }
    }

    #[test]
    fn a_media_type_is_short() {
        let url = |length: usize| format!("data:image/{};base64,QUJD", "x".repeat(length));
        assert_eq!(fault(&url(100)), None);
        assert!(fault(&url(1000)).is_some());
    }

    #[test]
    fn a_long_address_is_not_repeated_whole() {
        let fault = fault(&format!("data:image/png;base64,{}!", "A".repeat(1 << 20))).unwrap();
        assert!(fault.len() < 1000, "{} bytes", fault.len());
    }
}
