//! The custom operators, and the rounding that stands for casts to f16 and bf16.

use crate::vectors::release_upper_parts;
use half::{bf16, f16};
use ratplus_graphs::ops::{
    AttentionAttributes, AttributeKind, ElementType, Op as Schema, RawAttentionAttributes,
    TensorType, infer_dilated_attention, infer_recurrence_scan,
};
use ratplus_reference::full::sigmoid;
use ratplus_reference::{
    AttentionInputs, AttentionOutputs, AttentionRounding, AttentionShape, Round, ScanInputs,
    ScanOutputs, ScanShape, dilated_attention, exact, recurrence_scan,
};
use tract_onnx::Onnx;
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_core::ops::element_wise::ElementWiseMiniOp;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_hir::ops::expandable::expand;

/// Attribute that [`crate::carried`] gives custom nodes: their `T`.
pub(crate) const ELEMENT_TYPE: &str = "element_type";
/// Attribute that [`crate::carried`] gives the attention: its `C`.
pub(crate) const CACHE_TYPE: &str = "cache_type";
/// `op_type` that [`crate::carried`] gives casts to f16 and bf16.
pub(crate) const ROUND: &str = "RoundTo";

/// Adds both operators to `onnx`, and a `Sigmoid` that is exact. tract ignores domains: the names alone decide. `T` and `C`
/// are f32 there; [`crate::TractEngine`] rounds for packages of other types.
pub fn register(onnx: &mut Onnx) {
    let register = &mut onnx.op_register;
    register.insert(Schema::RecurrenceScan.name(), |_, node| {
        build(node, Schema::RecurrenceScan)
    });
    register.insert(Schema::DilatedAttention.name(), |_, node| {
        build(node, Schema::DilatedAttention)
    });
    register.insert(ROUND, round_node);
    // tract's own is a rational function, off by 1e-6, that makes a number of NaN.
    register.insert("Sigmoid", |_, _| {
        Ok((expand(ElementWiseOp(Box::new(Sigmoid))), Vec::new()))
    });
}

type Built = TractResult<(Box<dyn InferenceOp>, Vec<String>)>;

fn round_node(_: &ParsingContext, node: &NodeProto) -> Built {
    let op = RoundTo {
        dtype: element_type(node, "to")?,
    };
    Ok((expand(ElementWiseOp(Box::new(op))), Vec::new()))
}

fn build(node: &NodeProto, schema: Schema) -> Built {
    let attributes = match schema {
        Schema::RecurrenceScan => None,
        Schema::DilatedAttention => {
            Some(attention_attributes(node).with_context(|| format!("node `{}`", node.name))?)
        }
    };
    for (kind, expected, found) in [
        ("inputs", schema.inputs().len(), node.input.len()),
        ("outputs", schema.outputs().len(), node.output.len()),
    ] {
        ensure!(
            expected == found,
            "node `{}`: {schema}: expected {expected} {kind}, found {found}",
            node.name
        );
    }
    let op = Custom {
        schema,
        attributes,
        dtype: element_type(node, ELEMENT_TYPE)?,
        cache_dtype: element_type(node, CACHE_TYPE)?,
    };
    Ok((expand(op), Vec::new()))
}

/// The type in attribute `name`; f32 where there is none.
fn element_type(node: &NodeProto, name: &str) -> TractResult<ElementType> {
    let Some(attribute) = node.attribute.iter().find(|found| found.name == name) else {
        return Ok(ElementType::F32);
    };
    i32::try_from(attribute.i)
        .ok()
        .and_then(ElementType::from_onnx)
        .filter(|dtype| ElementType::ACTIVATIONS.contains(dtype))
        .with_context(|| {
            format!(
                "node `{}`: attribute {name}: expected f32, f16 or bf16, found {}",
                node.name, attribute.i
            )
        })
}

