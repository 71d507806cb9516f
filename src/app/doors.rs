//! The doors: which services a call comes to, by who makes it.
//!
//! Each tenant has services of its own, over an engine of its own, so that nothing of one is within the
//! reach of another: a call comes to those of its tenant, or to none.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::HeaderMap;
use tonic::service::Routes;

use super::tenants::Served;
use crate::access::{Access, Peer, Unauthenticated};
use crate::model::id::Tenant;

/// What a call may come to. Clones are the same doors.
#[derive(Debug, Clone)]
pub(super) struct Doors(Arc<Inside>);

#[derive(Debug)]
struct Inside {
    access: Arc<Access>,
    /// What is nobody's: health.
    open: Routes,
    tenants: BTreeMap<Tenant, Served>,
}

/// What a call comes to.
#[derive(Debug)]
pub(super) enum Services {
    /// What is nobody's.
    Open(Routes),
    /// What is one tenant's.
    Tenant(Served),
}

impl Doors {
    /// To the services of each tenant; `open` are for everybody.
    pub(super) fn new(
        access: Arc<Access>,
        open: Routes,
        tenants: BTreeMap<Tenant, Served>,
    ) -> Doors {
        Doors(Arc::new(Inside { access, open, tenants }))
    }

    /// To these alone, for everybody: health probes.
    pub(super) fn open(open: Routes) -> Doors {
        Doors::new(Arc::default(), open, BTreeMap::new())
    }

    /// Whether callers need a credential.
    pub(super) fn ask(&self) -> bool {
        self.0.access.is_set()
    }

    /// The services for one call.
    ///
    /// # Errors
    /// It is not known whose the call is; its body is not read then.
    pub(super) fn services(
        &self,
        path: &str,
        peer: &Peer,
        headers: &HeaderMap,
    ) -> Result<Services, Unauthenticated> {
        let Inside { access, open, tenants } = &*self.0;
        if path.starts_with("/grpc.health.v1.") || tenants.is_empty() {
            return Ok(Services::Open(open.clone()));
        }
        let tenant = access.admit(peer, headers)?;
        let services = tenants.get(&tenant).cloned().map(Services::Tenant);
        Ok(services.unwrap_or_else(|| Services::Open(open.clone())))
    }
}
