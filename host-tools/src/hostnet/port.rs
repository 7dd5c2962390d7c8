//! Bridge ports, open and closed.

use netlink_packet_route::link::InfoBridgePort;

use super::HostNetError;
use super::netlink::Route;

/// Whether what a guest sends enters the bridge. Frames *to* the guest flow in both states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortState {
    /// A normal port: forwards and learns.
    Open,
    /// Fenced: every frame of the guest is dropped before the bridge looks at it, and no address is
    /// learned from it. Survives QEMU coming and going, unlike the port states of spanning tree.
    Closed,
}

impl PortState {
    fn flags(self) -> Vec<InfoBridgePort> {
        match self {
            Self::Open => vec![InfoBridgePort::Learning(true), InfoBridgePort::Locked(false)],
            // A locked port lets a sender pass that the bridge knows to be there: forget those, after
            // the port has stopped learning.
            Self::Closed => vec![
                InfoBridgePort::Learning(false),
                InfoBridgePort::Locked(true),
                InfoBridgePort::Flush,
            ],
        }
    }
}

/// Sets the state of a port and reads it back.
pub(super) fn set(
    route: &mut Route,
    index: u32,
    name: &str,
    state: PortState,
) -> Result<(), HostNetError> {
    let fail = |source| HostNetError::Netlink {
        action: match state {
            PortState::Open => format!("open the bridge port \"{name}\""),
            PortState::Closed => format!("close the bridge port \"{name}\""),
        },
        source,
    };
    route.change_port(index, state.flags()).map_err(fail)?;
    if state == PortState::Closed {
        // A kernel without the flag accepts and ignores it.
        let link = route.link(name).map_err(fail)?;
        if link.and_then(|l| l.locked) != Some(true) {
            return Err(HostNetError::PortLock { name: name.to_owned() });
        }
    }
    Ok(())
}
