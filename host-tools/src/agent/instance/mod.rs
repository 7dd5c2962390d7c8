//! One QEMU with all that belongs to it, from start to end.
//!
//! 1. `boot`: starting one.
//! 2. `adopt`: taking up one that an earlier agent has left.

mod adopt;
mod boot;

pub use adopt::AdoptError;
pub use boot::{BOOT_LIMIT, Launch};

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ferry_protocol::control::{Answer, Connection, Order, Range, State};

use super::console::Console;
use super::control::{Guest, OrderError};
use super::descriptor::Descriptor;
use super::network::Port;
use crate::api::{ApiError, Holding, Instance as View, InstanceState, ServiceSpec};
use crate::priority::{self, Priority};
use crate::qemu::ram::RamError;
use crate::qemu::{RamFile, Vm};

/// Longest time a guest may take for a small order.
pub const ORDER_LIMIT: Duration = Duration::from_secs(3);
/// Longest list of connections, in bytes of guest memory.
const MAX_CONNECTION_LIST: u64 = 16 << 20;

#[derive(Debug)]
struct Standing {
    state: InstanceState,
    epoch: u64,
    reason: Option<String>,
    /// Since when the guest does not say where it stands.
    mute: Option<Instant>,
}

/// An instance of a service.
#[derive(Debug)]
pub struct Instance {
    /// The service.
    pub spec: ServiceSpec,
    /// Its process.
    pub vm: Vm,
    /// Its control port.
    pub guest: Guest,
    /// Its memory.
    pub ram: RamFile,
    /// Its log.
    pub console: Arc<Console>,
    /// Held by whoever moves, checkpoints, resumes or ends it.
    pub busy: tokio::sync::Mutex<()>,
    run_dir: PathBuf,
    descriptor: Mutex<Descriptor>,
    port: Mutex<Option<Box<dyn Port>>>,
    standing: Mutex<Standing>,
}

impl Instance {
    /// What an agent that is started again would know of it.
    #[must_use]
    pub fn descriptor(&self) -> Descriptor {
        self.descriptor.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes what an agent that is started again would know of it.
    ///
    /// # Errors
    /// It cannot be written; what was written before still holds.
    pub fn note(&self, change: impl FnOnce(&mut Descriptor)) -> Result<(), ApiError> {
        let mut descriptor = self.descriptor.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = descriptor.clone();
        change(&mut changed);
        if changed == *descriptor {
            return Ok(());
        }
        changed
            .store(&self.run_dir)
            .map_err(|error| ApiError::failed(format!("{}: {error}", self.run_dir.display())))?;
        *descriptor = changed;
        Ok(())
    }

    /// Notes that a standby's pages are whole. If that does not work, a new agent ends the standby, and the
    /// source takes the service back.
    pub fn note_verified(&self) {
        let mut descriptor = self.descriptor.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = descriptor.mark_verified(&self.run_dir) {
            tracing::warn!("{}: {}: {error}", self.spec.name, self.run_dir.display());
        }
    }

    /// As [`Instance::note`], where not being able to write harms nobody: guest and store tell the same.
    pub fn note_if_possible(&self, change: impl FnOnce(&mut Descriptor)) {
        if let Err(error) = self.note(change) {
            tracing::warn!("{}: {error}", self.spec.name);
        }
    }

    /// What others may know of it.
    #[must_use]
    pub fn view(&self) -> View {
        let standing = self.standing();
        View {
            spec: self.spec.clone(),
            state: standing.state,
            epoch: standing.epoch,
            pid: self.vm.pid(),
            accel: self.descriptor().accel,
            reason: standing.reason.clone(),
            refused_frames: self.guest.refused_frames(),
        }
    }

    fn standing(&self) -> std::sync::MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> InstanceState {
        self.standing().state
    }

    /// The ownership number it runs under.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.standing().epoch
    }

    /// Notes where it stands now. An instance that has failed stays failed.
    pub fn set_state(&self, state: InstanceState) {
        let mut standing = self.standing();
        if standing.state != InstanceState::Failed {
            standing.state = state;
        }
    }

    /// Notes whether the guest says where it stands.
    pub fn set_mute(&self, mute: bool) {
        let mut standing = self.standing();
        standing.mute = mute.then(|| standing.mute.unwrap_or_else(Instant::now));
    }

