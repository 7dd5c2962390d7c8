//! All instances of this host, its images and its memory.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use rustix::fs::{FlockOperation, flock};
use tokio::sync::watch;

use super::epochs::Epochs;
use super::holders::Holders;
use super::instance::{Instance, Launch};
use super::lease::{Lease, uptime};
use super::mirror::Awaited;
use super::moves::Moves;
use super::recovery::{self, Settled};
use super::securing;
use super::{Config, Network};
use crate::api::{ApiError, Client, Digest32, InstanceState, NodeReport, Problem, ServiceSpec};
use crate::metrics::agent::Metrics;
use crate::qemu::{Accel, GuestUsers, ImageInfo};
use crate::repository::Blobs;
use crate::security::{Gate, Party};
use crate::wire::Address;

/// Largest image that is fetched, in bytes.
pub const MAX_IMAGE: usize = 256 << 20;
/// Silence after which a guest is taken for dead when somebody has to know.
const MUTE_LIMIT: Duration = Duration::from_secs(30);
/// Memory that QEMU itself takes beside the guest's, in MiB.
pub const QEMU_OVERHEAD_MIB: u64 = 64;

/// An agent's host.
#[derive(Debug)]
pub struct Host {
    /// Two agents must not take up the same guests. The kernel releases it, however this one ends.
    _lock: File,
    config: Config,
    address: String,
    accel: Accel,
    /// Whether its QEMU has that firmware ([`crate::qemu::firmware`]).
    qboot: bool,
    users: Option<GuestUsers>,
    network: Box<dyn Network>,
    pub(super) gate: Arc<Gate>,
    images: Blobs,
    /// Snapshots on their way to or from the manager.
    pub(super) snapshots: Blobs,
    /// What a monitoring system is told.
    pub(super) metrics: Metrics,
    /// The moves that began here.
    pub(super) moves: Moves,
    /// Connections that standbys here wait for.
    pub(super) mirrors: Awaited<TokioIo<Upgraded>>,
    pub(super) epochs: Epochs,
    /// For how long services run without a word from the manager.
    pub(super) lease: Lease,
    run_dir: PathBuf,
    instances: Mutex<HashMap<String, Slot>>,
    numbers: AtomicU64,
    known: watch::Sender<bool>,
    /// Sleeping services that this host answers for.
    pub(super) holders: Holders,
}

/// A name on this host: taken while its instance starts.
#[derive(Debug)]
enum Slot {
    Starting { memory_mib: u32 },
    Started(Arc<Instance>),
}

/// A name that is taken until it is filled or dropped.
#[derive(Debug)]
pub struct Reservation<'h> {
    host: &'h Host,
    name: Option<String>,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            self.host.slots().remove(name);
        }
    }
}

