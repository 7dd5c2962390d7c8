//! What the client's kernel has counted (as `nstat` shows it), and what it thinks of each connection (`ss -ti`).

use std::collections::BTreeMap;
use std::fs;

use super::World;

/// Counters of TCP that a move must leave alone. Each is a wait that somebody would feel, or a packet
/// that should not have been needed.
pub const UNTOUCHED: [&str; 10] = [
    "TcpRetransSegs",
    "TcpEstabResets",
    "TcpOutRsts",
    "TcpAttemptFails",
    "TcpExtTCPTimeouts",
    "TcpExtTCPLossProbes",
    "TcpExtTCPFastRetrans",
    "TcpExtTCPSlowStartRetrans",
    "TcpExtTCPLostRetransmit",
    "TcpExtTCPAbortOnTimeout",
];

/// A reading of all counters of the client's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters(BTreeMap<String, u64>);

impl Counters {
    /// Reads them now, from the files that `nstat` reads. No program is started for it: on a small machine that
    /// alone makes a client wait, in the middle of what is measured.
    #[must_use]
    pub fn read(world: &World) -> Self {
        let net = world.network_files("client");
        let read = |name: &str| {
            let path = net.join(name);
            fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
        };
        Self::parse(&(read("snmp") + &read("netstat")))
    }

    /// Pairs of lines, each with a group's name before a colon: names, then values. A counter is called by both.
    fn parse(text: &str) -> Self {
        let lines: Vec<&str> = text.lines().collect();
        let mut counters = BTreeMap::new();
        for pair in lines.chunks_exact(2) {
            let [names, values] = [pair[0], pair[1]].map(|line| line.split_once(": "));
            let (Some((group, names)), Some((_, values))) = (names, values) else { continue };
            for (name, value) in names.split(' ').zip(values.split(' ')) {
                if let Ok(value) = value.parse() {
                    counters.insert(format!("{group}{name}"), value);
                }
            }
        }
        Self(counters)
    }

    /// One of them; 0 if this kernel does not have it.
    #[must_use]
    pub fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// How much each of `names` has grown since `before`; only those that have.
    #[must_use]
    pub fn grown(&self, before: &Self, names: &[&str]) -> BTreeMap<String, u64> {
        names
            .iter()
            .map(|n| ((*n).to_owned(), self.get(n).saturating_sub(before.get(n))))
            .filter(|(_, grown)| *grown > 0)
            .collect()
    }
}

/// A connection as `ss -ti` shows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connection {
    /// Congestion window, in segments.
    pub cwnd: u32,
    /// Segments sent again so far.
    pub retransmitted: u32,
    /// Doublings of the timer that is running.
    pub backoff: u32,
}

/// Every established connection from the client to `service`, by the client's port.
#[must_use]
pub fn connections(world: &World, service: &str) -> BTreeMap<u16, Connection> {
    let filter = ["ss", "-tinOH", "state", "established", "dst", service];
    parse_ss(&world.exec("client", &filter))
}

fn parse_ss(text: &str) -> BTreeMap<u16, Connection> {
    let mut all = BTreeMap::new();
    for line in text.lines() {
        let mut fields = line.split_ascii_whitespace();
        // Recv-Q, Send-Q, local, peer.
        let local = fields.nth(2).and_then(|l| l.rsplit(':').next()?.parse().ok());
        let Some(port) = local else { continue };
        let mut connection = Connection::default();
        for field in fields {
            if let Some(cwnd) = field.strip_prefix("cwnd:") {
                connection.cwnd = cwnd.parse().unwrap_or(0);
            } else if let Some(both) = field.strip_prefix("retrans:") {
                let total = both.rsplit('/').next().unwrap_or_default();
                connection.retransmitted = total.parse().unwrap_or(0);
            } else if let Some(backoff) = field.strip_prefix("backoff:") {
                connection.backoff = backoff.parse().unwrap_or(0);
            }
        }
        all.insert(port, connection);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_two_groups() {
        let text = |again, timeouts| {
            format!(
                "Tcp: RtoMin MaxConn RetransSegs\nTcp: 200 -1 {again}\n\
                 TcpExt: TCPTimeouts TCPLossProbes\nTcpExt: {timeouts} 0\n"
            )
        };
        let (before, after) = (Counters::parse(&text(3, 0)), Counters::parse(&text(5, 1)));
        let grown = after.grown(&before, &UNTOUCHED);
        let expected = [("TcpExtTCPTimeouts", 1), ("TcpRetransSegs", 2)];
        assert_eq!(grown, expected.map(|(name, grown)| (name.to_owned(), grown)).into());
        assert_eq!(after.get("nonsense"), 0);
        assert_eq!(after.get("TcpRtoMin"), 200);
    }

    #[test]
    fn ss() {
        let text = "0 0 10.77.0.100:51516 10.77.0.50:7 cubic wscale:0,7 rto:201 backoff:2 rtt:0.5/0.2 \
                    mss:1460 cwnd:10 ssthresh:7 bytes_sent:64 bytes_retrans:1460 retrans:0/3 lastsnd:4\n\
                    0 64 10.77.0.100:51518 10.77.0.50:7 cubic cwnd:31\n";
        let all = parse_ss(text);
        assert_eq!(all[&51516], Connection { cwnd: 10, retransmitted: 3, backoff: 2 });
        assert_eq!(all[&51518], Connection { cwnd: 31, ..Connection::default() });
    }
}
