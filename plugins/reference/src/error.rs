use ratplus_graphs::ops::{Op, SchemaErrors};
use std::fmt::Display;

/// Why an operator was not run, with what was expected and found; no output was touched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ReferenceError(String);

impl ReferenceError {
    pub(crate) fn new(op: Op, problem: impl Display) -> Self {
        Self(format!("{op}: {problem}"))
    }

    /// There are more or fewer tensors than ports.
    pub(crate) fn ports(op: Op) -> Self {
        Self::new(op, "expected one tensor a port")
    }
}

impl From<SchemaErrors> for ReferenceError {
    fn from(errors: SchemaErrors) -> Self {
        Self(errors.to_string())
    }
}
