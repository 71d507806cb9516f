//! Whose a certificate's name is, and whose a user: what the configuration says, once for all.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::hash::Hash;

use super::{Cause, Credentials, User, WrongSetting};
use crate::model::id::Tenant;

#[derive(Debug, Default)]
pub(super) struct Rules {
    names: HashMap<String, Tenant>,
    /// Whether a certificate with other names is the default tenant's.
    any_name: bool,
    uids: HashMap<u32, Tenant>,
    gids: HashMap<u32, Tenant>,
    /// Whether only the users and groups that are named come in by a Unix socket.
    only_named_users: bool,
}

/// What a certificate that is vouched for says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ByCertificate {
    /// There is none to be shown.
    Nothing,
    /// It is this tenant's.
    Named(Tenant),
    /// It is the default tenant's, if the call shows nothing else.
    Anybody,
}

impl Rules {
    /// # Errors
    /// All that two tenants have.
    pub(super) fn new(
        default: &Credentials,
        tenants: &BTreeMap<Tenant, Credentials>,
    ) -> Result<Rules, Vec<WrongSetting>> {
        let mut wrong = Vec::new();
        let mut rules = Rules {
            any_name: default.client_names.is_none(),
            only_named_users: default.unix_uids.is_some() || default.unix_gids.is_some(),
            ..Rules::default()
        };
        let of_default = (&Tenant::default(), default);
        for (tenant, credentials) in std::iter::once(of_default).chain(tenants) {
            let Credentials { token_file: _, client_names, unix_uids, unix_gids } = credentials;
            let names = client_names.iter().flatten().map(|name| as_compared(name));
            own(&mut rules.names, "client_names", names, tenant, &mut wrong);
            let uids = unix_uids.iter().flatten().copied();
            own(&mut rules.uids, "unix_uids", uids, tenant, &mut wrong);
            let gids = unix_gids.iter().flatten().copied();
            own(&mut rules.gids, "unix_gids", gids, tenant, &mut wrong);
        }
        if wrong.is_empty() { Ok(rules) } else { Err(wrong) }
    }

    /// Whether a name, a user or a group is this tenant's.
    pub(super) fn names(&self, tenant: &Tenant) -> bool {
        let Rules { names, uids, gids, .. } = self;
        let mut owners = names.values().chain(uids.values()).chain(gids.values());
        owners.any(|owner| owner == tenant)
    }

    /// Whether a user or a group is a credential.
    pub(super) fn names_users(&self) -> bool {
        self.only_named_users || !self.uids.is_empty() || !self.gids.is_empty()
    }

    /// Whose a process is by its user and its group.
    ///
    /// # Errors
    /// That it is one of those who don't come in.
    pub(super) fn by_user(&self, user: User) -> Result<Option<Tenant>, Cause> {
        let User { uid, gid } = user;
        match (self.uids.get(&uid), self.gids.get(&gid)) {
            (Some(one), Some(other)) if one != other => Err((
                "its user and its group are of different tenants",
                format!("user {uid}, group {gid}"),
            )),
            (Some(tenant), _) | (None, Some(tenant)) => Ok(Some(tenant.clone())),
            (None, None) if self.only_named_users => Err((
                "its user is not among unix_allow_uids, nor its group among unix_allow_gids",
                format!("user {uid}, group {gid}"),
            )),
            (None, None) => Ok(None),
        }
    }

    /// Whose a certificate with these names is.
    ///
    /// # Errors
    /// That it is nobody's, or that of several.
    pub(super) fn by_certificate(&self, names: &[String]) -> Result<ByCertificate, Cause> {
        let mut owners = names.iter().filter_map(|name| self.names.get(&as_compared(name)));
        match owners.next() {
            Some(tenant) if owners.all(|other| other == tenant) => {
                Ok(ByCertificate::Named(tenant.clone()))
            }
            Some(_) => Err(("its client certificate has names of different tenants", told(names))),
            None if self.any_name => Ok(ByCertificate::Anybody),
            None => Err(("its client certificate has no name among client_names", told(names))),
        }
    }

    /// The users and groups that come in, for people.
    pub(super) fn users(&self) -> impl Iterator<Item = String> {
        let list = |ids: &HashMap<u32, Tenant>, what: &str| {
            let mut ids: Vec<u32> = ids.keys().copied().collect();
            ids.sort_unstable();
            let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
            (!ids.is_empty()).then(|| format!("to be of {what} {}", ids.join(", ")))
        };
        let (users, groups) = (list(&self.uids, "user"), list(&self.gids, "group"));
        users.into_iter().chain(groups)
    }
}

/// A host's name is the same in capitals; a name with other characters than a host has is not.
fn as_compared(name: &str) -> String {
    let is_host = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._*".contains(&byte));
    if is_host { name.to_ascii_lowercase() } else { name.to_owned() }
}

fn own<K: Eq + Hash + Display>(
    owners: &mut HashMap<K, Tenant>,
    setting: &str,
    keys: impl Iterator<Item = K>,
    tenant: &Tenant,
    wrong: &mut Vec<WrongSetting>,
) {
    for key in keys {
        let told = key.to_string();
        if let Some(other) = owners.insert(key, tenant.clone()).filter(|other| other != tenant) {
            let other = match other == Tenant::default() {
                true => "the top level".to_owned(),
                false => format!("tenants.{}", other.0),
            };
            let problem = format!("{told}: is {other}'s, too; a credential is one tenant's");
            wrong.push(WrongSetting::of(tenant, setting, problem));
        }
    }
}

/// The names of a certificate for the log: few, and short.
fn told(names: &[String]) -> String {
    const MOST: usize = 4;
    let shown = names.iter().take(MOST).map(|name| {
        let short: String = name.chars().filter(|it| !it.is_control()).take(100).collect();
        short
    });
    let more = if names.len() > MOST { ", …" } else { "" };
    format!("its names: {}{more}", shown.collect::<Vec<_>>().join(", "))
}
