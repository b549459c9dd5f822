//! Shape inference.

use super::{AttentionAttributes, Axis, ElementType, Op, Port, PortType, SchemaErrors, TensorType};
use Axis::{Batch, Channels, HalfHeadDim, HeadDim, MaxSeqLen, Rows, SeqLen};

/// Types of the outputs of [`Op::RecurrenceScan`].
///
/// # Errors
/// The inputs' number, types or shapes contradict the schema.
pub fn infer_recurrence_scan(inputs: &[TensorType]) -> Result<Vec<TensorType>, SchemaErrors> {
    let mut bound = Bound::match_inputs(Op::RecurrenceScan, inputs);
    bound.outputs()
}

/// Types of the outputs of [`Op::DilatedAttention`].
///
/// # Errors
/// The inputs contradict the schema, the attributes or one another: `N` is not `num_heads x dh`,
/// `R` is not the sum of the heads' rows for `M`, `L` is longer than `M`.
pub fn infer_dilated_attention(
    attributes: &AttentionAttributes,
    inputs: &[TensorType],
) -> Result<Vec<TensorType>, SchemaErrors> {
    let mut bound = Bound::match_inputs(Op::DilatedAttention, inputs);
    if let (Some(channels), Some(head_dim)) = (bound.get(Channels), bound.get(HeadDim)) {
        let heads = attributes.num_heads();
        if heads.checked_mul(head_dim) != Some(channels) {
            bound.errors.push(format!(
                "N: expected num_heads x dh = {heads} x {head_dim}, found {channels}"
            ));
        }
        if head_dim == 0 || head_dim % 2 == 1 {
            bound
                .errors
                .push(format!("dh: expected an even number, found {head_dim}"));
        }
        if let Some(half) = bound.get(HalfHeadDim)
            && half != head_dim / 2
        {
            bound.errors.push(format!(
                "cos, sin: expected dh/2 = {}, found {half}",
                head_dim / 2
            ));
        }
    }
    if let (Some(rows), Some(max_seq_len)) = (bound.get(Rows), bound.get(MaxSeqLen)) {
        let expected = attributes.cache_layout(max_seq_len).rows();
        if rows != expected {
            bound.errors.push(format!(
                "R: the patterns keep {expected} rows for sequences of {max_seq_len}, found {rows}"
            ));
        }
    }
    if let (Some(seq_len), Some(max_seq_len)) = (bound.get(SeqLen), bound.get(MaxSeqLen))
        && seq_len > max_seq_len
    {
        bound.errors.push(format!(
            "L: expected at most M = {max_seq_len}, found {seq_len}"
        ));
    }
    bound.outputs()
}

/// Whether the kernels for GPUs take a cache of this type: they have none where it is not the
/// activations'.
///
/// # Errors
/// What they take, and what to do.
pub fn check_gpu_cache(activations: ElementType, cache: ElementType) -> Result<(), String> {
    if activations == cache {
        return Ok(());
    }
    Err(format!(
        "past_key, past_value: on a GPU expected {activations}, the type of query, found {cache}; export \
         with --cache-dtype {activations}, or run ort-cpu or ort-fallback"
    ))
}

/// Input types matched against an operator's ports.
struct Bound {
    op: Op,
    t: Option<ElementType>,
    c: Option<ElementType>,
    axes: [Option<usize>; Axis::COUNT],
    errors: Vec<String>,
}

impl Bound {
    fn match_inputs(op: Op, inputs: &[TensorType]) -> Self {
        let mut bound = Self {
            op,
            t: None,
            c: None,
            axes: [None; Axis::COUNT],
            errors: Vec::new(),
        };
        let ports = op.inputs();
        if inputs.len() != ports.len() {
            bound.errors.push(format!(
                "expected {} inputs, found {}",
                ports.len(),
                inputs.len()
            ));
            return bound;
        }
        for (port, input) in ports.iter().zip(inputs) {
            bound.match_port(port, input);
        }
        bound
    }

    fn match_port(&mut self, port: &Port, input: &TensorType) {
        let variable = match port.dtype {
            PortType::T => Some(&mut self.t),
            PortType::C => Some(&mut self.c),
            PortType::F32 | PortType::I64 => None,
        };
        let expected = match variable {
            Some(known) if ElementType::ACTIVATIONS.contains(&input.dtype) => {
                *known.get_or_insert(input.dtype)
            }
            Some(known) => known.unwrap_or(ElementType::F32),
            None => port.dtype.resolve(ElementType::F32, ElementType::F32),
        };
        if input.dtype != expected {
            self.errors.push(format!(
                "{}: expected {expected}, found {}",
                port.name, input.dtype
            ));
        }
        if input.shape.len() != port.axes.len() {
            let axes: Vec<_> = port.axes.iter().map(|axis| axis.name()).collect();
            self.errors.push(format!(
                "{}: expected [{}], found {:?}",
                port.name,
                axes.join(", "),
                input.shape
            ));
            return;
        }
        for (&axis, &size) in port.axes.iter().zip(&input.shape) {
            let known = *self.axes[axis as usize].get_or_insert(size);
            if known != size {
                self.errors.push(format!(
                    "{}: expected {} = {known} as on earlier inputs, found {size}",
                    port.name,
                    axis.name()
                ));
            }
        }
    }

    fn get(&self, axis: Axis) -> Option<usize> {
        self.axes[axis as usize]
    }

    fn outputs(&mut self) -> Result<Vec<TensorType>, SchemaErrors> {
        for axis in [Batch, SeqLen, Channels] {
            if self.get(axis) == Some(0) {
                self.errors
                    .push(format!("{}: expected 1 or more, found 0", axis.name()));
            }
        }
        if !self.errors.is_empty() {
            return Err(SchemaErrors::new(self.op, std::mem::take(&mut self.errors)));
        }
        let [t, c] = [self.t, self.c].map(|found| found.unwrap_or(ElementType::F32));
        let outputs = self.op.outputs().iter().map(|port| {
            let shape: Vec<_> = port
                .axes
                .iter()
                .filter_map(|&axis| self.get(axis))
                .collect();
            TensorType::new(port.dtype.resolve(t, c), shape)
        });
        Ok(outputs.collect())
    }
}
