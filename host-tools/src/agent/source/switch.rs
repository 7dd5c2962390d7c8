//! From the drain to the resume: the time in which every microsecond counts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ferry_protocol::control::{Answer, Order};
use hyper::Method;

use super::{Move, failed};
use crate::agent::destination::micros;
use crate::agent::host::MANAGER_LIMIT;
use crate::agent::instance::ORDER_LIMIT;
use crate::api::{ApiError, CommitAnswer, CommitRequest, InstanceState, Problem};
use crate::migration::Event;
use crate::migration::phase::DRAIN_LIMIT;
use crate::transfer::pack::Effort;
use crate::transfer::{FromDestination, FromSource};
use crate::wire::Pause;

/// First and longest wait between two attempts to learn how a commit went.
const SETTLE_WAITS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// First and longest wait between two attempts to learn whether the store could take a commit.
const READY_WAITS: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// Longest time until a move is given up for a store that does not answer: longer than a manager's lease and
/// than elections take.
const READY_LIMIT: Duration = Duration::from_secs(20);

/// Quiet connections that are worth a round of their own.
const QUIET_ROUND: u32 = 64;

impl Move {
    /// Gives an order and listens to the destination meanwhile: it has nothing to say now, except that it
    /// gives up. The guest's answer is waited for all the same, because it takes one order at a time.
    async fn watched(&mut self, order: Order, limit: Duration) -> Result<Answer, Event> {
        let instance = Arc::clone(&self.instance);
        let ordered = instance.guest.order(order, limit);
        tokio::pin!(ordered);
        let given_up = tokio::select! {
            biased;
            answer = &mut ordered => return answer.map_err(failed),
            given_up = self.gives_up() => given_up,
        };
        ordered.await.map_err(failed)?;
        Err(given_up)
    }

    /// Ends when the destination gives up. What is cut short by dropping it can only be its last words.
    async fn gives_up(&mut self) -> Event {
        match self.hear().await {
            Ok(message) => failed(format!("unexpected word of the destination: {message:?}")),
            Err(event) => event,
        }
    }

    /// Waits until the store could take a commit, also until another manager has taken over or etcd has elected.
    pub(super) async fn await_store(&mut self) -> Result<Event, Event> {
        let begun = Instant::now();
        let path = format!("/v1/migrations/{}/ready", self.request.migration);
        let request = CommitRequest { epoch: self.epoch };
        let mut pause = Pause::growing(READY_WAITS.0, READY_WAITS.1);
        loop {
            let asked = self.manager.json::<()>(Method::POST, &path, &request, MANAGER_LIMIT).await;
            match asked {
                Ok(()) => {
                    self.step("ask the store", begun);
                    return Ok(Event::StoreReady);
                }
                // What the manager refuses, it would refuse when the service is frozen.
                Err(error)
                    if error.problem == Problem::Conflict || begun.elapsed() > READY_LIMIT =>
                {
                    return Err(failed(error));
                }
                Err(_) => pause.wait().await,
            }
        }
    }

    /// Tells quiet peers while the service runs for the others. What that changes in their connections follows at
    /// once where it is much, so that it need not go over while nobody is served.
    async fn close_quiet(&mut self) -> Result<(), Event> {
        let begun = Instant::now();
        let answer = self.watched(Order::CloseQuiet, ORDER_LIMIT).await?;
        let Answer::Closed { connections } = answer else {
            return Err(failed("the guest answered with something else than closed windows"));
        };
        self.step("close quiet", begun);
        if connections >= QUIET_ROUND {
            let begun = Instant::now();
            self.send_round(false).await?;
            self.step("send quiet", begun);
        }
        Ok(())
    }

    pub(super) async fn drain(&mut self) -> Result<Event, Event> {
        self.close_quiet().await?;
        let begun = Instant::now();
        let timeout_us = DRAIN_LIMIT.as_micros() as u32;
        let answer = self.watched(Order::Drain { timeout_us }, DRAIN_LIMIT + ORDER_LIMIT).await?;
        let Answer::Drained(drained) = answer else {
            return Err(failed("the guest answered drain with something else"));
        };
        self.summary.drain_us = micros(begun);
        self.summary.connections = drained.connections;
        self.summary.settled = drained.settled;
        self.note = format!("{} of {} connections settled", drained.settled, drained.connections);
        Ok(Event::Drained)
    }

