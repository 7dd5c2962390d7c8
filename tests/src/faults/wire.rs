//! From which host each frame of a service came.
//!
//! Every instance of a service has the same address, so a frame does not say who sent it. The port of the
//! lab's switch that it came in by does. The capture is one of all ports (`tcpdump -i any`, link type
//! `LINUX_SLL2`): each frame is preceded by 20 bytes that hold the index of the port, and the sender's
//! address on the wire.

use std::time::Duration;

use crate::trace::pcap::Frame;

/// Length of the pseudo-header (`LINKTYPE_LINUX_SLL2`).
const HEADER_LEN: usize = 20;
/// IPv4.
const IPV4: [u8; 2] = [0x08, 0x00];
/// TCP's number in an IPv4 header.
const TCP: u8 = 6;
/// RST, in the flags of a TCP header.
const RST: u8 = 0x04;

/// A frame that a service sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spoken {
    /// When it reached the switch.
    pub at: Duration,
    /// The index of the switch's port.
    pub port: u32,
    /// Whether it was a TCP segment with RST.
    pub reset: bool,
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
    Some(Spoken { at: frame.at, port, reset: header[..2] == IPV4 && resets(body) })
}

fn resets(packet: &[u8]) -> bool {
    let Some(first) = packet.first() else { return false };
    let header_len = usize::from(first & 15) * 4;
    packet.get(9) == Some(&TCP)
        && packet.get(header_len + 13).is_some_and(|flags| flags & RST != 0)
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
            _ => turns.push(Turn {
                port: frame.port,
                from: frame.at,
                until: frame.at,
                frames: 1,
            }),
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
        let all = [(5, MAC, 0x10), (4, other, 0x04), (6, MAC, 0x14), (6, MAC, 0x10), (5, MAC, 0x10)];
        let bytes: Vec<_> = all.iter().map(|(port, mac, flags)| segment(*port, *mac, *flags)).collect();
        let frames: Vec<_> = bytes
            .iter()
            .enumerate()
            .map(|(at, bytes)| Frame { at: Duration::from_millis(at as u64), bytes })
            .collect();
        let spoken = spoken(&frames, MAC);
        assert_eq!(spoken.len(), 4, "the client's own is not the service's");
        assert_eq!(spoken.iter().filter(|frame| frame.reset).count(), 1);
        let turns = turns(&spoken);
        let ports: Vec<_> = turns.iter().map(|turn| (turn.port, turn.frames)).collect();
        assert_eq!(ports, [(5, 1), (6, 2), (5, 1)]);
        assert_eq!((turns[1].from, turns[1].until), (Duration::from_millis(2), Duration::from_millis(3)));
    }

    #[test]
    fn short_frames_are_nothing() {
        let whole = segment(5, MAC, RST);
        for len in 0..whole.len() {
            let frame = Frame { at: Duration::ZERO, bytes: &whole[..len] };
            let found = parse(&frame, MAC);
            assert_eq!(found.is_some(), len >= HEADER_LEN, "{len}");
            assert!(found.is_none_or(|spoken| !spoken.reset || len > HEADER_LEN + 33));
        }
    }
}
