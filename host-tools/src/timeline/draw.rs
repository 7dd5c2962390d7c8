//! Drawing.

use std::fmt::Write;

use crate::api::Migration;
use crate::migration::phase::Place;
use crate::migration::{Outcome, Phase, PhaseRecord};

const WIDTH: f64 = 1000.0;
const LEFT: f64 = 130.0;
const RIGHT: f64 = 970.0;
const LANE_HEIGHT: f64 = 40.0;
const LANE_GAP: f64 = 12.0;
/// A bar is never thinner than this, so that every phase can be seen.
const MIN_BAR: f64 = 2.0;

const STYLE: &str = "text{font:13px system-ui,-apple-system,'Segoe UI',sans-serif;fill:#1f2933}\
.t{font-size:19px;font-weight:600}.s{fill:#616e7c}.l{font-weight:600}.a{font-size:11px;fill:#7b8794}\
.b{font-size:11px;fill:#fff;font-weight:600}.g{stroke:#e4e7eb}.n{fill:#f5f7fa}\
.f{fill:#c81e1e;fill-opacity:.13}.ft{font-size:11px;fill:#c81e1e;font-weight:600}.p{fill:#fff}\
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.s,.a{fill:#a3b1bd}.g{stroke:#2b3843}.n{fill:#212c36}\
.b{fill:#fff}.f{fill:#ff9d94;fill-opacity:.16}.ft{fill:#ff9d94}.p{fill:#172029}}";

/// The picture of a finished move, with a table of its phases.
#[must_use]
pub fn svg(migration: &Migration) -> String {
    draw(migration, true)
}

/// The picture of a finished move without the table, for where there is one beside it.
#[must_use]
pub fn rulers(migration: &Migration) -> String {
    draw(migration, false)
}

fn draw(migration: &Migration, with_table: bool) -> String {
    let mut out = String::new();
    let phases = &migration.phases;
    let critical: Vec<PhaseRecord> = phases
        .iter()
        .filter(|record| (Phase::Drain..=Phase::Resume).contains(&record.phase))
        .cloned()
        .collect();
    let ruler_height = 2.0 * (LANE_HEIGHT + LANE_GAP) + 58.0;
    let table_top = 96.0 + ruler_height * if critical.is_empty() { 1.0 } else { 2.0 };
    let table_height = 40.0 + 22.0 * phases.len() as f64 + 24.0;
    let height = table_top + if with_table { table_height } else { 0.0 };
    let _ = write!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         width=\"{WIDTH}\" height=\"{height}\" role=\"img\"><style>{STYLE}</style>\
         <rect class=\"p\" width=\"100%\" height=\"100%\"/>"
    );
    text(&mut out, 24.0, 36.0, "t", &title(migration));
    text(&mut out, 24.0, 60.0, "s", &subtitle(migration));
    let mut top = 96.0;
    ruler(&mut out, top, "whole move", migration, phases);
    if !critical.is_empty() {
        top += ruler_height;
        ruler(&mut out, top, "drain to resume", migration, &critical);
    }
    if with_table {
        table(&mut out, table_top, phases);
    }
    out.push_str("</svg>\n");
    out
}

fn title(migration: &Migration) -> String {
    let Migration { service, source, destination, id, .. } = migration;
    format!("{service}: {source} → {destination}  ({id})")
}

fn subtitle(migration: &Migration) -> String {
    let mut parts = vec![match &migration.result {
        Some(Outcome::Moved { epoch }) => format!("moved, epoch {epoch}"),
        Some(Outcome::Kept { phase, .. }) => format!("failed in {phase}, the source serves on"),
        Some(Outcome::Broken { phase, .. }) => format!("failed in {phase}, the source is lost"),
        Some(Outcome::TakenBack { phase, .. }) => format!("failed in {phase}, taken back"),
        Some(Outcome::Held { phase, .. }) => format!("failed in {phase}, frozen copy kept"),
        None => "under way".into(),
    }];
    if let Some(summary) = &migration.summary {
        parts.push(format!("total {}", time(summary.total_us)));
        parts.push(format!("drain {}", time(summary.drain_us)));
        parts.push(format!("freeze to resume {}", time(summary.freeze_to_resume_us)));
        parts.push(format!("{} connections", summary.resumed));
        parts.push(format!("{} pages, {}", summary.pages, bytes(summary.bytes)));
    }
    parts.join(" · ")
}

