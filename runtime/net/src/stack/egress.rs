//! What leaves: data, acknowledgements, retransmissions.

use smoltcp::iface::PollResult;
use smoltcp::socket::tcp::State;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::Ipv4Address;

use super::Stack;
use crate::device::{Output, Port, Window, old_byte, window_update};
use crate::link::{Link, Nic};
use crate::table::connection::{Connection, Ended, Owner};
use crate::table::established::ConnId;

/// Connections served in one turn, and segments each may send in it.
const TURN_CONNECTIONS: usize = 256;
const TURN_SEGMENTS: usize = 64;
/// A peer that acknowledges nothing for so long is given up, as Linux does after 15 retransmissions.
const USER_TIMEOUT: Duration = Duration::from_secs(924);
/// The same for one that does not answer our SYN (Linux: `tcp_syn_retries`).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(127);
/// The same for a connection the service has let go of (Linux: `tcp_fin_timeout`).
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(60);
/// A connection with something to send and no timer is looked at after this (RFC 9293 §3.8.6.1).
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// A socket that wants to send at once and sends nothing is asked again after this.
const STUCK_RETRY: Duration = Duration::from_millis(1);

/// The way out through the link layer.
struct LinkOut<'a, N> {
    nic: &'a mut N,
    link: &'a mut Link,
    dst: Ipv4Address,
    now: Instant,
}

impl<N: Nic> Output for LinkOut<'_, N> {
    fn ready(&mut self) -> bool {
        self.nic.transmit_ready()
    }

    fn send<R>(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        self.link.transmit(self.nic, self.dst, len, self.now, fill)
    }
}

impl Stack {
    /// Lets connections send that may have something; `true` if the ring is full.
    pub(super) fn send(&mut self, nic: &mut impl Nic) -> bool {
        for _ in 0..self.ready.len().min(TURN_CONNECTIONS) {
            if !nic.transmit_ready() {
                return true;
            }
            let Some(id) = self.ready.pop_front() else { break };
            let Some(connection) = self.established.get_mut(id) else { continue };
            connection.ready = false;
            if !self.withholds(id) {
                self.send_one(id, nic);
            }
        }
        false
    }

    /// Lets one connection send what it has, window and acknowledgement with it.
    pub(super) fn send_one(&mut self, id: ConnId, nic: &mut impl Nic) {
        let Some(connection) = self.established.get_mut(id) else { return };
        if connection.owner == Owner::Orphan && connection.socket().recv_queue() > 0 {
            // Data for nobody: RST says that it was not taken (RFC 1122 §4.2.2.13).
            connection.socket_mut().abort();
        }
        let was = connection.state();
        let mut sent = 0;
        let mut out = LinkOut {
            nic,
            link: &mut self.link,
            dst: connection.flow.tuple.remote_addr(),
            now: self.now,
        };
        while sent < TURN_SEGMENTS {
            let mut port = Port {
                packet: None,
                out: &mut out,
                flow: Some(&mut connection.flow),
                window: Window::Open,
            };
            match self.iface.poll_egress(self.now, &mut port, &mut connection.set) {
                PollResult::None => break,
                PollResult::SocketStateChanged => sent += 1,
            }
        }
        let is = connection.state();
        let next = self.iface.poll_at(self.now, &connection.set);
        let full = sent == 0 && !nic.transmit_ready();
        self.woke |= is != was;
        if self.settle_end(id) {
            return;
        }
        let next = next.or_else(|| self.outstanding(id).then(|| self.now + WATCH_INTERVAL));
        match next {
            Some(at) if at <= self.now && (sent > 0 || full) => self.mark_ready(id),
            Some(at) => self.arm(id, at.max(self.now + STUCK_RETRY)),
            None => {}
        }
        if let Some(connection) = self.established.get_mut(id)
            && let Some(expires) = connection.expires
        {
            self.arm(id, expires);
        }
    }

    /// Whether a connection has something outstanding. smoltcp 0.14 may have no timer for it: when a
    /// retransmission timeout finds the peer's window closed it does not begin to probe, when a closed
    /// window opens it forgets what was lost before, and three duplicate ACKs stop a FIN's timer.
    fn outstanding(&self, id: ConnId) -> bool {
        self.established.get(id).is_some_and(|connection| {
            connection.synchronised()
                && (connection.socket().send_queue() > 0 || !connection.flow.all_acknowledged())
        })
    }

    pub(super) fn arm(&mut self, id: ConnId, at: Instant) {
        if let Some(connection) = self.established.get_mut(id) {
            self.timers.arm(id, at, &mut connection.armed);
        }
    }

    /// Ends a connection that has come to its end. `true` if it is gone from the table.
    fn settle_end(&mut self, id: ConnId) -> bool {
        let Some(connection) = self.established.get(id) else { return true };
        match connection.state() {
            State::Closed => self.close_ended(id),
            State::TimeWait if connection.owner == Owner::Orphan && !connection.flow.owes_ack() => {
                // A four-tuple reopened since then belongs to another connection.
                if self.established.find(&connection.flow.tuple) == Some(id) {
                    self.time_waits.insert(&connection.flow, self.now);
                }
                self.remove(id);
                true
            }
            _ => false,
        }
    }

