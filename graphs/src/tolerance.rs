//! What counts as equal.

/// Largest difference of an f32 logit from an f64 golden, as a fraction of the largest golden
/// logit.
pub const F32_LOGIT: f64 = 2e-4;

/// A low-precision result may err this many times as much as the same rounding done naively in
/// the reference.
pub const NAIVE_ROUNDING_FACTOR: f64 = 2.0;
