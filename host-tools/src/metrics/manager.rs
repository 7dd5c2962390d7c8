//! The manager's.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::{Counters, Gauges, Label, from_us, registry, seconds, text};
use crate::api::{ApiError, Migration, Overview};
use crate::migration::{Outcome, TABLE};

const OUTCOMES: [&str; 5] = ["moved", "kept", "taken-back", "held", "broken"];
const NODE_STATES: [&str; 3] = ["ready", "drained", "silent"];
const SERVICE_STATES: [&str; 6] =
    ["starting", "running", "migrating", "suspended", "failed", "unknown"];

fn outcome_name(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Moved { .. } => OUTCOMES[0],
        Outcome::Kept { .. } => OUTCOMES[1],
        Outcome::TakenBack { .. } => OUTCOMES[2],
        Outcome::Held { .. } => OUTCOMES[3],
        Outcome::Broken { .. } => OUTCOMES[4],
    }
}

/// What has happened since the manager was started.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    moves: Counters,
    duration: Histogram,
    frozen: Histogram,
    phases: Family<Label, Histogram, fn() -> Histogram>,
    bytes: Counter,
    pages: Counter,
    resumed: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let moves = Counters::default();
        for outcome in OUTCOMES {
            drop(moves.get_or_create(&[("outcome", outcome.into())]));
        }
        let phases = Family::new_with_constructor(seconds as fn() -> Histogram);
        for row in TABLE {
            drop(phases.get_or_create(&[("phase", row.phase.name().into())]));
        }
        let (duration, frozen) = (seconds(), seconds());
        let (bytes, pages, resumed) = (Counter::default(), Counter::default(), Counter::default());
        let mut registry = registry();
        registry.register("moves", "Moves that have ended", moves.clone());
        let registered = registry.sub_registry_with_prefix("move");
        let unit = Unit::Seconds;
        let help = "From the request to the end, of moves that succeeded";
        registered.register_with_unit("duration", help, unit, duration.clone());
        let help = "Time in which no instance ran, of moves that succeeded";
        registered.register_with_unit("frozen", help, Unit::Seconds, frozen.clone());
        let help = "Length of each phase, of all moves";
        registered.register_with_unit("phase_duration", help, Unit::Seconds, phases.clone());
        let help = "Bytes that moves put on the wire";
        registered.register_with_unit("sent", help, Unit::Bytes, bytes.clone());
        registered.register("sent_pages", "Pages that moves sent", pages.clone());
        let help = "Connections that went on after a move";
        registered.register("resumed_connections", help, resumed.clone());
        Self { registry, moves, duration, frozen, phases, bytes, pages, resumed }
    }
}

impl Metrics {
    /// Counts a move that has ended.
    pub fn ended(&self, migration: &Migration) {
        let Some(result) = &migration.result else { return };
        self.moves.get_or_create(&[("outcome", outcome_name(result).into())]).inc();
        for record in &migration.phases {
            let phase = [("phase", record.phase.name().to_owned())];
            self.phases.get_or_create(&phase).observe(from_us(record.elapsed_us()));
        }
        let Some(summary) = &migration.summary else { return };
        self.bytes.inc_by(summary.bytes);
        self.pages.inc_by(summary.pages);
        self.resumed.inc_by(u64::from(summary.resumed));
        // A move that a manager finished in the place of its agent has no figures.
        if matches!(result, Outcome::Moved { .. }) && summary.freeze_to_resume_us > 0 {
            self.duration.observe(from_us(summary.total_us));
            self.frozen.observe(from_us(summary.freeze_to_resume_us));
        }
    }

    /// All of it, with how things stand now.
    ///
    /// # Errors
    /// It cannot be written as text.
    pub fn text(&self, overview: &Overview, under_way: usize) -> Result<String, ApiError> {
        text(&[&self.registry, &standing(overview, under_way)])
    }
}

