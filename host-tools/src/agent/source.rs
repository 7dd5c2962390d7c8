//! The source's half of a move: it runs the [`Machine`] and carries out its actions.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ferry_protocol::control::{Answer, Order, Refusal};
use hyper::Method;
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;

use super::control::OrderError;
use super::destination::micros;
use super::host::{Host, MANAGER_LIMIT, tunnel_address};
use super::http::TRANSFER_PROTOCOL;
use super::instance::{Instance, ORDER_LIMIT};
use super::network::{Copying, End};
use crate::api::{
    ApiError, Client, CommitAnswer, CommitRequest, InstanceState, Migration, MoveEvent, MoveRequest,
    MoveSummary,
};
use crate::migration::phase::DRAIN_LIMIT;
use crate::migration::precopy::Policy;
use crate::migration::{Action, Event, Machine, Outcome, Phase};
use crate::transfer::pages::FrameBuilder;
use crate::transfer::{FromDestination, FromSource, Link, LinkError, PageDigest};
use crate::wire::Address;

/// How long a failed connection is searched for the other side's reason.
const LAST_WORDS_LIMIT: Duration = Duration::from_millis(500);
/// Bytes of the log in one message.
const LOG_CHUNK: usize = 256 << 10;
/// First and longest wait between two attempts to learn how a commit went.
const SETTLE_WAITS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

type Upgraded = TokioIo<hyper::upgrade::Upgraded>;

/// One move, seen from its source.
struct Move {
    host: Arc<Host>,
    instance: Arc<Instance>,
    request: MoveRequest,
    /// The epoch under which the source runs.
    epoch: u64,
    manager: Client,
    link: Option<Link<Upgraded>>,
    mirror: Option<Box<dyn Copying>>,
    digest: PageDigest,
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

/// Moves an instance; every step is told to `events`.
pub async fn run(
    host: Arc<Host>,
    instance: Arc<Instance>,
    request: MoveRequest,
    events: mpsc::UnboundedSender<MoveEvent>,
) {
    let busy = Arc::clone(&instance);
    let Ok(_busy) = busy.busy.try_lock() else {
        let reason = "another move, checkpoint or stop of this service is under way".into();
        let result = Outcome::Kept { phase: Phase::Request, reason };
        let _ = events.send(MoveEvent::Ended { result, summary: Box::default() });
        return;
    };
    let mut this = Move {
        epoch: instance.epoch(),
        manager: host.manager(),
        host,
        instance,
        request,
        link: None,
        mirror: None,
        digest: PageDigest::default(),
        last_pages: Vec::new(),
        frame: Vec::new(),
        summary: MoveSummary::default(),
        steps: Vec::new(),
        phase_pages: 0,
        note: String::new(),
        begun: Instant::now(),
        frozen_at: None,
    };
    let mut teller = Teller { events, told: 0, entered: None };
    let mut machine = Machine::new(Policy::default());
    let mut actions = machine.step(Event::Start, 0);
    while machine.outcome().is_none() {
        teller.tell(&machine, false);
        let sent_before = this.link.as_ref().map_or(0, |link| link.sent_bytes);
        let now = micros(this.begun);
        let left = machine.deadline_us().unwrap_or(now).saturating_sub(now);
        let work = this.carry_out(&actions);
        let limit = Duration::from_micros(left);
        let happened = tokio::time::timeout(limit, work).await.unwrap_or(vec![Event::Deadline]);
        let sent = this.link.as_ref().map_or(0, |link| link.sent_bytes).saturating_sub(sent_before);
        this.record(&mut machine, sent);
        actions = Vec::new();
        for event in happened {
            actions.extend(machine.step(event, micros(this.begun)));
        }
    }
    this.summary.total_us = micros(this.begun);
    teller.tell(&machine, true);
    let Some(result) = machine.outcome().cloned() else { return };
    let summary = Box::new(this.summary);
    let _ = teller.events.send(MoveEvent::Ended { result, summary });
}

/// Tells the manager of phases. While the service is between two hosts nothing is told: that time is
/// for the service.
struct Teller {
    events: mpsc::UnboundedSender<MoveEvent>,
    told: usize,
    entered: Option<Phase>,
}

impl Teller {
    fn tell(&mut self, machine: &Machine, all: bool) {
        let phase = machine.phase();
        let quiet = phase.is_some_and(|phase| (Phase::Freeze..=Phase::Resume).contains(&phase));
        if quiet && !all {
            return;
        }
        for record in &machine.log.done()[self.told..] {
            let _ = self.events.send(MoveEvent::Phase(record.clone()));
        }
        self.told = machine.log.done().len();
        if self.entered != phase
            && let Some(phase) = phase
        {
            self.entered = Some(phase);
            let _ = self.events.send(MoveEvent::Entered { phase });
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
            Action::MirrorOn => {
                let begun = Instant::now();
                if let Some(mirror) = &mut self.mirror {
                    mirror.on().map_err(failed)?;
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
            Action::Undo { cont, thaw, mirror } => self.undo(*cont, *thaw, *mirror).await,
            Action::SendLast | Action::Stop => Err(failed("these two go together")),
        }
    }

    fn step(&mut self, name: &str, begun: Instant) {
        self.steps.push((name.to_owned(), micros(begun)));
    }

    fn link(&mut self) -> Result<&mut Link<Upgraded>, Event> {
        self.link.as_mut().ok_or_else(|| failed("there is no connection to the destination"))
    }

    /// Sends a message.
    async fn tell(&mut self, message: &FromSource) -> Result<(), Event> {
        match self.link()?.send(message).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.last_words(error).await),
        }
    }

