//! Runs of pages in a frame.
//!
//! ```text
//! payload = run …          run = first u32 | count u16 | flags u16 | count × 4096 bytes, or nothing
//! ```
//!
//! Flag 1: the pages are all zero and their content is left out.

use ferry_protocol::layout::PAGE_SIZE;

use super::PageDigest;
use super::frame;
use crate::qemu::ram::{RamError, RamFile};

/// Pages in one frame, at most.
pub const PAGES_PER_FRAME: usize = 256;
/// Pages in one frame that is sent: the destination works on one while the source makes the next.
const PAGES_TOGETHER: usize = 32;
const RUN_HEADER_LEN: usize = 8;
const FLAG_ZERO: u16 = 1;
const ZERO_PAGE: [u8; PAGE_SIZE] = [0; PAGE_SIZE];

/// Why a frame of pages was refused.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum PagesError {
    #[error("a run of pages is cut short")]
    Truncated,
    #[error("a run of pages has the unknown flags {found:#x}")]
    Flags { found: u16 },
    #[error("a frame of {found} pages, the most is {PAGES_PER_FRAME}")]
    Count { found: usize },
    #[error(transparent)]
    Ram(#[from] RamError),
}

/// Makes frames out of a list of pages, reading each from the memory file once.
#[derive(Debug)]
pub struct FrameBuilder<'a> {
    ram: &'a RamFile,
    /// Ascending page numbers still to be sent.
    pages: &'a [u32],
    digest: &'a mut PageDigest,
    packed: Vec<u8>,
    /// Pages put into frames, those left out because they were never anything but zero not counted.
    pub sent: u32,
}

impl<'a> FrameBuilder<'a> {
    /// Frames for `pages`, ascending numbers. Each goes into `digest` as it was read.
    pub fn new(ram: &'a RamFile, pages: &'a [u32], digest: &'a mut PageDigest) -> Self {
        Self { ram, pages, digest, packed: Vec::new(), sent: 0 }
    }

    /// Puts the next frame into `buf`; false when there is none left.
    ///
    /// A page that is all zero and was never sent is left out: the destination's region is empty.
    ///
    /// # Errors
    /// A page number is behind the end of the portable region, or the memory cannot be read.
    pub fn next_frame(&mut self, buf: &mut Vec<u8>) -> Result<bool, RamError> {
        frame::begin(buf);
        let mut room = PAGES_TOGETHER;
        while room > 0 && !self.pages.is_empty() {
            let run = run_length(self.pages).min(room);
            let (taken, rest) = self.pages.split_at(run);
            self.pages = rest;
            room -= run;
            self.put_run(taken[0], run, buf)?;
        }
        let any = buf.len() > frame::HEADER_LEN;
        if any {
            frame::finish_pages(buf, &mut self.packed);
        }
        Ok(any || !self.pages.is_empty())
    }

    /// Reads `count` consecutive pages straight into the frame, then drops what need not be sent.
    fn put_run(&mut self, first: u32, count: usize, buf: &mut Vec<u8>) -> Result<(), RamError> {
        let start = buf.len();
        buf.resize(start + RUN_HEADER_LEN + count * PAGE_SIZE, 0);
        self.ram.read_pages(first, &mut buf[start + RUN_HEADER_LEN..])?;
        let is_zero: Vec<bool> = buf[start + RUN_HEADER_LEN..]
            .chunks_exact(PAGE_SIZE)
            .map(|page| page == ZERO_PAGE)
            .collect();
        if !is_zero.contains(&true) {
            for (index, page) in buf[start + RUN_HEADER_LEN..].chunks_exact(PAGE_SIZE).enumerate() {
                self.digest.put(first + index as u32, page);
            }
            put_header(&mut buf[start..], first, count as u16, 0);
            self.sent += count as u32;
            return Ok(());
        }
        let content = buf.split_off(start + RUN_HEADER_LEN);
        buf.truncate(start);
        let mut at = 0;
        while at < count {
            let zero = is_zero[at];
            let len = is_zero[at..].iter().take_while(|other| **other == zero).count();
            let number = first + at as u32;
            let bytes = &content[at * PAGE_SIZE..(at + len) * PAGE_SIZE];
            if zero {
                self.put_zeros(number, len, buf);
            } else {
                for (index, page) in bytes.chunks_exact(PAGE_SIZE).enumerate() {
                    self.digest.put(number + index as u32, page);
                }
                push_header(buf, number, len as u16, 0);
                buf.extend_from_slice(bytes);
                self.sent += len as u32;
            }
            at += len;
        }
        Ok(())
    }

    fn put_zeros(&mut self, first: u32, count: usize, buf: &mut Vec<u8>) {
        for number in first..first + count as u32 {
            if self.digest.contains(number) {
                self.digest.put(number, &ZERO_PAGE);
                push_header(buf, number, 1, FLAG_ZERO);
                self.sent += 1;
            }
        }
    }
}

/// Number of consecutive pages at the start of an ascending list.
fn run_length(pages: &[u32]) -> usize {
    pages.iter().zip(pages[0]..).take_while(|(page, expected)| *page == expected).count()
}

fn put_header(run: &mut [u8], first: u32, count: u16, flags: u16) {
    run[0..4].copy_from_slice(&first.to_le_bytes());
    run[4..6].copy_from_slice(&count.to_le_bytes());
    run[6..8].copy_from_slice(&flags.to_le_bytes());
}

fn push_header(buf: &mut Vec<u8>, first: u32, count: u16, flags: u16) {
    let start = buf.len();
    buf.resize(start + RUN_HEADER_LEN, 0);
    put_header(&mut buf[start..], first, count, flags);
}

