//! Runs of pages in a frame.
//!
//! ```text
//! payload = run …          run = first u32 | count u16 | flags u16 | count × 4096 bytes, or nothing
//! ```
//!
//! | flags | content |
//! |---|---|
//! | 0 | the pages |
//! | 1 | left out: the pages are all zero |
//! | 2 | the exclusive or of the pages and of what was sent of them last |

use ferry_protocol::layout::PAGE_SIZE;

use super::PageDigest;
use super::frame;
use super::pack::{Effort, Packer};
use super::sent::{Change, SentPages, apply_difference};
use crate::qemu::ram::{RamError, RamFile};

/// Pages in one frame, at most.
pub const PAGES_PER_FRAME: usize = 256;
/// Pages in one frame that is sent in a hurry: the destination works on one while the source makes the next.
const PAGES_TOGETHER: usize = 32;
const RUN_HEADER_LEN: usize = 8;
const FLAG_ZERO: u16 = 1;
const FLAG_DIFFERENCE: u16 = 2;
const ZERO_PAGE: [u8; PAGE_SIZE] = [0; PAGE_SIZE];

/// Why a frame of pages was refused.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum PagesError {
    #[error("a run of pages is cut short")]
    Truncated,
    #[error("a run of pages has the unknown flags {found:#x}")]
    Flags { found: u16 },
    #[error("what has changed in page {page}, which was never sent")]
    Unknown { page: u32 },
    #[error("a frame of {found} pages, the most is {PAGES_PER_FRAME}")]
    Count { found: usize },
    #[error(transparent)]
    Ram(#[from] RamError),
}

/// What a source keeps from round to round of what it has sent.
#[derive(Debug, Default)]
pub struct Sent {
    /// Over the latest content of all pages.
    pub digest: PageDigest,
    copies: SentPages,
    packer: Packer,
}

/// How a page of a run is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Not at all: the destination has it, or has never had anything but zeros.
    Absent,
    Zero,
    Difference,
    Whole,
}

/// Makes frames out of a list of pages, reading each from the memory file once.
#[derive(Debug)]
pub struct FrameBuilder<'a> {
    ram: &'a RamFile,
    /// Ascending page numbers still to be sent.
    pages: &'a [u32],
    known: &'a mut Sent,
    content: Vec<u8>,
    together: usize,
    /// Pages put into frames, those left out because the destination has them not counted.
    pub sent: u32,
}

impl<'a> FrameBuilder<'a> {
    /// Frames for `pages`, ascending numbers. Each goes into `known` as it was read.
    pub fn new(ram: &'a RamFile, pages: &'a [u32], effort: Effort, known: &'a mut Sent) -> Self {
        known.packer.effort = effort;
        let together = match effort {
            Effort::Quick => PAGES_TOGETHER,
            Effort::Thorough => PAGES_PER_FRAME,
        };
        Self { ram, pages, known, content: Vec::new(), together, sent: 0 }
    }

    /// Puts the next frame into `buf`; false when there is none left.
    ///
    /// # Errors
    /// A page number is behind the end of the portable region, or the memory cannot be read.
    pub fn next_frame(&mut self, buf: &mut Vec<u8>) -> Result<bool, RamError> {
        frame::begin(buf);
        let mut room = self.together;
        while room > 0 && !self.pages.is_empty() {
            let run = run_length(self.pages).min(room);
            let (taken, rest) = self.pages.split_at(run);
            self.pages = rest;
            room -= run;
            self.put_run(taken[0], run, buf)?;
        }
        let any = buf.len() > frame::HEADER_LEN;
        if any {
            frame::finish_pages(buf, &mut self.known.packer);
        }
        Ok(any || !self.pages.is_empty())
    }

