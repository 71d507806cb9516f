//! Row 42: what a turn runs can't turn round and call the sidecar, from wherever it dials, while others are
//! served.

use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use codex_sidecar::parts::app::BoundAddress;
use codex_sidecar::parts::config::ListenAddress;
use codex_sidecar::pb;
use tonic::Code;

use crate::support::binary::{Binary, through};
use crate::support::{Client, Place, Sidecar, eventually, prompt, unsandboxed, with_options};

/// What dials: the sidecar's own client. 0 says that it was served.
const CLIENT: &str = env!("CARGO_BIN_EXE_codex-sidecar");

/// An address of this machine that other machines see, if it has one. Nothing is sent.
fn outer_address() -> Option<String> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip().to_string())
}

fn tcp(host: &str) -> ListenAddress {
    ListenAddress::Tcp { host: host.to_owned(), port: 0 }
}

/// A script that dials each address and writes a line for each: the address, the exit status, the words.
fn dials(addresses: &[String], command: &str, into: &Path) -> String {
    let addresses = addresses.join(" ");
    let into = into.display();
    format!(
        "for a in {addresses}; do said=$({CLIENT} {command} --addr $a 2>&1); \
         echo \"$a $? $said\" | tr '\\n' ' ' >>{into}.part; echo >>{into}.part; done; mv {into}.part {into}"
    )
}

async fn assert_each_was_refused(addresses: &[String], told: &Path) {
    let text = eventually("what the command was told", async || std::fs::read_to_string(told).ok());
    let text = text.await;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), addresses.len(), "{text}");
    for (line, address) in lines.iter().zip(addresses) {
        let (dialled, said) = line.split_once(' ').unwrap();
        assert_eq!(dialled, address);
        assert!(!said.starts_with("0 "), "it was served: {line}");
        assert!(said.contains("what turns run can't call the sidecar"), "{line}");
    }
}

async fn is_served(command: &str, address: &str) {
    let mut client = tokio::process::Command::new(CLIENT);
    client.args([command, "--addr", address]).env_remove("CODEX_SIDECAR_ADDR");
    let output = crate::support::binary::output(client.stdin(Stdio::null())).await;
    assert!(output.status.success(), "{address}: {output:?}");
}

#[tokio::test]
async fn a_command_is_refused_by_every_listener_however_it_dials_and_others_are_served() {
    let place = Place::new();
    let socket = place.path().join("s");
    let sidecar = Sidecar::in_place(place, |place, config| {
        config.listen = vec![tcp("127.0.0.1"), ListenAddress::Unix(place.path().join("s"))];
        config.listen.push(tcp("0.0.0.0"));
        // Where there is IPv6, its sockets take IPv4 as well.
        if std::net::TcpListener::bind("[::]:0").is_ok() {
            config.listen.push(tcp("::"));
        }
        config.insecure_listen = true;
        config.health_listen = Some(vec![tcp("127.0.0.1")]);
    })
    .await;
    let mut addresses = Vec::new();
    for address in &sidecar.addresses {
        match address {
            BoundAddress::Tcp(bound) if bound.ip().is_unspecified() => {
                let port = bound.port();
                let own = outer_address().filter(|_| bound.is_ipv4());
                addresses.extend(own.map(|own| format!("{own}:{port}")));
                addresses.push(format!("127.0.0.1:{port}"));
                addresses.extend(bound.is_ipv6().then(|| format!("[::1]:{port}")));
            }
            other => addresses.push(other.to_string()),
        }
    }
    assert!(addresses.contains(&format!("unix:{}", socket.display())), "{addresses:?}");
    let work = sidecar.place.work();
    let here = |name: &str| work.join(name);
    let unshare = |flags: &str| {
        let tried = std::process::Command::new("unshare").args([flags, "true"]).output();
        tried.is_ok_and(|tried| tried.status.success())
    };

    let script = here("dial.sh");
    let dial = |into: &str| dials(&addresses, "info", &here(into));
    std::fs::write(&script, dial("told-$1")).unwrap();
    let script = script.display();
    let mut ways = vec![
        ("plain", format!("sh {script} plain")),
        ("session", format!("setsid -w sh {script} session")),
        // Not of its turn any more, by all that it shows.
        ("daemon", format!("(env -i PATH=\"$PATH\" setsid -f sh {script} daemon)")),
    ];
    for (name, flags) in [("pids", "-pf"), ("users", "-Urpf")] {
        if unshare(flags) {
            ways.push((name, format!("unshare {flags} sh {script} {name}")));
        } else {
            eprintln!("not tried, not permitted here: unshare {flags}");
        }
    }
    for (name, command) in &ways {
        let told = sidecar.run(unsandboxed(name, &format!("[[run {command}]] [[say done]]"))).await;
        assert_eq!(told.final_response(), "done");
        assert_each_was_refused(&addresses, &here(&format!("told-{name}"))).await;
        for address in &addresses {
            is_served("info", address).await;
        }
    }
    // In the sandbox, with the network.
    let request = prompt("sandboxed", &format!("[[run sh {script} sandboxed]] [[say done]]"));
    let request = with_options(request, |options| {
        options.set_sandbox_mode(pb::SandboxMode::WorkspaceWrite);
        options.network_access_enabled = Some(true);
    });
    sidecar.run(request).await.completed();
    if here("told-sandboxed").exists() {
        assert_each_was_refused(&addresses, &here("told-sandboxed")).await;
    } else {
        eprintln!("not tried, not permitted here: commands in a sandbox");
    }
    assert_eq!(sidecar.info().await.counts.unwrap().peers_unidentified, 0);
    sidecar.stop().await;
}

