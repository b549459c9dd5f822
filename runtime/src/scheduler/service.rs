//! The scheduler on a thread of its own.

use super::core::Core;
use super::request::Ended;
use super::sequence::Job;
use super::{Options, Refused, Request, Sink, Snapshot, StartError};
use crate::engine::{Engine, Limits};
use crate::generate::{RequestError, check, check_stop_strings};
use crate::text::Tokenizer;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A scheduler on a thread of its own, which any thread can give requests to.
///
/// ```no_run
/// use ratplus_runtime::scheduler::{Options, Request, Service, Update};
/// use ratplus_runtime::{BackendKind, Engine, Package, Session};
/// use std::sync::mpsc::channel;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let package = Package::open("model")?;
/// let engine = Engine::new(Session::builder(&package).up_front().open(BackendKind::OrtCpu)?);
/// let service = Service::start(engine, None, Options::default())?;
/// let (sender, updates) = channel();
/// let sink = Box::new(move |update| sender.send(update).is_ok());
/// let _tickets = service.submit(vec![(Request::new(vec![17, 4, 9]), sink)])?;
/// for update in updates {
///     match update {
///         Update::Token(token) => println!("{}", token.token),
///         Update::Finished(finished) => println!("{:?}", finished.ended),
///         _ => {}
///     }
/// }
/// # Ok(())
/// # }
/// ```
pub struct Service {
    limits: Limits,
    /// Of states, and bytes of their tensors.
    fingerprint: String,
    state_sizes: Vec<usize>,
    options: Options,
    has_text: bool,
    all_logits: bool,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Option<Engine>>>,
}

/// What both threads see.
struct Shared {
    state: Mutex<State>,
    /// There are jobs, or it is to stop.
    work: Condvar,
    became_idle: Condvar,
}

#[derive(Default)]
struct State {
    /// Jobs that the thread has not seen.
    jobs: VecDeque<Job>,
    next_id: u64,
    /// Whether nothing runs and nothing waits.
    idle: bool,
    stop: bool,
    /// Whole, a step old at most, but for the queue's counts, which are as they are.
    snapshot: Snapshot,
}

/// A request that runs or waits; it is cancelled when this is dropped.
#[derive(Debug)]
#[must_use = "a request is cancelled when its ticket is dropped"]
pub struct Ticket {
    cancelled: Arc<AtomicBool>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.cancelled.store(true, Relaxed);
    }
}