    /// A connection in CLOSED leaves the four-tuple, and the table too once neither the service nor a
    /// RST still to be sent needs it. `true` if it is gone.
    pub(super) fn close_ended(&mut self, id: ConnId) -> bool {
        let Some(connection) = self.established.get_mut(id) else { return true };
        if connection.socket().remote_endpoint().is_some() {
            return false;
        }
        if let Some(peer) = &mut connection.drain
            && !peer.done()
        {
            peer.gone();
            self.drain_done_one();
        }
        self.established.unhash(id);
        let orphan =
            self.established.get(id).is_none_or(|connection| connection.owner == Owner::Orphan);
        if orphan {
            self.remove(id);
        }
        orphan
    }

    fn remove(&mut self, id: ConnId) {
        if let Some(connection) = self.established.remove(id)
            && let Some(peer) = &connection.drain
            && !peer.done()
        {
            self.drain_done_one();
        }
    }

    /// Looks at the connections whose time has come.
    pub(super) fn run_timers(&mut self) {
        while let Some((at, id)) = self.timers.pop(self.now) {
            let Some(connection) = self.established.get_mut(id) else { continue };
            if !connection.armed.fires(at) {
                continue;
            }
            if self.expire(id) {
                continue;
            }
            self.mark_ready(id);
            if self.neglected(id) {
                self.to_ask.push(id);
            }
        }
    }

    /// Whether the timer that came was ours, because smoltcp has none.
    fn neglected(&mut self, id: ConnId) -> bool {
        let outstanding = self.outstanding(id);
        let Some(connection) = self.established.get(id) else { return false };
        outstanding && self.iface.poll_at(self.now, &connection.set).is_none()
    }

    /// Asks the peers of neglected connections where they stand; a third answer that brings nothing
    /// new makes smoltcp retransmit. `true` if the ring is full.
    pub(super) fn ask_neglected(&mut self, nic: &mut impl Nic) -> bool {
        while let Some(id) = self.to_ask.pop() {
            if !self.elicit(id, nic) {
                self.to_ask.push(id);
                return true;
            }
        }
        false
    }

    /// Gives a connection up whose patience is over. `true` if it is gone.
    fn expire(&mut self, id: ConnId) -> bool {
        let now = self.now;
        let Some(connection) = self.established.get_mut(id) else { return true };
        if connection.expires.is_some_and(|expires| expires <= now) {
            connection.expires = None;
            match connection.owner {
                Owner::HalfOpen => {
                    let was = connection.state();
                    self.state_changed(id, was, State::Closed);
                    return true;
                }
                // FIN-WAIT-2 for a peer that never closes: it is forgotten without a word.
                Owner::Orphan if connection.state() == State::FinWait2 => {
                    self.remove(id);
                    return true;
                }
                Owner::Orphan => connection.expires = Some(now + ORPHAN_TIMEOUT),
                Owner::Queued | Owner::Service => {}
            }
        }
        let patience = match (connection.state(), connection.owner) {
            (State::SynSent, _) => CONNECT_TIMEOUT,
            (_, Owner::Orphan) => ORPHAN_TIMEOUT,
            _ => USER_TIMEOUT,
        };
        if gives_up(connection, patience, now) {
            connection.ended = Some(Ended::TimedOut);
            connection.socket_mut().abort();
            self.woke = true;
        }
        false
    }

    /// Acknowledges at once what has been received, with the true window or, in a drain, zero: by smoltcp,
    /// or without it where it would say no more than it has said. `false` if the ring is full.
    pub(super) fn acknowledge_now(&mut self, id: ConnId, nic: &mut impl Nic) -> bool {
        self.show_window(id, self.window(), nic)
    }

    /// The same with the true window or zero, whatever others are shown.
    pub(super) fn show_window(&mut self, id: ConnId, window: Window, nic: &mut impl Nic) -> bool {
        if !nic.transmit_ready() {
            return false;
        }
        let local = self.link.ip();
        let Some(connection) = self.established.get_mut(id) else { return true };
        if !connection.synchronised() {
            return true;
        }
        if let Some(offered) = connection.told() {
            let shown = if window == Window::Closed { 0 } else { offered };
            let packet = window_update(&connection.flow, local, shown);
            connection.flow.closed = window == Window::Closed;
            let dst = connection.flow.tuple.remote_addr();
            self.send_raw(nic, dst, &packet);
            return true;
        }
        let packet = old_byte(&connection.flow, local);
        let mut out = LinkOut {
            nic,
            link: &mut self.link,
            dst: connection.flow.tuple.remote_addr(),
            now: self.now,
        };
        let mut port =
            Port { packet: Some(&packet), out: &mut out, flow: Some(&mut connection.flow), window };
        self.iface.poll_ingress_single(self.now, &mut port, &mut connection.set);
        true
    }

    /// Sends a packet of ours that smoltcp knows nothing of.
    pub(super) fn send_raw(&mut self, nic: &mut impl Nic, dst: Ipv4Address, packet: &[u8]) {
        let now = self.now;
        self.link.transmit(nic, dst, packet.len(), now, |buf| buf.copy_from_slice(packet));
    }
}

/// Whether the peer has let our data wait for longer than `patience`. A peer that answers, if only to
/// say that its window is still closed, is there (RFC 1122 §4.2.2.17).
fn gives_up(connection: &Connection, patience: Duration, now: Instant) -> bool {
    let flow = &connection.flow;
    !flow.all_acknowledged() && now >= flow.progress.max(flow.heard) + patience
}
