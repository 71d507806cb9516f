//! The kernel's table of TCP sockets, of this network namespace, asked for one connection at a time
//! (`sock_diag(7)`).

use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{
    AF_INET, AF_INET6, IPPROTO_TCP, TCP_ESTABLISHED, TCP_LISTEN,
};
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags,
};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr as KernelAddress};
use rustix::io::Errno;

/// One end of a TCP connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TcpEnd {
    /// Who made the socket.
    pub(super) uid: u32,
    /// What `/proc/PID/fd` calls it; 0 once no process has it any more.
    pub(super) inode: u32,
    /// Nobody has closed either end.
    pub(super) is_established: bool,
}

/// A conversation with the kernel about sockets.
pub(super) struct Sockets(Socket);

impl Sockets {
    /// # Errors
    /// This system has no such table, or does not show it.
    pub(super) fn open() -> io::Result<Sockets> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        socket.connect(&KernelAddress::new(0, 0))?;
        // The answer is there when the question is sent.
        socket.set_non_blocking(true)?;
        Ok(Sockets(socket))
    }

    /// The end of a connection that is at `local` and whose other end is at `remote`; `None` where this
    /// network namespace has none.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn end(&self, local: SocketAddr, remote: SocketAddr) -> io::Result<Option<TcpEnd>> {
        let found = self.ask(local, remote)?;
        // Where there is no such end the kernel gives a socket that listens there.
        Ok(found.filter(|found| found.is_between(local, remote)).map(|Found(header)| TcpEnd {
            uid: header.uid,
            inode: header.inode,
            is_established: header.state == TCP_ESTABLISHED,
        }))
    }

    /// Whether the kernel shows who listens at `local`, where somebody does.
    pub(super) fn shows_listener(&self, local: SocketAddr) -> bool {
        let nobody = match local.ip().to_canonical() {
            IpAddr::V4(_) => SocketAddr::from(([0; 4], 0)),
            IpAddr::V6(_) => SocketAddr::from(([0; 16], 0)),
        };
        matches!(self.ask(local, nobody), Ok(Some(Found(header))) if header.state == TCP_LISTEN)
    }

    fn ask(&self, local: SocketAddr, remote: SocketAddr) -> io::Result<Option<Found>> {
        self.0.send(&question(local, remote), 0)?;
        let mut answer = Vec::with_capacity(4096);
        self.0.recv(&mut answer, 0)?;
        read(&answer)
    }
}

#[derive(Debug)]
struct Found(InetResponseHeader);

impl Found {
    fn is_between(&self, local: SocketAddr, remote: SocketAddr) -> bool {
        let SocketId { source_address, source_port, destination_address, destination_port, .. } =
            &self.0.socket_id;
        let is = |address: &IpAddr, port: u16, wanted: SocketAddr| {
            address.to_canonical() == wanted.ip().to_canonical() && port == wanted.port()
        };
        self.0.state != TCP_LISTEN
            && is(source_address, *source_port, local)
            && is(destination_address, *destination_port, remote)
    }
}

/// Asks for the one socket between these addresses. An IPv4 address that is written as IPv6 is IPv4: the
/// kernel finds sockets of both families by it.
fn question(local: SocketAddr, remote: SocketAddr) -> Vec<u8> {
    let scope = match local {
        SocketAddr::V6(local) => local.scope_id(),
        SocketAddr::V4(_) => 0,
    };
    let (source_address, destination_address) =
        (local.ip().to_canonical(), remote.ip().to_canonical());
    let request = InetRequest {
        family: if source_address.is_ipv4() { AF_INET } else { AF_INET6 },
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::all(),
        socket_id: SocketId {
            source_address,
            source_port: local.port(),
            destination_address,
            destination_port: remote.port(),
            interface_id: scope,
            // Of whichever.
            cookie: [0xff; 8],
        },
    };
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST;
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// Reads the kernel's answer; `None` where it says that there is no such socket.
fn read(answer: &[u8]) -> io::Result<Option<Found>> {
    let message = NetlinkMessage::<SockDiagMessage>::deserialize(answer)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
    match message.payload {
        NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
            Ok(Some(Found(response.header)))
        }
        NetlinkPayload::Error(error) => {
            match error.code.map_or(0, |code| code.get().saturating_neg()) {
                code if code == Errno::NOENT.raw_os_error() => Ok(None),
                code => Err(io::Error::from_raw_os_error(code)),
            }
        }
        _ => Err(io::Error::from(io::ErrorKind::InvalidData)),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, TcpListener, TcpStream};
    use std::os::fd::AsFd as _;

    use super::*;

    fn inode(socket: &TcpStream) -> u32 {
        u32::try_from(rustix::fs::fstat(socket.as_fd()).unwrap().st_ino).unwrap()
    }

    #[test]
    fn the_clients_end_is_found_in_every_family() {
        let sockets = Sockets::open().unwrap();
        for (listens, dials) in [
            ("127.0.0.1", "127.0.0.1"),
            ("0.0.0.0", "127.0.0.7"),
            ("[::1]", "[::1]"),
            ("[::]", "[::1]"),
            // An IPv4 client of an IPv6 socket, and a client that writes IPv4 as IPv6.
            ("[::]", "127.0.0.1"),
            ("127.0.0.1", "[::ffff:127.0.0.1]"),
        ] {
            let Ok(listener) = TcpListener::bind(format!("{listens}:0")) else { continue };
            let port = listener.local_addr().unwrap().port();
            assert!(sockets.shows_listener(format!("{dials}:{port}").parse().unwrap()), "{dials}");
            let client = TcpStream::connect(format!("{dials}:{port}")).unwrap();
            let (server, _) = listener.accept().unwrap();
            let (ours, theirs) = (server.local_addr().unwrap(), server.peer_addr().unwrap());
            let end = sockets.end(theirs, ours).unwrap().unwrap();
            let uid = rustix::process::geteuid().as_raw();
            assert_eq!(end, TcpEnd { uid, inode: inode(&client), is_established: true }, "{dials}");
            let own = sockets.end(ours, theirs).unwrap().unwrap();
            assert_eq!(own.inode, inode(&server), "{dials}");
            // Nobody's any more, though not gone.
            drop(client);
            assert!(sockets.end(theirs, ours).unwrap().is_none_or(|end| end.inode == 0), "{dials}");
            assert!(!sockets.end(ours, theirs).unwrap().unwrap().is_established, "{dials}");
        }
    }

    #[test]
    fn a_socket_that_only_listens_at_an_address_is_no_end_of_a_connection() {
        let sockets = Sockets::open().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let local = listener.local_addr().unwrap();
        assert_eq!(sockets.end(local, "127.0.0.1:9".parse().unwrap()).unwrap(), None);
        let remote = SocketAddr::from((Ipv6Addr::LOCALHOST, 9));
        assert_eq!(sockets.end(SocketAddr::from((Ipv6Addr::LOCALHOST, 1)), remote).unwrap(), None);
        assert!(!sockets.shows_listener("127.0.0.1:1".parse().unwrap()));
    }

    #[test]
    fn no_answer_is_taken_for_a_socket() {
        for bytes in
            [&[][..], &[0; 15], &[0xff; 64], &[16, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]]
        {
            assert!(read(bytes).is_err(), "{bytes:?}");
        }
        // An answer that is cut anywhere.
        let whole = question("127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap());
        for end in 0..whole.len() {
            assert!(!matches!(read(&whole[..end]), Ok(Some(_))), "{end}");
        }
    }
}
