//! Bodies about seeing what happens: the present state, and every change of it. Nothing here changes
//! anything.

use serde::{Deserialize, Serialize};

use super::types::{Migration, Node, Service};
use crate::migration::{Phase, TABLE};

/// `GET /v1/overview`: hosts and services at one moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Overview {
    /// The manager's clock, against which the other times are to be read.
    pub now_us: u64,
    /// All nodes, by name.
    pub nodes: Vec<Node>,
    /// All services, by name.
    pub services: Vec<SeenService>,
}

/// A service with what it is busy with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenService {
    /// The service.
    #[serde(flatten)]
    pub service: Service,
    /// Its TCP connections, listening ports left out. While it moves it is not asked, and this is what it
    /// said last; while it sleeps, those that wait for it. `None` if it never has said.
    pub connections: Option<u64>,
}

/// A move with what it is waiting for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenMove {
    /// The move.
    #[serde(flatten)]
    pub migration: Migration,
    /// What it cannot go on without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<String>,
}

/// A row of the phase table, for those who draw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseRow {
    /// Which phase.
    pub phase: Phase,
    /// What is done in it.
    pub does: String,
}

/// `GET /v1/watch`: one event of the stream. Each says all about what it names, so an event that was missed
/// is made good by the next; a stream begins with the whole of the present state.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum WatchEvent {
    /// The first event of a stream.
    Hello {
        /// Version of the manager.
        version: String,
        /// The phases of a move, in order.
        phases: Vec<PhaseRow>,
    },
    /// Hosts and services as they are now.
    Overview(Overview),
    /// The moves under way and the latest of those that have ended, oldest first. Replaces what was known.
    Moves {
        /// The moves.
        moves: Vec<SeenMove>,
    },
    /// A move has begun, entered a phase, or ended.
    Move(SeenMove),
}

impl WatchEvent {
    /// The first event of a stream.
    #[must_use]
    pub fn hello() -> Self {
        let row = |row: &crate::migration::phase::Row| PhaseRow {
            phase: row.phase,
            does: row.does.to_owned(),
        };
        Self::Hello {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            phases: TABLE.iter().map(row).collect(),
        }
    }

    /// Its name in a stream of server-sent events.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello { .. } => "hello",
            Self::Overview(_) => "overview",
            Self::Moves { .. } => "moves",
            Self::Move(_) => "move",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_an_event_is_its_tag() {
        let overview = Overview { now_us: 1, nodes: vec![], services: vec![] };
        for event in [
            WatchEvent::hello(),
            WatchEvent::Overview(overview),
            WatchEvent::Moves { moves: vec![] },
        ] {
            assert_eq!(serde_json::to_value(&event).unwrap()["event"], event.name());
        }
    }
}
