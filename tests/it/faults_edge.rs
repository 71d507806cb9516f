//! Faults at the sidecar's edge: clients that crowd it, logs that nobody reads, signals that were meant
//! for somebody else.

use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;

use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::Child;
use tonic_health::pb::health_check_response::ServingStatus;

use crate::support;
use crate::support::binary::{self, Binary, through};
use crate::support::{
    Client, Place, eventually, processes, prompt, scripted, short_directory, within,
};

/// The preface and an empty SETTINGS frame of HTTP/2.
const HANDSHAKE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// A sidecar whose stderr nobody reads, and that has much to say.
async fn unread(place: &Place, address: &str) -> (Child, Client) {
    let mut command = binary::command(place);
    command
        .args(["serve", "--offline-model", "--log", "trace,h2=trace,hyper=trace"])
        .args(["--listen", address])
        .env("CODEX_PATH", scripted::fake_cli())
        .env("CODEX_SIDECAR_WORKERS", "1")
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let child = command.spawn().expect("the binary starts");
    let socket = address.strip_prefix("unix:").unwrap();
    eventually("the socket", async || tokio::net::UnixStream::connect(socket).await.ok()).await;
    let client = Client::connect(address, place.work()).await;
    client.ready().await;
    (child, client)
}

/// More log than a pipe and the queue hold.
async fn make_it_talk(client: &Client) {
    for _ in 0..400 {
        assert_eq!(client.health_of("").await.unwrap(), ServingStatus::Serving);
    }
}

/// Row 36.
#[tokio::test]
async fn nobody_reads_the_log_and_nothing_waits_for_that() {
    let (place, directory) = (Place::new(), short_directory());
    let address = format!("unix:{}", directory.path().join("s").display());
    let (mut child, client) = unread(&place, &address).await;
    make_it_talk(&client).await;
    client.say("a", "hello").await.completed();
    processes::signal(child.id().unwrap(), Signal::TERM);
    let status = within(support::PATIENCE, "the end", child.wait()).await.unwrap();
    assert_eq!(status.code(), Some(0), "{status}");
    processes::assert_none_left(&place.codex_home()).await;

    // Also not where it has to be ended at once.
    let (mut child, client) = unread(&place, &address).await;
    make_it_talk(&client).await;
    let mut turn = client.begin(prompt("a", "[[hang]]")).await;
    turn.started().await;
    processes::signal(child.id().unwrap(), Signal::TERM);
    eventually("the drain", async || {
        (client.info().await.drain_state() != codex_sidecar::pb::DrainState::Serving).then_some(())
    })
    .await;
    processes::signal(child.id().unwrap(), Signal::QUIT);
    let status = within(support::PATIENCE, "the end", child.wait()).await.unwrap();
    assert_eq!((status.code(), status.signal()), (Some(130), None));
    processes::assert_none_left(&place.codex_home()).await;
}

/// Row 36.
#[tokio::test]
async fn who_reads_the_log_again_is_told_how_much_was_dropped() {
    let (place, directory) = (Place::new(), short_directory());
    let address = format!("unix:{}", directory.path().join("s").display());
    let (mut child, client) = unread(&place, &address).await;
    make_it_talk(&client).await;
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let told = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            let line: serde_json::Value = serde_json::from_str(&line).expect(&line);
            let message = line["message"].as_str().unwrap_or_default();
            if message.starts_with("lines of the log were dropped") {
                return line;
            }
        }
        panic!("the log ended");
    };
    let told = within(support::PATIENCE, "the count of lines", told).await;
    assert!(told["dropped"].as_u64().unwrap() > 0 && told["level"] == "WARN", "{told}");
    drop(client);
    processes::signal(child.id().unwrap(), Signal::TERM);
    let rest = async { while lines.next_line().await.unwrap().is_some() {} };
    within(support::PATIENCE, "the end of the log", rest).await;
    assert_eq!(child.wait().await.unwrap().code(), Some(0));
    processes::assert_none_left(&place.codex_home()).await;
}

