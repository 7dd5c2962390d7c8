//! Line 2: every connection lives through all moves, and every byte is right.

use std::time::Duration;

use ferry_tests::client::End;
use ferry_tests::harness::counters::Counters;
use ferry_tests::harness::{Client, World, need, output_within};

use crate::{IP, move_count, report, world};

fn flawless(end: &End) {
    assert!(end.flawless(), "{end:?}");
    assert_eq!((end.resets, end.damaged), (0, 0));
    report(&format!(
        "{} x{}: {} round trips, longest gap of a connection: median {:.1} ms, max {:.1} ms, over {:.0} s",
        end.client,
        end.connections,
        end.round_trips,
        end.gap_ms.median,
        end.gap_ms.max,
        end.seconds
    ));
}

/// No client or server sent a reset, no connection broke.
fn no_resets(world: &World, before: &Counters) {
    let names = ["TcpEstabResets", "TcpOutRsts", "TcpExtTCPAbortOnTimeout"];
    let grown = Counters::read(world).grown(before, &names);
    assert!(grown.is_empty(), "{grown:?}");
}

fn pingpong(connections: usize, think_ms: u64) {
    let world = world(&format!("pp{connections}"));
    let service = world.service("pingpong", "pp", "a", IP, &[]);
    let before = Counters::read(&world);
    let (count, think) = (connections.to_string(), think_ms.to_string());
    let arguments = ["pingpong", "--connect", &service.at(7), "--connections", &count];
    let client = Client::start(&world, &[&arguments[..], &["--think-ms", &think]].concat());
    service.move_to_and_fro(move_count(), |_, _| ());
    flawless(&client.end(Duration::from_secs(90)));
    no_resets(&world, &before);
}

#[test]
fn pingpong_with_1_connection() {
    pingpong(1, 0);
}

#[test]
fn pingpong_with_100_connections() {
    pingpong(100, 0);
}

#[test]
fn pingpong_with_1000_connections() {
    // One message per connection and second is what 1,000 people do; without a pause the guest's own
    // queue would be longer than any move.
    pingpong(1000, 1000);
}

/// After a move a thousand windows are reopened, more than the card's ring has room for: whoever wants to go on
/// before that is done waits for the card, not for the next frame that happens to come.
#[test]
fn one_of_a_thousand_connections_goes_on_after_each_move() {
    let world = world("one");
    let service = world.service("pingpong", "pp", "a", IP, &[]);
    let before = Counters::read(&world);
    let to = service.at(7);
    let mut idle = Client::start(&world, &["hold", "--connect", &to, "--connections", "1000"]);
    assert_eq!(idle.mark("open").alive, 1000);
    let mut one = Client::start(&world, &["pingpong", "--connect", &to, "--connections", "1"]);
    for to in ["b", "a", "b", "a"] {
        one.mark(to);
        service.migrate(to);
        // Time for what was lost to be sent again, and for a hundred round trips.
        std::thread::sleep(Duration::from_secs(1));
        let window = one.mark("moved");
        assert!(window.progress > 100 && window.gap_ms.max < 900.0, "to {to}: {window:?}");
    }
    flawless(&one.end(Duration::from_secs(90)));
    assert!(idle.end(Duration::from_secs(90)).flawless());
    no_resets(&world, &before);
}

#[test]
fn ten_thousand_connections_are_open_at_once_and_move() {
    let connections = 10_000;
    let world = world("many");
    let service = world.service("pingpong", "pp", "a", IP, &["--memory", "192M"]);
    let before = Counters::read(&world);
    let hold = ["hold", "--connect", &service.at(7), "--connections", &connections.to_string()];
    let mut idle = Client::start(&world, &hold);
    assert_eq!(idle.mark("open").alive, connections);
    for to in ["b", "a"] {
        let summary = &service.migrate(to)["summary"];
        assert_eq!(summary["connections"], connections, "{summary}");
        assert_eq!(summary["resumed"], connections, "{summary}");
        let ms = |field: &str| summary[field].as_f64().unwrap_or(f64::NAN) / 1e3;
        report(&format!(
            "{connections} connections to {to}: {} settled, drain {:.0} ms, freeze to resume {:.0} ms",
            summary["settled"],
            ms("drain_us"),
            ms("freeze_to_resume_us")
        ));
        assert_eq!(idle.mark(to).alive, connections);
    }
    let end = idle.end(Duration::from_secs(90));
    assert!(end.flawless(), "{end:?}");
    assert_eq!((end.resets, end.round_trips), (0, 4 * connections as u64));
    no_resets(&world, &before);
}

