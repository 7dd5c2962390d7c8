//! The drain against hand-written peers: what ends it, how long it takes, what it leaves.

use ferry_protocol::mark;

use crate::hand::{Bench, LINUX, Manners, Peer};

const DELAY: u64 = 5_000;
const ROUND_TRIP: u64 = 2 * DELAY;

#[test]
fn a_duplicate_sack_ends_it_after_one_round_trip() {
    let mut bench = Bench::new(&[LINUX], DELAY);
    let drained = bench.drain(1_000_000);
    assert_eq!((drained.connections, drained.settled), (1, 1));
    assert_eq!(u64::from(drained.elapsed_us), ROUND_TRIP);
    assert_eq!(bench.peers[0].repeats, 1, "one barrier");
    assert!(bench.peers[0].zero_windows >= 1);
    assert_eq!(bench.peers[0].edge, bench.peers[0].nxt, "nothing may be sent");
}

#[test]
fn a_duplicate_sack_that_brings_a_delayed_ack_ends_it_too() {
    let mut bench = Bench::new(&[LINUX], DELAY);
    bench.write(0, 0, 1_000);
    bench.run(0, |_| true);
    bench.now += DELAY;
    while let Some((_, frame)) = bench.link.arrived(bench.now) {
        bench.peers[0].take(&frame);
    }
    assert_eq!(bench.peers[0].got.len(), 1_000);
    // Its ACK is delayed, and the answer to the barrier comes first.
    bench.peers[0].drop_first();
    let drained = bench.drain(1_000_000);
    assert_eq!((drained.settled, drained.timed_out), (1, false));
    assert_eq!(u64::from(drained.elapsed_us), ROUND_TRIP);
    assert_eq!(bench.peers[0].repeats, 1, "one barrier");
}

#[test]
fn what_a_sender_has_in_flight_is_taken_and_acknowledged() {
    let mut bench = Bench::new(&[LINUX], DELAY);
    let sent = bench.peers[0].send(40_000);
    bench.peers_send();
    let drained = bench.drain(1_000_000);
    assert_eq!((drained.settled, drained.timed_out), (1, false));
    assert_eq!(u64::from(drained.elapsed_us), ROUND_TRIP);
    assert_eq!(bench.read(0, 0), sent as u64);
    bench.run(DELAY, |_| false);
    assert_eq!(bench.peers[0].una, bench.peers[0].nxt, "all acknowledged");
    assert_eq!(bench.peers[0].edge, bench.peers[0].nxt, "with a zero window");
    bench.resume();
    bench.run(ROUND_TRIP, |_| false);
    assert_eq!(bench.peers[0].edge, bench.peers[0].nxt + 65_535, "the window is open again");
}

#[test]
fn whoever_was_told_the_zero_window_with_an_acknowledgement_is_not_told_again() {
    let mut bench = Bench::new(&[LINUX, LINUX], DELAY);
    bench.peers[0].send(64);
    bench.peers_send();
    bench.now += DELAY;
    while let Some((_, frame)) = bench.link.arrived(bench.now) {
        bench.card.received.push_back(frame);
    }
    let drained = bench.drain(1_000_000);
    assert_eq!((drained.settled, drained.timed_out), (2, false));
    for peer in &bench.peers {
        // The barrier shows it too.
        assert_eq!((peer.zero_windows, peer.repeats), (2, 1));
    }
    // But the window of a second drain is told again.
    let now = bench.instant();
    bench.stack.thaw(now, &mut bench.card);
    bench.run(ROUND_TRIP, |_| false);
    bench.drain(1_000_000);
    for peer in &bench.peers {
        assert_eq!((peer.zero_windows, peer.repeats), (4, 2));
    }
}

#[test]
fn data_that_waits_says_that_the_window_is_open() {
    let mut bench = Bench::new(&[LINUX, LINUX], DELAY);
    bench.drain(1_000_000);
    // As by a service that has just been given the processor again, before its turn to be announced.
    bench.write(0, 0, 64);
    bench.peers.iter_mut().for_each(|peer| peer.open_windows = 0);
    bench.resume();
    bench.run(DELAY, |_| false);
    for (peer, got) in [(0, 64), (1, 0)] {
        let peer = &bench.peers[peer];
        assert_eq!((peer.got.len(), peer.edge), (got, peer.nxt + 65_535));
        // The data or a bare acknowledgement, and no octet to make it answer.
        assert_eq!((peer.open_windows, peer.repeats), (1, 1));
    }
}

