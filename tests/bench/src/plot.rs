//! Figures for docs/performance.md, as SVG: light, small, with units on their axes.

use std::ops::Range;
use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::spread::Spread;

/// Pixels of a figure with two panels.
const SIZE: (u32, u32) = (960, 340);

/// Colours that can be told apart in print and by who does not see red from green.
const COLOURS: [RGBColor; 3] = [RGBColor(0, 90, 160), RGBColor(230, 140, 20), RGBColor(150, 150, 150)];

const FONT: &str = "sans-serif";

/// A figure of one name for each group.
pub struct Series {
    /// In the legend.
    pub name: String,
    /// By group.
    pub figures: Vec<Spread>,
}

/// A part of a figure.
pub struct Panel {
    /// Above it.
    pub title: &'static str,
    /// What the vertical axis shows, with its unit.
    pub unit: &'static str,
    /// Below the horizontal axis, one for each group.
    pub groups: Vec<String>,
    /// What is compared; at most as many as there are colours.
    pub series: Vec<Series>,
}

/// Draws groups of bars, with the least and the greatest of what was measured as a line on each.
///
/// # Errors
/// The file cannot be written.
pub fn bars(to: &Path, panels: &[Panel; 2]) -> Result<()> {
    draw(to, panels, |panel, area| {
        let mut chart = axes(panel, area, -0.5..panel.groups.len() as f64 - 0.5)?;
        let width = 0.8 / panel.series.len() as f64;
        for (index, (series, colour)) in panel.series.iter().zip(COLOURS).enumerate() {
            let left = |group: usize| group as f64 - 0.4 + width * index as f64;
            let bar = |(group, figure): (usize, &Spread)| {
                Rectangle::new([(left(group), 0.0), (left(group) + 0.9 * width, figure.median)], colour.filled())
            };
            let drawn = chart.draw_series(series.figures.iter().enumerate().map(bar)).map_err(failed)?;
            drawn
                .label(&*series.name)
                .legend(move |(x, y)| Rectangle::new([(x, y - 4), (x + 10, y + 4)], colour.filled()));
            let whisker = |(group, figure): (usize, &Spread)| {
                let middle = left(group) + 0.45 * width;
                PathElement::new([(middle, figure.min), (middle, figure.max)], BLACK)
            };
            chart.draw_series(series.figures.iter().enumerate().map(whisker)).map_err(failed)?;
        }
        legend(&mut chart, SeriesLabelPosition::UpperLeft)
    })
}

/// Draws lines from group to group, with the least and the greatest of what was measured as a line on each.
///
/// # Errors
/// The file cannot be written.
pub fn lines(to: &Path, panels: &[Panel; 2]) -> Result<()> {
    draw(to, panels, |panel, area| {
        let mut chart = axes(panel, area, -0.2..panel.groups.len() as f64 - 0.8)?;
        for (series, colour) in panel.series.iter().zip(COLOURS) {
            let points = || series.figures.iter().enumerate().map(|(group, figure)| (group as f64, figure));
            let line = points().map(|(at, figure)| (at, figure.median));
            let drawn = chart.draw_series(LineSeries::new(line, colour.stroke_width(2))).map_err(failed)?;
            drawn
                .label(&*series.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 12, y)], colour.stroke_width(2)));
            let whisker = |(at, figure): (f64, &Spread)| PathElement::new([(at, figure.min), (at, figure.max)], colour);
            chart.draw_series(points().map(whisker)).map_err(failed)?;
            let dot = |(at, figure): (f64, &Spread)| Circle::new((at, figure.median), 3, colour.filled());
            chart.draw_series(points().map(dot)).map_err(failed)?;
        }
        legend(&mut chart, SeriesLabelPosition::LowerRight)
    })
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Chart<'a, 'b> = ChartContext<
    'b,
    SVGBackend<'a>,
    Cartesian2d<plotters::coord::types::RangedCoordf64, plotters::coord::types::RangedCoordf64>,
>;

fn draw(to: &Path, panels: &[Panel; 2], panel: impl Fn(&Panel, &Area<'_>) -> Result<()>) -> Result<()> {
    let root = SVGBackend::new(to, SIZE).into_drawing_area();
    root.fill(&WHITE).map_err(failed)?;
    for (of, area) in panels.iter().zip(root.split_evenly((1, 2))) {
        panel(of, &area)?;
    }
    root.present().map_err(failed)
}

/// Axes that begin at zero and have room for all.
fn axes<'a, 'b>(panel: &Panel, area: &'b Area<'a>, groups: Range<f64>) -> Result<Chart<'a, 'b>> {
    let figures = panel.series.iter().flat_map(|series| &series.figures);
    let top = figures.map(|figure| figure.max).fold(0.0, f64::max) * 1.3;
    let mut chart = ChartBuilder::on(area)
        .caption(panel.title, (FONT, 16))
        .margin(10)
        .x_label_area_size(30)
        .y_label_area_size(60)
        .build_cartesian_2d(groups, 0.0..top)
        .map_err(failed)?;
    let name = |at: &f64| {
        let index = at.round();
        let is_group = (at - index).abs() < 0.01 && index >= 0.0;
        let group = (0..).zip(&panel.groups).find(|(group, _)| f64::from(*group) == index);
        group.filter(|_| is_group).map_or(String::new(), |(_, name)| name.clone())
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(2 * panel.groups.len())
        .x_label_formatter(&name)
        .y_desc(panel.unit)
        .label_style((FONT, 12))
        .axis_desc_style((FONT, 13))
        .light_line_style(WHITE)
        .draw()
        .map_err(failed)?;
    Ok(chart)
}

fn legend<'a: 'b, 'b>(chart: &mut Chart<'a, 'b>, position: SeriesLabelPosition) -> Result<()> {
    let mut labels = chart.configure_series_labels();
    labels.position(position).background_style(WHITE.mix(0.8)).border_style(WHITE).label_font((FONT, 12));
    labels.draw().map_err(failed)
}

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("Cannot draw a figure: {error}")
}
