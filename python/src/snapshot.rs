//! What a scheduler does, by name.

use pyo3::prelude::*;
use pyo3::types::PyDict;
use ratplus_runtime::scheduler::Snapshot;

/// Counts and totals of a snapshot; `python/ratplus/_model.py` says what they are.
pub fn dict<'py>(py: Python<'py>, snapshot: &Snapshot) -> PyResult<Bound<'py, PyDict>> {
    let (prefix, totals) = (&snapshot.prefix, &snapshot.totals);
    let dict = PyDict::new(py);
    let running = snapshot.slots.iter().filter(|slot| slot.request != 0);
    dict.set_item("running", running.count())?;
    dict.set_item("slots", snapshot.slots.len())?;
    dict.set_item("waiting", snapshot.queued_requests)?;
    dict.set_item("waiting_tokens", snapshot.queued_tokens)?;
    dict.set_item("draining", snapshot.draining)?;
    dict.set_item("ended", snapshot.ended)?;
    dict.set_item("failing", snapshot.failing)?;
    dict.set_item("cache_use", snapshot.cache_use)?;
    for (name, count) in [
        ("prefix_budget_bytes", prefix.budget_bytes),
        ("prefix_bytes", prefix.bytes),
        ("prefix_queried_tokens", prefix.queried_tokens),
        ("prefix_hit_tokens", prefix.hit_tokens),
        ("submitted", totals.submitted),
        ("finished", totals.finished),
        ("prompt_tokens", totals.prompt_tokens),
        ("new_tokens", totals.new_tokens),
        ("backend_errors", totals.backend_errors),
    ] {
        dict.set_item(name, count)?;
    }
    Ok(dict)
}
