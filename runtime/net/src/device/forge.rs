//! Segments that neither side's application asked for.
//!
//! [`old_byte`] and [`probe`] are one octet the receiver already has and acknowledged, so no TCP takes
//! it as data and every TCP answers it at once (RFC 9293 §3.10.7.4, "segment acceptability").

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    IPV4_HEADER_LEN, IpAddress, IpProtocol, Ipv4Address, Ipv4Packet, Ipv4Repr, TcpControl,
    TcpPacket, TcpRepr, TcpSeqNumber,
};

use super::{Flow, Tuple};

/// Bytes of an IPv4 and a TCP header without options.
const HEADERS_LEN: usize = 40;

/// Words of the headers that [`plain`] writes (RFC 791 §3.1, RFC 9293 §3.1).
const DONT_FRAGMENT: u32 = 0x4000;
const HOP_LIMIT: u32 = 64;
const TCP: u32 = 6;
const HEADER_WORDS: u32 = 5;
const ACK: u32 = 0x10;

/// The one octet; its value is never looked at.
const OCTET: &[u8] = &[0];

/// Writes a segment that seems to come from the peer: smoltcp answers it with
/// `<SEQ=SND.NXT><ACK=RCV.NXT><CTL=ACK>` and its true window, and changes nothing but its record of
/// what it last acknowledged and offered. Only for a connection in a synchronised state.
pub(crate) fn old_byte(flow: &Flow, local: Ipv4Address) -> [u8; HEADERS_LEN + 1] {
    let seq = TcpSeqNumber(flow.last_ack.unwrap_or(flow.rcv_nxt).0.wrapping_sub(1));
    let repr = TcpRepr {
        src_port: flow.tuple.remote_port,
        dst_port: flow.tuple.local_port,
        ..segment(seq, flow.una, 0, OCTET)
    };
    packet(flow.tuple.remote_addr(), local, &repr)
}

/// Writes a segment of ours that makes the peer answer: SEQ = SND.UNA - 1. In the drain it is the
/// barrier: what comes back was sent after all that the peer had sent before. Never SND.NXT - 1: if
/// that octet was lost, the peer would take the filler for it.
pub(crate) fn probe(
    flow: &Flow,
    local: Ipv4Address,
    window: u16,
) -> ([u8; HEADERS_LEN + 1], TcpSeqNumber) {
    let seq = TcpSeqNumber(flow.una.0.wrapping_sub(1));
    let ack = flow.last_ack.unwrap_or(flow.rcv_nxt);
    (plain(&flow.tuple, local, [seq, ack], window), seq)
}

/// Writes the ACK of a connection whose peer has been told all but the window:
/// `<SEQ=SND.NXT><ACK=RCV.NXT><CTL=ACK>`.
pub(crate) fn window_update(flow: &Flow, local: Ipv4Address, window: u16) -> [u8; HEADERS_LEN] {
    plain(&flow.tuple, local, [flow.nxt, flow.rcv_nxt], window)
}

/// Bytes of [`duplicate_ack`]: the option of one SACK block, padded to whole words.
const DUPLICATE_ACK_LEN: usize = HEADERS_LEN + 12;

/// Writes the ACK of octets `block` that had been received before, with a D-SACK for them (RFC 2883 §4.1): a peer
/// that repeated itself for no good reason then takes back what it concluded from it.
pub(crate) fn duplicate_ack(
    flow: &Flow,
    local: Ipv4Address,
    window: u16,
    block: (TcpSeqNumber, TcpSeqNumber),
) -> [u8; DUPLICATE_ACK_LEN] {
    let (left, right) = (block.0.0 as u32, block.1.0 as u32);
    let repr = TcpRepr {
        src_port: flow.tuple.local_port,
        dst_port: flow.tuple.remote_port,
        sack_ranges: [Some((left, right)), None, None],
        ..segment(flow.nxt, flow.rcv_nxt, window, &[])
    };
    packet(local, flow.tuple.remote_addr(), &repr)
}