#[test]
fn what_the_service_has_in_flight_is_acknowledged_before_it_ends() {
    let mut bench = Bench::new(&[LINUX], DELAY);
    bench.write(0, 0, 30_000);
    bench.run(0, |_| true);
    let drained = bench.drain(1_000_000);
    assert_eq!((drained.settled, drained.timed_out), (1, false));
    assert!(u64::from(drained.elapsed_us) <= ROUND_TRIP);
    let before = bench.peers[0].got.len();
    assert!(before > 0 && before < 30_000, "{before}: slow start has sent a part");
    bench.resume();
    bench.run(1_000_000, |_| false);
    assert_eq!(bench.peers[0].got.len(), 30_000);
    bench.check_got(0);
}

#[test]
fn without_sack_two_bare_acks_end_it_after_one_round_trip() {
    let manners = Manners { sack: false, ..LINUX };
    let mut bench = Bench::new(&[manners], DELAY);
    let drained = bench.drain(1_000_000);
    assert_eq!((drained.settled, drained.timed_out), (1, false));
    assert_eq!(u64::from(drained.elapsed_us), ROUND_TRIP);
    assert_eq!(bench.peers[0].repeats, 2);
}

#[test]
fn sack_without_duplicate_sack_takes_two_round_trips() {
    let manners = Manners { duplicate_sack: false, ..LINUX };
    let mut bench = Bench::new(&[manners], DELAY);
    let drained = bench.drain(1_000_000);
    assert_eq!((drained.settled, drained.timed_out), (1, false));
    assert_eq!(u64::from(drained.elapsed_us), 2 * ROUND_TRIP);
}

#[test]
fn one_bare_ack_that_was_on_its_way_proves_nothing() {
    let manners = Manners { duplicate_sack: false, ..LINUX };
    let mut bench = Bench::new(&[manners], DELAY);
    // A window update, say, just before the barrier reaches the peer; and data behind it.
    bench.peers[0].ack();
    bench.peers_send();
    bench.run(DELAY - 100, |_| false);
    let drain_began = bench.now;
    bench.peers[0].send(5_000);
    bench.peers_send();
    let drained = bench.drain(1_000_000);
    assert!(bench.now - drain_began >= ROUND_TRIP);
    assert_eq!((drained.settled, drained.timed_out), (1, false));
    assert_eq!(bench.read(0, 0), 5_000);
}

#[test]
fn a_peer_that_never_answers_ends_it_at_the_deadline_and_lives_on() {
    let manners = Manners { answers: false, ..LINUX };
    let mut bench = Bench::new(&[manners, LINUX], DELAY);
    let drained = bench.drain(70_000);
    assert_eq!((drained.connections, drained.settled), (2, 1));
    assert!(drained.timed_out);
    assert_eq!(drained.elapsed_us, 70_000);
    assert!(bench.peers[0].repeats >= 2, "asked again");
    assert_eq!(bench.peers[1].repeats, 1);
    bench.resume();
    bench.run(ROUND_TRIP, |_| false);
    assert_eq!(bench.peers[0].send(3_000), 3_000);
    bench.run(ROUND_TRIP, |_| false);
    assert_eq!(bench.read(0, 0), 3_000);
}

#[test]
fn a_lost_barrier_is_sent_again() {
    let mut bench = Bench::new(&[LINUX], DELAY);
    bench.link.weather.loss = 1000;
    let now = ferry_net::Instant::from_micros(bench.now as i64);
    bench.stack.drain_begin(now, now + ferry_net::Duration::from_secs(1));
    bench.run(DELAY, |_| false);
    bench.link.weather.loss = 0;
    assert_eq!(bench.peers[0].repeats, 0);
    bench.run(3 * ROUND_TRIP + DELAY, |bench| bench.peers[0].repeats > 0);
    assert_eq!(bench.peers[0].repeats, 1);
    assert!(bench.peers[0].zero_windows >= 1, "and the zero window with it");
}

