//! Bodies of requests and answers. Times are microseconds since the Unix epoch unless named otherwise.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::sleep::{Holding, SleepView};
use super::spec::{Digest32, ImageRef, ServiceSpec};
use crate::migration::precopy::Limits;
use crate::migration::{Outcome, PhaseRecord};
use crate::qemu::{Accel, Machine};

/// `POST /v1/services`: what `run` asks of the manager.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as in ServiceSpec")]
pub struct RunRequest {
    /// Name or digest of an image in the repository.
    pub image: String,
    pub name: String,
    /// Where to start it; by default the node that is used least.
    pub node: Option<String>,
    pub ip: Option<Ipv4Addr>,
    pub memory_mib: Option<u32>,
    pub machine: Machine,
    #[serde(default)]
    pub args: Vec<String>,
}

/// Where a service stands, as the manager knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServiceState {
    /// Its first instance is booting.
    Starting,
    /// It runs.
    Running,
    /// It runs, and a move is under way.
    Migrating,
    /// Its state lies in a snapshot; nothing runs.
    Suspended,
    /// Its QEMU or the service itself ended.
    Failed,
    /// Its node does not answer.
    Unknown,
}

/// A service as `ps` and `inspect` show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// What it is.
    pub spec: ServiceSpec,
    /// Node that owns it.
    pub node: Option<String>,
    /// Ownership number.
    pub epoch: u64,
    /// Where it stands.
    pub state: ServiceState,
    /// Why, if it does not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When it was first started.
    pub created_us: u64,
    /// Its instance, from the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<Instance>,
    /// Id of the move that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<String>,
    /// Who answers for it while it is suspended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sleep: Option<SleepView>,
}

/// Where an instance stands, as its agent knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InstanceState {
    /// QEMU boots.
    Booting,
    /// Booted, empty, silent.
    Standby,
    /// Serves.
    Running,
    /// Parked for a move or a checkpoint.
    Frozen,
    /// Ended by itself.
    Failed,
}

impl InstanceState {
    /// Whether its guest is there and serves nobody until it is told to.
    #[must_use]
    pub fn stands_still(self) -> bool {
        matches!(self, Self::Frozen | Self::Standby)
    }
}

/// An instance of a service on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Instance {
    pub spec: ServiceSpec,
    pub state: InstanceState,
    pub epoch: u64,
    pub pid: u32,
    pub accel: Accel,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Frames from the guest that were refused.
    pub refused_frames: u64,
}

/// `POST /v1/nodes`: an agent says that it is there, every few seconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeReport {
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub address: String,
    /// What runs there.
    pub instances: usize,
    /// Memory for guests in MiB, all and not yet given out.
    pub memory_mib: u64,
    #[expect(missing_docs, reason = "said above")]
    pub free_mib: u64,
    /// How it executes guests.
    pub accel: Accel,
    /// Time without a manager after which it freezes what runs there, in microseconds; `None`: never.
    #[serde(default)]
    pub lease_us: Option<u64>,
    /// Sleeping services that it answers for.
    #[serde(default)]
    pub holding: Vec<Holding>,
    /// Services that are frozen or stand by there, with nobody at work on them.
    #[serde(default)]
    pub parked: Vec<Holding>,
}

/// What the manager answers to a report.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ReportAnswer {
    /// Numbers of certificates that are not to be accepted any more.
    pub revoked: std::collections::BTreeSet<String>,
}

/// A node as `node ls` shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Node {
    /// What it last said.
    pub report: NodeReport,
    /// How long ago, in milliseconds; `None` if it was before the manager was started.
    pub seen_ms_ago: Option<u64>,
    /// Whether that is recent.
    pub ready: bool,
    /// Whether it has been drained and takes no services.
    #[serde(default)]
    pub drained: bool,
}

/// `POST /v1/instances`: what the manager asks of an agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StartRequest {
    /// The service.
    pub spec: ServiceSpec,
    /// Ownership number it runs under.
    pub epoch: u64,
    /// Fill it from this snapshot and wait for `resume`.
    pub snapshot: Option<Digest32>,
}

/// `POST /v1/instances/{name}/resume`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ResumeRequest {
    /// Ownership number that was committed.
    pub epoch: u64,
}

/// What came of a resume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resumed {
    /// Connections that go on.
    pub connections: u32,
    /// Frames held during the switch.
    pub held_frames: u32,
}

/// `POST /v1/services/{name}/migrate`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MigrateRequest {
    /// Destination node.
    pub to: String,
    /// What the user allows.
    #[serde(default)]
    pub limits: Limits,
}

/// `POST /v1/instances/{name}/move`: the manager has the source's agent move an instance.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MoveRequest {
    /// Id of the move.
    pub migration: String,
    /// Where the destination's agent listens.
    pub destination: String,
    /// Its name.
    pub destination_name: String,
    /// What the user allows.
    #[serde(default)]
    pub limits: Limits,
}

/// `POST /v1/migrations/{id}/{commit,settle,take-back}`: the source's agent asks for the ownership.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CommitRequest {
    /// Ownership number that the asker knows.
    pub epoch: u64,
}

