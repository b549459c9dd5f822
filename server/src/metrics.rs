//! Numbers for Prometheus: vLLM's names where they mean the same, `ratplus:` before others.

use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
    TextEncoder,
};
use ratplus_runtime::scheduler::{Activity, Ended, Finished, Snapshot};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Seconds to a first token, as vLLM cuts them.
const FIRST_TOKEN: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
/// Seconds between tokens.
const BETWEEN_TOKENS: [f64; 19] = [
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
];
/// Seconds of a whole request or a part of it.
const LATENCY: [f64; 21] = [
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
];

/// All of them.
pub(crate) struct Metrics {
    registry: Registry,
    /// One scrape at a time: what a snapshot counts is set anew.
    scrape: Mutex<()>,
    running: IntGauge,
    waiting: IntGauge,
    cache_use: Gauge,
    waiting_tokens: IntGauge,
    failing: IntGauge,
    prefix_bytes: IntGauge,
    prefix_budget: IntGauge,
    prefix_queries: IntCounter,
    prefix_hits: IntCounter,
    prefix_evicted: IntCounter,
    prefill_tokens: IntCounter,
    prefill_steps: IntCounter,
    decode_steps: IntCounter,
    backend_errors: IntCounter,
    replayed: IntCounter,
    prompt_tokens: IntCounter,
    new_tokens: IntCounter,
    finished: IntCounterVec,
    first_token: Histogram,
    between_tokens: Histogram,
    whole: Histogram,
    queued: Histogram,
    prefill: Histogram,
    decode: Histogram,
    answers: IntCounterVec,
}

/// Why sequences end, as vLLM says it.
pub fn finish_reason(ended: &Ended) -> &'static str {
    match ended {
        Ended::StopToken | Ended::StopString(_) => "stop",
        Ended::MaxNewTokens | Ended::MaxSeqLen => "length",
        Ended::Cancelled | Ended::Stopped | Ended::Deadline => "abort",
        _ => "error",
    }
}

impl Metrics {
    pub fn new(model_name: &str) -> Self {
        let labels = [("model_name".to_owned(), model_name.to_owned())].into();
        // Names are constants: a test sees that they are valid.
        let registry = Registry::new_custom(None, Some(labels)).unwrap_or_default();
        let make = Make(&registry);
        let metrics = Self {
            scrape: Mutex::new(()),
            running: make.gauge("vllm:num_requests_running", "Requests in slots"),
            waiting: make.gauge("vllm:num_requests_waiting", "Requests that wait for a slot"),
            cache_use: make.add(Gauge::new(
                "vllm:kv_cache_usage_perc",
                "Tokens that slots hold over those that they could; 1 is all",
            )),
            waiting_tokens: make.gauge(
                "ratplus:queued_tokens",
                "Prompt tokens of requests that wait",
            ),
            failing: make.gauge(
                "ratplus:failing",
                "1 where the last step failed on the backend",
            ),
            prefix_bytes: make.gauge(
                "ratplus:prefix_cache_bytes",
                "Bytes that the prefix cache holds",
            ),
            prefix_budget: make.gauge(
                "ratplus:prefix_cache_budget_bytes",
                "Bytes that the prefix cache may hold",
            ),
            prefix_queries: make.counter(
                "vllm:prefix_cache_queries_total",
                "Prompt tokens that were looked up in the prefix cache",
            ),
            prefix_hits: make.counter(
                "vllm:prefix_cache_hits_total",
                "Prompt tokens that came from the prefix cache",
            ),
            prefix_evicted: make.counter(
                "ratplus:prefix_cache_evicted_total",
                "Checkpoints of the prefix cache that gave way to others",
            ),
            prefill_tokens: make.counter(
                "ratplus:prefill_tokens_total",
                "Prompt tokens that ran, without those of the prefix cache",
            ),
            prefill_steps: make
                .counter("ratplus:prefill_steps_total", "Chunks of prompts that ran"),
            decode_steps: make.counter("ratplus:decode_steps_total", "Decode steps"),
            backend_errors: make.counter(
                "ratplus:backend_errors_total",
                "Steps that the backend failed",
            ),
            replayed: make.counter(
                "ratplus:replayed_total",
                "Sequences that were run again after a backend error",
            ),
            prompt_tokens: make.counter(
                "vllm:prompt_tokens_total",
                "Prompt tokens of requests that ended",
            ),
            new_tokens: make.counter("vllm:generation_tokens_total", "New tokens"),
            finished: make.counters(
                "vllm:request_success_total",
                "Sequences that ended, by reason",
                &["finished_reason"],
            ),
            first_token: make.histogram(
                "vllm:time_to_first_token_seconds",
                "From submission to the first new token",
                &FIRST_TOKEN,
            ),
            between_tokens: make.histogram(
                "vllm:inter_token_latency_seconds",
                "From one new token of a sequence to the next",
                &BETWEEN_TOKENS,
            ),
            whole: make.histogram(
                "vllm:e2e_request_latency_seconds",
                "From submission to the end",
                &LATENCY,
            ),
            queued: make.histogram(
                "vllm:request_queue_time_seconds",
                "From submission to a slot",
                &LATENCY,
            ),
            prefill: make.histogram(
                "vllm:request_prefill_time_seconds",
                "From a slot to the first new token",
                &LATENCY,
            ),
            decode: make.histogram(
                "vllm:request_decode_time_seconds",
                "From the first new token to the end",
                &LATENCY,
            ),
            answers: make.counters(
                "ratplus:http_requests_total",
                "HTTP requests that were answered",
                &["path", "status"],
            ),
            registry,
        };
        for reason in ["stop", "length", "abort", "error"] {
            metrics.finished.with_label_values(&[reason]);
        }
        metrics
    }

