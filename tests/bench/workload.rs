//! What clients do while a service moves.

use std::time::Duration;

use ferry_tests::client::End;
use ferry_tests::harness::{Client, World};

use crate::mover::IP;

/// How long clients may take to end.
const END_LIMIT: Duration = Duration::from_secs(120);

/// A client, and the service it talks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// Messages of 64 bytes to the echo service over so many connections, one on the way per connection. From 1,000
    /// on there are 1,000 messages a second in all, as people would send them: without a pause the service's own
    /// queue would be longer than any move.
    PingPong(usize),
    /// So many connections, all but one of which say nothing. The one plays ping-pong: by it gaps are seen.
    Idle(usize),
    Download,
    Upload,
}

impl Workload {
    /// As the report names it.
    pub fn name(self) -> String {
        match self {
            Self::PingPong(1) => "ping-pong, 1 connection".into(),
            Self::PingPong(count) => format!("ping-pong, {count} connections"),
            Self::Idle(count) => format!("{count} idle connections"),
            Self::Download => "download".into(),
            Self::Upload => "upload".into(),
        }
    }

    /// The service.
    pub fn service(self) -> &'static str {
        if self.is_bulk() { "transfer" } else { "pingpong" }
    }

    /// Whether what counts is the rate.
    pub fn is_bulk(self) -> bool {
        matches!(self, Self::Download | Self::Upload)
    }

    /// How many connections are open.
    pub fn connections(self) -> usize {
        match self {
            Self::PingPong(count) | Self::Idle(count) => count,
            Self::Download | Self::Upload => 1,
        }
    }
}

/// The clients of a workload.
pub struct Clients {
    /// The one whose gaps are measured.
    pub measured: Client,
    idle: Option<Client>,
}

impl Clients {
    /// Starts them; their connections are open when this returns.
    pub fn start(world: &World, workload: Workload) -> Self {
        let at = |port| format!("{IP}:{port}");
        let pingpong = |count: usize| {
            let (count, think_ms) =
                (count.to_string(), if count < 1000 { 0 } else { count }.to_string());
            let to = at(7);
            let arguments = ["pingpong", "--size", "64", "--connect", &to, "--connections", &count];
            Client::start(world, &[&arguments[..], &["--think-ms", &think_ms]].concat())
        };
        let bulk = |kind| {
            Client::start(world, &[kind, "--connect", &at(80), "--bytes", "50000000", "--again"])
        };
        let (measured, idle) = match workload {
            Workload::PingPong(count) => (pingpong(count), None),
            Workload::Idle(count) => {
                let (count, to) = ((count - 1).to_string(), at(7));
                let idle =
                    Client::start(world, &["hold", "--connect", &to, "--connections", &count]);
                (pingpong(1), Some(idle))
            }
            Workload::Download => (bulk("download"), None),
            Workload::Upload => (bulk("upload"), None),
        };
        Self { measured, idle }
    }

    /// Ends them. Idle connections prove that they live.
    pub fn end(self) -> Vec<End> {
        let idle = self.idle.map(|idle| idle.end(END_LIMIT));
        [Some(self.measured.end(END_LIMIT)), idle].into_iter().flatten().collect()
    }
}
