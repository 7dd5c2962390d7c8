//! Moves as objects, and the commit.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use hyper::Method;
use tokio::sync::mpsc;

use super::state::{MIGRATION_DOCUMENT, Manager, number};
use crate::api::client::Lines;
use crate::api::{
    ApiError, CommitAnswer, CommitRequest, Instance, InstanceState, Migration, MoveEvent,
    MoveRequest, now_us,
};
use crate::migration::{Outcome, Phase};
use crate::store::{Ownership, Record, Renewal, StoreError};

/// All moves.
#[derive(Debug)]
pub struct Moves {
    all: Mutex<BTreeMap<u32, Tracked>>,
    next: AtomicU32,
}

#[derive(Debug)]
struct Tracked {
    migration: Migration,
    /// The epoch under which the source runs.
    epoch: u64,
    events: Vec<MoveEvent>,
    followers: Vec<mpsc::UnboundedSender<MoveEvent>>,
}

impl Moves {
    /// The moves that a store has kept; the next one gets number `next`.
    #[must_use]
    pub fn new(finished: Vec<Migration>, next: AtomicU32) -> Self {
        let tracked = finished.into_iter().filter_map(|migration| {
            let number = number(&migration.id)?;
            Some((number, Tracked { migration, epoch: 0, events: vec![], followers: vec![] }))
        });
        Self { all: Mutex::new(tracked.collect()), next }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u32, Tracked>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, record: &Record, source: &str, destination: &str) -> (u32, Migration) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let migration = Migration {
            id: format!("m{number}"),
            service: record.spec.name.clone(),
            source: source.to_owned(),
            destination: destination.to_owned(),
            began_us: now_us(),
            phases: Vec::new(),
            phase: Some(Phase::Request),
            result: None,
            summary: None,
        };
        let begun = MoveEvent::Begun {
            migration: migration.id.clone(),
            service: migration.service.clone(),
            source: migration.source.clone(),
            destination: migration.destination.clone(),
        };
        let tracked = Tracked {
            migration: migration.clone(),
            epoch: record.epoch,
            events: vec![begun],
            followers: Vec::new(),
        };
        self.lock().insert(number, tracked);
        (number, migration)
    }

    /// Takes an event into the object and tells it to all who follow.
    fn add(&self, number: u32, event: &MoveEvent) -> Option<Migration> {
        let mut all = self.lock();
        let tracked = all.get_mut(&number)?;
        let migration = &mut tracked.migration;
        match event {
            MoveEvent::Begun { .. } => {}
            MoveEvent::Entered { phase } => migration.phase = Some(*phase),
            MoveEvent::Phase(record) => migration.phases.push(record.clone()),
            MoveEvent::Ended { result, summary } => {
                migration.phase = None;
                migration.result = Some(result.clone());
                migration.summary = Some(summary.clone());
            }
        }
        tracked.events.push(event.clone());
        tracked.followers.retain(|follower| follower.send(event.clone()).is_ok());
        if tracked.migration.result.is_some() {
            tracked.followers.clear();
        }
        Some(tracked.migration.clone())
    }

    /// All events of a move, those to come included.
    ///
    /// # Errors
    /// There is no such move, or it ended under another manager process.
    pub fn follow(&self, id: &str) -> Result<mpsc::UnboundedReceiver<MoveEvent>, ApiError> {
        let mut all = self.lock();
        let tracked =
            number(id).and_then(|number| all.get_mut(&number)).ok_or_else(|| unknown(id))?;
        let (sender, receiver) = mpsc::unbounded_channel();
        for event in &tracked.events {
            let _ = sender.send(event.clone());
        }
        if tracked.migration.result.is_none() {
            tracked.followers.push(sender);
        }
        Ok(receiver)
    }

    /// A move and the epoch it began with.
    ///
    /// # Errors
    /// There is none with this id.
    pub fn get(&self, id: &str) -> Result<(Migration, u64), ApiError> {
        let all = self.lock();
        let found = number(id).and_then(|number| all.get(&number));
        found.map(|t| (t.migration.clone(), t.epoch)).ok_or_else(|| unknown(id))
    }

    /// All moves, oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<Migration> {
        self.lock().values().map(|tracked| tracked.migration.clone()).collect()
    }
}

fn unknown(id: &str) -> ApiError {
    ApiError::not_found(format!("there is no move `{id}`"))
        .hint("`host-tools migration ls` lists them")
}

impl Manager {
    /// Begins a move and returns its id. Its events are to be followed.
    ///
    /// # Errors
    /// What is in the way; nothing was changed.
    pub async fn migrate(self: &Arc<Self>, name: &str, to: &str) -> Result<String, ApiError> {
        let record = self.record(name).await?;
        let source = self.owner(&record)?.to_owned();
        if source == to {
            return Err(ApiError::conflict(format!("`{name}` already runs on node {to}")));
        }
        let agent = self.nodes.client(&source)?;
        self.nodes.destination(to)?;
        let instance: Instance = agent.get(&format!("/v1/instances/{name}")).await?;
        if instance.state != InstanceState::Running {
            let why = instance.reason.unwrap_or_else(|| "it is frozen".into());
            return Err(ApiError::conflict(format!(
                "`{name}` does not run on node {source}: {why}"
            )));
        }
        let destination =
            self.nodes.last_report(to).map(|report| report.address).unwrap_or_default();
        let (number, migration) = self.moves.begin(&record, &source, to);
        let id = migration.id;
        let begin = Renewal::BeginMove { migration: id.clone() };
        if let Err(error) = self.store.renew(name, record.epoch, begin).await {
            self.end_move(number, name, record.epoch, kept(&error.to_string())).await;
            return Err(error.into());
        }
        let request = MoveRequest {
            migration: id.clone(),
            tunnel: number,
            destination,
            destination_name: to.to_owned(),
        };
        let path = format!("/v1/instances/{name}/move");
        match agent.lines(Method::POST, &path, &request).await {
            Ok(lines) => {
                let (this, name) = (Arc::clone(self), name.to_owned());
                tokio::spawn(
                    async move { this.follow_agent(number, name, record.epoch, lines).await },
                );
                Ok(id)
            }
            Err(error) => {
                let reason = format!("node {source}: {}", error.message);
                self.end_move(number, name, record.epoch, kept(&reason)).await;
                Err(error)
            }
        }
    }

