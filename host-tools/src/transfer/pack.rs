//! What a frame of pages is packed with.
//!
//! While the service runs, bytes count: Zstandard makes half of what LZ4 does. While nobody is served, time counts.
//! A packed payload is the length of what was packed, u32, and a block.

use super::frame::{FrameError, Kind, MAX_PAYLOAD};

/// Bytes before the block.
const HEADER_LEN: usize = 4;
/// Zstandard's own default: a better one takes several times as long.
const LEVEL: i32 = 3;

/// What counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Effort {
    /// Time: LZ4.
    #[default]
    Quick,
    /// Bytes: Zstandard.
    Thorough,
}

/// Packs one payload after the other. To be kept: what it works with is not made anew for each.
#[derive(Default)]
pub struct Packer {
    /// What counts from now on.
    pub effort: Effort,
    zstd: Option<zstd::bulk::Compressor<'static>>,
    block: Vec<u8>,
}

impl std::fmt::Debug for Packer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packer").field("effort", &self.effort).finish_non_exhaustive()
    }
}

impl Packer {
    /// Packs `payload` in place and says how, if that makes it shorter by an eighth at least.
    pub fn pack(&mut self, payload: &mut Vec<u8>, start: usize) -> Option<Kind> {
        let len = payload.len() - start;
        let (kind, packed) = match self.effort {
            Effort::Quick => (Kind::Packed, self.lz4(&payload[start..])?),
            Effort::Thorough => (Kind::Compressed, self.zstd(&payload[start..])?),
        };
        if HEADER_LEN + packed > len - len / 8 {
            return None;
        }
        payload.truncate(start);
        payload.extend_from_slice(&(len as u32).to_le_bytes());
        payload.extend_from_slice(&self.block[..packed]);
        Some(kind)
    }

    fn lz4(&mut self, payload: &[u8]) -> Option<usize> {
        let most = lz4_flex::block::get_maximum_output_size(payload.len());
        self.block.resize(self.block.len().max(most), 0);
        lz4_flex::block::compress_into(payload, &mut self.block).ok()
    }

    fn zstd(&mut self, payload: &[u8]) -> Option<usize> {
        let most = zstd::zstd_safe::compress_bound(payload.len());
        self.block.resize(self.block.len().max(most), 0);
        if self.zstd.is_none() {
            self.zstd = zstd::bulk::Compressor::new(LEVEL).ok();
        }
        self.zstd.as_mut()?.compress_to_buffer(payload, &mut self.block[..]).ok()
    }
}

/// Unpacks a payload in place, if it is of a kind that is packed.
pub(super) fn unpack(kind: Kind, payload: &mut Vec<u8>) -> Result<Kind, FrameError> {
    if !matches!(kind, Kind::Packed | Kind::Compressed) {
        return Ok(kind);
    }
    let packed = std::mem::take(payload);
    let (len, block) = packed.split_first_chunk().ok_or(FrameError::Packed)?;
    let len = u32::from_le_bytes(*len);
    if len as usize > MAX_PAYLOAD {
        return Err(FrameError::Length { found: len });
    }
    payload.resize(len as usize, 0);
    let unpacked = match kind {
        Kind::Packed => lz4_flex::block::decompress_into(block, payload).ok(),
        _ => zstd::bulk::decompress_to_buffer(block, &mut payload[..]).ok(),
    };
    match unpacked {
        Some(unpacked) if unpacked == payload.len() => Ok(Kind::Pages),
        _ => Err(FrameError::Packed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: usize = 12;

    fn packer(effort: Effort) -> Packer {
        Packer { effort, ..Packer::default() }
    }

    /// What becomes of `content` behind other bytes: how it is packed, and the payload.
    fn packed(packer: &mut Packer, content: &[u8]) -> (Option<Kind>, Vec<u8>) {
        let mut buf = [&[9; START], content].concat();
        let kind = packer.pack(&mut buf, START);
        assert_eq!(buf[..START], [9; START]);
        (kind, buf.split_off(START))
    }

    #[test]
    fn payloads_are_packed_where_it_pays() {
        let noise: Vec<u8> =
            (0..20_000_u32).flat_map(|n| n.wrapping_mul(n | 0x9e37_79b1).to_le_bytes()).collect();
        for (effort, kind) in [(Effort::Quick, Kind::Packed), (Effort::Thorough, Kind::Compressed)]
        {
            let mut packer = packer(effort);
            let even = vec![7; 50_000];
            let (found, mut payload) = packed(&mut packer, &even);
            assert_eq!(found, Some(kind));
            assert!(payload.len() < 300, "{}", payload.len());
            assert_eq!(unpack(kind, &mut payload).unwrap(), Kind::Pages);
            assert_eq!(payload, even);
            let (found, payload) = packed(&mut packer, &noise);
            assert_eq!(found, None);
            assert_eq!(payload, noise, "as it was");
        }
        let mut payload = noise.clone();
        assert_eq!(unpack(Kind::Pages, &mut payload).unwrap(), Kind::Pages);
        assert_eq!(payload, noise);
    }

    #[test]
    fn what_does_not_unpack_is_refused() {
        for (effort, kind) in [(Effort::Quick, Kind::Packed), (Effort::Thorough, Kind::Compressed)]
        {
            let (_, good) = packed(&mut packer(effort), &[7; 5000]);
            let block = &good[HEADER_LEN..];
            let unpacked = |len: u32, block: &[u8]| {
                let mut payload = [&len.to_le_bytes(), block].concat();
                unpack(kind, &mut payload).map(|_| payload)
            };
            assert_eq!(unpacked(5000, block).unwrap(), [7; 5000]);
            for len in [0, 4999, 5001, MAX_PAYLOAD as u32] {
                let error = unpacked(len, block).unwrap_err();
                assert!(matches!(error, FrameError::Packed), "{kind:?}, {len}: {error}");
            }
            let error = unpacked(MAX_PAYLOAD as u32 + 1, block).unwrap_err();
            assert!(matches!(error, FrameError::Length { .. }), "{error}");
            for cut in 0..block.len() {
                let error = unpacked(5000, &block[..cut]).unwrap_err();
                assert!(matches!(error, FrameError::Packed), "{kind:?}, cut at {cut}: {error}");
            }
            let error = unpack(kind, &mut b"abc".to_vec()).unwrap_err();
            assert!(matches!(error, FrameError::Packed), "{error}");
        }
    }
}