    /// Waits for the destination's answer; the machine's deadline bounds it.
    async fn hear(&mut self) -> Result<FromDestination, Event> {
        let name = self.request.destination_name.clone();
        match self.link()?.message(Duration::from_secs(600)).await {
            Ok(FromDestination::Failed { reason }) => {
                Err(Event::DestinationEnded { reason: format!("node {name}: {reason}") })
            }
            Ok(message) => Ok(message),
            Err(error) => Err(self.silent(error)),
        }
    }

    fn silent(&self, error: LinkError) -> Event {
        let name = &self.request.destination_name;
        Event::DestinationSilent { reason: format!("connection to node {name}: {error}") }
    }

    /// A connection that broke while something was sent may still hold the reason.
    async fn last_words(&mut self, error: LinkError) -> Event {
        let name = self.request.destination_name.clone();
        let Ok(link) = self.link() else { return self.silent(error) };
        while let Ok(message) = link.message(LAST_WORDS_LIMIT).await {
            if let FromDestination::Failed { reason } = message {
                return Event::DestinationEnded { reason: format!("node {name}: {reason}") };
            }
        }
        self.silent(error)
    }

    async fn offer(&mut self) -> Result<Event, Event> {
        let begun = Instant::now();
        let address: Address = self.request.destination.parse().map_err(failed)?;
        let who = format!("node {}", self.request.destination_name);
        let stream = Client::new(address, who)
            .upgrade("/v1/transfer", TRANSFER_PROTOCOL)
            .await
            .map_err(failed)?;
        self.link = Some(Link::new(stream));
        self.step("connect", begun);
        // Also opens the connection on which the commit will be asked for.
        let path = format!("/v1/migrations/{}", self.request.migration);
        let _: Migration = self.manager.get(&path).await.map_err(failed)?;
        let offer = FromSource::Offer {
            migration: self.request.migration.clone(),
            tunnel: self.request.tunnel,
            spec: Box::new(self.instance.spec.clone()),
            source: self.host.address().to_owned(),
        };
        self.tell(&offer).await?;
        match self.hear().await? {
            FromDestination::Accepted => Ok(Event::Accepted),
            other => Err(failed(format!("unexpected answer to the offer: {other:?}"))),
        }
    }

