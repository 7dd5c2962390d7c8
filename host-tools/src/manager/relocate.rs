//! Many moves: draining a node, rebalancing.
//!
//! Each service is moved by an ordinary migration. One that cannot go to a node is tried on the others;
//! one that cannot go anywhere stays where it is, with the reason.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::JoinSet;

use super::placement::{self, Load, Relocation, Room};
use super::state::{DRAIN_DOCUMENT, KeptDrain, Manager};
use crate::agent::host::QEMU_OVERHEAD_MIB;
use crate::api::relocation::DEFAULT_PARALLEL;
use crate::api::{ApiError, MoveEvent, RelocateEvent, RelocateRequest};
use crate::migration::Outcome;
use crate::migration::precopy::Limits;
use crate::store::{Ownership, Record};

/// Memory that is promised to moves under way and in no agent's report yet, in MiB by node.
type Promised = Arc<Mutex<BTreeMap<String, u64>>>;

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
    /// A node for a new service.
    ///
    /// # Errors
    /// None has so much memory, or the store does not answer.
    pub async fn place(&self, need_mib: u64) -> Result<String, ApiError> {
        let rooms = self.rooms(&self.store.list().await?);
        placement::choose(&rooms, need_mib, &[]).map(str::to_owned).ok_or_else(|| {
            ApiError::conflict(format!("no node has {need_mib} MiB of memory to give"))
                .hint("`host-tools node ls` shows what each has, and which are silent or drained")
        })
    }

    /// Another node than `from`.
    ///
    /// # Errors
    /// There is none that is ready, not drained, and has so much memory, or the store does not answer.
    pub(super) async fn place_but(&self, need_mib: u64, from: &str) -> Result<String, ApiError> {
        let rooms = self.rooms(&self.store.list().await?);
        let chosen = placement::choose(&rooms, need_mib, &[from.to_owned()]);
        chosen.map(str::to_owned).ok_or_else(|| ApiError::conflict(no_room(need_mib)))
    }

    fn rooms(&self, records: &[Record]) -> Vec<Room> {
        self.nodes.rooms(|node| {
            let there = records.iter().filter(|record| record.owner.node() == Some(node));
            there.map(need).sum()
        })
    }

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
        let records = self.store.list().await?;
        let here = records
            .iter()
            .filter(|record| record.owner.node() == Some(node) || sleeps_at(record, node));
        let leavers = here.map(|record| leaver(record, node, None)).collect();
        Ok(self.begin(leavers, &records, &request))
    }

    /// Moves services until no single move makes the most used node less used.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn rebalance(
        self: &Arc<Self>,
        request: RelocateRequest,
    ) -> Result<UnboundedReceiver<RelocateEvent>, ApiError> {
        let records = self.store.list().await?;
        let loads: Vec<Load> = records
            .iter()
            .filter(|record| record.migration.is_none())
            .filter_map(|record| {
                let node = record.owner.node()?.to_owned();
                Some(Load { service: record.spec.name.clone(), node, need_mib: need(record) })
            })
            .collect();
        let plan = placement::rebalance(&self.rooms(&records), &loads);
        let leavers = plan
            .into_iter()
            .filter_map(|Relocation { service, from, to }| {
                let record = records.iter().find(|record| record.spec.name == service)?;
                Some(leaver(record, &from, Some(to)))
            })
            .collect();
        Ok(self.begin(leavers, &records, &request))
    }

    fn begin(
        self: &Arc<Self>,
        leavers: Vec<Leaver>,
        records: &[Record],
        request: &RelocateRequest,
    ) -> UnboundedReceiver<RelocateEvent> {
        let (events, told) = mpsc::unbounded_channel();
        let services = leavers.iter().map(|leaver| leaver.service.clone()).collect();
        let _ = events.send(RelocateEvent::Begun { services });
        if request.dry_run {
            plan(&self.rooms(records), leavers, &events);
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
        let promised = Promised::default();
        let (mut moved, mut stayed) = (0, 0);
        let mut waiting = leavers.into_iter();
        let mut moves = JoinSet::new();
        loop {
            while moves.len() < parallel
                && let Some(leaver) = waiting.next()
            {
                let (this, promised) = (Arc::clone(&self), Arc::clone(&promised));
                let events = events.clone();
                moves.spawn(async move { this.relocate(leaver, &promised, &events).await });
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
        promised: &Promised,
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
        match self.try_everywhere(leaver, promised, events).await {
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
        promised: &Promised,
        events: &UnboundedSender<RelocateEvent>,
    ) -> Result<Option<(String, u64)>, String> {
        let Leaver { service, from, need_mib, mut wish, .. } = leaver;
        let mut tried = vec![from.clone()];
        let mut reasons = Vec::new();
        let mut awaited = None;
        loop {
            let records = self.store.list().await.map_err(|error| error.to_string())?;
            let record = records.iter().find(|record| record.spec.name == service);
            let Some(record) = record.filter(|it| it.owner.node() == Some(&from)) else {
                return Ok(None);
            };
            if let Some(id) = record.migration.clone() {
                // Somebody moves it already; if that fails, it is our turn.
                self.await_end(&id).await?;
                if awaited.as_ref() == Some(&id) {
                    return Err(format!("the move {id} is over and not closed in the store"));
                }
                awaited = Some(id);
                continue;
            }
            let to = wish.take().or_else(|| {
                let given = promised.lock().unwrap_or_else(PoisonError::into_inner);
                let rooms = less(self.rooms(&records), &given);
                placement::choose(&rooms, need_mib, &tried).map(str::to_owned)
            });
            let Some(to) = to else {
                reasons.push(no_room(need_mib));
                return Err(format!("{}; it runs on node {from} as before", reasons.join("; ")));
            };
            let _promise = Promise::new(promised, &to, need_mib);
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

fn plan(rooms: &[Room], leavers: Vec<Leaver>, events: &UnboundedSender<RelocateEvent>) {
    let mut promised = BTreeMap::new();
    let (mut moved, mut stayed) = (0, 0);
    for Leaver { service, from, need_mib, wish, .. } in leavers {
        let rooms = less(rooms.to_vec(), &promised);
        let except = std::slice::from_ref(&from);
        let to = wish.or_else(|| placement::choose(&rooms, need_mib, except).map(Into::into));
        let _ = events.send(match to {
            Some(to) => {
                *promised.entry(to.clone()).or_default() += need_mib;
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

fn need(record: &Record) -> u64 {
    u64::from(record.spec.memory_mib) + QEMU_OVERHEAD_MIB
}

fn leaver(record: &Record, from: &str, wish: Option<String>) -> Leaver {
    let service = record.spec.name.clone();
    let sleeps = sleeps_at(record, from);
    let need_mib = if sleeps { 0 } else { need(record) };
    Leaver { service, from: from.to_owned(), need_mib, sleeps, wish }
}

/// Whether a node answers for a service that sleeps.
fn sleeps_at(record: &Record, node: &str) -> bool {
    matches!(&record.owner, Ownership::Sleeping(sleep) if sleep.holder == node)
}

fn no_room(need_mib: u64) -> String {
    format!("no other node that is ready and not drained has {need_mib} MiB of memory to give")
}

/// What is left when promises are kept.
fn less(mut rooms: Vec<Room>, promised: &BTreeMap<String, u64>) -> Vec<Room> {
    for room in &mut rooms {
        let given = promised.get(&room.node).copied().unwrap_or(0);
        room.free_mib = room.free_mib.saturating_sub(given);
    }
    rooms
}

/// Memory promised on a node, until it is dropped.
struct Promise<'p> {
    promised: &'p Promised,
    node: String,
    need_mib: u64,
}

impl<'p> Promise<'p> {
    fn new(promised: &'p Promised, node: &str, need_mib: u64) -> Self {
        let mut all = promised.lock().unwrap_or_else(PoisonError::into_inner);
        *all.entry(node.to_owned()).or_default() += need_mib;
        Self { promised, node: node.to_owned(), need_mib }
    }
}

impl Drop for Promise<'_> {
    fn drop(&mut self) {
        let mut all = self.promised.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(given) = all.get_mut(&self.node) {
            *given = given.saturating_sub(self.need_mib);
        }
    }
}
