//! The instances that earlier agents have left on this host.

use std::sync::Arc;
use std::time::Duration;

use super::settle;
use crate::agent::descriptor::Descriptor;
use crate::agent::host::Host;
use crate::agent::instance::{AdoptError, Instance};
use crate::api::ApiError;
use crate::qemu::vm::AdoptError as VmAdoptError;
use crate::wire::Pause;

/// First and longest pause between two attempts to reach a QEMU that runs.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Takes the names of all instances that earlier agents have left, so that nobody hears that they are not
/// here, and settles each in the background.
///
/// # Errors
/// A descriptor cannot be read.
pub fn all(host: &Arc<Host>) -> Result<(), ApiError> {
    for descriptor in Descriptor::load_all(host.run_dir()).map_err(ApiError::failed)? {
        host.number_after(descriptor.number);
        let occupied = host.occupy(&descriptor.spec);
        tokio::spawn(one(Arc::clone(host), descriptor, occupied));
    }
    Ok(())
}

async fn one(host: Arc<Host>, descriptor: Descriptor, mut occupied: bool) {
    let name = descriptor.spec.name.clone();
    let mut pause = Pause::growing(PAUSES.0, PAUSES.1);
    let mut said = String::new();
    loop {
        // Two descriptions of one service: one of them has ended and is tidied up first.
        occupied = occupied || host.occupy(&descriptor.spec);
        if occupied {
            match take_up(&host, &descriptor).await {
                Ok(Some(instance)) => {
                    host.fill(&instance);
                    settle(&host, &instance).await;
                    return;
                }
                Ok(None) => {
                    host.vacate(&name);
                    tracing::info!(
                        "{name}: its instance had ended; what was left of it is removed"
                    );
                    return;
                }
                Err(error) => {
                    if said != error.message {
                        tracing::warn!("{name}: cannot be taken up yet: {error}");
                    }
                    said = error.message;
                }
            }
        }
        pause.wait().await;
    }
}

/// One attempt; `None` if there is nothing any more.
async fn take_up(
    host: &Arc<Host>,
    descriptor: &Descriptor,
) -> Result<Option<Arc<Instance>>, ApiError> {
    if let Some(process) = descriptor.running() {
        match Instance::adopt(descriptor.clone(), host.run_dir(), host.network()).await {
            Ok(instance) => return Ok(Some(instance)),
            // Nobody has been told of it: the agent was killed while it started.
            Err(AdoptError::NotBooted) => {
                let ended = tokio::task::spawn_blocking(move || process.end(Duration::ZERO));
                ended.await.map_err(ApiError::failed)?.map_err(ApiError::failed)?;
            }
            Err(AdoptError::Vm(VmAdoptError::Ended { .. })) => {}
            Err(error) => return Err(ApiError::failed(error)),
        }
    }
    let (tap, mac) = (&descriptor.tap, &descriptor.spec.mac);
    host.network().remove(tap, mac).map_err(ApiError::failed)?;
    descriptor.remove_files(host.run_dir()).map_err(ApiError::failed)?;
    Ok(None)
}
