//! Frames of the page stream.
//!
//! ```text
//!  0      2         3      4            8            12
//!  | "FT" | version | kind | length u32 | crc-32 u32 | payload … |
//! ```
//!
//! A packed frame's payload is the length of what was packed, u32, and an LZ4 block.
//!
//! Integers are little-endian. Magic, version, kind and length are checked before a byte of the
//! payload is awaited; the CRC-32 (IEEE 802.3) over kind, length and payload before it is used.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// First two bytes of a frame.
pub const MAGIC: [u8; 2] = *b"FT";
/// Version of framing and messages.
pub const VERSION: u8 = 5;
/// Bytes before the payload.
pub const HEADER_LEN: usize = 12;
/// Longest payload: 256 pages, their run headers, and a margin.
pub const MAX_PAYLOAD: usize = 256 * 4096 + 8192;

/// Bytes of a packed frame's payload before the block.
const PACKED_HEADER_LEN: usize = 4;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A message in postcard.
    Message = 1,
    /// Runs of pages.
    Pages = 2,
    /// The same, packed; [`read`] gives it out as `Pages`.
    Packed = 3,
    /// An Ethernet frame for the guest of a standby; on the mirror's connection only.
    Ethernet = 4,
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

/// Ends the frame of pages in `buf`, packed where that makes it shorter by an eighth at least. `scratch` is for
/// the caller to keep, so that not each frame allocates one.
///
/// # Panics
/// As [`finish`].
pub fn finish_pages(buf: &mut Vec<u8>, scratch: &mut Vec<u8>) {
    let payload = &buf[HEADER_LEN..];
    let len = payload.len();
    scratch.resize(lz4_flex::block::get_maximum_output_size(len), 0);
    match lz4_flex::block::compress_into(payload, scratch) {
        Ok(packed) if PACKED_HEADER_LEN + packed <= len - len / 8 => {
            buf.truncate(HEADER_LEN);
            buf.extend_from_slice(&(len as u32).to_le_bytes());
            buf.extend_from_slice(&scratch[..packed]);
            finish(buf, Kind::Packed);
        }
        _ => finish(buf, Kind::Pages),
    }
}

/// Unpacks the payload of a packed frame in place.
fn unpack(payload: &mut Vec<u8>) -> Result<(), FrameError> {
    let packed = std::mem::take(payload);
    let (len, block) = packed.split_first_chunk().ok_or(FrameError::Packed)?;
    let len = u32::from_le_bytes(*len);
    if len as usize > MAX_PAYLOAD {
        return Err(FrameError::Length { found: len });
    }
    payload.resize(len as usize, 0);
    match lz4_flex::block::decompress_into(block, payload) {
        Ok(unpacked) if unpacked == payload.len() => Ok(()),
        _ => Err(FrameError::Packed),
    }
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
    if kind == Kind::Packed {
        unpack(payload)?;
        return Ok(Kind::Pages);
    }
    Ok(kind)
}

#[cfg(test)]
mod tests {
    use super::*;

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
    async fn pages_are_packed_where_it_pays() {
        let noise: Vec<u8> =
            (0..20_000_u32).flat_map(|n| n.wrapping_mul(n | 0x9e37_79b1).to_le_bytes()).collect();
        let (even, mut scratch) = (vec![7; 50_000], Vec::new());
        for (content, kind) in [(&even, Kind::Packed), (&noise, Kind::Pages)] {
            let mut buf = Vec::new();
            begin(&mut buf);
            buf.extend(content);
            finish_pages(&mut buf, &mut scratch);
            assert_eq!(buf[3], kind as u8);
            assert_eq!(decode(&buf).await.unwrap(), (Kind::Pages, content.clone()));
        }
    }

    #[tokio::test]
    async fn what_does_not_unpack_is_refused() {
        let packed =
            |len: u32, block: &[u8]| frame_of(Kind::Packed, &[&len.to_le_bytes(), block].concat());
        let block = lz4_flex::block::compress(&[7; 5000]);
        assert_eq!(decode(&packed(5000, &block)).await.unwrap().1, [7; 5000]);
        for len in [0, 4999, 5001, MAX_PAYLOAD as u32] {
            let error = decode(&packed(len, &block)).await.unwrap_err();
            assert!(matches!(error, FrameError::Packed), "{len}: {error}");
        }
        let error = decode(&packed(MAX_PAYLOAD as u32 + 1, &block)).await.unwrap_err();
        assert!(matches!(error, FrameError::Length { .. }), "{error}");
        for cut in 0..block.len() {
            let error = decode(&packed(5000, &block[..cut])).await.unwrap_err();
            assert!(matches!(error, FrameError::Packed), "cut at {cut}: {error}");
        }
        let error = decode(&frame_of(Kind::Packed, b"abc")).await.unwrap_err();
        assert!(matches!(error, FrameError::Packed), "{error}");
    }

    #[tokio::test]
    async fn an_absurd_length_is_refused_before_its_payload() {
        let mut bad = frame(b"");
        bad[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(decode(&bad).await, Err(FrameError::Length { found: u32::MAX })));
    }
}
