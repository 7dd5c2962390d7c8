//! One picture of what is known. In 80 columns and 24 lines everything has a place; what does not fit is
//! counted in the title of its table.

use std::time::Instant;

use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row, Table};

use super::known::{Known, KnownMove};
use crate::api::{Migration, Node, SeenService, ServiceState};
use crate::cli::output::age;
use crate::migration::{Outcome, TABLE};
use crate::timeline::draw::{bytes, time};

const QUIET: Style = Style::new().fg(Color::DarkGray);

/// Draws everything.
pub fn draw(frame: &mut Frame<'_>, known: &Known, now: Instant) {
    let (nodes, services) = match &known.overview {
        Some((overview, _)) => (overview.nodes.as_slice(), overview.services.as_slice()),
        None => (&[][..], &[][..]),
    };
    let live: Vec<_> = known.moves.iter().rev().filter(|known| known.is_live(now)).collect();
    let past: Vec<_> = known.moves.iter().rev().filter(|known| !known.is_live(now)).collect();
    let hosts_height = (nodes.len() as u16 + 2).clamp(3, 7);
    let moves_height = (2 * live.len().max(1) as u16 + 1).min(7);
    let past_height = (past.len() as u16 + 2).min(5);
    let parts = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(moves_height),
        Constraint::Length(hosts_height),
        Constraint::Min(4),
        Constraint::Length(past_height),
        Constraint::Length(1),
    ])
    .split(frame.area());
    frame.render_widget(Paragraph::new(head(nodes, services)), parts[0]);
    draw_live(frame, parts[1], &live, known.clock_us(now));
    draw_hosts(frame, parts[2], nodes);
    draw_services(frame, parts[3], services, known.clock_us(now));
    draw_past(frame, parts[4], &past, known.clock_us(now));
    let foot = match &known.lost {
        Some(reason) => Line::from(format!(" {reason}; trying again").red().bold()),
        None => Line::from(" q quit").style(QUIET),
    };
    frame.render_widget(Paragraph::new(foot), parts[5]);
}

fn head(nodes: &[Node], services: &[SeenService]) -> Line<'static> {
    let up = nodes.iter().filter(|node| node.ready).count();
    let connections: u64 = services.iter().filter_map(|seen| seen.connections).sum();
    Line::from(vec![
        " Ferry ".bold().reversed(),
        format!(
            "  {up} of {} hosts up · {} services · {connections} connections",
            nodes.len(),
            services.len()
        )
        .into(),
    ])
}

/// A table's frame: a line above with a title, which says how many rows there is no room for.
fn titled(name: &str, rows: usize, area: Rect, header: u16) -> Block<'static> {
    let room = usize::from(area.height.saturating_sub(1 + header));
    let title = match rows.checked_sub(room) {
        Some(hidden) if hidden > 0 => format!(" {name} ({hidden} more) "),
        _ => format!(" {name} "),
    };
    Block::new().borders(Borders::TOP).border_style(QUIET).title(title.bold())
}

fn draw_live(frame: &mut Frame<'_>, area: Rect, live: &[&KnownMove], clock_us: u64) {
    let block = titled("Moves under way", 2 * live.len(), area, 0);
    let mut lines = Vec::new();
    for known in live {
        lines.push(move_line(&known.seen.migration, known.seen.waiting.as_deref(), clock_us));
        lines.push(phase_line(&known.seen.migration));
    }
    if lines.is_empty() {
        lines.push(Line::from(" none").style(QUIET));
    }
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

fn move_line(migration: &Migration, waiting: Option<&str>, clock_us: u64) -> Line<'static> {
    let Migration { id, service, source, destination, .. } = migration;
    let end = migration.phases.last().map_or(0, |record| record.end_us);
    let elapsed = match &migration.result {
        Some(_) => migration.summary.as_ref().map_or(end, |summary| summary.total_us),
        None => clock_us.saturating_sub(migration.began_us).max(end),
    };
    let doing = match (&migration.result, waiting, migration.phase) {
        (Some(_), ..) => result_name(migration),
        (None, Some(reason), _) => format!("waiting: {reason}"),
        (None, None, Some(phase)) => phase.row().does.to_owned(),
        (None, None, None) => "beginning".into(),
    };
    Line::from(vec![
        format!(" {id} ").into(),
        service.clone().bold(),
        format!(" {source} → {destination}  {}  ", time(elapsed)).into(),
        Span::styled(doing, outcome_style(migration)),
    ])
}

/// One word for each phase: those that have ended, the one under way, those to come.
fn phase_line(migration: &Migration) -> Line<'static> {
    let mut spans = vec![Span::raw(" ")];
    for row in TABLE {
        let done = migration.phases.iter().any(|record| record.phase == row.phase);
        let style = if done {
            Style::new().fg(Color::Green)
        } else if migration.phase == Some(row.phase) {
            Style::new().fg(Color::Yellow).add_modifier(Modifier::BOLD | Modifier::REVERSED)
        } else {
            QUIET
        };
        spans.push(Span::styled(row.phase.name(), style));
        spans.push(Span::raw(" "));
    }
    Line::from(spans)
}

