//! Frames in, bytes out.

use super::*;
use smoltcp::wire::{
    ArpRepr, EthernetAddress, EthernetRepr, Ipv4Repr, TcpControl, TcpRepr, TcpSeqNumber,
};

const MAC: MacAddr = MacAddr([0x52, 1, 2, 3, 4, 5]);
const IP: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 50);
const CLIENT_MAC: MacAddr = MacAddr([0x02, 9, 8, 7, 6, 5]);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);
const SEND_NEXT: u32 = 0x8000_0001;
const RECV_NEXT: u32 = 0xffff_fff0;

/// One connection from port 4001 of the client to port 7, where somebody listens.
fn holder(on_syn: OnSyn) -> Holder {
    let connections = vec![(CLIENT, 4001, 7, SEND_NEXT, RECV_NEXT).into()];
    Holder::new(MAC, IP, &HeldTable { connections, ports: vec![7] }, on_syn)
}

fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn ethernet(
    kind: EthernetProtocol,
    dst: MacAddr,
    len: usize,
    fill: impl FnOnce(&mut [u8]),
) -> Vec<u8> {
    let repr = EthernetRepr {
        src_addr: EthernetAddress(CLIENT_MAC.0),
        dst_addr: EthernetAddress(dst.0),
        ethertype: kind,
    };
    let mut bytes = vec![0; 14 + len];
    repr.emit(&mut EthernetFrame::new_unchecked(&mut bytes[..]));
    fill(&mut bytes[14..]);
    bytes
}

fn ipv4(protocol: IpProtocol, len: usize, fill: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let repr = Ipv4Repr {
        src_addr: CLIENT,
        dst_addr: IP,
        next_header: protocol,
        payload_len: len,
        hop_limit: 64,
    };
    ethernet(EthernetProtocol::Ipv4, MAC, 20 + len, |bytes| {
        repr.emit(&mut Ipv4Packet::new_unchecked(&mut *bytes), &ChecksumCapabilities::default());
        fill(&mut bytes[20..]);
    })
}

/// A segment of the client's port 4001.
fn segment(control: TcpControl, seq: u32, ack: Option<u32>, payload: &[u8]) -> Vec<u8> {
    segment_from(4001, control, seq, ack, payload)
}

fn segment_from(
    port: u16,
    control: TcpControl,
    seq: u32,
    ack: Option<u32>,
    payload: &[u8],
) -> Vec<u8> {
    let repr = TcpRepr {
        src_port: port,
        dst_port: 7,
        control,
        seq_number: TcpSeqNumber(seq.cast_signed()),
        ack_number: ack.map(|ack| TcpSeqNumber(ack.cast_signed())),
        window_len: 502,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload,
    };
    ipv4(IpProtocol::Tcp, repr.buffer_len(), |bytes| {
        let mut packet = TcpPacket::new_unchecked(bytes);
        repr.emit(&mut packet, &CLIENT.into(), &IP.into(), &ChecksumCapabilities::default());
    })
}

fn syn(port: u16) -> Vec<u8> {
    segment_from(port, TcpControl::Syn, 1000, None, &[])
}

fn who_has(target: Ipv4Addr, asker: Ipv4Addr) -> Vec<u8> {
    let repr = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: EthernetAddress(CLIENT_MAC.0),
        source_protocol_addr: asker,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: target,
    };
    ethernet(EthernetProtocol::Arp, MacAddr([0xff; 6]), 28, |bytes| {
        repr.emit(&mut ArpPacket::new_unchecked(bytes));
    })
}

/// The one answer a connection ever gets. Checksums worked out by hand.
const ZERO_WINDOW: [u8; 54] = [
    0x02, 9, 8, 7, 6, 5, 0x52, 1, 2, 3, 4, 5, 0x08, 0x00, // Ethernet
    0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0x25, 0xa1, 10, 77, 0, 50, 10, 77, 0, 100, // IPv4
    0, 7, 0x0f, 0xa1, // ports
    0x80, 0, 0, 1, 0xff, 0xff, 0xff, 0xf0, // SEQ, ACK
    0x50, 0x10, 0, 0, 0x0b, 0x0b, 0, 0, // 20 bytes, ACK, window 0
];

