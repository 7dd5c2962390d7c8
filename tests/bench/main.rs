//! `ferry-bench`: measures Ferry beside its peers, on this machine, in one run, and writes a report.
//!
//! `sh tests/bench.sh` sets up what it needs and calls it.

mod cost;
mod figure;
mod goals;
mod kit;
mod load;
mod measure;
mod mover;
mod moves;
mod paper;
mod peers;
mod plot;
mod process;
mod report;
mod serving;
mod state;
mod workload;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, ValueEnum};
use figure::{Damage, Figure};

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Scale {
    /// Every figure, few runs: about 20 minutes on two processors
    Quick,
    /// More and longer runs, and 10,000 connections: about an hour
    Full,
}

/// Measures Ferry beside its peers and writes report.md, report.json and plots.
#[derive(Parser)]
struct Cli {
    /// How much is measured
    #[arg(value_enum, default_value = "quick")]
    scale: Scale,
    /// Only these parts
    #[arg(long, value_name = "PART", value_delimiter = ',')]
    only: Vec<String>,
    /// Of what moves services, only these: ferry, tuned, default, image, criu
    #[arg(long, value_name = "SYSTEM", value_delimiter = ',')]
    systems: Vec<String>,
    /// Where the report goes
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    out: PathBuf,
    /// Measure nothing: draw the goals of this report.json again, beside it
    #[arg(long, value_name = "FILE")]
    redraw: Option<PathBuf>,
    /// Where guests, images and traces of a run lie
    #[arg(long, value_name = "DIR", default_value = "target/tmp")]
    scratch: PathBuf,
}

/// What one part of the benchmark may use, and what it hands back.
pub struct Bench {
    /// How much is measured.
    scale: Scale,
    /// What moves services, by short names; none: all.
    systems: Vec<String>,
    /// An absolute directory for files of the run.
    scratch: PathBuf,
    /// What has been found so far.
    figures: Vec<Figure>,
    /// Pictures for the report.
    plots: Vec<plot::Plot>,
    /// What went wrong with connections of Ferry's clients.
    damage: Damage,
}

/// A part: its name, and what measures it. An error says what is missing or what failed; the other parts go on.
type Part = (&'static str, fn(&mut Bench) -> Result<(), String>);

const PARTS: &[Part] = &[
    ("move", moves::run),
    ("paper", paper::measure),
    ("cost", cost::measure),
    ("serving", serving::measure),
];

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Some(file) = &cli.redraw {
        return match report::redraw(file) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("error: {}: {error}", file.display());
                ExitCode::FAILURE
            }
        };
    }
    let scratch = std::fs::create_dir_all(&cli.scratch).and_then(|()| cli.scratch.canonicalize());
    let scratch = match scratch {
        Ok(scratch) => scratch,
        Err(error) => {
            eprintln!("error: {}: {error}", cli.scratch.display());
            return ExitCode::FAILURE;
        }
    };
    let mut bench = Bench {
        scale: cli.scale,
        systems: cli.systems,
        scratch,
        figures: Vec::new(),
        plots: Vec::new(),
        damage: Damage::default(),
    };
    let mut failures = Vec::new();
    for (name, measure) in PARTS {
        if !cli.only.is_empty() && !cli.only.iter().any(|wanted| wanted == name) {
            continue;
        }
        let begun = Instant::now();
        println!("== {name}");
        if let Err(error) = caught(|| measure(&mut bench)) {
            eprintln!("bench: {name}: {error}");
            failures.push(format!("{name}: {error}"));
        }
        println!("== {name}: {:.0} s", begun.elapsed().as_secs_f64());
        // What has been found is not lost with what comes after it.
        if let Err(error) = report::write(&cli.out, &bench, &failures) {
            eprintln!("error: {}: {error}", cli.out.display());
            return ExitCode::FAILURE;
        }
    }
    println!("bench: the report is {}", cli.out.join("report.md").display());
    if failures.is_empty() && bench.damage == Damage::default() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Runs a piece of the benchmark; the harness panics with what failed, and that is no reason to lose the rest.
fn caught<T>(run: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        Err(text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked").to_owned())
    })
}
