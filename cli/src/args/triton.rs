//! Arguments of `triton`.

use super::{EngineArgs, byte_count};
use clap::{Args, ValueEnum};
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// Arguments of `triton`.
#[derive(Debug, Args)]
pub struct TritonArgs {
    /// The package
    pub dir: PathBuf,
    /// The model repository; the package's files are copied into it
    #[arg(short, long, value_name = "REPOSITORY")]
    pub output: PathBuf,
    /// What the model is called [default: the name of its folder]
    #[arg(long, value_name = "NAME")]
    pub model_name: Option<String>,
    /// Triton's backend that runs it: that of libtriton_ratplus.so, or one that runs single steps of sequences
    #[arg(long, value_enum, default_value_t = TritonBackend::Ratplus)]
    pub triton_backend: TritonBackend,
    /// With ratplus: most requests that wait in Triton's queue
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub max_queued_requests: usize,
    /// With ratplus: memory that keeps states of prompts, as for `serve`
    #[arg(long, value_name = "BYTES", value_parser = byte_count, default_value = "1GB")]
    pub prefix_cache: u64,
    /// With ratplus: longest chunk of a prompt, as for `serve` [default: the longest]
    #[arg(long, value_name = "L")]
    pub prefill_chunk: Option<usize>,
    /// With ratplus: decode steps after each chunk of a prompt, as for `serve`
    #[arg(long, value_name = "N", default_value = "1")]
    pub decode_steps_per_chunk: NonZeroUsize,
    /// With onnxruntime: tokens of a chunk, one of the package's lengths
    #[arg(long, value_name = "L", default_value_t = 1)]
    pub length: usize,
    /// With onnxruntime and tensorrt: most sequences whose states are kept at once
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub max_sequences: usize,
    /// What runs the engines; with `--triton-backend onnxruntime` one of the first three.
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// `--triton-backend`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum TritonBackend {
    Ratplus,
    Onnxruntime,
    Tensorrt,
}
