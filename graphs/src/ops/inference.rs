//! Inference: what a node's inputs say about its sizes, types and outputs.

use super::{Axis, Op, Port, PortType, SchemaErrors};
use crate::tensor::{ElementType, TensorType};
use std::ops::Index;

/// Sizes of an operator's dimensions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dims([Option<usize>; Axis::COUNT]);

impl Dims {
    /// The size of `axis`; `None` where the operator has no such dimension.
    pub fn get(&self, axis: Axis) -> Option<usize> {
        self.0[axis as usize]
    }

    /// With `size` for `axis`.
    pub(super) fn with(mut self, axis: Axis, size: impl Into<Option<usize>>) -> Self {
        self.0[axis as usize] = size.into();
        self
    }
}

impl Index<Axis> for Dims {
    type Output = usize;

    /// # Panics
    /// The operator has no such dimension: it is in no port of its schema.
    fn index(&self, axis: Axis) -> &usize {
        match &self.0[axis as usize] {
            Some(size) => size,
            None => panic!("no port has the dimension {}", axis.name()),
        }
    }
}

/// What the types of its inputs decide for a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inferred {
    /// Sizes by name.
    pub dims: Dims,
    /// `T`.
    pub element: ElementType,
    /// `C`; `T` where the operator has no cache.
    pub cache: ElementType,
    /// Which inputs the node has.
    pub has: Vec<bool>,
    /// Types of the outputs.
    pub outputs: Vec<TensorType>,
}

/// What an operator's attributes say of its inputs.
#[derive(Clone, Copy, Debug)]
pub struct Given {
    /// Sizes.
    pub dims: Dims,
    /// `W`.
    pub weight: ElementType,
}

impl Default for Given {
    fn default() -> Self {
        Self {
            dims: Dims::default(),
            weight: ElementType::F32,
        }
    }
}

/// Types of the outputs of an operator, with all that its inputs say on the way beside what is
/// `given`; `check` adds what they contradict beside the ports.
///
/// # Errors
/// The inputs' number, types or shapes contradict the schema or one another: all of it.
pub(super) fn infer(
    op: Op,
    inputs: &[TensorType],
    given: Given,
    check: impl FnOnce(&Inferred, &mut Vec<String>),
) -> Result<Inferred, SchemaErrors> {
    let mut bound = Bound::match_inputs(op, inputs, given);
    let element = bound.t.unwrap_or(ElementType::F32);
    let mut node = Inferred {
        dims: bound.dims,
        element,
        cache: bound.c.unwrap_or(element),
        has: bound.has,
        outputs: Vec::new(),
    };
    check(&node, &mut bound.errors);
    bound.errors.extend(empty(&node.dims));
    if !bound.errors.is_empty() {
        return Err(SchemaErrors::new(op, bound.errors));
    }
    let outputs = op.outputs().iter().map(|port| {
        let shape: Vec<_> = port.axes.iter().map(|&axis| node.dims[axis]).collect();
        let dtype = port.dtype.resolve(element, node.cache);
        TensorType::new(dtype.unwrap_or(given.weight), shape)
    });
    node.outputs = outputs.collect();
    Ok(node)
}

/// Input types matched against an operator's ports.
struct Bound {
    t: Option<ElementType>,
    c: Option<ElementType>,
    given: Given,
    dims: Dims,
    has: Vec<bool>,
    errors: Vec<String>,
}

impl Bound {
    fn match_inputs(op: Op, inputs: &[TensorType], given: Given) -> Self {
        let ports = op.inputs();
        let none = TensorType::none(ElementType::U8);
        let padded = inputs.iter().chain(std::iter::repeat(&none));
        let found: Vec<_> = ports.iter().zip(padded).collect();
        let has = |(port, input): &(&Port, &TensorType)| !port.optional || input.elements() > 0;
        let mut bound = Self {
            t: None,
            c: None,
            given,
            dims: given.dims,
            has: found.iter().map(has).collect(),
            errors: Vec::new(),
        };
        let (least, most) = (op.schema().least_inputs(), ports.len());
        if !(least..=most).contains(&inputs.len()) {
            let expected = match least == most {
                true => most.to_string(),
                false => format!("{least} to {most}"),
            };
            let found = inputs.len();
            bound
                .errors
                .push(format!("expected {expected} inputs, found {found}"));
            return bound;
        }
        for (at, (port, input)) in found.into_iter().enumerate() {
            if bound.has[at] {
                bound.match_port(port, input);
            }
        }
        bound
    }

    fn match_port(&mut self, port: &Port, input: &TensorType) {
        let variable = match port.dtype {
            PortType::T => Some(&mut self.t),
            PortType::C => Some(&mut self.c),
            PortType::W | PortType::F32 | PortType::I64 | PortType::U8 => None,
        };
        let expected = match variable {
            Some(known) if ElementType::ACTIVATIONS.contains(&input.dtype) => {
                *known.get_or_insert(input.dtype)
            }
            Some(known) => known.unwrap_or(ElementType::F32),
            None => {
                let dtype = port.dtype.resolve(ElementType::F32, ElementType::F32);
                dtype.unwrap_or(self.given.weight)
            }
        };
        if input.dtype != expected {
            self.errors.push(format!(
                "{}: expected {expected}, found {}",
                port.name, input.dtype
            ));
        }
        let mut shape = input.shape.clone();
        if port.dtype == PortType::W && shape.len() > port.axes.len() {
            // Blocks of a row.
            let row: usize = shape.drain(port.axes.len() - 1..).product();
            shape.push(row);
        }
        if shape.len() != port.axes.len() {
            let axes: Vec<_> = port.axes.iter().map(|axis| axis.name()).collect();
            self.errors.push(format!(
                "{}: expected [{}], found {:?}",
                port.name,
                axes.join(", "),
                input.shape
            ));
            return;
        }
        for (&axis, &size) in port.axes.iter().zip(&shape) {
            let known = *self.dims.0[axis as usize].get_or_insert(size);
            if known != size {
                let whence = match self.given.dims.get(axis) {
                    Some(_) => "as attributes say",
                    None => "as on earlier inputs",
                };
                self.errors.push(format!(
                    "{}: expected {} = {known} {whence}, found {size}",
                    port.name,
                    axis.name()
                ));
            }
        }
    }
}

/// Dimensions that must not be 0.
fn empty(dims: &Dims) -> impl Iterator<Item = String> {
    let axes = [Axis::Batch, Axis::SeqLen, Axis::Channels, Axis::KvChannels].into_iter();
    let empty = axes.filter(|&axis| dims.get(axis) == Some(0));
    empty.map(|axis| format!("{}: expected 1 or more, found 0", axis.name()))
}
