//! Reading a snapshot. Everything is checked before anything is used: the header by hand, then the
//! digest over the whole file, then the metadata, the page table and every block.

use ferry_protocol::layout::{BuildId, MAX_RAM, PAGE_SIZE, PORTABLE_BASE};
use ferry_protocol::snapshot::{HEADER_LEN, Header, HeaderError};

use super::{DIGEST_LEN, MAX_META, Meta, PAGES_PER_BLOCK};
use crate::api::Digest32;
use crate::api::spec::{check_args, check_name};
use crate::qemu::ram::{RamError, RamFile};

/// Why bytes are not a snapshot that can be restored.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum SnapshotError {
    #[error(transparent)]
    Header(#[from] HeaderError),
    #[error("the snapshot is damaged: its content does not match its digest")]
    Digest,
    #[error(
        "the snapshot claims {meta_len} bytes of metadata and {pages} pages, the file has {file_len} bytes"
    )]
    Lengths { meta_len: u32, pages: u32, file_len: u64 },
    #[error("the snapshot's metadata cannot be used: {reason}")]
    Meta { reason: String },
    #[error("the snapshot's portable region ends at {found:#x}, which no guest has")]
    PortableEnd { found: u64 },
    #[error("the snapshot's page table is not ascending at entry {index}")]
    TableOrder { index: usize },
    #[error("the snapshot's page table names page {page}, its region has {pages}")]
    TableRange { page: u32, pages: u32 },
    #[error("block {index} of the snapshot cannot be unpacked")]
    Block { index: usize },
    #[error("the snapshot has {extra} bytes behind its last block")]
    Trailing { extra: usize },
    #[error("the snapshot is of image {}, not of {}", Digest32(*.found).short(), Digest32(*.expected).short())]
    OtherImage { found: BuildId, expected: BuildId },
}

/// A snapshot all of whose parts have been checked.
#[derive(Debug)]
pub struct Snapshot {
    /// The header.
    pub header: Header,
    /// What is not memory.
    pub meta: Meta,
    table: Vec<u32>,
    /// Unpacked pages in the order of the table.
    content: Vec<u8>,
}

impl Snapshot {
    /// Reads and checks a whole file.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn read(file: &[u8]) -> Result<Self, SnapshotError> {
        let file_len = file.len() as u64;
        let header = Header::decode(file, file_len)?;
        let Header { meta_len, pages, .. } = header;
        let lengths = SnapshotError::Lengths { meta_len, pages, file_len };
        let table_at = HEADER_LEN + meta_len as usize;
        let blocks_at = table_at + pages as usize * 4;
        if meta_len > MAX_META || blocks_at + DIGEST_LEN > file.len() {
            return Err(lengths);
        }
        let (body, digest) = file.split_at(file.len() - DIGEST_LEN);
        if blake3::hash(body).as_bytes() != digest {
            return Err(SnapshotError::Digest);
        }
        let meta = read_meta(&body[HEADER_LEN..table_at], &header)?;
        let table = read_table(&body[table_at..blocks_at], header.portable_end)?;
        let content = read_blocks(&body[blocks_at..], table.len())?;
        Ok(Self { header, meta, table, content })
    }

    /// Checks that it was made by the image with this build id.
    ///
    /// # Errors
    /// It was made by another.
    pub fn check_image(&self, expected: &BuildId) -> Result<(), SnapshotError> {
        let found = self.header.build_id;
        if found == *expected {
            Ok(())
        } else {
            Err(SnapshotError::OtherImage { found, expected: *expected })
        }
    }

    /// Writes its pages into the empty portable region of a standby.
    ///
    /// # Errors
    /// The standby has less memory, or its memory cannot be written.
    pub fn fill(&self, ram: &RamFile) -> Result<(), RamError> {
        let pages = self.content.chunks_exact(PAGE_SIZE);
        self.table.iter().zip(pages).try_for_each(|(&number, page)| ram.write_pages(number, page))
    }
}

fn read_meta(bytes: &[u8], header: &Header) -> Result<Meta, SnapshotError> {
    let wrong = |reason: String| SnapshotError::Meta { reason };
    let meta: Meta = serde_json::from_slice(bytes).map_err(|error| wrong(error.to_string()))?;
    check_name(&meta.spec.name).map_err(|error| wrong(error.to_string()))?;
    check_args(&meta.spec.args).map_err(|arg| wrong(format!("argument `{arg}`")))?;
    if let Some(held) = &meta.held {
        held.check(meta.spec.ip).map_err(|error| wrong(error.to_string()))?;
    }
    if meta.spec.image.build_id.0 != header.build_id {
        return Err(wrong("its build id is not the header's".into()));
    }
    Ok(meta)
}

fn read_table(bytes: &[u8], portable_end: u64) -> Result<Vec<u32>, SnapshotError> {
    let page = PAGE_SIZE as u64;
    if !(PORTABLE_BASE..=MAX_RAM).contains(&portable_end) || !portable_end.is_multiple_of(page) {
        return Err(SnapshotError::PortableEnd { found: portable_end });
    }
    let pages = ((portable_end - PORTABLE_BASE) / page) as u32;
    let number = |chunk: &[u8]| u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
    let table: Vec<u32> = bytes.chunks_exact(4).map(number).collect();
    if let Some(index) = table.windows(2).position(|pair| pair[0] >= pair[1]) {
        return Err(SnapshotError::TableOrder { index: index + 1 });
    }
    match table.last() {
        Some(&last) if last >= pages => Err(SnapshotError::TableRange { page: last, pages }),
        _ => Ok(table),
    }
}

fn read_blocks(mut bytes: &[u8], pages: usize) -> Result<Vec<u8>, SnapshotError> {
    let mut content = Vec::new();
    for index in 0..pages.div_ceil(PAGES_PER_BLOCK) {
        let block = SnapshotError::Block { index };
        let in_block = PAGES_PER_BLOCK.min(pages - index * PAGES_PER_BLOCK);
        let Some((len, rest)) = bytes.split_first_chunk::<4>() else { return Err(block) };
        let len = u32::from_le_bytes(*len) as usize;
        let Some(packed) = rest.get(..len) else { return Err(block) };
        bytes = &rest[len..];
        match lz4_flex::block::decompress(packed, in_block * PAGE_SIZE) {
            Ok(unpacked) if unpacked.len() == in_block * PAGE_SIZE => content.extend(unpacked),
            _ => return Err(block),
        }
    }
    if bytes.is_empty() { Ok(content) } else { Err(SnapshotError::Trailing { extra: bytes.len() }) }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
