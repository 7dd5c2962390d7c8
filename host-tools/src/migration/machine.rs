//! The order of things in a move.
//!
//! The source's agent runs one [`Machine`] for each move: it carries out the actions that
//! [`Machine::step`] returns and tells it what came of them. The machine never waits and never asks
//! the time.
//!
//! ```text
//! Idle → Requesting → Preparing → Copying ⇄ Inquiring → Draining → Mirroring → Freezing → Transferring
//!   │         └── any of these ── failure, deadline, cancel ──────────────→ Undoing ──→ Done(Kept)
//!   │                                                                           ↑
//!   └ … Transferring → Committing ── refused ───────────────────────────────────┤
//!                          │  └─── no answer ──→ Settling ⟲ ── not committed ───┘
//!                          ↓                        │
//!                      Restoring ←─── committed ────┘
//!                          ↓
//!                      Resuming → Removing → Done(Moved)
//!                          └─ failure → Asking → TakingBack → Done(TakenBack)
//!                                          └─ silent → Done(Held)
//! ```

use serde::{Deserialize, Serialize};

use super::precopy::{Policy, Round, Verdict};
use super::{Phase, PhaseLog};

/// Longest time for undoing, asking or taking back, in microseconds.
const REPAIR_LIMIT_US: u64 = 20_000_000;
/// An answer of the store that took longer than this makes another round worth it, in microseconds.
const QUICK_STORE_US: u64 = 50_000;
/// How long the store is not asked again after an answer, in microseconds.
const FRESH_STORE_US: u64 = 1_000_000;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The move begins.
    Start,
    /// The destination can take the service.
    Accepted,
    /// The standby is up, its portable region empty, its port fenced.
    StandbyReady,
    /// A precopy round was sent.
    RoundSent {
        /// Pages it found dirty and sent.
        dirty: u32,
    },
    /// The store could take a commit now.
    StoreReady,
    /// The drain ended, on evidence or at its limit.
    Drained,
    /// Frames for the service now also reach the standby.
    MirrorOn,
    /// The service is parked and the last pages are listed.
    Frozen,
    /// All pages are at the destination and both digests agree.
    Delivered,
    /// The source's QEMU is stopped.
    Stopped,
    /// The store says that the destination owns the service.
    Committed {
        /// The new ownership number.
        epoch: u64,
    },
    /// The store says that the source still owns the service, and that this will not change.
    NotCommitted {
        /// Why.
        reason: String,
    },
    /// The commit was asked for and no answer came.
    CommitUnknown,
    /// The standby's port is open and its guest has been told to take over.
    Ordered,
    /// The service runs on the destination.
    Resumed,
    /// The destination has ended its instance; it will not run.
    DestinationEnded {
        /// Why.
        reason: String,
    },
    /// The destination cannot be asked.
    DestinationSilent {
        /// Why.
        reason: String,
    },
    /// The store says that the source owns the service again, and it has been thawed.
    TakenBack {
        /// The new ownership number.
        epoch: u64,
    },
    /// The source serves as before, the standby is gone or told to go.
    Undone,
    /// The source's QEMU has ended and its memory file is erased.
    Removed,
    /// What was asked for did not work.
    Failed {
        /// Why.
        reason: String,
    },
    /// The deadline of [`Machine::deadline_us`] has passed.
    Deadline,
    /// Somebody wants the move to end.
    Cancel {
        /// Why.
        reason: &'static str,
    },
}

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask the destination whether it can take the service.
    Offer,
    /// Have it boot the standby.
    Prepare,
    /// Scan and send what is dirty.
    SendRound {
        /// The first round: everything that holds state.
        full: bool,
    },
    /// Wait until the store could take a commit.
    AskStore,
    /// Drain the guest.
    Drain,
    /// Copy frames for the service to the standby too, and mark the last that is not.
    MirrorOn,
    /// Freeze the guest behind the mark.
    Freeze,
    /// Send the last pages and have the digests compared.
    SendLast,
    /// Stop the source's QEMU and fence its port.
    Stop,
    /// Ask the store for the ownership.
    Commit,
    /// Ask the store how the commit went, until it answers.
    Settle,
    /// Tell the destination to run; it answers with `Ordered`, then `Resumed`.
    Resume,
    /// Ask the destination, on a new connection, whether the service runs there.
    AskDestination,
    /// Advance the ownership back to the source and thaw it.
    TakeBack,
    /// End the source's QEMU and erase its memory.
    Remove,
    /// Let the source serve on, as far as it had been disturbed, and have the standby removed.
    Undo {
        /// QEMU may have been stopped, the port fenced.
        cont: bool,
        /// The guest may have been drained or frozen.
        thaw: bool,
    },
}

