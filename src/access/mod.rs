//! Who may call: credentials, and whose each is.
//!
//! A peer shows what its connection says of it (a client certificate, the user of a Unix socket) and what
//! its call says (a bearer token). [`Access`] says which tenant that is, or that it is nobody; never what
//! the tenant may do, which is its policy's matter. Nothing here reads a request's body.
//!
//! Where any credential is set, everybody is asked: on loopback and on Unix sockets too, and whoever runs
//! as the sidecar's own user, because that is what the model's commands do.

pub(crate) mod certificates;
pub(crate) mod files;
pub(crate) mod refusals;
mod rules;
#[cfg(test)]
mod tests;
pub(crate) mod tokens;
pub(crate) mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use http::{HeaderMap, header};
use tokio::time::Instant;

use self::certificates::{Certificate, ClientAuthorities};
use self::files::{Readers, Stamp, fault};
use self::refusals::Refusals;
use self::rules::Rules;
use self::tokens::{Known, Listed, Token, Whose};
use self::watch::{Look, Watch};
use crate::model::id::{CallerName, Tenant};

pub use self::tokens::TokenHash;

/// The credentials of one tenant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// The file of its tokens; the default's may name other tenants.
    pub token_file: Option<PathBuf>,
    /// The names of the client certificates that are its own. Of the default's, `None` is those that
    /// are no other tenant's.
    pub client_names: Option<Vec<String>>,
    /// Users whose processes are it, over a Unix socket.
    pub unix_uids: Option<Vec<u32>>,
    /// Groups whose processes are it, over a Unix socket; a process's own group counts.
    pub unix_gids: Option<Vec<u32>>,
}

/// Whether a connection must be told from those of the commands that turns run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IdentifyPeers {
    /// One of which that can't be told is let in, and counted.
    #[default]
    WhenPossible,
    /// It is refused.
    Required,
}

/// What credentials callers need.
#[derive(Debug, Clone, Default)]
pub(crate) struct AccessSettings {
    /// Those of the default tenant. Where it has users or groups, nobody else's come in by a Unix socket.
    pub(crate) default: Credentials,
    pub(crate) tenants: BTreeMap<Tenant, Credentials>,
    /// Who vouches for client certificates; without, nobody has one.
    pub(crate) authorities: Option<Arc<ClientAuthorities>>,
    /// A token of the default tenant that is in no file.
    pub(crate) own_token: Option<TokenHash>,
}

/// What a connection says of the other side.
#[derive(Debug, Clone, Default)]
pub(crate) struct Peer {
    /// Where it is, or which user it is.
    pub(crate) name: CallerName,
    /// What it has proved to have the key of.
    pub(crate) certificate: Option<Arc<Certificate>>,
    /// Whose process it is, where it came by a Unix socket.
    pub(crate) user: Option<User>,
}

/// User and group of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// A setting that can't be used, which shows when what it names is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrongSetting {
    /// Its path in the file: `token_file`, `tenants.research.client_names`.
    pub setting: String,
    /// What is wrong, with the value.
    pub problem: String,
}

impl WrongSetting {
    /// Of a tenant's own setting; the default tenant's are at the top level.
    fn of(tenant: &Tenant, key: &str, problem: String) -> WrongSetting {
        let setting = match (*tenant == Tenant::default(), key) {
            (true, "unix_uids") => "unix_allow_uids".to_owned(),
            (true, "unix_gids") => "unix_allow_gids".to_owned(),
            (true, key) => key.to_owned(),
            (false, key) => format!("tenants.{}.{key}", tenant.0),
        };
        WrongSetting { setting, problem }
    }
}

impl std::fmt::Display for WrongSetting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.setting, self.problem)
    }
}

/// The names, users and groups that are given to a second tenant.
pub(crate) fn given_twice(
    default: &Credentials,
    tenants: &BTreeMap<Tenant, Credentials>,
) -> Vec<WrongSetting> {
    Rules::new(default, tenants).err().unwrap_or_default()
}

/// Nobody is let in. The caller hears only that it is not known; the log has been told why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unauthenticated;

