//! From which host each frame of a service came.
//!
//! Every instance of a service has the same address, so a frame does not say who sent it. The port of the
//! lab's switch that it came in by does. The capture is one of all ports (`tcpdump -i any`, link type
//! `LINUX_SLL2`): each frame is preceded by 20 bytes that hold the index of the port, and the sender's
//! address on the wire.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::trace::pcap::Frame;

/// Length of the pseudo-header (`LINKTYPE_LINUX_SLL2`).
const HEADER_LEN: usize = 20;
/// IPv4.
const IPV4: [u8; 2] = [0x08, 0x00];
/// TCP's number in an IPv4 header.
const TCP: u8 = 6;
/// Flags of a TCP header.
const RST: u8 = 0x04;
const SYN: u8 = 0x02;

/// A frame that a service sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spoken {
    /// When it reached the switch.
    pub at: Duration,
    /// The index of the switch's port.
    pub port: u32,
    /// Of a TCP segment: the other end's port, and the flags.
    pub tcp: Option<(u16, u8)>,
}

/// What `mac` sent, in order of arrival.
#[must_use]
pub fn spoken(frames: &[Frame<'_>], mac: [u8; 6]) -> Vec<Spoken> {
    frames.iter().filter_map(|frame| parse(frame, mac)).collect()
}

fn parse(frame: &Frame<'_>, mac: [u8; 6]) -> Option<Spoken> {
    let (header, body) = frame.bytes.split_first_chunk::<HEADER_LEN>()?;
    if header[11] != 6 || header[12..18] != mac {
        return None;
    }
    let port = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
    let tcp = if header[..2] == IPV4 { tcp(body) } else { None };
    Some(Spoken { at: frame.at, port, tcp })
}

fn tcp(packet: &[u8]) -> Option<(u16, u8)> {
    let header_len = usize::from(packet.first()? & 15) * 4;
    let segment = packet.get(header_len..).filter(|_| packet.get(9) == Some(&TCP))?;
    let to = segment.get(2..4)?;
    Some((u16::from_be_bytes([to[0], to[1]]), *segment.get(13)?))
}

/// How many RST went to connections that were opened in this capture. Those of clients of an instance that was
/// killed before it have nothing to do with this run: their kernel still asks, and RST is the right answer.
#[must_use]
pub fn resets(spoken: &[Spoken]) -> usize {
    let mut opened = BTreeSet::new();
    let mut resets = 0;
    for (port, flags) in spoken.iter().filter_map(|frame| frame.tcp) {
        if flags & SYN != 0 {
            opened.insert(port);
        }
        resets += usize::from(flags & RST != 0 && opened.contains(&port));
    }
    resets
}

/// A time in which all frames came from one port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// The port.
    pub port: u32,
    /// The first frame.
    pub from: Duration,
    /// The last frame.
    pub until: Duration,
    /// How many.
    pub frames: usize,
}

/// Who spoke after whom.
#[must_use]
pub fn turns(spoken: &[Spoken]) -> Vec<Turn> {
    let mut turns: Vec<Turn> = Vec::new();
    for frame in spoken {
        match turns.last_mut() {
            Some(turn) if turn.port == frame.port => {
                turn.until = frame.at;
                turn.frames += 1;
            }
            _ => turns.push(Turn { port: frame.port, from: frame.at, until: frame.at, frames: 1 }),
        }
    }
    turns
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [0x52, 0x3a, 0x91, 5, 0x1b, 0x65];

    /// A segment as the switch's capture shows it, from a port.
    fn segment(port: u32, mac: [u8; 6], flags: u8) -> Vec<u8> {
        let mut bytes = vec![8, 0, 0, 0];
        bytes.extend(port.to_be_bytes());
        bytes.extend([0, 1, 3, 6]);
        bytes.extend(mac);
        bytes.extend([0, 0, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, TCP, 0, 0]);
        bytes.extend([10, 77, 0, 50, 10, 77, 0, 100]);
        bytes.extend([0, 7, 0x8d, 0xf0, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 0, 0, 0, 0, 0, 0]);
        bytes
    }

    #[test]
    fn frames_are_told_by_port_and_sender() {
        let other = [2, 0xfe, 0, 0, 0, 100];
        let all =
            [(5, MAC, 0x10), (4, other, 0x04), (6, MAC, 0x14), (6, MAC, 0x10), (5, MAC, 0x10)];
        let bytes: Vec<_> =
            all.iter().map(|(port, mac, flags)| segment(*port, *mac, *flags)).collect();
        let frames: Vec<_> = bytes
            .iter()
            .enumerate()
            .map(|(at, bytes)| Frame { at: Duration::from_millis(at as u64), bytes })
            .collect();
        let spoken = spoken(&frames, MAC);
        assert_eq!(spoken.len(), 4, "the client's own is not the service's");
        assert_eq!(spoken[1].tcp, Some((0x8df0, 0x14)));
        assert_eq!(resets(&spoken), 0, "its connection was opened before");
        let opened = Spoken { tcp: Some((0x8df0, 0x12)), ..spoken[0] };
        assert_eq!(resets(&[&[opened], &spoken[..]].concat()), 1);
        let turns = turns(&spoken);
        let ports: Vec<_> = turns.iter().map(|turn| (turn.port, turn.frames)).collect();
        assert_eq!(ports, [(5, 1), (6, 2), (5, 1)]);
        assert_eq!(
            (turns[1].from, turns[1].until),
            (Duration::from_millis(2), Duration::from_millis(3))
        );
    }

    #[test]
    fn short_frames_are_nothing() {
        let whole = segment(5, MAC, RST);
        for len in 0..whole.len() {
            let frame = Frame { at: Duration::ZERO, bytes: &whole[..len] };
            let found = parse(&frame, MAC);
            assert_eq!(found.is_some(), len >= HEADER_LEN, "{len}");
            let tcp = found.and_then(|spoken| spoken.tcp);
            assert_eq!(tcp.is_some(), len > HEADER_LEN + 33, "{len}");
        }
    }
}
