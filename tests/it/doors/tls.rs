//! TLS: who is let in by a certificate, who speaks the wrong language, and certificates that change.

use codex_sidecar::parts::app::BoundAddress;
use codex_sidecar::parts::config::{Config, ListenAddress, TlsFiles};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::pki::{Authority, pair};
use super::{TOKEN, asked, assert_unauthenticated, turn, write};
use crate::support::{PATIENCE, Place, Sidecar, binary, eventually, short_directory, within};

/// A sidecar on a Unix socket and with TLS on TCP.
async fn secured(
    socket: &tempfile::TempDir,
    place: Place,
    tls: TlsFiles,
    change: impl FnOnce(&mut Config),
) -> Sidecar {
    Sidecar::in_place(place, |_, config| {
        config.listen = vec![
            ListenAddress::Unix(socket.path().join("s")),
            ListenAddress::Tcp { host: "127.0.0.1".to_owned(), port: 0 },
        ];
        config.tls = tls;
        change(config);
    })
    .await
}

fn port(sidecar: &Sidecar) -> u16 {
    match &sidecar.addresses[1] {
        BoundAddress::Tcp(address) => address.port(),
        BoundAddress::Unix(path) => panic!("{path:?}"),
    }
}

/// A connection that trusts this authority and shows this certificate.
async fn connect(
    port: u16,
    authority: &Authority,
    own: Option<&(String, String)>,
) -> Result<Channel, tonic::transport::Error> {
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&authority.pem));
    if let Some((certificate, key)) = own {
        tls = tls.identity(Identity::from_pem(certificate, key));
    }
    let endpoint = Endpoint::from_shared(format!("https://localhost:{port}")).unwrap();
    within(PATIENCE, "a connection", endpoint.tls_config(tls).unwrap().connect()).await
}

#[tokio::test]
async fn a_client_certificate_lets_in_and_all_others_are_refused_and_may_ask_for_the_health() {
    let (place, socket) = (Place::new(), short_directory());
    let [servers, clients, foreign] = [(); 3].map(|()| Authority::new());
    let [cert, key] = pair(place.path(), "server", &servers.server());
    let ca = write(&place.path().join("ca.pem"), &clients.pem);
    let tokens = write(&place.path().join("tokens"), TOKEN);
    let tls = TlsFiles { cert: Some(cert), key: Some(key), client_ca: Some(ca.clone()) };
    let sidecar = secured(&socket, place, tls, |config| {
        config.client_names = Some(vec!["spiffe://example/build".to_owned()]);
        config.token_file = Some(tokens);
    })
    .await;
    let port = port(&sidecar);
    let build = clients.client("spiffe://example/build");
    let shown = async |own: &(String, String)| connect(port, &servers, Some(own)).await;

    let good = shown(&build).await.unwrap();
    asked(good.clone(), &[]).await.unwrap();
    asked(good.clone(), &[TOKEN]).await.unwrap();
    // All that a call shows has to be right.
    assert_unauthenticated(asked(good.clone(), &["a-token-that-is-not-known"]).await);
    for wrong in [
        foreign.client("spiffe://example/build"),
        clients.expired_client("spiffe://example/build"),
        clients.client("spiffe://example/other"),
    ] {
        let channel = shown(&wrong).await.unwrap();
        for tokens in [&[][..], &[TOKEN]] {
            assert_unauthenticated(asked(channel.clone(), tokens).await);
        }
    }
    let without = connect(port, &servers, None).await.unwrap();
    assert_unauthenticated(asked(without.clone(), &[]).await);
    assert_unauthenticated(asked(without.clone(), &[TOKEN]).await);
    HealthClient::new(without).check(HealthCheckRequest::default()).await.unwrap();
    // A Unix socket has no TLS, and its callers have tokens.
    turn(&sidecar, "c", TOKEN).await.unwrap();
    assert_unauthenticated(asked(sidecar.channel(), &[]).await);

    // A connection is as good as its authority, also where it was there before.
    write(&ca, &foreign.pem);
    eventually("the new authority", || async {
        asked(good.clone(), &[]).await.is_err().then_some(())
    })
    .await;
    asked(shown(&foreign.client("spiffe://example/build")).await.unwrap(), &[]).await.unwrap();
    sidecar.stop().await;
}

