//! Real clients and raw sockets against a health service: who stays, who goes.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tonic::service::Routes;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::*;
use crate::grpc::limits::ConnectionLimits;

/// The preface and an empty SETTINGS frame.
const HANDSHAKE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

async fn health_service(limits: ConnectionLimits) -> (std::net::SocketAddr, Connections) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Connections::new(limits);
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_service_status("", tonic_health::ServingStatus::Serving).await;
    let entry = Entry { doors: Doors::open(Routes::new(health)), tls: None };
    let shared = connections.clone();
    tokio::spawn(async move {
        let descent = Descent::of_strangers();
        serve(Listener::Tcp(listener), entry, shared, descent, CancellationToken::new()).await
    });
    (address, connections)
}

async fn client(address: std::net::SocketAddr) -> HealthClient<tonic::transport::Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    HealthClient::new(endpoint.connect().await.unwrap())
}

async fn is_served(client: &mut HealthClient<tonic::transport::Channel>) {
    let response = client.check(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(response.status(), ServingStatus::Serving);
}

async fn raw(address: std::net::SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(bytes).await.unwrap();
    socket
}

/// Reads until the other side has closed it.
async fn is_closed(mut socket: TcpStream) {
    let closed = timeout(Duration::from_secs(20), socket.read_to_end(&mut Vec::new())).await;
    // A reset is an end, too.
    let _ = closed.expect("it stays open");
}

/// Until so many are open and count.
async fn are_open(connections: &Connections, count: usize) {
    let open = async {
        loop {
            if connections.count() == count {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(20), open).await.unwrap();
}

#[tokio::test]
async fn a_client_that_does_not_shake_hands_in_time_is_closed_wherever_it_stops() {
    let handshake_timeout = Duration::from_millis(100);
    let limits = ConnectionLimits { handshake_timeout, ..Default::default() };
    let (address, connections) = health_service(limits).await;
    let stays = raw(address, HANDSHAKE).await;
    let mut served = client(address).await;
    // Nothing, half a preface, no SETTINGS, half of their header, none of their six bytes.
    let without_settings = [&HANDSHAKE[..24], b"\0\0\x06\x04\0\0\0\0\0"].concat();
    for start in [&HANDSHAKE[..0], &HANDSHAKE[..9], &HANDSHAKE[..24], &HANDSHAKE[..30]] {
        is_closed(raw(address, start).await).await;
    }
    is_closed(raw(address, &without_settings).await).await;
    is_served(&mut served).await;
    are_open(&connections, 2).await;
    drop(stays);
}

#[tokio::test]
async fn a_new_connection_takes_the_room_of_the_one_that_was_idle_for_longest() {
    let limits = ConnectionLimits { max_connections: 3, ..Default::default() };
    let (address, connections) = health_service(limits).await;
    let mut watching = client(address).await;
    let watch = watching.watch(HealthCheckRequest::default()).await.unwrap();
    let first = raw(address, HANDSHAKE).await;
    are_open(&connections, 2).await;
    let mut second = client(address).await;
    is_served(&mut second).await;
    are_open(&connections, 3).await;
    // It has answered nothing so far, and answers no goodbye.
    is_served(&mut client(address).await).await;
    is_closed(first).await;
    // A flood of such does not keep anybody out either, and ends no call.
    let mut flood = Vec::new();
    for _ in 0..20 {
        flood.push(raw(address, HANDSHAKE).await);
        is_served(&mut client(address).await).await;
    }
    is_served(&mut second).await;
    let mut watch = watch.into_inner();
    assert!(watch.message().await.unwrap().is_some());
    is_served(&mut watching).await;
    assert!(connections.count() <= 3, "{connections:?}");
}

#[tokio::test]
async fn where_all_connections_have_calls_open_a_new_one_is_closed() {
    let limits = ConnectionLimits { max_connections: 2, ..Default::default() };
    let (address, connections) = health_service(limits).await;
    let mut watches = Vec::new();
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = client(address).await;
        watches.push(client.watch(HealthCheckRequest::default()).await.unwrap());
        clients.push(client);
    }
    is_closed(raw(address, HANDSHAKE).await).await;
    for client in &mut clients {
        is_served(client).await;
    }
    watches.pop();
    clients.pop();
    are_open(&connections, 1).await;
    is_served(&mut client(address).await).await;
}

/// A call of `Watch` of the health service, which never ends.
fn watch() -> Vec<u8> {
    let mut headers = b"\x83\x86\x04\x1c/grpc.health.v1.Health/Watch".to_vec();
    headers.extend(b"\x01\x01a\x0f\x10\x10application/grpc\0\x02te\x08trailers");
    let mut call = frame(1, 4, &headers);
    call.extend(frame(0, 1, &[0; 5]));
    call
}

fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &1_u32.to_be_bytes(), payload].concat()
}

