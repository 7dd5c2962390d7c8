//! The agents the manager knows. They report every few seconds; one that is silent is not ready.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::placement::Room;
use crate::agent::REPORT_INTERVAL;
use crate::api::{ApiError, Client, Node, NodeReport};
use crate::wire::Address;

/// Silence after which a node is no longer ready.
const PATIENCE: Duration = Duration::from_secs(3 * REPORT_INTERVAL.as_secs() + 1);

#[derive(Debug)]
struct Known {
    report: NodeReport,
    seen: Instant,
    client: Arc<Client>,
}

/// All nodes that ever reported.
#[derive(Debug, Default)]
pub struct Nodes {
    known: Mutex<BTreeMap<String, Known>>,
    /// Names of those that take no services.
    drained: Mutex<BTreeSet<String>>,
}

impl Nodes {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those that have been drained, as a store has kept them.
    #[must_use]
    pub fn new(drained: BTreeSet<String>) -> Self {
        Self { known: Mutex::default(), drained: Mutex::new(drained) }
    }

    fn drained(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.drained.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes whether a node takes services.
    pub fn set_drained(&self, name: &str, drained: bool) {
        let mut all = self.drained();
        if drained {
            all.insert(name.to_owned());
        } else {
            all.remove(name);
        }
    }

    /// How to ask a node that is to get a service.
    ///
    /// # Errors
    /// There is no such node, or it has been drained.
    pub fn destination(&self, name: &str) -> Result<Arc<Client>, ApiError> {
        let client = self.client(name)?;
        if self.drained().contains(name) {
            return Err(ApiError::conflict(format!(
                "node {name} is drained and takes no services"
            ))
            .hint(format!("`host-tools node undrain {name}` lets it take some again")));
        }
        Ok(client)
    }

    /// The nodes that services can be placed on; `used_mib` says what is given out on each, which is
    /// newer than what it last reported.
    #[must_use]
    pub fn rooms(&self, used_mib: impl Fn(&str) -> u64) -> Vec<Room> {
        let open = self.list().into_iter().filter(|node| node.ready && !node.drained);
        open.map(|Node { report, .. }| Room {
            all_mib: report.memory_mib,
            free_mib: report.memory_mib.saturating_sub(used_mib(&report.name)),
            node: report.name,
        })
        .collect()
    }

    /// Takes a report.
    ///
    /// # Errors
    /// Its address is none.
    pub fn report(&self, report: NodeReport) -> Result<(), ApiError> {
        let address: Address = report
            .address
            .parse()
            .map_err(|error: crate::wire::AddressError| ApiError::invalid(error.to_string()))?;
        let mut known = self.lock();
        let client = match known.get(&report.name) {
            Some(known) if *known.client.address() == address => Arc::clone(&known.client),
            _ => Arc::new(Client::new(address, format!("node {}", report.name))),
        };
        known.insert(report.name.clone(), Known { report, seen: Instant::now(), client });
        Ok(())
    }

    /// All nodes, by name.
    #[must_use]
    pub fn list(&self) -> Vec<Node> {
        let drained = self.drained().clone();
        self.lock()
            .values()
            .map(|known| Node {
                report: known.report.clone(),
                seen_ms_ago: known.seen.elapsed().as_millis() as u64,
                ready: known.seen.elapsed() < PATIENCE,
                drained: drained.contains(&known.report.name),
            })
            .collect()
    }

    /// How to ask a node.
    ///
    /// # Errors
    /// There is no such node.
    pub fn client(&self, name: &str) -> Result<Arc<Client>, ApiError> {
        let known = self.lock();
        known.get(name).map(|known| Arc::clone(&known.client)).ok_or_else(|| {
            let names: Vec<_> = known.keys().cloned().collect();
            let hint = if names.is_empty() {
                "no agent has reported yet: start one with `host-tools agent`".into()
            } else {
                format!("known nodes: {}", names.join(", "))
            };
            ApiError::not_found(format!("there is no node `{name}`")).hint(hint)
        })
    }

    /// What a node last said.
    #[must_use]
    pub fn last_report(&self, name: &str) -> Option<NodeReport> {
        self.lock().get(name).map(|known| known.report.clone())
    }
}
