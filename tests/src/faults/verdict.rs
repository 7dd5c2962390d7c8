//! Whether what was observed after a run keeps Ferry's promises.
//!
//! - Every move has ended.
//! - One instance of each service is there and answers, on the node that the manager names.
//! - Frames came from one host at a time: from the source, then from the destination if the service was moved
//!   there, then from the source again if it was taken back; never from one that had lost it.
//! - No byte is wrong or missing on any connection whose owner lived on.
//!
//! A QEMU that was killed while it owned the service takes the service with it: that is expected, and said.

use std::collections::BTreeMap;

use super::plan::Part;
use crate::client::End;

/// How the run's move ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It never began: its manager was gone before.
    None,
    /// The service runs on the destination.
    Moved,
    /// It failed before the commit.
    Kept,
    /// The destination was lost after the commit.
    TakenBack,
    /// The service does not run.
    Broken,
    /// It is not over.
    Open(String),
}

/// One service after a run.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// The node that owns it, as the manager says.
    pub owner: Option<String>,
    /// Whether the manager says that it runs.
    pub runs: bool,
    /// QEMUs of it, by node.
    pub instances: BTreeMap<String, usize>,
    /// The nodes that sent frames of it, in turn.
    pub speakers: Vec<String>,
    /// TCP segments with RST that it sent.
    pub resets: usize,
    /// What its clients reported; those that had to be ended are not there.
    pub clients: Vec<End>,
    /// What a new client came to.
    pub probe: Result<(), String>,
}

/// What is known after a run.
#[derive(Clone, Debug)]
pub struct Observed {
    /// Where the service that moves was.
    pub source: String,
    /// Where it should go.
    pub destination: String,
    /// How its move ended.
    pub ending: Ending,
    /// Moves that had not ended at the deadline.
    pub open_moves: Vec<String>,
    /// The parts whose QEMU of the moving service was killed.
    pub killed: Vec<Part>,
    /// The service that moves.
    pub moved: Service,
    /// The other.
    pub other: Service,
}

/// What a fault may have cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cost {
    /// Nothing.
    None,
    /// Connections: the destination was killed when it owned them, and the source went on with its copy.
    Connections,
    /// The service: its owner was killed.
    Service,
}

/// What the run's faults may have cost the service that moves.
#[must_use]
pub fn expected_cost(killed: &[Part], ending: &Ending) -> Cost {
    let (source, destination) =
        (killed.contains(&Part::Source), killed.contains(&Part::Destination));
    match ending {
        Ending::Moved if destination => Cost::Service,
        Ending::TakenBack if source => Cost::Service,
        Ending::TakenBack if destination => Cost::Connections,
        Ending::Kept | Ending::None | Ending::Broken if source => Cost::Service,
        _ => Cost::None,
    }
}

/// Everything that should not be.
#[must_use]
pub fn violations(observed: &Observed) -> Vec<String> {
    let Observed { source, destination, ending, open_moves, killed, moved, other } = observed;
    let mut all: Vec<String> =
        open_moves.iter().map(|id| format!("the move {id} has not ended")).collect();
    if let Ending::Open(state) = ending {
        all.push(format!("the move is {state}"));
    }
    let cost = expected_cost(killed, ending);
    if *ending == Ending::Broken && cost != Cost::Service {
        all.push("the move ended without the service, whose owner was not killed".into());
    }
    let (s, d) = (source.as_str(), destination.as_str());
    let turns: &[&str] = match ending {
        Ending::Moved => &[s, d],
        Ending::TakenBack => &[s, d, s],
        Ending::None | Ending::Kept | Ending::Broken | Ending::Open(_) => &[s],
    };
    check(moved, turns, cost, &mut all);
    let home = other.owner.clone().unwrap_or_default();
    check(other, &[&home], Cost::None, &mut all);
    all
}

fn check(service: &Service, turns: &[&str], cost: Cost, all: &mut Vec<String>) {
    let Service { name, owner, runs, instances, speakers, resets, clients, probe } = service;
    if !subsequence(speakers, turns) {
        let allowed = turns.join(", ");
        all.push(format!("{name}: frames came from {}, not {allowed}", speakers.join(", ")));
    }
    let there: Vec<_> = instances.iter().filter(|(_, count)| **count > 0).collect();
    let count: usize = instances.values().sum();
    if cost == Cost::Service && !*runs {
        if count > 0 {
            all.push(format!("{name} does not run, and is there: {there:?}"));
        }
        return;
    }
    if !*runs {
        all.push(format!("{name} does not run"));
    }
    let home = turns.last().copied().unwrap_or_default();
    if owner.as_deref() != Some(home) {
        all.push(format!("{name} belongs to {owner:?}, not to {home}"));
    }
    if count != 1 || !there.iter().all(|(node, _)| node.as_str() == home) {
        all.push(format!("{name} should be on {home} alone, and is there: {there:?}"));
    }
    match probe {
        Ok(()) if speakers.last().map(String::as_str) != Some(home) => {
            all.push(format!("{name}: a new client was answered by {speakers:?}, not {home}"));
        }
        Ok(()) => {}
        Err(why) => all.push(format!("{name} does not answer a new client: {why}")),
    }
    if cost == Cost::None {
        if *resets > 0 {
            all.push(format!("{name} sent {resets} RST"));
        }
        for end in clients.iter().filter(|end| !end.flawless()) {
            all.push(format!(
                "{name}: of {} connections of {}, {} lived: {:?}",
                end.connections, end.client, end.alive, end.failures
            ));
        }
    }
}

