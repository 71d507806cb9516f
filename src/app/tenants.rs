//! All tenants, each in its house: started and ended side by side.
//!
//! The house of `default` stands before the sidecar listens to anybody, or the sidecar does not start. Any
//! other is built meanwhile, so that none waits for another; one that can't be (another sidecar has its
//! CODEX_HOME, its ledger is damaged) is tried again and again, and its callers, and they alone, are
//! told why they are not served.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use http::{Request, Response};
use hyper::body::Incoming;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tracing::{Instrument as _, Span};

use super::StartError;
use super::cgroup::Cgroups;
use super::house::{self, House};
use super::readiness::Readiness;
use crate::config::Config;
use crate::grpc::arrivals::Arrivals;
use crate::grpc::call;
use crate::model::id::Tenant;
use crate::model::refusal::Refusal;

/// How soon a house that could not be built is tried again: doubled from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(30);

/// How long a call waits for the house of its tenant while that is being built.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long the end waits for a house that is being built.
const BUILD_GRACE: Duration = Duration::from_secs(10);

/// All tenants.
#[derive(Debug)]
pub(super) struct Tenants {
    all: BTreeMap<Tenant, Tenancy>,
    // Taken away after the last worker has gone.
    _groups: Option<Cgroups>,
    stop: CancellationToken,
}

/// One tenant.
#[derive(Debug)]
struct Tenancy {
    state: watch::Receiver<State>,
    span: Span,
    // Builds the house, and tells how it does.
    keeper: JoinHandle<()>,
}

/// How far a tenant's house is.
#[derive(Debug, Clone)]
enum State {
    /// It is being built, for the first time.
    Starting,
    /// It could not be, and is tried again after a pause.
    Broken {
        cause: String,
        pause: Duration,
    },
    Served(Arc<House>),
}

impl Tenants {
    /// The tenant `default` is in this house; those of the configuration are being built.
    pub(super) fn start(
        house: House,
        config: &Config,
        groups: Option<Cgroups>,
        addresses: String,
        default_directory: PathBuf,
        readiness: &Arc<Readiness>,
    ) -> Tenants {
        let stop = CancellationToken::new();
        let keeper =
            |tenant: Tenant, span: Span, state: watch::Sender<State>, build: Option<Build>| {
                let (stop, readiness) = (stop.clone(), Arc::clone(readiness));
                let received = state.subscribe();
                let keeping = keep(tenant, state, build, readiness, stop).instrument(span.clone());
                Tenancy { state: received, span, keeper: tokio::spawn(keeping) }
            };
        let state = watch::Sender::new(State::Served(Arc::new(house)));
        let default = keeper(Tenant::default(), Span::none(), state, None);
        let mut all = BTreeMap::from([(Tenant::default(), default)]);
        for (name, tenant) in &config.tenants {
            let build = Build {
                config: tenant.config.clone(),
                addresses: addresses.clone(),
                default_directory: default_directory.clone(),
                entrance: (groups.as_ref())
                    .and_then(|groups| groups.entrance(&tenant.config.tenant))
                    .map(|entrance| Arc::new(entrance) as Arc<dyn Fn(u32) + Send + Sync>),
            };
            let span = tracing::error_span!("tenant", tenant = name);
            let state = watch::Sender::new(State::Starting);
            let tenant = tenant.config.tenant.clone();
            all.insert(tenant.clone(), keeper(tenant, span, state, Some(build)));
        }
        Tenants { all, _groups: groups, stop }
    }

    /// What serves each.
    pub(super) fn served(&self) -> BTreeMap<Tenant, Served> {
        let all = self.all.iter();
        all.map(|(tenant, Tenancy { state, span, .. })| {
            let (state, span, arrivals) = (state.clone(), span.clone(), Arc::default());
            (tenant.clone(), Served { state, arrivals, span })
        })
        .collect()
    }

    /// Lets the turns of all end, side by side, for as long as `grace`.
    pub(super) async fn drain(&self, grace: Duration) {
        self.stop.cancel();
        let houses: Vec<_> = self.houses().collect();
        join_all(houses.iter().map(|(house, span)| {
            let draining = house.engine().drain(grace);
            draining.instrument((*span).clone())
        }))
        .await;
    }

