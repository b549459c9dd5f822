//! What a node's input shapes decide.

use crate::api::{Failure, TensorShape};
use ratplus_graphs::cache::CacheLayout;
use ratplus_graphs::ops::{
    AttentionAttributes, ElementType, Op, TensorType, infer_dilated_attention,
    infer_recurrence_scan,
};

/// What is known once the shapes of all inputs are.
#[derive(Debug)]
pub struct Plan {
    /// The inputs this plan is for.
    pub inputs: Vec<TensorShape>,
    /// The same, as the schema's functions take them.
    pub types: Vec<TensorType>,
    /// [`Op::DilatedAttention`] only.
    pub attributes: Option<AttentionAttributes>,
    /// The outputs they make.
    pub outputs: Vec<TensorShape>,
    /// `B`.
    pub batch: usize,
    /// `L`.
    pub seq_len: usize,
    /// `N`.
    pub channels: usize,
    /// [`Op::DilatedAttention`] only.
    pub attention: Option<AttentionPlan>,
}

/// The part that concerns [`Op::DilatedAttention`].
#[derive(Debug)]
pub struct AttentionPlan {
    /// `dh`.
    pub head_dim: usize,
    /// The cache rows, for sequences of up to `M` tokens.
    pub layout: CacheLayout,
    /// Factor on the scores.
    pub scale: f32,
}

impl Plan {
    /// Checks `inputs` against the operator's schema.
    ///
    /// # Errors
    /// Every mismatch.
    pub fn new(
        op: Op,
        attributes: Option<&AttentionAttributes>,
        inputs: &[TensorShape],
    ) -> Result<Self, Failure> {
        let types = tensor_types(op, inputs)?;
        let outputs = match attributes {
            None => infer_recurrence_scan(&types),
            Some(attributes) => infer_dilated_attention(attributes, &types),
        }
        .map_err(|errors| Failure::invalid(errors.to_string()))?;
        // The schema has been checked: both operators start with a [B, L, N] input, and attention
        // has past_key [B, R, dh] and cos [M, dh/2] at 3 and 7.
        let dim = |port: usize, axis: usize| types[port].shape[axis];
        Ok(Self {
            inputs: inputs.to_vec(),
            attributes: attributes.cloned(),
            outputs: outputs
                .iter()
                .map(|output| TensorShape::new(output.dtype, &output.shape))
                .collect(),
            batch: dim(0, 0),
            seq_len: dim(0, 1),
            channels: dim(0, 2),
            attention: attributes.map(|attributes| AttentionPlan {
                head_dim: dim(3, 2),
                layout: attributes.cache_layout(dim(7, 0)),
                scale: attributes.scale,
            }),
            types,
        })
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
