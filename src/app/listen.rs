//! The listeners: bound before anything is started, served until they are closed.
//!
//! A Unix socket's file is made with the rights that it is to have before anybody can connect, and
//! goes with its listener. Never removes a file that another process has made, and none that somebody
//! listens on.

use std::fs::{File, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fmt, io};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixSocket, UnixStream};
use tokio::time::Instant;
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;

use super::connections::{self, Connections, Entry};
use super::descent::Descent;
use super::{ServeError, StartError};
use crate::access::{Peer, User};
use crate::config::{Config, ListenAddress, UnixSockets};
use crate::model::id::CallerName;

/// How long an address that is in use is tried again, and how often.
const PATIENCE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(100);

/// An address that is listened on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BoundAddress {
    /// TCP, with the port that was really taken.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl BoundAddress {
    /// Whether other machines may reach it.
    pub(super) fn is_exposed(&self) -> bool {
        match self {
            BoundAddress::Tcp(address) => !address.ip().to_canonical().is_loopback(),
            BoundAddress::Unix(_) => false,
        }
    }
}

impl fmt::Display for BoundAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BoundAddress::Tcp(address) => write!(f, "{address}"),
            BoundAddress::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A socket that is listened on.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix {
        // Before the listener: a client that finds the file finds somebody.
        _file: SocketFile,
        listener: UnixListener,
    },
}

/// Who may be able to reach a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// Other machines, too: callers are asked for a credential, or there is nothing but health to ask for.
    Anybody,
    /// This machine alone.
    ThisMachine,
}

/// Binds all of them, or none.
pub(super) async fn bind_all(
    config: &Config,
    addresses: &[ListenAddress],
    reach: Reach,
) -> Result<Vec<(Listener, BoundAddress)>, StartError> {
    let mut listeners = Vec::new();
    for address in addresses {
        let bound = bind(address, &config.unix_sockets).await;
        let (listener, bound) =
            bound.map_err(|source| StartError::Listen { address: address.to_string(), source })?;
        if reach == Reach::ThisMachine && bound.is_exposed() {
            return Err(StartError::Exposed { address: bound.to_string() });
        }
        listeners.push((listener, bound));
    }
    Ok(listeners)
}

async fn bind(address: &ListenAddress, unix: &UnixSockets) -> io::Result<(Listener, BoundAddress)> {
    match address {
        ListenAddress::Tcp { host, port } => {
            let listener = bind_tcp(host, *port).await?;
            let bound = BoundAddress::Tcp(listener.local_addr()?);
            Ok((Listener::Tcp(listener), bound))
        }
        ListenAddress::Unix(path) => {
            Ok((bind_unix(path, unix).await?, BoundAddress::Unix(path.clone())))
        }
    }
}

/// Tries for a while: a port may be taken by an outgoing connection, or by a predecessor.
async fn bind_tcp(host: &str, port: u16) -> io::Result<TcpListener> {
    let until = Instant::now() + PATIENCE;
    loop {
        match TcpListener::bind((host, port)).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < until => {
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                let told = format!(
                    "{error}, for {} s now: another process listens there, or an outgoing \
                     connection has the port",
                    PATIENCE.as_secs()
                );
                return Err(io::Error::new(error.kind(), told));
            }
            bound => return bound,
        }
    }
}

async fn bind_unix(path: &Path, settings: &UnixSockets) -> io::Result<Listener> {
    let group = settings.group.as_deref().map(group_id).transpose();
    let group = group.map_err(|problem| {
        io::Error::new(io::ErrorKind::NotFound, format!("unix_group: {problem}"))
    })?;
    refuse_open_directory(path)?;
    let socket = UnixSocket::new_stream()?;
    // Of two who find the same leftover only one removes it, and none removes what the other one made.
    let lock = DirectoryLock::take(path).await;
    let nobody_listens = matches!(
        UnixStream::connect(path).await,
        // Any other error is no sign of that: whoever may not connect must not remove it either.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused
    );
    if nobody_listens && file_id(path).is_some_and(|(_, is_socket)| is_socket) {
        std::fs::remove_file(path)?;
    }
    socket.bind(path)?;
    let file = SocketFile::of(path)?;
    // Nobody can connect before it listens.
    if let Some(group) = group {
        std::os::unix::fs::chown(path, None, Some(group))?;
    }
    std::fs::set_permissions(path, Permissions::from_mode(settings.mode))?;
    let listener = socket.listen(1024)?;
    drop(lock);
    Ok(Listener::Unix { _file: file, listener })
}

