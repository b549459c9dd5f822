//! Which differences pass.

use super::{Asked, Differences, Row, Verifier, VerifyError};
use ratplus_graphs::tolerance::{F32_LOGIT, NAIVE_ROUNDING_FACTOR};
use ratplus_runtime::backend::BackendKind;

impl Verifier<'_> {
    /// Holds differences against the tolerance for their kind, or those that the caller has for the tensor.
    pub(super) fn judge(
        &mut self,
        backend: BackendKind,
        route: &str,
        tensor: &str,
        differences: &Differences,
        scale: f64,
        seconds: f64,
    ) -> Result<Row, VerifyError> {
        let asked = self.options.tolerances.iter();
        let asked: Vec<_> = asked
            .filter(|tolerance| tolerance.output == tensor)
            .map(|tolerance| Asked {
                found: differences.statistic(tolerance.statistic),
                tolerance: tolerance.clone(),
            })
            .collect();
        let exact = F32_LOGIT * scale;
        let types = self.package.manifest().types();
        let (tolerance, source) = if !self.low_precision() {
            (
                Some(exact),
                format!("{F32_LOGIT:e} x the largest golden value"),
            )
        } else if backend == BackendKind::Tract {
            // Over all routes: few rows on one of them are a small sample of rounding errors.
            let naive = self.naive.entry(tensor.to_owned()).or_default();
            *naive = naive.max(differences.max);
            (
                None,
                format!("set by tract: its error with the package's roundings ({types})"),
            )
        } else {
            match self.naive.get(tensor) {
                Some(naive) if !naive.is_finite() => (
                    None,
                    format!("none: tract's error with the same roundings ({types}) is not finite"),
                ),
                Some(&naive) => (
                    Some((NAIVE_ROUNDING_FACTOR * naive).max(exact)),
                    format!(
                        "{NAIVE_ROUNDING_FACTOR} x tract's error with the same roundings ({types})"
                    ),
                ),
                None if !asked.is_empty() => (
                    None,
                    format!("none by default: that of {types} comes from tract, which did not run"),
                ),
                None => {
                    return Err(VerifyError::Mismatch(vec![format!(
                        "{backend}: the tolerance of {types} comes from tract; add tract to `backends`"
                    )]));
                }
            }
        };
        Ok(Row {
            backend,
            route: route.to_owned(),
            tensor: tensor.to_owned(),
            rows: differences.rows,
            max_error: differences.max,
            mean_error: differences.mean(),
            tolerance,
            mean_tolerance: None,
            tolerance_source: source,
            histogram: differences.decades(),
            argmax_agreed: (tensor == "logits").then_some(differences.argmax_agreed),
            worst: differences.worst,
            seconds,
            // What is not a number is in no quantile, and never passes.
            passed: differences.max.is_finite()
                && match (asked.as_slice(), tolerance) {
                    ([], Some(most)) => differences.max <= most,
                    ([], None) => backend == BackendKind::Tract || differences.rows == 0,
                    (asked, _) => asked.iter().all(Asked::kept),
                },
            asked,
            divergence: None,
        })
    }
}
