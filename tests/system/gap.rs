//! Line 3: the drain ends on evidence, the standby holds what arrives during the switch: nobody sends
//! anything twice, nobody waits for a timer. And the figure users feel: the longest gap.

use std::collections::BTreeMap;
use std::time::Duration;

use ferry_tests::gap::Spread;
use ferry_tests::harness::counters::{Connection, Counters, UNTOUCHED, connections};
use ferry_tests::harness::{Client, World};

use crate::{IP, move_count, report, world};

/// Linux begins with this congestion window, and comes back to it after a pause (RFC 6928).
const INITIAL_WINDOW: u32 = 10;
/// How long a window of measurement without a move is.
const QUIET: Duration = Duration::from_millis(400);

/// What the client's kernel thinks after the moves, against before.
fn windows_kept(
    before: &BTreeMap<u16, Connection>,
    after: &BTreeMap<u16, Connection>,
    noisy: bool,
) {
    assert_eq!(before.len(), after.len());
    for (port, was) in before {
        let now = after.get(port).unwrap_or_else(|| panic!("port {port} is gone"));
        if !noisy {
            assert!(
                now.cwnd >= was.cwnd.min(INITIAL_WINDOW),
                "port {port}: {was:?} became {now:?}"
            );
            assert_eq!(now.retransmitted, was.retransmitted, "port {port}");
        }
        assert_eq!(now.backoff, 0, "port {port} waits for a timer");
    }
}

const PROBES: &str = "TcpExtTCPLossProbes";
const SEGMENTS: &str = "TcpRetransSegs";
const FAST: &str = "TcpExtTCPFastRetrans";
/// D-SACKs: what the client had sent again was there already.
const NEEDLESS: &str = "TcpExtTCPDSACKRecv";

/// What was measured over some windows.
#[derive(Default)]
struct Sum {
    gaps_ms: Vec<f64>,
    seconds: f64,
    /// Segments sent again because one seemed lost, or a timer ran out.
    repeated: u64,
    /// Those sent again because others had overtaken them, although they arrived: frames of one connection keep no
    /// order between the host's processors.
    overtaken: u64,
    /// Tail loss probes (RFC 8985 §7): the last segment again, after some round trips without an answer.
    /// They cost nothing, but the client was kept waiting.
    probes: u64,
    what: Vec<String>,
}

impl Sum {
    /// Ends a window: what the client felt, and what its kernel counted since `last`.
    fn add(&mut self, world: &World, client: &mut Client, last: &mut Counters, name: &str) {
        let window = client.mark(name);
        let now = Counters::read(world);
        let grown = now.grown(last, &UNTOUCHED);
        self.gaps_ms.push(window.gap_ms.max);
        self.seconds += window.ms / 1e3;
        // One segment sent again shows in several counters; a probe is among the segments sent again.
        let count = |name: &str| grown.get(name).copied().unwrap_or(0);
        let probes = count(PROBES);
        let needless = (now.get(NEEDLESS) - last.get(NEEDLESS)).saturating_sub(probes);
        let overtaken = count(FAST).min(needless);
        let others =
            grown.iter().filter(|(name, _)| ![PROBES, SEGMENTS, FAST].contains(&name.as_str()));
        let others = others.map(|(_, grown)| *grown).max().unwrap_or(0);
        let again = count(SEGMENTS).saturating_sub(probes).max(count(FAST)) - overtaken;
        self.repeated += others.max(again);
        self.overtaken += overtaken;
        self.probes += probes;
        if !grown.is_empty() {
            self.what.push(format!("{name}: {grown:?}, gap {:.1} ms", window.gap_ms.max));
        }
        *last = now;
    }

    /// Segments sent again although nothing was lost.
    fn traces(&self) -> u64 {
        self.overtaken + self.probes
    }

    /// What may be counted in windows of this length where `count` is counted in those without a move: twice as much.
    fn noise(&self, quiet: &Sum, count: u64) -> u64 {
        (2.0 * count as f64 / quiet.seconds * self.seconds).ceil() as u64
    }
}

