//! Arguments of `triton`.

use super::{EngineArgs, byte_count};
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, Error, FromArgMatches, ValueEnum};
use ratplus_runtime::scheduler;
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// Arguments of `triton`.
#[derive(Debug, Args)]
pub struct TritonArgs {
    /// What was typed of the flags below; the first field, as reading takes the others from clap.
    #[command(flatten)]
    pub typed: Typed,
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
    #[arg(long, value_name = "N", default_value_t = scheduler::Options::default().max_queued_requests)]
    pub max_queued_requests: usize,
    /// With ratplus: memory that keeps states of prompts, as for `serve`
    #[arg(long, value_name = "BYTES", value_parser = byte_count, default_value_t = scheduler::DEFAULT_PREFIX_CACHE_BYTES)]
    pub prefix_cache: u64,
    /// With ratplus: longest chunk of a prompt, as for `serve` [default: the longest]
    #[arg(long, value_name = "L")]
    pub prefill_chunk: Option<usize>,
    /// With ratplus: decode steps after each chunk of a prompt, as for `serve`
    #[arg(long, value_name = "N", default_value_t = scheduler::Options::default().decode_steps_per_chunk)]
    pub decode_steps_per_chunk: NonZeroUsize,
    /// With onnxruntime: tokens of a chunk, one of the package's lengths
    #[arg(long, value_name = "L", default_value_t = 1)]
    pub length: usize,
    /// With onnxruntime and tensorrt: most sequences whose states are kept at once
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub max_sequences: usize,
    /// What runs the engines; with `--triton-backend onnxruntime` one of the first three, with tensorrt none.
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// Names of the arguments that were typed, those that have a default's value among them.
#[derive(Clone, Debug, Default)]
pub struct Typed(Vec<String>);

impl Typed {
    /// Whether the argument was.
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|typed| typed == name)
    }
}

impl FromArgMatches for Typed {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let mut typed = Self::default();
        typed.update_from_arg_matches(matches)?;
        Ok(typed)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        let names = matches.ids().map(|id| id.as_str());
        let is_typed = |name: &&str| matches.value_source(name) == Some(ValueSource::CommandLine);
        self.0 = names.filter(is_typed).map(str::to_owned).collect();
        Ok(())
    }
}

impl Args for Typed {
    fn augment_args(command: Command) -> Command {
        command
    }

    fn augment_args_for_update(command: Command) -> Command {
        command
    }
}

/// `--triton-backend`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum TritonBackend {
    Ratplus,
    Onnxruntime,
    Tensorrt,
}
