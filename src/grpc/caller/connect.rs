//! The way to a sidecar: TCP, TLS over it, or a Unix socket, and what a caller shows there.
//!
//! Tells a sidecar that speaks TLS from one that does not, where the address says otherwise: the bytes of
//! the one are nonsense to the other, and its library's words for that help nobody.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use http::header::{self, HeaderValue, InvalidHeaderValue};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Notify;
use tokio_rustls::TlsConnector;
use tokio_util::either::Either;
use tonic::body::Body;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::{BoxError, Service};

use super::ConnectError;
use crate::access::certificates;
use crate::access::files::{self, Readers, fault};

/// The one protocol of gRPC.
const HTTP_2: &[u8] = b"h2";

/// Told where a plain connection meets TLS.
const SPEAKS_TLS: &str = "what is there speaks TLS: name it by https://HOST:PORT, with --tls-ca or \
                          CODEX_SIDECAR_TLS_CA";

/// A connection, and what is shown on it with every call.
#[derive(Debug, Clone)]
pub(super) struct Way {
    channel: Channel,
    /// What ends a connection is not always told to the calls on it: so it is kept here.
    met_tls: Arc<AtomicBool>,
    bearer: Option<HeaderValue>,
}

impl Way {
    pub(super) fn without_token(&self) -> Way {
        Way { bearer: None, ..self.clone() }
    }
}

impl Service<http::Request<Body>> for Way {
    type Response = http::Response<Body>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<http::Response<Body>, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.channel.poll_ready(context).map_err(|error| told(error, &self.met_tls))
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        if let Some(bearer) = &self.bearer {
            request.headers_mut().insert(header::AUTHORIZATION, bearer.clone());
        }
        let (calling, met_tls) = (self.channel.call(request), Arc::clone(&self.met_tls));
        Box::pin(async move { calling.await.map_err(|error| told(error, &met_tls)) })
    }
}

/// Why a call is lost, in words of its own where that is known.
fn told(error: tonic::transport::Error, met_tls: &AtomicBool) -> BoxError {
    match met_tls.load(Ordering::Relaxed) {
        true => Told(SPEAKS_TLS.to_owned()).into(),
        false => error.into(),
    }
}

/// What a caller shows, and whom it trusts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Credentials {
    pub(crate) token: Option<SecretString>,
    pub(crate) tls: TlsFiles,
}

/// The PEM files of a caller's TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    /// The authorities that vouch for the sidecar. Where they are given, TLS is spoken.
    pub(crate) ca: Option<NamedFile>,
    /// The caller's own certificate, and its key.
    pub(crate) cert: Option<NamedFile>,
    pub(crate) key: Option<NamedFile>,
}

/// A file, and what names it: a flag, or a variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NamedFile {
    pub(crate) origin: &'static str,
    pub(crate) path: PathBuf,
}

impl NamedFile {
    /// A fault that says the path already, with what names it.
    fn told(&self, problem: impl fmt::Display) -> String {
        format!("{}: {problem}", self.origin)
    }
}

/// Where a sidecar is.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Unix(PathBuf),
    Tcp { uri: Uri, host: String, port: u16 },
}

/// What went wrong on the way, in words of its own.
#[derive(Debug)]
struct Told(String);

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Told {}

/// Connects now.
pub(super) async fn connect(
    address: &str,
    credentials: &Credentials,
    timeout: Duration,
) -> Result<Way, ConnectError> {
    let Credentials { token, tls } = credentials;
    let bearer = token.as_ref().map(|token| {
        let mut value = HeaderValue::try_from(format!("Bearer {}", token.expose_secret()))?;
        // It never stands in a log, nor in a table of headers that were sent before.
        value.set_sensitive(true);
        Ok(value)
    });
    let bearer = bearer.transpose().map_err(|_: InvalidHeaderValue| {
        ConnectError::Credentials("the token has characters that can't be sent".to_owned())
    })?;
    let met_tls = Arc::new(AtomicBool::new(false));
    let begun = Arc::new(Notify::new());
    let mut is_plain = false;
    let place = Place::parse(address, tls.ca.is_some())
        .ok_or_else(|| ConnectError::NoAddress(address.to_owned()))?;
    let connected = match place {
        Place::Unix(path) => {
            // The address is never looked up: the connector below goes to the socket.
            let endpoint = Endpoint::from_static("http://localhost").connect_timeout(timeout);
            let connector = tower::service_fn(move |_: Uri| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            });
            endpoint.connect_with_connector(connector).await
        }
        Place::Tcp { uri, host, port } => {
            let secured = match uri.scheme_str() {
                Some("https") => Some(Secured::new(&host, tls).map_err(ConnectError::Credentials)?),
                _ => None,
            };
            is_plain = secured.is_none();
            // TLS is the connector's below.
            let endpoint = Endpoint::from_static("http://localhost").connect_timeout(timeout);
            let first = First { met_tls: Arc::clone(&met_tls), begun: Arc::clone(&begun) };
            let connector = tower::service_fn(move |_: Uri| {
                let (host, secured, first) = (host.clone(), secured.clone(), first.clone());
                async move { open(host, port, secured, first).await.map(TokioIo::new) }
            });
            endpoint.origin(uri).connect_with_connector(connector).await
        }
    };
    if connected.is_ok() && is_plain {
        // The side of a sidecar begins before any call. One that hangs is the call's matter.
        let _ = tokio::time::timeout(timeout, begun.notified()).await;
    }
    match connected {
        Ok(_) if met_tls.load(Ordering::Relaxed) => {
            Err(ConnectError::Unreachable(SPEAKS_TLS.to_owned()))
        }
        Ok(channel) => Ok(Way { channel, met_tls, bearer }),
        Err(_) if met_tls.load(Ordering::Relaxed) => {
            Err(ConnectError::Unreachable(SPEAKS_TLS.to_owned()))
        }
        Err(error) => Err(ConnectError::Unreachable(super::root_cause(&error))),
    }
}

