//! A frame's way in.

use alloc::boxed::Box;
use ferry_protocol::mark;
use smoltcp::socket::tcp::State;
use smoltcp::time::Duration;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, TcpPacket,
    TcpSeqNumber,
};

use super::{Mode, Stack, no_sockets};
use crate::device::{Flow, Output, Port, Tuple, Window, bare_ack, duplicate_ack, old_byte};
use crate::drain::Answer;
use crate::link::Nic;
use crate::table::connection::{Connection, Ended, Owner};
use crate::table::established::ConnId;

/// A handshake not finished by then is forgotten.
const HALF_OPEN_TIMEOUT: Duration = Duration::from_secs(15);
/// Least segment size a peer can ask for (Linux: `tcp_min_snd_mss`): with an MSS of 8 each octet sent would cost
/// seven of headers.
const LEAST_MSS: u16 = 48;
/// SYNs kept in a drain.
const MAX_HELD_SYNS: usize = 256;

impl Stack {
    /// Takes up to `budget` frames; how many there were.
    pub(super) fn receive(&mut self, nic: &mut impl Nic, budget: u32) -> u32 {
        for taken in 0..budget {
            self.reply.clear();
            if nic.receive(|frame| self.frame(frame)).is_none() {
                return taken;
            }
            self.reply.transmit(nic, self.running());
        }
        budget
    }

    /// Takes one frame that does not come from the card.
    pub(super) fn replay(&mut self, nic: &mut impl Nic, frame: &[u8]) {
        self.reply.clear();
        self.frame(frame);
        self.reply.transmit(nic, self.running());
    }

    fn frame(&mut self, bytes: &[u8]) {
        let Ok(frame) = EthernetFrame::new_checked(bytes) else { return };
        let dst = frame.dst_addr();
        if dst != self.link.mac() && !dst.is_broadcast() {
            if let Some(number) = mark::number(bytes) {
                self.mark = Some(number);
            }
            return;
        }
        match frame.ethertype() {
            EthernetProtocol::Arp => {
                if let Some(repr) = self.link.arp_input(frame.payload(), self.now) {
                    self.reply.arp(frame.src_addr(), &repr);
                }
            }
            EthernetProtocol::Ipv4 if !dst.is_broadcast() => {
                self.reply.to = frame.src_addr();
                self.packet(bytes, frame.payload(), frame.src_addr());
                self.reply.address(&self.link);
            }
            _ => {}
        }
    }

    fn packet(&mut self, frame: &[u8], bytes: &[u8], from: EthernetAddress) {
        let Ok(ip) = Ipv4Packet::new_checked(bytes) else { return };
        let fragment = ip.more_frags() || ip.frag_offset() != 0;
        let ours = ip.dst_addr() == self.link.ip() && ip.src_addr() != self.link.ip();
        if !ours || fragment || !ip.verify_checksum() {
            return;
        }
        if ip.next_header() != IpProtocol::Tcp {
            return self.stray(bytes);
        }
        let Ok(segment) = TcpPacket::new_checked(ip.payload()) else { return };
        if !segment.verify_checksum(&ip.src_addr().into(), &ip.dst_addr().into()) {
            return;
        }
        let tuple = Tuple {
            remote: ip.src_addr().to_bits(),
            remote_port: segment.src_port(),
            local_port: segment.dst_port(),
        };
        let opens = segment.syn() && !segment.ack() && !segment.rst() && !segment.fin();
        if let Some(id) = self.established.find(&tuple) {
            self.link.learn(ip.src_addr(), from, self.now);
            if !opens || self.opening(id) {
                return self.segment(id, bytes, &segment);
            }
            if !self.reopened(id, &segment) {
                return;
            }
        } else if let Some(entry) = self.time_waits.find(&tuple) {
            if !(opens && entry.reopens(segment.seq_number())) {
                return self.time_wait_segment(&segment, tuple);
            }
            self.time_waits.remove(&tuple);
        }
        if opens && self.bind.contains(tuple.local_port) {
            self.open(frame, bytes, &segment, tuple);
        } else {
            self.stray(bytes);
        }
    }

    /// A packet that belongs to no connection: echo requests are answered, the rest refused.
    fn stray(&mut self, packet: &[u8]) {
        let window = self.window();
        let mut port = Port { packet: Some(packet), out: &mut self.reply, flow: None, window };
        self.iface.poll_ingress_single(self.now, &mut port, &mut no_sockets());
    }