/// One time axis with the two hosts' lanes.
fn ruler(out: &mut String, top: f64, name: &str, migration: &Migration, phases: &[PhaseRecord]) {
    let start = phases.iter().map(|record| record.start_us).min().unwrap_or(0);
    let end = phases.iter().map(|record| record.end_us).max().unwrap_or(1).max(start + 1);
    let x = |us: u64| {
        let part = us.saturating_sub(start) as f64 / (end - start) as f64;
        LEFT + (RIGHT - LEFT) * part
    };
    text(out, 24.0, top + 8.0, "s", name);
    let lanes_top = top + 18.0;
    let lanes_end = lanes_top + 2.0 * LANE_HEIGHT + LANE_GAP;
    let lane = |index: usize| lanes_top + index as f64 * (LANE_HEIGHT + LANE_GAP);
    for (index, host) in [&migration.source, &migration.destination].into_iter().enumerate() {
        let y = lane(index);
        let width = RIGHT - LEFT;
        let _ = write!(
            out,
            "<rect class=\"n\" x=\"{LEFT}\" y=\"{y}\" width=\"{width}\" height=\"{LANE_HEIGHT}\" rx=\"4\"/>"
        );
        text(out, 24.0, y + 25.0, "l", host);
    }
    let step = tick_step(end - start);
    let mut tick = 0;
    while tick <= end - start {
        let at = x(start + tick);
        let _ = write!(
            out,
            "<line class=\"g\" x1=\"{at:.1}\" y1=\"{lanes_top}\" x2=\"{at:.1}\" y2=\"{lanes_end}\"/>"
        );
        // A label at the very end would leave the picture.
        if at < RIGHT - 30.0 {
            let label = if tick == 0 { "0".into() } else { time(tick) };
            text(out, at + 2.0, lanes_end + 14.0, "a", &label);
        }
        tick += step;
    }
    frozen(out, phases, &x, lanes_top, lanes_end);
    for record in phases {
        for index in lanes_of(record.phase) {
            let (from, to) = (x(record.start_us), x(record.end_us));
            let width = (to - from).max(MIN_BAR);
            let y = lane(*index) + 6.0;
            let _ = write!(
                out,
                "<rect x=\"{from:.1}\" y=\"{y}\" width=\"{width:.1}\" height=\"{}\" rx=\"2\" fill=\"{}\">\
                 <title>{}</title></rect>",
                LANE_HEIGHT - 12.0,
                colour(record.phase),
                escape(&tip(record))
            );
            if width > 7.5 * record.phase.name().len() as f64 {
                text(out, from + 5.0, y + 18.0, "b", record.phase.name());
            }
        }
    }
}

/// The interval in which no instance runs.
fn frozen(
    out: &mut String,
    phases: &[PhaseRecord],
    x: &impl Fn(u64) -> f64,
    top: f64,
    bottom: f64,
) {
    let of = |phase| phases.iter().find(|record| record.phase == phase);
    let (Some(freeze), Some(resume)) = (of(Phase::Freeze), of(Phase::Resume)) else { return };
    let (from, to) = (x(freeze.start_us), x(resume.end_us));
    let _ = write!(
        out,
        "<rect class=\"f\" x=\"{from:.1}\" y=\"{}\" width=\"{:.1}\" height=\"{}\"/>",
        top - 4.0,
        (to - from).max(MIN_BAR),
        bottom - top + 8.0
    );
    let label = format!("frozen {}", time(resume.end_us - freeze.start_us));
    let room_on_the_right = WIDTH - from > 8.0 * label.len() as f64;
    let at = if room_on_the_right { from } else { RIGHT - 7.0 * label.len() as f64 };
    text(out, at, top - 7.0, "ft", &label);
}

fn table(out: &mut String, top: f64, phases: &[PhaseRecord]) {
    for (x, head) in
        [(24.0, "phase"), (130.0, "time"), (230.0, "pages"), (310.0, "bytes"), (410.0, "what")]
    {
        text(out, x, top + 14.0, "s", head);
    }
    for (index, record) in phases.iter().enumerate() {
        let y = top + 40.0 + 22.0 * index as f64;
        let _ = write!(
            out,
            "<rect x=\"24\" y=\"{}\" width=\"10\" height=\"10\" rx=\"2\" fill=\"{}\"/>",
            y - 10.0,
            colour(record.phase)
        );
        text(out, 40.0, y, "", record.phase.name());
        text(out, 130.0, y, "", &time(record.elapsed_us()));
        if record.pages > 0 {
            text(out, 230.0, y, "", &record.pages.to_string());
        }
        if record.bytes > 0 {
            text(out, 310.0, y, "", &bytes(record.bytes));
        }
        let does = record.phase.row().does;
        let what =
            if record.note.is_empty() { does.into() } else { format!("{does} ({})", record.note) };
        text(out, 410.0, y, "s", &what);
    }
}

