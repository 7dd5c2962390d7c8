//! Quiet peers that are told before the drain, while the service runs for the others.

use crate::hand::{Bench, LINUX, Manners, Peer};

const DELAY: u64 = 5_000;
const ROUND_TRIP: u64 = 2 * DELAY;
/// Longer than a peer says nothing that is not quiet.
const SILENCE: u64 = 150_000;

/// Closes the windows of quiet peers, and lets half a round trip pass.
fn close_quiet(bench: &mut Bench) -> Option<u32> {
    let now = bench.instant();
    bench.stack.close_quiet(now);
    let mut closed = None;
    bench.run(DELAY, |bench| {
        closed = closed.or(bench.stack.quiet_closed());
        false
    });
    assert_eq!(bench.stack.quiet_closed(), None, "said once");
    closed
}

/// One peer, told before a drain, that then asks after its closed window and hears that it is open.
fn told_and_asked() -> Bench {
    let mut bench = Bench::new(&[LINUX], DELAY);
    bench.run(SILENCE, |_| false);
    assert_eq!(close_quiet(&mut bench), Some(1));
    // As Linux probes: an octet it knows to be acknowledged.
    bench.peers[0].probe();
    bench.run(ROUND_TRIP, |_| false);
    assert_eq!(bench.peers[0].edge, bench.peers[0].nxt + 65_535);
    bench
}

#[test]
fn quiet_peers_are_told_before_the_drain_while_the_others_are_served() {
    let mut bench = Bench::new(&[LINUX, LINUX, LINUX], DELAY);
    bench.run(SILENCE, |_| false);
    bench.peers[2].send(64);
    bench.run(DELAY, |_| false);
    assert_eq!(close_quiet(&mut bench), Some(2));
    let seen = |bench: &Bench| {
        let seen = |peer: &Peer| (peer.zero_windows, peer.repeats, peer.edge == peer.nxt);
        [seen(&bench.peers[0]), seen(&bench.peers[1]), seen(&bench.peers[2])]
    };
    assert_eq!(seen(&bench), [(1, 0, true), (1, 0, true), (0, 0, false)]);
    // The third is served as ever, and the second too when the service has something for it.
    assert_eq!(bench.peers[2].send(64), 64);
    bench.write(1, 0, 100);
    bench.run(ROUND_TRIP, |_| false);
    assert_eq!(bench.read(2, 0), 128);
    assert_eq!(bench.peers[1].got.len(), 100);
    assert!(bench.peers[1].edge > bench.peers[1].nxt, "its window is open again");
    // The drain has nothing to say to the first.
    let drained = bench.drain(1_000_000);
    assert_eq!((drained.connections, drained.settled, drained.timed_out), (3, 3, false));
    assert_eq!(u64::from(drained.elapsed_us), ROUND_TRIP);
    assert_eq!(seen(&bench), [(1, 0, true), (3, 1, true), (2, 1, true)]);
    let resumed = bench.resume();
    assert_eq!(resumed.connections, 3);
    bench.run(ROUND_TRIP, |_| false);
    for peer in 0..3 {
        assert_eq!(bench.peers[peer].edge, bench.peers[peer].nxt + 65_535, "peer {peer}");
        assert_eq!(bench.peers[peer].send(1_000), 1_000);
    }
    bench.run(ROUND_TRIP, |_| false);
    assert_eq!((bench.read(0, 0), bench.read(1, 0), bench.read(2, 128)), (1_000, 1_000, 1_000));
    assert!(bench.peers.iter().all(|peer| peer.resets == 0));
}

#[test]
fn windows_of_quiet_peers_open_again_when_no_drain_follows() {
    let mut bench = Bench::new(&[LINUX], DELAY);
    bench.run(SILENCE, |_| false);
    assert_eq!(close_quiet(&mut bench), Some(1));
    bench.run(1_900_000, |_| false);
    assert_eq!(bench.peers[0].edge, bench.peers[0].nxt);
    bench.run(200_000, |_| false);
    assert_eq!(bench.peers[0].edge, bench.peers[0].nxt + 65_535);
    assert_eq!((bench.peers[0].zero_windows, bench.peers[0].repeats), (1, 0));
    // And when the move is undone before its drain.
    bench.run(SILENCE, |_| false);
    assert_eq!(close_quiet(&mut bench), Some(1));
    let now = bench.instant();
    let resumed = bench.stack.thaw(now, &mut bench.card);
    assert_eq!(resumed.connections, 1);
    bench.run(ROUND_TRIP, |_| false);
    assert_eq!(bench.peers[0].edge, bench.peers[0].nxt + 65_535);
    bench.run(3_000_000, |_| false);
    assert_eq!(bench.peers[0].zero_windows, 2);
}

