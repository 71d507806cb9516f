//! Client certificates: which authorities vouch for them, and which names they have.
//!
//! The handshake proves that the other side has a certificate's key. Whether an authority of ours has
//! signed it, and whether it has expired, is judged with each call and not in the handshake: so whoever
//! may ask for the health needs none, a wrong one is refused in the words of the contract, and a
//! connection ends to be good when its certificate, or the authority, does.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme};
use tokio::time::Instant;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::files::{self, Readers, fault};
use super::watch::{Look, Watch};

/// How long a verdict on a certificate holds: it costs some signatures, which a flood of calls must not.
const VERDICT_HOLDS: Duration = Duration::from_secs(1);

/// A certificate that the other side of a connection has shown, with its key proved.
#[derive(Debug)]
pub(crate) struct Certificate {
    chain: Vec<CertificateDer<'static>>,
    verdict: Mutex<Option<Verdict>>,
}

#[derive(Debug, Clone)]
struct Verdict {
    at: Instant,
    /// By which authorities.
    generation: u64,
    names: Result<Arc<[String]>, String>,
}

impl Certificate {
    /// The chain as it came, that of the other side itself first.
    pub(crate) fn new(chain: &[CertificateDer<'_>]) -> Certificate {
        let chain = chain.iter().map(|it| it.clone().into_owned()).collect();
        Certificate { chain, verdict: Mutex::default() }
    }
}

/// The authorities that vouch for clients.
#[derive(Debug)]
pub(crate) struct ClientAuthorities {
    file: PathBuf,
    verifier: ArcSwap<Verifier>,
    provider: Arc<CryptoProvider>,
    watch: Mutex<Watch>,
}

#[derive(Debug)]
struct Verifier {
    verifier: Arc<dyn ClientCertVerifier>,
    /// Another one each time that they are read.
    generation: u64,
}

impl ClientAuthorities {
    /// Those of a PEM file.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub(crate) fn load(file: PathBuf) -> Result<Arc<ClientAuthorities>, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let watch = Watch::new("client authorities", vec![file.clone()]);
        let verifier = ArcSwap::from_pointee(Verifier::read(&file, &provider)?);
        Ok(Arc::new(ClientAuthorities { file, verifier, provider, watch: Mutex::new(watch) }))
    }

    /// Reads the file again if it has changed, or if it `must` be read.
    pub(crate) fn look(&self, must: bool, now: Instant) -> Look<()> {
        let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        match watch.look(must, now, || Verifier::read(&self.file, &self.provider)) {
            Look::New(verifier) => {
                self.verifier.store(Arc::new(verifier));
                Look::New(())
            }
            Look::Same => Look::Same,
            Look::Kept(cause) => Look::Kept(cause),
        }
    }

    /// The names of a certificate that one of them vouches for now.
    ///
    /// # Errors
    /// Why none does.
    pub(super) fn names(
        &self,
        certificate: &Certificate,
        now: SystemTime,
    ) -> Result<Arc<[String]>, String> {
        let verifier = self.verifier.load();
        let mut verdict = certificate.verdict.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(verdict) = &*verdict
            && verdict.generation == verifier.generation
            && verdict.at.elapsed() < VERDICT_HOLDS
        {
            return verdict.names.clone();
        }
        let names = verifier.names(&certificate.chain, now);
        let generation = verifier.generation;
        *verdict = Some(Verdict { at: Instant::now(), generation, names: names.clone() });
        names
    }
}

impl Verifier {
    fn read(file: &Path, provider: &Arc<CryptoProvider>) -> Result<Verifier, String> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let mut roots = RootCertStore::empty();
        for certificate in certificates(file)? {
            roots.add(certificate).map_err(|error| fault(file, error))?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
        let verifier = verifier.build().map_err(|error| fault(file, error))?;
        Ok(Verifier { verifier, generation: NEXT.fetch_add(1, Ordering::Relaxed) })
    }

    fn names(
        &self,
        chain: &[CertificateDer<'static>],
        now: SystemTime,
    ) -> Result<Arc<[String]>, String> {
        let [own, others @ ..] = chain else { return Err("there is none".to_owned()) };
        let now = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default());
        let verified = self.verifier.verify_client_cert(own, others, now);
        verified.map_err(|error| error.to_string())?;
        names(own)
    }
}

/// The certificates of a PEM file, at least one.
///
/// # Errors
/// What is wrong with the file.
pub(crate) fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let bytes = files::read(file, Readers::Everybody).map_err(|cause| fault(file, cause))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let found = found.map_err(|error| fault(file, format!("is no PEM: {}", pem_fault(&error))))?;
    if found.is_empty() {
        return Err(fault(file, "has no certificate in PEM (-----BEGIN CERTIFICATE-----)"));
    }
    Ok(found)
}

/// What is wrong with a file in PEM, in words: the library's own have bytes as numbers.
pub(crate) fn pem_fault(error: &pem::Error) -> String {
    match error {
        pem::Error::MissingSectionEnd { end_marker } => {
            let end = String::from_utf8_lossy(end_marker);
            format!("a section has no end ({}); the file may be cut", end.trim_end())
        }
        pem::Error::IllegalSectionStart { .. } => {
            "a line begins as the one before a section does, and goes on otherwise".to_owned()
        }
        other => other.to_string(),
    }
}

