//! Line 4: what a move looks like on the wire, seen from the client.

use std::time::{Duration, SystemTime};

use ferry_tests::harness::Client;
use ferry_tests::harness::capture::Capture;
use ferry_tests::trace::check::check;

use crate::{IP, report, world};

/// What the capture takes its times from.
fn now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap()
}

/// A destination repeats its announcement for 1.7 s. The trace tells moves apart by their announcements,
/// so the next one begins after the last of them.
const ANNOUNCED: Duration = Duration::from_secs(2);

/// There and back under this traffic; then the trace is held against the rules.
fn traced(name: &str, image: &str, arguments: &[&str], connections: usize) {
    let world = world(&format!("wire-{name}"));
    let service = world.service(image, name, "a", IP, &[]);
    let capture = Capture::start(&world, IP);
    let client = Client::start(&world, arguments);
    let mut moves = Vec::new();
    for to in ["b", "a"] {
        let began = now();
        service.migrate(to);
        moves.push(began..now());
        std::thread::sleep(ANNOUNCED);
    }
    let end = client.end(Duration::from_secs(120));
    let seen = check(&capture.end(), service.ip(), &moves);
    assert!(end.flawless(), "{end:?}");
    for m in &seen.moves {
        report(&format!(
            "{name}: {} connections, windows closed for at most {:.1} ms on the wire",
            m.connections,
            m.longest_closed.as_secs_f64() * 1e3
        ));
    }
    assert_eq!(seen.connections, connections);
    assert_eq!(seen.moves.len(), 2, "every move is announced: {:?}", seen.moves);
    assert!(seen.moves.iter().all(|m| m.connections == connections), "{:?}", seen.moves);
    let shown: Vec<String> = seen.violations.iter().take(20).map(ToString::to_string).collect();
    assert!(shown.is_empty(), "{} violations:\n{}", seen.violations.len(), shown.join("\n"));
}

#[test]
fn pingpong() {
    let to = format!("{IP}:7");
    traced("pingpong", "pingpong", &["pingpong", "--connect", &to, "--connections", "50"], 50);
}

#[test]
fn idle_connections() {
    let to = format!("{IP}:7");
    traced("idle", "pingpong", &["hold", "--connect", &to, "--connections", "20"], 20);
}

#[test]
fn downloads_and_uploads() {
    let to = format!("{IP}:80");
    let slow = ["--bytes", "100000000", "--rate", "8000000", "--again", "--connections", "2"];
    traced("download", "transfer", &[&["download", "--connect", &to][..], &slow].concat(), 2);
    traced("upload", "transfer", &[&["upload", "--connect", &to][..], &slow].concat(), 2);
}
