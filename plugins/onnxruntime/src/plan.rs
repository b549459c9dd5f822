//! What a node's input shapes decide.

use crate::api::{Failure, Tensor, TensorShape};
use ratplus_graphs::ops::{ElementType, Inferred, Op, Operator, TensorType};

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
        Ok(Self {
            inputs: inputs.to_vec(),
            outputs: node
                .outputs
                .iter()
                .map(|output| TensorShape::new(output.dtype, &output.shape))
                .collect(),
            types,
            node,
        })
    }
}

/// The inputs as the schema's functions take them.
fn tensor_types(op: Op, inputs: &[TensorShape]) -> Result<Vec<TensorType>, Failure> {
    let typed = |(index, input): (usize, &TensorShape)| {
        if *input == Tensor::NONE.shape {
            return Ok(TensorType::none(ElementType::U8));
        }
        let Some(dtype) = ElementType::from_onnx(input.element) else {
            let name = op.inputs().get(index).map_or("?", |port| port.name);
            return Err(Failure::invalid(format!(
                "{op}: {name}: expected f32, f16, bf16, i64 or u8 elements, found ONNX element type {}",
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
