//! The guests' ports on the host's switch.
//!
//! The agent sees them through two small traits, so that its logic can be tested where no tap can be
//! made; [`BridgeNetwork`] is the one that daemons use.

use std::fmt::Debug;
use std::io;
use std::task::{Context, Poll, ready};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::hostnet::{HostNetError, MacAddr, PortState, Tap, TapWire};

/// Prefix of our taps' names.
pub const TAP_PREFIX: &str = "ft-";

/// A switch that guests are plugged into.
pub trait Network: Send + Sync + Debug {
    /// Makes a port for a guest with this Ethernet address.
    ///
    /// # Errors
    /// The port cannot be made.
    fn plug(&self, name: &str, mac: &str, open: bool) -> Result<Box<dyn Port>, HostNetError>;

    /// Takes up a port that another agent has made, as it is.
    ///
    /// # Errors
    /// There is no such port, or the kernel refused.
    fn adopt(&self, name: &str, mac: &str) -> Result<Box<dyn Port>, HostNetError>;

    /// Removes a port that another agent may have made.
    ///
    /// # Errors
    /// The kernel refused.
    fn remove(&self, name: &str, mac: &str) -> Result<(), HostNetError> {
        match self.adopt(name, mac) {
            Ok(port) => port.unplug(),
            Err(HostNetError::NoSuchLink { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// A guest's port.
pub trait Port: Send + Sync + Debug {
    /// Opens the guest's side of it, for QEMU or in its place: reads and writes are one frame each, behind a
    /// virtio-net header of 10 bytes. `None`, on a switch without frames, leaves the guest without a NIC.
    ///
    /// # Errors
    /// The kernel refused.
    fn frames(&self) -> std::io::Result<Option<std::fs::File>> {
        Ok(None)
    }

    /// Opens or closes it. What a guest sends to a closed port is dropped, and no address is learned.
    ///
    /// # Errors
    /// The kernel refused.
    fn set_open(&self, open: bool) -> Result<(), HostNetError>;

    /// Opens the wire to the guest, not yet listening; to be called within a tokio runtime.
    ///
    /// # Errors
    /// The kernel refused.
    fn wire(&self) -> Result<Box<dyn Wire>, HostNetError>;

    /// Removes it.
    ///
    /// # Errors
    /// The kernel refused.
    fn unplug(self: Box<Self>) -> Result<(), HostNetError>;
}

/// The wire between the switch and a guest. Dropping it ends the listening.
pub trait Wire: Send + Sync + Debug {
    /// From now on what passes can be received.
    ///
    /// # Errors
    /// The kernel refused.
    fn listen(&self) -> Result<(), HostNetError>;

    /// The oldest frame that has passed; its length. One task at a time may wait for it.
    ///
    /// # Errors
    /// The port is gone.
    fn poll_receive(&self, cx: &mut Context<'_>, frame: &mut [u8]) -> Poll<io::Result<usize>>;

    /// Hands a frame to the guest, behind all that is on its way there.
    ///
    /// # Errors
    /// It is lost: the guest's queue is full, or the port is gone.
    fn send(&self, frame: &[u8]) -> io::Result<()>;
}

/// Taps on a Linux bridge.
#[derive(Clone, Debug)]
pub struct BridgeNetwork {
    /// Name of the bridge.
    pub bridge: String,
}

fn state(open: bool) -> PortState {
    if open { PortState::Open } else { PortState::Closed }
}

fn address(name: &str, mac: &str) -> Result<MacAddr, HostNetError> {
    mac.parse().map_err(|_| HostNetError::LinkName { name: format!("{name} with address {mac}") })
}

impl Network for BridgeNetwork {
    fn plug(&self, name: &str, mac: &str, open: bool) -> Result<Box<dyn Port>, HostNetError> {
        Ok(Box::new(Tap::create(name, &self.bridge, address(name, mac)?, state(open))?))
    }

    fn adopt(&self, name: &str, mac: &str) -> Result<Box<dyn Port>, HostNetError> {
        Ok(Box::new(Tap::adopt(name, address(name, mac)?)?))
    }
}

impl Port for Tap {
    fn frames(&self) -> std::io::Result<Option<std::fs::File>> {
        self.attach().map(Some)
    }

    fn set_open(&self, open: bool) -> Result<(), HostNetError> {
        self.set_port(state(open))
    }

    fn wire(&self) -> Result<Box<dyn Wire>, HostNetError> {
        let wire = TapWire::open(self)?;
        // SAFETY: the wire owns its socket, which stays open and its own until the `AsyncFd` is dropped.
        let polled = unsafe { AsyncFd::register_with_interest(wire, Interest::READABLE) };
        let polled = polled.map_err(|error| HostNetError::Wire {
            action: "open",
            name: self.name().to_owned(),
            source: error.into(),
        })?;
        Ok(Box::new(PolledWire(Some(polled))))
    }

    fn unplug(self: Box<Self>) -> Result<(), HostNetError> {
        (*self).remove()
    }
}

/// A tap's wire that tasks can wait for; there until it is dropped.
#[derive(Debug)]
struct PolledWire(Option<AsyncFd<TapWire>>);

impl PolledWire {
    fn inner(&self) -> io::Result<&AsyncFd<TapWire>> {
        self.0.as_ref().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Wire for PolledWire {
    fn listen(&self) -> Result<(), HostNetError> {
        self.0.as_ref().map_or(Ok(()), |wire| wire.get_ref().listen())
    }

    fn poll_receive(&self, cx: &mut Context<'_>, frame: &mut [u8]) -> Poll<io::Result<usize>> {
        let wire = self.inner()?;
        loop {
            let mut ready = ready!(wire.poll_read_ready(cx))?;
            if let Ok(received) = ready.try_io(|wire| wire.get_ref().receive(frame)) {
                return Poll::Ready(received);
            }
        }
    }

    fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.inner()?.get_ref().send(frame)
    }
}

impl Drop for PolledWire {
    fn drop(&mut self) {
        let wire = self.0.take().map(AsyncFd::into_inner);
        // The kernel lets whoever closes a packet socket wait until no processor looks at it any more.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(move || drop(wire));
        }
    }
}