impl Host {
    /// Makes the directories.
    ///
    /// # Errors
    /// They cannot be made.
    pub fn new(
        config: Config,
        address: String,
        accel: Accel,
        qboot: bool,
        network: Box<dyn Network>,
        gate: Arc<Gate>,
    ) -> Result<Self, ApiError> {
        let images = Blobs::open(&config.state_dir.join("images"))?;
        let snapshots = Blobs::open(&config.state_dir.join("snapshots"))?;
        let epochs = Epochs::open(&config.state_dir.join("epochs.json"))?;
        let lease = Lease::open(config.lease, &config.state_dir.join("lease"), uptime());
        let run_dir = config.state_dir.join("run");
        for directory in [&run_dir, &config.ram_dir] {
            std::fs::create_dir_all(directory)
                .map_err(|error| ApiError::failed(format!("{}: {error}", directory.display())))?;
        }
        // The guests' control ports lie there.
        std::fs::set_permissions(&run_dir, std::fs::Permissions::from_mode(0o700))
            .map_err(|error| ApiError::failed(format!("{}: {error}", run_dir.display())))?;
        let holders = Holders::new(run_dir.clone());
        let path = config.state_dir.join("lock");
        let lock = File::options().create(true).truncate(false).write(true).open(&path);
        let lock =
            lock.map_err(|error| ApiError::failed(format!("{}: {error}", path.display())))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|error| {
            let directory = config.state_dir.display();
            ApiError::conflict(format!(
                "another agent runs with state directory {directory}: {error}"
            ))
        })?;
        let users = config.guest_users.and_then(|first| {
            GuestUsers::of_this_process(first)
                .inspect(|users| tracing::info!("guests run as the users {users}"))
                .inspect_err(|why| tracing::warn!("guests run as the agent's own user: {why}"))
                .ok()
        });
        Ok(Self {
            _lock: lock,
            users,
            config,
            address,
            accel,
            qboot,
            network,
            gate,
            images,
            snapshots,
            metrics: Metrics::default(),
            moves: Moves::default(),
            mirrors: Awaited::default(),
            epochs,
            lease,
            run_dir,
            instances: Mutex::default(),
            numbers: AtomicU64::new(1),
            known: watch::channel(false).0,
            holders,
        })
    }

    /// The node's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// Where it listens, `host:port`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// QEMU's program.
    #[must_use]
    pub fn qemu(&self) -> &str {
        &self.config.qemu
    }

    /// How it executes guests.
    #[must_use]
    pub fn accel(&self) -> Accel {
        self.accel
    }

    /// Whether an instance of a service is here, or about to be.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.slots().contains_key(name)
    }

    /// Whether an image is here.
    #[must_use]
    pub fn holds_image(&self, digest: &Digest32) -> bool {
        self.images.path(digest).exists()
    }

    /// A client of the manager with a connection of its own.
    #[must_use]
    pub fn manager(&self) -> Client {
        Client::new(self.config.manager.clone(), "the manager")
            .secured(self.gate.security(), Party::Manager)
    }

    /// A client of another node's agent with a connection of its own.
    #[must_use]
    pub fn agent(&self, address: Address, name: &str) -> Client {
        Client::new(address, format!("node {name}"))
            .secured(self.gate.security(), Party::Node(name.to_owned()))
    }

    /// Where the agent keeps what outlives it.
    #[must_use]
    pub fn state_dir(&self) -> &Path {
        &self.config.state_dir
    }

    pub(super) fn set_known(&self) {
        self.known.send_replace(true);
    }

    pub(super) async fn known_to_manager(&self) {
        // The sender lives as long as this host: waiting cannot fail.
        let _ = self.known.subscribe().wait_for(|known| *known).await;
    }

    fn slots(&self) -> std::sync::MutexGuard<'_, HashMap<String, Slot>> {
        self.instances.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Memory for guests in MiB: all, and not yet given out.
    fn memory_mib(&self) -> (u64, u64) {
        let used: u64 = self
            .slots()
            .values()
            .map(|slot| match slot {
                Slot::Starting { memory_mib } => u64::from(*memory_mib),
                Slot::Started(instance) => u64::from(instance.spec.memory_mib),
            } + QEMU_OVERHEAD_MIB)
            .sum();
        match self.config.memory_mib {
            Some(all) => (all, all.saturating_sub(used)),
            None => {
                let available = available_memory_mib();
                (available + used, available)
            }
        }
    }

    /// What the manager is told.
    #[must_use]
    pub fn report(&self) -> NodeReport {
        let (memory_mib, free_mib) = self.memory_mib();
        let parked = self.instances().iter().filter_map(|it| it.parked()).collect();
        NodeReport {
            name: self.config.name.clone(),
            address: self.address.clone(),
            instances: self.slots().len(),
            memory_mib,
            free_mib,
            accel: self.accel,
            lease_us: self.lease.length().map(|length| length.as_micros() as u64),
            holding: self.holders.holding(),
            parked,
        }
    }

    /// The instance of a service.
    ///
    /// # Errors
    /// There is none on this host.
    pub fn instance(&self, name: &str) -> Result<Arc<Instance>, ApiError> {
        match self.slots().get(name) {
            Some(Slot::Started(instance)) => Ok(Arc::clone(instance)),
            Some(Slot::Starting { .. }) => {
                Err(ApiError::conflict(format!("`{name}` is just starting on {}", self.name())))
            }
            None => Err(ApiError::not_found(format!("no `{name}` on node {}", self.name()))),
        }
    }

    /// All instances, by name.
    #[must_use]
    pub fn instances(&self) -> Vec<Arc<Instance>> {
        let slots = self.slots();
        let mut all: Vec<_> = slots
            .values()
            .filter_map(|slot| match slot {
                Slot::Started(instance) => Some(Arc::clone(instance)),
                Slot::Starting { .. } => None,
            })
            .collect();
        all.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
        all
    }

    /// Directory of the instances' files.
    #[must_use]
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    pub(super) fn network(&self) -> &dyn Network {
        self.network.as_ref()
    }

    /// Numbers of new instances are greater than this.
    pub(super) fn number_after(&self, number: u64) {
        self.numbers.fetch_max(number + 1, Ordering::Relaxed);
    }

    /// Takes a service's name for an instance that is there already; false if it is taken.
    pub(super) fn occupy(&self, spec: &ServiceSpec) -> bool {
        let mut slots = self.slots();
        let free = !slots.contains_key(&spec.name);
        if free {
            slots.insert(spec.name.clone(), Slot::Starting { memory_mib: spec.memory_mib });
        }
        free
    }

    /// Puts an instance into the name that was taken for it.
    pub(super) fn fill(&self, instance: &Arc<Instance>) {
        self.slots().insert(instance.spec.name.clone(), Slot::Started(Arc::clone(instance)));
    }

    /// Gives a name back that was taken and not filled.
    pub(super) fn vacate(&self, name: &str) {
        self.slots().remove(name);
    }

    /// Refuses what may not begin without the manager's word.
    pub(super) fn must_be_leased(&self) -> Result<(), ApiError> {
        if self.lease.holds() {
            return Ok(());
        }
        Err(ApiError::conflict(format!(
            "node {} has lost the manager, and runs no services and answers for none until that answers",
            self.name()
        )))
    }

    /// Takes a service's name on this host, if it is free and there is memory.
    ///
    /// # Errors
    /// What is in the way.
    pub fn reserve(&self, spec: &ServiceSpec) -> Result<Reservation<'_>, ApiError> {
        self.must_be_leased()?;
        let (_, free_mib) = self.memory_mib();
        let needed = u64::from(spec.memory_mib) + QEMU_OVERHEAD_MIB;
        if needed > free_mib {
            return Err(ApiError::conflict(format!(
                "node {} has not enough memory: {needed} MiB are needed ({} for the guest), {free_mib} MiB are free",
                self.name(),
                spec.memory_mib
            )));
        }
        let mut slots = self.slots();
        if slots.contains_key(&spec.name) {
            return Err(ApiError::conflict(format!(
                "node {} already has an instance of `{}`",
                self.name(),
                spec.name
            )));
        }
        slots.insert(spec.name.clone(), Slot::Starting { memory_mib: spec.memory_mib });
        Ok(Reservation { host: self, name: Some(spec.name.clone()) })
    }

    /// Makes sure that the image is here and fits; fetches it from the manager.
    ///
    /// # Errors
    /// The image is unknown or damaged, or needs more memory than the guest has.
    pub async fn ensure_image(&self, spec: &ServiceSpec) -> Result<PathBuf, ApiError> {
        let digest = spec.image.digest;
        let bytes = match self.images.get(&digest) {
            Ok(bytes) => bytes,
            Err(_) => {
                let path = format!("/v1/images/{digest}/file");
                let bytes = self.manager().download(&path, MAX_IMAGE).await.map_err(|error| {
                    let name = &spec.image.name;
                    let message = format!("image {name} cannot be had: {}", error.message);
                    ApiError { message, ..error }
                })?;
                if Digest32::of(&bytes) != digest {
                    return Err(ApiError::failed(format!(
                        "the file that came for image {} is not that image",
                        spec.image.name
                    )));
                }
                self.images.put(&bytes)?;
                bytes
            }
        };
        securing::check_signature(self, &spec.image).await?;
        let info = ImageInfo::read(&bytes).map_err(|error| ApiError::invalid(error.to_string()))?;
        if info.build_id != spec.image.build_id.0 {
            return Err(ApiError::invalid(format!(
                "image {} has build id {}, the service needs {}",
                spec.image.name,
                Digest32(info.build_id).short(),
                spec.image.build_id.short()
            )));
        }
        let least = info.min_memory_mib();
        if spec.memory_mib < least {
            return Err(ApiError::invalid(format!(
                "{} MiB of memory are too little for image {}: it needs {least} MiB",
                spec.memory_mib, spec.image.name
            ))
            .hint(format!("use --memory {least}M or more")));
        }
        Ok(self.images.path(&digest))
    }

    /// Starts an instance in a reserved name.
    ///
    /// # Errors
    /// What did not work; nothing is left behind.
    pub async fn start(
        &self,
        mut reservation: Reservation<'_>,
        spec: &ServiceSpec,
        kernel: PathBuf,
        standby: bool,
        epoch: u64,
        migration: Option<String>,
    ) -> Result<Arc<Instance>, ApiError> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let launch = Launch {
            user: self.users.map(|users| users.of(number, self.accel.group())),
            sandbox: self.config.sandbox,
            migration,
            spec,
            standby,
            epoch,
            accel: self.accel,
            qboot: self.qboot,
            qemu: &self.config.qemu,
            kernel,
            number,
            run_dir: &self.run_dir,
            ram_dir: &self.config.ram_dir,
            first: !standby,
        };
        let begun = Instant::now();
        let started = Instance::start(launch, self.network.as_ref()).await;
        if standby {
            self.metrics.standby_booted(started.is_ok(), begun.elapsed().as_micros() as u64);
        }
        let instance = started?;
        if let Some(name) = reservation.name.take() {
            self.slots().insert(name, Slot::Started(Arc::clone(&instance)));
        }
        Ok(instance)
    }

    /// Ends an instance and forgets it.
    ///
    /// # Errors
    /// As [`Instance::end`].
    pub async fn end(&self, instance: &Arc<Instance>) -> Result<(), ApiError> {
        let ended = instance.end().await;
        if instance.vm.death().borrow().is_none() {
            // Nobody may hear that it is gone.
            return ended;
        }
        if let Err(error) = self.epochs.ended(&instance.spec.id, instance.epoch()) {
            tracing::warn!("{}: its epoch cannot be noted: {error}", instance.spec.name);
        }
        let mut slots = self.slots();
        let name = &instance.spec.name;
        if matches!(slots.get(name), Some(Slot::Started(held)) if Arc::ptr_eq(held, instance)) {
            slots.remove(name);
        }
        ended
    }

    /// Finds out whether the service runs here under `epoch`, which the asker knows to be committed. A
    /// whole standby takes over now; one that is not whole, or a guest that has been mute for long, is
    /// ended. Afterwards it is true that the service runs here, or that it never will under this epoch.
    ///
    /// # Errors
    /// It is not decided: the manager does not answer, QEMU does not end, or the instance is just being
    /// started or taken up.
    pub async fn resolve(&self, name: &str, epoch: u64) -> Result<bool, ApiError> {
        let instance = match self.instance(name) {
            Ok(instance) => instance,
            Err(error) if error.problem == Problem::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        let _busy = instance.busy.lock().await;
        let runs = instance.state() == InstanceState::Running;
        match instance.epoch().cmp(&epoch) {
            std::cmp::Ordering::Equal if runs => return Ok(true),
            // Epochs only grow: what was asked about is long over.
            std::cmp::Ordering::Greater => return Ok(false),
            _ => {}
        }
        match recovery::attempt(self, &instance).await? {
            Settled::Runs => return Ok(instance.epoch() == epoch),
            Settled::Ended => return Ok(false),
            Settled::Waits => {}
        }
        // Whoever owns a guest that has been mute for so long: ended, it can be replaced.
        if instance.mute_for() < MUTE_LIMIT {
            return Err(ApiError::conflict(format!(
                "it is not decided yet whether the instance of `{name}` on node {} runs",
                self.name()
            )));
        }
        self.end(&instance).await?;
        Ok(false)
    }
}

/// What the kernel thinks can still be given out.
fn available_memory_mib() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}

/// Longest time for small requests to the manager.
pub const MANAGER_LIMIT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_memory() {
        assert!(available_memory_mib() > 0);
    }
}
