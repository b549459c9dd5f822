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
    /// Types of the outputs.
    pub outputs: Vec<TensorType>,
}

/// Types of the outputs of an operator, with all that its inputs say on the way; an attribute may tell
/// `max_seq_len`, and `check` adds what `dims` contradict beside the ports.
///
/// # Errors
/// The inputs' number, types or shapes contradict the schema or one another: all of it.
pub(super) fn infer(
    op: Op,
    inputs: &[TensorType],
    max_seq_len: Option<usize>,
    check: impl FnOnce(&Dims, &mut Vec<String>),
) -> Result<Inferred, SchemaErrors> {
    let mut bound = Bound::match_inputs(op, inputs);
    if max_seq_len.is_some() {
        bound.dims.0[Axis::MaxSeqLen as usize] = max_seq_len;
    }
    check(&bound.dims, &mut bound.errors);
    bound.finish()
}

/// Input types matched against an operator's ports.
struct Bound {
    op: Op,
    t: Option<ElementType>,
    c: Option<ElementType>,
    dims: Dims,
    errors: Vec<String>,
}

impl Bound {
    fn match_inputs(op: Op, inputs: &[TensorType]) -> Self {
        let mut bound = Self {
            op,
            t: None,
            c: None,
            dims: Dims::default(),
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
            let known = *self.dims.0[axis as usize].get_or_insert(size);
            if known != size {
                self.errors.push(format!(
                    "{}: expected {} = {known} as on earlier inputs, found {size}",
                    port.name,
                    axis.name()
                ));
            }
        }
    }

    fn finish(mut self) -> Result<Inferred, SchemaErrors> {
        for axis in [Axis::Batch, Axis::SeqLen, Axis::Channels] {
            if self.dims.get(axis) == Some(0) {
                self.errors
                    .push(format!("{}: expected 1 or more, found 0", axis.name()));
            }
        }
        if !self.errors.is_empty() {
            return Err(SchemaErrors::new(self.op, self.errors));
        }
        let element = self.t.unwrap_or(ElementType::F32);
        let cache = self.c.unwrap_or(element);
        let outputs = self.op.outputs().iter().map(|port| {
            let shape: Vec<_> = port.axes.iter().map(|&axis| self.dims[axis]).collect();
            TensorType::new(port.dtype.resolve(element, cache), shape)
        });
        Ok(Inferred {
            outputs: outputs.collect(),
            dims: self.dims,
            element,
            cache,
        })
    }
}
