//! What a benchmark finds: a figure of Ferry, the same of a peer measured in the same run, and the goal for the
//! ratio of the two.

use serde::{Deserialize, Serialize};

/// Repeated measurements of one thing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sample(pub Vec<f64>);

impl Sample {
    /// Value below which `part` (0 to 1) of the measurements lie; the lower of two. `None` of no measurements.
    pub fn quantile(&self, part: f64) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().checked_sub(1)?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an index within the sample"
        )]
        sorted.get((last as f64 * part).floor() as usize).copied()
    }

    /// The middle one.
    pub fn median(&self) -> Option<f64> {
        self.quantile(0.5)
    }

    /// The largest one.
    pub fn max(&self) -> Option<f64> {
        self.quantile(1.0)
    }
}

/// What the ratio of Ferry's median to the peer's should be; without a peer, the median itself.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

impl Goal {
    pub fn reached(self, value: f64) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
        }
    }
}

/// A peer's measurements of the same thing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    /// As the report names it: `QEMU, tuned`.
    pub name: String,
    pub sample: Sample,
}

/// One row of the report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// Part of the report: `move`, `paper`, `serving`, `cost`.
    pub section: String,
    /// What was measured: `added gap, ping-pong, 100 connections`.
    pub name: String,
    /// `ms`, `bytes`, `requests/s`, …
    pub unit: String,
    /// Ferry's measurements.
    pub ferry: Sample,
    /// `None` where a goal stands by itself, or where there is nothing to compare with.
    pub peer: Option<Peer>,
    /// `None` for what is only reported.
    pub goal: Option<Goal>,
    /// What to know when reading it: what holds a figure back that misses its goal.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

impl Figure {
    /// Ferry's median, as a ratio to the peer's if there is one. `None` if one of them was not measured, or is 0.
    pub fn ratio(&self) -> Option<f64> {
        let ours = self.ferry.median()?;
        match &self.peer {
            Some(peer) => {
                peer.sample.median().filter(|theirs| *theirs > 0.0).map(|theirs| ours / theirs)
            }
            None => Some(ours),
        }
    }

    /// Whether the goal is reached; `None` without a goal or without measurements.
    pub fn reached(&self) -> Option<bool> {
        Some(self.goal?.reached(self.ratio()?))
    }
}

/// What no run may show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// Connections of Ferry's clients that were reset.
    pub resets: usize,
    /// Connections of Ferry's clients with a wrong, missing or surplus byte.
    pub damaged: usize,
    /// Connections of Ferry's clients that failed in any way.
    pub failed: usize,
}

impl Damage {
    /// Connections of which something went wrong.
    pub fn connections(self) -> usize {
        self.resets + self.damaged + self.failed
    }

    /// Counts what went wrong elsewhere too.
    pub fn add(&mut self, other: Self) {
        self.resets += other.resets;
        self.damaged += other.damaged;
        self.failed += other.failed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(ours: &[f64], theirs: Option<&[f64]>, goal: Option<Goal>) -> Figure {
        let peer =
            theirs.map(|theirs| Peer { name: "other".into(), sample: Sample(theirs.into()) });
        Figure {
            section: "move".into(),
            name: "gap".into(),
            unit: "ms".into(),
            ferry: Sample(ours.into()),
            peer,
            goal,
            note: String::new(),
        }
    }

    #[test]
    fn quantiles_are_measurements_whatever_their_order() {
        let sample = Sample(vec![5.0, 1.0, 4.0, 2.0, 3.0]);
        assert_eq!((sample.median(), sample.max()), (Some(3.0), Some(5.0)));
        assert_eq!((sample.quantile(0.0), sample.quantile(0.99)), (Some(1.0), Some(4.0)));
        assert_eq!(Sample(vec![1.0, 2.0]).median(), Some(1.0), "the lower of two");
        assert_eq!(Sample::default().median(), None);
    }

    #[test]
    fn a_ratio_needs_both_sides_and_a_goal_needs_a_ratio() {
        let at_most = Some(Goal::AtMost(0.5));
        let half = figure(&[2.0], Some(&[4.0]), at_most);
        assert_eq!((half.ratio(), half.reached()), (Some(0.5), Some(true)));
        let more = figure(&[2.1], Some(&[4.0]), at_most);
        assert_eq!(more.reached(), Some(false));
        assert_eq!(figure(&[2.0], Some(&[4.0]), Some(Goal::AtLeast(0.6))).reached(), Some(false));
        assert_eq!(figure(&[2.0], None, Some(Goal::AtLeast(2.0))).reached(), Some(true));
        assert_eq!(figure(&[2.0], Some(&[4.0]), None).reached(), None);
        for theirs in [&[][..], &[0.0]] {
            let none = figure(&[2.0], Some(theirs), at_most);
            assert_eq!((none.ratio(), none.reached()), (None, None), "{theirs:?}");
        }
        assert_eq!(
            figure(&[], Some(&[4.0]), at_most).reached(),
            None,
            "not measured is not reached"
        );
    }
}
