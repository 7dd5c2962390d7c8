//! What a holder must know of each connection.
//!
//! The guest lists its connections at the very moment of the freeze; the agent makes a [`HeldTable`] of
//! the list, and it travels in the snapshot's metadata. A connection is one JSON array, `["10.0.0.9",
//! 51516, 80, 4711, 815]`: client's address and port, our port, SND.NXT, RCV.NXT.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use ferry_protocol::control::{Connection, TcpState};
use serde::{Deserialize, Serialize};

/// Connections in a table, at most.
pub const MAX_CONNECTIONS: usize = 1 << 16;
/// Listening ports in a table, at most.
pub const MAX_PORTS: usize = 1 << 10;

/// Why a list of connections cannot be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum TableError {
    #[error("{count} connections cannot be held: the most is {MAX_CONNECTIONS}")]
    Connections { count: usize },
    #[error("{count} listening ports cannot be held: the most is {MAX_PORTS}")]
    Ports { count: usize },
    #[error("a connection at {found} is not one of the service at {own}")]
    Address { found: Ipv4Addr, own: Ipv4Addr },
    #[error("a connection between {remote}:{remote_port} and port {local_port} cannot be")]
    Ends { remote: Ipv4Addr, remote_port: u16, local_port: u16 },
}

/// A connection in a synchronised state, or in TIME-WAIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Row", into = "Row")]
pub struct HeldConnection {
    /// Client's address.
    pub remote: Ipv4Addr,
    /// Client's port.
    pub remote_port: u16,
    /// The service's port.
    pub local_port: u16,
    /// SND.NXT: one past the highest sequence number the service has sent.
    pub send_next: u32,
    /// RCV.NXT: all before it the service has received.
    pub recv_next: u32,
}

type Row = (Ipv4Addr, u16, u16, u32, u32);

impl From<Row> for HeldConnection {
    fn from((remote, remote_port, local_port, send_next, recv_next): Row) -> Self {
        Self { remote, remote_port, local_port, send_next, recv_next }
    }
}

impl From<HeldConnection> for Row {
    fn from(it: HeldConnection) -> Self {
        (it.remote, it.remote_port, it.local_port, it.send_next, it.recv_next)
    }
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldTable {
    /// The connections.
    pub connections: Vec<HeldConnection>,
    /// Ports somebody listens on.
    pub ports: Vec<u16>,
}

impl HeldTable {
    /// From what a guest says of itself. Its service's address is `own`.
    ///
    /// # Errors
    /// The first line that cannot be true.
    pub fn from_guest(own: Ipv4Addr, listed: &[Connection]) -> Result<Self, TableError> {
        let mut table = Self::default();
        let mut places = HashMap::new();
        for line in listed {
            let found = Ipv4Addr::from(line.local);
            if found != own {
                return Err(TableError::Address { found, own });
            }
            match line.state {
                TcpState::Listen => table.ports.push(line.local_port),
                TcpState::SynSent | TcpState::SynReceived | TcpState::Closed => {}
                state => {
                    let connection = HeldConnection {
                        remote: line.remote.into(),
                        remote_port: line.remote_port,
                        local_port: line.local_port,
                        send_next: line.send_next,
                        recv_next: line.recv_next,
                    };
                    let ends = (line.remote, line.remote_port, line.local_port);
                    match places.get(&ends) {
                        // Opened anew out of TIME-WAIT: the newer one is the connection.
                        Some(_) if state == TcpState::TimeWait => {}
                        Some(&place) => table.connections[place] = connection,
                        None => {
                            places.insert(ends, table.connections.len());
                            table.connections.push(connection);
                        }
                    }
                }
            }
        }
        table.ports.sort_unstable();
        table.ports.dedup();
        table.check(own)?;
        Ok(table)
    }

