//! The part `move`: what a client feels when a service moves, of Ferry and of its peers.

use std::path::Path;

use ferry_tests::harness::World;

use crate::figure::{Figure, Goal, Peer, Sample};
use crate::measure::{Outcome, measure};
use crate::mover::{Ferry, Mover};
use crate::peers::Assets;
use crate::peers::criu::Process;
use crate::peers::migration::{Migrated, Tuning};
use crate::plot::{self, Group, Mark, Plot};
use crate::workload::Workload;
use crate::{Bench, Scale, caught};

const SECTION: &str = "move";
/// How often a service is started for one workload, if it ends before its last move.
const LIVES: usize = 3;

/// What moves a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum System {
    Ferry,
    QemuTuned,
    QemuDefault,
    /// QEMU's own live migration of the image that Ferry moves.
    QemuImage,
    Criu,
}

impl System {
    const ALL: [Self; 5] =
        [Self::Ferry, Self::QemuTuned, Self::QemuDefault, Self::QemuImage, Self::Criu];

    fn name(self) -> &'static str {
        match self {
            Self::Ferry => "Ferry",
            Self::QemuTuned => "QEMU, tuned",
            Self::QemuDefault => "QEMU, as it comes",
            Self::QemuImage => "QEMU, tuned, Ferry's image",
            Self::Criu => "CRIU",
        }
    }

    /// How it is chosen on the command line, and what its lab is called.
    fn short(self) -> &'static str {
        match self {
            Self::Ferry => "ferry",
            Self::QemuTuned => "tuned",
            Self::QemuDefault => "default",
            Self::QemuImage => "image",
            Self::Criu => "criu",
        }
    }

    /// What is measured of it, and how often the service moves under each workload.
    fn plan(self, scale: Scale) -> (Vec<Workload>, usize) {
        let mut all = vec![
            Workload::PingPong(1),
            Workload::PingPong(100),
            Workload::PingPong(1000),
            Workload::Idle(1000),
            Workload::Download,
            Workload::Upload,
        ];
        match (scale, self) {
            (Scale::Quick, Self::Ferry) => (all, 5),
            (Scale::Quick, Self::QemuTuned | Self::Criu) => (all, 4),
            (Scale::Quick, _) => (vec![Workload::PingPong(100), Workload::Download], 3),
            (Scale::Full, Self::QemuDefault | Self::QemuImage) => (all, 6),
            (Scale::Full, system) => {
                // Last of its service, whose heap is larger from then on.
                all.insert(4, Workload::PingPong(10_000));
                (all, if system == Self::Ferry { 20 } else { 12 })
            }
        }
    }
}

/// What was measured, in the order of [`System::ALL`] and of its plan.
struct Found {
    system: System,
    workload: Workload,
    outcome: Outcome,
}

/// A service that could not be started or measured under a system.
struct Missing {
    system: System,
    service: &'static str,
    why: String,
}

/// Measures everything. What one system cannot do does not keep the others from being measured.
pub fn run(bench: &mut Bench) -> Result<(), String> {
    let assets = Assets::find(&bench.scratch);
    let mut found = Vec::new();
    let mut missing = Vec::new();
    let wanted = |system: &System| {
        bench.systems.is_empty() || bench.systems.iter().any(|name| name == system.short())
    };
    for system in System::ALL.into_iter().filter(wanted) {
        let (workloads, moves) = system.plan(bench.scale);
        for service in ["pingpong", "transfer"] {
            let of_it = workloads.iter().filter(|workload| workload.service() == service);
            let of_it: Vec<Workload> = of_it.copied().collect();
            let result = caught(|| {
                measure_service(
                    &bench.scratch,
                    assets.as_ref(),
                    (system, service),
                    &of_it,
                    moves,
                    &mut found,
                )
            });
            if let Err(error) = result {
                let error = format!("{}, {service}: {error}", system.name());
                eprintln!("bench: {error}");
                missing.push(Missing { system, service, why: error });
            }
        }
    }
    for found in found.iter().filter(|found| found.system == System::Ferry) {
        bench.damage.add(found.outcome.damage);
    }
    for found in &found {
        if let (System::Ferry, Some(why)) = (found.system, &found.outcome.broke) {
            let (service, why) = (found.workload.service(), format!("Ferry: {why}"));
            missing.push(Missing { system: System::Ferry, service, why });
        }
    }
    let (planned, _) = System::Ferry.plan(bench.scale);
    let figures = figures(&found, &missing, &planned);
    bench.figures.extend(figures);
    bench.plots.push(gaps(&found)?);
    let errors: Vec<String> = missing.iter().map(|lost| one_line(&lost.why)).collect();
    if errors.is_empty() { Ok(()) } else { Err(errors.join("; ")) }
}

