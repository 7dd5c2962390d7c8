//! Every state × event of one peer's drain.

use super::*;

const RTT: Duration = Duration::from_millis(10);
const BARRIER: TcpSeqNumber = TcpSeqNumber(-1);
const DSACK: Answer = Answer::DuplicateSack(BARRIER);

fn at(millis: i64) -> Instant {
    Instant::from_millis(millis)
}

/// A peer brought to `phase`, its last barrier sent at 0 ms.
fn in_phase(phase: Phase, sack: bool) -> Peer {
    let mut peer = Peer::new(sack, Some(RTT));
    if phase == Phase::Told {
        peer = Peer::with_nothing_under_way(sack, Some(RTT), QUIET_MIN);
        assert!(peer.told());
    } else if phase != Phase::Waiting {
        peer.asked(BARRIER, at(0));
    }
    match phase {
        Phase::Waiting | Phase::Told | Phase::Asked => {}
        Phase::Answered => {
            assert!(peer.heard(DSACK, false));
        }
        Phase::Settled => {
            assert!(!peer.heard(DSACK, true));
        }
        Phase::Owing => {
            peer.heard(DSACK, false);
            peer.heard(DSACK, false);
        }
        Phase::Gone => peer.gone(),
    }
    assert_eq!(peer.phase(), phase);
    peer
}

const ALL: [Phase; 7] = [
    Phase::Waiting,
    Phase::Told,
    Phase::Asked,
    Phase::Answered,
    Phase::Settled,
    Phase::Owing,
    Phase::Gone,
];

/// What a D-SACK for the barrier makes of each phase; whether a barrier follows at once.
#[test]
fn duplicate_sack() {
    use Phase::{Answered, Asked, Gone, Owing, Settled, Told, Waiting};
    for (from, acknowledged, to, again) in [
        (Waiting, true, Waiting, false),
        (Waiting, false, Waiting, false),
        (Told, true, Told, false),
        (Told, false, Told, false),
        (Asked, true, Settled, false),
        (Asked, false, Answered, true),
        (Answered, true, Settled, false),
        (Answered, false, Owing, false),
        (Settled, true, Settled, false),
        (Settled, false, Settled, false),
        (Owing, true, Settled, false),
        (Owing, false, Owing, false),
        (Gone, true, Gone, false),
        (Gone, false, Gone, false),
    ] {
        let mut peer = in_phase(from, true);
        assert_eq!(peer.heard(DSACK, acknowledged), again, "{from:?}, {acknowledged}");
        assert_eq!(peer.phase(), to, "{from:?}, {acknowledged}");
    }
}

/// What the first bare ACK makes of each phase.
#[test]
fn first_bare_ack() {
    use Phase::{Answered, Asked, Gone, Owing, Settled, Told, Waiting};
    for (from, acknowledged, to, again) in [
        (Waiting, true, Waiting, false),
        (Told, true, Told, false),
        (Asked, true, Asked, true),
        (Asked, false, Asked, true),
        (Answered, true, Settled, false),
        (Answered, false, Answered, true),
        (Settled, true, Settled, false),
        (Owing, true, Settled, false),
        (Owing, false, Owing, false),
        (Gone, true, Gone, false),
    ] {
        let mut peer = in_phase(from, true);
        assert_eq!(peer.heard(Answer::Bare, acknowledged), again, "{from:?}, {acknowledged}");
        assert_eq!(peer.phase(), to, "{from:?}, {acknowledged}");
    }
}

/// What anything else makes of each phase: only that all is acknowledged can matter.
#[test]
fn other_segment() {
    use Phase::{Answered, Asked, Gone, Owing, Settled, Told, Waiting};
    for (from, acknowledged, to) in [
        (Waiting, true, Waiting),
        (Told, true, Told),
        (Asked, true, Asked),
        (Asked, false, Asked),
        (Answered, true, Settled),
        (Answered, false, Answered),
        (Settled, false, Settled),
        (Owing, true, Settled),
        (Owing, false, Owing),
        (Gone, true, Gone),
    ] {
        let mut peer = in_phase(from, true);
        assert!(!peer.heard(Answer::None, acknowledged));
        assert_eq!(peer.phase(), to, "{from:?}, {acknowledged}");
    }
}

