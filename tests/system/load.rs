//! Services of all kinds with their clients, to which nothing may happen.

use std::time::Duration;

use ferry_tests::harness::counters::Counters;
use ferry_tests::harness::{Client, World};

use crate::report;

/// How long a client may take to end.
const LIMIT: Duration = Duration::from_secs(90);

/// Image, port and client of each kind.
const KINDS: [(&str, u16, &[&str]); 4] = [
    ("pingpong", 7, &["pingpong", "--connections", "20", "--think-ms", "50"]),
    ("transfer", 80, &["download", "--bytes", "2000000", "--rate", "1000000", "--again"]),
    ("transfer", 80, &["upload", "--bytes", "2000000", "--rate", "1000000", "--again"]),
    ("pingpong", 7, &["hold", "--connections", "50"]),
];

pub struct Load {
    clients: Vec<Client>,
    before: Counters,
}

impl Load {
    /// Starts services s0, s1, ..., all on host a, and a client of each.
    pub fn start(world: &World, services: usize) -> Self {
        let before = Counters::read(world);
        let clients = (0..services)
            .map(|i| {
                let (image, port, arguments) = KINDS[i % KINDS.len()];
                let (name, ip) = (format!("s{i}"), format!("10.77.0.{}", 50 + i));
                let service = world.service(image, &name, "a", &ip, &[]);
                Client::start(world, &[arguments, &["--connect", &service.at(port)]].concat())
            })
            .collect();
        Self { clients, before }
    }

    /// Ends the clients: none has met a reset or a wrong byte, and neither has the kernel.
    pub fn end_flawlessly(self, world: &World) {
        for client in self.clients {
            let end = client.end(LIMIT);
            assert!(end.flawless(), "{end:?}");
            assert_eq!((end.resets, end.damaged), (0, 0));
            report(&format!(
                "{} x{}: longest gap of a connection {:.0} ms",
                end.client, end.connections, end.gap_ms.max
            ));
        }
        let names = ["TcpEstabResets", "TcpOutRsts", "TcpExtTCPAbortOnTimeout"];
        let grown = Counters::read(world).grown(&self.before, &names);
        assert!(grown.is_empty(), "{grown:?}");
    }
}
