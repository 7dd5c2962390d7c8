//! Frames taken apart as far as a move is concerned: TCP over IPv4 (RFC 9293 §3.1), ARP (RFC 826), ICMP.

use std::fmt;
use std::net::Ipv4Addr;
use std::ops::{BitOr, Not};
use std::time::Duration;

use super::pcap::Frame;

/// Control bits of a TCP header.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags(pub u8);

#[expect(missing_docs, reason = "the names are RFC 9293's")]
impl Flags {
    pub const FIN: Self = Self(0x01);
    pub const SYN: Self = Self(0x02);
    pub const RST: Self = Self(0x04);
    pub const ACK: Self = Self(0x10);

    /// Whether all of these are set.
    #[must_use]
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for Flags {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl Not for Flags {
    type Output = bool;
    fn not(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, letter) in "FSRPA".chars().enumerate() {
            if self.0 & (1 << i) != 0 {
                write!(f, "{letter}")?;
            }
        }
        Ok(())
    }
}

/// A TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// When it passed the client's link.
    pub at: Duration,
    /// Sender's address and port.
    pub from: (Ipv4Addr, u16),
    /// Receiver's address and port.
    pub to: (Ipv4Addr, u16),
    /// SEG.SEQ.
    pub seq: u32,
    /// SEG.ACK.
    pub ack: u32,
    /// SEG.WND as it stands in the header, not scaled.
    pub window: u16,
    /// Control bits.
    pub flags: Flags,
    /// Bytes of payload.
    pub len: u32,
    /// Shift count of a window scale option (RFC 7323 §2).
    pub scale: Option<u8>,
}

impl Segment {
    /// SEG.LEN: payload, SYN and FIN.
    #[must_use]
    pub fn length(&self) -> u32 {
        self.len + u32::from(self.flags.has(Flags::SYN)) + u32::from(self.flags.has(Flags::FIN))
    }
}

/// What matters of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet {
    /// A TCP segment.
    Tcp(Segment),
    /// An ARP packet.
    Arp {
        /// When.
        at: Duration,
        /// 1 for a request, 2 for a reply.
        operation: u16,
        /// Who sends it.
        sender: Ipv4Addr,
        /// Whom it is about.
        target: Ipv4Addr,
    },
    /// An ICMP destination unreachable (RFC 792).
    Unreachable {
        /// When.
        at: Duration,
        /// Who says so.
        from: Ipv4Addr,
        /// Its code.
        code: u8,
    },
}

/// Takes a frame apart; `None` for everything else, and for what was captured too short.
#[must_use]
pub fn parse(frame: &Frame<'_>) -> Option<Packet> {
    let (ethernet, body) = frame.bytes.split_first_chunk::<14>()?;
    match [ethernet[12], ethernet[13]] {
        [0x08, 0x06] => arp(frame.at, body),
        [0x08, 0x00] => ipv4(frame.at, body),
        _ => None,
    }
}

fn arp(at: Duration, body: &[u8]) -> Option<Packet> {
    let body: &[u8; 28] = body.first_chunk()?;
    Some(Packet::Arp {
        at,
        operation: be16(&body[6..]),
        sender: address(&body[14..]),
        target: address(&body[24..]),
    })
}

fn ipv4(at: Duration, body: &[u8]) -> Option<Packet> {
    let header: &[u8; 20] = body.first_chunk()?;
    let header_len = usize::from(header[0] & 15) * 4;
    // A frame that the card is still to cut (TSO) may say 0.
    let total = match be16(&header[2..]) {
        0 => body.len(),
        total => usize::from(total),
    };
    let payload_len = total.checked_sub(header_len)?;
    let (from, to) = (address(&header[12..]), address(&header[16..]));
    let rest = body.get(header_len..)?;
    match header[9] {
        1 => {
            let icmp: &[u8; 2] = rest.first_chunk()?;
            (icmp[0] == 3).then_some(Packet::Unreachable { at, from, code: icmp[1] })
        }
        6 => tcp(at, from, to, rest, payload_len),
        _ => None,
    }
}

