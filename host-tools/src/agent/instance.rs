//! One QEMU with all that belongs to it, from start to end.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ferry_protocol::control::{Answer, Connection, Hello, Order, Range, State};

use super::console::Console;
use super::control::{Guest, OrderError};
use super::network::{Network, Port, TAP_PREFIX};
use crate::api::{ApiError, Digest32, Instance as View, InstanceState, ServiceSpec};
use crate::qemu::command::{BootArguments, CommandLine};
use crate::qemu::ram::RamError;
use crate::qemu::{Accel, RamFile, Vm};

/// Longest time from the start of QEMU to the guest's first word.
pub const BOOT_LIMIT: Duration = Duration::from_secs(25);
/// Longest time a guest may take for a small order.
pub const ORDER_LIMIT: Duration = Duration::from_secs(3);
/// Longest list of connections, in bytes of guest memory.
const MAX_CONNECTION_LIST: u64 = 16 << 20;

/// What is needed to start an instance.
#[derive(Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Launch<'a> {
    pub spec: &'a ServiceSpec,
    pub standby: bool,
    pub epoch: u64,
    pub accel: Accel,
    pub qemu: &'a str,
    pub kernel: PathBuf,
    /// Distinguishes this instance from others of the service on this host.
    pub number: u64,
    pub run_dir: &'a Path,
    pub ram_dir: &'a Path,
    /// The service has no log yet.
    pub first: bool,
}

#[derive(Debug)]
struct Standing {
    state: InstanceState,
    epoch: u64,
    reason: Option<String>,
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
    accel: Accel,
    port: Mutex<Option<Box<dyn Port>>>,
    standing: Mutex<Standing>,
}

impl Instance {
    /// Starts QEMU and waits until the guest has booted. On failure nothing is left behind.
    ///
    /// # Errors
    /// What did not work, with the guest's last words.
    pub async fn start(launch: Launch<'_>, network: &dyn Network) -> Result<Arc<Self>, ApiError> {
        let spec = launch.spec;
        let stem = format!("{}-{}", spec.name, launch.number);
        let tap = format!("{TAP_PREFIX}{:.6}-{:x}", spec.id, launch.number & 0xffff);
        let console = Console::create(launch.run_dir, &stem, launch.first)
            .map_err(|error| ApiError::failed(format!("{}: {error}", launch.run_dir.display())))?;
        let port = network.plug(&tap, &spec.mac, !launch.standby).map_err(ApiError::failed)?;
        let line = command_line(&launch, &stem, port.tap());
        let started = Self::boot(&launch, &line, Arc::new(console), port).await;
        // Memory without a name goes away with its last user, whoever dies how.
        let _ = std::fs::remove_file(&line.ram_file);
        started
    }

