//! The sleeping services that this host answers for: each a [`Holder`] behind a port of its own.
//!
//! A holder begins with its port closed, and ends with its port closed before anything else: whoever is
//! told that it has ended knows that no frame of it follows (invariant 1). It lives as long as this
//! agent; the manager has it begun again when the agent's reports do not name it. The port of one whose
//! agent was killed has nobody behind it; the next agent finds it by a small file, and removes it.
//!
//! 1. `answering`: frames in and out at a holder's port.

mod answering;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use self::answering::{Answering, State, attach, watched};
use super::network::{Network, Port, TAP_PREFIX};
use crate::api::{ApiError, HoldRequest, HolderView, Holding, Knock, ReleaseRequest};
use crate::holder::{Holder, OnSyn};
use crate::hostnet::MacAddr;

/// Ending of the name of a file that names a holder's port and says its Ethernet address.
const ENDING: &str = ".holder";

/// All holders of a host, by the service's id.
#[derive(Debug)]
pub struct Holders {
    run_dir: PathBuf,
    slots: Mutex<HashMap<String, Slot>>,
    /// Held by whoever begins or ends one.
    changing: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Slot {
    /// Holders with a lower ownership number have been fenced.
    floor: u64,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    holding: Holding,
    on_syn: OnSyn,
    state: Arc<State>,
    port: Box<dyn Port>,
    mark: PathBuf,
    task: Option<JoinHandle<()>>,
}

impl Running {
    fn view(&self) -> HolderView {
        HolderView {
            holding: self.holding.clone(),
            on_syn: self.on_syn,
            counts: self.state.holder().counts(),
            failure: self.state.failure().clone(),
        }
    }

    fn well(&self) -> bool {
        self.state.failure().is_none()
    }

    /// When this returns, no frame of the holder will follow.
    async fn end(mut self) {
        if let Err(error) = self.port.set_open(false) {
            tracing::warn!("{}: {error}; its holder is ended all the same", self.holding.name);
        }
        if let Some(task) = self.task.take() {
            // With the task its end of the tap is gone; waiting for it can only say that it was aborted.
            task.abort();
            let _ = task.await;
        }
        let name = &self.holding.name;
        match self.port.unplug() {
            Ok(()) => remove_mark(name, &self.mark),
            Err(error) => tracing::warn!("{name}: {error}"),
        }
    }
}

impl Holders {
    /// Nobody is answered for yet. `run_dir` is for files that the next agent finds.
    #[must_use]
    pub fn new(run_dir: PathBuf) -> Self {
        Self { run_dir, slots: Mutex::default(), changing: tokio::sync::Mutex::default() }
    }

