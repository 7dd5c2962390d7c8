//! What answers for a service while it sleeps, so that no client gives up: a pure state machine.
//!
//! ```text
//!            suspend                                resume
//!  service ─────────▶ snapshot in the repository ─────────▶ service, on any host
//!                     holder on the service's address
//!                       ARP request          → reply
//!                       probe, keep-alive,   → <SEQ=SND.NXT><ACK=RCV.NXT><WND=0><CTL=ACK>
//!                       data beyond window 0
//!                       SYN                  → silence | RST | wake the service
//! ```
//!
//! 1. [`table`]: what it must know of each connection, from the guest at the freeze.
//! 2. [`packet`]: the few frames it can send.
//! 3. [`limit`]: how many of them.
//! 4. [`Holder`]: a frame in, at most one frame out.
//!
//! A Linux peer at a zero window probes for ever as long as its probes are answered (RFC 9293 §3.8.6.1),
//! and takes a keep-alive that is answered as proof of life (RFC 9293 §3.8.4); both ask for the same
//! segment. Nothing that a client sends is taken: what it sends will be sent again to the service
//! itself, FIN included.

pub mod limit;
pub mod packet;
pub mod table;

pub use table::{HeldConnection, HeldTable, TableError};

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetFrame, EthernetProtocol, Icmpv4Packet, Icmpv4Repr,
    IpProtocol, Ipv4Packet, TcpPacket,
};

use crate::hostnet::MacAddr;
use limit::{Bucket, Spacing};
use packet::{Ends, Side};

/// Time between two answers to one connection, at least. Linux probes and keeps alive at 200 ms and
/// above, so that only a peer that does not take our answer for one is slowed down.
const ANSWER_INTERVAL: Duration = Duration::from_millis(100);
/// ARP replies, echo replies and refusals in one second, at most.
const ARP_PER_SECOND: u32 = 1_000;
const ECHOES_PER_SECOND: u32 = 100;
const REFUSALS_PER_SECOND: u32 = 100;

/// What becomes of a client that opens a new connection to a sleeping service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum OnSyn {
    /// Silence: the client goes on asking, until the service is back or its own patience ends
    #[default]
    Hold,
    /// The client is refused at once
    Refuse,
    /// The service wakes up, and answers when the client asks again
    Wake,
}

impl std::fmt::Display for OnSyn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Hold => "hold",
            Self::Refuse => "refuse",
            Self::Wake => "wake",
        })
    }
}

/// What a holder has seen and done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Connections it answers for.
    pub connections: u32,
    /// Connections whose client has given up (RST).
    pub closed: u32,
    /// Zero-window ACKs sent.
    pub answers: u64,
    /// SYNs for new connections.
    pub syns: u64,
    /// Frames that were no business of the service: broken, or for somebody else.
    pub ignored: u64,
}

/// What comes of a frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reaction {
    /// The answer.
    pub frame: Option<Vec<u8>>,
    /// A client asks for the service, which is to be woken.
    pub wake: bool,
}

impl From<Option<Vec<u8>>> for Reaction {
    fn from(frame: Option<Vec<u8>>) -> Self {
        Self { frame, wake: false }
    }
}

/// A connection, seen from here.
#[derive(Clone, Copy, Debug)]
struct Flow {
    send_next: u32,
    recv_next: u32,
    closed: bool,
    spacing: Spacing,
}

/// Peer's address and port, our port.
type Tuple = (Ipv4Addr, u16, u16);

/// See the module. Times are since any fixed moment.
#[derive(Debug)]
pub struct Holder {
    us: Side,
    on_syn: OnSyn,
    flows: HashMap<Tuple, Flow>,
    ports: HashSet<u16>,
    arps: Bucket,
    echoes: Bucket,
    refusals: Bucket,
    counts: Counts,
}

impl Holder {
    /// A holder of the service at `ip` and `mac`.
    #[must_use]
    pub fn new(mac: MacAddr, ip: Ipv4Addr, table: &HeldTable, on_syn: OnSyn) -> Self {
        let flow = |connection: &HeldConnection| {
            let &HeldConnection { remote, remote_port, local_port, send_next, recv_next } =
                connection;
            let flow = Flow {
                send_next,
                recv_next,
                closed: false,
                spacing: Spacing::new(ANSWER_INTERVAL),
            };
            ((remote, remote_port, local_port), flow)
        };
        let flows: HashMap<Tuple, Flow> = table.connections.iter().map(flow).collect();
        let counts = Counts { connections: flows.len() as u32, ..Counts::default() };
        Self {
            us: Side { mac, ip },
            on_syn,
            flows,
            ports: table.ports.iter().copied().collect(),
            arps: Bucket::new(ARP_PER_SECOND),
            echoes: Bucket::new(ECHOES_PER_SECOND),
            refusals: Bucket::new(REFUSALS_PER_SECOND),
            counts,
        }
    }

    /// What it has seen and done so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// A gratuitous ARP in request form: switches learn where the service's address is now.
    #[must_use]
    pub fn announcement(&self) -> Vec<u8> {
        packet::gratuitous_arp(self.us)
    }

    /// Takes a frame that arrived at `now`. What is broken, or for somebody else, changes nothing.
    pub fn receive(&mut self, frame: &[u8], now: Duration) -> Reaction {
        let reaction = self.frame(frame, now);
        if reaction.is_none() {
            self.counts.ignored += 1;
        }
        reaction.unwrap_or_default()
    }

