//! The frames a holder can send: ARP reply and announcement, echo reply, the zero-window ACK, and the
//! refusal of a SYN. There are no others.

use std::net::Ipv4Addr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    EthernetRepr, Icmpv4Packet, Icmpv4Repr, IpProtocol, Ipv4Packet, Ipv4Repr, TcpControl,
    TcpPacket, TcpRepr, TcpSeqNumber,
};

use crate::hostnet::MacAddr;

/// As the service's own packets have it.
const TIME_TO_LIVE: u8 = 64;

/// A host of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Side {
    pub mac: MacAddr,
    pub ip: Ipv4Addr,
}

/// Between whom a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The service.
    pub us: Side,
    /// The client: its address, and whose Ethernet address the frame came from.
    pub peer: Side,
}

fn frame(
    from: MacAddr,
    to: EthernetAddress,
    ethertype: EthernetProtocol,
    payload_len: usize,
    fill: impl FnOnce(&mut [u8]),
) -> Vec<u8> {
    let repr = EthernetRepr { src_addr: EthernetAddress(from.0), dst_addr: to, ethertype };
    let mut bytes = vec![0; repr.buffer_len() + payload_len];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
    repr.emit(&mut frame);
    fill(frame.payload_mut());
    bytes
}

fn arp(us: Side, to: EthernetAddress, repr: &ArpRepr) -> Vec<u8> {
    frame(us.mac, to, EthernetProtocol::Arp, repr.buffer_len(), |payload| {
        repr.emit(&mut ArpPacket::new_unchecked(payload));
    })
}

/// The answer to a question for our Ethernet address.
#[must_use]
pub fn arp_reply(us: Side, asker: Side) -> Vec<u8> {
    let to = EthernetAddress(asker.mac.0);
    let repr = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: EthernetAddress(us.mac.0),
        source_protocol_addr: us.ip,
        target_hardware_addr: to,
        target_protocol_addr: asker.ip,
    };
    arp(us, to, &repr)
}

/// Tells every switch and host where we are: in request form, which Linux takes where it may refuse the
/// reply form for a second.
#[must_use]
pub fn gratuitous_arp(us: Side) -> Vec<u8> {
    let repr = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: EthernetAddress(us.mac.0),
        source_protocol_addr: us.ip,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: us.ip,
    };
    arp(us, EthernetAddress::BROADCAST, &repr)
}

fn ip(
    ends: Ends,
    next_header: IpProtocol,
    payload_len: usize,
    fill: impl FnOnce(&mut [u8]),
) -> Vec<u8> {
    let repr = Ipv4Repr {
        src_addr: ends.us.ip,
        dst_addr: ends.peer.ip,
        next_header,
        payload_len,
        hop_limit: TIME_TO_LIVE,
    };
    let to = EthernetAddress(ends.peer.mac.0);
    let len = repr.buffer_len() + payload_len;
    frame(ends.us.mac, to, EthernetProtocol::Ipv4, len, |payload| {
        let mut packet = Ipv4Packet::new_unchecked(payload);
        repr.emit(&mut packet, &ChecksumCapabilities::default());
        fill(packet.payload_mut());
    })
}

/// An ICMP message.
#[must_use]
pub fn icmp(ends: Ends, repr: &Icmpv4Repr<'_>) -> Vec<u8> {
    ip(ends, IpProtocol::Icmp, repr.buffer_len(), |payload| {
        repr.emit(&mut Icmpv4Packet::new_unchecked(payload), &ChecksumCapabilities::default());
    })
}

fn tcp(ends: Ends, repr: &TcpRepr<'_>) -> Vec<u8> {
    ip(ends, IpProtocol::Tcp, repr.buffer_len(), |payload| {
        let (us, peer) = (ends.us.ip.into(), ends.peer.ip.into());
        repr.emit(
            &mut TcpPacket::new_unchecked(payload),
            &us,
            &peer,
            &ChecksumCapabilities::default(),
        );
    })
}

/// A segment without options or data. `ports` are ours and the peer's.
fn bare(ports: (u16, u16), control: TcpControl, seq: u32, ack: u32) -> TcpRepr<'static> {
    TcpRepr {
        src_port: ports.0,
        dst_port: ports.1,
        control,
        seq_number: TcpSeqNumber(seq.cast_signed()),
        ack_number: Some(TcpSeqNumber(ack.cast_signed())),
        window_len: 0,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    }
}

/// `<SEQ=SND.NXT><ACK=RCV.NXT><CTL=ACK>` with window 0.
#[must_use]
pub fn zero_window_ack(ends: Ends, ports: (u16, u16), send_next: u32, recv_next: u32) -> Vec<u8> {
    tcp(ends, &bare(ports, TcpControl::None, send_next, recv_next))
}

/// `<SEQ=0><ACK=SEG.SEQ+SEG.LEN><CTL=RST,ACK>` (RFC 9293 §3.10.7.1).
#[must_use]
pub fn refusal(ends: Ends, syn: &TcpPacket<&[u8]>) -> Vec<u8> {
    let ack = (syn.seq_number() + syn.segment_len()).0.cast_unsigned();
    tcp(ends, &bare((syn.dst_port(), syn.src_port()), TcpControl::Rst, 0, ack))
}
