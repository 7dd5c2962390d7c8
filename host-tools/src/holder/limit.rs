//! How much a holder says: two that answer each other must not fill a network.

use std::time::Duration;

/// At least so much time between two answers.
#[derive(Clone, Copy, Debug)]
pub struct Spacing {
    interval: Duration,
    next: Duration,
}

impl Spacing {
    /// The first answer may be given at once.
    #[must_use]
    pub fn new(interval: Duration) -> Self {
        Self { interval, next: Duration::ZERO }
    }

    /// Whether an answer may be given at `now`; if so, it counts as given.
    pub fn take(&mut self, now: Duration) -> bool {
        let may = now >= self.next;
        if may {
            self.next = now + self.interval;
        }
        may
    }
}

/// At most so many answers in a second, and as many at once.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    per_second: u32,
    left: u32,
    begun: Duration,
}

impl Bucket {
    /// A full bucket.
    #[must_use]
    pub fn new(per_second: u32) -> Self {
        Self { per_second, left: per_second, begun: Duration::ZERO }
    }

    /// Whether an answer may be given at `now`; if so, it counts as given.
    pub fn take(&mut self, now: Duration) -> bool {
        if now >= self.begun + Duration::from_secs(1) {
            (self.begun, self.left) = (now, self.per_second);
        }
        let may = self.left > 0;
        self.left = self.left.saturating_sub(1);
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_full_again_after_a_second() {
        let mut bucket = Bucket::new(3);
        let at = Duration::from_millis;
        let mut given = |ms| (0..10).filter(|_| bucket.take(at(ms))).count();
        assert_eq!([given(0), given(999), given(1000), given(1500), given(9999)], [3, 0, 3, 0, 3]);
    }

    #[test]
    fn answers_keep_their_distance() {
        let mut spacing = Spacing::new(Duration::from_millis(100));
        let taken = [0, 1, 99, 100, 150, 250].map(|ms| spacing.take(Duration::from_millis(ms)));
        assert_eq!(taken, [true, false, false, true, false, true]);
    }
}
