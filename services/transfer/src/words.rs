//! The bytes of a download: a stream that anyone can make again from its seed.
//!
//! Word `k` is the splitmix64 output for state `seed + (k + 1) * 0x9E37_79B9_7F4A_7C15`, written
//! as 8 bytes, little-endian. Any part of the stream can be made without what lies before it.

/// What splitmix64 adds to its state per word.
const GOLDEN_GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

/// Word `index` of the stream for `seed`.
pub fn word(seed: u64, index: u64) -> u64 {
    let state = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(GOLDEN_GAMMA));
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// Fills `out` with the stream's bytes from word `first` on; the last word is cut to fit.
pub fn fill(seed: u64, first: u64, out: &mut [u8]) {
    let mut index = first;
    let mut words = out.chunks_exact_mut(8);
    for bytes in &mut words {
        bytes.copy_from_slice(&word(seed, index).to_le_bytes());
        index = index.wrapping_add(1);
    }
    let last = words.into_remainder();
    last.copy_from_slice(&word(seed, index).to_le_bytes()[..last.len()]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_the_published_splitmix64_outputs() {
        assert_eq!(word(0, 0), 0xE220_A839_7B1D_CDAF);
        assert_eq!(word(0, 1), 0x6E78_9E6A_A1B9_65F4);
        assert_eq!(word(0, 2), 0x06C4_5D18_8009_454F);
        let published = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
            4_593_380_528_125_082_431,
            16_408_922_859_458_223_821,
        ];
        assert_eq!(std::array::from_fn(|k| word(1_234_567, k as u64)), published);
    }

    #[test]
    fn bytes_are_little_endian_and_the_last_word_is_cut() {
        let mut out = [0; 11];
        fill(0, 0, &mut out);
        let expected = [0xaf, 0xcd, 0x1d, 0x7b, 0x39, 0xa8, 0x20, 0xe2, 0xf4, 0x65, 0xb9];
        assert_eq!(out, expected);
    }

    #[test]
    fn a_part_equals_the_same_part_of_the_whole() {
        let mut whole = [0; 80];
        fill(42, 0, &mut whole);
        let mut part = [0; 24];
        fill(42, 3, &mut part);
        assert_eq!(part, whole[24..48]);
    }

    #[test]
    fn state_wraps_around() {
        assert_eq!(word(u64::MAX, 0), word(GOLDEN_GAMMA.wrapping_sub(1), u64::MAX));
    }
}
