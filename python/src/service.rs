//! A package, its engines and the scheduler over them.

use crate::errors::{full, input, run};
use crate::process::Process;
use crate::request::{self, OneOrMore, Request};
use crate::snapshot;
use crate::state::{Layout, State};
use crate::stream::{Channel, Stream};
use crate::tokens;
use numpy::PyArray1;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};
use ratplus_graphs::LogitsMode;
use ratplus_runtime::backend::{BackendKind, Session};
use ratplus_runtime::engine::{Engine, Limits};
use ratplus_runtime::grammar::Grammar;
use ratplus_runtime::package::Package;
use ratplus_runtime::scheduler::{self, Options, Refused, Sink};
use ratplus_runtime::{Manifest, Sampling};
use ratplus_server::Texts;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

/// An opened package.
#[pyclass(frozen, module = "ratplus._ratplus")]
pub struct Service {
    manifest: Manifest,
    limits: Limits,
    slots: usize,
    state_bytes: u64,
    layout: Arc<Layout>,
    implementations: Vec<String>,
    texts: Option<Texts>,
    max_queued_tokens: usize,
    /// Held by who looks for room in the queue, until it is taken.
    submitting: Mutex<()>,
    /// Taken out when it is closed.
    scheduler: RwLock<Option<scheduler::Service>>,
    process: Process,
}

impl Service {
    fn scheduler(&self) -> RwLockReadGuard<'_, Option<scheduler::Service>> {
        self.scheduler
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls what the scheduler can do.
    fn with<T>(&self, call: impl FnOnce(&scheduler::Service) -> PyResult<T>) -> PyResult<T> {
        self.process.check()?;
        match self.scheduler().as_ref() {
            Some(scheduler) => call(scheduler),
            None => Err(run("the model is closed")),
        }
    }

    fn texts(&self) -> PyResult<&Texts> {
        let none = || {
            input(
                "the package has no tokenizer, which texts need; export it with \
                 `tokenizer=\"tokenizer.json\"`, or give token ids",
            )
        };
        self.texts.as_ref().ok_or_else(none)
    }

    /// Tokens of a text, all of which the model knows, or those that are given.
    fn tokens(&self, prompt: &Bound<'_, PyAny>, special: Option<bool>) -> PyResult<Vec<u32>> {
        let Ok(text) = prompt.cast::<PyString>() else {
            return tokens::take(prompt, self.limits.vocab_size);
        };
        let texts = self.texts()?;
        texts
            .encode(&text.extract::<String>()?, special)
            .map_err(input)
    }

    /// A request that can wait and run.
    fn checked(&self, request: scheduler::Request) -> PyResult<Request> {
        self.with(|scheduler| scheduler.check(&request).map_err(input))?;
        let (most, tokens) = (self.max_queued_tokens, request.prompt.len());
        if tokens > most {
            return Err(input(format!(
                "prompt: expected at most {most} tokens, for which the queue has room (`max_queued_tokens`), found {tokens}"
            )));
        }
        if request.min_new_tokens > request.max_new_tokens {
            return Err(input(format!(
                "`min_new_tokens`: expected at most `max_new_tokens`, {}, found {}",
                request.max_new_tokens, request.min_new_tokens
            )));
        }
        Ok(Request::new(request))
    }
}

