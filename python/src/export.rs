//! Checkpoints to packages.

use crate::errors::input;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use ratplus_exporter::package::{self, CheckpointWeights, PackageOptions, Progress, WeightSource};
use ratplus_exporter::resolve::{self, ResolveOptions};
use ratplus_exporter::{Checkpoint, ExportError, ReadOptions, SyntheticWeights};
use ratplus_graphs::model::Weight;
use ratplus_graphs::package::PackageShape;
use ratplus_graphs::precision::{DEFAULT_BLOCK_SIZE, KeepF32, Precision, Quantization};
use ratplus_graphs::{ElementType, ModelSpec};
use ratplus_server::template;
use serde::de::DeserializeOwned;
use std::cell::RefCell;
use std::path::{Path, PathBuf};

/// One number, or one a layer.
#[derive(FromPyObject)]
pub enum Numbers {
    /// For every layer.
    One(i64),
    /// One a layer.
    Each(Vec<i64>),
}

impl From<Numbers> for Vec<i64> {
    fn from(numbers: Numbers) -> Self {
        match numbers {
            Numbers::One(number) => vec![number],
            Numbers::Each(numbers) => numbers,
        }
    }
}

/// What manifests write so.
fn named<T: DeserializeOwned>(parameter: &str, name: &str) -> PyResult<T> {
    let read = serde_json::from_value(name.into());
    read.map_err(|error| input(format!("`{parameter}`: {error}")))
}

/// Weights that stop where Python has raised something, or a signal does.
struct Interruptible<'a> {
    weights: &'a mut dyn WeightSource,
    raised: &'a RefCell<Option<PyErr>>,
}

impl WeightSource for Interruptible<'_> {
    fn stream(
        &mut self,
        weight: Weight,
        dtype: ElementType,
        sink: &mut dyn FnMut(&[u8]) -> Result<(), ExportError>,
    ) -> Result<(), ExportError> {
        let raised = self.raised;
        self.weights.stream(weight, dtype, &mut |bytes| {
            if let Err(signal) = Python::attach(|py| py.check_signals()) {
                raised.replace(Some(signal));
            }
            if raised.borrow().is_some() {
                return Err(ExportError::Weight {
                    name: weight.name(),
                    problem: "interrupted".into(),
                });
            }
            sink(bytes)
        })
    }
}

/// Writes a package; `python/ratplus/_export.py` says what the options are. The manifest as JSON, and notes.
#[pyfunction]
#[pyo3(signature = (checkpoint, output, *, synthetic, config, d_head, dilation, local_window, initial, dtype,
    cache_dtype, quantize, block_size, asymmetric, activations, keep_f32, batch, prefill_lengths, max_seq_len,
    fallback, logits, tokenizer, chat_template, special_tokens, opset, allow_nonfinite, progress))]
