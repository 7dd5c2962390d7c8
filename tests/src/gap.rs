//! Gaps: how long a client waits without any progress. This is what users feel of a move.

use std::time::{Duration, Instant};

/// Measures the gaps of one connection, by windows: between two [`Meter::take`].
#[derive(Clone, Debug)]
pub struct Meter {
    /// Since when the client waits; `None` while it has nothing to wait for.
    waiting_since: Option<Instant>,
    longest: Duration,
}

impl Default for Meter {
    fn default() -> Self {
        Self { waiting_since: None, longest: Duration::ZERO }
    }
}

impl Meter {
    /// The client begins to wait, if it does not wait already.
    pub fn wait(&mut self, now: Instant) {
        self.waiting_since.get_or_insert(now);
    }

    /// There was progress, and the client goes on waiting for more.
    pub fn progress(&mut self, now: Instant) {
        self.note(now);
        self.waiting_since = Some(now);
    }

    /// There was progress, and now the client waits for nothing.
    pub fn satisfied(&mut self, now: Instant) {
        self.note(now);
        self.waiting_since = None;
    }

    /// The longest gap of the window so far, counting one that is still open. The window goes on.
    #[must_use]
    pub fn longest(&self, now: Instant) -> Duration {
        let open = self.waiting_since.map(|since| now.saturating_duration_since(since));
        self.longest.max(open.unwrap_or_default())
    }

    fn note(&mut self, now: Instant) {
        if let Some(since) = self.waiting_since {
            self.longest = self.longest.max(now.saturating_duration_since(since));
        }
    }

    /// The longest gap of the window that ends now, counting one that is still open; begins the next
    /// window. An open gap keeps its beginning: it counts in full where it ends.
    pub fn take(&mut self, now: Instant) -> Duration {
        self.note(now);
        std::mem::take(&mut self.longest)
    }
}

/// Median and maximum of some figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Spread {
    /// The middle one (the lower of two).
    pub median: f64,
    /// The largest one.
    pub max: f64,
}

impl Spread {
    /// Of no figures: zeros.
    #[must_use]
    pub fn of(figures: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = figures.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        match sorted.last() {
            Some(max) => Self { median: sorted[(sorted.len() - 1) / 2], max: *max },
            None => Self::default(),
        }
    }

    /// Of durations, in milliseconds.
    #[must_use]
    pub fn of_durations(durations: impl IntoIterator<Item = Duration>) -> Self {
        Self::of(durations.into_iter().map(|d| d.as_secs_f64() * 1e3))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_and_an_open_gap() {
        let t = Instant::now();
        let at = |ms| t + Duration::from_millis(ms);
        let mut meter = Meter::default();
        meter.wait(at(0));
        meter.progress(at(5));
        meter.progress(at(6));
        assert_eq!(meter.take(at(8)), Duration::from_millis(5));
        // Looked at, and not forgotten.
        assert_eq!(meter.longest(at(9)), Duration::from_millis(3));
        // Open since 6: 4 ms at the end of this window, 14 ms in the one in which it ends.
        assert_eq!(meter.take(at(10)), Duration::from_millis(4));
        meter.satisfied(at(20));
        // Nothing is waited for: no gap.
        assert_eq!(meter.take(at(100)), Duration::from_millis(14));
        assert_eq!(meter.take(at(200)), Duration::ZERO);
    }

    #[test]
    fn spread() {
        assert_eq!(Spread::of([]), Spread { median: 0.0, max: 0.0 });
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Spread { median: 2.0, max: 3.0 });
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]), Spread { median: 2.0, max: 4.0 });
    }
}