/// Whether `found` is `allowed` with parts left out.
fn subsequence(found: &[String], allowed: &[&str]) -> bool {
    let mut allowed = allowed.iter();
    found.iter().all(|one| allowed.any(|other| one == other))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, node: &str, speakers: &[&str]) -> Service {
        Service {
            name: name.into(),
            owner: Some(node.into()),
            runs: true,
            instances: BTreeMap::from([(node.to_owned(), 1)]),
            speakers: speakers.iter().map(|&node| node.to_owned()).collect(),
            resets: 0,
            clients: vec![End::new("pingpong", 2)],
            probe: Ok(()),
        }
    }

    fn observed(ending: Ending, node: &str, speakers: &[&str]) -> Observed {
        Observed {
            source: "a".into(),
            destination: "b".into(),
            ending,
            open_moves: Vec::new(),
            killed: Vec::new(),
            moved: service("p", node, speakers),
            other: service("q", "c", &["c"]),
        }
    }

    #[test]
    fn what_is_as_it_should_be() {
        for (ending, node, speakers) in [
            (Ending::None, "a", &["a"][..]),
            (Ending::Kept, "a", &["a"]),
            (Ending::Moved, "b", &["a", "b"]),
            (Ending::Moved, "b", &["b"]),
            (Ending::TakenBack, "a", &["a", "b", "a"]),
            (Ending::TakenBack, "a", &["a"]),
        ] {
            assert_eq!(violations(&observed(ending, node, speakers)), [] as [String; 0]);
        }
    }

    #[test]
    fn two_that_answer_are_seen() {
        for (ending, node, speakers) in [
            (Ending::Kept, "a", &["a", "b", "a"][..]),
            (Ending::Moved, "b", &["a", "b", "a", "b"]),
            (Ending::Moved, "b", &["b", "a", "b"]),
            (Ending::TakenBack, "a", &["a", "b", "a", "b", "a"]),
            (Ending::Moved, "b", &["a", "c", "b"]),
            // It answers, and not from where it should.
            (Ending::Moved, "b", &["a"]),
        ] {
            assert_eq!(violations(&observed(ending, node, speakers)).len(), 1, "{speakers:?}");
        }
        let mut twice = observed(Ending::Moved, "b", &["a", "b"]);
        twice.moved.instances.insert("a".into(), 1);
        assert_eq!(violations(&twice).len(), 1);
    }

    #[test]
    fn each_promise_is_asked_for() {
        let right = || observed(Ending::Moved, "b", &["a", "b"]);
        let breaks: [fn(&mut Observed); 8] = [
            |it| it.open_moves.push("m1".into()),
            |it| it.moved.runs = false,
            |it| it.moved.owner = Some("a".into()),
            |it| it.moved.probe = Err("no".into()),
            |it| it.moved.resets = 1,
            |it| it.moved.clients[0].alive = 1,
            |it| it.other.clients[0].alive = 1,
            |it| it.other.instances.clear(),
        ];
        for (number, breaks) in breaks.into_iter().enumerate() {
            let mut observed = right();
            breaks(&mut observed);
            assert_eq!(violations(&observed).len(), 1, "{number}");
        }
        let open = observed(Ending::Open("in precopy".into()), "a", &["a"]);
        assert_eq!(violations(&open).len(), 1);
    }

    #[test]
    fn a_killed_owner_costs_the_service_and_nobody_else_does() {
        use Part::{Destination, Source};
        for (killed, ending, cost) in [
            (&[Source][..], Ending::Kept, Cost::Service),
            (&[Source], Ending::Broken, Cost::Service),
            (&[Source], Ending::None, Cost::Service),
            (&[Source], Ending::Moved, Cost::None),
            (&[Destination], Ending::Kept, Cost::None),
            (&[Destination], Ending::Moved, Cost::Service),
            (&[Destination], Ending::TakenBack, Cost::Connections),
            (&[Source, Destination], Ending::TakenBack, Cost::Service),
            (&[Source, Destination], Ending::Moved, Cost::Service),
            (&[], Ending::Broken, Cost::None),
        ] {
            assert_eq!(expected_cost(killed, &ending), cost, "{killed:?} {ending:?}");
        }
        let mut lost = observed(Ending::Broken, "a", &["a"]);
        lost.moved.runs = false;
        lost.moved.instances.clear();
        lost.moved.probe = Err("no answer".into());
        lost.moved.clients.clear();
        assert!(!violations(&lost).is_empty());
        lost.killed = vec![Source];
        assert_eq!(violations(&lost), [] as [String; 0]);
        // What may have been lost must not be there twice.
        lost.moved.instances.insert("b".into(), 1);
        assert_eq!(violations(&lost).len(), 1);
    }

    #[test]
    fn connections_may_go_with_the_destination_that_owned_them() {
        let mut taken = observed(Ending::TakenBack, "a", &["a", "b", "a"]);
        taken.moved.resets = 3;
        taken.moved.clients[0].alive = 0;
        assert_eq!(violations(&taken).len(), 2);
        taken.killed = vec![Part::Destination];
        assert_eq!(violations(&taken), [] as [String; 0]);
    }
}
