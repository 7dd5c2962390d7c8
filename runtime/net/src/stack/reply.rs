//! The answer to one frame.

use alloc::boxed::Box;
use alloc::vec;
use smoltcp::wire::{ArpRepr, EthernetAddress, IpProtocol, Ipv4Packet, TcpPacket};

use crate::device::Output;
use crate::link::{ARP_FRAME_LEN, ETHERNET_HEADER_LEN, Link, MAX_FRAME_LEN, MTU, Nic};

/// The answer to one frame, kept until the frame's place in the ring is free.
#[derive(Debug)]
pub(super) struct Reply {
    frame: Box<[u8]>,
    /// Bytes of the whole frame; 0 is none.
    len: usize,
    /// Who handed us the frame.
    pub to: EthernetAddress,
    /// The packet carries a RST.
    refusal: bool,
}

impl Reply {
    pub fn new() -> Self {
        Self {
            frame: vec![0; MAX_FRAME_LEN].into_boxed_slice(),
            len: 0,
            to: EthernetAddress([0; 6]),
            refusal: false,
        }
    }

    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Whether there is an answer that refuses nothing.
    pub fn acknowledges(&self) -> bool {
        self.len > 0 && !self.refusal
    }

    /// Answers with an ARP packet.
    pub fn arp(&mut self, to: EthernetAddress, repr: &ArpRepr) {
        Link::arp_frame(&mut self.frame, to, repr);
        (self.len, self.refusal) = (ARP_FRAME_LEN, false);
    }

    /// Puts the Ethernet header before an IP packet.
    pub fn address(&mut self, link: &Link) {
        if self.len > 0 {
            link.header(&mut self.frame, self.to);
        }
    }

    /// Sends it, if there is one; one that refuses something only if that `may_refuse`. Lost if the
    /// ring is full, as on any wire.
    pub fn transmit(&self, nic: &mut impl Nic, may_refuse: bool) {
        if self.len > 0 && (may_refuse || !self.refusal) {
            nic.transmit(self.len, |buf| buf.copy_from_slice(&self.frame[..self.len]));
        }
    }
}

impl Output for Reply {
    fn ready(&mut self) -> bool {
        true
    }

    fn send<R>(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let len = len.min(MTU);
        let packet = &mut self.frame[ETHERNET_HEADER_LEN..ETHERNET_HEADER_LEN + len];
        let result = fill(packet);
        self.len = ETHERNET_HEADER_LEN + len;
        self.refusal = refuses(packet);
        result
    }
}

/// RST, or ICMP destination unreachable.
fn refuses(packet: &[u8]) -> bool {
    let Ok(ip) = Ipv4Packet::new_checked(packet) else { return false };
    match ip.next_header() {
        IpProtocol::Tcp => TcpPacket::new_checked(ip.payload()).is_ok_and(|tcp| tcp.rst()),
        IpProtocol::Icmp => ip.payload().first() == Some(&3),
        _ => false,
    }
}
