//! When to stop copying pages of a running service and drain it.

/// Bounds of the precopy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Most rounds, the full one included.
    pub max_rounds: u32,
    /// A round that found at most this many pages is small enough to be the last.
    pub small_pages: u32,
}

impl Default for Policy {
    /// 128 pages are 512 KiB: a few milliseconds on a gigabit line.
    fn default() -> Self {
        Self { max_rounds: 8, small_pages: 128 }
    }
}

impl Policy {
    /// Whether another round is worth it after round number `round` (from 1) that found `dirty`
    /// pages where the round before found `before`.
    ///
    /// A round that found more than three quarters of the round before does not converge: the
    /// service writes as fast as pages are copied.
    #[must_use]
    pub fn goes_on(&self, round: u32, before: Option<u32>, dirty: u32) -> bool {
        let small = dirty <= self.small_pages;
        let shrinks = before.is_none_or(|before| u64::from(dirty) * 4 <= u64::from(before) * 3);
        round < self.max_rounds && !small && shrinks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy { max_rounds: 4, small_pages: 10 };

    #[test]
    fn ends_when_small() {
        assert!(!POLICY.goes_on(1, None, 10));
        assert!(POLICY.goes_on(1, None, 11));
    }

    #[test]
    fn ends_when_it_no_longer_shrinks() {
        assert!(POLICY.goes_on(2, Some(100), 75));
        assert!(!POLICY.goes_on(2, Some(100), 76));
        assert!(!POLICY.goes_on(2, Some(u32::MAX), u32::MAX));
    }

    #[test]
    fn ends_after_the_last_round() {
        assert!(POLICY.goes_on(3, Some(1000), 100));
        assert!(!POLICY.goes_on(4, Some(1000), 100));
    }
}
