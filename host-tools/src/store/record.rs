//! What is kept of a service.

use serde::{Deserialize, Serialize};

use crate::api::{Digest32, ServiceSpec};

/// Who may run a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ownership {
    /// The agent of this node.
    Node {
        /// Its name.
        name: String,
    },
    /// Nobody: its state lies in the workspace repository.
    Snapshot {
        /// Digest of the snapshot.
        digest: Digest32,
    },
}

impl Ownership {
    /// The owning node.
    #[must_use]
    pub fn node(&self) -> Option<&str> {
        match self {
            Self::Node { name } => Some(name),
            Self::Snapshot { .. } => None,
        }
    }
}

/// A service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// What it is.
    pub spec: ServiceSpec,
    /// Who may run it.
    pub owner: Ownership,
    /// Number of the ownership; grows by one at each change of owner.
    pub epoch: u64,
    /// The move that is under way.
    pub migration: Option<String>,
    /// When it was first started, in microseconds since the Unix epoch.
    pub created_us: u64,
}
