//! Bodies of requests and answers that concern suspended services.

use serde::{Deserialize, Serialize};

use super::spec::{Digest32, ServiceSpec};
use crate::holder::{Counts, HeldTable, OnSyn};

/// `POST /v1/services/{name}/suspend`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SuspendRequest {
    /// What becomes of new connections.
    #[serde(default)]
    pub on_syn: OnSyn,
    /// Node that answers for it; by default where it runs.
    #[serde(default)]
    pub on: Option<String>,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suspended {
    /// Digest of the snapshot in the workspace repository.
    pub snapshot: Digest32,
    /// Its length in bytes.
    pub bytes: u64,
    /// Connections in it.
    pub connections: u32,
    /// Node that answers for it.
    pub holder: String,
    /// What becomes of new connections.
    pub on_syn: OnSyn,
    /// Why nobody answers for it yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unheld: Option<String>,
}

/// `POST /v1/services/{name}/resume`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct WakeRequest {
    /// Node to go on at; by default the one that answers for it.
    #[serde(default)]
    pub on: Option<String>,
}

/// `POST /v1/services/{name}/wake`: a client has asked for a sleeping service.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Knock {
    /// Id of the service.
    pub id: String,
    /// Ownership number of its sleep.
    pub epoch: u64,
}

/// `POST /v1/holders`: the manager has an agent answer for a service.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HoldRequest {
    /// The service.
    pub spec: ServiceSpec,
    /// Ownership number of its sleep.
    pub epoch: u64,
    /// What becomes of new connections.
    pub on_syn: OnSyn,
    /// What to answer with.
    pub table: HeldTable,
}

/// `DELETE /v1/holders/{name}`: nobody may answer for a service under a lower ownership number.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReleaseRequest {
    /// Id of the service.
    pub id: String,
    /// Holders with a lower number are ended, and none is begun any more.
    pub below: u64,
}

/// A service that a node answers for, or has parked, as its reports name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Holding {
    pub name: String,
    pub id: String,
    pub epoch: u64,
}

/// A holder, as its agent knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct HolderView {
    #[serde(flatten)]
    pub holding: Holding,
    pub on_syn: OnSyn,
    pub counts: Counts,
    /// Why it does not answer any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// A service's sleep as `inspect` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SleepView {
    /// Digest of its snapshot.
    pub snapshot: Digest32,
    /// Node that answers for it.
    pub node: String,
    /// What becomes of new connections.
    pub on_syn: OnSyn,
    /// Connections in it.
    pub connections: u32,
    /// When it fell asleep.
    pub since_us: u64,
    /// The holder, unless nobody answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<HolderView>,
}
