//! Keyed hash of the tables. Four-tuples are chosen by peers, so an unkeyed hash would let one of
//! them put every connection into one bucket.

use core::hash::{BuildHasher, Hasher};

/// 128-bit key of a table, drawn at random when the stack is made.
#[derive(Clone, Copy, Debug)]
pub struct Key([u64; 2]);

impl Key {
    /// A key from two words nobody outside can know.
    #[must_use]
    pub const fn new(a: u64, b: u64) -> Self {
        Self([a, b])
    }

    /// SipHash-1-3 of some words.
    #[must_use]
    pub fn hash_words(&self, words: &[u64]) -> u64 {
        let mut state = self.build_hasher();
        for &word in words {
            state.write_u64(word);
        }
        state.finish()
    }
}

impl BuildHasher for Key {
    type Hasher = Sip13;

    fn build_hasher(&self) -> Sip13 {
        let [k0, k1] = self.0;
        Sip13 {
            v: [
                k0 ^ 0x736f_6d65_7073_6575,
                k1 ^ 0x646f_7261_6e64_6f6d,
                k0 ^ 0x6c79_6765_6e65_7261,
                k1 ^ 0x7465_6462_7974_6573,
            ],
        }
    }
}

/// SipHash-1-3 over whole words; all keys of the tables have a fixed length, so none is mixed in.
#[derive(Clone, Debug)]
pub struct Sip13 {
    v: [u64; 4],
}

impl Sip13 {
    fn round(&mut self) {
        let [a, b, c, d] = &mut self.v;
        *a = a.wrapping_add(*b);
        *b = b.rotate_left(13) ^ *a;
        *a = a.rotate_left(32);
        *c = c.wrapping_add(*d);
        *d = d.rotate_left(16) ^ *c;
        *a = a.wrapping_add(*d);
        *d = d.rotate_left(21) ^ *a;
        *c = c.wrapping_add(*b);
        *b = b.rotate_left(17) ^ *c;
        *c = c.rotate_left(32);
    }
}

impl Hasher for Sip13 {
    fn write_u64(&mut self, word: u64) {
        self.v[3] ^= word;
        self.round();
        self.v[0] ^= word;
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(word.into());
    }

    fn write_u16(&mut self, word: u16) {
        self.write_u64(word.into());
    }

    fn finish(&self) -> u64 {
        let mut end = self.clone();
        end.v[2] ^= 0xff;
        for _ in 0..3 {
            end.round();
        }
        end.v[0] ^ end.v[1] ^ end.v[2] ^ end.v[3]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_key_gives_another_hash() {
        let words = [0x0a00_0001_1234_0007];
        assert_ne!(Key::new(1, 2).hash_words(&words), Key::new(1, 3).hash_words(&words));
        assert_eq!(Key::new(1, 2).hash_words(&words), Key::new(1, 2).hash_words(&words));
    }

    #[test]
    fn successive_words_spread_over_the_low_bits() {
        let key = Key::new(5, 6);
        let mut buckets = [0u32; 64];
        for word in 0..6400 {
            buckets[(key.hash_words(&[word]) & 63) as usize] += 1;
        }
        assert!(buckets.iter().all(|&n| (50..160).contains(&n)), "{buckets:?}");
    }
}
