//! Bearer tokens: how a file lists them, and whose one is.
//!
//! A line of the file is a token, or `sha256:` with its hash in hexadecimal digits, then if need be
//! `tenant=NAME` and `expires=RFC3339`; `#` begins a comment. Only hashes are kept, and no fault repeats
//! what stands in a line.

use std::collections::{BTreeSet, HashMap};
use std::fmt::{self, Write as _};
use std::time::SystemTime;

use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConditionallySelectable as _, ConstantTimeEq as _};

use crate::model::id::Tenant;

/// Fewest and most bytes of a token: fewer can be guessed, and no header should be longer.
const SHORTEST: usize = 16;
const LONGEST: usize = 1024;

/// Most faults of one file that are told.
const MOST_FAULTS: usize = 10;

/// What a line begins with that has a hash in place of a token.
const HASHED: &str = "sha256:";

/// The hash of a token, which tells nobody the token.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenHash([u8; 32]);

impl TokenHash {
    /// Of a token.
    pub fn of(token: &[u8]) -> TokenHash {
        TokenHash(Sha256::digest(token).into())
    }

    fn parse(digits: &str) -> Option<TokenHash> {
        let mut hash = [0; 32];
        if digits.len() != 2 * hash.len() || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        for (byte, at) in hash.iter_mut().zip((0..).step_by(2)) {
            *byte = u8::from_str_radix(digits.get(at..at + 2)?, 16).ok()?;
        }
        Some(TokenHash(hash))
    }
}

impl fmt::Display for TokenHash {
    /// As a line of a file has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HASHED)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash(..)")
    }
}

/// A token that opens something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) hash: TokenHash,
    pub(super) tenant: Tenant,
    /// From when on it opens nothing.
    pub(super) expires: Option<SystemTime>,
    /// Where it stands, for the log: the line of its file, from 1; 0 where it is in none.
    pub(super) line: usize,
}

/// What a file says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) tokens: Vec<Token>,
    /// How many stand there as they are, and not as hashes.
    pub(super) in_clear: usize,
    /// Nothing stands there at all, no comment either.
    pub(super) is_blank: bool,
}

/// Whose the tokens of a file can be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Whose {
    /// That of the line, one of these, or the default's.
    Any(BTreeSet<Tenant>),
    /// This one's.
    One(Tenant),
}

/// What stands in a line.
struct Line<'a> {
    hash: TokenHash,
    /// The token itself, where it is there.
    token: Option<&'a str>,
    tenant: Option<&'a str>,
    expires: Option<SystemTime>,
}

/// Reads the lines of a file.
///
/// # Errors
/// All that is wrong with it, by lines.
pub(super) fn list(bytes: &[u8], whose: &Whose) -> Result<Listed, String> {
    let mut listed = Listed { is_blank: bytes.trim_ascii().is_empty(), ..Listed::default() };
    let mut lines_of = HashMap::new();
    let mut faults = Vec::new();
    for (at, line) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
        let read = read_line(line).and_then(|line| {
            let Some(line) = line else { return Ok(()) };
            if let Some(before) = lines_of.insert(line.hash, at) {
                return Err(format!("has the token of line {before} again"));
            }
            listed.in_clear += usize::from(line.token.is_some());
            let tenant = whose.tenant(line.tenant)?;
            let (hash, expires) = (line.hash, line.expires);
            listed.tokens.push(Token { hash, tenant, expires, line: at });
            Ok(())
        });
        if let Err(fault) = read {
            faults.push(format!("line {at} {fault}"));
        }
    }
    if faults.is_empty() {
        return Ok(listed);
    }
    let more = faults.len().saturating_sub(MOST_FAULTS);
    faults.truncate(MOST_FAULTS);
    let mut told = faults.join("; ");
    if more > 0 {
        let _ = write!(told, "; and {more} lines more");
    }
    Err(told)
}

/// The first token of a file that can be shown to a sidecar: one that stands there as it is, and has not
/// expired.
///
/// # Errors
/// What is wrong with the file, or that it has none.
pub(crate) fn shown(bytes: &[u8], now: SystemTime) -> Result<SecretString, String> {
    let (mut hashed, mut expired) = (0, 0);
    for (at, line) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
        match read_line(line).map_err(|fault| format!("line {at} {fault}"))? {
            None => {}
            Some(Line { token: None, .. }) => hashed += 1,
            Some(Line { expires: Some(expires), .. }) if expires <= now => expired += 1,
            Some(Line { token: Some(token), .. }) => {
                return Ok(SecretString::from(token.to_owned()));
            }
        }
    }
    Err(match (hashed, expired) {
        (0, 0) => "has no token".to_owned(),
        (0, _) => "has only tokens that have expired".to_owned(),
        (_, 0) => {
            "has only hashes, which open nothing; whoever calls needs the token itself".to_owned()
        }
        _ => "has only hashes and tokens that have expired".to_owned(),
    })
}

