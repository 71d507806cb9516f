//! A client's stream, watched: when its half of the HTTP/2 handshake is there, and that it does not flood.
//!
//! Changes no byte and has no clock. Who holds the connection waits for the end of the handshake, and says
//! how long.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;

use super::frames::Frames;

/// A stream that knows when the client's half of the HTTP/2 handshake is there, the preface and a whole
/// SETTINGS frame: h2 itself would wait for that without an end. Reading it fails once the client floods it.
#[derive(Debug)]
pub(super) struct Handshake<S> {
    stream: S,
    frames: Frames,
    shaken: CancellationToken,
}

impl<S> Handshake<S> {
    /// Of this stream; `shaken` is cancelled when it is there.
    pub(super) fn new(stream: S, shaken: CancellationToken) -> Handshake<S> {
        Handshake { stream, frames: Frames::new(), shaken }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Handshake<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if let Poll::Ready(Ok(())) = read {
            let new = buffer.filled().get(before..).unwrap_or_default();
            self.frames.receive(new).map_err(io::Error::other)?;
            if !self.shaken.is_cancelled() && self.frames.have_shaken_hands() {
                self.shaken.cancel();
            }
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
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        if let Poll::Ready(Ok(written)) = written {
            self.frames.send(bytes.get(..written).unwrap_or_default());
        }
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        if let Poll::Ready(Ok(mut written)) = written {
            for slice in slices {
                let part = slice.len().min(written);
                self.frames.send(slice.get(..part).unwrap_or_default());
                written -= part;
            }
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