#[test]
fn transfer_of_8_downloads_and_8_uploads() {
    let world = world("transfer");
    let service = world.service("transfer", "tr", "a", IP, &[]);
    let before = Counters::read(&world);
    let at = service.at(80);
    let start = |kind: &str, bytes: &str| {
        let arguments = [kind, "--connect", &at, "--connections", "8", "--bytes", bytes, "--again"];
        Client::start(&world, &arguments)
    };
    let downloads = start("download", "200000000");
    let uploads = start("upload", "100000000");
    service.move_to_and_fro(move_count(), |_, _| ());
    // Told to stop, each finishes the transfer it is at.
    let (down, up) = std::thread::scope(|s| {
        let limit = Duration::from_secs(400);
        let down = s.spawn(move || downloads.end(limit));
        let up = s.spawn(move || uploads.end(limit));
        (down.join().unwrap(), up.join().unwrap())
    });
    assert!(down.bytes_received >= 8 * 200_000_000, "{down:?}");
    assert!(up.bytes_sent >= 8 * 100_000_000, "{up:?}");
    flawless(&down);
    flawless(&up);
    no_resets(&world, &before);
}

/// More clients than a small guest has memory to serve: some wait until others have ended. The service does not
/// end for want of memory, and serves whoever comes next.
#[test]
fn a_guest_short_of_memory_lets_clients_wait() {
    need(&["curl", "wrk"]);
    let world = world("short");
    let service = world.service("transfer", "short", "a", IP, &[]);
    let limit = Duration::from_secs(60);
    let url = format!("http://{IP}/bytes/20000?seed=7");
    let wrk = ["wrk", "-t", "1", "-c", "2500", "-d", "6s", "--timeout", "20s", &url];
    let out = output_within(&world.in_node("client", &wrk), limit);
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "wrk: {text}{}", String::from_utf8_lossy(&out.stderr));
    assert!(!text.contains("Socket errors") && !text.contains("Non-2xx"), "{text}");
    let said = world.run(&["logs", "short"]).to_string();
    assert!(said.contains("memory is short: new connections wait until others end"), "{said}");

    service.migrate("b");
    let fetch = ["curl", "-sS", "--fail", "--max-time", "30", &url];
    let out = output_within(&world.in_node("client", &fetch), limit);
    assert!(out.status.success(), "curl: {}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(out.stdout.len(), 20_000);
    assert_eq!(ferry_tests::pattern::first_wrong(7, 0, &out.stdout), None);
}

#[test]
fn curl_and_wrk_notice_nothing() {
    need(&["curl", "wrk"]);
    let world = world("curl");
    let service = world.service("transfer", "tr", "a", IP, &[]);
    let before = Counters::read(&world);
    let bytes: u64 = 100_000_000;
    let url = format!("http://{IP}/bytes/{bytes}?seed=7");
    let (moves, limit) = (move_count(), Duration::from_secs(300));
    std::thread::scope(|s| {
        let download = s.spawn(|| {
            // Slow enough to be under way while the service moves.
            let fetch = ["curl", "-sS", "--fail", "--limit-rate", "4M", "--max-time", "280", &url];
            output_within(&world.in_node("client", &fetch), limit)
        });
        let seconds = format!("{}s", 2 * moves);
        let small = format!("http://{IP}/bytes/1000?seed=1");
        let load = s.spawn({
            let world = &world;
            move || {
                let wrk =
                    ["wrk", "-t", "1", "-c", "32", "-d", &seconds, "--timeout", "20s", &small];
                output_within(&world.in_node("client", &wrk), limit)
            }
        });
        service.move_to_and_fro(moves, |_, _| ());

        let out = load.join().unwrap();
        let text = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success(), "wrk: {text}{}", String::from_utf8_lossy(&out.stderr));
        assert!(!text.contains("Socket errors") && !text.contains("Non-2xx"), "{text}");
        report(&format!("wrk: {}", text.lines().rev().nth(1).unwrap_or_default().trim()));

        let out = download.join().unwrap();
        assert!(out.status.success(), "curl: {}", String::from_utf8_lossy(&out.stderr));
        assert_eq!(out.stdout.len() as u64, bytes);
        assert_eq!(ferry_tests::pattern::first_wrong(7, 0, &out.stdout), None);
    });
    // wrk itself resets its connections when its time is over; had one broken before, it would have said so.
    let names = ["TcpExtTCPAbortOnTimeout", "TcpAttemptFails"];
    let grown = Counters::read(&world).grown(&before, &names);
    assert!(grown.is_empty(), "{grown:?}");
}