/// How a move ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
#[expect(missing_docs, reason = "phase: where it failed, reason: why, epoch: the ownership number")]
pub enum Outcome {
    /// The service runs on the destination.
    Moved { epoch: u64 },
    /// The move failed before the commit; the source serves on.
    Kept { phase: Phase, reason: String },
    /// The move failed before the commit and the source did not come back.
    Broken { phase: Phase, reason: String },
    /// The destination ended after the commit; the source serves again under a new epoch.
    TakenBack { phase: Phase, reason: String, epoch: u64 },
    /// The destination owns the service and cannot be asked; the source keeps its frozen copy until the
    /// manager knows what became of it. No end of a move as a whole: see
    /// [`recovery`](crate::manager::recovery).
    Held { phase: Phase, reason: String, epoch: u64 },
}

/// Where a move stands.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "drawn in the module's documentation")]
pub enum State {
    Idle,
    Requesting,
    Preparing,
    Copying { number: u32, since_us: u64, before: Option<Round> },
    Inquiring { since_us: u64, last: Round },
    Draining,
    Mirroring,
    Freezing,
    Transferring { delivered: bool, stopped: bool },
    Committing,
    Settling,
    Restoring { epoch: u64 },
    Resuming { epoch: u64 },
    Asking { phase: Phase, epoch: u64, reason: String },
    TakingBack { phase: Phase, epoch: u64, reason: String },
    Removing { epoch: u64 },
    Undoing { phase: Phase, reason: String },
    Done(Outcome),
}

/// One move.
#[derive(Clone, Debug)]
pub struct Machine {
    state: State,
    policy: Policy,
    entered_us: u64,
    /// When the store last said that it could take a commit.
    store_ready_us: Option<u64>,
    /// Times and bytes so far; whoever carries out an action adds what it cost to the open phase.
    pub log: PhaseLog,
}

