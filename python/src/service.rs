//! A package, its engines and the scheduler over them.

use crate::errors::{full, input, run};
use crate::request::{Given, Request, Texts};
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
use ratplus_runtime::grammar::{CompiledGrammar, Grammar, GrammarError, GrammarFactory};
use ratplus_runtime::package::Package;
use ratplus_runtime::scheduler::{self, Options, Refused, Sink};
use ratplus_runtime::text::Tokenizer;
use ratplus_runtime::{Manifest, Sampling, SpecialTokens};
use ratplus_server::template::ChatTemplate;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard};
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
    tokenizer: Option<Tokenizer>,
    end_tokens: BTreeSet<u32>,
    template: Option<ChatTemplate>,
    /// Made when a request first has a form.
    grammars: OnceLock<Result<GrammarFactory, GrammarError>>,
    /// Taken out when it is closed.
    scheduler: RwLock<Option<scheduler::Service>>,
    /// A forked process has no thread of the scheduler.
    process: u32,
}

impl Service {
    fn scheduler(&self) -> RwLockReadGuard<'_, Option<scheduler::Service>> {
        self.scheduler
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls what the scheduler can do.
    fn with<T>(&self, call: impl FnOnce(&scheduler::Service) -> PyResult<T>) -> PyResult<T> {
        if std::process::id() != self.process {
            return Err(run(
                "the model was opened before this process was forked; open it in this process",
            ));
        }
        match self.scheduler().as_ref() {
            Some(scheduler) => call(scheduler),
            None => Err(run("the model is closed")),
        }
    }

    fn tokenizer(&self) -> PyResult<&Tokenizer> {
        let none = || {
            input(
                "the package has no tokenizer, which texts need; export it with \
                 `tokenizer=\"tokenizer.json\"`, or give token ids",
            )
        };
        self.tokenizer.as_ref().ok_or_else(none)
    }

    /// Tokens of a text, all of which the model knows, or those that are given.
    fn tokens(&self, prompt: &Bound<'_, PyAny>, special: Option<bool>) -> PyResult<Vec<u32>> {
        let Ok(text) = prompt.cast::<PyString>() else {
            return tokens::take(prompt, self.limits.vocab_size);
        };
        let tokenizer = self.tokenizer()?;
        let special = match special {
            None => self.manifest.special_tokens,
            Some(true) => SpecialTokens::Tokenizer,
            Some(false) => SpecialTokens::None,
        };
        let text = text.extract::<String>()?;
        let encoded = tokenizer.encode(&text, special).map_err(input)?;
        let known = tokenizer.check_vocabulary(&encoded, self.limits.vocab_size);
        known.map_err(input)?;
        Ok(encoded.ids)
    }

    fn compiled(&self, form: &Grammar) -> PyResult<CompiledGrammar> {
        let tokenizer = self.tokenizer()?;
        let make = || GrammarFactory::new(tokenizer, self.limits.vocab_size, &self.end_tokens);
        let factory = self.grammars.get_or_init(make).as_ref().map_err(input)?;
        factory.compile(form).map_err(input)
    }

