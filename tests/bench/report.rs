//! The report of a run: `report.json` for machines, `report.md` for people.

use std::fmt::Write as _;
use std::path::Path;
use std::{fs, io};

use serde_json::json;

use crate::figure::{Figure, Goal, Sample};
use crate::moves::one_line;
use crate::plot::Plot;
use crate::{Bench, Scale};

/// Writes the report to `dir`.
pub fn write(dir: &Path, bench: &Bench, failures: &[String]) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let goals = crate::goals::plot(&bench.figures).map_err(io::Error::other)?;
    let plots: Vec<&Plot> = bench.plots.iter().chain(&goals).collect();
    let figures: Vec<_> = bench
        .figures
        .iter()
        .map(|figure| {
            let mut row = json!(figure);
            row["p99"] = json!(figure.ferry.quantile(0.99));
            row["median"] = json!(figure.ferry.median());
            row["peer_median"] = json!(figure.peer.as_ref().and_then(|peer| peer.sample.median()));
            row["ratio"] = json!(figure.ratio());
            row["reached"] = json!(figure.reached());
            row["runs"] = json!(figure.ferry.0.len());
            row
        })
        .collect();
    let report = json!({
        "machine": machine(),
        "scale": if bench.scale == Scale::Quick { "quick" } else { "full" },
        "damage": bench.damage,
        "not_measured": failures,
        "figures": figures,
    });
    for plot in &plots {
        fs::write(dir.join(&plot.file), &plot.svg)?;
    }
    fs::write(dir.join("report.json"), format!("{report:#}\n"))?;
    fs::write(dir.join("report.md"), text(bench, &plots, failures))
}

/// Draws the goals of a report that was written before.
pub fn redraw(file: &Path) -> io::Result<()> {
    let report: serde_json::Value = serde_json::from_slice(&fs::read(file)?)?;
    let figures: Vec<Figure> = serde_json::from_value(report["figures"].clone())?;
    match crate::goals::plot(&figures).map_err(io::Error::other)? {
        Some(plot) => fs::write(file.with_file_name(plot.file), plot.svg),
        None => Err(io::Error::other("no figure with a goal")),
    }
}

/// Processors, kernel and QEMU of this machine.
fn machine() -> String {
    let first = |path: &str, key: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines()
            .find_map(|line| {
                Some(line.strip_prefix(key)?.trim_start_matches([' ', '\t', ':']).to_owned())
            })
            .unwrap_or_default()
    };
    let said = |program: &str, argument: &str| {
        let out = std::process::Command::new(program).arg(argument).output();
        let text =
            out.map(|out| String::from_utf8_lossy(&out.stdout).into_owned()).unwrap_or_default();
        text.lines().next().unwrap_or_default().to_owned()
    };
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "{processors} x {}, {}, Linux {}, {}",
        first("/proc/cpuinfo", "model name"),
        first("/proc/meminfo", "MemTotal"),
        said("uname", "-r"),
        said("qemu-system-x86_64", "--version"),
    )
}

fn text(bench: &Bench, plots: &[&Plot], failures: &[String]) -> String {
    let mut out = format!("# Ferry beside its peers\n\n{}\n", machine());
    let damage = bench.damage;
    let _ = writeln!(
        out,
        "\nIn all runs of Ferry: {} resets, {} connections with a wrong or missing byte, {} failed otherwise.",
        damage.resets, damage.damaged, damage.failed
    );
    for failure in failures {
        let _ = writeln!(out, "\nNot measured: {}", one_line(failure));
    }
    for plot in plots {
        let _ = writeln!(out, "\n![{}]({})", plot.caption, plot.file);
    }
    let mut section = "";
    for figure in &bench.figures {
        if figure.section != section {
            section = &figure.section;
            let _ = writeln!(
                out,
                "\n## {section}\n\n| figure | Ferry | peer | ratio | goal | reached | |\n|---|---|---|---|---|---|---|"
            );
        }
        let _ = writeln!(out, "{}", row(figure));
    }
    out
}

fn row(figure: &Figure) -> String {
    let sample = |sample: &Sample| match (sample.median(), sample.max()) {
        (Some(median), Some(max)) if sample.0.len() > 1 => {
            // Of fewer there is no such thing.
            let p99 = sample.quantile(0.99).filter(|_| sample.0.len() >= 20);
            let p99 = p99.map_or(String::new(), |p99| format!("p99 {}, ", number(p99)));
            format!("{} ({p99}max {}, {} runs)", number(median), number(max), sample.0.len())
        }
        (Some(only), _) => number(only),
        _ => "-".to_owned(),
    };
    let peer = figure
        .peer
        .as_ref()
        .map_or("-".to_owned(), |p| format!("{}: {}", p.name, sample(&p.sample)));
    let goal = match figure.goal {
        Some(Goal::AtMost(limit)) => format!("≤ {}", number(limit)),
        Some(Goal::AtLeast(limit)) => format!("≥ {}", number(limit)),
        None => "-".to_owned(),
    };
    format!(
        "| {}, {} | {} | {peer} | {} | {goal} | {} | {} |",
        figure.name,
        figure.unit,
        sample(&figure.ferry),
        figure.ratio().map_or("-".to_owned(), number),
        match figure.reached() {
            Some(true) => "yes",
            Some(false) => "**no**",
            None => "-",
        },
        figure.note
    )
}

/// Three significant digits, or all of a large whole number.
fn number(value: f64) -> String {
    let size = value.abs();
    match size {
        s if s >= 100.0 || s == 0.0 => format!("{value:.0}"),
        s if s >= 10.0 => format!("{value:.1}"),
        s if s >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figure::Peer;

    #[test]
    fn numbers_have_three_digits_or_all_that_are_whole() {
        let written = [0.0, 0.01234, 1.234, 12.34, 123.4, 97_000_000.0].map(number);
        assert_eq!(written, ["0", "0.0123", "1.23", "12.3", "123", "97000000"]);
    }

    #[test]
    fn a_row_names_both_sides_the_ratio_and_what_became_of_the_goal() {
        let mut figure = Figure {
            section: "move".into(),
            name: "added gap".into(),
            unit: "ms".into(),
            ferry: Sample(vec![10.0, 12.0, 11.0]),
            peer: Some(Peer { name: "CRIU".into(), sample: Sample(vec![110.0]) }),
            goal: Some(Goal::AtMost(0.05)),
            note: "why".into(),
        };
        assert_eq!(
            row(&figure),
            "| added gap, ms | 11.0 (max 12.0, 3 runs) | CRIU: 110 | 0.1000 | ≤ 0.0500 | **no** | why |"
        );
        figure.goal = Some(Goal::AtMost(0.1));
        assert!(row(&figure).contains("| yes |"));
        figure.peer = Some(Peer { name: "CRIU".into(), sample: Sample::default() });
        assert!(row(&figure).contains("| CRIU: - | - | ≤ 0.1000 | - |"), "{}", row(&figure));
    }
}
