//! The scheduler on a thread of its own.

use super::core::Core;
use super::request::Ended;
use super::sequence::Job;
use super::{Options, Refused, Request, Sink, Snapshot, StartError};
use crate::engine::{Engine, Limits};
use crate::generate::{RequestError, check_stop_tokens};
use crate::text::Tokenizer;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
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
    options: Options,
    has_text: bool,
    all_logits: bool,
    shared: Arc<Shared>,
    jobs: Mutex<Sender<Message>>,
    next_id: AtomicU64,
    thread: Option<JoinHandle<Option<Engine>>>,
}

/// What both threads see.
#[derive(Default)]
struct Shared {
    /// Room of the queue that is taken.
    requests: AtomicUsize,
    tokens: AtomicUsize,
    draining: AtomicBool,
    /// Whole, a step old at most.
    snapshot: Mutex<Snapshot>,
    idle: Mutex<bool>,
    became_idle: Condvar,
}

enum Message {
    Job(Box<Job>),
    Stop,
}

/// A request that runs or waits; it is cancelled when this is dropped.
#[derive(Debug)]
#[must_use = "a request is cancelled when its ticket is dropped"]
pub struct Ticket {
    id: u64,
    cancelled: Arc<AtomicBool>,
}

impl Ticket {
    /// The request's number, ascending from 1.
    pub fn id(&self) -> u64 {
        self.id
    }
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
        let shared = Arc::new(Shared::default());
        let (jobs, received) = channel();
        let limits = engine.limits().clone();
        let (has_text, all_logits) = (tokenizer.is_some(), engine.session().returns_all_logits());
        let core = Core::new(engine, tokenizer, options.clone())?;
        core.report(&mut lock(&shared.snapshot));
        *lock(&shared.idle) = true;
        let worker = Worker {
            core,
            shared: shared.clone(),
            received,
        };
        let thread = std::thread::Builder::new().name("ratplus-scheduler".into());
        Ok(Self {
            limits,
            options,
            has_text,
            all_logits,
            shared,
            jobs: Mutex::new(jobs),
            next_id: AtomicU64::new(1),
            thread: Some(thread.spawn(move || worker.run())?),
        })
    }

    /// What sequences may be.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Whether requests can ask for scores of their prompts.
    pub fn returns_all_logits(&self) -> bool {
        self.all_logits
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
        if self.shared.draining.load(Relaxed) {
            return Err(Refused::Draining);
        }
        self.reserve(&requests)?;
        let jobs = lock(&self.jobs);
        let submitted = Instant::now();
        let mut tickets = Vec::with_capacity(requests.len());
        for (request, sink) in requests {
            let ticket = Ticket {
                id: self.next_id.fetch_add(1, Relaxed),
                cancelled: Arc::default(),
            };
            let job = Job {
                id: ticket.id,
                cancelled: ticket.cancelled.clone(),
                request,
                sink,
                submitted,
            };
            tickets.push(ticket);
            *lock(&self.shared.idle) = false;
            if jobs.send(Message::Job(Box::new(job))).is_err() {
                return Err(Refused::Draining);
            }
        }
        Ok(tickets)
    }

    /// Whether a request can run.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self, request: &Request) -> Result<(), RequestError> {
        self.limits.check(0, &request.prompt)?;
        if request.max_new_tokens > 1 {
            self.limits.check_decode()?;
        }
        check_stop_tokens(&request.stop_tokens, &self.limits)?;
        request.sampling.check(Some(self.limits.vocab_size))?;
        let needs = [
            (
                "stop_strings",
                !request.stop_strings.is_empty() && !self.has_text,
                "a tokenizer in the package, found none; export with one",
            ),
            (
                "stop_strings",
                request.stop_strings.iter().any(String::is_empty),
                "texts that are not empty",
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
    fn reserve(&self, requests: &[(Request, Box<dyn Sink>)]) -> Result<(), Refused> {
        let tokens = requests
            .iter()
            .map(|(request, _)| request.prompt.len())
            .sum();
        let (shared, options) = (&self.shared, &self.options);
        let retry_after = self.retry_after();
        let take = |count: &AtomicUsize, more, limit, what| {
            let taken = count.fetch_update(Relaxed, Relaxed, |now| {
                now.checked_add(more).filter(|&then| then <= limit)
            });
            taken.map_err(|now| Refused::Full {
                what,
                limit,
                found: now.saturating_add(more),
                retry_after,
            })
        };
        let most = options.max_queued_requests;
        take(&shared.requests, requests.len(), most, "requests")?;
        let room = take(
            &shared.tokens,
            tokens,
            options.max_queued_tokens,
            "tokens of prompts",
        );
        if let Err(refused) = room {
            shared.requests.fetch_sub(requests.len(), Relaxed);
            return Err(refused);
        }
        Ok(())
    }

    /// About when a slot is free again: what a sequence has taken so far, over the slots.
    fn retry_after(&self) -> Duration {
        let snapshot = lock(&self.shared.snapshot);
        let totals = &snapshot.totals;
        let busy = totals.prefill_time + totals.decode_time;
        let each = busy / u32::try_from(totals.finished.max(1)).unwrap_or(u32::MAX);
        each.clamp(Duration::from_secs(1), Duration::from_secs(60))
    }

    /// What is going on.
    pub fn snapshot(&self) -> Snapshot {
        let shared = &self.shared;
        let mut snapshot = lock(&shared.snapshot).clone();
        snapshot.draining = shared.draining.load(Relaxed);
        snapshot.queued_requests = shared.requests.load(Relaxed);
        snapshot.queued_tokens = shared.tokens.load(Relaxed);
        snapshot
    }

    /// Takes no more requests; those that it has go on.
    pub fn drain(&self) {
        self.shared.draining.store(true, Relaxed);
    }

    /// Waits until nothing runs or waits, at most for `patience`; whether nothing does.
    pub fn wait_idle(&self, patience: Duration) -> bool {
        let idle = lock(&self.shared.idle);
        let waited = self
            .shared
            .became_idle
            .wait_timeout_while(idle, patience, |idle| !*idle);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Ends what still runs as [`Ended::Stopped`], and the thread; the engine again, unless the thread
    /// panicked.
    pub fn stop(mut self) -> Option<Engine> {
        self.end()
    }

    fn end(&mut self) -> Option<Engine> {
        self.drain();
        // The thread may be gone.
        let _ = lock(&self.jobs).send(Message::Stop);
        self.thread.take()?.join().ok()?
    }
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
    received: Receiver<Message>,
}

impl Worker {
    /// Until it is told to stop, or nobody can tell it anything any more.
    fn run(mut self) -> Option<Engine> {
        let ran = catch_unwind(AssertUnwindSafe(|| while self.turn() {}));
        if ran.is_err() {
            // What it was doing is unknown: its requests end here, and no more are taken.
            tracing::error!("the scheduler panicked");
            self.shared.draining.store(true, Relaxed);
        }
        let stopped = catch_unwind(AssertUnwindSafe(|| self.core.stop()));
        while let Ok(message) = self.received.try_recv() {
            if let Message::Job(job) = message {
                job.end(Ended::Stopped);
            }
        }
        if ran.is_ok() {
            self.core.save();
        }
        self.publish(ran.is_err());
        *lock(&self.shared.idle) = true;
        self.shared.became_idle.notify_all();
        (ran.is_ok() && stopped.is_ok()).then(|| self.core.into_engine())
    }

    /// A step and what came before it; false to end.
    fn turn(&mut self) -> bool {
        loop {
            let message = match self.core.is_idle() {
                // A first job is waited for, others are there or not.
                true => self
                    .received
                    .recv()
                    .map_err(|_| RecvTimeoutError::Disconnected),
                false => self.received.recv_timeout(Duration::ZERO),
            };
            match message {
                Ok(Message::Job(job)) => self.core.push(*job),
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return false,
                Err(RecvTimeoutError::Timeout) => break,
            }
        }
        self.core.step();
        self.publish(false);
        true
    }

    /// Has the others see what is going on.
    fn publish(&mut self, failing: bool) {
        let (requests, tokens) = self.core.take_left();
        self.shared.requests.fetch_sub(requests, Relaxed);
        self.shared.tokens.fetch_sub(tokens, Relaxed);
        let mut snapshot = lock(&self.shared.snapshot);
        self.core.report(&mut snapshot);
        snapshot.failing |= failing;
        drop(snapshot);
        let idle = self.core.is_idle();
        let mut shown = lock(&self.shared.idle);
        if idle && !*shown && self.shared.requests.load(Relaxed) == 0 {
            *shown = true;
            self.shared.became_idle.notify_all();
        }
    }
}
