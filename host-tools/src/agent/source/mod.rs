//! The source's half of a move: it runs the [`Machine`] and carries out its actions.
//!
//! 1. `link`: what goes over the connection to the destination.
//! 2. `switch`: from the drain to the resume.
//! 3. `ending`: removing the source, or letting it serve on.

mod ending;
mod link;
mod switch;

use std::sync::Arc;
use std::time::{Duration, Instant};

use ferry_protocol::control::{Answer, Order};
use hyper_util::rt::TokioIo;

use super::destination::micros;
use super::host::Host;
use super::instance::Instance;
use super::mirror::Mirror;
use super::moves::EventLog;
use super::recovery;
use crate::api::{Client, MoveEvent, MoveRequest, MoveSummary};
use crate::migration::precopy::Policy;
use crate::migration::{Action, Event, Machine, Outcome, Phase};
use crate::transfer::Link;
use crate::transfer::pages::Sent;

type Upgraded = TokioIo<hyper::upgrade::Upgraded>;

/// One move, seen from its source.
struct Move {
    host: Arc<Host>,
    instance: Arc<Instance>,
    request: MoveRequest,
    /// The epoch under which the source runs.
    epoch: u64,
    /// The manager's signature that it has given the service to the destination.
    grant: String,
    manager: Client,
    link: Option<Link<Upgraded>>,
    mirror: Option<Mirror>,
    /// The mark behind the last frame that is not mirrored.
    mark: u32,
    sent: Sent,
    /// Pages to be sent while the service is frozen.
    last_pages: Vec<u32>,
    frame: Vec<u8>,
    summary: MoveSummary,
    /// Parts of the open phase and their lengths in microseconds.
    steps: Vec<(String, u64)>,
    phase_pages: u64,
    note: String,
    begun: Instant,
    frozen_at: Option<Instant>,
}

/// Longest wait for somebody else's work on the instance: an agent that has just come back asks the store
/// whose it is. What takes longer is a move, checkpoint or stop.
const BUSY_LIMIT: Duration = Duration::from_secs(2);

/// Moves an instance; every step is told to `events`.
pub async fn run(
    host: Arc<Host>,
    instance: Arc<Instance>,
    request: MoveRequest,
    events: Arc<EventLog>,
) {
    let busy = Arc::clone(&instance);
    let Ok(_busy) = tokio::time::timeout(BUSY_LIMIT, busy.busy.lock()).await else {
        let reason = "another move, checkpoint or stop of this service is under way".into();
        let result = Outcome::Kept { phase: Phase::Request, reason };
        events.push(MoveEvent::Ended { result, summary: Box::default() });
        return;
    };
    // Before anything is done: an agent that is started again settles this move.
    let noted = instance.note(|noted| noted.migration = Some(request.migration.clone()));
    if let Err(error) = noted {
        let result = Outcome::Kept { phase: Phase::Request, reason: error.message };
        events.push(MoveEvent::Ended { result, summary: Box::default() });
        return;
    }
    let mut this = Move {
        epoch: instance.epoch(),
        grant: String::new(),
        manager: host.manager(),
        host,
        instance,
        request,
        link: None,
        mirror: None,
        // A frame from elsewhere must not be taken for it; without random numbers that is a little easier.
        mark: getrandom::u32().unwrap_or_default() | 1,
        sent: Sent::default(),
        last_pages: Vec::new(),
        frame: Vec::new(),
        summary: MoveSummary::default(),
        steps: Vec::new(),
        phase_pages: 0,
        note: String::new(),
        begun: Instant::now(),
        frozen_at: None,
    };
    this.instance.guest.trace().await;
    let mut teller = Teller { events, told: 0, entered: None };
    let policy = Policy { limits: this.request.limits, ..Policy::default() };
    let mut machine = Machine::new(policy);
    let mut actions = machine.step(Event::Start, 0);
    let mut cancelled = false;
    while machine.outcome().is_none() {
        teller.tell(&machine, false);
        let sent_before = this.link.as_ref().map_or(0, |link| link.sent_bytes);
        let now = micros(this.begun);
        let left = machine.deadline_us().unwrap_or(now).saturating_sub(now);
        let work = this.carry_out(&actions);
        let limit = Duration::from_micros(left);
        // A switch that has begun is over sooner than it could be broken off: the store refuses its commit.
        let may_be_cancelled =
            !cancelled && machine.phase().is_some_and(|phase| phase < Phase::Drain);
        let happened = tokio::select! {
            biased;
            reason = teller.events.cancelled(), if may_be_cancelled => vec![Event::Cancel { reason }],
            done = tokio::time::timeout(limit, work) => done.unwrap_or(vec![Event::Deadline]),
        };
        let sent = this.link.as_ref().map_or(0, |link| link.sent_bytes).saturating_sub(sent_before);
        this.record(&mut machine, sent);
        cancelled |= matches!(happened[..], [Event::Cancel { .. }]);
        actions = Vec::new();
        for event in happened {
            actions.extend(machine.step(event, micros(this.begun)));
        }
    }
    this.summary.total_us = micros(this.begun);
    teller.tell(&machine, true);
    let Some(result) = machine.outcome().cloned() else { return };
    match result {
        Outcome::Kept { .. } | Outcome::TakenBack { .. } => {
            let epoch = this.instance.epoch();
            this.instance.note_if_possible(|noted| {
                noted.epoch = epoch;
                noted.migration = None;
            });
        }
        // The frozen copy is kept until the manager says what became of the destination.
        Outcome::Held { .. } => {
            let (host, instance) = (Arc::clone(&this.host), Arc::clone(&this.instance));
            tokio::spawn(async move { recovery::settle(&host, &instance).await });
        }
        Outcome::Moved { .. } | Outcome::Broken { .. } => {}
    }
    tracing::info!(
        "{}: move {} has ended: {result:?}",
        this.instance.spec.name,
        this.request.migration
    );
    let summary = Box::new(this.summary);
    teller.events.push(MoveEvent::Ended { result, summary });
}