/// A connection of TCP, with TLS where that is spoken.
async fn open(
    host: String,
    port: u16,
    secured: Option<Secured>,
    first: First,
) -> Result<impl AsyncRead + AsyncWrite + Send + Unpin, Told> {
    let told = |error: io::Error| Told(error.to_string());
    let socket = TcpStream::connect((host.as_str(), port)).await.map_err(told)?;
    // Only a hint; the connection is good without.
    let _ = socket.set_nodelay(true);
    Ok(match secured {
        None => Either::Left(Plain { socket, has_begun: false, first }),
        Some(Secured { config, name, ca }) => {
            let connecting = TlsConnector::from(config).connect(name, socket);
            let stream = connecting.await.map_err(|error| Told(of_tls(&error, &ca)))?;
            if stream.get_ref().1.alpn_protocol() != Some(HTTP_2) {
                return Err(Told("what is there speaks TLS, but not HTTP/2".to_owned()));
            }
            Either::Right(stream)
        }
    })
}

/// Why there is no TLS.
fn of_tls(error: &io::Error, ca: &Path) -> String {
    match error.get_ref().and_then(|error| error.downcast_ref()) {
        Some(rustls::Error::InvalidMessage(_)) => {
            "what is there speaks no TLS; name it by http://HOST:PORT".to_owned()
        }
        Some(rustls::Error::InvalidCertificate(cause)) => format!(
            "its certificate is not one that {} vouches for under this name: {cause}",
            ca.display()
        ),
        Some(rustls::Error::AlertReceived(alert)) => format!("it breaks off TLS: {alert:?}"),
        _ if error.kind() == io::ErrorKind::UnexpectedEof => {
            "it ends the connection in the TLS handshake; it may speak no TLS".to_owned()
        }
        _ => error.to_string(),
    }
}

/// How TLS is spoken with one sidecar.
#[derive(Debug, Clone)]
struct Secured {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    ca: PathBuf,
}

impl Secured {
    fn new(host: &str, files: &TlsFiles) -> Result<Secured, String> {
        let TlsFiles { ca, cert, key } = files;
        let ca = ca.clone().ok_or(
            "https needs to know who vouches for the sidecar: name a file of certificates in PEM with \
             --tls-ca or CODEX_SIDECAR_TLS_CA, such as that of the system",
        )?;
        let mut roots = RootCertStore::empty();
        for certificate in certificates::certificates(&ca.path).map_err(|it| ca.told(it))? {
            roots.add(certificate).map_err(|error| ca.told(fault(&ca.path, error)))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots);
        let mut config = match (cert, key) {
            (Some(cert), Some(key)) => {
                let chain =
                    certificates::certificates(&cert.path).map_err(|problem| cert.told(problem))?;
                let wrong_key = |problem: String| key.told(fault(&key.path, problem));
                let bytes = files::read(&key.path, Readers::Group).map_err(wrong_key)?;
                let own = PrivateKeyDer::from_pem_slice(&bytes)
                    .map_err(|error| wrong_key(format!("has no private key in PEM: {error}")))?;
                config.with_client_auth_cert(chain, own).map_err(|error| match error {
                    rustls::Error::InconsistentKeys(_) => wrong_key(format!(
                        "does not fit the certificate in {}",
                        cert.path.display()
                    )),
                    error => cert.told(fault(&cert.path, error)),
                })?
            }
            (None, None) => config.with_no_client_auth(),
            (Some(cert), None) => {
                return Err(cert.told("needs --tls-key (CODEX_SIDECAR_TLS_KEY), too"));
            }
            (None, Some(key)) => {
                return Err(key.told("needs --tls-cert (CODEX_SIDECAR_TLS_CERT), too"));
            }
        };
        config.alpn_protocols = vec![HTTP_2.to_vec()];
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| format!("{host:?} is no name that a certificate can have"))?;
        Ok(Secured { config: Arc::new(config), name, ca: ca.path })
    }
}