#[test]
fn the_zero_window_ack_is_these_bytes() {
    // A keep-alive and a zero-window probe of Linux: no octet, SEQ one below what is expected.
    let probe = segment(TcpControl::None, RECV_NEXT.wrapping_sub(1), Some(SEND_NEXT), &[]);
    let answer = holder(OnSyn::Hold).receive(&probe, at(0));
    assert_eq!(answer.frame.as_deref(), Some(&ZERO_WINDOW[..]));
    assert!(!answer.wake);
}

#[test]
fn all_that_cannot_be_taken_gets_the_same_ack() {
    let s = TcpControl::None;
    for (what, frame) in [
        ("keep-alive with an octet", segment(s, RECV_NEXT - 1, Some(SEND_NEXT), b"x")),
        ("probe with an octet", segment(s, RECV_NEXT, Some(SEND_NEXT), b"x")),
        ("data", segment(TcpControl::Psh, RECV_NEXT, Some(SEND_NEXT), &[7; 1460])),
        ("data farther on", segment(s, RECV_NEXT.wrapping_add(5000), Some(SEND_NEXT), b"xyz")),
        ("FIN", segment(TcpControl::Fin, RECV_NEXT, Some(SEND_NEXT), b"")),
        ("an old ACK", segment(s, RECV_NEXT - 1, Some(SEND_NEXT - 9), b"")),
        ("SYN (RFC 5961 §4)", segment(TcpControl::Syn, 1, None, b"")),
    ] {
        let mut holder = holder(OnSyn::Refuse);
        let answer = holder.receive(&frame, at(5));
        assert_eq!(answer.frame.as_deref(), Some(&ZERO_WINDOW[..]), "{what}");
        assert_eq!((holder.counts().answers, holder.counts().ignored), (1, 0));
    }
}

#[test]
fn an_ack_is_not_answered_by_an_ack() {
    let mut holder = holder(OnSyn::Hold);
    for ack in [SEND_NEXT, SEND_NEXT - 100, SEND_NEXT + 1] {
        let bare = segment(TcpControl::None, RECV_NEXT, Some(ack), &[]);
        assert_eq!(holder.receive(&bare, at(0)), Reaction::default());
    }
    assert_eq!(holder.counts().answers, 0);
}

#[test]
fn ten_answers_a_second_and_connection_at_most() {
    let mut holder = holder(OnSyn::Hold);
    let probe = segment(TcpControl::None, RECV_NEXT - 1, Some(SEND_NEXT), &[]);
    let answered = |ms| holder.receive(&probe, at(ms)).frame.is_some();
    assert_eq!((0..2000).map(answered).filter(|it| *it).count(), 20);
}

#[test]
fn a_client_that_resets_is_left_alone_and_may_come_back() {
    let probe = segment(TcpControl::None, RECV_NEXT - 1, Some(SEND_NEXT), &[]);
    let mut holder = holder(OnSyn::Wake);
    for blind in [RECV_NEXT - 1, RECV_NEXT.wrapping_add(1), 0] {
        let reset = segment(TcpControl::Rst, blind, Some(SEND_NEXT), &[]);
        assert_eq!(holder.receive(&reset, at(0)), Reaction::default());
    }
    assert!(holder.receive(&probe, at(0)).frame.is_some());
    let reset = segment(TcpControl::Rst, RECV_NEXT, None, &[]);
    assert_eq!(holder.receive(&reset, at(200)), Reaction::default());
    assert_eq!(holder.receive(&probe, at(400)), Reaction::default());
    assert_eq!(holder.counts().closed, 1);
    assert!(holder.receive(&segment(TcpControl::Syn, 5, None, &[]), at(600)).wake);
}

#[test]
fn syns_are_held_refused_or_wake_the_service() {
    assert_eq!(holder(OnSyn::Hold).receive(&syn(5000), at(0)), Reaction::default());
    let woken = holder(OnSyn::Wake).receive(&syn(5000), at(0));
    assert_eq!(woken, Reaction { frame: None, wake: true });
    let refused = holder(OnSyn::Refuse).receive(&syn(5000), at(0)).frame.unwrap();
    let ip = Ipv4Packet::new_checked(&refused[14..]).unwrap();
    let tcp = TcpPacket::new_checked(ip.payload()).unwrap();
    assert!(ip.verify_checksum() && tcp.verify_checksum(&IP.into(), &CLIENT.into()));
    assert!(tcp.rst() && tcp.ack() && !tcp.syn());
    assert_eq!((tcp.seq_number(), tcp.ack_number()), (TcpSeqNumber(0), TcpSeqNumber(1001)));
    assert_eq!((tcp.src_port(), tcp.dst_port()), (7, 5000));
    // Nobody listens there: the service is not woken for it.
    let mut closed = syn(5000);
    closed[37] = 8;
    let mut packet = TcpPacket::new_unchecked(&mut closed[34..]);
    packet.fill_checksum(&CLIENT.into(), &IP.into());
    let mut holder = holder(OnSyn::Wake);
    assert_eq!(holder.receive(&closed, at(0)), Reaction::default());
    assert_eq!(holder.counts().syns, 1);
}

