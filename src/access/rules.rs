//! Whose a certificate's name is, and whose a user: what the configuration says, once for all.

use std::collections::{BTreeMap, HashMap};
use std::fmt::{Debug, Display};
use std::hash::Hash;

use super::{Cause, Credentials, User};
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
    /// That two tenants have the same credential.
    pub(super) fn new(
        default: &Credentials,
        tenants: &BTreeMap<Tenant, Credentials>,
    ) -> Result<Rules, String> {
        let mut rules = Rules {
            any_name: default.client_names.is_none(),
            only_named_users: default.unix_uids.is_some() || default.unix_gids.is_some(),
            ..Rules::default()
        };
        let of_default = (&Tenant::default(), default);
        for (tenant, credentials) in std::iter::once(of_default).chain(tenants) {
            let Credentials { token_file: _, client_names, unix_uids, unix_gids } = credentials;
            let names = client_names.iter().flatten().map(|name| as_compared(name));
            own(&mut rules.names, "the client name", names, tenant)?;
            let uids = unix_uids.iter().flatten().copied();
            own(&mut rules.uids, "the user", uids, tenant)?;
            let gids = unix_gids.iter().flatten().copied();
            own(&mut rules.gids, "the group", gids, tenant)?;
        }
        Ok(rules)
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

fn own<K: Eq + Hash + Display + Debug>(
    owners: &mut HashMap<K, Tenant>,
    what: &str,
    keys: impl Iterator<Item = K>,
    tenant: &Tenant,
) -> Result<(), String> {
    for key in keys {
        let told = key.to_string();
        match owners.insert(key, tenant.clone()) {
            Some(other) if other != *tenant => {
                return Err(format!(
                    "{what} {told} is given to the tenants {:?} and {:?}; it can be one's only",
                    other.0, tenant.0
                ));
            }
            _ => {}
        }
    }
    Ok(())
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
