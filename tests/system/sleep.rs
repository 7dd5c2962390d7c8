//! A service sleeps in the repository, and none of its clients gives up.

use std::process::Stdio;
use std::time::{Duration, Instant};

use ferry_tests::client::End;
use ferry_tests::harness::counters::Counters;
use ferry_tests::harness::{Client, World};

use crate::{IP, report, world};

/// Address of a second service.
const OTHER_IP: &str = "10.77.0.51";
/// Time for a client to end once its service runs again: it finishes what it is at.
const END_LIMIT: Duration = Duration::from_secs(120);
/// What no client's kernel may count while its service sleeps.
const UNTOUCHED: [&str; 6] = [
    "TcpEstabResets",
    "TcpOutRsts",
    "TcpAttemptFails",
    "TcpExtTCPAbortOnTimeout",
    "TcpExtTCPAbortOnData",
    "TcpExtTCPKeepAliveFailed",
];

/// How long a service sleeps.
fn night() -> Duration {
    let seconds = std::env::var("FERRY_TEST_SLEEP").ok().and_then(|n| n.parse().ok());
    Duration::from_secs(seconds.unwrap_or(40))
}

/// A client whose patience outlasts the night.
fn client(world: &World, arguments: &[&str]) -> Client {
    let patience = (night() + Duration::from_secs(120)).as_secs().to_string();
    Client::start(world, &[arguments, &["--patience", &patience]].concat())
}

fn flawless(end: &End) {
    assert!(end.flawless(), "{end:?}");
    assert_eq!((end.resets, end.damaged), (0, 0), "{end:?}");
    report(&format!(
        "{} x{}: {} round trips, longest wait of a connection: median {:.0} ms, max {:.0} ms",
        end.client, end.connections, end.round_trips, end.gap_ms.median, end.gap_ms.max,
    ));
}

/// How many connections a sleeping service has, and how many probes were answered.
fn held(world: &World, name: &str) -> (u64, u64) {
    let seen = world.json(&["inspect", name]);
    assert_eq!(seen["state"], "suspended", "{seen}");
    assert_eq!(seen.get("reason"), None, "{seen}");
    let counts = &seen["sleep"]["holder"]["counts"];
    assert_eq!(counts["closed"], 0, "a client has given up: {seen}");
    (counts["connections"].as_u64().unwrap(), counts["answers"].as_u64().unwrap())
}

fn nothing_runs(world: &World) {
    for host in ["a", "b"] {
        assert!(world.guests(host).is_empty(), "a guest is left on {host}");
    }
}

