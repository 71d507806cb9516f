//! A client's half of the HTTP/2 handshake, as it comes in.
//!
//! Only counts bytes: it changes none, refuses none and has no clock. Who holds the connection waits
//! for the end of the handshake, and says how long.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;

/// A socket that knows when the client's half of the HTTP/2 handshake is there: the preface and a
/// whole SETTINGS frame. h2 itself would wait for that without an end.
#[derive(Debug)]
pub(super) struct Handshake<S> {
    socket: S,
    /// Bytes read.
    seen: usize,
    /// Length of the SETTINGS, as far as it is read.
    settings: usize,
    shaken: CancellationToken,
}

impl<S> Handshake<S> {
    const PREFACE: usize = 24;
    const FRAME_HEADER: usize = 9;

    /// Of this socket; `shaken` is cancelled when it is there.
    pub(super) fn new(socket: S, shaken: CancellationToken) -> Handshake<S> {
        Handshake { socket, seen: 0, settings: 0, shaken }
    }

    fn read(&mut self, bytes: &[u8]) {
        for (at, byte) in (self.seen..Self::PREFACE + 3).zip(bytes) {
            if at >= Self::PREFACE {
                self.settings = self.settings << 8 | usize::from(*byte);
            }
        }
        self.seen += bytes.len();
        if self.seen >= Self::PREFACE + Self::FRAME_HEADER + self.settings {
            self.shaken.cancel();
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Handshake<S> {
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

impl<S: AsyncWrite + Unpin> AsyncWrite for Handshake<S> {
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