    /// Checks a table that comes from somebody else.
    ///
    /// # Errors
    /// The first thing that cannot be true.
    pub fn check(&self, own: Ipv4Addr) -> Result<(), TableError> {
        let (count, ports) = (self.connections.len(), self.ports.len());
        if count > MAX_CONNECTIONS {
            return Err(TableError::Connections { count });
        }
        if ports > MAX_PORTS {
            return Err(TableError::Ports { count: ports });
        }
        for &HeldConnection { remote, remote_port, local_port, .. } in &self.connections {
            let host = !remote.is_multicast() && !remote.is_broadcast() && !remote.is_unspecified();
            if !host || remote == own || remote_port == 0 || local_port == 0 {
                return Err(TableError::Ends { remote, remote_port, local_port });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferry_protocol::control::Role;

    const OWN: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 50);

    fn line(state: TcpState, remote_port: u16, send_next: u32) -> Connection {
        Connection {
            local: OWN.octets(),
            local_port: 7,
            remote: if state == TcpState::Listen { [0; 4] } else { [10, 77, 0, 100] },
            remote_port,
            state,
            role: Role::Idle,
            recv_queue: 0,
            send_queue: 0,
            send_next,
            recv_next: 9,
        }
    }

    #[test]
    fn what_is_held_is_what_a_peer_takes_for_open() {
        use TcpState as S;
        let listed = [
            line(S::Listen, 0, 0),
            line(S::Listen, 0, 0),
            line(S::Established, 1, 10),
            line(S::SynReceived, 2, 20),
            line(S::LastAck, 3, 30),
            line(S::TimeWait, 1, 5),
            line(S::TimeWait, 4, 40),
            line(S::Closed, 5, 50),
        ];
        let table = HeldTable::from_guest(OWN, &listed).unwrap();
        let seen: Vec<(u16, u32)> =
            table.connections.iter().map(|it| (it.remote_port, it.send_next)).collect();
        assert_eq!(seen, [(1, 10), (3, 30), (4, 40)]);
        assert_eq!(table.ports, [7]);
        let mut other_order = listed;
        other_order.reverse();
        let table = HeldTable::from_guest(OWN, &other_order).unwrap();
        assert!(table.connections.iter().any(|it| (it.remote_port, it.send_next) == (1, 10)));
    }

    #[test]
    fn a_row_is_an_array() {
        let connection = HeldConnection {
            remote: Ipv4Addr::new(10, 0, 0, 9),
            remote_port: 51516,
            local_port: 80,
            send_next: u32::MAX,
            recv_next: 815,
        };
        let json = serde_json::to_string(&connection).unwrap();
        assert_eq!(json, r#"["10.0.0.9",51516,80,4294967295,815]"#);
        assert_eq!(serde_json::from_str::<HeldConnection>(&json).unwrap(), connection);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let mut foreign = line(TcpState::Established, 1, 1);
        foreign.local = [10, 77, 0, 51];
        let refused = HeldTable::from_guest(OWN, &[foreign]);
        assert!(matches!(refused, Err(TableError::Address { .. })), "{refused:?}");
        for remote in [[0; 4], [255; 4], [224, 0, 0, 1], OWN.octets()] {
            let bad = Connection { remote, ..line(TcpState::Established, 1, 1) };
            let refused = HeldTable::from_guest(OWN, &[bad]);
            assert!(matches!(refused, Err(TableError::Ends { .. })), "{refused:?}");
        }
        let refused = HeldTable::from_guest(OWN, &[line(TcpState::Established, 0, 1)]);
        assert!(matches!(refused, Err(TableError::Ends { .. })), "{refused:?}");
        let row = HeldConnection::from((Ipv4Addr::new(10, 0, 0, 9), 1, 1, 1, 1));
        let many = HeldTable { connections: vec![row; MAX_CONNECTIONS + 1], ports: vec![] };
        assert_eq!(many.check(OWN), Err(TableError::Connections { count: MAX_CONNECTIONS + 1 }));
        let many = HeldTable { connections: vec![], ports: vec![1; MAX_PORTS + 1] };
        assert_eq!(many.check(OWN), Err(TableError::Ports { count: MAX_PORTS + 1 }));
    }
}
