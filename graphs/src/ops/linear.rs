//! `Linear`: rows times the transpose of a matrix that is read where it is stored.
//!
//! `y = x W^T` with `W` row-major `[N, K]`, in a float type or as block-wise integers, sums in f32.
//! A row's bits depend on that row and the matrix alone. For CPUs: other targets have products of
//! their own.
//!
//! What surrounds a product may be part of it, with the roundings to `T` that the separate steps have.
//! Before it: `x` is divided by its root mean square and multiplied by `norm`, or multiplied by
//! `sigmoid(gate)`. After it: `residual` is added, or an activation function applied.

use super::body::{BodyShape, Call, F32};
use super::{Attributes, Axis, Definition, Dims, Given, Inferred, Op, Ports, Schema};
use crate::none_wrong;
use crate::onnx::{AttributeProto, AttributeType, NodeWriter};
use crate::precision::{
    Activations, BLOCK_SIZES, IntegerLayout, MATMUL_NBITS, MICROSOFT_DOMAIN, Quantization, Stored,
};
use crate::spec::Activation;
use crate::tensor::ElementType;

super::schema::ports! {
    /// Inputs of [`Linear`].
    Inputs {
        /// `[B, L, K]` of `T`.
        input: T [Batch, SeqLen, InFeatures],
        /// `[N, K]` of its own type; of block-wise integers `[N, blocks, bytes of a block]` u8, as
        /// [`Quantization`] lays them out.
        weight: W [OutFeatures, Stored],
        /// `[B]` i64: valid tokens of this chunk.
        seq_length: I64 [Batch],
        /// `[N * blocks]` f32, of integers.
        scales: F32 [Scales] or none,
        /// u8, of integers; without them the middle of the range is 0.
        zero_points: U8 [ZeroPoints] or none,
        /// `[K]` of `T`.
        norm: T [InFeatures] or none,
        /// `[B, L, K]` of `T`, logits.
        gate: T [Batch, SeqLen, InFeatures] or none,
        /// `[B, L, N]` of `T`.
        residual: T [Batch, SeqLen, OutFeatures] or none,
    }
}

super::schema::ports! {
    /// Outputs of [`Linear`].
    Outputs {
        /// `[B, L, N]` of `T`: the result; rows at or past `seq_length` are not computed: zero, or NaN where
        /// `seq_length` is not 0 to `L` or the input's row is NaN, which says that the slot's lengths do
        /// not fit.
        output: T [Batch, SeqLen, OutFeatures],
    }
}

super::attributes::attributes! {
    /// As nodes have them.
    RawAttributes {
        /// `K`.
        in_features: i64,
        /// `N`.
        out_features: i64,
        /// `f32`, `f16`, `bf16`, `int8` or `int4`.
        weight_type: String,
        /// Weights that share a scale, of integers.
        block_size: Option<i64>,
        /// `float`, or `int8` of rows that are rounded to it beside integers.
        activations: Option<String>,
        /// Name of the activation function.
        activation: Option<String>,
        /// What is added to the mean square, with `norm`.
        epsilon: Option<f32>,
    }
}

/// No product of two sizes overflows.
const MOST_FEATURES: usize = 1 << 28;

/// How a matrix is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightType {
    /// In a float type.
    Float(ElementType),
    /// As block-wise integers.
    Blocks {
        /// 4 or 8.
        bits: u32,
        /// Weights that share a scale.
        block_size: usize,
    },
}

impl From<Stored> for WeightType {
    fn from(stored: Stored) -> Self {
        match stored {
            Stored::As(dtype) => Self::Float(dtype),
            Stored::Blocks(Quantization {
                bits, block_size, ..
            }) => Self::Blocks { bits, block_size },
        }
    }
}

/// The operator; see the [module](self).
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    /// `K`.
    pub in_features: usize,
    /// `N`.
    pub out_features: usize,
    /// How the matrix is stored.
    pub weight: WeightType,
    /// What rows are rounded to beside integers.
    pub activations: Activations,
    /// What is applied to the product.
    pub activation: Option<Activation>,
    /// What is added to the mean square, with `norm`.
    pub epsilon: Option<f32>,
}

impl Linear {
    /// Blocks of a row; one where the matrix is no integers.
    pub fn blocks(&self) -> usize {
        match self.weight {
            WeightType::Float(_) => 1,
            WeightType::Blocks { block_size, .. } => self.in_features.div_ceil(block_size),
        }
    }

    /// Weights that share a scale; one where the matrix is no integers.
    pub fn block_size(&self) -> usize {
        match self.weight {
            WeightType::Float(_) => 1,
            WeightType::Blocks { block_size, .. } => block_size,
        }
    }

