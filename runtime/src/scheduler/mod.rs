//! Many requests over the slots of one engine.
//!
//! Requests wait in a bounded queue, take a slot when one is free and leave it at once when they end. Prompts run as the chunks that
//! [`planner::plan`](crate::planner::plan) cuts, one chunk and one decode step in turn, so that no prompt keeps other sequences waiting
//! for longer than a chunk. A sequence's tokens and scores are the same bits whatever else runs, and whether its prompt ran or came from
//! the prefix cache.

mod constraint;
mod core;
mod request;
mod sequence;
mod service;
mod snapshot;

pub use crate::prefix::checkpoint_bytes;
pub use crate::sampler::Score;
pub use crate::sampler::TokenSet;
pub use constraint::{Constraint, ConstraintError};
pub use request::{Ended, Finished, NewToken, Request, Sink, Timing, Update};
pub use service::{Service, Ticket};
pub use snapshot::{Activity, PrefixUse, SlotView, Snapshot, Totals};

use crate::engine::EngineError;
use crate::generate::RequestError;
use crate::prefix::PrefixFileError;
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// Bytes of the prefix cache that programs and servers have unless they are told otherwise.
pub const DEFAULT_PREFIX_CACHE_BYTES: u64 = 1_000_000_000;

/// How requests are taken and run.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// Most requests that wait for a slot.
    pub max_queued_requests: usize,
    /// Most tokens of their prompts together.
    pub max_queued_tokens: usize,
    /// Bytes of the prefix cache; 0 for none.
    pub prefix_cache_bytes: u64,
    /// Where the prefix cache comes from at the start, if it is there, and goes to at the end.
    pub prefix_cache_file: Option<PathBuf>,
    /// Decode steps after each chunk of a prompt.
    pub decode_steps_per_chunk: NonZeroUsize,
    /// How often a sequence is run again after backend errors without a token between them.
    pub replays: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_queued_requests: 256,
            max_queued_tokens: 1 << 20,
            prefix_cache_bytes: 0,
            prefix_cache_file: None,
            decode_steps_per_chunk: NonZeroUsize::MIN,
            replays: 3,
        }
    }
}

/// Why there is no service.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The system started no thread.
    #[error("starting the scheduler's thread: {0}")]
    Thread(#[from] std::io::Error),
    /// The file of prefixes is none, damaged, or of another package.
    #[error(transparent)]
    Prefixes(#[from] PrefixFileError),
    /// The engine failed to run the first prefix of the file again.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Why requests were not queued.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// One of them cannot run.
    #[error("request {index}: {source}")]
    Request {
        /// Which, of those that came together.
        index: usize,
        /// Why.
        source: RequestError,
    },
    /// There is no room in the queue.
    #[error("{what}: expected at most {limit} in the queue, found {found}; try again later")]
    Full {
        /// Requests or tokens.
        what: &'static str,
        /// How many may wait.
        limit: usize,
        /// How many would.
        found: usize,
        /// When a slot may be free again.
        retry_after: std::time::Duration,
    },
    /// It takes no more.
    #[error("the scheduler takes no more requests: it is ending")]
    Draining,
}