#[tokio::test]
async fn a_daemon_that_outlives_its_turn_is_refused_and_the_log_names_it() {
    let sidecar = Binary::with(|command| {
        command.args(["--health-listen", "127.0.0.1:0"]);
    })
    .await;
    let work = sidecar.place.work();
    let (go, told) = (work.join("go"), work.join("told"));
    let health = sidecar.log().lines().find_map(|line| {
        let (address, _) = line.split_once("listening on ")?.1.split_once(" for health probes")?;
        Some(address.to_owned())
    });
    let addresses = [sidecar.address.clone(), health.expect("the address for probes")];
    let dial = dials(&addresses, "health", &told);
    std::fs::write(work.join("dial.sh"), format!("until [ -e go ]; do sleep 0.05; done; {dial}"))
        .unwrap();
    let words =
        "[[run env -i PATH=\"$PATH\" setsid -f sh -c 'sh dial.sh &']] [[say left it behind]]";
    sidecar.run(unsandboxed("a", words)).await.completed();
    std::fs::write(go, "").unwrap();
    assert_each_was_refused(&addresses, &told).await;
    for address in &addresses {
        is_served("health", address).await;
    }
    let log = sidecar.log();
    let line = log.lines().find(|line| line.contains("was started by a turn"));
    let line = line.unwrap_or_else(|| panic!("{log}"));
    assert!(line.contains("codex-sidecar") && line.contains("\"pid\":"), "{line}");
    assert!(addresses.iter().any(|address| line.contains(address.as_str())), "{line}");
    sidecar.stop().await;
}

/// Sends a whole call that asks for a turn, and is gone before anybody looks.
const HIT_AND_RUN: &str = r#"
import socket, sys, struct
kind, address, body = sys.argv[1], sys.argv[2], bytes.fromhex(sys.argv[3])
if kind == "unix":
    s = socket.socket(socket.AF_UNIX); s.connect(address)
else:
    host, port = address.rsplit(":", 1)
    s = socket.create_connection((host, int(port)))
def frame(kind, flags, stream, payload):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload
def text(data):
    return bytes([len(data)]) + data
def header(name, value):
    return b"\0" + text(name) + text(value)
headers = b"".join(header(*it) for it in [
    (b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"localhost"),
    (b":path", b"/codex.sidecar.v1.CodexService/RunTurn"),
    (b"content-type", b"application/grpc"), (b"te", b"trailers")])
message = b"\0" + struct.pack(">I", len(body)) + body
s.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + frame(1, 4, 1, headers)
          + frame(0, 1, 1, message))
if kind == "reset":
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    s.close()
elif len(sys.argv) > 4:
    s.settimeout(60)
    while s.recv(4096): pass
"#;

