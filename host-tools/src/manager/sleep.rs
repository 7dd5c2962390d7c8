//! Suspend and resume: a service sleeps in the workspace repository while a holder answers for it.
//!
//! ```text
//! suspend  drain, freeze, port closed → snapshot kept here → owner: Sleeping → holder → QEMU ended
//! resume   standby filled → owner: Waking → holder ended → guest resumes → owner: Node
//! ```
//!
//! Up to the change of owner every failure leaves things as they were. After it, the store says what
//! has to be done, and it is done however often somebody dies: a service that is Sleeping gets its
//! holder when its node reports without it, one that is Waking is woken, or put back to sleep.

use std::sync::Arc;

use hyper::Method;

use super::services::{AGENT_LIMIT, START_LIMIT, view};
use super::state::Manager;
use crate::api::{
    ApiError, Checkpoint, CheckpointRequest, Client, HoldRequest, HolderView, Instance, Knock,
    Problem, ReleaseRequest, ResumeRequest, Resumed, Service, StartRequest, SuspendRequest,
    Suspended, WakeRequest, now_us,
};
use crate::holder::HeldTable;
use crate::snapshot::Snapshot;
use crate::store::{Ownership, Record, Renewal, Sleep, StoreError};

impl Manager {
    /// Suspends a service; its connections stay open.
    ///
    /// # Errors
    /// What did not work; the service then runs on, unless the message says otherwise.
    pub async fn suspend(
        &self,
        name: &str,
        request: SuspendRequest,
    ) -> Result<Suspended, ApiError> {
        let _turn = self.turns.take(name)?;
        let record = self.record(name).await?;
        if record.owner.sleep().is_some() {
            return Err(ApiError::conflict(format!("`{name}` is suspended already")));
        }
        let node = self.owner(&record)?.to_owned();
        if let Some(migration) = &record.migration {
            return Err(ApiError::conflict(format!("`{name}` is being moved ({migration})")));
        }
        let agent = self.nodes.client(&node)?;
        let holder = request.on.unwrap_or(node);
        self.nodes.client(&holder)?;
        let checkpoint = CheckpointRequest { leave_running: false, hold: true };
        let path = format!("/v1/instances/{name}/checkpoint");
        let made: Checkpoint = agent.json(Method::POST, &path, &checkpoint, START_LIMIT).await?;
        let suspended = async {
            let bytes = self.keep_snapshot(&agent, &made.snapshot).await?;
            let table = table_of(bytes).await?;
            let sleep = Sleep {
                digest: made.snapshot,
                holder: holder.clone(),
                on_syn: request.on_syn,
                connections: table.connections.len() as u32,
                since_us: now_us(),
            };
            let owner = Ownership::Sleeping(sleep.clone());
            Ok((self.advance_surely(&record, owner).await?, sleep, table))
        };
        let (record, sleep, table) = match suspended.await {
            Ok(suspended) => suspended,
            Err(error) => return Err(self.run_on(&agent, name, error).await),
        };
        let held = self.hold(&record, &sleep, table).await;
        self.end_suspended(&agent, name, &made.snapshot).await;
        Ok(Suspended {
            snapshot: made.snapshot,
            bytes: made.bytes,
            connections: sleep.connections,
            holder,
            on_syn: sleep.on_syn,
            unheld: held.err().map(|error| error.message),
        })
    }

