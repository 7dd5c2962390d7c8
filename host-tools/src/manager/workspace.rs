//! Checkpoint and restore.

use std::sync::Arc;

use hyper::Method;

use super::services::{AGENT_LIMIT, START_LIMIT, view};
use super::state::Manager;
use crate::agent::checkpoint::MAX_SNAPSHOT;
use crate::api::spec::check_name;
use crate::api::{
    ApiError, Checkpoint, CheckpointRequest, Client, Digest32, Instance, ResumeRequest, Resumed,
    Service, StartRequest, now_us,
};
use crate::security::Security;
use crate::snapshot::Snapshot;
use crate::store::{Ownership, Record, Renewal, StoreError};

/// Ids of checkpoints begin with this, those of moves do not.
pub const CHECKPOINT_PREFIX: &str = "c";

/// A snapshot that the repository has, while its instance waits, frozen, for whose the service is.
#[derive(Debug)]
pub(super) struct Captured {
    /// The record names it until it is over.
    id: String,
    agent: Arc<Client>,
    pub(super) made: Checkpoint,
    pub(super) bytes: Vec<u8>,
}

impl Manager {
    /// Makes a snapshot of a service and keeps it. The service ends unless it is left running.
    ///
    /// # Errors
    /// What did not work; the service runs on unless the message says otherwise.
    pub async fn checkpoint(
        &self,
        name: &str,
        request: CheckpointRequest,
    ) -> Result<Checkpoint, ApiError> {
        let _turn = self.turns.take(name)?;
        let record = self.at_rest(name).await?;
        if request.leave_running {
            let agent = self.nodes.client(self.owner(&record)?)?;
            let path = format!("/v1/instances/{name}/checkpoint");
            let request = CheckpointRequest { id: None, ..request };
            let made: Checkpoint = agent.json(Method::POST, &path, &request, START_LIMIT).await?;
            let kept = self.keep_snapshot(&agent, &made.snapshot).await;
            let forget = format!("/v1/snapshots/{}", made.snapshot);
            let _: Result<(), _> = agent.json(Method::DELETE, &forget, &(), AGENT_LIMIT).await;
            return kept.map(|_| made);
        }
        let captured = self.capture(&record, request.hold).await?;
        let owner = Ownership::Snapshot { digest: captured.made.snapshot };
        let record = self.hand_over(&record, &captured, owner).await?;
        self.close_capture(record, &captured).await;
        Ok(captured.made)
    }

    /// The record of a service that runs on a node and that nobody moves or checkpoints.
    pub(super) async fn at_rest(&self, name: &str) -> Result<Record, ApiError> {
        let record = self.record(name).await?;
        self.owner(&record)?;
        match &record.migration {
            None => Ok(record),
            Some(id) => Err(ApiError::conflict(format!(
                "a move or checkpoint of `{name}` is under way ({id})"
            ))),
        }
    }

    /// Freezes a service and keeps its snapshot. Like a move it has an id that the record names, so that
    /// whoever dies, the frozen instance and the snapshot cannot both go on.
    ///
    /// # Errors
    /// What did not work; the service runs on unless the message says otherwise.
    pub(super) async fn capture(&self, record: &Record, hold: bool) -> Result<Captured, ApiError> {
        let name = &record.spec.name;
        let agent = self.nodes.client(self.owner(record)?)?;
        let id = format!("{CHECKPOINT_PREFIX}{}", now_us());
        let begin = Renewal::BeginMove { migration: id.clone() };
        self.store.renew(name, record.epoch, begin).await?;
        let request = CheckpointRequest { leave_running: false, hold, id: Some(id.clone()) };
        let path = format!("/v1/instances/{name}/checkpoint");
        let made: Checkpoint = match agent.json(Method::POST, &path, &request, START_LIMIT).await {
            Ok(made) => made,
            Err(error) => {
                // An agent that froze it all the same reports it, and is told that it may go on.
                self.end_capture(record, &id).await?;
                return Err(error);
            }
        };
        let mut captured = Captured { id, agent, made, bytes: Vec::new() };
        match self.keep_snapshot(&captured.agent, &captured.made.snapshot).await {
            Ok(bytes) => {
                captured.bytes = bytes;
                Ok(captured)
            }
            Err(error) => Err(self.run_on(record, &captured, error).await),
        }
    }