/// Writes our FIN again, which is the last of what we sent.
pub(crate) fn fin(flow: &Flow, local: Ipv4Address) -> [u8; HEADERS_LEN] {
    let seq = TcpSeqNumber(flow.nxt.0.wrapping_sub(1));
    let ack = flow.last_ack.unwrap_or(flow.rcv_nxt);
    let repr = TcpRepr {
        src_port: flow.tuple.local_port,
        dst_port: flow.tuple.remote_port,
        control: TcpControl::Fin,
        ..segment(seq, ack, flow.last_window, &[])
    };
    packet(local, flow.tuple.remote_addr(), &repr)
}

/// Writes `<SEQ=seq><ACK=ack><CTL=ACK>` with a zero window, for a connection of which no more is left.
pub(crate) fn bare_ack(
    tuple: &Tuple,
    local: Ipv4Address,
    seq: TcpSeqNumber,
    ack: TcpSeqNumber,
) -> [u8; HEADERS_LEN] {
    plain(tuple, local, [seq, ack], 0)
}

/// Writes `<SEQ><ACK><CTL=ACK>` of ours, without options, and as many zero octets as `N` has room for. A drain
/// writes two of these for each connection and a resume one, so it is done word by word: a fifth of what the
/// general way takes.
fn plain<const N: usize>(
    tuple: &Tuple,
    local: Ipv4Address,
    [seq, ack]: [TcpSeqNumber; 2],
    window: u16,
) -> [u8; N] {
    let (seq, ack) = (seq.0 as u32, ack.0 as u32);
    let (src, dst) = (local.to_bits(), tuple.remote);
    let mut bytes = [0; N];
    let mut put = |at: usize, word: u32| bytes[at..at + 4].copy_from_slice(&word.to_be_bytes());
    let ports = u32::from(tuple.local_port) << 16 | u32::from(tuple.remote_port);
    let addresses = halves(src) + halves(dst);

    // Version and header length, no fragments, hop limit.
    let (first, fragments, hops) =
        (0x4500_0000 | N as u32, DONT_FRAGMENT, HOP_LIMIT << 24 | TCP << 16);
    let sum = halves(first) + halves(fragments) + halves(hops) + addresses;
    for (at, word) in [first, fragments, hops | folded(sum), src, dst].into_iter().enumerate() {
        put(4 * at, word);
    }
    let flags = HEADER_WORDS << 28 | ACK << 16 | u32::from(window);
    // The octets are zero and add nothing.
    let pseudo = addresses + TCP + (N - IPV4_HEADER_LEN) as u32;
    let sum = halves(ports) + halves(seq) + halves(ack) + halves(flags) + pseudo;
    for (at, word) in [ports, seq, ack, flags, folded(sum) << 16].into_iter().enumerate() {
        put(IPV4_HEADER_LEN + 4 * at, word);
    }
    bytes
}

/// The two 16-bit words of `word`, added (RFC 1071).
fn halves(word: u32) -> u32 {
    (word >> 16) + (word & 0xffff)
}

/// The checksum of words whose sum is `sum`.
fn folded(sum: u32) -> u32 {
    u32::from(!(halves(halves(sum)) as u16))
}

/// `<SEQ=seq><ACK=ack><CTL=ACK>` without options; the ports are for the caller to fill in.
pub(crate) fn segment(
    seq: TcpSeqNumber,
    ack: TcpSeqNumber,
    window: u16,
    payload: &[u8],
) -> TcpRepr<'_> {
    TcpRepr {
        src_port: 0,
        dst_port: 0,
        control: TcpControl::None,
        seq_number: seq,
        ack_number: Some(ack),
        window_len: window,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload,
    }
}

/// `N` is the length that `tcp` comes to.
fn packet<const N: usize>(src: Ipv4Address, dst: Ipv4Address, tcp: &TcpRepr<'_>) -> [u8; N] {
    let mut bytes = [0; N];
    emit(&mut bytes, src, dst, tcp);
    bytes
}

/// Bytes of the IPv4 packet that [`emit`] writes.
pub(crate) fn packet_len(tcp: &TcpRepr<'_>) -> usize {
    IPV4_HEADER_LEN + tcp.buffer_len()
}