    /// Lets a suspended service go on, with its connections.
    ///
    /// # Errors
    /// What did not work; it then sleeps on, unless the message says otherwise.
    pub async fn wake_up(
        &self,
        name: &str,
        request: WakeRequest,
    ) -> Result<(Service, Resumed), ApiError> {
        let _turn = self.turns.take(name)?;
        let record = self.record(name).await?;
        let sleep = match &record.owner {
            Ownership::Sleeping(sleep) => sleep.clone(),
            Ownership::Waking { .. } => return self.finish_waking(record).await,
            Ownership::Node { name: node } => {
                return Err(ApiError::conflict(format!("`{name}` already runs on node {node}")));
            }
            Ownership::Snapshot { .. } => {
                self.owner(&record)?;
                return Err(ApiError::conflict(format!("`{name}` lies in a file")));
            }
        };
        let node = request.on.unwrap_or_else(|| sleep.holder.clone());
        let agent = self.nodes.client(&node)?;
        let digest = sleep.digest;
        let start = StartRequest {
            spec: record.spec.clone(),
            epoch: record.epoch + 1,
            snapshot: Some(digest),
        };
        let prepared = async {
            // Fences nobody yet, but a node that does not answer is better known now than half way.
            self.release(&record, &sleep.holder).await?;
            self.clear(&agent, &record).await?;
            agent.json::<Instance>(Method::POST, "/v1/instances", &start, START_LIMIT).await
        };
        if let Err(error) = prepared.await {
            return Err(still_asleep(error));
        }
        let waking = Ownership::Waking { name: node, sleep };
        match self.advance_surely(&record, waking).await {
            Ok(record) => self.finish_waking(record).await,
            Err(error) => {
                let _: Result<(), _> = self.clear(&agent, &record).await;
                Err(still_asleep(error))
            }
        }
    }

    /// A client asks for a sleeping service. Returns at once; asking again is harmless.
    ///
    /// # Errors
    /// There is no such service.
    pub async fn knock(self: &Arc<Self>, name: &str, knock: Knock) -> Result<(), ApiError> {
        let record = self.record(name).await?;
        let asleep = matches!(record.owner, Ownership::Sleeping(_));
        if record.spec.id == knock.id && record.epoch == knock.epoch && asleep {
            let (this, name) = (Arc::clone(self), name.to_owned());
            tokio::spawn(async move {
                if let Err(error) = this.wake_up(&name, WakeRequest::default()).await
                    && error.problem != Problem::Conflict
                {
                    eprintln!("{name}: a client asks for it: {error}");
                    this.note_failure(&name, error.message);
                }
            });
        }
        Ok(())
    }

    /// From the change of owner to the end. Doing it again is harmless.
    pub(super) async fn finish_waking(
        &self,
        record: Record,
    ) -> Result<(Service, Resumed), ApiError> {
        let Ownership::Waking { name: node, sleep } = &record.owner else {
            return Err(ApiError::failed(format!("`{}` is not waking", record.spec.name)));
        };
        let agent = self.nodes.client(node)?;
        if let Err(error) = self.release(&record, &sleep.holder).await {
            // The guest has not been told to go on: nothing has changed for anybody yet.
            self.clear(&agent, &record).await.map_err(|second| half_way(&record, node, second))?;
            return Err(self.sleep_on(&record, sleep, error).await);
        }
        let name = &record.spec.name;
        let path = format!("/v1/instances/{name}/resume");
        let resume = ResumeRequest { epoch: record.epoch };
        let resumed: Result<Resumed, ApiError> =
            agent.json(Method::POST, &path, &resume, START_LIMIT).await;
        let resumed = match resumed {
            Ok(resumed) => resumed,
            Err(error) => {
                // It runs, or after this it never will.
                let path = format!("/v1/instances/{name}/resolve");
                match agent.json::<bool>(Method::POST, &path, &resume, AGENT_LIMIT).await {
                    Ok(true) => Resumed { connections: sleep.connections, held_frames: 0 },
                    Ok(false) => return Err(self.sleep_on(&record, sleep, error).await),
                    Err(second) => return Err(half_way(&record, node, second)),
                }
            }
        };
        let digest = sleep.digest;
        let record = self.store.renew(name, record.epoch, Renewal::Awake).await?;
        self.forget_failure(name);
        if let Err(error) = self.workspace.remove(&digest) {
            eprintln!("{name}: its snapshot is of no more use, and cannot be removed: {error}");
        }
        let instance = agent.get::<Instance>(&format!("/v1/instances/{name}")).await;
        Ok((view(record, instance), resumed))
    }

    /// Back to sleep. Nothing of the service runs, and nothing will under the epoch of `record`.
    async fn sleep_on(&self, record: &Record, sleep: &Sleep, error: ApiError) -> ApiError {
        let asleep = self.advance_surely(record, Ownership::Sleeping(sleep.clone())).await;
        let held = match asleep {
            Ok(record) => self.hold_again(&record, sleep).await,
            Err(error) => Err(error),
        };
        match held {
            Ok(()) => still_asleep(error),
            Err(second) => ApiError {
                message: format!(
                    "{}; `{}` is still asleep, and nobody answers for it: {}",
                    error.message, record.spec.name, second.message
                ),
                ..error
            }
            .hint("the manager tries again when the node reports"),
        }
    }

