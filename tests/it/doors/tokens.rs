//! Tokens, and users of Unix sockets: who is refused, before what, and what changes while it runs.

use std::path::Path;

use bytes::{Buf, BufMut};
use codex_sidecar::parts::config::ListenAddress;
use codex_sidecar::pb;
use rustix::process::Signal;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Request, Status};
use tonic_health::pb::health_check_response::ServingStatus;

use super::{TOKEN, asked, assert_unauthenticated, showing, turn, write};
use crate::support::binary::{self, Binary};
use crate::support::{
    PATIENCE, Place, Refused, Sidecar, eventually, processes, prompt, scripted, short_directory,
    within,
};

/// Messages as they are.
#[derive(Debug, Default)]
struct Bytes;

impl Codec for Bytes {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Bytes;
    type Decoder = Bytes;

    fn encoder(&mut self) -> Bytes {
        Bytes
    }

    fn decoder(&mut self) -> Bytes {
        Bytes
    }
}

impl Encoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining()).to_vec()))
    }
}

/// The paths of all calls of the contract, and of reflection.
fn paths() -> Vec<String> {
    let pool = prost_reflect::DescriptorPool::decode(pb::DESCRIPTORS).unwrap();
    let methods = pool.services().flat_map(|service| service.methods().collect::<Vec<_>>());
    let paths = methods.map(|it| format!("/{}/{}", it.parent_service().full_name(), it.name()));
    let reflection = ["v1", "v1alpha"]
        .map(|it| format!("/grpc.reflection.{it}.ServerReflection/ServerReflectionInfo"));
    paths.chain(reflection).chain(["/codex.sidecar.v1.CodexService/Nothing".to_owned()]).collect()
}

#[tokio::test]
async fn whoever_shows_no_token_is_refused_before_the_request_is_there() {
    let place = Place::new();
    let tokens = write(&place.path().join("tokens"), TOKEN);
    let sidecar = Sidecar::in_place(place, |_, config| config.token_file = Some(tokens)).await;
    let paths = paths();
    assert!(paths.len() > 20, "{paths:?}");
    for path in &paths {
        let mut grpc = tonic::client::Grpc::new(sidecar.channel());
        grpc.ready().await.unwrap();
        // Nothing comes, not even its end.
        let request = Request::new(tokio_stream::pending());
        let call = grpc.streaming(request, path.parse().unwrap(), Bytes);
        let answer = within(PATIENCE, path, call).await;
        assert_unauthenticated(answer.map(drop));
    }
    assert_eq!(sidecar.health_of("").await.unwrap(), ServingStatus::Serving);
    let wrong: [&[&str]; 4] =
        [&[], &["another-token-of-that-length"], &[TOKEN, TOKEN], &[&TOKEN[1..]]];
    for tokens in wrong {
        assert_unauthenticated(asked(sidecar.channel(), tokens).await);
        let request = sidecar.at_work(prompt("c", "Hello."));
        let refused = sidecar.codex().run_turn(showing(request, tokens)).await;
        assert_unauthenticated(refused.map(drop));
    }
    // Not even what is wrong with a request is told.
    let nonsense = showing(pb::RunTurnRequest::default(), &[]);
    assert_unauthenticated(sidecar.codex().run_turn(nonsense).await.map(drop));
    assert_eq!(sidecar.model.requests(), 0);

    asked(sidecar.channel(), &[TOKEN]).await.unwrap();
    turn(&sidecar, "c", TOKEN).await.unwrap();
    assert_eq!(sidecar.model.requests(), 1);
    sidecar.stop().await;
}

#[tokio::test]
async fn what_a_router_goes_by_is_what_the_request_says() {
    let sidecar = scripted::start().await;
    let sent = |context: &str, routed: &str| {
        let mut request = Request::new(sidecar.at_work(prompt(context, "Hello.")));
        request.metadata_mut().insert("x-codex-context", routed.parse().unwrap());
        request
    };
    let refused = sidecar.codex().run_turn(sent("one", "two")).await.map(drop).unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let refused = Refused::from(refused);
    assert_eq!(refused.fields.len(), 1, "{refused:?}");
    assert_eq!(refused.fields[0].0, "context_id", "{refused:?}");
    sidecar.codex().run_turn(sent("one", "one")).await.unwrap();
    let unary = pb::RunTurnUnaryRequest { request: Some(sent("one", "one").into_inner()) };
    let mut unary = Request::new(unary);
    unary.metadata_mut().insert("x-codex-context", "two".parse().unwrap());
    let refused = Refused::from(sidecar.codex().run_turn_unary(unary).await.unwrap_err());
    assert_eq!(refused.fields[0].0, "request.context_id", "{refused:?}");
    sidecar.stop().await;
}

#[tokio::test]
async fn a_unix_socket_lets_in_the_users_that_are_named_and_nobody_else() {
    let own = rustix::process::geteuid().as_raw();
    for (uid, is_let_in) in [(own, true), (own + 1, false)] {
        let socket = short_directory();
        let sidecar = scripted::with(|config| {
            config.listen = vec![ListenAddress::Unix(socket.path().join("s"))];
            config.unix_sockets.allow_uids = Some(vec![uid]);
        })
        .await;
        let answer = asked(sidecar.channel(), &[]).await;
        match is_let_in {
            true => answer.unwrap(),
            false => assert_unauthenticated(answer),
        }
        assert_eq!(sidecar.health_of("").await.unwrap(), ServingStatus::Serving);
        sidecar.stop().await;
    }
}

async fn is_logged(sidecar: &Binary, words: &str) {
    eventually(words, || async { sidecar.log().contains(words).then_some(()) }).await;
}

