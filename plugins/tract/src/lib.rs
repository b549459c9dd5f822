//! RAT+ operators and packages in tract: the CPU reference.
//!
//! [`TractEngine`] runs one ONNX file of a package. Standard operators are tract's; the custom
//! nodes of `function` and `none` packages are [`ratplus_reference`]'s plain loops
//! (model-local functions are ignored); an `inline` package is standard operators only.
//!
//! tract has no bf16, and its f16 arithmetic rounds inside operators. Packages of either type
//! are therefore rewritten in memory: every such tensor is carried in f32, and every cast to the
//! type becomes an operator that rounds to the nearest value of the type, ties to even. The
//! result is what the graph's own roundings give and nothing else.
//!
//! Block-wise integers are widened when weights are loaded; their products are f32.

mod carried;
mod engine;
mod error;
mod operators;
mod quantized;
#[allow(unsafe_code)]
mod vectors;
mod weights;

pub use carried::Rounding;
pub use engine::{Packing, TensorRef, TractEngine};
pub use error::TractError;
pub use operators::register;
pub use weights::TractWeights;