/// Starts a service in a lab of its own, and measures its workloads one after the other. Where a service did not live
/// to the last move, it is started again, for the moves that are left and for the next workload.
fn measure_service(
    scratch: &Path,
    assets: Result<&Assets, &String>,
    (system, service): (System, &str),
    workloads: &[Workload],
    moves: usize,
    found: &mut Vec<Found>,
) -> Result<(), String> {
    let scratch = scratch.to_str().ok_or("the scratch directory's name is no text")?;
    let lab = format!("{}-{service}", system.short());
    let world = match system {
        System::Ferry => World::start(scratch, &lab, 2),
        _ => World::bare(scratch, &lab, 2),
    };
    let assets = || assets.map_err(String::clone);
    let many = workloads.iter().any(|workload| workload.connections() > 1000);
    let start = || -> Result<Box<dyn Mover + '_>, String> {
        Ok(match system {
            System::Ferry => {
                let memory: &[&str] = if many { &["--memory", "192M"] } else { &[] };
                Box::new(Ferry::start(&world, service, memory))
            }
            System::QemuTuned => {
                Box::new(Migrated::linux(&world, assets()?, service, Tuning::Short)?)
            }
            System::QemuDefault => {
                Box::new(Migrated::linux(&world, assets()?, service, Tuning::Default)?)
            }
            System::QemuImage => {
                Box::new(Migrated::image(&world, &world.image(service), Tuning::Short)?)
            }
            System::Criu => Box::new(Process::start(&world, assets()?, service)?),
        })
    };
    let mut running = None;
    for workload in workloads {
        let mut all = Outcome::default();
        for _ in 0..LIVES {
            let mut mover = match running.take() {
                Some(mover) => mover,
                None => start()?,
            };
            let done = all.added_ms.0.len();
            let outcome = match measure(&world, &mut *mover, *workload, moves - done) {
                Ok(outcome) => outcome,
                // What earlier lives have shown counts.
                Err(error) if done > 0 => {
                    all.broke = Some(error);
                    break;
                }
                Err(error) => return Err(format!("{}: {error}", workload.name())),
            };
            let broke = outcome.broke.is_some();
            all.append(outcome);
            if !broke {
                running = Some(mover);
                break;
            }
            if let Some(why) = &all.broke {
                eprintln!("bench: {}, {}: {why}", system.name(), workload.name());
            }
        }
        say(system, *workload, &all);
        found.push(Found { system, workload: *workload, outcome: all });
    }
    Ok(())
}

/// A line while it runs.
fn say(system: System, workload: Workload, outcome: &Outcome) {
    let median = |sample: &Sample| sample.median().unwrap_or(f64::NAN);
    println!(
        "{}, {}: added gap {:.1} ms (max {:.1}; quiet {:.1} ms), downtime {:.1} ms, total {:.0} ms, {:.2} MB, \
         rate kept {:.2}, {} resets, {} damaged, {} failed",
        system.name(),
        workload.name(),
        median(&outcome.added_ms),
        outcome.added_ms.max().unwrap_or(f64::NAN),
        median(&outcome.quiet_ms),
        median(&outcome.downtime_ms),
        median(&outcome.total_ms),
        median(&outcome.bytes) / 1e6,
        median(&outcome.kept_rate),
        outcome.damage.resets,
        outcome.damage.damaged,
        outcome.damage.failed,
    );
}

