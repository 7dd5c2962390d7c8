//! Taking up what an agent that was killed has left, and settling what a move has left undecided.
//!
//! 1. [`decide`](mod@decide): what becomes of an instance, as a pure function, and why at most one runs.
//! 2. [`take_up`]: the instances that earlier agents have left on this host.
//! 3. [`recheck`]: whether what runs here still belongs here, after a silence.
//!
//! [`settle`] repeats one attempt until the instance runs or has ended: ask the guest where it stands, ask
//! the manager whose the service is, decide, act. While the manager does not answer nothing changes: a guest
//! that runs goes on running, one that does not waits.

pub mod decide;
pub mod recheck;
pub mod take_up;

use std::sync::Arc;
use std::time::Duration;

use ferry_protocol::control::{Answer, Order, State};
use hyper::Method;

use super::checkpoint::thaw;
use super::control::OrderError;
use super::descriptor::Descriptor;
use super::destination::{Taken, take_over};
use super::host::{Host, MANAGER_LIMIT};
use super::instance::{Instance, state_of};
use crate::api::{ApiError, InstanceState, OwnershipAnswer, OwnershipRequest};
use crate::wire::Pause;
use decide::{Decision, Guest, Move, Noted, Word, decide};

/// First and longest pause between two attempts.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// Longest wait for a guest to say where it stands.
const HELLO_LIMIT: Duration = Duration::from_secs(1);
/// How often it is asked: what an earlier agent had half sent may swallow the first question.
const HELLOS: u32 = 2;

/// What an attempt came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// The service runs here.
    Runs,
    /// The instance has ended.
    Ended,
    /// It is not decided yet.
    Waits,
}

/// Settles an instance, however long that takes; without a lease nothing is set running.
pub async fn settle(host: &Host, instance: &Arc<Instance>) {
    let stood_still = instance.state().stands_still();
    let mut pause = Pause::growing(PAUSES.0, PAUSES.1);
    let mut said = String::new();
    loop {
        host.lease.held().await;
        let attempted = {
            let _busy = instance.busy.lock().await;
            // A manager that has heard of it in a report has it settled too.
            if stood_still && instance.state() == InstanceState::Running {
                return;
            }
            attempt(host, instance).await
        };
        match attempted {
            Ok(Settled::Runs | Settled::Ended) => return,
            Ok(Settled::Waits) => {}
            Err(error) if error.message != said => {
                tracing::warn!("{}: {error}; trying again", instance.spec.name);
                said = error.message;
            }
            Err(_) => {}
        }
        pause.wait().await;
    }
}

/// One attempt. The caller holds the instance's `busy`.
///
/// # Errors
/// Something does not answer; nothing is decided then.
pub async fn attempt(host: &Host, instance: &Arc<Instance>) -> Result<Settled, ApiError> {
    if instance.state() == InstanceState::Failed {
        host.end(instance).await?;
        return Ok(Settled::Ended);
    }
    let descriptor = instance.descriptor();
    let (guest, asked) = tokio::join!(probe(instance), ask(host, &descriptor));
    instance.set_mute(guest == Guest::Mute);
    let noted = Noted { epoch: descriptor.epoch, verified: descriptor.verified };
    let word = asked.as_ref().map_or(Word::Silent, |answer| word(answer, host, &descriptor));
    let name = &instance.spec.name;
    match decide(guest, noted, word) {
        Decision::Keep => asked.map(|_| Settled::Waits),
        Decision::Adopt { epoch } => {
            // An order of an earlier agent may still be in work in the guest: this undoes it.
            thaw(instance).await?;
            runs(instance, epoch);
            tracing::info!("{name}: taken up, epoch {epoch}");
            Ok(Settled::Runs)
        }
        Decision::Thaw { epoch } => {
            thaw(instance).await?;
            runs(instance, epoch);
            tracing::info!("{name}: goes on, epoch {epoch}");
            Ok(Settled::Runs)
        }
        Decision::Resume { epoch } => match take_over(instance, epoch).await {
            Ok(Taken { connections, .. }) => {
                runs(instance, epoch);
                tracing::info!("{name}: taken over, epoch {epoch}, {connections} connections");
                Ok(Settled::Runs)
            }
            Err(error) => {
                tracing::warn!("{name}: cannot take over ({error}); the source gets it back");
                host.end(instance).await?;
                Ok(Settled::Ended)
            }
        },
        Decision::End => {
            tracing::info!("{name}: its instance here is ended: {}", why(guest, word));
            host.end(instance).await?;
            Ok(Settled::Ended)
        }
    }
}

fn why(guest: Guest, word: Word) -> &'static str {
    match (word, guest) {
        (Word::Released, _) => "the manager has let go of the service",
        (Word::Stored { .. }, _) => "a snapshot is the service",
        (Word::Waking { .. }, _) => "the service wakes from a snapshot that is newer",
        (_, Guest::Standby) => "it was a standby whose move is over",
        (_, Guest::Running) => "another node owns the service",
        _ => "the service runs on another node",
    }
}

fn runs(instance: &Instance, epoch: u64) {
    instance.set_epoch(epoch);
    instance.console.without_history();
    let log_start = instance.console.extent().borrow().start;
    instance.note_if_possible(|noted| {
        noted.epoch = epoch;
        noted.migration = None;
        noted.verified = false;
        noted.log_start = log_start;
    });
}

/// Asks QEMU and the guest.
pub(super) async fn probe(instance: &Instance) -> Guest {
    match instance.vm.runs().await {
        // Only a frozen guest is ever stopped.
        Ok(false) => {
            instance.set_state(InstanceState::Frozen);
            return Guest::Quiet;
        }
        Ok(true) => {}
        Err(_) => return Guest::Mute,
    }
    for _ in 0..HELLOS {
        match instance.guest.order(Order::Hello, HELLO_LIMIT).await {
            Ok(Answer::Hello(hello)) => {
                instance.set_state(state_of(hello.state));
                return match hello.state {
                    State::Standby => Guest::Standby,
                    State::Running => Guest::Running,
                    State::Draining | State::Frozen => Guest::Quiet,
                };
            }
            Err(OrderError::Gone { .. }) => break,
            Ok(_) | Err(_) => {}
        }
    }
    Guest::Mute
}

/// Asks the manager whose the service is; the move that the instance is part of shall not commit any more.
async fn ask(host: &Host, descriptor: &Descriptor) -> Result<OwnershipAnswer, ApiError> {
    let path = format!("/v1/services/{}/ownership", descriptor.spec.name);
    let request =
        OwnershipRequest { id: descriptor.spec.id.clone(), settle: descriptor.migration.clone() };
    host.manager().json(Method::POST, &path, &request, MANAGER_LIMIT).await
}

fn word(answer: &OwnershipAnswer, host: &Host, descriptor: &Descriptor) -> Word {
    match answer {
        OwnershipAnswer::Unknown => Word::Unknown,
        OwnershipAnswer::Released => Word::Released,
        OwnershipAnswer::Snapshot { epoch } => Word::Stored { epoch: *epoch },
        OwnershipAnswer::Waking { name, epoch } if name == host.name() => {
            Word::Waking { epoch: *epoch }
        }
        OwnershipAnswer::Waking { epoch, .. } => {
            Word::Owned { here: false, epoch: *epoch, open: Move::No }
        }
        OwnershipAnswer::Node { name, epoch, migration } => {
            let open = match migration {
                None => Move::No,
                Some(id) if Some(id) == descriptor.migration.as_ref() => Move::This,
                Some(_) => Move::Other,
            };
            Word::Owned { here: name == host.name(), epoch: *epoch, open }
        }
    }
}
