//! Around a move: what acknowledges bulk waits a millisecond, and nothing else does.

use ferry_net::Duration;

use crate::hand::{Bench, LINUX};

const DELAY: u64 = 5_000;
const ROUND_TRIP: u64 = 2 * DELAY;
const WAIT: u64 = 1_000;
const BULK: usize = 20_000;
/// Longer than an acknowledgement of little waits.
const SPAN: u64 = 60_000;

fn delay(bench: &mut Bench, span: u64) {
    let now = bench.instant();
    bench.stack.delay_acks(now, Duration::from_micros(span));
}

fn delayed() -> Bench {
    let mut bench = Bench::new(&[LINUX], DELAY);
    delay(&mut bench, SPAN);
    bench
}

fn acknowledgements(bench: &Bench) -> u32 {
    bench.peers[0].open_windows
}

/// How long after all it sent could have been acknowledged it is, in microseconds; the service reads nothing.
fn late(bench: &mut Bench) -> u64 {
    let begin = bench.now;
    bench.run(1_000_000, |bench| bench.peers[0].una == bench.peers[0].nxt);
    assert_eq!(bench.peers[0].una, bench.peers[0].nxt);
    bench.now - begin - ROUND_TRIP
}

/// The same for `len` octets that it sends now, which the service then reads.
fn late_after(bench: &mut Bench, at: &mut u64, len: usize) -> u64 {
    assert_eq!(bench.peers[0].send(len), len);
    let late = late(bench);
    assert_eq!(bench.read(0, *at), len as u64);
    *at += len as u64;
    bench.run(2 * ROUND_TRIP, |_| false);
    late
}

#[test]
fn bulk_waits_while_it_is_asked_for() {
    let (mut bench, mut at) = (Bench::new(&[LINUX], DELAY), 0);
    assert_eq!(late_after(&mut bench, &mut at, BULK), 0);
    delay(&mut bench, SPAN);
    assert_eq!(late_after(&mut bench, &mut at, BULK), WAIT);
    bench.run(SPAN, |_| false);
    assert_eq!(late_after(&mut bench, &mut at, BULK), 0, "it is over");
    delay(&mut bench, SPAN);
    delay(&mut bench, 0);
    assert_eq!(late_after(&mut bench, &mut at, BULK), 0, "it was taken back");
}

#[test]
fn one_acknowledgement_leaves_for_all_that_came_meanwhile() {
    let mut bench = delayed();
    let before = acknowledgements(&bench);
    bench.peers[0].send(BULK);
    bench.peers_send();
    bench.run(WAIT - 1, |_| false);
    let begin = bench.now;
    bench.peers[0].send(BULK);
    bench.run(1_000_000, |bench| acknowledgements(bench) > before);
    assert_eq!(bench.now, begin + ROUND_TRIP + 1, "the first does not wait for longer");
    assert_eq!(bench.peers[0].una, bench.peers[0].nxt);
    bench.run(ROUND_TRIP, |_| false);
    assert_eq!((acknowledgements(&bench) - before, bench.read(0, 0)), (1, 2 * BULK as u64));
}

#[test]
fn a_wait_ends_when_the_time_for_waiting_does() {
    let mut bench = Bench::new(&[LINUX], DELAY);
    delay(&mut bench, DELAY + 1);
    bench.peers[0].send(BULK);
    let late = late(&mut bench);
    assert!(late <= WAIT, "{late}");
    assert_eq!(bench.read(0, 0), BULK as u64);
}

#[test]
fn data_of_the_service_takes_the_acknowledgement_along() {
    let mut bench = delayed();
    bench.peers[0].send(BULK);
    bench.run(DELAY + 300, |_| false);
    assert_ne!(bench.peers[0].una, bench.peers[0].nxt);
    let begin = bench.now;
    bench.write(0, 0, 100);
    bench.run(1_000_000, |bench| bench.peers[0].una == bench.peers[0].nxt);
    assert_eq!((bench.now - begin, bench.peers[0].got.len()), (DELAY, 100));
    bench.check_got(0);
}