#[pymethods]
impl Service {
    /// Opens a package; `python/ratplus/_model.py` says what the options are.
    #[staticmethod]
    #[pyo3(signature = (directory, backend, *, threads, onnxruntime, custom_ops, plugins, tensorrt, device, cuda_graph,
        passive_wait, prefill_chunk, prefix_cache, prefix_cache_file, max_queued_requests, max_queued_tokens,
        decode_steps_per_chunk))]
    #[allow(clippy::too_many_arguments)]
    fn open(
        py: Python<'_>,
        directory: PathBuf,
        backend: &str,
        threads: Option<usize>,
        onnxruntime: Option<PathBuf>,
        custom_ops: Option<PathBuf>,
        plugins: Option<PathBuf>,
        tensorrt: Option<PathBuf>,
        device: i32,
        cuda_graph: bool,
        passive_wait: bool,
        prefill_chunk: Option<usize>,
        prefix_cache: u64,
        prefix_cache_file: Option<PathBuf>,
        max_queued_requests: usize,
        max_queued_tokens: usize,
        decode_steps_per_chunk: usize,
    ) -> PyResult<Self> {
        let backend: BackendKind = backend.parse().map_err(input)?;
        let steps = NonZeroUsize::new(decode_steps_per_chunk);
        let steps =
            steps.ok_or_else(|| input("`decode_steps_per_chunk`: expected 1 or more, found 0"))?;
        if max_queued_requests == 0 {
            return Err(input("`max_queued_requests`: expected 1 or more, found 0"));
        }
        let mut options = Options::default();
        options.max_queued_requests = max_queued_requests;
        options.max_queued_tokens = max_queued_tokens;
        options.prefix_cache_bytes = prefix_cache;
        options.prefix_cache_file = prefix_cache_file;
        options.decode_steps_per_chunk = steps;
        py.detach(|| {
            let package = Package::open(&directory).map_err(input)?;
            let lengths = package.manifest().lengths_up_to(prefill_chunk);
            let lengths = lengths.map_err(|error| input(format!("`prefill_chunk`: {error}")))?;
            let texts = Texts::of(&package).map_err(input)?;
            let tokenizer = texts.as_ref().map(|texts| texts.tokenizer().clone());
            let mut builder = Session::builder(&package).threads(threads).engines(lengths);
            builder.ort.library = onnxruntime;
            builder.ort.operators = custom_ops;
            builder.ort.passive_wait = passive_wait;
            builder.cuda.device = device;
            builder.cuda.without_graph = !cuda_graph;
            builder.tensorrt.library = tensorrt;
            builder.tensorrt.plugins = plugins;
            let session = builder.up_front().open(backend).map_err(input)?;
            let engines = session.implementations().iter();
            Ok(Self {
                manifest: package.manifest().clone(),
                limits: Limits::from(package.manifest()),
                slots: session.batch(),
                state_bytes: session.state_bytes(),
                layout: Arc::new(Layout::new(&session.state_buffers())),
                implementations: engines.map(|engine| engine.to_string()).collect(),
                texts,
                max_queued_tokens,
                submitting: Mutex::new(()),
                scheduler: RwLock::new(Some(
                    scheduler::Service::start(Engine::new(session), tokenizer, options)
                        .map_err(input)?,
                )),
                process: Process::this(),
            })
        })
    }

    /// The manifest, as JSON.
    fn manifest(&self) -> PyResult<String> {
        serde_json::to_string(&self.manifest).map_err(run)
    }

    #[getter]
    fn slots(&self) -> usize {
        self.slots
    }

    #[getter]
    fn max_seq_len(&self) -> usize {
        self.limits.max_seq_len
    }

    #[getter]
    fn vocab_size(&self) -> usize {
        self.limits.vocab_size
    }

    #[getter]
    fn lengths(&self) -> Vec<usize> {
        self.limits.lengths.clone()
    }

    #[getter]
    fn begin_token(&self) -> Option<u32> {
        self.texts.as_ref().and_then(Texts::begin_token)
    }

    #[getter]
    fn end_tokens(&self) -> Vec<u32> {
        let texts = self.texts.iter();
        texts.flat_map(Texts::end_tokens).copied().collect()
    }

    #[getter]
    fn state_bytes(&self) -> u64 {
        self.state_bytes
    }

    #[getter]
    fn implementations(&self) -> Vec<String> {
        self.implementations.clone()
    }

    /// uint32 [n]
    #[pyo3(signature = (text, special_tokens))]
    fn encode<'py>(
        &self,
        text: &Bound<'py, PyString>,
        special_tokens: Option<bool>,
    ) -> PyResult<Bound<'py, PyArray1<u32>>> {
        let ids = self.tokens(text.as_any(), special_tokens)?;
        Ok(PyArray1::from_vec(text.py(), ids))
    }

    fn decode(&self, tokens: &Bound<'_, PyAny>) -> PyResult<String> {
        let ids = tokens::take(tokens, u32::MAX as usize)?;
        self.texts()?.tokenizer().decode(&ids).map_err(input)
    }

    /// A token as the tokenizer writes it.
    fn token(&self, id: u32) -> PyResult<Option<String>> {
        Ok(self.texts()?.tokenizer().token(id))
    }

    /// The text of a conversation, given as JSON.
    fn chat(&self, messages: &str, add_generation_prompt: bool) -> PyResult<String> {
        let none = || {
            input(
                "the package has no chat template; export it with `tokenizer=\"tokenizer.json\"` and \
                 `chat_template=FILE`",
            )
        };
        let template = self.texts.as_ref().and_then(Texts::template);
        let messages: serde_json::Value = serde_json::from_str(messages).map_err(input)?;
        let text =
            template
                .ok_or_else(none)?
                .render(&messages, add_generation_prompt, Default::default());
        text.map_err(input)
    }

    /// Requests of which each can run, or an error for the first that cannot.
    #[pyo3(signature = (prompts, *, max_new_tokens=None, min_new_tokens=0, temperature=None, top_k=None, top_p=None,
        min_p=None, repetition_penalty=None, presence_penalty=None, frequency_penalty=None, logit_bias=None, seed=None,
        stop=None, include_stop=false, stop_tokens=None, ignore_eos=false, logprobs=None, prompt_logprobs=None,
        json=false, json_schema=None, regex=None, lark=None, timeout=None, state=None, keep_state=false,
        special_tokens=None))]
    #[allow(clippy::too_many_arguments)]
    fn prepare(
        &self,
        py: Python<'_>,
        prompts: Vec<Bound<'_, PyAny>>,
        max_new_tokens: Option<usize>,
        min_new_tokens: usize,
        temperature: Option<f32>,
        top_k: Option<usize>,
        top_p: Option<f32>,
        min_p: Option<f32>,
        repetition_penalty: Option<f32>,
        presence_penalty: Option<f32>,
        frequency_penalty: Option<f32>,
        logit_bias: Option<BTreeMap<u32, f32>>,
        seed: Option<u64>,
        stop: Option<OneOrMore>,
        include_stop: bool,
        stop_tokens: Option<Vec<u32>>,
        ignore_eos: bool,
        logprobs: Option<usize>,
        prompt_logprobs: Option<usize>,
        json: bool,
        json_schema: Option<String>,
        regex: Option<String>,
        lark: Option<String>,
        timeout: Option<f64>,
        state: Option<Bound<'_, State>>,
        keep_state: bool,
        special_tokens: Option<bool>,
    ) -> PyResult<Vec<Request>> {
        let mut sampling = Sampling::GREEDY;
        set(&mut sampling.temperature, temperature);
        (sampling.top_k, sampling.top_p, sampling.min_p) = (top_k, top_p, min_p);
        set(&mut sampling.repetition_penalty, repetition_penalty);
        set(&mut sampling.presence_penalty, presence_penalty);
        set(&mut sampling.frequency_penalty, frequency_penalty);
        set(&mut sampling.logit_bias, logit_bias);
        set(&mut sampling.seed, seed);
        let mut stops: BTreeSet<u32> = stop_tokens.into_iter().flatten().collect();
        if !ignore_eos {
            stops.extend(self.texts.iter().flat_map(Texts::end_tokens));
        }
        // What goes on is no beginning.
        let special_tokens = special_tokens.or(state.as_ref().map(|_| false));
        let forms = [
            json.then_some(Grammar::AnyJson),
            json_schema.map(Grammar::JsonSchema),
            regex.map(Grammar::Regex),
            lark.map(Grammar::Lark),
        ];
        let mut forms = forms.into_iter().flatten();
        let form = forms.next();
        let compiled = |form| {
            let texts = self.texts()?;
            py.detach(|| texts.compile(&form)).map_err(input)
        };
        let form = form.map(compiled).transpose()?;
        if forms.next().is_some() {
            return Err(input(
                "expected one of `json`, `json_schema`, `regex` and `lark`, found several",
            ));
        }
        let deadline = match timeout.map(Duration::try_from_secs_f64) {
            None => None,
            Some(Ok(timeout)) => Instant::now().checked_add(timeout),
            Some(Err(error)) => {
                let text = format!("`timeout`: expected seconds of 0 or more: {error}");
                return Err(PyValueError::new_err(text));
            }
        };
        let stop_strings: Vec<String> = stop.map(Into::into).unwrap_or_default();
        let mut requests = Vec::with_capacity(prompts.len());
        for prompt in &prompts {
            let mut request = scheduler::Request::new(self.tokens(prompt, special_tokens)?);
            set(&mut request.max_new_tokens, max_new_tokens);
            request.min_new_tokens = min_new_tokens;
            request.sampling = sampling.clone();
            request.stop_tokens.clone_from(&stops);
            request.stop_strings.clone_from(&stop_strings);
            request.include_stop = include_stop;
            (request.logprobs, request.prompt_logprobs) = (logprobs, prompt_logprobs);
            request.deadline = deadline;
            request.state = state.as_ref().map(|state| state.get().shared());
            request.keep_state = keep_state;
            if let Some(form) = &form {
                request.constraint = Some(form.constraint());
            }
            requests.push(self.checked(request)?);
        }
        Ok(requests)
    }

    /// A request that scores the tokens of a sequence from index `start` on, beside the `top` likeliest: as
    /// `prompt_scores`, then `scores`, the last ones of both together. And how many they are.
    fn scoring(
        &self,
        sequence: &Bound<'_, PyAny>,
        start: usize,
        top: usize,
        special_tokens: Option<bool>,
    ) -> PyResult<(Request, usize)> {
        let tokens = self.tokens(sequence, special_tokens)?;
        let count = tokens.len().saturating_sub(start);
        let whole = self.manifest.logits == LogitsMode::All;
        let request = request::scoring(tokens, start, top, (whole, self.limits.max_seq_len))?;
        Ok((self.checked(request)?, count))
    }

    /// Queues all of the requests or none, which can be submitted later then.
    fn submit(&self, requests: Vec<Bound<'_, Request>>) -> PyResult<Vec<Stream>> {
        let refused = |refused| match refused {
            Refused::Request { .. } => input(refused),
            Refused::Full { retry_after, .. } => full(&refused, retry_after.as_secs_f64()),
            _ => run(refused),
        };
        let mut channels = Vec::new();
        let tickets = self.with(|scheduler| {
            let submitting = self.submitting.lock();
            let _alone = submitting.unwrap_or_else(PoisonError::into_inner);
            let tokens = requests.iter().map(|request| request.get().tokens());
            let tokens = tokens.sum::<PyResult<usize>>()?;
            scheduler
                .check_room(requests.len(), tokens)
                .map_err(refused)?;
            let mut jobs = Vec::new();
            for request in &requests {
                let request = request.get().take()?;
                let channel = Arc::new(Channel::default());
                channels.push((channel.clone(), request.logprobs.is_some()));
                let sink = move |update| {
                    channel.send(update);
                    // Its ticket ends a request that nobody wants any more.
                    true
                };
                jobs.push((request, Box::new(sink) as Box<dyn Sink>));
            }
            scheduler.submit(jobs).map_err(refused)
        })?;
        let streams = channels.into_iter().zip(tickets);
        let streams = streams.map(|((channel, has_scores), ticket)| {
            Stream::new(
                channel,
                ticket,
                has_scores,
                self.layout.clone(),
                self.process,
            )
        });
        Ok(streams.collect())
    }

    /// What is going on, by name.
    fn snapshot<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        snapshot::dict(py, &self.with(|scheduler| Ok(scheduler.snapshot()))?)
    }

    /// Takes no more requests.
    fn drain(&self) -> PyResult<()> {
        self.with(|scheduler| {
            scheduler.drain();
            Ok(())
        })
    }

    /// Waits until nothing runs or waits; whether nothing does.
    fn wait_idle(&self, py: Python<'_>, patience: f64) -> PyResult<bool> {
        const GLANCE: Duration = Duration::from_millis(20);
        const LONGEST: f64 = 1e9;
        let patience = Duration::try_from_secs_f64(patience.min(LONGEST));
        let end =
            Instant::now() + patience.map_err(|error| PyValueError::new_err(error.to_string()))?;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let wait = |scheduler: &scheduler::Service| Ok(scheduler.wait_idle(left.min(GLANCE)));
            if py.detach(|| self.with(wait))? {
                return Ok(true);
            }
            py.check_signals()?;
            if left.is_zero() {
                return Ok(false);
            }
        }
    }

    /// Ends what runs, and frees the engines. Waits for a step.
    fn close(&self, py: Python<'_>) {
        if !self.process.is_this() {
            return;
        }
        py.detach(|| {
            let scheduler = &self.scheduler;
            let scheduler = scheduler
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            drop(scheduler);
        });
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let scheduler = self.scheduler.get_mut();
        let scheduler = scheduler.unwrap_or_else(PoisonError::into_inner).take();
        match self.process.is_this() {
            // It waits for a step, in which other threads of Python go on.
            true => Python::attach(|py| py.detach(|| drop(scheduler))),
            // The thread that it would wait for is not in this process.
            false => std::mem::forget(scheduler),
        }
    }
}

/// Puts what was given in place of what is so without it.
fn set<T>(place: &mut T, given: Option<T>) {
    if let Some(given) = given {
        *place = given;
    }
}
