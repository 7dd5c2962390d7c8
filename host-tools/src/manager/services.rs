//! Run, show, stop.

use std::net::Ipv4Addr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use hyper::Method;

use super::cancel::under_way;
use super::state::Manager;
use crate::agent::host::QEMU_OVERHEAD_MIB;
use crate::api::spec::{check_args, check_name, mac_of};
use crate::api::{
    ApiError, ConnectionLine, HolderView, Instance, InstanceState, Problem, ReleaseRequest,
    RunRequest, Service, ServiceSpec, ServiceState, SleepView, StartRequest, now_us,
};
use crate::store::{Ownership, Record};

/// Guest RAM unless asked for otherwise, in MiB.
pub const DEFAULT_MEMORY_MIB: u32 = 64;
/// Largest guest, in MiB: beyond it RAM is not one range on every machine type.
const MAX_MEMORY_MIB: u32 = 2048;
/// Longest time an agent may take to start an instance.
pub const START_LIMIT: Duration = Duration::from_secs(60);
/// Longest time an agent may take for other requests.
pub const AGENT_LIMIT: Duration = Duration::from_secs(15);
/// Longest time a list waits for a node.
const LIST_LIMIT: Duration = Duration::from_secs(2);

impl Manager {
    /// Starts a service.
    ///
    /// # Errors
    /// What is in the way, or what did not work; nothing then runs.
    pub async fn run(&self, request: RunRequest) -> Result<Service, ApiError> {
        check_name(&request.name).map_err(|error| ApiError::invalid(error.to_string()))?;
        check_args(&request.args).map_err(|argument| {
            ApiError::invalid(format!(
                "the service argument `{argument}` cannot be passed on: arguments may not be empty or hold white space"
            ))
        })?;
        let image = self.images.find(&request.image)?;
        let memory_mib = request.memory_mib.unwrap_or(DEFAULT_MEMORY_MIB);
        let (node, promise) = match request.node {
            Some(node) => (node, None),
            None => {
                let need_mib = u64::from(memory_mib) + QEMU_OVERHEAD_MIB;
                let (node, promise) = self.place(&request.name, need_mib).await?;
                (node, Some(promise))
            }
        };
        let agent = self.nodes.destination(&node)?;
        if memory_mib > MAX_MEMORY_MIB {
            return Err(ApiError::invalid(format!(
                "{memory_mib} MiB of memory are too much: the most is {MAX_MEMORY_MIB} MiB"
            )));
        }
        let ip = self.pick_address(request.ip).await?;
        let id = random_id()?;
        let spec = ServiceSpec {
            mac: mac_of(&request.name, &id),
            name: request.name,
            id,
            image,
            ip,
            prefix: self.pool.prefix,
            gateway: self.pool.gateway,
            memory_mib,
            machine: request.machine,
            args: request.args,
        };
        let record = Record {
            spec,
            owner: Ownership::Node { name: node },
            epoch: 0,
            migration: None,
            created_us: now_us(),
        };
        let record = self.store.claim(record).await?;
        drop(promise);
        self.forget_failure(&record.spec.name);
        let start = StartRequest { spec: record.spec.clone(), epoch: record.epoch, snapshot: None };
        match agent.json::<Instance>(Method::POST, "/v1/instances", &start, START_LIMIT).await {
            Ok(instance) => Ok(view(record, Ok(instance))),
            Err(error) => {
                self.give_up_start(&agent, &record).await;
                Err(ApiError {
                    message: format!("{}; nothing was started", error.message),
                    ..error
                })
            }
        }
    }

    /// Removes what a start that failed may have left.
    pub(super) async fn give_up_start(&self, agent: &crate::api::Client, record: &Record) {
        let path = format!("/v1/instances/{}", record.spec.name);
        let ours = agent.get::<Instance>(&path).await;
        if ours.is_ok_and(|instance| instance.spec.id == record.spec.id) {
            let _: Result<(), _> = agent.json(Method::DELETE, &path, &(), AGENT_LIMIT).await;
        }
        let _ = self.store.release(&record.spec.name, record.epoch).await;
    }