    /// Whether we have sent a SYN ourselves: the peer's may come with or without its ACK.
    fn opening(&self, id: ConnId) -> bool {
        self.established.get(id).is_some_and(|connection| connection.state() == State::SynSent)
    }

    /// A SYN for a connection there is; `true` if it may make a new one. In TIME-WAIT a newer one does;
    /// anywhere else it stays with the live connection, which answers a challenge ACK (RFC 5961 §4): a
    /// peer that has restarted then sends RST, a forger learns nothing. In SYN-RECEIVED it is the same
    /// SYN again, and the SYN-ACK is repeated by its timer.
    fn reopened(&mut self, id: ConnId, segment: &TcpPacket<&[u8]>) -> bool {
        let Some(connection) = self.established.get_mut(id) else { return false };
        let bound = self.bind.contains(connection.flow.tuple.local_port);
        match connection.state() {
            State::TimeWait if bound && segment.seq_number() > connection.flow.rcv_nxt => {
                // What the service has not read yet stays readable through its handle.
                self.established.unhash(id);
                true
            }
            _ if !connection.synchronised() => false,
            _ => {
                if self.now >= connection.challenge_after {
                    connection.challenge_after = self.now + Duration::from_secs(1);
                    self.acknowledge(id);
                }
                false
            }
        }
    }

    /// Makes smoltcp acknowledge what it has, into the reply.
    fn acknowledge(&mut self, id: ConnId) {
        let window = self.window();
        let local = self.link.ip();
        let Some(connection) = self.established.get_mut(id) else { return };
        let packet = old_byte(&connection.flow, local);
        let mut port = Port {
            packet: Some(&packet),
            out: &mut self.reply,
            flow: Some(&mut connection.flow),
            window,
        };
        self.iface.poll_ingress_single(self.now, &mut port, &mut connection.set);
    }

    /// A SYN for a bound port: a new connection inherits it.
    fn open(&mut self, frame: &[u8], packet: &[u8], segment: &TcpPacket<&[u8]>, tuple: Tuple) {
        if matches!(self.mode, Mode::Draining(_)) {
            // Answering would begin something the drain has to wait for, dropping costs the client a
            // second. Kept, the SYN moves along and is answered first thing after the move.
            if self.held_syns.len() < MAX_HELD_SYNS {
                self.held_syns.push(frame.into());
            }
            return;
        }
        let port = tuple.local_port;
        if !self.bind.get_mut(port).is_some_and(|listener| listener.admits()) {
            return;
        }
        let Some(storage) = self.buffers.allocate(port) else {
            log::debug!("no memory for a connection on port {port}: SYN dropped");
            return;
        };
        self.renew_interface();
        let mut flow = Flow::new(tuple, self.now);
        flow.syn_received(segment);
        let mut connection = Box::new(Connection::new(storage, flow, Owner::HalfOpen));
        if connection.socket_mut().listen((self.link.ip(), port)).is_err() {
            return;
        }
        let window = self.window();
        let raised = raised_mss(packet);
        let mut device = Port {
            packet: Some(raised.as_deref().unwrap_or(packet)),
            out: &mut self.reply,
            flow: Some(&mut connection.flow),
            window,
        };
        self.iface.poll_ingress_single(self.now, &mut device, &mut connection.set);
        if connection.state() != State::SynReceived {
            return;
        }
        self.link.learn(tuple.remote_addr(), self.reply.to, self.now);
        connection.expires = Some(self.now + HALF_OPEN_TIMEOUT);
        if let Some(listener) = self.bind.get_mut(port) {
            listener.half_open += 1;
        }
        let id = self.established.insert(connection);
        self.mark_ready(id);
    }