#[test]
fn a_thousand_connections_of_all_kinds_outlast_it() {
    let world = world("sleep");
    let echo = world.service("pingpong", "pp", "a", IP, &[]);
    let bulk = world.service("transfer", "tr", "a", OTHER_IP, &[]);
    let (to_echo, to_bulk) = (echo.at(7), bulk.at(80));
    let before = Counters::read(&world);
    let idle = ["hold", "--connect", &to_echo, "--connections", "400"];
    let probing = [&idle[..], &["--keep-alive", "5"]].concat();
    let busy = ["pingpong", "--connect", &to_echo, "--connections", "192", "--think-ms", "200"];
    let rate = ["--connections", "4", "--bytes", "20000000", "--rate", "2000000", "--again"];
    let mut idle = client(&world, &idle);
    let mut probing = client(&world, &probing);
    let mut busy = client(&world, &busy);
    let mut down = client(&world, &[&["download", "--connect", &to_bulk][..], &rate].concat());
    let mut up = client(&world, &[&["upload", "--connect", &to_bulk][..], &rate].concat());
    assert_eq!((idle.mark("awake").alive, probing.mark("awake").alive), (400, 400));
    for client in [&mut busy, &mut down, &mut up] {
        client.mark("begun");
    }
    std::thread::sleep(Duration::from_secs(2));

    let began = Instant::now();
    for (name, connections) in [("pp", 992), ("tr", 8)] {
        let made = world.json(&["suspend", name]);
        assert_eq!(made["connections"], connections, "{made}");
        assert_eq!((&made["holder"], made.get("unheld")), (&"a".into(), None), "{made}");
    }
    nothing_runs(&world);
    while began.elapsed() < night() {
        std::thread::sleep(Duration::from_secs(5).min(night() - began.elapsed().min(night())));
        let seen = [held(&world, "pp"), held(&world, "tr")];
        assert_eq!((seen[0].0, seen[1].0), (992, 8));
    }
    let (answered, answered_bulk) = (held(&world, "pp").1, held(&world, "tr").1);
    report(&format!(
        "asleep for {:.0} s: {answered} and {answered_bulk} probes were answered",
        began.elapsed().as_secs_f64()
    ));
    assert!(answered > 0 && answered_bulk > 0);
    let grown = Counters::read(&world).grown(&before, &UNTOUCHED);
    assert!(grown.is_empty(), "{grown:?}");

    for client in [&mut busy, &mut down, &mut up] {
        client.mark("asleep");
    }
    for name in ["pp", "tr"] {
        let began = Instant::now();
        let woken = world.json(&["resume", name, "--on", "b"]);
        report(&format!("{name}: resumed in {} ms", began.elapsed().as_millis()));
        assert_eq!(woken["service"]["node"], "b", "{woken}");
        assert_eq!(woken["service"]["state"], "running", "{woken}");
    }
    for client in [&mut idle, &mut probing] {
        let seen = client.mark("awake again");
        assert_eq!(seen.alive, 400, "{seen:?}");
    }
    std::thread::sleep(Duration::from_secs(5));
    for client in [&mut busy, &mut down, &mut up] {
        let seen = client.mark("moving again");
        assert!(seen.progress > 0, "{seen:?}");
    }
    for client in [idle, probing, busy, down, up] {
        flawless(&client.end(END_LIMIT));
    }
    let grown = Counters::read(&world).grown(&before, &UNTOUCHED);
    assert!(grown.is_empty(), "{grown:?}");
}

#[test]
fn a_new_client_waits_is_refused_or_wakes_it() {
    let world = world("wake");
    let service = world.service("pingpong", "pp", "a", IP, &[]);
    let at = service.at(7);
    let mut idle = client(&world, &["hold", "--connect", &at, "--connections", "10"]);
    let newcomer = ["pingpong", "--connect", &at, "--connections", "1", "--seconds", "1"];
    assert_eq!(idle.mark("before").alive, 10);

    // Refused at once.
    world.run(&["suspend", "pp", "--on-syn", "refuse"]);
    nothing_runs(&world);
    let refused = Client::command(&world, &newcomer).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stdout).into_owned();
    assert!(!refused.status.success() && said.contains("reset by the peer (connect)"), "{said}");
    assert_eq!(world.json(&["inspect", "pp"])["state"], "suspended");
    world.run(&["resume", "pp"]);
    assert_eq!(service.node(), "a");
    assert_eq!(idle.mark("after a refusal").alive, 10);

    // Held until it is back.
    world.run(&["suspend", "pp"]);
    let mut waiting = Client::command(&world, &newcomer);
    let waiting = waiting.stdout(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(world.json(&["inspect", "pp"])["state"], "suspended");
    world.run(&["resume", "pp", "--on", "b"]);
    let waited = waiting.wait_with_output().unwrap();
    assert!(waited.status.success(), "{}", String::from_utf8_lossy(&waited.stdout));
    assert_eq!(idle.mark("after a wait").alive, 10);

    // Woken; nobody types anything.
    world.run(&["suspend", "pp", "--on-syn", "wake", "--on", "a"]);
    nothing_runs(&world);
    let began = Instant::now();
    let woke = Client::command(&world, &newcomer).output().unwrap();
    assert!(woke.status.success(), "{}", String::from_utf8_lossy(&woke.stdout));
    report(&format!("woken by a SYN and served in {} ms", began.elapsed().as_millis()));
    assert_eq!(service.node(), "a");
    flawless(&idle.end(END_LIMIT));
}
