//! Requests as Python makes them.

use crate::errors::input;
use pyo3::prelude::*;
use ratplus_runtime::scheduler::{self, Constraint, ConstraintError, TokenSet};
use std::sync::{Mutex, PoisonError};

/// A request that was checked and waits to be submitted, once.
#[pyclass(frozen, module = "ratplus._ratplus")]
pub struct Request(Mutex<Option<scheduler::Request>>);

impl Request {
    pub fn new(request: scheduler::Request) -> Self {
        Self(Mutex::new(Some(request)))
    }

    /// Takes it out.
    ///
    /// # Errors
    /// It was submitted before.
    pub fn take(&self) -> PyResult<scheduler::Request> {
        let mut request = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let twice = || input("a request: expected one that was not submitted yet");
        request.take().ok_or_else(twice)
    }
}

/// One text or several.
#[derive(FromPyObject)]
pub enum Texts {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl From<Texts> for Vec<String> {
    fn from(texts: Texts) -> Self {
        match texts {
            Texts::One(text) => vec![text],
            Texts::Many(texts) => texts,
        }
    }
}

/// Has a sequence go on with tokens that are given, so that each is scored by the logits before it.
pub struct Given(std::vec::IntoIter<u32>);

impl Given {
    pub fn new(tokens: Vec<u32>) -> Self {
        Self(tokens.into_iter())
    }
}

impl Constraint for Given {
    fn allowed(&mut self) -> Result<TokenSet, ConstraintError> {
        Ok(self.0.as_slice().first().copied().into_iter().collect())
    }

    fn accept(&mut self, token: u32) -> Result<(), ConstraintError> {
        match self.0.next() == Some(token) {
            true => Ok(()),
            false => Err(ConstraintError(format!("token {token} was not given"))),
        }
    }

    fn must_end(&mut self) -> bool {
        self.0.as_slice().is_empty()
    }
}
