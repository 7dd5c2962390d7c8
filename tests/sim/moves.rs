//! Moves seen from the tables: what goes along.

use std::task::Poll;

use ferry_net::Instant;
use ferry_protocol::control::TcpState;

use crate::alone::{Alone, Segment, cx, data, syn};
use crate::hand::{Bench, LINUX, Peer, frame};

const DELAY: u64 = 1_000;
const ROUND_TRIP: u64 = 2 * DELAY;

#[test]
fn sequence_numbers_after_two_resumes_of_one_image_differ() {
    let first = |seed| {
        let mut alone = Alone::new(1024, None);
        let now = Instant::ZERO;
        alone.stack.drain_begin(now, now);
        alone.stack.resume(now, seed, &mut alone.card);
        alone.exchange([]);
        alone.tcp(&syn(5, 1000))[0].seq
    };
    assert_ne!(first([1, 2, 3, 4]), first([5, 6, 7, 8]));
}

#[test]
fn ten_thousand_connections_are_open_at_once_and_drain_together() {
    const COUNT: usize = 10_000;
    let mut alone = Alone::new(1_000, None);
    let mut peers = Vec::new();
    for at in 0..COUNT {
        let port = 1_024 + at as u16;
        let (_, first) = alone.open(port);
        let id = alone.accept();
        peers.push((port, first, id));
    }
    assert_eq!(alone.stack.connection_count(), COUNT);
    for &(port, first, id) in &peers {
        alone.tcp(&data(port, 1001, first, b"ping"));
        let mut buf = [0; 8];
        assert_eq!(alone.stack.poll_recv(&mut cx(), id, &mut buf), Poll::Ready(Ok(4)));
        assert_eq!(alone.stack.poll_send(&mut cx(), id, b"pong"), Poll::Ready(Ok(4)));
        assert_eq!(Segment::of(&alone.exchange([])[0]).len, 4);
    }
    let answers = peers.iter().map(|&(port, first, _)| frame(&data(port, 1005, first + 4, &[])));
    assert!(alone.exchange(answers).is_empty());
    let now = Instant::from_micros(alone.now);
    alone.stack.drain_begin(now, now + ferry_net::Duration::from_secs(1));
    let told = alone.exchange([]);
    // The zero window and two octets to each, as none permits SACK.
    assert_eq!(told.len(), 3 * COUNT);
    let answers = peers.iter().flat_map(|&(port, first, _)| {
        let bare = frame(&data(port, 1005, first + 4, &[]));
        [bare.clone(), bare]
    });
    alone.exchange(answers);
    let ferry_net::DrainStatus::Done(drained) = alone.stack.drain_poll(now, &mut alone.card) else {
        panic!("not done");
    };
    assert_eq!((drained.connections, drained.settled), (COUNT as u32, COUNT as u32));
    let resumed = alone.stack.resume(now, [4, 3, 2, 1], &mut alone.card);
    assert_eq!(resumed.connections as usize, COUNT);
}

#[test]
fn all_kinds_of_states_move() {
    let mut bench = Bench::new(&[LINUX; 3], DELAY);
    // FIN-WAIT, CLOSE-WAIT, and SYN-RECEIVED.
    bench.stack.shutdown_send(bench.sessions[0]);
    bench.peers[1].finish();
    bench.run(3 * ROUND_TRIP, |_| false);
    bench.peers.push(Peer::new(LINUX, 41_000, 5));
    bench.peers_send();
    bench.run(DELAY, |_| false);
    let states = |bench: &Bench| {
        let mut lines: Vec<_> = bench
            .stack
            .connections()
            .filter(|line| line.remote_port != 0)
            .map(|line| (line.remote_port, line.state))
            .collect();
        lines.sort_by_key(|line| line.0);
        lines.into_iter().map(|line| line.1).collect::<Vec<_>>()
    };
    use TcpState::{CloseWait, Established, FinWait2, SynReceived};
    assert_eq!(states(&bench), [FinWait2, CloseWait, Established, SynReceived]);
    let drained = bench.drain(1_000_000);
    assert!(drained.connections >= 3 && drained.settled == drained.connections);
    bench.resume();
    bench.run(3 * ROUND_TRIP, |_| false);
    assert_eq!(states(&bench), [FinWait2, CloseWait, Established, Established]);
    assert_eq!(bench.peers[0].send(10), 10, "FIN-WAIT-2 still receives");
    bench.run(ROUND_TRIP, |_| false);
    assert_eq!(bench.read(0, 0), 10);
    bench.write(1, 0, 10);
    bench.run(ROUND_TRIP, |_| false);
    assert_eq!(bench.peers[1].got.len(), 10, "CLOSE-WAIT still sends");
    assert!(bench.peers.iter().all(|peer| peer.resets == 0));
}