    pub(super) async fn freeze(&mut self) -> Result<Event, Event> {
        self.tell(&FromSource::Check).await?;
        let begun = Instant::now();
        self.frozen_at = Some(begun);
        let order = Order::Freeze { full: false, mark: self.mark };
        let answer = self.watched(order, ORDER_LIMIT).await?;
        self.step("freeze", begun);
        self.instance.set_state(InstanceState::Frozen);
        let begun = Instant::now();
        self.last_pages = self.listed(answer, false)?;
        self.step("list pages", begun);
        Ok(Event::Frozen)
    }

    /// The last pages go out while QEMU is being stopped: the guest is parked, nothing changes.
    pub(super) async fn send_last_and_stop(&mut self) -> Vec<Event> {
        let instance = Arc::clone(&self.instance);
        let stop = async move {
            let begun = Instant::now();
            instance.vm.stop().await.map_err(failed)?;
            let stopped_us = micros(begun);
            let begun = Instant::now();
            instance.set_port_open(false).map_err(failed)?;
            Ok::<_, Event>((stopped_us, micros(begun)))
        };
        tokio::pin!(stop);
        let mut stopped = None;
        let mut delivered = {
            let sent = self.send_last();
            tokio::pin!(sent);
            tokio::select! {
                delivered = &mut sent => delivered,
                end = &mut stop => {
                    stopped = Some(end);
                    sent.await
                }
            }
        };
        let stopped = match stopped {
            Some(stopped) => stopped,
            // A standby that ends now is better noticed before the commit than after it.
            None if delivered.is_ok() => tokio::select! {
                biased;
                stopped = &mut stop => stopped,
                given_up = self.gives_up() => {
                    delivered = Err(given_up);
                    stop.await
                }
            },
            None => stop.await,
        };
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

    pub(super) async fn send_last(&mut self) -> Result<Event, Event> {
        let begun = Instant::now();
        let pages = std::mem::take(&mut self.last_pages);
        let sent = self.send_pages(&pages, Effort::Quick).await?;
        self.summary.frozen_pages = u64::from(sent);
        self.step("send", begun);
        let begun = Instant::now();
        let digest = self.sent.digest.finish();
        self.tell(&FromSource::Last { digest }).await?;
        match self.hear().await? {
            FromDestination::Verified => {
                self.step("verify", begun);
                Ok(Event::Delivered)
            }
            other => Err(failed(format!("unexpected answer to the last pages: {other:?}"))),
        }
    }

    pub(super) async fn ask_store(
        &mut self,
        what: &str,
        epoch: u64,
    ) -> Result<CommitAnswer, ApiError> {
        let path = format!("/v1/migrations/{}/{what}", self.request.migration);
        self.manager.json(Method::POST, &path, &CommitRequest { epoch }, MANAGER_LIMIT).await
    }

    pub(super) async fn commit(&mut self) -> Event {
        let begun = Instant::now();
        let answer = self.ask_store("commit", self.epoch).await;
        self.step("commit", begun);
        match answer {
            Ok(CommitAnswer::Committed { epoch, grant }) => {
                self.grant = grant;
                Event::Committed { epoch }
            }
            Ok(CommitAnswer::Refused { reason }) => Event::NotCommitted { reason },
            Err(_) => Event::CommitUnknown,
        }
    }

    /// Asks until the store answers. Its answer is final: a commit that is still on its way comes too
    /// late after it.
    pub(super) async fn settle(&mut self) -> Event {
        let (mut wait, longest) = SETTLE_WAITS;
        loop {
            match self.ask_store("settle", self.epoch).await {
                Ok(CommitAnswer::Committed { epoch, grant }) => {
                    self.grant = grant;
                    return Event::Committed { epoch };
                }
                Ok(CommitAnswer::Refused { reason }) => return Event::NotCommitted { reason },
                Err(error) => tracing::warn!(
                    "{}: {error}; it stays frozen until the manager says who owns it",
                    self.instance.spec.name
                ),
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(longest);
        }
    }

    pub(super) async fn resume(&mut self) -> Result<Event, Event> {
        // The epoch that the machine has just been told.
        let epoch = self.epoch + 1;
        let grant = std::mem::take(&mut self.grant);
        self.tell(&FromSource::Resume { epoch, grant }).await?;
        match self.hear().await? {
            FromDestination::Ordered => Ok(Event::Ordered),
            other => Err(failed(format!("unexpected answer to resume: {other:?}"))),
        }
    }

    pub(super) async fn await_resumed(&mut self) -> Event {
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
}
