//! How large a new connection's buffers are.

use ferry_protocol::layout::PAGE_SIZE;

/// Largest buffer of a connection in each direction: the largest window that needs no scaling.
pub const MAX: usize = 65_535;
/// Least buffer: below it a connection is refused.
pub const MIN: usize = 4096;

/// Bytes of each of the two buffers, by what is free of the heap's `total` bytes: large while there are
/// few connections, then falling with the fourth power of the free part. Half the heap serves
/// connections with large buffers, the other half some thousands more.
pub fn size(free: usize, total: usize) -> usize {
    let part = (free as u64 * 256 / total.max(1) as u64).min(256);
    let size = ((MAX as u64 + 1) * part.pow(4)) >> 32;
    (size as usize).next_multiple_of(PAGE_SIZE).clamp(MIN, MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Connections until the heap of `total` bytes is used up.
    fn connections(total: usize) -> usize {
        let mut free = total;
        let mut count = 0;
        while free >= 2 * size(free, total) {
            free -= 2 * size(free, total).next_multiple_of(PAGE_SIZE);
            count += 1;
        }
        count
    }

    #[test]
    fn the_first_connection_gets_the_largest_buffers() {
        assert_eq!(size(30 << 20, 30 << 20), MAX);
        assert_eq!(size(0, 30 << 20), MIN);
        assert_eq!(size(0, 0), MIN);
    }

    #[test]
    fn a_small_guest_holds_two_thousand_connections_and_a_larger_one_ten_thousand() {
        assert!(connections(30 << 20) >= 2_000, "{}", connections(30 << 20));
        assert!(connections(158 << 20) >= 12_000, "{}", connections(158 << 20));
    }
}
