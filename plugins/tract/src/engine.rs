use crate::vectors::release_upper_parts;
use crate::{TractError, TractWeights, register};
use prost::Message;
use ratplus_graphs::model::{ROTARY_TABLES, ReferenceGraph, Weight, carrier};
use ratplus_graphs::ops::{ElementType, TensorType, check_lengths};
use ratplus_graphs::package::{INPUT_IDS, PAST_LENGTH, SEQ_LENGTH, TensorInfo};
use std::sync::Arc;
use tract_onnx::pb;
use tract_onnx::tract_core::ops::konst::Const;
use tract_onnx::tract_hir::internal::*;

/// A borrowed input.
#[derive(Clone, Copy, Debug)]
pub enum TensorRef<'a> {
    /// Token ids and lengths.
    I64(&'a [i64]),
    /// States; f16 and bf16 packages take them in f32 too.
    F32(&'a [f32]),
    /// Integers of a matrix, where it is an input.
    U8(&'a [u8]),
}

impl TensorRef<'_> {
    fn dtype(&self) -> ElementType {
        match self {
            Self::I64(_) => ElementType::I64,
            Self::F32(_) => ElementType::F32,
            Self::U8(_) => ElementType::U8,
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::I64(values) => values.len(),
            Self::F32(values) => values.len(),
            Self::U8(values) => values.len(),
        }
    }
}

/// When tract rearranges the matrices for its kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// At load: fast, and every engine holds a copy of the matrices besides the shared weights.
    Once,
    /// At every run: the shared weights are the only copy, and decoding is some ten times slower.
    EachRun,
}

impl Packing {
    /// Weights above this many bytes are packed at every run unless the caller says otherwise.
    pub const ONCE_LIMIT: usize = 1 << 30;

    /// What [`TractEngine::new`] chooses.
    pub fn for_weights(weights: &TractWeights) -> Self {
        match weights.bytes() <= Self::ONCE_LIMIT {
            true => Self::Once,
            false => Self::EachRun,
        }
    }
}

/// One engine of a package, ready to run.
pub struct TractEngine {
    inputs: Vec<TensorInfo>,
    outputs: Vec<TensorInfo>,
    /// Size of the vocabulary, where the graph embeds tokens.
    vocab_size: Option<usize>,
    /// `M`, where the graph has rotary tables.
    max_seq_len: Option<usize>,
    /// Given to the plan after the inputs.
    weights: Vec<Arc<Tensor>>,
    plan: Arc<TypedRunnableModel>,
}

impl std::fmt::Debug for TractEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TractEngine")
            .field("inputs", &self.inputs)
            .field("outputs", &self.outputs)
            .finish_non_exhaustive()
    }
}

impl TractEngine {
    /// Loads `graph` with weights that other engines of its package share.
    ///
    /// # Errors
    /// The weights are another package's, or tract cannot run an operator.
    pub fn new(graph: &ReferenceGraph, weights: &TractWeights) -> Result<Self, TractError> {
        Self::with_packing(graph, weights, Packing::for_weights(weights))
    }

    /// As [`TractEngine::new`], with the caller's choice between memory and speed.
    ///
    /// # Errors
    /// As [`TractEngine::new`].
    pub fn with_packing(
        graph: &ReferenceGraph,
        weights: &TractWeights,
        packing: Packing,
    ) -> Result<Self, TractError> {
        let listed = graph.weights.iter();
        let mut weights = listed
            .map(|info| weights.get(&info.name, &info.tensor))
            .collect::<Result<Vec<_>, _>>()?;
        let constants = match packing {
            Packing::Once => std::mem::take(&mut weights),
            Packing::EachRun => Vec::new(),
        };
        let rows = |name: &str| {
            let found = graph.weights.iter().find(|weight| weight.name == name);
            found.and_then(|weight| weight.tensor.shape.first().copied())
        };
        Ok(Self {
            vocab_size: rows(&Weight::Embedding.name()),
            max_seq_len: rows(ROTARY_TABLES[0]),
            inputs: graph.inputs.clone(),
            outputs: graph.outputs.clone(),
            weights,
            plan: plan(graph, constants)?,
        })
    }

    /// Inputs in graph order, types as in the package.
    pub fn inputs(&self) -> &[TensorInfo] {
        &self.inputs
    }

    /// Outputs in graph order, types as in the package.
    pub fn outputs(&self) -> &[TensorInfo] {
        &self.outputs
    }

