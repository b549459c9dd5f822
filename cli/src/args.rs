//! What can be typed.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use ratplus_graphs::ops::ElementType;
use ratplus_graphs::package::{Fallback, LogitsMode, SpecialTokens};
use ratplus_graphs::plans::ComputeTarget;
use ratplus_graphs::precision::{Activations, KeepF32};
use ratplus_tools::plans::HardwareCompatibility;
use serde::de::DeserializeOwned;
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// Deploys RAT+ language models: checkpoint to ONNX, verified on every backend.
#[derive(Debug, Parser)]
#[command(
    name = "ratplus",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Turn a checkpoint into an ONNX package
    Export(ExportArgs),
    /// Show shapes, patterns, cache bytes and FLOPs a token, against dense attention
    Inspect(InspectArgs),
    /// Run a package on every backend and compare with golden outputs and the tract reference
    Verify(VerifyArgs),
    /// Build engine plans for TensorRT or TensorRT for RTX into a package
    Build(BuildArgs),
    /// Continue a prompt
    Generate(GenerateArgs),
    /// Serve a package over HTTP, as OpenAI's clients speak it
    Serve(ServeArgs),
    /// Score a text: perplexity, beside that of other packages
    Eval(EvalArgs),
    /// Measure prefill and decode: tokens a second, latencies, memory
    Bench(BenchArgs),
    /// Say what this machine has, what is missing and how to get it
    Doctor(DoctorArgs),
}

/// Where the model's sizes and patterns come from.
#[derive(Debug, Default, Args)]
pub struct ModelArgs {
    /// Sizes and patterns; flags below override it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Channels of one head
    #[arg(long, value_name = "N")]
    pub d_head: Option<usize>,
    /// Every D-th key is kept; 1 is dense attention, -1 keeps none. One value, or one per layer
    #[arg(
        long,
        value_name = "D",
        value_delimiter = ',',
        allow_negative_numbers = true
    )]
    pub dilation: Vec<i64>,
    /// Tokens before the current one that are visible. One value, or one per layer
    #[arg(long, value_name = "W", value_delimiter = ',')]
    pub local_window: Vec<i64>,
    /// Tokens at the start that are always visible. One value, or one per layer
    #[arg(long, value_name = "I", value_delimiter = ',')]
    pub initial: Vec<i64>,
}

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
    /// Accept NaN and infinity in weights
    #[arg(long)]
    pub allow_nonfinite: bool,
    /// Write nothing: check everything but the weights' values, and say what would be written and how
    /// large it is
    #[arg(long)]
    pub dry_run: bool,
}

/// Takes one of `names`, as manifests write them.
fn one_of<T>(names: impl IntoIterator<Item = &'static str>) -> impl TypedValueParser<Value = T>
where
    T: DeserializeOwned + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(names).try_map(|name| serde_json::from_value(name.into()))
}

const DTYPES: [&str; 3] = ["f32", "f16", "bf16"];
const SPECIAL_TOKENS: [&str; 2] = ["none", "tokenizer"];

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

/// Arguments of `inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// A package, or a checkpoint as for `export`
    pub path: PathBuf,
    /// Where a checkpoint's sizes and patterns come from.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Longest sequence, for a checkpoint [default: 4096]
    #[arg(long, value_name = "N")]
    pub max_seq_len: Option<usize>,
    /// Type of the KV cache, for a checkpoint [default: f32]
    #[arg(long, value_parser = one_of::<ElementType>(DTYPES))]
    pub cache_dtype: Option<ElementType>,
    /// Say what servers of a package fit in so much memory: slots, and tokens of prompts that a prefix
    /// cache keeps; as 64GB, 24GiB
    #[arg(long, value_name = "BYTES", value_parser = byte_count)]
    pub serve_memory: Option<u64>,
    /// Draw cost against context as SVG
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,
    /// Print JSON instead of tables
    #[arg(long)]
    pub json: bool,
}

/// Bytes as people write them: a number, and maybe kB, MB, GB, TB, or KiB, MiB, GiB, TiB.
pub fn byte_count(text: &str) -> Result<u64, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let scale = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        "kib" => 1024.0,
        "mib" => 1048576.0,
        "gib" => 1073741824.0,
        "tib" => 1099511627776.0,
        _ => f64::NAN,
    };
    let bytes = number.parse::<f64>().unwrap_or(f64::NAN) * scale;
    match (0.0..1e18).contains(&bytes) {
        true => Ok(bytes as u64),
        false => Err("expected bytes, as 4096, 500MB, 64GB or 24GiB".into()),
    }
}