impl Machine {
    /// A move that has not begun.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self {
            state: State::Idle,
            policy,
            entered_us: 0,
            store_ready_us: None,
            log: PhaseLog::default(),
        }
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// How it ended, once it has.
    #[must_use]
    pub fn outcome(&self) -> Option<&Outcome> {
        match &self.state {
            State::Done(outcome) => Some(outcome),
            _ => None,
        }
    }

    /// The phase it is in; repairs belong to none.
    #[must_use]
    pub fn phase(&self) -> Option<Phase> {
        phase_of(&self.state)
    }

    /// When [`Event::Deadline`] is due, in microseconds since the move began.
    #[must_use]
    pub fn deadline_us(&self) -> Option<u64> {
        let limit_us = match &self.state {
            State::Idle | State::Done(_) => return None,
            State::Settling
            | State::Asking { .. }
            | State::TakingBack { .. }
            | State::Undoing { .. } => REPAIR_LIMIT_US,
            state => phase_of(state)?.row().deadline.as_micros() as u64,
        };
        let deadline_us = self.entered_us + limit_us;
        let timeout_us = self.policy.timeout_us();
        Some(match (&self.state, timeout_us) {
            // Whoever asks for a downtime may wait for it longer than the table would; a round is not cut
            // short only because the move is to be forced after it.
            (State::Copying { .. } | State::Inquiring { .. }, Some(timeout_us))
                if self.policy.forces() =>
            {
                deadline_us.max(timeout_us.saturating_add(limit_us))
            }
            (State::Copying { .. } | State::Inquiring { .. }, Some(timeout_us)) => timeout_us,
            (State::Requesting | State::Preparing, Some(timeout_us)) => deadline_us.min(timeout_us),
            _ => deadline_us,
        })
    }

    /// Why a phase has come to its deadline.
    fn overdue(&self, phase: Phase, now_us: u64) -> String {
        match self.policy.timeout_us() {
            Some(timeout_us) if phase < Phase::Drain && now_us >= timeout_us => {
                self.policy.why_not_ready(None)
            }
            _ => overdue(phase),
        }
    }

    /// Takes what happened and says what is to be done. An event that does not belong to the state
    /// changes nothing: it is late.
    pub fn step(&mut self, event: Event, now_us: u64) -> Vec<Action> {
        use Event as E;
        use State as S;
        let state = self.state.clone();
        match (state, event) {
            (S::Idle, E::Start) => self.enter(S::Requesting, now_us, Action::Offer),
            (S::Requesting, E::Accepted) => self.enter(S::Preparing, now_us, Action::Prepare),
            (S::Preparing, E::StandbyReady) => {
                let next = S::Copying { number: 1, since_us: now_us, before: None };
                self.enter(next, now_us, Action::SendRound { full: true })
            }
            (S::Copying { number, since_us, before }, E::RoundSent { dirty }) => {
                let last = Round { number, pages: dirty, took_us: now_us.saturating_sub(since_us) };
                match self.policy.after(before, last, now_us) {
                    Verdict::Again => {
                        self.state =
                            S::Copying { number: number + 1, since_us: now_us, before: Some(last) };
                        vec![Action::SendRound { full: false }]
                    }
                    // Better asked now than when the service is frozen: etcd may elect, or another manager
                    // take over.
                    Verdict::Switch if self.store_was_ready(now_us) => self.drain(now_us),
                    Verdict::Switch => {
                        self.state = S::Inquiring { since_us: now_us, last };
                        vec![Action::AskStore]
                    }
                    Verdict::GiveUp { reason } => self.undo(Phase::Precopy, reason, now_us),
                }
            }
            (S::Inquiring { since_us, last }, E::StoreReady) => {
                self.store_ready_us = Some(now_us);
                let waited_us = now_us.saturating_sub(since_us);
                if waited_us <= QUICK_STORE_US {
                    return self.drain(now_us);
                }
                // The service has gone on writing meanwhile.
                let before = Round { took_us: last.took_us.saturating_add(waited_us), ..last };
                self.state =
                    S::Copying { number: last.number + 1, since_us: now_us, before: Some(before) };
                vec![Action::SendRound { full: false }]
            }
            (S::Draining, E::Drained) => self.enter(S::Mirroring, now_us, Action::MirrorOn),
            (S::Mirroring, E::MirrorOn) => self.enter(S::Freezing, now_us, Action::Freeze),
            (S::Freezing, E::Frozen) => {
                let next = S::Transferring { delivered: false, stopped: false };
                let mut actions = self.enter(next, now_us, Action::SendLast);
                actions.push(Action::Stop);
                actions
            }
            (S::Transferring { stopped, .. }, E::Delivered) => {
                self.transferred(true, stopped, now_us)
            }
            (S::Transferring { delivered, .. }, E::Stopped) => {
                self.transferred(delivered, true, now_us)
            }
            (S::Committing, E::CommitUnknown | E::Deadline | E::Failed { .. }) => {
                self.enter(S::Settling, now_us, Action::Settle)
            }
            // Neither side may run before the store has answered, however long that takes.
            (S::Settling, E::CommitUnknown | E::Deadline | E::Failed { .. }) => {
                self.enter(S::Settling, now_us, Action::Settle)
            }
            (S::Committing | S::Settling, E::Committed { epoch }) => {
                self.enter(S::Restoring { epoch }, now_us, Action::Resume)
            }
            (S::Committing | S::Settling, E::NotCommitted { reason }) => {
                self.undo(Phase::Commit, reason, now_us)
            }
            (S::Restoring { epoch }, E::Ordered) => {
                self.set(S::Resuming { epoch }, now_us);
                Vec::new()
            }
            (S::Restoring { epoch } | S::Resuming { epoch }, E::Resumed) => {
                self.enter(S::Removing { epoch }, now_us, Action::Remove)
            }
            (state @ (S::Restoring { epoch } | S::Resuming { epoch }), event) => {
                let phase = phase_of(&state).unwrap_or(Phase::Restore);
                match event {
                    E::DestinationEnded { reason } => self.take_back(phase, epoch, reason, now_us),
                    E::Failed { reason } | E::DestinationSilent { reason } => self.enter(
                        S::Asking { phase, epoch, reason },
                        now_us,
                        Action::AskDestination,
                    ),
                    E::Deadline => {
                        let reason = overdue(phase);
                        self.enter(
                            S::Asking { phase, epoch, reason },
                            now_us,
                            Action::AskDestination,
                        )
                    }
                    _ => Vec::new(),
                }
            }
            (S::Asking { epoch, .. }, E::Resumed) => {
                self.enter(S::Removing { epoch }, now_us, Action::Remove)
            }
            (S::Asking { phase, epoch, reason }, E::DestinationEnded { .. }) => {
                self.take_back(phase, epoch, reason, now_us)
            }
            (
                S::Asking { phase, epoch, reason },
                E::DestinationSilent { .. } | E::Deadline | E::Failed { .. },
            )
            | (
                S::TakingBack { phase, epoch, reason },
                E::CommitUnknown | E::NotCommitted { .. } | E::Deadline | E::Failed { .. },
            ) => self.end(Outcome::Held { phase, reason, epoch }, now_us),
            (S::TakingBack { phase, reason, .. }, E::TakenBack { epoch }) => {
                self.end(Outcome::TakenBack { phase, reason, epoch }, now_us)
            }
            (S::Removing { epoch }, E::Removed) => self.end(Outcome::Moved { epoch }, now_us),
            // The service runs at the destination: what is left at the source is litter, not harm.
            (S::Removing { epoch }, E::Failed { reason }) => {
                if let Some(open) = self.log.open_mut() {
                    open.note = format!("left on the source: {reason}");
                }
                self.end(Outcome::Moved { epoch }, now_us)
            }
            (S::Removing { epoch }, E::Deadline) => self.end(Outcome::Moved { epoch }, now_us),
            (S::Undoing { phase, reason }, E::Undone) => {
                self.end(Outcome::Kept { phase, reason }, now_us)
            }
            (S::Undoing { phase, reason }, E::Failed { reason: second }) => {
                let reason = format!("{reason}; the source could not be thawed: {second}");
                self.end(Outcome::Broken { phase, reason }, now_us)
            }
            (S::Undoing { phase, reason }, E::Deadline) => {
                let reason = format!("{reason}; the source did not answer when it was thawed");
                self.end(Outcome::Broken { phase, reason }, now_us)
            }
            (S::Inquiring { .. }, E::Deadline) => {
                let reason = "the store did not say in time that it could take a commit".into();
                self.undo(Phase::Precopy, reason, now_us)
            }
            (state, event) if before_commit(&state) => match (phase_of(&state), event) {
                (Some(phase), E::Failed { reason } | E::DestinationEnded { reason }) => {
                    self.undo(phase, reason, now_us)
                }
                (Some(phase), E::DestinationSilent { reason }) => self.undo(phase, reason, now_us),
                (Some(phase), E::Deadline) => {
                    let reason = self.overdue(phase, now_us);
                    self.undo(phase, reason, now_us)
                }
                (Some(phase), E::Cancel { reason }) => self.undo(phase, reason.into(), now_us),
                _ => Vec::new(),
            },
            _ => Vec::new(),
        }
    }

    /// Whether the store has just said that it could take a commit.
    fn store_was_ready(&self, now_us: u64) -> bool {
        self.store_ready_us.is_some_and(|at_us| now_us.saturating_sub(at_us) <= FRESH_STORE_US)
    }

    fn drain(&mut self, now_us: u64) -> Vec<Action> {
        self.enter(State::Draining, now_us, Action::Drain)
    }

    /// Goes on to `state` with one action.
    fn enter(&mut self, state: State, now_us: u64, action: Action) -> Vec<Action> {
        self.set(state, now_us);
        vec![action]
    }

    fn set(&mut self, state: State, now_us: u64) {
        if let Some(phase) = phase_of(&state) {
            self.log.enter(phase, now_us);
        }
        self.entered_us = now_us;
        self.state = state;
    }

    fn transferred(&mut self, delivered: bool, stopped: bool, now_us: u64) -> Vec<Action> {
        if delivered && stopped {
            return self.enter(State::Committing, now_us, Action::Commit);
        }
        self.state = State::Transferring { delivered, stopped };
        Vec::new()
    }

    /// Begins to put the source back as it was.
    fn undo(&mut self, phase: Phase, reason: String, now_us: u64) -> Vec<Action> {
        let action = Action::Undo { cont: phase >= Phase::Transfer, thaw: phase >= Phase::Drain };
        self.log.close(now_us);
        self.enter(State::Undoing { phase, reason }, now_us, action)
    }

    fn take_back(&mut self, phase: Phase, epoch: u64, reason: String, now_us: u64) -> Vec<Action> {
        self.enter(State::TakingBack { phase, epoch, reason }, now_us, Action::TakeBack)
    }

    fn end(&mut self, outcome: Outcome, now_us: u64) -> Vec<Action> {
        self.log.close(now_us);
        self.state = State::Done(outcome);
        Vec::new()
    }
}

fn overdue(phase: Phase) -> String {
    format!("{phase} took longer than {} s", phase.row().deadline.as_secs())
}

/// The phase a state belongs to; repairs belong to none.
fn phase_of(state: &State) -> Option<Phase> {
    Some(match state {
        State::Requesting => Phase::Request,
        State::Preparing => Phase::Prepare,
        State::Copying { .. } | State::Inquiring { .. } => Phase::Precopy,
        State::Draining | State::Mirroring => Phase::Drain,
        State::Freezing => Phase::Freeze,
        State::Transferring { .. } => Phase::Transfer,
        State::Committing | State::Settling => Phase::Commit,
        State::Restoring { .. } => Phase::Restore,
        State::Resuming { .. } => Phase::Resume,
        State::Removing { .. } => Phase::Remove,
        State::Idle
        | State::Asking { .. }
        | State::TakingBack { .. }
        | State::Undoing { .. }
        | State::Done(_) => return None,
    })
}

fn before_commit(state: &State) -> bool {
    phase_of(state).is_some_and(|phase| phase < Phase::Commit)
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
