//! The custom operators, and the rounding that stands for casts to f16 and bf16.

use crate::vectors::release_upper_parts;
use half::{bf16, f16};
use ratplus_graphs::model::{CACHE_TYPE, ELEMENT_TYPE, ROUND_TO};
use ratplus_graphs::ops::{
    AttributeKind, AttributeReader, AttributeSpec, AttributeValue, ElementType, Op as Schema,
    Operator, TensorType,
};
use ratplus_reference::full::sigmoid;
use ratplus_reference::{Input, Round, Rounding, Values, exact, run_operator};
use tract_onnx::Onnx;
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::tract_core::ops::element_wise::ElementWiseMiniOp;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_hir::ops::expandable::expand;

/// Adds the operators to `onnx`, and a `Sigmoid` that is exact. tract ignores domains: the names alone decide. `T` and `C`
/// are f32 there; [`crate::TractEngine`] rounds for packages of other types.
pub fn register(onnx: &mut Onnx) {
    let register = &mut onnx.op_register;
    for op in Schema::ALL {
        register.insert(op.name(), build);
    }
    register.insert(ROUND_TO, round_node);
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

fn build(_: &ParsingContext, node: &NodeProto) -> Built {
    let schema = Schema::named(&node.op_type)
        .with_context(|| format!("node `{}`: unknown `{}`", node.name, node.op_type))?;
    let operator = schema
        .read(&mut NodeAttributes(node))
        .with_context(|| format!("node `{}`", node.name))?;
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
        operator,
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

/// A node as tract parses it.
struct NodeAttributes<'a>(&'a NodeProto);

impl AttributeReader for NodeAttributes<'_> {
    fn read(&mut self, attribute: &AttributeSpec) -> Result<Option<AttributeValue>, String> {
        let mut attributes = self.0.attribute.iter();
        let found = attributes.find(|found| found.name == attribute.name);
        let Some(found) = found else {
            return Ok(None);
        };
        let value = match (attribute.kind, found.r#type()) {
            (AttributeKind::Int, AttributeType::Int) => Ok(AttributeValue::Int(found.i)),
            (AttributeKind::Ints, AttributeType::Ints) => {
                Ok(AttributeValue::Ints(found.ints.clone()))
            }
            // A single integer stands for a list of one.
            (AttributeKind::Ints, AttributeType::Int) => Ok(AttributeValue::Ints(vec![found.i])),
            (AttributeKind::Float, AttributeType::Float) => Ok(AttributeValue::Float(found.f)),
            (AttributeKind::String, AttributeType::String) => Ok(AttributeValue::String(
                String::from_utf8_lossy(&found.s).into_owned(),
            )),
            (_, other) => Err(other.as_str_name().to_lowercase()),
        };
        value.map(Some)
    }
}

fn rounding(dtype: ElementType) -> Round {
    match dtype {
        ElementType::F16 => |value| f16::from_f32(value).to_f32(),
        ElementType::BF16 => |value| bf16::from_f32(value).to_f32(),
        _ => exact,
    }
}

/// Rounds f32 to the nearest value of `dtype`, ties to even.
#[derive(Clone, Debug, PartialEq, Eq)]
struct RoundTo {
    dtype: ElementType,
}

impl ElementWiseMiniOp for RoundTo {
    fn name(&self) -> String {
        format!("{ROUND_TO}.{}", self.dtype)
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

/// One of the operators.
#[derive(Clone, Debug, PartialEq)]
struct Custom {
    operator: Operator,
    dtype: ElementType,
    cache_dtype: ElementType,
}

// Attributes that are floats are finite.
impl Eq for Custom {}

impl Expansion for Custom {
    fn name(&self) -> StaticName {
        self.operator.op().name().into()
    }

    fn nboutputs(&self) -> TractResult<usize> {
        Ok(self.operator.op().outputs().len())
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        let schema = self.operator.op().schema();
        if !(schema.least_inputs()..=schema.inputs.len()).contains(&inputs.len()) {
            bail!("{}: found {} inputs", schema.name, inputs.len());
        }
        check_output_arity(outputs, schema.outputs.len())?;
        for (output, port) in outputs.iter().zip(schema.outputs) {
            // Everything else is carried in f32.
            solver.equals(&output.datum_type, DatumType::F32)?;
            solver.equals(&output.rank, port.axes.len() as i64)?;
            for (place, &axis) in port.axes.iter().enumerate() {
                if let Some((input, from)) = schema.source(axis) {
                    // What contradicts the schema is told later, with names.
                    solver.given(&inputs[input].shape, move |solver, shape| {
                        let size = shape.get(from).cloned().unwrap_or_default();
                        solver.equals(&output.shape[place], size)
                    })?;
                }
            }
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
        self.operator.op().name().into()
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
        let node = self.operator.infer(&types)?;
        Ok(node
            .outputs
            .iter()
            .map(|output| f32::fact(&output.shape))
            .collect())
    }
}

fn tensor_type(datum_type: DatumType, shape: &[usize]) -> TractResult<TensorType> {
    let dtype = match datum_type {
        DatumType::F32 => ElementType::F32,
        DatumType::I64 => ElementType::I64,
        DatumType::U8 => ElementType::U8,
        other => bail!("expected f32, i64 or u8, found {other:?}"),
    };
    Ok(TensorType::new(dtype, shape))
}

impl EvalOp for Custom {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        release_upper_parts();
        let plain = inputs
            .iter()
            .map(|input| input.try_as_plain_ram())
            .collect::<TractResult<Vec<_>>>()?;
        let typed = inputs.iter().zip(&plain).map(|(input, plain)| {
            let tensor = tensor_type(input.datum_type(), input.shape())?;
            let values = match tensor.dtype {
                ElementType::I64 => Values::I64(plain.as_slice()?),
                ElementType::U8 => Values::U8(plain.as_slice()?),
                _ => Values::F32(plain.as_slice()?),
            };
            Ok(Input { tensor, values })
        });
        let rounding = Rounding {
            activations: rounding(self.dtype),
            cache: rounding(self.cache_dtype),
        };
        let (types, outputs) = run_operator(
            &self.operator,
            &typed.collect::<TractResult<Vec<_>>>()?,
            rounding,
        )?;
        let tensors = types.iter().zip(&outputs);
        tensors
            .map(|(output, values)| Ok(Tensor::from_shape(&output.shape, values)?.into_tvalue()))
            .collect()
    }
}
