//! What a node's report says against what the store says.
//!
//! Whoever dies in the middle of a suspend or resume leaves the store with one of a few words, and the
//! next report of the node brings about what the word means:
//!
//! | owner | on the node | what is done |
//! |---|---|---|
//! | Sleeping, held here | no holder | begun |
//! | Sleeping, held by a node that is silent, whose lease has ended | | another node answers for it |
//! | Waking, here or held here | | woken, or put back to sleep |
//! | another, a later epoch, none | holder | ended |
//! | any, no move | frozen or standing by, nobody at work on it | its agent settles it |
//! | any, a checkpoint that nobody makes | | its id is let go |
//!
//! Whether an instance goes on or ends is not decided here: its agent asks for the owner and decides
//! ([`recovery`](crate::agent::recovery)). Moves look after their instances themselves
//! ([`recovery`](super::recovery)).

use std::sync::Arc;

use hyper::Method;

use super::services::AGENT_LIMIT;
use super::state::Manager;
use super::turns::Turn;
use super::workspace::CHECKPOINT_PREFIX;
use crate::api::{ApiError, Holding, NodeReport, Problem, ReleaseRequest};
use crate::store::{Ownership, Record};

impl Manager {
    /// See the module. Services that somebody is at work on are left to him.
    pub async fn tend(self: Arc<Self>, report: NodeReport) {
        let Ok(records) = self.store.list().await else { return };
        let node = &report.name;
        let of = |id: &str| records.iter().find(|record| record.spec.id == id);
        let tell = |name: &str, done: Result<(), ApiError>| {
            if let Err(error) = done {
                tracing::warn!("{name}: {error}");
            }
        };
        for held in &report.holding {
            if !of(&held.id).is_some_and(|record| holds(node, held, record)) {
                tell(&held.name, self.tend_holder(node, held).await);
            }
        }
        for parked in &report.parked {
            if of(&parked.id).is_none_or(|record| record.migration.is_none()) {
                tell(&parked.name, self.tend_parked(node, parked).await);
            }
        }
        for record in &records {
            let id = record.migration.as_deref();
            if id.is_some_and(|id| id.starts_with(CHECKPOINT_PREFIX)) {
                tell(&record.spec.name, self.tend_capture(&record.spec.name).await);
            }
            if sleeps_badly(&report, record) {
                tell(&record.spec.name, self.tend_sleeper(&report, &record.spec.name).await);
            }
            if let Ownership::Sleeping(sleep) = &record.owner
                && self.nodes.lease_is_over(&sleep.holder)
            {
                tell(
                    &record.spec.name,
                    self.tend_abandoned(&record.spec.name, &sleep.holder).await,
                );
            }
        }
    }

    /// The turn of a service, unless somebody has it, and what its record says since then.
    async fn turn(&self, name: &str) -> Result<Option<(Turn, Option<Record>)>, ApiError> {
        let Ok(turn) = self.turns.take(name) else { return Ok(None) };
        Ok(Some((turn, self.store.get(name).await?)))
    }

    async fn tend_holder(&self, node: &str, held: &Holding) -> Result<(), ApiError> {
        // While somebody is at work on it, it is he who ends the holder, in his order.
        let Some((_turn, record)) = self.turn(&held.name).await? else { return Ok(()) };
        let record = record.filter(|record| record.spec.id == held.id);
        if record.as_ref().is_some_and(|record| holds(node, held, record)) {
            return Ok(());
        }
        let below = record.map_or(held.epoch + 1, |record| record.epoch);
        let fence = ReleaseRequest { id: held.id.clone(), below };
        self.release_on(node, &held.name, &fence).await
    }

    async fn tend_parked(&self, node: &str, parked: &Holding) -> Result<(), ApiError> {
        // While somebody is at work on it, it may be his.
        let Some((_turn, record)) = self.turn(&parked.name).await? else { return Ok(()) };
        let record = record.filter(|record| record.spec.id == parked.id);
        if record.is_some_and(|record| record.migration.is_some()) {
            return Ok(());
        }
        let path = format!("/v1/instances/{}/settle", parked.name);
        let agent = self.nodes.client(node)?;
        match agent.json::<()>(Method::POST, &path, &(), AGENT_LIMIT).await {
            Err(error) if error.problem != Problem::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// The store may not have taken the end of a checkpoint.
    async fn tend_capture(&self, name: &str) -> Result<(), ApiError> {
        let Some((_turn, Some(record))) = self.turn(name).await? else { return Ok(()) };
        match &record.migration {
            Some(id) if id.starts_with(CHECKPOINT_PREFIX) => self.let_go(record).await.map(drop),
            _ => Ok(()),
        }
    }

    async fn tend_abandoned(&self, name: &str, holder: &str) -> Result<(), ApiError> {
        match self.hold_elsewhere(name, holder).await {
            Ok(Some(to)) => {
                tracing::warn!("{name}: node {holder} is silent; node {to} answers for it now");
                Ok(())
            }
            // Somebody is at work on it.
            Err(error) if error.problem == Problem::Conflict => Ok(()),
            other => other.map(drop),
        }
    }

    async fn tend_sleeper(&self, report: &NodeReport, name: &str) -> Result<(), ApiError> {
        let Some((_turn, Some(record))) = self.turn(name).await? else { return Ok(()) };
        if !sleeps_badly(report, &record) {
            return Ok(());
        }
        match &record.owner {
            Ownership::Sleeping(sleep) => self.hold_again(&record, sleep).await,
            Ownership::Waking { .. } => self.finish_waking(record).await.map(drop),
            Ownership::Node { .. } | Ownership::Snapshot { .. } => Ok(()),
        }
    }
}

/// Whether it is this holder that answers for the service.
fn holds(node: &str, held: &Holding, record: &Record) -> bool {
    match &record.owner {
        Ownership::Sleeping(sleep) => sleep.holder == node && record.epoch == held.epoch,
        _ => false,
    }
}

/// Whether there is something to do for a sleeper that the reporting node has to do with.
fn sleeps_badly(report: &NodeReport, record: &Record) -> bool {
    let node = &report.name;
    match &record.owner {
        Ownership::Sleeping(sleep) => {
            let held = |held: &Holding| held.id == record.spec.id && held.epoch == record.epoch;
            sleep.holder == *node && !report.holding.iter().any(held)
        }
        Ownership::Waking { name, sleep } => name == node || sleep.holder == *node,
        Ownership::Node { .. } | Ownership::Snapshot { .. } => false,
    }
}
