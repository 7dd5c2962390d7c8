//! Every state × every event.

use super::*;
use crate::migration::precopy::{Limits, OnTimeout};

fn reason() -> String {
    "why".into()
}

fn events() -> Vec<Event> {
    vec![
        Event::Start,
        Event::Accepted,
        Event::StandbyReady,
        Event::RoundSent { dirty: 5 },
        Event::StoreReady,
        Event::Drained,
        Event::MirrorOn,
        Event::Frozen,
        Event::Delivered,
        Event::Stopped,
        Event::Committed { epoch: 8 },
        Event::NotCommitted { reason: reason() },
        Event::CommitUnknown,
        Event::Ordered,
        Event::Resumed,
        Event::DestinationEnded { reason: reason() },
        Event::DestinationSilent { reason: reason() },
        Event::TakenBack { epoch: 9 },
        Event::Undone,
        Event::Removed,
        Event::Failed { reason: reason() },
        Event::Deadline,
        Event::Cancel { reason: "why not" },
    ]
}

fn states() -> Vec<State> {
    use Phase::Resume;
    let outcome = Outcome::Kept { phase: Phase::Drain, reason: reason() };
    vec![
        State::Idle,
        State::Requesting,
        State::Preparing,
        State::Copying { number: 1, since_us: 0, before: None },
        State::Inquiring { since_us: 0, last: Round { number: 2, pages: 5, took_us: 1 } },
        State::Draining,
        State::Mirroring,
        State::Freezing,
        State::Transferring { delivered: false, stopped: false },
        State::Transferring { delivered: true, stopped: false },
        State::Transferring { delivered: false, stopped: true },
        State::Committing,
        State::Settling,
        State::Restoring { epoch: 8 },
        State::Resuming { epoch: 8 },
        State::Asking { phase: Resume, epoch: 8, reason: reason() },
        State::TakingBack { phase: Resume, epoch: 8, reason: reason() },
        State::Removing { epoch: 8 },
        State::Undoing { phase: Phase::Drain, reason: reason() },
        State::Done(outcome),
    ]
}

fn at(state: State) -> Machine {
    Machine { state, ..Machine::new(Policy::default()) }
}

