//! Beginning and ending a move, and the commit between.

use std::sync::Arc;
use std::time::Duration;

use hyper::Method;

use super::cancel::under_way;
use super::moves::KeptMove;
use super::state::{MIGRATION_DOCUMENT, Manager};
use super::workspace::CHECKPOINT_PREFIX;
use crate::api::{
    ApiError, CommitAnswer, CommitRequest, Instance, InstanceState, MoveEvent, MoveRequest,
    OwnershipAnswer, OwnershipRequest,
};
use crate::migration::precopy::Limits;
use crate::migration::{Outcome, Phase};
use crate::security::signature::Grant;
use crate::store::{Ownership, Record, Renewal, StoreError};
use crate::trace;

/// Pause between two attempts to write the end of a move into a store that fails.
const STORE_PAUSE: Duration = Duration::from_secs(2);

impl Manager {
    /// Begins a move and returns its id. Its events are to be followed.
    ///
    /// # Errors
    /// What is in the way; nothing was changed.
    pub async fn migrate(
        self: &Arc<Self>,
        name: &str,
        to: &str,
        limits: Limits,
    ) -> Result<String, ApiError> {
        let record = self.record(name).await?;
        if let Some(id) = &record.migration {
            return Err(under_way(name, id));
        }
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
        let number = self.moves.begin(&record, &source, to);
        let id = format!("m{number}");
        // Durable first: from here on this move ends in a final state, whoever dies.
        let begun = async {
            if let Some(kept) = self.moves.kept(number) {
                self.keep(&kept).await?;
            }
            let begin = Renewal::BeginMove { migration: id.clone() };
            self.store.renew(name, record.epoch, begin).await
        };
        if let Err(error) = begun.await {
            self.end_move(number, kept(&error.to_string())).await;
            return Err(error.into());
        }
        let request = MoveRequest {
            migration: id.clone(),
            destination,
            destination_name: to.to_owned(),
            limits,
        };
        let path = format!("/v1/instances/{name}/move");
        match agent.lines(Method::POST, &path, &request).await {
            Ok(lines) => {
                tracing::info!("move {id}: {name} goes from {source} to {to}");
                tokio::spawn(trace::carry(Arc::clone(self).finish(number, Some(lines))));
                Ok(id)
            }
            Err(error) => {
                let reason = format!("node {source}: {}", error.message);
                self.end_move(number, kept(&reason)).await;
                Err(error)
            }
        }
    }

    pub(super) async fn keep(&self, kept: &KeptMove) -> Result<(), StoreError> {
        let json = serde_json::to_vec(kept)
            .map_err(|error| StoreError::Failed { reason: error.to_string() })?;
        self.store.put_document(MIGRATION_DOCUMENT, &kept.migration.id, json).await
    }

    /// Ends a move: first its document is final, then the record lets go of it, then it is told.
    pub(super) async fn end_move(&self, number: u32, event: MoveEvent) {
        let MoveEvent::Ended { result, .. } = &event else { return };
        let Some(kept) = self.moves.preview(number, &event) else { return };
        while let Err(error) = self.close(&kept, result).await {
            tracing::warn!("the end of move m{number} is not kept yet: {error}");
            tokio::time::sleep(STORE_PAUSE).await;
        }
        let name = &kept.migration.service;
        match result {
            Outcome::Broken { reason, .. } => self.note_failure(name, reason.clone()),
            _ => self.forget_failure(name),
        }
        self.metrics.ended(&kept.migration);
        tracing::info!("move m{number} of {name} has ended: {result:?}");
        self.moves.add(number, event);
    }

