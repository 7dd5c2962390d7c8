//! Every move comes to an end, whoever dies.
//!
//! While the source's agent carries a move out, the manager only follows its events. It acts itself once
//! that agent knows nothing of the move any more (it was started again) or has given up asking the
//! destination. Then nobody else commits or takes back, and the record says what to do:
//!
//! - The record names the move at the epoch it began with: it is settled, so that it cannot commit any more.
//! - The record does not name the move: it never committed, because a committed move is named until its
//!   end is durable. The source goes on.
//! - One epoch later: the destination owns the service. It is asked to resolve: afterwards the service runs
//!   there, and the source's copy may go; or it never will, and the source takes it back.
//! - Two epochs later: the source owns it again and thaws its copy by itself.
//!
//! An agent that is unknown or silent is waited for: nothing is guessed, unless a user says that its host is
//! gone ([`cancel`](super::cancel)).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use hyper::Method;

use super::cancel::lost;
use super::standing::{Standing, standing};
use super::state::Manager;
use crate::api::client::Lines;
use crate::api::{ApiError, Instance, InstanceState, Migration, MoveEvent, Problem, ResumeRequest};
use crate::migration::{Outcome, Phase};
use crate::store::{Ownership, Renewal, StoreError};
use crate::wire::Pause;

/// First and longest pause between two attempts to finish a move.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// Silence of a source after which its events are asked for on a new connection; its repairs may take
/// longer, and it says nothing meanwhile.
const EVENT_LIMIT: Duration = Duration::from_secs(60);
/// Longest wait for an agent to say that it has a move's events.
const FOLLOW_LIMIT: Duration = Duration::from_secs(5);
/// Longest wait for the destination to resolve: its guest may have to resume.
const RESOLVE_LIMIT: Duration = Duration::from_secs(20);
/// Longest wait for other answers of agents.
pub(super) const LOOK_LIMIT: Duration = Duration::from_secs(5);

/// What following the source's agent came to.
enum Followed {
    /// The move has ended.
    Ended(MoveEvent),
    /// Its agent does nothing more for the move.
    Over(Broken),
    /// Its agent may still be at work, and cannot be asked.
    Silent(String),
}

/// Where and why a move broke off.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Broken {
    phase: Phase,
    reason: String,
}

