//! One peer in a drain: a state machine without I/O.

use smoltcp::time::{Duration, Instant};
use smoltcp::wire::TcpSeqNumber;

use crate::table::timers::Armed;

/// Shortest time between two barriers to one peer.
const RETRY_MIN: Duration = Duration::from_millis(4);
/// Longest time between two barriers to one peer.
const RETRY_MAX: Duration = Duration::from_millis(200);
/// Used while the round trip time is not known.
const RETRY_UNKNOWN: Duration = Duration::from_millis(20);
/// Silence after which a peer with nothing under way is quiet, at least, and in round trips.
const QUIET_MIN: Duration = Duration::from_millis(100);
const QUIET_ROUND_TRIPS: u32 = 2;
/// What proves as much as one D-SACK. A bare ACK weighs two: one may have been on its way. An ACK that
/// reports a hole weighs one: segments beyond the hole bring several of them, unasked.
const PROOF: u8 = 4;
const BARE_WEIGHT: u8 = 2;
const HOLE_WEIGHT: u8 = 1;

/// Where a peer stands. See the [module](super).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Not told yet: the ring was full.
    Waiting,
    /// Quiet, and told the zero window.
    Told,
    /// Zero window and barrier sent.
    Asked,
    /// Barrier answered, but not all of ours is acknowledged.
    Answered,
    /// Everything is in, both ways.
    Settled,
    /// Two barriers answered and something of ours still not acknowledged: it is lost, or the peer
    /// has no room for it. Nothing more will come of waiting.
    Owing,
    /// The connection has ended.
    Gone,
}

/// What a segment from a peer says about the barrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// A D-SACK whose block is this one octet.
    DuplicateSack(TcpSeqNumber),
    /// An ACK with nothing else in it that acknowledges nothing new.
    Bare,
    /// The same with SACK blocks for data beyond a hole.
    Hole,
    /// Anything else.
    None,
}

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    phase: Phase,
    sack_permitted: bool,
    /// Sequence numbers of the barriers sent: from the first to the last, both included.
    barriers: Option<(TcpSeqNumber, TcpSeqNumber)>,
    evidence: u8,
    tell: bool,
    /// Nothing was under way when the drain began, nor has been heard since.
    quiet: bool,
    interval: Duration,
    retry_at: Instant,
    /// Entries in the drain's timer heap.
    pub armed: Armed,
}

impl Peer {
    /// A peer that has to be asked.
    pub fn new(sack_permitted: bool, srtt: Option<Duration>) -> Self {
        let interval = srtt.map_or(RETRY_UNKNOWN, |srtt| srtt * 2).clamp(RETRY_MIN, RETRY_MAX);
        Self {
            phase: Phase::Waiting,
            sack_permitted,
            barriers: None,
            evidence: 0,
            tell: true,
            quiet: false,
            interval,
            retry_at: Instant::ZERO,
            armed: Armed::default(),
        }
    }

    /// A peer of a connection with nothing under way, not heard for as long as `silence`.
    pub fn with_nothing_under_way(
        sack_permitted: bool,
        srtt: Option<Duration>,
        silence: Duration,
    ) -> Self {
        let least = srtt.map_or(QUIET_MIN, |srtt| (srtt * QUIET_ROUND_TRIPS).max(QUIET_MIN));
        Self { quiet: silence >= least, ..Self::new(sack_permitted, srtt) }
    }

    /// The zero window has gone out to it. `true` if it need not be asked.
    pub fn told(&mut self) -> bool {
        if self.phase == Phase::Waiting && self.quiet {
            self.phase = Phase::Told;
        }
        self.phase == Phase::Told
    }

    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether it has only to be told, or has said nothing since it was.
    pub fn quiet(&self) -> bool {
        self.quiet
    }

    /// Nothing more is waited for.
    pub fn done(&self) -> bool {
        matches!(self.phase, Phase::Told | Phase::Settled | Phase::Owing | Phase::Gone)
    }

    /// Whether the zero window goes out before the barrier: the first time, and when neither was
    /// answered. Told again to a peer that answers, it would be a duplicate ACK.
    pub fn tells_window(&self) -> bool {
        self.tell
    }

    /// How many barriers go out at one time. Without SACK two bare ACKs are needed for proof, and two
    /// octets bring them in one round trip.
    pub fn volley(&self) -> u8 {
        if self.sack_permitted { 1 } else { PROOF / BARE_WEIGHT }
    }

    /// A barrier went out with this sequence number. When to send the next one.
    pub fn asked(&mut self, seq: TcpSeqNumber, now: Instant) -> Instant {
        if self.phase == Phase::Waiting {
            self.phase = Phase::Asked;
        }
        self.barriers = Some(self.barriers.map_or((seq, seq), |(first, _)| (first, seq)));
        self.tell = false;
        self.retry_at = now + self.interval;
        self.retry_at
    }

    /// A segment came in. `acknowledged`: nothing of ours is outstanding after it. `true` if a
    /// barrier should go out at once.
    pub fn heard(&mut self, answer: Answer, acknowledged: bool) -> bool {
        match self.phase {
            Phase::Waiting | Phase::Told => {
                self.quiet = false;
                return false;
            }
            Phase::Settled | Phase::Gone => return false,
            Phase::Owing => {
                if acknowledged {
                    self.phase = Phase::Settled;
                }
                return false;
            }
            Phase::Asked | Phase::Answered => {}
        }
        let proven = match answer {
            Answer::DuplicateSack(octet) => {
                self.barriers.is_some_and(|(first, last)| first <= octet && octet <= last)
            }
            Answer::Bare => self.weigh(BARE_WEIGHT),
            Answer::Hole => self.weigh(HOLE_WEIGHT),
            Answer::None => false,
        };
        if proven {
            self.evidence = 0;
        }
        match (self.phase, proven, acknowledged) {
            (Phase::Asked, true, true) | (Phase::Answered, _, true) => {
                self.phase = Phase::Settled;
                false
            }
            (Phase::Asked, true, false) => {
                self.phase = Phase::Answered;
                // Once more: an answer to a second barrier that still leaves something of ours
                // unacknowledged says it is lost.
                true
            }
            (Phase::Answered, true, false) => {
                self.phase = Phase::Owing;
                false
            }
            // The first bare ACK of a peer that may not know D-SACK: a second one decides.
            _ => answer == Answer::Bare && self.evidence == BARE_WEIGHT && self.sack_permitted,
        }
    }

    fn weigh(&mut self, weight: u8) -> bool {
        self.evidence += weight;
        self.evidence >= PROOF
    }

    /// The retry time came. `true` if the barrier should be sent again.
    pub fn timer(&mut self, now: Instant) -> bool {
        if !matches!(self.phase, Phase::Asked | Phase::Answered) || now < self.retry_at {
            return false;
        }
        self.interval = (self.interval * 2).min(RETRY_MAX);
        self.tell = true;
        true
    }

    /// When the barrier has to be sent again, if nothing comes before.
    pub fn retry_at(&self) -> Option<Instant> {
        matches!(self.phase, Phase::Asked | Phase::Answered).then_some(self.retry_at)
    }

    /// The connection was closed or reset, or has come to TIME-WAIT.
    pub fn gone(&mut self) {
        self.phase = Phase::Gone;
    }
}

#[cfg(test)]
#[path = "peer_tests.rs"]
mod tests;
