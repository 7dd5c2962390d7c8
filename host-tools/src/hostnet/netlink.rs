//! A route netlink socket (`man 7 rtnetlink`): one request, one answer, checked, within a deadline.
//!
//! The socket belongs to the network namespace in which it was opened, also when its thread moves on.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridgePort, InfoData, InfoKind, InfoPortData,
    InfoPortKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::net::{self, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, sockopt};

use super::MacAddr;

/// The kernel answers a request before `send` returns, or at once after a dump; a longer wait means
/// that something is wrong with it.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

/// Why a request brought nothing.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel refused it.
    #[error("{0}")]
    Refused(io::Error),
    /// The socket failed, or no answer came within 5 seconds.
    #[error("netlink socket: {0}")]
    Socket(io::Error),
    /// The answer could not be read.
    #[error("unreadable answer of the kernel: {0}")]
    Answer(String),
}

impl NetlinkError {
    /// Whether the kernel refused because what was to be made exists.
    #[must_use]
    pub fn exists(&self) -> bool {
        matches!(self, Self::Refused(e) if e.raw_os_error() == Some(rustix::io::Errno::EXIST.raw_os_error()))
    }

    /// Whether the kernel refused because what was to be changed does not exist.
    #[must_use]
    pub fn missing(&self) -> bool {
        let gone = [rustix::io::Errno::NODEV, rustix::io::Errno::NOENT, rustix::io::Errno::INVAL];
        matches!(self, Self::Refused(e) if gone.iter().any(|g| e.raw_os_error() == Some(g.raw_os_error())))
    }
}

/// A link, as far as this program is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Index in its namespace.
    pub index: u32,
    /// Name in its namespace.
    pub name: String,
    /// Index of the bridge it is a port of.
    pub controller: Option<u32>,
    /// Whether frames of this bridge port are dropped unless their sender was put there by hand.
    pub locked: Option<bool>,
}

/// An open socket.
#[derive(Debug)]
pub struct Route {
    socket: OwnedFd,
    sequence: u32,
}

