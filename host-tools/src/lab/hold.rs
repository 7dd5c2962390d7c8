//! The process that keeps a node alive: it makes the node's namespace and network, says so, and waits
//! to be ended.

use std::fs;
use std::io::Write;
use std::net::Ipv4Addr;
use std::process::ExitCode;

use netlink_packet_route::link::{
    BridgeStpState, InfoBridge, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkMessage,
};

use super::LabError;
use super::namespace::{self, Mode};
use super::plan::{self, Node, Role};
use crate::hostnet::netlink::{NetlinkError, Route, address_attribute};
use crate::hostnet::{HostNetError, MacAddr};

/// What the holder prints when its node is ready; anything else is the reason why it is not.
pub const READY: &str = "ready";

/// Of the hidden command `lab hold`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The lab's directory; here only so that `lab down` can recognise the process
    #[arg(long)]
    pub dir: String,
    /// The node, as JSON
    #[arg(long)]
    pub node: String,
    /// Make a user namespace, or join that of the switch
    #[arg(long)]
    pub user_namespace: bool,
    /// The switch's holder; none for the switch itself
    #[arg(long)]
    pub switch: Option<i32>,
}

/// Makes the node and waits for the end.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    // Ctrl-C at the terminal of `lab up` is not for the lab. A session would also be a scheduling group (`sched(7)`,
    // "autogroup"): priorities would mean nothing between the hosts, which share one machine here.
    let _ = rustix::process::setpgid(None, None);
    let mut out = std::io::stdout();
    match make(args) {
        Ok(()) => {
            let said = writeln!(out, "{READY}").and_then(|()| out.flush());
            if said.is_err() {
                // `lab up` is gone; nobody will ever use this node.
                return ExitCode::FAILURE;
            }
            loop {
                std::thread::park();
            }
        }
        Err(error) => {
            let _ = writeln!(out, "{error}");
            ExitCode::FAILURE
        }
    }
}

fn make(args: &Args) -> Result<(), LabError> {
    let node: Node = serde_json::from_str(&args.node)
        .map_err(|e| LabError::Holder { node: args.node.clone(), why: e.to_string() })?;
    let mode = if args.user_namespace { Mode::User } else { Mode::Root };
    match args.switch {
        None => namespace::found(mode)?,
        Some(switch) => namespace::join_and_make_network(mode, switch)?,
    }
    quiet();
    let failed = |source| LabError::Wire { node: node.name.clone(), source };
    match args.switch {
        None => make_bridge(plan::SWITCH_BRIDGE, None).map_err(failed),
        Some(switch) => {
            plug_in(&node, switch)?;
            address(&node).map_err(failed)
        }
    }
}

/// Frames that only the kernel's own habits would cause do not belong on the lab's segment, and frames
/// between bridge ports are none of the packet filter's business. A kernel built without one of these
/// does not have the habit.
fn quiet() {
    for (name, value) in [
        ("net/ipv6/conf/all/disable_ipv6", "1"),
        ("net/ipv6/conf/default/disable_ipv6", "1"),
        ("net/bridge/bridge-nf-call-iptables", "0"),
        ("net/bridge/bridge-nf-call-ip6tables", "0"),
        ("net/bridge/bridge-nf-call-arptables", "0"),
    ] {
        let _ = fs::write(format!("/proc/sys/{name}"), value);
    }
}

fn asked<T>(action: &str, result: Result<T, NetlinkError>) -> Result<T, HostNetError> {
    result.map_err(|source| HostNetError::Netlink { action: action.to_owned(), source })
}

fn index_of(route: &mut Route, name: &str) -> Result<u32, HostNetError> {
    asked(&format!("look for \"{name}\""), route.link(name))?
        .map(|link| link.index)
        .ok_or_else(|| HostNetError::NoSuchLink { name: name.to_owned() })
}

/// Makes a bridge that forwards at once (no spanning tree, no delay) and sends every multicast to all.
fn make_bridge(name: &str, mac: Option<MacAddr>) -> Result<(), HostNetError> {
    let mut route = asked("open a netlink socket", Route::open())?;
    let loopback = index_of(&mut route, "lo")?;
    asked("bring up lo", route.up(loopback))?;
    let data = InfoData::Bridge(vec![
        InfoBridge::StpState(BridgeStpState::Disabled),
        InfoBridge::ForwardDelay(0),
        InfoBridge::MulticastSnooping(false),
    ]);
    // With an address of its own, a bridge does not take another one when a tap comes or goes.
    let more = mac.map(address_attribute).into_iter().collect();
    let made = route.create_link(name, InfoKind::Bridge, Some(data), more);
    asked(&format!("make the bridge \"{name}\""), made)?;
    let index = index_of(&mut route, name)?;
    asked(&format!("bring up the bridge \"{name}\""), route.up(index))
}

/// Lays the cable to the switch.
fn plug_in(node: &Node, switch: i32) -> Result<(), LabError> {
    let failed = |source| LabError::Wire { node: node.name.clone(), source };
    let own = cable(node);
    let port = node.switch_port();
    let lay = || -> Result<(), HostNetError> {
        let mut route = asked("open a netlink socket", Route::open())?;
        let mut peer = LinkMessage::default();
        peer.attributes = vec![
            LinkAttribute::IfName(port.clone()),
            LinkAttribute::NetNsPid(switch.cast_unsigned()),
        ];
        let data = InfoData::Veth(InfoVeth::Peer(peer));
        let mac = node.ip.filter(|_| node.role != Role::Host).map(mac_of);
        let more = mac.map(address_attribute).into_iter().collect();
        asked(
            "make the cable to the switch",
            route.create_link(own, InfoKind::Veth, Some(data), more),
        )
    };
    lay().map_err(failed)?;
    let plug = || -> Result<(), HostNetError> {
        let mut route = asked("open a netlink socket", Route::open())?;
        let bridge = index_of(&mut route, plan::SWITCH_BRIDGE)?;
        let index = index_of(&mut route, &port)?;
        let into = vec![LinkAttribute::Controller(bridge)];
        asked("plug the cable into the switch", route.change_link(index, into))?;
        asked("bring up the switch's port", route.up(index))
    };
    namespace::within_network(switch, plug)?.map_err(failed)
}

/// Brings up the node's own end, behind a bridge where guests live, and gives it the address.
fn address(node: &Node) -> Result<(), HostNetError> {
    let mut route = asked("open a netlink socket", Route::open())?;
    let index = index_of(&mut route, cable(node))?;
    if node.role == Role::Host {
        make_bridge(node.device(), node.ip.map(mac_of))?;
        let bridge = index_of(&mut route, node.device())?;
        let into = vec![LinkAttribute::Controller(bridge)];
        asked("plug the cable into the bridge", route.change_link(index, into))?;
    } else {
        let loopback = index_of(&mut route, "lo")?;
        asked("bring up lo", route.up(loopback))?;
    }
    asked("bring up the cable", route.up(index))?;
    if let Some(ip) = node.ip {
        let device = index_of(&mut route, node.device())?;
        asked(&format!("set the address {ip}"), route.add_address(device, ip, plan::PREFIX))?;
    }
    Ok(())
}

/// The node's end of its cable.
fn cable(node: &Node) -> &'static str {
    if node.role == Role::Host { "up0" } else { "eth0" }
}

/// Locally administered, and readable in a trace: the last byte is that of the IP address.
fn mac_of(ip: Ipv4Addr) -> MacAddr {
    MacAddr([0x02, 0xfe, 0, 0, 0, ip.octets()[3]])
}