/// Row 37.
#[tokio::test]
async fn more_idle_connections_than_descriptors_keep_nobody_out() {
    let sidecar = Binary::with(|command| {
        command.env("CODEX_PATH", scripted::fake_cli());
        through(command, &["sh", "-c", "ulimit -n 64; exec \"$@\"", "sh"]);
    })
    .await;
    let mut watch = sidecar.health().watch(tonic_health::pb::HealthCheckRequest::default()).await;
    let mut idle = Vec::new();
    for number in 0..200 {
        // Half of them never shake hands.
        let mut socket = TcpStream::connect(&sidecar.address).await.unwrap();
        if number % 2 == 0 {
            // It may be closed by now.
            let _ = socket.write_all(HANDSHAKE).await;
        }
        idle.push(socket);
        if number % 20 == 0 {
            let fresh = Client::connect(&sidecar.address, sidecar.place.work()).await;
            assert_eq!(fresh.health_of("").await.unwrap(), ServingStatus::Serving);
        }
    }
    sidecar.say("a", "hello").await.completed();
    let watched = watch.as_mut().unwrap().get_mut().message().await.unwrap();
    assert_eq!(watched.unwrap().status(), ServingStatus::Serving);
    // What the sidecar starts gets no more descriptors than it would have without it.
    let worker = sidecar.workers().await.remove(0).pid;
    let limits = std::fs::read_to_string(format!("/proc/{worker}/limits")).unwrap();
    let limit = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(limit.split_whitespace().nth(3), Some("64"), "{limit}");
    sidecar.stop().await;
}

#[tokio::test]
async fn the_limit_of_open_files_is_raised_for_the_sidecar_and_not_for_its_workers() {
    let sidecar = Binary::with(|command| {
        command.env("CODEX_PATH", scripted::fake_cli());
        through(command, &["sh", "-c", "ulimit -S -n 100; ulimit -H -n 200; exec \"$@\"", "sh"]);
    })
    .await;
    let limit = |pid: u32| {
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
        let mut words =
            line.split_whitespace().skip(3).map(|word| word.parse::<u64>().unwrap_or(0));
        (words.next().unwrap(), words.next().unwrap())
    };
    assert_eq!(limit(sidecar.pid()), (200, 200));
    assert_eq!(limit(sidecar.workers().await.remove(0).pid), (100, 200));
    assert!(sidecar.log().contains("at most 100 connections instead of 1024"), "{}", sidecar.log());
    sidecar.stop().await;
}

#[tokio::test]
async fn signals_drain_reload_or_are_ignored_and_none_just_kills() {
    let scripted = |command: &mut tokio::process::Command| {
        command.env("CODEX_PATH", scripted::fake_cli());
    };
    for signal in [Signal::QUIT, Signal::INT] {
        let mut sidecar = Binary::with(scripted).await;
        for (signal, line) in [
            (Signal::USR1, "SIGUSR1 is ignored"),
            (Signal::USR2, "SIGUSR2 is ignored"),
            (Signal::ALARM, "SIGALRM is ignored"),
            (Signal::PIPE, "SIGPIPE is ignored"),
            (Signal::HUP, "read again: nothing"),
        ] {
            sidecar.signal(signal);
            eventually(line, async || sidecar.log().contains(line).then_some(())).await;
        }
        sidecar.say("a", "hello").await.completed();
        sidecar.signal(signal);
        let status = sidecar.exited(support::PATIENCE).await;
        assert_eq!(status.code(), Some(0), "{signal:?}: {status}: {}", sidecar.log());
        processes::assert_none_left(&sidecar.place.codex_home()).await;
    }
    // The end of the terminal is nothing to who was started to outlive it.
    let mut sidecar = Binary::with(|command| {
        scripted(command);
        through(command, &["nohup"]);
    })
    .await;
    sidecar.signal(Signal::HUP);
    sidecar.say("a", "hello").await.completed();
    sidecar.signal(Signal::TERM);
    let status = sidecar.exited(support::PATIENCE).await;
    assert_eq!(status.code(), Some(0), "{status}: {}", sidecar.log());
    assert!(!sidecar.log().contains("SIGHUP"), "{}", sidecar.log());
}

