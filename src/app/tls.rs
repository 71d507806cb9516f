//! TLS on the TCP listeners: the sidecar's certificate and key, read again when their files change.
//!
//! Certificate and key are two files, which nobody can replace at once: new ones are used when they fit
//! each other, and the old ones until then. Whether a client's certificate is good is `access`'s matter.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::access::WrongSetting;
use crate::access::certificates::{self, Certificate, ClientAuthorities};
use crate::access::files::{self, Readers, fault};
use crate::access::refusals::Refusals;
use crate::access::watch::{Look, Watch};
use crate::model::id::CallerName;

/// The one protocol of gRPC.
const HTTP_2: &[u8] = b"h2";
/// How long before its end a certificate is warned of.
const EXPIRES_SOON: Duration = Duration::from_secs(14 * 24 * 3600);

/// TLS as it is set up. Clones are the same.
#[derive(Clone)]
pub(super) struct Tls {
    acceptor: TlsAcceptor,
    own: Arc<Own>,
    refusals: Arc<Refusals>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("own", &self.own).finish_non_exhaustive()
    }
}

/// The sidecar's own certificate.
#[derive(Debug)]
struct Own {
    certificate: PathBuf,
    key: PathBuf,
    provider: Arc<CryptoProvider>,
    current: ArcSwap<CertifiedKey>,
    watch: Mutex<Watch>,
}

impl Tls {
    /// With this certificate, its key, and, where clients are to show certificates, who vouches for those.
    ///
    /// # Errors
    /// What is wrong with each file, or that the two don't fit each other.
    pub(super) fn new(
        certificate: PathBuf,
        key: PathBuf,
        authorities: Option<Arc<ClientAuthorities>>,
    ) -> Result<Tls, Vec<WrongSetting>> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let watch = Watch::new("certificate and key", vec![certificate.clone(), key.clone()]);
        let read = read(&certificate, &key, &provider)?;
        let own = Arc::new(Own {
            certificate,
            key,
            provider: Arc::clone(&provider),
            current: ArcSwap::from_pointee(read),
            watch: Mutex::new(watch),
        });
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(|error| wrong(CERT, error.to_string()))?;
        let config = match authorities {
            Some(authorities) => config.with_client_cert_verifier(authorities),
            None => config.with_no_client_auth(),
        };
        let mut config = config.with_cert_resolver(own.clone());
        config.alpn_protocols = vec![HTTP_2.to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        Ok(Tls { acceptor, own, refusals: Arc::default() })
    }

    /// Shakes hands with a client; gives what it has shown of itself. `None` where that fails, which the
    /// log is told.
    pub(super) async fn accept<S>(
        &self,
        socket: S,
        name: &CallerName,
    ) -> Option<(TlsStream<S>, Option<Arc<Certificate>>)>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        match self.acceptor.accept(socket).await {
            Ok(stream) => {
                let shown = stream.get_ref().1.peer_certificates();
                let shown = shown.map(|chain| Arc::new(Certificate::new(chain)));
                Some((stream, shown))
            }
            Err(error) => {
                let of_tls = error.get_ref().and_then(|error| error.downcast_ref());
                let cause = match of_tls {
                    Some(rustls::Error::InvalidMessage(_)) => {
                        "it speaks no TLS, and this port does"
                    }
                    Some(rustls::Error::AlertReceived(_)) => "it breaks off the TLS handshake",
                    Some(rustls::Error::NoApplicationProtocol) => "it speaks TLS, but not HTTP/2",
                    Some(_) => "the TLS handshake fails",
                    None => {
                        tracing::debug!(%error, "a client went away in the TLS handshake");
                        return None;
                    }
                };
                self.refusals.add(cause, &name.0, &error.to_string(), Instant::now());
                None
            }
        }
    }

    /// Looks at the files, and reads them if they have changed, or if they `must` be read. Tells what was
    /// read, or what can't be used.
    pub(super) fn look(&self, must: bool, now: Instant) -> Option<Result<String, String>> {
        self.refusals.tell(now);
        let Own { certificate, key, provider, current, watch } = &*self.own;
        let mut watch = watch.lock().unwrap_or_else(PoisonError::into_inner);
        let read = || {
            let new = read(certificate, key, provider).map_err(|wrong| {
                let problems: Vec<String> = wrong.into_iter().map(|it| it.problem).collect();
                problems.join("; ")
            })?;
            let time = SystemTime::now();
            match (useless(&new, time), useless(&current.load(), time)) {
                (Some(why), None) => {
                    Err(fault(certificate, format!("{why}, and the one in force is good")))
                }
                _ => Ok(new),
            }
        };
        match watch.look(must, now, read) {
            Look::Same => None,
            Look::New(new) => {
                current.store(Arc::new(new));
                Some(Ok(format!("the certificate of {}", certificate.display())))
            }
            Look::Kept(cause) => Some(Err(cause)),
        }
    }
}

impl ResolvesServerCert for Own {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

const CERT: &str = "tls_cert";
const KEY: &str = "tls_key";

fn wrong(setting: &str, problem: String) -> Vec<WrongSetting> {
    vec![WrongSetting { setting: setting.to_owned(), problem }]
}

/// Certificate and key, or what is wrong with each.
fn read(
    certificate: &Path,
    key: &Path,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, Vec<WrongSetting>> {
    let (chain, found) = match (certificates::certificates(certificate), read_key(key)) {
        (Ok(chain), Ok(found)) => (chain, found),
        (chain, found) => {
            let chain = chain.err().into_iter().flat_map(|problem| wrong(CERT, problem));
            let found = found.err().into_iter().flat_map(|problem| wrong(KEY, problem));
            return Err(chain.chain(found).collect());
        }
    };
    let validity = chain.first().map(certificates::validity).transpose();
    let validity = validity.map_err(|error| wrong(CERT, fault(certificate, error)))?;
    let found = CertifiedKey::from_der(chain, found, provider).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            let problem = format!("does not fit the certificate in {}", certificate.display());
            wrong(KEY, fault(key, problem))
        }
        error => wrong(CERT, fault(certificate, error)),
    })?;
    if let Some((from, until)) = validity {
        tell_validity(certificate, from, until, SystemTime::now());
    }
    Ok(found)
}

fn read_key(file: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let bytes = files::read(file, Readers::Group).map_err(|cause| fault(file, cause))?;
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| {
        fault(
            file,
            format!(
                "has no private key in PEM (-----BEGIN PRIVATE KEY-----): {}",
                certificates::pem_fault(&error)
            ),
        )
    })
}

/// Why no client takes this certificate, as far as it says so itself.
fn useless(certificate: &CertifiedKey, now: SystemTime) -> Option<&'static str> {
    let own = certificate.cert.first()?;
    let (from, until) = certificates::validity(own).ok()?;
    if until <= now {
        Some("the certificate has expired")
    } else if from > now {
        Some("the certificate is not good yet")
    } else if !certificates::is_for_servers(own) {
        Some("the certificate is not one for servers")
    } else {
        None
    }
}

/// A certificate that is not good is used at the start all the same: clients say so themselves, and a sidecar that does
/// not start would say less.
fn tell_validity(file: &Path, from: SystemTime, until: SystemTime, now: SystemTime) {
    let file = file.display();
    let at = |time| humantime::format_rfc3339_seconds(time).to_string();
    if until <= now {
        tracing::error!("{file}: the certificate has expired, {}: clients refuse it", at(until));
    } else if from > now {
        tracing::error!("{file}: the certificate is good only from {} on", at(from));
    } else if until < now + EXPIRES_SOON {
        tracing::warn!("{file}: the certificate expires {}", at(until));
    }
}