/// What the table of the module's documentation says.
fn expected(state: &State, event: &Event) -> Option<(State, Vec<Action>)> {
    use Action as A;
    use Event as E;
    use State as S;
    let next = |state, action| Some((state, vec![action]));
    let done = |outcome| Some((S::Done(outcome), vec![]));
    let undo = |phase, reason: String, cont, thaw| {
        Some((S::Undoing { phase, reason }, vec![A::Undo { cont, thaw }]))
    };
    match (state, event) {
        (S::Idle, E::Start) => next(S::Requesting, A::Offer),
        (S::Requesting, E::Accepted) => next(S::Preparing, A::Prepare),
        (S::Preparing, E::StandbyReady) => {
            next(S::Copying { number: 1, since_us: 1, before: None }, A::SendRound { full: true })
        }
        (S::Copying { number, since_us, .. }, E::RoundSent { dirty }) => {
            let last = Round { number: *number, pages: *dirty, took_us: 1 - since_us };
            next(S::Inquiring { since_us: 1, last }, A::AskStore)
        }
        (S::Inquiring { .. }, E::StoreReady) => next(S::Draining, A::Drain),
        (S::Draining, E::Drained) => next(S::Mirroring, A::MirrorOn),
        (S::Mirroring, E::MirrorOn) => next(S::Freezing, A::Freeze),
        (S::Freezing, E::Frozen) => {
            Some((S::Transferring { delivered: false, stopped: false }, vec![A::SendLast, A::Stop]))
        }
        (S::Transferring { stopped: true, .. }, E::Delivered)
        | (S::Transferring { delivered: true, .. }, E::Stopped) => next(S::Committing, A::Commit),
        (S::Transferring { stopped, .. }, E::Delivered) => {
            Some((S::Transferring { delivered: true, stopped: *stopped }, vec![]))
        }
        (S::Transferring { delivered, .. }, E::Stopped) => {
            Some((S::Transferring { delivered: *delivered, stopped: true }, vec![]))
        }
        (S::Committing | S::Settling, E::Committed { epoch }) => {
            next(S::Restoring { epoch: *epoch }, A::Resume)
        }
        (S::Committing | S::Settling, E::NotCommitted { .. }) => {
            undo(Phase::Commit, reason(), true, true)
        }
        (S::Committing | S::Settling, E::CommitUnknown | E::Failed { .. } | E::Deadline) => {
            next(S::Settling, A::Settle)
        }
        (S::Restoring { epoch }, E::Ordered) => Some((S::Resuming { epoch: *epoch }, vec![])),
        (S::Restoring { epoch } | S::Resuming { epoch } | S::Asking { epoch, .. }, E::Resumed) => {
            next(S::Removing { epoch: *epoch }, A::Remove)
        }
        (S::Restoring { epoch } | S::Resuming { epoch }, event) => {
            let phase = phase_of(state).unwrap();
            let reason = match event {
                E::DestinationEnded { .. } => {
                    return next(
                        S::TakingBack { phase, epoch: *epoch, reason: reason() },
                        A::TakeBack,
                    );
                }
                E::Deadline => format!("{phase} took longer than 10 s"),
                E::Failed { .. } | E::DestinationSilent { .. } => reason(),
                _ => return None,
            };
            next(S::Asking { phase, epoch: *epoch, reason }, A::AskDestination)
        }
        (S::Asking { phase, epoch, .. }, E::DestinationEnded { .. }) => {
            next(S::TakingBack { phase: *phase, epoch: *epoch, reason: reason() }, A::TakeBack)
        }
        (
            S::Asking { phase, epoch, .. },
            E::DestinationSilent { .. } | E::Failed { .. } | E::Deadline,
        )
        | (
            S::TakingBack { phase, epoch, .. },
            E::NotCommitted { .. } | E::CommitUnknown | E::Failed { .. } | E::Deadline,
        ) => done(Outcome::Held { phase: *phase, reason: reason(), epoch: *epoch }),
        (S::TakingBack { phase, .. }, E::TakenBack { epoch }) => {
            done(Outcome::TakenBack { phase: *phase, reason: reason(), epoch: *epoch })
        }
        (S::Removing { epoch }, E::Removed | E::Failed { .. } | E::Deadline) => {
            done(Outcome::Moved { epoch: *epoch })
        }
        (S::Undoing { phase, .. }, E::Undone) => {
            done(Outcome::Kept { phase: *phase, reason: reason() })
        }
        (S::Undoing { phase, .. }, E::Failed { .. }) => done(Outcome::Broken {
            phase: *phase,
            reason: "why; the source could not be thawed: why".into(),
        }),
        (S::Undoing { phase, .. }, E::Deadline) => done(Outcome::Broken {
            phase: *phase,
            reason: "why; the source did not answer when it was thawed".into(),
        }),
        (
            state,
            E::Failed { .. }
            | E::DestinationEnded { .. }
            | E::DestinationSilent { .. }
            | E::Deadline
            | E::Cancel { .. },
        ) => {
            let (phase, cont, thaw) = match state {
                S::Requesting => (Phase::Request, false, false),
                S::Preparing => (Phase::Prepare, false, false),
                S::Copying { .. } | S::Inquiring { .. } => (Phase::Precopy, false, false),
                S::Draining | S::Mirroring => (Phase::Drain, false, true),
                S::Freezing => (Phase::Freeze, false, true),
                S::Transferring { .. } => (Phase::Transfer, true, true),
                _ => return None,
            };
            let reason = match event {
                E::Deadline if matches!(state, S::Inquiring { .. }) => {
                    "the store did not say in time that it could take a commit".into()
                }
                E::Deadline => overdue(phase),
                E::Cancel { reason } => (*reason).into(),
                _ => reason(),
            };
            undo(phase, reason, cont, thaw)
        }
        _ => None,
    }
}

#[test]
fn every_state_takes_every_event() {
    for state in states() {
        for event in events() {
            let mut machine = at(state.clone());
            let actions = machine.step(event.clone(), 1);
            let (next, wanted) =
                expected(&state, &event).unwrap_or_else(|| (state.clone(), vec![]));
            assert_eq!((&machine.state, &actions), (&next, &wanted), "{state:?} × {event:?}");
        }
    }
}

#[test]
fn every_waiting_state_has_a_deadline() {
    for state in states() {
        let waits = !matches!(state, State::Idle | State::Done(_));
        assert_eq!(at(state.clone()).deadline_us().is_some(), waits, "{state:?}");
    }
}

#[test]
fn a_move_that_is_not_ready_in_time_leaves_the_source_serving() {
    let policy = |on_timeout| {
        let limits =
            Limits { max_downtime_us: Some(1000), timeout_us: Some(9_000_000), on_timeout };
        Policy { limits, ..Policy::default() }
    };
    for state in [State::Requesting, State::Preparing] {
        let early = Machine { state, ..Machine::new(policy(OnTimeout::Cancel)) };
        assert_eq!(early.deadline_us(), Some(9_000_000));
    }
    let copying = State::Copying { number: 4, since_us: 0, before: None };
    let mut machine = Machine { state: copying.clone(), ..Machine::new(policy(OnTimeout::Cancel)) };
    assert_eq!(machine.deadline_us(), Some(9_000_000));
    let actions = machine.step(Event::Deadline, 9_000_000);
    assert_eq!(actions, [Action::Undo { cont: false, thaw: false }]);
    let State::Undoing { phase: Phase::Precopy, reason } = machine.state() else {
        panic!("{:?}", machine.state())
    };
    assert!(reason.contains("after 9 s") && reason.contains("--max-downtime"), "{reason}");

    let mut forced = Machine { state: copying, ..Machine::new(policy(OnTimeout::Force)) };
    assert!(forced.deadline_us() > Some(9_000_000), "a round is not cut short");
    assert_eq!(forced.step(Event::RoundSent { dirty: 5000 }, 9_000_000), [Action::AskStore]);
    assert!(forced.deadline_us() > Some(9_000_000), "the store is asked after that time too");
    assert_eq!(forced.step(Event::StoreReady, 9_001_000), [Action::Drain]);
}