#[tokio::test]
async fn a_call_whose_caller_has_gone_before_it_was_looked_at_runs_no_turn() {
    use prost::Message as _;
    let place = Place::new();
    let socket = place.path().join("s");
    let sidecar = Sidecar::in_place(place, |place, config| {
        config.listen.push(ListenAddress::Unix(place.path().join("s")));
    })
    .await;
    let script = sidecar.place.path().join("hit.py");
    std::fs::write(&script, HIT_AND_RUN).unwrap();
    let marks = sidecar.place.work();
    let call = |name: &str| {
        let mut request = unsandboxed(name, &format!("[[run touch {name}]] [[say done]]"));
        request.disconnect_policy = pb::DisconnectPolicy::Continue.into();
        request.thread_options.get_or_insert_default().working_directory =
            Some(marks.display().to_string());
        let body = request.encode_to_vec();
        body.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let script = script.display();
    let tcp = sidecar.addresses[0].to_string();
    for (kind, address) in
        [("tcp", tcp.clone()), ("reset", tcp), ("unix", socket.display().to_string())]
    {
        let line =
            format!("[[run python3 {script} {kind} {address} {}]] [[say done]]", call("evil"));
        for round in 0..5 {
            sidecar.run(unsandboxed(&format!("{kind}{round}"), &line)).await.completed();
        }
        if kind == "reset" {
            continue;
        }
        // The same from outside shows that the call is a good one.
        let name = format!("good-{kind}");
        let mut outside = tokio::process::Command::new("python3");
        outside.arg(script.to_string()).args([kind, &address, &call(&name), "stay"]);
        let mut outside = outside.kill_on_drop(true).spawn().unwrap();
        eventually("the turn of another caller", async || marks.join(&name).exists().then_some(()))
            .await;
        outside.kill().await.unwrap();
    }
    assert!(!marks.join("evil").exists());
    sidecar.context("evil").await.unwrap_err().assert(Code::NotFound, "CONTEXT_NOT_FOUND");
    sidecar.stop().await;
}

/// As the user `nobody`, whose sidecar can't see the files of all processes, and whose commands can hide
/// theirs.
#[tokio::test]
async fn under_a_normal_user_what_hides_is_refused_and_whoever_can_be_told_is_served() {
    const NOBODY: &[&str] =
        &["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--inh-caps=-all"];
    let tried = std::process::Command::new(NOBODY[0]).args(&NOBODY[1..]).arg("true").output();
    if !tried.is_ok_and(|tried| tried.status.success()) {
        eprintln!("not tried, not permitted here: another user");
        return;
    }
    let place = Place::new();
    for path in [place.path().to_owned(), place.codex_home(), place.work(), place.user_home()] {
        std::os::unix::fs::chown(&path, Some(65534), Some(65534)).unwrap();
    }
    let readable = |path: &Path| {
        let mut command = std::process::Command::new(NOBODY[0]);
        command
            .args(&NOBODY[1..])
            .arg("test")
            .arg("-x")
            .arg(path)
            .status()
            .is_ok_and(|it| it.success())
    };
    if !readable(Path::new(CLIENT)) || !readable(crate::support::codex_path()) {
        eprintln!("not tried: another user can't run what is tested");
        return;
    }
    let sidecar = Binary::cold(place, |command| {
        through(command, NOBODY);
        command.env("CODEX_API_KEY", "sk-canary-of-nobody");
    })
    .await;
    sidecar.ready().await;
    let work: PathBuf = sidecar.place.work();
    let client = sidecar.address.clone();
    let hides = "import ctypes,os,sys; ctypes.CDLL(None).prctl(4,0,0,0,0); import socket; \
                 h,p=sys.argv[1].rsplit(':',1); s=socket.create_connection((h,int(p))); \
                 s.sendall(b'PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n\\0\\0\\0\\x04\\0\\0\\0\\0\\0'); \
                 s.settimeout(30)\nwhile s.recv(4096): pass\nopen('told','w').write('closed')";
    std::fs::write(work.join("hides.py"), hides).unwrap();
    let words = format!("[[run python3 hides.py {client}]] [[say done]]");
    let told = sidecar.run(unsandboxed("a", &words)).await;
    assert_eq!(told.final_response(), "done");
    assert_eq!(std::fs::read_to_string(work.join("told")).unwrap(), "closed", "{}", sidecar.log());
    assert!(sidecar.log().contains("hides its files"), "{}", sidecar.log());
    // Root's process, whose files it can't see, and one of its own.
    is_served("info", &client).await;
    let mut own = tokio::process::Command::new(CLIENT);
    own.args(["info", "--addr", &client]);
    through(&mut own, NOBODY);
    assert!(own.status().await.unwrap().success());
    assert_eq!(sidecar.info().await.counts.unwrap().peers_unidentified, 0, "{}", sidecar.log());
    sidecar.stop().await;
}

#[tokio::test]
async fn where_it_must_be_known_who_calls_those_who_are_known_are_served() {
    let place = Place::new();
    let config = place.path().join("sidecar.toml");
    std::fs::write(&config, "[policy]\nidentify_peers = \"required\"\n").unwrap();
    let sidecar = Binary::cold(place, |command| {
        command.arg("--config").arg(&config);
    })
    .await;
    sidecar.ready().await;
    sidecar.say("a", "hello").await.completed();
    is_served("info", &sidecar.address).await;
    // Fifty at once cost a few searches, and each is served.
    let work = sidecar.place.work();
    let clients = (0..50).map(|_| Client::connect(&sidecar.address, work.clone()));
    for client in futures::future::join_all(clients).await {
        client.info().await;
    }
    let refused = sidecar.refused(prompt("", "nothing")).await;
    refused.assert(Code::InvalidArgument, "INVALID_INPUT");
    sidecar.stop().await;
}

/// Connects, and keeps the socket from whoever looks for it until that is over; then calls. Writes whether it
/// was served.
const HIDES: &str = r#"
import array, ctypes, os, socket, struct, sys, time
way, address, into = sys.argv[1:4]
host, port = address.rsplit(":", 1)
def dial():
    return socket.create_connection((host, int(port)))
def give(through, sock):
    through.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [sock.fileno()]))])
    sock.close()
