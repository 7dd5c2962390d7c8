//! Accepted connections, each with whom it comes from.
//!
//! Handshakes are made beside each other, and those that fail are in the audit log.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener as _};
use time::OffsetDateTime;
use tokio::sync::{Semaphore, mpsc};

use super::access::Who;
use super::audit::{Audit, Entry, Result};
use super::gate::Peer;
use super::tls::{Security, Tls, explain};
use crate::wire::{Listener, Stream};

/// Longest time of a handshake.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
/// Most handshakes at one time.
const HANDSHAKES: usize = 64;

/// See the module's documentation; `axum::serve` takes it.
#[derive(Debug)]
pub enum Guarded {
    /// For peers on this machine.
    Plain(Listener),
    /// With certificates.
    Tls {
        /// Connections after their handshakes.
        accepted: mpsc::Receiver<(Stream, Peer)>,
        /// Where it listens.
        address: String,
    },
}

impl Guarded {
    /// Accepts connections of `listener` as `security` wants them.
    #[must_use]
    pub fn new(listener: Listener, security: &Security, audit: &Arc<Audit>) -> Self {
        match security {
            Security::Plain => Self::Plain(listener),
            Security::Tls(tls) => {
                let address = listener.local_addr().unwrap_or_default();
                let (sender, accepted) = mpsc::channel(HANDSHAKES);
                tokio::spawn(accept(listener, Arc::clone(tls), Arc::clone(audit), sender));
                Self::Tls { accepted, address }
            }
        }
    }
}

async fn accept(
    mut listener: Listener,
    tls: Arc<Tls>,
    audit: Arc<Audit>,
    sender: mpsc::Sender<(Stream, Peer)>,
) {
    let room = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let (stream, from) = tokio::select! {
            accepted = listener.accept() => accepted,
            () = sender.closed() => return,
        };
        let (tls, audit, sender) = (Arc::clone(&tls), Arc::clone(&audit), sender.clone());
        tokio::spawn(async move {
            let _permit = permit;
            match tls.accept(stream, HANDSHAKE_LIMIT).await {
                Ok((stream, member)) => {
                    let who = member.map_or(Who::Nobody, Who::Member);
                    // Nobody takes it when the server ends.
                    let _ = sender.send((stream, Peer { who, from })).await;
                }
                // Somebody looked whether anybody listens.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
                Err(error) => {
                    let reason = explain(&error).unwrap_or_else(|| error.to_string());
                    let entry =
                        Entry::new(OffsetDateTime::now_utc(), &Who::Nobody, &from, "connect");
                    audit.write(&entry.ended(Result::Refused, reason));
                }
            }
        });
    }
}

impl axum::serve::Listener for Guarded {
    type Io = Stream;
    type Addr = Peer;

    async fn accept(&mut self) -> (Stream, Peer) {
        match self {
            Self::Plain(listener) => {
                let (stream, from) = listener.accept().await;
                (stream, Peer { who: Who::Local, from })
            }
            Self::Tls { accepted, .. } => match accepted.recv().await {
                Some(accepted) => accepted,
                // The accepting task ends only when this end is gone.
                None => std::future::pending().await,
            },
        }
    }

    fn local_addr(&self) -> io::Result<Peer> {
        let from = match self {
            Self::Plain(listener) => listener.local_addr()?,
            Self::Tls { address, .. } => address.clone(),
        };
        Ok(Peer { who: Who::Local, from })
    }
}

impl Connected<IncomingStream<'_, Guarded>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Guarded>) -> Self {
        stream.remote_addr().clone()
    }
}
