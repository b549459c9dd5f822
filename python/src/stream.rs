//! What a request is told, from the scheduler's thread to Python's.

use crate::errors::{input, run};
use crate::process::Process;
use crate::state::{Layout, State};
use numpy::{PyArray1, PyArray2, PyArrayMethods};
use pyo3::exceptions::PyStopIteration;
use pyo3::prelude::*;
use ratplus_runtime::sampler::Score;
use ratplus_runtime::scheduler::{Ended, Finished, Ticket, Update};
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a wait lasts before Python looks for signals.
const GLANCE: Duration = Duration::from_millis(20);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Updates on their way. The scheduler's thread never waits for Python.
#[derive(Default)]
pub struct Channel {
    waiting: Mutex<Waiting>,
    came: Condvar,
}

#[derive(Default)]
struct Waiting {
    updates: VecDeque<Update>,
    /// Both ends of what an event loop watches: readable while there may be updates.
    bell: Option<(UnixStream, UnixStream)>,
}

impl Channel {
    /// Takes an update.
    pub fn send(&self, update: Update) {
        let mut waiting = lock(&self.waiting);
        if let (true, Some((_, bell))) = (waiting.updates.is_empty(), &mut waiting.bell) {
            // Full is as good as rung.
            let _ = bell.write(&[1]);
        }
        waiting.updates.push_back(update);
        self.came.notify_one();
    }

    /// The next update; none after `patience`.
    fn wait(&self, patience: Duration) -> Option<Update> {
        let waiting = lock(&self.waiting);
        let empty = |waiting: &mut Waiting| waiting.updates.is_empty();
        let waited = self.came.wait_timeout_while(waiting, patience, empty);
        let (mut waiting, _) = waited.unwrap_or_else(PoisonError::into_inner);
        waiting.updates.pop_front()
    }

    /// The next update that is there; the bell is silent where there is none.
    fn poll(&self) -> Option<Update> {
        let mut waiting = lock(&self.waiting);
        let update = waiting.updates.pop_front();
        if let (None, Some((watched, _))) = (&update, &mut waiting.bell) {
            let mut rung = [0; 64];
            while watched.read(&mut rung).is_ok_and(|count| count > 0) {}
        }
        update
    }

    /// What an event loop watches.
    fn bell(&self) -> std::io::Result<i32> {
        let mut waiting = lock(&self.waiting);
        if waiting.bell.is_none() {
            let (watched, mut bell) = UnixStream::pair()?;
            watched.set_nonblocking(true)?;
            bell.set_nonblocking(true)?;
            if !waiting.updates.is_empty() {
                bell.write_all(&[1])?;
            }
            waiting.bell = Some((watched, bell));
        }
        let watched = waiting
            .bell
            .as_ref()
            .map(|(watched, _)| watched.as_raw_fd());
        watched.ok_or_else(|| ErrorKind::NotFound.into())
    }
}

/// A new token, or the last of a text.
#[pyclass(frozen, get_all, module = "ratplus")]
pub struct Token {
    /// The id; None for the rest of a text that was held back.
    token: Option<u32>,
    /// The text that can be shown now, often none.
    text: String,
    /// Natural logarithm of the token's probability, where `logprobs` was asked for.
    logprob: Option<f32>,
    /// The likeliest tokens and theirs, most likely first.
    top: Option<Vec<(u32, f32)>>,
}

#[pymethods]
impl Token {
    fn __repr__(&self) -> String {
        let token = self.token.map_or("None".into(), |token| token.to_string());
        format!("Token(token={token}, text={:?})", self.text)
    }
}

/// Log-probabilities `[n]` and, beside each, those of the likeliest tokens `[n, k]`.
#[pyclass(frozen, get_all, module = "ratplus")]
pub struct Scores {
    /// float32 [n]
    logprobs: Py<PyArray1<f32>>,
    /// uint32 [n, k], most likely first.
    top_tokens: Py<PyArray2<u32>>,
    /// float32 [n, k]
    top_logprobs: Py<PyArray2<f32>>,
}

