//! The snapshot file.
//!
//! ```text
//! header (128 bytes, ferry_protocol::snapshot) | metadata (JSON) | page table: count × u32, ascending
//! | blocks: u32 length, LZ4 of up to 16 pages | BLAKE3 of all before (32 bytes)
//! ```
//!
//! 1. [`mod@write`]: from a memory file to bytes.
//! 2. [`read`]: bytes that are checked as a whole before anything in them is used.
//! 3. [`mod@file`]: files that are there whole or not at all.

pub mod file;
pub mod read;
pub mod write;

pub use read::{Snapshot, SnapshotError};

use serde::{Deserialize, Serialize};

use crate::api::ServiceSpec;
use crate::holder::HeldTable;

/// Pages that are compressed together.
pub const PAGES_PER_BLOCK: usize = 16;
/// Longest metadata, in bytes: most of it is the table of connections, at most 54 bytes each.
pub const MAX_META: u32 = 4 << 20;
/// Longest part of the service's log that is kept with it, in bytes.
pub const MAX_LOG: u64 = 8 << 10;
/// Bytes of the digest at the end.
pub const DIGEST_LEN: usize = 32;

/// What is not memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// The service.
    pub spec: ServiceSpec,
    /// Connections in it.
    pub connections: u32,
    /// What somebody must know of them to answer for the service; an older image does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<HeldTable>,
    /// Offset of `log` in the service's whole log.
    #[serde(default)]
    pub log_start: u64,
    /// The end of its log.
    #[serde(default)]
    pub log: String,
    /// When it was made, in microseconds since the Unix epoch.
    pub made_us: u64,
}
