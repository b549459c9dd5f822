//! The two operators: names, ports, attributes, shape inference.

mod attributes;
mod infer;

pub use attributes::{AttentionAttributes, RawAttentionAttributes};
pub use infer::{check_gpu_cache, infer_dilated_attention, infer_recurrence_scan};

use serde::{Deserialize, Serialize};
use std::fmt;

/// Domain of both operators; also TensorRT's plugin namespace.
pub const DOMAIN: &str = "ai.ratplus";
/// Where ONNX Runtime's TensorRT provider declares an operator for every plugin that it has loaded.
pub const TRT_PLUGINS_DOMAIN: &str = "trt.plugins";
/// Version of the domain.
pub const DOMAIN_VERSION: i64 = 1;
/// Value of the `plugin_version` attribute.
pub const PLUGIN_VERSION: &str = "1";
/// Attributes every custom node carries for TensorRT's parser.
pub const PLUGIN_ATTRIBUTES: [(&str, &str); 2] = [
    ("plugin_namespace", DOMAIN),
    ("plugin_version", PLUGIN_VERSION),
];

/// Element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ElementType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    BF16,
    /// Signed 64-bit integer.
    I64,
    /// Unsigned byte.
    U8,
}

impl ElementType {
    /// Types that keys, values and activations may have.
    pub const ACTIVATIONS: [Self; 3] = [Self::F32, Self::F16, Self::BF16];

    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::I64 => 8,
            Self::U8 => 1,
        }
    }

    /// `TensorProto.DataType`; ORT's `ONNXTensorElementDataType` has the same numbers.
    pub fn onnx(self) -> i32 {
        match self {
            Self::F32 => 1,
            Self::F16 => 10,
            Self::BF16 => 16,
            Self::I64 => 7,
            Self::U8 => 2,
        }
    }

    /// The type with this `TensorProto.DataType`.
    pub fn from_onnx(code: i32) -> Option<Self> {
        [Self::F32, Self::F16, Self::BF16, Self::I64, Self::U8]
            .into_iter()
            .find(|t| t.onnx() == code)
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::I64 => "i64",
            Self::U8 => "u8",
        })
    }
}

/// Type and shape of a tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorType {
    /// Element type.
    pub dtype: ElementType,
    /// Static shape.
    pub shape: Vec<usize>,
}

impl TensorType {
    /// A tensor of `dtype` with `shape`.
    pub fn new(dtype: ElementType, shape: impl Into<Vec<usize>>) -> Self {
        Self {
            dtype,
            shape: shape.into(),
        }
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes of a dense buffer.
    pub fn bytes(&self) -> usize {
        self.elements() * self.dtype.size()
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.shape)
    }
}

/// Element type of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortType {
    /// The operator's `T`: f32, f16 or bf16, the same on all such ports.
    T,
    /// The attention's `C`, as `T` but for the cache alone. Every key (after rotary embedding) and
    /// value is rounded to it, to nearest even, before any query sees it, those of the chunk
    /// itself included: results do not depend on how a sequence is cut into chunks.
    C,
    /// Always f32.
    F32,
    /// Always i64.
    I64,
}

impl PortType {
    /// The element type for given `T` and `C`.
    pub fn resolve(self, t: ElementType, c: ElementType) -> ElementType {
        match self {
            Self::T => t,
            Self::C => c,
            Self::F32 => ElementType::F32,
            Self::I64 => ElementType::I64,
        }
    }
}

/// A named dimension of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// `B`: independent sequences.
    Batch,
    /// `L`: tokens of this chunk.
    SeqLen,
    /// `N`: channels, `num_heads x head_dim`.
    Channels,
    /// `R`: cache rows of all heads.
    Rows,
    /// `dh`: channels of one head.
    HeadDim,
    /// `M`: longest sequence.
    MaxSeqLen,
    /// `dh / 2`.
    HalfHeadDim,
}

impl Axis {
    const COUNT: usize = 7;

    fn name(self) -> &'static str {
        match self {
            Self::Batch => "B",
            Self::SeqLen => "L",
            Self::Channels => "N",
            Self::Rows => "R",
            Self::HeadDim => "dh",
            Self::MaxSeqLen => "M",
            Self::HalfHeadDim => "dh/2",
        }
    }
}

/// One input or output.
#[derive(Clone, Copy, Debug)]
pub struct Port {
    /// Name in messages and in the function body.
    pub name: &'static str,
    /// Element type.
    pub dtype: PortType,
    /// Named dimensions.
    pub axes: &'static [Axis],
}

/// Kind of an attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttributeKind {
    /// One integer.
    Int,
    /// A list of integers: one, or one per head.
    Ints,
    /// One f32.
    Float,
    /// Text.
    String,
}

/// One attribute; all are required.
#[derive(Clone, Copy, Debug)]
pub struct AttributeSpec {
    /// Name.
    pub name: &'static str,
    /// Kind.
    pub kind: AttributeKind,
}

/// An operator of [`DOMAIN`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// The gated linear recurrence over keys and values.
    RecurrenceScan,
    /// Rotary embedding, dilated attention and the cache update.
    DilatedAttention,
}

