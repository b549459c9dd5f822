//! Line charts as SVG.

use crate::files;
use crate::output::{Failure, Outcome, si};
use plotters::prelude::*;
use std::path::Path;

/// One line of a chart.
pub struct Series {
    /// Name in the legend.
    pub name: String,
    /// Points, ascending in x.
    pub points: Vec<(f64, f64)>,
}

/// One chart.
pub struct Panel {
    /// Title.
    pub title: &'static str,
    /// Lines.
    pub series: Vec<Series>,
}

const COLORS: [RGBColor; 4] = [
    RGBColor(140, 140, 140),
    RGBColor(200, 60, 40),
    RGBColor(50, 100, 180),
    RGBColor(40, 140, 80),
];

/// Draws the panels side by side with logarithmic axes.
///
/// # Errors
/// The file cannot be written; an existing file is then kept as it was.
pub fn log_log(path: &Path, panels: &[Panel], x_label: &str) -> Outcome {
    let mut svg = String::new();
    render(&mut svg, panels, x_label).map_err(|error| {
        Failure::input(format!("--plot: cannot draw {}: {error}", path.display()))
    })?;
    files::write("--plot", path, svg.as_bytes())
}

fn render(
    svg: &mut String,
    panels: &[Panel],
    x_label: &str,
) -> Result<(), Box<dyn std::error::Error>> {
    let width = 560 * panels.len() as u32;
    let root = SVGBackend::with_string(svg, (width, 420)).into_drawing_area();
    root.fill(&WHITE)?;
    for (panel, area) in panels.iter().zip(root.split_evenly((1, panels.len()))) {
        let all = panel.series.iter().flat_map(|series| &series.points);
        let positive = all.clone().filter(|point| point.1 > 0.0);
        let x = bounds(all.clone().map(|point| point.0));
        let y = bounds(positive.map(|point| point.1));
        let mut chart = ChartBuilder::on(&area)
            .caption(panel.title, ("sans-serif", 18))
            .margin(14)
            .x_label_area_size(40)
            .y_label_area_size(70)
            .build_cartesian_2d((x.0..x.1).log_scale(), (y.0..y.1).log_scale())?;
        chart
            .configure_mesh()
            .x_desc(x_label)
            .x_label_formatter(&axis_label)
            .y_label_formatter(&axis_label)
            .x_labels(6)
            .y_labels(6)
            .max_light_lines(0)
            .bold_line_style(RGBColor(225, 225, 225))
            .draw()?;
        for (series, color) in panel.series.iter().zip(COLORS.iter().cycle()) {
            let points = series.points.iter().copied().filter(|point| point.1 > 0.0);
            chart
                .draw_series(LineSeries::new(points, color.stroke_width(3)))?
                .label(&series.name)
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 18, y)], color.stroke_width(3))
                });
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .background_style(WHITE.mix(0.85))
            .draw()?;
    }
    root.present()?;
    Ok(())
}

/// `10 k`: ticks of logarithmic axes are round numbers.
fn axis_label(value: &f64) -> String {
    si(*value).replace(".00", "").trim_end().to_owned()
}

fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, 0.0f64), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    if high > 0.0 && low.is_finite() {
        (low, (high * 1.3).max(low * 2.0))
    } else {
        (1.0, 10.0)
    }
}
