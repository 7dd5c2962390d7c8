//! From a memory file to a snapshot.

use ferry_protocol::layout::{PAGE_SIZE, PORTABLE_BASE};
use ferry_protocol::snapshot::{HEADER_LEN, Header};

use super::{DIGEST_LEN, Meta, PAGES_PER_BLOCK};
use crate::qemu::ram::{RamError, RamFile};

/// Makes a snapshot of the frozen guest whose memory is `ram`. Of `pages` (ascending numbers), those
/// that are all zero are left out.
///
/// # Errors
/// A page is behind the end of the portable region, or the memory cannot be read.
pub fn snapshot(
    meta: &Meta,
    epoch: u64,
    ram: &RamFile,
    pages: &[u32],
) -> Result<(Vec<u8>, u32), RamError> {
    let meta_bytes = serde_json::to_vec(meta).unwrap_or_default();
    let mut kept: Vec<u32> = Vec::with_capacity(pages.len());
    let mut content: Vec<u8> = Vec::new();
    let mut blocks: Vec<u8> = Vec::new();
    let mut page = [0; PAGE_SIZE];
    for &number in pages {
        ram.read_pages(number, &mut page)?;
        if page == [0; PAGE_SIZE] {
            continue;
        }
        kept.push(number);
        content.extend_from_slice(&page);
        if content.len() == PAGES_PER_BLOCK * PAGE_SIZE {
            put_block(&mut content, &mut blocks);
        }
    }
    if !content.is_empty() {
        put_block(&mut content, &mut blocks);
    }
    let body = meta_bytes.len() + kept.len() * 4 + blocks.len();
    let header = Header {
        build_id: meta.spec.image.build_id.0,
        epoch,
        portable_end: PORTABLE_BASE + u64::from(ram.pages()) * PAGE_SIZE as u64,
        pages: kept.len() as u32,
        file_len: (HEADER_LEN + body + DIGEST_LEN) as u64,
        meta_len: meta_bytes.len() as u32,
    };
    let mut out = Vec::with_capacity(HEADER_LEN + body + DIGEST_LEN);
    out.extend_from_slice(&header.encode());
    out.extend_from_slice(&meta_bytes);
    kept.iter().for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
    out.extend_from_slice(&blocks);
    let digest = blake3::hash(&out);
    out.extend_from_slice(digest.as_bytes());
    Ok((out, kept.len() as u32))
}

fn put_block(content: &mut Vec<u8>, blocks: &mut Vec<u8>) {
    let packed = lz4_flex::block::compress(content);
    blocks.extend_from_slice(&(packed.len() as u32).to_le_bytes());
    blocks.extend_from_slice(&packed);
    content.clear();
}