/// Where anybody may remove files, anybody may put a socket of their own in the place of this one, and
/// have its callers' prompts.
fn refuse_open_directory(path: &Path) -> io::Result<()> {
    let Some(parent) = path.parent() else { return Ok(()) };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    // Those above it, too: in them it could be renamed.
    for directory in std::fs::canonicalize(parent)?.ancestors() {
        let mode = std::fs::metadata(directory)?.mode();
        if mode & 0o002 == 0 || mode & 0o1000 != 0 {
            continue;
        }
        let told = format!(
            "everybody may write to {} (mode {:04o}), and so replace the socket: chmod o-w or chmod +t \
             it, or choose a directory within it",
            directory.display(),
            mode & 0o7777
        );
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, told));
    }
    Ok(())
}

/// The id of a group by its name or its number.
///
/// # Errors
/// Why it can't be told, with the group.
pub(super) fn group_id(group: &str) -> Result<u32, String> {
    if let Ok(id) = group.parse() {
        return Ok(id);
    }
    let known = std::fs::read_to_string("/etc/group").map_err(|error| {
        format!("{group:?}: /etc/group can't be read: {error}; give its number")
    })?;
    // `name:password:id:members`
    let id = known.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(group)).then(|| fields.nth(1)?.parse().ok())?
    });
    id.ok_or_else(|| format!("{group:?}: /etc/group knows no such group; give its number"))
}

/// Which file a path leads to, and whether that is a socket.
fn file_id(path: &Path) -> Option<((u64, u64), bool)> {
    let metadata = std::fs::symlink_metadata(path).ok()?;
    Some(((metadata.dev(), metadata.ino()), metadata.file_type().is_socket()))
}