    /// A segment of a connection there is.
    fn segment(&mut self, id: ConnId, packet: &[u8], segment: &TcpPacket<&[u8]>) {
        let window = self.window();
        let Some(connection) = self.established.get_mut(id) else { return };
        if overruns(connection, segment) {
            return;
        }
        let was = connection.state();
        let (received, unsent) =
            (connection.socket().recv_queue(), connection.socket().send_queue());
        let una = connection.flow.una;
        let raised = if segment.syn() { raised_mss(packet) } else { None };
        let packet = raised.as_deref().unwrap_or(packet);
        if was == State::SynSent && segment.syn() {
            connection.flow.syn_received(segment);
        }
        let repeated = repeated(connection, segment);
        let answers_probe = connection.flow.answers_probe(segment);
        let asks = connection.flow.asks(segment);
        let news = connection.flow.received(segment, self.now);
        if !answers_probe {
            let closed = connection.flow.closed;
            let mut port = Port {
                packet: Some(packet),
                out: &mut self.reply,
                flow: Some(&mut connection.flow),
                window,
            };
            self.iface.poll_ingress_single(self.now, &mut port, &mut connection.set);
            // A reply may find the ring full.
            connection.flow.closed = closed;
        }
        if let Some(block) = repeated
            && self.reply.acknowledges()
        {
            let shown = if window == Window::Closed { 0 } else { connection.flow.last_window };
            let packet = duplicate_ack(&connection.flow, self.link.ip(), shown, block);
            self.reply.send(packet.len(), |buf| buf.copy_from_slice(&packet));
        }

        let is = connection.state();
        let arrived = connection.socket().recv_queue().saturating_sub(received);
        let finished = finished(was, is);
        connection.flow.advanced(arrived + usize::from(finished));
        if !segment.payload().is_empty() {
            connection.flow.out_of_order(segment.seq_number() + segment.payload().len());
        }
        self.woke |= is != was || arrived > 0 || connection.socket().send_queue() < unsent;
        if is != was {
            self.state_changed(id, was, is);
        }
        if matches!(self.mode, Mode::Draining(_)) {
            self.drain_heard(id, answer(segment, una, news || asks));
        } else {
            // Told before a drain, it has read another window since, or speaks.
            if let Some(connection) = self.established.get_mut(id) {
                connection.drain = None;
            }
            self.mark_ready(id);
        }
    }

    /// What a change of state means for the tables.
    pub(super) fn state_changed(&mut self, id: ConnId, was: State, is: State) {
        let Some(connection) = self.established.get_mut(id) else { return };
        let port = connection.flow.tuple.local_port;
        if connection.owner == Owner::HalfOpen {
            if let Some(listener) = self.bind.get_mut(port) {
                listener.half_open = listener.half_open.saturating_sub(1);
                if matches!(is, State::Established | State::CloseWait) {
                    connection.owner = Owner::Queued;
                    connection.expires = None;
                    listener.push(id);
                }
            }
            if connection.owner == Owner::HalfOpen {
                // RST in SYN-RECEIVED, or the handshake timed out.
                self.established.remove(id);
                return;
            }
        }
        if is == State::Closed {
            if was != State::LastAck && connection.ended.is_none() {
                connection.ended = Some(Ended::Reset);
            } else if connection.flow.awaits_answer(self.now) {
                // What the peer still answers to a barrier must not be refused.
                self.time_waits.linger(&connection.flow, self.now);
            }
            self.close_ended(id);
        }
    }

    /// A segment for a connection of which only TIME-WAIT is left: it is acknowledged, unless it is
    /// itself no more than that (RFC 9293 §3.10.7.4; RST is ignored, RFC 1337).
    fn time_wait_segment(&mut self, segment: &TcpPacket<&[u8]>, tuple: Tuple) {
        if segment.rst() || (segment.segment_len() == 0 && segment.ack()) {
            return;
        }
        let Some(entry) = self.time_waits.restart(&tuple, self.now) else { return };
        let packet = bare_ack(&tuple, self.link.ip(), entry.seq, entry.ack);
        self.reply.send(packet.len(), |buf| buf.copy_from_slice(&packet));
    }
}

/// Whether the state change says that the peer's FIN was taken.
fn finished(was: State, is: State) -> bool {
    use State::{CloseWait, Closing, Established, FinWait1, FinWait2, SynReceived, TimeWait};
    matches!(
        (was, is),
        (SynReceived | Established, CloseWait)
            | (FinWait1, Closing | TimeWait)
            | (FinWait2, TimeWait)
    )
}

/// Whether the segment goes beyond the receive buffer.
///
/// The window of a SYN is not scaled, but smoltcp 0.14 remembers it as if it were: until its first
/// ordinary segment it takes up to 65,535 << shift octets, and panics when they do not fit. Only a
/// peer that ignores the window it was offered sends that.
fn overruns(connection: &Connection, segment: &TcpPacket<&[u8]>) -> bool {
    if !connection.flow.window_is_syn || segment.payload().is_empty() || segment.syn() {
        return false;
    }
    let socket = connection.socket();
    let room = socket.recv_capacity() - socket.recv_queue();
    segment.seq_number() + segment.payload().len() > connection.flow.rcv_nxt + room
}

