//! The native half of the Python module `ratplus`; what users see of it is in `python/ratplus`.

mod errors;
mod export;
mod process;
mod request;
mod service;
mod snapshot;
mod state;
mod stream;
mod tokens;

/// What `python/ratplus` is made of.
#[pyo3::pymodule]
mod _ratplus {
    use pyo3::prelude::*;
    use ratplus_runtime::scheduler;

    #[pymodule_export]
    use super::export::export;
    #[pymodule_export]
    use super::request::Request;
    #[pymodule_export]
    use super::service::Service;
    #[pymodule_export]
    use super::state::State;
    #[pymodule_export]
    use super::stream::{Completion, Scores, Stream, Token};

    /// What the program has unless it is told otherwise, and bounds of the server.
    #[pymodule_init]
    fn numbers(module: &Bound<'_, PyModule>) -> PyResult<()> {
        let options = scheduler::Options::default();
        let steps = options.decode_steps_per_chunk;
        module.add("DEFAULT_MAX_QUEUED_REQUESTS", options.max_queued_requests)?;
        module.add("DEFAULT_MAX_QUEUED_TOKENS", options.max_queued_tokens)?;
        module.add("DEFAULT_DECODE_STEPS_PER_CHUNK", steps)?;
        let prefixes = scheduler::DEFAULT_PREFIX_CACHE_BYTES;
        module.add("DEFAULT_PREFIX_CACHE_BYTES", prefixes)?;
        let longest = ratplus_exporter::package::DEFAULT_MAX_SEQ_LEN;
        module.add("DEFAULT_MAX_SEQ_LEN", longest)?;
        module.add("MAX_LOGPROBS", ratplus_server::MAX_LOGPROBS)
    }
}
