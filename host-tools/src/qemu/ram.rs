//! The guest's memory as a file. Guest-physical address = offset in the file.
//!
//! A guest names ranges of its memory in its answers. It is not trusted: nothing is read or written
//! through this module before the range has been checked against the file and the portable region.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use ferry_protocol::control::Range;
use ferry_protocol::layout::{MAX_RAM, PAGE_SIZE, PORTABLE_BASE};

use crate::priority::drop_in_background;

/// Why memory was not read or written.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum RamError {
    #[error("range {addr:#x}+{len:#x} does not lie in the guest's {ram_len:#x} bytes of memory")]
    Outside { addr: u64, len: u64, ram_len: u64 },
    #[error(
        "the portable region {start:#x}..{end:#x} is not one that {ram_len:#x} bytes of memory can have"
    )]
    Portable { start: u64, end: u64, ram_len: u64 },
    #[error("a bitmap of {found} bytes, {expected} describe the portable region")]
    BitmapLength { found: u64, expected: u64 },
    #[error("page {index} is behind the end of the portable region ({pages} pages)")]
    Page { index: u32, pages: u32 },
    #[error("memory file {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
}

/// An open memory file and the portable region in it.
#[derive(Debug)]
pub struct RamFile {
    file: File,
    path: PathBuf,
    len: u64,
    pages: u32,
}

/// Whoever closes the last descriptor frees the memory: 50 ms for 1 GiB, which no task of the agent has to spare.
impl Drop for RamFile {
    fn drop(&mut self) {
        if let Ok(last) = self.file.try_clone() {
            drop_in_background(last);
        }
    }
}

impl RamFile {
    /// Opens the memory file of a guest that has `len` bytes. Until [`RamFile::set_portable`] no
    /// page can be read or written.
    ///
    /// # Errors
    /// The file cannot be opened or is shorter.
    pub fn open(path: &Path, len: u64) -> Result<Self, RamError> {
        Self::open_as(path, path, len)
    }

