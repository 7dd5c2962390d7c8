//! Starting an instance.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ferry_protocol::control::{Hello, State};

use super::{Instance, Standing, state_of, watch_end};
use crate::agent::console::Console;
use crate::agent::control::Guest;
use crate::agent::descriptor::Descriptor;
use crate::agent::network::{Network, TAP_PREFIX};
use crate::api::{ApiError, Digest32, ServiceSpec};
use crate::priority::{self, Priority};
use crate::process::Process;
use crate::qemu::command::{BootArguments, CommandLine};
use crate::qemu::user::User;
use crate::qemu::{Accel, RamFile, Vm};

/// Longest time from the start of QEMU to the guest's first word.
pub const BOOT_LIMIT: Duration = Duration::from_secs(25);

/// What is needed to start an instance.
#[derive(Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Launch<'a> {
    pub spec: &'a ServiceSpec,
    pub standby: bool,
    pub epoch: u64,
    pub accel: Accel,
    /// Whether QEMU has that firmware ([`crate::qemu::firmware`]).
    pub qboot: bool,
    pub qemu: &'a str,
    /// Whom QEMU runs as; by default as the agent.
    pub user: Option<User>,
    pub sandbox: bool,
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
                tracing::warn!(
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
        let begun = match port.frames().map_err(ApiError::failed) {
            Ok(tap) => Self::begin(launch, descriptor, tap, &console).await,
            Err(error) => Err(error),
        };
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
                    standing: Mutex::new(Standing { state, epoch, reason: None, mute: None }),
                });
                tokio::spawn(watch_end(Arc::downgrade(&instance)));
                Ok(instance)
            }
            Err(error) => {
                if let Err(error) = port.unplug() {
                    tracing::warn!("{error}");
                }
                Err(error)
            }
        }
    }

    async fn begin(
        launch: &Launch<'_>,
        descriptor: &mut Descriptor,
        tap: Option<File>,
        console: &Arc<Console>,
    ) -> Result<(Vm, Guest, RamFile, Hello), ApiError> {
        let line = command_line(launch, descriptor, tap.is_some());
        let low = launch.standby && priority::may_return();
        let priority = if low { Priority::Low } else { Priority::Serving };
        let note = |process: Process| {
            descriptor.process = Some(process);
            descriptor.store(launch.run_dir)
        };
        let started = Vm::start(launch.qemu, &line, tap, launch.user, priority, note).await;
        let (vm, control) = started.map_err(ApiError::failed)?;
        let (followed, death) = (Arc::clone(console), vm.death());
        tokio::spawn(async move { followed.follow(death).await });
        let guest = Guest::new(control, 1);
        let booted = async {
            let hello = wait_for_boot(&guest, console).await?;
            let ram = open_ram(launch, &line, &hello)?;
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
}

fn command_line(launch: &Launch<'_>, descriptor: &Descriptor, nic: bool) -> CommandLine {
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
        qboot: launch.qboot,
        memory_mib: spec.memory_mib,
        ram_file: descriptor.ram_file.clone(),
        kernel: launch.kernel.clone(),
        append: boot.render(),
        nic,
        mac: spec.mac.clone(),
        sandbox: launch.sandbox,
        console,
        control: descriptor.control(run_dir),
        qmp: descriptor.qmp(run_dir),
        messages: descriptor.messages(run_dir),
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