    async fn prepare(&mut self) -> Result<Event, Event> {
        self.tell(&FromSource::Prepare).await?;
        let begun = Instant::now();
        let peer = tunnel_address(&self.request.destination).map_err(failed)?;
        let tunnel = self.request.tunnel;
        let mirror = self.instance.with_port(|port| port.mirror(End::Source, peer, tunnel));
        self.mirror = Some(mirror.map_err(failed)?);
        self.step("mirror made", begun);
        match self.hear().await? {
            FromDestination::Standby { boot_us } => {
                self.steps.push(("boot".into(), boot_us));
                Ok(Event::StandbyReady)
            }
            other => Err(failed(format!("unexpected answer to prepare: {other:?}"))),
        }
    }

    async fn order(&mut self, order: Order, limit: Duration) -> Result<Answer, Event> {
        self.instance.guest.order(order, limit).await.map_err(failed)
    }

    /// Reads a report of dirty pages.
    fn listed(&mut self, answer: Answer, full: bool) -> Result<Vec<u32>, Event> {
        let Answer::Pages { dirty, scan_us, .. } = answer else {
            return Err(failed("the guest answered with something else than pages"));
        };
        self.steps.push(("scan in the guest".into(), u64::from(scan_us)));
        self.instance.pages(dirty, full).map_err(failed)
    }

    async fn send_round(&mut self, full: bool) -> Result<Event, Event> {
        let answer = self.order(Order::Scan { full }, ORDER_LIMIT).await?;
        let pages = self.listed(answer, full)?;
        self.summary.rounds += 1;
        let sent = self.send_pages(&pages).await?;
        let names = if self.summary.rounds == 1 { "round" } else { "rounds" };
        self.note = format!("{} {names}", self.summary.rounds);
        Ok(Event::RoundSent { dirty: sent })
    }

    async fn send_pages(&mut self, pages: &[u32]) -> Result<u32, Event> {
        let mut builder = FrameBuilder::new(&self.instance.ram, pages, &mut self.digest);
        let Some(link) = self.link.as_mut() else { return Err(failed("no connection")) };
        let mut broken = None;
        while broken.is_none() && builder.next_frame(&mut self.frame).map_err(failed)? {
            if self.frame.len() > crate::transfer::frame::HEADER_LEN {
                broken = link.send_frame(&self.frame).await.err();
            }
        }
        let sent = builder.sent;
        self.phase_pages += u64::from(sent);
        match broken {
            Some(error) => Err(self.last_words(error).await),
            None => Ok(sent),
        }
    }

    async fn drain(&mut self) -> Result<Event, Event> {
        let begun = Instant::now();
        let timeout_us = DRAIN_LIMIT.as_micros() as u32;
        let answer = self.order(Order::Drain { timeout_us }, DRAIN_LIMIT + ORDER_LIMIT).await?;
        let Answer::Drained(drained) = answer else {
            return Err(failed("the guest answered drain with something else"));
        };
        self.summary.drain_us = micros(begun);
        self.summary.connections = drained.connections;
        self.summary.settled = drained.settled;
        self.note = format!("{} of {} connections settled", drained.settled, drained.connections);
        Ok(Event::Drained)
    }

    async fn freeze(&mut self) -> Result<Event, Event> {
        let begun = Instant::now();
        self.frozen_at = Some(begun);
        let answer = self.order(Order::Freeze { full: false }, ORDER_LIMIT).await?;
        self.step("freeze", begun);
        self.instance.set_state(InstanceState::Frozen);
        let begun = Instant::now();
        self.last_pages = self.listed(answer, false)?;
        self.step("list pages", begun);
        Ok(Event::Frozen)
    }