#[test]
fn a_peer_that_ignores_the_zero_window_loses_nothing() {
    let manners = Manners { heeds_zero_window: false, ..LINUX };
    let mut bench = Bench::new(&[manners], DELAY);
    bench.peers[0].send(10_000);
    bench.peers_send();
    let drained = bench.drain(1_000_000);
    assert_eq!((drained.settled, drained.timed_out), (1, false));
    // After the drain, before the freeze: taken and acknowledged. After the freeze: held.
    bench.peers[0].send(10_000);
    bench.run(ROUND_TRIP, |_| false);
    assert_eq!(bench.peers[0].una, bench.peers[0].nxt);
    bench.peers[0].send(10_000);
    bench.peers_send();
    bench.now += DELAY;
    while let Some((_, frame)) = bench.link.arrived(bench.now) {
        bench.card.received.push_back(frame);
    }
    let resumed = bench.resume();
    assert_eq!((resumed.connections, resumed.held_frames), (1, 7));
    bench.run(ROUND_TRIP, |_| false);
    assert_eq!(bench.read(0, 0), 30_000);
    assert_eq!(bench.peers[0].una, bench.peers[0].nxt);
}

#[test]
fn all_that_came_before_the_mark_is_taken() {
    let manners = Manners { heeds_zero_window: false, ..LINUX };
    let mut bench = Bench::new(&[manners], DELAY);
    let mark = mark::frame([2, 0, 0, 0, 0, 9], 77);
    // Of a move before this one.
    bench.card.received.push_back(mark.to_vec());
    bench.run(0, |_| true);
    let drained = bench.drain(1_000_000);
    assert_eq!((drained.settled, drained.timed_out), (1, false));
    assert!(!bench.stack.marked(77), "a drain begins without a mark");
    bench.peers[0].send(10_000);
    bench.peers_send();
    bench.now += DELAY;
    while let Some((_, frame)) = bench.link.arrived(bench.now) {
        bench.card.received.push_back(frame);
    }
    bench.card.received.push_back(mark::frame([0; 6], 78).to_vec());
    let now = bench.instant();
    bench.stack.drain_poll(now, &mut bench.card);
    assert!(!bench.stack.marked(77) && bench.stack.marked(78));
    assert!(bench.card.received.is_empty());
    assert_eq!(bench.read(0, 0), 10_000);
    bench.card.received.push_back(mark.to_vec());
    bench.stack.drain_poll(now, &mut bench.card);
    assert!(bench.stack.marked(77) && !bench.stack.marked(78));
}

#[test]
fn what_was_lost_on_its_way_out_does_not_hold_it_up() {
    let mut bench = Bench::new(&[LINUX], DELAY);
    bench.link.weather.loss = 1000;
    bench.write(0, 0, 1_000);
    bench.run(0, |_| true);
    bench.link.weather.loss = 0;
    let drained = bench.drain(1_000_000);
    assert_eq!((drained.connections, drained.settled, drained.timed_out), (1, 0, false));
    assert_eq!(u64::from(drained.elapsed_us), 2 * ROUND_TRIP);
    bench.resume();
    bench.run(2_000_000, |_| false);
    assert_eq!(bench.peers[0].got.len(), 1_000);
    bench.check_got(0);
}

#[test]
fn a_lost_acknowledgement_is_asked_for_at_the_resume() {
    let mut bench = Bench::new(&[LINUX], DELAY);
    bench.write(0, 0, 1_000);
    bench.run(DELAY, |_| false);
    // The peer has it; its ACK and all answers are lost until after the drain.
    bench.deaf = true;
    let drained = bench.drain(50_000);
    assert!(drained.timed_out);
    bench.deaf = false;
    bench.peers[0].repeats = 0;
    bench.resume();
    bench.run(ROUND_TRIP, |_| false);
    assert_eq!(bench.peers[0].repeats, 1, "one octet, and nothing retransmitted");
    let line = bench.stack.connections().find(|line| line.remote_port == 40_000).expect("open");
    assert_eq!(line.send_queue, 0, "acknowledged after one round trip");
}

