//! The listening side.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll};

use super::{TcpStream, listen_error, stream_error};
use crate::admission;
use crate::engine::with_stack;

/// Connections that may wait to be accepted; a SYN beyond is dropped, and its client tries again.
const BACKLOG: usize = 4096;

/// A bound port. Dropping it closes the port and aborts what was not accepted.
#[derive(Debug)]
pub struct TcpListener {
    port: u16,
}

impl TcpListener {
    /// Binds `port` of the service's address.
    ///
    /// # Errors
    /// `AddrInUse` if it has a listener, `InvalidInput` for port 0.
    pub async fn bind(port: u16) -> io::Result<Self> {
        with_stack(|stack| stack.listen(port, BACKLOG)).map_err(listen_error)?;
        // qemu/run.sh reads this line and makes the port reachable from its host.
        if !crate::rehearsal::on() {
            println!("ferry: listening on port {port}");
        }
        Ok(Self { port })
    }

    /// The next connection and its peer. Where memory is short, connections wait to be accepted until others
    /// have ended.
    ///
    /// # Errors
    /// None while the listener lives; the signature is tokio's.
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        poll_fn(|cx| self.poll_accept(cx)).await
    }

    /// As [`accept`](Self::accept), for hand-written futures.
    ///
    /// # Errors
    /// As there.
    pub fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
        admission::poll_accept(cx, self.port).map(|accepted| {
            let stream = TcpStream::new(accepted.map_err(stream_error)?);
            let peer = stream.peer_addr()?;
            Ok((stream, peer))
        })
    }

    /// The bound port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for TcpListener {
    fn drop(&mut self) {
        with_stack(|stack| stack.close_listener(self.port));
    }
}
