//! Whether a service could be moved, before anything is touched.

use std::time::Duration;

use hyper::Method;

use super::state::Manager;
use crate::agent::host::QEMU_OVERHEAD_MIB;
use crate::api::check::{
    DestinationFacts, DestinationQuestion, Finding, Grade, HostFacts, SourceFacts, SourceQuestion,
};
use crate::api::{ApiError, InstanceState, now_us};
use crate::store::Record;

/// Longest time a node may take to look.
const LOOK_LIMIT: Duration = Duration::from_secs(15);
/// Clocks that are further apart are worth a word, in microseconds: a service's wall clock jumps by it.
const CLOCK_LIMIT_US: u64 = 500_000;

/// All that was found out. What a node did not say is why it did not.
#[derive(Debug)]
struct Facts {
    record: Record,
    /// The owning node.
    source: String,
    /// Where it is to go.
    to: String,
    /// The destination is drained.
    drained: bool,
    /// The image is in the service repository.
    image_known: bool,
    said_by_source: Result<SourceFacts, String>,
    said_by_destination: Result<DestinationFacts, String>,
    /// How long the two were asked one after the other, in microseconds: their clocks may differ by it.
    asked_apart_us: u64,
}

impl Manager {
    /// Looks at everything that could stop a move. Nothing is changed anywhere.
    ///
    /// # Errors
    /// There is no such service or node.
    pub async fn check(&self, name: &str, to: &str) -> Result<Vec<Finding>, ApiError> {
        let record = self.record(name).await?;
        let source = self.owner(&record)?.to_owned();
        let agent = self.nodes.client(&source)?;
        let destination = self.nodes.client(to)?;
        let address = self.nodes.last_report(to).map(|report| report.address).unwrap_or_default();
        let node = self.nodes.list().into_iter().find(|node| node.report.name == to);
        let question = SourceQuestion {
            name: name.to_owned(),
            destination: address,
            destination_name: to.to_owned(),
        };
        let begun_us = now_us();
        let said_by_source =
            agent.json(Method::POST, "/v1/check/source", &question, LOOK_LIMIT).await;
        let question = DestinationQuestion { spec: record.spec.clone() };
        let said_by_destination =
            destination.json(Method::POST, "/v1/check/destination", &question, LOOK_LIMIT).await;
        Ok(findings(&Facts {
            drained: node.is_some_and(|node| node.drained),
            image_known: self.images.file(&record.spec.image.digest).is_ok(),
            said_by_source: said_by_source.map_err(|error| error.message),
            said_by_destination: said_by_destination.map_err(|error| error.message),
            asked_apart_us: now_us().saturating_sub(begun_us),
            record,
            source,
            to: to.to_owned(),
        }))
    }
}

/// What the facts mean for a move, in the order in which a move would meet them.
fn findings(facts: &Facts) -> Vec<Finding> {
    let mut found = vec![service(facts), node(facts)];
    if let Ok(destination) = &facts.said_by_destination {
        found.extend([image(facts, destination), memory(facts, destination)]);
        found.push(qemu(facts, &destination.host));
    }
    if let (Ok(source), Ok(destination)) = (&facts.said_by_source, &facts.said_by_destination) {
        found.extend([network(facts, source), clock(facts, &source.host, &destination.host)]);
    }
    found
}

fn finding(subject: &str, grade: Grade, detail: impl Into<String>) -> Finding {
    Finding { subject: subject.into(), grade, detail: detail.into() }
}

fn service(facts: &Facts) -> Finding {
    let Facts { record, source, to, .. } = facts;
    let refused = |detail: String| finding("service", Grade::Refused, detail);
    if let Some(id) = &record.migration {
        return refused(format!("{id} is under way"));
    }
    if source == to {
        return refused(format!("it runs on node {to} already"));
    }
    match &facts.said_by_source {
        Err(reason) => refused(format!("node {source} does not say how it is: {reason}")),
        Ok(SourceFacts { state: None, .. }) => {
            refused(format!("node {source} has no instance of it"))
        }
        Ok(SourceFacts { busy: true, .. }) => {
            refused("another move, checkpoint or stop of it is under way".into())
        }
        Ok(SourceFacts { state: Some(InstanceState::Running), .. }) => {
            let detail = format!("runs on node {source}, epoch {}", record.epoch);
            finding("service", Grade::Good, detail)
        }
        Ok(SourceFacts { state: Some(state), .. }) => {
            refused(format!("it is {state:?} on node {source}").to_lowercase())
        }
    }
}

