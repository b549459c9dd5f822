//! Arguments of `export`.

use super::{DTYPES, ModelArgs, SPECIAL_TOKENS, one_of};
use clap::{Args, ValueEnum};
use ratplus_graphs::ops::ElementType;
use ratplus_graphs::package::{Fallback, LogitsMode, SpecialTokens};
use ratplus_graphs::precision::{Activations, KeepF32};
use std::path::PathBuf;

/// Arguments of `export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// A .pth or .safetensors file, a .safetensors.index.json, or a directory with one of them
    #[arg(required_unless_present = "synthetic", conflicts_with = "synthetic")]
    pub checkpoint: Option<PathBuf>,
    /// Random weights in place of a checkpoint, for benchmarks: the sizes of a released model
    /// (1.5b, 2.6b or 7.6b), or `config` for those of --config
    #[arg(long, value_name = "SIZE")]
    pub synthetic: Option<String>,
    /// The package's directory; a package that is there is replaced when the new one is whole
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
    /// Where sizes and patterns come from.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Type of weights and activations; every checkpoint fits f32 exactly
    #[arg(long, value_parser = one_of::<ElementType>(DTYPES), default_value = "f32")]
    pub dtype: ElementType,
    /// Type of the KV cache, which decoding at long context reads; another than --dtype runs on
    /// CPUs and in function bodies [default: that of --dtype]
    #[arg(long, value_parser = one_of::<ElementType>(DTYPES))]
    pub cache_dtype: Option<ElementType>,
    /// Store the matrices of linear layers, the head's among them, as block-wise integers that
    /// Linear or ONNX Runtime's MatMulNBits multiply by; all else keeps the type of --dtype
    #[arg(long, value_enum, value_name = "BITS")]
    pub quantize: Option<Integers>,
    /// Weights that share a scale: 16, 32, 64, 128 or 256 [default: 32]
    #[arg(long, value_name = "N", requires = "quantize")]
    pub block_size: Option<usize>,
    /// Give every block a zero point of its own too
    #[arg(long, requires = "quantize")]
    pub asymmetric: bool,
    /// What rows are rounded to before they are multiplied with integers, on CPUs: nothing further, or
    /// 8 bits and a scale for every block, for faster products
    #[arg(long, requires = "quantize", value_parser = one_of::<Activations>(Activations::ALL.map(Activations::name)), default_value = "float")]
    pub activations: Activations,
    /// Layers that are neither quantised nor rounded to --dtype: numbers from 0, ranges, and `head`,
    /// such as 0,30-31,head
    #[arg(long, value_name = "LAYERS")]
    pub keep_f32: Option<KeepF32>,
    /// Write what every quantised weight lost as JSON
    #[arg(
        long,
        value_name = "FILE.json",
        requires = "quantize",
        conflicts_with = "dry_run"
    )]
    pub report: Option<PathBuf>,
    /// Sequences that run together, each with a length of its own
    #[arg(long, value_name = "B", default_value_t = 1)]
    pub batch: usize,
    /// Static lengths of prefill chunks; decode (1) is always there [default: 64,512]
    #[arg(long, value_name = "L", value_delimiter = ',')]
    pub prefill_lengths: Option<Vec<usize>>,
    /// Longest sequence, prompt and continuation together
    #[arg(long, value_name = "N", default_value_t = ratplus_exporter::package::DEFAULT_MAX_SEQ_LEN)]
    pub max_seq_len: usize,
    /// Which files an engine has: for every target, with function bodies where the runtime may be
    /// without RAT+ operators; for runtimes without them, standard operators only; for every
    /// target, bare nodes; for TensorRT's plugins alone
    #[arg(
        long,
        value_parser = one_of::<Fallback>(["function", "inline", "none", "trt-plugins"]),
        default_value = "function"
    )]
    pub fallback: Fallback,
    /// Logits at each chunk's last token, or at all of its tokens
    #[arg(long, value_parser = one_of::<LogitsMode>(["last", "all"]), default_value = "last")]
    pub logits: LogitsMode,
    /// A Hugging Face tokenizer.json to put into the package
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    /// A chat template to put into the package: a Jinja file, or Hugging Face's tokenizer_config.json or
    /// chat_template.json
    #[arg(long, value_name = "FILE", requires = "tokenizer")]
    pub chat_template: Option<PathBuf>,
    /// Special tokens that `generate` and `eval` add to a text: none, as released models were trained
    /// and evaluated, or those that the tokenizer's post-processor adds, such as `<s>`
    #[arg(
        long,
        value_parser = one_of::<SpecialTokens>(SPECIAL_TOKENS),
        default_value = "none",
        requires = "tokenizer"
    )]
    pub special_tokens: SpecialTokens,
    /// Opset of the standard operators; 21 or more for integers with --fallback inline or trt-plugins
    #[arg(long, value_name = "N", default_value_t = ratplus_graphs::onnx::OPSET)]
    pub opset: i64,
    /// Do not end with a few tokens through what was written, compared with tract in f32
    #[arg(long)]
    pub no_check: bool,
    /// Accept NaN and infinity in weights
    #[arg(long)]
    pub allow_nonfinite: bool,
    /// Write nothing: check everything but the weights' values, and say what would be written and how
    /// large it is
    #[arg(long)]
    pub dry_run: bool,
}

/// `--quantize`.
#[derive(Clone, Copy, Debug, ValueEnum)]
#[allow(missing_docs)]
pub enum Integers {
    Int4,
    Int8,
}

impl Integers {
    /// Bits of one weight.
    pub fn bits(self) -> u32 {
        match self {
            Self::Int4 => 4,
            Self::Int8 => 8,
        }
    }
}
