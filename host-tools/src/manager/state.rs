//! All that the requests share.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use super::address::Pool;
use super::members::Members;
use super::moves::{KeptMove, Moves};
use super::nodes::Nodes;
use super::overview::LastLook;
use super::promises::Promises;
use super::turns::Turns;
use crate::api::{ApiError, Digest32, NodeReport};
use crate::metrics::manager::Metrics;
use crate::repository::{Blobs, Images};
use crate::security::Security;
use crate::store::{Ownership, Record, Store};

/// Kind of the store's documents that hold moves.
pub const MIGRATION_DOCUMENT: &str = "migration";
/// Kind of the store's documents that say which nodes are drained, by name.
pub const DRAIN_DOCUMENT: &str = "drain";

/// Whether a node takes services.
#[derive(Debug, Serialize, Deserialize)]
pub struct KeptDrain {
    /// Its name.
    pub node: String,
    /// It takes none.
    pub drained: bool,
}

/// Kind of the store's documents that hold the last report of a node from a new address.
const NODE_DOCUMENT: &str = "node";

/// The manager.
pub struct Manager {
    /// Who owns what.
    pub store: Arc<dyn Store>,
    /// Who belongs to the cluster.
    pub members: Members,
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
    /// What a monitoring system is told.
    pub(super) metrics: Metrics,
    /// What those who watch saw last.
    pub(super) looked: LastLook,
    /// Memory promised to services on their way.
    pub(super) promises: Promises,
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
        store: Arc<dyn Store>,
        members: Members,
        security: Security,
        repository: &Path,
        pool: Pool,
    ) -> Result<Self, ApiError> {
        let documents = store.documents(MIGRATION_DOCUMENT).await?;
        let read = |json: &Vec<u8>| {
            serde_json::from_slice::<KeptMove>(json).map_err(|error| {
                ApiError::failed(format!(
                    "the store holds a move that cannot be read ({error}): was it written by a newer version?"
                ))
            })
        };
        let kept = documents.iter().map(read).collect::<Result<_, _>>()?;
        let reports = store.documents(NODE_DOCUMENT).await?;
        // A report that cannot be read is soon replaced by the node's next one.
        let reports = reports.iter().filter_map(|json| serde_json::from_slice(json).ok());
        let drains = store.documents(DRAIN_DOCUMENT).await?;
        let drains =
            drains.iter().filter_map(|json| serde_json::from_slice::<KeptDrain>(json).ok());
        let drained = drains.filter(|kept| kept.drained).map(|kept| kept.node);
        let nodes = Nodes::load(reports.collect(), drained.collect(), security)?;
        Ok(Self {
            store,
            members,
            nodes,
            images: Images::open(&repository.join("images"))?,
            workspace: Blobs::open(&repository.join("snapshots"))?,
            pool,
            moves: Moves::new(kept),
            metrics: Metrics::default(),
            looked: LastLook::default(),
            promises: Promises::default(),
            turns: Turns::default(),
            failures: Mutex::default(),
        })
    }

    /// Takes a node's report.
    ///
    /// # Errors
    /// Its address is none, or the store does not take it.
    pub async fn report(&self, report: NodeReport) -> Result<(), ApiError> {
        let name = report.name.clone();
        let json = serde_json::to_vec(&report).map_err(ApiError::failed)?;
        if self.nodes.report(report)? {
            self.store.put_document(NODE_DOCUMENT, &name, json).await?;
        }
        Ok(())
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
    /// It lies in a snapshot, or is waking from one.
    pub fn owner<'r>(&self, record: &'r Record) -> Result<&'r str, ApiError> {
        let name = &record.spec.name;
        let suspended =
            || ApiError::conflict(format!("`{name}` is suspended: its state lies in a snapshot"));
        match &record.owner {
            Ownership::Node { name } => Ok(name),
            Ownership::Waking { name: node, .. } => {
                Err(ApiError::conflict(format!("`{name}` is just waking up on node {node}")))
            }
            Ownership::Sleeping(_) => {
                Err(suspended().hint(format!("`host-tools resume {name}` lets it go on")))
            }
            Ownership::Snapshot { .. } => {
                Err(suspended().hint("`host-tools restore -i FILE --on NODE` lets it go on"))
            }
        }
    }

    /// Whether a service was started from this image.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn images_in_use(&self) -> Result<Vec<Digest32>, ApiError> {
        Ok(self.store.list().await?.iter().map(|record| record.spec.image.digest).collect())
    }
}
