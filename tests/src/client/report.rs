//! What clients print, for people and for the harness.

use std::collections::BTreeMap;
use std::io;

use serde::{Deserialize, Serialize};

use crate::gap::Spread;

/// What went wrong with a connection.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, thiserror::Error,
)]
#[serde(tag = "failure", rename_all = "kebab-case")]
pub enum Failure {
    /// The peer, or something that speaks for it, sent RST.
    #[error("reset by the peer ({doing})")]
    Reset {
        /// What the client was doing.
        doing: String,
    },
    /// The peer closed where it should not.
    #[error("closed by the peer ({doing})")]
    Closed {
        /// What the client was doing.
        doing: String,
    },
    /// A byte that is not the one that belongs there.
    #[error("wrong byte at position {position}")]
    WrongByte {
        /// Where in the stream.
        position: u64,
    },
    /// More or fewer bytes than there should be.
    #[error("{got} bytes instead of {wanted}")]
    Length {
        /// How many should have come.
        wanted: u64,
        /// How many came.
        got: u64,
    },
    /// The digest of the other side differs.
    #[error("SHA-256 {got} instead of {wanted}")]
    Digest {
        /// Ours.
        wanted: String,
        /// Theirs.
        got: String,
    },
    /// No progress for too long.
    #[error("no progress for too long ({doing})")]
    Stalled {
        /// What the client was doing.
        doing: String,
    },
    /// An answer that is not of the protocol.
    #[error("unexpected answer: {what}")]
    Protocol {
        /// What came.
        what: String,
    },
    /// Any other error of the kernel.
    #[error("{what} ({doing})")]
    Other {
        /// What the kernel said.
        what: String,
        /// What the client was doing.
        doing: String,
    },
}

impl Failure {
    /// Sorts an error of the kernel.
    #[must_use]
    pub fn of(error: &io::Error, doing: &str) -> Self {
        let doing = doing.to_owned();
        match error.kind() {
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionRefused => Self::Reset { doing },
            io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe => Self::Closed { doing },
            io::ErrorKind::TimedOut => Self::Stalled { doing },
            _ => Self::Other { what: error.to_string(), doing },
        }
    }
}

/// What a client saw between two marks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// The mark that ended it.
    pub mark: String,
    /// Length of the window in milliseconds.
    pub ms: f64,
    /// Messages answered, or bytes moved: whatever the client counts.
    pub progress: u64,
    /// Over the connections: the longest gap of each, in milliseconds.
    pub gap_ms: Spread,
    /// Connections without a failure so far.
    pub alive: usize,
}

/// A client's last line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct End {
    /// Which client.
    pub client: String,
    /// Connections that were opened, or tried.
    pub connections: usize,
    /// Connections without a failure at the end.
    pub alive: usize,
    /// Messages answered.
    pub round_trips: u64,
    /// Payload bytes received and found right.
    pub bytes_received: u64,
    /// Payload bytes sent and confirmed.
    pub bytes_sent: u64,
    /// Connections that were reset.
    pub resets: usize,
    /// Connections with a wrong, missing or surplus byte, or a wrong digest.
    pub damaged: usize,
    /// Over the connections: the longest gap of each in the whole run, in milliseconds.
    pub gap_ms: Spread,
    /// Length of the run in seconds.
    pub seconds: f64,
    /// Failures by their text, and how often each happened.
    pub failures: BTreeMap<String, usize>,
    /// Digests of what was moved, one per transfer, where the client makes them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sha256: Vec<String>,
}

impl End {
    /// An empty report.
    #[must_use]
    pub fn new(client: &str, connections: usize) -> Self {
        Self {
            client: client.to_owned(),
            connections,
            alive: connections,
            round_trips: 0,
            bytes_received: 0,
            bytes_sent: 0,
            resets: 0,
            damaged: 0,
            gap_ms: Spread::default(),
            seconds: 0.0,
            failures: BTreeMap::new(),
            sha256: Vec::new(),
        }
    }

    /// Counts a connection's failure.
    pub fn failed(&mut self, failure: &Failure) {
        self.alive -= 1;
        match failure {
            Failure::Reset { .. } => self.resets += 1,
            Failure::WrongByte { .. } | Failure::Length { .. } | Failure::Digest { .. } => {
                self.damaged += 1;
            }
            _ => {}
        }
        *self.failures.entry(failure.to_string()).or_default() += 1;
    }

    /// Whether nothing at all went wrong.
    #[must_use]
    pub fn flawless(&self) -> bool {
        self.alive == self.connections && self.failures.is_empty()
    }
}