/// Where ONNX Runtime and the custom-op library are.
#[derive(Clone, Debug, Default, Args)]
pub struct LibraryArgs {
    /// libonnxruntime.so, or a folder that holds it [default: ORT_DYLIB_PATH, or search as `ratplus
    /// doctor` shows]
    #[arg(long, value_name = "FILE")]
    pub onnxruntime: Option<PathBuf>,
    /// libratplus_ort.so [default: RATPLUS_ORT_LIBRARY, or next to this program]
    #[arg(long, value_name = "FILE")]
    pub custom_ops: Option<PathBuf>,
    /// Threads of one engine [default: all cores]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Launch the decode engine's kernels one by one, where ort-cuda and tensorrt would replay a
    /// CUDA graph; the numbers are the same
    #[arg(long)]
    pub no_cuda_graph: bool,
}

/// Arguments of `verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The package
    pub dir: PathBuf,
    /// Backends to run: ort-cpu, ort-cuda, ort-fallback, tensorrt, tensorrt-rtx, tract [default: all
    /// present]
    #[arg(long, value_name = "B", value_delimiter = ',')]
    pub backend: Vec<String>,
    /// What backends are compared with where there is no golden file
    #[arg(long, default_value = "tract")]
    pub reference: String,
    /// Golden outputs: safetensors of `tokens`, `positions` and `logits`, and tensors between
    #[arg(long, value_name = "FILE")]
    pub golden: Option<PathBuf>,
    /// Chunk lengths for prefill, each a static length of the package [default: all of them and
    /// the planner's own plan]
    #[arg(long, value_name = "N", value_delimiter = ',')]
    pub chunks: Vec<usize>,
    /// Tokens to compare on where there is no golden file [default: 96, or as many as the package takes]
    #[arg(long, value_name = "N")]
    pub tokens: Option<usize>,
    /// Seed of these tokens
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Write everything measured as JSON
    #[arg(long, value_name = "FILE.json")]
    pub report: Option<PathBuf>,
    /// Print the report as JSON instead of the table
    #[arg(long)]
    pub json: bool,
    /// Libraries.
    #[command(flatten)]
    pub libraries: LibraryArgs,
}

fn compute_capability(text: &str) -> Result<(u32, u32), String> {
    let target: ComputeTarget = text.parse()?;
    if target.and_later {
        return Err("expected a compute capability such as 8.6, without a +".into());
    }
    Ok(target.capability)
}

