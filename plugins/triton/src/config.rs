//! What a model's and the server's configuration ask of this backend.

use crate::error::{Fault, check};
use crate::ffi;
use crate::text::string;
use ratplus_runtime::backend::BackendKind;
use ratplus_runtime::ort_library::OPERATORS_VARIABLE;
use ratplus_runtime::scheduler;
use ratplus_triton_repository::ratplus::{INPUTS, OUTPUTS, PARAMETERS, Tensor};
use serde_json::{Map, Value};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::{env, ptr, slice};

/// A model, as its configuration has it.
pub struct Config {
    /// Responses come one by one.
    pub decoupled: bool,
    /// The package's folder.
    pub package: PathBuf,
    pub engine: Settings,
}

/// How a package is run: models over the same package with the same settings share what runs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub backend: BackendKind,
    pub threads: Option<usize>,
    /// The number of the GPU.
    pub device: i32,
    pub no_cuda_graph: bool,
    pub onnxruntime: Option<PathBuf>,
    pub custom_ops: Option<PathBuf>,
    /// The longest chunk of a prompt.
    pub prefill_chunk: Option<usize>,
    pub decode_steps_per_chunk: NonZeroUsize,
    pub prefix_cache_bytes: u64,
}

/// JSON of a message of the server's.
///
/// # Safety
/// `message` is one.
unsafe fn json(message: *mut ffi::Message) -> Result<Value, Fault> {
    let (mut base, mut bytes) = (ptr::null(), 0);
    // SAFETY: the text lives as long as the message.
    let text = unsafe {
        check(ffi::TRITONSERVER_MessageSerializeToJson(
            message, &mut base, &mut bytes,
        ))?;
        slice::from_raw_parts(base.cast::<u8>(), bytes)
    };
    serde_json::from_slice(text).map_err(Fault::internal)
}

/// What `--backend-config=ratplus,NAME=VALUE` says, and what the server adds to it.
///
/// # Safety
/// `backend` is the server's.
pub unsafe fn command_line(backend: *mut ffi::Backend) -> Result<Map<String, Value>, Fault> {
    let mut message = ptr::null_mut();
    // SAFETY: the caller's contract; the message stays the server's.
    let config = unsafe {
        check(ffi::TRITONBACKEND_BackendConfig(backend, &mut message))?;
        json(message)?
    };
    Ok(match config {
        Value::Object(mut members) => match members.remove("cmdline") {
            Some(Value::Object(given)) => given,
            _ => Map::new(),
        },
        _ => Map::new(),
    })
}

impl Config {
    /// Of a model with that version below its folder. `given` is what the server's command line says of all models.
    ///
    /// # Errors
    /// All that is wrong with it.
    ///
    /// # Safety
    /// `model` is the server's.
    pub unsafe fn of(
        model: *mut ffi::Model,
        version: u64,
        given: &Map<String, Value>,
        beside: &Path,
    ) -> Result<Self, Fault> {
        let (mut message, mut kind, mut location) = (ptr::null_mut(), 0, ptr::null());
        // SAFETY: the caller's contract; the message is ours, the location lives with the model.
        let (config, folder) = unsafe {
            check(ffi::TRITONBACKEND_ModelConfig(model, 1, &mut message))?;
            let config = json(message);
            check(ffi::TRITONSERVER_MessageDelete(message))?;
            check(ffi::TRITONBACKEND_ModelRepository(
                model,
                &mut kind,
                &mut location,
            ))?;
            (
                config,
                PathBuf::from(string(location)).join(version.to_string()),
            )
        };
        let config = config?;
        let mut wrong = Vec::new();
        if config["max_batch_size"].as_i64() != Some(0) {
            wrong.push(format!(
                "`max_batch_size`: expected 0, found {}; sequences are batched by the package's slots",
                config["max_batch_size"]
            ));
        }
        tensors(&config["input"], "input", &INPUTS, &mut wrong);
        tensors(&config["output"], "output", &OUTPUTS, &mut wrong);
        let mut parameters = Named::of(&config["parameters"], given, &mut wrong);
        let package = parameters
            .path("package")
            .map_or(folder.clone(), |path| folder.join(path));
        // Beside this library, unless the environment names one.
        let near = || {
            let file = beside.join("libratplus_ort.so");
            (env::var_os(OPERATORS_VARIABLE).is_none() && file.is_file()).then_some(file)
        };
        let engine = Settings {
            backend: parameters.parsed("backend").unwrap_or(BackendKind::OrtCpu),
            threads: parameters.parsed("threads"),
            device: parameters.parsed("device").unwrap_or(0),
            no_cuda_graph: parameters.parsed("no_cuda_graph").unwrap_or(false),
            onnxruntime: parameters.path("onnxruntime"),
            custom_ops: parameters.path("custom_ops").or_else(near),
            prefill_chunk: parameters.parsed("prefill_chunk"),
            decode_steps_per_chunk: parameters
                .parsed("decode_steps_per_chunk")
                .unwrap_or(scheduler::Options::default().decode_steps_per_chunk),
            prefix_cache_bytes: parameters
                .parsed("prefix_cache_bytes")
                .unwrap_or(scheduler::DEFAULT_PREFIX_CACHE_BYTES),
        };
        parameters.finish();
        match wrong.is_empty() {
            true => Ok(Self {
                decoupled: config["model_transaction_policy"]["decoupled"] == true,
                package,
                engine,
            }),
            false => Err(Fault::invalid(format!(
                "the model's configuration:\n  {}",
                wrong.join("\n  ")
            ))),
        }
    }
}

