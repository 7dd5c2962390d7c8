//! What a move may look like on the wire, from the client's side.
//!
//! For the whole trace: no RST, no ICMP unreachable, nothing acknowledged that was not sent, no
//! acknowledgement that goes back, nothing sent outside the window that was offered, no byte skipped.
//! For every move, found by its announcement (a gratuitous ARP request) in the time in which it was made:
//! each connection's window is closed before it, and after it comes a window update (pure ACK at SND.NXT). What
//! the standby held may be answered, with an open window, just before. The announcement is repeated for a
//! while, also after the move.
//!
//! The client's own segments are captured before they leave and the service's when they arrive, so what
//! the client has offered is always seen before what the service makes of it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::ops::Range;
use std::time::Duration;

use super::packet::{Flags, Packet, Segment};

/// Something that a move must not do. Ports are the client's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Violation {
    #[error("{at:?}: RST from {from}, client port {port}")]
    Reset { at: Duration, from: Ipv4Addr, port: u16 },
    #[error("{at:?}: ICMP unreachable, code {code}, from {from}")]
    Unreachable { at: Duration, from: Ipv4Addr, code: u8 },
    #[error("{at:?}: port {port}: bytes skipped: SEG.SEQ {seq}, SND.NXT {next}")]
    Hole { at: Duration, port: u16, seq: u32, next: u32 },
    #[error("{at:?}: port {port}: sent beyond the window: up to {end}, right edge {edge}")]
    BeyondWindow { at: Duration, port: u16, end: u32, edge: u32 },
    #[error(
        "{at:?}: port {port}: SEG.ACK {ack} acknowledges what the client has not sent ({sent})"
    )]
    AcksUnsent { at: Duration, port: u16, ack: u32, sent: u32 },
    #[error("{at:?}: port {port}: SEG.ACK went back from {before} to {ack}")]
    AckBack { at: Duration, port: u16, before: u32, ack: u32 },
    #[error("move {number}: port {port}: the window was not closed before the announcement")]
    WindowOpen { number: usize, port: u16 },
    #[error("move {number}: port {port}: no window update after the announcement")]
    NoUpdate { number: usize, port: u16 },
}

/// One move, as the client saw it.
#[derive(Clone, Debug, PartialEq)]
pub struct Move {
    /// The first gratuitous ARP request.
    pub announced: Duration,
    /// Connections that were open across it.
    pub connections: usize,
    /// Longest time, over the connections, from the first segment that closed the window to the update.
    pub longest_closed: Duration,
}

/// What the trace holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// TCP segments to and from the service.
    pub segments: usize,
    /// Connections, by their SYN.
    pub connections: usize,
    /// The moves in order.
    pub moves: Vec<Move>,
    /// Everything that must not be.
    pub violations: Vec<Violation>,
}

/// A connection as an observer at the client's link knows it. Sequence numbers are the service's side
/// unless they are named otherwise.
#[derive(Debug)]
struct Flow {
    /// SND.NXT of the service: one past the highest byte it sent. `None` before its SYN-ACK.
    next: Option<u32>,
    /// Highest right edge that the client offered.
    edge: Option<u32>,
    /// SND.NXT of the client.
    client_next: u32,
    /// Highest acknowledgement of the service.
    acked: Option<u32>,
    /// What the client's window field is to be shifted by.
    scale: u8,
    /// The client's offer, if the service takes it.
    offered_scale: Option<u8>,
    /// Since when the window that the service offers is 0.
    closed_since: Option<Duration>,
    /// The last time in which it was.
    closed: Option<Range<Duration>>,
    /// Whether either side has begun to close: then a window need not be reopened.
    closing: bool,
    /// Of the announcements seen so far, the number up to which this flow has had its update.
    updated: usize,
}

/// Whether `a` is after `b` (RFC 9293 §3.4).
fn after(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b)).cast_signed() > 0
}

fn latest(a: Option<u32>, b: u32) -> u32 {
    match a {
        Some(a) if after(a, b) => a,
        _ => b,
    }
}