/// Arguments of `build`.
#[derive(Debug, Args)]
pub struct BuildArgs {
    /// The package; its plans are replaced when the new ones are whole
    pub dir: PathBuf,
    /// What will run the plans: tensorrt, built for this machine's GPU, or tensorrt-rtx, built
    /// with or without one
    #[arg(long)]
    pub backend: String,
    /// Number of the GPU to build for, with tensorrt
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub device: i32,
    /// GPUs to build for, with tensorrt-rtx, such as 8.6,8.9 [default: 8.0, 8.6, 8.9, 12.0 and
    /// later]
    #[arg(long, value_name = "C", value_delimiter = ',', value_parser = compute_capability)]
    pub compute_capability: Vec<(u32, u32)>,
    /// A plan, and a copy of the weights, for each engine, where one plan could hold all (tensorrt with
    /// plugins): each may be a little faster
    #[arg(long)]
    pub split_engines: bool,
    /// Scratch memory that a layer may use at most, in MiB [default: TensorRT's]
    #[arg(long, value_name = "MIB")]
    pub workspace: Option<u64>,
    /// How long TensorRT searches, 0 to 5 [default: TensorRT's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=5))]
    pub optimization_level: Option<u8>,
    /// Plans that later releases of the same major version run, with tensorrt
    #[arg(long)]
    pub version_compatible: bool,
    /// Other GPUs that run the plans, at a cost in speed, with tensorrt: ampere+ (compute capability 8.0
    /// and later) or same-compute-capability
    #[arg(long, value_name = "GPUS")]
    pub hardware_compatibility: Option<HardwareCompatibility>,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// The package; it needs a tokenizer
    pub dir: PathBuf,
    /// Text to continue
    #[arg(short, long, value_name = "TEXT", group = "input")]
    pub prompt: Option<String>,
    /// Continue the text of a file, UTF-8, a line feed at its end included; `-` is standard input
    #[arg(long, value_name = "FILE", group = "input")]
    pub prompt_file: Option<PathBuf>,
    /// Continue every prompt of a file, a JSON string a line, as many at once as the package has slots
    /// (`export --batch`), each as if it were alone; prints a JSON object a line, in the same order: prompt,
    /// completion, tokens (new ones, the one that ended it included) and stop (end, max_new_tokens,
    /// stop_string, max_seq_len or failed). `-` is standard input
    #[arg(long, value_name = "FILE", group = "input")]
    pub prompts: Option<PathBuf>,
    /// Special tokens to add to a prompt [default: as the package was exported]
    #[arg(long, value_parser = one_of::<SpecialTokens>(SPECIAL_TOKENS))]
    pub special_tokens: Option<SpecialTokens>,
    /// Stop after this many tokens
    #[arg(short = 'n', long, value_name = "N", default_value_t = 128)]
    pub max_new_tokens: usize,
    /// 0 always takes the likeliest token
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    pub temperature: f32,
    /// Draw from the K likeliest tokens
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Draw from the likeliest tokens that have probability P together
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub top_p: Option<f32>,
    /// Draw from tokens at least P times as likely as the likeliest
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub min_p: Option<f32>,
    /// Divides the logits of tokens of the prompt and new ones where they are more than 0, and multiplies
    /// them where they are not: above 1, they come less often
    #[arg(
        long,
        value_name = "X",
        default_value_t = 1.0,
        allow_negative_numbers = true
    )]
    pub repetition_penalty: f32,
    /// Taken from the logits of new tokens, -2 to 2
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    pub presence_penalty: f32,
    /// Taken from the logit of a new token each time that it comes, -2 to 2
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    pub frequency_penalty: f32,
    /// Seed of the draws, of each prompt's own where there are several [default: 0]
    #[arg(long, value_name = "S")]
    pub seed: Option<u64>,
    /// Stop at these tokens too; the tokenizer's end of text always stops
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    pub stop_tokens: Vec<u32>,
    /// Stop before this text, wherever in tokens it begins; may be given several times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub stop: Vec<String>,
    /// What runs the engines: ort-cpu, ort-cuda, ort-fallback, tensorrt, tensorrt-rtx or tract
    #[arg(long, default_value = "ort-cpu")]
    pub backend: String,
    /// Print speed and implementations on standard error
    #[arg(long)]
    pub stats: bool,
    /// Libraries.
    #[command(flatten)]
    pub libraries: LibraryArgs,
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
    /// What runs the engines: ort-cpu, ort-cuda, ort-fallback, tensorrt, tensorrt-rtx or tract
    #[arg(long, default_value = "ort-cpu")]
    pub backend: String,
    /// Keys, one a line, of which a request has to bring one
    #[arg(long, value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,
    /// Most requests that wait for a slot; more are refused with 429
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub max_queued_requests: usize,
    /// Most tokens of their prompts together
    #[arg(long, value_name = "N", default_value_t = 1 << 20)]
    pub max_queued_tokens: usize,
    /// Memory that keeps states of prompts, so that those that begin alike do not run anew: bytes, or such as
    /// 512MB, 4GB, 4GiB; 0 keeps none
    #[arg(long, value_name = "BYTES", value_parser = byte_count, default_value = "1GB")]
    pub prefix_cache: u64,
    /// Where these states come from at the start, if the file is there, and go to at the end
    #[arg(long, value_name = "FILE")]
    pub prefix_cache_file: Option<PathBuf>,
    /// Longest chunk of a prompt, one of the package's lengths: shorter ones keep running answers from
    /// waiting, and prefixes of fewer tokens are kept; longer ones are faster [default: the longest]
    #[arg(long, value_name = "L")]
    pub prefill_chunk: Option<usize>,
    /// Decode steps after each chunk of a prompt: more keep running answers faster and new ones waiting longer
    #[arg(long, value_name = "N", default_value = "1")]
    pub decode_steps_per_chunk: NonZeroUsize,
    /// How long requests may go on after SIGTERM or SIGINT, in seconds
    #[arg(long, value_name = "S", default_value_t = 30)]
    pub drain_seconds: u64,
    /// How long a request may take, in seconds [default: as long as it takes]
    #[arg(long, value_name = "S")]
    pub request_timeout: Option<u64>,
    /// How long a client may keep the server waiting, in seconds: for its headers, its body, its next request, or
    /// to take what it is sent
    #[arg(long, value_name = "S", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub idle_seconds: u64,
    /// Longest body of a request
    #[arg(long, value_name = "BYTES", value_parser = byte_count, default_value = "8MiB")]
    pub max_body_bytes: u64,
    /// Most tokens of a prompt [default: as many as the package takes]
    #[arg(long, value_name = "N")]
    pub max_prompt_tokens: Option<usize>,
    /// Most requests that are read, wait, run or are written at once; more are refused with 429
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub max_concurrent_requests: u32,
    /// How lines of the log on standard error are written
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// Log prompts and texts too
    #[arg(long)]
    pub log_prompts: bool,
    /// Libraries.
    #[command(flatten)]
    pub libraries: LibraryArgs,
}