impl Scores {
    fn new(py: Python<'_>, scores: &[Score]) -> PyResult<Self> {
        let most = scores.first().map_or(0, |score| score.best.len());
        let best = || scores.iter().flat_map(|score| &score.best);
        let shape = [scores.len(), most];
        let logprobs = scores.iter().map(|score| score.logprob).collect();
        let tokens = best().map(|best| best.0).collect();
        let others = best().map(|best| best.1).collect();
        Ok(Self {
            logprobs: PyArray1::from_vec(py, logprobs).unbind(),
            top_tokens: PyArray1::from_vec(py, tokens).reshape(shape)?.unbind(),
            top_logprobs: PyArray1::from_vec(py, others).reshape(shape)?.unbind(),
        })
    }
}

/// A finished sequence.
#[pyclass(frozen, get_all, module = "ratplus")]
pub struct Completion {
    /// New tokens, uint32 [n].
    tokens: Py<PyArray1<u32>>,
    /// Their text.
    text: String,
    /// "end", "stop_string", "max_new_tokens", "max_seq_len", "cancelled" or "timeout".
    finish_reason: &'static str,
    /// Of the new tokens, where `logprobs` was asked for.
    scores: Option<Py<Scores>>,
    /// Of the prompt's second token and those after it, where `prompt_logprobs` was.
    prompt_scores: Option<Py<Scores>>,
    /// Tokens of the prompt.
    prompt_tokens: usize,
    /// Of those, how many came from the prefix cache.
    cached_tokens: usize,
    /// Seconds from its submission to its slot, from there to its first new token, and from there to its end.
    timing: (f64, f64, f64),
    /// What it leaves, where `keep_state` was asked for.
    state: Option<Py<State>>,
}

#[pymethods]
impl Completion {
    fn __repr__(&self) -> String {
        format!(
            "Completion(text={:?}, finish_reason={:?})",
            self.text, self.finish_reason
        )
    }
}

/// What has been taken from the channel.
#[derive(Default)]
struct Taken {
    tokens: Vec<u32>,
    text: String,
    scores: Vec<Score>,
    prompt_scores: Option<Vec<Score>>,
    finished: Option<Finished>,
}

/// A request that runs or waits; dropping it cancels it.
#[pyclass(frozen, module = "ratplus._ratplus")]
pub struct Stream {
    channel: Arc<Channel>,
    ticket: Mutex<Option<Ticket>>,
    taken: Mutex<Taken>,
    has_scores: bool,
    layout: Arc<Layout>,
    process: Process,
}

impl Stream {
    pub fn new(
        channel: Arc<Channel>,
        ticket: Ticket,
        has_scores: bool,
        layout: Arc<Layout>,
        process: Process,
    ) -> Self {
        Self {
            channel,
            ticket: Mutex::new(Some(ticket)),
            taken: Mutex::default(),
            has_scores,
            layout,
            process,
        }
    }

    /// The next update, as signals allow: one that raises ends the request.
    fn wait(&self, py: Python<'_>) -> PyResult<Update> {
        self.process.check()?;
        loop {
            if let Some(update) = py.detach(|| self.channel.wait(GLANCE)) {
                return Ok(update);
            }
            py.check_signals().inspect_err(|_| self.cancel())?;
        }
    }

    /// Waits for the end, and says why it was.
    fn end(&self, py: Python<'_>) -> PyResult<&'static str> {
        loop {
            if let Some(ended) = self.ended() {
                return ended;
            }
            self.take(self.wait(py)?);
        }
    }

    /// Keeps what an update says, and gives what there is to show of it.
    fn take(&self, update: Update) -> Option<Token> {
        let mut taken = lock(&self.taken);
        match update {
            Update::Prompt(scores) => {
                taken.prompt_scores = Some(scores);
                None
            }
            Update::Token(new) => {
                taken.tokens.push(new.token);
                taken.text += &new.text;
                let token = Token {
                    token: Some(new.token),
                    text: new.text,
                    logprob: new.score.as_ref().map(|score| score.logprob),
                    top: new.score.as_ref().map(|score| score.best.clone()),
                };
                taken.scores.extend(new.score);
                Some(token)
            }
            Update::Finished(mut finished) => {
                let text = std::mem::take(&mut finished.text);
                taken.text += &text;
                taken.finished = Some(finished);
                (!text.is_empty()).then_some(Token {
                    token: None,
                    text,
                    logprob: None,
                    top: None,
                })
            }
        }
    }

    /// How it ended, if it has.
    fn ended(&self) -> Option<PyResult<&'static str>> {
        let taken = lock(&self.taken);
        let finished = taken.finished.as_ref()?;
        Some(match &finished.ended {
            Ended::MaxNewTokens => Ok("max_new_tokens"),
            Ended::StopToken => Ok("end"),
            Ended::StopString(_) => Ok("stop_string"),
            Ended::MaxSeqLen => Ok("max_seq_len"),
            Ended::Cancelled => Ok("cancelled"),
            Ended::Deadline => Ok("timeout"),
            Ended::Stopped => Err(run("the model was closed before the end")),
            Ended::NonFinite(error) => Err(run(error)),
            Ended::Constraint(error) => Err(input(error)),
            Ended::Failed(error) => Err(run(error)),
            _ => Err(run("it ended for a reason that this module does not know")),
        })
    }
}