/// A token that stands for itself, as in a variable.
///
/// # Errors
/// Why it can be none.
pub(crate) fn alone(text: &str) -> Result<SecretString, String> {
    let token = text.trim();
    check(token).map(|()| SecretString::from(token.to_owned()))
}

/// What a line says; nothing where it is blank or a comment.
fn read_line(line: &[u8]) -> Result<Option<Line<'_>>, String> {
    let line = std::str::from_utf8(line).map_err(|_| "is not UTF-8".to_owned())?;
    let mut words = line.split_ascii_whitespace().take_while(|word| !word.starts_with('#'));
    let Some(first) = words.next() else { return Ok(None) };
    if first.starts_with("tenant=") || first.starts_with("expires=") {
        return Err("has no token before what it says of one".to_owned());
    }
    let (hash, token) = match first.strip_prefix(HASHED) {
        Some(digits) => {
            let hash = TokenHash::parse(digits);
            (hash.ok_or("has no 64 hexadecimal digits behind sha256:")?, None)
        }
        None => {
            check(first)?;
            (TokenHash::of(first.as_bytes()), Some(first))
        }
    };
    let mut read = Line { hash, token, tenant: None, expires: None };
    for word in words {
        match word.split_once('=') {
            Some(("tenant", "")) => return Err("has no name behind tenant=".to_owned()),
            Some(("tenant", name)) if read.tenant.is_none() => read.tenant = Some(name),
            Some(("expires", time)) if read.expires.is_none() => {
                let wanted = "has no time behind expires= as RFC 3339 has it, such as \
                              2027-01-31T18:00:00Z";
                read.expires = Some(rfc3339(time).ok_or(wanted)?);
            }
            Some(("tenant", _)) => return Err("says tenant= twice".to_owned()),
            Some(("expires", _)) => return Err("says expires= twice".to_owned()),
            // It may be a token, too.
            _ => {
                return Err("has a word behind its token that is neither tenant= nor expires=; a \
                            token has a line of its own, and # begins a comment"
                    .to_owned());
            }
        }
    }
    Ok(Some(read))
}

/// Refuses a token that can be guessed, or that a header can't hold.
fn check(token: &str) -> Result<(), String> {
    if !token.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#' && byte != b',') {
        return Err(
            "has a token with other characters than visible ASCII without # and ,".to_owned()
        );
    }
    match token.len() {
        ..SHORTEST => Err(format!(
            "has a token of fewer than {SHORTEST} characters, which can be guessed; `codex-sidecar \
             token new` makes one that can't"
        )),
        SHORTEST..=LONGEST => Ok(()),
        _ => Err(format!("has a token of more than {LONGEST} characters")),
    }
}

/// A moment as RFC 3339 has it, with its offset.
pub(crate) fn rfc3339(text: &str) -> Option<SystemTime> {
    let has_offset = text.ends_with(['Z', 'z'])
        || (text.len().checked_sub(6))
            .and_then(|at| text.get(at..))
            .is_some_and(|offset| offset.starts_with(['+', '-']) && offset.get(3..4) == Some(":"));
    // Without a time or an offset the parser would take what is not there for zero.
    if !(has_offset && text.get(10..11).is_some_and(|middle| middle.eq_ignore_ascii_case("T"))) {
        return None;
    }
    SystemTime::try_from(text.parse::<prost_types::Timestamp>().ok()?).ok()
}

impl Whose {
    fn tenant(&self, named: Option<&str>) -> Result<Tenant, String> {
        match (self, named) {
            (Whose::Any(_), None) => Ok(Tenant::default()),
            (Whose::Any(known), Some(name)) => {
                known.get(&Tenant(name.to_owned())).cloned().ok_or_else(|| {
                    format!("names the tenant {name:?}, which the configuration has not")
                })
            }
            (Whose::One(tenant), None) => Ok(tenant.clone()),
            (Whose::One(tenant), Some(name)) if name == tenant.0 => Ok(tenant.clone()),
            (Whose::One(tenant), Some(name)) => {
                Err(format!("names the tenant {name:?} in a file of the tenant {:?}", tenant.0))
            }
        }
    }
}

