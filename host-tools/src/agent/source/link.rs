//! What goes over the connection to the destination.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ferry_protocol::control::{Answer, Order};

use super::{Move, Upgraded, failed};
use crate::agent::http::TRANSFER_PROTOCOL;
use crate::agent::instance::ORDER_LIMIT;
use crate::agent::mirror::{self, Mirror};
use crate::api::Migration;
use crate::hostnet::MacParseError;
use crate::migration::Event;
use crate::transfer::pack::Effort;
use crate::transfer::pages::FrameBuilder;
use crate::transfer::{FromDestination, FromSource, Link, LinkError};
use crate::wire::Address;

/// How long a failed connection is searched for the other side's reason.
const LAST_WORDS_LIMIT: Duration = Duration::from_millis(500);
/// Longest wait for an answer; the machine's deadline is shorter.
const HEAR_LIMIT: Duration = Duration::from_secs(600);
/// Pages of a round that are worth packing well: 16 MiB, a tenth of a second.
const THOROUGH_PAGES: usize = 4096;
/// Bytes of the log in one message.
const LOG_CHUNK: usize = 256 << 10;

impl Move {
    pub(super) fn link(&mut self) -> Result<&mut Link<Upgraded>, Event> {
        self.link.as_mut().ok_or_else(|| failed("there is no connection to the destination"))
    }

    /// Sends a message.
    pub(super) async fn tell(&mut self, message: &FromSource) -> Result<(), Event> {
        match self.link()?.send(message).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.last_words(error).await),
        }
    }

    /// Waits for the destination's answer; the machine's deadline bounds it.
    pub(super) async fn hear(&mut self) -> Result<FromDestination, Event> {
        let name = self.request.destination_name.clone();
        match self.link()?.message(HEAR_LIMIT).await {
            Ok(FromDestination::Failed { reason }) => {
                Err(Event::DestinationEnded { reason: format!("node {name}: {reason}") })
            }
            Ok(message) => Ok(message),
            Err(error) => Err(self.silent(error)),
        }
    }

    pub(super) fn silent(&self, error: LinkError) -> Event {
        let name = &self.request.destination_name;
        Event::DestinationSilent { reason: format!("connection to node {name}: {error}") }
    }

    /// A connection that broke while something was sent may still hold the reason.
    pub(super) async fn last_words(&mut self, error: LinkError) -> Event {
        let name = self.request.destination_name.clone();
        let Ok(link) = self.link() else { return self.silent(error) };
        while let Ok(message) = link.message(LAST_WORDS_LIMIT).await {
            if let FromDestination::Failed { reason } = message {
                return Event::DestinationEnded { reason: format!("node {name}: {reason}") };
            }
        }
        self.silent(error)
    }

    pub(super) async fn offer(&mut self) -> Result<Event, Event> {
        let begun = Instant::now();
        let address: Address = self.request.destination.parse().map_err(failed)?;
        let stream = self
            .host
            .agent(address, &self.request.destination_name)
            .upgrade("/v1/transfer", TRANSFER_PROTOCOL)
            .await
            .map_err(failed)?;
        self.link = Some(Link::<Upgraded>::new(stream));
        self.step("connect", begun);
        // Also opens the connection on which the commit will be asked for.
        let path = format!("/v1/migrations/{}", self.request.migration);
        let _: Migration = self.manager.get(&path).await.map_err(failed)?;
        let offer = FromSource::Offer {
            migration: self.request.migration.clone(),
            spec: Box::new(self.instance.spec.clone()),
            source: self.host.address().to_owned(),
        };
        self.tell(&offer).await?;
        match self.hear().await? {
            FromDestination::Accepted => Ok(Event::Accepted),
            other => Err(failed(format!("unexpected answer to the offer: {other:?}"))),
        }
    }

    pub(super) async fn prepare(&mut self) -> Result<Event, Event> {
        self.tell(&FromSource::Prepare).await?;
        let begun = Instant::now();
        let address: Address = self.request.destination.parse().map_err(failed)?;
        let agent = self.host.agent(address, &self.request.destination_name);
        let path = format!("/v1/transfer/{}/mirror", self.request.migration);
        let stream = match agent.upgrade(&path, mirror::PROTOCOL).await {
            Ok(stream) => stream,
            // The destination knows better why.
            Err(error) => match tokio::time::timeout(LAST_WORDS_LIMIT, self.hear()).await {
                Ok(Err(event)) => return Err(event),
                _ => return Err(failed(error)),
            },
        };
        let guest = self.instance.spec.mac.parse().map_err(|error: MacParseError| failed(error))?;
        let wire = self.instance.with_port(|port| port.wire()).map_err(failed)?;
        self.mirror = Some(Mirror::source(wire, guest, stream));
        self.step("mirror made", begun);
        match self.hear().await? {
            FromDestination::Standby { boot_us } => {
                self.steps.push(("boot".into(), boot_us));
                Ok(Event::StandbyReady)
            }
            other => Err(failed(format!("unexpected answer to prepare: {other:?}"))),
        }
    }

    /// Reads a report of dirty pages.
    pub(super) fn listed(&mut self, answer: Answer, full: bool) -> Result<Vec<u32>, Event> {
        let Answer::Pages { dirty, scan_us, .. } = answer else {
            return Err(failed("the guest answered with something else than pages"));
        };
        self.steps.push(("scan in the guest".into(), u64::from(scan_us)));
        self.instance.pages(dirty, full).map_err(failed)
    }

    pub(super) async fn send_round(&mut self, full: bool) -> Result<Event, Event> {
        let answer = self.order(Order::Scan { full }, ORDER_LIMIT).await?;
        let pages = self.listed(answer, full)?;
        self.summary.rounds += 1;
        // A round that takes long is not made longer.
        let effort = match pages.len() {
            0..=THOROUGH_PAGES => Effort::Thorough,
            _ => Effort::Quick,
        };
        let sent = self.send_pages(&pages, effort).await?;
        // Nothing of it may still be on its way when the last pages follow, and a destination that is
        // gone is better noticed now than when the service is frozen.
        self.tell(&FromSource::Round).await?;
        match self.hear().await? {
            FromDestination::Arrived => {}
            other => return Err(failed(format!("unexpected answer to a round: {other:?}"))),
        }
        let names = if self.summary.rounds == 1 { "round" } else { "rounds" };
        self.note = format!("{} {names}", self.summary.rounds);
        Ok(Event::RoundSent { dirty: sent })
    }

    pub(super) async fn send_pages(&mut self, pages: &[u32], effort: Effort) -> Result<u32, Event> {
        let mut builder = FrameBuilder::new(&self.instance.ram, pages, effort, &mut self.sent);
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

    pub(super) async fn send_log(&mut self) -> Result<(), Event> {
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

    pub(super) async fn finish(&mut self) -> Result<(), Event> {
        self.tell(&FromSource::Finish).await?;
        while self.hear().await? != FromDestination::Finished {}
        Ok(())
    }
}
