//! All that the requests share.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::AtomicU32;

use super::address::Pool;
use super::migrations::Moves;
use super::nodes::Nodes;
use super::turns::Turns;
use crate::api::{ApiError, Digest32, Migration};
use crate::repository::{Blobs, Images};
use crate::store::{Record, Store};

/// Kind of the store's documents that hold finished moves.
pub const MIGRATION_DOCUMENT: &str = "migration";

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
    /// Who is at work on which service.
    pub(super) turns: Turns,
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
        Ok(Self {
            store,
            nodes: Nodes::default(),
            images: Images::open(&state_dir.join("images"))?,
            workspace: Blobs::open(&state_dir.join("snapshots"))?,
            pool,
            moves: Moves::new(finished, AtomicU32::new(last.unwrap_or(0) + 1)),
            turns: Turns::default(),
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
            let name = &record.spec.name;
            let error =
                ApiError::conflict(format!("`{name}` is suspended: its state lies in a snapshot"));
            error.hint(match record.owner.sleep() {
                Some(_) => format!("`host-tools resume {name}` lets it go on"),
                None => "`host-tools restore -i FILE --on NODE` lets it go on".into(),
            })
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
