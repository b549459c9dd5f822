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

    /// Tokens of its prompt.
    ///
    /// # Errors
    /// It was submitted before.
    pub fn tokens(&self) -> PyResult<usize> {
        let request = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let request = request.as_ref().ok_or_else(twice)?;
        Ok(request.prompt.len())
    }

    /// Takes it out.
    ///
    /// # Errors
    /// It was submitted before.
    pub fn take(&self) -> PyResult<scheduler::Request> {
        let mut request = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        request.take().ok_or_else(twice)
    }
}

fn twice() -> PyErr {
    input("a request: expected one that was not submitted yet")
}

/// One text or several.
#[derive(FromPyObject)]
pub enum OneOrMore {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl From<OneOrMore> for Vec<String> {
    fn from(texts: OneOrMore) -> Self {
        match texts {
            OneOrMore::One(text) => vec![text],
            OneOrMore::Many(texts) => texts,
        }
    }
}

/// A request that scores `tokens` from index `start` on, beside the `top` likeliest: as `prompt_scores` where the package
/// has `all` logits, then as `scores`, the last ones of both together.
///
/// # Errors
/// They are too few or too many, or none is scored.
pub fn scoring(
    mut tokens: Vec<u32>,
    start: usize,
    top: usize,
    (all, max_seq_len): (bool, usize),
) -> PyResult<scheduler::Request> {
    let count = tokens.len();
    let problem = match count {
        0 | 1 => Some(format!(
            "expected at least 2 tokens, found {count}: the first one has no prediction"
        )),
        // Nothing comes after the last token: it need not run where there is no room for it.
        _ if count > max_seq_len + 1 => Some(format!(
            "expected at most {} tokens, found {count}; score them in windows",
            max_seq_len + 1
        )),
        _ if !(1..count).contains(&start) => Some(format!(
            "`start`: expected 1 to {}, found {start}",
            count - 1
        )),
        _ => None,
    };
    if let Some(problem) = problem {
        return Err(input(problem));
    }
    let given = tokens.split_off(if all { count.min(max_seq_len) } else { start });
    let mut request = scheduler::Request::new(tokens);
    request.prompt_logprobs = all.then_some(top);
    request.max_new_tokens = given.len();
    if !given.is_empty() {
        request.logprobs = Some(top);
        request.constraint = Some(Box::new(Given(given.into_iter())));
    }
    Ok(request)
}

/// Has a sequence go on with tokens that are given, so that each is scored by the logits before it.
struct Given(std::vec::IntoIter<u32>);

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