    /// A request that can run.
    fn checked(&self, request: scheduler::Request) -> PyResult<Request> {
        self.with(|scheduler| scheduler.check(&request).map_err(input))?;
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
        let mut options = Options::default();
        options.max_queued_requests = max_queued_requests;
        options.max_queued_tokens = max_queued_tokens;
        options.prefix_cache_bytes = prefix_cache;
        options.prefix_cache_file = prefix_cache_file;
        options.decode_steps_per_chunk = steps;
        py.detach(|| {
            let package = Package::open(&directory).map_err(input)?;
            let mut lengths = package.manifest().lengths();
            if let Some(longest) = prefill_chunk {
                if !lengths.contains(&longest) {
                    return Err(input(format!(
                        "`prefill_chunk`: expected one of the package's lengths, {lengths:?}, found {longest}"
                    )));
                }
                lengths.retain(|&length| length <= longest);
            }
            let json = package.tokenizer_json();
            let tokenizer = json.map(Tokenizer::from_json).transpose().map_err(input)?;
            let template = match (package.chat_template(), &tokenizer) {
                (Some(source), Some(tokenizer)) => {
                    Some(ChatTemplate::new(source, tokenizer).map_err(input)?)
                }
                _ => None,
            };
            let mut builder = Session::builder(&package).threads(threads).engines(lengths);
            builder.ort.library = onnxruntime;
            builder.ort.operators = custom_ops;
            builder.ort.passive_wait = passive_wait;
            builder.cuda.device = device;
            builder.cuda.without_graph = !cuda_graph;
            builder.tensorrt.library = tensorrt;
            builder.tensorrt.plugins = plugins;
            let session = builder.up_front().open(backend).map_err(input)?;
            let limits = Limits::from(package.manifest());
            let mut end_tokens = tokenizer
                .as_ref()
                .map(Tokenizer::end_tokens)
                .unwrap_or_default();
            // The model gives no others.
            end_tokens.retain(|&token| (token as usize) < limits.vocab_size);
            let engines = session.implementations().iter();
            Ok(Self {
                manifest: package.manifest().clone(),
                limits,
                slots: session.batch(),
                state_bytes: session.state_bytes(),
                layout: Arc::new(Layout::new(&session.state_buffers())),
                implementations: engines.map(|engine| engine.to_string()).collect(),
                end_tokens,
                template,
                grammars: OnceLock::new(),
                scheduler: RwLock::new(Some(
                    scheduler::Service::start(Engine::new(session), tokenizer.clone(), options)
                        .map_err(input)?,
                )),
                tokenizer,
                process: std::process::id(),
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
    fn end_tokens(&self) -> Vec<u32> {
        self.end_tokens.iter().copied().collect()
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
        self.tokenizer()?.decode(&ids).map_err(input)
    }

    /// The text of a conversation, given as JSON.
    fn chat(&self, messages: &str, add_generation_prompt: bool) -> PyResult<String> {
        let none = || {
            input(
                "the package has no chat template; export it with `tokenizer=\"tokenizer.json\"` and \
                 `chat_template=FILE`",
            )
        };
        let template = self.template.as_ref().ok_or_else(none)?;
        let messages: serde_json::Value = serde_json::from_str(messages).map_err(input)?;
        let text = template.render(&messages, add_generation_prompt, Default::default());
        text.map_err(input)
    }

    /// Requests of which each can run, or an error for the first that cannot.
    #[pyo3(signature = (prompts, *, max_new_tokens=128, min_new_tokens=0, temperature=0.0, top_k=None, top_p=None,
        min_p=None, repetition_penalty=1.0, presence_penalty=0.0, frequency_penalty=0.0, logit_bias=None, seed=0,
        stop=None, include_stop=false, stop_tokens=None, ignore_eos=false, logprobs=None, prompt_logprobs=None,
        json=false, json_schema=None, regex=None, lark=None, timeout=None, state=None, keep_state=false,
        special_tokens=None))]
    #[allow(clippy::too_many_arguments)]
    fn prepare(
        &self,
        py: Python<'_>,
        prompts: Vec<Bound<'_, PyAny>>,
        max_new_tokens: usize,
        min_new_tokens: usize,
        temperature: f32,
        top_k: Option<usize>,
        top_p: Option<f32>,
        min_p: Option<f32>,
        repetition_penalty: f32,
        presence_penalty: f32,
        frequency_penalty: f32,
        logit_bias: Option<BTreeMap<u32, f32>>,
        seed: u64,
        stop: Option<Texts>,
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
        let mut sampling = Sampling::default();
        sampling.temperature = temperature;
        (sampling.top_k, sampling.top_p, sampling.min_p) = (top_k, top_p, min_p);
        sampling.repetition_penalty = repetition_penalty;
        sampling.presence_penalty = presence_penalty;
        sampling.frequency_penalty = frequency_penalty;
        sampling.logit_bias = logit_bias.unwrap_or_default();
        sampling.seed = seed;
        let mut stops: BTreeSet<u32> = stop_tokens.into_iter().flatten().collect();
        if !ignore_eos {
            stops.extend(&self.end_tokens);
        }
        let forms = [
            json.then_some(Grammar::AnyJson),
            json_schema.map(Grammar::JsonSchema),
            regex.map(Grammar::Regex),
            lark.map(Grammar::Lark),
        ];
        let mut forms = forms.into_iter().flatten();
        let form = forms.next();
        let form = form
            .map(|form| py.detach(|| self.compiled(&form)))
            .transpose()?;
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
            request.max_new_tokens = max_new_tokens;
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
        let mut tokens = self.tokens(sequence, special_tokens)?;
        let count = tokens.len();
        if !(1..count).contains(&start) {
            return Err(input(match count {
                0 | 1 => format!(
                    "expected at least 2 tokens, found {count}: the first one has no prediction"
                ),
                _ => format!("`start`: expected 1 to {}, found {start}", count - 1),
            }));
        }
        let whole = self.manifest.logits == LogitsMode::All;
        // Nothing comes after the last token: it need not run where there is no room for it.
        let prompt = match whole {
            true => count.min(self.limits.max_seq_len),
            false => start,
        };
        let given = tokens.split_off(prompt);
        let mut request = scheduler::Request::new(tokens);
        request.prompt_logprobs = whole.then_some(top);
        request.max_new_tokens = given.len();
        if !given.is_empty() {
            request.logprobs = Some(top);
            request.constraint = Some(Box::new(Given::new(given)));
        }
        Ok((self.checked(request)?, count - start))
    }

    /// Queues all of the requests or none.
    fn submit(&self, requests: Vec<Bound<'_, Request>>) -> PyResult<Vec<Stream>> {
        let (mut jobs, mut channels) = (Vec::new(), Vec::new());
        for request in requests {
            let request = request.get().take()?;
            let channel = Arc::new(Channel::default());
            channels.push((channel.clone(), request.logprobs.is_some()));
            let sink = move |update| channel.send(update);
            jobs.push((request, Box::new(sink) as Box<dyn Sink>));
        }
        let tickets = self.with(|scheduler| {
            scheduler.submit(jobs).map_err(|refused| match refused {
                Refused::Request { .. } => input(refused),
                Refused::Full { retry_after, .. } => full(&refused, retry_after.as_secs_f64()),
                _ => run(refused),
            })
        })?;
        let streams = channels.into_iter().zip(tickets);
        let streams = streams.map(|((channel, has_scores), ticket)| {
            Stream::new(channel, ticket, has_scores, self.layout.clone())
        });
        Ok(streams.collect())
    }

    /// What is going on, by name.
    fn snapshot<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let snapshot = self.with(|scheduler| Ok(scheduler.snapshot()))?;
        let (prefix, totals) = (&snapshot.prefix, &snapshot.totals);
        let dict = PyDict::new(py);
        let running = snapshot.slots.iter().filter(|slot| slot.request != 0);
        dict.set_item("running", running.count())?;
        dict.set_item("slots", snapshot.slots.len())?;
        dict.set_item("waiting", snapshot.queued_requests)?;
        dict.set_item("waiting_tokens", snapshot.queued_tokens)?;
        dict.set_item("draining", snapshot.draining)?;
        dict.set_item("ended", snapshot.ended)?;
        dict.set_item("failing", snapshot.failing)?;
        dict.set_item("cache_use", snapshot.cache_use)?;
        for (name, count) in [
            ("prefix_budget_bytes", prefix.budget_bytes),
            ("prefix_bytes", prefix.bytes),
            ("prefix_queried_tokens", prefix.queried_tokens),
            ("prefix_hit_tokens", prefix.hit_tokens),
            ("submitted", totals.submitted),
            ("finished", totals.finished),
            ("prompt_tokens", totals.prompt_tokens),
            ("new_tokens", totals.new_tokens),
            ("backend_errors", totals.backend_errors),
        ] {
            dict.set_item(name, count)?;
        }
        Ok(dict)
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
        if std::process::id() != self.process {
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
