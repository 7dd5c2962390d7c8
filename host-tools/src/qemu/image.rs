//! What an image says of itself.
//!
//! An image is an x86-64 ELF file with two notes: the PVH entry that lets `-kernel` boot it
//! (`Xen`, type 18) and the build id (`GNU`, type 3).

use ferry_protocol::layout::{BuildId, PORTABLE_BASE};

/// What is needed to start an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    /// Descriptor of the build-id note, padded with zeros at the end.
    pub build_id: BuildId,
    /// First address behind all loaded segments: RAM must reach beyond it.
    pub end: u64,
}

/// Why a file is not an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum ImageError {
    #[error("not a Ferry image: not an ELF file for x86-64")]
    NotElf,
    #[error("not a Ferry image: the ELF file is cut short or its {what} point outside it")]
    Damaged { what: &'static str },
    #[error("not a Ferry image: it has no {what} note")]
    NoNote { what: &'static str },
    #[error("not a Ferry image: its build id has {found} bytes, 8 to 32 are expected")]
    BuildIdLength { found: usize },
    #[error("not a Ferry image: nothing in it lies in the portable region")]
    NotPortable,
}

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const EM_X86_64: u16 = 62;
const PROGRAM_HEADER_LEN: usize = 56;

fn bytes_at<const N: usize>(file: &[u8], at: usize) -> Option<[u8; N]> {
    file.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u16_at(file: &[u8], at: usize) -> Option<u16> {
    bytes_at(file, at).map(u16::from_le_bytes)
}

fn u32_at(file: &[u8], at: usize) -> Option<u32> {
    bytes_at(file, at).map(u32::from_le_bytes)
}

fn u64_at(file: &[u8], at: usize) -> Option<u64> {
    bytes_at(file, at).map(u64::from_le_bytes)
}

impl ImageInfo {
    /// Reads an image.
    ///
    /// # Errors
    /// The file is no image that this system can boot.
    pub fn read(file: &[u8]) -> Result<Self, ImageError> {
        // ELF magic, 64 bits, little-endian.
        if file.get(..6) != Some(b"\x7fELF\x02\x01") || u16_at(file, 18) != Some(EM_X86_64) {
            return Err(ImageError::NotElf);
        }
        let headers = ImageError::Damaged { what: "program headers" };
        let at = u64_at(file, 32).and_then(|at| usize::try_from(at).ok()).ok_or(headers)?;
        let len = usize::from(u16_at(file, 54).ok_or(headers)?);
        let count = usize::from(u16_at(file, 56).ok_or(headers)?);
        if len != PROGRAM_HEADER_LEN {
            return Err(headers);
        }
        let (mut build_id, mut pvh, mut end) = (None, false, 0);
        for index in 0..count {
            let header = at
                .checked_add(index * len)
                .and_then(|at| file.get(at..at.checked_add(len)?))
                .ok_or(headers)?;
            let field = |at| u64_at(header, at).unwrap_or(0);
            let (offset, address, file_len, memory_len) =
                (field(8), field(16), field(32), field(40));
            let content = usize::try_from(offset)
                .ok()
                .zip(usize::try_from(file_len).ok())
                .and_then(|(offset, len)| file.get(offset..offset.checked_add(len)?))
                .ok_or(ImageError::Damaged { what: "segments" })?;
            match u32_at(header, 0).unwrap_or(0) {
                PT_LOAD => {
                    let segment_end = address.checked_add(memory_len);
                    end = end.max(segment_end.ok_or(ImageError::Damaged { what: "segments" })?);
                }
                PT_NOTE => {
                    for (name, kind, descriptor) in notes(content) {
                        match (name, kind) {
                            (b"GNU\0", 3) => build_id = Some(descriptor),
                            (b"Xen\0", 18) => pvh = true,
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        if !pvh {
            return Err(ImageError::NoNote { what: "PVH entry" });
        }
        let note = build_id.ok_or(ImageError::NoNote { what: "build-id" })?;
        if !(8..=32).contains(&note.len()) {
            return Err(ImageError::BuildIdLength { found: note.len() });
        }
        if end <= PORTABLE_BASE {
            return Err(ImageError::NotPortable);
        }
        let mut build_id = [0; 32];
        build_id[..note.len()].copy_from_slice(note);
        Ok(Self { build_id, end })
    }

    /// Least RAM in which the image can run, in MiB: its segments and some heap.
    #[must_use]
    pub fn min_memory_mib(&self) -> u32 {
        const LEAST_HEAP: u64 = 4 << 20;
        u32::try_from((self.end + LEAST_HEAP).div_ceil(1 << 20)).unwrap_or(u32::MAX)
    }
}

/// The notes of one note segment; ends at the first that does not fit.
fn notes(mut segment: &[u8]) -> impl Iterator<Item = (&[u8], u32, &[u8])> {
    std::iter::from_fn(move || {
        let name_len = u32_at(segment, 0)? as usize;
        let descriptor_len = u32_at(segment, 4)? as usize;
        let kind = u32_at(segment, 8)?;
        let descriptor_at = 12_usize.checked_add(name_len.checked_next_multiple_of(4)?)?;
        let name = segment.get(12..12_usize.checked_add(name_len)?)?;
        let descriptor = segment.get(descriptor_at..descriptor_at.checked_add(descriptor_len)?)?;
        let next = descriptor_at.checked_add(descriptor_len.checked_next_multiple_of(4)?)?;
        segment = segment.get(next..).unwrap_or(&[]);
        Some((name, kind, descriptor))
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn note(name: &[u8], kind: u32, descriptor: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend((name.len() as u32).to_le_bytes());
        out.extend((descriptor.len() as u32).to_le_bytes());
        out.extend(kind.to_le_bytes());
        for part in [name, descriptor] {
            out.extend(part);
            out.resize(out.len().next_multiple_of(4), 0);
        }
        out
    }

    /// A small ELF file with one loaded segment and one note segment.
    pub(crate) fn elf(notes: &[u8], memory_end: u64) -> Vec<u8> {
        let mut file = vec![0; 64 + 2 * PROGRAM_HEADER_LEN];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[18..20].copy_from_slice(&EM_X86_64.to_le_bytes());
        file[32..40].copy_from_slice(&64_u64.to_le_bytes());
        file[54..56].copy_from_slice(&(PROGRAM_HEADER_LEN as u16).to_le_bytes());
        file[56..58].copy_from_slice(&2_u16.to_le_bytes());
        let mut header =
            |at: usize, kind: u32, offset: u64, address: u64, len: u64, memory: u64| {
                file[at..at + 4].copy_from_slice(&kind.to_le_bytes());
                for (field, value) in [(8, offset), (16, address), (32, len), (40, memory), (48, 4)]
                {
                    file[at + field..at + field + 8].copy_from_slice(&value.to_le_bytes());
                }
            };
        header(64, PT_LOAD, 0, PORTABLE_BASE, 0, memory_end - PORTABLE_BASE);
        header(120, PT_NOTE, 176, 0, notes.len() as u64, notes.len() as u64);
        file.extend(notes);
        file
    }

    pub(crate) fn image(build_id: &[u8]) -> Vec<u8> {
        let notes = [note(b"Xen\0", 18, &[0; 8]), note(b"GNU\0", 3, build_id)].concat();
        elf(&notes, PORTABLE_BASE + 4096)
    }

    #[test]
    fn build_id_is_padded_and_the_end_found() {
        let info = ImageInfo::read(&image(&[7; 20])).unwrap();
        assert_eq!(info.build_id[..20], [7; 20]);
        assert_eq!(info.build_id[20..], [0; 12]);
        assert_eq!(info.end, PORTABLE_BASE + 4096);
        assert_eq!(info.min_memory_mib(), 37);
    }

    #[test]
    fn what_is_missing_is_named() {
        let pvh = note(b"Xen\0", 18, &[0; 8]);
        let id = note(b"GNU\0", 3, &[1; 16]);
        let end = PORTABLE_BASE + 1;
        assert_eq!(ImageInfo::read(b"#!/bin/sh"), Err(ImageError::NotElf));
        assert_eq!(ImageInfo::read(&elf(&id, end)), Err(ImageError::NoNote { what: "PVH entry" }));
        assert_eq!(ImageInfo::read(&elf(&pvh, end)), Err(ImageError::NoNote { what: "build-id" }));
        assert_eq!(
            ImageInfo::read(&elf(&[pvh.clone(), note(b"GNU\0", 3, &[1; 64])].concat(), end)),
            Err(ImageError::BuildIdLength { found: 64 })
        );
        assert_eq!(
            ImageInfo::read(&elf(&[pvh, id].concat(), PORTABLE_BASE)),
            Err(ImageError::NotPortable)
        );
    }

    #[test]
    fn no_damage_makes_the_reader_panic() {
        let good = image(&[3; 32]);
        for len in 0..good.len() {
            assert!(ImageInfo::read(&good[..len]).is_err(), "cut at {len}");
        }
        for at in 0..good.len() {
            for value in [0, 0x7f, 0xff] {
                let mut bad = good.clone();
                bad[at] = value;
                let _ = ImageInfo::read(&bad);
            }
        }
    }
}
