//! Reading pcap files (draft-ietf-opsawg-pcap): the classic format that `tcpdump -w` writes.

use std::time::Duration;

/// A captured frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Since the Unix epoch.
    pub at: Duration,
    /// The frame, as much of it as was captured.
    pub bytes: &'a [u8],
}

/// Why a file could not be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PcapError {
    /// Not this format.
    #[error("no pcap file of the frames that were expected: {what}")]
    Format {
        /// What is there instead.
        what: String,
    },
    /// The file ends inside a record: the capture was not ended in order.
    #[error("the file ends in the middle of frame {frame}")]
    Truncated {
        /// Which, from 0.
        frame: usize,
    },
}

/// Link type of Ethernet.
pub const ETHERNET: u32 = 1;
/// Link type of a capture of all links (`LINKTYPE_LINUX_SLL2`).
pub const LINUX_SLL2: u32 = 276;

/// Takes a file of Ethernet frames apart.
pub fn frames(file: &[u8]) -> Result<Vec<Frame<'_>>, PcapError> {
    frames_of(file, ETHERNET)
}

/// Takes a file apart whose frames are of this link type.
pub fn frames_of(file: &[u8], expected: u32) -> Result<Vec<Frame<'_>>, PcapError> {
    let format = |what: String| PcapError::Format { what };
    let header: &[u8; 24] =
        file.first_chunk().ok_or_else(|| format(format!("{} bytes only", file.len())))?;
    let magic = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
    let (big, nanos) = match magic {
        0xa1b2_c3d4 => (false, false),
        0xa1b2_3c4d => (false, true),
        0xd4c3_b2a1 => (true, false),
        0x4d3c_b2a1 => (true, true),
        other => return Err(format(format!("magic number {other:#x}"))),
    };
    let number = |b: &[u8]| {
        let bytes = [b[0], b[1], b[2], b[3]];
        if big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
    };
    // The upper bits of the link type's field say whether frames end with a checksum.
    let link = number(&header[20..]) & 0xffff;
    if link != expected {
        return Err(format(format!("link type {link}")));
    }
    let mut rest = &file[24..];
    let mut all = Vec::new();
    while !rest.is_empty() {
        let cut = PcapError::Truncated { frame: all.len() };
        let Some((record, after)) = rest.split_first_chunk::<16>() else { return Err(cut) };
        let fraction = number(&record[4..]);
        let at = Duration::new(
            number(&record[..4]).into(),
            if nanos { fraction } else { fraction.saturating_mul(1000) },
        );
        let Some((bytes, after)) = after.split_at_checked(number(&record[8..]) as usize) else {
            return Err(cut);
        };
        all.push(Frame { at, bytes });
        rest = after;
    }
    Ok(all)
}

/// Writes a file with these frames; for tests of what reads them.
#[must_use]
pub fn write(frames: &[(Duration, Vec<u8>)]) -> Vec<u8> {
    let mut file = Vec::new();
    for field in [0xa1b2_3c4d_u32, 0x0004_0002, 0, 0, 65_535, 1] {
        file.extend(field.to_le_bytes());
    }
    for (at, bytes) in frames {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        for field in [at.as_secs() as u32, at.subsec_nanos(), length, length] {
            file.extend(field.to_le_bytes());
        }
        file.extend(bytes);
    }
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_and_read() {
        let at = Duration::new(1_700_000_000, 123_456_789);
        let file = write(&[(at, vec![1, 2, 3]), (at + Duration::from_secs(1), vec![])]);
        let read = frames(&file).unwrap();
        assert_eq!(read[0], Frame { at, bytes: &[1, 2, 3] });
        assert_eq!(read[1].bytes.len(), 0);
        assert_eq!(frames(&file[..file.len() - 1]), Err(PcapError::Truncated { frame: 1 }));
        assert!(matches!(frames(&[0; 24]), Err(PcapError::Format { .. })));
        assert!(matches!(frames(b"short"), Err(PcapError::Format { .. })));
    }
}
