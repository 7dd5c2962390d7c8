//! The agents the manager knows. They report every few seconds; one that is silent is not ready. Where they
//! listen is kept, so that a manager that was started again can ask them at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::placement::Room;
use crate::agent::REPORT_INTERVAL;
use crate::agent::lease::STOP_LIMIT;
use crate::api::{ApiError, Client, Node, NodeReport};
use crate::security::{Party, Security};
use crate::wire::Address;

/// Silence after which a node is no longer ready.
const PATIENCE: Duration = Duration::from_secs(3 * REPORT_INTERVAL.as_secs() + 1);

#[derive(Debug)]
struct Known {
    report: NodeReport,
    /// `None` since the manager was started.
    seen: Option<Instant>,
    client: Arc<Client>,
}

impl Known {
    fn is_ready(&self) -> bool {
        self.seen.is_some_and(|seen| seen.elapsed() < PATIENCE)
    }
}

/// All nodes that ever reported.
#[derive(Debug)]
pub struct Nodes {
    security: Security,
    /// When this manager began to lead.
    began: Instant,
    known: Mutex<BTreeMap<String, Known>>,
    /// Names of those that take no services.
    drained: Mutex<BTreeSet<String>>,
}

impl Nodes {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The nodes that reported to an earlier manager, and the names of those that were drained.
    ///
    /// # Errors
    /// As [`Nodes::report`].
    pub fn load(
        reports: Vec<NodeReport>,
        drained: BTreeSet<String>,
        security: Security,
    ) -> Result<Self, ApiError> {
        let nodes = Self {
            security,
            began: Instant::now(),
            known: Mutex::default(),
            drained: Mutex::new(drained),
        };
        for report in reports {
            let name = report.name.clone();
            nodes.report(report)?;
            if let Some(known) = nodes.lock().get_mut(&name) {
                known.seen = None;
            }
        }
        Ok(nodes)
    }

    /// How agents are asked.
    #[must_use]
    pub fn security(&self) -> &Security {
        &self.security
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

    /// Takes a report. Returns whether what is kept of the node has changed: its address, or its lease.
    ///
    /// # Errors
    /// Its address is none.
    pub fn report(&self, report: NodeReport) -> Result<bool, ApiError> {
        let address: Address = report
            .address
            .parse()
            .map_err(|error: crate::wire::AddressError| ApiError::invalid(error.to_string()))?;
        let mut known = self.lock();
        let (client, new) = match known.get(&report.name) {
            Some(known) if *known.client.address() == address => {
                (Arc::clone(&known.client), known.report.lease_us != report.lease_us)
            }
            _ => {
                let client = Client::new(address, format!("node {}", report.name))
                    .secured(&self.security, Party::Node(report.name.clone()));
                (Arc::new(client), true)
            }
        };
        known.insert(report.name.clone(), Known { report, seen: Some(Instant::now()), client });
        Ok(new)
    }

    /// All nodes, by name.
    #[must_use]
    pub fn list(&self) -> Vec<Node> {
        let drained = self.drained().clone();
        self.lock()
            .values()
            .map(|known| Node {
                report: known.report.clone(),
                seen_ms_ago: known.seen.map(|seen| seen.elapsed().as_millis() as u64),
                ready: known.is_ready(),
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

    /// Whether a node has reported not long ago.
    #[must_use]
    pub fn is_ready(&self, name: &str) -> bool {
        self.lock().get(name).is_some_and(Known::is_ready)
    }

    /// Whether a node is silent and nothing answers there any more: neither guests, as far as its agent can
    /// see to it, nor holders, which end with the agent.
    #[must_use]
    pub fn lease_is_over(&self, name: &str) -> bool {
        let leased = self.last_report(name).is_some_and(|report| report.lease_us.is_some());
        leased && !self.is_ready(name) && self.may_run_for(name).is_zero()
    }

    /// How long a node that is silent may still run services. None that it does not know of: it has no lease, and
    /// nobody knows.
    #[must_use]
    pub fn may_run_for(&self, name: &str) -> Duration {
        let known = self.lock();
        let Some(Known { report, seen, .. }) = known.get(name) else { return Duration::ZERO };
        let Some(lease_us) = report.lease_us else { return Duration::ZERO };
        // Whatever led before this manager has answered nobody since.
        let heard = seen.unwrap_or(self.began);
        (Duration::from_micros(lease_us) + STOP_LIMIT).saturating_sub(heard.elapsed())
    }

    /// What a node last said.
    #[must_use]
    pub fn last_report(&self, name: &str) -> Option<NodeReport> {
        self.lock().get(name).map(|known| known.report.clone())
    }
}
