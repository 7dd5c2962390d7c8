//! One connection.

use alloc::vec;
use alloc::vec::Vec;
use smoltcp::iface::{SocketHandle, SocketSet, SocketStorage};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;

use super::timers::Armed;
use crate::device::Flow;
use crate::drain::Peer;

/// Storage for the two queues of a new connection.
#[derive(Debug)]
pub struct Storage {
    /// Receive buffer; its length is the largest window offered.
    pub rx: Vec<u8>,
    /// Transmit buffer.
    pub tx: Vec<u8>,
}

/// Where connections get their buffers. The answer may depend on how much memory is left.
pub trait Buffers: Send {
    /// Storage for a connection on local port `port`, or `None` if there is no memory for it: a SYN
    /// is then dropped and a connect refused.
    fn allocate(&mut self, port: u16) -> Option<Storage>;
}

impl<F: FnMut(u16) -> Option<Storage> + Send> Buffers for F {
    fn allocate(&mut self, port: u16) -> Option<Storage> {
        self(port)
    }
}

/// Who a connection belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// A listener's, handshake not finished.
    HalfOpen,
    /// A listener's, waiting to be accepted.
    Queued,
    /// The service's.
    Service,
    /// Nobody's: the service has dropped it, TCP finishes in the background.
    Orphan,
}

/// Why a connection ended other than by FIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Reset,
    TimedOut,
}

/// Where a buffer lies and how long it is; to tell which part of it holds state.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub start: usize,
    pub len: usize,
}

impl Span {
    fn of(buffer: &[u8]) -> Self {
        Self { start: buffer.as_ptr().addr(), len: buffer.len() }
    }
}

/// A connection of the established table, in any state from SYN-SENT and SYN-RECEIVED on.
pub(crate) struct Connection {
    /// The set smoltcp is polled with: this one socket.
    pub set: SocketSet<'static>,
    handle: SocketHandle,
    pub flow: Flow,
    pub owner: Owner,
    pub ended: Option<Ended>,
    /// In the queue of connections that may have something to send.
    pub ready: bool,
    /// Entries in the timer heap.
    pub armed: Armed,
    /// Half-open connections and orphans end at this moment.
    pub expires: Option<Instant>,
    /// No challenge ACK for a SYN before this moment (RFC 5961 §7).
    pub challenge_after: Instant,
    /// The number of the last resume after which its first window update has been sent, and whether one waits.
    pub warm: u32,
    pub withheld: bool,
    pub drain: Option<Peer>,
    pub rx: Span,
    pub tx: Span,
}

impl Connection {
    pub fn new(storage: Storage, flow: Flow, owner: Owner) -> Self {
        let (rx, tx) = (Span::of(&storage.rx), Span::of(&storage.tx));
        let mut socket = tcp::Socket::new(
            tcp::SocketBuffer::new(storage.rx),
            tcp::SocketBuffer::new(storage.tx),
        );
        // The service's writes gather in the transmit buffer until the next poll; holding back what
        // is there then only delays it.
        socket.set_nagle_enabled(false);
        let mut set = SocketSet::new(vec![SocketStorage::EMPTY]);
        let handle = set.add(socket);
        Self {
            set,
            handle,
            flow,
            owner,
            ended: None,
            ready: false,
            armed: Armed::default(),
            expires: None,
            challenge_after: Instant::ZERO,
            warm: 0,
            withheld: false,
            drain: None,
            rx,
            tx,
        }
    }

