//! What the two agents of a move tell each other.

use serde::{Deserialize, Serialize};

use crate::api::ServiceSpec;

/// Source → destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromSource {
    /// Can you take this service? Answer: `Accepted` or `Failed`.
    Offer {
        /// Id of the move.
        migration: String,
        /// The service.
        spec: Box<ServiceSpec>,
        /// Where the source's agent listens.
        source: String,
    },
    /// Boot the standby; the connection for the mirror is made meanwhile. Answer: `Standby` or `Failed`.
    Prepare,
    /// A precopy round was sent. Answer: `Arrived` or `Failed`.
    Round,
    /// The source freezes now: see that the standby's guest is well. The answer comes with the next.
    Check,
    /// All pages have been sent. Answer: `Verified` or `Failed`.
    Last {
        /// The source's digest.
        digest: [u8; 32],
    },
    /// The store has given the service to you. Answer: `Ordered`, then `Resumed`, or `Failed`.
    Resume {
        /// The ownership number.
        epoch: u64,
        /// The manager's signature that it has, in base64.
        grant: String,
    },
    /// Part of the service's console log so far, in order.
    Log {
        /// Offset of `bytes` in the service's whole log.
        start: u64,
        /// Bytes of the log.
        bytes: Vec<u8>,
        /// Nothing follows.
        last: bool,
    },
    /// Give the standby up. Answer: `Abandoned`.
    Abandon,
    /// Nothing of the service is left at the source; the mirror can go. Answer: `Finished`.
    Finish,
}

/// Destination → source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromDestination {
    /// To `Offer`.
    Accepted,
    /// To `Prepare`.
    Standby {
        /// From the start of QEMU to the guest's first word, in microseconds.
        boot_us: u64,
    },
    /// To `Round`: all of it is in memory.
    Arrived,
    /// To `Last`: the digests agree, and the standby's guest has answered since the source froze.
    Verified,
    /// To `Resume`: the port is open, the guest has the order.
    Ordered,
    /// To `Resume`: the service runs.
    Resumed {
        /// Connections whose windows were reopened.
        connections: u32,
        /// Frames held during the switch.
        held_frames: u32,
        /// From the arrival of `Resume` to the open port, in microseconds.
        port_us: u64,
        /// From the order to the guest's answer, in microseconds.
        guest_us: u64,
    },
    /// What was asked for did not work; the standby has been removed and will not run.
    Failed {
        /// Why.
        reason: String,
    },
    /// To `Abandon`.
    Abandoned,
    /// To `Finish`.
    Finished,
}
