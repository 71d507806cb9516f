//! The connections of clients: how many there are, who makes room for whom, how each one ends.
//!
//! Never looks into a call, which is the services' matter. A connection begins with its handshake,
//! which has a clock; it is idle while no call is open on it. It ends when its client closes it or
//! answers no ping, when it has been idle for longest and another one needs its room, or with its
//! listener. In each case calls that are open go on to their end, but for those that only wait for
//! something to be told (`Watch` of the health service, reflection): one that has nothing else, and
//! carries nothing, makes room where no idle one can.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustix::io::Errno;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::service::Routes;

use super::listen::{Listener, Socket};
use crate::grpc::arrivals::Arrivals;
use crate::grpc::call;
use crate::grpc::limits::ConnectionLimits;
use crate::model::id::{CallerId, CallerName};

/// How long a connection that is told to leave, and has no call, is there for one that is on its way.
const LEAVE_GRACE: Duration = Duration::from_millis(200);
/// How long nobody is accepted after the system had nothing to accept with.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// How long a connection with nothing but calls that wait has carried nothing when it makes room.
const QUIET: Duration = Duration::from_secs(10);
/// How often the same trouble is logged at most.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Serves whoever connects until `close` is cancelled and the connections have ended. Dropping it cuts
/// them.
///
/// # Errors
/// What the system says where the listener is of no use any more.
pub(super) async fn serve(
    listener: Listener,
    routes: Routes,
    connections: Connections,
    close: CancellationToken,
) -> io::Result<()> {
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = close.cancelled() => break,
            Some(_) = open.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((socket, name)) => {
                    // Else it is closed here and now.
                    if let Some(connection) = connections.admit(&close) {
                        open.spawn(hold(socket, name, connection, routes.clone()));
                    }
                }
                Err(error) => match Errno::from_io_error(&error) {
                    // That client is gone already.
                    Some(Errno::CONNABORTED | Errno::CONNRESET | Errno::INTR) => {}
                    Some(Errno::BADF | Errno::INVAL | Errno::NOTSOCK | Errno::OPNOTSUPP) => {
                        return Err(error);
                    }
                    // Most often no descriptor is free. The client waits in the listener's queue:
                    // to ask for it again at once would be a spin.
                    _ => {
                        connections.short_of_descriptors(&error);
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
    }
    // Who comes now is told at once that nobody is here.
    drop(listener);
    while open.join_next().await.is_some() {}
    Ok(())
}

async fn hold(socket: Socket, name: CallerName, connection: Connection, routes: Routes) {
    let shared = Arc::clone(&connection.connections.0);
    let limits = &shared.limits;
    let close = connection.close.clone();
    let shaken = CancellationToken::new();
    let socket = Handshake { socket, seen: 0, settings: 0, shaken: shaken.clone() };
    let connection = Arc::new(connection);
    let calls = Calls { connection: Arc::clone(&connection), name, routes };
    let mut http = http2::Builder::new(TokioExecutor::new());
    http.timer(TokioTimer::new())
        // Neither is bounded by default: a client could open streams, or reset them, without end.
        .max_concurrent_streams(limits.max_streams_per_connection)
        .max_pending_accept_reset_streams(64)
        // What a stream holds for a client that does not read; by default six times that.
        .max_send_buf_size(64 << 10)
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(20));
    let mut http = pin!(http.serve_connection(TokioIo::new(socket), calls));

    let told_to_leave = async {
        tokio::select! {
            // Without a handshake there is nobody to say goodbye to.
            () = close.cancelled() => shaken.is_cancelled(),
            in_time = timeout(limits.handshake_timeout, shaken.cancelled()) => {
                if in_time.is_ok() {
                    close.cancelled().await;
                }
                in_time.is_ok()
            }
        }
    };
    tokio::select! {
        ended = http.as_mut() => {
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection broke");
            }
            return;
        }
        told = told_to_leave => if !told {
            tracing::debug!("a connection without a handshake is closed");
            return;
        }
    }
    http.as_mut().graceful_shutdown();
    // A client that doesn't read keeps its calls, and nothing else.
    while timeout(LEAVE_GRACE, http.as_mut()).await.is_err() && !connection.is_idle() {}
}

/// All connections of some listeners.
#[derive(Debug, Clone)]
pub(super) struct Connections(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limits: ConnectionLimits,
    state: Mutex<State>,
    /// What the requests of their calls hold.
    arrivals: Arc<Arrivals>,
}

#[derive(Debug, Default)]
struct State {
    open: HashMap<u64, Entry>,
    /// How many of them were told to leave and have no call: they count no more.
    leaving: usize,
    /// The others without a call, by the moment of that, counted.
    idle: BTreeMap<u64, u64>,
    moment: u64,
    told: HashMap<&'static str, Instant>,
}

