//! What can be typed.

mod check;
mod export;
mod generate;
mod serve;
mod shell;
mod triton;
mod verify;

pub use check::CheckArgs;
pub use export::ExportArgs;
pub use generate::GenerateArgs;
pub use serve::{LogFormat, ServeArgs};
pub use shell::{CompletionsArgs, ManArgs};
pub use triton::{TritonArgs, TritonBackend};
pub use verify::VerifyArgs;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use ratplus_graphs::ops::ElementType;
use ratplus_graphs::package::SpecialTokens;
use ratplus_graphs::plans::ComputeTarget;
#[cfg(feature = "tensorrt")]
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
    /// Say whether a release of ONNX Runtime, TensorRT or Triton will run a package
    Check(CheckArgs),
    /// Build engine plans for TensorRT or TensorRT for RTX into a package
    Build(BuildArgs),
    /// Continue a prompt
    Generate(GenerateArgs),
    /// Serve a package over HTTP, as OpenAI's clients speak it
    Serve(ServeArgs),
    /// Add a package's models to a repository of Triton Inference Server
    Triton(TritonArgs),
    /// Score a text: perplexity, beside that of other packages
    Eval(EvalArgs),
    /// Measure prefill and decode: tokens a second, latencies, memory
    Bench(BenchArgs),
    /// Say what this machine has, what is missing and how to get it
    Doctor(DoctorArgs),
    /// Print a script that completes commands and flags in a shell
    Completions(CompletionsArgs),
    /// Write manual pages
    Man(ManArgs),
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

/// Takes one of `names`, as manifests write them.
fn one_of<T>(names: impl IntoIterator<Item = &'static str>) -> impl TypedValueParser<Value = T>
where
    T: DeserializeOwned + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(names).try_map(|name| serde_json::from_value(name.into()))
}

const DTYPES: [&str; 3] = ["f32", "f16", "bf16"];
const SPECIAL_TOKENS: [&str; 2] = ["none", "tokenizer"];

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

/// What runs the engines of a package.
#[derive(Clone, Debug, Args)]
pub struct EngineArgs {
    /// What runs the engines: ort-cpu, ort-cuda, ort-fallback, tensorrt, tensorrt-rtx or tract
    #[arg(long, default_value = "ort-cpu")]
    pub backend: String,
    /// Libraries.
    #[command(flatten)]
    pub libraries: LibraryArgs,
}

/// Without the feature `build` refuses whatever is asked for.
#[cfg(not(feature = "tensorrt"))]
type HardwareCompatibility = String;

fn compute_capability(text: &str) -> Result<(u32, u32), String> {
    let target: ComputeTarget = text.parse()?;
    if target.and_later {
        return Err("expected a compute capability such as 8.6, without a +".into());
    }
    Ok(target.capability)
}

/// Arguments of `build`.
#[derive(Debug, Args)]
#[cfg_attr(not(feature = "tensorrt"), allow(dead_code))]
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
    /// Plans without their weights, which are read from the package when the plans are opened, with
    /// tensorrt
    #[arg(long)]
    pub strip_weights: bool,
    /// Write what was built, and how long each part took, as JSON
    #[arg(long, value_name = "FILE.json")]
    pub report: Option<PathBuf>,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Packages, measured one after the other
    #[arg(required = true, value_name = "DIR")]
    pub dirs: Vec<PathBuf>,
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
    /// What runs the engines.
    #[command(flatten)]
    pub engine: EngineArgs,
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
    /// Load this libratplus_ort.so or libratplus_trt.so, which runs code of the file, and print only what it
    /// says of itself: operators, types, hosts, build id
    #[arg(long, value_name = "FILE")]
    pub library: Option<PathBuf>,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
    /// Libraries.
    #[command(flatten)]
    pub libraries: LibraryArgs,
}
