//! Faults at random points of moves, in a lab of three hosts with real QEMUs and ordinary clients.
//! `sh tests/faults.sh` builds what it needs and runs it.
//!
//! 1. [`rig`]: the lab, its services, and what can be done to processes and links.
//! 2. [`watch`]: a move as its event stream tells it.
//! 3. [`inject`]: a fault, when its point has come.
//! 4. [`run`]: a run from the load to the verdict.
//!
//! What a seed chooses and the verdict are pure: `ferry_tests::faults`.

mod inject;
mod rig;
mod run;
mod watch;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use ferry_tests::faults::plan::{Plan, seed_of};
use ferry_tests::faults::verdict::Cost;

use rig::{Rig, SERVICES};
use run::Outcome;

/// Seeded runs: load, a move, one or two faults in it, and a verdict.
#[derive(Parser)]
struct Cli {
    /// How many runs
    #[arg(long, default_value_t = 20)]
    runs: u64,
    /// Which series of runs
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only the run with this seed, as the table names it
    #[arg(long, value_name = "SEED")]
    only: Option<u64>,
    /// `cargo test` passes it on; it changes nothing
    #[arg(long, hide = true)]
    nocapture: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let seeds: Vec<u64> = match cli.only {
        Some(seed) => vec![seed],
        None => (0..cli.runs).map(|number| seed_of(cli.seed, number)).collect(),
    };
    let mut rig = None;
    let mut failed = Vec::new();
    let begun = Instant::now();
    println!(
        "{:>4} {:>8}  {:11} {:58} {:6} {:>5} {:>5}  OUTCOME [frames of each host, in turn]",
        "RUN", "SEED", "MOVE", "FAULTS AND THEIR POINTS", "", "TIME", "REST"
    );
    for (number, &seed) in seeds.iter().enumerate() {
        let plan = Plan::of(seed);
        let started = Instant::now();
        let done = catch_unwind(AssertUnwindSafe(|| {
            let rig = rig.get_or_insert_with(|| Rig::start(env!("CARGO_TARGET_TMPDIR")));
            let outcome = run::run(rig, &plan);
            if outcome.violations.is_empty() && outcome.cost == Cost::Service {
                replace_lost(rig);
            }
            outcome
        }));
        let (violations, trace) = match done {
            Ok(outcome) => {
                print_row(number, seed, &outcome, started);
                (outcome.violations, outcome.trace)
            }
            Err(_) => {
                let faults: Vec<String> = plan.faults.iter().map(ToString::to_string).collect();
                println!("{number:>4} {seed:>8}  broke off: {}", faults.join(", "));
                (vec!["the run broke off".into()], Vec::new())
            }
        };
        if !violations.is_empty() {
            violations.iter().for_each(|violation| println!("{:14} ! {violation}", ""));
            failed.push(seed);
            if let Some(rig) = &rig {
                keep(rig, seed, &trace);
            }
            // The next run begins in a lab that is whole.
            let old = rig.take();
            let _ = catch_unwind(AssertUnwindSafe(|| drop(old)));
        }
    }
    // As the test programs say it, for tests/run.sh.
    let passed = seeds.len() - failed.len();
    for seed in &failed {
        println!("failed: seed {seed}; again: sh tests/faults.sh --only {seed}");
    }
    let verdict = if failed.is_empty() { "ok" } else { "FAILED" };
    println!(
        "test result: {verdict}. {passed} passed; {} failed; in {:.0} s",
        failed.len(),
        begun.elapsed().as_secs_f64()
    );
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn print_row(number: usize, seed: u64, outcome: &Outcome, started: Instant) {
    let faults: Vec<String> = outcome
        .faults
        .iter()
        .map(|(fault, hit)| {
            let missed = if *hit { "" } else { " (nothing there)" };
            format!("{fault} @ {}{missed}", fault.point)
        })
        .collect();
    let cost = match outcome.cost {
        Cost::None => "",
        Cost::Connections => "; the owner of its connections was killed",
        Cost::Service => "; its owner was killed",
    };
    let verdict = if outcome.violations.is_empty() { "ok" } else { "FAILED" };
    let turns: Vec<String> =
        outcome.turns.iter().map(|(node, turn)| format!("{node}:{}", turn.frames)).collect();
    println!(
        "{number:>4} {seed:>8}  {:11} {:58} {verdict:6} {:>4.1}s {:>4.1}s  {}{cost} [{}]",
        outcome.what,
        faults.join(" + "),
        started.elapsed().as_secs_f64(),
        outcome.settled.as_secs_f64(),
        outcome.ending,
        turns.join(" "),
    );
}

/// Starts the services again whose owner was killed.
fn replace_lost(rig: &Rig) {
    for service in &SERVICES {
        let known = rig.known(service.name).expect("the manager answers");
        if known.state == "failed" {
            let node = known.owner.expect("a node owned it");
            rig.world.run(&["stop", service.name]);
            rig.world.service(service.image, service.name, &node, service.ip, &[]);
        }
    }
}

/// Keeps what the daemons said, and what passed the switch, beside the logs of the tests.
fn keep(rig: &Rig, seed: u64, trace: &[u8]) {
    let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("../ferry/tests/faults-{seed}"));
    let kept = std::fs::create_dir_all(&to).and_then(|()| {
        for entry in std::fs::read_dir(rig.world.dir())? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "log")
                && let Some(name) = path.file_name()
            {
                std::fs::copy(&path, to.join(name))?;
            }
        }
        std::fs::write(to.join("switch.pcap"), trace)
    });
    match kept {
        Ok(()) => println!("{:14}   logs: {}", "", to.display()),
        Err(error) => println!("{:14}   the logs cannot be kept: {error}", ""),
    }
}