    async fn follow_agent(&self, number: u32, name: String, epoch: u64, mut lines: Lines) {
        loop {
            match lines.next::<MoveEvent>().await {
                Ok(Some(event @ MoveEvent::Ended { .. })) => {
                    return self.end_move(number, &name, epoch, event).await;
                }
                Ok(Some(event)) => drop(self.moves.add(number, &event)),
                Ok(None) | Err(_) => break,
            }
        }
        // The source's agent is gone in the middle of the move: what the store says is what holds.
        let id = format!("m{number}");
        let answer = self.settle(&id, CommitRequest { epoch }).await;
        let result = match answer {
            Ok(CommitAnswer::Committed { epoch }) => Outcome::Held {
                phase: Phase::Remove,
                reason: "the source's agent ended during the move".into(),
                epoch,
            },
            _ => Outcome::Broken {
                phase: Phase::Request,
                reason: "the source's agent ended during the move".into(),
            },
        };
        self.end_move(number, &name, epoch, MoveEvent::Ended { result, summary: Box::default() })
            .await;
    }

    async fn end_move(&self, number: u32, name: &str, epoch: u64, event: MoveEvent) {
        let end = Renewal::EndMove { migration: format!("m{number}") };
        let epoch = match &event {
            MoveEvent::Ended { result: Outcome::Moved { epoch }, .. }
            | MoveEvent::Ended { result: Outcome::TakenBack { epoch, .. }, .. }
            | MoveEvent::Ended { result: Outcome::Held { epoch, .. }, .. } => *epoch,
            _ => epoch,
        };
        if let Err(error) = self.store.renew(name, epoch, end).await {
            eprintln!("move m{number} of `{name}` cannot be closed: {error}");
        }
        match &event {
            MoveEvent::Ended { result: Outcome::Broken { reason, .. }, .. } => {
                self.note_failure(name, reason.clone());
            }
            _ => self.forget_failure(name),
        }
        let Some(migration) = self.moves.add(number, &event) else { return };
        if let Ok(json) = serde_json::to_vec(&migration)
            && let Err(error) =
                self.store.put_document(MIGRATION_DOCUMENT, &migration.id, json).await
        {
            eprintln!("move m{number} is not kept: {error}");
        }
    }

    /// Gives a service to the destination of a move: one durable transaction.
    ///
    /// # Errors
    /// There is no such move. Everything else is an answer.
    pub async fn commit(&self, id: &str, request: CommitRequest) -> Result<CommitAnswer, ApiError> {
        let (migration, epoch) = self.moves.get(id)?;
        if request.epoch != epoch {
            let reason = format!("the move began at epoch {epoch}, not {}", request.epoch);
            return Ok(CommitAnswer::Refused { reason });
        }
        let owner = Ownership::Node { name: migration.destination };
        answer(self.store.advance(&migration.service, epoch, Some(id), owner).await)
    }

    /// Says how a commit went. If it did not happen, it will not happen any more.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn settle(&self, id: &str, request: CommitRequest) -> Result<CommitAnswer, ApiError> {
        let (migration, _) = self.moves.get(id)?;
        let end = Renewal::EndMove { migration: id.to_owned() };
        match self.store.renew(&migration.service, request.epoch, end).await {
            Ok(_) => {
                let reason = "the commit was not made".into();
                Ok(CommitAnswer::Refused { reason })
            }
            Err(StoreError::Epoch { found, .. }) if found == request.epoch + 1 => {
                Ok(CommitAnswer::Committed { epoch: found })
            }
            Err(error @ StoreError::Failed { .. }) => Err(error.into()),
            Err(error) => Ok(CommitAnswer::Refused { reason: error.to_string() }),
        }
    }

    /// Gives a service back to the source of a move whose destination has ended after the commit.
    ///
    /// # Errors
    /// There is no such move. Everything else is an answer.
    pub async fn take_back(
        &self,
        id: &str,
        request: CommitRequest,
    ) -> Result<CommitAnswer, ApiError> {
        let (migration, _) = self.moves.get(id)?;
        let owner = Ownership::Node { name: migration.source };
        answer(self.store.advance(&migration.service, request.epoch, Some(id), owner).await)
    }
}

fn kept(reason: &str) -> MoveEvent {
    let result = Outcome::Kept { phase: Phase::Request, reason: reason.to_owned() };
    MoveEvent::Ended { result, summary: Box::default() }
}

fn answer(result: Result<Record, StoreError>) -> Result<CommitAnswer, ApiError> {
    match result {
        Ok(record) => Ok(CommitAnswer::Committed { epoch: record.epoch }),
        // It may or may not be on the disk: the asker has to settle it.
        Err(error @ StoreError::Failed { .. }) => Err(error.into()),
        Err(error) => Ok(CommitAnswer::Refused { reason: error.to_string() }),
    }
}