    /// Runs the graph. Every input has to be given, in any order; outputs are copied into the
    /// slices given, and others are dropped. f16 and bf16 tensors are f32 slices on both sides.
    ///
    /// # Errors
    /// A name is unknown, missing or given twice, a slice's type or length is not its tensor's,
    /// a token id (of padding too) or a slot's lengths are out of range, or an operator fails.
    /// Outputs are untouched then.
    pub fn run(
        &mut self,
        inputs: &[(&str, TensorRef<'_>)],
        outputs: &mut [(&str, &mut [f32])],
    ) -> Result<(), TractError> {
        let targets = self.check(inputs, outputs)?;
        let mut values = tvec!();
        for info in &self.inputs {
            let given = inputs.iter().find(|(name, _)| *name == info.name);
            let shape = &info.tensor.shape;
            let tensor = match given {
                Some((_, TensorRef::I64(data))) => Tensor::from_shape(shape, data),
                Some((_, TensorRef::F32(data))) => Tensor::from_shape(shape, data),
                Some((_, TensorRef::U8(data))) => Tensor::from_shape(shape, data),
                None => continue,
            };
            values.push(tensor.map_err(TractError::stage("running"))?.into_tvalue());
        }
        values.extend(self.weights.iter().cloned().map(IntoTValue::into_tvalue));
        let results = self
            .plan
            .run(values)
            .map_err(TractError::stage("running"))?;
        release_upper_parts();
        for (result, info) in results.iter().zip(&self.outputs) {
            check_result(result, info)?;
        }
        for ((_, output), target) in outputs.iter_mut().zip(targets) {
            let plain = results[target].try_as_plain_ram();
            let plain = plain.map_err(TractError::stage("running"))?;
            let values = plain.as_slice().map_err(TractError::stage("running"))?;
            output.copy_from_slice(values);
        }
        Ok(())
    }

    /// Compares the caller's tensors with the graph's; the index of each output.
    fn check(
        &self,
        inputs: &[(&str, TensorRef<'_>)],
        outputs: &[(&str, &mut [f32])],
    ) -> Result<Vec<usize>, TractError> {
        let mut errors = Vec::new();
        for info in &self.inputs {
            let mut given = inputs.iter().filter(|(name, _)| *name == info.name);
            match (given.next(), given.next()) {
                (None, _) => errors.push(format!("input `{}` is missing", info.name)),
                (Some(_), Some(_)) => errors.push(format!("input `{}` is given twice", info.name)),
                (Some((name, data)), None) => {
                    check_slice(
                        "input",
                        name,
                        &info.tensor,
                        data.dtype(),
                        data.len(),
                        &mut errors,
                    );
                }
            }
        }
        for (name, _) in inputs {
            if !self.inputs.iter().any(|info| info.name == *name) {
                errors.push(format!("input `{name}`: the graph has none of this name"));
            }
        }
        let mut targets = Vec::new();
        for (name, data) in outputs {
            match self.outputs.iter().position(|info| info.name == *name) {
                None => errors.push(format!("output `{name}`: the graph has none of this name")),
                Some(index) => {
                    let tensor = &self.outputs[index].tensor;
                    let dtype = ElementType::F32;
                    check_slice("output", name, tensor, dtype, data.len(), &mut errors);
                    targets.push(index);
                }
            }
        }
        if errors.is_empty() {
            self.check_values(inputs, &mut errors);
        }
        if errors.is_empty() {
            Ok(targets)
        } else {
            let errors = errors.join("\n  ");
            Err(TractError(format!(
                "the tensors given do not match the graph:\n  {errors}"
            )))
        }
    }

    /// Checks what standard operators would not, or would panic on.
    fn check_values(&self, inputs: &[(&str, TensorRef<'_>)], errors: &mut Vec<String>) {
        let find = |name: &str| match inputs.iter().find(|(found, _)| *found == name) {
            Some((_, TensorRef::I64(values))) => Some(*values),
            _ => None,
        };
        let ids = find(INPUT_IDS);
        if let (Some(ids), Some(vocab)) = (ids, self.vocab_size) {
            let valid = |id: i64| usize::try_from(id).is_ok_and(|id| id < vocab);
            if let Some((at, id)) = ids.iter().enumerate().find(|(_, id)| !valid(**id)) {
                errors.push(format!(
                    "input `{INPUT_IDS}`: expected ids of 0 to {}, found {id} at {at}",
                    vocab - 1
                ));
            }
        }
        if let (Some(ids), Some(past), Some(seq)) = (ids, find(PAST_LENGTH), find(SEQ_LENGTH)) {
            let seq_len = ids.len() / past.len().max(1);
            if let Err(error) = check_lengths(past, seq, seq_len, self.max_seq_len) {
                errors.push(error.to_string());
            }
        }
    }
}

fn check_slice(
    kind: &str,
    name: &str,
    tensor: &TensorType,
    dtype: ElementType,
    len: usize,
    errors: &mut Vec<String>,
) {
    let expected = carrier(tensor.dtype);
    if dtype != expected || len != tensor.elements() {
        errors.push(format!(
            "{kind} `{name}`: expected {} values of {expected} ({tensor}), found {len} of {dtype}",
            tensor.elements()
        ));
    }
}

/// Whether the graph computes what it declares; outputs of packages are never i64.
fn check_result(result: &TValue, info: &TensorInfo) -> Result<(), TractError> {
    if result.shape() == info.tensor.shape && result.datum_type() == f32::datum_type() {
        return Ok(());
    }
    Err(TractError(format!(
        "output `{}`: declared {}, but computed as {:?}{:?}",
        info.name,
        info.tensor,
        result.datum_type(),
        result.shape()
    )))
}

/// The weights that are not `constants` stay inputs, after the others.
fn plan(
    graph: &ReferenceGraph,
    constants: Vec<Arc<Tensor>>,
) -> Result<Arc<TypedRunnableModel>, TractError> {
    let parsing = || TractError::stage("parsing");
    let proto = pb::ModelProto::decode(graph.model.encode_to_vec().as_slice())
        .map_err(|error| parsing()(error.into()))?;
    let mut onnx = tract_onnx::onnx();
    register(&mut onnx);
    let mut model = onnx.parse(&proto, None).map_err(parsing())?.model;
    let sources = model.input_outlets().map_err(parsing())?.to_vec();
    let (inputs, initializers) = sources.split_at(graph.inputs.len());
    if !constants.is_empty() {
        for (source, value) in initializers.iter().zip(constants) {
            let node = model.node_mut(source.node);
            node.outputs[0].fact = InferenceFact::try_from(value.clone()).map_err(parsing())?;
            node.op = Box::new(Const::new(value).map_err(parsing())?);
        }
        model.set_input_outlets(inputs).map_err(parsing())?;
    }
    model
        .into_typed()
        .map_err(TractError::stage("typing"))?
        .into_optimized()
        .map_err(TractError::stage("optimizing"))?
        .into_runnable()
        .map_err(TractError::stage("planning"))
}