#[tokio::test]
async fn a_certificate_that_changes_is_used_when_its_key_fits_and_a_bad_one_never() {
    let (place, socket) = (Place::new(), short_directory());
    let [before, after] = [(); 2].map(|()| Authority::new());
    let directory = place.path().to_owned();
    let [cert, key] = pair(&directory, "server", &before.server());
    let tls = TlsFiles { cert: Some(cert.clone()), key: Some(key.clone()), ..TlsFiles::default() };
    let sidecar = secured(&socket, place, tls, |_| {}).await;
    let port = port(&sidecar);
    let stays = connect(port, &before, None).await.unwrap();

    let (new_cert, new_key) = after.server();
    write(&cert, &new_cert);
    // Longer than it takes to be noticed.
    tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
    asked(connect(port, &before, None).await.unwrap(), &[]).await.unwrap();
    write(&key, &new_key);
    let renewed =
        eventually("the new certificate", || async { connect(port, &after, None).await.ok() })
            .await;
    asked(renewed, &[]).await.unwrap();
    asked(stays.clone(), &[]).await.unwrap();
    connect(port, &before, None).await.unwrap_err();

    let fitting = [after.expired_client("spiffe://example/x"), after.client("spiffe://example/x")];
    let cut = ("-----BEGIN CERTIFICATE-----\nAAAA\n".to_owned(), new_key);
    for bad in fitting.into_iter().chain([cut]) {
        pair(&directory, "server", &bad);
        tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
        asked(connect(port, &after, None).await.unwrap(), &[]).await.unwrap();
    }
    sidecar.stop().await;
}

#[tokio::test]
async fn who_speaks_the_wrong_language_is_told_which_is_spoken() {
    let (place, socket) = (Place::new(), short_directory());
    let authority = Authority::new();
    let [cert, key] = pair(place.path(), "server", &authority.server());
    let ca = write(&place.path().join("ca.pem"), &authority.pem);
    let other = write(&place.path().join("other.pem"), &Authority::new().pem);
    let tls = TlsFiles { cert: Some(cert), key: Some(key), ..TlsFiles::default() };
    let sidecar = secured(&socket, place, tls, |_| {}).await;
    let plain = Sidecar::start().await;
    let (tls_port, plain_address) = (port(&sidecar), plain.addresses[0].to_string());
    let info = async |arguments: &[&str]| {
        let mut command = binary::command(&sidecar.place);
        let output = binary::output(command.arg("info").args(arguments)).await;
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let https = format!("https://localhost:{tls_port}");
    let ca = ca.to_str().unwrap();
    assert_eq!(info(&["--addr", &https, "--tls-ca", ca]).await.0, Some(0));
    // With an authority TLS is meant, whatever the address begins with.
    let bare = format!("127.0.0.1:{tls_port}");
    assert_eq!(info(&["--addr", &bare, "--tls-ca", ca]).await.0, Some(0));

    let (code, told) = info(&["--addr", &bare]).await;
    assert_eq!(code, Some(69), "{told}");
    assert!(told.contains("speaks TLS") && told.contains("--tls-ca"), "{told}");
    // Whatever is asked, and at once: nothing was begun that could be waited for.
    let asks: [&[&str]; 2] = [&["health"], &["run", "--context", "c", "Hello."]];
    for arguments in asks {
        let mut command = binary::command(&sidecar.place);
        let asking = binary::output(command.args(arguments).args(["--addr", &bare]));
        let output =
            tokio::time::timeout(std::time::Duration::from_secs(20), asking).await.unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(69), "{told}");
        assert!(told.contains("speaks TLS") && told.contains("can't reach"), "{told}");
    }
    let plain_https = format!("https://{plain_address}");
    let (code, told) = info(&["--addr", &plain_https, "--tls-ca", ca]).await;
    assert_eq!(code, Some(69), "{told}");
    assert!(told.contains("speaks no TLS") && told.contains("http://"), "{told}");
    let (code, told) = info(&["--addr", &https, "--tls-ca", other.to_str().unwrap()]).await;
    assert_eq!(code, Some(69), "{told}");
    assert!(told.contains("other.pem"), "{told}");
    let (code, told) = info(&["--addr", &https]).await;
    assert_eq!(code, Some(64), "{told}");
    assert!(told.contains("CODEX_SIDECAR_TLS_CA"), "{told}");
    sidecar.stop().await;
    plain.stop().await;
}
