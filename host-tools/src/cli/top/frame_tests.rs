//! Frames as text.

use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::*;
use crate::agent::descriptor::tests::spec;
use crate::api::{NodeReport, Overview, SeenMove, Service, WatchEvent};
use crate::migration::{Phase, PhaseRecord};
use crate::qemu::Accel;

fn node(name: &str, ready: bool) -> Node {
    let report = NodeReport {
        name: name.into(),
        address: "10.77.0.11:7701".into(),
        instances: 3,
        memory_mib: 1024,
        free_mib: 512,
        accel: Accel::Kvm,
        lease_us: None,
        holding: vec![],
        parked: vec![],
    };
    Node { report, seen_ms_ago: Some(1), ready, drained: false }
}

fn service(name: &str, connections: u64) -> SeenService {
    let mut spec = spec("p");
    spec.name = name.into();
    let service = Service {
        spec,
        node: Some("a".into()),
        epoch: 4,
        state: ServiceState::Running,
        reason: None,
        created_us: 0,
        instance: None,
        migration: None,
        sleep: None,
    };
    SeenService { service, connections: Some(connections) }
}

fn moving(phase: Option<Phase>, result: Option<Outcome>) -> SeenMove {
    let record = |phase, start_us, end_us| PhaseRecord {
        phase,
        start_us,
        end_us,
        pages: 0,
        bytes: 0,
        note: String::new(),
        steps: vec![],
    };
    let migration = Migration {
        id: "m7".into(),
        service: "notes".into(),
        source: "a".into(),
        destination: "b".into(),
        began_us: 9_000_000,
        phases: vec![record(Phase::Request, 0, 900), record(Phase::Prepare, 900, 500_000)],
        phase,
        result,
        summary: None,
    };
    SeenMove { migration, waiting: None }
}

fn known(services: Vec<SeenService>, now: Instant) -> Known {
    let mut known = Known::default();
    let nodes = vec![node("a", true), node("b", false)];
    let overview = Overview { now_us: 10_000_000, nodes, services };
    known.take(WatchEvent::Overview(overview), now);
    known
}

fn drawn(known: &Known, now: Instant) -> String {
    let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
    terminal.draw(|frame| draw(frame, known, now)).unwrap();
    text_of(terminal.backend().buffer())
}

#[test]
fn a_frame_of_80_by_24_has_everything() {
    let now = Instant::now();
    let mut known = known(vec![service("notes", 1200), service("echo", 7)], now);
    assert!(!known.is_whole());
    known.take(WatchEvent::Moves { moves: vec![] }, now);
    assert!(known.is_whole());
    known.take(WatchEvent::Move(moving(Some(Phase::Precopy), None)), now);
    let text = drawn(&known, now);
    assert_eq!(text.lines().count(), 24);
    assert!(text.lines().all(|line| line.chars().count() <= 80));
    for words in [
        "1 of 2 hosts up · 2 services · 1207 connections",
        " m7 notes a → b  1.00 s  pages copied while the service runs",
        " request prepare precopy drain freeze transfer commit restore resume remove",
        "█████░░░░░ 512.0 MiB of 1.00 GiB    kvm",
        " b",
        "silent",
        "10.77.0.",
        "1200",
        "q quit",
    ] {
        assert!(text.contains(words), "`{words}` is not in\n{text}");
    }
}

#[test]
fn what_does_not_fit_is_counted() {
    let now = Instant::now();
    let services = (0..40).map(|number| service(&format!("s{number}"), 1)).collect();
    let text = drawn(&known(services, now), now);
    let title = text.lines().find(|line| line.contains("Services (")).unwrap();
    let shown = text.lines().filter(|line| line.starts_with(" s") && line.contains("running"));
    assert!(title.contains(&format!("{} more", 40 - shown.count())), "{text}");
}

#[test]
fn an_ended_move_stays_for_a_moment_and_a_lost_manager_is_said() {
    let now = Instant::now();
    let mut known = known(vec![], now);
    known.take(WatchEvent::Move(moving(Some(Phase::Drain), None)), now);
    known.take(WatchEvent::Move(moving(None, Some(Outcome::Moved { epoch: 5 }))), now);
    assert!(drawn(&known, now).contains("500.0 ms  moved"));
    let later = now + std::time::Duration::from_secs(60);
    known.lost = Some("the manager has ended".into());
    let text = drawn(&known, later);
    assert!(text.contains("Past moves") && text.contains("the manager has ended; trying again"));
    assert!(text.contains(" none") && text.contains("61s ago"), "{text}");
}