    /// Gives a service to its snapshot: from here on that is the service, and the frozen instance may end.
    ///
    /// # Errors
    /// What did not work; the service runs on unless the message says otherwise.
    pub(super) async fn hand_over(
        &self,
        record: &Record,
        captured: &Captured,
        owner: Ownership,
    ) -> Result<Record, ApiError> {
        match self.advance_surely(record, Some(&captured.id), owner).await {
            Ok(record) => Ok(record),
            Err(error) => Err(self.run_on(record, captured, error).await),
        }
    }

    /// Ends the frozen instance, what its agent keeps of it, and the id. What does not work is done when the
    /// node reports, or when the id is in somebody's way.
    pub(super) async fn close_capture(&self, record: Record, captured: &Captured) {
        let Captured { agent, made, .. } = captured;
        let name = &record.spec.name;
        for path in [format!("/v1/instances/{name}"), format!("/v1/snapshots/{}", made.snapshot)] {
            let _: Result<(), _> = agent.json(Method::DELETE, &path, &(), AGENT_LIMIT).await;
        }
        if let Err(error) = self.let_go(record).await {
            tracing::warn!("{error}");
        }
    }

    /// The service is not given to its snapshot: the frozen instance goes on. Returns what is to be said.
    pub(super) async fn run_on(
        &self,
        record: &Record,
        captured: &Captured,
        error: ApiError,
    ) -> ApiError {
        let Captured { id, agent, .. } = captured;
        let path = format!("/v1/instances/{}/abort", record.spec.name);
        let aborted = async {
            self.end_capture(record, id).await?;
            agent.json::<()>(Method::POST, &path, &(), AGENT_LIMIT).await
        };
        let then = match aborted.await {
            Ok(()) => "the service runs on".into(),
            Err(second) => format!("it goes on when its node can be asked: {}", second.message),
        };
        ApiError { message: format!("{}; {then}", error.message), ..error }
    }