/// Tells the manager of phases. From the freeze to the resume only the beginnings of those that can
/// still be undone are told, the figures later: that time is for the service.
struct Teller {
    events: Arc<EventLog>,
    told: usize,
    entered: Option<Phase>,
}

impl Teller {
    fn tell(&mut self, machine: &Machine, all: bool) {
        let phase = machine.phase();
        let within = |first, last| phase.is_some_and(|phase| (first..=last).contains(&phase));
        if all || !within(Phase::Freeze, Phase::Resume) {
            for record in &machine.log.done()[self.told..] {
                self.events.push(MoveEvent::Phase(record.clone()));
            }
            self.told = machine.log.done().len();
        }
        if self.entered != phase
            && !within(Phase::Commit, Phase::Resume)
            && let Some(phase) = phase
        {
            self.entered = Some(phase);
            self.events.push(MoveEvent::Entered { phase });
        }
    }
}

fn failed(error: impl std::fmt::Display) -> Event {
    Event::Failed { reason: error.to_string() }
}

impl Move {
    async fn carry_out(&mut self, actions: &[Action]) -> Vec<Event> {
        match actions {
            [] => vec![self.await_resumed().await],
            [Action::SendLast, Action::Stop] => self.send_last_and_stop().await,
            [action] => vec![self.carry_out_one(action).await.unwrap_or_else(|event| event)],
            _ => vec![failed("more than one action at a time")],
        }
    }

    /// Puts what the last action cost into the open phase.
    fn record(&mut self, machine: &mut Machine, sent_bytes: u64) {
        self.summary.bytes += sent_bytes;
        self.summary.pages += self.phase_pages;
        if let Some(open) = machine.log.open_mut() {
            open.bytes += sent_bytes;
            open.pages += self.phase_pages;
            open.steps.append(&mut self.steps);
            if !self.note.is_empty() {
                open.note = std::mem::take(&mut self.note);
            }
        }
        self.phase_pages = 0;
        self.steps.clear();
    }

    async fn carry_out_one(&mut self, action: &Action) -> Result<Event, Event> {
        match action {
            Action::Offer => self.offer().await,
            Action::Prepare => self.prepare().await,
            Action::SendRound { full } => self.send_round(*full).await,
            Action::AskStore => self.await_store().await,
            Action::MirrorOn => {
                let begun = Instant::now();
                if let Some(mirror) = &self.mirror {
                    mirror.on(self.mark).map_err(failed)?;
                }
                self.step("mirror on", begun);
                Ok(Event::MirrorOn)
            }
            Action::Drain => self.drain().await,
            Action::Freeze => self.freeze().await,
            Action::Commit => Ok(self.commit().await),
            Action::Settle => Ok(self.settle().await),
            Action::Resume => self.resume().await,
            Action::AskDestination => Ok(self.ask_destination().await),
            Action::TakeBack => self.take_back().await,
            Action::Remove => self.remove().await,
            Action::Undo { cont, thaw } => self.undo(*cont, *thaw).await,
            Action::SendLast | Action::Stop => Err(failed("these two go together")),
        }
    }

    pub(super) fn step(&mut self, name: &str, begun: Instant) {
        self.steps.push((name.to_owned(), micros(begun)));
    }

    pub(super) async fn order(&mut self, order: Order, limit: Duration) -> Result<Answer, Event> {
        self.instance.guest.order(order, limit).await.map_err(failed)
    }
}