/// `POST /v1/migrations/{id}/cancel`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct CancelRequest {
    /// A node that never comes back, as a user says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_is_gone: Option<String>,
}

/// `POST /v1/services/{name}/ownership`: an agent asks whose a service is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OwnershipRequest {
    /// Id of the service, which distinguishes it from others of the same name.
    pub id: String,
    /// A move that shall not commit any more, if it has not.
    pub settle: Option<String>,
}

/// Whose a service is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "owner", rename_all = "kebab-case")]
pub enum OwnershipAnswer {
    /// The manager has never heard of it.
    Unknown,
    /// Nobody's any more.
    Released,
    /// A node's.
    Node {
        /// Its name.
        name: String,
        /// Ownership number.
        epoch: u64,
        /// The move that is under way.
        migration: Option<String>,
    },
    /// A snapshot is the service, whether somebody answers for it or not.
    Snapshot {
        /// Ownership number.
        epoch: u64,
    },
    /// A node's, once it runs there; until then a snapshot is the service.
    Waking {
        /// Its name.
        name: String,
        /// Ownership number.
        epoch: u64,
    },
}

/// What the store says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum CommitAnswer {
    /// The ownership has moved.
    Committed {
        /// The new ownership number.
        epoch: u64,
        /// The manager's signature that the new owner is that, in base64.
        #[serde(default)]
        grant: String,
    },
    /// It has not, and will not for this move.
    Refused {
        /// Why.
        reason: String,
    },
}

/// One line of a move's event stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum MoveEvent {
    /// The move exists.
    Begun {
        /// Its id.
        migration: String,
        /// What moves.
        service: String,
        /// From where.
        source: String,
        /// To where.
        destination: String,
    },
    /// A phase begins.
    Entered {
        /// Which.
        phase: crate::migration::Phase,
    },
    /// A phase has ended.
    Phase(PhaseRecord),
    /// The move cannot go on before something else happens; it is not over.
    Waiting {
        /// What is waited for.
        reason: String,
    },
    /// The move has ended.
    Ended {
        /// How.
        result: Outcome,
        /// What came of it.
        summary: Box<MoveSummary>,
    },
}

/// The figures of a move. What did not happen is zero.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveSummary {
    /// From the request to the end, in microseconds.
    pub total_us: u64,
    /// From the order to drain to its end, in microseconds.
    pub drain_us: u64,
    /// From the order to freeze to the answer that the service runs again, in microseconds.
    pub freeze_to_resume_us: u64,
    /// Connections in a synchronised state when the drain began, and those that settled.
    pub connections: u32,
    #[expect(missing_docs, reason = "said above")]
    pub settled: u32,
    /// Connections whose windows were reopened at the destination.
    pub resumed: u32,
    /// Frames held by the standby during the switch.
    pub held_frames: u32,
    /// Precopy rounds.
    pub rounds: u32,
    /// Pages sent, and those of them sent while the service was frozen.
    pub pages: u64,
    #[expect(missing_docs, reason = "said above")]
    pub frozen_pages: u64,
    /// Bytes on the wire.
    pub bytes: u64,
}

/// A move, as the manager keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Migration {
    pub id: String,
    pub service: String,
    pub source: String,
    pub destination: String,
    pub began_us: u64,
    pub phases: Vec<PhaseRecord>,
    /// The phase it is in, while it is under way.
    pub phase: Option<crate::migration::Phase>,
    pub result: Option<Outcome>,
    pub summary: Option<Box<MoveSummary>>,
}

/// `POST /v1/services/{name}/checkpoint`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CheckpointRequest {
    /// Go on afterwards.
    pub leave_running: bool,
    /// Under which id the record names the checkpoint, if the service ends with it. The manager sets it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Somebody is to answer for its connections: the snapshot must say what they are.
    #[serde(default)]
    pub hold: bool,
}

/// What came of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Digest of the snapshot file.
    pub snapshot: Digest32,
    /// Its length in bytes.
    pub bytes: u64,
    /// Pages in it.
    pub pages: u32,
    /// Connections in it.
    pub connections: u32,
    /// Time in which the service did not run, in microseconds, if it was left running.
    pub frozen_us: u64,
}

/// A line of `conns`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as in ferry_protocol::control::Connection")]
pub struct ConnectionLine {
    pub local: String,
    pub remote: String,
    pub state: String,
    pub role: String,
    pub recv_queue: u32,
    pub send_queue: u32,
}

/// An image as `image ls` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Name and digest.
    #[serde(flatten)]
    pub image: ImageRef,
    /// Length of the file in bytes.
    pub bytes: u64,
    /// When it was pushed.
    pub pushed_us: u64,
}

/// The number in the id of a move.
#[must_use]
pub fn move_number(id: &str) -> Option<u32> {
    id.strip_prefix('m')?.parse().ok()
}

/// Now, in microseconds since the Unix epoch.
#[must_use]
pub fn now_us() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_micros() as u64)
}