/// Row 37.
#[tokio::test]
async fn a_client_that_does_not_finish_its_handshake_is_let_go() {
    let place = Place::new();
    std::fs::write(place.path().join("sidecar.toml"), "[timeouts]\nhandshake = \"200ms\"\n")
        .unwrap();
    let config = place.path().join("sidecar.toml");
    let sidecar = Binary::cold(place, |command| {
        command.env("CODEX_PATH", scripted::fake_cli()).arg("--config").arg(config);
    })
    .await;
    let mut socket = TcpStream::connect(&sidecar.address).await.unwrap();
    socket.write_all(&HANDSHAKE[..20]).await.unwrap();
    let mut goodbye = Vec::new();
    // A reset is an end, too.
    let _ = within(support::PATIENCE, "the end", socket.read_to_end(&mut goodbye)).await;
    sidecar.stop().await;
}

#[tokio::test]
async fn a_sockets_file_is_its_owners_alone_and_goes_also_where_the_drain_cuts_connections() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = short_directory();
    let socket = directory.path().join("s");
    let address = format!("unix:{}", socket.display());
    let mut sidecar = Binary::with(|command| {
        command.env("CODEX_PATH", scripted::fake_cli()).args(["--listen", &address]);
    })
    .await;
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let client = Client::connect(&address, sidecar.place.work()).await;
    // A health watch has no end of its own.
    let request = tonic_health::pb::HealthCheckRequest::default();
    let mut watch = client.health().watch(request).await.unwrap().into_inner();
    assert!(watch.message().await.unwrap().is_some());
    sidecar.signal(Signal::TERM);
    let status = sidecar.exited(support::PATIENCE).await;
    assert_eq!(status.code(), Some(0), "{}", sidecar.log());
    assert!(!socket.exists());
}

#[tokio::test]
async fn what_other_machines_could_reach_has_to_be_asked_for_and_probes_need_not() {
    let place = Place::new();
    let mut command = binary::command(&place);
    command.args(["serve", "--offline-model", "--listen", "0.0.0.0:0"]);
    let refused = binary::output(&mut command).await;
    let told = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(64), "{told}");
    assert!(told.contains("0.0.0.0") && told.contains("--insecure-listen"), "{told}");
    assert!(processes::of_home(&place.codex_home()).is_empty());

    let sidecar = Binary::with(|command| {
        command
            .env("CODEX_PATH", scripted::fake_cli())
            .args(["--listen", "0.0.0.0:0", "--insecure-listen"])
            .args(["--listen", "[::ffff:127.0.0.1]:0", "--health-listen", "0.0.0.0:0"]);
    })
    .await;
    sidecar.stop().await;
    let sidecar = Binary::with(|command| {
        command.env("CODEX_PATH", scripted::fake_cli()).args(["--health-listen", "0.0.0.0:0"]);
    })
    .await;
    sidecar.stop().await;
}

#[tokio::test]
async fn a_sidecar_that_is_told_to_start_itself_says_so() {
    let place = Place::new();
    let own = env!("CARGO_BIN_EXE_codex-sidecar");
    let (link, copy) = (place.path().join("codex"), place.path().join("copied"));
    std::os::unix::fs::symlink(own, &link).unwrap();
    std::fs::copy(own, &copy).unwrap();
    let mut sidecar = Binary::cold(place, |command| {
        command.env("CODEX_PATH", &link);
    })
    .await;
    for path in [&link, &copy] {
        let info = eventually("the reason", async || {
            let info = sidecar.info().await;
            (info.not_ready_reason != "STARTING").then_some(info)
        })
        .await;
        let told = info.not_ready_message;
        assert!(told.contains(path.to_str().unwrap()), "{told}");
        assert!(told.contains("codex-sidecar itself"), "{told}");
        let place = sidecar.stop().await;
        sidecar = Binary::cold(place, |command| {
            command.env("CODEX_PATH", &copy);
        })
        .await;
    }
    sidecar.stop().await;
}
