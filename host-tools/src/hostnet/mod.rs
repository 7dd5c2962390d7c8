//! The host's side of a guest's network: its tap, the bridge port the tap is plugged into, and the
//! wire between the two.
//!
//! Everything here acts on the network namespace of the calling thread, through one netlink request
//! each ([`netlink`]) or a packet socket; no program is started. Names of links are the caller's, and everything can be
//! made anew over the leftovers of an agent that died.
//!
//! - [`Tap`]: the link QEMU opens.
//! - [`PortState`]: whether what the guest sends enters the bridge. A standby's port and the port of a
//!   source after the commit are closed: the kernel drops every frame of the guest before the bridge
//!   looks at it, so no answer leaves and no address is learned, whatever the guest does.
//! - [`TapWire`]: frames on their way to the guest, to be copied to a standby elsewhere, and frames from there.

pub mod mac;
pub mod netlink;
pub mod port;
pub mod tap;
pub mod wire;

pub use mac::{MacAddr, MacParseError};
pub use port::PortState;
pub use tap::Tap;
pub use wire::TapWire;

/// Longest name of a link in bytes (the kernel's IFNAMSIZ less its zero byte).
pub const LINK_NAME_MAX: usize = 15;

/// Why the host's network could not be changed. Nothing is rolled back: making the same thing again,
/// or removing it, is always possible.
#[derive(Debug, thiserror::Error)]
pub enum HostNetError {
    /// A name the kernel would refuse.
    #[error("\"{name}\" cannot be the name of a link: 1 to 15 bytes, no '/' and no blanks")]
    LinkName {
        /// The name.
        name: String,
    },
    /// A link that should be there is not.
    #[error("there is no link \"{name}\" in this network namespace")]
    NoSuchLink {
        /// The name.
        name: String,
    },
    /// `/dev/net/tun` could not be opened.
    #[error(
        "cannot open /dev/net/tun ({source}): is the module tun loaded, and may this user open it?"
    )]
    TunDevice {
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The kernel refused to make or remove a tap.
    #[error("cannot {action} tap \"{name}\": {source}")]
    TapRequest {
        /// "make" or "remove".
        action: &'static str,
        /// The tap.
        name: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A packet socket at a tap was refused.
    #[error(
        "cannot {action} the wire of tap \"{name}\": {source} (a packet socket needs CAP_NET_RAW)"
    )]
    Wire {
        /// "open" or "listen at".
        action: &'static str,
        /// The tap.
        name: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The kernel knows no way to close a bridge port.
    #[error(
        "bridge port \"{name}\" cannot be closed: Linux 5.17 or newer is needed (port flag \"locked\")"
    )]
    PortLock {
        /// The tap.
        name: String,
    },
    /// A netlink request failed.
    #[error("cannot {action}: {source}")]
    Netlink {
        /// What was asked for.
        action: String,
        /// What came back.
        source: netlink::NetlinkError,
    },
}

/// Checks a name before the kernel sees it, so that a too long one is an error and not cut.
pub(crate) fn check_link_name(name: &str) -> Result<(), HostNetError> {
    let good = !name.is_empty()
        && name.len() <= LINK_NAME_MAX
        && name != "."
        && name != ".."
        && !name.bytes().any(|b| b == b'/' || b == b':' || b.is_ascii_whitespace() || b == 0);
    if good { Ok(()) } else { Err(HostNetError::LinkName { name: name.to_owned() }) }
}

/// Removes every link whose name begins with `prefix`: what an agent that died has left behind.
/// Returns the names.
pub fn remove_links_with_prefix(prefix: &str) -> Result<Vec<String>, HostNetError> {
    let fail = |action: String| {
        move |source: netlink::NetlinkError| HostNetError::Netlink { action, source }
    };
    let mut route = netlink::Route::open().map_err(fail("open a netlink socket".into()))?;
    let mut removed = Vec::new();
    for link in route.links().map_err(fail("list the links".into()))? {
        if link.name.starts_with(prefix) {
            route
                .delete_link(link.index)
                .map_err(fail(format!("remove the link \"{}\"", link.name)))?;
            removed.push(link.name);
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_kernel_would_cut_or_refuse_are_errors() {
        for bad in ["", ".", "..", "a/b", "a b", "a:1", "sixteen-bytes-xx"] {
            assert!(check_link_name(bad).is_err(), "{bad:?}");
        }
        for good in ["br0", "fifteen-bytes-x", "t.1"] {
            assert!(check_link_name(good).is_ok(), "{good:?}");
        }
    }
}