    /// `None`: it is no business of the service.
    fn frame(&mut self, bytes: &[u8], now: Duration) -> Option<Reaction> {
        let frame = EthernetFrame::new_checked(bytes).ok()?;
        let (from, to) = (MacAddr(frame.src_addr().0), MacAddr(frame.dst_addr().0));
        if !frame.src_addr().is_unicast() || from == self.us.mac {
            return None;
        }
        let to_all = frame.dst_addr().is_broadcast();
        if to != self.us.mac && !to_all {
            return None;
        }
        match frame.ethertype() {
            EthernetProtocol::Arp => self.arp(frame.payload(), now),
            EthernetProtocol::Ipv4 if !to_all => self.ip(frame.payload(), from, now),
            _ => None,
        }
    }

    /// RFC 826. Also a probe of somebody who is about to take the address (RFC 5227 §2.1.1) is answered.
    fn arp(&mut self, bytes: &[u8], now: Duration) -> Option<Reaction> {
        let ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr,
            source_protocol_addr,
            target_protocol_addr,
            ..
        } = ArpRepr::parse(&ArpPacket::new_checked(bytes).ok()?).ok()?
        else {
            return None;
        };
        let asker = Side { mac: MacAddr(source_hardware_addr.0), ip: source_protocol_addr };
        let asked = operation == ArpOperation::Request && target_protocol_addr == self.us.ip;
        // A gratuitous ARP for our address is nobody's question.
        if !asked || asker.ip == self.us.ip || !source_hardware_addr.is_unicast() {
            return None;
        }
        if asker.mac == self.us.mac {
            return None;
        }
        let reply = self.arps.take(now).then(|| packet::arp_reply(self.us, asker));
        Some(reply.into())
    }

    fn ip(&mut self, bytes: &[u8], from: MacAddr, now: Duration) -> Option<Reaction> {
        let ip = Ipv4Packet::new_checked(bytes).ok()?;
        let fragment = ip.more_frags() || ip.frag_offset() != 0;
        let source = ip.src_addr();
        let host = !source.is_multicast() && !source.is_broadcast() && !source.is_unspecified();
        if ip.version() != 4
            || !ip.verify_checksum()
            || fragment
            || ip.dst_addr() != self.us.ip
            || source == self.us.ip
            || !host
        {
            return None;
        }
        let ends = Ends { us: self.us, peer: Side { mac: from, ip: source } };
        match ip.next_header() {
            IpProtocol::Tcp => self.tcp(ip.payload(), ends, now),
            IpProtocol::Icmp => self.icmp(ip.payload(), ends, now),
            _ => None,
        }
    }

    fn icmp(&mut self, bytes: &[u8], ends: Ends, now: Duration) -> Option<Reaction> {
        let packet = Icmpv4Packet::new_checked(bytes).ok()?;
        let Icmpv4Repr::EchoRequest { ident, seq_no, data } =
            Icmpv4Repr::parse(&packet, &ChecksumCapabilities::default()).ok()?
        else {
            return None;
        };
        let reply = Icmpv4Repr::EchoReply { ident, seq_no, data };
        Some(self.echoes.take(now).then(|| packet::icmp(ends, &reply)).into())
    }

    fn tcp(&mut self, bytes: &[u8], ends: Ends, now: Duration) -> Option<Reaction> {
        let segment = TcpPacket::new_checked(bytes).ok()?;
        let good = segment.verify_checksum(&ends.peer.ip.into(), &ends.us.ip.into());
        if !good || segment.src_port() == 0 || segment.dst_port() == 0 {
            return None;
        }
        let opens = segment.syn() && !segment.ack() && !segment.rst() && !segment.fin();
        let tuple = (ends.peer.ip, segment.src_port(), segment.dst_port());
        match self.flows.get_mut(&tuple) {
            Some(flow) if !flow.closed => {
                let seq = segment.seq_number().0.cast_unsigned();
                if segment.rst() {
                    // With a zero window only this one is acceptable (RFC 5961 §3.2).
                    if seq == flow.recv_next {
                        flow.closed = true;
                        self.counts.closed += 1;
                    }
                    return Some(Reaction::default());
                }
                if !segment.ack() && !opens {
                    return None;
                }
                // RFC 9293 §3.10.7.4: an acceptable segment is an ACK and no more, and two stacks that
                // acknowledged each other's would never end; everything else is told where we stand.
                let acceptable = segment.segment_len() == 0 && seq == flow.recv_next;
                if acceptable || !flow.spacing.take(now) {
                    return Some(Reaction::default());
                }
                self.counts.answers += 1;
                let ports = (tuple.2, tuple.1);
                let ack = packet::zero_window_ack(ends, ports, flow.send_next, flow.recv_next);
                Some(Some(ack).into())
            }
            _ if opens => Some(self.opens(&segment, ends, now)),
            _ => None,
        }
    }

    /// A SYN that belongs to no connection.
    fn opens(&mut self, syn: &TcpPacket<&[u8]>, ends: Ends, now: Duration) -> Reaction {
        self.counts.syns += 1;
        match self.on_syn {
            OnSyn::Hold => Reaction::default(),
            OnSyn::Wake => Reaction { frame: None, wake: self.ports.contains(&syn.dst_port()) },
            OnSyn::Refuse => self.refusals.take(now).then(|| packet::refusal(ends, syn)).into(),
        }
    }
}

#[cfg(test)]
mod tests;
