//! Sockets, as the service's own types are made of them.
//!
//! Nothing here sends: what a call leaves in a queue goes out with the next [`Stack::poll`].

use alloc::boxed::Box;
use core::task::{Context, Poll};
use smoltcp::socket::tcp::{RecvError, State};
use smoltcp::time::Duration;
use smoltcp::wire::{IpEndpoint, Ipv4Address};

use super::{ConnectError, ListenError, Stack, StreamError};
use crate::device::{Flow, Tuple};
use crate::table::connection::{Connection, Ended, Owner};
use crate::table::established::ConnId;

/// First port of connections that the service opens (RFC 6335 §6).
const EPHEMERAL: u16 = 49152;
/// An orphan in FIN-WAIT-2 ends after this.
const FIN_WAIT_2_TIMEOUT: Duration = Duration::from_secs(60);

impl Stack {
    /// Binds `port`. At most `backlog` connections wait to be accepted; a SYN beyond it is dropped
    /// without an answer, and the client tries again.
    ///
    /// # Errors
    /// The port is 0 or bound already.
    pub fn listen(&mut self, port: u16, backlog: usize) -> Result<(), ListenError> {
        if port == 0 {
            return Err(ListenError::PortZero);
        }
        if self.bind.insert(port, backlog) { Ok(()) } else { Err(ListenError::InUse { port }) }
    }

    /// Unbinds `port`. Connections not accepted yet are reset, accepted ones go on.
    pub fn close_listener(&mut self, port: u16) {
        let Some(listener) = self.bind.remove(port) else { return };
        for id in listener.queue {
            self.abort(id);
        }
        if listener.half_open > 0 {
            let half_open = |connection: &Connection| {
                connection.owner == Owner::HalfOpen && connection.flow.tuple.local_port == port
            };
            let ids: alloc::vec::Vec<_> = self
                .established
                .ids()
                .filter(|&id| self.established.get(id).is_some_and(half_open))
                .collect();
            ids.into_iter().for_each(|id| self.abort(id));
        }
    }

    /// The next connection to `port`.
    ///
    /// # Errors
    /// [`StreamError::Closed`] if the port is not bound.
    pub fn poll_accept(
        &mut self,
        cx: &mut Context<'_>,
        port: u16,
    ) -> Poll<Result<ConnId, StreamError>> {
        let Some(listener) = self.bind.get_mut(port) else {
            return Poll::Ready(Err(StreamError::Closed));
        };
        match listener.queue.pop_front() {
            Some(id) => {
                if let Some(connection) = self.established.get_mut(id) {
                    connection.owner = Owner::Service;
                }
                Poll::Ready(Ok(id))
            }
            None => {
                listener.register(cx.waker());
                Poll::Pending
            }
        }
    }

    /// Begins to open a connection; [`poll_connected`](Self::poll_connected) says what came of it.
    ///
    /// # Errors
    /// There is no such address, no free port or no memory.
    pub fn connect(&mut self, remote: Ipv4Address, port: u16) -> Result<ConnId, ConnectError> {
        let unaddressable = ConnectError::Unaddressable { remote: (remote, port) };
        if port == 0
            || remote.is_unspecified()
            || remote.is_multicast()
            || remote.is_broadcast()
            || remote == self.link.ip()
        {
            return Err(unaddressable);
        }
        let tuple = self.free_tuple(remote, port).ok_or(ConnectError::NoPort)?;
        let storage = self.buffers.allocate(tuple.local_port).ok_or(ConnectError::NoMemory)?;
        self.renew_interface();
        let flow = Flow::new(tuple, self.now);
        let mut connection = Box::new(Connection::new(storage, flow, Owner::Service));
        let local = (self.link.ip(), tuple.local_port);
        connection
            .socket_mut()
            .connect(self.iface.context(), (remote, port), local)
            .map_err(|_| unaddressable)?;
        let id = self.established.insert(connection);
        self.mark_ready(id);
        Ok(id)
    }

    /// A local port that is free towards this peer.
    fn free_tuple(&mut self, remote: Ipv4Address, remote_port: u16) -> Option<Tuple> {
        let ports = u16::MAX - EPHEMERAL;
        let first = (self.draw() % u64::from(ports)) as u16;
        (0..ports).find_map(|step| {
            let local_port = EPHEMERAL + (first + step) % ports;
            let tuple = Tuple { remote: remote.to_bits(), remote_port, local_port };
            let free = !self.bind.contains(local_port)
                && self.established.find(&tuple).is_none()
                && self.time_waits.find(&tuple).is_none();
            free.then_some(tuple)
        })
    }

    /// Whether the handshake of a connection the service opened is done.
    ///
    /// # Errors
    /// The peer refused or did not answer.
    pub fn poll_connected(
        &mut self,
        cx: &mut Context<'_>,
        id: ConnId,
    ) -> Poll<Result<(), ConnectError>> {
        let Some(connection) = self.established.get_mut(id) else {
            return Poll::Ready(Err(ConnectError::Refused));
        };
        match connection.state() {
            State::SynSent | State::SynReceived => {
                connection.socket_mut().register_send_waker(cx.waker());
                Poll::Pending
            }
            State::Closed => Poll::Ready(Err(match connection.ended {
                Some(Ended::TimedOut) => ConnectError::TimedOut,
                _ => ConnectError::Refused,
            })),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Reads what has arrived; 0 is the end of the stream.
    ///
    /// # Errors
    /// The connection ended other than by FIN.
    pub fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
        id: ConnId,
        buf: &mut [u8],
    ) -> Poll<Result<usize, StreamError>> {
        let Some(connection) = self.established.get_mut(id) else {
            return Poll::Ready(Err(StreamError::Closed));
        };
        let ended = connection.ended;
        let socket = connection.socket_mut();
        match socket.recv_slice(buf) {
            Ok(0) if !buf.is_empty() => {
                socket.register_recv_waker(cx.waker());
                Poll::Pending
            }
            Ok(read) => {
                // The window may have become worth telling.
                self.mark_ready(id);
                Poll::Ready(Ok(read))
            }
            Err(RecvError::Finished) => Poll::Ready(Ok(0)),
            Err(RecvError::InvalidState) => match (ended, socket.state()) {
                (Some(ended), _) => Poll::Ready(Err(ended.into())),
                (None, State::SynSent | State::SynReceived) => {
                    socket.register_recv_waker(cx.waker());
                    Poll::Pending
                }
                (None, _) => Poll::Ready(Ok(0)),
            },
        }
    }

    /// Writes as much as the transmit buffer has room for.
    ///
    /// # Errors
    /// The connection has ended, or this direction is shut down.
    pub fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        id: ConnId,
        buf: &[u8],
    ) -> Poll<Result<usize, StreamError>> {
        self.poll_send_vectored(cx, id, core::iter::once(buf))
    }

