//! Which process a model belongs to.

use crate::errors::run;
use pyo3::prelude::*;

/// The process that opened a model. One that it forks has none of its threads, and may have its locks as they were.
#[derive(Clone, Copy)]
pub struct Process(u32);

impl Process {
    pub fn this() -> Self {
        Self(std::process::id())
    }

    pub fn is_this(self) -> bool {
        std::process::id() == self.0
    }

    /// # Errors
    /// This process was forked since.
    pub fn check(self) -> PyResult<()> {
        match self.is_this() {
            true => Ok(()),
            false => Err(run(
                "the model was opened before this process was forked; open it in this process",
            )),
        }
    }
}
