//! Changes to segments that leave, with the checksum mended in place (RFC 1624).

use smoltcp::wire::{TcpPacket, TcpSeqNumber};

use super::{Flow, Window};

/// `checksum` after the 16-bit word `old` under it became `new`: HC' = ~(~HC + ~m + m').
fn mend(checksum: u16, old: u16, new: u16) -> u16 {
    let sum = u32::from(!checksum) + u32::from(!old) + u32::from(new);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(((sum & 0xffff) + (sum >> 16)) as u16)
}

/// Changes a segment, given from its first TCP header byte on.
///
/// A pure ACK gets SEQ = SND.NXT as the wire has seen it, as RFC 9293 §3.10.7.4 has it. smoltcp's own
/// SND.NXT goes back to SND.UNA at a retransmission timeout, and a peer that has received more takes
/// neither acknowledgement nor window from an older SEQ: two such ends never agree again.
pub(super) fn apply(bytes: &mut [u8], window: Window, flow: &mut Flow) {
    let Ok(mut segment) = TcpPacket::new_checked(bytes) else { return };
    if segment.syn() || segment.rst() {
        return;
    }
    flow.last_window = segment.window_len();
    // Nobody hears the window of what is sent again (RFC 9293 §3.10.7.4, SND.WL1).
    let heard = segment.segment_len() == 0 || segment.seq_number() == flow.nxt;
    flow.closed = window == Window::Closed || flow.closed && !heard;
    if window == Window::Closed {
        set_window(&mut segment, 0);
    }
    if segment.segment_len() == 0 && flow.syn_sent {
        set_seq(&mut segment, flow.nxt);
    }
}

fn set_window(segment: &mut TcpPacket<&mut [u8]>, window: u16) {
    let checksum = mend(segment.checksum(), segment.window_len(), window);
    segment.set_window_len(window);
    segment.set_checksum(checksum);
}

fn set_seq(segment: &mut TcpPacket<&mut [u8]>, seq: TcpSeqNumber) {
    let (old, new) = (segment.seq_number().0 as u32, seq.0 as u32);
    let checksum = mend(segment.checksum(), (old >> 16) as u16, (new >> 16) as u16);
    let checksum = mend(checksum, old as u16, new as u16);
    segment.set_seq_number(seq);
    segment.set_checksum(checksum);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::flow::Tuple;
    use smoltcp::time::Instant;
    use smoltcp::wire::IpAddress;

    fn segment(window: u16, seq: i32, fill: u8) -> [u8; 27] {
        let mut bytes = [fill; 27];
        let mut segment = TcpPacket::new_unchecked(&mut bytes[..]);
        segment.clear_flags();
        segment.set_ack(true);
        segment.set_header_len(20);
        segment.set_window_len(window);
        segment.set_seq_number(TcpSeqNumber(seq));
        segment.fill_checksum(&IpAddress::v4(10, 0, 0, 1), &IpAddress::v4(10, 0, 0, 2));
        bytes
    }

    fn verifies(bytes: &[u8]) -> bool {
        TcpPacket::new_unchecked(bytes)
            .verify_checksum(&IpAddress::v4(10, 0, 0, 1), &IpAddress::v4(10, 0, 0, 2))
    }

    #[test]
    fn mended_checksums_verify_for_every_window() {
        let mut flow = Flow::new(Tuple { remote: 1, remote_port: 2, local_port: 3 }, Instant::ZERO);
        for window in 0..=u16::MAX {
            let mut bytes = segment(window, i32::from(window).wrapping_mul(77_777), window as u8);
            apply(&mut bytes, Window::Closed, &mut flow);
            assert!(verifies(&bytes), "window {window}");
            assert_eq!(TcpPacket::new_unchecked(&bytes[..]).window_len(), 0);
            assert!(flow.closed && flow.last_window == window);
        }
    }

    #[test]
    fn a_pure_ack_gets_the_newest_seq_and_data_keeps_its_own() {
        let mut flow = Flow::new(Tuple { remote: 1, remote_port: 2, local_port: 3 }, Instant::ZERO);
        (flow.nxt, flow.syn_sent) = (TcpSeqNumber(-5), true);
        let mut data = segment(9, 1234, 1);
        apply(&mut data, Window::Open, &mut flow);
        assert_eq!(TcpPacket::new_unchecked(&data[..]).seq_number(), TcpSeqNumber(1234));

        let mut ack: [u8; 20] = segment(9, 1234, 1)[..20].try_into().unwrap();
        TcpPacket::new_unchecked(&mut ack[..])
            .fill_checksum(&IpAddress::v4(10, 0, 0, 1), &IpAddress::v4(10, 0, 0, 2));
        apply(&mut ack, Window::Open, &mut flow);
        assert!(verifies(&ack));
        assert_eq!(TcpPacket::new_unchecked(&ack[..]).seq_number(), TcpSeqNumber(-5));
        assert!(!flow.closed);
    }

    #[test]
    fn syn_and_rst_are_left_alone() {
        for syn in [true, false] {
            let mut bytes = segment(4000, 7, 0);
            let mut packet = TcpPacket::new_unchecked(&mut bytes[..]);
            packet.set_syn(syn);
            packet.set_rst(!syn);
            let before = bytes;
            let mut flow =
                Flow::new(Tuple { remote: 1, remote_port: 2, local_port: 3 }, Instant::ZERO);
            apply(&mut bytes, Window::Closed, &mut flow);
            assert_eq!(bytes, before);
        }
    }
}