/// Traces that a run of a greedy client may have beside its noise.
const GREEDY: u64 = 3;
/// A machine that stands still for some milliseconds (its own host gives the processors to somebody else) makes any
/// client ask again. What a move does shows in every run, what the machine does in some.
const RUNS: usize = 3;

/// Moves there and back, up to [`RUNS`] times so many, until that has left no trace. `greedy`: the client takes all of
/// a processor. On a machine that has no third one its last segment then waits for the guest's turn now and then,
/// longer than it has patience, whether something moves or not.
fn moves_without_a_trace(name: &str, image: &str, arguments: &[&str], greedy: bool) {
    let world = world(&format!("gap-{name}"));
    let service = world.service(image, name, "a", IP, &[]);
    let mut client = Client::start(&world, arguments);
    // Slow start and the first measurements of the round trip are over.
    std::thread::sleep(QUIET);
    client.mark("warm");
    let mut traces = Vec::new();
    for run in 1..=RUNS {
        let (mut last, windows) = (Counters::read(&world), connections(&world, IP));
        let (mut moving, mut quiet) = (Sum::default(), Sum::default());
        service.move_to_and_fro(move_count(), |number, _| {
            moving.add(&world, &mut client, &mut last, &format!("move {number}"));
            std::thread::sleep(QUIET);
            quiet.add(&world, &mut client, &mut last, &format!("after move {number}"));
        });
        let after = connections(&world, IP);
        tell(&format!("{name}, run {run}"), &moving, &quiet);
        let what = moving.what.join("\n");
        assert!(
            moving.repeated <= moving.noise(&quiet, quiet.repeated),
            "the client lost something:\n{what}"
        );
        windows_kept(&windows, &after, quiet.repeated + quiet.traces() + moving.traces() > 0);
        let spared = if greedy { GREEDY } else { 0 };
        if moving.traces() <= moving.noise(&quiet, quiet.traces()) + spared {
            let end = client.end(Duration::from_secs(120));
            assert!(end.flawless(), "{end:?}");
            return;
        }
        traces.push(what);
    }
    panic!("the client had to ask again in every run:\n{}", traces.join("\n\n"));
}

fn tell(name: &str, moving: &Sum, quiet: &Sum) {
    let [with, without] = [moving, quiet].map(|sum| Spread::of(sum.gaps_ms.clone()));
    report(&format!(
        "{name}: longest gap in a move: median {:.1} ms, max {:.1} ms; without: median {:.1} ms, max {:.1} ms; \
         repeated in {:.0} s of moves: {}, {} overtaken and {} tail loss probes, in {:.0} s without: {}, {} and {}",
        with.median,
        with.max,
        without.median,
        without.max,
        moving.seconds,
        moving.repeated,
        moving.overtaken,
        moving.probes,
        quiet.seconds,
        quiet.repeated,
        quiet.overtaken,
        quiet.probes
    ));
}

#[test]
fn pingpong_over_100_connections() {
    let to = format!("{IP}:7");
    moves_without_a_trace(
        "pingpong",
        "pingpong",
        &["pingpong", "--connect", &to, "--connections", "100"],
        false,
    );
}

#[test]
fn download() {
    let to = format!("{IP}:80");
    let arguments = ["download", "--connect", &to, "--bytes", "50000000", "--again"];
    moves_without_a_trace("download", "transfer", &arguments, false);
}

#[test]
fn upload() {
    let to = format!("{IP}:80");
    let arguments = ["upload", "--connect", &to, "--bytes", "50000000", "--again"];
    moves_without_a_trace("upload", "transfer", &arguments, true);
}

/// A client that does not take all the machine has: what it waits for then is not a processor.
#[test]
fn upload_at_a_steady_rate() {
    let to = format!("{IP}:80");
    let arguments =
        ["upload", "--connect", &to, "--bytes", "50000000", "--rate", "5000000", "--again"];
    moves_without_a_trace("upload-rate", "transfer", &arguments, false);
}