    /// The last pages go out while QEMU is being stopped: the guest is parked, nothing changes.
    async fn send_last_and_stop(&mut self) -> Vec<Event> {
        let instance = Arc::clone(&self.instance);
        let stop = async move {
            let begun = Instant::now();
            instance.vm.stop().await.map_err(failed)?;
            let stopped_us = micros(begun);
            let begun = Instant::now();
            instance.set_port_open(false).map_err(failed)?;
            Ok::<_, Event>((stopped_us, micros(begun)))
        };
        let (delivered, stopped) = tokio::join!(self.send_last(), stop);
        let mut events = Vec::new();
        match stopped {
            Ok((stopped_us, fenced_us)) => {
                self.steps.push(("stop QEMU".into(), stopped_us));
                self.steps.push(("fence port".into(), fenced_us));
                events.push(Event::Stopped);
            }
            Err(event) => events.push(event),
        }
        events.push(delivered.unwrap_or_else(|event| event));
        events
    }

    async fn send_last(&mut self) -> Result<Event, Event> {
        let begun = Instant::now();
        let pages = std::mem::take(&mut self.last_pages);
        let sent = self.send_pages(&pages).await?;
        self.summary.frozen_pages = u64::from(sent);
        self.step("send", begun);
        let begun = Instant::now();
        let digest = self.digest.finish();
        self.tell(&FromSource::Last { digest }).await?;
        match self.hear().await? {
            FromDestination::Verified => {
                self.step("verify", begun);
                Ok(Event::Delivered)
            }
            other => Err(failed(format!("unexpected answer to the last pages: {other:?}"))),
        }
    }

    async fn ask_store(&mut self, what: &str, epoch: u64) -> Result<CommitAnswer, ApiError> {
        let path = format!("/v1/migrations/{}/{what}", self.request.migration);
        self.manager.json(Method::POST, &path, &CommitRequest { epoch }, MANAGER_LIMIT).await
    }

    async fn commit(&mut self) -> Event {
        let begun = Instant::now();
        let answer = self.ask_store("commit", self.epoch).await;
        self.step("commit", begun);
        match answer {
            Ok(CommitAnswer::Committed { epoch }) => Event::Committed { epoch },
            Ok(CommitAnswer::Refused { reason }) => Event::NotCommitted { reason },
            Err(_) => Event::CommitUnknown,
        }
    }