    async fn boot(
        launch: &Launch<'_>,
        line: &CommandLine,
        console: Arc<Console>,
        port: Box<dyn Port>,
    ) -> Result<Arc<Self>, ApiError> {
        let clean = |port: Box<dyn Port>| {
            console.remove();
            if let Err(error) = port.unplug() {
                eprintln!("{error}");
            }
        };
        let (vm, ports) = match Vm::start(launch.qemu, line).await {
            Ok(started) => started,
            Err(error) => {
                clean(port);
                return Err(ApiError::failed(error));
            }
        };
        let capture = Arc::clone(&console);
        tokio::spawn(async move { capture.capture(ports.console).await });
        let guest = Guest::new(ports.control);
        let booted = match wait_for_boot(&guest, &console).await {
            Ok(hello) => open_ram(launch, line, &hello).map(|ram| (hello, ram)),
            Err(error) => Err(error),
        };
        match booted {
            Ok((hello, ram)) => {
                let state = match hello.state {
                    State::Standby => InstanceState::Standby,
                    State::Running | State::Draining => InstanceState::Running,
                    State::Frozen => InstanceState::Frozen,
                };
                let instance = Arc::new(Self {
                    spec: launch.spec.clone(),
                    vm,
                    guest,
                    ram,
                    console,
                    busy: tokio::sync::Mutex::new(()),
                    accel: launch.accel,
                    port: Mutex::new(Some(port)),
                    standing: Mutex::new(Standing { state, epoch: launch.epoch, reason: None }),
                });
                tokio::spawn(watch_end(Arc::downgrade(&instance)));
                Ok(instance)
            }
            Err(error) => {
                vm.end().await;
                clean(port);
                Err(error)
            }
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
            accel: self.accel,
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

    /// Notes the ownership number it runs under.
    pub fn set_epoch(&self, epoch: u64) {
        self.standing().epoch = epoch;
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
        let gone = self.vm.end().await;
        self.console.remove();
        let port = self.port.lock().unwrap_or_else(PoisonError::into_inner).take();
        let unplugged = port.map_or(Ok(()), Port::unplug);
        if !gone {
            return Err(ApiError::failed(format!("QEMU process {} does not end", self.vm.pid())));
        }
        unplugged.map_err(ApiError::failed)
    }
}

fn command_line(launch: &Launch<'_>, stem: &str, tap: Option<String>) -> CommandLine {
    let spec = launch.spec;
    let boot = BootArguments {
        ip: spec.ip,
        prefix: spec.prefix,
        gateway: spec.gateway,
        standby: launch.standby,
        epoch: launch.epoch,
        service: &spec.args,
    };
    let socket =
        |kind: &str| launch.run_dir.join(format!("{:.8}-{}.{kind}", spec.id, launch.number));
    CommandLine {
        machine: spec.machine,
        accel: launch.accel,
        memory_mib: spec.memory_mib,
        ram_file: launch.ram_dir.join(format!("{stem}-{}.ram", spec.id)),
        kernel: launch.kernel.clone(),
        append: boot.render(),
        tap,
        mac: spec.mac.clone(),
        console: socket("log"),
        control: socket("ctl"),
        qmp: socket("qmp"),
    }
}

/// Waits for the guest's first word.
async fn wait_for_boot(guest: &Guest, console: &Console) -> Result<Hello, ApiError> {
    let mut said = guest.said();
    let word = said.wait_for(|said| said.ready.is_some() || said.exited.is_some() || said.gone);
    let what = match tokio::time::timeout(BOOT_LIMIT, word).await {
        Ok(Ok(said)) if said.ready.is_some() && said.exited.is_none() => {
            if let Some(hello) = said.ready {
                return Ok(hello);
            }
            String::new()
        }
        Ok(Ok(said)) => match said.exited {
            Some(code) => format!("the service ended with code {code} while it started"),
            None => "the guest ended while it booted".into(),
        },
        Ok(Err(_)) => "the guest ended while it booted".into(),
        Err(_) => format!("the guest did not boot within {} s", BOOT_LIMIT.as_secs()),
    };
    let tail = console.tail();
    let console = if tail.is_empty() {
        "its console is empty".into()
    } else {
        format!("its console says:\n{tail}")
    };
    Err(ApiError::failed(format!("{what}; {console}")))
}

fn open_ram(launch: &Launch<'_>, line: &CommandLine, hello: &Hello) -> Result<RamFile, ApiError> {
    let expected = launch.spec.image.build_id;
    if hello.build_id != expected.0 {
        return Err(ApiError::failed(format!(
            "the guest says that it is image {}, started was {}",
            Digest32(hello.build_id).short(),
            expected.short()
        )));
    }
    if launch.standby != (hello.state == State::Standby) {
        return Err(ApiError::failed(format!(
            "the guest came up {:?}, asked for was {}",
            hello.state,
            if launch.standby { "a standby" } else { "a running service" }
        )));
    }
    let len = u64::from(launch.spec.memory_mib) << 20;
    let mut ram = RamFile::open(&line.ram_file, len).map_err(ApiError::failed)?;
    ram.set_portable(hello.portable).map_err(ApiError::failed)?;
    if launch.standby {
        ram.punch_portable().map_err(ApiError::failed)?;
    }
    Ok(ram)
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