#[test]
fn a_reset_in_the_drain_is_waited_for_no_longer() {
    let mut bench = Bench::new(&[Manners { answers: false, ..LINUX }], DELAY);
    bench.peers[0].reset();
    bench.peers_send();
    let drained = bench.drain(1_000_000);
    assert_eq!((drained.connections, drained.settled, drained.timed_out), (1, 1, false));
    assert_eq!(u64::from(drained.elapsed_us), DELAY);
    assert_eq!(bench.peers[0].resets, 0);
}

#[test]
fn a_handshake_that_ends_in_the_drain_is_told_too_and_moves() {
    let mut bench = Bench::new(&[LINUX], DELAY);
    bench.peers.push(Peer::new(LINUX, 41_000, 5));
    bench.peers_send();
    // SYN there, SYN-ACK on its way back.
    bench.run(DELAY + 100, |_| false);
    let drained = bench.drain(1_000_000);
    assert_eq!((drained.connections, drained.settled, drained.timed_out), (2, 2, false));
    assert!(bench.peers[1].zero_windows >= 1);
    assert_eq!(bench.peers[1].edge, bench.peers[1].nxt);
    bench.resume();
    bench.run(ROUND_TRIP, |_| false);
    assert_eq!(bench.peers[1].send(100), 100);
    assert_eq!(bench.peers[1].resets, 0);
}

#[test]
fn a_syn_in_the_drain_is_answered_after_it() {
    let mut bench = Bench::new(&[LINUX], DELAY);
    bench.drain(1_000_000);
    bench.peers.push(Peer::new(LINUX, 41_000, 5));
    bench.run(ROUND_TRIP, |_| false);
    assert_eq!(bench.peers[1].una, bench.peers[1].nxt - 1, "no SYN-ACK yet");
    bench.resume();
    bench.run(ROUND_TRIP, |_| false);
    assert_eq!(bench.peers[1].una, bench.peers[1].nxt, "SYN-ACK without a second SYN");
    assert_eq!(bench.peers[1].resets, 0);
}

#[test]
fn nothing_is_refused_in_the_drain_and_again_after_it() {
    let mut bench = Bench::new(&[LINUX], DELAY);
    bench.drain(1_000_000);
    let mut stranger = Peer::new(LINUX, 42_000, 5);
    stranger.edge += 100;
    stranger.send(10);
    bench.peers.push(stranger);
    // Its SYN is held; its data belongs to nothing.
    bench.run(ROUND_TRIP, |_| false);
    assert_eq!(bench.peers[1].resets, 0);
    let mut other = Peer::new(LINUX, 43_000, 5);
    other.ack();
    bench.peers.push(other);
    bench.run(ROUND_TRIP, |_| false);
    assert_eq!(bench.peers[2].resets, 0);
    bench.resume();
    let mut late = Peer::new(LINUX, 45_000, 5);
    late.edge += 100;
    late.send(10);
    late.drop_first();
    bench.peers.push(late);
    bench.run(ROUND_TRIP, |_| false);
    assert_eq!(bench.peers[3].resets, 1, "a segment that belongs to nothing");
}

#[test]
fn with_all_kinds_of_peers_the_slowest_counts() {
    let quiet = Manners { duplicate_sack: false, ..LINUX };
    let plain = Manners { sack: false, ..LINUX };
    let mut bench = Bench::new(&[LINUX, quiet, plain, LINUX], DELAY);
    bench.peers[3].send(20_000);
    bench.peers_send();
    let drained = bench.drain(1_000_000);
    assert_eq!((drained.connections, drained.settled, drained.timed_out), (4, 4, false));
    assert_eq!(u64::from(drained.elapsed_us), 2 * ROUND_TRIP);
    assert_eq!(bench.read(3, 0), 20_000);
}

/// Longer than what makes a peer quiet.
const SILENCE: u64 = 150_000;

