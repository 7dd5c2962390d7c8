//! Connections the service opens, and what else a host answers.

use std::task::Poll;

use ferry_net::ConnectError;
use smoltcp::wire::{
    ArpOperation, ArpRepr, EthernetAddress, Icmpv4Packet, Icmpv4Repr, IpProtocol, Ipv4Address,
    Ipv4Packet, Ipv4Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
};

use crate::alone::{Alone, Segment, arp, cx, data, parsed_arp};
use crate::hand::{PEER, PEER_MAC, SERVICE, SERVICE_MAC};

fn icmp(repr: &Icmpv4Repr<'_>) -> Vec<u8> {
    let ip = Ipv4Repr {
        src_addr: PEER,
        dst_addr: SERVICE,
        next_header: IpProtocol::Icmp,
        payload_len: repr.buffer_len(),
        hop_limit: 64,
    };
    let mut frame = [&SERVICE_MAC[..], &PEER_MAC, &[8, 0]].concat();
    frame.resize(14 + ip.buffer_len() + repr.buffer_len(), 0);
    let checksums = Default::default();
    ip.emit(&mut Ipv4Packet::new_unchecked(&mut frame[14..]), &checksums);
    let at = 14 + ip.buffer_len();
    repr.emit(&mut Icmpv4Packet::new_unchecked(&mut frame[at..]), &checksums);
    frame
}

#[test]
fn ping_and_arp_are_answered() {
    let mut alone = Alone::new(1024, None);
    let answer = alone.exchange([arp(ArpOperation::Request, PEER, SERVICE)]);
    let ArpRepr::EthernetIpv4 { operation, source_hardware_addr, .. } = parsed_arp(&answer[0])
    else {
        panic!("ARP for IPv4");
    };
    assert_eq!(operation, ArpOperation::Reply);
    assert_eq!(source_hardware_addr, EthernetAddress(SERVICE_MAC));
    let stranger = Ipv4Address::new(10, 77, 0, 51);
    assert!(alone.exchange([arp(ArpOperation::Request, PEER, stranger)]).is_empty());

    let echo = Icmpv4Repr::EchoRequest { ident: 3, seq_no: 4, data: b"ping" };
    let answer = alone.exchange([icmp(&echo)]);
    let ip = Ipv4Packet::new_checked(&answer[0][14..]).expect("IPv4");
    let reply = Icmpv4Packet::new_checked(ip.payload()).expect("ICMP");
    let reply = Icmpv4Repr::parse(&reply, &Default::default()).expect("ICMP");
    assert_eq!(reply, Icmpv4Repr::EchoReply { ident: 3, seq_no: 4, data: b"ping" });
}

#[test]
fn an_active_open_asks_for_the_gateway_once_and_the_syn_waits() {
    let gateway = Ipv4Address::new(10, 77, 0, 1);
    let mut alone = Alone::new(1024, Some(gateway));
    let far = Ipv4Address::new(192, 0, 2, 1);
    let first = alone.stack.connect(far, 80).expect("addressable");
    assert!(alone.stack.poll_connected(&mut cx(), first).is_pending());
    let sent = alone.exchange([]);
    assert_eq!(sent.len(), 1);
    let ArpRepr::EthernetIpv4 { operation, target_protocol_addr, .. } = parsed_arp(&sent[0]) else {
        panic!("ARP for IPv4");
    };
    assert_eq!((operation, target_protocol_addr), (ArpOperation::Request, gateway));
    let sent = alone.exchange([arp(ArpOperation::Reply, gateway, SERVICE)]);
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0][..6], PEER_MAC, "through the gateway");
    let segment = Segment::of(&sent[0]);
    assert!(segment.syn);
    // Refused.
    let ip = Ipv4Packet::new_checked(&sent[0][14..]).expect("IPv4");
    let port = TcpPacket::new_checked(ip.payload()).expect("TCP").src_port();
    let reset = TcpRepr {
        control: TcpControl::Rst,
        src_port: 80,
        dst_port: port,
        ..data(80, 0, segment.seq + 1, &[])
    };
    alone.exchange([crate::hand::frame_from(far, &reset)]);
    let refused = Poll::Ready(Err(ConnectError::Refused));
    assert_eq!(alone.stack.poll_connected(&mut cx(), first), refused);
    // Next time the gateway is known; and a peer that does not answer is given up in the end.
    let second = alone.stack.connect(far, 80).expect("addressable");
    assert!(Segment::of(&alone.exchange([])[0]).syn);
    for _ in 0..200 {
        alone.now += 1_000_000;
        alone.exchange([]);
    }
    let timed_out = Poll::Ready(Err(ConnectError::TimedOut));
    assert_eq!(alone.stack.poll_connected(&mut cx(), second), timed_out);
}

#[test]
fn an_active_open_is_answered_and_carries_data() {
    let mut alone = Alone::new(1024, None);
    alone.exchange([arp(ArpOperation::Request, PEER, SERVICE)]);
    let id = alone.stack.connect(PEER, 9).expect("addressable");
    let sent = alone.exchange([]);
    let ip = Ipv4Packet::new_checked(&sent[0][14..]).expect("IPv4");
    let port = TcpPacket::new_checked(ip.payload()).expect("TCP").src_port();
    let seq = Segment::of(&sent[0]).seq;
    let answer = TcpRepr {
        control: TcpControl::Syn,
        src_port: 9,
        dst_port: port,
        ..data(9, 50, seq + 1, &[])
    };
    let ack = alone.tcp(&answer);
    assert_eq!((ack.len(), ack[0].ack), (1, TcpSeqNumber(51)));
    assert_eq!(alone.stack.poll_connected(&mut cx(), id), Poll::Ready(Ok(())));
    assert_eq!(alone.stack.poll_send(&mut cx(), id, b"hello"), Poll::Ready(Ok(5)));
    assert_eq!(Segment::of(&alone.exchange([])[0]).len, 5);
}