/// How things stand: looked up each time, so that what is gone is not told of any more.
fn standing(overview: &Overview, under_way: usize) -> Registry {
    let (nodes, services) = (Gauges::default(), Gauges::default());
    let (connections, moves) = (Gauges::default(), Gauge::<i64>::default());
    for state in NODE_STATES {
        drop(nodes.get_or_create(&[("state", state.into())]));
    }
    for state in SERVICE_STATES {
        drop(services.get_or_create(&[("state", state.into())]));
    }
    for node in &overview.nodes {
        let state = match (node.ready, node.drained) {
            (true, false) => NODE_STATES[0],
            (true, true) => NODE_STATES[1],
            (false, _) => NODE_STATES[2],
        };
        nodes.get_or_create(&[("state", state.into())]).inc();
    }
    for seen in &overview.services {
        let state = format!("{:?}", seen.service.state).to_lowercase();
        services.get_or_create(&[("state", state)]).inc();
        if let Some(count) = seen.connections {
            let service = [("service", seen.service.spec.name.clone())];
            connections.get_or_create(&service).set(count as i64);
        }
    }
    moves.set(under_way as i64);
    let mut registry = Registry::with_prefix("ferry");
    registry.register("nodes", "Hosts in each state", nodes);
    registry.register("services", "Services in each state", services);
    let help = "TCP connections of each service, listening ports left out";
    registry.register("service_connections", help, connections);
    registry.register("moves_under_way", "Moves that have not ended", moves);
    registry
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::descriptor::tests::spec;
    use crate::api::{MoveSummary, Node, NodeReport, SeenService, Service, ServiceState};
    use crate::metrics::parsed::{Kind, parse};
    use crate::migration::{Phase, PhaseRecord};
    use crate::qemu::Accel;

    fn migration() -> Migration {
        let phases = TABLE.iter().enumerate().map(|(index, row)| PhaseRecord {
            phase: row.phase,
            start_us: index as u64 * 3_000,
            end_us: (index as u64 + 1) * 3_000,
            pages: 0,
            bytes: 0,
            note: String::new(),
            steps: vec![],
        });
        let summary = MoveSummary {
            total_us: 30_000,
            freeze_to_resume_us: 8_000,
            resumed: 40,
            pages: 700,
            bytes: 2_900_000,
            ..MoveSummary::default()
        };
        Migration {
            id: "m1".into(),
            service: "p".into(),
            source: "a".into(),
            destination: "b".into(),
            began_us: 0,
            phases: phases.collect(),
            phase: None,
            result: Some(Outcome::Moved { epoch: 2 }),
            summary: Some(Box::new(summary)),
        }
    }

    fn overview() -> Overview {
        let report = NodeReport {
            name: "a".into(),
            address: String::new(),
            instances: 1,
            memory_mib: 1,
            free_mib: 1,
            accel: Accel::Kvm,
            lease_us: None,
            holding: vec![],
            parked: vec![],
        };
        let node =
            |ready, drained| Node { report: report.clone(), seen_ms_ago: None, ready, drained };
        let mut spec = spec("p");
        spec.name = "p".into();
        let service = Service {
            spec,
            node: Some("a".into()),
            epoch: 1,
            state: ServiceState::Running,
            reason: None,
            created_us: 0,
            instance: None,
            migration: None,
            sleep: None,
        };
        Overview {
            now_us: 0,
            nodes: vec![node(true, false), node(true, false), node(true, true), node(false, true)],
            services: vec![SeenService { service, connections: Some(40) }],
        }
    }

    #[test]
    fn the_whole_text_names_types_and_units() {
        let metrics = Metrics::default();
        metrics.ended(&migration());
        let failed = Outcome::Kept { phase: Phase::Drain, reason: "x".into() };
        let phases = migration().phases[..3].to_vec();
        metrics.ended(&Migration { result: Some(failed), summary: None, phases, ..migration() });
        let parsed = parse(&metrics.text(&overview(), 1).unwrap());
        let families: Vec<_> = parsed.families().collect();
        let none = "";
        assert_eq!(
            families,
            [
                ("ferry_build", Kind::Info, none),
                ("ferry_move_duration_seconds", Kind::Histogram, "seconds"),
                ("ferry_move_frozen_seconds", Kind::Histogram, "seconds"),
                ("ferry_move_phase_duration_seconds", Kind::Histogram, "seconds"),
                ("ferry_move_resumed_connections", Kind::Counter, none),
                ("ferry_move_sent_bytes", Kind::Counter, "bytes"),
                ("ferry_move_sent_pages", Kind::Counter, none),
                ("ferry_moves", Kind::Counter, none),
                ("ferry_moves_under_way", Kind::Gauge, none),
                ("ferry_nodes", Kind::Gauge, none),
                ("ferry_service_connections", Kind::Gauge, none),
                ("ferry_services", Kind::Gauge, none),
            ]
        );
        for (sample, value) in [
            ("ferry_moves_total{outcome=\"moved\"}", 1.0),
            ("ferry_moves_total{outcome=\"kept\"}", 1.0),
            ("ferry_moves_total{outcome=\"broken\"}", 0.0),
            ("ferry_moves_under_way", 1.0),
            ("ferry_move_frozen_seconds_count", 1.0),
            ("ferry_move_frozen_seconds_sum", 0.008),
            ("ferry_move_frozen_seconds_bucket{le=\"0.005\"}", 0.0),
            ("ferry_move_frozen_seconds_bucket{le=\"0.01\"}", 1.0),
            ("ferry_move_phase_duration_seconds_count{phase=\"prepare\"}", 2.0),
            ("ferry_move_phase_duration_seconds_count{phase=\"drain\"}", 1.0),
            ("ferry_move_sent_bytes_total", 2_900_000.0),
            ("ferry_move_sent_pages_total", 700.0),
            ("ferry_move_resumed_connections_total", 40.0),
            ("ferry_nodes{state=\"ready\"}", 2.0),
            ("ferry_nodes{state=\"drained\"}", 1.0),
            ("ferry_nodes{state=\"silent\"}", 1.0),
            ("ferry_services{state=\"running\"}", 1.0),
            ("ferry_services{state=\"failed\"}", 0.0),
            ("ferry_service_connections{service=\"p\"}", 40.0),
        ] {
            assert_eq!(parsed.value(sample), Some(value), "{sample}");
        }
    }
}
