//! What judges, measures and prepares packages that `ratplus-runtime` runs.
//!
//! - [`verify`](mod@verify): compares every backend with golden outputs along every route.
//! - [`bench`](mod@bench): how fast a session prefills and decodes.
//! - [`eval`]: how well a session predicts a text.
//! - [`spot_check`](mod@spot_check): a few tokens through a package that was just written.
//! - `plans`: builds engine plans into a package; with the feature `tensorrt`.
//!
//! ```no_run
//! use ratplus_runtime::{BackendKind, Package, Session};
//! use ratplus_tools::{BenchOptions, VerifyOptions, bench, verify};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let package = Package::open("model")?;
//! let sessions = Session::builder(&package);
//! // Without a golden file: against tract in f32.
//! let report = verify(&sessions, None, &VerifyOptions::default(), &mut |_| ())?;
//! assert!(report.passed);
//! let mut session = sessions.open(BackendKind::OrtCpu)?;
//! for row in bench(&mut session, &BenchOptions::default(), &mut |_| ())? {
//!     println!("{}: {} tokens/s", row.name, row.tokens_per_second.p50);
//! }
//! # Ok(())
//! # }
//! ```

pub mod bench;
pub mod eval;
#[cfg(feature = "tensorrt")]
pub mod plans;
pub mod spot_check;
pub mod verify;

pub use bench::{BenchError, BenchOptions, Measured, bench};
pub use eval::{EvalError, EvalOptions, Evaluation, Text, evaluate};
#[cfg(feature = "tensorrt")]
pub use plans::{BuildError, BuildOptions, BuildReport};
pub use spot_check::{SpotCheck, spot_check};
pub use verify::{Golden, VerifyError, VerifyOptions, VerifyReport, verify};