/// What a panic left is whole: nothing panics between two writes to it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Service {
    /// Starts the thread. Without a tokenizer, updates have no text and requests no stop strings.
    ///
    /// # Errors
    /// The system starts no thread, or [`Options::prefix_cache_file`] cannot be used.
    pub fn start(
        engine: Engine,
        tokenizer: Option<Tokenizer>,
        options: Options,
    ) -> Result<Self, StartError> {
        let limits = engine.limits().clone();
        let (has_text, all_logits) = (tokenizer.is_some(), engine.session().returns_all_logits());
        let fingerprint = engine.session().fingerprint().into();
        let state_sizes = engine.session().slot_sizes();
        let core = Core::new(engine, tokenizer, options.clone())?;
        let state = State {
            snapshot: core.snapshot(),
            idle: true,
            ..State::default()
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            work: Condvar::new(),
            became_idle: Condvar::new(),
        });
        let worker = Worker {
            core,
            shared: shared.clone(),
        };
        let thread = std::thread::Builder::new().name("ratplus-scheduler".into());
        Ok(Self {
            limits,
            fingerprint,
            state_sizes,
            options,
            has_text,
            all_logits,
            shared,
            thread: Some(thread.spawn(move || worker.run())?),
        })
    }

    /// Queues all of `requests` or none. Never waits for a step.
    ///
    /// # Errors
    /// One of them cannot run, the queue has no room for them, or the service ends.
    pub fn submit(&self, requests: Vec<(Request, Box<dyn Sink>)>) -> Result<Vec<Ticket>, Refused> {
        for (index, (request, _)) in requests.iter().enumerate() {
            let checked = self.check(request);
            checked.map_err(|source| Refused::Request { index, source })?;
        }
        let mut state = lock(&self.shared.state);
        if state.snapshot.draining {
            return Err(Refused::Draining);
        }
        self.reserve(&mut state, &requests)?;
        let submitted = Instant::now();
        let tickets = requests.into_iter().map(|(request, sink)| {
            let ticket = Ticket {
                cancelled: Arc::default(),
            };
            state.next_id += 1;
            let id = state.next_id;
            state.jobs.push_back(Job {
                id,
                cancelled: ticket.cancelled.clone(),
                request,
                sink,
                submitted,
            });
            ticket
        });
        let tickets = tickets.collect();
        state.idle = false;
        self.shared.work.notify_one();
        Ok(tickets)
    }

    /// Whether a request can run.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self, request: &Request) -> Result<(), RequestError> {
        check(
            &request.prompt,
            request.max_new_tokens,
            &request.stop_tokens,
            &request.sampling,
            &self.limits,
        )?;
        if let Some(state) = &request.state {
            self.limits
                .check_length(state.past_length, request.prompt.len())?;
            let sizes = state.tensors.iter().map(Vec::len);
            let expected = match () {
                () if state.fingerprint != self.fingerprint => {
                    Some("one of this package, found another's")
                }
                () if !sizes.eq(self.state_sizes.iter().copied()) => {
                    Some("one of this backend, found tensors of other sizes")
                }
                () => None,
            };
            if let Some(expected) = expected {
                let parameter = "state";
                return Err(RequestError::Needs {
                    parameter,
                    expected,
                });
            }
        }
        check_stop_strings(&request.stop_strings)?;
        let needs = [
            (
                "stop_strings",
                !request.stop_strings.is_empty() && !self.has_text,
                "a tokenizer in the package, found none; export with one",
            ),
            (
                "prompt_logprobs",
                request.prompt_logprobs.is_some() && !self.all_logits,
                "a package with the logits of all tokens, found one with the last token's of a chunk; export \
                 with `logits: all`",
            ),
        ];
        match needs.into_iter().find(|(_, wrong, _)| *wrong) {
            None => Ok(()),
            Some((parameter, _, expected)) => Err(RequestError::Needs {
                parameter,
                expected,
            }),
        }
    }

    /// Takes room in the queue for all of them, or none.
    fn reserve(
        &self,
        state: &mut State,
        requests: &[(Request, Box<dyn Sink>)],
    ) -> Result<(), Refused> {
        let tokens = requests.iter().map(|(request, _)| request.prompt.len());
        let now = &mut state.snapshot;
        let reserved = self.with_more(now, requests.len(), tokens.sum())?;
        (now.queued_requests, now.queued_tokens) = reserved;
        Ok(())
    }

    /// Whether the queue has room now for so many requests with so many tokens in their prompts: who submits alone can
    /// ask first and keep requests that would be refused.
    ///
    /// # Errors
    /// It has none.
    pub fn check_room(&self, requests: usize, tokens: usize) -> Result<(), Refused> {
        let state = lock(&self.shared.state);
        self.with_more(&state.snapshot, requests, tokens).map(drop)
    }

    /// Requests and tokens in the queue with so many more.
    fn with_more(
        &self,
        now: &Snapshot,
        requests: usize,
        tokens: usize,
    ) -> Result<(usize, usize), Refused> {
        let tokens = now.queued_tokens.saturating_add(tokens);
        let count = now.queued_requests.saturating_add(requests);
        let full = [
            ("requests", count, self.options.max_queued_requests),
            ("tokens of prompts", tokens, self.options.max_queued_tokens),
        ];
        match full.iter().find(|(_, found, limit)| found > limit) {
            None => Ok((count, tokens)),
            Some(&(what, found, limit)) => Err(Refused::Full {
                what,
                limit,
                found,
                retry_after: retry_after(now),
            }),
        }
    }

    /// What is going on.
    pub fn snapshot(&self) -> Snapshot {
        lock(&self.shared.state).snapshot.clone()
    }

    /// Takes no more requests; those that it has go on.
    pub fn drain(&self) {
        lock(&self.shared.state).snapshot.draining = true;
    }

    /// Waits until nothing runs or waits, at most for `patience`; whether nothing does.
    pub fn wait_idle(&self, patience: Duration) -> bool {
        let state = lock(&self.shared.state);
        let became_idle = &self.shared.became_idle;
        let waited = became_idle.wait_timeout_while(state, patience, |state| !state.idle);
        waited.unwrap_or_else(PoisonError::into_inner).0.idle
    }

    /// Ends what still runs as [`Ended::Stopped`], and the thread; the engine again, unless the thread
    /// panicked.
    pub fn stop(mut self) -> Option<Engine> {
        self.end()
    }

    fn end(&mut self) -> Option<Engine> {
        {
            let state = &mut *lock(&self.shared.state);
            (state.snapshot.draining, state.stop) = (true, true);
        }
        self.shared.work.notify_one();
        self.thread.take()?.join().ok()?
    }
}

/// About when a slot is free again: what a sequence has taken so far, over the slots.
fn retry_after(now: &Snapshot) -> Duration {
    let busy = now.totals.prefill_time + now.totals.decode_time;
    let each = busy / u32::try_from(now.totals.finished.max(1)).unwrap_or(u32::MAX);
    each.clamp(Duration::from_secs(1), Duration::from_secs(60))
}

impl Drop for Service {
    fn drop(&mut self) {
        self.end();
    }
}

/// What the thread owns.
struct Worker {
    core: Core,
    shared: Arc<Shared>,
}

impl Worker {
    /// Until it is told to stop.
    fn run(mut self) -> Option<Engine> {
        let ran = catch_unwind(AssertUnwindSafe(|| while self.turn() {})).is_ok();
        if !ran {
            // What it was doing is unknown: its requests end here, and no more are taken.
            tracing::error!("the scheduler panicked");
        }
        let jobs = {
            let state = &mut *lock(&self.shared.state);
            (state.snapshot.draining, state.snapshot.ended) = (true, !ran);
            std::mem::take(&mut state.jobs)
        };
        let whole = catch_unwind(AssertUnwindSafe(|| {
            self.core.stop();
            jobs.into_iter().for_each(|job| job.end(Ended::Stopped));
            if ran {
                self.core.save();
            }
        }));
        let state = &mut *lock(&self.shared.state);
        self.core.report(&mut state.snapshot);
        (state.snapshot.queued_requests, state.snapshot.queued_tokens) = (0, 0);
        state.idle = true;
        self.shared.became_idle.notify_all();
        (ran && whole.is_ok()).then(|| self.core.into_engine())
    }

    /// Takes the jobs that there are, or waits for one, and runs a step; false to end.
    fn turn(&mut self) -> bool {
        let mut state = lock(&self.shared.state);
        // What the last step has left is to be seen first.
        self.core.report(&mut state.snapshot);
        let (requests, tokens) = self.core.take_left();
        state.snapshot.queued_requests -= requests;
        state.snapshot.queued_tokens -= tokens;
        loop {
            if state.stop {
                return false;
            }
            while let Some(job) = state.jobs.pop_front() {
                self.core.push(job);
            }
            if !self.core.is_idle() {
                break;
            }
            state.idle = true;
            self.shared.became_idle.notify_all();
            let waited = self.shared.work.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        self.core.step();
        true
    }
}
