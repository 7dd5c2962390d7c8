//! Many moves: draining a node, rebalancing.
//!
//! Each service is moved by an ordinary migration. One that cannot go to a node is tried on the others;
//! one that cannot go anywhere stays where it is, with the reason.

use std::sync::Arc;

use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::JoinSet;

use super::placement::{self, Load, Relocation, Room};
use super::promises::{Ledger, need_mib, no_room};
use super::state::{DRAIN_DOCUMENT, KeptDrain, Manager};
use crate::api::relocation::DEFAULT_PARALLEL;
use crate::api::{ApiError, MoveEvent, RelocateEvent, RelocateRequest};
use crate::migration::Outcome;
use crate::migration::precopy::Limits;
use crate::store::{Ownership, Record};

/// A service that is to leave a node.
#[derive(Debug)]
struct Leaver {
    service: String,
    from: String,
    need_mib: u64,
    /// Another node is only to answer for it.
    sleeps: bool,
    /// Where it should go, if there is room.
    wish: Option<String>,
}

impl Manager {
    /// Notes, durably, whether a node takes services.
    ///
    /// # Errors
    /// There is no such node, or the store did not take it.
    pub async fn set_drained(&self, name: &str, drained: bool) -> Result<(), ApiError> {
        self.nodes.client(name)?;
        let kept = KeptDrain { node: name.to_owned(), drained };
        let json = serde_json::to_vec(&kept).map_err(ApiError::failed)?;
        self.store.put_document(DRAIN_DOCUMENT, name, json).await?;
        self.nodes.set_drained(name, drained);
        Ok(())
    }

    /// Moves everything off a node, which takes nothing new from now on.
    ///
    /// # Errors
    /// There is no such node, or the store does not answer.
    pub async fn drain(
        self: &Arc<Self>,
        node: &str,
        request: RelocateRequest,
    ) -> Result<UnboundedReceiver<RelocateEvent>, ApiError> {
        self.nodes.client(node)?;
        if !request.dry_run {
            self.set_drained(node, true).await?;
        }
        let ledger = self.ledger().await?;
        let here = ledger
            .records
            .iter()
            .filter(|record| record.owner.node() == Some(node) || sleeps_at(record, node));
        let leavers = here.map(|record| leaver(record, node, None)).collect();
        Ok(self.begin(leavers, &ledger, &request))
    }

