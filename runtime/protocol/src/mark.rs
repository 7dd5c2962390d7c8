//! A frame that an agent puts on its guest's wire, behind all that was on its way there.
//!
//! Frames for the service are copied to the destination from some moment on. Those of before reach the source
//! alone, and some may still lie in queues of the host: the guest takes frames in up to the mark, and only then
//! parks to be captured. So each frame reaches a guest that keeps it.
//!
//! ```text
//!  0            6         12         14       18            22      60
//!  | MAC        | source  | 0x88b5   | "FMRK" | number u32  | zeros |
//! ```

/// Where a mark goes to: a group that bridges keep to themselves (IEEE 802.1Q, table 8-1), so that no mark
/// comes from elsewhere on the segment.
pub const MAC: [u8; 6] = [0x01, 0x80, 0xc2, 0, 0, 0x0f];
/// IEEE Std 802 Local Experimental Ethertype 1.
pub const ETHERTYPE: u16 = 0x88b5;
/// Bytes of the frame without check sequence: Ethernet's least.
pub const LEN: usize = 60;
const MAGIC: [u8; 4] = *b"FMRK";

/// The mark with this number. Integers are little-endian, as everywhere in this crate, but for the ethertype.
#[must_use]
pub fn frame(source: [u8; 6], number: u32) -> [u8; LEN] {
    let mut frame = [0; LEN];
    frame[..6].copy_from_slice(&MAC);
    frame[6..12].copy_from_slice(&source);
    frame[12..14].copy_from_slice(&ETHERTYPE.to_be_bytes());
    frame[14..18].copy_from_slice(&MAGIC);
    frame[18..22].copy_from_slice(&number.to_le_bytes());
    frame
}

/// The number of the mark that `frame` is, if it is one.
#[must_use]
pub fn number(frame: &[u8]) -> Option<u32> {
    let is_mark = frame.starts_with(&MAC)
        && frame.get(12..14)? == ETHERTYPE.to_be_bytes()
        && frame.get(14..18)? == MAGIC;
    let number = frame.get(18..22)?.try_into().ok()?;
    is_mark.then(|| u32::from_le_bytes(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_found_by_its_number_and_nothing_else_is_one() {
        let mark = frame([2, 0, 0, 0, 0, 9], 0x1234_5678);
        assert_eq!(mark[..14], [1, 0x80, 0xc2, 0, 0, 0x0f, 2, 0, 0, 0, 0, 9, 0x88, 0xb5]);
        assert_eq!(mark[14..22], *b"FMRK\x78\x56\x34\x12");
        assert_eq!(number(&mark), Some(0x1234_5678));
        for len in 0..22 {
            assert_eq!(number(&mark[..len]), None, "{len} bytes");
        }
        for byte in (0..6).chain(12..18) {
            let mut other = mark;
            other[byte] ^= 1;
            assert_eq!(number(&other), None, "byte {byte}");
        }
    }
}
