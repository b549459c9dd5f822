//! Opens a RAT+ package, drives its engines and generates text.
//!
//! - [`package`]: [`Package::open`](package::Package::open) checks every file before anything runs.
//! - [`ort_library`]: finds ONNX Runtime and the library of RAT+ operators.
//! - [`backend`]: [`Session`](backend::Session) runs chunks of tokens; it owns the state that
//!   crosses steps.
//! - [`planner`]: cuts a prompt of any length into chunks for engines of static lengths.
//! - [`nvinfer`], [`plans`]: finds TensorRT; builds engine plans into a package.
//! - [`sampler`], [`text`]: logits to a token, tokens to text.
//! - [`verify`]: compares every backend with golden outputs along every route.
//! - [`bench`](mod@bench): how fast a session prefills and decodes.
//! - [`eval`]: how well a session predicts a text.
//! - [`generate`]: all of it: prompts in, tokens out.
//!
//! ```no_run
//! use ratplus_runtime::backend::{BackendKind, Session, SessionOptions};
//! use ratplus_runtime::generate::{Request, generate};
//! use ratplus_runtime::package::Package;
//! use ratplus_runtime::text::Tokenizer;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let package = Package::open("model")?;
//! let tokenizer = Tokenizer::from_json(package.tokenizer_json().ok_or("no tokenizer")?)?;
//! let mut session = Session::open(&package, BackendKind::OrtCpu, &SessionOptions::default())?;
//! let prompt = tokenizer.encode("In the beginning", package.manifest().special_tokens)?.ids;
//! let mut text = tokenizer.stream(&prompt);
//! let request = Request { max_new_tokens: 32, ..Request::new(prompt) };
//! generate(&mut session, &[request], |event| {
//!     print!("{}", text.push(event.token).unwrap_or_default());
//!     std::ops::ControlFlow::Continue(())
//! })?;
//! println!("{}", text.finish()?);
//! # Ok(())
//! # }
//! ```

pub mod backend;
pub mod bench;
pub mod eval;
pub mod generate;
pub mod nvinfer;
pub mod ort_library;
pub mod package;
pub mod planner;
pub mod plans;
#[allow(unsafe_code)]
mod raw;
pub mod sampler;
pub mod text;
pub mod verify;
