//! A running digest over the latest content of every page that was sent.
//!
//! A page may be sent several times while the service runs; only what was sent last counts. Each
//! page's BLAKE3 over (number, content) is taken as four 64-bit words, and the digest is their sum
//! over all pages: sending a page again subtracts its old words and adds the new ones, so that the
//! comparison at the end costs nothing however much memory the guest has. It guards against what is
//! lost, doubled or misplaced on the way; it is not meant to resist somebody who forges pages.

/// The digest of one side.
#[derive(Debug, Default)]
pub struct PageDigest {
    sum: [u64; 4],
    pages: Vec<[u64; 4]>,
    count: u32,
}

/// Words of a page that was never sent.
const ABSENT: [u64; 4] = [0; 4];

impl PageDigest {
    /// Takes page `number` with its content, in place of what it had before.
    pub fn put(&mut self, number: u32, content: &[u8]) {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&number.to_le_bytes());
        hasher.update(content);
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(hasher.finalize().as_bytes().chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().unwrap_or([0; 8]));
        }
        let index = number as usize;
        if index >= self.pages.len() {
            self.pages.resize(index + 1, ABSENT);
        }
        let old = std::mem::replace(&mut self.pages[index], words);
        self.count += u32::from(old == ABSENT);
        for ((sum, new), old) in self.sum.iter_mut().zip(words).zip(old) {
            *sum = sum.wrapping_add(new).wrapping_sub(old);
        }
    }

    /// Whether the page was ever sent.
    #[must_use]
    pub fn contains(&self, number: u32) -> bool {
        self.pages.get(number as usize).is_some_and(|words| *words != ABSENT)
    }

    /// Different pages so far.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The digest: number of pages and sum.
    #[must_use]
    pub fn finish(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.count.to_le_bytes());
        for word in self.sum {
            hasher.update(&word.to_le_bytes());
        }
        *hasher.finalize().as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(pages: &[(u32, u8)]) -> [u8; 32] {
        let mut digest = PageDigest::default();
        for &(number, byte) in pages {
            digest.put(number, &[byte; 4096]);
        }
        digest.finish()
    }

    #[test]
    fn only_the_last_content_counts_and_order_does_not() {
        assert_eq!(digest(&[(1, 1), (2, 2)]), digest(&[(2, 9), (1, 1), (2, 2)]));
        assert_eq!(digest(&[(1, 1), (1, 1)]), digest(&[(1, 1)]));
    }

    #[test]
    fn content_number_and_absence_count() {
        let all = [
            digest(&[]),
            digest(&[(0, 0)]),
            digest(&[(1, 0)]),
            digest(&[(1, 1)]),
            digest(&[(1, 1), (2, 1)]),
            digest(&[(1, 2), (2, 1)]),
        ];
        for (index, one) in all.iter().enumerate() {
            assert!(!all[..index].contains(one), "{index}");
        }
    }

    #[test]
    fn counts_pages() {
        let mut digest = PageDigest::default();
        digest.put(5, b"a");
        digest.put(5, b"b");
        digest.put(0, b"a");
        assert_eq!(digest.count(), 2);
        assert!(digest.contains(5) && !digest.contains(4) && !digest.contains(99));
    }
}
