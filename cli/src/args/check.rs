//! Arguments of `check`.

use clap::Args;
use ratplus_graphs::releases::Release;
use std::path::PathBuf;

/// Arguments of `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The package
    pub dir: PathBuf,
    /// Releases that are to run it: ort=1.20, tensorrt=10.8, tensorrt-rtx=1.7 or triton=24.10
    #[arg(
        long,
        value_name = "HOST=VERSION",
        value_delimiter = ',',
        required = true
    )]
    pub target: Vec<Release>,
    /// Print JSON instead of a list
    #[arg(long)]
    pub json: bool,
}