def take(through):
    _, told, _, _ = through.recvmsg(1, socket.CMSG_SPACE(4))
    return socket.socket(fileno=array.array("i", told[0][2])[0])
def frame(kind, flags, stream, payload):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload
def header(name, value):
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value
headers = b"".join(header(*it) for it in [
    (b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"localhost"),
    (b":path", b"/codex.sidecar.v1.PoolService/GetServerInfo"),
    (b"content-type", b"application/grpc"), (b"te", b"trailers")])
CALL = (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + frame(1, 4, 1, headers)
        + frame(0, 1, 1, b"\0\0\0\0\0"))
def is_served(got):
    while len(got) >= 9:
        length, kind, stream = int.from_bytes(got[:3], "big"), got[3], int.from_bytes(got[5:9], "big")
        if kind == 0 and stream == 1: return True
        got = got[9 + length:]
    return False
def call(sock):
    got = b""
    try:
        sock.settimeout(60); sock.sendall(CALL)
        while not is_served(got):
            new = sock.recv(65536)
            if not new: break
            got += new
    except OSError as error:
        print(error)
    with open(into + ".part", "w") as told: told.write("served" if is_served(got) else "refused")
    os.rename(into + ".part", into)
one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
# What looks has a pause behind this.
first = dial(); time.sleep(0.02)
if way in ("flight", "another-user"):
    sock = socket.socket()
    if way == "another-user":
        try: os.fchown(sock.fileno(), 54321, 54321)
        except OSError as error: print(error)
    sock.connect((host, int(port)))
    give(one, sock); time.sleep(1); call(take(other))
elif way == "moved":
    if os.fork() == 0:
        sock = take(other); time.sleep(0.3); call(sock); os._exit(0)
    time.sleep(0.05); give(one, dial()); os.wait()
else:
    try:
        for _ in range(5000): os.dup(0)
    except OSError as error: print(error)
    ready, readies = os.pipe()
    children = []
    for _ in range(30):
        child = os.fork()
        if child == 0: os.write(readies, b"x"); time.sleep(600); os._exit(0)
        children.append(child); os.read(ready, 1)
    if os.fork() == 0:
        os.closerange(readies + 1, 100000); os.closerange(8, ready); call(dial()); os._exit(0)
    os.wait()
    for child in children: os.kill(child, 9)
"#;

#[tokio::test]
async fn a_command_that_hides_its_socket_while_it_is_looked_for_is_not_served() {
    let sidecar = Sidecar::start().await;
    let script = sidecar.place.path().join("hides.py");
    std::fs::write(&script, HIDES).unwrap();
    let address = sidecar.addresses[0].to_string();
    let script = script.display();
    for way in ["flight", "another-user", "moved", "behind-many"] {
        for is_sandboxed in [false, true] {
            let into = sidecar.place.work().join(format!("{way}-{is_sandboxed}"));
            let words =
                format!("[[run python3 {script} {way} {address} {}]] [[say done]]", into.display());
            let request = unsandboxed(&format!("{way}-{is_sandboxed}"), &words);
            let request = with_options(request, |options| {
                if is_sandboxed {
                    options.set_sandbox_mode(pb::SandboxMode::WorkspaceWrite);
                    options.network_access_enabled = Some(true);
                }
            });
            sidecar.run(request).await.completed();
            match std::fs::read_to_string(&into) {
                Ok(told) => assert_eq!(told, "refused", "{way}, sandboxed: {is_sandboxed}"),
                Err(_) if is_sandboxed => eprintln!("not tried, not permitted here: {way}"),
                Err(error) => panic!("{way}: {error}"),
            }
        }
    }
    assert_eq!(sidecar.info().await.counts.unwrap().peers_unidentified, 0);
    sidecar.stop().await;
}
