//! Copies of pages as they were sent last, so that of one that changes only the changes are sent again.
//!
//! What a drain does to a connection is a handful of octets in the midst of a page that has just been sent. QEMU's
//! migration does the same by the name of XBZRLE; here the difference is the exclusive or, and packing leaves next to
//! nothing of its zeros.

use ferry_protocol::layout::PAGE_SIZE;

/// Pages whose copies are kept, at most: 64 MiB of the agent's memory for a move. Those that come first stay.
const PAGES_KEPT: usize = 16 * 1024;
/// With more changed words than this, of 512, a difference packs no better than the page.
const WORDS_CHANGED: usize = 256;
const WORD: usize = 8;

/// How a page differs from what was sent of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Not at all.
    None,
    /// In some words.
    Some,
    /// In most words, or nothing is known of it.
    All,
}

/// See the module.
#[derive(Debug, Default)]
pub struct SentPages {
    /// For each page, one more than the number of its copy; 0 for none.
    index: Vec<u32>,
    copies: Vec<u8>,
}

impl SentPages {
    fn copy(&mut self, page: u32) -> Option<&mut [u8]> {
        let number = self.index.get(page as usize)?.checked_sub(1)?;
        let start = number as usize * PAGE_SIZE;
        self.copies.get_mut(start..start + PAGE_SIZE)
    }

    /// Compares a page with what was sent of it.
    pub fn change(&mut self, page: u32, content: &[u8]) -> Change {
        let Some(copy) = self.copy(page) else { return Change::All };
        if copy == content {
            return Change::None;
        }
        let words = copy.chunks_exact(WORD).zip(content.chunks_exact(WORD));
        match words.filter(|(old, new)| old != new).count() {
            0..=WORDS_CHANGED => Change::Some,
            _ => Change::All,
        }
    }

    /// Takes note that a page is sent as it is now.
    pub fn put(&mut self, page: u32, content: &[u8]) {
        if let Some(copy) = self.copy(page) {
            copy.copy_from_slice(content);
            return;
        }
        let kept = self.copies.len() / PAGE_SIZE;
        if kept == PAGES_KEPT {
            return;
        }
        let index = page as usize;
        if index >= self.index.len() {
            self.index.resize(index + 1, 0);
        }
        self.index[index] = kept as u32 + 1;
        self.copies.extend_from_slice(content);
    }

    /// Takes note that a page is sent as it is now, and leaves in `content` what differs from what was sent before.
    pub fn put_difference(&mut self, page: u32, content: &mut [u8]) {
        let Some(copy) = self.copy(page) else { return };
        for (old, new) in copy.iter_mut().zip(content) {
            (*old, *new) = (*new, *old ^ *new);
        }
    }
}

/// Changes what is there by a difference.
pub fn apply_difference(there: &mut [u8], difference: &[u8]) {
    for (there, difference) in there.iter_mut().zip(difference) {
        *there ^= difference;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_makes_the_new_page_of_the_old_one() {
        let mut sent = SentPages::default();
        let old = [7; PAGE_SIZE];
        assert_eq!(sent.change(5, &old), Change::All, "nothing is known of it");
        sent.put(5, &old);
        assert_eq!(sent.change(5, &old), Change::None);
        let mut new = old;
        new[100..140].copy_from_slice(&[1; 40]);
        assert_eq!(sent.change(5, &new), Change::Some);
        let mut difference = new;
        sent.put_difference(5, &mut difference);
        assert_eq!(difference.iter().filter(|byte| **byte != 0).count(), 40);
        assert_eq!(sent.change(5, &new), Change::None, "it has been sent");
        let mut there = old;
        apply_difference(&mut there, &difference);
        assert_eq!(there, new);
    }

    #[test]
    fn a_page_of_which_most_has_changed_is_a_new_one() {
        let mut sent = SentPages::default();
        sent.put(0, &[0; PAGE_SIZE]);
        let changed = |words: usize| {
            let mut page = [0; PAGE_SIZE];
            page[..words * WORD].fill(1);
            page
        };
        assert_eq!(sent.change(0, &changed(WORDS_CHANGED)), Change::Some);
        assert_eq!(sent.change(0, &changed(WORDS_CHANGED + 1)), Change::All);
        sent.put(0, &changed(512));
        assert_eq!(sent.change(0, &changed(512)), Change::None);
    }

    #[test]
    fn copies_are_bounded() {
        let mut sent = SentPages::default();
        let page = [1; PAGE_SIZE];
        for number in 0..PAGES_KEPT as u32 + 10 {
            sent.put(number, &page);
        }
        assert_eq!(sent.copies.len(), PAGES_KEPT * PAGE_SIZE);
        assert_eq!(sent.change(PAGES_KEPT as u32 - 1, &page), Change::None);
        assert_eq!(sent.change(PAGES_KEPT as u32, &page), Change::All);
    }
}
