//! What happens in a run, from its seed alone.
//!
//! Hosts are named by their part in the move, because where a service lies depends on the runs before. So
//! a seed means the same move and the same faults wherever it is run.

use std::fmt;
use std::time::Duration;

use crate::pattern;

/// Runs of one series whose seeds do not meet those of the next series.
pub const SERIES: u64 = 100_000;

/// The seed of a run: run `number` of the series that `--seed` names.
#[must_use]
pub fn seed_of(series: u64, number: u64) -> u64 {
    series.wrapping_mul(SERIES).wrapping_add(number)
}

/// Which service moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// The echo service.
    Pingpong,
    /// Up- and downloads.
    Transfer,
}

/// What something is done to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Target {
    SourceQemu,
    DestinationQemu,
    SourceAgent,
    DestinationAgent,
    /// The manager that leads.
    Manager,
    /// A member of etcd, by its number.
    StoreMember(u8),
    /// What two nodes say to each other.
    Between(Part, Part),
    /// The cable of a host: nobody reaches it, nor its guests.
    Cable(Part),
}

/// A node, by its part in the move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Part {
    Source,
    Destination,
    Manager,
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// SIGKILL. A daemon is started again after this time.
    Kill(Duration),
    /// SIGSTOP, and SIGCONT after this time.
    Stop(Duration),
    /// Nothing passes for this time.
    Cut(Duration),
}

/// The instants of a move that can be seen from outside: phases that its event stream tells at once.
pub const PHASES: [&str; 7] =
    ["request", "prepare", "precopy", "drain", "freeze", "transfer", "remove"];

/// When.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// A phase, of [`PHASES`].
    pub phase: &'static str,
    /// After the phase was seen to begin.
    pub offset: Duration,
}

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Fault {
    pub target: Target,
    pub deed: Deed,
    pub point: Point,
}

/// A run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Which service moves.
    pub moved: Moved,
    /// Of the two other hosts, the second one.
    pub to_second: bool,
    /// One or two faults.
    pub faults: Vec<Fault>,
}

impl Plan {
    /// See the module's documentation.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let mut random = Random { seed, next: 0 };
        let moved = if random.below(2) == 0 { Moved::Pingpong } else { Moved::Transfer };
        let to_second = random.below(2) == 1;
        let first = fault(&mut random);
        let mut faults = vec![first];
        if random.below(3) == 0 {
            let mut second = fault(&mut random);
            // Half of them fall into the repair of the first.
            if random.below(2) == 0 {
                let later = random.below(1_500_000);
                second.point.phase = first.point.phase;
                second.point.offset = first.point.offset + Duration::from_micros(later);
            }
            if second.target != first.target {
                faults.push(second);
            }
        }
        Self { moved, to_second, faults }
    }
}

/// Numbers from a seed.
struct Random {
    seed: u64,
    next: u64,
}

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.next += 1;
        pattern::word(self.seed, self.next) % end
    }
}

fn fault(random: &mut Random) -> Fault {
    use Part::{Destination, Manager, Source};
    let target = match random.below(15) {
        0 => Target::SourceQemu,
        1 | 2 => Target::DestinationQemu,
        3 | 4 => Target::SourceAgent,
        5 | 6 => Target::DestinationAgent,
        7 | 8 => Target::Manager,
        9 => Target::Between(Source, Destination),
        10 => Target::Between(Source, Manager),
        11 => Target::Between(Destination, Manager),
        12 | 13 => Target::StoreMember(u8::try_from(1 + random.below(3)).unwrap_or(1)),
        _ => Target::Cable(if random.below(2) == 0 { Source } else { Destination }),
    };
    let while_of =
        |random: &mut Random, most_ms| Duration::from_millis(200 + random.below(most_ms));
    let deed = match target {
        Target::Between(..) | Target::Cable(_) => Deed::Cut(while_of(random, 3_000)),
        _ if random.below(2) == 0 => Deed::Kill(while_of(random, 1_000)),
        _ => Deed::Stop(while_of(random, 3_000)),
    };
    Fault { target, deed, point: point(random) }
}