fn attention_attributes(node: &NodeProto) -> TractResult<AttentionAttributes> {
    let mut raw = RawAttentionAttributes {
        num_heads: 0,
        dilation: Vec::new(),
        local_window: Vec::new(),
        initial: Vec::new(),
        scale: 0.0,
    };
    let mut missing = Vec::new();
    for spec in Schema::DilatedAttention.attributes() {
        let Some(found) = node.attribute.iter().find(|found| found.name == spec.name) else {
            missing.push(spec.name);
            continue;
        };
        // A single integer stands for a list of one.
        let list = match (spec.kind, found.ints.as_slice()) {
            (AttributeKind::Ints, []) if found.i != 0 => vec![found.i],
            (_, ints) => ints.to_vec(),
        };
        match spec.name {
            "num_heads" => raw.num_heads = found.i,
            "dilation" => raw.dilation = list,
            "local_window" => raw.local_window = list,
            "initial" => raw.initial = list,
            "scale" => raw.scale = found.f,
            other => bail!("attribute {other} is not implemented"),
        }
    }
    ensure!(
        missing.is_empty(),
        "missing attributes: {}",
        missing.join(", ")
    );
    Ok(AttentionAttributes::try_from(raw)?)
}

fn rounding(dtype: ElementType) -> Round {
    match dtype {
        ElementType::F16 => |value| f16::from_f32(value).to_f32(),
        ElementType::BF16 => |value| bf16::from_f32(value).to_f32(),
        ElementType::F32 | ElementType::I64 | ElementType::U8 => exact,
    }
}

/// Rounds f32 to the nearest value of `dtype`, ties to even.
#[derive(Clone, Debug, PartialEq, Eq)]
struct RoundTo {
    dtype: ElementType,
}

impl ElementWiseMiniOp for RoundTo {
    fn name(&self) -> String {
        format!("{ROUND}.{}", self.dtype)
    }

    fn eval_in_place(&self, tensor: &mut Tensor, _: Option<DatumType>) -> TractResult<()> {
        release_upper_parts();
        let round = rounding(self.dtype);
        let mut plain = tensor.try_as_plain_ram_mut()?;
        for value in plain.as_slice_mut::<f32>()? {
            *value = round(*value);
        }
        Ok(())
    }
}

/// `Sigmoid` of f32, rounded once.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sigmoid;

impl ElementWiseMiniOp for Sigmoid {
    fn name(&self) -> String {
        "Sigmoid.exact".into()
    }

    fn eval_in_place(&self, tensor: &mut Tensor, _: Option<DatumType>) -> TractResult<()> {
        release_upper_parts();
        let mut plain = tensor.try_as_plain_ram_mut()?;
        for value in plain.as_slice_mut::<f32>()? {
            *value = sigmoid(f64::from(*value)) as f32;
        }
        Ok(())
    }
}

/// One of the two operators; `attributes` belongs to the attention.
#[derive(Clone, Debug, PartialEq)]
struct Custom {
    schema: Schema,
    attributes: Option<AttentionAttributes>,
    dtype: ElementType,
    cache_dtype: ElementType,
}

// `scale` is finite.
impl Eq for Custom {}

impl Custom {
    fn infer(&self, inputs: &[TensorType]) -> TractResult<Vec<TensorType>> {
        Ok(match &self.attributes {
            None => infer_recurrence_scan(inputs)?,
            Some(attributes) => infer_dilated_attention(attributes, inputs)?,
        })
    }
}

/// Inputs that have the shape and type of each output.
fn model_inputs(schema: Schema) -> &'static [usize] {
    match schema {
        Schema::RecurrenceScan => &[0, 1, 3, 4],
        Schema::DilatedAttention => &[0, 3, 4],
    }
}

impl Expansion for Custom {
    fn name(&self) -> StaticName {
        self.schema.name().into()
    }

    fn nboutputs(&self) -> TractResult<usize> {
        Ok(self.schema.outputs().len())
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, self.schema.inputs().len())?;
        check_output_arity(outputs, self.schema.outputs().len())?;
        for (output, &input) in outputs.iter().zip(model_inputs(self.schema)) {
            solver.equals(&output.datum_type, &inputs[input].datum_type)?;
            solver.equals(&output.shape, &inputs[input].shape)?;
        }
        Ok(())
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        model.wire_node(prefix, self.clone(), inputs)
    }
}

