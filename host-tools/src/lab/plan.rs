//! Who is in a lab, and with which address: pure arithmetic.

use std::net::Ipv4Addr;

/// Prefix length of the lab's segment, 10.77.0.0/24.
pub const PREFIX: u8 = 24;
/// The address of the first manager; others have the next.
const MANAGER_IP: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// The address of the first member of etcd; others have the next.
const STORE_IP: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 5);
/// Most managers a lab can have, and as many members of etcd.
pub const MANAGERS_MAX: u8 = 3;
/// The client's address.
pub const CLIENT_IP: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);
/// Port of the manager's API.
pub const MANAGER_PORT: u16 = 7700;
/// Port of an agent's API.
pub const AGENT_PORT: u16 = 7701;
/// The bridge of a host that its guests are plugged into.
pub const HOST_BRIDGE: &str = "br0";
/// The bridge that stands for the switch between the nodes.
pub const SWITCH_BRIDGE: &str = "sw0";
/// Most hosts a lab can have: one letter each.
pub const HOSTS_MAX: u8 = 26;

/// What a node is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The segment all others are attached to; no address.
    Switch,
    /// Where a manager runs.
    Manager,
    /// Where a member of etcd runs.
    Store,
    /// An ordinary Linux machine.
    Client,
    /// A machine that runs an agent and guests.
    Host,
}

/// One network namespace.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Node {
    /// How the user calls it.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Its address; the switch has none.
    pub ip: Option<Ipv4Addr>,
}

impl Node {
    /// The link of this node that its address is on.
    #[must_use]
    pub fn device(&self) -> &'static str {
        match self.role {
            Role::Switch => SWITCH_BRIDGE,
            Role::Manager | Role::Store | Role::Client => "eth0",
            Role::Host => HOST_BRIDGE,
        }
    }

    /// The name of the switch's port that leads to this node.
    #[must_use]
    pub fn switch_port(&self) -> String {
        format!("to-{}", self.name)
    }
}

fn after(first: Ipv4Addr, place: u8) -> Ipv4Addr {
    Ipv4Addr::from_bits(first.to_bits() + u32::from(place))
}

/// All nodes of a lab with this many hosts and managers, the switch first. `hosts` is 1 to [`HOSTS_MAX`],
/// `managers` 1 to [`MANAGERS_MAX`]; with more than one there are as many members of etcd.
#[must_use]
pub fn nodes(hosts: u8, managers: u8) -> Vec<Node> {
    let node = |name: &str, role, ip| Node { name: name.to_owned(), role, ip };
    let mut nodes = vec![node("switch", Role::Switch, None)];
    let managers = managers.clamp(1, MANAGERS_MAX);
    if managers > 1 {
        for i in 0..managers {
            let name = format!("etcd{}", i + 1);
            nodes.push(node(&name, Role::Store, Some(after(STORE_IP, i))));
        }
    }
    for i in 0..managers {
        let name = if i == 0 { "manager".to_owned() } else { format!("manager{}", i + 1) };
        nodes.push(node(&name, Role::Manager, Some(after(MANAGER_IP, i))));
    }
    nodes.push(node("client", Role::Client, Some(CLIENT_IP)));
    for i in 0..hosts.min(HOSTS_MAX) {
        let name = char::from(b'a' + i).to_string();
        nodes.push(node(&name, Role::Host, Some(Ipv4Addr::new(10, 77, 0, 11 + i))));
    }
    nodes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_of_the_documentation_and_differ() {
        let all = nodes(HOSTS_MAX, MANAGERS_MAX);
        let find = |name: &str| all.iter().find(|n| n.name == name).and_then(|n| n.ip);
        assert_eq!(find("a"), Some(Ipv4Addr::new(10, 77, 0, 11)));
        assert_eq!(find("z"), Some(Ipv4Addr::new(10, 77, 0, 36)));
        assert_eq!(find("client"), Some(CLIENT_IP));
        let mut ips: Vec<_> = all.iter().filter_map(|n| n.ip).collect();
        ips.sort();
        ips.dedup();
        assert_eq!(ips.len(), all.len() - 1);
        assert!(all.iter().all(|n| n.switch_port().len() <= crate::hostnet::LINK_NAME_MAX));
    }
}