/// What a token that was shown is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Known<'a> {
    Token(&'a Token),
    Expired(&'a Token),
    No,
}

/// Finds a token among all. Takes as long for each that is shown: all are compared, to their ends.
pub(super) fn find<'a>(tokens: &'a [Token], shown: &[u8], now: SystemTime) -> Known<'a> {
    let shown = TokenHash::of(shown);
    let (mut found, mut index) = (Choice::from(0), 0_u64);
    for (at, token) in (0_u64..).zip(tokens) {
        let is_it = token.hash.0.ct_eq(&shown.0);
        index.conditional_assign(&at, is_it);
        found |= is_it;
    }
    let token = usize::try_from(index).ok().and_then(|index| tokens.get(index));
    match token.filter(|_| bool::from(found)) {
        None => Known::No,
        Some(token) if token.expires.is_some_and(|expires| expires <= now) => Known::Expired(token),
        Some(token) => Known::Token(token),
    }
}

/// A token that nobody can guess, of 256 random bits.
///
/// # Errors
/// That the system has no randomness.
pub(crate) fn new() -> Result<SecretString, String> {
    let mut random = [0_u8; 32];
    let provider = rustls::crypto::ring::default_provider();
    let filled = provider.secure_random.fill(&mut random);
    filled.map_err(|_| "the system gives no random numbers".to_owned())?;
    let mut token = "codex-sidecar_".to_owned();
    random.iter().for_each(|byte| {
        let _ = write!(token, "{byte:02x}");
    });
    Ok(SecretString::from(token))
}