fn tcp(
    at: Duration,
    from: Ipv4Addr,
    to: Ipv4Addr,
    rest: &[u8],
    segment_len: usize,
) -> Option<Packet> {
    let header: &[u8; 20] = rest.first_chunk()?;
    let header_len = usize::from(header[12] >> 4) * 4;
    Some(Packet::Tcp(Segment {
        at,
        from: (from, be16(header)),
        to: (to, be16(&header[2..])),
        seq: be32(&header[4..]),
        ack: be32(&header[8..]),
        window: be16(&header[14..]),
        flags: Flags(header[13]),
        len: u32::try_from(segment_len.checked_sub(header_len)?).ok()?,
        scale: scale(rest.get(20..header_len)?),
    }))
}

/// Looks for the window scale option.
fn scale(mut options: &[u8]) -> Option<u8> {
    loop {
        match options {
            [] | [0, ..] => return None,
            [1, rest @ ..] => options = rest,
            [3, 3, shift, ..] => return Some(*shift),
            [_, len, ..] if *len >= 2 => options = options.get(usize::from(*len)..)?,
            _ => return None,
        }
    }
}

fn address(b: &[u8]) -> Ipv4Addr {
    Ipv4Addr::new(b[0], b[1], b[2], b[3])
}

fn be16(b: &[u8]) -> u16 {
    u16::from_be_bytes([b[0], b[1]])
}

fn be32(b: &[u8]) -> u32 {
    u32::from_be_bytes([b[0], b[1], b[2], b[3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A SYN of a Linux client, as tcpdump showed it.
    const SYN: &str = "525400123456 02fe00000064 0800 \
        4500003c 1c464000 4006 0a29 0a4d0064 0a4d0032 \
        d2040007 11223344 00000000 a002 faf0 0000 0000 020405b4 0402080a 0000000100000000 01 030307";

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: String = hex.split_whitespace().collect();
        (0..digits.len())
            .step_by(2)
            .map(|i| u8::from_str_radix(&digits[i..i + 2], 16).unwrap())
            .collect()
    }

    #[test]
    fn a_syn_with_options() {
        let frame = bytes(SYN);
        let Some(Packet::Tcp(s)) = parse(&Frame { at: Duration::ZERO, bytes: &frame }) else {
            panic!("not parsed")
        };
        assert_eq!(s.from, (Ipv4Addr::new(10, 77, 0, 100), 0xd204));
        assert_eq!(s.to, (Ipv4Addr::new(10, 77, 0, 50), 7));
        assert_eq!((s.seq, s.window, s.len, s.length()), (0x1122_3344, 0xfaf0, 0, 1));
        assert_eq!((s.flags, s.scale), (Flags::SYN, Some(7)));
        assert_eq!(format!("{:?}", s.flags | Flags::ACK), "SA");
    }

    #[test]
    fn short_and_odd_frames_are_nothing() {
        let frame = bytes(SYN);
        for len in 0..54 {
            assert_eq!(parse(&Frame { at: Duration::ZERO, bytes: &frame[..len] }), None, "{len}");
        }
        // Options that run past the header, or say nothing of their length.
        assert_eq!(scale(&[2, 0]), None);
        assert_eq!(scale(&[2, 40, 1]), None);
        assert_eq!(scale(&[8, 10, 0, 0, 0, 0, 0, 0, 0, 0, 3, 3, 9]), Some(9));
    }

    #[test]
    fn gratuitous_arp() {
        let frame = bytes(
            "ffffffffffff 525400123456 0806 0001 0800 06 04 0001 525400123456 0a4d0032 000000000000 0a4d0032",
        );
        let ip = Ipv4Addr::new(10, 77, 0, 50);
        let expected = Packet::Arp { at: Duration::ZERO, operation: 1, sender: ip, target: ip };
        assert_eq!(parse(&Frame { at: Duration::ZERO, bytes: &frame }), Some(expected));
    }
}