    /// Reads `count` consecutive pages, and puts into the frame what the destination needs of them.
    fn put_run(&mut self, first: u32, count: usize, buf: &mut Vec<u8>) -> Result<(), RamError> {
        let mut content = std::mem::take(&mut self.content);
        content.resize(count * PAGE_SIZE, 0);
        self.ram.read_pages(first, &mut content)?;
        // Where the run that is being written begins, and how its pages are sent.
        let mut run: Option<(usize, Form)> = None;
        for (number, page) in (first..).zip(content.chunks_exact_mut(PAGE_SIZE)) {
            let form = self.form(number, page);
            if form == Form::Absent {
                run = None;
                continue;
            }
            let header = match run {
                Some((header, same)) if same == form => header,
                _ => buf.len(),
            };
            if header == buf.len() {
                push_header(buf, number, 0, form.flags());
            }
            run = Some((header, form));
            count_one(&mut buf[header..]);
            self.put_page(number, page, form);
            if form != Form::Zero {
                buf.extend_from_slice(page);
            }
            self.sent += 1;
        }
        self.content = content;
        Ok(())
    }

    fn form(&mut self, number: u32, page: &[u8]) -> Form {
        let zero = page == ZERO_PAGE;
        if zero && !self.known.digest.contains(number) {
            // The destination's region is empty.
            return Form::Absent;
        }
        match self.known.copies.change(number, page) {
            Change::None => Form::Absent,
            _ if zero => Form::Zero,
            Change::Some => Form::Difference,
            Change::All => Form::Whole,
        }
    }

    /// Takes note of a page that is sent, and leaves in `page` what is sent of it.
    fn put_page(&mut self, number: u32, page: &mut [u8], form: Form) {
        self.known.digest.put(number, page);
        match form {
            Form::Difference => self.known.copies.put_difference(number, page),
            _ => self.known.copies.put(number, page),
        }
    }
}

impl Form {
    fn flags(self) -> u16 {
        match self {
            Self::Zero => FLAG_ZERO,
            Self::Difference => FLAG_DIFFERENCE,
            Self::Whole | Self::Absent => 0,
        }
    }
}

/// Number of consecutive pages at the start of an ascending list.
fn run_length(pages: &[u32]) -> usize {
    pages.iter().zip(pages[0]..).take_while(|(page, expected)| *page == expected).count()
}

fn push_header(buf: &mut Vec<u8>, first: u32, count: u16, flags: u16) {
    buf.extend_from_slice(&first.to_le_bytes());
    buf.extend_from_slice(&count.to_le_bytes());
    buf.extend_from_slice(&flags.to_le_bytes());
}

