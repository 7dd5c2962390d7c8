//! What comes after: removing the source, or letting it serve on.

use std::time::Duration;

use ferry_protocol::control::Order;
use hyper::Method;

use super::{Move, failed};
use crate::agent::instance::ORDER_LIMIT;
use crate::api::{CommitAnswer, InstanceState, ResumeRequest};
use crate::migration::Event;
use crate::transfer::{FromDestination, FromSource};
use crate::wire::Address;

/// Longest wait for the destination to say whether it runs the service.
const ASK_LIMIT: Duration = Duration::from_secs(15);

impl Move {
    pub(super) async fn ask_destination(&mut self) -> Event {
        let silent = |reason: String| Event::DestinationSilent { reason };
        let address: Address = match self.request.destination.parse() {
            Ok(address) => address,
            Err(_) => return silent("its address is not known".into()),
        };
        let client = self.host.agent(address, &self.request.destination_name);
        let path = format!("/v1/instances/{}/resolve", self.instance.spec.name);
        let epoch = self.epoch + 1;
        let request = ResumeRequest { epoch };
        match client.json::<bool>(Method::POST, &path, &request, ASK_LIMIT).await {
            Ok(true) => Event::Resumed,
            Ok(false) => Event::DestinationEnded { reason: "it has no such instance".into() },
            Err(error) => silent(error.message),
        }
    }

    pub(super) async fn take_back(&mut self) -> Result<Event, Event> {
        let answer = self.ask_store("take-back", self.epoch + 1).await;
        let epoch = match answer {
            Ok(CommitAnswer::Committed { epoch, .. }) => epoch,
            Ok(CommitAnswer::Refused { reason }) => return Err(Event::NotCommitted { reason }),
            Err(_) => return Err(Event::CommitUnknown),
        };
        self.wake(true, true).await?;
        self.instance.set_epoch(epoch);
        drop(self.mirror.take());
        Ok(Event::TakenBack { epoch })
    }

    /// Lets the source serve again.
    pub(super) async fn wake(&mut self, cont: bool, thaw: bool) -> Result<(), Event> {
        if let Some(reason) = self.instance.ended().await {
            return Err(failed(reason));
        }
        if cont {
            self.instance.set_port_open(true).map_err(failed)?;
            self.instance.vm.cont().await.map_err(failed)?;
        }
        if thaw {
            self.order(Order::Thaw, ORDER_LIMIT).await?;
        }
        self.instance.set_state(InstanceState::Running);
        Ok(())
    }

    pub(super) async fn undo(&mut self, cont: bool, thaw: bool) -> Result<Event, Event> {
        let woken = self.wake(cont, thaw).await;
        drop(self.mirror.take());
        if let Some(mut link) = self.link.take() {
            // If the destination cannot be told, it notices that the connection has ended.
            if link.send(&FromSource::Abandon).await.is_ok() {
                while let Ok(message) = link.message::<FromDestination>(ORDER_LIMIT).await {
                    if matches!(
                        message,
                        FromDestination::Abandoned | FromDestination::Failed { .. }
                    ) {
                        break;
                    }
                }
            }
        }
        woken.map(|()| Event::Undone)
    }

    pub(super) async fn remove(&mut self) -> Result<Event, Event> {
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
}
