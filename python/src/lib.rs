//! The native half of the Python module `ratplus`; what users see of it is in `python/ratplus`.

mod errors;
mod export;
mod request;
mod service;
mod state;
mod stream;
mod tokens;

/// What `python/ratplus` is made of.
#[pyo3::pymodule]
mod _ratplus {
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
}
