//! After a resume the first window update of a connection waits until the service does.

use ferry_net::Duration;

use crate::hand::{Bench, LINUX};

const DELAY: u64 = 5_000;
const ROUND_TRIP: u64 = 2 * DELAY;
const WINDOW: usize = 65_535;
/// How long a service may be at work before its peers' windows open nevertheless.
const LIMIT: u64 = 50_000;

/// A service whose one peer has filled its window, in the middle of work that has begun with reading all of that.
fn at_work(go_on: fn(&mut Bench)) -> Bench {
    let mut bench = Bench::new(&[LINUX], DELAY);
    assert_eq!(bench.peers[0].send(WINDOW), WINDOW);
    bench.run(2 * ROUND_TRIP, |_| false);
    assert_eq!((bench.peers[0].una, bench.peers[0].edge), (bench.peers[0].nxt, bench.peers[0].nxt));
    bench.drain(1_000_000);
    go_on(&mut bench);
    // It is heard, and so not announced to once more.
    bench.peers[0].probe();
    bench.run(ROUND_TRIP, |_| false);
    assert_eq!(bench.peers[0].edge, bench.peers[0].nxt, "there is no room yet");
    assert_eq!(bench.read(0, 0), WINDOW as u64);
    bench
}

fn resumed(bench: &mut Bench) {
    bench.resume();
}

/// Segments that the service sends in its work now.
fn segments(bench: &mut Bench) -> usize {
    let progress = bench.stack.poll_at_work(bench.instant(), &mut bench.card);
    assert!(!progress.more, "it would go on for ever");
    let sent = bench.card.sent.iter().filter(|frame| frame[12..14] == [8, 0]).count();
    bench.service_sends();
    sent
}

fn window(bench: &mut Bench) -> usize {
    bench.link_time(DELAY);
    bench.peers[0].edge - bench.peers[0].nxt
}

#[test]
fn the_update_waits_until_the_service_does() {
    let mut bench = at_work(resumed);
    for _ in 0..4 {
        assert_eq!(segments(&mut bench), 0);
        bench.now += 10_000;
    }
    bench.run(DELAY, |_| false);
    assert_eq!(bench.peers[0].edge, bench.peers[0].nxt + WINDOW);
    // Later ones leave at once.
    bench.peers[0].send(WINDOW);
    bench.run(2 * ROUND_TRIP, |_| false);
    assert_eq!(bench.read(0, WINDOW as u64), WINDOW as u64);
    assert_eq!((segments(&mut bench), window(&mut bench)), (1, WINDOW));
}

#[test]
fn a_service_that_is_never_done_keeps_nobody_waiting_for_ever() {
    let mut bench = at_work(resumed);
    assert_eq!(segments(&mut bench), 0);
    bench.now += LIMIT - 1;
    assert_eq!(segments(&mut bench), 0);
    bench.now += 1;
    assert_eq!((segments(&mut bench), window(&mut bench)), (1, WINDOW));
}

#[test]
fn on_the_same_host_nothing_waits() {
    let mut bench = at_work(|bench| {
        let now = bench.instant();
        bench.stack.thaw(now, &mut bench.card);
        bench.service_sends();
    });
    assert_eq!((segments(&mut bench), window(&mut bench)), (1, WINDOW));
}

#[test]
fn data_and_acknowledgements_never_wait() {
    let mut bench = at_work(resumed);
    assert_eq!(segments(&mut bench), 0);
    bench.write(0, 0, 100);
    assert_eq!((segments(&mut bench), window(&mut bench)), (1, WINDOW), "data tells the window");
    bench.peers[0].send(10_000);
    bench.link_time(DELAY);
    assert!(segments(&mut bench) > 0);
    bench.link_time(DELAY);
    assert_eq!(bench.peers[0].una, bench.peers[0].nxt);
    assert_eq!(bench.read(0, WINDOW as u64), 10_000);
    assert_eq!(bench.peers[0].got.len(), 100);
}

#[test]
fn each_move_begins_anew() {
    let mut bench = at_work(resumed);
    assert_eq!(segments(&mut bench), 0);
    bench.run(DELAY, |_| false);
    bench.peers[0].send(WINDOW);
    bench.run(2 * ROUND_TRIP, |_| false);
    // In the middle of the next drain nothing is left of the move before.
    let deadline = bench.instant() + Duration::from_millis(100);
    bench.stack.drain_begin(bench.instant(), deadline);
    bench.run(2 * ROUND_TRIP, |_| false);
    bench.resume();
    bench.run(ROUND_TRIP, |_| false);
    assert_eq!(bench.read(0, WINDOW as u64), WINDOW as u64);
    assert_eq!(segments(&mut bench), 0);
    bench.run(DELAY, |_| false);
    assert_eq!(bench.peers[0].edge, bench.peers[0].nxt + WINDOW);
}
