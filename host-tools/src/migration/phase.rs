//! The phase table.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A phase of a move, in the order in which they happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the table says what each does")]
pub enum Phase {
    Request,
    Prepare,
    Precopy,
    Drain,
    Freeze,
    Transfer,
    Commit,
    Restore,
    Resume,
    Remove,
}

/// Where the work of a phase is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Place {
    Manager,
    Source,
    Destination,
    Both,
}

/// What a failure in a phase leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaves {
    /// Nothing was changed anywhere.
    Nothing,
    /// The service runs on the source, the standby is gone.
    SourceServes,
    /// Source and destination both stay frozen until the store has said who owns the service.
    Undecided,
    /// The destination owns the service. If it is known to have ended, the source's frozen copy takes
    /// the service back under the next epoch; else that copy is kept.
    FrozenCopy,
    /// The service runs on the destination; something is left to be tidied up on the source.
    DestinationServes,
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Which phase.
    pub phase: Phase,
    /// Step of the paper (figure 2) it stands for.
    pub paper: &'static str,
    /// Where the work is done.
    pub place: Place,
    /// What is done, for help texts and the timeline.
    pub does: &'static str,
    /// Longest time it may take.
    pub deadline: Duration,
    /// What its failure leaves.
    pub leaves: Leaves,
}

/// Longest time a drain may take: beyond it TCP repairs what was missed.
pub const DRAIN_LIMIT: Duration = Duration::from_millis(500);

/// All phases in order.
pub const TABLE: [Row; 10] = [
    Row {
        phase: Phase::Request,
        paper: "1",
        place: Place::Manager,
        does: "destination asked: image, memory, name",
        deadline: Duration::from_secs(20),
        leaves: Leaves::Nothing,
    },
    Row {
        phase: Phase::Prepare,
        paper: "6",
        place: Place::Destination,
        does: "standby booted, its memory empty, its NIC holding frames",
        deadline: Duration::from_secs(30),
        leaves: Leaves::SourceServes,
    },
    Row {
        phase: Phase::Precopy,
        paper: "",
        place: Place::Both,
        does: "pages copied while the service runs",
        deadline: Duration::from_secs(120),
        leaves: Leaves::SourceServes,
    },
    Row {
        phase: Phase::Drain,
        paper: "2, 3",
        place: Place::Source,
        does: "windows closed, what was in flight received",
        deadline: Duration::from_secs(5),
        leaves: Leaves::SourceServes,
    },
    Row {
        phase: Phase::Freeze,
        paper: "3-5",
        place: Place::Source,
        does: "service parked, last pages listed",
        deadline: Duration::from_secs(5),
        leaves: Leaves::SourceServes,
    },
    Row {
        phase: Phase::Transfer,
        paper: "7",
        place: Place::Both,
        does: "last pages sent, digests compared, source stopped",
        deadline: Duration::from_secs(20),
        leaves: Leaves::SourceServes,
    },
    Row {
        phase: Phase::Commit,
        paper: "",
        place: Place::Manager,
        does: "ownership moved in one durable transaction",
        deadline: Duration::from_secs(5),
        leaves: Leaves::Undecided,
    },
    Row {
        phase: Phase::Restore,
        paper: "8",
        place: Place::Destination,
        does: "port opened, guest told to take over",
        deadline: Duration::from_secs(10),
        leaves: Leaves::FrozenCopy,
    },
    Row {
        phase: Phase::Resume,
        paper: "9",
        place: Place::Destination,
        does: "held frames taken, address announced, windows open",
        deadline: Duration::from_secs(10),
        leaves: Leaves::FrozenCopy,
    },
    Row {
        phase: Phase::Remove,
        paper: "4",
        place: Place::Source,
        does: "source QEMU ended, its memory erased",
        deadline: Duration::from_secs(20),
        leaves: Leaves::DestinationServes,
    },
];

impl Phase {
    /// Its row of the table.
    #[must_use]
    pub fn row(self) -> &'static Row {
        &TABLE[self as usize]
    }

    /// Its name as the commands print it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Prepare => "prepare",
            Self::Precopy => "precopy",
            Self::Drain => "drain",
            Self::Freeze => "freeze",
            Self::Transfer => "transfer",
            Self::Commit => "commit",
            Self::Restore => "restore",
            Self::Resume => "resume",
            Self::Remove => "remove",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_phase_stands_in_its_own_row() {
        for (index, row) in TABLE.iter().enumerate() {
            assert_eq!(row.phase as usize, index);
            assert_eq!(row.phase.row().phase, row.phase);
            assert!(row.deadline > Duration::ZERO);
            assert_eq!(serde_json::to_value(row.phase).unwrap(), row.phase.name());
        }
    }

    #[test]
    fn up_to_the_commit_every_failure_leaves_the_source() {
        for row in &TABLE {
            let before = matches!(row.leaves, Leaves::Nothing | Leaves::SourceServes);
            assert_eq!(before, row.phase < Phase::Commit, "{}", row.phase);
        }
    }
}