#[test]
fn a_peer_that_asks_after_its_closed_window_is_told_the_truth() {
    let mut bench = told_and_asked();
    bench.peers[0].send(10);
    bench.run(ROUND_TRIP, |_| false);
    let drained = bench.drain(1_000_000);
    assert_eq!((drained.settled, bench.peers[0].repeats), (1, 1), "one of the busy now");
    assert_eq!(bench.read(0, 0), 10);
}

#[test]
fn many_quiet_peers_are_told_a_few_in_a_turn_whatever_the_ring_holds() {
    const COUNT: usize = 200;
    let mut bench = Bench::new(&[LINUX; COUNT], DELAY);
    bench.run(SILENCE, |_| false);
    let now = bench.instant();
    bench.stack.close_quiet(now);
    let mut turns = Vec::new();
    while bench.stack.quiet_closed().is_none() {
        assert!(turns.len() < 100, "it comes to an end");
        let progress = bench.stack.poll(now, &mut bench.card);
        turns.push(bench.card.sent.len());
        assert!(bench.card.sent.len() <= 32, "{turns:?}");
        assert!(progress.more == (turns.iter().sum::<usize>() < COUNT), "{turns:?}");
        bench.service_sends();
    }
    assert_eq!(turns.iter().sum::<usize>(), COUNT);
    bench.run(DELAY, |_| false);
    assert!(bench.peers.iter().all(|peer| peer.edge == peer.nxt));
    let drained = bench.drain(1_000_000);
    assert_eq!((drained.connections, drained.settled), (COUNT as u32, COUNT as u32));
    assert_eq!(drained.elapsed_us, 0);
    bench.resume();
    bench.run(ROUND_TRIP, |_| false);
    assert!(bench.peers.iter().all(|peer| peer.edge == peer.nxt + 65_535));
}

#[test]
fn questions_are_answered_however_many_barriers_were_not() {
    // Its answers are lost, or never come: a drain that times out has asked many times.
    let mut bench = Bench::new(&[Manners { answers: false, ..LINUX }], DELAY);
    let drained = bench.drain(2_000_000);
    assert!(drained.timed_out && bench.peers[0].repeats >= 8, "{}", bench.peers[0].repeats);
    bench.resume();
    bench.run(SILENCE, |_| false);
    assert_eq!(close_quiet(&mut bench), Some(1));
    assert_eq!(bench.peers[0].edge, bench.peers[0].nxt);
    bench.peers[0].probe();
    bench.run(ROUND_TRIP, |_| false);
    assert_eq!(bench.peers[0].edge, bench.peers[0].nxt + 65_535, "told the truth at once");
    // A keep-alive is the same segment.
    bench.run(1_000_000, |_| false);
    let before = bench.peers[0].open_windows;
    bench.peers[0].probe();
    bench.run(ROUND_TRIP, |_| false);
    assert_eq!(bench.peers[0].open_windows, before + 1);
}

#[test]
fn a_question_in_a_drain_proves_nothing() {
    let manners = Manners { answers: false, ..LINUX };
    let mut bench = Bench::new(&[manners], DELAY);
    let begun = bench.now;
    let deadline = bench.instant() + ferry_net::Duration::from_secs(1);
    bench.stack.drain_begin(bench.instant(), deadline);
    for _ in 0..8 {
        bench.peers[0].probe();
        bench.run(2 * ROUND_TRIP, |_| false);
    }
    assert_eq!(bench.now - begun, 16 * ROUND_TRIP);
    let status = bench.stack.drain_poll(bench.instant(), &mut bench.card);
    assert!(matches!(status, ferry_net::DrainStatus::Pending(_)), "{status:?}");
}

#[test]
fn a_peer_that_has_asked_is_told_again_in_the_drain() {
    let mut bench = told_and_asked();
    // Nothing has come on it since, and it may send.
    let drained = bench.drain(1_000_000);
    assert_eq!((drained.settled, drained.timed_out), (1, false));
    assert_eq!((bench.peers[0].zero_windows, bench.peers[0].repeats), (3, 1));
    assert_eq!(bench.peers[0].edge, bench.peers[0].nxt);
}