/// Checks a trace of traffic with `service`, whose connections all begin in it. `moves` are the times, since
/// the Unix epoch, in which moves were made; the report has one [`Move`] for each that closed any window and
/// was announced.
#[must_use]
pub fn check(packets: &[Packet], service: Ipv4Addr, moves: &[Range<Duration>]) -> Report {
    let (report, flows) = Default::default();
    let mut checker = Checker { service, report, flows, awaited: moves.to_vec() };
    for packet in packets {
        checker.take(packet);
    }
    checker.finish()
}

struct Checker {
    service: Ipv4Addr,
    report: Report,
    flows: BTreeMap<(u16, u16), Flow>,
    /// Moves whose announcement has not been seen.
    awaited: Vec<Range<Duration>>,
}

impl Checker {
    fn take(&mut self, packet: &Packet) {
        match packet {
            Packet::Arp { at, operation: 1, sender, target } if sender == target => {
                if *sender == self.service {
                    self.announced(*at);
                }
            }
            Packet::Arp { .. } => {}
            Packet::Unreachable { at, from, code } => {
                let (at, from, code) = (*at, *from, *code);
                self.report.violations.push(Violation::Unreachable { at, from, code });
            }
            Packet::Tcp(s) if s.from.0 == self.service => {
                self.report.segments += 1;
                self.service_sent(s);
            }
            Packet::Tcp(s) if s.to.0 == self.service => {
                self.report.segments += 1;
                self.client_sent(s);
            }
            Packet::Tcp(_) => {}
        }
    }

    fn reset(&mut self, s: &Segment, port: u16) -> bool {
        let reset = s.flags.has(Flags::RST);
        if reset {
            let (at, from) = (s.at, s.from.0);
            self.report.violations.push(Violation::Reset { at, from, port });
        }
        reset
    }

    fn client_sent(&mut self, s: &Segment) {
        if self.reset(s, s.from.1) {
            return;
        }
        let key = (s.from.1, s.to.1);
        if s.flags.has(Flags::SYN) {
            let flow = Flow {
                next: None,
                edge: None,
                client_next: s.seq.wrapping_add(s.length()),
                acked: None,
                scale: 0,
                offered_scale: s.scale,
                closed_since: None,
                closed: None,
                closing: false,
                updated: self.report.moves.len(),
            };
            if self.flows.insert(key, flow).is_none() {
                self.report.connections += 1;
            }
            return;
        }
        let Some(flow) = self.flows.get_mut(&key) else { return };
        let end = s.seq.wrapping_add(s.length());
        flow.client_next = latest(Some(flow.client_next), end);
        flow.closing |= s.flags.has(Flags::FIN);
        if s.flags.has(Flags::ACK) {
            let edge = s.ack.wrapping_add(u32::from(s.window) << flow.scale);
            flow.edge = Some(latest(flow.edge, edge));
        }
    }

    fn service_sent(&mut self, s: &Segment) {
        let port = s.to.1;
        if self.reset(s, port) {
            return;
        }
        let moves = self.report.moves.len();
        let Some(flow) = self.flows.get_mut(&(port, s.from.1)) else { return };
        let violations = &mut self.report.violations;
        let (at, seq, ack) = (s.at, s.seq, s.ack);
        let end = seq.wrapping_add(s.length());
        if s.flags.has(Flags::SYN) {
            // Scaling only if both sides offer it (RFC 7323 §2.2).
            flow.scale = s.scale.and(flow.offered_scale).unwrap_or(0);
        } else if let Some(next) = flow.next {
            if after(seq, next) {
                violations.push(Violation::Hole { at, port, seq, next });
            }
            if let Some(edge) = flow.edge.filter(|edge| s.len > 0 && after(end, *edge)) {
                violations.push(Violation::BeyondWindow { at, port, end, edge });
            }
        }
        if after(ack, flow.client_next) {
            let sent = flow.client_next;
            violations.push(Violation::AcksUnsent { at, port, ack, sent });
        }
        if let Some(before) = flow.acked.filter(|before| after(*before, ack)) {
            violations.push(Violation::AckBack { at, port, before, ack });
        }
        let at_next = flow.next.is_none_or(|next| seq == next);
        flow.next = Some(latest(flow.next, end));
        flow.acked = Some(latest(flow.acked, ack));
        flow.closing |= s.flags.has(Flags::FIN);
        if s.window == 0 {
            flow.closed_since.get_or_insert(at);
            return;
        }
        let closed_since = flow.closed_since.take();
        if let Some(since) = closed_since {
            flow.closed = Some(since..at);
        }
        if flow.updated < moves && at_next {
            flow.updated = moves;
            if let (Some(since), Some(last)) = (closed_since, self.report.moves.last_mut()) {
                last.longest_closed = last.longest_closed.max(at.saturating_sub(since));
            }
        }
    }

