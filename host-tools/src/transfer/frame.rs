//! Frames of the page stream.
//!
//! ```text
//!  0      2         3      4            8            12
//!  | "FT" | version | kind | length u32 | crc-32 u32 | payload … |
//! ```
//!
//! Integers are little-endian. Magic, version, kind and length are checked before a byte of the
//! payload is awaited; the CRC-32 (IEEE 802.3) over kind, length and payload before it is used.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

use super::pack::{self, Packer};

/// First two bytes of a frame.
pub const MAGIC: [u8; 2] = *b"FT";
/// Version of framing and messages.
pub const VERSION: u8 = 5;
/// Bytes before the payload.
pub const HEADER_LEN: usize = 12;
/// Longest payload: 256 pages, their run headers, and a margin.
pub const MAX_PAYLOAD: usize = 256 * 4096 + 8192;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A message in postcard.
    Message = 1,
    /// Runs of pages.
    Pages = 2,
    /// The same, packed with LZ4 ([`pack`]); [`read`] gives it out as `Pages`.
    Packed = 3,
    /// An Ethernet frame for the guest of a standby; on the mirror's connection only.
    Ethernet = 4,
    /// Runs of pages, packed with Zstandard.
    Compressed = 5,
}

/// Why bytes were not a frame.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum FrameError {
    #[error("the connection ended")]
    Ended,
    #[error("connection: {0}")]
    Io(io::Error),
    #[error("bytes that are no frame of a page stream")]
    Magic,
    #[error("page stream of version {found}, this side speaks {VERSION}")]
    Version { found: u8 },
    #[error("frame of unknown kind {found}")]
    Kind { found: u8 },
    #[error("frame of {found} bytes, the most is {MAX_PAYLOAD}")]
    Length { found: u32 },
    #[error("frame with a wrong checksum")]
    Checksum,
    #[error("packed frame that does not unpack")]
    Packed,
}

impl From<io::Error> for FrameError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe => Self::Ended,
            _ => Self::Io(error),
        }
    }
}

/// Begins a frame in an empty buffer: room for the header; the payload is to be appended.
pub fn begin(buf: &mut Vec<u8>) {
    buf.clear();
    buf.resize(HEADER_LEN, 0);
}

/// Ends the frame in `buf` by filling in its header.
///
/// # Panics
/// If the payload is longer than [`MAX_PAYLOAD`]; callers build frames from bounded parts.
pub fn finish(buf: &mut [u8], kind: Kind) {
    let len = buf.len() - HEADER_LEN;
    assert!(len <= MAX_PAYLOAD, "frame of {len} bytes");
    buf[0..2].copy_from_slice(&MAGIC);
    buf[2] = VERSION;
    buf[3] = kind as u8;
    buf[4..8].copy_from_slice(&(len as u32).to_le_bytes());
    let crc = checksum(&buf[..8], &buf[HEADER_LEN..]);
    buf[8..12].copy_from_slice(&crc.to_le_bytes());
}

/// Ends the frame of pages in `buf`, packed where that makes it shorter.
///
/// # Panics
/// As [`finish`].
pub fn finish_pages(buf: &mut Vec<u8>, packer: &mut Packer) {
    let kind = packer.pack(buf, HEADER_LEN).unwrap_or(Kind::Pages);
    finish(buf, kind);
}

fn checksum(header: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(header);
    hasher.update(payload);
    hasher.finalize()
}

/// Reads one frame; its payload replaces what is in `payload`.
///
/// # Errors
/// The connection ended or the bytes are not a frame.
pub async fn read(
    stream: &mut (impl AsyncRead + Unpin),
    payload: &mut Vec<u8>,
) -> Result<Kind, FrameError> {
    let mut header = [0; HEADER_LEN];
    stream.read_exact(&mut header).await?;
    if header[0..2] != MAGIC {
        return Err(FrameError::Magic);
    }
    if header[2] != VERSION {
        return Err(FrameError::Version { found: header[2] });
    }
    let kind = match header[3] {
        1 => Kind::Message,
        2 => Kind::Pages,
        3 => Kind::Packed,
        4 => Kind::Ethernet,
        5 => Kind::Compressed,
        found => return Err(FrameError::Kind { found }),
    };
    let len = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
    if len as usize > MAX_PAYLOAD {
        return Err(FrameError::Length { found: len });
    }
    payload.resize(len as usize, 0);
    stream.read_exact(payload).await?;
    let crc = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
    if checksum(&header[..8], payload) != crc {
        return Err(FrameError::Checksum);
    }
    pack::unpack(kind, payload)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transfer::pack::Effort;

    fn frame_of(kind: Kind, content: &[u8]) -> Vec<u8> {
        let mut buf = Vec::new();
        begin(&mut buf);
        buf.extend(content);
        finish(&mut buf, kind);
        buf
    }

    fn frame(content: &[u8]) -> Vec<u8> {
        frame_of(Kind::Pages, content)
    }

    async fn decode(mut bytes: &[u8]) -> Result<(Kind, Vec<u8>), FrameError> {
        let mut payload = Vec::new();
        let kind = read(&mut bytes, &mut payload).await?;
        Ok((kind, payload))
    }

    #[tokio::test]
    async fn round_trip() {
        assert_eq!(decode(&frame(b"abc")).await.unwrap(), (Kind::Pages, b"abc".to_vec()));
        assert_eq!(decode(&frame(b"")).await.unwrap(), (Kind::Pages, vec![]));
    }

    #[tokio::test]
    async fn every_flipped_bit_and_every_cut_is_refused() {
        let good = frame(b"some pages");
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bad).await.is_err(), "bit {bit}");
        }
        for len in 0..good.len() {
            assert!(matches!(decode(&good[..len]).await, Err(FrameError::Ended)), "cut at {len}");
        }
    }

    #[tokio::test]
    async fn packed_frames_are_given_out_as_pages() {
        for (effort, kind) in [(Effort::Quick, Kind::Packed), (Effort::Thorough, Kind::Compressed)]
        {
            let mut packer = Packer::default();
            packer.effort = effort;
            let (even, mut buf) = (vec![7; 50_000], Vec::new());
            begin(&mut buf);
            buf.extend(&even);
            finish_pages(&mut buf, &mut packer);
            assert_eq!(buf[3], kind as u8);
            assert_eq!(decode(&buf).await.unwrap(), (Kind::Pages, even));
            let error = decode(&frame_of(kind, b"abc")).await.unwrap_err();
            assert!(matches!(error, FrameError::Packed), "{error}");
        }
    }

    #[tokio::test]
    async fn an_absurd_length_is_refused_before_its_payload() {
        let mut bad = frame(b"");
        bad[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(decode(&bad).await, Err(FrameError::Length { found: u32::MAX })));
    }
}