fn node(facts: &Facts) -> Finding {
    let to = &facts.to;
    match &facts.said_by_destination {
        Err(reason) => finding("node", Grade::Refused, format!("node {to}: {reason}")),
        Ok(_) if facts.drained => {
            let detail = format!("node {to} is drained (`host-tools node undrain {to}`)");
            finding("node", Grade::Refused, detail)
        }
        Ok(DestinationFacts { occupied: true, .. }) => {
            let name = &facts.record.spec.name;
            finding(
                "node",
                Grade::Refused,
                format!("node {to} has an instance of `{name}` already"),
            )
        }
        Ok(_) => finding("node", Grade::Good, format!("node {to} takes services")),
    }
}

fn image(facts: &Facts, destination: &DestinationFacts) -> Finding {
    let image = &facts.record.spec.image;
    let build_id = image.build_id.short();
    match (destination.image_held, facts.image_known) {
        (true, _) => {
            finding("image", Grade::Good, format!("build {build_id} is on node {}", facts.to))
        }
        (false, true) => {
            finding("image", Grade::Good, format!("build {build_id} comes from the repository"))
        }
        (false, false) => {
            let detail = format!(
                "neither node {} nor the repository has build {build_id} (`host-tools image push`)",
                facts.to
            );
            finding("image", Grade::Refused, detail)
        }
    }
}

fn memory(facts: &Facts, destination: &DestinationFacts) -> Finding {
    let needed = u64::from(facts.record.spec.memory_mib) + QEMU_OVERHEAD_MIB;
    let free = destination.free_mib;
    let grade = if needed > free { Grade::Refused } else { Grade::Good };
    finding("memory", grade, format!("{needed} MiB are needed, {free} MiB are free"))
}

fn qemu(facts: &Facts, destination: &HostFacts) -> Finding {
    let there = match &destination.qemu {
        Ok(version) => version,
        Err(reason) => {
            return finding("qemu", Grade::Refused, format!("node {}: {reason}", facts.to));
        }
    };
    let accel = destination.accel;
    match facts.said_by_source.as_ref().map(|source| &source.host) {
        Ok(here) if here.accel != accel => {
            let detail = format!("executed by {}, there by {accel}: its speed changes", here.accel);
            finding("qemu", Grade::Notice, detail)
        }
        // The service's state does not depend on QEMU's version: it is what people upgrade this way.
        Ok(HostFacts { qemu: Ok(here), .. }) if here != there => {
            finding("qemu", Grade::Good, format!("from {here} to {there}"))
        }
        _ => finding("qemu", Grade::Good, format!("{there}, {accel}")),
    }
}

fn network(facts: &Facts, source: &SourceFacts) -> Finding {
    match &source.unreachable {
        Some(reason) => {
            let detail = format!("node {} cannot reach node {}: {reason}", facts.source, facts.to);
            finding("network", Grade::Refused, detail)
        }
        None => finding(
            "network",
            Grade::Good,
            format!("node {} reaches node {}", facts.source, facts.to),
        ),
    }
}

