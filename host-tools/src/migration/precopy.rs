//! When to stop copying pages of a running service and drain it.
//!
//! What users bound is the **downtime**: the time in which the pages that are dirty at the freeze are copied
//! and nothing runs. It is estimated as QEMU does (`expected-downtime`): the pages that the service will have
//! written by then, by the rate at which they are copied.

use serde::{Deserialize, Serialize};

/// How long a short enough downtime is waited for where the user does not say, in microseconds.
const DEFAULT_TIMEOUT_US: u64 = 100_000_000;

/// What a user allows a move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Longest estimated copying while the service is frozen, in microseconds; without it, copying goes on
    /// while rounds shrink.
    pub max_downtime_us: Option<u64>,
    /// Longest time from the beginning of the move to the drain, in microseconds.
    pub timeout_us: Option<u64>,
    /// What happens then.
    pub on_timeout: OnTimeout,
}

/// What happens when a move is not ready to drain in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum OnTimeout {
    /// The move ends; the source serves on.
    #[default]
    Cancel,
    /// The service is moved now, with whatever downtime that takes.
    Force,
}

/// A round that has been sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round {
    /// Its number, from 1, which is the full one.
    pub number: u32,
    /// Pages it sent: those written during the round before it.
    pub pages: u32,
    /// How long it took, in microseconds.
    pub took_us: u64,
}

/// What is done after a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Another round.
    Again,
    /// The service is drained and moved.
    Switch,
    /// The move ends.
    GiveUp {
        /// Why.
        reason: String,
    },
}

/// Bounds of the precopy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Most rounds, the full one included, where no downtime is asked for.
    pub max_rounds: u32,
    /// A round that found at most this many pages is small enough to be the last, where none is asked for.
    pub small_pages: u32,
    /// What the user allows.
    pub limits: Limits,
}

impl Default for Policy {
    /// 128 pages are 512 KiB: a few milliseconds on a gigabit line.
    fn default() -> Self {
        Self { max_rounds: 8, small_pages: 128, limits: Limits::default() }
    }
}

impl Policy {
    /// What to do after `last`; `before` is the round before it, `now_us` the time since the move began.
    #[must_use]
    pub fn after(&self, before: Option<Round>, last: Round, now_us: u64) -> Verdict {
        let estimate_us = expected_downtime_us(before, last);
        let ready = match self.limits.max_downtime_us {
            Some(max_us) => estimate_us.is_some_and(|estimate_us| estimate_us <= max_us),
            None => !self.shrinks(before, last),
        };
        if ready {
            Verdict::Switch
        } else if self.timeout_us().is_none_or(|limit_us| now_us < limit_us) {
            Verdict::Again
        } else if self.forces() {
            Verdict::Switch
        } else {
            Verdict::GiveUp { reason: self.why_not_ready(estimate_us) }
        }
    }

    /// Whether another round is worth it where only the size of the last one counts.
    ///
    /// A round that found more than three quarters of the round before does not converge: the
    /// service writes as fast as pages are copied.
    fn shrinks(&self, before: Option<Round>, last: Round) -> bool {
        let small = last.pages <= self.small_pages;
        let fewer = |before: Round| u64::from(last.pages) * 4 <= u64::from(before.pages) * 3;
        last.number < self.max_rounds && !small && before.is_none_or(fewer)
    }

    /// When a move has to be ready to drain, in microseconds since it began. A downtime is not waited for
    /// without end.
    #[must_use]
    pub fn timeout_us(&self) -> Option<u64> {
        let default = self.limits.max_downtime_us.map(|_| DEFAULT_TIMEOUT_US);
        self.limits.timeout_us.or(default)
    }

    /// Whether a service is moved when its time is up, however long it then stands still.
    #[must_use]
    pub fn forces(&self) -> bool {
        self.limits.on_timeout == OnTimeout::Force
    }

    /// Why a move whose time is up is not ready.
    #[must_use]
    pub fn why_not_ready(&self, estimate_us: Option<u64>) -> String {
        let after = self.timeout_us().unwrap_or_default().div_ceil(1_000_000);
        let Some(max_us) = self.limits.max_downtime_us else {
            return format!(
                "after {after} s there still were pages to copy; allow more (--timeout), or have it moved all \
                 the same (--on-timeout force)"
            );
        };
        let found = match estimate_us {
            Some(us) => format!("would stand still for about {} ms", us.div_ceil(1000)),
            None => "was not known to stand still for a time short enough".into(),
        };
        format!(
            "after {after} s the service {found}, allowed are {} ms; allow more (--max-downtime, \
             --timeout), or have it moved all the same (--on-timeout force)",
            max_us / 1000
        )
    }
}

