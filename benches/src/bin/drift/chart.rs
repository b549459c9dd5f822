//! docs/drift.svg.

use crate::state::Drift;
use ratplus_charts::{ChartError, Lines, Panel, Series};

/// Relative errors against the number of steps: bf16 thick, f32 thin.
///
/// # Errors
/// It cannot be laid out.
pub fn draw(
    steps: &[usize],
    gates: &[f64],
    noise: &[Drift],
    text: &Drift,
) -> Result<String, ChartError> {
    let names = gates.iter().map(|gate| format!("noise, gate {gate}"));
    let names = ["King James, layer 0".to_owned()].into_iter().chain(names);
    let lines = names.zip([text].into_iter().chain(noise));
    let series = lines.flat_map(|(name, drift)| {
        let errors = |index: usize| {
            let points = steps.iter().zip(&drift.at);
            points
                .map(|(&step, point)| (step as f64, point.error[index]))
                .collect()
        };
        let single = Series {
            companion: true,
            ..Series::new("f32", errors(0))
        };
        [Series::new(name, errors(1)), single]
    });
    let panel = Panel {
        title: "State carried token by token, against f64: bf16 thick, f32 thin".into(),
        series: series.collect(),
    };
    Lines {
        panels: vec![panel],
        x_label: "tokens".into(),
        y_label: "relative error (root mean square over channels)".into(),
    }
    .svg()
}
