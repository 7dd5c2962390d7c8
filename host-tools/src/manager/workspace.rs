//! Checkpoint and restore.

use hyper::Method;

use super::services::{AGENT_LIMIT, START_LIMIT, view};
use super::state::Manager;
use crate::agent::checkpoint::MAX_SNAPSHOT;
use crate::api::spec::check_name;
use crate::api::{
    ApiError, Checkpoint, CheckpointRequest, Digest32, Instance, ResumeRequest, Resumed, Service,
    StartRequest, now_us,
};
use crate::security::Security;
use crate::snapshot::Snapshot;
use crate::store::{Ownership, Record, Renewal, StoreError};

/// Ids of checkpoints begin with this, those of moves do not.
pub const CHECKPOINT_PREFIX: &str = "c";

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
        let record = self.record(name).await?;
        self.owner(&record)?;
        if let Some(id) = &record.migration {
            let message = format!("a move or checkpoint of `{name}` is under way ({id})");
            return Err(ApiError::conflict(message));
        }
        if request.leave_running {
            return self.checkpoint_as(&record, &request).await;
        }
        // Like a move, so that whoever dies, the frozen instance and the snapshot cannot both go on.
        let id = format!("{CHECKPOINT_PREFIX}{}", now_us());
        let begin = Renewal::BeginMove { migration: id.clone() };
        self.store.renew(name, record.epoch, begin).await?;
        let request = CheckpointRequest { id: Some(id.clone()), ..request };
        let made = self.checkpoint_as(&record, &request).await;
        let epoch = if made.is_ok() { record.epoch + 1 } else { record.epoch };
        match self.store.renew(name, epoch, Renewal::EndMove { migration: id }).await {
            Ok(_) | Err(StoreError::Epoch { .. } | StoreError::NotFound { .. }) => made,
            Err(error) => Err(error.into()),
        }
    }

    async fn checkpoint_as(
        &self,
        record: &Record,
        request: &CheckpointRequest,
    ) -> Result<Checkpoint, ApiError> {
        let name = record.spec.name.as_str();
        let agent = self.nodes.client(self.owner(record)?)?;
        let path = format!("/v1/instances/{name}/checkpoint");
        let made: Checkpoint = agent.json(Method::POST, &path, request, START_LIMIT).await?;
        let kept = self.keep_snapshot(&agent, &made.snapshot).await;
        let forget = format!("/v1/snapshots/{}", made.snapshot);
        if request.leave_running {
            let _: Result<(), _> = agent.json(Method::DELETE, &forget, &(), AGENT_LIMIT).await;
            return kept.map(|()| made);
        }
        // From here on the snapshot is the service: the frozen instance may end.
        let suspended = match kept {
            Ok(()) => {
                let owner = Ownership::Snapshot { digest: made.snapshot };
                let id = request.id.as_deref();
                self.store.advance(name, record.epoch, id, owner).await.map_err(ApiError::from)
            }
            Err(error) => Err(error),
        };
        if let Err(error) = suspended {
            let path = format!("/v1/instances/{name}/abort");
            agent.json::<()>(Method::POST, &path, &(), AGENT_LIMIT).await?;
            return Err(ApiError {
                message: format!("{}; the service runs on", error.message),
                ..error
            });
        }
        let path = format!("/v1/instances/{name}");
        let _: Result<(), _> = agent.json(Method::DELETE, &path, &(), AGENT_LIMIT).await;
        let _: Result<(), _> = agent.json(Method::DELETE, &forget, &(), AGENT_LIMIT).await;
        Ok(made)
    }

    async fn keep_snapshot(
        &self,
        agent: &crate::api::Client,
        digest: &Digest32,
    ) -> Result<(), ApiError> {
        let bytes = agent.download(&format!("/v1/snapshots/{digest}"), MAX_SNAPSHOT).await?;
        if Digest32::of(&bytes) != *digest {
            return Err(ApiError::failed("the snapshot was damaged on its way to the manager"));
        }
        self.workspace.put(&bytes)?;
        Ok(())
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
    fn open_snapshot(&self, file: &[u8]) -> Result<Option<Vec<u8>>, ApiError> {
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
