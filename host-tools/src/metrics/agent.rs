//! An agent's.

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::{Counters, Gauges, from_us, registry, seconds, text};
use crate::api::{ApiError, InstanceState, NodeReport};

const RESULTS: [&str; 2] = ["started", "failed"];
const STATES: [&str; 5] = ["booting", "standby", "running", "frozen", "failed"];

/// What has happened since the agent was started.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    boots: Counters,
    boot_time: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        let (boots, boot_time) = (Counters::default(), seconds());
        for result in RESULTS {
            drop(boots.get_or_create(&[("result", result.into())]));
        }
        let mut registry = registry();
        let agent = registry.sub_registry_with_prefix("agent");
        let help = "Standbys started for a move or a restore";
        agent.register("standby_boots", help, boots.clone());
        let help = "Time until a standby was ready";
        agent.register_with_unit("standby_boot", help, Unit::Seconds, boot_time.clone());
        Self { registry, boots, boot_time }
    }
}

/// An instance, as far as it is counted.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Counted {
    pub service: String,
    pub state: InstanceState,
    pub connections: Option<u64>,
    pub refused_frames: u64,
}

impl Metrics {
    /// Counts the boot of a standby that took so long.
    pub fn standby_booted(&self, started: bool, took_us: u64) {
        let result = RESULTS[usize::from(!started)];
        self.boots.get_or_create(&[("result", result.into())]).inc();
        if started {
            self.boot_time.observe(from_us(took_us));
        }
    }

    /// All of it, with how things stand now.
    ///
    /// # Errors
    /// It cannot be written as text.
    pub fn text(&self, report: &NodeReport, instances: &[Counted]) -> Result<String, ApiError> {
        text(&[&self.registry, &standing(report, instances)])
    }
}

fn standing(report: &NodeReport, counted: &[Counted]) -> Registry {
    let (instances, connections, refused) =
        (Gauges::default(), Gauges::default(), Counters::default());
    for state in STATES {
        drop(instances.get_or_create(&[("state", state.into())]));
    }
    for Counted { service, state, connections: open, refused_frames } in counted {
        let state = format!("{state:?}").to_lowercase();
        instances.get_or_create(&[("state", state)]).inc();
        let service = [("service", service.clone())];
        if let Some(open) = open {
            connections.get_or_create(&service).set(*open as i64);
        }
        // Counted by the instance: with the next one it begins anew, as counters may.
        refused.get_or_create(&service).inc_by(*refused_frames);
    }
    let (all, free) = (Gauge::<i64>::default(), Gauge::<i64>::default());
    all.set((report.memory_mib << 20) as i64);
    free.set((report.free_mib << 20) as i64);
    let mut registry = Registry::with_prefix("ferry_agent");
    registry.register("instances", "Instances on this host in each state", instances);
    let help = "TCP connections of each instance that serves, listening ports left out";
    registry.register("connections", help, connections);
    registry.register_with_unit("guest_memory", "Memory for guests", Unit::Bytes, all);
    let help = "Memory for guests that is not given out";
    registry.register_with_unit("guest_memory_free", help, Unit::Bytes, free);
    let help = "Frames of the guest's control port that were refused";
    registry.register("refused_frames", help, refused);
    registry
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::parsed::{Kind, parse};
    use crate::qemu::Accel;

    #[test]
    fn the_whole_text_names_types_and_units() {
        let metrics = Metrics::default();
        metrics.standby_booted(true, 120_000);
        metrics.standby_booted(false, 9);
        let report = NodeReport {
            name: "a".into(),
            address: String::new(),
            instances: 2,
            memory_mib: 1024,
            free_mib: 512,
            accel: Accel::Kvm,
            lease_us: None,
            holding: vec![],
            parked: vec![],
        };
        let counted = |service: &str, state, connections| Counted {
            service: service.into(),
            state,
            connections,
            refused_frames: 3,
        };
        let instances = [
            counted("p", InstanceState::Running, Some(7)),
            counted("q\"\\", InstanceState::Frozen, None),
        ];
        let parsed = parse(&metrics.text(&report, &instances).unwrap());
        let families: Vec<_> = parsed.families().collect();
        assert_eq!(
            families,
            [
                ("ferry_agent_connections", Kind::Gauge, ""),
                ("ferry_agent_guest_memory_bytes", Kind::Gauge, "bytes"),
                ("ferry_agent_guest_memory_free_bytes", Kind::Gauge, "bytes"),
                ("ferry_agent_instances", Kind::Gauge, ""),
                ("ferry_agent_refused_frames", Kind::Counter, ""),
                ("ferry_agent_standby_boot_seconds", Kind::Histogram, "seconds"),
                ("ferry_agent_standby_boots", Kind::Counter, ""),
                ("ferry_build", Kind::Info, ""),
            ]
        );
        for (sample, value) in [
            ("ferry_agent_standby_boots_total{result=\"started\"}", 1.0),
            ("ferry_agent_standby_boots_total{result=\"failed\"}", 1.0),
            ("ferry_agent_standby_boot_seconds_count", 1.0),
            ("ferry_agent_standby_boot_seconds_sum", 0.12),
            ("ferry_agent_instances{state=\"running\"}", 1.0),
            ("ferry_agent_instances{state=\"standby\"}", 0.0),
            ("ferry_agent_connections{service=\"p\"}", 7.0),
            ("ferry_agent_refused_frames_total{service=\"q\\\"\\\\\"}", 3.0),
            ("ferry_agent_guest_memory_bytes", 1_073_741_824.0),
            ("ferry_agent_guest_memory_free_bytes", 536_870_912.0),
        ] {
            assert_eq!(parsed.value(sample), Some(value), "{sample}");
        }
    }
}