/// The line for a file that has a token opened.
pub(crate) fn line(
    token: &SecretString,
    tenant: Option<&str>,
    expires: Option<SystemTime>,
) -> String {
    let mut line = TokenHash::of(token.expose_secret().as_bytes()).to_string();
    if let Some(tenant) = tenant {
        let _ = write!(line, " tenant={tenant}");
    }
    if let Some(expires) = expires {
        let _ = write!(line, " expires={}", humantime::format_rfc3339_seconds(expires));
    }
    line
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const ONE: &str = "one-is-long-enough";
    const TWO: &str = "two-is-long-enough";

    fn any(names: &[&str]) -> Whose {
        Whose::Any(names.iter().map(|name| Tenant(name.to_string())).collect())
    }

    fn hash(token: &str) -> String {
        TokenHash::of(token.as_bytes()).to_string()
    }

    #[test]
    fn a_file_lists_tokens_and_hashes_with_their_tenants_and_ends() {
        let text = format!(
            "# ours\n\n  {ONE}  # of the build\r\n{} tenant=a expires=2026-01-02T03:04:05+01:00\n\
             three-is-long-enough\ttenant=a",
            hash(TWO).to_uppercase().replace("SHA", "sha")
        );
        let Listed { tokens, in_clear, .. } =
            list(text.as_bytes(), &any(&["a", "default"])).unwrap();
        assert_eq!(in_clear, 2);
        let expires = SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_319_445);
        let told: Vec<_> = tokens.iter().map(|it| (&*it.tenant.0, it.expires, it.line)).collect();
        assert_eq!(told, [("default", None, 3), ("a", Some(expires), 4), ("a", None, 5)]);

        let before = expires - Duration::from_secs(1);
        assert_eq!(find(&tokens, TWO.as_bytes(), before), Known::Token(&tokens[1]));
        assert_eq!(find(&tokens, TWO.as_bytes(), expires), Known::Expired(&tokens[1]));
        assert_eq!(find(&tokens, ONE.as_bytes(), expires), Known::Token(&tokens[0]));
        // What stands in the file opens nothing by itself.
        for wrong in [hash(TWO), hash(TWO)[7..].to_owned(), String::new(), ONE[1..].to_owned()] {
            assert_eq!(find(&tokens, wrong.as_bytes(), before), Known::No, "{wrong}");
        }
        assert_eq!(find(&[], b"", before), Known::No);
        let blank = Listed { is_blank: true, ..Listed::default() };
        assert_eq!(list(b" \n", &any(&[])), Ok(blank));
        assert_eq!(list(b"# nobody", &any(&[])), Ok(Listed::default()));
    }

    #[test]
    fn every_fault_is_told_with_its_line_and_without_the_token() {
        let secret = "s3cr3t-canary-0123456789";
        let text = [
            "short-canary".to_owned(),
            format!("{secret} {secret}"),
            format!("{secret} expires=tomorrow-canary"),
            format!("{secret} expires=2026-01-02"),
            format!("{secret} tenant=unheard-of"),
            format!("{secret} tenant="),
            format!("{TWO} tenant=a tenant=a"),
            "tenant=a".to_owned(),
            "sha256:0123canary".to_owned(),
            format!("{secret}#glued"),
            format!("{ONE}\n{}", hash(ONE)),
        ]
        .join("\n");
        let told = list(text.as_bytes(), &any(&["a"])).unwrap_err();
        assert!(!told.contains("canary") && !told.contains("glued"), "{told}");
        let expected = [
            "line 1 has a token of fewer than 16",
            "line 2 has a word behind its token",
            "line 3 has no time behind expires=",
            "line 4 has no time behind expires=",
            "line 5 names the tenant \"unheard-of\"",
            "line 6 has no name behind tenant=",
            "line 7 says tenant= twice",
            "line 8 has no token before",
            "line 9 has no 64 hexadecimal digits",
            "line 10 has a token with other characters",
            "and 1 lines more",
        ];
        for expected in expected {
            assert!(told.contains(expected), "no {expected:?} in {told}");
        }
        let again = list(format!("{ONE}\n\n{}", hash(ONE)).as_bytes(), &any(&[])).unwrap_err();
        assert_eq!(again, "line 3 has the token of line 1 again");
        assert!(list(b"\xff\xfe", &any(&[])).unwrap_err().contains("line 1 is not UTF-8"));
    }

    #[test]
    fn all_tokens_of_a_tenants_own_file_are_its_own() {
        let own = Whose::One(Tenant("a".to_owned()));
        let listed = list(format!("{ONE}\n{TWO} tenant=a").as_bytes(), &own).unwrap();
        assert!(listed.tokens.iter().all(|token| token.tenant.0 == "a"), "{listed:?}");
        let told = list(format!("{ONE} tenant=b").as_bytes(), &own).unwrap_err();
        assert!(told.contains("\"b\"") && told.contains("\"a\""), "{told}");
    }

    #[test]
    fn a_client_shows_the_first_token_that_is_good() {
        let now = SystemTime::now();
        let show =
            |text: String| shown(text.as_bytes(), now).map(|it| it.expose_secret().to_owned());
        let expired = format!("{ONE} expires=2001-01-01T00:00:00Z");
        assert_eq!(show(format!("{}\n{expired}\n{TWO} tenant=a\n", hash(ONE))), Ok(TWO.to_owned()));
        assert_eq!(show(format!("{TWO}\n")), Ok(TWO.to_owned()));
        assert_eq!(show("# none".to_owned()), Err("has no token".to_owned()));
        assert!(show(hash(ONE)).unwrap_err().contains("only hashes"));
        assert!(show(expired).unwrap_err().contains("expired"));
        assert!(alone("short").is_err() && alone(&format!(" {ONE}\n")).is_ok());
    }

    #[test]
    fn a_new_token_is_found_by_its_line() {
        let (token, other) = (new().unwrap(), new().unwrap());
        assert_ne!(token.expose_secret(), other.expose_secret());
        let expires = SystemTime::UNIX_EPOCH + Duration::from_secs(1_900_000_000);
        let line = line(&token, Some("a"), Some(expires));
        assert!(!line.contains(token.expose_secret()), "{line}");
        let Listed { tokens, in_clear: 0, .. } = list(line.as_bytes(), &any(&["a"])).unwrap()
        else {
            panic!("{line}");
        };
        let found = find(&tokens, token.expose_secret().as_bytes(), SystemTime::now());
        let Known::Token(Token { tenant, expires: Some(until), .. }) = found else {
            panic!("{found:?}");
        };
        assert_eq!((&*tenant.0, *until), ("a", expires));
        alone(token.expose_secret()).unwrap();
    }

    #[test]
    fn a_time_has_a_date_a_time_and_an_offset() {
        for right in
            ["2026-01-02T03:04:05Z", "2026-01-02t03:04:05.25-07:30", "2026-01-02T03:04:05z"]
        {
            assert!(rfc3339(right).is_some(), "{right}");
        }
        let wrong = [
            "2026-01-02",
            "2026-01-02T03:04:05",
            "2026-01-02 03:04:05Z",
            "Z",
            "",
            "é",
            "2026-13-02T03:04:05Z",
        ];
        for wrong in wrong {
            assert_eq!(rfc3339(wrong), None, "{wrong}");
        }
    }
}
