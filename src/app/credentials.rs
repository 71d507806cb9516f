//! What callers and the sidecar show each other, as the configuration has it: tokens and names of
//! callers, the sidecar's own certificate. Read once before anything is bound, and again when it changes.

use std::sync::Arc;

use tokio::time::Instant;

use super::listen::BoundAddress;
use super::tls::Tls;
use crate::access::certificates::ClientAuthorities;
use crate::access::watch::EVERY;
use crate::access::{Access, AccessSettings, WrongSetting};
use crate::config::{Config, TlsFiles};

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
    /// All that is wrong with them.
    pub(super) fn load(config: &Config) -> Result<Credentials, Vec<WrongSetting>> {
        let TlsFiles { cert, key, client_ca } = &config.tls;
        let mut wrong = Vec::new();
        let authorities = client_ca.clone().map(ClientAuthorities::load).transpose();
        let authorities = authorities.unwrap_or_else(|problem| {
            wrong.push(WrongSetting { setting: "tls_client_ca".to_owned(), problem });
            None
        });
        let tls = match (cert, key) {
            (Some(cert), Some(key)) => {
                let tls = Tls::new(cert.clone(), key.clone(), authorities.clone());
                tls.map_err(|those| wrong.extend(those)).ok()
            }
            // The configuration says both, or none.
            _ => None,
        };
        let (default, tenants) = config.credentials();
        let own_token = config.own_token;
        let access = Access::new(AccessSettings { default, tenants, authorities, own_token });
        let access = match access {
            Ok(access) if wrong.is_empty() => access,
            access => {
                wrong.extend(access.err().into_iter().flatten());
                return Err(wrong);
            }
        };
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
        for tenant in self.access.out_of_reach() {
            tracing::warn!(
                "nobody can call as the tenant {tenant}: no token, client name, user or group is its own"
            );
        }
        if !self.access.is_set() {
            let reached = told(&|address| match address {
                BoundAddress::Tcp(tcp) if tcp.ip().to_canonical().is_loopback() => {
                    format!("at {address} every process of this machine (and its pod)")
                }
                BoundAddress::Tcp(_) => format!("at {address} every machine that reaches it"),
                BoundAddress::Unix(_) => {
                    format!("at {address} every process that may write to the socket")
                }
            });
            tracing::warn!(
                "no credential is set: {reached} can run turns and commands as this sidecar, and so can a \
                 command of the model where its descent can't be seen (docs/security.md); set \
                 --token-file, --tls-client-ca or unix_allow_uids to ask for one"
            );
            return;
        }
        for address in addresses {
            match self.access.wanted(matches!(address, BoundAddress::Unix(_))) {
                Some(wanted) => tracing::info!("at {address} callers need {wanted}"),
                None => tracing::warn!(
                    "at {address} nobody is let in: no token is listed, and no other credential that is \
                     set can be shown there"
                ),
            }
        }
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