    /// Sizes of the inputs that hold the matrix.
    fn stored(&self, dims: Dims) -> Dims {
        let (rows, blocks) = (self.out_features, self.blocks());
        match self.weight {
            WeightType::Float(_) => dims.with(Axis::Stored, self.in_features),
            WeightType::Blocks { bits, block_size } => {
                let row_of = |elements: usize| (elements * bits as usize).div_ceil(8);
                dims.with(Axis::Stored, blocks * row_of(block_size))
                    .with(Axis::Scales, rows * blocks)
                    .with(Axis::ZeroPoints, rows * row_of(blocks))
            }
        }
    }

    /// Place of an optional input, by its name.
    fn has(node: &Inferred, name: &str) -> bool {
        let place = Self::SCHEMA.input(name);
        place.and_then(|place| node.has.get(place).copied()) == Some(true)
    }
}

impl Definition for Linear {
    const OP: Op = Op::Linear;
    const SCHEMA: Schema = Schema {
        name: "Linear",
        inputs: Inputs::<()>::PORTS,
        outputs: Outputs::<()>::PORTS,
        aliases: &[],
        attributes: RawAttributes::SPECS,
    };
    type Inputs<P> = Inputs<P>;
    type Outputs<P> = Outputs<P>;
    type Attributes = RawAttributes;

    fn new(raw: RawAttributes) -> Result<Self, Vec<String>> {
        let mut errors = Vec::new();
        let mut size = |name: &str, found: i64| match usize::try_from(found) {
            Ok(size) if (1..=MOST_FEATURES).contains(&size) => size,
            _ => {
                errors.push(format!(
                    "attribute {name}: expected 1 to {MOST_FEATURES}, found {found}"
                ));
                1
            }
        };
        let (in_features, out_features) = (
            size("in_features", raw.in_features),
            size("out_features", raw.out_features),
        );
        let floats = ElementType::ACTIVATIONS.into_iter();
        let float = { floats }.find(|dtype| dtype.to_string() == raw.weight_type);
        let blocks = |bits| {
            let given = raw.block_size.and_then(|size| usize::try_from(size).ok());
            let block_size = given.filter(|size| BLOCK_SIZES.contains(size));
            block_size.map(|block_size| WeightType::Blocks { bits, block_size })
        };
        let wrong_blocks = |wanted: &str| {
            let found = raw
                .block_size
                .map_or("none".into(), |size| size.to_string());
            format!("attribute block_size: expected {wanted}, found {found}")
        };
        let sizes = format!("one of {BLOCK_SIZES:?}");
        let weight = match (float, raw.weight_type.as_str(), raw.block_size) {
            (Some(dtype), _, None) => Ok(WeightType::Float(dtype)),
            (Some(_), ..) => Err(wrong_blocks("none beside floats")),
            (_, "int4", _) => blocks(4).ok_or_else(|| wrong_blocks(&sizes)),
            (_, "int8", _) => blocks(8).ok_or_else(|| wrong_blocks(&sizes)),
            (_, found, _) => Err(format!(
                "attribute weight_type: expected f32, f16, bf16, int8 or int4, found {found:?}"
            )),
        };
        let activation = raw.activation.map(|found| {
            let mut known = Activation::ALL.into_iter();
            let named = known.find(|activation| activation.to_string() == found);
            let known = Activation::ALL.map(|activation| activation.to_string());
            named.ok_or_else(|| {
                let known = known.join(", ");
                format!("attribute activation: expected one of {known}, found {found:?}")
            })
        });
        let activation = activation.transpose();
        let found = raw.activations.unwrap_or_else(|| "float".into());
        let mut known = Activations::ALL.into_iter();
        let activations = known.find(|activations| activations.to_string() == found);
        match (activations, &weight) {
            (None, _) => errors.push(format!(
                "attribute activations: expected float or int8, found {found:?}"
            )),
            (Some(Activations::Int8), Ok(WeightType::Float(dtype))) => errors.push(format!(
                "attribute activations: expected float beside a matrix of {dtype}, found {found:?}"
            )),
            _ => {}
        }
        if let Some(found) = raw.epsilon.filter(|epsilon| !(0.0..1.0).contains(epsilon)) {
            errors.push(format!("attribute epsilon: expected 0 to 1, found {found}"));
        }
        errors.extend(weight.as_ref().err().cloned());
        errors.extend(activation.as_ref().err().cloned());
        none_wrong(errors)?;
        Ok(Self {
            in_features,
            out_features,
            weight: weight.unwrap_or(WeightType::Float(F32)),
            activations: activations.unwrap_or_default(),
            activation: activation.unwrap_or_default(),
            epsilon: raw.epsilon,
        })
    }

