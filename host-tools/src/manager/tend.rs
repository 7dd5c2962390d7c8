//! What a node's report says against what the store says.
//!
//! Whoever dies in the middle of a suspend or resume leaves the store with one of a few words, and the
//! next report of the node brings about what the word means:
//!
//! | owner | on the node | what is done |
//! |---|---|---|
//! | Sleeping, held here | no holder | begun |
//! | Sleeping | frozen instance of an older epoch, or standby | ended |
//! | Waking, here or held here | | woken, or put back to sleep |
//! | this node, no move | frozen instance, nobody at work on it | goes on: its snapshot was not kept |
//! | another, a later epoch, none | holder | ended |

use std::sync::Arc;

use hyper::Method;

use super::services::AGENT_LIMIT;
use super::state::Manager;
use crate::api::{ApiError, Holding, NodeReport, ReleaseRequest};
use crate::store::{Ownership, Record};

impl Manager {
    /// See the module. Services that somebody is at work on are left to him.
    pub async fn tend(self: Arc<Self>, report: NodeReport) {
        let Ok(records) = self.store.list().await else { return };
        for held in &report.holding {
            let record = records.iter().find(|record| record.spec.id == held.id);
            if let Err(error) = self.tend_holder(&report.name, held, record).await {
                eprintln!("{}: {error}", held.name);
            }
        }
        for record in &records {
            let name = &record.spec.name;
            let Ok(_turn) = self.turns.take(name) else { continue };
            // Somebody may have had the turn since the list was made.
            let Ok(Some(record)) = self.store.get(name).await else { continue };
            if let Err(error) = self.tend_service(&report, record).await {
                eprintln!("{name}: {error}");
            }
        }
    }

    async fn tend_holder(
        &self,
        node: &str,
        held: &Holding,
        record: Option<&Record>,
    ) -> Result<(), ApiError> {
        let right = record.is_some_and(|record| match &record.owner {
            Ownership::Sleeping(sleep) => sleep.holder == node && record.epoch == held.epoch,
            _ => false,
        });
        // While somebody is at work on it, it is he who ends the holder, in his order.
        let Ok(_turn) = self.turns.take(&held.name) else { return Ok(()) };
        if right {
            return Ok(());
        }
        let below = record.map_or(held.epoch + 1, |record| record.epoch);
        let fence = ReleaseRequest { id: held.id.clone(), below };
        self.release_on(node, &held.name, &fence).await
    }

    async fn tend_service(&self, report: &NodeReport, record: Record) -> Result<(), ApiError> {
        let node = &report.name;
        let same = |it: &&Holding| it.id == record.spec.id;
        // A standby runs under no epoch yet: it says 0, which is no epoch of any record.
        let parked = report.parked.iter().find(same).map(|it| it.epoch);
        match &record.owner {
            Ownership::Sleeping(sleep) => {
                if parked.is_some_and(|epoch| epoch < record.epoch) {
                    self.clear(&*self.nodes.client(node)?, &record).await?;
                }
                let holds = report.holding.iter().filter(same).any(|it| it.epoch == record.epoch);
                if sleep.holder == *node && !holds {
                    self.hold_again(&record, sleep).await?;
                }
                Ok(())
            }
            Ownership::Waking { name, sleep } if name == node || sleep.holder == *node => {
                // A manager that has just started hears of its nodes one after the other.
                match (self.nodes.client(name), self.nodes.client(&sleep.holder)) {
                    (Ok(_), Ok(_)) => self.finish_waking(record).await.map(drop),
                    _ => Ok(()),
                }
            }
            Ownership::Node { name }
                if name == node && parked == Some(record.epoch) && record.migration.is_none() =>
            {
                let path = format!("/v1/instances/{}/abort", record.spec.name);
                let agent = self.nodes.client(node)?;
                agent.json::<()>(Method::POST, &path, &(), AGENT_LIMIT).await
            }
            _ => Ok(()),
        }
    }
}