fn lanes_of(phase: Phase) -> &'static [usize] {
    match phase.row().place {
        Place::Source => &[0],
        Place::Destination => &[1],
        Place::Manager | Place::Both => &[0, 1],
    }
}

fn colour(phase: Phase) -> &'static str {
    match phase {
        Phase::Request => "#9aa5b1",
        Phase::Prepare => "#627d98",
        Phase::Precopy => "#2680c2",
        Phase::Drain => "#de911d",
        Phase::Freeze => "#cf1124",
        Phase::Transfer => "#8719e0",
        Phase::Commit => "#486581",
        Phase::Restore => "#0c6b58",
        Phase::Resume => "#27ab83",
        Phase::Remove => "#bcccdc",
    }
}

fn tip(record: &PhaseRecord) -> String {
    let mut tip = format!("{} {}", record.phase, time(record.elapsed_us()));
    for (name, us) in &record.steps {
        let _ = write!(tip, "\n{name} {}", time(*us));
    }
    tip
}

/// A round distance between ticks: at most ten of them.
fn tick_step(span_us: u64) -> u64 {
    let mut step = 1;
    loop {
        for factor in [1, 2, 5] {
            if step * factor * 10 >= span_us {
                return step * factor;
            }
        }
        step *= 10;
    }
}

fn text(out: &mut String, x: f64, y: f64, class: &str, content: &str) {
    let _ =
        write!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\">{}</text>", escape(content));
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Microseconds as people read them.
#[must_use]
pub fn time(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{:.2} s", us as f64 / 1e6),
    }
}

/// Bytes as people read them.
#[must_use]
pub fn bytes(bytes: u64) -> String {
    match bytes {
        0..1_024 => format!("{bytes} B"),
        1_024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.2} GiB", bytes as f64 / 1_073_741_824.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migration::TABLE;

    fn migration() -> Migration {
        let lengths = [900, 250_000, 30_000, 1_200, 400, 2_100, 900, 60, 800, 40_000];
        let mut at = 0;
        let phases = TABLE.iter().zip(lengths).map(|(row, length)| {
            at += length;
            PhaseRecord {
                phase: row.phase,
                start_us: at - length,
                end_us: at,
                pages: 3,
                bytes: if row.phase == Phase::Precopy { 5 << 20 } else { 0 },
                note: "a < b".into(),
                steps: vec![],
            }
        });
        Migration {
            id: "m1".into(),
            service: "pingpong".into(),
            source: "a".into(),
            destination: "b".into(),
            began_us: 0,
            phases: phases.collect(),
            phase: None,
            result: Some(Outcome::Moved { epoch: 2 }),
            summary: Some(Box::default()),
        }
    }

    #[test]
    fn every_phase_and_the_frozen_interval_are_drawn() {
        let svg = svg(&migration());
        for row in TABLE {
            assert!(svg.contains(colour(row.phase)), "{}", row.phase);
            assert!(svg.contains(row.does), "{}", row.phase);
        }
        assert_eq!(svg.matches("frozen 4.3 ms").count(), 2);
        assert!(svg.contains("5.0 MiB") && svg.contains("a &lt; b") && !svg.contains("a < b"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn a_move_that_failed_early_is_drawn_too() {
        let mut failed = migration();
        failed.phases.truncate(1);
        failed.result = Some(Outcome::Kept { phase: Phase::Request, reason: "x".into() });
        let drawn = svg(&failed);
        assert!(drawn.contains("failed in request, the source serves on"));
        assert!(!drawn.contains("frozen"));
        failed.phases.clear();
        assert!(svg(&failed).ends_with("</svg>\n"));
    }

    #[test]
    fn ticks_and_units() {
        assert_eq!([tick_step(1), tick_step(95), tick_step(4_260)], [1, 10, 500]);
        assert_eq!([time(7), time(1_500), time(2_000_000)], ["7 µs", "1.5 ms", "2.00 s"]);
        assert_eq!([bytes(1), bytes(2048), bytes(3 << 20)], ["1 B", "2.0 KiB", "3.0 MiB"]);
    }
}