#[test]
fn what_is_not_bulk_is_acknowledged_as_ever() {
    let both = |act: fn(&mut Bench)| {
        let mut benches = [Bench::new(&[LINUX], DELAY), delayed()];
        let times = benches.each_mut().map(|bench| {
            act(bench);
            late(bench)
        });
        assert_eq!(times[0], times[1]);
    };
    both(|bench| assert_eq!(bench.peers[0].send(1), 1));
    both(|bench| assert_eq!(bench.peers[0].send(2 * 1460 - 1), 2 * 1460 - 1));
    both(|bench| {
        bench.peers[0].send(BULK);
        bench.peers[0].finish();
    });
    both(|bench| bench.peers[0].finish());
}

#[test]
fn a_hole_is_reported_at_once() {
    let mut bench = delayed();
    let before = acknowledgements(&bench);
    let first = bench.peers[0].nxt;
    bench.peers[0].send(BULK);
    bench.peers[0].drop_first();
    let begin = bench.now;
    bench.run(1_000_000, |bench| acknowledgements(bench) > before);
    assert_eq!(bench.now - begin, ROUND_TRIP);
    assert_eq!(bench.peers[0].una, first);
}

#[test]
fn what_fills_a_hole_is_acknowledged_at_once() {
    let mut bench = delayed();
    bench.peers[0].send(BULK);
    let second = bench.peers[0].hold(5);
    let first = bench.peers[0].hold(0);
    bench.run(ROUND_TRIP, |_| false);
    let begin = bench.now;
    let una = bench.peers[0].una;
    bench.peers[0].give(first);
    bench.run(1_000_000, |bench| bench.peers[0].una > una);
    assert_eq!((bench.now - begin, bench.peers[0].una - una), (ROUND_TRIP, 5 * 1460));
    bench.peers[0].give(second);
    assert_eq!(late(&mut bench), 0);
    assert_eq!(bench.read(0, 0), BULK as u64);
}

#[test]
fn a_drain_acknowledges_at_once() {
    let drain = |mut bench: Bench, before: u64| {
        bench.peers[0].send(BULK);
        bench.run(before, |_| false);
        let drained = bench.drain(1_000_000);
        assert_eq!((drained.settled, drained.timed_out), (1, false));
        assert_eq!(bench.peers[0].una, bench.peers[0].nxt);
        bench.resume();
        bench.run(ROUND_TRIP, |_| false);
        assert_eq!(bench.read(0, 0), BULK as u64);
        drained.elapsed_us
    };
    // Bulk that waits, and bulk that is on its way.
    for before in [DELAY + 300, 300] {
        assert_eq!(drain(delayed(), before), drain(Bench::new(&[LINUX], DELAY), before));
    }
}

#[test]
fn bulk_waits_for_a_second_after_a_resume() {
    let (mut bench, mut at) = (Bench::new(&[LINUX], DELAY), 0);
    bench.drain(1_000_000);
    bench.resume();
    let resumed = bench.now;
    bench.run(ROUND_TRIP, |_| false);
    assert_eq!(late_after(&mut bench, &mut at, BULK), WAIT);
    bench.run(resumed + 1_000_000 - DELAY - 1 - bench.now, |_| false);
    bench.peers[0].send(BULK);
    assert!(late(&mut bench) > 0);
    bench.read(0, at);
    at += BULK as u64;
    bench.run(ROUND_TRIP, |_| false);
    assert_eq!(late_after(&mut bench, &mut at, BULK), 0);
}

#[test]
fn a_thaw_takes_it_back() {
    let (mut bench, mut at) = (delayed(), 0);
    bench.drain(1_000_000);
    let now = bench.instant();
    bench.stack.thaw(now, &mut bench.card);
    bench.run(ROUND_TRIP, |_| false);
    assert_eq!(late_after(&mut bench, &mut at, BULK), 0);
}
