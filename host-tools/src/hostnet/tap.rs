//! Persistent taps: the link a guest's QEMU opens by name.

use std::fs::{File, OpenOptions};
use std::io;

use netlink_packet_route::link::LinkAttribute;
use rustix::ioctl::{IntegerSetter, Opcode, Setter, ioctl};

use super::netlink::{NetlinkError, Route, address_attribute, no_ipv6_attribute};
use super::{HostNetError, MacAddr, PortState, check_link_name, port};

// linux/if_tun.h
const TUNSETIFF: Opcode = 0x4004_54ca;
const TUNSETPERSIST: Opcode = 0x4004_54cb;
const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;

/// Frames that wait for QEMU, at most. When the windows of many connections open at once, each peer sends at once:
/// what finds no room costs its connection a retransmission timeout. (The kernel's default is 500.)
const QUEUE_FRAMES: u32 = 16_384;

/// A persistent tap that is a port of a bridge. It outlives this value and this process: [`Tap::remove`]
/// ends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tap {
    name: String,
    index: u32,
    guest_mac: MacAddr,
}

impl Tap {
    /// Makes the tap `name` (at most 15 bytes), up, plugged into `bridge`, its port in state `port`
    /// before the link is up. One queue, with the virtio-net header as QEMU wants it. A tap of that name
    /// left behind by another run is replaced; it must not be in use.
    pub fn create(
        name: &str,
        bridge: &str,
        guest_mac: MacAddr,
        port: PortState,
    ) -> Result<Self, HostNetError> {
        check_link_name(name)?;
        check_link_name(bridge)?;
        let fail = |source| HostNetError::Netlink {
            action: format!("plug the tap \"{name}\" into the bridge \"{bridge}\""),
            source,
        };
        let mut route = Route::open().map_err(fail)?;
        let bridge_index = index_of(&mut route, bridge)?;
        if let Some(old) = route.link(name).map_err(fail)? {
            route.delete_link(old.index).map_err(fail)?;
        }
        make_persistent(name)?;
        let index = index_of(&mut route, name)?;
        let tap = Self { name: name.to_owned(), index, guest_mac };
        let plugged = tap.plug(&mut route, bridge_index, port).map_err(|e| match e {
            Plug::Netlink(source) => fail(source),
            Plug::Port(e) => e,
        });
        if let Err(error) = plugged {
            // The link is of no use half configured; what matters is the first error.
            let _ = route.delete_link(index);
            return Err(error);
        }
        Ok(tap)
    }

    fn plug(&self, route: &mut Route, bridge: u32, state: PortState) -> Result<(), Plug> {
        let mut own = vec![address_attribute(self.guest_mac.of_tap())];
        own.extend(no_ipv6_attribute());
        own.push(LinkAttribute::TxQueueLen(QUEUE_FRAMES));
        route.change_link(self.index, own)?;
        let into = LinkAttribute::Controller(bridge);
        route.change_link(self.index, vec![into])?;
        port::set(route, self.index, &self.name, state).map_err(Plug::Port)?;
        route.up(self.index)?;
        Ok(())
    }

    /// A tap that exists, for example after a restart of the agent.
    pub fn adopt(name: &str, guest_mac: MacAddr) -> Result<Self, HostNetError> {
        check_link_name(name)?;
        let mut route = Route::open().map_err(|source| HostNetError::Netlink {
            action: format!("look for the tap \"{name}\""),
            source,
        })?;
        let index = index_of(&mut route, name)?;
        Ok(Self { name: name.to_owned(), index, guest_mac })
    }

    /// Opens the guest's side of the tap, as QEMU does. Reads and writes are one frame each, behind a
    /// virtio-net header of 10 bytes. While it is open the link has a carrier.
    pub fn attach(&self) -> io::Result<File> {
        let device = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
        attach(&device, &self.name)?;
        Ok(device)
    }

    /// Its name, for QEMU's `ifname=`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its index in this namespace.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The address of the guest behind it (not the tap's own).
    #[must_use]
    pub fn guest_mac(&self) -> MacAddr {
        self.guest_mac
    }

    /// Opens or closes its bridge port.
    pub fn set_port(&self, state: PortState) -> Result<(), HostNetError> {
        let mut route = Route::open().map_err(|source| HostNetError::Netlink {
            action: format!("change the bridge port \"{}\"", self.name),
            source,
        })?;
        port::set(&mut route, self.index, &self.name, state)
    }

    /// Removes the tap. No error if it is gone already.
    pub fn remove(self) -> Result<(), HostNetError> {
        let fail = |source| HostNetError::Netlink {
            action: format!("remove the tap \"{}\"", self.name),
            source,
        };
        let mut route = Route::open().map_err(fail)?;
        match route.link(&self.name).map_err(fail)? {
            Some(link) => match route.delete_link(link.index) {
                Err(e) if !e.missing() => Err(fail(e)),
                _ => Ok(()),
            },
            None => Ok(()),
        }
    }
}

enum Plug {
    Netlink(NetlinkError),
    Port(HostNetError),
}

impl From<NetlinkError> for Plug {
    fn from(e: NetlinkError) -> Self {
        Self::Netlink(e)
    }
}

fn index_of(route: &mut Route, name: &str) -> Result<u32, HostNetError> {
    let found = route.link(name).map_err(|source| HostNetError::Netlink {
        action: format!("look for the link \"{name}\""),
        source,
    })?;
    found.map(|l| l.index).ok_or_else(|| HostNetError::NoSuchLink { name: name.to_owned() })
}

/// `struct ifreq` of linux/if.h, as TUNSETIFF reads it: name and flags.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: u16,
    unused: [u8; 22],
}

fn make_persistent(name: &str) -> Result<(), HostNetError> {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .map_err(|source| HostNetError::TunDevice { source })?;
    let fail = |source| HostNetError::TapRequest { action: "make", name: name.to_owned(), source };
    attach(&device, name).map_err(fail)?;
    // SAFETY: TUNSETPERSIST takes its argument by value and touches no memory of this process.
    unsafe { ioctl(&device, IntegerSetter::<TUNSETPERSIST>::new_usize(1)) }
        .map_err(|e| fail(e.into()))
}

fn attach(device: &File, name: &str) -> io::Result<()> {
    let mut request = InterfaceRequest {
        name: [0; 16],
        flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR,
        unused: [0; 22],
    };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: TUNSETIFF reads one `struct ifreq` (40 bytes, as asserted below), which `request` is, and
    // writes it back through its own copy only.
    unsafe { ioctl(device, Setter::<TUNSETIFF, _>::new(request)) }.map_err(Into::into)
}

const _: () = assert!(size_of::<InterfaceRequest>() == 40);