#[pymethods]
impl Stream {
    fn __iter__(this: Py<Self>) -> Py<Self> {
        this
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Token>> {
        loop {
            if let Some(ended) = self.ended() {
                return ended.map(|_| None);
            }
            if let Some(token) = self.take(self.wait(py)?) {
                return Ok(Some(token));
            }
        }
    }

    /// The next token that is there, None where there is none yet; StopIteration at the end.
    fn poll(&self) -> PyResult<Option<Token>> {
        loop {
            if let Some(ended) = self.ended() {
                return ended.and_then(|_| Err(PyStopIteration::new_err(())));
            }
            self.process.check()?;
            let Some(update) = self.channel.poll() else {
                return Ok(None);
            };
            if let Some(token) = self.take(update) {
                return Ok(Some(token));
            }
        }
    }

    /// A descriptor that is readable where `poll` may have something.
    fn fileno(&self) -> PyResult<i32> {
        self.process.check()?;
        Ok(self.channel.bell()?)
    }

    /// Ends it before its next step; "cancelled", unless it had ended.
    fn cancel(&self) {
        lock(&self.ticket).take();
    }

    /// Scores of the prompt's tokens and the new ones, the last `count` of both together, once it has ended.
    fn scores(&self, py: Python<'_>, count: usize) -> PyResult<Scores> {
        let reason = self.end(py)?;
        let taken = lock(&self.taken);
        let both = [
            taken.prompt_scores.as_deref().unwrap_or_default(),
            &taken.scores,
        ]
        .concat();
        match both.len().checked_sub(count) {
            Some(first) => Scores::new(py, &both[first..]),
            None => Err(run(format!(
                "it ended ({reason}) with {} scores of {count}",
                both.len()
            ))),
        }
    }

    /// The whole of it, once it has ended.
    fn result(&self, py: Python<'_>) -> PyResult<Completion> {
        let finish_reason = self.end(py)?;
        let taken = lock(&self.taken);
        let finished = taken.finished.as_ref();
        let (prompt_tokens, cached_tokens, timing) =
            finished.map_or(Default::default(), |finished| {
                let timing = finished.timing;
                let seconds = [timing.queued, timing.prefill, timing.decode];
                let [queued, prefill, decode] = seconds.map(|time| time.as_secs_f64());
                let timing = (queued, prefill, decode);
                (finished.prompt_tokens, finished.cached_tokens, timing)
            });
        let state = finished.and_then(|finished| finished.state.clone());
        let state = state.map(|state| Py::new(py, State::new(self.layout.clone(), state)));
        let scores = |scores: &[Score]| Py::new(py, Scores::new(py, scores)?);
        let own = self.has_scores.then(|| scores(&taken.scores));
        let prompt = taken.prompt_scores.as_deref().map(scores);
        Ok(Completion {
            tokens: PyArray1::from_slice(py, &taken.tokens).unbind(),
            text: taken.text.clone(),
            finish_reason,
            scores: own.transpose()?,
            prompt_scores: prompt.transpose()?,
            prompt_tokens,
            cached_tokens,
            timing,
            state: state.transpose()?,
        })
    }
}