    /// Opens the memory of a process that holds a file called `path`, which may have been removed since.
    ///
    /// # Errors
    /// The process has no such file open, or it is shorter.
    pub fn of_process(pid: i32, path: &Path, len: u64) -> Result<Self, RamError> {
        let io_error = |source| RamError::Io { path: path.to_owned(), source };
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).map_err(io_error)? {
            let link = entry.map_err(io_error)?.path();
            let Ok(target) = std::fs::read_link(&link) else { continue };
            let target = target.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            // proc(5): a removed file's name has this at its end.
            if target.strip_suffix(" (deleted)").unwrap_or(target) == name {
                return Self::open_as(&link, path, len);
            }
        }
        Err(io_error(io::ErrorKind::NotFound.into()))
    }

    fn open_as(place: &Path, path: &Path, len: u64) -> Result<Self, RamError> {
        let io_error = |source| RamError::Io { path: path.to_owned(), source };
        let file = OpenOptions::new().read(true).write(true).open(place).map_err(io_error)?;
        let found = file.metadata().map_err(io_error)?.len();
        if found < len {
            return Err(io_error(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("{found} bytes, expected {len}"),
            )));
        }
        Ok(Self { file, path: path.to_owned(), len, pages: 0 })
    }

    /// Takes the guest's word for where its portable region lies, after checking it.
    ///
    /// # Errors
    /// It does not begin at [`PORTABLE_BASE`], is not whole pages, or leaves the memory.
    pub fn set_portable(&mut self, portable: Range) -> Result<(), RamError> {
        let end = portable.addr.checked_add(portable.len);
        match end {
            Some(end)
                if portable.addr == PORTABLE_BASE
                    && portable.len > 0
                    && portable.len.is_multiple_of(PAGE_SIZE as u64)
                    && end <= self.len.min(MAX_RAM) =>
            {
                self.pages = (portable.len / PAGE_SIZE as u64) as u32;
                Ok(())
            }
            _ => Err(RamError::Portable {
                start: portable.addr,
                end: end.unwrap_or(u64::MAX),
                ram_len: self.len,
            }),
        }
    }

    /// Pages in the portable region.
    #[must_use]
    pub fn pages(&self) -> u32 {
        self.pages
    }

    fn io(&self, source: io::Error) -> RamError {
        RamError::Io { path: self.path.clone(), source }
    }

    /// Reads a range the guest has named, at most `limit` bytes.
    ///
    /// # Errors
    /// The range leaves the memory or is longer than `limit`.
    pub fn read_range(&self, range: Range, limit: u64) -> Result<Vec<u8>, RamError> {
        let inside = range.addr.checked_add(range.len).is_some_and(|end| end <= self.len);
        if !inside || range.len > limit {
            let Range { addr, len } = range;
            return Err(RamError::Outside { addr, len, ram_len: self.len });
        }
        let mut bytes = vec![0; range.len as usize];
        self.file.read_exact_at(&mut bytes, range.addr).map_err(|error| self.io(error))?;
        Ok(bytes)
    }

    /// Reads a bitmap with one bit for each portable page and returns the numbers of the set ones.
    ///
    /// # Errors
    /// The range leaves the memory, has another length, or names pages that do not exist.
    pub fn read_bitmap(&self, range: Range) -> Result<Vec<u32>, RamError> {
        let least = u64::from(self.pages.div_ceil(8));
        // Guests may round up to whole words.
        if !(least..least + 8).contains(&range.len) {
            return Err(RamError::BitmapLength { found: range.len, expected: least });
        }
        let bytes = self.read_range(range, least + 8)?;
        let mut set = Vec::new();
        for (word_index, chunk) in bytes.chunks(8).enumerate() {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            let mut word = u64::from_le_bytes(word);
            while word != 0 {
                let index = (word_index * 64) as u32 + word.trailing_zeros();
                if index >= self.pages {
                    return Err(RamError::Page { index, pages: self.pages });
                }
                set.push(index);
                word &= word - 1;
            }
        }
        Ok(set)
    }

    /// Reads consecutive pages from page `first` on into `buf`, a whole number of pages.
    ///
    /// # Errors
    /// A page is behind the end of the region.
    pub fn read_pages(&self, first: u32, buf: &mut [u8]) -> Result<(), RamError> {
        let at = self.page_range(first, buf.len())?;
        self.file.read_exact_at(buf, at).map_err(|error| self.io(error))
    }

    /// Writes consecutive pages from page `first` on.
    ///
    /// # Errors
    /// A page is behind the end of the region.
    pub fn write_pages(&self, first: u32, content: &[u8]) -> Result<(), RamError> {
        let at = self.page_range(first, content.len())?;
        self.file.write_all_at(content, at).map_err(|error| self.io(error))
    }

    fn page_range(&self, first: u32, len_bytes: usize) -> Result<u64, RamError> {
        let count = (len_bytes / PAGE_SIZE) as u64;
        if u64::from(first) + count > u64::from(self.pages) {
            let index = first.saturating_add(count as u32);
            return Err(RamError::Page { index, pages: self.pages });
        }
        Ok(PORTABLE_BASE + u64::from(first) * PAGE_SIZE as u64)
    }

    /// Makes every byte from [`PORTABLE_BASE`] to the end of the memory zero and gives its pages back.
    ///
    /// # Errors
    /// The file system cannot punch holes.
    pub fn punch_portable(&self) -> Result<(), RamError> {
        use rustix::fs::{FallocateFlags, fallocate};
        let end = PORTABLE_BASE + u64::from(self.pages) * PAGE_SIZE as u64;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&self.file, flags, PORTABLE_BASE, end - PORTABLE_BASE)
            .map_err(|error| self.io(error.into()))
    }

    /// The extents of the portable region that the file system holds, as half-open ranges of page
    /// numbers. What lies between them was never written and reads as zero.
    ///
    /// # Errors
    /// The file cannot be searched.
    pub fn populated(&self) -> Result<Vec<std::ops::Range<u32>>, RamError> {
        use rustix::fs::{SeekFrom, seek};
        let end = PORTABLE_BASE + u64::from(self.pages) * PAGE_SIZE as u64;
        let (mut at, mut extents) = (PORTABLE_BASE, Vec::new());
        while at < end {
            let data = match seek(&self.file, SeekFrom::Data(at)) {
                Ok(data) if data < end => data,
                Ok(_) | Err(rustix::io::Errno::NXIO) => break,
                Err(error) => return Err(self.io(error.into())),
            };
            let hole = seek(&self.file, SeekFrom::Hole(data))
                .map_err(|error| self.io(error.into()))?
                .min(end);
            let page = |addr: u64| ((addr - PORTABLE_BASE) / PAGE_SIZE as u64) as u32;
            extents.push(page(data)..page(hole.next_multiple_of(PAGE_SIZE as u64)));
            at = hole;
        }
        Ok(extents)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: u64 = PORTABLE_BASE + (64 << 10);

    fn ram() -> (tempfile::TempDir, RamFile) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ram");
        File::create(&path).unwrap().set_len(LEN).unwrap();
        let mut ram = RamFile::open(&path, LEN).unwrap();
        ram.set_portable(Range { addr: PORTABLE_BASE, len: 16 * 4096 }).unwrap();
        (dir, ram)
    }

    #[test]
    fn a_portable_region_that_cannot_be_is_refused() {
        let (_dir, mut ram) = ram();
        for (addr, len) in [
            (0, 4096),
            (PORTABLE_BASE, 0),
            (PORTABLE_BASE, 4095),
            (PORTABLE_BASE, 17 * 4096),
            (PORTABLE_BASE, u64::MAX - 4095),
            (PORTABLE_BASE + 4096, 4096),
        ] {
            let error = ram.set_portable(Range { addr, len }).unwrap_err();
            assert!(matches!(error, RamError::Portable { .. }), "{error}");
        }
        assert_eq!(ram.pages(), 16);
    }

    #[test]
    fn ranges_and_pages_outside_are_refused() {
        let (_dir, ram) = ram();
        for (addr, len) in [(LEN, 1), (u64::MAX, 2), (0, LEN + 1), (0, 101)] {
            assert!(ram.read_range(Range { addr, len }, 100).is_err(), "{addr:#x}+{len:#x}");
        }
        assert!(ram.write_pages(15, &[1; 4096]).is_ok());
        assert!(ram.write_pages(15, &[1; 8192]).is_err());
        assert!(ram.write_pages(u32::MAX, &[1; 4096]).is_err());
        assert!(ram.read_pages(16, &mut [0; 4096]).is_err());
    }

    #[test]
    fn bitmaps() {
        let (_dir, ram) = ram();
        let at = |len| Range { addr: 4096, len };
        ram.file.write_all_at(&[0b1000_0001, 0b0000_0010, 0, 0, 0, 0, 0, 0, 1], 4096).unwrap();
        assert_eq!(ram.read_bitmap(at(2)).unwrap(), [0, 7, 9]);
        assert_eq!(ram.read_bitmap(at(8)).unwrap(), [0, 7, 9]);
        assert!(matches!(ram.read_bitmap(at(9)), Err(RamError::Page { index: 64, pages: 16 })));
        assert!(matches!(ram.read_bitmap(at(1)), Err(RamError::BitmapLength { .. })));
        assert!(matches!(ram.read_bitmap(at(u64::MAX)), Err(RamError::BitmapLength { .. })));
    }

    #[test]
    fn punching_leaves_zeros_and_no_extents() {
        let (_dir, ram) = ram();
        ram.write_pages(2, &[7; 8192]).unwrap();
        assert_eq!(ram.populated().unwrap(), vec![2..4; 1]);
        ram.punch_portable().unwrap();
        assert_eq!(ram.populated().unwrap(), []);
        let mut page = [1; 4096];
        ram.read_pages(3, &mut page).unwrap();
        assert_eq!(page, [0; 4096]);
    }
}
