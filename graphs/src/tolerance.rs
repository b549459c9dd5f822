//! What counts as equal.

use serde::Serialize;
use std::fmt;
use std::str::FromStr;

/// Largest difference of an f32 logit from an f64 golden, as a fraction of the largest golden
/// logit.
pub const F32_LOGIT: f64 = 2e-4;

/// A low-precision result may err this many times as much as the same rounding done naively in
/// the reference.
pub const NAIVE_ROUNDING_FACTOR: f64 = 2.0;

/// Rounded weights may move logits this many times as far in the mean as noise of the same size in
/// the same weights does. Over the golden models the two are within 13 % of one another.
pub const STORED_WEIGHTS_MEAN_FACTOR: f64 = 1.5;

/// Fewer rows of logits are too small a sample for [`STORED_WEIGHTS_MEAN_FACTOR`]: one row's mean is
/// up to half again another's.
pub const STORED_WEIGHTS_MEAN_ROWS: u64 = 16;

/// What of an output's absolute differences is held to a tolerance.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Statistic {
    /// The largest.
    Max,
    /// Their mean.
    Mean,
    /// What that share of them, above 0 and below 1, is at most; read in millionths of a percent.
    Quantile(f64),
}

/// A percentage is read and written to so many parts of one percent.
const PERCENT_PARTS: f64 = 1e6;

impl fmt::Display for Statistic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Max => f.write_str("max"),
            Self::Mean => f.write_str("mean"),
            Self::Quantile(share) => {
                let percent = (share * 100.0 * PERCENT_PARTS).round() / PERCENT_PARTS;
                write!(f, "p{percent}")
            }
        }
    }
}

impl FromStr for Statistic {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let percent = |digits: &str| {
            let parts = digits.parse::<f64>().ok()? * PERCENT_PARTS;
            Some(parts.round() / PERCENT_PARTS)
        };
        match (text, text.strip_prefix('p').and_then(percent)) {
            ("max", _) => Ok(Self::Max),
            ("mean", _) => Ok(Self::Mean),
            ("median", _) => Ok(Self::Quantile(0.5)),
            (_, Some(percent)) if percent > 0.0 && percent < 100.0 => {
                Ok(Self::Quantile(percent / 100.0))
            }
            _ => Err(format!(
                "expected max, mean, median or a percentile from p0.000001 to p99.999999, such as p99.9, found \
                 `{text}`"
            )),
        }
    }
}

/// A tolerance of one output in place of those above: `logits:1e-3`, `logits:p99.9:1e-4`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OutputTolerance {
    /// The output's name.
    pub output: String,
    /// What is held to it.
    pub statistic: Statistic,
    /// The most that passes.
    pub most: f64,
}

impl fmt::Display for OutputTolerance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{:e}", self.output, self.statistic, self.most)
    }
}

impl FromStr for OutputTolerance {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORM: &str =
            "expected OUTPUT:X or OUTPUT:STATISTIC:X, as logits:1e-3, logits:mean:1e-5";
        let mut parts = text.split(':');
        let (output, statistic, most) =
            match (parts.next(), parts.next(), parts.next(), parts.next()) {
                (Some(output), Some(most), None, None) => (output, Statistic::Max, most),
                (Some(output), Some(statistic), Some(most), None) => {
                    (output, statistic.parse()?, most)
                }
                _ => return Err(format!("{FORM}, found `{text}`")),
            };
        if output.is_empty() {
            return Err(format!("{FORM}, found no OUTPUT in `{text}`"));
        }
        match most.parse::<f64>() {
            Ok(most) if most.is_finite() && most >= 0.0 => Ok(Self {
                output: output.into(),
                statistic,
                most,
            }),
            _ => Err(format!(
                "X: expected a finite number, 0 or more, found `{most}`"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerances_are_read_as_they_are_written() {
        for (text, shown) in [
            ("logits:1e-3", "logits:max:1e-3"),
            ("logits:max:0", "logits:max:0e0"),
            ("layer0.hidden:mean:2.5e-5", "layer0.hidden:mean:2.5e-5"),
            ("logits:median:1", "logits:p50:1e0"),
            ("logits:p99.9:1e-4", "logits:p99.9:1e-4"),
            ("logits:p0.000001:1e-4", "logits:p0.000001:1e-4"),
            ("logits:p99.999999:1e-4", "logits:p99.999999:1e-4"),
            ("logits:p50.00000001:1", "logits:p50:1e0"),
        ] {
            let tolerance: OutputTolerance = text.parse().unwrap();
            assert_eq!(tolerance.to_string(), shown);
            assert_eq!(shown.parse(), Ok(tolerance));
        }
    }

    #[test]
    fn what_is_no_tolerance_is_refused() {
        for text in [
            "",
            "logits",
            "1e-3",
            ":1e-3",
            "logits:",
            "logits:-1",
            "logits:inf",
            "logits:nan",
            "logits:p100:1",
            "logits:p0:1",
            "logits:largest:1",
            "logits:max:1:2",
        ] {
            assert!(text.parse::<OutputTolerance>().is_err(), "{text}");
        }
        // What would be read as all or as nothing.
        for share in ["p0.00000001", "p99.99999999", "pnan", "p-1"] {
            let error = format!("logits:{share}:1e-3").parse::<OutputTolerance>();
            let expected = format!("from p0.000001 to p99.999999, such as p99.9, found `{share}`");
            assert!(
                error.is_err_and(|error| error.ends_with(&expected)),
                "{share}"
            );
        }
        let error = "logits:inf".parse::<OutputTolerance>().unwrap_err();
        assert_eq!(error, "X: expected a finite number, 0 or more, found `inf`");
    }
}