async fn opens(sidecar: &Binary, token: &str, expected: bool) {
    eventually("the other tokens", || async {
        let answer = asked(sidecar.channel(), &[token]).await;
        if !expected && let Err(status) = &answer {
            assert_eq!(status.code(), Code::Unauthenticated);
        }
        (answer.is_ok() == expected).then_some(())
    })
    .await;
}

#[tokio::test]
async fn tokens_change_while_it_runs_and_wrong_ones_leave_the_old_ones() {
    const NEXT: &str = "the-token-that-comes-after-it";
    let place = Place::new();
    // As Kubernetes mounts a secret.
    let root = place.path().join("secret");
    let put = |root: &Path, version: &str, text: &str| {
        std::fs::create_dir_all(root.join(version)).unwrap();
        write(&root.join(version).join("tokens"), text);
        let link = root.join(format!("{version}.link"));
        std::os::unix::fs::symlink(version, &link).unwrap();
        std::fs::rename(&link, root.join("data")).unwrap();
    };
    put(&root, "one", TOKEN);
    let tokens = root.join("tokens");
    std::os::unix::fs::symlink("data/tokens", &tokens).unwrap();
    let sidecar = Binary::cold(place, |command| {
        command.env("CODEX_PATH", scripted::fake_cli()).arg("--token-file").arg(&tokens);
        command.args(["--listen", "0.0.0.0:0"]);
    })
    .await;
    is_logged(&sidecar, "callers need a token").await;
    is_logged(&sidecar, "travel in clear").await;
    // The token stands in the file as it is.
    is_logged(&sidecar, "sha256:").await;
    opens(&sidecar, TOKEN, true).await;

    put(&root, "two", NEXT);
    opens(&sidecar, NEXT, true).await;
    opens(&sidecar, TOKEN, false).await;
    put(&root, "three", "too-short");
    is_logged(&sidecar, "line 1 has a token of fewer than 16").await;
    opens(&sidecar, NEXT, true).await;
    sidecar.signal(Signal::HUP);
    is_logged(&sidecar, "kept as before").await;
    put(&root, "four", TOKEN);
    opens(&sidecar, TOKEN, true).await;
    sidecar.signal(Signal::HUP);
    is_logged(&sidecar, "read again: 1 tokens of").await;
    is_logged(&sidecar, "kept as before: nothing").await;

    // A flood of refused calls is a line.
    let before = sidecar.log().matches("its token is not known").count();
    for _ in 0..200 {
        assert_unauthenticated(asked(sidecar.channel(), &["one-more-token-that-is-wrong"]).await);
    }
    let told = sidecar.log().matches("its token is not known").count() - before;
    assert!(told <= 2, "{told} lines: {}", sidecar.log());
    for secret in [TOKEN, NEXT, "one-more-token", "too-short"] {
        assert!(!sidecar.log().contains(secret), "{}", sidecar.log());
    }
    sidecar.stop().await;
}

#[tokio::test]
async fn what_cannot_be_a_credential_is_refused_at_the_start() {
    let place = Place::new();
    let authority = super::pki::Authority::new();
    let [cert, key] = super::pki::pair(place.path(), "one", &authority.server());
    let [_, other_key] = super::pki::pair(place.path(), "two", &authority.server());
    let file = |name: &str, text: &str| write(&place.path().join(name), text);
    let open = file("open", TOKEN);
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(&open, mode).unwrap();
    let short = file("short", "# ours\nshort-canary");
    let missing = place.path().join("missing");
    let directory = place.path().join("anybodys");
    std::fs::create_dir(&directory).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(&directory, mode).unwrap();
    let socket = format!("unix:{}", directory.join("s").display());
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let cases: &[(&[&str], &[&str])] = &[
        (&["--token-file", &text(&open)], &["0644", "chmod 0600"]),
        (&["--token-file", &text(&short)], &["line 2", "token new"]),
        (&["--token-file", &text(&missing)], &["missing", "can't be read"]),
        (&["--tls-cert", &text(&cert)], &["--tls-cert", "--tls-key"]),
        (&["--tls-key", &text(&key)], &["--tls-key", "--tls-cert"]),
        (&["--tls-client-ca", &text(&cert)], &["--tls-client-ca", "--tls-cert"]),
        (
            &["--tls-cert", &text(&cert), "--tls-key", &text(&other_key)],
            &["two.key", "does not fit"],
        ),
        (&["--tls-cert", &text(&cert), "--tls-key", &text(&short)], &["short", "private key"]),
        (&["--listen", &socket], &["anybodys", "chmod +t"]),
    ];
    for (arguments, words) in cases {
        let mut command = binary::command(&place);
        command.args(["serve", "--offline-model"]).args(*arguments);
        if arguments[0] != "--listen" {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        let output = binary::output(&mut command).await;
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {told}");
        assert!(words.iter().all(|word| told.contains(word)), "{words:?} in {told}");
        assert!(!told.contains("canary"), "{told}");
    }
    assert!(processes::of_home(&place.codex_home()).is_empty());
}

#[tokio::test]
async fn a_sidecar_without_a_credential_says_who_can_call_it() {
    let socket = short_directory();
    let unix = format!("unix:{}", socket.path().join("s").display());
    let sidecar = Binary::cold(Place::new(), |command| {
        command.env("CODEX_PATH", scripted::fake_cli()).args(["--listen", &unix]);
    })
    .await;
    is_logged(&sidecar, "no credential is set").await;
    let log = sidecar.log();
    let line = log.lines().find(|line| line.contains("no credential is set")).unwrap();
    assert!(line.contains(&sidecar.address) && line.contains(&unix), "{line}");
    assert!(line.contains("--token-file") && line.contains("its descent can't be seen"), "{line}");
    sidecar.stop().await;
}
