extern crate std;

use std::vec::Vec;

use super::*;

const MSS: usize = 1460;

/// A frame with `payload` at sequence number `seq`.
fn frame(seq: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = std::vec![0u8; 54];
    frame[..12].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
    frame[12..14].copy_from_slice(&[8, 0]);
    let ip = &mut frame[14..34];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&(40 + payload.len() as u16).to_be_bytes());
    ip[6] = 0x40;
    ip[8] = 64;
    ip[9] = 6;
    ip[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    let tcp = &mut frame[34..54];
    tcp[..4].copy_from_slice(&[0, 80, 0xc0, 0]);
    tcp[4..8].copy_from_slice(&seq.to_be_bytes());
    tcp[8..12].copy_from_slice(&77u32.to_be_bytes());
    tcp[12] = 0x50;
    tcp[13] = flags;
    tcp[14..16].copy_from_slice(&500u16.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// What a card makes of a burst's frame: its segments, with their checksums.
fn cut(frame: &[u8], how: Cut) -> Vec<Vec<u8>> {
    let (header, payload) = frame.split_at(usize::from(how.header_len));
    let count = payload.len().div_ceil(usize::from(how.segment_len));
    let pieces = payload.chunks(usize::from(how.segment_len)).enumerate();
    let segments = pieces.map(|(number, piece)| {
        let mut segment = [header, piece].concat();
        let seq = be32(header, 38).wrapping_add((number * usize::from(how.segment_len)) as u32);
        segment[16..18].copy_from_slice(&(40 + piece.len() as u16).to_be_bytes());
        segment[38..42].copy_from_slice(&seq.to_be_bytes());
        if number + 1 < count {
            segment[47] &= !PSH;
        }
        segment
    });
    segments.collect()
}

/// The same without what a card computes.
fn bare(mut frame: Vec<u8>) -> Vec<u8> {
    frame[24..26].fill(0);
    frame[50..52].fill(0);
    frame
}

#[test]
fn what_the_card_cuts_is_what_the_stack_sent() {
    let bytes: Vec<u8> = (0..MSS * 3 + 100).map(|at| at as u8).collect();
    // The sequence numbers begin anew on the way.
    let pieces = bytes.chunks(MSS).enumerate();
    let sent: Vec<Vec<u8>> = pieces
        .map(|(number, piece)| {
            let flags = if piece.len() < MSS { ACK | PSH } else { ACK };
            frame((u32::MAX - 2000).wrapping_add((number * MSS) as u32), flags, piece)
        })
        .collect();
    let mut burst = Burst::begin(&sent[0]).unwrap();
    let mut whole = sent[0].clone();
    for next in &sent[1..] {
        let payload = burst.add(next).unwrap();
        whole.extend_from_slice(&next[payload..]);
    }
    assert_eq!(burst.segments(), 4);
    let how = burst.finish(&mut whole);
    assert_eq!(
        how,
        Cut { header_len: 54, segment_len: 1460, checksum_start: 34, checksum_offset: 16 }
    );
    assert_eq!(usize::from(be16(&whole, 16)), whole.len() - 14);
    assert_eq!(sum(0, &whole[14..34]), 0xffff, "IP checksum");
    // The pseudo header: addresses, protocol, length of the TCP part.
    let mut pseudo = whole[26..34].to_vec();
    pseudo.extend_from_slice(&[0, 6]);
    pseudo.extend_from_slice(&((whole.len() - 34) as u16).to_be_bytes());
    assert_eq!(be16(&whole, 50), sum(0, &pseudo));
    let received: Vec<_> = cut(&whole, how).into_iter().map(bare).collect();
    let sent: Vec<_> = sent.into_iter().map(bare).collect();
    assert_eq!(received, sent);
}

#[test]
fn what_differs_in_anything_else_is_no_part_of_a_burst() {
    let first = frame(1000, ACK, &[1; MSS]);
    let next = frame(1000 + MSS as u32, ACK, &[2; MSS]);
    let may_follow = |frame: &[u8]| Burst::begin(&first).unwrap().add(frame).is_some();
    assert!(may_follow(&next));
    let changed = |at: usize| {
        let mut frame = next.clone();
        frame[at] ^= 1;
        frame
    };
    // Addresses of both layers, type of service, time to live, ports, sequence and acknowledgement numbers, window,
    // urgent pointer.
    for at in [0, 6, 12, 15, 22, 26, 30, 34, 36, 38, 41, 42, 45, 46, 48, 52] {
        assert!(!may_follow(&changed(at)), "byte {at}");
    }
    // Identification and checksums are each packet's own.
    for at in [18, 24, 50] {
        assert!(may_follow(&changed(at)), "byte {at}");
    }
    for flags in [0x11, 0x12, 0x14, 0x30, 0x50, 0x90, 0x00] {
        assert!(!may_follow(&frame(1000 + MSS as u32, flags, &[2; MSS])), "flags {flags:#x}");
        assert!(Burst::begin(&frame(1000, flags, &[1; MSS])).is_none(), "flags {flags:#x}");
    }
    assert!(!may_follow(&frame(1000 + MSS as u32, ACK, &[2; MSS + 1])), "longer than the first");
    assert!(Burst::begin(&frame(1000, ACK, &[])).is_none(), "without data");
    assert!(Burst::begin(&first[..60]).is_none(), "cut short");
    let mut fragment = first.clone();
    fragment[20] = 0x20;
    assert!(Burst::begin(&fragment).is_none());
}

#[test]
fn a_burst_ends_with_a_short_segment_a_push_and_a_full_packet() {
    let at = |number: usize| 1000 + (number * MSS) as u32;
    let mut burst = Burst::begin(&frame(at(0), ACK, &[0; MSS])).unwrap();
    assert!(burst.add(&frame(at(1), ACK, &[0; 10])).is_some());
    assert!(burst.add(&frame(at(1) + 10, ACK, &[0; 10])).is_none());
    let mut burst = Burst::begin(&frame(at(0), ACK, &[0; MSS])).unwrap();
    assert!(burst.add(&frame(at(1), ACK | PSH, &[0; MSS])).is_some());
    assert!(burst.add(&frame(at(2), ACK, &[0; MSS])).is_none());
    assert!(
        Burst::begin(&frame(at(0), ACK | PSH, &[0; MSS]))
            .unwrap()
            .add(&frame(at(1), ACK, &[0; MSS]))
            .is_none()
    );
    let mut burst = Burst::begin(&frame(at(0), ACK, &[0; MSS])).unwrap();
    let taken = (1..).take_while(|number| burst.add(&frame(at(*number), ACK, &[0; MSS])).is_some());
    // 44 x 1460 + 40 bytes are the most that a packet can have.
    assert_eq!(taken.count(), 43);
    let mut burst = Burst::begin(&frame(1000, ACK, &[0; 10])).unwrap();
    let taken =
        (1..).take_while(|number| burst.add(&frame(1000 + number * 10, ACK, &[0; 10])).is_some());
    assert_eq!(taken.count(), MAX_SEGMENTS - 1);
}