    async fn pick_address(&self, asked: Option<Ipv4Addr>) -> Result<Ipv4Addr, ApiError> {
        if let Some(ip) = asked {
            if !self.pool.contains_network(ip) {
                return Err(ApiError::invalid(format!(
                    "{ip} is no address of the services' network {}/{}",
                    self.pool.first, self.pool.prefix
                )));
            }
            return Ok(ip);
        }
        let records = self.store.list().await?;
        self.pool.free(|ip| records.iter().any(|record| record.spec.ip == ip)).ok_or_else(|| {
            ApiError::conflict(format!(
                "all addresses from {} to {} are taken",
                self.pool.first, self.pool.last
            ))
        })
    }

    /// Ends a service and forgets it. What runs on a node that is gone, as a user says, is ended by its agent
    /// if it returns.
    ///
    /// # Errors
    /// What did not work, and whether it still runs.
    pub async fn stop(&self, name: &str, host_is_gone: Option<&str>) -> Result<(), ApiError> {
        let _turn = self.turns.take(name)?;
        let mut record = self.record(name).await?;
        if let Some(sleep) = record.owner.sleep().cloned() {
            let fence = ReleaseRequest { id: record.spec.id.clone(), below: record.epoch + 1 };
            self.release_on(&sleep.holder, name, &fence).await?;
            // Whoever makes a checkpoint has the turn.
            record = self.let_go(record).await?;
        }
        if let Some(migration) = &record.migration {
            return Err(under_way(name, migration));
        }
        if let Some(gone) = host_is_gone {
            if record.owner.node() != Some(gone) {
                return Err(ApiError::invalid(format!("`{name}` does not belong to node {gone}")));
            }
            self.must_be_silent(gone)?;
        } else if let Some(node) = record.owner.node() {
            let agent = self.nodes.client(node)?;
            let path = format!("/v1/instances/{name}");
            match agent.json::<()>(Method::DELETE, &path, &(), AGENT_LIMIT).await {
                Ok(()) => {}
                Err(error) if error.problem == Problem::NotFound => {}
                Err(error) if error.problem == Problem::Unreachable => {
                    return Err(error.hint(format!(
                        "if node {node} never comes back: `host-tools stop {name} --host-is-gone {node}`"
                    )));
                }
                Err(error) => return Err(error),
            }
        }
        self.store.release(name, record.epoch).await?;
        if let Some(sleep) = record.owner.sleep() {
            self.workspace.remove(&sleep.digest)?;
        }
        self.forget_failure(name);
        Ok(())
    }

    /// One service.
    ///
    /// # Errors
    /// There is none.
    pub async fn service(&self, name: &str) -> Result<Service, ApiError> {
        let record = self.record(name).await?;
        Ok(self.look(record).await)
    }