    /// Writes as much of `bufs`, one after the other, as the transmit buffer has room for.
    ///
    /// # Errors
    /// As for [`poll_send`](Self::poll_send).
    pub fn poll_send_vectored<'a>(
        &mut self,
        cx: &mut Context<'_>,
        id: ConnId,
        bufs: impl Iterator<Item = &'a [u8]>,
    ) -> Poll<Result<usize, StreamError>> {
        let Some(connection) = self.established.get_mut(id) else {
            return Poll::Ready(Err(StreamError::Closed));
        };
        let ended = connection.ended;
        let socket = connection.socket_mut();
        let (mut written, mut full) = (0, false);
        for buf in bufs {
            match socket.send_slice(buf) {
                Ok(taken) => {
                    written += taken;
                    full = taken < buf.len();
                }
                Err(_) if matches!(socket.state(), State::SynSent | State::SynReceived) => {
                    full = true;
                }
                Err(_) => {
                    let error = ended.map_or(StreamError::Closed, StreamError::from);
                    return Poll::Ready(Err(error));
                }
            }
            if full {
                break;
            }
        }
        if full && written == 0 {
            socket.register_send_waker(cx.waker());
            return Poll::Pending;
        }
        self.mark_ready(id);
        Poll::Ready(Ok(written))
    }

    /// Waits until all that was written is acknowledged by the peer.
    ///
    /// # Errors
    /// The connection ended before.
    pub fn poll_flushed(
        &mut self,
        cx: &mut Context<'_>,
        id: ConnId,
    ) -> Poll<Result<(), StreamError>> {
        let Some(connection) = self.established.get_mut(id) else {
            return Poll::Ready(Err(StreamError::Closed));
        };
        let ended = connection.ended;
        let socket = connection.socket_mut();
        match (ended, socket.send_queue()) {
            (Some(ended), _) => Poll::Ready(Err(ended.into())),
            (None, 0) => Poll::Ready(Ok(())),
            (None, _) => {
                socket.register_send_waker(cx.waker());
                Poll::Pending
            }
        }
    }

    /// Sends FIN after all that was written; reading goes on.
    pub fn shutdown_send(&mut self, id: ConnId) {
        if let Some(connection) = self.established.get_mut(id) {
            connection.socket_mut().close();
            self.mark_ready(id);
        }
    }

    /// Whether writes are sent as soon as the window allows (the default), or small ones wait for the
    /// acknowledgement of those before them.
    pub fn set_nodelay(&mut self, id: ConnId, nodelay: bool) {
        if let Some(connection) = self.established.get_mut(id) {
            connection.socket_mut().set_nagle_enabled(!nodelay);
        }
    }

    /// The service lets go of a connection: what it wrote is sent and closed by FIN in the background,
    /// unless there is something it has not read: then RST (RFC 1122 §4.2.2.13).
    pub fn close(&mut self, id: ConnId) {
        let Some(connection) = self.established.get_mut(id) else { return };
        if connection.socket().recv_queue() > 0 || connection.state() == State::SynSent {
            return self.abort(id);
        }
        connection.owner = Owner::Orphan;
        connection.expires = Some(self.now + FIN_WAIT_2_TIMEOUT);
        connection.socket_mut().close();
        self.end_or_send(id);
    }

    /// The service gives a connection up: RST to the peer.
    pub fn abort(&mut self, id: ConnId) {
        let Some(connection) = self.established.get_mut(id) else { return };
        connection.owner = Owner::Orphan;
        connection.socket_mut().abort();
        self.end_or_send(id);
    }

    /// Closes every connection, as the end of a process does.
    pub fn close_all(&mut self) {
        let ids: alloc::vec::Vec<_> = self.established.ids().collect();
        ids.into_iter().for_each(|id| self.close(id));
    }

    fn end_or_send(&mut self, id: ConnId) {
        let closed =
            self.established.get(id).is_some_and(|connection| connection.state() == State::Closed);
        if !(closed && self.close_ended(id)) {
            self.mark_ready(id);
        }
    }

    /// Our end of a connection.
    #[must_use]
    pub fn local_endpoint(&self, id: ConnId) -> Option<IpEndpoint> {
        let connection = self.established.get(id)?;
        Some(IpEndpoint::new(self.link.ip().into(), connection.flow.tuple.local_port))
    }

    /// The peer's end of a connection.
    #[must_use]
    pub fn remote_endpoint(&self, id: ConnId) -> Option<IpEndpoint> {
        let tuple = self.established.get(id)?.flow.tuple;
        Some(IpEndpoint::new(tuple.remote_addr().into(), tuple.remote_port))
    }
}