#[test]
fn quiet_peers_are_told_and_not_asked() {
    let mut bench = Bench::new(&[LINUX, Manners { sack: false, ..LINUX }, LINUX], DELAY);
    bench.run(SILENCE, |_| false);
    // The third is not quiet: it has just spoken.
    bench.peers[2].send(64);
    bench.run(ROUND_TRIP, |_| false);
    let before: Vec<u32> = bench.peers.iter().map(|peer| peer.zero_windows).collect();
    assert_eq!(before, [0, 0, 0]);
    let drained = bench.drain(1_000_000);
    assert_eq!((drained.connections, drained.settled, drained.timed_out), (3, 3, false));
    assert_eq!(u64::from(drained.elapsed_us), ROUND_TRIP, "one was asked");
    for (peer, (windows, repeats)) in bench.peers.iter().zip([(1, 0), (1, 0), (2, 1)]) {
        assert_eq!((peer.zero_windows, peer.repeats), (windows, repeats));
        assert_eq!(peer.edge, peer.nxt, "nothing may be sent");
    }
    bench.resume();
    bench.run(ROUND_TRIP, |_| false);
    for peer in 0..2 {
        assert_eq!(bench.peers[peer].edge, bench.peers[peer].nxt + 65_535);
        assert_eq!(bench.peers[peer].send(3_000), 3_000);
    }
    bench.run(ROUND_TRIP, |_| false);
    assert_eq!((bench.read(0, 0), bench.read(1, 0), bench.read(2, 0)), (3_000, 3_000, 64));
    assert!(bench.peers.iter().all(|peer| peer.resets == 0));
}

#[test]
fn quiet_peers_alone_are_not_waited_for_even_if_they_have_vanished() {
    let mut bench = Bench::new(&[LINUX, Manners { answers: false, ..LINUX }], DELAY);
    bench.run(SILENCE, |_| false);
    let drained = bench.drain(1_000_000);
    assert_eq!((drained.connections, drained.settled, drained.timed_out), (2, 2, false));
    assert_eq!(drained.elapsed_us, 0);
}

#[test]
fn with_something_of_ours_under_way_nobody_is_quiet() {
    let mut bench = Bench::new(&[Manners { answers: false, ..LINUX }], DELAY);
    bench.run(SILENCE, |_| false);
    bench.link.weather.loss = 1000;
    bench.write(0, 0, 1_000);
    bench.run(0, |_| true);
    bench.link.weather.loss = 0;
    let drained = bench.drain(70_000);
    assert_eq!((drained.connections, drained.settled, drained.timed_out), (1, 0, true));
    assert!(bench.peers[0].repeats >= 1, "asked");
}

#[test]
fn what_a_quiet_peer_sends_before_it_is_told_is_taken_held_and_complete() {
    let mut bench = Bench::new(&[LINUX], DELAY);
    bench.run(SILENCE, |_| false);
    // Half a round trip away when the drain begins and ends.
    bench.peers[0].send(5_000);
    bench.peers_send();
    bench.run(DELAY / 2, |_| false);
    let drained = bench.drain(1_000_000);
    assert_eq!((drained.settled, drained.timed_out, drained.elapsed_us), (1, false, 0));
    bench.peers[0].send(5_000);
    bench.peers_send();
    // The first reaches the source, before it freezes.
    bench.run(DELAY / 2, |bench| bench.peers[0].una == bench.peers[0].nxt);
    let now = bench.instant();
    bench.stack.drain_poll(now, &mut bench.card);
    assert!(bench.read(0, 0) >= 5_000);
    // The second reaches the standby.
    bench.now += DELAY;
    while let Some((to, frame)) = bench.link.arrived(bench.now) {
        match to {
            0 => bench.card.received.push_back(frame),
            _ => bench.peers[0].take(&frame),
        }
    }
    bench.resume();
    bench.run(2 * ROUND_TRIP, |_| false);
    bench.read(0, 5_000);
    assert_eq!(bench.peers[0].una, bench.peers[0].nxt, "all acknowledged");
    assert_eq!(bench.peers[0].send(100), 100);
    assert_eq!(bench.peers[0].resets, 0);
}

#[test]
fn a_quiet_peer_that_speaks_before_it_is_told_is_asked() {
    let mut bench = Bench::new(&[LINUX, LINUX], DELAY);
    bench.run(SILENCE, |_| false);
    bench.peers[0].send(64);
    bench.peers_send();
    bench.now += DELAY;
    while let Some((_, frame)) = bench.link.arrived(bench.now) {
        bench.card.received.push_back(frame);
    }
    let drained = bench.drain(1_000_000);
    assert_eq!((drained.settled, drained.timed_out), (2, false));
    assert_eq!(u64::from(drained.elapsed_us), ROUND_TRIP);
    assert_eq!((bench.peers[0].repeats, bench.peers[1].repeats), (1, 0));
}
