//! Any operator, over slices.

use crate::{ReferenceError, Rounding};
use ratplus_graphs::ops::{
    Axis, Definition, ElementType, Inferred, Operator, Ports, TensorType, check_lengths,
};
use ratplus_graphs::with_operator;

/// The elements of an input, row-major; `T`, `C` and `W` of floats are carried in f32.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    /// Of a port of `T`, `C` or f32.
    F32(&'a [f32]),
    /// Of a port of i64.
    I64(&'a [i64]),
    /// Of a port of bytes.
    U8(&'a [u8]),
}

impl<'a> Values<'a> {
    fn len(self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::I64(values) => values.len(),
            Self::U8(values) => values.len(),
        }
    }

    /// The elements of a port of numbers; none of one of i64.
    pub(crate) fn f32s(self) -> &'a [f32] {
        match self {
            Self::F32(values) => values,
            Self::I64(_) | Self::U8(_) => &[],
        }
    }

    /// The elements of a port of i64; none of one of numbers.
    pub(crate) fn i64s(self) -> &'a [i64] {
        match self {
            Self::I64(values) => values,
            Self::F32(_) | Self::U8(_) => &[],
        }
    }

    /// The elements of a port of bytes; none of another.
    pub(crate) fn u8s(self) -> &'a [u8] {
        match self {
            Self::U8(values) => values,
            Self::F32(_) | Self::I64(_) => &[],
        }
    }
}

/// An operator in plain loops.
pub trait Reference: Definition {
    /// Writes every element of the outputs; all lengths fit.
    fn run(
        &self,
        node: &Inferred,
        inputs: &Self::Inputs<Values<'_>>,
        outputs: Self::Outputs<&mut [f32]>,
        rounding: Rounding,
    );
}

/// An input: its type, where `T` and `C` are carried in f32, and its elements.
#[derive(Clone, Debug)]
pub struct Input<'a> {
    /// Type and shape.
    pub tensor: TensorType,
    /// As many as the shape says.
    pub values: Values<'a>,
}

impl<'a> Input<'a> {
    /// Of a port of `T`, `C` or f32.
    pub fn f32s(shape: impl Into<Vec<usize>>, values: &'a [f32]) -> Self {
        Self {
            tensor: TensorType::new(ElementType::F32, shape),
            values: Values::F32(values),
        }
    }

    /// Of a port of i64.
    pub fn i64s(shape: impl Into<Vec<usize>>, values: &'a [i64]) -> Self {
        Self {
            tensor: TensorType::new(ElementType::I64, shape),
            values: Values::I64(values),
        }
    }

    /// What stands for an input that the node is without.
    pub fn none() -> Self {
        Self {
            tensor: TensorType::none(ElementType::U8),
            values: Values::U8(&[]),
        }
    }
}

/// Runs an operator: f32 outputs by name, padding 0.
///
/// # Errors
/// The inputs contradict the schema, or a slot's lengths are out of range.
pub fn run<O: Reference>(
    operator: &O,
    inputs: O::Inputs<Input<'_>>,
    rounding: Rounding,
) -> Result<O::Outputs<Vec<f32>>, ReferenceError> {
    let (_, outputs) = execute(operator, &inputs.into_list(), rounding)?;
    O::Outputs::from_list(outputs).ok_or_else(|| ReferenceError::ports(O::OP))
}

/// [`run`] for inputs and outputs in the ports' order, with the outputs' types.
///
/// # Errors
/// As [`run`].
pub fn run_operator(
    operator: &Operator,
    inputs: &[Input<'_>],
    rounding: Rounding,
) -> Result<(Vec<TensorType>, Vec<Vec<f32>>), ReferenceError> {
    with_operator!(operator, operator => execute(operator, inputs, rounding))
}

fn execute<O: Reference>(
    operator: &O,
    inputs: &[Input<'_>],
    rounding: Rounding,
) -> Result<(Vec<TensorType>, Vec<Vec<f32>>), ReferenceError> {
    let op = O::OP;
    let types: Vec<_> = inputs.iter().map(|input| input.tensor.clone()).collect();
    let node = operator.infer(&types)?;
    let padding = op.inputs().len().saturating_sub(inputs.len());
    let padding = std::iter::repeat_n(Input::none(), padding);
    let inputs: Vec<_> = inputs.iter().cloned().chain(padding).collect();
    for ((port, input), has) in op.inputs().iter().zip(&inputs).zip(&node.has) {
        if !has {
            continue;
        }
        let (expected, found) = (input.tensor.elements(), input.values.len());
        if expected != found {
            let wrong = format!("{}: expected {expected} elements, found {found}", port.name);
            return Err(ReferenceError::new(op, wrong));
        }
    }
    let lengths = |name: &str| Some(inputs[O::SCHEMA.input(name)?].values.i64s());
    if let (Some(past), Some(seq)) = (lengths("past_length"), lengths("seq_length")) {
        let dims = &node.dims;
        check_lengths(past, seq, dims[Axis::SeqLen], dims.get(Axis::MaxSeqLen))
            .map_err(|error| ReferenceError::new(op, error))?;
    }
    let zeros = |output: &TensorType| vec![0.0; output.elements()];
    let mut outputs: Vec<_> = node.outputs.iter().map(zeros).collect();
    let named = O::Inputs::from_list(inputs.iter().map(|input| input.values));
    let written = O::Outputs::from_list(outputs.iter_mut().map(Vec::as_mut_slice));
    let (Some(named), Some(written)) = (named, written) else {
        return Err(ReferenceError::ports(op));
    };
    operator.run(&node, &named, written, rounding);
    Ok((node.outputs, outputs))
}