impl Op for Custom {
    fn name(&self) -> StaticName {
        self.schema.name().into()
    }

    op_as_typed_op!();
}

impl TypedOp for Custom {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let types = inputs
            .iter()
            .map(|fact| {
                tensor_type(
                    fact.datum_type,
                    &fact.shape.eval_to_usize(&SymbolValues::default())?,
                )
            })
            .collect::<TractResult<Vec<_>>>()?;
        let outputs = self.infer(&types)?;
        Ok(outputs
            .iter()
            .map(|output| f32::fact(&output.shape))
            .collect())
    }
}

fn tensor_type(datum_type: DatumType, shape: &[usize]) -> TractResult<TensorType> {
    let dtype = match datum_type {
        DatumType::F32 => ElementType::F32,
        DatumType::I64 => ElementType::I64,
        other => bail!("expected f32 or i64, found {other:?}"),
    };
    Ok(TensorType::new(dtype, shape))
}

impl EvalOp for Custom {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        release_upper_parts();
        let types = inputs
            .iter()
            .map(|input| tensor_type(input.datum_type(), input.shape()))
            .collect::<TractResult<Vec<_>>>()?;
        let outputs = self.infer(&types)?;
        let mut buffers: Vec<_> = outputs.iter().map(|o| vec![0f32; o.elements()]).collect();
        let plain = inputs
            .iter()
            .map(|input| input.try_as_plain_ram())
            .collect::<TractResult<Vec<_>>>()?;
        let f32s = |index: usize| plain[index].as_slice::<f32>();
        let i64s = |index: usize| plain[index].as_slice::<i64>();
        let (batch, seq_len) = (types[0].shape[0], types[0].shape[1]);
        let round = rounding(self.dtype);
        match &self.attributes {
            None => {
                let [gated_key, gated_value, new_state_key, new_state_value] = &mut buffers[..]
                else {
                    bail!("RecurrenceScan has four outputs");
                };
                let shape = ScanShape {
                    batch,
                    seq_len,
                    channels: types[0].shape[2],
                };
                let inputs = ScanInputs {
                    key: f32s(0)?,
                    value: f32s(1)?,
                    gate: f32s(2)?,
                    state_key: f32s(3)?,
                    state_value: f32s(4)?,
                    past_length: i64s(5)?,
                    seq_length: i64s(6)?,
                };
                let mut outputs = ScanOutputs {
                    gated_key,
                    gated_value,
                    new_state_key,
                    new_state_value,
                };
                recurrence_scan(shape, &inputs, &mut outputs, round)?;
            }
            Some(attributes) => {
                let [output, present_key, present_value] = &mut buffers[..] else {
                    bail!("DilatedAttention has three outputs");
                };
                let shape = AttentionShape {
                    batch,
                    seq_len,
                    head_dim: types[3].shape[2],
                    max_seq_len: types[7].shape[0],
                };
                let inputs = AttentionInputs {
                    query: f32s(0)?,
                    key: f32s(1)?,
                    value: f32s(2)?,
                    past_key: f32s(3)?,
                    past_value: f32s(4)?,
                    past_length: i64s(5)?,
                    seq_length: i64s(6)?,
                    cos: f32s(7)?,
                    sin: f32s(8)?,
                };
                let mut outputs = AttentionOutputs {
                    output,
                    present_key,
                    present_value,
                };
                let rounding = AttentionRounding {
                    activations: round,
                    cache: rounding(self.cache_dtype),
                };
                dilated_attention(attributes, shape, &inputs, &mut outputs, rounding)?;
            }
        }
        buffers
            .into_iter()
            .zip(&outputs)
            .map(|(buffer, output)| Ok(Tensor::from_shape(&output.shape, &buffer)?.into_tvalue()))
            .collect()
    }
}