impl Place {
    /// `HOST:PORT`, with a scheme or without, or `unix:PATH`. Without a scheme it is TLS where the sidecar's
    /// authorities are given: a token must not travel in clear because a word was left out.
    fn parse(address: &str, prefers_tls: bool) -> Option<Place> {
        let trimmed = address.trim();
        if let Some(path) = trimmed.strip_prefix("unix:") {
            return Some(Place::Unix(PathBuf::from(path)));
        }
        let (scheme, rest) = match trimmed.split_once("://") {
            Some((scheme, rest)) => (scheme.to_ascii_lowercase(), rest),
            None => (if prefers_tls { "https" } else { "http" }.to_owned(), trimmed),
        };
        if !matches!(scheme.as_str(), "http" | "https") {
            return None;
        }
        let uri: Uri = format!("{scheme}://{}", rest.trim_end_matches('/')).parse().ok()?;
        if uri.path() != "/" || uri.query().is_some() {
            return None;
        }
        let host = uri.host()?.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = uri.port_u16()?;
        Some(Place::Tcp { uri, host, port })
    }
}

/// A socket that is to speak plain HTTP/2, which knows TLS when it sees it.
#[derive(Debug)]
struct Plain {
    socket: TcpStream,
    has_begun: bool,
    first: First,
}

/// What the first bytes of a plain connection were.
#[derive(Debug, Clone)]
struct First {
    met_tls: Arc<AtomicBool>,
    /// Told when they are there, or when it is known that none will come.
    begun: Arc<Notify>,
}

impl Plain {
    /// What a TLS record of an alert begins with, and no frame that HTTP/2 begins with.
    const ALERT: [u8; 2] = [0x15, 0x03];

    /// Looks at the first bytes from there.
    fn look(&self, bytes: &[u8]) {
        if bytes.starts_with(&Plain::ALERT) {
            self.first.met_tls.store(true, Ordering::Relaxed);
        }
        self.first.begun.notify_one();
    }

    /// What there is to be read where nothing more can be written.
    fn last_words(&mut self) {
        let mut bytes = [0; 2];
        if !self.has_begun && self.socket.try_read(&mut bytes).is_ok() {
            self.has_begun = true;
            self.look(&bytes);
        }
    }
}

impl AsyncRead for Plain {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.socket).poll_read(context, buffer);
        if read.is_ready() && !self.has_begun {
            self.has_begun = true;
            self.look(&buffer.filled()[before..]);
        }
        read
    }
}

impl AsyncWrite for Plain {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(context, bytes);
        if matches!(written, Poll::Ready(Err(_))) {
            self.last_words();
        }
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(context, slices);
        if matches!(written, Poll::Ready(Err(_))) {
            self.last_words();
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port_or_a_socket() {
        let shown = |address: &str, prefers_tls| match Place::parse(address, prefers_tls) {
            Some(Place::Unix(path)) => format!("socket {}", path.display()),
            Some(Place::Tcp { uri, host, port }) => format!("{uri} {host} {port}"),
            None => "none".to_owned(),
        };
        let cases = [
            ("unix:/run/s", false, "socket /run/s"),
            ("unix:/run/s", true, "socket /run/s"),
            (" localhost:1 ", false, "http://localhost:1/ localhost 1"),
            ("localhost:1", true, "https://localhost:1/ localhost 1"),
            ("http://localhost:1/", true, "http://localhost:1/ localhost 1"),
            ("HTTPS://[::1]:1", false, "https://[::1]:1/ ::1 1"),
            ("https://localhost", false, "none"),
            ("ftp://localhost:1", false, "none"),
            ("localhost:1/path", false, "none"),
            ("host:port", false, "none"),
            ("", true, "none"),
        ];
        for (address, prefers_tls, expected) in cases {
            assert_eq!(shown(address, prefers_tls), expected, "{address}");
        }
    }

    #[test]
    fn https_needs_to_know_who_vouches_for_the_sidecar() {
        let told = Secured::new("localhost", &TlsFiles::default()).unwrap_err();
        assert!(told.contains("--tls-ca"), "{told}");
    }

    #[test]
    fn a_file_that_cant_be_used_is_told_with_what_names_it() {
        let named =
            |origin| Some(NamedFile { origin, path: PathBuf::from(format!("/no/{origin}")) });
        let files = TlsFiles { ca: named("CODEX_SIDECAR_TLS_CA"), ..TlsFiles::default() };
        let told = Secured::new("localhost", &files).unwrap_err();
        assert!(
            told.starts_with("CODEX_SIDECAR_TLS_CA: /no/CODEX_SIDECAR_TLS_CA: can't be"),
            "{told}"
        );
    }
}