    pub fn socket(&self) -> &tcp::Socket<'static> {
        self.set.get(self.handle)
    }

    pub fn socket_mut(&mut self) -> &mut tcp::Socket<'static> {
        self.set.get_mut(self.handle)
    }

    pub fn state(&self) -> tcp::State {
        self.socket().state()
    }

    /// Both sides know each other's sequence numbers, and the peer may still send.
    pub fn synchronised(&self) -> bool {
        use tcp::State::{CloseWait, Closing, Established, FinWait1, FinWait2, LastAck};
        matches!(self.state(), Established | FinWait1 | FinWait2 | CloseWait | Closing | LastAck)
    }

    /// All our octets are acknowledged, our FIN is sent and is not.
    pub fn only_fin_outstanding(&self) -> bool {
        use tcp::State::{Closing, FinWait1, LastAck};
        matches!(self.state(), FinWait1 | Closing | LastAck)
            && self.socket().send_queue() == 0
            && self.flow.una + 1 == self.flow.nxt
    }

    /// The window to offer, if an acknowledgement would say nothing new but the window: all that was received
    /// is acknowledged, and smoltcp knows the window it last meant to offer for the one there is.
    pub fn told(&self) -> Option<u16> {
        let (flow, socket) = (&self.flow, self.socket());
        let said = !flow.owes_ack() && !flow.has_out_of_order() && !flow.window_is_syn;
        // A larger window is scaled, by what smoltcp keeps to itself.
        let unscaled = socket.recv_capacity() <= usize::from(u16::MAX);
        let room = socket.recv_capacity() - socket.recv_queue();
        (said && unscaled && room == usize::from(flow.last_window)).then_some(flow.last_window)
    }

    /// Nothing is owed, outstanding or waiting to be sent, on a connection that we have not closed.
    pub fn nothing_under_way(&self) -> bool {
        use tcp::State::{CloseWait, Established};
        let flow = &self.flow;
        matches!(self.state(), Established | CloseWait)
            && !flow.owes_ack()
            && !flow.has_out_of_order()
            && flow.all_acknowledged()
            && self.socket().send_queue() == 0
    }

    /// The same on one that nobody has closed, whose peer knows our window.
    pub fn at_rest(&self) -> bool {
        self.state() == tcp::State::Established && self.told().is_some() && self.nothing_under_way()
    }

    /// The parts of the two buffers that hold no state, as `(address, length)`.
    pub fn discardable(&mut self, f: &mut impl FnMut(usize, usize)) {
        let (rx, tx, out_of_order) = (self.rx, self.tx, self.flow.has_out_of_order());
        let socket = self.socket_mut();
        if !out_of_order {
            let queued = socket.recv_queue();
            match socket.peek(usize::MAX) {
                Ok(slice) if queued > 0 => {
                    free_part(rx, slice.as_ptr().addr() - rx.start, queued, f);
                }
                _ if queued == 0 => f(rx.start, rx.len),
                _ => {}
            }
        }
        let queued = socket.send_queue();
        if queued == 0 {
            f(tx.start, tx.len);
        } else if queued < tx.len
            // Enqueues nothing; where the free part begins tells where the queue ends.
            && let Ok(end) = socket.send(|free| (0, free.as_ptr().addr()))
        {
            let begin = (end - tx.start + tx.len - queued) % tx.len;
            free_part(tx, begin, queued, f);
        }
    }
}

/// The part of the ring `span` outside the `queued` octets from offset `begin` on.
fn free_part(span: Span, begin: usize, queued: usize, f: &mut impl FnMut(usize, usize)) {
    let mut part = |from: usize, to: usize| {
        if from < to {
            f(span.start + from, to - from);
        }
    };
    let end = begin + queued;
    if end <= span.len {
        part(0, begin);
        part(end, span.len);
    } else {
        part(end - span.len, begin);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_free_part_is_what_the_queue_leaves() {
        for len in 1..12usize {
            for begin in 0..len {
                for queued in 0..=len {
                    let mut marks = alloc::vec![0; len];
                    (0..queued).for_each(|i| marks[(begin + i) % len] += 1);
                    let span = Span { start: 1000, len };
                    free_part(span, begin, queued, &mut |at, n| {
                        marks[at - 1000..at - 1000 + n].iter_mut().for_each(|mark| *mark += 1);
                    });
                    assert!(marks.iter().all(|&mark| mark == 1), "{len} {begin} {queued}");
                }
            }
        }
    }
}