    /// An HTTP request was answered.
    pub fn answered(&self, path: &str, status: u16) {
        let status = status.to_string();
        self.answers
            .with_label_values(&[path, status.as_str()])
            .inc();
    }

    /// A sequence has a new token, `since` the one before or, where it is the first, its submission.
    pub fn token(&self, first: bool, since: Duration) {
        self.new_tokens.inc();
        let histogram = if first {
            &self.first_token
        } else {
            &self.between_tokens
        };
        histogram.observe(since.as_secs_f64());
    }

    /// A sequence has ended.
    pub fn finished(&self, finished: &Finished) {
        let timing = &finished.timing;
        self.prompt_tokens.inc_by(finished.prompt_tokens as u64);
        let reason = finish_reason(&finished.ended);
        self.finished.with_label_values(&[reason]).inc();
        self.queued.observe(timing.queued.as_secs_f64());
        self.prefill.observe(timing.prefill.as_secs_f64());
        self.decode.observe(timing.decode.as_secs_f64());
        let whole = timing.queued + timing.prefill + timing.decode;
        self.whole.observe(whole.as_secs_f64());
    }

    /// All of them as text, with what the scheduler is doing.
    pub fn text(&self, snapshot: Option<&Snapshot>) -> String {
        let _one = self.scrape.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(snapshot) = snapshot {
            self.take(snapshot);
        }
        let mut text = String::new();
        // Text fails for a family without a value, and each has one.
        let _ = TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text);
        text
    }

    fn take(&self, snapshot: &Snapshot) {
        let Snapshot { prefix, totals, .. } = snapshot;
        let busy = snapshot.slots.iter();
        let busy = busy.filter(|slot| slot.activity != Activity::Free).count();
        self.running.set(busy as i64);
        self.waiting.set(snapshot.queued_requests as i64);
        self.cache_use.set(snapshot.cache_use);
        self.waiting_tokens.set(snapshot.queued_tokens as i64);
        self.failing.set(snapshot.failing.into());
        self.prefix_bytes.set(prefix.bytes as i64);
        self.prefix_budget.set(prefix.budget_bytes as i64);
        for (counter, count) in [
            (&self.prefix_queries, prefix.queried_tokens),
            (&self.prefix_hits, prefix.hit_tokens),
            (&self.prefix_evicted, prefix.evicted),
            (&self.prefill_tokens, totals.prompt_tokens),
            (&self.prefill_steps, totals.prefill_steps),
            (&self.decode_steps, totals.decode_steps),
            (&self.backend_errors, totals.backend_errors),
            (&self.replayed, totals.replayed),
        ] {
            counter.inc_by(count.saturating_sub(counter.get()));
        }
    }
}

/// Makes and registers.
struct Make<'a>(&'a Registry);

