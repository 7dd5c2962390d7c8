//! The tunnel that copies frames for a service from the source's tap into the destination's.
//!
//! Until every switch on the way has seen the destination's announcement, frames for the service still
//! arrive at the source. There a filter at the tap's egress copies those for the guest's address into a
//! VXLAN (RFC 7348) to the other host, and a filter there hands them to the standby's tap, past the
//! bridge. All of it happens in the kernel, and it goes on while the source's QEMU is stopped.
//!
//! ```text
//! bridge ─► source tap ─► (QEMU)                    ┌─► destination tap ─► standby's ring
//!               └─ copy ─► VXLAN ══ hosts' network ══ VXLAN
//! ```
//!
//! Frames of full size need two packets of the hosts' network: the kernel fragments and reassembles
//! them. A broadcast is not copied: it reaches the destination by itself.
//!
//! What takes time (making devices) is done by [`Mirror::source`]; [`Mirror::on`] is one message to the
//! kernel. The VXLAN is neither encrypted nor authenticated: the hosts' network is trusted by design of
//! this version, and the devices exist during a move only.

use std::net::Ipv4Addr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute};
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirrorOption, TcActionOption, TcActionType, TcAttribute,
    TcFilterU32Option, TcHandle, TcMessage, TcMirror, TcMirrorActionType, TcOption, TcU32Key,
    TcU32Selector, TcU32SelectorFlags,
};

use super::netlink::{NetlinkError, Route, no_ipv6_attribute};
use super::{HostNetError, MacAddr, Tap, remove_links_with_prefix};

/// Names of mirror devices begin with this; see [`super::remove_links_with_prefix`].
pub const DEVICE_PREFIX: &str = "fm-";
/// VXLAN's UDP port (RFC 7348 §5).
const VXLAN_PORT: u16 = 4789;
/// What the guests' segment has; the device must not refuse a full frame.
const MTU: u32 = 1500;
/// VXLAN network identifiers have 24 bits (RFC 7348 §5).
const ID_MASK: u32 = 0x00ff_ffff;

const CLSACT: TcHandle = TcHandle { major: 0xffff, minor: 0 };
const INGRESS: TcHandle = TcHandle { major: 0xffff, minor: TcHandle::MIN_INGRESS };
const EGRESS: TcHandle = TcHandle { major: 0xffff, minor: TcHandle::MIN_EGRESS };
/// Our filter's priority; `tcm_info` holds it above the protocol, ETH_P_ALL in network order.
const PRIORITY: u32 = 0x46;
const FILTER_INFO: u32 = (PRIORITY << 16) | 0x0003_u16.to_be() as u32;
/// TC_ACT_PIPE for a copy, TC_ACT_STOLEN for a redirection (linux/pkt_cls.h).
const COPY: (TcMirrorActionType, TcActionType) =
    (TcMirrorActionType::EgressMirror, TcActionType::Pipe);
const REDIRECT: (TcMirrorActionType, TcActionType) =
    (TcMirrorActionType::EgressRedir, TcActionType::Stolen);

/// One end of the tunnel of one move. It is removed with [`Mirror::remove`], or when it is dropped.
#[derive(Debug)]
pub struct Mirror {
    route: Route,
    device: String,
    device_index: u32,
    end: End,
    copying: bool,
}

#[derive(Debug)]
enum End {
    Source { tap: u32, guest: MacAddr },
    Destination,
}

impl Mirror {
    /// The source's end, ready but off. `id` numbers the move and is the same at both ends; of it, 24
    /// bits are used. What an earlier mirror with this id left here is replaced.
    pub fn source(tap: &Tap, peer: Ipv4Addr, id: u32) -> Result<Self, HostNetError> {
        let mut mirror = Self::device(
            format!("{DEVICE_PREFIX}{:06x}s", id & ID_MASK),
            peer,
            id,
            End::Source { tap: tap.index(), guest: tap.guest_mac() },
        )?;
        mirror.route.clsact(tap.index()).map_err(mirror.failed("prepare the source's tap"))?;
        // A copy left by an agent that died would double every frame.
        mirror.off()?;
        Ok(mirror)
    }