impl Route {
    /// Opens a socket into the calling thread's network namespace.
    pub fn open() -> Result<Self, NetlinkError> {
        let open = || -> rustix::io::Result<OwnedFd> {
            let socket = net::socket_with(
                net::AddressFamily::NETLINK,
                SocketType::RAW,
                SocketFlags::CLOEXEC,
                // Protocol 0 is NETLINK_ROUTE.
                None,
            )?;
            net::bind(&socket, &netlink::SocketAddrNetlink::new(0, 0))?;
            sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(ANSWER_DEADLINE))?;
            Ok(socket)
        };
        Ok(Self { socket: open().map_err(|e| NetlinkError::Socket(e.into()))?, sequence: 0 })
    }

    /// Sends a request and waits for the acknowledgement.
    pub fn request(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), NetlinkError> {
        self.exchange(message, NLM_F_REQUEST | NLM_F_ACK | flags).map(drop)
    }

    fn exchange(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        net::send(&self.socket, &bytes, SendFlags::empty())
            .map_err(|e| NetlinkError::Socket(e.into()))?;
        self.answers()
    }

    /// Collects what comes back until the acknowledgement or the end of a dump.
    fn answers(&mut self) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        let mut found = Vec::new();
        let mut buffer = vec![0_u8; 64 * 1024];
        loop {
            let (len, _) = net::recv(&self.socket, &mut buffer[..], RecvFlags::empty())
                .map_err(|e| NetlinkError::Socket(e.into()))?;
            let mut rest = &buffer[..len];
            while !rest.is_empty() {
                let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(|e| NetlinkError::Answer(e.to_string()))?;
                let length = (message.header.length as usize).next_multiple_of(4);
                rest = rest.get(length..).unwrap_or_default();
                // An answer to a request that was given up earlier.
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::Error(e) if e.code.is_none() => return Ok(found),
                    NetlinkPayload::Error(e) => return Err(NetlinkError::Refused(e.to_io())),
                    NetlinkPayload::Done(_) => return Ok(found),
                    NetlinkPayload::InnerMessage(inner) => found.push(inner),
                    _ => {}
                }
            }
        }
    }

    /// All links of the namespace.
    pub fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let all = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let answers = self.exchange(all, NLM_F_REQUEST | NLM_F_DUMP)?;
        Ok(answers.iter().filter_map(link_of).collect())
    }

    /// The link of this name.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let get = RouteNetlinkMessage::GetLink(message);
        match self.exchange(get, NLM_F_REQUEST | NLM_F_ACK) {
            Ok(answers) => Ok(answers.iter().find_map(link_of)),
            Err(e) if e.missing() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Makes a link of this kind, down.
    pub fn create_link(
        &mut self,
        name: &str,
        kind: InfoKind,
        data: Option<InfoData>,
        more: Vec<LinkAttribute>,
    ) -> Result<(), NetlinkError> {
        let mut info = vec![LinkInfo::Kind(kind)];
        info.extend(data.map(LinkInfo::Data));
        let mut message = LinkMessage::default();
        message.attributes =
            vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::LinkInfo(info)];
        message.attributes.extend(more);
        self.request(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Removes a link.
    pub fn delete_link(&mut self, index: u32) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.request(RouteNetlinkMessage::DelLink(message), 0)
    }

    /// Changes attributes of a link.
    pub fn change_link(
        &mut self,
        index: u32,
        attributes: Vec<LinkAttribute>,
    ) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = attributes;
        self.request(RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Sets a link up.
    pub fn up(&mut self, index: u32) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.request(RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Changes the bridge flags of a port. Goes through `NewLink`: `SetLink` takes no port data.
    pub fn change_port(
        &mut self,
        index: u32,
        flags: Vec<InfoBridgePort>,
    ) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = vec![LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(flags)),
        ])];
        self.request(RouteNetlinkMessage::NewLink(message), 0)
    }

    /// Gives a link an IPv4 address.
    pub fn add_address(
        &mut self,
        index: u32,
        address: Ipv4Addr,
        prefix: u8,
    ) -> Result<(), NetlinkError> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.index = index;
        message.header.prefix_len = prefix;
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
        message.attributes = vec![
            AddressAttribute::Local(address.into()),
            AddressAttribute::Address(address.into()),
            AddressAttribute::Broadcast(Ipv4Addr::from(address.to_bits() | !mask)),
        ];
        self.request(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
    }
}

/// The attribute that sets a link's own Ethernet address.
#[must_use]
pub fn address_attribute(mac: MacAddr) -> LinkAttribute {
    LinkAttribute::Address(mac.0.to_vec())
}

/// The attribute that keeps the kernel from giving a link an IPv6 address, and so from sending router
/// solicitations and multicast reports into a guest. Only for a link that exists. A kernel without IPv6
/// does not know it, and needs none.
#[must_use]
pub fn no_ipv6_attribute() -> Option<LinkAttribute> {
    let none = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    Path::new("/proc/sys/net/ipv6")
        .exists()
        .then(|| LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![none])]))
}

fn link_of(message: &RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = message else { return None };
    let mut link =
        Link { index: message.header.index, name: String::new(), controller: None, locked: None };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Controller(index) => link.controller = Some(*index),
            LinkAttribute::LinkInfo(infos) => link.locked = locked_of(infos),
            _ => {}
        }
    }
    Some(link)
}

fn locked_of(infos: &[LinkInfo]) -> Option<bool> {
    infos.iter().find_map(|info| match info {
        LinkInfo::PortData(InfoPortData::BridgePort(flags)) => {
            flags.iter().find_map(|flag| match flag {
                InfoBridgePort::Locked(on) => Some(*on),
                _ => None,
            })
        }
        _ => None,
    })
}
