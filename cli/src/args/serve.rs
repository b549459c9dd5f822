//! Arguments of `serve`.

use super::{EngineArgs, byte_count};
use clap::{Args, ValueEnum};
use ratplus_runtime::scheduler;
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// What a server does unless it is told otherwise.
fn server() -> ratplus_server::Options {
    ratplus_server::Options::new("")
}

/// Arguments of `serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The package
    pub dir: PathBuf,
    /// Address to listen on
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    pub host: String,
    /// Port to listen on; 0 takes one that is free and says which
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    pub port: u16,
    /// What the model is called [default: the name of its folder]
    #[arg(long, value_name = "NAME")]
    pub model_name: Option<String>,
    /// Keys, one a line, of which a request has to bring one
    #[arg(long, value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,
    /// Most requests that wait for a slot; more are refused with 429
    #[arg(long, value_name = "N", default_value_t = scheduler::Options::default().max_queued_requests)]
    pub max_queued_requests: usize,
    /// Most tokens of their prompts together
    #[arg(long, value_name = "N", default_value_t = scheduler::Options::default().max_queued_tokens)]
    pub max_queued_tokens: usize,
    /// Memory that keeps states of prompts, so that those that begin alike do not run anew: bytes, or such as
    /// 512MB, 4GB, 4GiB; 0 keeps none
    #[arg(long, value_name = "BYTES", value_parser = byte_count, default_value_t = scheduler::DEFAULT_PREFIX_CACHE_BYTES)]
    pub prefix_cache: u64,
    /// Where these states come from at the start, if the file is there, and go to at the end
    #[arg(long, value_name = "FILE")]
    pub prefix_cache_file: Option<PathBuf>,
    /// Longest chunk of a prompt, one of the package's lengths: shorter ones keep running answers from
    /// waiting, and prefixes of fewer tokens are kept; longer ones are faster [default: the longest]
    #[arg(long, value_name = "L")]
    pub prefill_chunk: Option<usize>,
    /// Decode steps after each chunk of a prompt: more keep running answers faster and new ones waiting longer
    #[arg(long, value_name = "N", default_value_t = scheduler::Options::default().decode_steps_per_chunk)]
    pub decode_steps_per_chunk: NonZeroUsize,
    /// How long requests may go on after SIGTERM or SIGINT, in seconds
    #[arg(long, value_name = "S", default_value_t = server().drain.as_secs())]
    pub drain_seconds: u64,
    /// How long a request may take, in seconds [default: as long as it takes]
    #[arg(long, value_name = "S")]
    pub request_timeout: Option<u64>,
    /// How long a client may keep the server waiting, in seconds: for its headers, its body, its next request, or
    /// to take what it is sent
    #[arg(long, value_name = "S", default_value_t = server().idle.as_secs(), value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub idle_seconds: u64,
    /// Longest body of a request
    #[arg(long, value_name = "BYTES", value_parser = byte_count, default_value_t = server().max_body_bytes as u64)]
    pub max_body_bytes: u64,
    /// Most tokens of a prompt [default: as many as the package takes]
    #[arg(long, value_name = "N")]
    pub max_prompt_tokens: Option<usize>,
    /// Most requests that are read, wait, run or are written at once; more are refused with 429
    #[arg(long, value_name = "N", default_value_t = server().max_concurrent_requests as u32, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub max_concurrent_requests: u32,
    /// How lines of the log on standard error are written
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// Log prompts and texts too
    #[arg(long)]
    pub log_prompts: bool,
    /// What runs the engines.
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// `--log-format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum LogFormat {
    Text,
    Json,
}
