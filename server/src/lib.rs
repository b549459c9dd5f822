//! Serves RAT+ packages over HTTP as OpenAI's clients speak it.
//!
//! [`serve`](serve()) listens while a [`Model`] is loaded, and answers from then on; its routes and what they take are
//! in docs/serving.md. Requests run in the slots of one [`Service`](ratplus_runtime::scheduler::Service): the
//! tokens of a request that is greedy or has a seed do not depend on what else runs.
//!
//! - `openai`: parameters in, answers out: `/v1/completions`, `/v1/chat/completions`, streams, errors.
//! - [`template`]: chat templates, at export and here.
//! - [`single`]: one prompt at a time, for servers of other protocols.
//! - `app`, `routes`, `log`, `metrics`: what handlers share and are seen by.
//! - `connection`, `serve`: sockets, slow clients, loading and draining.
//!
//! A library: it reads no flag, sets no signal handler and prints nothing.

mod app;
mod auth;
mod connection;
mod log;
mod metrics;
mod model;
mod openai;
mod page;
mod routes;
mod serve;
pub mod single;
mod sink;
pub mod template;
#[cfg(feature = "testing")]
pub mod testing;
mod texts;

pub use app::Options;
pub use auth::ApiKeys;
pub use model::{Model, ModelError};
pub use openai::generation::MAX_LOGPROBS;
pub use serve::serve;
pub use texts::Texts;
