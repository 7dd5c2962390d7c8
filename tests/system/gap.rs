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

    /// What may be counted in windows of this length where `control` counts `count`: twice as much.
    fn noise(&self, control: &Sum, count: u64) -> u64 {
        (2.0 * count as f64 / control.seconds * self.seconds).ceil() as u64
    }
}

/// What a client's moves are held against.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Control {
    /// The same client while nothing moves.
    Rest,
    /// The same client while another service moves, which has the same work done on the machine. For a client that
    /// takes all of a processor: where there is no third one, its last segment waits for the guest's turn longer than
    /// it has patience whenever somebody else works, be it for its own service or not.
    Neighbour,
}

impl Control {
    /// Traces that a run may have beside its noise: that of counts as small as a neighbour's moves leave, two on
    /// average.
    fn spared(self) -> u64 {
        match self {
            Self::Rest => 0,
            Self::Neighbour => 1,
        }
    }
}

/// Address of the service that moves instead.
const NEIGHBOUR: &str = "10.77.0.51";
/// A machine that stands still for some milliseconds (its own host gives the processors to somebody else) makes any
/// client ask again. What a move does shows in every run, what the machine does in some.
const RUNS: usize = 3;

/// Moves there and back, up to [`RUNS`] times so many, until that has left no trace.
fn moves_without_a_trace(name: &str, image: &str, arguments: &[&str], control: Control) {
    let world = world(&format!("gap-{name}"));
    let service = world.service(image, name, "a", IP, &[]);
    let neighbour = (control == Control::Neighbour)
        .then(|| world.service(image, "neighbour", "a", NEIGHBOUR, &[]));
    let mut client = Client::start(&world, arguments);
    // Slow start and the first measurements of the round trip are over.
    std::thread::sleep(QUIET);
    client.mark("warm");
    let mut traces = Vec::new();
    for run in 1..=RUNS {
        let (mut last, windows) = (Counters::read(&world), connections(&world, IP));
        let [mut moving, mut quiet, mut beside] = [(); 3].map(|()| Sum::default());
        service.move_to_and_fro(move_count(), |number, _| {
            moving.add(&world, &mut client, &mut last, &format!("move {number}"));
            std::thread::sleep(QUIET);
            quiet.add(&world, &mut client, &mut last, &format!("after move {number}"));
            if let Some(neighbour) = &neighbour {
                neighbour.migrate(if number % 2 == 1 { "b" } else { "a" });
                beside.add(&world, &mut client, &mut last, &format!("neighbour's move {number}"));
                std::thread::sleep(QUIET);
                quiet.add(&world, &mut client, &mut last, "after a neighbour's move");
            }
        });
        let after = connections(&world, IP);
        let name = format!("{name}, run {run}");
        tell(&name, "in a move", &moving);
        tell(&name, "at rest", &quiet);
        let against = match control {
            Control::Rest => &quiet,
            Control::Neighbour => {
                tell(&name, "in a neighbour's move", &beside);
                &beside
            }
        };
        let what = moving.what.join("\n");
        assert!(
            moving.repeated <= moving.noise(against, against.repeated),
            "the client lost something:\n{what}"
        );
        let noisy = [&moving, &quiet, &beside].iter().any(|sum| sum.repeated + sum.traces() > 0);
        windows_kept(&windows, &after, noisy);
        let noise = moving.noise(against, against.traces());
        if moving.traces() <= noise + control.spared() {
            let end = client.end(Duration::from_secs(120));
            assert!(end.flawless(), "{end:?}");
            return;
        }
        traces.push(what);
    }
    panic!("the client had to ask again in every run:\n{}", traces.join("\n\n"));
}

/// What a client felt in the windows of one kind.
fn tell(name: &str, when: &str, sum: &Sum) {
    let gaps = Spread::of(sum.gaps_ms.clone());
    report(&format!(
        "{name}, {when}: longest gap: median {:.1} ms, max {:.1} ms; repeated in {:.0} s: {}, {} overtaken and {} tail \
         loss probes",
        gaps.median, gaps.max, sum.seconds, sum.repeated, sum.overtaken, sum.probes
    ));
}

#[test]
fn pingpong_over_100_connections() {
    let to = format!("{IP}:7");
    moves_without_a_trace(
        "pingpong",
        "pingpong",
        &["pingpong", "--connect", &to, "--connections", "100"],
        Control::Rest,
    );
}

#[test]
fn download() {
    let to = format!("{IP}:80");
    let arguments = ["download", "--connect", &to, "--bytes", "50000000", "--again"];
    moves_without_a_trace("download", "transfer", &arguments, Control::Rest);
}

#[test]
fn upload() {
    let to = format!("{IP}:80");
    let arguments = ["upload", "--connect", &to, "--bytes", "50000000", "--again"];
    moves_without_a_trace("upload", "transfer", &arguments, Control::Neighbour);
}

/// A client that does not take all the machine has: what it waits for then is not a processor.
#[test]
fn upload_at_a_steady_rate() {
    let to = format!("{IP}:80");
    let arguments =
        ["upload", "--connect", &to, "--bytes", "50000000", "--rate", "5000000", "--again"];
    moves_without_a_trace("upload-rate", "transfer", &arguments, Control::Rest);
}