    /// The destination's end. It hands over whatever the source sends from now on.
    pub fn destination(tap: &Tap, peer: Ipv4Addr, id: u32) -> Result<Self, HostNetError> {
        let name = format!("{DEVICE_PREFIX}{:06x}d", id & ID_MASK);
        let mut mirror = Self::device(name, peer, id, End::Destination)?;
        let index = mirror.device_index;
        let fail = mirror.failed("lead the tunnel into the tap");
        mirror.route.clsact(index).map_err(&fail)?;
        let everything = vec![key(0, 0, 0)];
        let filter = filter(index, INGRESS, everything, REDIRECT, tap.index());
        mirror
            .route
            .request(RouteNetlinkMessage::NewTrafficFilter(filter), NLM_F_CREATE | NLM_F_EXCL)
            .map_err(&fail)?;
        Ok(mirror)
    }

    fn device(name: String, peer: Ipv4Addr, id: u32, end: End) -> Result<Self, HostNetError> {
        let fail = |source| HostNetError::Netlink {
            action: format!("make the tunnel \"{name}\""),
            source,
        };
        let mut route = Route::open().map_err(fail)?;
        if let Some(old) = route.link(&name).map_err(fail)? {
            route.delete_link(old.index).map_err(fail)?;
        }
        let data = InfoData::Vxlan(vec![
            InfoVxlan::Id(id & ID_MASK),
            InfoVxlan::Group(peer),
            InfoVxlan::Port(VXLAN_PORT),
            InfoVxlan::Learning(false),
            // The frames have checksums of their own.
            InfoVxlan::UDPCsum(false),
        ]);
        let more = vec![LinkAttribute::Mtu(MTU)];
        route.create_link(&name, InfoKind::Vxlan, Some(data), more).map_err(fail)?;
        let index = match route.link(&name).map_err(fail)? {
            Some(link) => link.index,
            None => return Err(HostNetError::NoSuchLink { name }),
        };
        let quiet: Vec<_> = no_ipv6_attribute().into_iter().collect();
        route.change_link(index, quiet).map_err(fail)?;
        route.up(index).map_err(fail)?;
        Ok(Self { route, device: name, device_index: index, end, copying: false })
    }

    /// Begins to copy. At the destination there is nothing to do.
    pub fn on(&mut self) -> Result<(), HostNetError> {
        let End::Source { tap, guest } = self.end else { return Ok(()) };
        if self.copying {
            return Ok(());
        }
        let filter = filter(tap, EGRESS, destination_is(guest), COPY, self.device_index);
        self.route
            .request(RouteNetlinkMessage::NewTrafficFilter(filter), NLM_F_CREATE | NLM_F_EXCL)
            .map_err(self.failed("begin to copy frames"))?;
        self.copying = true;
        Ok(())
    }

    /// Ends the copying; the tunnel stays ready.
    pub fn off(&mut self) -> Result<(), HostNetError> {
        let End::Source { tap, .. } = self.end else { return Ok(()) };
        self.copying = false;
        match self.route.request(RouteNetlinkMessage::DelTrafficFilter(bare_filter(tap, EGRESS)), 0)
        {
            Err(e) if !e.missing() => Err(self.failed("end the copying of frames")(e)),
            _ => Ok(()),
        }
    }

    /// Removes what an agent that died has left of move number `id` on this host, except for copies at
    /// a tap.
    pub fn clear(id: u32) -> Result<(), HostNetError> {
        // Names of mirrors have one length, so none is the beginning of another.
        remove_links_with_prefix(&format!("{DEVICE_PREFIX}{:06x}", id & ID_MASK)).map(drop)
    }

