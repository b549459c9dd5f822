//! Models of the backend `ratplus`, libtriton_ratplus.so.

use crate::files::{Model, VERSION, package_files};
use crate::text::{dims, list, quoted};
use ratplus_graphs::package::Manifest;

/// An input or output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Its name.
    pub name: &'static str,
    /// Types that it may be declared with, the first otherwise.
    pub types: &'static [&'static str],
    /// Its elements, -1 for any number.
    pub elements: i64,
    /// Whether it needs the package's tokenizer.
    pub is_text: bool,
}

const fn tensor(name: &'static str, types: &'static [&'static str], elements: i64) -> Tensor {
    Tensor {
        name,
        types,
        elements,
        is_text: false,
    }
}

/// What requests may have; all of it is optional, but one of the first two has to come.
pub const INPUTS: [Tensor; 11] = [
    Tensor {
        is_text: true,
        ..tensor("text_input", &["TYPE_STRING"], 1)
    },
    tensor("input_ids", &["TYPE_INT32", "TYPE_INT64"], -1),
    tensor("stream", &["TYPE_BOOL"], 1),
    tensor("sampling_parameters", &["TYPE_STRING"], 1),
    Tensor {
        is_text: true,
        ..tensor("exclude_input_in_output", &["TYPE_BOOL"], 1)
    },
    tensor("return_output_ids", &["TYPE_BOOL"], 1),
    tensor("return_finish_reason", &["TYPE_BOOL"], 1),
    tensor("return_cumulative_logprob", &["TYPE_BOOL"], 1),
    tensor("return_logprobs", &["TYPE_BOOL"], 1),
    tensor("return_num_input_tokens", &["TYPE_BOOL"], 1),
    tensor("return_num_output_tokens", &["TYPE_BOOL"], 1),
];

/// What requests may be answered with.
pub const OUTPUTS: [Tensor; 7] = [
    Tensor {
        is_text: true,
        ..tensor("text_output", &["TYPE_STRING"], -1)
    },
    tensor("output_ids", &["TYPE_INT32"], -1),
    tensor("finish_reason", &["TYPE_STRING"], -1),
    tensor("cumulative_logprob", &["TYPE_FP32"], -1),
    tensor("logprobs", &["TYPE_STRING"], -1),
    tensor("num_input_tokens", &["TYPE_UINT32"], -1),
    tensor("num_output_tokens", &["TYPE_UINT32"], -1),
];

/// Parameters of a model's configuration.
pub const PARAMETERS: [&str; 10] = [
    "package",
    "backend",
    "threads",
    "device",
    "no_cuda_graph",
    "onnxruntime",
    "custom_ops",
    "prefill_chunk",
    "decode_steps_per_chunk",
    "prefix_cache_bytes",
];

/// How models are configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Most requests that wait in Triton's queue; more are refused.
    pub max_queued_requests: usize,
    /// Some of [`PARAMETERS`].
    pub parameters: Vec<(&'static str, String)>,
}

/// The two models of a package: `name` is decoupled and streams, `name_unary` gives one response and finds the
/// package in the other's folder. They share what runs it.
pub fn models(name: &str, manifest: &Manifest, options: &Options) -> [Model; 2] {
    let unary = format!("{name}_unary");
    let mut there = options.clone();
    let place = format!("../../{name}/{VERSION}");
    there.parameters.insert(0, ("package", place));
    [
        Model {
            config: config(name, manifest, options, true),
            name: name.into(),
            files: package_files(manifest),
        },
        Model {
            config: config(&unary, manifest, &there, false),
            name: unary,
            files: Vec::new(),
        },
    ]
}

fn config(name: &str, manifest: &Manifest, options: &Options, decoupled: bool) -> String {
    let known = |tensors: &'static [Tensor]| {
        let has_text = manifest.tokenizer.is_some();
        tensors
            .iter()
            .filter(move |tensor| has_text || !tensor.is_text)
    };
    let declared = |tensor: &Tensor| {
        let (name, dims) = (quoted(tensor.name), dims([tensor.elements]));
        format!("name: {name} data_type: {} dims: {dims}", tensor.types[0])
    };
    let inputs = known(&INPUTS).map(|tensor| declared(tensor) + " optional: true");
    let parameters = options.parameters.iter().map(|(name, value)| {
        let (name, value) = (quoted(name), quoted(value));
        format!("key: {name} value: {{ string_value: {value} }}")
    });
    format!(
        "name: {name}\n\
         backend: \"ratplus\"\n\
         # Sequences are batched by the package's {slots} slots.\n\
         max_batch_size: 0\n\
         model_transaction_policy {{ decoupled: {decoupled} }}\n\
         {inputs}{outputs}\
         dynamic_batching {{ default_queue_policy {{ max_queue_size: {queue} }} }}\n\
         # More would share the one engine.\n\
         instance_group {{ count: 1 kind: KIND_MODEL }}\n\
         {parameters}",
        name = quoted(name),
        slots = manifest.batch,
        inputs = list("input", "", inputs),
        outputs = list("output", "", known(&OUTPUTS).map(declared)),
        queue = options.max_queued_requests,
        parameters = list("parameters", "", parameters),
    )
}