#[test]
fn an_unknown_connection_gets_silence() {
    for on_syn in [OnSyn::Hold, OnSyn::Refuse, OnSyn::Wake] {
        let mut holder = holder(on_syn);
        for control in [TcpControl::None, TcpControl::Fin, TcpControl::Rst, TcpControl::Psh] {
            let stray = segment_from(4002, control, RECV_NEXT, Some(SEND_NEXT), b"data");
            assert_eq!(holder.receive(&stray, at(0)), Reaction::default());
        }
        let syn_ack = segment_from(4002, TcpControl::Syn, 1, Some(1), &[]);
        assert_eq!(holder.receive(&syn_ack, at(0)), Reaction::default());
    }
}

#[test]
fn arp_is_answered_for_our_address_only() {
    let mut holder = holder(OnSyn::Hold);
    let reply = holder.receive(&who_has(IP, CLIENT), at(0)).frame.unwrap();
    let expected = [
        &[0x02, 9, 8, 7, 6, 5, 0x52, 1, 2, 3, 4, 5, 0x08, 0x06][..],
        &[0, 1, 8, 0, 6, 4, 0, 2, 0x52, 1, 2, 3, 4, 5, 10, 77, 0, 50],
        &[0x02, 9, 8, 7, 6, 5, 10, 77, 0, 100],
    ];
    assert_eq!(reply, expected.concat());
    // Somebody who looks whether the address is free must learn that it is not (RFC 5227 §2.1.1).
    assert!(holder.receive(&who_has(IP, Ipv4Addr::UNSPECIFIED), at(1)).frame.is_some());
    assert_eq!(holder.receive(&who_has(CLIENT, CLIENT), at(2)), Reaction::default());
    // The service itself, announcing where it is.
    assert_eq!(holder.receive(&who_has(IP, IP), at(3)), Reaction::default());
    assert_eq!(holder.receive(&holder.announcement(), at(4)), Reaction::default());
    assert_eq!(&holder.announcement()[..6], [0xff; 6]);
}

fn echo_request(data: &[u8]) -> Vec<u8> {
    let repr = Icmpv4Repr::EchoRequest { ident: 3, seq_no: 4, data };
    ipv4(IpProtocol::Icmp, repr.buffer_len(), |bytes| {
        repr.emit(&mut Icmpv4Packet::new_unchecked(bytes), &ChecksumCapabilities::default());
    })
}

#[test]
fn ping_is_answered_a_hundred_times_a_second() {
    let mut holder = holder(OnSyn::Hold);
    let reply = holder.receive(&echo_request(b"hello"), at(0)).frame.unwrap();
    let ip = Ipv4Packet::new_checked(&reply[14..]).unwrap();
    let icmp = Icmpv4Packet::new_checked(ip.payload()).unwrap();
    let repr = Icmpv4Repr::parse(&icmp, &ChecksumCapabilities::default()).unwrap();
    assert_eq!(repr, Icmpv4Repr::EchoReply { ident: 3, seq_no: 4, data: b"hello" });
    let replies = (0..999).filter(|_| holder.receive(&echo_request(b""), at(1)).frame.is_some());
    assert_eq!(replies.count(), 99);
}

#[test]
fn one_wrong_bit_anywhere_brings_silence_or_the_same() {
    let probe = segment(TcpControl::None, RECV_NEXT - 1, Some(SEND_NEXT), b"x");
    let mut answered = 0;
    for bit in 0..probe.len() * 8 {
        let mut bad = probe.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        if let Some(frame) = holder(OnSyn::Refuse).receive(&bad, at(0)).frame {
            // Who the frame comes from is under no checksum.
            assert_eq!(frame[6..], ZERO_WINDOW[6..]);
            assert!((6..12).contains(&(bit / 8)), "bit {bit}");
            answered += 1;
        }
    }
    assert_eq!(answered, 47, "all bits of the source address but the group bit");
}

/// Marsaglia's xorshift64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

