//! What TensorRT is told about each operator, made of its schema.

use crate::abi::{FLOAT32, Field, INT32, MAX_RANK, Operator, Source};
use ratplus_graphs::ops::{AttributeKind, DOMAIN, Op, PLUGIN_VERSION};
use std::ffi::{CString, c_char};
use std::ptr::null;
use std::sync::LazyLock;

/// The operators in the order of [`Op::GPU`].
static OPERATORS: LazyLock<Vec<Operator>> =
    LazyLock::new(|| Op::GPU.into_iter().map(describe).collect());

/// The operator with this number.
pub fn operator(index: i32) -> Option<&'static Operator> {
    OPERATORS.get(usize::try_from(index).ok()?)
}

/// Text that is never freed.
fn text(text: &str) -> *const c_char {
    CString::new(text).map_or(null(), |text| text.into_raw().cast_const())
}

fn describe(op: Op) -> Operator {
    let fields = op.schema().attributes.iter().map(|attribute| Field {
        name: text(attribute.name),
        data: null(),
        kind: match attribute.kind {
            AttributeKind::Int | AttributeKind::Ints => INT32,
            AttributeKind::Float => FLOAT32,
            AttributeKind::String => crate::abi::CHAR,
        },
        // As many as the node has.
        length: i32::from(!matches!(
            attribute.kind,
            AttributeKind::Ints | AttributeKind::String
        )),
    });
    let fields: &'static [Field] = fields.collect::<Vec<_>>().leak();
    let aliased = (0..op.outputs().len()).map(|output| {
        let pair = op.schema().aliases.iter().find(|(_, o)| *o == output);
        pair.map_or(-1, |(input, _)| *input as i32)
    });
    let ranks = op.outputs().iter().map(|port| port.axes.len() as i32);
    let sources = op.outputs().iter().flat_map(|port| {
        let mut sources = [Source { input: 0, axis: 0 }; MAX_RANK];
        for (to, &axis) in sources.iter_mut().zip(port.axes) {
            let (input, place) = op.schema().source(axis).unwrap_or_default();
            *to = Source {
                input: input as i32,
                axis: place as i32,
            };
        }
        sources
    });
    Operator {
        name: text(op.name()),
        version: text(PLUGIN_VERSION),
        domain: text(DOMAIN),
        inputs: op.inputs().len() as i32,
        outputs: op.outputs().len() as i32,
        fields: fields.as_ptr(),
        field_count: fields.len() as i32,
        aliased: aliased.collect::<Vec<_>>().leak().as_ptr(),
        ranks: ranks.collect::<Vec<_>>().leak().as_ptr(),
        sources: sources.collect::<Vec<_>>().leak().as_ptr(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dimension_of_an_output_comes_from_an_input() {
        for (index, op) in Op::GPU.into_iter().enumerate() {
            let described = operator(index as i32).unwrap();
            let outputs = op.outputs();
            // SAFETY: the table has as many entries.
            let sources =
                unsafe { std::slice::from_raw_parts(described.sources, outputs.len() * MAX_RANK) };
            for (output, port) in outputs.iter().enumerate() {
                for (place, &axis) in port.axes.iter().enumerate() {
                    let Source { input, axis: from } = sources[output * MAX_RANK + place];
                    let found = op.inputs()[input as usize].axes[from as usize];
                    assert_eq!(found, axis, "{op} {}", port.name);
                }
                // Fewer than eight: the rest of the row is unused.
                assert!(port.axes.len() <= MAX_RANK);
            }
        }
        assert!(operator(Op::GPU.len() as i32).is_none() && operator(-1).is_none());
    }

    #[test]
    fn tables_fit_the_classes() {
        // kMaxOperators and kMaxTensors of cpp/abi.h.
        assert!(Op::GPU.len() <= 8);
        for op in Op::GPU {
            assert!(op.inputs().len() + op.outputs().len() <= 16);
        }
    }
}
