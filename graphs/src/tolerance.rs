//! What counts as equal.

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
