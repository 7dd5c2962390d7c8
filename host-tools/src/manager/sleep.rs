//! Suspend and resume: a service sleeps in the workspace repository while a holder answers for it.
//!
//! ```text
//! suspend  drain, freeze, port closed → snapshot kept here → owner: Sleeping → holder → QEMU ended
//! resume   standby filled → owner: Waking → holder ended → guest resumes → owner: Node
//! ```
//!
//! Up to the change of owner every failure leaves things as they were. After it, the store says what
//! has to be done, and it is done however often somebody dies ([`tend`](super::tend)): a service that is
//! Sleeping gets its holder when its node reports without it, one that is Waking is woken, or put back to
//! sleep. What becomes of instances is decided by their agents
//! ([`recovery`](crate::agent::recovery)): a frozen one goes on unless the service was given away, and one that
//! was filled stands by until it is ordered to go on, or the service sleeps again.

use std::sync::Arc;

use hyper::Method;

use super::promises::{Promise, need_mib};
use super::services::{AGENT_LIMIT, START_LIMIT, view};
use super::state::Manager;
use crate::api::{
    ApiError, Client, HoldRequest, HolderView, Instance, InstanceState, Knock, Problem,
    ReleaseRequest, ResumeRequest, Resumed, Service, StartRequest, SuspendRequest, Suspended,
    WakeRequest, now_us,
};
use crate::holder::HeldTable;
use crate::snapshot::Snapshot;
use crate::store::{Ownership, Record, Renewal, Sleep};

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
        if let Ownership::Sleeping(_) = self.record(name).await?.owner {
            return Err(ApiError::conflict(format!("`{name}` is suspended already")));
        }
        let record = self.at_rest(name).await?;
        let holder = match request.on {
            Some(node) => {
                self.nodes.destination(&node)?;
                node
            }
            None => self.owner(&record)?.to_owned(),
        };
        let captured = self.capture(&record, true).await?;
        let made = &captured.made;
        let table = match self.table_of(captured.bytes.clone()).await {
            Ok(table) => table,
            Err(error) => return Err(self.run_on(&record, &captured, error).await),
        };
        let sleep = Sleep {
            digest: made.snapshot,
            holder: holder.clone(),
            on_syn: request.on_syn,
            connections: table.connections.len() as u32,
            since_us: now_us(),
        };
        let owner = Ownership::Sleeping(sleep.clone());
        let record = self.hand_over(&record, &captured, owner).await?;
        let held = self.hold(&record, &sleep, table).await;
        self.close_capture(record, &captured).await;
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
        let (node, _promise) = match request.on {
            Some(node) => (node, None),
            None => self.place_to_wake(&record, &sleep).await?,
        };
        let agent = self.nodes.destination(&node)?;
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
        let advanced = async {
            let record = self.let_go(record.clone()).await?;
            self.advance_surely(&record, None, waking).await
        };
        match advanced.await {
            Ok(record) => self.finish_waking(record).await,
            Err(error) => {
                let _: Result<(), _> = self.clear(&agent, &record).await;
                Err(still_asleep(error))
            }
        }
    }

    /// The node that answers for it, or another if that one is drained or silent.
    async fn place_to_wake(
        &self,
        record: &Record,
        sleep: &Sleep,
    ) -> Result<(String, Option<Promise>), ApiError> {
        match self.nodes.destination(&sleep.holder) {
            Ok(_) if self.nodes.is_ready(&sleep.holder) => Ok((sleep.holder.clone(), None)),
            _ => {
                let placed = self.place(&record.spec.name, need_mib(record)).await;
                placed.map(|(node, promise)| (node, Some(promise)))
            }
        }
    }

    /// Has another node than `from` answer for a sleeping service; returns which. `None` if `from` does not: it has
    /// been woken, stopped or given to another meanwhile.
    ///
    /// # Errors
    /// What did not work; unless the message says otherwise `from` answers on.
    pub(super) async fn hold_elsewhere(
        &self,
        name: &str,
        from: &str,
    ) -> Result<Option<String>, ApiError> {
        let _turn = self.turns.take(name)?;
        let Some(record) = self.store.get(name).await? else { return Ok(None) };
        let sleep = match &record.owner {
            Ownership::Sleeping(sleep) if sleep.holder == from => sleep.clone(),
            _ => return Ok(None),
        };
        let holder = self.place_holder(from).await?;
        // Fences nobody yet, but a node that does not answer is better known now than half way.
        self.release(&record, from).await?;
        let record = self.let_go(record).await?;
        let sleep = Sleep { holder: holder.clone(), ..sleep };
        let record = self.advance_surely(&record, None, Ownership::Sleeping(sleep.clone())).await?;
        let held = async {
            self.release(&record, from).await?;
            self.hold_again(&record, &sleep).await
        };
        match held.await {
            Ok(()) => Ok(Some(holder)),
            Err(error) => Err(ApiError {
                message: format!(
                    "node {holder} is to answer for `{name}`, and does not yet: {}",
                    error.message
                ),
                ..error
            }
            .hint("the manager goes on when the nodes report")),
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
                    tracing::warn!("{name}: a client asks for it: {error}");
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
        let (name, digest) = (record.spec.name.clone(), sleep.digest);
        let agent = self.nodes.client(node)?;
        let path = format!("/v1/instances/{name}");
        let found = agent.json::<Instance>(Method::GET, &path, &(), AGENT_LIMIT).await;
        let runs = found.is_ok_and(|instance| {
            (instance.state, instance.epoch) == (InstanceState::Running, record.epoch)
        });
        let resumed = if runs {
            // An earlier attempt has ordered it.
            Resumed { connections: sleep.connections, held_frames: 0 }
        } else {
            self.order_to_wake(&agent, &record, node, sleep).await?
        };
        let record = self.store.renew(&name, record.epoch, Renewal::Awake).await?;
        self.forget_failure(&name);
        if let Err(error) = self.workspace.remove(&digest) {
            tracing::warn!(
                "{name}: its snapshot is of no more use, and cannot be removed: {error}"
            );
        }
        let instance = agent.get::<Instance>(&path).await;
        Ok((view(record, instance), resumed))
    }

    async fn order_to_wake(
        &self,
        agent: &Client,
        record: &Record,
        node: &str,
        sleep: &Sleep,
    ) -> Result<Resumed, ApiError> {
        // A holder that cannot be asked may still answer: the guest is not told to go on before it can.
        self.release(record, &sleep.holder).await.map_err(|error| half_way(record, node, error))?;
        let path = |what: &str| format!("/v1/instances/{}/{what}", record.spec.name);
        let resume = ResumeRequest { epoch: record.epoch };
        let error = match agent.json(Method::POST, &path("resume"), &resume, START_LIMIT).await {
            Ok(resumed) => return Ok(resumed),
            Err(error) => error,
        };
        // It runs, or after this it never will.
        match agent.json::<bool>(Method::POST, &path("resolve"), &resume, AGENT_LIMIT).await {
            Ok(true) => Ok(Resumed { connections: sleep.connections, held_frames: 0 }),
            Ok(false) => Err(self.sleep_on(record, sleep, error).await),
            Err(second) => Err(half_way(record, node, second)),
        }
    }

    /// Back to sleep. Nothing of the service runs, and nothing will under the epoch of `record`.
    async fn sleep_on(&self, record: &Record, sleep: &Sleep, error: ApiError) -> ApiError {
        let asleep = self.advance_surely(record, None, Ownership::Sleeping(sleep.clone())).await;
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
        let table = self.table_of(self.workspace.get(&sleep.digest)?).await?;
        self.hold(record, sleep, table).await
    }

    /// Checks a whole snapshot and takes the table of connections out of it.
    async fn table_of(&self, file: Vec<u8>) -> Result<HeldTable, ApiError> {
        let bytes = self.open_snapshot(&file)?.unwrap_or(file);
        let read = tokio::task::spawn_blocking(move || Snapshot::read(&bytes));
        let snapshot = read
            .await
            .map_err(ApiError::failed)?
            .map_err(|error| ApiError::failed(format!("the snapshot cannot be used: {error}")))?;
        let unknown = || ApiError::failed("the snapshot does not tell its connections");
        snapshot.meta.held.ok_or_else(unknown)
    }

    /// When this is done, nobody answers for the service under an epoch lower than the record's.
    async fn release(&self, record: &Record, node: &str) -> Result<(), ApiError> {
        let fence = ReleaseRequest { id: record.spec.id.clone(), below: record.epoch };
        match self.release_on(node, &record.spec.name, &fence).await {
            // Whoever answered there has stopped.
            Err(_) if self.nodes.lease_is_over(node) => Ok(()),
            released => released,
        }
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
            "`{}` is to go on at node {node} under epoch {}, and does not yet: {}",
            record.spec.name, record.epoch, error.message
        ),
        ..error
    }
    .hint("the manager goes on when the nodes report")
}
