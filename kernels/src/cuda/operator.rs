//! Either operator on one device, for one set of shapes.

use super::{
    AttentionPlan, AttentionShape, AttentionTensors, CudaError, Device, DevicePtr, ScanPlan,
    ScanShape, ScanTensors, Stream,
};
use ratplus_graphs::ops::{
    AttentionAttributes, Op, SchemaErrors, TensorType, check_gpu_cache, infer_dilated_attention,
    infer_recurrence_scan,
};

/// What a node of a graph launches.
#[derive(Debug)]
pub enum OperatorPlan {
    /// [`Op::RecurrenceScan`].
    Scan(ScanPlan),
    /// [`Op::DilatedAttention`].
    Attention(AttentionPlan),
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The inputs contradict the schema.
    #[error(transparent)]
    Schema(#[from] SchemaErrors),
    /// The cache has another type than the activations.
    #[error("DilatedAttention: {0}")]
    Cache(String),
    /// The device has no kernels for them.
    #[error(transparent)]
    Cuda(#[from] CudaError),
}

impl OperatorPlan {
    /// A plan for inputs of these types; `attributes` are [`Op::DilatedAttention`]'s, and `None`
    /// means [`Op::RecurrenceScan`]. Loads kernels: not allowed while a stream is captured.
    ///
    /// # Errors
    /// Every contradiction to the schema; else a cache of another type, or a device without kernels
    /// for the sizes.
    pub fn new(
        device: &'static Device,
        attributes: Option<&AttentionAttributes>,
        inputs: &[TensorType],
    ) -> Result<Self, PlanError> {
        let Some(attributes) = attributes else {
            infer_recurrence_scan(inputs)?;
            let [batch, seq_len, channels] = inputs[0].shape[..] else {
                unreachable!("the schema was checked");
            };
            let element = inputs[0].dtype;
            let shape = ScanShape {
                element,
                batch,
                seq_len,
                channels,
            };
            return Ok(Self::Scan(ScanPlan::new(device, shape)?));
        };
        infer_dilated_attention(attributes, inputs)?;
        check_gpu_cache(inputs[0].dtype, inputs[3].dtype).map_err(PlanError::Cache)?;
        // By the schema, checked above: query [B, L, N], past_key [B, R, dh], cos [M, dh/2].
        let shape = AttentionShape {
            element: inputs[0].dtype,
            batch: inputs[0].shape[0],
            seq_len: inputs[0].shape[1],
            head_dim: inputs[3].shape[2],
            scale: attributes.scale,
        };
        let layout = attributes.cache_layout(inputs[7].shape[0]);
        Ok(Self::Attention(AttentionPlan::new(device, shape, &layout)?))
    }

    /// Bytes of device memory that a launch needs beside its tensors.
    pub fn workspace_bytes(&self) -> usize {
        match self {
            Self::Scan(plan) => plan.workspace_bytes(),
            Self::Attention(plan) => plan.workspace_bytes(),
        }
    }

    /// Puts the work into the stream. `inputs` and `outputs` are in the order of [`Op::inputs`]
    /// and [`Op::outputs`]; `node` is what a [`DeviceError`](super::DeviceError) names.
    ///
    /// # Errors
    /// What the driver reports, and a number of tensors that is not the schema's.
    ///
    /// # Safety
    /// As [`ScanPlan::launch`] and [`AttentionPlan::launch`].
    pub unsafe fn launch(
        &self,
        inputs: &[DevicePtr],
        outputs: &[DevicePtr],
        workspace: DevicePtr,
        node: u32,
        stream: Stream,
    ) -> Result<(), CudaError> {
        match (self, inputs, outputs) {
            (
                Self::Scan(plan),
                &[
                    key,
                    value,
                    gate,
                    state_key,
                    state_value,
                    past_length,
                    seq_length,
                ],
                &[gated_key, gated_value, new_state_key, new_state_value],
            ) => {
                let tensors = ScanTensors {
                    key,
                    value,
                    gate,
                    state_key,
                    state_value,
                    past_length,
                    seq_length,
                    gated_key,
                    gated_value,
                    new_state_key,
                    new_state_value,
                };
                // SAFETY: the caller's contract.
                unsafe { plan.launch(&tensors, workspace, node, stream) }
            }
            (
                Self::Attention(plan),
                &[
                    query,
                    key,
                    value,
                    past_key,
                    past_value,
                    past_length,
                    seq_length,
                    cos,
                    sin,
                ],
                &[output, present_key, present_value],
            ) => {
                let tensors = AttentionTensors {
                    query,
                    key,
                    value,
                    past_key,
                    past_value,
                    past_length,
                    seq_length,
                    cos,
                    sin,
                    output,
                    present_key,
                    present_value,
                };
                // SAFETY: as above.
                unsafe { plan.launch(&tensors, workspace, node, stream) }
            }
            _ => Err(CudaError::Unsupported {
                what: "tensors".into(),
                expected: format!("those of {}", self.op()),
                found: format!("{} inputs and {} outputs", inputs.len(), outputs.len()),
            }),
        }
    }

    /// The operator.
    pub fn op(&self) -> Op {
        match self {
            Self::Scan(_) => Op::RecurrenceScan,
            Self::Attention(_) => Op::DilatedAttention,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_are_named_in_the_order_of_the_schema() {
        let names = |op: Op| -> (Vec<_>, Vec<_>) {
            (
                op.inputs().iter().map(|port| port.name).collect(),
                op.outputs().iter().map(|port| port.name).collect(),
            )
        };
        let (inputs, outputs) = names(Op::RecurrenceScan);
        assert_eq!(
            inputs,
            [
                "key",
                "value",
                "gate",
                "state_key",
                "state_value",
                "past_length",
                "seq_length"
            ]
        );
        assert_eq!(
            outputs,
            [
                "gated_key",
                "gated_value",
                "new_state_key",
                "new_state_value"
            ]
        );
        let (inputs, outputs) = names(Op::DilatedAttention);
        assert_eq!(
            inputs,
            [
                "query",
                "key",
                "value",
                "past_key",
                "past_value",
                "past_length",
                "seq_length",
                "cos",
                "sin"
            ]
        );
        assert_eq!(outputs, ["output", "present_key", "present_value"]);
    }
}
