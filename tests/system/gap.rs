//! Line 3: the drain ends on evidence, the standby holds what arrives during the switch: nobody sends
//! anything twice, nobody waits for a timer. And the figure users feel: the longest gap.

use std::collections::BTreeMap;
use std::time::Duration;

use ferry_tests::gap::Spread;
use ferry_tests::harness::Client;
use ferry_tests::harness::counters::{Connection, Counters, UNTOUCHED, connections};

use crate::{IP, move_count, report, world};

/// Linux begins with this congestion window, and comes back to it after a pause (RFC 6928).
const INITIAL_WINDOW: u32 = 10;
/// How long a window of measurement without a move is.
const QUIET: Duration = Duration::from_millis(400);

/// What the client's kernel thinks after the moves, against before.
fn windows_kept(before: &BTreeMap<u16, Connection>, after: &BTreeMap<u16, Connection>) {
    assert_eq!(before.len(), after.len());
    for (port, was) in before {
        let now = after.get(port).unwrap_or_else(|| panic!("port {port} is gone"));
        assert!(now.cwnd >= was.cwnd.min(INITIAL_WINDOW), "port {port}: {was:?} became {now:?}");
        assert_eq!(now.retransmitted, was.retransmitted, "port {port}");
        assert_eq!(now.backoff, 0, "port {port} waits for a timer");
    }
}

fn moves_without_a_trace(name: &str, image: &str, arguments: &[&str]) {
    let world = world(&format!("gap-{name}"));
    let service = world.service(image, name, "a", IP, &[]);
    let mut client = Client::start(&world, arguments);
    // Slow start and the first measurements of the round trip are over.
    std::thread::sleep(QUIET);
    client.mark("warm");
    let (counters, windows) = (Counters::read(&world), connections(&world, IP));

    let (mut moving, mut quiet, mut troubled) = (Vec::new(), Vec::new(), Vec::new());
    let mut last = counters.clone();
    service.move_to_and_fro(move_count(), |number, summary| {
        let window = client.mark("moved");
        moving.push(window.gap_ms.max);
        let now = Counters::read(&world);
        let grown = now.grown(&last, &UNTOUCHED);
        if !grown.is_empty() {
            troubled.push(format!(
                "move {number}: {grown:?}, gap {:.1} ms, {summary}",
                window.gap_ms.max
            ));
        }
        last = now;
        client.mark("counted");
        std::thread::sleep(QUIET);
        quiet.push(client.mark("quiet").gap_ms.max);
    });
    let after = connections(&world, IP);
    let end = client.end(Duration::from_secs(120));
    let (with, without) = (Spread::of(moving), Spread::of(quiet));
    report(&format!(
        "{name}: longest gap in a move: median {:.1} ms, max {:.1} ms; without a move: median {:.1} ms, max {:.1} ms",
        with.median, with.max, without.median, without.max
    ));
    assert!(end.flawless(), "{end:?}");
    assert!(
        troubled.is_empty(),
        "the client had to repeat itself or waited for a timer:\n{}",
        troubled.join("\n")
    );
    windows_kept(&windows, &after);
}

#[test]
fn pingpong_over_100_connections() {
    let to = format!("{IP}:7");
    moves_without_a_trace(
        "pingpong",
        "pingpong",
        &["pingpong", "--connect", &to, "--connections", "100"],
    );
}

#[test]
fn download() {
    let to = format!("{IP}:80");
    let arguments = ["download", "--connect", &to, "--bytes", "50000000", "--again"];
    moves_without_a_trace("download", "transfer", &arguments);
}

#[test]
fn upload() {
    let to = format!("{IP}:80");
    let arguments = ["upload", "--connect", &to, "--bytes", "50000000", "--again"];
    moves_without_a_trace("upload", "transfer", &arguments);
}
