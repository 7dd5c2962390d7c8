//! How connections end: FIN, RST, TIME-WAIT.

use std::task::Poll;

use ferry_net::StreamError;
use ferry_protocol::control::TcpState;
use smoltcp::wire::{TcpControl, TcpRepr, TcpSeqNumber};

use crate::alone::{Alone, Segment, cx, data, fin, syn};
use crate::hand::PORT;

/// Opens and closes a connection from port 5, the service first; its last sequence numbers.
fn closed_by_service(alone: &mut Alone) -> (i32, TcpSeqNumber) {
    let (_, first) = alone.open(5);
    let id = alone.accept();
    alone.stack.close(id);
    let sent = alone.exchange([]);
    assert!(Segment::of(&sent[0]).fin);
    let answer = alone.tcp(&fin(5, 1001, first + 1));
    assert_eq!((answer.len(), answer[0].ack), (1, TcpSeqNumber(1002)));
    (1002, first + 1)
}

fn states(alone: &Alone) -> Vec<TcpState> {
    let lines = alone.stack.connections().filter(|line| line.remote_port == 5);
    lines.map(|line| line.state).collect()
}

#[test]
fn time_wait_needs_no_buffers_answers_a_late_fin_and_ends() {
    let mut alone = Alone::new(4096, None);
    let (seq, ack) = closed_by_service(&mut alone);
    assert_eq!(alone.stack.connection_count(), 0);
    assert_eq!(states(&alone), [TcpState::TimeWait]);
    let answer = alone.tcp(&fin(5, seq - 1, ack));
    assert_eq!((answer.len(), answer[0].seq, answer[0].ack), (1, ack, TcpSeqNumber(seq)));
    assert!(!answer[0].rst);
    assert_eq!(alone.tcp(&data(5, seq, ack, &[])), [], "no ACK for an ACK");
    let reset = TcpRepr { control: TcpControl::Rst, ..data(5, seq, ack, &[]) };
    assert_eq!(alone.tcp(&reset), [], "RFC 1337");
    assert_eq!(states(&alone), [TcpState::TimeWait]);
    alone.now += 10_000_001;
    alone.exchange([]);
    assert_eq!(states(&alone), []);
}

#[test]
fn time_wait_is_opened_by_a_newer_syn_only() {
    let mut alone = Alone::new(4096, None);
    let (seq, ack) = closed_by_service(&mut alone);
    let answer = alone.tcp(&syn(5, seq - 500));
    assert_eq!((answer.len(), answer[0].syn, answer[0].seq), (1, false, ack), "an old SYN");
    let answer = alone.tcp(&syn(5, seq + 1));
    assert!(answer.len() == 1 && answer[0].syn);
    assert_eq!(alone.tcp(&data(5, seq + 2, answer[0].seq + 1, &[])), []);
    assert_eq!(states(&alone), [TcpState::Established]);
}

#[test]
fn unread_octets_and_octets_for_nobody_are_answered_with_reset() {
    let mut alone = Alone::new(1024, None);
    let (_, first) = alone.open(5);
    let id = alone.accept();
    alone.tcp(&data(5, 1001, first, b"unread"));
    alone.stack.close(id);
    assert!(Segment::of(&alone.exchange([])[0]).rst);

    let (_, first) = alone.open(6);
    let id = alone.accept();
    alone.stack.close(id);
    assert!(Segment::of(&alone.exchange([])[0]).fin);
    let answer = alone.tcp(&data(6, 1001, first + 1, b"late"));
    assert!(answer.iter().any(|segment| segment.rst));
    assert_eq!(alone.stack.connection_count(), 0);
}

#[test]
fn the_service_hears_of_a_reset_once_it_has_read_the_rest() {
    let mut alone = Alone::new(1024, None);
    let (_, first) = alone.open(5);
    let id = alone.accept();
    alone.tcp(&data(5, 1001, first, b"last"));
    let reset = TcpRepr { control: TcpControl::Rst, ..data(5, 1005, first, &[]) };
    alone.tcp(&reset);
    let mut buf = [0; 64];
    assert_eq!(alone.stack.poll_recv(&mut cx(), id, &mut buf), Poll::Ready(Ok(4)));
    let ended = Err(StreamError::Reset);
    assert_eq!(alone.stack.poll_recv(&mut cx(), id, &mut buf), Poll::Ready(ended));
    assert_eq!(alone.stack.poll_send(&mut cx(), id, b"?"), Poll::Ready(ended));
    // The four-tuple is free although the handle is still there.
    assert!(alone.tcp(&syn(5, 9_000_000))[0].syn);
    alone.stack.close(id);
    assert_eq!(alone.stack.connection_count(), 1);
    let gone = Err(StreamError::Closed);
    assert_eq!(alone.stack.poll_recv(&mut cx(), id, &mut buf), Poll::Ready(gone));
}

#[test]
fn closing_a_listener_resets_what_nobody_has_accepted() {
    let mut alone = Alone::new(1024, None);
    alone.open(5);
    assert!(alone.tcp(&syn(6, 1000))[0].syn);
    alone.stack.close_listener(PORT);
    let sent = alone.exchange([]);
    assert_eq!(sent.len(), 2);
    assert!(sent.iter().all(|frame| Segment::of(frame).rst));
    assert_eq!(alone.stack.connection_count(), 0);
    let accept = alone.stack.poll_accept(&mut cx(), PORT);
    assert_eq!(accept, Poll::Ready(Err(StreamError::Closed)));
}
