//! What the wire has seen of a connection: the sequence variables of RFC 9293 §3.3.1, read from the
//! segments that pass.
//!
//! smoltcp keeps its own, in private, and they differ in two places that matter in a drain: it
//! refuses the ACK number of a segment whose SEQ is no longer acceptable, and takes SND.NXT back when
//! it retransmits.

use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{Ipv4Address, TcpPacket, TcpSeqNumber};

/// The two ends of a connection; our address is always the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Peer's address, as a number in host order.
    pub remote: u32,
    /// Peer's port.
    pub remote_port: u16,
    /// Our port.
    pub local_port: u16,
}

impl Tuple {
    /// Peer's address.
    #[must_use]
    pub fn remote_addr(&self) -> Ipv4Address {
        Ipv4Address::from_bits(self.remote)
    }
}

/// The answer to a barrier or probe comes within this, or not at all.
const ANSWER_LIFETIME: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Clone, Debug)]
pub struct Flow {
    /// The connection.
    pub tuple: Tuple,
    /// SND.UNA: all before it is acknowledged. Meaningful once `syn_sent`.
    pub una: TcpSeqNumber,
    /// SND.NXT: one past the highest sequence number ever sent.
    pub nxt: TcpSeqNumber,
    /// Our SYN has been sent.
    pub syn_sent: bool,
    /// End of a zero-window probe that lies beyond `nxt`: the peer may take it or not.
    probe_end: Option<TcpSeqNumber>,
    /// RCV.NXT: all before it was received in order.
    pub rcv_nxt: TcpSeqNumber,
    /// End of the highest segment received out of order; `None` when nothing waits for a hole.
    out_of_order_end: Option<TcpSeqNumber>,
    /// ACK number of the last segment sent.
    pub last_ack: Option<TcpSeqNumber>,
    /// Window field of the last segment sent, scaled, as smoltcp meant it.
    pub last_window: u16,
    /// The peer may read a window of zero: the last segment left in a drain.
    pub closed: bool,
    /// Only SYN segments were sent so far, so the window offered is not scaled.
    pub window_is_syn: bool,
    /// The peer's SYN permitted SACK (RFC 2018).
    pub sack_permitted: bool,
    /// The peer's last window field, not scaled.
    pub peer_window: u16,
    /// Barriers and probes that the peer has not answered yet, and when the last one left.
    probes: (u8, Option<Instant>),
    /// Smoothed round trip time (RFC 6298 §2), from segments sent once.
    pub srtt: Option<Duration>,
    sample: Option<(TcpSeqNumber, Instant)>,
    /// When the peer was last heard.
    pub heard: Instant,
    /// When the peer last acknowledged something, or there was nothing to acknowledge.
    pub progress: Instant,
}

impl Flow {
    /// The flow of a connection nothing has been sent on. For a passive open the peer's SYN follows
    /// through [`syn_received`](Self::syn_received).
    #[must_use]
    pub fn new(tuple: Tuple, now: Instant) -> Self {
        Self {
            tuple,
            una: TcpSeqNumber(0),
            nxt: TcpSeqNumber(0),
            syn_sent: false,
            probe_end: None,
            rcv_nxt: TcpSeqNumber(0),
            out_of_order_end: None,
            last_ack: None,
            last_window: 0,
            closed: false,
            window_is_syn: true,
            sack_permitted: false,
            peer_window: 0,
            probes: (0, None),
            srtt: None,
            sample: None,
            heard: now,
            progress: now,
        }
    }

    /// Takes the peer's SYN.
    pub fn syn_received<T: AsRef<[u8]> + ?Sized>(&mut self, segment: &TcpPacket<&T>) {
        self.rcv_nxt = segment.seq_number() + 1;
        self.sack_permitted = segment.selective_ack_permitted().unwrap_or(false);
    }

    /// Takes a segment that leaves.
    pub fn sent<T: AsRef<[u8]> + ?Sized>(&mut self, segment: &TcpPacket<&T>, now: Instant) {
        let seq = segment.seq_number();
        let len = segment.segment_len();
        if segment.rst() {
            return;
        }
        if segment.syn() {
            if !self.syn_sent {
                (self.una, self.nxt, self.syn_sent) = (seq, seq, true);
            }
        } else {
            self.window_is_syn = false;
        }
        if segment.ack() {
            self.last_ack = Some(segment.ack_number());
        }
        if len == 0 {
            return;
        }
        let end = seq + len;
        if self.una == self.nxt {
            self.progress = now;
        }
        if self.peer_window == 0 && len == 1 && !segment.syn() && !segment.fin() && seq == self.nxt
        {
            self.probe_end = Some(end);
        } else if end > self.nxt {
            if self.sample.is_none() && seq == self.nxt {
                self.sample = Some((end, now));
            }
            self.nxt = end;
        } else {
            // Karn: what was sent twice measures nothing.
            self.sample = None;
        }
    }

