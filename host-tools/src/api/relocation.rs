//! Bodies about moving many services at once.

use serde::{Deserialize, Serialize};

/// Moves at one time, unless asked for otherwise.
pub const DEFAULT_PARALLEL: u32 = 2;

/// `POST /v1/nodes/{name}/drain` and `POST /v1/rebalance`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RelocateRequest {
    /// Most moves at one time; [`DEFAULT_PARALLEL`] if `None`.
    #[serde(default)]
    pub parallel: Option<u32>,
    /// Only say what would be done.
    #[serde(default)]
    pub dry_run: bool,
}

/// One line of the event stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum RelocateEvent {
    /// What is to move; nothing has happened yet.
    Begun {
        /// Names of the services.
        services: Vec<String>,
    },
    /// In a dry run: where a service would go.
    Planned {
        /// Name of the service.
        service: String,
        /// From where.
        from: String,
        /// To where.
        to: String,
    },
    /// A move has begun.
    Moving {
        /// Name of the service.
        service: String,
        /// To where.
        to: String,
        /// Id of the move.
        migration: String,
    },
    /// A service runs elsewhere.
    Moved {
        /// Name of the service.
        service: String,
        /// Where.
        to: String,
        /// From the order to freeze to the answer that the service runs again, in microseconds.
        freeze_to_resume_us: u64,
    },
    /// Another node answers for a service that sleeps.
    Held {
        /// Name of the service.
        service: String,
        /// Which.
        to: String,
    },
    /// A service could not be moved.
    Stayed {
        /// Name of the service.
        service: String,
        /// Why, and where it runs.
        reason: String,
    },
    /// Nothing more happens.
    Ended {
        /// Services moved, those that sleep included.
        moved: u32,
        /// Services that could not be.
        stayed: u32,
    },
}
