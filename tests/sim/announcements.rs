//! After a move: who hears of it, and when, if what says so is lost.

use crate::hand::{Bench, LINUX};

const DELAY: u64 = 5_000;
const ROUND_TRIP: u64 = 2 * DELAY;
/// Longer than a peer says nothing that is not quiet.
const SILENCE: u64 = 150_000;

#[test]
fn when_all_the_first_announcements_are_lost_others_follow() {
    const SECOND: u64 = 1_000_000;
    // The cable of the new host is out for so long, and after how long all is well.
    for (cut, limit) in
        [(SECOND, SECOND), (26 * SECOND / 10, 12 * SECOND / 10), (20 * SECOND, 12 * SECOND)]
    {
        // One is quiet and one not; neither has anything to hear from the service.
        let mut bench = Bench::new(&[LINUX, LINUX], DELAY);
        bench.run(SILENCE, |_| false);
        bench.peers[1].send(64);
        bench.run(ROUND_TRIP, |_| false);
        assert_eq!(bench.read(1, 0), 64);
        assert_eq!(bench.drain(SECOND).settled, 2);
        bench.link.weather.loss = 1000;
        bench.resume();
        bench.run(cut, |_| false);
        assert!(bench.peers.iter().all(|peer| peer.edge == peer.nxt), "all was lost");
        // Switches send what is for the service to its old host until they hear from the new one.
        bench.link.weather.loss = 0;
        bench.deaf = true;
        let (healed, arps) = (bench.now, bench.peers[0].arps);
        bench.run(limit, |bench| bench.peers[0].arps > arps);
        assert!(bench.peers[0].arps > arps, "no word in {limit} us after {cut} us");
        bench.deaf = false;
        bench.run(ROUND_TRIP, |_| false);
        assert!(bench.now - healed <= limit + ROUND_TRIP);
        for peer in 0..2 {
            assert_eq!(bench.peers[peer].edge, bench.peers[peer].nxt + 65_535, "{cut}: {peer}");
        }
    }
}

#[test]
fn announcements_come_to_an_end() {
    let mut bench = Bench::new(&[LINUX, LINUX], DELAY);
    bench.run(SILENCE, |_| false);
    bench.drain(1_000_000);
    bench.resume();
    bench.run(ROUND_TRIP, |_| false);
    // One speaks, and need not be told again.
    bench.peers[1].send(64);
    bench.run(ROUND_TRIP, |_| false);
    let heard = [0, 1].map(|peer| bench.peers[peer].open_windows);
    bench.run(300_000_000, |_| false);
    assert_eq!(
        bench.peers[0].arps, 13,
        "one question for the peer's address, and two minutes of answers"
    );
    let again = [0, 1].map(|peer| bench.peers[peer].open_windows - heard[peer]);
    assert_eq!(again, [6, 1], "the second only got the acknowledgement");
    assert_eq!(bench.stack.poll_at(), None, "nothing more to do");
}