    /// Makes sure that a service cannot be given to its snapshot any more.
    async fn end_capture(&self, record: &Record, id: &str) -> Result<(), ApiError> {
        let end = Renewal::EndMove { migration: id.to_owned() };
        match self.store.renew(&record.spec.name, record.epoch, end).await {
            Ok(_) | Err(StoreError::Epoch { .. } | StoreError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The record without the id of the checkpoint that is over.
    pub(super) async fn let_go(&self, record: Record) -> Result<Record, ApiError> {
        let Some(migration) = record.migration.clone() else { return Ok(record) };
        let end = Renewal::EndMove { migration };
        Ok(self.store.renew(&record.spec.name, record.epoch, end).await?)
    }

    /// Changes the owner, and finds out what became of it if the store does not say.
    pub(super) async fn advance_surely(
        &self,
        record: &Record,
        migration: Option<&str>,
        owner: Ownership,
    ) -> Result<Record, ApiError> {
        let name = &record.spec.name;
        match self.store.advance(name, record.epoch, migration, owner.clone()).await {
            Err(error) if error.leaves_open() => {
                let found = self.store.get(name).await?;
                let made = found.filter(|it| it.epoch == record.epoch + 1 && it.owner == owner);
                made.ok_or_else(|| error.into())
            }
            other => Ok(other?),
        }
    }

    /// Fetches a snapshot from an agent and makes it durable; returns its bytes.
    async fn keep_snapshot(&self, agent: &Client, digest: &Digest32) -> Result<Vec<u8>, ApiError> {
        let bytes = agent.download(&format!("/v1/snapshots/{digest}"), MAX_SNAPSHOT).await?;
        if Digest32::of(&bytes) != *digest {
            return Err(ApiError::failed("the snapshot was damaged on its way to the manager"));
        }
        self.workspace.put(&bytes)?;
        Ok(bytes)
    }

    /// Lets a service go on from a snapshot.
    ///
    /// # Errors
    /// Why the snapshot or the node is refused; what runs is not touched.
    pub async fn restore(
        &self,
        file: &[u8],
        node: &str,
        name: Option<String>,
    ) -> Result<(Service, Resumed), ApiError> {
        let opened = self.open_snapshot(file)?;
        let snapshot = Snapshot::read(opened.as_deref().unwrap_or(file))
            .map_err(|error| ApiError::invalid(format!("{error}; nothing was changed")))?;
        let mut spec = snapshot.meta.spec.clone();
        let build_id = Digest32(snapshot.header.build_id);
        spec.image = self.images.find_build(&build_id).ok_or_else(|| {
            ApiError::not_found(format!(
                "the snapshot is of image {} (build id {}), which is not in the service repository",
                spec.image.name,
                build_id.short()
            ))
            .hint("push that very image with `host-tools image push FILE NAME`")
        })?;
        if let Some(name) = name {
            check_name(&name).map_err(|error| ApiError::invalid(error.to_string()))?;
            spec.name = name;
        }
        let agent = self.nodes.destination(node)?;
        let _turn = self.turns.take(&spec.name)?;
        let digest = self.workspace.put(file)?;
        let record =
            self.claim_restored(spec, snapshot.header.epoch, snapshot.meta.made_us, node).await?;
        let start =
            StartRequest { spec: record.spec.clone(), epoch: record.epoch, snapshot: Some(digest) };
        let path = format!("/v1/instances/{}/resume", record.spec.name);
        let resumed = async {
            agent.json::<Instance>(Method::POST, "/v1/instances", &start, START_LIMIT).await?;
            let resume = ResumeRequest { epoch: record.epoch };
            agent.json::<Resumed>(Method::POST, &path, &resume, START_LIMIT).await
        };
        match resumed.await {
            Ok(resumed) => {
                self.forget_failure(&record.spec.name);
                let path = format!("/v1/instances/{}", record.spec.name);
                let instance = agent.get::<Instance>(&path).await;
                Ok((view(record, instance), resumed))
            }
            Err(error) => {
                self.give_up_start(&agent, &record).await;
                Err(ApiError {
                    message: format!(
                        "{}; nothing was restored, the snapshot is unharmed",
                        error.message
                    ),
                    ..error
                })
            }
        }
    }

    /// A sealed snapshot, opened; `None` where nothing is sealed.
    pub(super) fn open_snapshot(&self, file: &[u8]) -> Result<Option<Vec<u8>>, ApiError> {
        if matches!(self.nodes.security(), Security::Plain) {
            return Ok(None);
        }
        let opened = self.members.seal_key().open(file);
        opened.map(Some).map_err(|error| ApiError::invalid(format!("{error}; nothing was changed")))
    }

    /// The ownership of a restored service: a suspended one goes on, under its old name or a new one;
    /// else name and address must be free.
    async fn claim_restored(
        &self,
        spec: crate::api::ServiceSpec,
        snapshot_epoch: u64,
        made_us: u64,
        node: &str,
    ) -> Result<Record, ApiError> {
        let owner = Ownership::Node { name: node.to_owned() };
        let suspended = self
            .store
            .list()
            .await?
            .into_iter()
            .find(|other| other.spec.id == spec.id && other.owner.node().is_none());
        if let Some(suspended) = suspended {
            if suspended.owner.sleep().is_some() {
                let name = &suspended.spec.name;
                return Err(ApiError::conflict(format!(
                    "`{name}` is suspended, its connections held: a file of it may be older"
                ))
                .hint(format!("`host-tools resume {name}` lets it go on")));
            }
            self.store.release(&suspended.spec.name, suspended.epoch).await?;
        }
        let record =
            Record { spec, owner, epoch: snapshot_epoch + 1, migration: None, created_us: made_us };
        self.store.claim(record).await.map_err(|error| {
            let owner = match &error {
                StoreError::NameTaken { name } => Some(name.clone()),
                StoreError::AddressTaken { owner, .. } => Some(owner.clone()),
                _ => None,
            };
            let error = ApiError::from(error);
            match owner {
                Some(owner) => {
                    let message = format!("{}; it was not touched", error.message);
                    ApiError { message, ..error }.hint(format!(
                        "end it with `host-tools stop {owner}` before its place is taken"
                    ))
                }
                None => error,
            }
        })
    }
}