    /// Asks until the store answers. Its answer is final: a commit that is still on its way comes too
    /// late after it.
    async fn settle(&mut self) -> Event {
        let (mut wait, longest) = SETTLE_WAITS;
        loop {
            match self.ask_store("settle", self.epoch).await {
                Ok(CommitAnswer::Committed { epoch }) => return Event::Committed { epoch },
                Ok(CommitAnswer::Refused { reason }) => return Event::NotCommitted { reason },
                Err(error) => eprintln!(
                    "{}: {error}; it stays frozen until the manager says who owns it",
                    self.instance.spec.name
                ),
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(longest);
        }
    }

    async fn resume(&mut self) -> Result<Event, Event> {
        // The epoch that the machine has just been told.
        let epoch = self.epoch + 1;
        self.tell(&FromSource::Resume { epoch }).await?;
        match self.hear().await? {
            FromDestination::Ordered => Ok(Event::Ordered),
            other => Err(failed(format!("unexpected answer to resume: {other:?}"))),
        }
    }

    async fn await_resumed(&mut self) -> Event {
        match self.hear().await {
            Ok(FromDestination::Resumed { connections, held_frames, port_us, guest_us }) => {
                if let Some(frozen_at) = self.frozen_at {
                    self.summary.freeze_to_resume_us = micros(frozen_at);
                }
                self.summary.resumed = connections;
                self.summary.held_frames = held_frames;
                self.steps.push(("open port".into(), port_us));
                self.steps.push(("guest".into(), guest_us));
                self.note = format!("{connections} connections, {held_frames} frames held");
                Event::Resumed
            }
            Ok(other) => failed(format!("unexpected answer to resume: {other:?}")),
            Err(event) => event,
        }
    }

    async fn ask_destination(&mut self) -> Event {
        let silent = |reason: String| Event::DestinationSilent { reason };
        let address: Address = match self.request.destination.parse() {
            Ok(address) => address,
            Err(_) => return silent("its address is not known".into()),
        };
        let client = Client::new(address, format!("node {}", self.request.destination_name));
        let path = format!("/v1/instances/{}/resolve", self.instance.spec.name);
        let epoch = self.epoch + 1;
        let request = crate::api::ResumeRequest { epoch };
        let limit = Duration::from_secs(15);
        match client.json::<bool>(Method::POST, &path, &request, limit).await {
            Ok(true) => Event::Resumed,
            Ok(false) => Event::DestinationEnded { reason: "it has no such instance".into() },
            Err(error) => silent(error.message),
        }
    }

    async fn take_back(&mut self) -> Result<Event, Event> {
        let answer = self.ask_store("take-back", self.epoch + 1).await;
        let epoch = match answer {
            Ok(CommitAnswer::Committed { epoch }) => epoch,
            Ok(CommitAnswer::Refused { reason }) => return Err(Event::NotCommitted { reason }),
            Err(_) => return Err(Event::CommitUnknown),
        };
        self.wake(true, true).await?;
        self.instance.set_epoch(epoch);
        drop(self.mirror.take());
        Ok(Event::TakenBack { epoch })
    }

    /// Lets the source serve again.
    async fn wake(&mut self, cont: bool, thaw: bool) -> Result<(), Event> {
        if cont {
            self.instance.set_port_open(true).map_err(failed)?;
            self.instance.vm.cont().await.map_err(failed)?;
        }
        if thaw {
            match self.instance.guest.order(Order::Thaw, ORDER_LIMIT).await {
                // A drain or freeze that was never carried out leaves nothing to thaw.
                Ok(_) => {}
                Err(OrderError::Refused { refusal: Refusal::State(state), .. })
                    if state == ferry_protocol::control::State::Running => {}
                Err(error) => return Err(failed(error)),
            }
        }
        self.instance.set_state(InstanceState::Running);
        Ok(())
    }

    async fn undo(&mut self, cont: bool, thaw: bool, mirror: bool) -> Result<Event, Event> {
        let woken = self.wake(cont, thaw).await;
        if mirror || self.mirror.is_some() {
            drop(self.mirror.take());
        }
        if let Some(mut link) = self.link.take() {
            // If the destination cannot be told, it notices that the connection has ended.
            if link.send(&FromSource::Abandon).await.is_ok() {
                while let Ok(message) = link.message::<FromDestination>(ORDER_LIMIT).await {
                    if matches!(message, FromDestination::Abandoned | FromDestination::Failed { .. }) {
                        break;
                    }
                }
            }
        }
        woken.map(|()| Event::Undone)
    }

    async fn remove(&mut self) -> Result<Event, Event> {
        let sent = self.send_log().await;
        let ended = self.host.end(&self.instance).await;
        drop(self.mirror.take());
        let finished = match sent {
            Ok(()) => self.finish().await,
            Err(event) => Err(event),
        };
        if let Err(Event::DestinationSilent { reason } | Event::Failed { reason }) = finished {
            self.note = format!("the log may be incomplete: {reason}");
        }
        ended.map_err(failed)?;
        Ok(Event::Removed)
    }

    async fn send_log(&mut self) -> Result<(), Event> {
        let console = Arc::clone(&self.instance.console);
        let mut offset = 0;
        loop {
            let (start, bytes) = console.read(offset, LOG_CHUNK).map_err(failed)?;
            offset = start + bytes.len() as u64;
            let last = bytes.is_empty();
            self.tell(&FromSource::Log { start, bytes, last }).await?;
            if last {
                return Ok(());
            }
        }
    }

    async fn finish(&mut self) -> Result<(), Event> {
        self.tell(&FromSource::Finish).await?;
        while self.hear().await? != FromDestination::Finished {}
        Ok(())
    }
}