/// Why somebody is not let in, and what there is to say of this one; never what it has shown.
type Cause = (&'static str, String);

/// Who may call.
#[derive(Debug, Default)]
pub(crate) struct Access {
    is_set: bool,
    tenants: BTreeSet<Tenant>,
    rules: Rules,
    authorities: Option<Arc<ClientAuthorities>>,
    files: Mutex<Vec<TokenFile>>,
    own: Option<Token>,
    /// Those of all files.
    tokens: ArcSwap<Vec<Token>>,
    refusals: Refusals,
}

#[derive(Debug)]
struct TokenFile {
    path: PathBuf,
    whose: Whose,
    watch: Watch,
    listed: Listed,
}

impl Access {
    /// Reads the files of these settings.
    ///
    /// # Errors
    /// All that is wrong with them, or that two tenants have the same credential.
    pub(crate) fn new(settings: AccessSettings) -> Result<Access, Vec<WrongSetting>> {
        let AccessSettings { default, tenants, authorities, own_token } = settings;
        let (rules, mut wrong) = match Rules::new(&default, &tenants) {
            Ok(rules) => (rules, Vec::new()),
            Err(wrong) => (Rules::default(), wrong),
        };
        let known: BTreeSet<Tenant> = tenants.keys().cloned().chain([Tenant::default()]).collect();
        let mut named = Vec::new();
        if let Some(path) = default.token_file {
            named.push((Tenant::default(), path, Whose::Any(known.clone())));
        }
        for (tenant, credentials) in tenants {
            let whose = Whose::One(tenant.clone());
            named.extend(credentials.token_file.map(|path| (tenant, path, whose)));
        }
        let own = own_token.map(|hash| {
            let tenant = Tenant::default();
            Token { hash, tenant, expires: None, line: 0 }
        });
        let mut files = Vec::new();
        let mut tokens: Vec<Token> = own.clone().into_iter().collect();
        for (tenant, path, whose) in named {
            let file = TokenFile::read_first(path, whose).and_then(|file| {
                let listed = &file.listed.tokens;
                match listed.iter().find(|token| tokens.iter().any(|it| it.hash == token.hash)) {
                    Some(token) => Err(fault(&file.path, repeats(token))),
                    None => Ok(file),
                }
            });
            match file {
                Ok(file) => {
                    tokens.extend(file.listed.tokens.iter().cloned());
                    files.push(file);
                }
                Err(problem) => wrong.push(WrongSetting::of(&tenant, "token_file", problem)),
            }
        }
        if !wrong.is_empty() {
            return Err(wrong);
        }
        let is_set =
            !files.is_empty() || authorities.is_some() || own.is_some() || rules.names_users();
        Ok(Access {
            is_set,
            tenants: known,
            rules,
            authorities,
            files: Mutex::new(files),
            own,
            tokens: ArcSwap::from_pointee(tokens),
            refusals: Refusals::default(),
        })
    }

    /// Whose a call is, by its connection and its metadata.
    ///
    /// # Errors
    /// That it shows no credential, or a wrong one.
    pub(crate) fn admit(
        &self,
        peer: &Peer,
        headers: &HeaderMap,
    ) -> Result<Tenant, Unauthenticated> {
        if !self.is_set {
            return Ok(Tenant::default());
        }
        self.judge(peer, headers, SystemTime::now()).map_err(|(cause, detail)| {
            self.refusals.add(cause, &peer.name.0, &detail, Instant::now());
            Unauthenticated
        })
    }

    /// Whether callers need a credential at all.
    pub(crate) fn is_set(&self) -> bool {
        self.is_set
    }

    /// All that a call shows must be good, and lead to the same tenant.
    fn judge(&self, peer: &Peer, headers: &HeaderMap, now: SystemTime) -> Result<Tenant, Cause> {
        let by_token = self.by_token(headers, now)?;
        let by_user = peer.user.map(|user| self.rules.by_user(user)).transpose()?.flatten();
        let by_certificate = match (&self.authorities, peer.user) {
            // Over a Unix socket nobody has one.
            (None, _) | (_, Some(_)) => rules::ByCertificate::Nothing,
            (Some(authorities), None) => {
                let certificate = peer
                    .certificate
                    .as_ref()
                    .ok_or_else(|| ("it shows no client certificate", String::new()))?;
                let names = authorities
                    .names(certificate, now)
                    .map_err(|cause| ("no authority vouches for its client certificate", cause))?;
                self.rules.by_certificate(&names)?
            }
        };
        let (named, else_default) = match by_certificate {
            rules::ByCertificate::Nothing => (None, false),
            rules::ByCertificate::Named(tenant) => (Some(tenant), false),
            rules::ByCertificate::Anybody => (None, true),
        };
        let mut shown = [by_token, by_user, named].into_iter().flatten();
        let Some(tenant) = shown.next() else {
            return match else_default {
                true => Ok(Tenant::default()),
                false => Err(("it shows no credential", String::new())),
            };
        };
        match shown.find(|other| *other != tenant) {
            None => Ok(tenant),
            Some(other) => Err((
                "its credentials are of different tenants",
                format!("{} and {}", tenant.0, other.0),
            )),
        }
    }

    /// Whose the token of a call is, if it has one.
    fn by_token(&self, headers: &HeaderMap, now: SystemTime) -> Result<Option<Tenant>, Cause> {
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let Some(value) = values.next() else { return Ok(None) };
        if values.next().is_some() {
            return Err(("it sends authorization more than once", String::new()));
        }
        let (scheme, token) = match value.as_bytes().split_first_chunk::<7>() {
            Some((scheme, token)) => (&scheme[..], token.trim_ascii()),
            None => (&[][..], &[][..]),
        };
        if !scheme.eq_ignore_ascii_case(b"bearer ") {
            return Err(("its authorization is no Bearer token", String::new()));
        }
        let tokens = self.tokens.load();
        match tokens::find(&tokens, token, now) {
            Known::Token(token) => Ok(Some(token.tenant.clone())),
            Known::Expired(token) => {
                let (tenant, line) = (&token.tenant.0, token.line);
                Err(("its token has expired", format!("line {line}, of the tenant {tenant}")))
            }
            Known::No => Err(("its token is not known", String::new())),
        }
    }

    /// Looks at the files, and reads those that have changed, or all if they `must` be read. Gives a line
    /// for each that was read, and one for each that can't be used.
    pub(crate) fn look(&self, must: bool, now: Instant) -> Vec<Result<String, String>> {
        self.refusals.tell(now);
        let mut told = Vec::new();
        if let Some(authorities) = &self.authorities {
            match authorities.look(must, now) {
                Look::Same => {}
                Look::New(()) => told.push(Ok("the client authorities".to_owned())),
                Look::Kept(cause) => told.push(Err(cause)),
            }
        }
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        for at in 0..files.len() {
            let (before, [file, after @ ..]) = files.split_at_mut(at) else { continue };
            let others = before.iter().chain(after.iter());
            let others: Vec<Token> = others.flat_map(|file| file.listed.tokens.clone()).collect();
            match file.look(must, now, &others, self.own.as_ref()) {
                Look::Same => {}
                Look::New(()) => {
                    let TokenFile { path, listed, .. } = file;
                    let all = others.into_iter().chain(listed.tokens.clone());
                    self.tokens.store(Arc::new(all.chain(self.own.clone()).collect()));
                    let path = path.display();
                    told.push(Ok(format!("{} tokens of {path}", listed.tokens.len())));
                }
                Look::Kept(cause) => told.push(Err(cause)),
            }
        }
        told
    }

    /// What a caller has to show over TCP, or over a Unix socket; nothing where that lets nobody in.
    pub(crate) fn wanted(&self, is_unix: bool) -> Option<String> {
        let has_tokens = !self.tokens.load().is_empty();
        let mut ways = Vec::new();
        if is_unix {
            ways.extend(self.rules.users());
            ways.extend(has_tokens.then(|| "a token".to_owned()));
        } else if self.authorities.is_some() {
            return Some("a client certificate".to_owned());
        } else {
            ways.extend(has_tokens.then(|| "a token".to_owned()));
        }
        (!ways.is_empty()).then(|| ways.join(", or "))
    }

    /// The tenants, beside the default, that nothing shown by a caller leads to.
    pub(crate) fn out_of_reach(&self) -> Vec<&str> {
        let tokens = self.tokens.load();
        let is_reached = |tenant: &Tenant| {
            *tenant == Tenant::default()
                || self.rules.names(tenant)
                || tokens.iter().any(|token| token.tenant == *tenant)
        };
        self.tenants.iter().filter(|it| !is_reached(it)).map(|it| it.0.as_str()).collect()
    }

    /// The files in which tokens stand as they are, so that whoever can read the file has them.
    pub(crate) fn in_clear(&self) -> Vec<PathBuf> {
        let files = self.files();
        let in_clear = files.iter().filter(|file| file.listed.in_clear > 0);
        // What came through a pipe is gone from it.
        let in_clear = in_clear.filter(|file| Stamp::of(&file.path) != Stamp::Once);
        in_clear.map(|file| file.path.clone()).collect()
    }

    fn files(&self) -> std::sync::MutexGuard<'_, Vec<TokenFile>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TokenFile {
    fn read_first(path: PathBuf, whose: Whose) -> Result<TokenFile, String> {
        let watch = Watch::new("tokens", vec![path.clone()]);
        let listed = read(&path, &whose)?;
        Ok(TokenFile { path, whose, watch, listed })
    }

    fn look(
        &mut self,
        must: bool,
        now: Instant,
        others: &[Token],
        own: Option<&Token>,
    ) -> Look<()> {
        let TokenFile { path, whose, watch, listed } = self;
        let looked = watch.look(must, now, || {
            let new = read(path, whose)?;
            if new.is_blank && !listed.tokens.is_empty() {
                // Most often it is about to be written.
                let told = "is empty; where nobody is to be let in, let it have a comment (#)";
                return Err(fault(path, told));
            }
            match new
                .tokens
                .iter()
                .find(|new| others.iter().chain(own).any(|it| it.hash == new.hash))
            {
                Some(token) => Err(fault(path, repeats(token))),
                None => Ok(new),
            }
        });
        match looked {
            Look::Same => Look::Same,
            Look::New(new) => {
                *listed = new;
                Look::New(())
            }
            Look::Kept(cause) => Look::Kept(cause),
        }
    }
}

fn read(path: &Path, whose: &Whose) -> Result<Listed, String> {
    let bytes = files::read(path, Readers::Nobody).map_err(|cause| fault(path, cause))?;
    tokens::list(&bytes, whose).map_err(|cause| fault(path, cause))
}

fn repeats(token: &Token) -> String {
    format!("line {} has a token that is in another file, too", token.line)
}
