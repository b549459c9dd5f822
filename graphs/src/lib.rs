//! What RAT+ deployment agrees on, defined once.
//!
//! - [`pattern`]: which keys a query sees.
//! - [`blocks`]: block top-k attention: blocks, their scores and summaries.
//! - [`cache`]: closed-form arithmetic between token positions and rows of the compact KV cache.
//! - [`spec`]: the model's sizes and patterns, as in `config.json`.
//! - [`precision`]: how weights are stored: in the package's type, as block-wise integers, in f32.
//! - [`ops`]: the operators of domain [`ops::DOMAIN`]: ports, attributes, inference, and each in
//!   standard ONNX operators.
//! - [`onnx`]: the ONNX messages this project reads and writes.
//! - [`model`]: the chunk graph of a whole model for any static sequence length.
//! - [`cost`]: cache bytes and FLOPs a token, against dense attention.
//! - [`memory`]: what a session keeps in memory on a CPU.
//! - [`package`]: engines, targets, files, and `manifest.json`, where the exporter and the runtime meet.
//! - [`releases`]: what releases of runtimes read, and whether a package fits.
//! - [`staging`]: folders beside a package while it is written.
//! - [`tolerance`]: what counts as equal.
//!
//! Every other crate is generated from this one or tested against it.
//!
//! ```
//! use ratplus_graphs::{ModelSpec, Pattern, cost};
//! // What a dilation saves: bytes of the cache of one sequence of 32768 tokens, in f32.
//! let spec: ModelSpec = serde_json::from_str(
//!     r#"{"vocab_size": 32000, "d_model": 2048, "num_layers": 2, "d_head": 128, "d_ffn": 8192,
//!         "patterns": [{"dilation": 16, "initial": 4}, {"dilation": 1}]}"#,
//! )?;
//! assert_eq!(spec.kept_patterns(1), [Pattern::DENSE; 16]);
//! let cost = cost::token_cost(&spec, 32768, 4);
//! let rows = 16 * (4 + 32768 / 16) + 16 * 32768;
//! assert_eq!(cost.cache_bytes, f64::from(2 * rows * 128 * 4));
//! assert_eq!(cost.dense_cache_bytes, f64::from(2 * 2 * 16 * 32768) * 128.0 * 4.0);
//! # Ok::<(), serde_json::Error>(())
//! ```

pub mod blocks;
pub mod cache;
pub mod cost;
mod limits;
pub mod memory;
pub mod model;
pub mod onnx;
pub mod ops;
pub mod package;
pub mod pattern;
pub mod precision;
pub mod releases;
pub mod spec;
pub mod staging;
mod tensor;
pub mod tolerance;

pub use blocks::BlockTopK;
pub use cache::{CacheLayout, HeadCache};
pub use package::plans;
pub use package::{Fallback, LogitsMode, Manifest, PackageShape, SpecialTokens, Target};
pub use pattern::Pattern;
pub use precision::{KeepF32, Precision, Quantization};
pub use spec::{LayerPatterns, ModelSpec};
pub use tensor::{ElementType, TensorType};

/// Nothing, where nothing is wrong; everything that is otherwise.
pub fn none_wrong<T>(problems: Vec<T>) -> Result<(), Vec<T>> {
    match problems.is_empty() {
        true => Ok(()),
        false => Err(problems),
    }
}
