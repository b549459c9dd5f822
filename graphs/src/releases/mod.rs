//! Releases of runtimes: what each reads, and whether a package fits.

mod fit;
mod table;
#[cfg(test)]
mod tests;

pub use fit::{Finding, Verdict, findings, plan_graphs, runs_functions};
pub use table::{OLDEST_ONNX_RUNTIME, OLDEST_TENSORRT};

use std::fmt;
use std::str::FromStr;

/// A runtime of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Host {
    /// `ort`: ONNX Runtime.
    OnnxRuntime,
    /// `tensorrt`.
    TensorRt,
    /// `tensorrt-rtx`: TensorRT for RTX.
    TensorRtRtx,
    /// `triton`: NVIDIA's container of Triton Inference Server, by year and month.
    Triton,
}

impl Host {
    const ALL: [(Self, &'static str, &'static str); 4] = [
        (Self::OnnxRuntime, "ort", "ONNX Runtime"),
        (Self::TensorRt, "tensorrt", "TensorRT"),
        (Self::TensorRtRtx, "tensorrt-rtx", "TensorRT for RTX"),
        (Self::Triton, "triton", "Triton"),
    ];
}

/// A release of a runtime.
///
/// ```
/// use ratplus_graphs::releases::Release;
/// let release: Release = "ort=1.20.1".parse()?;
/// assert_eq!(release.to_string(), "ONNX Runtime 1.20");
/// assert!("onnx=1.20".parse::<Release>().is_err());
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release {
    /// What is released.
    pub host: Host,
    /// Major and minor number.
    pub version: (u32, u32),
}

impl Release {
    /// Its numbers as the runtime writes them.
    fn number(&self) -> String {
        let (major, minor) = self.version;
        match self.host {
            Host::Triton => format!("{major}.{minor:02}"),
            _ => format!("{major}.{minor}"),
        }
    }
}

/// Its name and numbers.
impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Host::ALL.iter().find(|(host, ..)| *host == self.host);
        let name = name.map_or("", |(_, _, name)| name);
        write!(f, "{name} {}", self.number())
    }
}

/// `HOST=MAJOR.MINOR`; further numbers are those of releases that read the same.
impl FromStr for Release {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('=').and_then(|(name, version)| {
            let (host, ..) = *Host::ALL.iter().find(|(_, known, _)| *known == name)?;
            let mut numbers = version.split('.').map(|number| number.parse::<u32>().ok());
            let version = (numbers.next()??, numbers.next()??);
            let rest = numbers.all(|number| number.is_some());
            rest.then_some(Self { host, version })
        });
        parsed.ok_or_else(|| {
            format!(
                "expected a runtime and a release, as ort=1.20, tensorrt=10.8, tensorrt-rtx=1.7 or \
                 triton=24.10, found `{text}`"
            )
        })
    }
}