    /// Ends what is left of all, side by side.
    pub(super) async fn end(mut self) {
        self.stop.cancel();
        let keepers = self.all.values_mut().map(|tenancy| &mut tenancy.keeper);
        if tokio::time::timeout(BUILD_GRACE, join_all(keepers)).await.is_err() {
            tracing::error!("a tenant was still being started");
        }
        let houses: Vec<_> = self.houses().collect();
        join_all(houses.iter().map(|(house, span)| house.end().instrument((*span).clone()))).await;
    }

    /// The houses that stand.
    fn houses(&self) -> impl Iterator<Item = (Arc<House>, &Span)> {
        self.all.values().filter_map(|Tenancy { state, span, .. }| match &*state.borrow() {
            State::Served(house) => Some((Arc::clone(house), span)),
            State::Starting | State::Broken { .. } => None,
        })
    }
}

/// What a house is built of.
struct Build {
    config: Config,
    addresses: String,
    default_directory: PathBuf,
    // Of its cgroup.
    entrance: Option<Arc<dyn Fn(u32) + Send + Sync>>,
}

impl Build {
    async fn house(&self) -> Result<House, StartError> {
        // Else its first callers would be refused until Codex's home and the ledger in it are made. Where it
        // can't be made, they are told by those.
        let _ = tokio::fs::create_dir_all(&self.config.codex_home).await;
        let home_lock = house::lock(&self.config).await?;
        let Build { config, addresses, default_directory, entrance } = self;
        // Who it was is known of none of them.
        let count = Arc::default();
        House::start(config, home_lock, addresses, default_directory, entrance.clone(), count).await
    }
}

/// Builds the house, unless it stands, and tells of its readiness until it is to stop.
async fn keep(
    tenant: Tenant,
    state: watch::Sender<State>,
    build: Option<Build>,
    readiness: Arc<Readiness>,
    stop: CancellationToken,
) {
    let mut pause = FIRST_PAUSE;
    let house = loop {
        if let State::Served(house) = &*state.borrow() {
            break Arc::clone(house);
        }
        let Some(build) = build.as_ref().filter(|_| !stop.is_cancelled()) else { return };
        // Not cut off: what is half built would be left running.
        match build.house().await {
            Ok(house) if stop.is_cancelled() => return house.end().await,
            Ok(house) => drop(state.send_replace(State::Served(Arc::new(house)))),
            Err(error) => {
                let cause = with_causes(&error);
                tracing::error!(cause, "the tenant is not served; it is tried again");
                state.send_replace(State::Broken { cause, pause });
                if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                    return;
                }
                pause = LAST_PAUSE.min(pause * 2);
            }
        }
    };
    stop.run_until_cancelled(readiness.follow(&tenant, house.engine())).await;
}

fn with_causes(error: &StartError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// What serves one tenant. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Served {
    state: watch::Receiver<State>,
    // Those of others take none of its room.
    arrivals: Arc<Arrivals>,
    span: Span,
}

impl Served {
    /// Answers a call of its, which has to arrive within `patience`.
    pub(super) async fn answer(
        mut self,
        request: Request<Incoming>,
        patience: Duration,
    ) -> Response<Body> {
        match self.routes().await {
            Ok(routes) => {
                let answering = call::answer(routes, request, patience, &self.arrivals);
                answering.instrument(self.span).await
            }
            Err(refusal) => Status::from(refusal).into_http(),
        }
    }

    /// Its services; waits a while for a house that is being built.
    ///
    /// # Errors
    /// [`Refusal::TenantUnavailable`].
    async fn routes(&mut self) -> Result<Routes, Refusal> {
        let built = self.state.wait_for(|state| !matches!(state, State::Starting));
        // The sender lives as long as the tenants.
        let _ = tokio::time::timeout(PATIENCE, built).await;
        match &*self.state.borrow() {
            State::Served(house) => Ok(house.routes().clone()),
            State::Broken { cause, pause } => {
                Err(Refusal::TenantUnavailable { cause: cause.clone(), retry_after: *pause })
            }
            State::Starting => Err(Refusal::TenantUnavailable {
                cause: "it is being started".to_owned(),
                retry_after: FIRST_PAUSE,
            }),
        }
    }
}
