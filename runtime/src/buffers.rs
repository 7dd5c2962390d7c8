//! How the heap is shared between connections' buffers and the service.
//!
//! A connection costs a service memory after it was made: where it is accepted, and again where it is used. So
//! new connections stop short of the heap's end, and a service accepts only while there is room to serve.

use ferry_protocol::layout::PAGE_SIZE;

/// Largest buffer of a connection in each direction: the largest window that needs no scaling.
pub const MAX: usize = 65_535;
/// Least buffer: below it a connection is refused.
pub const MIN: usize = 4096;

/// What is kept for the service of a heap of middling size: enough for hundreds of requests at once.
const MIDDLING_RESERVE: usize = 4 << 20;

/// Bytes of a heap of `total` bytes that new connections' buffers leave to the service: an eighth of a small one,
/// a 32nd of a large one.
fn reserve(total: usize) -> usize {
    (total / 8).min(MIDDLING_RESERVE).max(total / 32)
}

/// Bytes of each of the two buffers of a new connection, by what is free of the heap's `total` bytes: large
/// while there are few connections, then falling with the fourth power of the free part. Half the heap
/// serves connections with large buffers, the other half some thousands more. `None` where what is left is
/// the service's.
pub fn size(free: usize, total: usize) -> Option<usize> {
    let kept = reserve(total);
    let (free, total) = (free.saturating_sub(kept), total - kept);
    let part = (free as u64 * 256 / total.max(1) as u64).min(256);
    let size = ((MAX as u64 + 1) * part.pow(4)) >> 32;
    let size = (size as usize).next_multiple_of(PAGE_SIZE).clamp(MIN, MAX);
    (free >= 2 * size).then_some(size)
}

/// Whether a service may accept a connection with `free` of the heap's `total` bytes left: half the reserve
/// is for those that are being served.
pub fn admits(free: usize, total: usize) -> bool {
    free >= reserve(total) / 2
}

/// What must be free for everybody to read: a part of what is for those that are being served, and enough for some
/// dozens of requests.
pub fn input_floor(total: usize) -> usize {
    reserve(total) / 4
}

/// Whether a shortage is over: later than connections are accepted again, so that it is not said anew for each
/// that ends.
pub fn recovered(free: usize, total: usize) -> bool {
    free >= reserve(total) / 4 * 3
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Connections until no more are made in a heap of `total` bytes, each of which costs the service
    /// `service` bytes when it is accepted; and how many of them are.
    fn connections(total: usize, service: usize) -> (usize, usize) {
        let (mut free, mut made, mut accepted) = (total, 0, 0);
        while let Some(size) = size(free, total) {
            free -= 2 * size.next_multiple_of(PAGE_SIZE);
            made += 1;
            if admits(free, total) {
                free -= service;
                accepted += 1;
            }
        }
        (made, accepted)
    }

    #[test]
    fn the_first_connection_gets_the_largest_buffers() {
        assert_eq!(size(30 << 20, 30 << 20), Some(MAX));
        assert_eq!(size(1 << 30, 1 << 30), Some(MAX));
    }

    #[test]
    fn what_is_left_at_the_end_is_the_services() {
        let total = 30 << 20;
        let kept = reserve(total);
        assert_eq!(size(kept + 2 * MIN, total), Some(MIN));
        assert_eq!(size(kept + 2 * MIN - 1, total), None);
        assert_eq!((size(0, total), size(0, 0)), (None, None));
        assert!(admits(kept / 2, total));
        assert!(!admits(kept / 2 - 1, total));
        assert!(recovered(kept, total) && !recovered(kept / 2, total));
        assert_eq!(input_floor(total), kept / 4);
    }

    #[test]
    fn a_small_guest_holds_two_thousand_connections_and_a_larger_one_ten_thousand() {
        assert!(connections(30 << 20, 1_000).0 >= 1_800, "{:?}", connections(30 << 20, 1_000));
        assert!(connections(158 << 20, 1_700).0 >= 10_000, "{:?}", connections(158 << 20, 1_700));
    }

    #[test]
    fn connections_that_cost_the_service_much_leave_it_room() {
        for service in [4, 20, 64, 400].map(|kib| kib << 10) {
            for total in [30 << 20, 158 << 20, 1 << 30] {
                let (made, accepted) = connections(total, service);
                assert!(accepted >= made * 3 / 4, "{accepted} of {made} with {service} bytes each");
            }
        }
    }
}
