//! Numbers of this backend among the server's.

use crate::error::{Fault, check};
use crate::ffi::{self, MetricKind};
use crate::text::c_string;
use std::ptr;
use std::time::Duration;

/// What is counted, in the order of [`FAMILIES`].
#[derive(Clone, Copy)]
pub enum Number {
    Slots,
    InFlight,
    PromptTokens,
    CachedTokens,
    NewTokens,
    FirstToken,
    BetweenTokens,
}

/// Seconds to a first token, and between tokens.
const FIRST_TOKEN: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0,
];
const BETWEEN_TOKENS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
];

/// Name, what it is, and the buckets of a histogram.
type Described = (&'static str, MetricKind, &'static str, &'static [f64]);

const FAMILIES: [Described; 7] = [
    (
        "ratplus_slots",
        MetricKind::Gauge,
        "Sequences that run at once; models over one package share them",
        &[],
    ),
    (
        "ratplus_requests_in_flight",
        MetricKind::Gauge,
        "Requests that the backend has and has not answered whole",
        &[],
    ),
    (
        "ratplus_prompt_tokens",
        MetricKind::Counter,
        "Prompt tokens of requests that ended",
        &[],
    ),
    (
        "ratplus_cached_prompt_tokens",
        MetricKind::Counter,
        "Of these, tokens that came from the prefix cache",
        &[],
    ),
    (
        "ratplus_generated_tokens",
        MetricKind::Counter,
        "New tokens",
        &[],
    ),
    (
        "ratplus_time_to_first_token_seconds",
        MetricKind::Histogram,
        "From the scheduler's queue to the first new token",
        FIRST_TOKEN,
    ),
    (
        "ratplus_inter_token_latency_seconds",
        MetricKind::Histogram,
        "From one new token of a sequence to the next",
        BETWEEN_TOKENS,
    ),
];

/// The families, which outlive every model's numbers. None where the server counts nothing.
pub struct Families(Vec<*mut ffi::MetricFamily>);

/// A model's numbers.
pub struct Metrics(Vec<*mut ffi::Metric>);

// SAFETY: the server guards them.
unsafe impl Send for Families {}
// SAFETY: as above.
unsafe impl Sync for Families {}
// SAFETY: as above.
unsafe impl Send for Metrics {}
// SAFETY: as above.
unsafe impl Sync for Metrics {}

impl Families {
    /// All of them.
    pub fn new() -> Self {
        let mut families = Self(Vec::new());
        for (name, kind, description, _) in FAMILIES {
            let (name, description) = (c_string(name), c_string(description));
            let mut family = ptr::null_mut();
            // SAFETY: both texts live as long as the call.
            let made = unsafe {
                check(ffi::TRITONSERVER_MetricFamilyNew(
                    &mut family,
                    kind,
                    name.as_ptr(),
                    description.as_ptr(),
                ))
            };
            if let Err(fault) = made {
                tracing::info!(%fault, "no metrics");
                return Self(Vec::new());
            }
            families.0.push(family);
        }
        families
    }
}

impl Drop for Families {
    fn drop(&mut self) {
        for &family in &self.0 {
            // SAFETY: made by `new`; every model's numbers are gone.
            if let Err(fault) = unsafe { check(ffi::TRITONSERVER_MetricFamilyDelete(family)) } {
                tracing::warn!(%fault, "a family of metrics is left");
            }
        }
    }
}

impl Metrics {
    /// Of that model.
    pub fn new(families: &Families, model: &str, version: u64) -> Result<Self, Fault> {
        let version = version.to_string();
        let labels = [("model", model), ("version", &version)].map(|(name, value)| {
            let (name, value) = (c_string(name), c_string(value));
            // SAFETY: both texts live as long as the call, which copies them.
            unsafe {
                ffi::TRITONSERVER_ParameterNew(
                    name.as_ptr(),
                    ffi::PARAMETER_STRING,
                    value.as_ptr().cast(),
                )
            }
        });
        let mut metrics = Self(Vec::new());
        let made = families
            .0
            .iter()
            .zip(FAMILIES)
            .try_for_each(|(&family, described)| {
                // SAFETY: the family and the labels live.
                metrics
                    .0
                    .push(unsafe { metric(family, &labels, described.3) }?);
                Ok(())
            });
        for label in labels {
            // SAFETY: made above, and copied by what was made of them.
            unsafe { ffi::TRITONSERVER_ParameterDelete(label) };
        }
        made.map(|()| metrics)
    }

    fn change(
        &self,
        number: Number,
        value: f64,
        how: unsafe extern "C" fn(*mut ffi::Metric, f64) -> ffi::Status,
    ) {
        if let Some(&metric) = self.0.get(number as usize) {
            // SAFETY: the metric lives as long as this.
            if let Err(fault) = unsafe { check(how(metric, value)) } {
                tracing::debug!(%fault, "not counted");
            }
        }
    }

    /// Adds to a counter or a gauge.
    pub fn add(&self, number: Number, value: f64) {
        self.change(number, value, ffi::TRITONSERVER_MetricIncrement);
    }

    /// Sets a gauge.
    pub fn set(&self, number: Number, value: f64) {
        self.change(number, value, ffi::TRITONSERVER_MetricSet);
    }

    /// Adds to a histogram.
    pub fn observe(&self, number: Number, time: Duration) {
        self.change(number, time.as_secs_f64(), ffi::TRITONSERVER_MetricObserve);
    }
}

/// # Safety
/// The family and the labels are the server's and live.
unsafe fn metric(
    family: *mut ffi::MetricFamily,
    labels: &[*mut ffi::Parameter],
    buckets: &[f64],
) -> Result<*mut ffi::Metric, Fault> {
    let mut labels: Vec<_> = labels.iter().map(|label| label.cast_const()).collect();
    let (count, labels) = (labels.len() as u64, labels.as_mut_ptr());
    let (mut metric, mut arguments) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: the caller's contract; the buckets are copied, and the arguments deleted here.
    unsafe {
        if buckets.is_empty() {
            check(ffi::TRITONSERVER_MetricNew(
                &mut metric,
                family,
                labels,
                count,
            ))?;
            return Ok(metric);
        }
        check(ffi::TRITONSERVER_MetricArgsNew(&mut arguments))?;
        let (cuts, number) = (buckets.as_ptr(), buckets.len() as u64);
        let made = check(ffi::TRITONSERVER_MetricArgsSetHistogram(
            arguments, cuts, number,
        ));
        let made = made.and_then(|()| {
            check(ffi::TRITONSERVER_MetricNewWithArgs(
                &mut metric,
                family,
                labels,
                count,
                arguments,
            ))
        });
        made.and(check(ffi::TRITONSERVER_MetricArgsDelete(arguments)))?;
    }
    Ok(metric)
}

impl Drop for Metrics {
    fn drop(&mut self) {
        for &metric in &self.0 {
            // SAFETY: made by `new`.
            if let Err(fault) = unsafe { check(ffi::TRITONSERVER_MetricDelete(metric)) } {
                tracing::warn!(%fault, "a metric is left");
            }
        }
    }
}
