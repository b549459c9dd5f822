//! OpenAI's interface: parameters in, answers out.

pub mod answer;
pub mod chat;
pub mod completions;
pub mod error;
pub mod generation;
pub mod guide;
pub mod job;
pub mod logprobs;
pub mod parameters;
pub mod stream;
pub mod tokenize;
