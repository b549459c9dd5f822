//! What a node's input shapes decide.

use crate::api::{Failure, TensorShape};
use ratplus_graphs::ops::{Axis, ElementType, Inferred, Op, Operator, TensorType, check_lengths};
use std::slice;

/// What is known once the shapes of all inputs are.
#[derive(Debug)]
pub struct Plan {
    /// The inputs this plan is for.
    pub inputs: Vec<TensorShape>,
    /// The same, as the schema's functions take them.
    pub types: Vec<TensorType>,
    /// Sizes and types by name.
    pub node: Inferred,
    /// The outputs they make.
    pub outputs: Vec<TensorShape>,
    /// Places of `past_length` and `seq_length` among the inputs.
    lengths: Option<[usize; 2]>,
}

impl Plan {
    /// Checks `inputs` against the operator's schema.
    ///
    /// # Errors
    /// Every mismatch.
    pub fn new(operator: &Operator, inputs: &[TensorShape]) -> Result<Self, Failure> {
        let types = tensor_types(operator.op(), inputs)?;
        let node = operator
            .infer(&types)
            .map_err(|errors| Failure::invalid(errors.to_string()))?;
        let schema = operator.op().schema();
        let lengths = schema.input("past_length").zip(schema.input("seq_length"));
        Ok(Self {
            inputs: inputs.to_vec(),
            outputs: node
                .outputs
                .iter()
                .map(|output| TensorShape::new(output.dtype, &output.shape))
                .collect(),
            lengths: lengths.map(|(past, seq)| [past, seq]),
            types,
            node,
        })
    }

    /// Checks the lengths of every slot, before anything is allocated.
    ///
    /// # Errors
    /// The first slot whose lengths do not fit.
    ///
    /// # Safety
    /// `inputs` have the shapes and types of this plan and are in host memory.
    pub unsafe fn check_lengths(&self, inputs: &[crate::api::Tensor]) -> Result<(), Failure> {
        let Some(places) = self.lengths else {
            return Ok(());
        };
        let dims = &self.node.dims;
        let batch = dims[Axis::Batch];
        let [past, seq] = places.map(|place| {
            // SAFETY: i64 [B], which the plan found; B is not 0.
            unsafe { slice::from_raw_parts(inputs[place].data.cast_const().cast(), batch) }
        });
        check_lengths(past, seq, dims[Axis::SeqLen], dims.get(Axis::MaxSeqLen))
            .map_err(|error| Failure::invalid(error.to_string()))
    }
}

/// The inputs as the schema's functions take them.
fn tensor_types(op: Op, inputs: &[TensorShape]) -> Result<Vec<TensorType>, Failure> {
    let typed = |(index, input): (usize, &TensorShape)| {
        let Some(dtype) = ElementType::from_onnx(input.element) else {
            let name = op.inputs().get(index).map_or("?", |port| port.name);
            return Err(Failure::invalid(format!(
                "{op}: {name}: expected f32, f16, bf16 or i64 elements, found ONNX element type {}",
                input.element
            )));
        };
        let shape: Vec<_> = input
            .dims()
            .iter()
            .map(|&dim| usize::try_from(dim).unwrap_or(0))
            .collect();
        Ok(TensorType { dtype, shape })
    };
    inputs.iter().enumerate().map(typed).collect()
}
