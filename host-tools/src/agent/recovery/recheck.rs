//! After a silence: is what runs here still ours?
//!
//! While the manager could not be reached, or this agent was stopped, a user may have given this host up and
//! the service may belong to somebody else. An instance that runs under an epoch that is over is ended.

use std::sync::Arc;

use super::decide::{Decision, Guest, Noted, Word, decide};
use super::{ask, why, word};
use crate::agent::host::Host;
use crate::agent::instance::Instance;
use crate::api::{ApiError, InstanceState};

/// Asks for every instance that runs here. Returns whether all answers came; if not, it is to be tried again.
pub async fn all(host: &Host) -> bool {
    let mut answered = true;
    for instance in host.instances() {
        if let Err(error) = one(host, &instance).await {
            tracing::warn!("{}: whether it still belongs here: {error}", instance.spec.name);
            answered = false;
        }
    }
    answered
}

async fn one(host: &Host, instance: &Arc<Instance>) -> Result<(), ApiError> {
    // What is being moved, settled or ended asks the store itself.
    let Ok(_busy) = instance.busy.try_lock() else { return Ok(()) };
    if instance.state() != InstanceState::Running {
        return Ok(());
    }
    let mut descriptor = instance.descriptor();
    descriptor.migration = None;
    let answer = ask(host, &descriptor).await?;
    let noted = Noted { epoch: instance.epoch(), verified: false };
    let word: Word = word(&answer, host, &descriptor);
    if decide(Guest::Running, noted, word) == Decision::End {
        tracing::info!(
            "{}: its instance here is ended: {}",
            instance.spec.name,
            why(Guest::Running, word)
        );
        host.end(instance).await?;
    }
    Ok(())
}