/// Writes an IPv4 packet with `tcp` in it into `bytes`, which must be [`packet_len`] long.
pub(crate) fn emit(bytes: &mut [u8], src: Ipv4Address, dst: Ipv4Address, tcp: &TcpRepr<'_>) {
    let ip = Ipv4Repr {
        src_addr: src,
        dst_addr: dst,
        next_header: IpProtocol::Tcp,
        payload_len: tcp.buffer_len(),
        hop_limit: 64,
    };
    let checksums = ChecksumCapabilities::default();
    ip.emit(&mut Ipv4Packet::new_unchecked(&mut *bytes), &checksums);
    tcp.emit(
        &mut TcpPacket::new_unchecked(&mut bytes[ip.buffer_len()..]),
        &IpAddress::Ipv4(src),
        &IpAddress::Ipv4(dst),
        &checksums,
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use smoltcp::time::Instant;

    fn flow() -> Flow {
        let tuple = Tuple { remote: 0x0a00_0002, remote_port: 40000, local_port: 7 };
        let mut flow = Flow::new(tuple, Instant::ZERO);
        flow.una = TcpSeqNumber(0);
        flow.nxt = TcpSeqNumber(100);
        flow.syn_sent = true;
        flow.last_ack = Some(TcpSeqNumber(i32::MIN));
        flow
    }

    fn parsed(bytes: &[u8]) -> (Ipv4Address, TcpSeqNumber, TcpSeqNumber, u16, usize) {
        let ip = Ipv4Packet::new_checked(bytes).unwrap();
        assert!(ip.verify_checksum());
        let tcp = TcpPacket::new_checked(ip.payload()).unwrap();
        assert!(tcp.verify_checksum(&ip.src_addr().into(), &ip.dst_addr().into()));
        (ip.src_addr(), tcp.seq_number(), tcp.ack_number(), tcp.src_port(), tcp.payload().len())
    }

    #[test]
    fn sequence_numbers_wrap() {
        let local = Ipv4Address::new(10, 0, 0, 1);
        let (bytes, seq) = probe(&flow(), local, 0);
        assert_eq!(seq, TcpSeqNumber(-1));
        assert_eq!(parsed(&bytes), (local, TcpSeqNumber(-1), TcpSeqNumber(i32::MIN), 7, 1));
        let bytes = old_byte(&flow(), local);
        assert_eq!(
            parsed(&bytes),
            (Ipv4Address::new(10, 0, 0, 2), TcpSeqNumber(i32::MAX), TcpSeqNumber(0), 40000, 1)
        );
    }

    /// Against the general way, for numbers of all sizes: those at the ends carry most.
    #[test]
    fn plain_segments_are_what_the_general_way_writes() {
        let local = Ipv4Address::new(10, 77, 255, 254);
        let edges = [0, 1, 0xfffe, 0xffff, 0x1_0000, 0x7fff_ffff, 0x8000_0000, u32::MAX];
        for number in 0..10_000_u32 {
            let mixed = number.wrapping_mul(0x9e37_79b1);
            let edge = |at: u32| edges[(mixed >> at) as usize % edges.len()];
            let tuple = Tuple {
                remote: edge(0) ^ number,
                remote_port: (mixed >> 7) as u16,
                local_port: edge(3) as u16,
            };
            let numbers = [edge(5), edge(9).wrapping_add(number)].map(|n| TcpSeqNumber(n as i32));
            let window = edge(12) as u16 ^ (number % 3) as u16;
            let repr = |payload| TcpRepr {
                src_port: tuple.local_port,
                dst_port: tuple.remote_port,
                ..segment(numbers[0], numbers[1], window, payload)
            };
            let written: [u8; HEADERS_LEN] = plain(&tuple, local, numbers, window);
            assert_eq!(written, packet(local, tuple.remote_addr(), &repr(&[])));
            let written: [u8; HEADERS_LEN + 1] = plain(&tuple, local, numbers, window);
            assert_eq!(written, packet(local, tuple.remote_addr(), &repr(OCTET)));
        }
    }

    #[test]
    fn before_our_first_ack_the_old_byte_is_the_peers_syn() {
        let mut flow = flow();
        flow.last_ack = None;
        flow.rcv_nxt = TcpSeqNumber(501);
        let bytes = old_byte(&flow, Ipv4Address::new(10, 0, 0, 1));
        assert_eq!(parsed(&bytes).1, TcpSeqNumber(500));
    }
}
