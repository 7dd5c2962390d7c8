//! One QEMU with all that belongs to it, from start to end.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ferry_protocol::control::{Answer, Connection, Hello, Order, Range, State};
use ferry_protocol::layout::PORTABLE_BASE;

use super::console::Console;
use super::control::{Guest, OrderError};
use super::descriptor::Descriptor;
use super::network::{Network, Port, TAP_PREFIX};
use crate::api::{ApiError, Digest32, Instance as View, InstanceState, ServiceSpec};
use crate::qemu::command::{BootArguments, CommandLine};
use crate::qemu::ram::RamError;
use crate::qemu::vm::AdoptError as VmAdoptError;
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
    /// The move it is made for.
    pub migration: Option<String>,
}

/// Why an instance of an earlier agent was not taken up.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum AdoptError {
    #[error("it had not booted")]
    NotBooted,
    #[error(transparent)]
    Vm(#[from] VmAdoptError),
    #[error("its memory: {0}")]
    Ram(#[from] RamError),
    #[error("its log: {0}")]
    Console(std::io::Error),
    #[error("its port: {0}")]
    Port(#[from] crate::hostnet::HostNetError),
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
    run_dir: PathBuf,
    descriptor: Mutex<Descriptor>,
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
        let tap = format!("{TAP_PREFIX}{:.6}-{:x}", spec.id, launch.number & 0xffff);
        let mut descriptor =
            Descriptor::new(spec.clone(), launch.number, launch.accel, tap, launch.ram_dir);
        descriptor.epoch = launch.epoch;
        descriptor.migration = launch.migration.clone();
        let started = Self::boot(&launch, &mut descriptor, network).await;
        // Memory without a name goes away with its last user, whoever dies how.
        let _ = std::fs::remove_file(&descriptor.ram_file);
        started.inspect_err(|_| {
            if let Err(error) = descriptor.remove_files(launch.run_dir) {
                eprintln!(
                    "files of `{}` are left in {}: {error}",
                    spec.name,
                    launch.run_dir.display()
                );
            }
        })
    }

    async fn boot(
        launch: &Launch<'_>,
        descriptor: &mut Descriptor,
        network: &dyn Network,
    ) -> Result<Arc<Self>, ApiError> {
        let run_dir = launch.run_dir;
        let in_run_dir =
            |error: std::io::Error| ApiError::failed(format!("{}: {error}", run_dir.display()));
        // Before anything is made that an agent which is killed now would leave behind.
        descriptor.store(run_dir).map_err(in_run_dir)?;
        let console =
            Console::create(run_dir, &descriptor.stem(), launch.first).map_err(in_run_dir)?;
        let console = Arc::new(console);
        let (tap, mac) = (descriptor.tap.clone(), &launch.spec.mac);
        let port = network.plug(&tap, mac, !launch.standby).map_err(ApiError::failed)?;
        let line = command_line(launch, descriptor, port.tap());
        let begun = Self::begin(launch, descriptor, &line, &console).await;
        match begun {
            Ok((vm, guest, ram, hello)) => {
                let state = state_of(hello.state);
                let epoch = launch.epoch;
                let instance = Arc::new(Self {
                    spec: launch.spec.clone(),
                    vm,
                    guest,
                    ram,
                    console,
                    busy: tokio::sync::Mutex::new(()),
                    run_dir: run_dir.to_owned(),
                    descriptor: Mutex::new(descriptor.clone()),
                    port: Mutex::new(Some(port)),
                    standing: Mutex::new(Standing { state, epoch, reason: None }),
                });
                tokio::spawn(watch_end(Arc::downgrade(&instance)));
                Ok(instance)
            }
            Err(error) => {
                if let Err(error) = port.unplug() {
                    eprintln!("{error}");
                }
                Err(error)
            }
        }
    }

    async fn begin(
        launch: &Launch<'_>,
        descriptor: &mut Descriptor,
        line: &CommandLine,
        console: &Arc<Console>,
    ) -> Result<(Vm, Guest, RamFile, Hello), ApiError> {
        let note = |process| {
            descriptor.process = Some(process);
            descriptor.store(launch.run_dir)
        };
        let (vm, control) = Vm::start(launch.qemu, line, note).await.map_err(ApiError::failed)?;
        let (followed, death) = (Arc::clone(console), vm.death());
        tokio::spawn(async move { followed.follow(death).await });
        let guest = Guest::new(control, 1);
        let booted = async {
            let hello = wait_for_boot(&guest, console).await?;
            let ram = open_ram(launch, line, &hello)?;
            descriptor.portable_len = Some(hello.portable.len);
            descriptor.store(launch.run_dir).map_err(ApiError::failed)?;
            Ok((ram, hello))
        };
        match booted.await {
            Ok((ram, hello)) => Ok((vm, guest, ram, hello)),
            Err(error) => {
                vm.end().await;
                Err(error)
            }
        }
    }

    /// Takes up an instance that an earlier agent has left running. It is not known yet where it stands.
    ///
    /// # Errors
    /// It has ended, never booted, or does not answer.
    pub async fn adopt(
        descriptor: Descriptor,
        run_dir: &Path,
        network: &dyn Network,
    ) -> Result<Arc<Self>, AdoptError> {
        let (Some(process), Some(portable_len)) = (descriptor.process, descriptor.portable_len)
        else {
            return Err(AdoptError::NotBooted);
        };
        let (control, qmp) = (descriptor.control(run_dir), descriptor.qmp(run_dir));
        let messages = descriptor.messages(run_dir);
        let (vm, control) = Vm::adopt(process, &control, &qmp, &messages).await?;
        let spec = descriptor.spec.clone();
        let len = u64::from(spec.memory_mib) << 20;
        let mut ram = RamFile::of_process(process.pid, &descriptor.ram_file, len)?;
        ram.set_portable(Range { addr: PORTABLE_BASE, len: portable_len })?;
        // The agent may have been killed before it could take the name away.
        let _ = std::fs::remove_file(&descriptor.ram_file);
        let console = Console::reopen(run_dir, &descriptor.stem(), descriptor.log_start)
            .map_err(AdoptError::Console)?;
        let port = network.adopt(&descriptor.tap, &spec.mac, descriptor.tunnel())?;
        // An answer to the earlier agent may still come: it must not look like one to us.
        let guest = Guest::new(control, crate::api::now_us() as u32);
        let standing =
            Standing { state: InstanceState::Booting, epoch: descriptor.epoch, reason: None };
        let instance = Arc::new(Self {
            spec,
            vm,
            guest,
            ram,
            console: Arc::new(console),
            busy: tokio::sync::Mutex::new(()),
            run_dir: run_dir.to_owned(),
            descriptor: Mutex::new(descriptor),
            port: Mutex::new(Some(port)),
            standing: Mutex::new(standing),
        });
        let (console, death) = (Arc::clone(&instance.console), instance.vm.death());
        tokio::spawn(async move { console.follow(death).await });
        tokio::spawn(watch_end(Arc::downgrade(&instance)));
        Ok(instance)
    }

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

    /// As [`Instance::note`], where not being able to write harms nobody: guest and store tell the same.
    pub fn note_if_possible(&self, change: impl FnOnce(&mut Descriptor)) {
        if let Err(error) = self.note(change) {
            eprintln!("{}: {error}", self.spec.name);
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

fn command_line(launch: &Launch<'_>, descriptor: &Descriptor, tap: Option<String>) -> CommandLine {
    let (spec, run_dir) = (launch.spec, launch.run_dir);
    let boot = BootArguments {
        ip: spec.ip,
        prefix: spec.prefix,
        gateway: spec.gateway,
        standby: launch.standby,
        epoch: launch.epoch,
        service: &spec.args,
    };
    let [_, console] = Console::paths(run_dir, &descriptor.stem());
    CommandLine {
        machine: spec.machine,
        accel: launch.accel,
        memory_mib: spec.memory_mib,
        ram_file: descriptor.ram_file.clone(),
        kernel: launch.kernel.clone(),
        append: boot.render(),
        tap,
        mac: spec.mac.clone(),
        console,
        control: descriptor.control(run_dir),
        qmp: descriptor.qmp(run_dir),
        messages: descriptor.messages(run_dir),
    }
}

/// Where an instance stands whose guest says this of itself.
#[must_use]
pub fn state_of(state: State) -> InstanceState {
    match state {
        State::Standby => InstanceState::Standby,
        State::Running | State::Draining => InstanceState::Running,
        State::Frozen => InstanceState::Frozen,
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