impl Manager {
    /// Takes up every move that has not ended, and lets go of those whose end was just written.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn recover(self: &Arc<Self>) -> Result<(), ApiError> {
        let open = self.moves.open();
        for record in self.store.list().await? {
            let Some(id) = record.migration else { continue };
            let is_open = open.iter().any(|number| format!("m{number}") == id);
            if !is_open {
                let end = Renewal::EndMove { migration: id };
                self.store.renew(&record.spec.name, record.epoch, end).await?;
            }
        }
        for number in open {
            tracing::info!("move m{number} was under way when the manager ended: taking it up");
            tokio::spawn(Arc::clone(self).finish(number, None));
        }
        Ok(())
    }

    /// Follows a move until it ends, and ends it if its source no longer does.
    pub(super) async fn finish(self: Arc<Self>, number: u32, mut lines: Option<Lines>) {
        let (Some(known), Some(mut gone)) = (self.moves.kept(number), self.moves.gone(number))
        else {
            return;
        };
        let source = known.migration.source.clone();
        let mut kept_gone = known.gone.clone();
        let mut broken = None;
        let mut pause = Pause::growing(PAUSES.0, PAUSES.1);
        loop {
            let mut waits_for = None;
            if broken.is_none() {
                let followed = tokio::select! {
                    biased;
                    // The sender lives as long as the move: this waits until it is said.
                    _ = gone.wait_for(|gone| gone.contains(&source)) => {
                        let now = self.moves.kept(number).unwrap_or_else(|| known.clone());
                        over(&now.migration, &format!("node {source} is gone, as a user says"))
                    }
                    followed = self.follow_source(number, lines.take()) => followed,
                };
                match followed {
                    Followed::Ended(event) => return self.end_move(number, event).await,
                    Followed::Over(how) => broken = Some(how),
                    Followed::Silent(reason) => waits_for = Some(reason),
                }
            }
            let given_up = gone.borrow().clone();
            if given_up != kept_gone
                && let Some(kept) = self.moves.kept(number)
            {
                match self.keep(&kept).await {
                    Ok(()) => kept_gone.clone_from(&given_up),
                    Err(error) => tracing::warn!(
                        "move m{number}: who was given up is to be said again if the manager ends: {error}"
                    ),
                }
            }
            match self.step(number, broken.as_ref(), &given_up).await {
                Ok(Some(result)) => {
                    let event = MoveEvent::Ended { result, summary: Box::default() };
                    return self.end_move(number, event).await;
                }
                Ok(None) => {}
                Err(error) => waits_for = Some(error.message),
            }
            if let Some(reason) = waits_for {
                self.moves.tell_waiting(number, reason);
            }
            pause.wait().await;
        }
    }

    /// Follows the source's agent for as long as it tells something.
    async fn follow_source(&self, number: u32, lines: Option<Lines>) -> Followed {
        let Some(known) = self.moves.kept(number) else {
            return Followed::Silent("the move is not known".into());
        };
        let migration = known.migration;
        let (mut lines, mut heard) = match lines {
            Some(lines) => (lines, 0),
            None => match self.events_of_source(&migration.source, &migration.id).await {
                // All but the first of what we have came from there, in the same order.
                Ok(lines) => (lines, known.events.len().saturating_sub(1)),
                Err(error) if error.problem == Problem::NotFound => {
                    return over(&migration, "the source's agent ended during the move");
                }
                Err(error) => return Followed::Silent(error.message),
            },
        };
        loop {
            let line = tokio::time::timeout(EVENT_LIMIT, lines.next::<MoveEvent>()).await;
            let event = match line {
                Ok(Ok(Some(event))) => event,
                Ok(Ok(None) | Err(_)) => {
                    let source = &migration.source;
                    return Followed::Silent(format!("node {source} ended its story of the move"));
                }
                Err(_) => return Followed::Silent(format!("node {} is silent", migration.source)),
            };
            if heard > 0 {
                heard -= 1;
                continue;
            }
            if let MoveEvent::Ended { result: Outcome::Held { phase, reason, .. }, .. } = event {
                return Followed::Over(Broken { phase, reason });
            }
            if matches!(event, MoveEvent::Ended { .. }) {
                return Followed::Ended(event);
            }
            self.note_event(number, event).await;
        }
    }

    /// Takes an event of a move that goes on. The store has one writer, and a commit must not wait behind
    /// a log: from the precopy to the resume nothing is written.
    async fn note_event(&self, number: u32, event: MoveEvent) {
        let Some(kept) = self.moves.add(number, event) else { return };
        let quiet = Phase::Precopy..=Phase::Resume;
        if kept.migration.phase.is_none_or(|phase| !quiet.contains(&phase))
            && let Err(error) = self.keep(&kept).await
        {
            tracing::warn!("the phases of move m{number} are not kept: {error}");
        }
    }

    /// `NotFound` says that the source's agent does not know the move.
    async fn events_of_source(&self, source: &str, id: &str) -> Result<Lines, ApiError> {
        let agent = self.agent_of(source)?;
        let path = format!("/v1/moves/{id}/events");
        let asked = agent.lines(Method::GET, &path, &());
        match tokio::time::timeout(FOLLOW_LIMIT, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(silent(source)),
        }
    }

    /// As [`Nodes::client`](super::nodes::Nodes::client), but an agent that has not reported yet is one
    /// that cannot be reached.
    fn agent_of(&self, node: &str) -> Result<Arc<crate::api::Client>, ApiError> {
        self.nodes.client(node).map_err(|_| {
            let message = format!("node {node} has not reported since the manager was started");
            ApiError::new(Problem::Unreachable, message)
        })
    }

    /// One attempt to bring a move to its end. `broken` says that the source's agent does nothing more.
    async fn step(
        &self,
        number: u32,
        broken: Option<&Broken>,
        gone: &BTreeSet<String>,
    ) -> Result<Option<Outcome>, ApiError> {
        let Some(known) = self.moves.kept(number) else { return Ok(None) };
        let (migration, began) = (known.migration, known.epoch);
        let (id, name) = (migration.id.as_str(), migration.service.as_str());
        let mut record = self.store.get(name).await?;
        if broken.is_some() && standing(record.as_ref(), id, began) == Standing::Open {
            let end = Renewal::EndMove { migration: id.to_owned() };
            match self.store.renew(name, began, end).await {
                Ok(_) | Err(StoreError::Epoch { .. } | StoreError::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            record = self.store.get(name).await?;
        }
        let stands = standing(record.as_ref(), id, began);
        let Some(broken) = broken else {
            // The source may still be at work: only look.
            let runs = stands == Standing::Committed
                && self.state_of(&migration.destination, name).await?
                    == Some((InstanceState::Running, began + 1));
            return Ok(runs.then_some(Outcome::Moved { epoch: began + 1 }));
        };
        let Broken { phase, reason } = broken.clone();
        if let Some(what) = lost(&migration, gone, stands) {
            return Ok(Some(Outcome::Broken { phase, reason: format!("{reason}; {what}") }));
        }
        match stands {
            Standing::Open => Ok(None),
            Standing::Closed => {
                let goes_on = record.is_some_and(|record| {
                    record.epoch != began || record.migration.is_some_and(|other| other != id)
                });
                if goes_on {
                    // It has moved on since, so it did run.
                    return Ok(Some(Outcome::Kept { phase, reason }));
                }
                self.source_serves(&migration.source, name, began, &reason)
                    .await
                    .map(|serves| serves.map(|ended| ended.outcome(phase, reason, None)))
            }
            Standing::Committed => {
                let epoch = began + 1;
                if !gone.contains(&migration.destination)
                    && self.resolves(&migration.destination, name, epoch).await?
                {
                    return Ok(Some(Outcome::Moved { epoch }));
                }
                let owner = Ownership::Node { name: migration.source.clone() };
                self.store.advance(name, epoch, Some(id), owner).await?;
                Ok(None)
            }
            Standing::TakenBack => {
                let epoch = began + 2;
                self.source_serves(&migration.source, name, epoch, &reason)
                    .await
                    .map(|serves| serves.map(|ended| ended.outcome(phase, reason, Some(epoch))))
            }
        }
    }

    /// Whether the destination runs the service; if not, it never will under this epoch.
    async fn resolves(&self, node: &str, name: &str, epoch: u64) -> Result<bool, ApiError> {
        let agent = self.agent_of(node)?;
        let path = format!("/v1/instances/{name}/resolve");
        agent.json(Method::POST, &path, &ResumeRequest { epoch }, RESOLVE_LIMIT).await
    }

    /// Whether the source serves under `epoch`; `None` while that is not decided.
    async fn source_serves(
        &self,
        source: &str,
        name: &str,
        epoch: u64,
        reason: &str,
    ) -> Result<Option<Serves>, ApiError> {
        Ok(match self.state_of(source, name).await? {
            Some((InstanceState::Running, found)) if found == epoch => Some(Serves::Yes),
            Some((InstanceState::Failed, _)) => {
                Some(Serves::No(format!("{reason}; its instance on node {source} has ended")))
            }
            None => Some(Serves::No(format!("{reason}; node {source} has no instance of it left"))),
            Some(_) => None,
        })
    }

    /// Where an instance stands, `None` if its agent has none. An agent that is just finding that out
    /// answers with an error.
    async fn state_of(
        &self,
        node: &str,
        name: &str,
    ) -> Result<Option<(InstanceState, u64)>, ApiError> {
        let agent = self.agent_of(node)?;
        let path = format!("/v1/instances/{name}");
        match agent.json::<Instance>(Method::GET, &path, &(), LOOK_LIMIT).await {
            Ok(instance) => Ok(Some((instance.state, instance.epoch))),
            Err(error) if error.problem == Problem::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn over(migration: &Migration, reason: &str) -> Followed {
    let phase = migration.phase.unwrap_or(Phase::Request);
    Followed::Over(Broken { phase, reason: reason.into() })
}

enum Serves {
    Yes,
    No(String),
}

impl Serves {
    fn outcome(self, phase: Phase, reason: String, taken_back: Option<u64>) -> Outcome {
        match (self, taken_back) {
            (Self::Yes, None) => Outcome::Kept { phase, reason },
            (Self::Yes, Some(epoch)) => Outcome::TakenBack { phase, reason, epoch },
            (Self::No(reason), _) => Outcome::Broken { phase, reason },
        }
    }
}

fn silent(node: &str) -> ApiError {
    ApiError::new(Problem::Unreachable, format!("node {node} does not answer"))
}
