//! The link layer: Ethernet and ARP for one IPv4 address.
//!
//! It lies below smoltcp, whose interface runs on bare IP packets. smoltcp's own neighbour cache has
//! eight entries, asks once per second for all of them together and is filled by ARP alone; after a
//! move every peer would wait for its turn. Here the table is hashed, learns from the frames of live
//! connections too, and moves with everything else.

mod arp;
mod neighbours;
mod nic;

pub(crate) use arp::ARP_FRAME_LEN;
use arp::arp_frame;
pub(crate) use neighbours::Neighbours;
use neighbours::{Lookup, Refresh};
pub use nic::Nic;

use alloc::vec;
use smoltcp::time::Instant;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    Ipv4Address, Ipv4Cidr,
};

use crate::hash::Key;

/// Bytes of an Ethernet header.
pub const ETHERNET_HEADER_LEN: usize = 14;
/// Longest IP packet, in bytes.
pub const MTU: usize = 1500;
/// Longest Ethernet frame without its check sequence, in bytes.
pub const MAX_FRAME_LEN: usize = ETHERNET_HEADER_LEN + MTU;

/// Our place on the link and the neighbours we know there.
#[derive(Debug)]
pub(crate) struct Link {
    mac: EthernetAddress,
    cidr: Ipv4Cidr,
    gateway: Option<Ipv4Address>,
    neighbours: Neighbours,
}

impl Link {
    pub fn new(
        mac: EthernetAddress,
        cidr: Ipv4Cidr,
        gateway: Option<Ipv4Address>,
        key: Key,
    ) -> Self {
        Self { mac, cidr, gateway, neighbours: Neighbours::new(key) }
    }

    pub fn mac(&self) -> EthernetAddress {
        self.mac
    }

    pub fn ip(&self) -> Ipv4Address {
        self.cidr.address()
    }

    pub fn cidr(&self) -> Ipv4Cidr {
        self.cidr
    }

    /// The neighbour a packet for `dst` is handed to.
    fn next_hop(&self, dst: Ipv4Address) -> Ipv4Address {
        if self.cidr.contains_addr(&dst) { dst } else { self.gateway.unwrap_or(dst) }
    }

    /// Takes note that `mac` handed us a segment of a live connection with `remote`.
    pub fn learn(&mut self, remote: Ipv4Address, mac: EthernetAddress, now: Instant) {
        if mac.is_unicast() {
            self.neighbours.insert(self.next_hop(remote), mac, now);
        }
    }