/// When a certificate begins to be good, and when it ends to be.
pub(crate) fn validity(
    certificate: &CertificateDer<'_>,
) -> Result<(SystemTime, SystemTime), String> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| error.to_string())?;
    let at = |time: x509_parser::time::ASN1Time| {
        UNIX_EPOCH + Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or_default())
    };
    Ok((at(parsed.validity().not_before), at(parsed.validity().not_after)))
}

/// Whether it may be a server's, as far as it says whose it may be.
pub(crate) fn is_for_servers(certificate: &CertificateDer<'_>) -> bool {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return false };
    let usage = parsed.extended_key_usage().ok().flatten();
    usage.is_none_or(|usage| usage.value.server_auth || usage.value.any)
}

/// The subject alternative names of a certificate: hosts in lower case, URIs, addresses of mail and of
/// the network, as they are written.
fn names(certificate: &CertificateDer<'_>) -> Result<Arc<[String]>, String> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| error.to_string())?;
    let extension = parsed.subject_alternative_name().map_err(|error| error.to_string())?;
    let names = extension.iter().flat_map(|extension| &extension.value.general_names);
    Ok(names.filter_map(name).collect())
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(host) => Some(host.to_ascii_lowercase()),
        GeneralName::URI(text) | GeneralName::RFC822Name(text) => Some((*text).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let four = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
            let address = four.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from));
            address.ok().map(|address| address.to_string())
        }
        _ => None,
    }
}

impl ClientCertVerifier for ClientAuthorities {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Any: they may be others by the next handshake.
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        // With each call: see above. Nothing is anybody's for having shown one.
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.load().verifier.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.load().verifier.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
        KeyPair, SanType,
    };

    use super::*;

    /// An authority, and its certificate.
    fn authority(name: &str) -> (Issuer<'static, KeyPair>, String) {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        (Issuer::new(params, key), pem)
    }

    fn client(
        issuer: &Issuer<'static, KeyPair>,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Certificate {
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let signed = params.signed_by(&KeyPair::generate().unwrap(), issuer).unwrap();
        Certificate::new(&[signed.der().clone()])
    }

    #[tokio::test(start_paused = true)]
    async fn names_are_those_of_a_certificate_that_is_vouched_for_now() {
        let ((ours, pem), (theirs, other)) = (authority("ours"), authority("ours"));
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("ca.pem");
        std::fs::write(&file, pem).unwrap();
        let authorities = ClientAuthorities::load(file.clone()).unwrap();
        let names = |params: &mut CertificateParams| {
            params.subject_alt_names = vec![
                SanType::DnsName("Build.Example".try_into().unwrap()),
                SanType::URI("spiffe://example/Build".try_into().unwrap()),
                SanType::Rfc822Name("build@example".try_into().unwrap()),
                SanType::IpAddress([10, 0, 0, 7].into()),
                SanType::IpAddress("fd00::7".parse().unwrap()),
            ];
        };
        let good = client(&ours, names);
        let now = SystemTime::now();
        let expected =
            ["build.example", "spiffe://example/Build", "build@example", "10.0.0.7", "fd00::7"];
        assert_eq!(*authorities.names(&good, now).unwrap(), expected);
        // A common name is none.
        let nameless =
            client(&ours, |params| params.distinguished_name.push(DnType::CommonName, "build"));
        assert!(authorities.names(&nameless, now).unwrap().is_empty());

        let foreign = authorities.names(&client(&theirs, names), now).unwrap_err();
        assert!(foreign.contains("UnknownIssuer") || foreign.contains("BadSignature"), "{foreign}");
        let servers = client(&ours, |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        });
        authorities.names(&servers, now).unwrap_err();
        let expired = client(&ours, |params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
        let expired = authorities.names(&expired, now).unwrap_err();
        assert!(expired.contains("xpired"), "{expired}");
        authorities.names(&Certificate::new(&[]), now).unwrap_err();

        // With its time, at the latest when a verdict holds no more.
        let later = now + Duration::from_secs(100 * 365 * 24 * 3600);
        let until_2100 = |params: &mut CertificateParams| {
            params.not_after = rcgen::date_time_ymd(2100, 1, 1);
        };
        let short = client(&ours, until_2100);
        authorities.names(&short, now).unwrap();
        tokio::time::advance(VERDICT_HOLDS).await;
        authorities.names(&short, later).unwrap_err();
        // And at once with its authority.
        authorities.names(&good, now).unwrap();
        std::fs::write(&file, other).unwrap();
        assert_eq!(authorities.look(false, Instant::now()), Look::New(()));
        authorities.names(&good, now).unwrap_err();
    }

    #[test]
    fn a_file_without_a_certificate_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("ca.pem");
        for text in
            ["", "nothing", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
        {
            std::fs::write(&file, text).unwrap();
            let told = ClientAuthorities::load(file.clone()).unwrap_err();
            assert!(told.contains("ca.pem"), "{told}");
        }
    }
}