    /// How long the guest has not said where it stands.
    #[must_use]
    pub fn mute_for(&self) -> Duration {
        self.standing().mute.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Notes the ownership number it runs under.
    pub fn set_epoch(&self, epoch: u64) {
        self.standing().epoch = epoch;
    }

    /// Its name in reports, if it is frozen or stands by while nobody is at work on it.
    #[must_use]
    pub fn parked(&self) -> Option<Holding> {
        let _busy = self.busy.try_lock().ok()?;
        let ServiceSpec { name, id, .. } = &self.spec;
        let Standing { state, epoch, .. } = *self.standing();
        state.stands_still().then(|| Holding { name: name.clone(), id: id.clone(), epoch })
    }

    /// Why QEMU has ended, if it has. The guest's port closes a moment before its process is gone.
    pub async fn ended(&self) -> Option<String> {
        let mut death = self.vm.death();
        if !self.guest.said().borrow().gone && death.borrow().is_none() {
            return None;
        }
        let end = death.wait_for(Option::is_some);
        let reason = match tokio::time::timeout(ORDER_LIMIT, end).await {
            Ok(Ok(end)) => end.as_ref().map(|end| end.reason.clone()),
            _ => None,
        };
        Some(reason.unwrap_or_else(|| "its control port is closed".into()))
    }

    fn fail(&self, reason: String) {
        let mut standing = self.standing();
        standing.state = InstanceState::Failed;
        standing.reason.get_or_insert(reason);
    }

    /// Gives it as much of the processors as the agent has: a standby began with less.
    pub fn hurry(&self) {
        if priority::may_return()
            && let Err(error) = priority::set(self.vm.process(), Priority::Serving)
        {
            tracing::warn!("{}: QEMU stays at a low priority: {error}", self.spec.name);
        }
    }

    /// Opens or closes its port.
    ///
    /// # Errors
    /// The kernel refused, or the instance has ended.
    pub fn set_port_open(&self, open: bool) -> Result<(), ApiError> {
        self.with_port(|port| port.set_open(open))
    }

    /// Does something with its port.
    ///
    /// # Errors
    /// The instance has ended, or `action` failed.
    pub fn with_port<T>(
        &self,
        action: impl FnOnce(&dyn Port) -> Result<T, crate::hostnet::HostNetError>,
    ) -> Result<T, ApiError> {
        let port = self.port.lock().unwrap_or_else(PoisonError::into_inner);
        match port.as_ref() {
            Some(port) => action(port.as_ref()).map_err(ApiError::failed),
            None => Err(ApiError::failed("the instance has ended")),
        }
    }

    /// Pages the guest names in a bitmap of its memory, in ascending order.
    ///
    /// # Errors
    /// The range is not the bitmap of this guest's portable region.
    pub fn pages(&self, bitmap: Range, full: bool) -> Result<Vec<u32>, RamError> {
        let pages = self.ram.read_bitmap(bitmap)?;
        if !full {
            return Ok(pages);
        }
        // In a full report most pages were never written: the file system knows.
        let extents = self.ram.populated()?;
        let mut extents = extents.iter().peekable();
        let in_extent = |page: &u32| {
            while extents.next_if(|extent| extent.end <= *page).is_some() {}
            extents.peek().is_some_and(|extent| extent.contains(page))
        };
        Ok(pages.into_iter().filter(in_extent).collect())
    }

    /// Its connections.
    ///
    /// # Errors
    /// The guest does not answer, or names memory it does not have.
    pub async fn connections(&self) -> Result<Vec<Connection>, ApiError> {
        let answer = self.guest.order(Order::Connections, ORDER_LIMIT).await;
        let Answer::Connections { at, count } = answer.map_err(ApiError::failed)? else {
            return Err(ApiError::failed(OrderError::Mismatch { order: "connections" }));
        };
        let bytes = self.ram.read_range(at, MAX_CONNECTION_LIST).map_err(ApiError::failed)?;
        let mut rest = bytes.as_slice();
        let mut connections = Vec::new();
        for _ in 0..count {
            let (connection, after) = postcard::take_from_bytes(rest)
                .map_err(|_| ApiError::failed("the guest's list of connections is cut short"))?;
            connections.push(connection);
            rest = after;
        }
        Ok(connections)
    }

    /// Ends QEMU and removes what belonged to it.
    ///
    /// # Errors
    /// Something could not be removed; QEMU is gone nevertheless unless the message says otherwise.
    pub async fn end(&self) -> Result<(), ApiError> {
        self.fail("ended".into());
        // The kernel takes its memory back in its own time; the service may run elsewhere by now.
        let _ = priority::set(self.vm.process(), Priority::Low);
        let gone = self.vm.end().await;
        let port = self.port.lock().unwrap_or_else(PoisonError::into_inner).take();
        let unplugged = port.map_or(Ok(()), Port::unplug);
        if !gone {
            return Err(ApiError::failed(format!("QEMU process {} does not end", self.vm.pid())));
        }
        self.console.close();
        let removed = self.descriptor().remove_files(&self.run_dir);
        unplugged.map_err(ApiError::failed)?;
        removed.map_err(|error| ApiError::failed(format!("{}: {error}", self.run_dir.display())))
    }
}

/// Where an instance stands whose guest says this of itself.
#[must_use]
pub fn state_of(state: State) -> InstanceState {
    match state {
        State::Standby => InstanceState::Standby,
        State::Running => InstanceState::Running,
        // Nobody is served, and nobody will be until it is told to go on.
        State::Draining | State::Frozen => InstanceState::Frozen,
    }
}

/// Notes when the service or its QEMU ends by itself, and fences the port.
async fn watch_end(instance: std::sync::Weak<Instance>) {
    let Some(strong) = instance.upgrade() else { return };
    let (mut death, mut said) = (strong.vm.death(), strong.guest.said());
    drop(strong);
    let reason = tokio::select! {
        end = death.wait_for(Option::is_some) => {
            end.ok().and_then(|end| end.clone()).map(|end| end.reason)
        }
        end = said.wait_for(|said| said.exited.is_some()) => {
            end.ok().and_then(|end| end.exited).map(|code| format!("the service ended with code {code}"))
        }
    };
    if let Some(instance) = instance.upgrade()
        && instance.state() != InstanceState::Failed
    {
        instance.fail(reason.unwrap_or_else(|| "QEMU ended".into()));
        // It may have been unplugged already.
        let _ = instance.set_port_open(false);
    }
}