fn draw_hosts(frame: &mut Frame<'_>, area: Rect, nodes: &[Node]) {
    let rows = nodes.iter().map(|node| {
        let (state, colour) = match (node.ready, node.drained) {
            (false, _) => ("silent", Color::Red),
            (true, true) => ("drained", Color::Yellow),
            (true, false) => ("ready", Color::Green),
        };
        let report = &node.report;
        let used = report.memory_mib.saturating_sub(report.free_mib);
        let share = used.saturating_mul(10).checked_div(report.memory_mib).unwrap_or(0).min(10);
        let bar: String = (0..10).map(|part| if part < share { '█' } else { '░' }).collect();
        Row::new([
            Cell::from(format!(" {}", report.name)),
            Cell::from(state.fg(colour)),
            Cell::from(report.instances.to_string()),
            Cell::from(bar),
            Cell::from(format!("{} of {}", bytes(used << 20), bytes(report.memory_mib << 20))),
            Cell::from(report.accel.to_string()),
        ])
    });
    let widths = [
        Constraint::Fill(1),
        Constraint::Length(8),
        Constraint::Length(6),
        Constraint::Length(10),
        Constraint::Length(24),
        Constraint::Length(5),
    ];
    let table = Table::new(rows, widths)
        .header(Row::new([" HOST", "STATE", "GUESTS", "MEMORY", "", "ACCEL"]).style(QUIET))
        .block(titled("Hosts", nodes.len(), area, 1));
    frame.render_widget(table, area);
}

fn draw_services(frame: &mut Frame<'_>, area: Rect, services: &[SeenService], clock_us: u64) {
    let rows = services.iter().map(|seen| {
        let service = &seen.service;
        let colour = match service.state {
            ServiceState::Running => Color::Green,
            ServiceState::Failed | ServiceState::Unknown => Color::Red,
            _ => Color::Yellow,
        };
        Row::new([
            Cell::from(format!(" {}", service.spec.name)),
            Cell::from(format!("{:?}", service.state).to_lowercase().fg(colour)),
            Cell::from(service.node.clone().unwrap_or_else(|| "-".into())),
            Cell::from(seen.connections.map_or_else(|| "-".into(), |count| count.to_string())),
            Cell::from(service.spec.ip.to_string()),
            Cell::from(service.epoch.to_string()),
            Cell::from(age(service.created_us, clock_us)),
        ])
    });
    let widths = [
        Constraint::Fill(2),
        Constraint::Length(10),
        Constraint::Fill(1),
        Constraint::Length(7),
        Constraint::Length(15),
        Constraint::Length(6),
        Constraint::Length(6),
    ];
    let header = [" SERVICE", "STATE", "HOST", "CONNS", "ADDRESS", "EPOCH", "AGE"];
    let table = Table::new(rows, widths).header(Row::new(header).style(QUIET)).block(titled(
        "Services",
        services.len(),
        area,
        1,
    ));
    frame.render_widget(table, area);
}

fn draw_past(frame: &mut Frame<'_>, area: Rect, past: &[&KnownMove], clock_us: u64) {
    let rows = past.iter().map(|known| {
        let migration = &known.seen.migration;
        let summary = migration.summary.clone().unwrap_or_default();
        let figure = |us: u64| if us == 0 { "-".into() } else { time(us) };
        Row::new([
            Cell::from(format!(" {} {}", migration.id, migration.service)),
            Cell::from(format!("{} → {}", migration.source, migration.destination)),
            Cell::from(Span::styled(result_name(migration), outcome_style(migration))),
            Cell::from(format!("frozen {}", figure(summary.freeze_to_resume_us))),
            Cell::from(figure(summary.total_us)),
            Cell::from(format!("{} ago", age(migration.began_us, clock_us))),
        ])
    });
    let widths = [
        Constraint::Fill(1),
        Constraint::Fill(1),
        Constraint::Length(18),
        Constraint::Length(16),
        Constraint::Length(9),
        Constraint::Length(9),
    ];
    let table = Table::new(rows, widths).block(titled("Past moves", past.len(), area, 0));
    frame.render_widget(table, area);
}

fn result_name(migration: &Migration) -> String {
    match &migration.result {
        Some(Outcome::Moved { .. }) => "moved".into(),
        Some(Outcome::Kept { phase, .. }) => format!("failed in {phase}"),
        Some(Outcome::Broken { phase, .. }) => format!("lost in {phase}"),
        Some(Outcome::TakenBack { phase, .. }) => format!("back in {phase}"),
        Some(Outcome::Held { phase, .. }) => format!("held in {phase}"),
        None => "under way".into(),
    }
}

fn outcome_style(migration: &Migration) -> Style {
    match &migration.result {
        Some(Outcome::Moved { .. }) => Style::new().fg(Color::Green),
        Some(_) => Style::new().fg(Color::Red),
        None => Style::new(),
    }
}

/// A frame as text: lines without what is empty at their ends.
#[must_use]
pub fn text_of(buffer: &Buffer) -> String {
    let area = buffer.area;
    let line = |y: u16| -> String {
        let line: String = (0..area.width).map(|x| buffer[(x, y)].symbol()).collect();
        format!("{}\n", line.trim_end())
    };
    (0..area.height).map(line).collect()
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