/// The file of a socket, removed with it, if it is still the same one.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    id: (u64, u64),
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<SocketFile> {
        let (id, _) = file_id(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(SocketFile { path: path.to_owned(), id })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Without the lock, too, where somebody keeps it for longer than a moment.
        let _lock = DirectoryLock::try_take(&self.path);
        if file_id(&self.path).is_some_and(|(id, _)| id == self.id) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// A lock on the directory of a socket, so that nobody binds or removes one meanwhile.
#[derive(Debug)]
struct DirectoryLock {
    _directory: File,
}

impl DirectoryLock {
    /// Waits for it for a while. `None` where that was too long, or where the directory can't be read.
    async fn take(path: &Path) -> Option<DirectoryLock> {
        let until = Instant::now() + PATIENCE;
        loop {
            match DirectoryLock::try_take(path) {
                Err(Errno::WOULDBLOCK) if Instant::now() < until => {
                    tokio::time::sleep(PAUSE).await;
                }
                lock => return lock.ok(),
            }
        }
    }

    fn try_take(path: &Path) -> Result<DirectoryLock, Errno> {
        let directory = path.parent().ok_or(Errno::NOENT)?;
        let directory = File::open(directory)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive)?;
        Ok(DirectoryLock { _directory: directory })
    }
}

/// A client's end of a connection.
pub(super) type Socket = Either<TcpStream, UnixStream>;

impl Listener {
    /// The next client, and who it is as far as its socket tells.
    pub(super) async fn accept(&self) -> io::Result<(Socket, Peer)> {
        match self {
            Listener::Tcp(listener) => {
                let (socket, address) = listener.accept().await?;
                // Only a hint; the connection is good without.
                let _ = socket.set_nodelay(true);
                let name = CallerName(address.to_string().into());
                Ok((Either::Left(socket), Peer { name, ..Peer::default() }))
            }
            Listener::Unix { _file, listener } => {
                let (socket, _) = listener.accept().await?;
                let client = socket.peer_cred()?;
                let user = User { uid: client.uid(), gid: client.gid() };
                let name = CallerName(format!("unix:uid={}", user.uid).into());
                Ok((Either::Right(socket), Peer { name, user: Some(user), certificate: None }))
            }
        }
    }
}

/// Serves until `close` is cancelled and the connections have ended.
pub(super) async fn serve(
    listener: Listener,
    address: BoundAddress,
    entry: Entry,
    connections: Connections,
    descent: &Descent,
    close: CancellationToken,
) -> Result<(), ServeError> {
    let descent = descent.at(&address);
    let served = connections::serve(listener, entry, connections, descent, close).await;
    served.map_err(|source| ServeError::Transport { address: address.to_string(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[tokio::test]
    async fn a_port_that_an_outgoing_connection_has_is_waited_for() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(server.local_addr().unwrap()).await.unwrap();
        let port = client.local_addr().unwrap().port();
        let mut bound = std::pin::pin!(bind_tcp("127.0.0.1", port));
        assert!(futures::poll!(bound.as_mut()).is_pending());
        drop(server.accept().await.unwrap());
        drop(client);
        bound.await.unwrap();
    }

    #[tokio::test]
    async fn a_client_is_named_by_its_address_or_its_user() {
        let listener = Listener::Tcp(bind_tcp("127.0.0.1", 0).await.unwrap());
        let Listener::Tcp(bound) = &listener else { panic!() };
        let client = TcpStream::connect(bound.local_addr().unwrap()).await.unwrap();
        let (_socket, peer) = listener.accept().await.unwrap();
        assert_eq!(*peer.name.0, *client.local_addr().unwrap().to_string());
        assert_eq!(peer.user, None);

        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("socket");
        let listener = bind_unix(&path, &UnixSockets::default()).await.unwrap();
        let _client = UnixStream::connect(&path).await.unwrap();
        let (_socket, peer) = listener.accept().await.unwrap();
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        assert_eq!(*peer.name.0, *format!("unix:uid={uid}"));
        assert_eq!(peer.user, Some(User { uid: uid.as_raw(), gid: gid.as_raw() }));
    }

    #[tokio::test(start_paused = true)]
    async fn a_port_that_stays_taken_is_told() {
        let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = other.local_addr().unwrap().port();
        let before = Instant::now();
        let error = bind_tcp("127.0.0.1", port).await.unwrap_err();
        assert!(before.elapsed() >= PATIENCE, "{:?}", before.elapsed());
        assert!(error.to_string().contains("for 3 s now"), "{error}");
    }

    #[tokio::test]
    async fn a_leftover_gives_way_and_nothing_else_does() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let settings = UnixSockets::default();
        // What a killed sidecar leaves.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let first = bind_unix(&path, &settings).await.unwrap();
        assert_eq!(mode(&path), 0o600);
        let in_use = bind_unix(&path, &settings).await.unwrap_err();
        assert_eq!(in_use.kind(), io::ErrorKind::AddrInUse);
        // It is alive all the same.
        UnixStream::connect(&path).await.unwrap();
        drop(first);
        assert!(file_id(&path).is_none());

        std::fs::write(&path, "somebody's text").unwrap();
        bind_unix(&path, &settings).await.unwrap_err();
        assert_eq!(std::fs::read(&path).unwrap(), b"somebody's text");
    }

    #[tokio::test]
    async fn a_socket_that_another_one_has_bound_since_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let first = bind_unix(&path, &UnixSockets::default()).await.unwrap();
        std::fs::remove_file(&path).unwrap();
        let second = bind_unix(&path, &UnixSockets::default()).await.unwrap();
        drop(first);
        UnixStream::connect(&path).await.unwrap();
        drop(second);
        assert!(file_id(&path).is_none());
    }

    #[test]
    fn of_two_that_bind_at_once_one_is_told_that_the_other_listens() {
        for _ in 0..50 {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("s");
            drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
            let binds: Vec<_> = (0..2)
                .map(|_| {
                    let path = path.clone();
                    // Each on its own thread, as two processes.
                    std::thread::spawn(move || {
                        let runtime = tokio::runtime::Builder::new_current_thread();
                        let runtime = { runtime }.enable_all().build().unwrap();
                        let bound = runtime.block_on(bind_unix(&path, &UnixSockets::default()));
                        (bound, runtime)
                    })
                })
                .collect();
            let bound: Vec<_> = binds.into_iter().map(|bind| bind.join().unwrap()).collect();
            assert_eq!(bound.iter().filter(|(bound, _)| bound.is_ok()).count(), 1, "{bound:?}");
            std::os::unix::net::UnixStream::connect(&path).unwrap();
        }
    }

    #[tokio::test]
    async fn a_socket_has_the_mode_and_the_group_that_are_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let own = rustix::process::getgid().as_raw();
        let settings =
            UnixSockets { mode: 0o660, group: Some(own.to_string()), ..UnixSockets::default() };
        let _listener = bind_unix(&path, &settings).await.unwrap();
        assert_eq!((mode(&path), std::fs::metadata(&path).unwrap().gid()), (0o660, own));
        let unknown = UnixSockets { group: Some("no such group".to_owned()), ..settings };
        let error = bind_unix(&directory.path().join("t"), &unknown).await.unwrap_err();
        assert!(error.to_string().contains("no such group"), "{error}");
        assert_eq!(group_id("root").unwrap(), 0);
    }

    #[tokio::test]
    async fn a_directory_in_which_anybody_could_replace_the_socket_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let make = |mode| std::fs::set_permissions(directory.path(), Permissions::from_mode(mode));
        for (mode, is_refused) in [(0o777, true), (0o1777, false), (0o775, false), (0o702, true)] {
            make(mode).unwrap();
            match bind_unix(&path, &UnixSockets::default()).await {
                Ok(_) => assert!(!is_refused, "{mode:o}"),
                Err(error) => {
                    assert!(is_refused, "{mode:o}: {error}");
                    assert!(error.to_string().contains("chmod +t"), "{error}");
                    assert!(file_id(&path).is_none());
                }
            }
        }
        make(0o777).unwrap();
        let below = directory.path().join("below");
        std::fs::create_dir(&below).unwrap();
        let error = bind_unix(&below.join("s"), &UnixSockets::default()).await.unwrap_err();
        let told = error.to_string();
        assert!(told.contains(&format!("{} (mode", directory.path().display())), "{told}");
    }
}