    /// A move becomes visible.
    fn announced(&mut self, at: Duration) {
        let closed_in = |time: &Range<Duration>| {
            let closes = |f: &Flow| {
                f.closed.as_ref().is_some_and(|closed| closed.end >= time.start)
                    || f.closed_since.is_some_and(|since| since >= time.start)
            };
            self.flows.values().any(closes) || self.flows.is_empty()
        };
        // One more announcement of the move before may come while the next has begun.
        let awaited = self.awaited.iter().position(|time| time.contains(&at) && closed_in(time));
        let Some(awaited) = awaited else { return };
        let began = self.awaited.remove(awaited).start;
        self.missing_updates();
        let number = self.report.moves.len() + 1;
        let (mut connections, mut longest_closed) = (0, Duration::ZERO);
        for ((port, _), flow) in &mut self.flows {
            if flow.closing || flow.next.is_none() {
                // Nothing to drain; it owes no update either.
                flow.updated = number;
                continue;
            }
            connections += 1;
            let closed = flow.closed.as_ref().filter(|closed| closed.end >= began);
            if let Some(closed) = closed {
                longest_closed = longest_closed.max(closed.end - closed.start);
            } else if flow.closed_since.is_none() {
                self.report.violations.push(Violation::WindowOpen { number, port: *port });
            }
        }
        self.report.moves.push(Move { announced: at, connections, longest_closed });
    }

    fn missing_updates(&mut self) {
        let number = self.report.moves.len();
        for ((port, _), flow) in &mut self.flows {
            if flow.updated < number && !flow.closing {
                self.report.violations.push(Violation::NoUpdate { number, port: *port });
            }
        }
    }