#[allow(clippy::too_many_arguments)]
pub fn export(
    py: Python<'_>,
    checkpoint: Option<PathBuf>,
    output: PathBuf,
    synthetic: Option<String>,
    config: Option<PathBuf>,
    d_head: Option<usize>,
    dilation: Option<Numbers>,
    local_window: Option<Numbers>,
    initial: Option<Numbers>,
    dtype: String,
    cache_dtype: Option<String>,
    quantize: Option<String>,
    block_size: Option<usize>,
    asymmetric: bool,
    activations: String,
    keep_f32: Option<String>,
    batch: usize,
    prefill_lengths: Option<Vec<usize>>,
    max_seq_len: usize,
    fallback: String,
    logits: String,
    tokenizer: Option<PathBuf>,
    chat_template: Option<PathBuf>,
    special_tokens: String,
    opset: Option<i64>,
    allow_nonfinite: bool,
    progress: Option<Py<PyAny>>,
) -> PyResult<(String, Vec<String>)> {
    let given = ResolveOptions {
        config_file: config,
        d_head,
        dilation: dilation.map(Into::into).unwrap_or_default(),
        local_window: local_window.map(Into::into).unwrap_or_default(),
        initial: initial.map(Into::into).unwrap_or_default(),
        max_seq_len: checkpoint.is_some().then_some(max_seq_len),
    };
    let dtype: ElementType = named("dtype", &dtype)?;
    let options = move |spec: ModelSpec| -> PyResult<PackageOptions> {
        let mut options = PackageOptions::new(spec, max_seq_len);
        options.shape = PackageShape {
            batch,
            max_seq_len,
            dtype,
            cache_dtype: match &cache_dtype {
                Some(name) => named("cache_dtype", name)?,
                None => dtype,
            },
            logits: named("logits", &logits)?,
        };
        options.fallback = named("fallback", &fallback)?;
        let bits = match quantize.as_deref() {
            None => None,
            Some("int8") => Some(8),
            Some("int4") => Some(4),
            Some(other) => {
                let text = format!("`quantize`: expected \"int8\" or \"int4\", found {other:?}");
                return Err(input(text));
            }
        };
        options.precision = Precision {
            quantization: match bits {
                None => None,
                Some(bits) => Some(Quantization {
                    bits,
                    block_size: block_size.unwrap_or(DEFAULT_BLOCK_SIZE),
                    symmetric: !asymmetric,
                    layout: options.fallback.integer_layout(),
                    activations: named("activations", &activations)?,
                }),
            },
            keep_f32: match &keep_f32 {
                None => KeepF32::default(),
                Some(layers) => layers
                    .parse()
                    .map_err(|error| input(format!("`keep_f32`: {error}")))?,
            },
        };
        options.opset = opset.unwrap_or(options.opset);
        options.special_tokens = named("special_tokens", &special_tokens)?;
        options.chat_template = chat_template.as_deref().map(template_of).transpose()?;
        options.tokenizer = tokenizer;
        if let Some(lengths) = prefill_lengths {
            options.prefill_lengths = lengths;
        }
        Ok(options)
    };
    let write = move |spec: &ModelSpec, weights: &mut dyn WeightSource| -> PyResult<String> {
        let raised = RefCell::new(None);
        let mut weights = Interruptible {
            weights,
            raised: &raised,
        };
        let options = options(spec.clone())?;
        let written = package::write(&output, &options, &mut weights, &mut |told: Progress<
            '_,
        >| {
            if let (Some(progress), true) = (&progress, raised.borrow().is_none()) {
                let told = (told.what, told.bytes, told.total);
                let called = Python::attach(|py| progress.call1(py, told));
                if let Err(error) = called {
                    raised.replace(Some(error));
                }
            }
        });
        if let Some(error) = raised.take() {
            return Err(error);
        }
        serde_json::to_string(&written.map_err(input)?.manifest).map_err(input)
    };
    py.detach(move || match (checkpoint, synthetic) {
        (Some(path), None) => {
            let checkpoint = Checkpoint::open(&path).map_err(input)?;
            let resolved = resolve::resolve(&checkpoint, &given).map_err(input)?;
            let mut read = ReadOptions::default();
            read.allow_nonfinite = allow_nonfinite;
            let mut weights = CheckpointWeights::new(&checkpoint, &resolved.sources, read);
            Ok((write(&resolved.spec, &mut weights)?, resolved.notes))
        }
        (None, Some(name)) => {
            let spec = resolve::synthetic(&name, &given).map_err(input)?;
            let mut weights = SyntheticWeights::new(spec.clone(), 0);
            Ok((write(&spec, &mut weights)?, Vec::new()))
        }
        _ => Err(PyValueError::new_err(
            "expected a checkpoint or `synthetic`, one of them",
        )),
    })
}

/// The chat template that a file holds, once it compiles.
fn template_of(path: &Path) -> PyResult<String> {
    let named = |error: &dyn std::fmt::Display| {
        input(format!("`chat_template` {}: {error}", path.display()))
    };
    let file = std::fs::read_to_string(path).map_err(|error| named(&error))?;
    let source = template::from_file(&file).map_err(|error| named(&error))?;
    template::check(&source).map_err(|error| named(&error))?;
    Ok(source)
}