fn figures(found: &[Found], missing: &[Missing], planned: &[Workload]) -> Vec<Figure> {
    let of = |system: System, workload: Workload| {
        let found = found.iter().find(|found| found.system == system && found.workload == workload);
        found.map(|found| &found.outcome)
    };
    // What was to be measured and was not keeps its row, with the reason.
    let sample = |system: System, workload: Workload, part: fn(&Outcome) -> &Sample| {
        let why = missing
            .iter()
            .find(|lost| lost.system == system && lost.service == workload.service())
            .map(|lost| format!("{} not measured: {}; ", system.name(), one_line(&lost.why)));
        match of(system, workload) {
            Some(outcome) => Some((part(outcome).clone(), broken(system, outcome))),
            None => why.map(|why| (Sample::default(), why)),
        }
    };
    let ferry = |workload: Workload| match of(System::Ferry, workload) {
        Some(ours) => Some((ours.clone(), broken(System::Ferry, ours))),
        None => sample(System::Ferry, workload, |outcome| &outcome.added_ms)
            .map(|(_, why)| (Outcome::default(), why)),
    };
    let workloads = || planned.iter().copied();
    let peers = || System::ALL.into_iter().filter(|system| *system != System::Ferry);
    let mut out = Vec::new();
    for workload in workloads() {
        let Some((ours, why)) = ferry(workload) else { continue };
        let (added, note) = counted(&ours);
        let name = |what: &str| format!("{what}, {}", workload.name());
        for system in peers() {
            let theirs = sample(system, workload, |outcome| &outcome.added_ms);
            let Some((mut theirs, broken)) = theirs else { continue };
            if of(system, workload).is_some_and(Outcome::lost_connections) {
                // A connection that has ended waits for nothing: its gaps say nothing of a move.
                theirs = Sample::default();
            }
            let peer = (system.name(), theirs);
            let goal = matches!(system, System::QemuTuned | System::Criu)
                .then_some(Goal::AtMost(1.0 / 20.0));
            let note = format!("{why}{broken}{note}");
            out.push(figure(name("added gap"), "ms", added.clone(), Some(peer), goal, note));
        }
    }
    let many = of(System::Ferry, Workload::PingPong(10_000));
    if let (Some(many), Some(few)) = (many, of(System::Ferry, Workload::PingPong(100))) {
        let (many, note) = counted(many);
        let few = ("Ferry, 100 connections", counted(few).0);
        let name = "added gap, ping-pong, 10000 connections".to_owned();
        out.push(figure(name, "ms", many, Some(few), Some(Goal::AtMost(3.0)), note));
    }
    for workload in workloads() {
        let Some((ours, why)) = ferry(workload) else { continue };
        let name = |what: &str| format!("{what}, {}", workload.name());
        if workload.is_bulk() {
            let goal = Some(Goal::AtLeast(0.95));
            let name = name("rate one second after a move");
            out.push(figure(name, "of before", ours.kept_rate.clone(), None, goal, why.clone()));
        }
        for system in [System::QemuTuned, System::Criu] {
            let mut row = |what: &str, unit, part: fn(&Outcome) -> &Sample, goal| {
                let Some((theirs, broken)) = sample(system, workload, part) else { return };
                let peer = Some((system.name(), theirs));
                let note = format!("{why}{broken}");
                out.push(figure(name(what), unit, part(&ours).clone(), peer, goal, note));
            };
            let goal = match (workload, system) {
                (Workload::Idle(_), System::QemuTuned) => Some(Goal::AtMost(1.0 / 50.0)),
                (Workload::Idle(_), _) => Some(Goal::AtMost(1.0 / 4.0)),
                _ => None,
            };
            row("bytes moved", "bytes", |outcome| &outcome.bytes, goal);
            row("downtime as reported", "ms", |outcome| &outcome.downtime_ms, None);
            row("total time", "ms", |outcome| &outcome.total_ms, None);
            if workload.is_bulk() {
                row(
                    "rate one second after a move",
                    "of before",
                    |outcome| &outcome.kept_rate,
                    None,
                );
            }
        }
    }
    out
}

/// Added gaps as a ratio may use them: what cannot be told from none counts as the smallest that can.
fn counted(outcome: &Outcome) -> (Sample, String) {
    let least = outcome.resolution_ms();
    let counted = Sample(outcome.added_ms.0.iter().map(|added| added.max(least)).collect());
    let below = outcome.added_ms.0.iter().filter(|added| **added < least).count();
    let quiet = outcome.quiet_ms.median().unwrap_or(f64::NAN);
    let mut note = format!("longest gap without a move: {quiet:.1} ms");
    if below > 0 {
        note += &format!(
            "; {below} of Ferry's are below {least:.1} ms, which is what can be told, and count as that"
        );
    }
    (counted, note)
}

/// A reason as a cell of a table: its first line, and what a guest's kernel said it died of.
pub fn one_line(why: &str) -> String {
    let panic = why.lines().find_map(|line| line.find("Kernel panic").map(|at| &line[at..]));
    let first = why.lines().next().unwrap_or_default();
    let first = first.trim_end_matches("; its console:");
    [Some(first), panic].into_iter().flatten().collect::<Vec<_>>().join("; ").replace('|', "/")
}

/// What went wrong with a system, for the row's note.
fn broken(system: System, outcome: &Outcome) -> String {
    let mut note = String::new();
    if let Some(why) = &outcome.broke {
        note += &format!("{} did not live to the end: {}; ", system.name(), one_line(why));
    }
    let damage = outcome.damage;
    match damage.connections() {
        0 => note,
        broken => note + &format!("{broken} connections of {}'s clients broke; ", system.name()),
    }
}

fn figure(
    name: String,
    unit: &str,
    ferry: Sample,
    peer: Option<(&str, Sample)>,
    goal: Option<Goal>,
    note: String,
) -> Figure {
    let peer = peer.map(|(name, sample)| Peer { name: name.to_owned(), sample });
    Figure { section: SECTION.into(), name, unit: unit.into(), ferry, peer, goal, note }
}

/// The client's longest gaps in a picture.
fn gaps(found: &[Found]) -> Result<Plot, String> {
    let mut groups: Vec<Group> = Vec::new();
    for found in found {
        let (Some(median), Some(max)) =
            (found.outcome.moving_ms.median(), found.outcome.moving_ms.max())
        else {
            continue;
        };
        let mark = Mark { series: found.system.name(), median, max };
        let name = found.workload.name();
        match groups.iter_mut().find(|group| group.name == name) {
            Some(group) => group.marks.push(mark),
            None => groups.push(Group { name, marks: vec![mark] }),
        }
    }
    let series: Vec<&str> = System::ALL.into_iter().map(System::name).collect();
    let caption = "Longest gap that a client saw in the window of a move: median and largest";
    plot::gaps("gaps.svg", caption, &series, &groups)
}
