//! Pictures of the report.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// A picture.
pub struct Plot {
    /// Its file's name.
    pub file: String,
    /// What it shows.
    pub caption: String,
    pub svg: String,
}

/// Rows that belong together.
pub struct Group {
    pub name: String,
    pub marks: Vec<Mark>,
}

/// A row: a dot at the median, a line to the largest.
pub struct Mark {
    /// Which of the series, by its name; decides the colour.
    pub series: &'static str,
    pub median: f64,
    pub max: f64,
}

/// Told apart with any kind of sight, and in print (Okabe and Ito).
pub const COLOURS: [RGBColor; 5] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
];
/// Pixels.
const WIDTH: u32 = 920;
const ROW: u32 = 18;
const BETWEEN_GROUPS: u32 = 12;
const HEAD: u32 = 64;
const FOOT: u32 = 56;
const NAMES: u32 = 210;
const VALUES: u32 = 110;
/// Left of this nothing is told apart, in milliseconds.
const LEAST_MS: f64 = 0.1;

/// Milliseconds on a logarithmic scale, by group and series.
pub fn gaps(file: &str, caption: &str, series: &[&str], groups: &[Group]) -> Result<Plot, String> {
    let rows: u32 =
        groups.iter().map(|group| group.marks.len() as u32 * ROW + BETWEEN_GROUPS).sum();
    let mut svg = String::new();
    draw(&mut svg, rows, caption, series, groups).map_err(|error| format!("{file}: {error}"))?;
    Ok(Plot { file: file.into(), caption: caption.into(), svg })
}

fn draw(
    svg: &mut String,
    rows: u32,
    caption: &str,
    series: &[&str],
    groups: &[Group],
) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, (WIDTH, HEAD + rows + FOOT)).into_drawing_area();
    root.fill(&WHITE)?;
    let text = |size: i32| ("sans-serif", size).into_font().color(&BLACK);
    root.draw(&Text::new(caption, (12, 10), text(17)))?;
    let colour = |name: &str| {
        COLOURS[series.iter().position(|one| *one == name).unwrap_or(0) % COLOURS.len()]
    };
    let mut x = 12;
    for name in series {
        root.draw(&Circle::new((x + 5, 46), 5, colour(name).filled()))?;
        root.draw(&Text::new((*name).to_owned(), (x + 15, 39), text(13)))?;
        x += 32 + name.len() as i32 * 7;
    }

    let most =
        groups.iter().flat_map(|group| &group.marks).map(|mark| mark.max).fold(10.0, f64::max);
    let mut chart = ChartBuilder::on(&root)
        .margin_top(HEAD)
        .margin_right(VALUES)
        .x_label_area_size(FOOT)
        .y_label_area_size(NAMES)
        .build_cartesian_2d((LEAST_MS..most * 1.3).log_scale(), 0.0..f64::from(rows))?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .y_label_formatter(&|_| String::new())
        .x_desc("milliseconds, logarithmic")
        .x_label_formatter(&|ms| format!("{ms}"))
        .label_style(text(13))
        .bold_line_style(RGBColor(200, 200, 200))
        .light_line_style(RGBColor(238, 238, 238))
        .draw()?;

    let area = chart.plotting_area();
    let at = |ms: f64, y: u32| area.map_coordinate(&(ms.max(LEAST_MS), f64::from(y)));
    let middle = |horizontal| Pos::new(horizontal, VPos::Center);
    let mut top = rows;
    for group in groups {
        let height = group.marks.len() as u32 * ROW;
        let (left, centre) = at(LEAST_MS, top - height / 2 - BETWEEN_GROUPS / 2);
        root.draw(&Text::new(
            group.name.clone(),
            (left - 10, centre),
            text(14).pos(middle(HPos::Right)),
        ))?;
        for (index, mark) in group.marks.iter().enumerate() {
            let y = top - BETWEEN_GROUPS / 2 - index as u32 * ROW - ROW / 2;
            let (from, to) = (at(mark.median, y), at(mark.max, y));
            let ink = colour(mark.series);
            root.draw(&PathElement::new(vec![from, to], ink.stroke_width(2)))?;
            root.draw(&PathElement::new(
                vec![(to.0, to.1 - 4), (to.0, to.1 + 4)],
                ink.stroke_width(2),
            ))?;
            root.draw(&Circle::new(from, 5, ink.filled()))?;
            let value = format!("{:.1} ({:.1})", mark.median, mark.max);
            root.draw(&Text::new(value, (to.0 + 10, to.1), text(12).pos(middle(HPos::Left))))?;
        }
        top -= height + BETWEEN_GROUPS;
    }
    root.present()?;
    Ok(())
}
