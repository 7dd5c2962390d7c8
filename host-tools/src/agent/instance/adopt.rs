//! Taking up an instance that an earlier agent has left.

use std::path::Path;
use std::sync::{Arc, Mutex};

use ferry_protocol::control::Range;
use ferry_protocol::layout::PORTABLE_BASE;

use super::{Instance, Standing, watch_end};
use crate::agent::console::Console;
use crate::agent::control::Guest;
use crate::agent::descriptor::Descriptor;
use crate::agent::network::Network;
use crate::api::InstanceState;
use crate::qemu::ram::RamError;
use crate::qemu::vm::AdoptError as VmAdoptError;
use crate::qemu::{RamFile, Vm};

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

impl Instance {
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
        let port = network.adopt(&descriptor.tap, &spec.mac)?;
        // An answer to the earlier agent may still come: it must not look like one to us.
        let guest = Guest::new(control, crate::api::now_us() as u32);
        let standing = Standing {
            state: InstanceState::Booting,
            epoch: descriptor.epoch,
            reason: None,
            mute: None,
        };
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
}
