use ratplus_graphs::ops::{LengthError, Op};

/// Why an operator was not run; no output was touched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
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

/// Checks `(port, expected, found)` in order.
pub(crate) fn check_slices(
    op: Op,
    slices: &[(&'static str, usize, usize)],
) -> Result<(), ReferenceError> {
    match slices.iter().find(|(_, expected, found)| expected != found) {
        Some(&(port, expected, found)) => Err(ReferenceError::Length {
            op,
            port,
            expected,
            found,
        }),
        None => Ok(()),
    }
}
