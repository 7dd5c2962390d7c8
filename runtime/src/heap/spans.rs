//! Runs of pages: first fit over a bitmap that lies at the start of the memory it describes.

use ferry_protocol::layout::{PAGE_SIZE, PORTABLE_BASE};

/// A page allocator. A set bit is a page in use.
pub struct Spans {
    /// Number of the first managed page, counted from [`PORTABLE_BASE`].
    first: usize,
    used: &'static mut [u64],
    /// Managed pages, those of the bitmap included.
    pages: usize,
    free: usize,
    /// No page before this one is free.
    hint: usize,
}

impl Spans {
    /// Manages `start..end` (byte addresses, page aligned).
    ///
    /// # Safety
    /// The range must be mapped memory that nobody else uses from now on.
    pub unsafe fn new(start: usize, end: usize) -> Self {
        let pages = (end - start) / PAGE_SIZE;
        let words = pages.div_ceil(64);
        // SAFETY: by this function's contract; the range is page aligned.
        let used = unsafe {
            let bitmap = start as *mut u64;
            bitmap.write_bytes(0, words);
            core::slice::from_raw_parts_mut(bitmap, words)
        };
        let own = (words * 8).div_ceil(PAGE_SIZE);
        let first = start.saturating_sub(PORTABLE_BASE as usize) / PAGE_SIZE;
        let mut spans = Self { first, used, pages, free: pages, hint: 0 };
        spans.set(0, own, true);
        spans.hint = own;
        spans
    }

    /// Pages not in use.
    pub fn free_pages(&self) -> usize {
        self.free
    }

    /// Pages managed.
    pub fn pages(&self) -> usize {
        self.pages
    }

    fn start(&self) -> usize {
        self.used.as_ptr() as usize
    }

    fn is_used(&self, page: usize) -> bool {
        self.used[page / 64] >> (page % 64) & 1 != 0
    }

    fn set(&mut self, page: usize, count: usize, used: bool) {
        let end = page + count;
        let mut at = page;
        while at < end {
            let bits = (64 - at % 64).min(end - at);
            let mask = (u64::MAX >> (64 - bits)) << (at % 64);
            let word = &mut self.used[at / 64];
            *word = if used { *word | mask } else { *word & !mask };
            at += bits;
        }
        if used {
            self.free -= count;
        } else {
            self.free += count;
        }
    }

    /// First page at or after `page` that is free, or the number of pages.
    fn next_free(&self, page: usize) -> usize {
        let mut word = page / 64;
        if word >= self.used.len() {
            return self.pages;
        }
        let mut bits = !self.used[word] & (u64::MAX << (page % 64));
        while bits == 0 {
            word += 1;
            if word == self.used.len() {
                return self.pages;
            }
            bits = !self.used[word];
        }
        (word * 64 + bits.trailing_zeros() as usize).min(self.pages)
    }

    /// Free pages from `page` on, at most `count`.
    fn run(&self, page: usize, count: usize) -> usize {
        let mut len = 0;
        while len < count && page + len < self.pages {
            let at = page + len;
            let word = self.used[at / 64] >> (at % 64);
            if word & 1 != 0 {
                break;
            }
            len += (word.trailing_zeros() as usize).min(64 - at % 64);
        }
        len.min(count).min(self.pages - page)
    }

    /// The address of `count` free pages, aligned to `align` pages (a power of two).
    pub fn allocate(&mut self, count: usize, align: usize) -> Option<usize> {
        if count > self.free {
            return None;
        }
        let mut page = self.next_free(self.hint);
        self.hint = page;
        while page + count <= self.pages {
            let address = self.start() / PAGE_SIZE + page;
            let aligned = page + (address.next_multiple_of(align) - address);
            if aligned + count > self.pages {
                return None;
            }
            let run = self.run(aligned, count);
            if run == count {
                self.set(aligned, count, true);
                if aligned == self.hint {
                    self.hint += count;
                }
                return Some(self.start() + aligned * PAGE_SIZE);
            }
            page = self.next_free(aligned + run + 1);
        }
        None
    }

    /// Gives back `count` pages at `address`.
    pub fn free(&mut self, address: usize, count: usize) {
        let page = (address - self.start()) / PAGE_SIZE;
        debug_assert!((page..page + count).all(|page| self.is_used(page)));
        self.set(page, count, false);
        self.hint = self.hint.min(page);
    }

    /// Grows or shrinks an allocation in place; false if there is no room behind it.
    pub fn resize(&mut self, address: usize, old: usize, new: usize) -> bool {
        let page = (address - self.start()) / PAGE_SIZE;
        if new > old {
            let room = page + new <= self.pages && self.run(page + old, new - old) == new - old;
            if room {
                self.set(page + old, new - old, true);
            }
            room
        } else {
            if new < old {
                self.free(address + new * PAGE_SIZE, old - new);
            }
            true
        }
    }