use Axis::{Batch, Channels, HalfHeadDim, HeadDim, MaxSeqLen, Rows, SeqLen};

macro_rules! ports {
    ($($name:literal $dtype:ident [$($axis:ident),*];)*) => {
        &[$(Port { name: $name, dtype: PortType::$dtype, axes: &[$($axis),*] }),*]
    };
}

impl Op {
    /// Every operator.
    pub const ALL: [Self; 2] = [Self::RecurrenceScan, Self::DilatedAttention];

    /// `op_type`.
    pub fn name(self) -> &'static str {
        match self {
            Self::RecurrenceScan => "RecurrenceScan",
            Self::DilatedAttention => "DilatedAttention",
        }
    }

    /// Inputs in order.
    pub fn inputs(self) -> &'static [Port] {
        match self {
            Self::RecurrenceScan => ports! {
                "key" T [Batch, SeqLen, Channels];
                "value" T [Batch, SeqLen, Channels];
                "gate" T [Batch, SeqLen, Channels];
                "state_key" F32 [Batch, Channels];
                "state_value" F32 [Batch, Channels];
                "past_length" I64 [Batch];
                "seq_length" I64 [Batch];
            },
            Self::DilatedAttention => ports! {
                "query" T [Batch, SeqLen, Channels];
                "key" T [Batch, SeqLen, Channels];
                "value" T [Batch, SeqLen, Channels];
                "past_key" C [Batch, Rows, HeadDim];
                "past_value" C [Batch, Rows, HeadDim];
                "past_length" I64 [Batch];
                "seq_length" I64 [Batch];
                "cos" F32 [MaxSeqLen, HalfHeadDim];
                "sin" F32 [MaxSeqLen, HalfHeadDim];
            },
        }
    }

    /// Outputs in order.
    pub fn outputs(self) -> &'static [Port] {
        match self {
            Self::RecurrenceScan => ports! {
                "gated_key" T [Batch, SeqLen, Channels];
                "gated_value" T [Batch, SeqLen, Channels];
                "new_state_key" F32 [Batch, Channels];
                "new_state_value" F32 [Batch, Channels];
            },
            Self::DilatedAttention => ports! {
                "output" T [Batch, SeqLen, Channels];
                "present_key" C [Batch, Rows, HeadDim];
                "present_value" C [Batch, Rows, HeadDim];
            },
        }
    }

    /// Pairs of (input, output) that may share memory.
    pub fn aliases(self) -> &'static [(usize, usize)] {
        match self {
            Self::RecurrenceScan => &[(3, 2), (4, 3)],
            Self::DilatedAttention => &[(3, 1), (4, 2)],
        }
    }

    /// Attributes, [`PLUGIN_ATTRIBUTES`] not included.
    pub fn attributes(self) -> &'static [AttributeSpec] {
        const fn attribute(name: &'static str, kind: AttributeKind) -> AttributeSpec {
            AttributeSpec { name, kind }
        }
        match self {
            Self::RecurrenceScan => &[],
            Self::DilatedAttention => {
                const ATTRIBUTES: &[AttributeSpec] = &[
                    attribute("num_heads", AttributeKind::Int),
                    attribute("dilation", AttributeKind::Ints),
                    attribute("local_window", AttributeKind::Ints),
                    attribute("initial", AttributeKind::Ints),
                    attribute("scale", AttributeKind::Float),
                ];
                ATTRIBUTES
            }
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Everything wrong with one node's attributes, types or shapes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{op}: {}", .errors.join("; "))]
pub struct SchemaErrors {
    /// The operator.
    pub op: Op,
    /// One line each: what, expected, found.
    pub errors: Vec<String>,
}

impl SchemaErrors {
    fn new(op: Op, errors: Vec<String>) -> Self {
        Self { op, errors }
    }
}

/// Why a slot's lengths cannot be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "slot {slot}: past_length {past_length} and seq_length {seq_length} do not fit: seq_length must be \
     0 to {seq_len}, and past_length 0 or more with their sum at most {max_seq_len}"
)]
pub struct LengthError {
    /// Index in the batch.
    pub slot: usize,
    /// What was given.
    pub past_length: i64,
    /// What was given.
    pub seq_length: i64,
    /// `L`, the chunk's static length.
    pub seq_len: usize,
    /// `M`; `i64::MAX` where there is no bound.
    pub max_seq_len: i64,
}