    /// Takes the ACK number and window of a segment that arrives. `true` if it acknowledges
    /// something new.
    pub fn received<T: AsRef<[u8]> + ?Sized>(
        &mut self,
        segment: &TcpPacket<&T>,
        now: Instant,
    ) -> bool {
        self.heard = now;
        if segment.rst() || !segment.ack() || !self.syn_sent {
            return false;
        }
        self.peer_window = segment.window_len();
        let ack = segment.ack_number();
        let limit = self.probe_end.map_or(self.nxt, |end| end.max(self.nxt));
        if ack <= self.una || ack > limit {
            return false;
        }
        self.una = ack;
        self.probes.0 = 0;
        if ack > self.nxt {
            self.nxt = ack;
        }
        if self.probe_end.is_some_and(|end| end <= ack) {
            self.probe_end = None;
        }
        self.progress = now;
        if let Some((end, at)) = self.sample
            && ack >= end
        {
            self.sample = None;
            self.measured(now - at);
        }
        true
    }

    fn measured(&mut self, rtt: Duration) {
        self.srtt = Some(match self.srtt {
            None => rtt,
            Some(srtt) => (srtt * 7 + rtt) / 8,
        });
    }

    /// Moves RCV.NXT past `len` octets now in order, FIN included.
    pub fn advanced(&mut self, len: usize) {
        self.rcv_nxt += len;
        if self.out_of_order_end.is_some_and(|end| end <= self.rcv_nxt) {
            self.out_of_order_end = None;
        }
    }

    /// Takes note of a segment beyond RCV.NXT that may have been kept.
    pub fn out_of_order(&mut self, end: TcpSeqNumber) {
        if end > self.rcv_nxt && self.out_of_order_end.is_none_or(|known| end > known) {
            self.out_of_order_end = Some(end);
        }
    }

    /// Whether something received waits for a hole before it to be filled.
    #[must_use]
    pub fn has_out_of_order(&self) -> bool {
        self.out_of_order_end.is_some()
    }

    /// Takes note that a barrier or probe leaves.
    pub fn probed(&mut self, now: Instant) {
        self.probes = (self.probes.0.saturating_add(1), Some(now));
    }

    /// Whether an answer to a barrier or probe may still be on its way.
    #[must_use]
    pub fn awaits_answer(&self, now: Instant) -> bool {
        self.probes.1.is_some_and(|at| now < at + ANSWER_LIFETIME)
    }

    /// Whether a segment is no more than the answer to a barrier or probe: an ACK with nothing new in
    /// it. To congestion control it would look like a sign of loss (RFC 5681 §2).
    pub fn answers_probe<T: AsRef<[u8]> + ?Sized>(&mut self, segment: &TcpPacket<&T>) -> bool {
        let bare = segment.ack()
            && !segment.rst()
            && segment.segment_len() == 0
            && segment.ack_number() == self.una
            && segment.window_len() == self.peer_window
            && !self.asks(segment);
        let answers = bare && self.probes.0 > 0;
        if answers {
            self.probes.0 -= 1;
        }
        answers
    }

    /// Whether a segment without data is itself a question: a probe of a closed window or a keep-alive, whose
    /// SEQ is acknowledged already (RFC 9293 §3.8.4, §3.8.6.1). It waits for an answer and is none.
    #[must_use]
    pub fn asks<T: AsRef<[u8]> + ?Sized>(&self, segment: &TcpPacket<&T>) -> bool {
        segment.seq_number() < self.rcv_nxt
    }

    /// Whether all we sent is acknowledged.
    #[must_use]
    pub fn all_acknowledged(&self) -> bool {
        self.una == self.nxt
    }

    /// Whether what was received has not been acknowledged yet.
    #[must_use]
    pub fn owes_ack(&self) -> bool {
        self.last_ack != Some(self.rcv_nxt)
    }
}
