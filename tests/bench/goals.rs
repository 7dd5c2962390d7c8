//! The picture of the goals: how far each is reached.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::figure::{Figure, Goal};
use crate::plot::{COLOURS, Plot};

/// Told apart by their form too.
const REACHED: RGBColor = COLOURS[0];
const MISSED: RGBColor = COLOURS[1];
/// Pixels.
const WIDTH: u32 = 1040;
const ROW: u32 = 17;
const HEAD: u32 = 64;
const FOOT: u32 = 56;
const NAMES: u32 = 520;
const VALUES: u32 = 90;
/// What is further away is drawn at the edge, and its value says where it is.
const EDGES: (f64, f64) = (1e-3, 1e3);

/// A figure with a goal that was measured.
#[derive(Debug, PartialEq)]
struct Row {
    name: String,
    /// 1 is the goal itself, less is better.
    distance: f64,
}

fn rows(figures: &[Figure]) -> Vec<Row> {
    let row = |figure: &Figure| {
        let ratio = figure.ratio().filter(|ratio| *ratio > 0.0)?;
        let distance = match figure.goal? {
            Goal::AtMost(limit) => ratio / limit,
            Goal::AtLeast(limit) => limit / ratio,
        };
        let mut name = figure.name.clone();
        // Some are named after it already.
        if let Some(peer) = figure.peer.as_ref().filter(|peer| !name.contains(&peer.name)) {
            name += &format!(", beside {}", peer.name);
        }
        Some(Row { name, distance })
    };
    figures.iter().filter_map(row).collect()
}

/// Draws the goals of a report. `None` if none was measured.
pub fn plot(figures: &[Figure]) -> Result<Option<Plot>, String> {
    let rows = rows(figures);
    if rows.is_empty() {
        return Ok(None);
    }
    let caption = "Distance from each goal";
    let mut svg = String::new();
    draw(&mut svg, caption, &rows).map_err(|error| format!("goals.svg: {error}"))?;
    Ok(Some(Plot { file: "goals.svg".into(), caption: caption.into(), svg }))
}

fn draw(svg: &mut String, caption: &str, rows: &[Row]) -> Result<(), Box<dyn std::error::Error>> {
    let height = rows.len() as u32 * ROW;
    let root = SVGBackend::with_string(svg, (WIDTH, HEAD + height + FOOT)).into_drawing_area();
    root.fill(&WHITE)?;
    let text = |size: i32| ("sans-serif", size).into_font().color(&BLACK);
    root.draw(&Text::new(caption, (12, 10), text(17)))?;
    let reached = rows.iter().filter(|row| row.distance <= 1.0).count();
    root.draw(&Circle::new((17, 46), 5, REACHED.filled()))?;
    root.draw(&Text::new(format!("reached: {reached}"), (27, 39), text(13)))?;
    root.draw(&TriangleMarker::new((127, 47), 6, MISSED.filled()))?;
    root.draw(&Text::new(format!("missed: {}", rows.len() - reached), (137, 39), text(13)))?;

    let seen = |row: &Row| row.distance.clamp(EDGES.0, EDGES.1);
    let least = rows.iter().map(seen).fold(0.1, f64::min);
    let most = rows.iter().map(seen).fold(10.0, f64::max);
    let mut chart = ChartBuilder::on(&root)
        .margin_top(HEAD)
        .margin_right(VALUES)
        .x_label_area_size(FOOT)
        .y_label_area_size(NAMES)
        .build_cartesian_2d((least / 1.3..most * 1.3).log_scale(), 0.0..f64::from(height))?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .y_label_formatter(&|_| String::new())
        .x_desc("times the goal, logarithmic; less is better")
        .x_label_formatter(&|times| format!("{times}"))
        .label_style(text(13))
        .bold_line_style(RGBColor(200, 200, 200))
        .light_line_style(RGBColor(238, 238, 238))
        .draw()?;
    let area = chart.plotting_area();
    let at = |times: f64, y: f64| area.map_coordinate(&(times, y));
    let goal = vec![at(1.0, 0.0), at(1.0, f64::from(height))];
    root.draw(&PathElement::new(goal, BLACK.stroke_width(1)))?;
    for (index, row) in rows.iter().enumerate() {
        let y = f64::from(height) - (index as f64 + 0.5) * f64::from(ROW);
        let (from, to) = (at(1.0, y), at(seen(row), y));
        let name = text(12).pos(Pos::new(HPos::Right, VPos::Center));
        let (left, centre) = at(least / 1.3, y);
        root.draw(&Text::new(row.name.clone(), (left - 8, centre), name))?;
        let ink = if row.distance <= 1.0 { REACHED } else { MISSED };
        root.draw(&PathElement::new(vec![from, to], ink.stroke_width(2)))?;
        let beside = if row.distance <= 1.0 {
            root.draw(&Circle::new(to, 4, ink.filled()))?;
            Text::new(short(row.distance), (from.0 + 8, from.1), text(12).pos(middle_left()))
        } else {
            root.draw(&TriangleMarker::new(to, 5, ink.filled()))?;
            Text::new(short(row.distance), (to.0 + 10, to.1), text(12).pos(middle_left()))
        };
        root.draw(&beside)?;
    }
    root.present()?;
    Ok(())
}

fn middle_left() -> Pos {
    Pos::new(HPos::Left, VPos::Center)
}

fn short(times: f64) -> String {
    if times < 0.095 { format!("{times:.3}") } else { format!("{times:.2}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figure::{Peer, Sample};

    fn figure(name: &str, ours: f64, theirs: Option<f64>, goal: Option<Goal>) -> Figure {
        let peer = theirs.map(|theirs| Peer { name: "it".into(), sample: Sample(vec![theirs]) });
        Figure {
            section: "s".into(),
            name: name.into(),
            unit: "ms".into(),
            ferry: Sample(vec![ours]),
            peer,
            goal,
            note: String::new(),
        }
    }

    #[test]
    fn a_goal_is_one_and_less_is_better_whichever_way_it_points() {
        let figures = [
            figure("gap", 5.0, Some(50.0), Some(Goal::AtMost(0.05))),
            figure("rate", 40.0, Some(10.0), Some(Goal::AtLeast(2.0))),
            figure("alone", 9.0, None, Some(Goal::AtMost(10.0))),
            figure("beside it", 2.0, Some(1.0), Some(Goal::AtMost(1.0))),
            figure("no goal", 1.0, Some(1.0), None),
            figure("no peer's figure", 1.0, Some(0.0), Some(Goal::AtMost(1.0))),
        ];
        let found = rows(&figures);
        let row = |name: &str, distance| Row { name: name.into(), distance };
        assert_eq!(found[0], row("gap, beside it", 2.0));
        assert_eq!(found[1], row("rate, beside it", 0.5));
        assert_eq!(found[2], row("alone", 0.9));
        assert_eq!(found[3], row("beside it", 2.0));
        assert_eq!(found.len(), 4);
        let plot = plot(&figures).unwrap().unwrap();
        for said in ["reached: 2", "missed: 2", "gap, beside it"] {
            assert!(plot.svg.contains(said), "{said}");
        }
        assert!(super::plot(&figures[4..]).unwrap().is_none());
    }
}
