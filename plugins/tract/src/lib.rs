//! RAT+ operators and packages in tract: the CPU reference.
//!
//! [`TractEngine`] runs a [`ReferenceGraph`](ratplus_graphs::model::ReferenceGraph), which is built
//! from a package's manifest and reads none of its ONNX files. Standard operators are tract's; the
//! custom nodes are [`ratplus_reference`]'s plain loops.
//!
//! tract has no bf16, and its f16 arithmetic rounds inside operators: values of either type are held
//! in f32, and where the package rounds, an operator rounds to the nearest value of the type, ties
//! to even. The result is what those roundings give and nothing else.
//!
//! Block-wise integers are widened when weights are loaded; their products are f32.

mod engine;
mod error;
mod operators;
mod quantized;
#[allow(unsafe_code)]
mod vectors;
mod weights;

pub use engine::{Packing, TensorRef, TractEngine};
pub use error::TractError;
pub use operators::register;
pub use ratplus_reference::{Choices, with_choices};
pub use weights::TractWeights;
