//! A host that nobody commands any more: its services stand still until somebody does.

use std::time::{Duration, Instant};

use ferry_tests::harness::capture::Capture;
use ferry_tests::harness::counters::Counters;
use ferry_tests::harness::{Client, World};
use ferry_tests::trace::packet::Packet;
use rustix::process::Signal;

use crate::{IP, report, signal};

/// The lease of the hosts in the lab.
const LEASE: &str = "3s";
/// How long the manager is stopped.
const SILENCE: Duration = Duration::from_secs(10);
/// Longest time for anything to happen.
const LIMIT: Duration = Duration::from_secs(60);
/// How long the service must have been silent at least: the rest of that time is the lease, and what it takes to
/// stop and to go on.
const SILENT: Duration = Duration::from_secs(5);

#[test]
fn a_service_is_silent_while_its_host_has_no_manager_and_goes_on_with_its_connections() {
    let scratch = env!("CARGO_TARGET_TMPDIR");
    let world = World::with_environment(scratch, "lease", 2, &[("FERRY_LEASE", LEASE)]);
    let service = world.service("pingpong", "p", "a", IP, &[]);
    let before = Counters::read(&world);
    let capture = Capture::start(&world, IP);
    let client = Client::start(
        &world,
        &["pingpong", "--connections", "20", "--think-ms", "50", "--connect", &service.at(7)],
    );
    signal(&world, "manager", Signal::STOP);
    std::thread::sleep(SILENCE);
    signal(&world, "manager", Signal::CONT);
    // It can be commanded again, and its connections go on.
    let begun = Instant::now();
    while world.json(&["inspect", "p"])["state"] != "running" {
        assert!(begun.elapsed() < LIMIT, "it does not go on");
    }
    // The other host lost its lease too, and has it again when its own next report is answered.
    loop {
        let (code, out, err) = service.try_migrate("b");
        if code == Some(0) {
            break;
        }
        assert!(err.contains("has lost the manager"), "{out}{err}");
        assert!(begun.elapsed() < LIMIT, "node b does not go on");
    }
    let end = client.end(LIMIT);
    assert!(end.flawless(), "{end:?}");
    assert_eq!((end.connections, end.resets, end.damaged), (20, 0, 0));

    let spoken: Vec<Duration> = capture
        .end()
        .iter()
        .filter_map(|packet| match packet {
            Packet::Tcp(segment) if segment.from.0 == service.ip() => Some(segment.at),
            _ => None,
        })
        .collect();
    let silent = spoken.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).max();
    let silent = silent.expect("it has answered its clients");
    report(&format!("the service was silent for {:.1} s", silent.as_secs_f64()));
    assert!(silent >= SILENT, "it spoke without a lease: silent for {silent:?} only");
    let names = ["TcpEstabResets", "TcpOutRsts", "TcpExtTCPAbortOnTimeout"];
    let grown = Counters::read(&world).grown(&before, &names);
    assert!(grown.is_empty(), "{grown:?}");
}
