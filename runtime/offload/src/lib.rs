//! TCP segments that a network card takes as one and cuts by itself (virtio 1.2 §5.1.6.2, `VIRTIO_NET_HDR_GSO_TCPV4`).
//!
//! The stack sends segments of the path's size, as it must to count them. What it sends of one connection at once
//! differs in sequence numbers and payload only, so here it is recognised and put together again: one descriptor
//! chain, one turn of the device, one pass through the host's network stack for up to [`MAX_SEGMENTS`]. No byte of
//! payload is copied.
#![no_std]

/// Ethernet header.
const ETHERNET: usize = 14;
/// IPv4 header without options, the only one that is merged.
const IP: usize = 20;
/// Least TCP header.
const TCP: usize = 20;
/// Longest headers of a frame: TCP's options are at most 40 bytes.
const MAX_HEADERS: usize = ETHERNET + IP + TCP + 40;
/// Longest IPv4 packet.
const MAX_PACKET: usize = 65_535;
/// Segments of a burst at most: as many as fit into a packet with the usual size.
pub const MAX_SEGMENTS: usize = 45;

const ACK: u8 = 0x10;
const PSH: u8 = 0x08;

/// What the card has to do with the frame of a burst (fields of `struct virtio_net_hdr`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Bytes of the headers that each segment gets.
    pub header_len: u16,
    /// Bytes of payload of each segment but the last.
    pub segment_len: u16,
    /// Where the part that the TCP checksum covers begins in the frame.
    pub checksum_start: u16,
    /// Where the checksum lies behind that.
    pub checksum_offset: u16,
}

/// Consecutive segments of one connection.
#[derive(Clone, Debug)]
pub struct Burst {
    /// Headers of the first frame.
    headers: [u8; MAX_HEADERS],
    headers_len: usize,
    /// Payload of the first segment, and of all but the last.
    segment_len: usize,
    payload_len: usize,
    next_seq: u32,
    segments: usize,
    /// The last segment was shorter, or its bytes were to be pushed: nothing may follow it.
    ended: bool,
}

/// A segment that may be part of a burst.
struct Segment<'a> {
    headers: &'a [u8],
    payload_len: usize,
    seq: u32,
    push: bool,
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

impl<'a> Segment<'a> {
    /// An Ethernet frame with an unfragmented IPv4 packet with a TCP segment that carries data, acknowledges, and does
    /// nothing else.
    fn of(frame: &'a [u8]) -> Option<Self> {
        if frame.len() < ETHERNET + IP + TCP || frame[12..15] != [0x08, 0x00, 0x45] {
            return None;
        }
        let ip = &frame[ETHERNET..];
        let total = usize::from(be16(ip, 2));
        let fragment = be16(ip, 6) & 0x3fff != 0;
        if ip[9] != 6 || fragment || ETHERNET + total != frame.len() {
            return None;
        }
        let tcp = &ip[IP..];
        let header_len = usize::from(tcp[12] >> 4) * 4;
        let flags = tcp[13];
        // The bits beside the offset are ECN's and reserved.
        let plain = tcp[12] & 0xf == 0 && flags & !PSH == ACK;
        let headers_len = ETHERNET + IP + header_len;
        let payload_len = frame.len().checked_sub(headers_len)?;
        (plain && header_len >= TCP && payload_len > 0).then(|| Self {
            headers: &frame[..headers_len],
            payload_len,
            seq: be32(tcp, 4),
            push: flags & PSH != 0,
        })
    }
}

/// Ranges of the headers in which segments of a burst are equal: all but the packet's length, identification and
/// checksum, and the segment's sequence number, flags and checksum.
fn alike(a: &[u8], b: &[u8]) -> bool {
    const TCP_AT: usize = ETHERNET + IP;
    let equal = |from: usize, to: usize| a[from..to] == b[from..to];
    a.len() == b.len()
        && equal(0, ETHERNET + 2)
        && equal(ETHERNET + 6, ETHERNET + 10)
        && equal(ETHERNET + 12, TCP_AT + 4)
        && equal(TCP_AT + 8, TCP_AT + 13)
        && equal(TCP_AT + 14, TCP_AT + 16)
        && equal(TCP_AT + 18, a.len())
}

impl Burst {
    /// Begins with a frame that others may follow.
    #[must_use]
    pub fn begin(frame: &[u8]) -> Option<Self> {
        let first = Segment::of(frame)?;
        let mut headers = [0; MAX_HEADERS];
        headers[..first.headers.len()].copy_from_slice(first.headers);
        Some(Self {
            headers,
            headers_len: first.headers.len(),
            segment_len: first.payload_len,
            payload_len: first.payload_len,
            next_seq: first.seq.wrapping_add(first.payload_len as u32),
            segments: 1,
            ended: first.push,
        })
    }

    /// Takes the frame if it goes on where the burst ends; where its payload begins.
    pub fn add(&mut self, frame: &[u8]) -> Option<usize> {
        if self.ended || self.segments == MAX_SEGMENTS {
            return None;
        }
        let next = Segment::of(frame)?;
        let packet_len = self.headers_len - ETHERNET + self.payload_len + next.payload_len;
        if next.seq != self.next_seq
            || next.payload_len > self.segment_len
            || packet_len > MAX_PACKET
            || !alike(&self.headers[..self.headers_len], next.headers)
        {
            return None;
        }
        self.segments += 1;
        self.payload_len += next.payload_len;
        self.next_seq = self.next_seq.wrapping_add(next.payload_len as u32);
        self.ended = next.push || next.payload_len < self.segment_len;
        if next.push {
            self.headers[ETHERNET + IP + 13] |= PSH;
        }
        Some(self.headers_len)
    }

    /// Segments so far.
    #[must_use]
    pub fn segments(&self) -> usize {
        self.segments
    }

    /// Writes the headers of the whole burst over those of the first frame. The checksum is that of the pseudo header
    /// (RFC 9293 §3.1), which the card completes for each segment.
    ///
    /// # Panics
    /// `frame` is shorter than the first frame's headers.
    pub fn finish(&self, frame: &mut [u8]) -> Cut {
        let headers = &mut frame[..self.headers_len];
        headers.copy_from_slice(&self.headers[..self.headers_len]);
        let packet_len = (self.headers_len - ETHERNET + self.payload_len) as u16;
        let (ip, tcp) = headers[ETHERNET..].split_at_mut(IP);
        ip[2..4].copy_from_slice(&packet_len.to_be_bytes());
        ip[10..12].fill(0);
        let checksum = !sum(0, ip);
        ip[10..12].copy_from_slice(&checksum.to_be_bytes());
        let pseudo = sum(u32::from(packet_len) - IP as u32 + u32::from(ip[9]), &ip[12..20]);
        tcp[16..18].copy_from_slice(&pseudo.to_be_bytes());
        Cut {
            header_len: self.headers_len as u16,
            segment_len: self.segment_len as u16,
            checksum_start: (ETHERNET + IP) as u16,
            checksum_offset: 16,
        }
    }
}

/// The one's complement sum of 16-bit words (RFC 1071), of an even number of bytes, on top of `start`.
fn sum(start: u32, bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2).map(|word| u32::from(be16(word, 0)));
    let mut sum = words.fold(start, |sum, word| sum + word);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests;
