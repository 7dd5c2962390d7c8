//! Frames in and out at a holder's port.

use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use crate::agent::network::Port;
use crate::api::{ApiError, Holding, Knock};
use crate::holder::Holder;

/// Gratuitous ARPs after the first, and the time before each: a port that has just come up may not
/// forward yet, and a cable may be unplugged. Together two minutes.
const REPEATS: [Duration; 11] = [
    Duration::from_millis(50),
    Duration::from_millis(150),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
    Duration::from_secs(16),
    Duration::from_secs(32),
    Duration::from_secs(32),
    Duration::from_secs(32),
];
/// Bytes before each frame of a tap (`struct virtio_net_hdr`).
const TAP_HEADER: usize = 10;
/// Longest frame that is read, its header included.
const MAX_READ: usize = TAP_HEADER + (64 << 10);
/// Frames answered before others have their turn.
const TURN: usize = 64;

/// What a holder's task shares with those who ask.
#[derive(Debug)]
pub(super) struct State {
    holder: Mutex<Holder>,
    failure: Mutex<Option<String>>,
}

impl State {
    pub(super) fn new(holder: Holder) -> Self {
        Self { holder: Mutex::new(holder), failure: Mutex::default() }
    }

    pub(super) fn holder(&self) -> MutexGuard<'_, Holder> {
        self.holder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn failure(&self) -> MutexGuard<'_, Option<String>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The port's other end, for reading and writing without waiting. A switch on paper has none.
pub(super) fn attach(port: &dyn Port) -> Result<Option<AsyncFd<File>>, ApiError> {
    let fail = |error: io::Error| ApiError::failed(format!("the holder's tap: {error}"));
    let Some(file) = port.frames().map_err(fail)? else { return Ok(None) };
    let flags = rustix::fs::fcntl_getfl(&file).map_err(|error| fail(error.into()))?;
    rustix::fs::fcntl_setfl(&file, flags | rustix::fs::OFlags::NONBLOCK)
        .map_err(|error| fail(error.into()))?;
    // SAFETY: the file owns its descriptor, which stays open and its own until the `AsyncFd` is dropped.
    let registered = unsafe { AsyncFd::register(file) };
    registered.map(Some).map_err(|error| fail(error.into()))
}

/// A holder at work.
pub(super) struct Answering {
    pub(super) frames: AsyncFd<File>,
    pub(super) state: Arc<State>,
    pub(super) holding: Holding,
    pub(super) knocks: mpsc::Sender<(String, Knock)>,
}

/// Answers until the tap fails, which is noted.
pub(super) async fn watched(this: Answering) {
    let state = Arc::clone(&this.state);
    let name = this.holding.name.clone();
    let Err(error) = this.run().await;
    tracing::warn!("{name}: its holder has ended: {error}");
    *state.failure() = Some(format!("its tap failed: {error}"));
}

impl Answering {
    async fn run(self) -> Result<std::convert::Infallible, io::Error> {
        let begun = Instant::now();
        let mut buffer = vec![0; MAX_READ];
        let mut repeats = REPEATS.iter();
        self.send(&self.state.holder().announcement());
        let mut next = repeats.next().map(|wait| tokio::time::Instant::now() + *wait);
        loop {
            tokio::select! {
                ready = self.frames.readable() => {
                    let mut ready = ready?;
                    for _ in 0..TURN {
                        match ready.try_io(|frames| frames.get_ref().read(&mut buffer)) {
                            Ok(read) => self.take(&buffer[..read?], begun.elapsed()),
                            Err(_would_block) => break,
                        }
                    }
                }
                () = sleep_until(next) => {
                    self.send(&self.state.holder().announcement());
                    next = repeats.next().map(|wait| tokio::time::Instant::now() + *wait);
                }
            }
        }
    }

    fn take(&self, bytes: &[u8], now: Duration) {
        let Some((_, frame)) = bytes.split_at_checked(TAP_HEADER) else { return };
        let reaction = self.state.holder().receive(frame, now);
        if let Some(answer) = reaction.frame {
            self.send(&answer);
        }
        if reaction.wake {
            let Holding { name, id, epoch } = self.holding.clone();
            // If nobody has taken the last one yet, one more says nothing new.
            let _ = self.knocks.try_send((name, Knock { id, epoch }));
        }
    }

    /// What the tap does not take at once is lost, as on any wire.
    fn send(&self, frame: &[u8]) {
        let bytes = [&[0; TAP_HEADER], frame].concat();
        let _ = self.frames.get_ref().write(&bytes);
    }
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
