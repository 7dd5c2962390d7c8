//! The guests' ports on the host's switch.
//!
//! The agent sees them through two small traits, so that its logic can be tested where no tap can be
//! made; [`BridgeNetwork`] is the one that daemons use.

use std::fmt::Debug;
use std::net::Ipv4Addr;

use crate::hostnet::{HostNetError, MacAddr, Mirror, PortState, Tap};

/// Prefix of our taps' names.
pub const TAP_PREFIX: &str = "ft-";

/// A switch that guests are plugged into.
pub trait Network: Send + Sync + Debug {
    /// Makes a port for a guest with this Ethernet address.
    ///
    /// # Errors
    /// The port cannot be made.
    fn plug(&self, name: &str, mac: &str, open: bool) -> Result<Box<dyn Port>, HostNetError>;

    /// Takes up a port that another agent has made, as it is. What is left of the mirror of move number
    /// `mirror` is removed.
    ///
    /// # Errors
    /// There is no such port, or the kernel refused.
    fn adopt(
        &self,
        name: &str,
        mac: &str,
        mirror: Option<u32>,
    ) -> Result<Box<dyn Port>, HostNetError>;

    /// Removes a port that another agent may have made, and what is left of its mirror.
    ///
    /// # Errors
    /// The kernel refused.
    fn remove(&self, name: &str, mac: &str, mirror: Option<u32>) -> Result<(), HostNetError> {
        match self.adopt(name, mac, mirror) {
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

    /// Makes one end of the tunnel for move number `id` to the agent at `peer`, not yet copying.
    ///
    /// # Errors
    /// The kernel refused.
    fn mirror(&self, end: End, peer: Ipv4Addr, id: u32) -> Result<Box<dyn Copying>, HostNetError>;

    /// Removes it.
    ///
    /// # Errors
    /// The kernel refused.
    fn unplug(self: Box<Self>) -> Result<(), HostNetError>;
}

/// Which end of a mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum End {
    Source,
    Destination,
}

/// One end of a mirror; dropping it ends the copying.
pub trait Copying: Send + Sync + Debug {
    /// Begins to copy.
    ///
    /// # Errors
    /// The kernel refused.
    fn on(&mut self) -> Result<(), HostNetError>;
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

    fn adopt(
        &self,
        name: &str,
        mac: &str,
        mirror: Option<u32>,
    ) -> Result<Box<dyn Port>, HostNetError> {
        if let Some(id) = mirror {
            Mirror::clear(id)?;
        }
        let tap = Tap::adopt(name, address(name, mac)?)?;
        Mirror::end_copies_of(&tap)?;
        Ok(Box::new(tap))
    }
}

impl Port for Tap {
    fn frames(&self) -> std::io::Result<Option<std::fs::File>> {
        self.attach().map(Some)
    }

    fn set_open(&self, open: bool) -> Result<(), HostNetError> {
        self.set_port(state(open))
    }

    fn mirror(&self, end: End, peer: Ipv4Addr, id: u32) -> Result<Box<dyn Copying>, HostNetError> {
        let mirror = match end {
            End::Source => Mirror::source(self, peer, id)?,
            End::Destination => Mirror::destination(self, peer, id)?,
        };
        Ok(Box::new(mirror))
    }

    fn unplug(self: Box<Self>) -> Result<(), HostNetError> {
        (*self).remove()
    }
}

impl Copying for Mirror {
    fn on(&mut self) -> Result<(), HostNetError> {
        Mirror::on(self)
    }
}