impl Make<'_> {
    fn add<T: prometheus::core::Collector + Clone + 'static>(
        &self,
        made: prometheus::Result<T>,
    ) -> T {
        let made = made.unwrap_or_else(|error| unreachable!("{error}"));
        let registered = self.0.register(Box::new(made.clone()));
        registered.unwrap_or_else(|error| unreachable!("{error}"));
        made
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::new(name, help))
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::new(name, help))
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(IntCounterVec::new(Opts::new(name, help), labels))
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.add(Histogram::with_opts(options))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratplus_runtime::scheduler::{PrefixUse, SlotView, Timing, Totals};
    use std::collections::BTreeMap;

    /// Samples by name and labels.
    fn parse(text: &str) -> BTreeMap<String, f64> {
        let mut samples = BTreeMap::new();
        for line in text.lines() {
            if let Some(comment) = line.strip_prefix("# ") {
                assert!(
                    comment.starts_with("HELP ") || comment.starts_with("TYPE "),
                    "{line}"
                );
                continue;
            }
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(name.contains("model_name=\"kjv\""), "{line}");
            let end = name.find('{').unwrap();
            let word = |byte: u8| byte.is_ascii_alphanumeric() || b"_:".contains(&byte);
            assert!(name[..end].bytes().all(word), "{line}");
            let name = name.replace("model_name=\"kjv\"", "").replace("{}", "");
            let twice = samples.insert(name, value.parse().unwrap());
            assert!(twice.is_none(), "{line}");
        }
        samples
    }

    #[test]
    fn every_line_parses_and_counts_what_happened() {
        let metrics = Metrics::new("kjv");
        let empty = parse(&metrics.text(None));
        assert_eq!(empty["vllm:num_requests_running"], 0.0);
        metrics.token(true, Duration::from_millis(30));
        metrics.token(false, Duration::from_millis(20));
        metrics.token(false, Duration::from_millis(60));
        metrics.finished(&Finished {
            state: None,
            ended: Ended::StopToken,
            text: String::new(),
            prompt_tokens: 7,
            cached_tokens: 0,
            new_tokens: 3,
            timing: Timing {
                queued: Duration::from_millis(10),
                prefill: Duration::from_millis(20),
                decode: Duration::from_secs(2),
            },
        });
        metrics.answered("/v1/models", 200);
        let slot = |activity| SlotView {
            activity,
            request: 1,
            prompt_tokens: 4,
            cached_tokens: 0,
            past_tokens: 2,
            new_tokens: 0,
            age: Duration::ZERO,
        };
        let snapshot = |hits| Snapshot {
            slots: vec![
                slot(Activity::Decode),
                slot(Activity::Free),
                slot(Activity::Prefill),
            ],
            queued_requests: 5,
            cache_use: 0.25,
            prefix: PrefixUse {
                queried_tokens: 100,
                hit_tokens: hits,
                ..PrefixUse::default()
            },
            totals: Totals {
                prompt_tokens: 11,
                ..Totals::default()
            },
            ..Snapshot::default()
        };
        metrics.text(Some(&snapshot(40)));
        let samples = parse(&metrics.text(Some(&snapshot(64))));
        for (name, value) in [
            ("vllm:num_requests_running", 2.0),
            ("vllm:num_requests_waiting", 5.0),
            ("vllm:kv_cache_usage_perc", 0.25),
            ("vllm:prompt_tokens_total", 7.0),
            ("vllm:generation_tokens_total", 3.0),
            ("vllm:prefix_cache_queries_total", 100.0),
            ("vllm:prefix_cache_hits_total", 64.0),
            ("ratplus:prefill_tokens_total", 11.0),
            ("vllm:time_to_first_token_seconds_count", 1.0),
            ("vllm:inter_token_latency_seconds_count", 2.0),
            ("vllm:request_queue_time_seconds_count", 1.0),
            ("vllm:e2e_request_latency_seconds_sum", 2.03),
        ] {
            assert_eq!(samples[name], value, "{name}");
        }
        let labelled = |name: &str, label: &str| {
            let mut found = samples.iter();
            let found = found.find(|(key, _)| key.starts_with(name) && key.contains(label));
            *found
                .unwrap_or_else(|| panic!("{name} {label}: {samples:?}"))
                .1
        };
        for (name, label, value) in [
            (
                "vllm:request_success_total",
                "finished_reason=\"stop\"",
                1.0,
            ),
            (
                "vllm:request_success_total",
                "finished_reason=\"abort\"",
                0.0,
            ),
            (
                "vllm:request_success_total",
                "finished_reason=\"length\"",
                0.0,
            ),
            (
                "vllm:inter_token_latency_seconds_bucket",
                "le=\"0.025\"",
                1.0,
            ),
            (
                "vllm:inter_token_latency_seconds_bucket",
                "le=\"+Inf\"",
                2.0,
            ),
            ("ratplus:http_requests_total", "status=\"200\"", 1.0),
        ] {
            assert_eq!(labelled(name, label), value, "{name} {label}");
        }
    }
}
