//! A connection.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use ferry_net::ConnId;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{connect_error, stream_error};
use crate::admission;
use crate::engine::{self, with_stack};

/// A TCP connection. Dropping it closes it in order; TCP finishes in the background. If bytes were
/// received that nobody read, the peer gets a reset instead (RFC 9293 §3.10.4).
#[derive(Debug)]
pub struct TcpStream {
    id: ConnId,
    /// The peer, which a connection that has ended no longer knows.
    peer: Option<SocketAddr>,
    local: Option<SocketAddr>,
}

impl TcpStream {
    pub(super) fn new(id: ConnId) -> Self {
        let (peer, local) =
            with_stack(|stack| (stack.remote_endpoint(id), stack.local_endpoint(id)));
        Self { id, peer: peer.map(SocketAddr::from), local: local.map(SocketAddr::from) }
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// `ConnectionRefused`, `TimedOut`, `AddrNotAvailable`, `OutOfMemory`, or `InvalidInput` for an
    /// address that names no host.
    pub async fn connect(ip: Ipv4Addr, port: u16) -> io::Result<Self> {
        let id = with_stack(|stack| stack.connect(ip, port)).map_err(connect_error)?;
        let stream = Self::new(id);
        poll_fn(|cx| with_stack(|stack| stack.poll_connected(cx, id)))
            .await
            .map_err(connect_error)?;
        Ok(stream)
    }

    /// The peer's address and port.
    ///
    /// # Errors
    /// `NotConnected` if the peer had gone before the connection was accepted.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.peer.ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Our own address and port.
    ///
    /// # Errors
    /// As for [`peer_addr`](Self::peer_addr).
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.local.ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Turns Nagle's algorithm off (`true`) or on.
    ///
    /// # Errors
    /// None; the signature is tokio's.
    pub fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        with_stack(|stack| stack.set_nodelay(self.id, nodelay));
        Ok(())
    }
}

impl AsyncRead for TcpStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // SAFETY: the stack only writes into the space, and only the bytes it says it has written are
        // made part of the buffer; bytes of RAM that were never written are still valid `u8`s here,
        // because nothing reads them.
        let space = unsafe {
            let space = buf.unfilled_mut();
            std::slice::from_raw_parts_mut(space.as_mut_ptr().cast::<u8>(), space.len())
        };
        ready!(admission::poll_input(cx));
        let read = with_stack(|stack| stack.poll_recv(cx, self.id, space));
        if read.is_pending() {
            admission::no_input();
        }
        read.map(|read| {
            let read = read.map_err(stream_error)?;
            engine::keep_up(read);
            // SAFETY: so many bytes have been written.
            unsafe { buf.assume_init(read) };
            buf.advance(read);
            Ok(())
        })
    }
}

impl AsyncWrite for TcpStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        with_stack(|stack| stack.poll_send(cx, self.id, bytes))
            .map(|sent| sent.map_err(stream_error))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let bufs = bufs.iter().map(|buf| &**buf);
        with_stack(|stack| stack.poll_send_vectored(cx, self.id, bufs))
            .map(|sent| sent.map_err(stream_error))
    }

    /// So that HTTP need not copy a head and a body into one.
    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Written bytes are TCP's at once; there is nothing to flush.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        with_stack(|stack| stack.shutdown_send(self.id));
        Poll::Ready(Ok(()))
    }
}

impl Drop for TcpStream {
    fn drop(&mut self) {
        engine::close(self.id);
    }
}