/// How long the pages written since the last scan would take to copy: those that a round as long as the last
/// one leaves behind. Unknown after the full round, which says nothing of how fast the service writes.
fn expected_downtime_us(before: Option<Round>, last: Round) -> Option<u64> {
    let before = before?;
    if last.pages == 0 {
        return Some(0);
    }
    // Written per microsecond: last.pages / before.took. Left: that × last.took. Copied per microsecond:
    // last.pages / last.took. The pages cancel out.
    let last_us = u128::from(last.took_us);
    Some((last_us * last_us / u128::from(before.took_us.max(1))) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy { max_rounds: 4, small_pages: 10, limits: Limits::NONE };

    impl Limits {
        const NONE: Self =
            Self { max_downtime_us: None, timeout_us: None, on_timeout: OnTimeout::Cancel };
    }

    fn round(number: u32, pages: u32) -> Round {
        Round { number, pages, took_us: 1000 }
    }

    fn after(policy: Policy, before: Option<u32>, number: u32, pages: u32) -> Verdict {
        let before = before.map(|pages| round(number - 1, pages));
        policy.after(before, round(number, pages), 0)
    }

    #[test]
    fn ends_when_small() {
        assert_eq!(after(POLICY, None, 1, 10), Verdict::Switch);
        assert_eq!(after(POLICY, None, 1, 11), Verdict::Again);
    }

    #[test]
    fn ends_when_it_no_longer_shrinks() {
        assert_eq!(after(POLICY, Some(100), 2, 75), Verdict::Again);
        assert_eq!(after(POLICY, Some(100), 2, 76), Verdict::Switch);
        assert_eq!(after(POLICY, Some(u32::MAX), 2, u32::MAX), Verdict::Switch);
    }

    #[test]
    fn ends_after_the_last_round() {
        assert_eq!(after(POLICY, Some(1000), 3, 100), Verdict::Again);
        assert_eq!(after(POLICY, Some(1000), 4, 100), Verdict::Switch);
    }

    /// A service that writes `dirty_rate` pages per second, copied at `copy_rate`: how many rounds, and with
    /// how many pages left it is moved or given up.
    fn simulate(limits: Limits, copy_rate: f64, dirty_rate: f64) -> (u32, f64, Verdict) {
        let policy = Policy { limits, ..Policy::default() };
        let (mut pages, mut now_us, mut before) = (100_000.0_f64, 0, None);
        for number in 1.. {
            let took_us = (pages / copy_rate * 1e6) as u64 + 1;
            now_us += took_us;
            let last = Round { number, pages: pages as u32, took_us };
            pages = (dirty_rate * took_us as f64 / 1e6).min(100_000.0);
            match policy.after(before, last, now_us) {
                Verdict::Again => before = Some(last),
                verdict => return (number, pages / copy_rate * 1e6, verdict),
            }
        }
        unreachable!("a u32 has an end")
    }

    fn limits(max_downtime_us: u64, timeout_s: u64, on_timeout: OnTimeout) -> Limits {
        let timeout_us = Some(timeout_s * 1_000_000);
        Limits { max_downtime_us: Some(max_downtime_us), timeout_us, on_timeout }
    }

    #[test]
    fn copies_until_the_downtime_is_short_enough() {
        for max_us in [100_000, 10_000, 1_000] {
            let (_, downtime_us, verdict) =
                simulate(limits(max_us, 60, OnTimeout::Cancel), 50_000.0, 10_000.0);
            assert_eq!(verdict, Verdict::Switch);
            assert!(downtime_us <= max_us as f64 * 1.01, "{downtime_us} us for {max_us}");
        }
        let rounds = |max_us| simulate(limits(max_us, 60, OnTimeout::Cancel), 50_000.0, 10_000.0).0;
        assert!(rounds(1_000) > rounds(100_000), "a shorter downtime takes more rounds");
    }

    #[test]
    fn a_service_that_writes_too_fast_is_given_up_or_forced_when_time_is_up() {
        let busy = |on_timeout| simulate(limits(10_000, 20, on_timeout), 50_000.0, 60_000.0);
        let (rounds, _, verdict) = busy(OnTimeout::Cancel);
        assert!(rounds >= 10, "{rounds}");
        let Verdict::GiveUp { reason } = verdict else { panic!("{verdict:?}") };
        assert!(reason.contains("allowed are 10 ms"), "{reason}");
        assert_eq!(busy(OnTimeout::Force).2, Verdict::Switch);
    }

    #[test]
    fn the_full_round_tells_nothing_of_the_downtime() {
        let policy = Policy { limits: limits(u64::MAX, 60, OnTimeout::Cancel), ..POLICY };
        assert_eq!(after(policy, None, 1, 5), Verdict::Again);
        assert_eq!(after(policy, Some(5), 2, 0), Verdict::Switch);
    }

    #[test]
    fn without_a_downtime_only_the_copying_has_to_end_in_time() {
        let limits = Limits { timeout_us: Some(5), ..Limits::NONE };
        let policy = Policy { limits, ..POLICY };
        let (before, last) = (Some(round(1, 100)), round(2, 50));
        assert_eq!(policy.after(before, last, 4), Verdict::Again);
        assert!(matches!(policy.after(before, last, 5), Verdict::GiveUp { .. }));
        assert_eq!(policy.after(before, round(2, 10), 5), Verdict::Switch);
        let forced = Limits { on_timeout: OnTimeout::Force, ..limits };
        assert_eq!(Policy { limits: forced, ..POLICY }.after(before, last, 5), Verdict::Switch);
    }

    #[test]
    fn a_downtime_is_not_waited_for_without_end() {
        assert_eq!(POLICY.timeout_us(), None);
        let limits = Limits { max_downtime_us: Some(1), ..Limits::NONE };
        assert_eq!(Policy { limits, ..POLICY }.timeout_us(), Some(DEFAULT_TIMEOUT_US));
    }
}