/// Writes the pages of a frame's payload into the memory file and `digest`. Returns how many.
///
/// # Errors
/// The payload is not made of whole runs, names more pages than a frame has, or one outside the portable
/// region. What came before in the payload has been written: the caller gives the standby up.
pub fn apply(
    mut payload: &[u8],
    ram: &RamFile,
    digest: &mut PageDigest,
) -> Result<u32, PagesError> {
    let mut written = 0;
    while !payload.is_empty() {
        let (header, rest) =
            payload.split_first_chunk::<RUN_HEADER_LEN>().ok_or(PagesError::Truncated)?;
        let first = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let count = usize::from(u16::from_le_bytes([header[4], header[5]]));
        // A run of zeros costs its sender 8 bytes: without a limit it would cost us any amount of work.
        let found = written as usize + count;
        if found > PAGES_PER_FRAME {
            return Err(PagesError::Count { found });
        }
        let zeros;
        let content = match u16::from_le_bytes([header[6], header[7]]) {
            0 => {
                let len = count * PAGE_SIZE;
                let content = rest.get(..len).ok_or(PagesError::Truncated)?;
                payload = &rest[len..];
                content
            }
            FLAG_ZERO => {
                payload = rest;
                zeros = vec![0; count * PAGE_SIZE];
                &zeros
            }
            found => return Err(PagesError::Flags { found }),
        };
        ram.write_pages(first, content)?;
        for (number, page) in (first..).zip(content.chunks_exact(PAGE_SIZE)) {
            digest.put(number, page);
        }
        written += count as u32;
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferry_protocol::control::Range;
    use ferry_protocol::layout::PORTABLE_BASE;

    const PAGES: u64 = 600;

    fn ram(dir: &tempfile::TempDir, name: &str) -> RamFile {
        let path = dir.path().join(name);
        let len = PORTABLE_BASE + PAGES * 4096;
        std::fs::File::create(&path).unwrap().set_len(len).unwrap();
        let mut ram = RamFile::open(&path, len).unwrap();
        ram.set_portable(Range { addr: PORTABLE_BASE, len: PAGES * 4096 }).unwrap();
        ram
    }

    async fn copy(
        pages: &[u32],
        from: &RamFile,
        to: &RamFile,
        digests: &mut [PageDigest; 2],
    ) -> u32 {
        let [ours, theirs] = digests;
        let mut builder = FrameBuilder::new(from, pages, ours);
        let mut buf = Vec::new();
        while builder.next_frame(&mut buf).unwrap() {
            if buf.len() > frame::HEADER_LEN {
                let (mut stream, mut payload) = (&buf[..], Vec::new());
                frame::read(&mut stream, &mut payload).await.unwrap();
                apply(&payload, to, theirs).unwrap();
            }
        }
        builder.sent
    }

    fn all(ram: &RamFile) -> Vec<u8> {
        let mut bytes = vec![0; PAGES as usize * 4096];
        ram.read_pages(0, &mut bytes).unwrap();
        bytes
    }

    #[tokio::test]
    async fn rounds_end_with_equal_memory_and_equal_digests() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (ram(&dir, "a"), ram(&dir, "b"));
        let mut digests = Default::default();
        for page in [0_u32, 1, 2, 7, 299, 300, 599] {
            from.write_pages(page, &[page as u8 | 1; 4096]).unwrap();
        }
        let everything: Vec<u32> = (0..PAGES as u32).collect();
        assert_eq!(copy(&everything, &from, &to, &mut digests).await, 7, "zeros are left out");
        // One page changes, one becomes zero, one zero page is reported but was never sent.
        from.write_pages(1, &[9; 4096]).unwrap();
        from.write_pages(2, &[0; 4096]).unwrap();
        assert_eq!(copy(&[1, 2, 3], &from, &to, &mut digests).await, 2);
        assert!(all(&from) == all(&to));
        assert_eq!(digests[0].finish(), digests[1].finish());
        assert_eq!(digests[0].count(), 7);
    }

    #[tokio::test]
    async fn a_lost_page_shows_in_the_digest() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (ram(&dir, "a"), ram(&dir, "b"));
        let mut digests: [PageDigest; 2] = Default::default();
        from.write_pages(4, &[1; 4096]).unwrap();
        copy(&[4], &from, &to, &mut digests).await;
        digests[0].put(5, &[2; 4096]);
        assert_ne!(digests[0].finish(), digests[1].finish());
    }

    #[test]
    fn runs_that_are_cut_or_lie_outside_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let to = ram(&dir, "b");
        let mut run = Vec::new();
        push_header(&mut run, 599, 1, 0);
        run.extend([1; 4096]);
        assert_eq!(apply(&run, &to, &mut PageDigest::default()).unwrap(), 1);
        for len in 1..run.len() {
            let error = apply(&run[..len], &to, &mut PageDigest::default()).unwrap_err();
            assert!(matches!(error, PagesError::Truncated), "cut at {len}");
        }
        for (first, count, flags) in [(600, 1, FLAG_ZERO), (599, 2, FLAG_ZERO), (u32::MAX, 1, 1)] {
            run.clear();
            push_header(&mut run, first, count, flags);
            let error = apply(&run, &to, &mut PageDigest::default()).unwrap_err();
            assert!(matches!(error, PagesError::Ram(RamError::Page { .. })), "{error}");
        }
        run.clear();
        push_header(&mut run, 0, 200, FLAG_ZERO);
        push_header(&mut run, 200, 57, FLAG_ZERO);
        let error = apply(&run, &to, &mut PageDigest::default()).unwrap_err();
        assert!(matches!(error, PagesError::Count { found: 257 }), "{error}");
        run.clear();
        push_header(&mut run, 0, 1, 2);
        assert!(matches!(
            apply(&run, &to, &mut PageDigest::default()),
            Err(PagesError::Flags { found: 2 })
        ));
    }
}
