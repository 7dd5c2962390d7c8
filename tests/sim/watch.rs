//! Reads every frame between the service and its clients, and objects to what TCP does not allow.

use std::collections::BTreeMap;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Address,
    Ipv4Packet, Ipv4Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
};

type Address = [u8; 4];

/// A client's address and port.
type Peer = (Address, u16);

#[derive(Debug, Default)]
struct Flow {
    client_scale: u8,
    /// Last window field of the client.
    client_window: u16,
    /// End of what the client has sent.
    client_end: Option<TcpSeqNumber>,
    /// Highest ACK number the client has sent.
    client_ack: Option<TcpSeqNumber>,
    /// Highest right edge the client has offered.
    right_edge: Option<TcpSeqNumber>,
    /// The service's first octet.
    first: Option<TcpSeqNumber>,
    /// Highest ACK number the service has sent.
    ack: Option<TcpSeqNumber>,
    /// What the service has sent, from `first` on.
    sent: Vec<u8>,
    zero_windows: u32,
    open_windows: u32,
}

#[derive(Default)]
pub struct Watch {
    flows: BTreeMap<Peer, Flow>,
    draining: bool,
    /// The windows of quiet peers are being closed, or are.
    closing: bool,
    /// Gratuitous ARPs of the service.
    pub announcements: u32,
    /// Segments of the service.
    pub segments: u64,
}

impl Watch {
    pub fn client_sent(&mut self, bytes: &[u8]) {
        let Some((src, _, ip)) = ipv4(bytes) else { return };
        let segment = TcpPacket::new_checked(ip.payload()).expect("clients send TCP");
        let flow = self.flows.entry((src, segment.src_port())).or_default();
        let end = segment.seq_number() + segment.segment_len();
        if segment.syn() {
            *flow = Flow::default();
            let mut options = segment.options();
            while let Ok((rest, option)) = smoltcp::wire::TcpOption::parse(options)
                && !options.is_empty()
            {
                if let smoltcp::wire::TcpOption::WindowScale(scale) = option {
                    flow.client_scale = scale;
                }
                options = rest;
            }
        }
        flow.client_end = Some(flow.client_end.map_or(end, |known| known.max(end)));
        flow.client_window = segment.window_len();
        if segment.ack() {
            let ack = segment.ack_number();
            flow.client_ack = Some(flow.client_ack.map_or(ack, |known| known.max(ack)));
            let edge = ack + (usize::from(segment.window_len()) << flow.client_scale);
            flow.right_edge = Some(flow.right_edge.map_or(edge, |known| known.max(edge)));
        }
    }

    pub fn service_sent(&mut self, bytes: &[u8]) {
        if let Some(arp) = arp(bytes) {
            let ArpRepr::EthernetIpv4 {
                operation, source_protocol_addr, target_protocol_addr, ..
            } = arp
            else {
                return;
            };
            if source_protocol_addr == target_protocol_addr {
                assert_eq!(operation, ArpOperation::Request, "a gratuitous ARP is a request");
                self.announcements += 1;
            }
            return;
        }
        let (_, dst, ip) = ipv4(bytes).expect("the service sends ARP and IPv4");
        assert!(ip.verify_checksum(), "IP checksum");
        let segment = TcpPacket::new_checked(ip.payload()).expect("the service sends TCP");
        assert!(
            segment.verify_checksum(&ip.src_addr().into(), &ip.dst_addr().into()),
            "TCP checksum of {segment}"
        );
        assert!(!segment.rst(), "RST from the service: {segment}");
        self.segments += 1;
        let draining = self.draining;
        let flow = self.flows.get_mut(&(dst, segment.dst_port())).expect("a client that spoke");
        if self.closing && segment.window_len() != 0 {
            flow.zero_windows = 0;
        }
        let closing = self.closing;
        flow.check(&segment, draining, closing);
    }

    /// Whoever is told from now on need not be told in the drain.
    pub fn quiet_closes(&mut self) {
        self.closing = true;
        self.flows.values_mut().for_each(|flow| flow.zero_windows = 0);
    }

    pub fn drain_begins(&mut self) {
        self.draining = true;
        if !std::mem::take(&mut self.closing) {
            self.flows.values_mut().for_each(|flow| flow.zero_windows = 0);
        }
    }

    pub fn drain_ends(&mut self) {
        self.draining = false;
        self.flows.values_mut().for_each(|flow| flow.open_windows = 0);
    }

    /// Zero-window ACKs sent to this peer in the drain, or before it and not taken back since.
    pub fn zero_windows(&self, peer: Peer) -> u32 {
        self.flows.get(&peer).map_or(0, |flow| flow.zero_windows)
    }

