//! Models of Triton's own backends, with a sequence's states kept by Triton.
//!
//! A request has the tokens of one chunk, `past_length` (tokens of the sequence before them) and `seq_length` (how many
//! of the chunk are valid), and is answered with logits; the correlation id says which sequence it is of. States need no
//! initial value: a sequence starts over where `past_length` is 0.

use crate::files::{File, Model, RepositoryError};
use crate::text::{dims, list, quoted, typed};
use ratplus_graphs::ops::{ElementType, TensorType};
use ratplus_graphs::package::plans::{PlanSet, plans_folder};
use ratplus_graphs::package::{
    Engine, INPUT_IDS, LOGITS, LogitsMode, Manifest, PAST_LENGTH, SEQ_LENGTH, Target, WEIGHTS_FILE,
    state_tensors,
};

/// How a model is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Most sequences whose states are kept at once.
    pub max_sequences: usize,
}

/// What runs the graph in ONNX Runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnnxRuntime {
    /// Tokens of a chunk, one of the package's lengths.
    pub seq_len: usize,
    /// Whether it runs on GPUs.
    pub gpu: bool,
    /// The library of RAT+ operators; without it the model's own functions run.
    pub operators: Option<String>,
}

/// A model of the backend `onnxruntime`: one graph, as long as its chunks. A shorter chunk is padded.
///
/// # Errors
/// The package has no such graph.
pub fn onnxruntime(
    name: &str,
    manifest: &Manifest,
    runtime: &OnnxRuntime,
    options: &Options,
) -> Result<Model, RepositoryError> {
    let engine = single(manifest).find(|engine| engine.seq_len == runtime.seq_len);
    let engine = engine.ok_or_else(|| {
        let lengths: Vec<_> = single(manifest).map(|engine| engine.seq_len).collect();
        let found = runtime.seq_len;
        RepositoryError::Package(format!(
            "`length`: expected one of the package's lengths, {lengths:?}, found {found}"
        ))
    })?;
    let target = match (&runtime.operators, runtime.gpu) {
        (None, _) => Target::Portable,
        (Some(_), false) => Target::Cpu,
        (Some(_), true) => Target::Cuda,
    };
    // Packages of f32 without quantization have one graph for several targets.
    let file = engine
        .file(target)
        .or_else(|| engine.file(Target::Portable));
    let file = file.ok_or_else(|| {
        RepositoryError::Package(format!(
            "{}: the package has no graph of it for ONNX Runtime; export it with `fallback: function`",
            engine.name
        ))
    })?;
    let operations = runtime.operators.as_ref().map(|library| {
        let library = quoted(library);
        format!("model_operations {{ op_library_filename: [ {library} ] }}\n")
    });
    let kind = if runtime.gpu { "KIND_GPU" } else { "KIND_CPU" };
    let config = format!(
        "name: {name}\n\
         backend: \"onnxruntime\"\n\
         default_model_filename: {file}\n\
         {tensors}{sequences}{operations}\
         instance_group {{ count: 1 kind: {kind} }}\n",
        name = quoted(name),
        file = quoted(file),
        tensors = tensors(manifest, &runtime.seq_len.to_string()),
        sequences = sequences(manifest, options),
        operations = operations.unwrap_or_default(),
    );
    Ok(Model {
        name: name.into(),
        config,
        files: [file, WEIGHTS_FILE].map(File::same).into(),
    })
}

/// A model of the backend `tensorrt`: the package's engine plan, with a profile for every length of a chunk. The server
/// needs libratplus_trt.so: `--backend-config=tensorrt,plugins=...`.
///
/// # Errors
/// The package has no such plan, or one of several sequences.
pub fn tensorrt(
    name: &str,
    manifest: &Manifest,
    options: &Options,
) -> Result<Model, RepositoryError> {
    const BACKEND: &str = "tensorrt";
    let plan = match manifest
        .plans
        .get(BACKEND)
        .map(|set: &PlanSet| &set.plans[..])
    {
        Some([plan]) => plan,
        Some(plans) => {
            return Err(RepositoryError::Package(format!(
                "plans: expected one with a profile for every length, found {}; build it without `split_engines`",
                plans.len()
            )));
        }
        None => {
            return Err(RepositoryError::Package(
                "plans: expected one for tensorrt, found none; run `ratplus build` with `backends: tensorrt`".into(),
            ));
        }
    };
    if manifest.batch != 1 {
        return Err(RepositoryError::Package(format!(
            "`batch`: expected 1, for Triton keeps states by sequence, found {}; export it with 1",
            manifest.batch
        )));
    }
    let profiles = (0..plan.engines.len()).map(|profile| quoted(&profile.to_string()));
    let config = format!(
        "name: {name}\n\
         backend: \"tensorrt\"\n\
         # Chunks have one of these lengths: {lengths:?}.\n\
         {tensors}{sequences}\
         instance_group {{ count: 1 kind: KIND_GPU profile: {profiles} }}\n",
        name = quoted(name),
        lengths = manifest.lengths(),
        tensors = tensors(manifest, "-1"),
        sequences = sequences(manifest, options),
        profiles = dims(profiles),
    );
    let from = format!("{}/{}", plans_folder(BACKEND), plan.file);
    Ok(Model {
        name: name.into(),
        config,
        files: vec![File {
            from,
            to: "model.plan".into(),
        }],
    })
}

/// Engines of one sequence.
fn single(manifest: &Manifest) -> impl Iterator<Item = &Engine> {
    manifest.engines.iter().filter(|engine| engine.batch == 1)
}

/// Inputs and outputs but for states, for chunks of `length` tokens.
fn tensors(manifest: &Manifest, length: &str) -> String {
    let one = typed(&TensorType::new(ElementType::I64, [1]));
    let named = |name: &str, rest: &str| format!("name: {} {rest}", quoted(name));
    let ids = format!("data_type: TYPE_INT64 dims: {}", dims(["1", length]));
    let inputs = [
        named(INPUT_IDS, &ids),
        named(PAST_LENGTH, &one),
        named(SEQ_LENGTH, &one),
    ];
    let vocab_size = manifest.model.vocab_size.to_string();
    let shape = match manifest.logits {
        LogitsMode::Last => dims(["1", &vocab_size]),
        LogitsMode::All => dims(["1", length, &vocab_size]),
    };
    let logits = named(LOGITS, &format!("data_type: TYPE_FP32 dims: {shape}"));
    let (inputs, outputs) = (list("input", "", inputs), list("output", "", [logits]));
    format!("max_batch_size: 0\n{inputs}{outputs}")
}

/// Which states a sequence has, each an input and the output that follows it.
fn sequences(manifest: &Manifest, options: &Options) -> String {
    let shape = manifest.shape().with_batch(1);
    let states = state_tensors(&manifest.model, &shape).into_iter();
    let states = states.map(|(past, present, tensor)| {
        let (past, present) = (quoted(&past), quoted(&present));
        format!(
            "input_name: {past} output_name: {present} {}",
            typed(&tensor)
        )
    });
    format!(
        "sequence_batching {{\n  oldest {{ max_candidate_sequences: {} }}\n{}}}\n",
        options.max_sequences,
        list("state", "  ", states)
    )
}