/// Checks the lengths of every slot. Every implementation on a host calls this before it touches
/// a buffer; idle slots (`seq_length` 0) are checked too.
///
/// # Errors
/// The first slot whose lengths are out of range.
pub fn check_lengths(
    past_length: &[i64],
    seq_length: &[i64],
    seq_len: usize,
    max_seq_len: Option<usize>,
) -> Result<(), LengthError> {
    let max = max_seq_len.map_or(i64::MAX, |max| i64::try_from(max).unwrap_or(i64::MAX));
    for (slot, (&past, &seq)) in past_length.iter().zip(seq_length).enumerate() {
        let fits = past >= 0
            && (0..=seq_len as i64).contains(&seq)
            && past.checked_add(seq).is_some_and(|end| end <= max);
        if !fits {
            return Err(LengthError {
                slot,
                past_length: past,
                seq_length: seq,
                seq_len,
                max_seq_len: max,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pattern::Pattern;

    fn attributes() -> AttentionAttributes {
        let patterns = vec![Pattern::DENSE, Pattern::new(4, 2, 1).unwrap()];
        AttentionAttributes {
            patterns,
            scale: 0.5,
        }
    }

    /// B 2, L 3, 2 heads of 8, M 20: 20 + (1 + 2 + 5) rows.
    fn inputs() -> Vec<TensorType> {
        use ElementType::{BF16, F32, I64};
        let chunk = TensorType::new(BF16, [2, 3, 16]);
        let cache = TensorType::new(BF16, [2, 28, 8]);
        let length = TensorType::new(I64, [2]);
        let table = TensorType::new(F32, [20, 4]);
        vec![
            chunk.clone(),
            chunk.clone(),
            chunk,
            cache.clone(),
            cache,
            length.clone(),
            length,
            table.clone(),
            table,
        ]
    }

    #[test]
    fn attention_infers_its_outputs() {
        let outputs = infer_dilated_attention(&attributes(), &inputs()).unwrap();
        assert_eq!(outputs[0], TensorType::new(ElementType::BF16, [2, 3, 16]));
        assert_eq!(outputs[2], TensorType::new(ElementType::BF16, [2, 28, 8]));
    }

    #[test]
    fn the_cache_has_a_type_of_its_own() {
        for t in ElementType::ACTIVATIONS {
            for c in ElementType::ACTIVATIONS {
                let mut inputs = inputs();
                (0..3).for_each(|port| inputs[port].dtype = t);
                (3..5).for_each(|port| inputs[port].dtype = c);
                let outputs = infer_dilated_attention(&attributes(), &inputs).unwrap();
                let found: Vec<_> = outputs.iter().map(|output| output.dtype).collect();
                assert_eq!(found, [t, c, c]);
                assert_eq!(check_gpu_cache(t, c).is_ok(), t == c);
            }
        }
        let mut mixed = inputs();
        mixed[3].dtype = ElementType::F16;
        mixed[8].dtype = ElementType::F16;
        let error = infer_dilated_attention(&attributes(), &mixed).unwrap_err();
        assert_eq!(
            error.errors,
            [
                "past_value: expected f16, found bf16",
                "sin: expected f32, found f16"
            ]
        );
        mixed[3].dtype = ElementType::I64;
        let error = infer_dilated_attention(&attributes(), &mixed).unwrap_err();
        assert_eq!(error.errors[0], "past_key: expected f32, found i64");
    }

    #[test]
    fn attention_lists_every_mismatch() {
        let mut inputs = inputs();
        inputs[1].dtype = ElementType::F32;
        inputs[3].shape[1] = 27;
        inputs[4].shape[1] = 27;
        inputs[6].shape[0] = 5;
        let error = infer_dilated_attention(&attributes(), &inputs)
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "DilatedAttention: key: expected bf16, found f32; seq_length: expected B = 2 as on \
             earlier inputs, found 5; R: the patterns keep 28 rows for sequences of 20, found 27"
        );
    }

    #[test]
    fn attributes_survive_a_round_trip() {
        assert_eq!(
            AttentionAttributes::try_from(attributes().to_raw()).unwrap(),
            attributes()
        );
        let uniform = AttentionAttributes {
            patterns: vec![Pattern::DENSE; 3],
            scale: 1.0,
        };
        assert_eq!(uniform.to_raw().dilation, [1]);
        let mut raw = attributes().to_raw();
        raw.dilation = vec![1, 2, 3];
        assert!(
            AttentionAttributes::try_from(raw)
                .unwrap_err()
                .to_string()
                .contains("dilation")
        );
    }

    #[test]
    fn scan_infers_its_outputs() {
        let chunk = TensorType::new(ElementType::F16, [2, 3, 16]);
        let state = TensorType::new(ElementType::F32, [2, 16]);
        let length = TensorType::new(ElementType::I64, [2]);
        let inputs = [
            chunk.clone(),
            chunk.clone(),
            chunk.clone(),
            state.clone(),
            state.clone(),
            length.clone(),
            length,
        ];
        let outputs = infer_recurrence_scan(&inputs).unwrap();
        assert_eq!(outputs, [chunk.clone(), chunk, state.clone(), state]);
    }

    #[test]
    fn lengths_are_bounded() {
        assert!(check_lengths(&[0, 7], &[0, 3], 3, Some(10)).is_ok());
        for (past, seq) in [
            (-1, 1),
            (0, 4),
            (8, 3),
            (i64::MAX, 1),
            (0, -1),
            (i64::MIN, 0),
            (11, 0),
        ] {
            assert!(
                check_lengths(&[0, past], &[1, seq], 3, Some(10)).is_err(),
                "{past} {seq}"
            );
        }
        assert!(check_lengths(&[i64::MAX], &[1], 3, None).is_err());
    }
}