    async fn close(&self, kept: &KeptMove, result: &Outcome) -> Result<(), StoreError> {
        self.keep(kept).await?;
        let name = &kept.migration.service;
        let epoch = match result {
            Outcome::Moved { epoch }
            | Outcome::TakenBack { epoch, .. }
            | Outcome::Held { epoch, .. } => *epoch,
            Outcome::Kept { .. } => kept.epoch,
            Outcome::Broken { .. } => match self.store.get(name).await? {
                Some(record) => record.epoch,
                None => return Ok(()),
            },
        };
        let end = Renewal::EndMove { migration: kept.migration.id.clone() };
        match self.store.renew(name, epoch, end).await {
            // Somebody has settled it before, and the service has gone its way since.
            Ok(_) | Err(StoreError::NotFound { .. } | StoreError::Epoch { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether a move could be committed now: the store answers, and has it as it began.
    ///
    /// # Errors
    /// There is no such move, it could not be, or the store does not answer.
    pub async fn ready(&self, id: &str, request: CommitRequest) -> Result<(), ApiError> {
        let (migration, _) = self.moves.get(id)?;
        let name = &migration.service;
        match self.store.get(name).await? {
            Some(record)
                if record.epoch == request.epoch && record.migration.as_deref() == Some(id) =>
            {
                Ok(())
            }
            _ => Err(ApiError::conflict(format!("the move of {name} is over: it was settled"))),
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
        let advanced = self.store.advance(&migration.service, epoch, Some(id), owner).await;
        answer(advanced, |record| self.granted(record))
    }

    /// The signature that a service is its owner's.
    fn granted(&self, record: &Record) -> String {
        let Ownership::Node { name: node } = &record.owner else { return String::new() };
        let service = &record.spec.id;
        self.members.grant(&Grant { service, node, epoch: record.epoch })
    }

    /// Says how a commit went. If it did not happen, it will not happen any more.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn settle(&self, id: &str, request: CommitRequest) -> Result<CommitAnswer, ApiError> {
        let (migration, _) = self.moves.get(id)?;
        let end = Renewal::EndMove { migration: id.to_owned() };
        let ended = self.store.renew(&migration.service, request.epoch, end).await;
        match settled(ended, request.epoch)? {
            CommitAnswer::Committed { epoch, .. } => {
                let record = self.record(&migration.service).await?;
                let (service, node) = (&record.spec.id, &migration.destination);
                let grant = self.members.grant(&Grant { service, node, epoch });
                Ok(CommitAnswer::Committed { epoch, grant })
            }
            refused => Ok(refused),
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
        let advanced = self.store.advance(&migration.service, request.epoch, Some(id), owner).await;
        answer(advanced, |record| self.granted(record))
    }

    /// Says whose a service is, after making sure that the move named does not commit any more unless
    /// it has.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn ownership(
        &self,
        name: &str,
        request: OwnershipRequest,
    ) -> Result<OwnershipAnswer, ApiError> {
        if let Some(id) = request.settle {
            self.settle_any(name, &id).await?;
        }
        let record = self.store.get(name).await?;
        Ok(match record.filter(|record| record.spec.id == request.id) {
            Some(Record { owner: Ownership::Node { name }, epoch, migration, .. }) => {
                OwnershipAnswer::Node { name, epoch, migration }
            }
            Some(Record { owner: Ownership::Waking { name, .. }, epoch, .. }) => {
                OwnershipAnswer::Waking { name, epoch }
            }
            Some(Record {
                owner: Ownership::Snapshot { .. } | Ownership::Sleeping(_),
                epoch,
                ..
            }) => OwnershipAnswer::Snapshot { epoch },
            None if self.store.last_epoch(&request.id).await? == 0 => OwnershipAnswer::Unknown,
            None => OwnershipAnswer::Released,
        })
    }

    /// Makes sure that a move or checkpoint does not commit any more, unless it has.
    async fn settle_any(&self, name: &str, id: &str) -> Result<(), ApiError> {
        if id.starts_with(CHECKPOINT_PREFIX) {
            let record = self.store.get(name).await?;
            let open = record.filter(|record| record.migration.as_deref() == Some(id));
            if let Some(Record { owner: Ownership::Node { .. }, epoch, .. }) = open {
                let end = Renewal::EndMove { migration: id.to_owned() };
                match self.store.renew(name, epoch, end).await {
                    Ok(_) | Err(StoreError::Epoch { .. } | StoreError::NotFound { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        } else if let Ok((migration, epoch)) = self.moves.get(id)
            && migration.service == name
        {
            self.settle(id, CommitRequest { epoch }).await?;
        }
        Ok(())
    }
}

fn kept(reason: &str) -> MoveEvent {
    let result = Outcome::Kept { phase: Phase::Request, reason: reason.to_owned() };
    MoveEvent::Ended { result, summary: Box::default() }
}

fn answer(
    result: Result<Record, StoreError>,
    granted: impl FnOnce(&Record) -> String,
) -> Result<CommitAnswer, ApiError> {
    match result {
        Ok(record) => Ok(CommitAnswer::Committed { epoch: record.epoch, grant: granted(&record) }),
        // It may or may not be on the disk: the asker has to settle it.
        Err(error) if error.leaves_open() => Err(error.into()),
        Err(error) => Ok(CommitAnswer::Refused { reason: error.to_string() }),
    }
}

/// What it means for a move that began at `epoch` that it was to be ended without a commit.
fn settled(result: Result<Record, StoreError>, epoch: u64) -> Result<CommitAnswer, ApiError> {
    match result {
        Ok(_) => Ok(CommitAnswer::Refused { reason: "the commit was not made".into() }),
        Err(StoreError::Epoch { found, .. }) if found == epoch + 1 => {
            Ok(CommitAnswer::Committed { epoch: found, grant: String::new() })
        }
        // It may still commit.
        Err(error) if error.leaves_open() => Err(error.into()),
        Err(error) => Ok(CommitAnswer::Refused { reason: error.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::record;

    /// A source that hears "refused" goes on: it hears that only if the store has said so.
    #[test]
    fn a_store_that_does_not_say_refuses_nothing() {
        let name = || "p".to_owned();
        let wrong_epoch = |found| StoreError::Epoch { name: name(), expected: 4, found };
        let says = |error: StoreError| {
            (answer(Err(error.clone()), |_| String::new()), settled(Err(error), 4))
        };
        for error in [
            StoreError::Failed { reason: "the disk is full".into() },
            StoreError::Silent { reason: "no leader".into() },
        ] {
            assert!(matches!(says(error.clone()), (Err(_), Err(_))), "{error}");
        }
        for error in [
            StoreError::NotFound { name: name() },
            StoreError::Move { name: name(), expected: "m1".into(), found: "m2".into() },
            wrong_epoch(3),
            wrong_epoch(6),
        ] {
            let refused = |answer| matches!(answer, Ok(CommitAnswer::Refused { .. }));
            let (committed, ended) = says(error.clone());
            assert!(refused(committed) && refused(ended), "{error}");
        }
        // That it has committed is an end too.
        let (_, ended) = says(wrong_epoch(5));
        assert!(matches!(ended, Ok(CommitAnswer::Committed { epoch: 5, .. })));
        assert!(matches!(settled(Ok(record("p", 50)), 4), Ok(CommitAnswer::Refused { .. })));
    }
}