/// Changes a frame, and mends its checksums more often than not, so that the change is seen.
fn mangled(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut frame = seeds[random.below(seeds.len())].clone();
    for _ in 0..random.below(6) {
        let at = random.below(frame.len());
        frame[at] = random.next() as u8;
    }
    if random.below(8) == 0 {
        frame.truncate(random.below(frame.len() + 1));
    }
    if random.below(4) > 0
        && frame.len() > 54
        && let Ok(mut ip) = Ipv4Packet::new_checked(&mut frame[14..])
    {
        ip.fill_checksum();
        let (src, dst, protocol) = (ip.src_addr(), ip.dst_addr(), ip.next_header());
        match protocol {
            IpProtocol::Tcp => {
                if let Ok(mut tcp) = TcpPacket::new_checked(ip.payload_mut()) {
                    tcp.fill_checksum(&src.into(), &dst.into());
                }
            }
            IpProtocol::Icmp => {
                if let Ok(mut icmp) = Icmpv4Packet::new_checked(ip.payload_mut()) {
                    icmp.fill_checksum();
                }
            }
            _ => {}
        }
    }
    frame
}

/// The frames a holder may send, and no others.
fn allowed(frame: &[u8], on_syn: OnSyn, closed: bool) {
    let ethernet = EthernetFrame::new_checked(frame).unwrap();
    assert_eq!(ethernet.src_addr().0, MAC.0);
    assert!(ethernet.dst_addr().is_unicast());
    if ethernet.ethertype() == EthernetProtocol::Arp {
        let arp = ArpPacket::new_checked(ethernet.payload()).unwrap();
        assert_eq!(
            (arp.operation(), arp.source_protocol_addr()),
            (ArpOperation::Reply, &IP.octets()[..])
        );
        return;
    }
    let ip = Ipv4Packet::new_checked(ethernet.payload()).unwrap();
    assert!(ip.verify_checksum() && ip.src_addr() == IP);
    if ip.next_header() == IpProtocol::Icmp {
        let icmp = Icmpv4Packet::new_checked(ip.payload()).unwrap();
        assert!(icmp.verify_checksum());
        assert_eq!(u8::from(icmp.msg_type()), 0);
        return;
    }
    let tcp = TcpPacket::new_checked(ip.payload()).unwrap();
    assert!(tcp.verify_checksum(&IP.into(), &ip.dst_addr().into()));
    assert!(tcp.payload().is_empty() && tcp.ack() && !tcp.syn() && !tcp.fin());
    assert_eq!(tcp.window_len(), 0);
    if tcp.rst() {
        assert_eq!(on_syn, OnSyn::Refuse);
        let ends = (tcp.src_port(), tcp.dst_port(), ip.dst_addr());
        assert!(closed || ends != (7, 4001, CLIENT), "a held connection is reset");
    } else {
        assert_eq!((tcp.src_port(), tcp.dst_port(), ip.dst_addr()), (7, 4001, CLIENT));
        assert_eq!(tcp.seq_number().0.cast_unsigned(), SEND_NEXT);
        assert_eq!(tcp.ack_number().0.cast_unsigned(), RECV_NEXT);
    }
}

#[test]
fn whatever_comes_only_these_frames_leave() {
    let seeds = [
        segment(TcpControl::None, RECV_NEXT - 1, Some(SEND_NEXT), &[]),
        segment(TcpControl::Psh, RECV_NEXT, Some(SEND_NEXT), &[1; 100]),
        syn(5000),
        echo_request(b"ping"),
        who_has(IP, CLIENT),
    ];
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for on_syn in [OnSyn::Hold, OnSyn::Refuse, OnSyn::Wake] {
        let (mut holder, mut sent) = (holder(on_syn), 0);
        for step in 0..40_000 {
            let frame = if random.below(10) == 0 {
                (0..random.below(120)).map(|_| random.next() as u8).collect()
            } else {
                mangled(&mut random, &seeds)
            };
            // Far enough apart that it is not the limit that keeps it silent.
            let reaction = holder.receive(&frame, at(step * 50));
            assert!(!reaction.wake || on_syn == OnSyn::Wake);
            if let Some(frame) = reaction.frame {
                allowed(&frame, on_syn, holder.counts().closed > 0);
                sent += 1;
            }
        }
        assert!(sent > 2_000, "{on_syn}: {sent} answers; the test reaches nothing");
        assert!(holder.counts().closed <= 1);
    }
}