    fn finish(mut self) -> Report {
        self.missing_updates();
        self.report
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 50);
    const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);

    /// A transcript: who, flags, seq, ack, window, payload; `None` is an announcement.
    type Line = Option<(bool, Flags, u32, u32, u16, u32)>;

    fn run(lines: &[Line]) -> Report {
        checked(&packets(lines, 4000))
    }

    /// One line every 10 ms.
    fn packets(lines: &[Line], port: u16) -> Vec<Packet> {
        lines
            .iter()
            .enumerate()
            .map(|(i, line)| {
                let at = Duration::from_millis(i as u64 * 10);
                let Some((client, flags, seq, ack, window, len)) = *line else {
                    return Packet::Arp { at, operation: 1, sender: SERVICE, target: SERVICE };
                };
                let (c, s) = ((CLIENT, port), (SERVICE, 7));
                let (from, to) = if client { (c, s) } else { (s, c) };
                Packet::Tcp(Segment { at, from, to, seq, ack, window, flags, len, scale: None })
            })
            .collect()
    }

    fn checked(packets: &[Packet]) -> Report {
        // Lines 9 and 15 of the transcript of a move by the book, the second from its zero window on.
        let at = |ms| Duration::from_millis(ms);
        check(packets, SERVICE, &[at(60)..at(100), at(125)..at(155)])
    }

    const A: Flags = Flags::ACK;
    const C: bool = true;
    const S: bool = false;

    fn opened() -> Vec<Line> {
        vec![
            Some((C, Flags::SYN, 99, 0, 1000, 0)),
            Some((S, Flags(0x12), 499, 100, 2000, 0)),
            Some((C, A, 100, 500, 1000, 0)),
            Some((C, A, 100, 500, 1000, 64)),
            Some((S, A, 500, 164, 2000, 64)),
            Some((C, A, 164, 564, 1000, 0)),
        ]
    }

    #[test]
    fn a_move_by_the_book() {
        let mut lines = opened();
        lines.extend([
            Some((S, A, 564, 164, 0, 0)),
            // The barrier: one old byte, and the client's answer to it.
            Some((S, A, 563, 164, 0, 1)),
            Some((C, A, 164, 564, 1000, 0)),
            None,
            None,
            Some((S, A, 564, 164, 2000, 0)),
            Some((C, A, 164, 564, 1000, 64)),
            // Once more, to be sure; and then the next move.
            None,
            Some((S, A, 564, 228, 0, 0)),
            None,
            Some((S, A, 564, 228, 2000, 0)),
        ]);
        let report = run(&lines);
        assert_eq!(report.violations, []);
        assert_eq!((report.connections, report.segments), (1, 13));
        let moved = |announced, closed| Move {
            announced: Duration::from_millis(announced),
            connections: 1,
            longest_closed: Duration::from_millis(closed),
        };
        assert_eq!(report.moves, [moved(90, 50), moved(150, 20)]);
    }

    #[test]
    fn every_rule_is_seen_when_broken() {
        let at = Duration::from_millis(60);
        let broken = |line: (bool, Flags, u32, u32, u16, u32)| {
            let mut lines = opened();
            lines.push(Some(line));
            run(&lines).violations
        };
        let port = 4000;
        assert_eq!(
            broken((S, Flags::RST, 564, 164, 0, 0)),
            [Violation::Reset { at, from: SERVICE, port }]
        );
        assert_eq!(
            broken((S, A, 565, 164, 2000, 1)),
            [Violation::Hole { at, port, seq: 565, next: 564 }]
        );
        assert_eq!(
            broken((S, A, 564, 164, 2000, 1001)),
            [Violation::BeyondWindow { at, port, end: 1565, edge: 1564 }]
        );
        assert_eq!(
            broken((S, A, 564, 165, 2000, 0)),
            [Violation::AcksUnsent { at, port, ack: 165, sent: 164 }]
        );
        assert_eq!(
            broken((S, A, 564, 163, 2000, 0)),
            [Violation::AckBack { at, port, before: 164, ack: 163 }]
        );
    }

    #[test]
    fn a_move_without_zero_window_or_update() {
        // Nobody's window was closed: that was no announcement of a move.
        let mut lines = opened();
        lines.push(None);
        assert_eq!(run(&lines).moves, []);
        lines.insert(6, Some((S, A, 564, 164, 0, 0)));
        let number = 1;
        let none = |port| Violation::NoUpdate { number, port };
        assert_eq!(run(&lines).violations, [none(4000)]);
        // Only one of two was.
        let both = [packets(&opened(), 4001), packets(&lines, 4000)].concat();
        let open = Violation::WindowOpen { number, port: 4001 };
        assert_eq!(checked(&both).violations, [open, none(4000), none(4001)]);
        // A keep-alive-shaped segment is no window update: Linux does not take it for one.
        lines.push(Some((S, A, 563, 164, 2000, 1)));
        assert_eq!(run(&lines).violations, [none(4000)]);
        // A connection that is closing owes nothing.
        lines.insert(6, Some((C, A | Flags::FIN, 164, 564, 1000, 0)));
        assert_eq!(run(&lines).violations, []);
    }

    #[test]
    fn sequence_numbers_wrap() {
        assert!(after(5, u32::MAX - 5) && !after(u32::MAX - 5, 5));
        assert_eq!(latest(Some(u32::MAX), 3), 3);
    }
}
