//! All that the requests share.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::AtomicU32;

use serde::{Deserialize, Serialize};

use super::address::Pool;
use super::migrations::Moves;
use super::nodes::Nodes;
use crate::api::{ApiError, Digest32, Migration};
use crate::repository::{Blobs, Images};
use crate::store::{Record, Store};

/// Kind of the store's documents that hold finished moves.
pub const MIGRATION_DOCUMENT: &str = "migration";
/// Kind of the store's documents that say which nodes are drained, by name.
pub const NODE_DOCUMENT: &str = "node";

/// What is kept of a node.
#[derive(Debug, Serialize, Deserialize)]
pub struct KeptNode {
    /// Its name.
    pub name: String,
    /// It takes no services.
    pub drained: bool,
}

/// The manager.
pub struct Manager {
    /// Who owns what.
    pub store: Box<dyn Store>,
    /// The agents.
    pub nodes: Nodes,
    /// The service repository.
    pub images: Images,
    /// The workspace repository: snapshots.
    pub workspace: Blobs,
    /// Addresses for services.
    pub pool: Pool,
    /// Moves, finished and under way.
    pub moves: Moves,
    /// Failures of services that are known but not running, by name.
    pub(super) failures: Mutex<BTreeMap<String, String>>,
}

impl Manager {
    /// Opens the repositories and reads what the store knows.
    ///
    /// # Errors
    /// Files cannot be opened.
    pub async fn open(
        store: Box<dyn Store>,
        state_dir: &Path,
        pool: Pool,
    ) -> Result<Self, ApiError> {
        let documents = store.documents(MIGRATION_DOCUMENT).await?;
        let finished: Vec<Migration> =
            documents.iter().filter_map(|json| serde_json::from_slice(json).ok()).collect();
        let last = finished.iter().filter_map(|migration| number(&migration.id)).max();
        let kept = store.documents(NODE_DOCUMENT).await?;
        let kept = kept.iter().filter_map(|json| serde_json::from_slice::<KeptNode>(json).ok());
        let drained: BTreeSet<_> = kept.filter(|node| node.drained).map(|node| node.name).collect();
        Ok(Self {
            store,
            nodes: Nodes::new(drained),
            images: Images::open(&state_dir.join("images"))?,
            workspace: Blobs::open(&state_dir.join("snapshots"))?,
            pool,
            moves: Moves::new(finished, AtomicU32::new(last.unwrap_or(0) + 1)),
            failures: Mutex::default(),
        })
    }

    /// The record of a service.
    ///
    /// # Errors
    /// There is none.
    pub async fn record(&self, name: &str) -> Result<Record, ApiError> {
        self.store.get(name).await?.ok_or_else(|| {
            ApiError::not_found(format!("there is no service `{name}`"))
                .hint("`host-tools ps` lists the services")
        })
    }

    /// The node that runs a service.
    ///
    /// # Errors
    /// It lies in a snapshot.
    pub fn owner<'r>(&self, record: &'r Record) -> Result<&'r str, ApiError> {
        record.owner.node().ok_or_else(|| {
            ApiError::conflict(format!(
                "`{}` is suspended: its state lies in a snapshot",
                record.spec.name
            ))
            .hint("`host-tools restore -i FILE --on NODE` lets it go on")
        })
    }

    /// Whether a service was started from this image.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn images_in_use(&self) -> Result<Vec<Digest32>, ApiError> {
        Ok(self.store.list().await?.iter().map(|record| record.spec.image.digest).collect())
    }
}

/// The number in the id of a move.
#[must_use]
pub fn number(id: &str) -> Option<u32> {
    id.strip_prefix('m')?.parse().ok()
}
