//! What is kept of a service.

use serde::{Deserialize, Serialize};

use crate::api::{Digest32, ServiceSpec};
use crate::holder::OnSyn;

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
    /// Nobody, as above; meanwhile a holder answers for its connections.
    Sleeping(Sleep),
    /// The agent of this node, once nobody answers for the service any more: it is filled from the
    /// snapshot and waits to be told. Until it runs, the snapshot is what the service is.
    Waking {
        /// The node's name.
        name: String,
        /// What it wakes from.
        sleep: Sleep,
    },
}

/// A suspended service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sleep {
    /// Digest of its snapshot.
    pub digest: Digest32,
    /// Node that answers for it.
    pub holder: String,
    /// What becomes of new connections.
    pub on_syn: OnSyn,
    /// Connections in it.
    pub connections: u32,
    /// When it fell asleep, in microseconds since the Unix epoch.
    pub since_us: u64,
}

impl Ownership {
    /// The owning node.
    #[must_use]
    pub fn node(&self) -> Option<&str> {
        match self {
            Self::Node { name } | Self::Waking { name, .. } => Some(name),
            Self::Snapshot { .. } | Self::Sleeping(_) => None,
        }
    }

    /// The sleep from which it has not woken yet.
    #[must_use]
    pub fn sleep(&self) -> Option<&Sleep> {
        match self {
            Self::Sleeping(sleep) | Self::Waking { sleep, .. } => Some(sleep),
            Self::Node { .. } | Self::Snapshot { .. } => None,
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
