//! What callers and the sidecar show each other, as the configuration has it: tokens and names of
//! callers, the sidecar's own certificate. Read once before anything is bound, and again when it changes.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::time::Instant;

use super::listen::BoundAddress;
use super::tls::Tls;
use crate::access::certificates::ClientAuthorities;
use crate::access::watch::EVERY;
use crate::access::{Access, AccessSettings, Credentials as Own};
use crate::config::{Config, TlsFiles};
use crate::model::id::Tenant;

/// All of them. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Credentials {
    pub(super) access: Arc<Access>,
    /// On every TCP listener but those for health probes.
    pub(super) tls: Option<Tls>,
}

impl Credentials {
    /// Reads the files that the configuration names.
    ///
    /// # Errors
    /// What is wrong with one of them.
    pub(super) fn load(config: &Config) -> Result<Credentials, String> {
        let TlsFiles { cert, key, client_ca } = &config.tls;
        let authorities = client_ca.clone().map(ClientAuthorities::load).transpose();
        let authorities = authorities.map_err(|cause| format!("tls_client_ca: {cause}"))?;
        let tls = match (cert, key) {
            (Some(cert), Some(key)) => {
                let tls = Tls::new(cert.clone(), key.clone(), authorities.clone());
                Some(tls.map_err(|cause| format!("tls_cert, tls_key: {cause}"))?)
            }
            // The configuration says both, or none.
            _ => None,
        };
        let default = Own {
            token_file: config.token_file.clone(),
            client_names: config.client_names.clone(),
            unix_uids: config.unix_sockets.allow_uids.clone(),
            unix_gids: config.unix_sockets.allow_gids.clone(),
        };
        let tenants = config.tenants.iter();
        let tenants = tenants.map(|(name, it)| (Tenant(name.clone()), it.credentials.clone()));
        let tenants: BTreeMap<Tenant, Own> = tenants.collect();
        let own_token = config.own_token;
        let access = Access::new(AccessSettings { default, tenants, authorities, own_token })?;
        for file in access.in_clear() {
            tracing::warn!(
                "{}: tokens stand there as they are, and what the model runs can read what this sidecar \
                 can; put sha256: and their hashes in their place, as `codex-sidecar token new` gives them",
                file.display()
            );
        }
        Ok(Credentials { access: Arc::new(access), tls })
    }

    /// Reads again what has changed, as long as it is polled.
    pub(super) async fn watch(self) {
        let mut looks = tokio::time::interval(EVERY);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            // What can't be used is told where it is found, at a rate of its own.
            for read in self.look(false).await.into_iter().flatten() {
                tracing::info!("read again: {read}");
            }
        }
    }

    /// Reads all files again, whether or not they have changed, and tells the log.
    pub(crate) async fn reload(&self) {
        let (mut read, mut kept) = (Vec::new(), Vec::new());
        for told in self.look(true).await {
            match told {
                Ok(what) => read.push(what),
                Err(cause) => kept.push(cause),
            }
        }
        let list = |parts: Vec<String>| match parts.is_empty() {
            true => "nothing".to_owned(),
            false => parts.join(", "),
        };
        let (read, kept) = (list(read), list(kept));
        tracing::info!(
            "read again: {read}; kept as before: {kept}; all other settings hold until a restart"
        );
    }

    async fn look(&self, must: bool) -> Vec<Result<String, String>> {
        let Credentials { access, tls } = self.clone();
        let now = Instant::now();
        // A disk may hang.
        let looking = tokio::task::spawn_blocking(move || {
            let mut told = access.look(must, now);
            told.extend(tls.and_then(|tls| tls.look(must, now)));
            told
        });
        looking.await.unwrap_or_default()
    }

    /// Tells the log who can call, listener by listener.
    pub(super) fn tell(&self, addresses: &[BoundAddress]) {
        let told = |what: &dyn Fn(&BoundAddress) -> String| {
            let each: Vec<String> = addresses.iter().map(what).collect();
            each.join("; ")
        };
        if !self.access.is_set() {
            let reached = told(&|address| match address {
                BoundAddress::Tcp(tcp) if tcp.ip().to_canonical().is_loopback() => format!(
                    "at {address} every process of this machine (and its pod), commands of the model that \
                     have the network among them"
                ),
                BoundAddress::Tcp(_) => format!("at {address} every machine that reaches it"),
                BoundAddress::Unix(_) => format!(
                    "at {address} every process that may write to the socket, commands of the model \
                     among them"
                ),
            });
            tracing::warn!(
                "no credential is set: {reached} can run turns and commands as this sidecar; set \
                 --token-file, --tls-client-ca or unix_allow_uids to ask for one"
            );
            return;
        }
        let wanted = told(&|address| {
            let wanted = self.access.wanted(matches!(address, BoundAddress::Unix(_)));
            match wanted {
                Some(wanted) => format!("at {address} callers need {wanted}"),
                None => format!(
                    "at {address} nobody is let in: no credential that is set can be shown there"
                ),
            }
        });
        tracing::info!("{wanted}");
        let in_clear: Vec<String> = addresses
            .iter()
            .filter(|address| self.tls.is_none() && address.is_exposed())
            .map(ToString::to_string)
            .collect();
        if !in_clear.is_empty() {
            tracing::warn!(
                "without --tls-cert and --tls-key tokens and all else travel in clear to {}",
                in_clear.join(", ")
            );
        }
    }
}
