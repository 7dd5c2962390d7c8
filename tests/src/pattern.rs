//! Bytes that both ends can make from a number, at any position, without keeping them.
//!
//! Word k of the stream of seed s is splitmix64's output for the state s + (k+1)·0x9E3779B97F4A7C15
//! (mod 2⁶⁴), as eight bytes, least significant first. So a byte out of place, doubled or lost shows at
//! the position where it happened.

/// The golden ratio in 64 bits: what splitmix64 adds to its state each time.
const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

/// Word `k` of the stream of seed `seed`.
#[must_use]
pub fn word(seed: u64, k: u64) -> u64 {
    let state = seed.wrapping_add(k.wrapping_add(1).wrapping_mul(GAMMA));
    let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Fills `out` with the bytes of the stream from byte `position` on.
pub fn fill(seed: u64, mut position: u64, mut out: &mut [u8]) {
    while !out.is_empty() {
        let bytes = word(seed, position / 8).to_le_bytes();
        let skip = (position % 8) as usize;
        let take = (8 - skip).min(out.len());
        out[..take].copy_from_slice(&bytes[skip..skip + take]);
        position += take as u64;
        out = &mut out[take..];
    }
}

/// Compares bytes with the stream from byte `position` on; the position of the first wrong one.
#[must_use]
pub fn first_wrong(seed: u64, position: u64, got: &[u8]) -> Option<u64> {
    let mut expected = [0; 4096];
    let mut done = 0;
    for piece in got.chunks(expected.len()) {
        let want = &mut expected[..piece.len()];
        fill(seed, position + done, want);
        if want != piece {
            let at = want.iter().zip(piece).position(|(w, g)| w != g).unwrap_or(0);
            return Some(position + done + at as u64);
        }
        done += piece.len() as u64;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitmix64_reference_values() {
        // The first outputs of the reference implementation (Vigna, splitmix64.c) for seed 1234567.
        let expected =
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!([0, 1, 2].map(|k| word(1_234_567, k)), expected);
    }

    #[test]
    fn any_cut_gives_the_same_bytes() {
        let mut whole = [0; 100];
        fill(7, 0, &mut whole);
        for from in 0..20 {
            for to in from..100 {
                let mut part = vec![0; to - from];
                fill(7, from as u64, &mut part);
                assert_eq!(part, whole[from..to]);
            }
        }
        assert_eq!(whole[8..16], word(7, 1).to_le_bytes());
    }

    #[test]
    fn a_wrong_byte_is_found_where_it_is() {
        let mut bytes = vec![0; 10_000];
        fill(3, 5, &mut bytes);
        assert_eq!(first_wrong(3, 5, &bytes), None);
        assert_eq!(first_wrong(3, 6, &bytes), Some(6));
        bytes[9_001] ^= 1;
        assert_eq!(first_wrong(3, 5, &bytes), Some(9_006));
    }
}
