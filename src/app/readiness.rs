//! What health probes are told: the sidecar serves as long as any tenant's turns can run.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::Mutex;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::server::HealthReporter;

use crate::model::id::Tenant;
use crate::turn::engine::Engine;
use crate::turn::engine::readiness::NotReady;

/// The service whose health says whether turns are taken.
pub const READINESS_SERVICE: &str = "codex.sidecar.v1.CodexService";

/// The readiness of all tenants.
#[derive(Debug)]
pub(super) struct Readiness {
    reporter: HealthReporter,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    ready: BTreeSet<Tenant>,
    is_over: bool,
}

impl Readiness {
    /// Nobody is ready; and the service that tells.
    pub(super) async fn new() -> (Arc<Readiness>, HealthServer<impl Health>) {
        let (reporter, health) = tonic_health::server::health_reporter();
        reporter.set_service_status(READINESS_SERVICE, ServingStatus::NotServing).await;
        // Whoever can ask is served: the process is alive.
        reporter.set_service_status("", ServingStatus::Serving).await;
        (Arc::new(Readiness { reporter, state: Mutex::default() }), health)
    }

    /// Tells of a tenant's readiness, for as long as it is polled.
    pub(super) async fn follow(&self, tenant: &Tenant, engine: &Engine) {
        let mut readiness = engine.readiness();
        while let Some(now) = readiness.next().await {
            match &now {
                Ok(()) => tracing::info!("ready for turns"),
                Err(NotReady { cause, .. }) => tracing::warn!(cause, "not ready for turns"),
            }
            self.note(tenant, now.is_ok()).await;
        }
    }

    async fn note(&self, tenant: &Tenant, is_ready: bool) {
        // Held while it is told: what changes later is told later.
        let mut state = self.state.lock().await;
        if is_ready {
            state.ready.insert(tenant.clone());
        } else {
            state.ready.remove(tenant);
        }
        if !state.is_over {
            let any = !state.ready.is_empty();
            let status = if any { ServingStatus::Serving } else { ServingStatus::NotServing };
            self.reporter.set_service_status(READINESS_SERVICE, status).await;
        }
    }

    /// No turns are taken any more, whatever is told from now on.
    pub(super) async fn end(&self) {
        let mut state = self.state.lock().await;
        state.is_over = true;
        self.reporter.set_service_status(READINESS_SERVICE, ServingStatus::NotServing).await;
    }
}