    /// Moves services until no single move makes the most used node less used.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn rebalance(
        self: &Arc<Self>,
        request: RelocateRequest,
    ) -> Result<UnboundedReceiver<RelocateEvent>, ApiError> {
        let ledger = self.ledger().await?;
        let loads: Vec<Load> = ledger
            .records
            .iter()
            .filter(|record| record.migration.is_none())
            .filter_map(|record| {
                let node = record.owner.node()?.to_owned();
                Some(Load { service: record.spec.name.clone(), node, need_mib: need_mib(record) })
            })
            .collect();
        let plan = placement::rebalance(&self.rooms(&ledger), &loads);
        let leavers = plan
            .into_iter()
            .filter_map(|Relocation { service, from, to }| {
                let record = ledger.record(&service)?;
                Some(leaver(record, &from, Some(to)))
            })
            .collect();
        Ok(self.begin(leavers, &ledger, &request))
    }

    fn begin(
        self: &Arc<Self>,
        leavers: Vec<Leaver>,
        ledger: &Ledger<'_>,
        request: &RelocateRequest,
    ) -> UnboundedReceiver<RelocateEvent> {
        let (events, told) = mpsc::unbounded_channel();
        let services = leavers.iter().map(|leaver| leaver.service.clone()).collect();
        let _ = events.send(RelocateEvent::Begun { services });
        if request.dry_run {
            plan(self.rooms(ledger), leavers, &events);
        } else {
            let parallel = request.parallel.unwrap_or(DEFAULT_PARALLEL).max(1) as usize;
            let all = Arc::clone(self).relocate_all(leavers, parallel, events);
            tokio::spawn(crate::trace::carry(all));
        }
        told
    }

    /// Goes on to its end also if nobody listens any more.
    async fn relocate_all(
        self: Arc<Self>,
        leavers: Vec<Leaver>,
        parallel: usize,
        events: UnboundedSender<RelocateEvent>,
    ) {
        let (mut moved, mut stayed) = (0, 0);
        let mut waiting = leavers.into_iter();
        let mut moves = JoinSet::new();
        loop {
            while moves.len() < parallel
                && let Some(leaver) = waiting.next()
            {
                let (this, events) = (Arc::clone(&self), events.clone());
                moves.spawn(async move { this.relocate(leaver, &events).await });
            }
            match moves.join_next().await {
                Some(Ok(true)) => moved += 1,
                Some(_) => stayed += 1,
                None => break,
            }
        }
        let _ = events.send(RelocateEvent::Ended { moved, stayed });
    }

    /// Moves one service; tells how it went and returns whether it is gone from where it was.
    async fn relocate(
        self: &Arc<Self>,
        leaver: Leaver,
        events: &UnboundedSender<RelocateEvent>,
    ) -> bool {
        let service = leaver.service.clone();
        if leaver.sleeps {
            let (event, gone) = match self.hold_elsewhere(&service, &leaver.from).await {
                Ok(Some(to)) => (RelocateEvent::Held { service, to }, true),
                Ok(None) => return true,
                Err(error) => (RelocateEvent::Stayed { service, reason: error.message }, false),
            };
            let _ = events.send(event);
            return gone;
        }
        match self.try_everywhere(leaver, events).await {
            Ok(Some((to, freeze_to_resume_us))) => {
                let _ = events.send(RelocateEvent::Moved { service, to, freeze_to_resume_us });
                true
            }
            // Stopped, suspended or moved by somebody else.
            Ok(None) => true,
            Err(reason) => {
                let _ = events.send(RelocateEvent::Stayed { service, reason });
                false
            }
        }
    }

    async fn try_everywhere(
        self: &Arc<Self>,
        leaver: Leaver,
        events: &UnboundedSender<RelocateEvent>,
    ) -> Result<Option<(String, u64)>, String> {
        let Leaver { service, from, need_mib, mut wish, .. } = leaver;
        let mut tried = vec![from.clone()];
        let mut reasons = Vec::new();
        let mut awaited = None;
        loop {
            let ledger = self.ledger().await.map_err(|error| error.message)?;
            let record = ledger.record(&service);
            let Some(record) = record.filter(|it| it.owner.node() == Some(&from)) else {
                return Ok(None);
            };
            if let Some(id) = record.migration.clone() {
                // Somebody moves it already; if that fails, it is our turn.
                drop(ledger);
                self.await_end(&id).await?;
                if awaited.as_ref() == Some(&id) {
                    return Err(format!("the move {id} is over and not closed in the store"));
                }
                awaited = Some(id);
                continue;
            }
            let to = wish.take().or_else(|| {
                placement::choose(&self.rooms(&ledger), need_mib, &tried).map(str::to_owned)
            });
            let Some(to) = to else {
                reasons.push(no_room(need_mib));
                return Err(format!("{}; it runs on node {from} as before", reasons.join("; ")));
            };
            let _promise = ledger.promise(&service, &to, need_mib);
            tried.push(to.clone());
            let id = match self.migrate(&service, &to, Limits::default()).await {
                Ok(id) => id,
                Err(error) => {
                    reasons.push(error.message);
                    continue;
                }
            };
            let moving = RelocateEvent::Moving {
                service: service.clone(),
                to: to.clone(),
                migration: id.clone(),
            };
            let _ = events.send(moving);
            match self.await_end(&id).await? {
                (Outcome::Moved { .. }, freeze_to_resume_us) => {
                    return Ok(Some((to, freeze_to_resume_us)));
                }
                (Outcome::Kept { reason, .. } | Outcome::TakenBack { reason, .. }, _) => {
                    reasons.push(reason);
                }
                (Outcome::Broken { reason, .. }, _) => {
                    return Err(format!("{reason}; it does not run (move {id})"));
                }
                (Outcome::Held { reason, .. }, _) => {
                    return Err(format!(
                        "{reason}; node {to} owns it and does not answer (move {id})"
                    ));
                }
            }
        }
    }

    /// How a move ended, and how long the service did not run, in microseconds.
    async fn await_end(&self, id: &str) -> Result<(Outcome, u64), String> {
        let lost = || format!("the move {id} cannot be followed to its end");
        let mut events = self.moves.follow(id).map_err(|error| error.message)?;
        while let Some(event) = events.recv().await {
            if let MoveEvent::Ended { result, summary } = event {
                return Ok((result, summary.freeze_to_resume_us));
            }
        }
        // Ended while we were about to follow it, or before this manager began.
        let (migration, _) = self.moves.get(id).map_err(|error| error.message)?;
        let result = migration.result.ok_or_else(lost)?;
        Ok((result, migration.summary.map_or(0, |summary| summary.freeze_to_resume_us)))
    }
}

fn plan(mut rooms: Vec<Room>, leavers: Vec<Leaver>, events: &UnboundedSender<RelocateEvent>) {
    let (mut moved, mut stayed) = (0, 0);
    for Leaver { service, from, need_mib, wish, .. } in leavers {
        let except = std::slice::from_ref(&from);
        let to = wish.or_else(|| placement::choose(&rooms, need_mib, except).map(Into::into));
        let _ = events.send(match to {
            Some(to) => {
                if let Some(room) = rooms.iter_mut().find(|room| room.node == to) {
                    room.free_mib = room.free_mib.saturating_sub(need_mib);
                }
                moved += 1;
                RelocateEvent::Planned { service, from, to }
            }
            None => {
                stayed += 1;
                RelocateEvent::Stayed { service, reason: no_room(need_mib) }
            }
        });
    }
    let _ = events.send(RelocateEvent::Ended { moved, stayed });
}

fn leaver(record: &Record, from: &str, wish: Option<String>) -> Leaver {
    let service = record.spec.name.clone();
    let sleeps = sleeps_at(record, from);
    let need_mib = if sleeps { 0 } else { need_mib(record) };
    Leaver { service, from: from.to_owned(), need_mib, sleeps, wish }
}

/// Whether a node answers for a service that sleeps.
fn sleeps_at(record: &Record, node: &str) -> bool {
    matches!(&record.owner, Ownership::Sleeping(sleep) if sleep.holder == node)
}