    /// Has a node answer for a sleeping service.
    async fn hold(&self, record: &Record, sleep: &Sleep, table: HeldTable) -> Result<(), ApiError> {
        let request = HoldRequest {
            spec: record.spec.clone(),
            epoch: record.epoch,
            on_syn: sleep.on_syn,
            table,
        };
        let held = async {
            let agent = self.nodes.client(&sleep.holder)?;
            agent.json::<HolderView>(Method::POST, "/v1/holders", &request, AGENT_LIMIT).await
        };
        let name = &record.spec.name;
        match held.await {
            Ok(_) => {
                self.forget_failure(name);
                Ok(())
            }
            Err(error) => {
                let message = format!("nobody answers for it: {}", error.message);
                self.note_failure(name, message);
                Err(error)
            }
        }
    }

    pub(super) async fn hold_again(&self, record: &Record, sleep: &Sleep) -> Result<(), ApiError> {
        let table = table_of(self.workspace.get(&sleep.digest)?).await?;
        self.hold(record, sleep, table).await
    }

    /// When this is done, nobody answers for the service under an epoch lower than the record's.
    async fn release(&self, record: &Record, node: &str) -> Result<(), ApiError> {
        let fence = ReleaseRequest { id: record.spec.id.clone(), below: record.epoch };
        self.release_on(node, &record.spec.name, &fence).await
    }

    pub(super) async fn release_on(
        &self,
        node: &str,
        name: &str,
        fence: &ReleaseRequest,
    ) -> Result<(), ApiError> {
        let path = format!("/v1/holders/{name}");
        let agent = self.nodes.client(node)?;
        let ended = agent.json::<bool>(Method::DELETE, &path, fence, AGENT_LIMIT).await;
        ended.map(drop).map_err(|error| ApiError {
            message: format!(
                "node {node} answers for `{name}` and could not be told to stop: {}",
                error.message
            ),
            ..error
        })
    }

    /// Removes an instance of a sleeping service, which an attempt that broke off has left.
    pub(super) async fn clear(&self, agent: &Client, record: &Record) -> Result<(), ApiError> {
        let path = format!("/v1/instances/{}", record.spec.name);
        match agent.get::<Instance>(&path).await {
            Ok(instance) if instance.spec.id == record.spec.id => {
                agent.json(Method::DELETE, &path, &(), AGENT_LIMIT).await
            }
            Err(error) if error.problem != Problem::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Changes the owner, and finds out what became of it if the store does not say.
    async fn advance_surely(&self, record: &Record, owner: Ownership) -> Result<Record, ApiError> {
        let name = &record.spec.name;
        match self.store.advance(name, record.epoch, None, owner.clone()).await {
            Err(StoreError::Failed { reason }) => {
                let found = self.store.get(name).await?;
                let made = found.filter(|it| it.epoch == record.epoch + 1 && it.owner == owner);
                made.ok_or_else(|| StoreError::Failed { reason }.into())
            }
            other => Ok(other?),
        }
    }
}

/// Checks a whole snapshot and takes the table of connections out of it.
async fn table_of(bytes: Vec<u8>) -> Result<HeldTable, ApiError> {
    let read = tokio::task::spawn_blocking(move || Snapshot::read(&bytes));
    let snapshot = read
        .await
        .map_err(ApiError::failed)?
        .map_err(|error| ApiError::failed(format!("the snapshot cannot be used: {error}")))?;
    snapshot.meta.held.ok_or_else(|| ApiError::failed("the snapshot does not tell its connections"))
}

fn still_asleep(error: ApiError) -> ApiError {
    ApiError {
        message: format!("{}; it is still asleep, its connections held", error.message),
        ..error
    }
}

fn half_way(record: &Record, node: &str, error: ApiError) -> ApiError {
    ApiError {
        message: format!(
            "node {node} owns `{}` (epoch {}) and does not say whether it runs: {}",
            record.spec.name, record.epoch, error.message
        ),
        ..error
    }
    .hint(format!("the manager goes on when node {node} reports"))
}