    /// All services, by name.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn services(self: &Arc<Self>) -> Result<Vec<Service>, ApiError> {
        let mut looks = tokio::task::JoinSet::new();
        for record in self.store.list().await? {
            let this = Arc::clone(self);
            looks.spawn(async move { this.look(record).await });
        }
        let mut services = looks.join_all().await;
        services.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
        Ok(services)
    }

    async fn look(&self, record: Record) -> Service {
        let instance = match record.owner.node() {
            None if record.owner.sleep().is_some() => return self.look_at_sleeper(record).await,
            None => return view(record, Err(ApiError::not_found("suspended"))),
            Some(node) => match self.nodes.client(node) {
                Ok(agent) => {
                    let path = format!("/v1/instances/{}", record.spec.name);
                    agent.json::<Instance>(Method::GET, &path, &(), LIST_LIMIT).await
                }
                Err(error) => Err(ApiError::new(Problem::Unreachable, error.message)),
            },
        };
        let name = record.spec.name.clone();
        let mut service = view(record, instance);
        if service.state == ServiceState::Failed
            && let Some(reason) = self.failure(&name)
        {
            service.reason = Some(reason);
        }
        service
    }

    async fn look_at_sleeper(&self, record: Record) -> Service {
        let holder = match record.owner.sleep().map(|sleep| self.nodes.client(&sleep.holder)) {
            Some(Ok(agent)) => {
                agent.json::<Vec<HolderView>>(Method::GET, "/v1/holders", &(), LIST_LIMIT).await
            }
            Some(Err(error)) => Err(error),
            None => Ok(Vec::new()),
        };
        let name = record.spec.name.clone();
        let (id, epoch) = (record.spec.id.clone(), record.epoch);
        let mut service = view(record, Err(ApiError::not_found("suspended")));
        let found = match holder {
            Ok(all) => all.into_iter().find(|it| it.holding.id == id && it.holding.epoch == epoch),
            Err(error) => {
                service.reason = Some(error.message);
                None
            }
        };
        service.reason = service.reason.or_else(|| match &found {
            Some(holder) => holder.failure.clone(),
            None => self.failure(&name).or_else(|| Some("nobody answers for it yet".into())),
        });
        if let Some(sleep) = &mut service.sleep {
            sleep.holder = found;
        }
        service
    }

    /// The connections of a service.
    ///
    /// # Errors
    /// It does not run, or does not answer.
    pub async fn connections(&self, name: &str) -> Result<Vec<ConnectionLine>, ApiError> {
        let record = self.record(name).await?;
        let agent = self.nodes.client(self.owner(&record)?)?;
        agent.get(&format!("/v1/instances/{name}/connections")).await
    }

    pub(super) fn note_failure(&self, name: &str, reason: String) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.insert(name.to_owned(), reason);
    }

    pub(super) fn forget_failure(&self, name: &str) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    fn failure(&self, name: &str) -> Option<String> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }
}

/// A service as users see it, from what the store and its node say.
pub(super) fn view(record: Record, instance: Result<Instance, ApiError>) -> Service {
    let node = record.owner.node().map(str::to_owned);
    let sleep = record.owner.sleep().map(|sleep| SleepView {
        snapshot: sleep.digest,
        node: sleep.holder.clone(),
        on_syn: sleep.on_syn,
        connections: sleep.connections,
        since_us: sleep.since_us,
        holder: None,
    });
    let (state, reason) = match (&node, &instance) {
        (None, _) => (ServiceState::Suspended, None),
        (_, Ok(instance)) => match instance.state {
            InstanceState::Failed => (ServiceState::Failed, instance.reason.clone()),
            _ if sleep.is_some() => (ServiceState::Starting, None),
            _ if record.migration.is_some() => (ServiceState::Migrating, None),
            InstanceState::Booting | InstanceState::Standby => (ServiceState::Starting, None),
            InstanceState::Running => (ServiceState::Running, None),
            InstanceState::Frozen => {
                (ServiceState::Failed, Some("frozen, and no move is under way".into()))
            }
        },
        (Some(node), Err(error)) => match error.problem {
            Problem::NotFound if record.migration.is_some() => (ServiceState::Migrating, None),
            Problem::NotFound if sleep.is_some() => (ServiceState::Starting, None),
            Problem::NotFound => {
                (ServiceState::Failed, Some(format!("node {node} has no instance of it")))
            }
            Problem::Conflict => (ServiceState::Starting, None),
            _ => (ServiceState::Unknown, Some(error.message.clone())),
        },
    };
    Service {
        spec: record.spec,
        node,
        epoch: record.epoch,
        state,
        reason,
        created_us: record.created_us,
        instance: instance.ok(),
        migration: record.migration,
        sleep,
    }
}

/// An id that no other service has: 16 hexadecimal digits from the system's random numbers.
fn random_id() -> Result<String, ApiError> {
    use std::io::Read;
    let mut bytes = [0; 8];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(ApiError::failed)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