#[test]
fn pages_written_while_the_store_elects_are_copied_before_the_switch() {
    let limits = Limits {
        max_downtime_us: Some(20_000),
        timeout_us: Some(60_000_000),
        on_timeout: OnTimeout::Cancel,
    };
    let before = Round { number: 1, pages: 900, took_us: 10_000 };
    let copying = State::Copying { number: 2, since_us: 100_000, before: Some(before) };
    let policy = Policy { limits, ..Policy::default() };
    let mut machine = Machine { state: copying, ..Machine::new(policy) };
    assert_eq!(machine.step(Event::RoundSent { dirty: 90 }, 101_000), [Action::AskStore]);
    // An election of two seconds: whoever wrote 90 pages in 10 ms has written the rest again.
    let again = [Action::SendRound { full: false }];
    assert_eq!(machine.step(Event::StoreReady, 2_101_000), again);
    let last = Round { number: 2, pages: 90, took_us: 1000 + 2_000_000 };
    assert_eq!(
        machine.state,
        State::Copying { number: 3, since_us: 2_101_000, before: Some(last) }
    );
    // That is small for two seconds' worth: so little is written in the time of one round that it is the last,
    // and the store has only just been asked.
    assert_eq!(machine.step(Event::RoundSent { dirty: 800 }, 2_110_000), [Action::Drain]);

    // An answer that is older than a second is asked for anew.
    let mut slow = Machine { state: machine.state.clone(), ..machine.clone() };
    slow.state = State::Copying { number: 4, since_us: 3_190_000, before: Some(last) };
    assert_eq!(slow.step(Event::RoundSent { dirty: 10 }, 3_200_000), [Action::AskStore]);
}

#[test]
fn a_store_that_never_answers_keeps_the_service_where_it_is() {
    for state in states() {
        let State::Inquiring { .. } = state else { continue };
        let mut machine = at(state);
        assert_eq!(machine.deadline_us(), Some(120_000_000));
        let actions = machine.step(Event::Deadline, 120_000_000);
        assert_eq!(actions, [Action::Undo { cont: false, thaw: false }]);
        let State::Undoing { phase: Phase::Precopy, reason } = machine.state() else { panic!() };
        assert!(reason.contains("store"), "{reason}");
    }
}

/// Whatever happens in whatever order, nothing is resumed or removed without a commit, and nothing
/// is thawed after one unless the ownership was taken back.
#[test]
fn no_sequence_of_events_runs_two() {
    let events = events();
    let mut seed = 1_u64;
    for _ in 0..20_000 {
        let mut machine = Machine::new(Policy::default());
        let mut committed = false;
        machine.step(Event::Start, 0);
        for now in 0..40 {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let event = events[(seed >> 33) as usize % events.len()].clone();
            let asked = matches!(machine.state, State::Committing | State::Settling);
            committed |= asked && matches!(event, Event::Committed { .. });
            for action in machine.step(event, now) {
                match action {
                    Action::Resume | Action::Remove | Action::TakeBack => assert!(committed),
                    Action::Undo { .. } => assert!(!committed),
                    _ => {}
                }
            }
        }
    }
}

#[test]
fn a_move_without_trouble() {
    let mut machine = Machine::new(Policy { max_rounds: 3, small_pages: 10, ..Policy::default() });
    let mut now = 0;
    let mut actions = machine.step(Event::Start, now);
    let mut asked = Vec::new();
    let mut dirty = [400, 100].into_iter();
    while let Some(action) = actions.pop() {
        now += 10;
        asked.push(action.clone());
        let event = match action {
            Action::Offer => Event::Accepted,
            Action::Prepare => Event::StandbyReady,
            Action::SendRound { .. } => Event::RoundSent { dirty: dirty.next().unwrap_or(3) },
            Action::AskStore => Event::StoreReady,
            Action::MirrorOn => Event::MirrorOn,
            Action::Drain => Event::Drained,
            Action::Freeze => Event::Frozen,
            Action::SendLast => Event::Delivered,
            Action::Stop => Event::Stopped,
            Action::Commit => Event::Committed { epoch: 2 },
            Action::Resume => {
                machine.step(Event::Ordered, now);
                now += 10;
                Event::Resumed
            }
            Action::Remove => Event::Removed,
            other => panic!("{other:?} in a move without trouble"),
        };
        actions.extend(machine.step(event, now));
    }
    assert_eq!(machine.outcome(), Some(&Outcome::Moved { epoch: 2 }));
    assert_eq!(asked.iter().filter(|action| matches!(action, Action::SendRound { .. })).count(), 3);
    let phases: Vec<Phase> = machine.log.done().iter().map(|record| record.phase).collect();
    assert_eq!(phases, crate::migration::TABLE.map(|row| row.phase));
    for pair in machine.log.done().windows(2) {
        assert_eq!(pair[0].end_us, pair[1].start_us);
    }
}