/// One page more in the run with this header; there are no more than [`PAGES_PER_FRAME`].
fn count_one(run: &mut [u8]) {
    let count = u16::from_le_bytes([run[4], run[5]]) + 1;
    run[4..6].copy_from_slice(&count.to_le_bytes());
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
        let (zeros, mut changed);
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
            FLAG_DIFFERENCE => {
                let len = count * PAGE_SIZE;
                let difference = rest.get(..len).ok_or(PagesError::Truncated)?;
                payload = &rest[len..];
                changed = vec![0; len];
                ram.read_pages(first, &mut changed)?;
                // All of these pages exist.
                if let Some(page) = (first..).take(count).find(|page| !digest.contains(*page)) {
                    return Err(PagesError::Unknown { page });
                }
                apply_difference(&mut changed, difference);
                &changed
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
        (ours, theirs): &mut (Sent, PageDigest),
    ) -> u32 {
        // What is packed one way may be followed by what is packed the other.
        let effort = match pages.len() % 2 {
            0 => Effort::Quick,
            _ => Effort::Thorough,
        };
        let mut builder = FrameBuilder::new(from, pages, effort, ours);
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
        assert_eq!(digests.0.digest.finish(), digests.1.finish());
        assert_eq!(digests.1.count(), 7);
    }

    #[tokio::test]
    async fn a_lost_page_shows_in_the_digest() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (ram(&dir, "a"), ram(&dir, "b"));
        let mut digests: (Sent, PageDigest) = Default::default();
        from.write_pages(4, &[1; 4096]).unwrap();
        copy(&[4], &from, &to, &mut digests).await;
        digests.0.digest.put(5, &[2; 4096]);
        assert_ne!(digests.0.digest.finish(), digests.1.finish());
    }

    /// Bytes of the only frame for these pages.
    fn one_frame(pages: &[u32], from: &RamFile, sent: &mut Sent) -> usize {
        let (mut builder, mut buf) =
            (FrameBuilder::new(from, pages, Effort::Quick, sent), Vec::new());
        assert!(builder.next_frame(&mut buf).unwrap());
        assert!(builder.pages.is_empty());
        buf.len()
    }

    #[tokio::test]
    async fn of_a_page_that_was_sent_only_changes_are_sent_again() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (ram(&dir, "a"), ram(&dir, "b"));
        let mut digests = Default::default();
        let noise: Vec<u8> =
            (0..2 * 1024_u32).flat_map(|n| n.wrapping_mul(n | 0x9e37_79b1).to_le_bytes()).collect();
        from.write_pages(10, &noise).unwrap();
        from.write_pages(20, &noise).unwrap();
        let pages = [10, 11, 20, 21];
        assert!(one_frame(&pages, &from, &mut Sent::default()) > noise.len());
        assert_eq!(copy(&pages, &from, &to, &mut digests).await, 4);
        assert_eq!(copy(&pages, &from, &to, &mut digests).await, 0, "dirty, and the same");
        // Some octets of two, the whole of a third, and nothing of the last.
        for page in [10, 11] {
            let mut content = vec![0; 4096];
            from.read_pages(page, &mut content).unwrap();
            content[40..80].fill(page as u8);
            from.write_pages(page, &content).unwrap();
        }
        from.write_pages(20, &[1; 4096]).unwrap();
        assert_eq!(copy(&pages, &from, &to, &mut digests).await, 3);
        assert!(all(&from) == all(&to));
        // And back again, by what has changed since.
        from.write_pages(10, &noise).unwrap();
        from.write_pages(20, &noise[..4096]).unwrap();
        assert_eq!(copy(&pages, &from, &to, &mut digests).await, 3);
        assert!(all(&from) == all(&to));
        assert_eq!(digests.0.digest.finish(), digests.1.finish());

        let mut sent = Sent::default();
        one_frame(&[10], &from, &mut sent);
        from.write_pages(10, &[&[1; 40], &noise[40..4096]].concat()).unwrap();
        let len = one_frame(&[10], &from, &mut sent);
        assert!(len < 200, "{len} bytes for 40 that changed");
    }

    #[test]
    fn a_difference_to_a_page_that_was_never_sent_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let to = ram(&dir, "b");
        let mut digest = PageDigest::default();
        let mut run = Vec::new();
        push_header(&mut run, 4, 1, 0);
        run.extend([1; 4096]);
        apply(&run, &to, &mut digest).unwrap();
        for (first, count) in [(5, 1), (4, 2), (3, 2), (599, 2), (u32::MAX, 1), (u32::MAX, 2)] {
            run.clear();
            push_header(&mut run, first, count, FLAG_DIFFERENCE);
            run.resize(run.len() + usize::from(count) * PAGE_SIZE, 1);
            let error = apply(&run, &to, &mut digest).unwrap_err();
            match first {
                ..599 => assert!(matches!(error, PagesError::Unknown { .. }), "{error}"),
                _ => assert!(matches!(error, PagesError::Ram(RamError::Page { .. })), "{error}"),
            }
        }
        run.clear();
        push_header(&mut run, 4, 1, FLAG_DIFFERENCE);
        run.resize(run.len() + PAGE_SIZE - 1, 1);
        assert!(matches!(apply(&run, &to, &mut digest), Err(PagesError::Truncated)));
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
        push_header(&mut run, 0, 1, 4);
        assert!(matches!(
            apply(&run, &to, &mut PageDigest::default()),
            Err(PagesError::Flags { found: 4 })
        ));
    }
}
