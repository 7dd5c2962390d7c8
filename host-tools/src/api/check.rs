//! Bodies about whether a service could be moved.

use serde::{Deserialize, Serialize};

use super::InstanceState;
use super::spec::ServiceSpec;
use crate::qemu::Accel;

/// `POST /v1/services/{name}/check`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CheckRequest {
    /// Destination node.
    pub to: String,
}

/// `POST /v1/check/source`: the manager asks the node that runs a service.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SourceQuestion {
    /// Name of the service.
    pub name: String,
    /// Where the destination's agent listens.
    pub destination: String,
    /// Its name, which its certificate has to say.
    pub destination_name: String,
}

/// What it says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFacts {
    /// Where the instance stands; `None` if there is none.
    pub state: Option<InstanceState>,
    /// A move, checkpoint or stop is under way.
    pub busy: bool,
    /// Why the destination's agent cannot be reached from here; `None` if it can.
    pub unreachable: Option<String>,
    /// The host.
    pub host: HostFacts,
}

/// `POST /v1/check/destination`: the manager asks the node that is to get a service.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DestinationQuestion {
    /// The service.
    pub spec: ServiceSpec,
}

/// What it says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DestinationFacts {
    /// Memory for guests that is not given out, in MiB.
    pub free_mib: u64,
    /// An instance of a service with this name is there already.
    pub occupied: bool,
    /// The image is there; if not, it comes with the move.
    pub image_held: bool,
    /// The host.
    pub host: HostFacts,
}

/// What matters of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// First line of what QEMU says of its version, or why it says nothing.
    pub qemu: Result<String, String>,
    /// How guests are executed.
    pub accel: Accel,
    /// The wall clock, in microseconds since the Unix epoch.
    pub now_us: u64,
}

/// How much something matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    /// As it should be.
    Good,
    /// The service can be moved; users may notice.
    Notice,
    /// The service cannot be moved.
    Refused,
}

/// Something that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What: `service`, `image`, `memory`, `qemu`, `network`, `clock`, `node`.
    pub subject: String,
    /// How it is.
    pub grade: Grade,
    /// In words.
    pub detail: String,
}