/// `--log-format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum LogFormat {
    Text,
    Json,
}

/// Arguments of `bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Packages, measured one after the other
    #[arg(required = true, value_name = "DIR")]
    pub dirs: Vec<PathBuf>,
    /// What runs the engines: ort-cpu, ort-cuda, ort-fallback, tensorrt, tensorrt-rtx or tract
    #[arg(long, default_value = "ort-cpu")]
    pub backend: String,
    /// Lengths of prompts [default: 512]
    #[arg(long, value_name = "N", value_delimiter = ',')]
    pub prompt: Option<Vec<usize>>,
    /// Tokens before those that are decoded one by one [default: 0 and as many as fit]
    #[arg(long, value_name = "N", value_delimiter = ',')]
    pub context: Option<Vec<usize>>,
    /// Tokens to decode one by one; 0 decodes none [default: 128]
    #[arg(short = 'n', long, value_name = "N")]
    pub new_tokens: Option<usize>,
    /// How often each is measured, after one run that is not counted
    #[arg(long, value_name = "N", default_value = "3")]
    pub repeat: NonZeroUsize,
    /// Write everything measured as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Draw latency against tokens as SVG, a line a package
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,
    /// Libraries.
    #[command(flatten)]
    pub libraries: LibraryArgs,
}

/// Arguments of `eval`.
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// Packages, scored one after the other and compared with the first
    #[arg(required = true, value_name = "DIR")]
    pub dirs: Vec<PathBuf>,
    /// What to predict, UTF-8, `-` for standard input; tokens are the package's tokenizer's
    #[arg(long, value_name = "FILE", required_unless_present = "golden")]
    pub text: Option<PathBuf>,
    /// Predict a golden file's tokens where it has logits, and print what these score
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["text", "window", "stride", "special_tokens"]
    )]
    pub golden: Option<PathBuf>,
    /// Special tokens to add to the text, at its start and end and not to every window; they are
    /// context and not scored [default: as each package was exported]
    #[arg(long, value_parser = one_of::<SpecialTokens>(SPECIAL_TOKENS))]
    pub special_tokens: Option<SpecialTokens>,
    /// What runs the engines: ort-cpu, ort-cuda, ort-fallback, tensorrt, tensorrt-rtx or tract
    #[arg(
        long,
        value_name = "B",
        value_delimiter = ',',
        default_value = "ort-cpu"
    )]
    pub backend: Vec<String>,
    /// Tokens of a window, the longest context of a prediction and one [default: as many as every
    /// package has room for]
    #[arg(long, value_name = "N")]
    pub window: Option<usize>,
    /// Tokens from one window's start to the next one's; windows overlap by the rest, one token at
    /// least, which is context [default: one less than the window]
    #[arg(long, value_name = "N")]
    pub stride: Option<usize>,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
    /// Libraries.
    #[command(flatten)]
    pub libraries: LibraryArgs,
}

/// Arguments of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
    /// Libraries.
    #[command(flatten)]
    pub libraries: LibraryArgs,
}