    /// Sets the bits of the free pages in a map whose bit 0 is the page at [`PORTABLE_BASE`], and
    /// clears all others.
    pub fn free_map(&self, map: &mut [u8]) {
        map.fill(0);
        let mut page = self.next_free(0);
        while page < self.pages {
            let run = self.run(page, self.pages - page);
            set_bits(map, self.first + page, run);
            page = self.next_free(page + run);
        }
    }
}

/// Sets `count` bits from bit `first` on; those beyond the map's end are left out.
pub fn set_bits(map: &mut [u8], first: usize, count: usize) {
    let end = (first + count).min(map.len() * 8);
    let mut at = first.min(end);
    while at < end {
        let bits = (8 - at % 8).min(end - at);
        if bits == 8 {
            let bytes = (end - at) / 8;
            map[at / 8..at / 8 + bytes].fill(0xff);
            at += bytes * 8;
        } else {
            map[at / 8] |= (0xff >> (8 - bits)) << (at % 8);
            at += bits;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_set_in_runs_and_not_beyond_the_map() {
        for first in 0..40 {
            for count in 0..40 {
                let mut map = [0; 8];
                set_bits(&mut map, first, count);
                for bit in 0..64 {
                    let expected = (first..first + count).contains(&bit);
                    assert_eq!(map[bit / 8] >> (bit % 8) & 1 == 1, expected, "{first}+{count}");
                }
            }
        }
        let mut map = [0; 2];
        set_bits(&mut map, 12, 100);
        assert_eq!(map, [0, 0xf0]);
        set_bits(&mut map, 100, 5);
        assert_eq!(map, [0, 0xf0]);
    }

    fn spans(pages: usize) -> (Spans, usize) {
        let layout = std::alloc::Layout::from_size_align(pages * PAGE_SIZE, PAGE_SIZE).unwrap();
        // SAFETY: the layout is not empty; the memory is leaked to the allocator under test.
        let start = unsafe { std::alloc::alloc(layout) } as usize;
        // SAFETY: as above.
        (unsafe { Spans::new(start, start + pages * PAGE_SIZE) }, start)
    }

    #[test]
    fn the_bitmap_occupies_the_first_pages() {
        let (mut spans, start) = spans(100);
        assert_eq!((spans.pages(), spans.free_pages()), (100, 99));
        assert_eq!(spans.allocate(1, 1), Some(start + PAGE_SIZE));
    }

    #[test]
    fn runs_cross_words_and_freed_runs_are_found_again() {
        let (mut spans, start) = spans(200);
        let a = spans.allocate(60, 1).unwrap();
        let b = spans.allocate(70, 1).unwrap();
        assert_eq!((a, b), (start + PAGE_SIZE, start + 61 * PAGE_SIZE));
        assert_eq!(spans.allocate(70, 1), None);
        spans.free(a, 60);
        assert_eq!(spans.allocate(61, 1), Some(start + 131 * PAGE_SIZE));
        assert_eq!(spans.allocate(60, 1), Some(a));
        assert_eq!(spans.free_pages(), 200 - 1 - 60 - 70 - 61);
    }

    #[test]
    fn alignment_and_resizing_in_place() {
        let (mut spans, start) = spans(64);
        let a = spans.allocate(3, 1).unwrap();
        let b = spans.allocate(2, 8).unwrap();
        assert_eq!(b / PAGE_SIZE % 8, 0);
        assert!(spans.resize(a, 3, 1));
        assert!(spans.resize(a, 1, 3));
        assert!(!spans.resize(a, 3, (b - start) / PAGE_SIZE + 2));
    }

    #[test]
    fn random_use_agrees_with_a_model() {
        let (mut spans, start) = spans(300);
        let mut model = vec![false; 300];
        model[0] = true;
        let mut live: Vec<(usize, usize)> = Vec::new();
        let mut seed = 1u64;
        let mut random = |below: usize| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) as usize % below
        };
        for _ in 0..20_000 {
            if random(2) == 0 || live.is_empty() {
                let count = 1 + random(20);
                let first = (0..=300 - count).find(|&at| !model[at..at + count].contains(&true));
                let got = spans.allocate(count, 1);
                assert_eq!(got, first.map(|page| start + page * PAGE_SIZE));
                if let Some(page) = first {
                    model[page..page + count].fill(true);
                    live.push((page, count));
                }
            } else {
                let (page, count) = live.swap_remove(random(live.len()));
                spans.free(start + page * PAGE_SIZE, count);
                model[page..page + count].fill(false);
            }
            assert_eq!(spans.free_pages(), model.iter().filter(|used| !**used).count());
        }
        let mut map = [0xffu8; 64];
        spans.first = 8;
        spans.free_map(&mut map);
        for (at, used) in (8..).zip(&model[..300]) {
            assert_eq!(map[at / 8] >> (at % 8) & 1 == 1, !used);
        }
    }
}
