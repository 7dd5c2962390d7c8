//! What peers send during a switch reaches the standby too, whose ring keeps it.
//!
//! Until every switch on the way has seen the destination's announcement, frames for the service still
//! arrive at the source. From the end of the drain on its agent copies those for the guest's address, and
//! sends them over a connection of its own to the destination's agent, which hands them to the standby. It
//! goes on while the source's QEMU is stopped.
//!
//! ```text
//! bridge ─► source tap ─► (QEMU)                              ┌─► destination tap ─► standby's ring
//!               └─ copy ─► agent ══ mutually authenticated TLS ══ agent
//! ```
//!
//! The copying ends with this value, or with its agent: nothing of it stays in the kernel. A frame that finds a
//! queue full is lost, as on any wire. A broadcast is not copied: it reaches the destination by itself.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use ferry_protocol::mark;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::network::Wire;
use crate::hostnet::{HostNetError, MacAddr};
use crate::security::Peer;
use crate::transfer::FrameError;
use crate::transfer::frame::{self, Kind};

/// Name of the connection's protocol in the HTTP upgrade.
pub const PROTOCOL: &str = "ferry-mirror/1";
/// Bytes of an Ethernet header, the shortest that is a frame.
const HEADER_LEN: usize = 14;
/// Longest frame: 1,500 bytes, Ethernet's header and a VLAN's tag.
const MAX_LEN: usize = 1518;
/// So many bytes go out together, at most.
const BATCH: usize = 64 << 10;

/// One end of the copying of one move.
#[derive(Debug)]
pub struct Mirror {
    wire: Arc<dyn Wire>,
    task: JoinHandle<()>,
}

impl Mirror {
    /// The source's end, over a connection to the destination's; nothing is copied yet.
    pub fn source<S>(wire: Box<dyn Wire>, guest: MacAddr, stream: S) -> Self
    where
        S: AsyncWrite + Send + 'static,
    {
        let wire: Arc<dyn Wire> = wire.into();
        let from = Arc::clone(&wire);
        let task = tokio::spawn(async move {
            if let Err(error) = send(from.as_ref(), guest, stream).await {
                tracing::warn!("frames are no longer copied to the destination: {error}");
            }
        });
        Self { wire, task }
    }

    /// The destination's end. It hands over whatever the source sends.
    pub fn destination<S>(wire: Box<dyn Wire>, guest: MacAddr, stream: S) -> Self
    where
        S: AsyncRead + Send + 'static,
    {
        let wire: Arc<dyn Wire> = wire.into();
        let to = Arc::clone(&wire);
        let task = tokio::spawn(async move {
            match receive(to.as_ref(), guest, stream).await {
                // The source is done, or gone.
                FrameError::Ended => {}
                error => tracing::warn!("frames are no longer taken from the source: {error}"),
            }
        });
        Self { wire, task }
    }

    /// Begins to copy, and puts mark `number` behind the frames that are not copied.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn on(&self, number: u32) -> Result<(), HostNetError> {
        self.wire.listen()?;
        // One that is lost is not waited for long.
        if let Err(error) = self.wire.send(&mark::frame([0; 6], number)) {
            tracing::debug!("the mark was lost: {error}");
        }
        Ok(())
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Copies what is for the guest.
async fn send(
    wire: &dyn Wire,
    guest: MacAddr,
    stream: impl AsyncWrite,
) -> Result<(), std::io::Error> {
    tokio::pin!(stream);
    let mut bytes = [0; MAX_LEN];
    let (mut one, mut batch) = (Vec::new(), Vec::new());
    loop {
        let mut len = poll_fn(|cx| wire.poll_receive(cx, &mut bytes)).await?;
        batch.clear();
        loop {
            let ethernet = &bytes[..len];
            if ethernet.starts_with(&guest.0) && len >= HEADER_LEN {
                frame::begin(&mut one);
                one.extend_from_slice(ethernet);
                frame::finish(&mut one, Kind::Ethernet);
                batch.extend_from_slice(&one);
            }
            if batch.len() >= BATCH {
                break;
            }
            let next = poll_fn(|cx| Poll::Ready(wire.poll_receive(cx, &mut bytes))).await;
            match next {
                Poll::Ready(more) => len = more?,
                Poll::Pending => break,
            }
        }
        if !batch.is_empty() {
            stream.write_all(&batch).await?;
            stream.flush().await?;
        }
    }
}

/// Hands frames to the guest; why it ended.
async fn receive(wire: &dyn Wire, guest: MacAddr, stream: impl AsyncRead) -> FrameError {
    tokio::pin!(stream);
    let mut ethernet = Vec::new();
    loop {
        match frame::read(&mut stream, &mut ethernet).await {
            Ok(Kind::Ethernet) if (HEADER_LEN..=MAX_LEN).contains(&ethernet.len()) => {}
            Ok(kind) => return FrameError::Kind { found: kind as u8 },
            Err(error) => return error,
        }
        // A source speaks to its own service only.
        if ethernet.starts_with(&guest.0)
            && let Err(error) = wire.send(&ethernet)
        {
            tracing::debug!("a copied frame was lost: {error}");
        }
    }
}

/// Connections for copies that standbys wait for, by the id of their move.
#[derive(Debug)]
pub struct Awaited<S>(Mutex<HashMap<String, Place<S>>>);

#[derive(Debug)]
struct Place<S> {
    source: Peer,
    hand_over: oneshot::Sender<S>,
}

/// The connection that one standby waits for. Nobody waits any more when it is dropped.
#[derive(Debug)]
pub struct Waiting<'a, S> {
    awaited: &'a Awaited<S>,
    migration: String,
    receiver: oneshot::Receiver<S>,
}

impl<S> Default for Awaited<S> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<S> Awaited<S> {
    /// Waits for the connection of move `migration`, from the agent that leads it.
    pub fn from(&self, source: &Peer, migration: &str) -> Waiting<'_, S> {
        let (hand_over, receiver) = oneshot::channel();
        let place = Place { source: source.clone(), hand_over };
        self.places().insert(migration.to_owned(), place);
        Waiting { awaited: self, migration: migration.to_owned(), receiver }
    }

    /// Whether the connection of move `migration` is waited for, and `peer` is the one to make it.
    pub fn expects(&self, migration: &str, peer: &Peer) -> bool {
        self.places().get(migration).is_some_and(|place| place.source.who == peer.who)
    }

    /// The connection is there.
    pub fn arrived(&self, migration: &str, stream: S) {
        if let Some(place) = self.places().remove(migration) {
            // Whoever waited may have given up this moment.
            let _ = place.hand_over.send(stream);
        }
    }

    fn places(&self) -> std::sync::MutexGuard<'_, HashMap<String, Place<S>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S> Waiting<'_, S> {
    /// The connection, once it is there; `None` if another move with the same id has taken its place.
    pub async fn stream(&mut self) -> Option<S> {
        (&mut self.receiver).await.ok()
    }
}

impl<S> Drop for Waiting<'_, S> {
    fn drop(&mut self) {
        let mut places = self.awaited.places();
        // One that waits by now under the same id has a channel of its own.
        self.receiver.close();
        if places.get(&self.migration).is_some_and(|place| place.hand_over.is_closed()) {
            places.remove(&self.migration);
        }
    }
}

#[cfg(test)]
#[path = "mirror_tests.rs"]
mod tests;
