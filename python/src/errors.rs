//! Errors of the libraries as exceptions, in the same words.

use pyo3::PyErr;
use std::fmt::Display;

mod classes {
    pyo3::import_exception!(ratplus._errors, InputError);
    pyo3::import_exception!(ratplus._errors, RunError);
    pyo3::import_exception!(ratplus._errors, QueueFull);
}

/// What was given cannot be used.
pub fn input(error: impl Display) -> PyErr {
    classes::InputError::new_err(error.to_string())
}

/// It ran, and failed.
pub fn run(error: impl Display) -> PyErr {
    classes::RunError::new_err(error.to_string())
}

/// There is no room; there may be after so many seconds.
pub fn full(error: impl Display, retry_after: f64) -> PyErr {
    classes::QueueFull::new_err((error.to_string(), retry_after))
}