    fn attributes(&self) -> RawAttributes {
        let (weight_type, block_size) = match self.weight {
            WeightType::Float(dtype) => (dtype.to_string(), None),
            WeightType::Blocks { bits, block_size } => {
                (format!("int{bits}"), Some(block_size as i64))
            }
        };
        RawAttributes {
            in_features: self.in_features as i64,
            out_features: self.out_features as i64,
            weight_type,
            block_size,
            activations: (self.activations != Activations::Float)
                .then(|| self.activations.to_string()),
            activation: self.activation.map(|activation| activation.to_string()),
            epsilon: self.epsilon,
        }
    }

    fn given(&self) -> Given {
        let dims = Dims::default()
            .with(Axis::InFeatures, self.in_features)
            .with(Axis::OutFeatures, self.out_features);
        Given {
            dims: self.stored(dims),
            weight: match self.weight {
                WeightType::Float(dtype) => dtype,
                WeightType::Blocks { .. } => ElementType::U8,
            },
        }
    }

    fn check(&self, node: &Inferred, errors: &mut Vec<String>) {
        let has = |name: &str| Self::has(node, name);
        let mut expect = |name: &str, wanted: bool, why: &str| {
            if has(name) != wanted {
                let (expected, found) = if wanted {
                    ("a tensor", "none")
                } else {
                    ("none", "a tensor")
                };
                errors.push(format!("{name}: expected {expected} {why}, found {found}"));
            }
        };
        match self.weight {
            WeightType::Float(dtype) => {
                let why = format!("beside a matrix of {dtype}");
                expect("scales", false, &why);
                expect("zero_points", false, &why);
            }
            WeightType::Blocks { .. } => expect("scales", true, "beside integers"),
        }
        let why = match self.epsilon {
            Some(_) => "with the attribute epsilon",
            None => "without the attribute epsilon",
        };
        expect("norm", self.epsilon.is_some(), why);
        if has("norm") && has("gate") {
            errors.push("gate: expected none beside norm, found a tensor".into());
        }
        if has("residual") && self.activation.is_some() {
            errors.push("residual: expected none beside an activation, found a tensor".into());
        }
    }

    fn in_function(name: &str, shape: &BodyShape) -> bool {
        match (name, shape.quantization) {
            ("scales" | "block_size", quantization) => quantization.is_some(),
            ("activations", quantization) => {
                quantization.is_some_and(|of| of.activations != Activations::Float)
            }
            ("zero_points", quantization) => quantization.is_some_and(|of| !of.symmetric),
            ("norm" | "gate" | "residual" | "activation" | "epsilon", _) => false,
            _ => true,
        }
    }

    /// Only the plain product has one.
    fn body(call: Call<'_, '_, Self>) {
        let Call {
            w,
            shape,
            inputs,
            outputs,
            operator,
        } = call;
        let quantization = match operator.map(|operator| operator.weight) {
            Some(WeightType::Float(_)) => None,
            Some(WeightType::Blocks { bits, block_size }) => Some(Quantization {
                bits,
                block_size,
                symmetric: inputs.zero_points.is_empty(),
                layout: IntegerLayout::Product,
                activations: operator.map_or_else(Default::default, |of| of.activations),
            }),
            None => shape.quantization,
        };
        let rows = w.convert(inputs.input, shape.dtype, F32);
        let rows = match quantization {
            Some(of) if of.activations == Activations::Int8 => {
                rounded_to_bytes(w, &rows, of.block_size, None)
            }
            _ => rows,
        };
        let product = match quantization {
            Some(quantization) if quantization.bits == 4 => {
                let mut operands = vec![&*rows, inputs.weight, inputs.scales];
                operands.extend(Some(inputs.zero_points).filter(|name| !name.is_empty()));
                let mut attributes = match operator {
                    Some(operator) => vec![
                        AttributeProto::int("K", operator.in_features as i64),
                        AttributeProto::int("N", operator.out_features as i64),
                    ],
                    None => vec![
                        AttributeProto::reference("K", "in_features", AttributeType::Int),
                        AttributeProto::reference("N", "out_features", AttributeType::Int),
                    ],
                };
                attributes.extend(quantization.node_attributes());
                let output = w.fresh("product");
                let op = (MICROSOFT_DOMAIN, MATMUL_NBITS);
                w.push(op.0, op.1, &operands, &[&output], attributes);
                output
            }
            _ => {
                let matrix = match quantization {
                    Some(quantization) => {
                        let constants = [inputs.weight, inputs.scales, inputs.zero_points];
                        dequantized(w, quantization, inputs.input, constants)
                    }
                    None => w.convert(inputs.weight, shape.dtype, F32),
                };
                // Tools infer the shape of what is reshaped to constants.
                let flat = vec![AttributeProto::int("axis", 2)];
                let rows = w.op("Flatten", &[&rows], flat);
                let transposed = vec![AttributeProto::int("transB", 1)];
                let product = w.op("Gemm", &[&rows, &matrix], transposed);
                let sizes = w.ints(&[shape.batch as i64, shape.seq_len as i64, -1]);
                w.call("Reshape", &[&product, &sizes])
            }
        };
        // Padding is computed with the rest; rows of a slot whose length is negative are NaN.
        let none = w.int(0);
        let fits = w.call("GreaterOrEqual", &[inputs.seq_length, &none]);
        let (zero, nan) = (w.float(0.0), w.float(f32::NAN));
        let added = w.call("Where", &[&fits, &zero, &nan]);
        let added = w.unsqueeze(&added, &[1, 2]);
        let product = w.call("Add", &[&product, &added]);
        match shape.dtype {
            F32 => w.rename(&product, outputs.output),
            dtype => w.cast_as(&product, dtype, outputs.output),
        }
    }
}

