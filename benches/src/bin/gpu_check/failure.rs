//! Why a run ends badly.

use ratplus_kernels::cuda::CudaError;
use std::fmt;

/// What ends the program.
#[derive(Debug)]
pub enum Failure {
    /// It could not run here.
    Environment(String),
    /// It ran, and something is wrong.
    Wrong(String),
}

impl Failure {
    /// From an error before anything ran.
    pub fn environment(error: impl fmt::Display) -> Self {
        Self::Environment(error.to_string())
    }

    /// From what is wrong.
    pub fn wrong(what: impl fmt::Display) -> Self {
        Self::Wrong(what.to_string())
    }

    /// The same with what was being done in front.
    pub fn during(self, what: &str) -> Self {
        match self {
            Self::Environment(text) => Self::Environment(format!("{what}: {text}")),
            Self::Wrong(text) => Self::Wrong(format!("{what}: {text}")),
        }
    }

    /// What the process exits with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Environment(_) => 2,
            Self::Wrong(_) => 1,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Environment(text) | Self::Wrong(text) => f.write_str(text),
        }
    }
}

/// A device that was opened and then fails is a bad result.
impl From<CudaError> for Failure {
    fn from(error: CudaError) -> Self {
        Self::Wrong(error.to_string())
    }
}