#[derive(Debug)]
struct Entry {
    calls: usize,
    /// How many of them only wait for something to be told.
    waiting: usize,
    /// When one of these last carried something.
    carried: Instant,
    /// Since which moment it has no call.
    idle_since: u64,
    is_leaving: bool,
    close: CancellationToken,
}

impl Connections {
    /// None yet, and never more than `limits` says.
    pub(super) fn new(limits: ConnectionLimits) -> Connections {
        let (state, arrivals) = (Mutex::default(), Arc::default());
        Connections(Arc::new(Shared { limits, state, arrivals }))
    }

    /// A new connection, for which another one may have to leave; `None` where all that are open
    /// have calls, and none is quiet.
    fn admit(&self, listener: &CancellationToken) -> Option<Connection> {
        // From 1: 0 stands for a caller whose connection is not known.
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let mut state = self.state();
        let most = self.0.limits.max_connections;
        if state.count() >= most {
            // More than one has to, where others have begun a call when they were told to.
            while state.count() >= most && state.dismiss() {}
            let makes_room = state.count() < most;
            if state.may_tell("full") {
                let done = if makes_room {
                    "the one that was idle or quiet for longest is closed"
                } else {
                    "all have calls open that carry something, and new ones are refused"
                };
                tracing::warn!("{most} connections are open (limits.max_connections): {done}");
            }
            if !makes_room {
                return None;
            }
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let close = listener.child_token();
        let idle_since = state.next_moment();
        state.idle.insert(idle_since, number);
        let entry = Entry {
            calls: 0,
            waiting: 0,
            carried: Instant::now(),
            idle_since,
            is_leaving: false,
            close: close.clone(),
        };
        state.open.insert(number, entry);
        drop(state);
        Some(Connection { caller: CallerId(number), connections: self.clone(), close })
    }

    fn short_of_descriptors(&self, error: &io::Error) {
        let mut state = self.state();
        state.dismiss();
        if state.may_tell("accept") {
            tracing::warn!(%error, "connections can't be accepted and have to wait");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics under it.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn count(&self) -> usize {
        self.open.len() - self.leaving
    }

    fn next_moment(&mut self) -> u64 {
        self.moment += 1;
        self.moment
    }

    /// Tells the connection that was idle for longest to leave, or else the one that was quiet for
    /// longest; false where there is none.
    fn dismiss(&mut self) -> bool {
        let idle = self.idle.pop_first().map(|(_, number)| number);
        let Some(number) = idle.or_else(|| self.quiet()) else { return false };
        if let Some(entry) = self.open.get_mut(&number) {
            entry.is_leaving = true;
            entry.close.cancel();
            self.leaving += 1;
        }
        true
    }

    /// The connection whose calls all wait, and which has carried nothing for longest.
    fn quiet(&self) -> Option<u64> {
        let quiet = self.open.iter().filter(|(_, entry)| {
            entry.only_waits() && !entry.is_leaving && entry.carried.elapsed() >= QUIET
        });
        quiet.min_by_key(|(_, entry)| entry.carried).map(|(number, _)| *number)
    }

    fn may_tell(&mut self, trouble: &'static str) -> bool {
        let now = Instant::now();
        let due = self.told.get(trouble).is_none_or(|told| now - *told >= TELL_EVERY);
        if due {
            self.told.insert(trouble, now);
        }
        due
    }
}

impl Entry {
    fn only_waits(&self) -> bool {
        self.calls == self.waiting
    }
}

/// One that is open; dropping it says that it is not.
#[derive(Debug)]
struct Connection {
    caller: CallerId,
    connections: Connections,
    close: CancellationToken,
}

impl Connection {
    fn is_idle(&self) -> bool {
        let state = self.connections.state();
        state.open.get(&self.caller.0).is_none_or(|entry| {
            // Where it makes room; with its listener those that wait are told of that first.
            entry.calls == 0 || entry.is_leaving && entry.only_waits()
        })
    }

    fn begin_call(self: &Arc<Self>, waits: bool) -> CallOnDrop {
        let mut state = self.connections.state();
        if let Some(entry) = state.open.get_mut(&self.caller.0) {
            entry.calls += 1;
            entry.waiting += usize::from(waits);
            entry.carried = Instant::now();
            // It stays as long as the call does, and counts again.
            let was_leaving = std::mem::take(&mut entry.is_leaving);
            let idle_since = entry.idle_since;
            state.idle.remove(&idle_since);
            state.leaving -= usize::from(was_leaving);
        }
        drop(state);
        CallOnDrop { connection: Arc::clone(self), waits }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut state = self.connections.state();
        if let Some(entry) = state.open.remove(&self.caller.0) {
            state.idle.remove(&entry.idle_since);
            state.leaving -= usize::from(entry.is_leaving);
        }
    }
}

/// A call that is open.
#[derive(Debug)]
struct CallOnDrop {
    connection: Arc<Connection>,
    /// It only waits for something to be told.
    waits: bool,
}

impl CallOnDrop {
    fn carried(&self) {
        if self.waits {
            let mut state = self.connection.connections.state();
            if let Some(entry) = state.open.get_mut(&self.connection.caller.0) {
                entry.carried = Instant::now();
            }
        }
    }
}

impl Drop for CallOnDrop {
    fn drop(&mut self) {
        let Connection { caller: CallerId(number), connections, .. } = &*self.connection;
        let mut state = connections.state();
        let moment = state.next_moment();
        let Some(entry) = state.open.get_mut(number) else { return };
        entry.calls -= 1;
        entry.waiting -= usize::from(self.waits);
        if entry.calls == 0 && !entry.is_leaving {
            entry.idle_since = moment;
            state.idle.insert(moment, *number);
        }
    }
}

/// The services for one connection.
#[derive(Debug)]
struct Calls {
    connection: Arc<Connection>,
    name: CallerName,
    routes: Routes,
}

impl hyper::service::Service<Request<Incoming>> for Calls {
    type Response = Response<Counted>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Counted>, Infallible>> + Send>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let path = request.uri().path();
        let waits = path == "/grpc.health.v1.Health/Watch" || path.starts_with("/grpc.reflection.");
        let open = self.connection.begin_call(waits);
        request.extensions_mut().insert(self.connection.caller);
        request.extensions_mut().insert(self.name.clone());
        let (shared, routes) = (Arc::clone(&self.connection.connections.0), self.routes.clone());
        Box::pin(async move {
            let patience = shared.limits.request_timeout;
            let response = call::answer(routes, request, patience, &shared.arrivals).await;
            Ok(response.map(|body| Counted { body, call: open }))
        })
    }
}

/// A response, whose call is open until all of it is sent.
#[derive(Debug)]
struct Counted {
    body: tonic::body::Body,
    call: CallOnDrop,
}

impl Body for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if frame.is_ready() {
            self.call.carried();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A socket that knows when the client's half of the HTTP/2 handshake is there: the preface and a
/// whole SETTINGS frame. h2 itself would wait for that without an end.
#[derive(Debug)]
struct Handshake {
    socket: Socket,
    /// Bytes read.
    seen: usize,
    /// Length of the SETTINGS, as far as it is read.
    settings: usize,
    shaken: CancellationToken,
}

impl Handshake {
    const PREFACE: usize = 24;
    const FRAME_HEADER: usize = 9;

    fn read(&mut self, bytes: &[u8]) {
        for (at, byte) in (self.seen..Handshake::PREFACE + 3).zip(bytes) {
            if at >= Handshake::PREFACE {
                self.settings = self.settings << 8 | usize::from(*byte);
            }
        }
        self.seen += bytes.len();
        if self.seen >= Handshake::PREFACE + Handshake::FRAME_HEADER + self.settings {
            self.shaken.cancel();
        }
    }
}

impl AsyncRead for Handshake {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.socket).poll_read(context, buffer);
        if read.is_ready() && !self.shaken.is_cancelled() {
            self.read(&buffer.filled()[before..]);
        }
        read
    }
}

impl AsyncWrite for Handshake {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(context, slices)
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
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tonic::transport::Endpoint;
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_check_response::ServingStatus;
    use tonic_health::pb::health_client::HealthClient;

    use super::*;

    /// The preface and an empty SETTINGS frame.
    const HANDSHAKE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

    async fn health_service(limits: ConnectionLimits) -> (std::net::SocketAddr, Connections) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Connections::new(limits);
        let (reporter, health) = tonic_health::server::health_reporter();
        reporter.set_service_status("", tonic_health::ServingStatus::Serving).await;
        let (routes, shared) = (Routes::new(health), connections.clone());
        tokio::spawn(async move {
            serve(Listener::Tcp(listener), routes, shared, CancellationToken::new()).await
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

    impl Connections {
        fn count(&self) -> usize {
            self.state().count()
        }
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

    impl Connections {
        /// Makes it so long ago that anything was carried.
        fn age(&self) {
            for entry in self.state().open.values_mut() {
                entry.carried -= QUIET;
            }
        }
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
            while connections.state().open.values().filter(|entry| entry.calls == 1).count() < 3 {
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
        let others = connections.state().open.values().filter(|entry| !entry.only_waits()).count();
        assert_eq!(others, 1);
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
        let open = connections.state().open.len();
        assert!(open <= 8, "{open} connections of 4 are open");
    }
}