    /// A segment of this client's that makes the service acknowledge: one octet it has already, or the
    /// client's FIN again.
    pub fn probe(&self, peer: Peer, service: ([u8; 4], u16), fin: bool) -> Option<Vec<u8>> {
        let flow = self.flows.get(&peer)?;
        let last = if fin { flow.client_end? } else { flow.ack? };
        let tcp = TcpRepr {
            src_port: peer.1,
            dst_port: service.1,
            control: if fin { TcpControl::Fin } else { TcpControl::None },
            seq_number: TcpSeqNumber(last.0.wrapping_sub(1)),
            ack_number: flow.client_ack,
            window_len: flow.client_window,
            window_scale: None,
            max_seg_size: None,
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: if fin { &[] } else { &[0] },
        };
        let (src, dst) = (Ipv4Address::from(peer.0), Ipv4Address::from(service.0));
        let ip = Ipv4Repr {
            src_addr: src,
            dst_addr: dst,
            next_header: IpProtocol::Tcp,
            payload_len: tcp.buffer_len(),
            hop_limit: 64,
        };
        let checksums = ChecksumCapabilities::default();
        let mut bytes = vec![0; ip.buffer_len() + tcp.buffer_len()];
        ip.emit(&mut Ipv4Packet::new_unchecked(&mut bytes), &checksums);
        let segment = &mut TcpPacket::new_unchecked(&mut bytes[ip.buffer_len()..]);
        tcp.emit(segment, &src.into(), &dst.into(), &checksums);
        Some(bytes)
    }

    /// Segments with SEQ = SND.NXT the resume sent to this peer.
    pub fn open_windows(&self, peer: Peer) -> u32 {
        self.flows.get(&peer).map_or(0, |flow| flow.open_windows)
    }
}

impl Flow {
    fn check(&mut self, segment: &TcpPacket<&[u8]>, draining: bool, closing: bool) {
        let seq = segment.seq_number();
        let ack = segment.ack_number();
        assert!(segment.ack(), "a segment without ACK: {segment}");
        assert!(Some(ack) <= self.client_end, "acknowledges what was not sent: {segment}");
        if segment.syn() {
            assert!(!draining, "SYN in the drain: {segment}");
            self.first = Some(seq + 1);
            return;
        }
        assert!(self.ack.is_none_or(|known| ack >= known), "takes back an ACK: {segment}");
        self.ack = Some(ack);
        let first = self.first.expect("SYN before all else");
        let una = self.client_ack.unwrap_or(first);
        let len = segment.payload().len();
        let old = seq + len <= una;
        if draining {
            assert_eq!(segment.window_len(), 0, "an open window in the drain: {segment}");
            assert!(
                segment.segment_len() == 0 || (old && len == 1),
                "sent in the drain: {segment}"
            );
        }
        if segment.segment_len() == 0 {
            let nxt = first + self.sent.len();
            // SEQ = SND.NXT; a FIN sent before lies one further.
            if seq == nxt || seq == nxt + 1 {
                self.zero_windows += u32::from((draining || closing) && segment.window_len() == 0);
                self.open_windows += u32::from(!draining);
            }
            return;
        }
        if old && len == 1 {
            return;
        }
        let right_edge = self.right_edge.expect("an ACK of the client");
        let probe = usize::from(len == 1);
        assert!(seq + len <= right_edge + probe, "beyond the window: {segment}, edge {right_edge}");
        assert!(seq >= first, "before the first octet: {segment}");
        let at = seq - first;
        assert!(at <= self.sent.len(), "leaves a hole: {segment}");
        // New data says the window too; what is sent again may not be heard (RFC 9293 §3.10.7.4).
        self.open_windows += u32::from(!draining && at == self.sent.len());
        let again = (self.sent.len() - at).min(len);
        let payload = segment.payload();
        assert!(payload[..again] == self.sent[at..at + again], "other octets: {segment}");
        self.sent.extend_from_slice(&payload[again..]);
    }
}

/// Source, destination and the packet itself.
fn ipv4(bytes: &[u8]) -> Option<(Address, Address, Ipv4Packet<&[u8]>)> {
    let frame = EthernetFrame::new_checked(bytes).ok()?;
    if frame.ethertype() != EthernetProtocol::Ipv4 {
        return None;
    }
    let ip = Ipv4Packet::new_checked(&bytes[14..]).ok()?;
    assert_eq!(ip.next_header(), IpProtocol::Tcp);
    Some((ip.src_addr().octets(), ip.dst_addr().octets(), ip))
}

fn arp(bytes: &[u8]) -> Option<ArpRepr> {
    let frame = EthernetFrame::new_checked(bytes).ok()?;
    if frame.ethertype() != EthernetProtocol::Arp {
        return None;
    }
    ArpRepr::parse(&ArpPacket::new_checked(frame.payload()).ok()?).ok()
}