/// The octets of a segment of which none is new, for a peer that understands D-SACK. While others wait for a hole to
/// be filled, smoltcp's own SACK blocks say more.
fn repeated(
    connection: &Connection,
    segment: &TcpPacket<&[u8]>,
) -> Option<(TcpSeqNumber, TcpSeqNumber)> {
    let flow = &connection.flow;
    let (start, end) = (segment.seq_number(), segment.seq_number() + segment.payload().len());
    let control = segment.syn() || segment.rst();
    let old = start < end && end <= flow.rcv_nxt && !control && connection.synchronised();
    (old && flow.sack_permitted && !flow.has_out_of_order()).then_some((start, end))
}

/// What a segment says about a barrier. `una`: SND.UNA before it; `other`: it says something else too. It
/// acknowledges more than that, which the answer of a peer that delays its ACKs does, or it asks.
fn answer(segment: &TcpPacket<&[u8]>, una: TcpSeqNumber, other: bool) -> Answer {
    if !segment.ack() || segment.segment_len() != 0 || segment.rst() {
        return Answer::None;
    }
    match segment.selective_ack_ranges() {
        Ok([Some((left, right)), ..])
            if right == left.wrapping_add(1) && TcpSeqNumber(right as i32) <= una =>
        {
            Answer::DuplicateSack(TcpSeqNumber(left as i32))
        }
        _ if other || segment.ack_number() != una => Answer::None,
        Ok([Some(_), ..]) => Answer::Hole,
        _ => Answer::Bare,
    }
}

/// A copy of the packet of a SYN with the maximum segment size raised to [`LEAST_MSS`], if it asks for less. Its
/// checksum is not mended: it has been verified.
fn raised_mss(packet: &[u8]) -> Option<Box<[u8]>> {
    let ip = Ipv4Packet::new_checked(packet).ok()?;
    let tcp = TcpPacket::new_checked(ip.payload()).ok()?;
    let first = usize::from(ip.header_len());
    let (mut at, end) = (first + 20, first + usize::from(tcp.header_len()));
    let mut raised = None;
    while at < end {
        match packet[at..end] {
            [0, ..] => break,
            [1, ..] => at += 1,
            [2, 4, high, low, ..] => {
                let asked = u16::from_be_bytes([high, low]);
                // smoltcp refuses one of 0.
                if (1..LEAST_MSS).contains(&asked) {
                    let copy: &mut Box<[u8]> = raised.get_or_insert_with(|| packet.into());
                    copy[at + 2..at + 4].copy_from_slice(&LEAST_MSS.to_be_bytes());
                }
                at += 4;
            }
            [_, len, ..] if len >= 2 => at += usize::from(len),
            _ => break,
        }
    }
    raised
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A SYN with these options.
    fn syn(options: &[u8]) -> alloc::vec::Vec<u8> {
        let mut bytes = alloc::vec![0; 40 + options.len()];
        let len = bytes.len() as u16;
        let mut ip = Ipv4Packet::new_unchecked(&mut bytes);
        ip.set_version(4);
        ip.set_header_len(20);
        ip.set_total_len(len);
        ip.set_next_header(IpProtocol::Tcp);
        let mut tcp = TcpPacket::new_unchecked(&mut bytes[20..]);
        tcp.set_src_port(1);
        tcp.set_dst_port(7);
        tcp.set_syn(true);
        tcp.set_header_len(20 + options.len() as u8);
        bytes[40..].copy_from_slice(options);
        bytes
    }

    #[test]
    fn a_tiny_segment_size_is_raised_and_nothing_else_changes() {
        let options = |mss: [u8; 2]| [1, 3, 3, 7, 2, 4, mss[0], mss[1], 4, 2, 0, 0];
        let tiny = syn(&options([0, 8]));
        assert_eq!(raised_mss(&tiny).as_deref(), Some(&syn(&options([0, 48]))[..]));
        for decent in [[0, 0], [0, 48], [2, 24], [5, 180]] {
            assert_eq!(raised_mss(&syn(&options(decent))), None, "{decent:?}");
        }
        // Options that are cut short, or claim no length.
        for odd in [[1, 1, 1, 2], [2, 4, 0, 0], [2, 0, 0, 8], [9, 1, 2, 4], [9, 200, 2, 4]] {
            assert_eq!(raised_mss(&syn(&odd)), None, "{odd:?}");
        }
    }
}