/// Checks the tensors that a configuration declares.
fn tensors(declared: &Value, what: &str, known: &[Tensor], wrong: &mut Vec<String>) {
    for tensor in declared.as_array().into_iter().flatten() {
        let name = tensor["name"].as_str().unwrap_or_default();
        let Some(Tensor {
            types, elements, ..
        }) = known.iter().find(|known| known.name == name)
        else {
            let names: Vec<_> = known.iter().map(|known| known.name).collect();
            let names = names.join(", ");
            wrong.push(format!("{what} `{name}`: expected one of {names}"));
            continue;
        };
        let data_type = tensor["data_type"].as_str().unwrap_or_default();
        if !types.contains(&data_type) {
            let types = types.join(" or ");
            wrong.push(format!(
                "{what} `{name}`: expected {types}, found {data_type}"
            ));
        }
        let dims: Vec<_> = tensor["dims"].as_array().into_iter().flatten().collect();
        let fits =
            matches!(dims[..], [size] if [Some(-1), Some(*elements)].contains(&dimension(size)));
        if !fits {
            let found = &tensor["dims"];
            wrong.push(format!(
                "{what} `{name}`: expected dims: [ {elements} ], found {found}"
            ));
        }
    }
}

/// A dimension, which the server's JSON has as a number or, being of 64 bits, as a string.
fn dimension(size: &Value) -> Option<i64> {
    size.as_i64().or_else(|| size.as_str()?.parse().ok())
}

/// Parameters by name, of the model and else of the command line.
struct Named<'a> {
    own: Map<String, Value>,
    given: &'a Map<String, Value>,
    wrong: &'a mut Vec<String>,
}

impl<'a> Named<'a> {
    fn of(own: &Value, given: &'a Map<String, Value>, wrong: &'a mut Vec<String>) -> Self {
        let own = own.as_object().cloned().unwrap_or_default();
        Self { own, given, wrong }
    }

    fn text(&mut self, name: &str) -> Option<String> {
        let own = self.own.remove(name);
        let own = own.as_ref().map(|value| &value["string_value"]);
        let value = own.or_else(|| self.given.get(name))?;
        value
            .as_str()
            .filter(|text| !text.is_empty())
            .map(str::to_owned)
    }

    fn path(&mut self, name: &str) -> Option<PathBuf> {
        self.text(name).map(PathBuf::from)
    }

    fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(&mut self, name: &str) -> Option<T> {
        let text = self.text(name)?;
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.wrong
                    .push(format!("parameter `{name}`: {error}, found `{text}`"));
                None
            }
        }
    }

    /// Refuses what is left of the model's own.
    fn finish(self) {
        let known = PARAMETERS.join(", ");
        let names = self.own.keys();
        let refused = |name| format!("parameter `{name}`: expected one of {known}");
        self.wrong.extend(names.map(refused));
    }
}
