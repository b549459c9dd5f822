use ratplus_graphs::ops::{LengthError, Op, SchemaErrors};

/// Why an operator was not run; no output was touched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReferenceError {
    /// The inputs contradict the schema.
    #[error(transparent)]
    Schema(#[from] SchemaErrors),
    /// There are more or fewer tensors than ports.
    #[error("{op}: expected one tensor a port")]
    Ports {
        /// The operator.
        op: Op,
    },
    /// A slice is not as long as the shape says.
    #[error("{op}: {port}: expected {expected} elements, found {found}")]
    Length {
        /// The operator.
        op: Op,
        /// The port's name.
        port: &'static str,
        /// Elements of the port's shape.
        expected: usize,
        /// Elements of the slice.
        found: usize,
    },
    /// `past_length` or `seq_length` is out of range.
    #[error("{op}: {error}")]
    Lengths {
        /// The operator.
        op: Op,
        /// Which slot, and why.
        #[source]
        error: LengthError,
    },
}