    /// Removes the ports of holders whose agent was killed.
    ///
    /// # Errors
    /// They cannot be looked for, or removed.
    pub fn clear(&self, network: &dyn Network) -> Result<(), ApiError> {
        let fail =
            |error: io::Error| ApiError::failed(format!("{}: {error}", self.run_dir.display()));
        for entry in std::fs::read_dir(&self.run_dir).map_err(fail)? {
            let path = entry.map_err(fail)?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let Some(tap) = name.strip_suffix(ENDING) else { continue };
            let mac = std::fs::read_to_string(&path).map_err(fail)?;
            // Without an address it was never plugged.
            if !mac.is_empty() {
                network.remove(tap, &mac).map_err(ApiError::failed)?;
            }
            std::fs::remove_file(&path).map_err(fail)?;
        }
        Ok(())
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<String, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers for a service from now on. Doing it twice is harmless. Clients that ask for a service to
    /// be woken are told to `knocks`.
    ///
    /// # Errors
    /// A later owner is known, the table cannot be true, or there is no port; then nobody answers here.
    pub async fn begin(
        &self,
        network: &dyn Network,
        request: &HoldRequest,
        knocks: mpsc::Sender<(String, Knock)>,
    ) -> Result<HolderView, ApiError> {
        let HoldRequest { spec, epoch, on_syn, table } = request;
        let invalid = |error: String| ApiError::invalid(format!("`{}`: {error}", spec.name));
        table.check(spec.ip).map_err(|error| invalid(error.to_string()))?;
        let mac: MacAddr = spec
            .mac
            .parse()
            .map_err(|error: crate::hostnet::mac::MacParseError| invalid(error.to_string()))?;
        let _changing = self.changing.lock().await;
        let outdated = {
            let mut slots = self.slots();
            let slot = slots.entry(spec.id.clone()).or_default();
            if slot.floor > *epoch {
                return Err(ApiError::conflict(format!(
                    "`{}` has been woken since: nobody may answer for it under epoch {epoch}",
                    spec.name
                )));
            }
            match &slot.running {
                Some(running) if running.holding.epoch == *epoch && running.well() => {
                    return Ok(running.view());
                }
                _ => slot.running.take(),
            }
        };
        if let Some(outdated) = outdated {
            outdated.end().await;
        }
        let tap = format!("{TAP_PREFIX}{:.6}-hold", spec.id);
        let holding = Holding { name: spec.name.clone(), id: spec.id.clone(), epoch: *epoch };
        let state = Arc::new(State::new(Holder::new(mac, spec.ip, table, *on_syn)));
        let mark = self.run_dir.join(format!("{tap}{ENDING}"));
        std::fs::write(&mark, &spec.mac)
            .map_err(|error| ApiError::failed(format!("{}: {error}", mark.display())))?;
        let port = network.plug(&tap, &spec.mac, false).map_err(|error| {
            remove_mark(&spec.name, &mark);
            ApiError::failed(error)
        })?;
        let mut running = Running { holding, on_syn: *on_syn, state, port, mark, task: None };
        let started = attach(running.port.as_ref()).and_then(|frames| {
            running.port.set_open(true).map_err(ApiError::failed)?;
            Ok(frames)
        });
        match started {
            Ok(frames) => {
                let (holding, state) = (running.holding.clone(), Arc::clone(&running.state));
                running.task = frames.map(|frames| {
                    tokio::spawn(watched(Answering { frames, state, holding, knocks }))
                });
                let view = running.view();
                self.slots().entry(spec.id.clone()).or_default().running = Some(running);
                Ok(view)
            }
            Err(error) => {
                running.end().await;
                Err(error)
            }
        }
    }

    /// Ends a holder that is older than a new owner, and lets no such begin any more. Returns whether
    /// there was one.
    pub async fn release(&self, request: &ReleaseRequest) -> bool {
        let _changing = self.changing.lock().await;
        let outdated = {
            let mut slots = self.slots();
            let slot = slots.entry(request.id.clone()).or_default();
            slot.floor = slot.floor.max(request.below);
            let floor = slot.floor;
            slot.running.take_if(|running| running.holding.epoch < floor)
        };
        match outdated {
            Some(outdated) => {
                outdated.end().await;
                true
            }
            None => false,
        }
    }

    /// Ends them all.
    pub async fn end_all(&self) {
        let _changing = self.changing.lock().await;
        let all: Vec<_> =
            self.slots().values_mut().filter_map(|slot| slot.running.take()).collect();
        for running in all {
            running.end().await;
        }
    }

    /// Those that answer.
    #[must_use]
    pub fn holding(&self) -> Vec<Holding> {
        let slots = self.slots();
        let running = slots.values().filter_map(|slot| slot.running.as_ref());
        running.filter(|it| it.well()).map(|it| it.holding.clone()).collect()
    }

    /// All, with what they have seen.
    #[must_use]
    pub fn list(&self) -> Vec<HolderView> {
        self.slots().values().filter_map(|slot| slot.running.as_ref()).map(Running::view).collect()
    }
}

fn remove_mark(name: &str, mark: &Path) {
    if let Err(error) = std::fs::remove_file(mark) {
        tracing::warn!("{name}: {}: {error}", mark.display());
    }
}
