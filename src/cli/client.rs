//! How the subcommands reach a sidecar, and what they show there.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::failure::Failure;
use super::{UNREACHABLE, USAGE};
use crate::access::files::{self, Readers};
use crate::access::tokens;
use crate::grpc::caller::{Caller, ConnectError, Credentials, NamedFile, TlsFiles};

/// Where a sidecar listens unless it is told otherwise.
const DEFAULT_ADDR: &str = "127.0.0.1:50061";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What names the sidecar where no argument does.
const ADDR_VARIABLE: &str = "CODEX_SIDECAR_ADDR";

/// What is the token to be shown where no file is named.
const TOKEN_VARIABLE: &str = "CODEX_SIDECAR_TOKEN";

/// Which sidecar to talk to.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct AddrArgs {
    // The variable is not clap's: what it gives, the usage line of an error shows as if it had to be
    // given.
    /// The sidecar's address: HOST:PORT, https://HOST:PORT or unix:PATH [env: CODEX_SIDECAR_ADDR]
    /// [default: 127.0.0.1:50061]
    #[arg(long, value_name = "ADDR")]
    addr: Option<String>,
    #[command(flatten)]
    credentials: CredentialArgs,
}

/// What is shown to it, and who vouches for it.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct CredentialArgs {
    /// The file with the token to show, as `token new` prints it [env: CODEX_SIDECAR_TOKEN, the token itself]
    #[arg(long, value_name = "FILE", help_heading = "Credentials")]
    token_file: Option<PathBuf>,
    /// Who vouches for the sidecar's certificate, in PEM; with it TLS is spoken [env: CODEX_SIDECAR_TLS_CA]
    #[arg(long, value_name = "FILE", help_heading = "Credentials")]
    tls_ca: Option<PathBuf>,
    /// The client certificate to show, in PEM; with --tls-key [env: CODEX_SIDECAR_TLS_CERT]
    #[arg(long, value_name = "FILE", help_heading = "Credentials")]
    tls_cert: Option<PathBuf>,
    /// The key of the client certificate, in PEM [env: CODEX_SIDECAR_TLS_KEY]
    #[arg(long, value_name = "FILE", help_heading = "Credentials")]
    tls_key: Option<PathBuf>,
}

impl AddrArgs {
    /// The address: the argument, the variable, or the default.
    pub(super) fn address(&self) -> String {
        self.addr.clone().unwrap_or_else(default_addr)
    }
}

impl CredentialArgs {
    /// All of it, from the arguments or the environment.
    pub(super) fn read(&self) -> Result<Credentials, Failure> {
        let token =
            match (&self.token_file, variable(TOKEN_VARIABLE)) {
                (Some(file), _) => {
                    let bytes = files::read(file, Readers::Nobody);
                    let token = bytes.and_then(|bytes| tokens::shown(&bytes, SystemTime::now()));
                    Some(token.map_err(|cause| {
                        wrong("--token-file", &file.display().to_string(), &cause)
                    })?)
                }
                (None, Some(token)) => {
                    Some(tokens::alone(&token).map_err(|cause| wrong(TOKEN_VARIABLE, "", &cause))?)
                }
                (None, None) => None,
            };
        Ok(Credentials { token, tls: self.tls() })
    }

    /// Without a token, for what needs none.
    fn without_token(&self) -> Credentials {
        Credentials { token: None, tls: self.tls() }
    }

    fn tls(&self) -> TlsFiles {
        let CredentialArgs { token_file: _, tls_ca, tls_cert, tls_key } = self;
        let file = |given: &Option<PathBuf>, flag, name| {
            let by_flag = given.clone().map(|path| NamedFile { origin: flag, path });
            let path = || variable(name).map(PathBuf::from);
            by_flag.or_else(|| Some(NamedFile { origin: name, path: path()? }))
        };
        TlsFiles {
            ca: file(tls_ca, "--tls-ca", "CODEX_SIDECAR_TLS_CA"),
            cert: file(tls_cert, "--tls-cert", "CODEX_SIDECAR_TLS_CERT"),
            key: file(tls_key, "--tls-key", "CODEX_SIDECAR_TLS_KEY"),
        }
    }
}

/// A credential that can't be shown.
fn wrong(origin: &str, value: &str, cause: &str) -> Failure {
    let message = match value {
        "" => format!("{origin} {cause}"),
        value => format!("{origin} {value}: {cause}"),
    };
    Failure::Told { message, code: USAGE }
}

/// A variable; blank is the same as not set.
fn variable(name: &str) -> Option<String> {
    let value = std::env::var_os(name)?.to_string_lossy().into_owned();
    (!value.trim().is_empty()).then_some(value)
}

/// The address where no argument names one.
pub(super) fn default_addr() -> String {
    variable(ADDR_VARIABLE).unwrap_or_else(|| DEFAULT_ADDR.to_owned())
}

/// Connects to it.
pub(super) async fn connect(addr: &AddrArgs) -> Result<Caller, Failure> {
    connect_to(&addr.address(), &addr.credentials.read()?).await
}

/// The same for a probe, which shows no token.
pub(super) async fn connect_for_health(addr: &AddrArgs) -> Result<Caller, Failure> {
    connect_to(&addr.address(), &addr.credentials.without_token()).await
}

/// Connects to the one at an address.
pub(super) async fn connect_to(addr: &str, credentials: &Credentials) -> Result<Caller, Failure> {
    connect_within(addr, credentials, CONNECT_TIMEOUT, "--addr or CODEX_SIDECAR_ADDR").await
}

/// The same with a bound of its own; `how` tells what names another sidecar.
pub(super) async fn connect_within(
    addr: &str,
    credentials: &Credentials,
    timeout: Duration,
    how: &str,
) -> Result<Caller, Failure> {
    Caller::connect(addr, credentials, timeout).await.map_err(|error| match error {
        ConnectError::NoAddress(_) | ConnectError::Credentials(_) => {
            Failure::Told { message: error.to_string(), code: USAGE }
        }
        ConnectError::Unreachable(cause) => Failure::Told {
            message: format!(
                "can't reach a sidecar at {addr}: {cause}; start one with `codex-sidecar serve` (with \
                 --offline-model it needs no key), or name another with {how}"
            ),
            code: UNREACHABLE,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_sidecar_that_is_not_there_is_told_with_the_cause_and_the_remedy() {
        // Bound and let go: nobody listens there.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        for addr in [format!("127.0.0.1:{port}"), "unix:/no/such/socket".to_owned()] {
            let Err(Failure::Told { message, code: 69 }) =
                connect_to(&addr, &Credentials::default()).await
            else {
                panic!("connected to {addr}");
            };
            assert!(message.contains(&addr), "{message}");
            assert!(message.contains("os error"), "{message}");
            assert!(message.contains("codex-sidecar serve"), "{message}");
        }
        for wrong in ["", "localhost", "host:port", "127.0.0.1:1/path"] {
            let failure = connect_to(wrong, &Credentials::default()).await.unwrap_err();
            assert!(matches!(failure, Failure::Told { code: 64, .. }), "{wrong}: {failure:?}");
        }
    }
}
