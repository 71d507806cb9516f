//! Who may call: credentials, and whose each is.
//!
//! A peer shows what its connection says of it (a client certificate, the user of a Unix socket) and what
//! its call says (a bearer token). [`Access`] says which tenant that is, or that it is nobody; never what
//! the tenant may do, which is its policy's matter. Nothing here reads a request's body.

use http::HeaderMap;

use crate::model::id::Tenant;

/// What credentials callers need.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct AccessSettings {}

/// What a connection says of the other side.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Names in the certificate that the other side has proved to have (subject alternative names).
    pub(crate) certificate_names: Vec<String>,
    /// User and group of the other side of a Unix socket.
    pub(crate) user: Option<(u32, u32)>,
}

/// Why nobody is let in: for the log. The caller hears only that it is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Unauthenticated(pub(crate) String);

/// Who may call.
#[derive(Debug, Default)]
pub(crate) struct Access {}

impl Access {
    /// Whose a call is, by its connection and its metadata.
    ///
    /// # Errors
    /// That it shows no credential, or a wrong one.
    pub(crate) fn admit(
        &self,
        _peer: &Peer,
        _headers: &HeaderMap,
    ) -> Result<Tenant, Unauthenticated> {
        Ok(Tenant::default())
    }

    /// Whether callers need a credential at all.
    pub(crate) fn is_set(&self) -> bool {
        false
    }
}
