//! ARP frames (RFC 826).

use smoltcp::wire::{ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol};

use super::ETHERNET_HEADER_LEN;

/// Bytes of an ARP frame for IPv4 over Ethernet.
pub(crate) const ARP_FRAME_LEN: usize = ETHERNET_HEADER_LEN + 28;

/// Writes `repr` as a frame from its sender to `dst`.
pub(super) fn arp_frame(frame: &mut [u8], dst: EthernetAddress, repr: &ArpRepr) {
    let mut ethernet = EthernetFrame::new_unchecked(&mut frame[..ARP_FRAME_LEN]);
    if let ArpRepr::EthernetIpv4 { source_hardware_addr, .. } = repr {
        ethernet.set_src_addr(*source_hardware_addr);
    }
    ethernet.set_dst_addr(dst);
    ethernet.set_ethertype(EthernetProtocol::Arp);
    repr.emit(&mut ArpPacket::new_unchecked(ethernet.payload_mut()));
}
