//! What judges, measures and prepares packages that `ratplus-runtime` runs.
//!
//! - [`verify`]: compares every backend with golden outputs along every route.
//! - [`bench`](mod@bench): how fast a session prefills and decodes.
//! - [`eval`]: how well a session predicts a text.
//! - `plans`: builds engine plans into a package; with the feature `tensorrt`.

pub mod bench;
pub mod eval;
#[cfg(feature = "tensorrt")]
pub mod plans;
pub mod verify;