/// `[.., K]` f32 in blocks of 8 bits and a scale, as [`Activations::Int8`]; `width` is `K` where it is
/// known.
pub(crate) fn rounded_to_bytes(
    w: &mut NodeWriter,
    rows: &str,
    block_size: usize,
    width: Option<usize>,
) -> String {
    let shape = w.call("Shape", &[rows]);
    let size = w.ints(&[block_size as i64]);
    // Rows are padded to whole blocks where they may have others.
    let padded = match width {
        Some(width) if width.is_multiple_of(block_size) => rows.to_owned(),
        _ => {
            let last = w.ints(&[-1]);
            let columns = w.gather(&shape, &last, 0);
            // Of what is not negative: what else is left differs between runtimes.
            let over = w.call("Mod", &[&columns, &size]);
            let missing = w.call("Sub", &[&size, &over]);
            let missing = w.call("Mod", &[&missing, &size]);
            let zero = w.ints(&[0]);
            // Before each axis, then after each.
            let axes = w.call("Shape", &[&shape]);
            let one = w.ints(&[1]);
            let before = w.call("Add", &[&axes, &axes]);
            let before = w.call("Sub", &[&before, &one]);
            let before = w.call("Expand", &[&zero, &before]);
            let pads = w.concat(&[&before, &missing], 0);
            w.call("Pad", &[rows, &pads])
        }
    };
    let blocks = w.ints(&[-1, block_size as i64]);
    let blocks = w.call("Reshape", &[&padded, &blocks]);
    let magnitudes = w.call("Abs", &[&blocks]);
    let axes = w.ints(&[-1]);
    let largest = w.call("ReduceMax", &[&magnitudes, &axes]);
    let most = w.float(127.0);
    let scales = w.call("Div", &[&largest, &most]);
    let (zero, one) = (w.float(0.0), w.float(1.0));
    let none = w.call("Equal", &[&scales, &zero]);
    let by = w.call("Where", &[&none, &one, &scales]);
    let steps = w.call("Div", &[&blocks, &by]);
    let steps = w.call("Round", &[&steps]);
    let blocks = w.call("Mul", &[&steps, &scales]);
    let padded_shape = w.call("Shape", &[&padded]);
    let padded_rows = w.call("Reshape", &[&blocks, &padded_shape]);
    match padded == rows {
        true => padded_rows,
        false => {
            let last = w.ints(&[-1]);
            let columns = w.gather(&shape, &last, 0);
            let zero = w.ints(&[0]);
            w.call("Slice", &[&padded_rows, &zero, &columns, &last])
        }
    }
}

/// `[N, K]` f32: the matrix of bytes in `constants`, for rows of `input [.., K]`. Runtimes fold it where it
/// is a constant; ONNX Runtime's operator for integers widens a matrix of bytes at every run.
pub(crate) fn dequantized(
    w: &mut NodeWriter,
    quantization: Quantization,
    input: &str,
    [blocks, scales, zero_points]: [&str; 3],
) -> String {
    let sizes = w.call("Shape", &[blocks]);
    let sizes = w.slice(&sizes, 0, 0, 2);
    let one = w.ints(&[1]);
    let sizes = w.concat(&[&sizes, &one], 0);
    let zero = match zero_points {
        "" => w.float(quantization.middle() as f32),
        points => {
            let points = w.cast(points, F32);
            w.call("Reshape", &[&points, &sizes])
        }
    };
    let scales = w.call("Reshape", &[scales, &sizes]);
    let blocks = w.cast(blocks, F32);
    let blocks = w.call("Sub", &[&blocks, &zero]);
    let blocks = w.call("Mul", &[&blocks, &scales]);
    let flat = w.ints(&[0, -1]);
    let rows = w.call("Reshape", &[&blocks, &flat]);
    // Without what pads a row's last block.
    let columns = w.call("Shape", &[input]);
    let last = w.ints(&[-1]);
    let columns = w.call("Gather", &[&columns, &last]);
    let (zero, one) = (w.ints(&[0]), w.ints(&[1]));
    w.call("Slice", &[&rows, &zero, &columns, &one])
}