    /// Takes an ARP packet; the reply to send, if it asks for our address.
    ///
    /// Fills the table only from packets aimed at us or that tell of a neighbour already in it (a
    /// gratuitous ARP of a peer that changed its card): nobody can make it grow by chatting.
    pub fn arp_input(&mut self, payload: &[u8], now: Instant) -> Option<ArpRepr> {
        let packet = ArpPacket::new_checked(payload).ok()?;
        let ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr,
            source_protocol_addr,
            target_protocol_addr,
            ..
        } = ArpRepr::parse(&packet).ok()?
        else {
            return None;
        };
        if !source_hardware_addr.is_unicast()
            || !self.cidr.contains_addr(&source_protocol_addr)
            || source_protocol_addr == self.ip()
        {
            return None;
        }
        let for_us = target_protocol_addr == self.ip();
        if for_us || self.neighbours.knows(source_protocol_addr) {
            self.neighbours.insert(source_protocol_addr, source_hardware_addr, now);
        }
        (for_us && operation == ArpOperation::Request).then_some(ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Reply,
            source_hardware_addr: self.mac,
            source_protocol_addr: self.ip(),
            target_hardware_addr: source_hardware_addr,
            target_protocol_addr: source_protocol_addr,
        })
    }

    /// Tells switches and neighbours where our address lives now: a gratuitous ARP in request form,
    /// the only form Linux takes at once even when it thinks it knows better (RFC 5227 §3).
    #[must_use]
    pub fn announce(&self, nic: &mut impl Nic) -> bool {
        let repr = self.request(self.ip());
        nic.transmit(ARP_FRAME_LEN, |frame| arp_frame(frame, EthernetAddress::BROADCAST, &repr))
    }

    /// Has every neighbour asked for at its next use.
    pub fn doubt_neighbours(&mut self) {
        self.neighbours.doubt();
    }

    fn request(&self, target: Ipv4Address) -> ArpRepr {
        ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr: self.mac,
            source_protocol_addr: self.ip(),
            target_hardware_addr: EthernetAddress([0; 6]),
            target_protocol_addr: target,
        }
    }

    /// Hands an IP packet of `len` bytes, written by `fill`, to the neighbour on the way to `dst`.
    /// A neighbour not known yet is asked for, and the packet waits for the answer; the caller has
    /// seen that the ring has room.
    pub fn transmit<R>(
        &mut self,
        nic: &mut impl Nic,
        dst: Ipv4Address,
        len: usize,
        now: Instant,
        fill: impl FnOnce(&mut [u8]) -> R,
    ) -> R {
        let hop = self.next_hop(dst);
        match self.neighbours.lookup(hop, now) {
            Lookup::Known { mac, refresh } => {
                let result = self.transmit_to(nic, mac, len, fill);
                if refresh == Refresh::Ask {
                    // The old address stays in use while we ask.
                    self.ask(nic, hop);
                }
                result
            }
            Lookup::Unknown => {
                let mut frame = vec![0; ETHERNET_HEADER_LEN + len];
                let result = fill(&mut frame[ETHERNET_HEADER_LEN..]);
                if self.neighbours.wait(hop, frame, now) {
                    self.ask(nic, hop);
                }
                result
            }
        }
    }

    /// Hands an IP packet to a neighbour whose hardware address is known. Lost if the ring is full.
    pub fn transmit_to<R>(
        &self,
        nic: &mut impl Nic,
        mac: EthernetAddress,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> R,
    ) -> R {
        let mut fill = Some(fill);
        let mut result = None;
        nic.transmit(ETHERNET_HEADER_LEN + len, |frame| {
            self.header(frame, mac);
            result = fill.take().map(|fill| fill(&mut frame[ETHERNET_HEADER_LEN..]));
        });
        match (result, fill) {
            (Some(result), _) => result,
            (None, Some(fill)) => fill(&mut vec![0; len]),
            (None, None) => unreachable!("a closure taken has given its result"),
        }
    }

    /// Writes the Ethernet header of an IPv4 frame.
    pub fn header(&self, frame: &mut [u8], dst: EthernetAddress) {
        let mut frame = EthernetFrame::new_unchecked(frame);
        frame.set_src_addr(self.mac);
        frame.set_dst_addr(dst);
        frame.set_ethertype(EthernetProtocol::Ipv4);
    }

    /// Writes an ARP packet as a whole frame.
    pub fn arp_frame(frame: &mut [u8], dst: EthernetAddress, repr: &ArpRepr) {
        arp_frame(frame, dst, repr);
    }

    fn ask(&self, nic: &mut impl Nic, target: Ipv4Address) {
        let repr = self.request(target);
        nic.transmit(ARP_FRAME_LEN, |frame| arp_frame(frame, EthernetAddress::BROADCAST, &repr));
    }

    /// Sends what was waiting for a neighbour that is known by now, and asks again for the others.
    pub fn poll(&mut self, nic: &mut impl Nic, now: Instant) {
        while nic.transmit_ready()
            && let Some((mac, mut frame)) = self.neighbours.take_resolved()
        {
            self.header(&mut frame, mac);
            nic.transmit(frame.len(), |buf| buf.copy_from_slice(&frame));
        }
        while nic.transmit_ready()
            && let Some(target) = self.neighbours.next_question(now)
        {
            self.ask(nic, target);
        }
    }

    /// When [`poll`](Self::poll) has something to do.
    pub fn poll_at(&self) -> Option<Instant> {
        self.neighbours.poll_at()
    }
}

#[cfg(test)]
mod tests;