#[tokio::test]
async fn connections_whose_calls_only_wait_make_room_and_those_with_others_never_do() {
    let limits = ConnectionLimits { max_connections: 3, ..Default::default() };
    let (address, connections) = health_service(limits).await;
    let mut clients = [client(address).await, client(address).await];
    let mut watches = Vec::new();
    for client in &mut clients {
        let mut watch = client.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
        assert!(watch.message().await.unwrap().is_some());
        watches.push(watch);
    }
    // A call of another kind, whose request does not end.
    let mut check = watch();
    check.truncate(check.len() - (9 + 5));
    let at = check.windows(5).position(|part| part == b"Watch").unwrap();
    check[at..at + 5].copy_from_slice(b"Check");
    let busy = raw(address, &[HANDSHAKE, &check].concat()).await;
    let all_are_busy = async {
        while connections.with_one_call() < 3 {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(20), all_are_busy).await.unwrap();
    is_closed(raw(address, HANDSHAKE).await).await;

    connections.age();
    is_served(&mut client(address).await).await;
    let [first, second] = watches.try_into().unwrap();
    let ended = async |mut watch: tonic::Streaming<_>| {
        watch.message().await.is_ok_and(|message| message.is_some())
    };
    tokio::select! {
        _ = ended(first) => {}
        _ = ended(second) => {}
        () = tokio::time::sleep(Duration::from_secs(20)) => panic!("no watch has ended"),
    }
    // The other one goes as well, and then nobody does.
    let mut more = Vec::new();
    for _ in 0..2 {
        let mut client = client(address).await;
        more.push((client.watch(HealthCheckRequest::default()).await.unwrap(), client));
    }
    are_open(&connections, 3).await;
    is_closed(raw(address, HANDSHAKE).await).await;
    assert_eq!(connections.with_more_than_waits(), 1);
    drop(busy);
}

#[tokio::test]
async fn connections_that_begin_a_call_when_they_are_told_to_leave_count_on() {
    let limits = ConnectionLimits { max_connections: 4, ..Default::default() };
    let (address, connections) = health_service(limits).await;
    let mut stay = Vec::new();
    for _ in 0..40 {
        let mut comes = TcpStream::connect(address).await.unwrap();
        // It may be refused.
        let _ = comes.write_all(HANDSHAKE).await;
        stay.push(comes);
        tokio::task::yield_now().await;
        // Whoever was told to leave begins a call, and so stays.
        let leaving = async {
            let mut leaves = Vec::new();
            for socket in &mut stay {
                let mut read = [0; 4096];
                let read = match socket.try_read(&mut read) {
                    Ok(0) => continue,
                    Ok(bytes) => &read[..bytes],
                    Err(_) => continue,
                };
                // GOAWAY
                if read.windows(5).any(|part| part == [0, 0, 8, 7, 0]) {
                    leaves.push(socket);
                }
            }
            for socket in leaves {
                let _ = socket.write_all(&watch()).await;
            }
        };
        tokio::time::sleep(Duration::from_millis(5)).await;
        leaving.await;
    }
    tokio::time::sleep(LEAVE_GRACE * 2).await;
    let open = connections.open();
    assert!(open <= 8, "{open} connections of 4 are open");
}

#[tokio::test]
async fn of_those_that_do_not_shake_hands_the_first_makes_room_and_nobody_who_has_does() {
    let limits = ConnectionLimits { max_handshakes: 3, ..Default::default() };
    let (address, connections) = health_service(limits).await;
    let stays = raw(address, HANDSHAKE).await;
    let mut served = client(address).await;
    is_served(&mut served).await;
    let first = raw(address, &HANDSHAKE[..24]).await;
    are_open(&connections, 3).await;
    let mut silent = Vec::new();
    for count in [4, 5, 5] {
        silent.push(raw(address, b"").await);
        are_open(&connections, count).await;
    }
    is_closed(first).await;
    // However many there are.
    for _ in 0..50 {
        silent.push(raw(address, b"").await);
        is_served(&mut client(address).await).await;
        assert!(connections.shaking() <= 3, "{connections:?}");
    }
    is_served(&mut served).await;
    assert!(tokio::time::timeout(Duration::from_millis(50), is_closed(stays)).await.is_err());
}

#[tokio::test]
async fn who_floods_a_connection_loses_it_and_nobody_else_notices() {
    let (address, connections) = health_service(ConnectionLimits::default()).await;
    let mut served = client(address).await;
    let on_the_connection = |kind, payload: &[u8]| {
        let mut frame = frame(kind, 0, payload);
        frame[5..9].fill(0);
        frame
    };
    // Pings, settings, priorities, what nobody knows.
    for flood in [
        on_the_connection(6, &[7; 8]),
        on_the_connection(4, &[0, 4, 0, 0, 255, 255]),
        frame(2, 0, &[0, 0, 0, 0, 7]),
        on_the_connection(99, b"what"),
    ] {
        let mut socket = raw(address, HANDSHAKE).await;
        let (mut reader, mut writer) = socket.split();
        let flooding = async {
            // As much as it takes; it may be over in the middle.
            for _ in 0..200 {
                if writer.write_all(&flood.repeat(100)).await.is_err() {
                    break;
                }
            }
        };
        let reading = async {
            let mut bytes = [0; 4096];
            while reader.read(&mut bytes).await.is_ok_and(|read| read > 0) {}
        };
        let over = futures::future::join(flooding, reading);
        timeout(Duration::from_secs(20), over).await.expect("it is let in");
        is_served(&mut served).await;
        is_served(&mut client(address).await).await;
    }
    are_open(&connections, 1).await;
}

#[tokio::test]
async fn who_takes_nothing_of_what_it_is_sent_makes_room_and_who_reads_does_not() {
    let limits = ConnectionLimits { max_connections: 2, ..Default::default() };
    let (address, connections) = health_service(limits).await;
    // A whole call of Check, and no window for its answer.
    let mut check = watch();
    let at = check.windows(5).position(|part| part == b"Watch").unwrap();
    check[at..at + 5].copy_from_slice(b"Check");
    let no_window = [&HANDSHAKE[..24], b"\0\0\x06\x04\0\0\0\0\0\0\x04\0\0\0\0", &check].concat();
    let deaf = [raw(address, &no_window).await, raw(address, &no_window).await];
    let have_answers = async {
        while connections.unread() < 2 {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(20), have_answers).await.expect("they have no answers");
    // They may only be slow.
    is_closed(raw(address, HANDSHAKE).await).await;
    connections.age();
    is_served(&mut client(address).await).await;
    let [one, other] = deaf;
    tokio::select! {
        () = is_closed(one) => {}
        () = is_closed(other) => {}
    }
}

/// Whoever shows nothing may ask for the health, and must not keep out who shows something.
#[tokio::test]
async fn calls_of_nobody_take_no_place_from_who_has_a_credential() {
    use crate::access::{Access, AccessSettings, TokenHash};
    let token = "the-token-of-somebody";
    let settings =
        AccessSettings { own_token: Some(TokenHash::of(token.as_bytes())), ..Default::default() };
    let access = Arc::new(Access::new(settings).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections =
        Connections::new(ConnectionLimits { max_connections: 3, ..Default::default() });
    let (_, health) = tonic_health::server::health_reporter();
    let doors = Doors::new(access, Routes::new(health), std::collections::BTreeMap::new());
    let (entry, shared) = (Entry { doors, tls: None }, connections.clone());
    tokio::spawn(async move {
        let descent = Descent::of_strangers();
        serve(Listener::Tcp(listener), entry, shared, descent, CancellationToken::new()).await
    });
    // Checks of the health whose requests never come to their end.
    let mut check = watch();
    check.truncate(check.len() - (9 + 5));
    let at = check.windows(5).position(|part| part == b"Watch").unwrap();
    check[at..at + 5].copy_from_slice(b"Check");
    let mut nobodys = Vec::new();
    for _ in 0..3 {
        nobodys.push(raw(address, &[HANDSHAKE, &check].concat()).await);
    }
    let all_are_busy = async {
        while connections.with_one_call() < 3 {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(20), all_are_busy).await.unwrap();
    // However long they have carried nothing.
    connections.age();
    let mut comes = raw(address, HANDSHAKE).await;
    let mut answer = [0; 9];
    let answered = timeout(Duration::from_secs(5), comes.read_exact(&mut answer)).await;
    assert!(matches!(answered, Ok(Ok(_))), "who comes now is turned away: {answered:?}");
}
