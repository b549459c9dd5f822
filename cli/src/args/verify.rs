//! Arguments of `verify`.

use super::LibraryArgs;
use clap::Args;
use ratplus_graphs::tolerance::OutputTolerance;
use std::path::PathBuf;

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
    /// Golden outputs: safetensors of `tokens`, `positions` and `logits`, and tensors between; those of
    /// --save-golden, or of other programs
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
    /// Hold an output (logits, or a tensor of the golden file) to X in place of the tolerance of the package's
    /// type; the report names both. STATISTIC says which of its differences: max (the default), mean, median, or a
    /// percentile such as p99.9. As logits:1e-3,logits:mean:1e-5
    #[arg(long, value_name = "OUTPUT:[STATISTIC:]X", value_delimiter = ',')]
    pub atol: Vec<OutputTolerance>,
    /// Print how many elements differ by how much, by powers of ten
    #[arg(long)]
    pub histogram: bool,
    /// Draw the largest differences by layer and position as SVG
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,
    /// Save what outputs were compared with, where there was no golden file, as one
    #[arg(long, value_name = "FILE.safetensors", conflicts_with = "golden")]
    pub save_golden: Option<PathBuf>,
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