fn clock(facts: &Facts, source: &HostFacts, destination: &HostFacts) -> Finding {
    let apart_us = source.now_us.abs_diff(destination.now_us);
    let sure_us = apart_us.saturating_sub(facts.asked_apart_us);
    if sure_us > CLOCK_LIMIT_US {
        let detail = format!(
            "the hosts' clocks are {:.1} s apart: the service's wall clock jumps (its monotonic clock does not)",
            sure_us as f64 / 1e6
        );
        return finding("clock", Grade::Notice, detail);
    }
    finding("clock", Grade::Good, "the hosts' clocks agree")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::descriptor::tests::spec;
    use crate::qemu::Accel;
    use crate::store::Ownership;

    fn host() -> HostFacts {
        HostFacts { qemu: Ok("QEMU 7.2".into()), accel: Accel::Tcg, now_us: 5_000_000 }
    }

    fn facts() -> Facts {
        let record = Record {
            spec: spec("pad"),
            owner: Ownership::Node { name: "a".into() },
            epoch: 3,
            migration: None,
            created_us: 1,
        };
        let state = Some(InstanceState::Running);
        let source = SourceFacts { state, busy: false, unreachable: None, host: host() };
        let destination =
            DestinationFacts { free_mib: 4096, occupied: false, image_held: true, host: host() };
        Facts {
            record,
            source: "a".into(),
            to: "b".into(),
            drained: false,
            image_known: true,
            said_by_source: Ok(source),
            said_by_destination: Ok(destination),
            asked_apart_us: 1000,
        }
    }

    fn graded(facts: &Facts, wanted: Grade) -> Vec<(String, String)> {
        let found = findings(facts).into_iter().filter(|finding| finding.grade == wanted);
        found.map(|finding| (finding.subject, finding.detail)).collect()
    }

    #[test]
    fn nothing_in_the_way() {
        let found = findings(&facts());
        let subjects: Vec<_> = found.iter().map(|finding| finding.subject.as_str()).collect();
        assert_eq!(subjects, ["service", "node", "image", "memory", "qemu", "network", "clock"]);
        assert!(found.iter().all(|finding| finding.grade == Grade::Good), "{found:?}");
    }

    /// Each fact alone, and what is said of it.
    #[test]
    fn every_reason_is_named() {
        type Change = fn(&mut Facts);
        fn there(facts: &mut Facts) -> &mut DestinationFacts {
            facts.said_by_destination.as_mut().unwrap()
        }
        fn here(facts: &mut Facts) -> &mut SourceFacts {
            facts.said_by_source.as_mut().unwrap()
        }
        let cases: [(Change, &str, &str); 11] = [
            (|f| f.record.migration = Some("m7".into()), "service", "m7 is under way"),
            (|f| f.to = "a".into(), "service", "runs on node a already"),
            (|f| f.said_by_source = Err("no answer".into()), "service", "no answer"),
            (|f| here(f).state = None, "service", "no instance"),
            (|f| here(f).busy = true, "service", "under way"),
            (|f| here(f).state = Some(InstanceState::Failed), "service", "failed"),
            (|f| f.drained = true, "node", "undrain b"),
            (|f| there(f).occupied = true, "node", "already"),
            (|f| there(f).free_mib = 100, "memory", "100 MiB are free"),
            (|f| there(f).host.qemu = Err("cannot run it".into()), "qemu", "cannot run it"),
            (|f| here(f).unreachable = Some("refused".into()), "network", "refused"),
        ];
        for (change, subject, text) in cases {
            let mut facts = facts();
            change(&mut facts);
            let found = graded(&facts, Grade::Refused);
            assert!(found.len() == 1 && found[0].0 == subject, "{text}: {found:?}");
            assert!(found[0].1.contains(text), "{found:?}");
        }
        let mut facts = facts();
        facts.image_known = false;
        assert_eq!(graded(&facts, Grade::Refused), []);
        there(&mut facts).image_held = false;
        assert_eq!(graded(&facts, Grade::Refused)[0].0, "image");
    }

    #[test]
    fn what_users_may_notice() {
        let mut facts = facts();
        facts.said_by_destination.as_mut().unwrap().host.now_us += 2_000_000;
        assert_eq!(graded(&facts, Grade::Notice)[0].0, "clock");
        facts.asked_apart_us = 1_900_000;
        assert_eq!(graded(&facts, Grade::Notice), []);
        facts.said_by_destination.as_mut().unwrap().host.accel = Accel::Kvm;
        assert_eq!(graded(&facts, Grade::Notice)[0].0, "qemu");
    }
}
