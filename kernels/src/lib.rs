//! The RAT+ operators on plain pointers, for CPUs and, in [`cuda`], for NVIDIA GPUs.
//!
//! Hosts run any operator through a [`CpuPlan`]; each operator is one [`CpuKernel`].
//! [`recurrence_scan`], [`dilated_attention`] and [`block_top_k_attention`] take the operators' tensors as dense row-major
//! pointers and a [`ParallelFor`] that the caller supplies; they start no thread of their own.
//! x86-64 runs AVX-512 or AVX2 code where the processor has it, found at run time; everything
//! else runs portable code ([`isa`] tells which). Elements are f32, f16 or bf16, and sums are f32;
//! so are products, but for those of bf16 where the processor multiplies bf16 ([`Isa::Amx`],
//! [`Isa::Avx512Bf16`]): chunks then round queries and weights to it. On one machine results are
//! bit-identical for every `ParallelFor` and do not depend on the other sequences of the batch.
//!
//! What the operators compute is defined by [`ratplus_graphs`]: the patterns, the cache rows and
//! the tensor shapes.

#![allow(unsafe_code)]

mod attention;
#[cfg(feature = "cuda")]
pub mod cuda;
mod description;
mod element;
mod isa;
mod linear;
mod operator;
mod panics;
mod parallel;
mod rope;
mod scan;
mod scratch;
mod simd;
#[cfg(test)]
mod tests;
mod told;

pub use attention::blocks::{BlockTopKParams, block_top_k_attention, block_top_k_attention_on};
pub use attention::{
    AttentionParams, attention_workspace_bytes, dilated_attention, dilated_attention_on,
};
pub use description::describe;
pub use element::Element;
pub use isa::{Isa, isa};
pub use linear::{LinearParams, linear, linear_on, linear_workspace_bytes};
pub use operator::{CpuError, CpuKernel, CpuPlan, Processor};
pub use panics::panic_words;
pub use parallel::{ParallelFor, Serial};
pub use scan::{ScanParams, recurrence_scan, recurrence_scan_on};
pub use told::write_message;
