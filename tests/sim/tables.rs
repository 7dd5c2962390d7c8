//! The two tables against hand-written segments.

use std::task::Poll;

use ferry_net::MAX_HALF_OPEN;
use smoltcp::wire::{TcpControl, TcpRepr, TcpSeqNumber};

use crate::alone::{Alone, Segment, cx, data, syn};
use crate::hand::frame;

#[test]
fn a_syn_for_a_live_connection_stays_with_it() {
    let mut alone = Alone::new(4096, None);
    let (_, first) = alone.open(5);
    let id = alone.accept();
    // A duplicate of the first, and one that somebody forged.
    for seq in [1000, 777_777] {
        alone.now += 2_000_000;
        let answer = alone.tcp(&syn(5, seq));
        assert_eq!(answer.len(), 1, "a challenge ACK");
        assert!(!answer[0].syn && !answer[0].rst);
        assert_eq!((answer[0].seq, answer[0].ack), (first, TcpSeqNumber(1001)));
        // At most one per second.
        assert_eq!(alone.tcp(&syn(5, seq)), []);
    }
    assert_eq!(alone.tcp(&data(5, 1001, first, b"still here")), []);
    let mut buf = [0; 64];
    assert_eq!(alone.stack.poll_recv(&mut cx(), id, &mut buf), Poll::Ready(Ok(10)));
    assert_eq!(alone.stack.connections().filter(|line| line.remote_port == 5).count(), 1);
}

#[test]
fn what_belongs_to_nothing_is_refused_as_tcp_says() {
    let mut alone = Alone::new(4096, None);
    let ack = TcpSeqNumber(4321);
    let answer = alone.tcp(&data(6, 9, ack, b"?"));
    assert!(answer.len() == 1 && answer[0].rst && answer[0].seq == ack);
    let elsewhere = TcpRepr { dst_port: 99, ..syn(6, 9) };
    let answer = alone.tcp(&elsewhere);
    assert!(answer.len() == 1 && answer[0].rst && answer[0].ack == TcpSeqNumber(10));
    let reset = TcpRepr { control: TcpControl::Rst, ..data(6, 9, ack, &[]) };
    assert_eq!(alone.tcp(&reset), []);
    // Wrong checksum: not even that.
    let mut broken = frame(&data(6, 9, ack, b"?"));
    *broken.last_mut().expect("an octet") ^= 1;
    assert!(alone.exchange([broken]).is_empty());
}

#[test]
fn half_open_connections_are_bounded_and_expire() {
    let mut alone = Alone::new(1024, None);
    let (_, first) = alone.open(5);
    let ports = || 10_000..10_300u16;
    let answers = alone.exchange(ports().map(|port| frame(&syn(port, 1))));
    assert_eq!(answers.len(), MAX_HALF_OPEN, "the rest without an answer");
    assert!(answers.iter().all(|frame| Segment::of(frame).syn));
    // The live connection does not notice.
    assert_eq!(alone.tcp(&data(5, 1001, first, b"x")), []);
    alone.now += 10_000;
    assert_eq!(Segment::of(&alone.exchange([])[0]).ack, TcpSeqNumber(1002));
    alone.now += 16_000_000;
    alone.exchange([]);
    assert_eq!(alone.stack.connection_count(), 1);
    let answers = alone.exchange(ports().map(|port| frame(&syn(port, 1))));
    assert_eq!(answers.len(), MAX_HALF_OPEN);
}

#[test]
fn a_full_accept_queue_lets_the_client_try_again() {
    let mut alone = Alone::new(1024, None);
    alone.stack.listen(8, 2).expect("free");
    let to = |repr| TcpRepr { dst_port: 8, ..repr };
    for port in [20, 21] {
        let answer = alone.tcp(&to(syn(port, 1)));
        alone.tcp(&to(data(port, 2, answer[0].seq + 1, &[])));
    }
    assert_eq!(alone.tcp(&to(syn(22, 1))), []);
    assert!(matches!(alone.stack.poll_accept(&mut cx(), 8), Poll::Ready(Ok(_))));
    assert!(alone.tcp(&to(syn(22, 1)))[0].syn);
}

#[test]
fn a_reset_ends_a_half_open_connection_and_frees_its_place() {
    let mut alone = Alone::new(1024, None);
    let answer = alone.tcp(&syn(5, 1000));
    assert!(answer[0].syn);
    let reset = TcpRepr { control: TcpControl::Rst, ..data(5, 1001, answer[0].seq + 1, &[]) };
    assert_eq!(alone.tcp(&reset), []);
    assert_eq!(alone.stack.connection_count(), 0);
}

#[test]
fn the_parts_of_buffers_without_state_are_told() {
    let mut alone = Alone::new(1024, None);
    let (_, first) = alone.open(5);
    let id = alone.accept();
    let free = |alone: &mut Alone| {
        let mut total = 0;
        alone.stack.discardable(|_, len| total += len);
        total
    };
    assert_eq!(free(&mut alone), 2048, "nothing queued");
    alone.tcp(&data(5, 1001, first, &[1; 300]));
    assert_eq!(free(&mut alone), 2048 - 300);
    assert_eq!(alone.stack.poll_send(&mut cx(), id, &[2; 200]), Poll::Ready(Ok(200)));
    alone.exchange([]);
    assert_eq!(free(&mut alone), 2048 - 500);
    // A segment beyond a hole: where it was put is not known.
    alone.tcp(&data(5, 1401, first, &[3; 100]));
    assert_eq!(free(&mut alone), 1024 - 200);
    alone.tcp(&data(5, 1301, first + 200, &[4; 100]));
    let mut buf = [0; 1024];
    assert_eq!(alone.stack.poll_recv(&mut cx(), id, &mut buf), Poll::Ready(Ok(500)));
    assert_eq!(free(&mut alone), 2048);
}

#[test]
fn several_buffers_are_written_in_order_up_to_the_room_there_is() {
    let mut alone = Alone::new(1024, None);
    let (_, first) = alone.open(5);
    let id = alone.accept();
    let parts: [&[u8]; 4] = [&[], &[1; 100], &[2; 200], &[3; 900]];
    let write = |alone: &mut Alone, parts: &[&[u8]]| {
        alone.stack.poll_send_vectored(&mut cx(), id, parts.iter().copied())
    };
    assert_eq!(write(&mut alone, &[]), Poll::Ready(Ok(0)));
    assert_eq!(write(&mut alone, &parts), Poll::Ready(Ok(1024)));
    assert_eq!(write(&mut alone, &[&[], &[]]), Poll::Ready(Ok(0)));
    assert_eq!(write(&mut alone, &[&[], &[4]]), Poll::Pending);
    let sent = alone.exchange([]);
    let bytes: Vec<u8> = sent.iter().flat_map(|frame| frame[54..].to_vec()).collect();
    assert_eq!(bytes, [vec![1; 100], vec![2; 200], vec![3; 724]].concat());
    alone.tcp(&data(5, 1001, first + 1024, &[]));
    assert_eq!(write(&mut alone, &[&[4]]), Poll::Ready(Ok(1)));
}