/// The timer asks again only those who are waited for, and not before its time.
#[test]
fn timer() {
    for phase in ALL {
        let waits = matches!(phase, Phase::Asked | Phase::Answered);
        let mut peer = in_phase(phase, true);
        assert_eq!(peer.retry_at(), waits.then_some(at(20)), "{phase:?}");
        assert!(!peer.timer(at(19)), "{phase:?}");
        assert_eq!(peer.timer(at(20)), waits, "{phase:?}");
        assert_eq!(peer.phase(), phase);
    }
}

#[test]
fn gone_from_every_phase() {
    for phase in ALL {
        let mut peer = in_phase(phase, true);
        peer.gone();
        assert_eq!(peer.phase(), Phase::Gone);
    }
}

#[test]
fn done_is_told_settled_owing_or_gone() {
    for phase in ALL {
        let done = matches!(phase, Phase::Told | Phase::Settled | Phase::Owing | Phase::Gone);
        assert_eq!(in_phase(phase, true).done(), done, "{phase:?}");
    }
}

#[test]
fn two_bare_acks_or_four_with_a_hole_are_proof() {
    let mut peer = in_phase(Phase::Asked, false);
    assert!(!peer.heard(Answer::Bare, true), "two octets went out together");
    assert_eq!(peer.phase(), Phase::Asked);
    peer.heard(Answer::Bare, true);
    assert_eq!(peer.phase(), Phase::Settled);

    let mut peer = in_phase(Phase::Asked, true);
    for _ in 0..3 {
        peer.heard(Answer::Hole, false);
        assert_eq!(peer.phase(), Phase::Asked);
    }
    assert!(peer.heard(Answer::Hole, false));
    assert_eq!(peer.phase(), Phase::Answered);
}

#[test]
fn a_duplicate_sack_for_another_octet_is_none_for_the_barrier() {
    let mut peer = in_phase(Phase::Asked, true);
    for seq in [-2, 0, 7] {
        peer.heard(Answer::DuplicateSack(TcpSeqNumber(seq)), true);
        assert_eq!(peer.phase(), Phase::Asked, "{seq}");
    }
    // SND.UNA has moved on since; an answer to either barrier counts.
    peer.asked(TcpSeqNumber(7), at(20));
    peer.heard(DSACK, true);
    assert_eq!(peer.phase(), Phase::Settled);
}

#[test]
fn time_between_barriers_comes_from_the_round_trip_and_doubles_up_to_a_limit() {
    let mut peer = Peer::new(true, Some(RTT));
    let mut now = at(0);
    let mut gaps = Vec::new();
    for _ in 0..6 {
        let next = peer.asked(BARRIER, now);
        gaps.push((next - now).total_millis());
        assert!(peer.timer(next));
        now = next;
    }
    assert_eq!(gaps, [20, 40, 80, 160, 200, 200]);
    assert_eq!(Peer::new(true, None).asked(BARRIER, at(0)), at(20));
    let fast = Some(Duration::from_micros(80));
    assert_eq!(Peer::new(true, fast).asked(BARRIER, at(0)), at(4));
}

#[test]
fn the_window_is_told_first_and_again_when_nothing_was_heard() {
    let mut peer = Peer::new(true, Some(RTT));
    assert!(peer.tells_window());
    peer.asked(BARRIER, at(0));
    assert!(!peer.tells_window());
    assert!(peer.heard(Answer::Bare, true));
    assert!(!peer.tells_window(), "the second barrier follows an answer");
    assert!(peer.timer(at(20)));
    assert!(peer.tells_window());
}

#[test]
fn a_volley_is_two_where_nothing_tells_the_answers_apart() {
    assert_eq!(in_phase(Phase::Asked, true).volley(), 1);
    assert_eq!(in_phase(Phase::Asked, false).volley(), 2);
}

#[test]
fn only_who_has_been_silent_for_long_is_quiet() {
    let millis = Duration::from_millis;
    for (srtt, silence, quiet) in [
        (None, 99, false),
        (None, 100, true),
        (Some(millis(1)), 100, true),
        (Some(millis(80)), 159, false),
        (Some(millis(80)), 160, true),
    ] {
        let mut peer = Peer::with_nothing_under_way(true, srtt, millis(silence));
        assert_eq!(peer.quiet(), quiet, "{srtt:?}, {silence}");
        assert!(peer.tells_window());
        assert_eq!(peer.told(), quiet);
        assert_eq!(peer.done(), quiet);
    }
    // Not one that is heard meanwhile.
    let mut peer = Peer::with_nothing_under_way(true, None, millis(100));
    assert!(!peer.heard(Answer::None, true));
    assert!(!peer.told());
    assert_eq!(peer.phase(), Phase::Waiting);
}
