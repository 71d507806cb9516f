//! What the user says: the argument, standard input, or both, by the rules of `codex exec`.

use std::io::{self, IsTerminal as _, Read as _};

use super::{Failure, failed, tell};

/// The prompt. Reads standard input where the rules say so; that ends when the caller closes it.
pub(super) fn resolve(argument: Option<&str>, is_resume: bool) -> Result<String, Failure> {
    let is_terminal = io::stdin().is_terminal();
    match argument {
        Some("-") => required(read()?),
        None if is_terminal => Err(failed(
            "No prompt provided. Either specify one as an argument or pipe the prompt into stdin.",
        )),
        None => {
            tell("Reading prompt from stdin...");
            required(read()?)
        }
        Some(prompt) if is_resume || is_terminal => Ok(prompt.to_owned()),
        Some(prompt) => {
            tell("Reading additional input from stdin...");
            Ok(with_stdin(prompt, &read()?))
        }
    }
}

fn required(text: String) -> Result<String, Failure> {
    if text.trim().is_empty() {
        return Err(failed("No prompt provided via stdin."));
    }
    Ok(text)
}

fn with_stdin(prompt: &str, piped: &str) -> String {
    if piped.trim().is_empty() {
        return prompt.to_owned();
    }
    let newline = if piped.ends_with('\n') { "" } else { "\n" };
    format!("{prompt}\n\n<stdin>\n{piped}{newline}</stdin>")
}

fn read() -> Result<String, Failure> {
    let mut bytes = Vec::new();
    io::stdin()
        .read_to_end(&mut bytes)
        .map_err(|error| failed(format!("Failed to read prompt from stdin: {error}")))?;
    decode(bytes).map_err(|why| failed(format!("Failed to read prompt from stdin: {why}")))
}

/// UTF-8, or UTF-16 where the first bytes say so.
fn decode(bytes: Vec<u8>) -> Result<String, String> {
    let units = |read: fn([u8; 2]) -> u16| {
        let (pairs, rest) = bytes[2..].as_chunks::<2>();
        let units: Vec<u16> = pairs.iter().copied().map(read).collect();
        String::from_utf16(&units).ok().filter(|_| rest.is_empty())
    };
    match bytes.as_slice() {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => {
            Err("input appears to be UTF-32. Convert it to UTF-8 and retry.".to_owned())
        }
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => {
            let text = if bytes[0] == 0xff {
                units(u16::from_le_bytes)
            } else {
                units(u16::from_be_bytes)
            };
            text.ok_or_else(|| {
                "input looked like UTF-16 but could not be decoded. Convert it to UTF-8 and retry."
                    .to_owned()
            })
        }
        _ => {
            let text = String::from_utf8(bytes).map_err(|error| {
                let at = error.utf8_error().valid_up_to();
                format!(
                    "input is not valid UTF-8 (invalid byte at offset {at}). Convert it to UTF-8 \
                     and retry (e.g., `iconv -f <ENC> -t UTF-8 prompt.txt`)."
                )
            })?;
            Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stdin_is_added_to_the_argument_as_a_block() {
        assert_eq!(with_stdin("p", "a\nb"), "p\n\n<stdin>\na\nb\n</stdin>");
        assert_eq!(with_stdin("p", "a\n"), "p\n\n<stdin>\na\n</stdin>");
        assert_eq!(with_stdin("p", " \n"), "p");
    }

    #[test]
    fn other_encodings_are_read_or_refused_never_garbled() {
        assert_eq!(decode("é".into()).as_deref(), Ok("é"));
        assert_eq!(decode("\u{feff}é".into()).as_deref(), Ok("é"));
        assert_eq!(decode(vec![0xff, 0xfe, 0xe9, 0]).as_deref(), Ok("é"));
        assert_eq!(decode(vec![0xfe, 0xff, 0, 0xe9]).as_deref(), Ok("é"));
        for (bytes, why) in [
            (vec![b'a', 0xff], "invalid byte at offset 1"),
            (vec![0xff, 0xfe, 0xe9], "looked like UTF-16"),
            (vec![0xff, 0xfe, 0, 0xd8], "looked like UTF-16"),
            (vec![0xff, 0xfe, 0, 0, 1, 0, 0, 0], "UTF-32"),
        ] {
            let error = decode(bytes).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