    /// Ends the copying of frames that an agent which died may have left on at a tap.
    pub fn end_copies_of(tap: &Tap) -> Result<(), HostNetError> {
        let fail = |source| HostNetError::Netlink {
            action: format!("end the copying of frames for \"{}\"", tap.name()),
            source,
        };
        let mut route = Route::open().map_err(fail)?;
        let old = RouteNetlinkMessage::DelTrafficFilter(bare_filter(tap.index(), EGRESS));
        match route.request(old, 0) {
            Err(error) if !error.missing() => Err(fail(error)),
            _ => Ok(()),
        }
    }

    /// Removes this end. No error if parts of it are gone already.
    pub fn remove(mut self) -> Result<(), HostNetError> {
        self.take_down()
    }

    fn take_down(&mut self) -> Result<(), HostNetError> {
        // The filter would go with the device, but only the tap's clsact frees it at once.
        self.off()?;
        match self.route.delete_link(self.device_index) {
            Err(e) if !e.missing() => Err(self.failed("remove the tunnel")(e)),
            _ => Ok(()),
        }
    }

    fn failed(&self, what: &'static str) -> impl Fn(NetlinkError) -> HostNetError + use<> {
        let device = self.device.clone();
        move |source| HostNetError::Netlink {
            action: format!("{what} (tunnel \"{device}\")"),
            source,
        }
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        // Whoever wants to know about failures calls `remove`; here the device may be gone already.
        let _ = self.take_down();
    }
}

impl Route {
    /// Gives a link the attachment point for filters, unless it has it. On a link that is up, the
    /// kernel stops its queues meanwhile and drops what comes: do it before.
    pub(super) fn clsact(&mut self, index: u32) -> Result<(), NetlinkError> {
        let mut message = TcMessage::default();
        message.header.index = index.cast_signed();
        message.header.handle = CLSACT;
        message.header.parent = TcHandle::CLSACT;
        message.attributes = vec![TcAttribute::Kind("clsact".to_owned())];
        let new = RouteNetlinkMessage::NewQueueDiscipline(message);
        match self.request(new, NLM_F_CREATE | NLM_F_EXCL) {
            Err(e) if e.exists() => Ok(()),
            other => other,
        }
    }
}

fn bare_filter(index: u32, hook: TcHandle) -> TcMessage {
    let mut message = TcMessage::default();
    message.header.index = index.cast_signed();
    message.header.parent = hook;
    message.header.info = FILTER_INFO;
    message.attributes = vec![TcAttribute::Kind("u32".to_owned())];
    message
}

fn filter(
    index: u32,
    hook: TcHandle,
    keys: Vec<TcU32Key>,
    (how, then): (TcMirrorActionType, TcActionType),
    to: u32,
) -> TcMessage {
    let mut mirror = TcMirror::default();
    mirror.generic.action = then;
    mirror.eaction = how;
    mirror.ifindex = to;
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind("mirred".to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(
            mirror,
        ))]),
    ];
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.nkeys = keys.len() as u8;
    selector.keys = keys;
    let mut message = bare_filter(index, hook);
    message.attributes.push(TcAttribute::Options(vec![
        TcOption::U32(TcFilterU32Option::Selector(selector)),
        TcOption::U32(TcFilterU32Option::Action(vec![action])),
    ]));
    message
}

/// Compares the four bytes at `offset` from the network header.
fn key(offset: i32, value: u32, mask: u32) -> TcU32Key {
    let mut key = TcU32Key::default();
    (key.off, key.val, key.mask) = (offset, value, mask);
    key
}

/// The destination address begins 14 bytes before the network header.
fn destination_is(mac: MacAddr) -> Vec<TcU32Key> {
    let [a, b, c, d, e, f] = mac.0;
    vec![
        key(-14, u32::from_be_bytes([a, b, c, d]), u32::MAX),
        key(-10, u32::from_be_bytes([e, f, 0, 0]), 0xffff_0000),
    ]
}
