//! Header of a snapshot file: fixed layout, checked by hand before anything behind it is decoded.
//!
//! ```text
//! header (128 bytes) | page table: count × u32 page number, ascending | page blocks … | digest
//! ```
//!
//! The body's coding belongs to the host; a guest never reads a snapshot file.

use core::fmt;

use crate::layout::{BuildId, MAX_PAGES};

/// First eight bytes of a snapshot file.
pub const MAGIC: [u8; 8] = *b"FERRYSNP";
/// Version of the header and of the body behind it.
pub const VERSION: u32 = 1;
/// Bytes of the header.
pub const HEADER_LEN: usize = 128;

/// The fixed header of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The image the pages belong to.
    pub build_id: BuildId,
    /// Ownership number under which the service last ran.
    pub epoch: u64,
    /// End of the portable region, in bytes from address 0.
    pub portable_end: u64,
    /// Pages in the file.
    pub pages: u32,
    /// Bytes of the whole file, header included.
    pub file_len: u64,
    /// Bytes of the metadata block that follows the header.
    pub meta_len: u32,
}

/// Why a file is not a snapshot this host can restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields say what they are in the messages below")]
pub enum HeaderError {
    Truncated { have: usize },
    Magic,
    Version { found: u32 },
    Checksum,
    Pages { found: u32 },
    Length { header: u64, file: u64 },
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated { have } => {
                write!(f, "file of {have} bytes is shorter than a snapshot's header ({HEADER_LEN})")
            }
            Self::Magic => write!(f, "not a Ferry snapshot"),
            Self::Version { found } => {
                write!(f, "snapshot of format {found}, this version reads {VERSION}")
            }
            Self::Checksum => write!(f, "the snapshot's header does not match its checksum"),
            Self::Pages { found } => {
                write!(f, "the snapshot claims {found} pages, the most is {MAX_PAGES}")
            }
            Self::Length { header, file } => {
                write!(f, "the snapshot should have {header} bytes, the file has {file}")
            }
        }
    }
}

impl core::error::Error for HeaderError {}

impl Header {
    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[0..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&self.pages.to_le_bytes());
        out[16..24].copy_from_slice(&self.epoch.to_le_bytes());
        out[24..32].copy_from_slice(&self.portable_end.to_le_bytes());
        out[32..40].copy_from_slice(&self.file_len.to_le_bytes());
        out[40..44].copy_from_slice(&self.meta_len.to_le_bytes());
        out[64..96].copy_from_slice(&self.build_id);
        let crc = crc32fast::hash(&out[..HEADER_LEN - 4]);
        out[HEADER_LEN - 4..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads and checks a header. `file_len` is the length of the file as the reader sees it, in bytes.
    ///
    /// # Errors
    /// The first thing that is wrong, in the order magic, version, checksum, length, pages.
    pub fn decode(bytes: &[u8], file_len: u64) -> Result<Self, HeaderError> {
        let Some(bytes) = bytes.first_chunk::<HEADER_LEN>() else {
            return Err(HeaderError::Truncated { have: bytes.len() });
        };
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap_or([0; 4]));
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or([0; 8]));
        if bytes[0..8] != MAGIC {
            return Err(HeaderError::Magic);
        }
        if u32_at(8) != VERSION {
            return Err(HeaderError::Version { found: u32_at(8) });
        }
        if u32_at(HEADER_LEN - 4) != crc32fast::hash(&bytes[..HEADER_LEN - 4]) {
            return Err(HeaderError::Checksum);
        }
        let mut build_id = [0; 32];
        build_id.copy_from_slice(&bytes[64..96]);
        let header = Self {
            build_id,
            epoch: u64_at(16),
            portable_end: u64_at(24),
            pages: u32_at(12),
            file_len: u64_at(32),
            meta_len: u32_at(40),
        };
        if header.file_len != file_len {
            return Err(HeaderError::Length { header: header.file_len, file: file_len });
        }
        if header.pages as usize > MAX_PAGES {
            return Err(HeaderError::Pages { found: header.pages });
        }
        Ok(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            build_id: [7; 32],
            epoch: 3,
            portable_end: 64 << 20,
            pages: 42,
            file_len: 9000,
            meta_len: 100,
        }
    }

    #[test]
    fn round_trip() {
        assert_eq!(Header::decode(&header().encode(), 9000), Ok(header()));
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_refused() {
        let good = header().encode();
        for bit in 0..HEADER_LEN * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&bad, 9000).is_err(), "bit {bit}");
        }
        for len in 0..HEADER_LEN {
            assert_eq!(
                Header::decode(&good[..len], 9000),
                Err(HeaderError::Truncated { have: len })
            );
        }
    }

    #[test]
    fn absurd_page_count_is_refused() {
        let bad = Header { pages: u32::MAX, ..header() }.encode();
        assert_eq!(Header::decode(&bad, 9000), Err(HeaderError::Pages { found: u32::MAX }));
    }
}
