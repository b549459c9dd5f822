//! Opens a RAT+ package, drives its engines and generates text.
//!
//! - [`package`]: [`Package::open`] checks every file before anything runs.
//! - [`ort_library`]: finds ONNX Runtime and the library of RAT+ operators.
//! - [`backend`]: [`Session`] runs chunks of tokens; it owns the state that
//!   crosses steps.
//! - [`planner`]: cuts a prompt of any length into chunks for engines of static lengths.
//! - `nvinfer`: finds TensorRT; with the feature `tensorrt`.
//! - [`sampler`], [`text`]: logits to a token, tokens to text.
//! - [`engine`]: sequences in slots, step by step.
//! - [`scheduler`]: requests over those slots, from any thread; what a server is built on.
//! - `grammar`: texts that follow a JSON schema or a grammar; with the feature of that name.
//! - [`generate`](mod@generate): all of it: prompts in, tokens out.
//!
//! ```no_run
//! use ratplus_runtime::{BackendKind, Engine, Package, Request, Session, Tokenizer, generate};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let package = Package::open("model")?;
//! let tokenizer = Tokenizer::from_json(package.tokenizer_json().ok_or("no tokenizer")?)?;
//! let session = Session::builder(&package).open(BackendKind::OrtCpu)?;
//! let mut engine = Engine::new(session);
//! let prompt = tokenizer.encode("In the beginning", package.manifest().special_tokens)?.ids;
//! let mut text = tokenizer.stream(&prompt);
//! let request = Request { max_new_tokens: 32, ..Request::new(prompt) };
//! generate(&mut engine, &[request], |event| {
//!     print!("{}", text.push(event.token).unwrap_or_default());
//!     std::ops::ControlFlow::Continue(())
//! })?;
//! println!("{}", text.finish()?);
//! # Ok(())
//! # }
//! ```

// What only a backend that is left out would use.
#![cfg_attr(
    not(all(feature = "tract", feature = "cuda", feature = "tensorrt")),
    allow(dead_code, unreachable_code, unused_variables)
)]

pub mod backend;
pub mod engine;
pub mod generate;
#[cfg(feature = "grammar")]
pub mod grammar;
#[cfg(feature = "tensorrt")]
pub mod nvinfer;
pub mod ort_library;
pub mod package;
pub mod planner;
mod prefix;
#[allow(unsafe_code)]
mod raw;
pub mod sampler;
pub mod scheduler;
pub mod text;

pub use backend::{
    BackendError, BackendKind, CudaOptions, OrtOptions, Session, SessionBuilder, TensorRtOptions,
};
pub use engine::{Engine, EngineError, Limits, Ran};
pub use generate::{
    Completion, Event, GenerateError, Generation, Observer, Request, StopReason, generate,
};
pub use package::{OpenOptions, Package, PackageError};
pub use ratplus_graphs::{Manifest, SpecialTokens};
pub use sampler::{Sampler, Sampling};
pub use text::{StoppingDecoder, StreamDecoder, TextError, Tokenizer};
