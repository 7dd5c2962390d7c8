//! Octets that come a second time: D-SACK (RFC 2883) tells a peer that it need not have repeated them.

use std::task::Poll;

use ferry_net::{ConnId, Duration, Instant};
use smoltcp::wire::{Ipv4Packet, TcpPacket, TcpRepr, TcpSeqNumber};

use crate::alone::{Alone, cx, data, syn};
use crate::hand::frame;

/// An ACK's SEQ, ACK, window and SACK blocks.
type Ack = (TcpSeqNumber, TcpSeqNumber, u16, [Option<(u32, u32)>; 3]);

fn answers(alone: &mut Alone, segment: &TcpRepr<'_>) -> Vec<Ack> {
    let parse = |frame: &Vec<u8>| {
        let ip = Ipv4Packet::new_checked(&frame[14..]).expect("IPv4");
        assert!(ip.verify_checksum());
        let tcp = TcpPacket::new_checked(ip.payload()).expect("TCP");
        assert!(tcp.verify_checksum(&ip.src_addr().into(), &ip.dst_addr().into()));
        let blocks = tcp.selective_ack_ranges().expect("options");
        (tcp.seq_number(), tcp.ack_number(), tcp.window_len(), blocks)
    };
    alone.exchange([frame(segment)]).iter().map(parse).collect()
}

/// An accepted connection on which 300 octets have come, of a peer that permits SACK or not; our first sequence number.
fn with_octets(sack: bool) -> (Alone, ConnId, TcpSeqNumber) {
    let mut alone = Alone::new(1024, None);
    let request = TcpRepr { sack_permitted: sack, ..syn(5, 1000) };
    let first = alone.tcp(&request)[0].seq + 1;
    assert_eq!(alone.tcp(&data(5, 1001, first, &[])), []);
    let id = alone.accept();
    alone.tcp(&data(5, 1001, first, &[1; 300]));
    (alone, id, first)
}

#[test]
fn the_peer_is_told_which_octets_came_twice() {
    let (mut alone, _, first) = with_octets(true);
    let expected =
        |left, right| (first, TcpSeqNumber(1301), 724, [Some((left, right)), None, None]);
    assert_eq!(answers(&mut alone, &data(5, 1001, first, &[1; 300])), [expected(1001, 1301)]);
    assert_eq!(answers(&mut alone, &data(5, 1300, first, &[1])), [expected(1300, 1301)]);

    // Some of it is new: that is taken, and nothing said of the rest.
    let answer = answers(&mut alone, &data(5, 1201, first, &[2; 200]));
    assert!(answer.iter().all(|(.., blocks)| blocks.iter().all(Option::is_none)), "{answer:?}");
    // Others wait for a hole: those are named.
    alone.tcp(&data(5, 1501, first, &[3; 100]));
    let answer = answers(&mut alone, &data(5, 1001, first, &[1; 300]));
    assert_eq!(answer.len(), 1);
    assert_eq!(answer[0].1, TcpSeqNumber(1401));
    assert_ne!(answer[0].3[0], Some((1001, 1301)));
}

#[test]
fn in_a_drain_the_window_is_zero_here_too() {
    let (mut alone, id, first) = with_octets(true);
    let now = Instant::from_micros(alone.now);
    alone.stack.drain_begin(now, now + Duration::from_secs(1));
    alone.exchange([]);
    let expected = (first, TcpSeqNumber(1301), 0, [Some((1001, 1301)), None, None]);
    assert_eq!(answers(&mut alone, &data(5, 1001, first, &[1; 300])), [expected]);
    let mut buf = [0; 1024];
    assert_eq!(alone.stack.poll_recv(&mut cx(), id, &mut buf), Poll::Ready(Ok(300)));
}

#[test]
fn a_peer_without_sack_gets_a_plain_ack() {
    let (mut alone, _, first) = with_octets(false);
    let expected = (first, TcpSeqNumber(1301), 724, [None; 3]);
    assert_eq!(answers(&mut alone, &data(5, 1001, first, &[1; 300])), [expected]);
}