/// The short phases are where it matters: they are chosen as often as the long ones.
fn point(random: &mut Random) -> Point {
    let (phase, most_us) = match random.below(14) {
        0 => ("request", 40_000),
        1 | 2 => ("prepare", 600_000),
        3 | 4 => ("precopy", 40_000),
        5 | 6 => ("drain", 15_000),
        7 | 8 => ("freeze", 10_000),
        // The commit and the resume follow it within milliseconds, and are told later.
        9..=11 => ("transfer", 25_000),
        _ => ("remove", 100_000),
    };
    Point { phase, offset: Duration::from_micros(random.below(most_us)) }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Destination => "destination",
            Self::Manager => "manager",
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SourceQemu => f.write_str("source QEMU"),
            Self::DestinationQemu => f.write_str("destination QEMU"),
            Self::SourceAgent => f.write_str("source agent"),
            Self::DestinationAgent => f.write_str("destination agent"),
            Self::Manager => f.write_str("manager"),
            Self::StoreMember(number) => write!(f, "etcd member {number}"),
            Self::Between(one, other) => write!(f, "link {one}-{other}"),
            Self::Cable(part) => write!(f, "cable of {part}"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.deed {
            Deed::Kill(_) => write!(f, "{} killed", self.target),
            Deed::Stop(time) => write!(f, "{} stopped {:.1}s", self.target, time.as_secs_f64()),
            Deed::Cut(time) => write!(f, "{} cut {:.1}s", self.target, time.as_secs_f64()),
        }
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{:.1}ms", self.phase, self.offset.as_secs_f64() * 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_run() {
        for seed in 0..100 {
            assert_eq!(Plan::of(seed), Plan::of(seed));
        }
        assert_ne!(Plan::of(1), Plan::of(2));
        assert_eq!(seed_of(1, 0), 100_000);
        assert_ne!(seed_of(1, 500), seed_of(2, 500));
    }

    #[test]
    fn every_target_every_deed_and_every_phase_is_chosen() {
        let plans: Vec<_> = (0..500).map(|number| Plan::of(seed_of(1, number))).collect();
        let faults: Vec<_> = plans.iter().flat_map(|plan| &plan.faults).collect();
        for target in [
            Target::SourceQemu,
            Target::DestinationQemu,
            Target::SourceAgent,
            Target::DestinationAgent,
            Target::Manager,
            Target::StoreMember(1),
            Target::StoreMember(2),
            Target::StoreMember(3),
        ] {
            let of = |kind: fn(&Deed) -> bool| {
                faults.iter().filter(|f| f.target == target && kind(&f.deed)).count()
            };
            assert!(of(|deed| matches!(deed, Deed::Kill(_))) > 3, "{target}");
            assert!(of(|deed| matches!(deed, Deed::Stop(_))) > 3, "{target}");
        }
        let cuts = |kind: fn(&Target) -> bool| faults.iter().filter(|f| kind(&f.target)).count();
        assert!(cuts(|target| matches!(target, Target::Cable(_))) > 20);
        assert!(cuts(|target| matches!(target, Target::Between(..))) > 50);
        for phase in PHASES {
            assert!(faults.iter().filter(|f| f.point.phase == phase).count() > 20, "{phase}");
        }
        let two = plans.iter().filter(|plan| plan.faults.len() == 2).count();
        assert!((100..250).contains(&two), "{two} of 500 have two faults");
        assert!(plans.iter().all(|plan| (1..=2).contains(&plan.faults.len())));
    }

    #[test]
    fn only_links_are_cut_and_only_processes_are_stopped() {
        for plan in (0..500).map(Plan::of) {
            for fault in plan.faults {
                let link = matches!(fault.target, Target::Between(..) | Target::Cable(_));
                assert_eq!(matches!(fault.deed, Deed::Cut(_)), link, "{fault}");
            }
        }
    }
}
