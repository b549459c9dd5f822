//! docs/drift.svg.

use crate::state::Drift;
use plotters::prelude::*;

const COLORS: [RGBColor; 5] = [
    RGBColor(140, 140, 140),
    RGBColor(40, 140, 80),
    RGBColor(50, 100, 180),
    RGBColor(130, 70, 160),
    RGBColor(200, 60, 40),
];

/// Relative errors against the number of steps, both logarithmic: bf16 thick, f32 thin.
pub fn draw(
    steps: &[usize],
    gates: &[f64],
    noise: &[Drift],
    text: &Drift,
) -> Result<String, Box<dyn std::error::Error>> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (760, 440)).into_drawing_area();
        root.fill(&WHITE)?;
        let last = steps[steps.len() - 1] as f64;
        let mut chart = ChartBuilder::on(&root)
            .caption(
                "State carried token by token, against f64: bf16 thick, f32 thin",
                ("sans-serif", 18),
            )
            .margin(14)
            .x_label_area_size(40)
            .y_label_area_size(70)
            .build_cartesian_2d((1f64..last).log_scale(), (1e-9f64..1f64).log_scale())?;
        chart
            .configure_mesh()
            .x_desc("tokens")
            .y_desc("relative error (root mean square over channels)")
            .x_label_formatter(&|x| format!("{x}"))
            .y_label_formatter(&|y| format!("{y:.0e}"))
            .max_light_lines(0)
            .bold_line_style(RGBColor(225, 225, 225))
            .draw()?;
        let names = gates.iter().map(|gate| format!("noise, gate {gate}"));
        let names = names.chain(["King James, layer 0".to_owned()]);
        let drifts = noise.iter().chain([text]);
        for ((name, drift), color) in names.zip(drifts).zip(COLORS) {
            for (index, (kind, width)) in [("f32", 1), ("bf16", 3)].into_iter().enumerate() {
                let points = steps.iter().zip(&drift.at);
                let points = points.map(|(&step, point)| (step as f64, point.error[index]));
                // No error has no place on a logarithmic axis.
                let points = points.filter(|point| point.1 > 0.0);
                let series =
                    chart.draw_series(LineSeries::new(points, color.stroke_width(width)))?;
                if kind == "bf16" {
                    series.label(&name).legend(move |(x, y)| {
                        PathElement::new([(x, y), (x + 18, y)], color.stroke_width(width))
                    });
                }
            }
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::MiddleRight)
            .background_style(WHITE.mix(0.85))
            .draw()?;
        root.present()?;
    }
    Ok(svg)
}
